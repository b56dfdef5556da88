//! Backward gives the gradients that the definition says, each alone or with others, overwritten or accumulated.

#![allow(clippy::excessive_precision, reason = "the values stand as they were printed")]

use crate::support::{Case, Framed, backends};
use llm_operator::{
    Element, GradientMut, GradientsMut, LayerNorm, Statistics, StatisticsMut, Streaming, layer_norm, reference,
};
use ndarray::{Array2, array};

/// Two rows, exact in binary.
const X: [f64; 10] = [0.5, -1.25, 3.0, 2.0, -0.75, 10.0, 10.5, 9.75, 11.0, 10.25];
const DY: [f64; 10] = [1.0, -2.0, 0.5, 0.25, 3.0, -1.0, 0.125, 2.5, -0.5, 0.75];
const GAMMA: [f64; 5] = [1.0, 0.5, -2.0, 1.5, 0.25];
const EPSILON: f64 = 1.0 / 1024.0;

// Printed by mpmath at 60 digits, from the definition; PyTorch 2.15 agrees to its own rounding.
const DX_GAMMA: [f64; 10] = [
    0.59524496210045522,
    -0.74525063308417059,
    -0.51019000652396936,
    0.28954943448535657,
    0.37064624302232817,
    2.5869610878240779,
    1.8985476805810495,
    -5.1123104694239732,
    -3.1376918136185006,
    3.7644935146373463,
];
const DX_PLAIN: [f64; 10] = [
    0.28776938378470287,
    -1.5083534369155304,
    -0.1223514796236917,
    -0.23813696748085603,
    1.5810725002353752,
    -4.2638101239235455,
    0.13722607295386123,
    2.9559616327102149,
    0.48029125533851432,
    0.69033116292095498,
];
const DGAMMA: [f64; 5] =
    [0.57128158137058918, 2.4831975690706124, -2.4732748899823371, -0.6094919900170625, -2.7920169095375114];
const DBETA: [f64; 5] = [0.0, -1.875, 3.0, -0.25, 3.75];

fn assert_close(found: &[f64], expected: &[f64], relative: f64) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= relative * largest, "element {i}: {found}, expected {expected}");
    }
}

fn known_case<T: Element>(gamma: bool) -> Case<T> {
    let convert = |values: &[f64]| values.iter().map(|&value| T::from_f64(value)).collect::<Vec<_>>();
    Case {
        width: 5,
        x: convert(&X),
        dy: convert(&DY),
        gamma: gamma.then(|| convert(&GAMMA)),
        beta: None,
        epsilon: EPSILON,
    }
}

#[test]
fn known_values_with_and_without_gamma() {
    for (gamma, dx) in [(true, DX_GAMMA), (false, DX_PLAIN)] {
        for backend in backends() {
            let found = known_case::<f64>(gamma).run(backend, 1);
            assert_close(&found.dx, &dx, 4e-16);
            assert_close(&found.dgamma, &DGAMMA, 4e-16);
            assert_close(&found.dbeta, &DBETA, 1e-16);
            let found = known_case::<f32>(gamma).run(backend, 1);
            assert_close(&found.dx.map_to_f64(), &dx, 3e-7);
            assert_close(&found.dgamma.map_to_f64(), &DGAMMA, 3e-7);
            assert_close(&found.dbeta.map_to_f64(), &DBETA, 1e-7);
        }
    }
}

trait MapToF64 {
    fn map_to_f64(&self) -> Vec<f64>;
}

impl MapToF64 for Vec<f32> {
    fn map_to_f64(&self) -> Vec<f64> {
        self.iter().map(|&value| f64::from(value)).collect()
    }
}

#[test]
fn the_reference_gives_the_known_values() {
    let forward = reference::forward(&X, 5, Some(&GAMMA), None, EPSILON);
    assert_close(&forward.mean, &[0.7, 10.3], 2e-16);
    let found = reference::backward(&DY, &X, 5, Some(&GAMMA), EPSILON);
    assert_close(&found.dx, &DX_GAMMA, 4e-15);
    assert_close(&found.dgamma, &DGAMMA, 2e-15);
    assert_close(&found.dbeta, &DBETA, 1e-16);
    assert_close(&reference::backward(&DY, &X, 5, None, EPSILON).dx, &DX_PLAIN, 4e-15);
}

