//! Forward gives the values that the definition says, on inputs of every shape, stride and parameter set.

#![allow(clippy::excessive_precision, reason = "the values stand as they were printed")]

use crate::support::{Case, Framed, backends};
use llm_operator::{LayerNorm, StatisticsMut, layer_norm};
use ndarray::{Array, Array2, Array3, ArrayView2, Axis, s};

/// Two rows, exact in binary.
const X: [f64; 10] = [0.5, -1.25, 3.0, 2.0, -0.75, 10.0, 10.5, 9.75, 11.0, 10.25];
const GAMMA: [f64; 5] = [1.0, 0.5, -2.0, 1.5, 0.25];
const BETA: [f64; 5] = [0.0, 1.0, -1.0, 0.5, 2.0];
const EPSILON: f64 = 1.0 / 1024.0;

// Printed by mpmath at 60 digits, from the definition; PyTorch 2.15 agrees to its own rounding.
const MEAN: [f64; 2] = [0.7, 10.3];
const RSTD: [f64; 2] = [0.62185296271227147, 2.3188405797101449];
const Y_GAMMA_BETA: [f64; 10] = [
    -0.12437059254245429,
    0.39369336135553531,
    -3.8605236284764488,
    1.7126132772889294,
    1.7745783010168016,
    -0.69565217391304348,
    1.2318840579710145,
    1.5507246376811594,
    2.9347826086956522,
    1.9710144927536232,
];
const Y_GAMMA: [f64; 10] = [
    -0.12437059254245429,
    -0.60630663864446469,
    -2.8605236284764488,
    1.2126132772889294,
    -0.22542169898319841,
    -0.69565217391304348,
    0.23188405797101449,
    2.5507246376811594,
    2.4347826086956522,
    -0.028985507246376812,
];
const Y_BETA: [f64; 10] = [
    -0.12437059254245429,
    -0.21261327728892938,
    0.43026181423822439,
    1.3084088515259529,
    1.0983132040672064,
    -0.69565217391304348,
    1.463768115942029,
    -2.2753623188405797,
    2.1231884057971014,
    1.8840579710144928,
];
const Y_PLAIN: [f64; 10] = [
    -0.12437059254245429,
    -1.2126132772889294,
    1.4302618142382244,
    0.80840885152595292,
    -0.90168679593279364,
    -0.69565217391304348,
    0.46376811594202899,
    -1.2753623188405797,
    1.6231884057971014,
    -0.11594202898550725,
];

fn assert_close(found: impl IntoIterator<Item = f64>, expected: &[f64], relative: f64) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= relative * largest, "element {i}: {found}, expected {expected}");
    }
}

fn layer<'p, T>(layer: LayerNorm<'p, T>, gamma: Option<&'p [T]>, beta: Option<&'p [T]>) -> LayerNorm<'p, T>
where
    T: llm_operator::Element,
{
    let layer = layer.epsilon(EPSILON);
    match (gamma, beta) {
        (None, None) => layer,
        (Some(gamma), None) => layer.gamma(gamma),
        (None, Some(beta)) => layer.beta(beta),
        (Some(gamma), Some(beta)) => layer.gamma(gamma).beta(beta),
    }
}

#[test]
fn known_values_with_every_combination_of_gamma_and_beta() {
    let (x32, gamma32, beta32) = (X.map(|x| x as f32), GAMMA.map(|x| x as f32), BETA.map(|x| x as f32));
    for (gamma, beta, expected) in
        [(true, true, Y_GAMMA_BETA), (true, false, Y_GAMMA), (false, true, Y_BETA), (false, false, Y_PLAIN)]
    {
        for backend in backends() {
            let [mut y, mut mean, mut rstd] = [Framed::new(10, 1), Framed::new(2, 1), Framed::new(2, 1)];
            let statistics = StatisticsMut { mean: mean.slice_mut(), rstd: rstd.slice_mut() };
            layer(LayerNorm::new(5), gamma.then_some(&GAMMA), beta.then_some(&BETA))
                .backend(backend)
                .forward_into(&X, y.slice_mut(), Some(statistics))
                .unwrap();
            assert_close(y.finish(), &expected, 3e-16);
            assert_close(mean.finish(), &MEAN, 2e-16);
            assert_close(rstd.finish(), &RSTD, 2e-16);

            let mut y = Framed::new(10, 1);
            layer(LayerNorm::new(5), gamma.then_some(&gamma32), beta.then_some(&beta32))
                .backend(backend)
                .forward_into(&x32, y.slice_mut(), None)
                .unwrap();
            assert_close(y.finish().into_iter().map(f64::from), &expected, 2e-7);
        }
    }
}

#[test]
fn the_last_dimension_is_normalized_whatever_the_number_of_dimensions() {
    let x = Array::from_shape_vec((2, 5), X.to_vec()).unwrap();
    let (expected, _) = layer_norm(x.view(), EPSILON).unwrap();
    assert_close(expected.iter().copied(), &Y_PLAIN, 3e-16);
    let x = x.into_shape_with_order((2, 1, 1, 5)).unwrap();
    let (y, cache) = layer_norm(x.view(), EPSILON).unwrap();
    assert_eq!(y.shape(), [2, 1, 1, 5]);
    assert_eq!(cache.mean(), MEAN);
    assert_eq!(y.iter().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
    let (y, _) = layer_norm(x.view().into_dyn(), EPSILON).unwrap();
    assert_eq!(y.iter().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
    let (y, _) = layer_norm(expected.row(1), EPSILON).unwrap();
    assert_eq!(y.shape(), [5]);
}

#[test]
fn several_dimensions_are_normalized_together() {
    let x = Array3::from_shape_vec((2, 5, 1), X.to_vec()).unwrap();
    let gamma = GAMMA;
    let layer = LayerNorm::with_shape(&[5, 1]).epsilon(EPSILON).gamma(&gamma);
    let (y, cache) = layer.forward(x.view()).unwrap();
    assert_close(y.iter().copied(), &Y_GAMMA, 3e-16);
    let gradients = layer.backward(x.view(), &cache).unwrap();
    assert_eq!(gradients.dgamma.unwrap().shape(), [5, 1]);
    assert!(gradients.dbeta.is_none());
}

/// Views of the same values in other orders and with gaps.
fn views(check: impl Fn(ArrayView2<'_, f32>)) {
    for width in [3, 40] {
        let x = Case::<f32>::random(9, width, false, false, 3).x;
        let x = Array2::from_shape_vec((9, width), x).unwrap();
        check(x.t().as_standard_layout().t()); // Fortran order
        let mut reversed = x.view();
        reversed.invert_axis(Axis(1));
        check(reversed);
        let mut reversed = x.view();
        reversed.invert_axis(Axis(0));
        check(reversed);
        check(x.slice(s![..;2, ..])); // rows with gaps between them
        check(x.slice(s![.., ..;2])); // gaps within rows
        check(x.slice(s![3..7, 1..]));
        check(x.slice(s![3..3, ..])); // no rows
        check(x.row(4).broadcast((6, width)).unwrap()); // stride 0
    }
}

#[test]
fn views_of_any_stride_give_what_their_copy_gives() {
    views(|view| {
        let copy = view.as_standard_layout().into_owned();
        let (expected, expected_cache) = layer_norm(copy.view(), 1e-5).unwrap();
        let (y, cache) = layer_norm(view, 1e-5).unwrap();
        assert_eq!(y, expected);
        assert_eq!((cache.mean(), cache.rstd()), (expected_cache.mean(), expected_cache.rstd()));
        assert!(y.is_standard_layout());
        let expected = llm_operator::layer_norm_backward(copy.view(), &expected_cache).unwrap();
        assert_eq!(llm_operator::layer_norm_backward(view, &cache).unwrap(), expected);
    });
}

#[test]
fn strided_views_of_three_dimensions_keep_the_order_of_their_rows() {
    let x = Array3::from_shape_fn((4, 5, 33), |(i, j, k)| ((i * 7 + j * 11 + k * k) % 13) as f64);
    let view = x.view().permuted_axes([1, 0, 2]);
    let copy = view.as_standard_layout().into_owned();
    let (expected, _) = layer_norm(copy.view(), 1e-5).unwrap();
    assert_eq!(layer_norm(view.view(), 1e-5).unwrap().0, expected);
    let layer = LayerNorm::with_shape(&[4, 33]);
    assert_eq!(layer.forward(view.view()).unwrap().0, layer.forward(copy.view()).unwrap().0);
}

#[test]
fn no_rows_give_empty_outputs() {
    let x = Array2::<f32>::zeros((0, 7));
    let (y, cache) = layer_norm(x.view(), 1e-5).unwrap();
    assert_eq!(y.shape(), [0, 7]);
    assert!(cache.mean().is_empty());
    LayerNorm::<f32>::new(7).forward_into(&[], &mut [], None).unwrap();
}

#[test]
fn a_row_of_one_element_gives_beta() {
    for backend in backends() {
        for epsilon in [1e-5, 0.0] {
            let x = [3.0_f32, -1e30, 1e-40];
            let mut y = Framed::new(3, 0);
            LayerNorm::new(1)
                .epsilon(epsilon)
                .gamma(&[5.0])
                .beta(&[0.25])
                .backend(backend)
                .forward_into(&x, y.slice_mut(), None)
                .unwrap();
            assert_eq!(y.finish(), [0.25; 3]);
        }
    }
}

#[test]
fn a_constant_row_gives_beta_whatever_epsilon() {
    for backend in backends() {
        for width in [2, 5, 16, 33, 768, 5000] {
            for value in [0.0, 0.1, -1e5, 3e38, 1e-40_f32] {
                for epsilon in [1e-5, 0.0] {
                    let mut y = Framed::new(width, 0);
                    let beta = vec![0.25; width];
                    LayerNorm::new(width)
                        .epsilon(epsilon)
                        .beta(&beta)
                        .backend(backend)
                        .forward_into(&vec![value; width], y.slice_mut(), None)
                        .unwrap();
                    assert!(
                        y.finish().iter().all(|&y| y == 0.25),
                        "{backend:?}, width {width}, {value}, epsilon {epsilon}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_with_nan_or_infinity_gives_nan_in_that_row_only() {
    for backend in backends() {
        for width in [3, 16, 50, 768, 5000] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for column in [0, width / 2, width - 1] {
                    let clean = Case::<f32>::random(5, width, true, true, 9);
                    let mut case = clean.clone();
                    case.x[2 * width + column] = bad;
                    let (expected, found) = (clean.run(backend, 0), case.run(backend, 0));
                    for row in 0..5 {
                        let span = row * width..(row + 1) * width;
                        if row == 2 {
                            assert!(found.y[span.clone()].iter().all(|y| y.is_nan()));
                            assert!(found.dx[span].iter().all(|dx| dx.is_nan()));
                            assert!(found.mean[row].is_nan() && found.rstd[row].is_nan());
                        } else {
                            assert_eq!(found.y[span.clone()], expected.y[span.clone()]);
                            assert_eq!(found.dx[span.clone()], expected.dx[span]);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn finite_rows_at_the_ends_of_the_range_give_finite_values() {
    let rows: [[f32; 4]; 4] = [
        [3e38, -3e38, 3e38, -3e38], // the squares, and even the differences, overflow
        [3.4e38, 3.3e38, 3.2e38, 3.4e38],
        [1e-40, -1e-40, 2e-40, 1e-45], // the squares vanish
        [1e19, 2e19, -1e19, 0.0],
    ];
    // Printed by mpmath at 60 digits for the values as f32 stores them, epsilon 0.
    let expected = [
        [1.0, -1.0, 1.0, -1.0],
        [0.904534033733291, -0.301511344577765, -1.50755672288882, 0.904534033733291],
        [0.447213595499958, -1.34164078649987, 1.34164078649987, -0.447213595499958],
        [0.447213595499958, 1.34164078649987, -1.34164078649987, -0.447213595499958],
    ];
    for backend in backends() {
        for repeat in [1, 4, 192] {
            // A row that repeats has the same normalized values.
            for (row, expected) in rows.iter().zip(expected) {
                let x = row.repeat(repeat);
                let mut y = Framed::new(x.len(), 0);
                LayerNorm::new(x.len()).epsilon(0.0).backend(backend).forward_into(&x, y.slice_mut(), None).unwrap();
                for (i, y) in y.finish().into_iter().enumerate() {
                    assert!(
                        (f64::from(y) - expected[i % 4]).abs() < 2e-5,
                        "{backend:?} {row:?}: {y}, {}",
                        expected[i % 4]
                    );
                }
            }
        }
    }
    for scale in [1e-308, 1e-160, 1e154, 1e307] {
        let x: Vec<f64> = [1.0, -1.0, 2.0, 0.5].iter().map(|x| x * scale).collect();
        let (y, _) = LayerNorm::new(4).epsilon(0.0).forward(ndarray::ArrayView1::from(&x)).unwrap();
        // sqrt(1.171875) is the deviation about the mean 0.625.
        let expected = [0.375, -1.625, 1.375, -0.125].map(|d| d / 1.171875_f64.sqrt());
        assert_close(y, &expected, 1e-15);
    }
}

#[test]
fn rows_in_one_call_or_in_many_have_the_same_bits() {
    for width in [5, 16, 100, 5000] {
        let case = Case::<f32>::random(50, width, true, true, 4);
        let whole = case.run(backends().pop().unwrap(), 0);
        for rows in [1, 3, 7, 49] {
            let mut split = vec![];
            for x in case.x.chunks(rows * width) {
                let mut y = vec![0.0; x.len()];
                case.layer(backends().pop().unwrap()).forward_into(x, &mut y, None).unwrap();
                split.extend(y);
            }
            assert_eq!(split, whole.y);
        }
    }
}