#[test]
fn parameter_gradients_are_given_for_the_parameters_that_there_are() {
    let x = Array2::from_shape_vec((2, 5), X.to_vec()).unwrap();
    let dy = Array2::from_shape_vec((2, 5), DY.to_vec()).unwrap();
    let (_, cache) = layer_norm(x.view(), EPSILON).unwrap();
    for (gamma, beta) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut layer = LayerNorm::new(5).epsilon(EPSILON);
        if gamma {
            layer = layer.gamma(&GAMMA);
        }
        if beta {
            layer = layer.beta(&[0.5; 5]);
        }
        let found = layer.backward(dy.view(), &cache).unwrap();
        assert_close(found.dx.as_slice().unwrap(), if gamma { &DX_GAMMA } else { &DX_PLAIN }, 4e-16);
        assert_eq!(found.dgamma.is_some(), gamma);
        assert_eq!(found.dbeta.is_some(), beta);
        if let Some(dgamma) = found.dgamma {
            assert_close(dgamma.as_slice().unwrap(), &DGAMMA, 4e-16);
        }
        if let Some(dbeta) = found.dbeta {
            assert_close(dbeta.as_slice().unwrap(), &DBETA, 1e-16);
        }
    }
}

/// Which gradients are asked for: dx, dgamma, dbeta.
const CHOICES: [[bool; 3]; 8] = [
    [true, true, true],
    [true, true, false],
    [true, false, true],
    [true, false, false],
    [false, true, true],
    [false, true, false],
    [false, false, true],
    [false, false, false],
];

#[test]
fn any_choice_of_gradients_gives_the_bits_of_all_of_them() {
    for (width, streaming) in [7, 16, 32, 48, 64, 77, 96, 128, 192, 256, 5000]
        .into_iter()
        .flat_map(|width| [(width, Streaming::Never), (width, Streaming::Always)])
    {
        let case = Case::<f32>::random(21, width, true, true, 5);
        for backend in backends() {
            let all = case.run(backend, 0);
            let statistics = Statistics { mean: &all.mean, rstd: &all.rstd };
            for accumulate in [false, true] {
                for choice in CHOICES {
                    let before = if accumulate { 100.0 } else { f32::NAN };
                    let lengths = [case.x.len(), width, width];
                    let mut found = lengths.map(|len| Framed::from_slice(&vec![before; len], 1));
                    let [dx, dgamma, dbeta] = &mut found;
                    let target = |wanted: bool, slice| {
                        wanted.then_some(if accumulate {
                            GradientMut::Accumulate(slice)
                        } else {
                            GradientMut::Overwrite(slice)
                        })
                    };
                    let gradients = GradientsMut {
                        dx: target(choice[0], dx.slice_mut()),
                        dgamma: target(choice[1], dgamma.slice_mut()),
                        dbeta: target(choice[2], dbeta.slice_mut()),
                    };
                    let layer = case.layer(backend).streaming(streaming);
                    layer.backward_into(&case.dy, &case.x, statistics, gradients).unwrap();
                    for ((found, expected), wanted) in
                        found.into_iter().zip([&all.dx, &all.dgamma, &all.dbeta]).zip(choice)
                    {
                        for (found, expected) in found.finish().into_iter().zip(expected) {
                            match (wanted, accumulate) {
                                (true, false) => assert_eq!(found, *expected),
                                (true, true) => assert_eq!(found, 100.0 + expected),
                                (false, false) => assert!(found.is_nan()),
                                (false, true) => assert_eq!(found, 100.0),
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn no_rows_give_parameter_gradients_of_zero() {
    let layer = LayerNorm::<f64>::new(3);
    let (mut dgamma, mut dbeta) = ([f64::NAN; 3], [5.0; 3]);
    let gradients = GradientsMut {
        dx: Some(GradientMut::Overwrite(&mut [])),
        dgamma: Some(GradientMut::Overwrite(&mut dgamma)),
        dbeta: Some(GradientMut::Accumulate(&mut dbeta)),
    };
    layer.backward_into(&[], &[], Statistics { mean: &[], rstd: &[] }, gradients).unwrap();
    assert_eq!((dgamma, dbeta), ([0.0; 3], [5.0; 3]));
}

#[test]
fn of_a_row_of_one_element_dx_and_dgamma_are_exactly_zero() {
    for epsilon in [1e-5, 0.0] {
        for backend in backends() {
            let x = array![[3.0_f32], [-1e30], [1e-40]];
            let layer = LayerNorm::new(1).epsilon(epsilon).gamma(&[5.0]).beta(&[1.0]).backend(backend);
            let (_, cache) = layer.forward(x.view()).unwrap();
            let found = layer.backward(array![[2.0_f32], [-3.0], [1e30]].view(), &cache).unwrap();
            assert_eq!(found.dx, array![[0.0], [0.0], [0.0]]);
            assert_eq!(found.dgamma.unwrap().as_slice().unwrap(), [0.0]);
        }
    }
}

#[test]
fn a_constant_row_without_epsilon_has_no_gradient() {
    for width in [2, 16, 100, 5000] {
        let x = vec![0.1_f64; width];
        let layer = LayerNorm::new(width).epsilon(0.0);
        let x = ndarray::ArrayView1::from(&x);
        let (_, cache) = layer.forward(x).unwrap();
        let dy = ndarray::Array1::from_iter((0..width).map(|j| j as f64));
        assert!(layer.backward(dy.view(), &cache).unwrap().dx.iter().all(|&dx| dx == 0.0));
    }
}

#[test]
fn nan_in_dy_stays_in_its_row_and_its_columns() {
    for width in [3, 16, 50, 5000] {
        for bad in [f64::NAN, f64::INFINITY] {
            let clean = Case::<f64>::random(5, width, true, true, 9);
            let mut case = clean.clone();
            case.dy[2 * width + 1] = bad;
            for backend in backends() {
                let (expected, found) = (clean.run(backend, 0), case.run(backend, 0));
                for row in 0..5 {
                    let span = row * width..(row + 1) * width;
                    if row == 2 {
                        assert!(found.dx[span].iter().all(|dx| dx.is_nan()));
                    } else {
                        assert_eq!(found.dx[span.clone()], expected.dx[span]);
                    }
                }
                for column in 0..width {
                    if column == 1 {
                        assert!(!found.dgamma[column].is_finite() && !found.dbeta[column].is_finite());
                    } else {
                        assert!((found.dgamma[column] - expected.dgamma[column]).abs() < 1e-14);
                        assert!((found.dbeta[column] - expected.dbeta[column]).abs() < 1e-14);
                    }
                }
            }
        }
    }
}

#[test]
fn a_mean_rounded_by_somebody_else_does_no_harm() {
    // What an f32 library saves for a row at 1e4 is off by up to 5e-4 of a deviation of 1.
    let mut case = Case::<f32>::random(4, 300, true, true, 6);
    case.x = crate::support::Random(7).normals(4 * 300, 1e4, 1.0);
    let backend = backends().pop().unwrap();
    let mut mean = vec![0.0; 4];
    let mut rstd = vec![0.0; 4];
    let mut y = vec![0.0; case.x.len()];
    let statistics = StatisticsMut { mean: &mut mean, rstd: &mut rstd };
    case.layer(backend).forward_into(&case.x, &mut y, Some(statistics)).unwrap();
    let expected = crate::support::exact::layer_norm(&case);
    for mean in &mut mean {
        *mean = f32::from_bits(mean.to_bits() + 1);
    }
    let mut dx = vec![0.0; case.x.len()];
    let gradients = GradientsMut { dx: Some(GradientMut::Overwrite(&mut dx)), ..GradientsMut::default() };
    let statistics = Statistics { mean: &mean, rstd: &rstd };
    case.layer(backend).backward_into(&case.dy, &case.x, statistics, gradients).unwrap();
    for (found, exact) in dx.chunks(300).zip(expected.dx.chunks(300)) {
        assert!(crate::support::exact::ulps(found, exact) < 4.0);
    }
}
