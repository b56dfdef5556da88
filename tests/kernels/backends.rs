//! Every backend that rounds a multiplication and an addition once gives the bits of the model, whatever the width,
//! the offset from alignment, and the parameters.

use crate::support::{Case, Framed, backends, boundary_widths, is_fused};
use llm_operator::{Backend, Element, GradientMut, GradientsMut, Statistics, Streaming};

fn same_bits_as_the_model<T: Element>(rows: usize, width: usize, offsets: &[usize]) {
    for (gamma, beta) in [(true, true), (true, false), (false, true), (false, false)] {
        let case = Case::<T>::random(rows, width, gamma, beta, width as u64);
        let expected = case.run(Backend::model(), 0);
        // The model must not agree by having nothing to say.
        assert!(expected.arrays().iter().all(|(_, values)| values.iter().all(|value| value.to_f64().is_finite())));
        for backend in backends().into_iter().filter(is_fused) {
            for &offset in offsets {
                let what =
                    format!("{} {backend:?}, {rows}x{width}, gamma {gamma}, beta {beta}, offset {offset}", T::NAME);
                case.run(backend, offset).assert_same_bits(&expected, &what);
            }
        }
    }
}

/// The case at this offset on every backend that rounds once, against the model.
fn has_the_bits_of_the_model<T: Element>(case: &Case<T>, offset: usize, what: &str) {
    let expected = case.run(Backend::model(), 0);
    for backend in backends().into_iter().filter(is_fused) {
        case.run(backend, offset).assert_same_bits(&expected, &format!("{} {backend:?}, {what}", T::NAME));
    }
}

/// A batch of rows and a rest; three batches where full ones may go by a loop of known length, which the second does.
fn rows_of(width: usize) -> usize {
    if width <= 256 && width.is_multiple_of(8) { 27 } else { 11 }
}

#[test]
fn f32_has_the_bits_of_the_model_at_every_width() {
    for width in boundary_widths() {
        same_bits_as_the_model::<f32>(rows_of(width), width, &[0, 1]);
    }
}

#[test]
fn f64_has_the_bits_of_the_model_at_every_width() {
    for width in boundary_widths() {
        same_bits_as_the_model::<f64>(rows_of(width), width, &[0, 1]);
    }
}

#[test]
fn bits_do_not_depend_on_the_offset() {
    for width in [1, 7, 8, 15, 16, 17, 33, 64, 100, 257] {
        let offsets: Vec<usize> = (0..16).collect();
        same_bits_as_the_model::<f32>(5, width, &offsets);
        same_bits_as_the_model::<f64>(5, width, &offsets);
    }
}

#[test]
fn hard_rows_have_the_bits_of_the_model() {
    for scale in [1e-40, 1e-30, 1e-19, 1e-3, 1e5, 1e15, 1e19, 1e30, 1e38] {
        for mean in [0.0, 1.0, -1e4] {
            let mut case = Case::<f32>::random(9, 37, true, true, 5);
            for x in &mut case.x {
                *x = ((f64::from(*x) + mean) * scale) as f32;
            }
            has_the_bits_of_the_model(&case, 3, &format!("scale {scale}, mean {mean}"));
        }
    }
}

/// Zeros of either sign.
fn zeros_have_the_bits_of_the_model<T: Element>() {
    let [zero, minus_zero] = [0.0, -0.0].map(T::from_f64);
    // Zeros alone, one after the other and in stretches; and among other numbers.
    let values = |kind: usize, column: usize, other: T| match (kind, column.is_multiple_of(2)) {
        (0, _) | (1 | 4, true) => minus_zero,
        (2, _) | (1, false) => zero,
        (3, _) => [minus_zero, zero][column / 16 % 2],
        _ => other,
    };
    for width in [16, 24, 32, 40, 48, 64, 80, 96, 100, 112, 128, 144, 192, 256, 300] {
        for has_parameters in [true, false] {
            let mut case = Case::<T>::random(33, width, has_parameters, has_parameters, 9);
            for i in 0..case.x.len() {
                let (row, column) = (i / width, i % width);
                case.x[i] = values(row % 5, column, case.x[i]);
                case.dy[i] = values(row / 5 % 6, column, case.dy[i]);
            }
            has_the_bits_of_the_model(&case, 0, &format!("width {width}, parameters: {has_parameters}"));
        }
    }
}

/// The loops of known length leave out additions of 0, which turn a -0 into 0. Here each `dy xhat` of the last columns is less
/// than the smallest number, and negative: their sum is -0 until 0 is added, and dx of the first ones, where dy is 0, has its
/// sign.
fn products_that_vanish_have_the_bits_of_the_model<T: Element>() {
    let chunk = 64 / size_of::<T>();
    let (small, smaller) = if size_of::<T>() == 4 { (1e-20, 1e-28) } else { (1e-160, 1e-170) };
    for width in [16, 24, 32, 40, 48, 64, 80, 96, 100, 112, 128, 144, 192, 256, 300] {
        let mut case = Case::<T>::random(27, width, false, false, 9);
        for i in 0..case.x.len() {
            let (column, sign) = (i % width, if i % 2 == 0 { 1.0 } else { -1.0 });
            case.x[i] = T::from_f64(sign * small);
            case.dy[i] = T::from_f64(if column >= width - chunk { -sign * smaller } else { -sign * 0.0 });
        }
        has_the_bits_of_the_model(&case, 0, &format!("width {width}"));
    }
}

#[test]
fn rows_whose_products_vanish_have_the_bits_of_the_model() {
    products_that_vanish_have_the_bits_of_the_model::<f32>();
    products_that_vanish_have_the_bits_of_the_model::<f64>();
}

#[test]
fn rows_of_zeros_of_either_sign_have_the_bits_of_the_model() {
    zeros_have_the_bits_of_the_model::<f32>();
    zeros_have_the_bits_of_the_model::<f64>();
}

/// Rows that are written again, with care, in the middle of a block of eight, at its ends, all of one, and the last of all.
fn with_hard_rows<T: Element>(mut case: Case<T>) -> Case<T> {
    let (width, rows) = (case.width, case.x.len() / case.width);
    let (tiny, tiny_gradient) = if size_of::<T>() == 4 { (1e-30, 1e-35) } else { (1e-200, 1e-300) };
    for row in [3, 7, 8, 16, 17, 18, 19, 20, 21, 22, 23, 130, rows - 1].into_iter().filter(|row| *row < rows) {
        let row = row * width..(row + 1) * width;
        case.x[row.clone()].fill(T::from_f64(0.0));
        case.x[row.start + 1] = T::from_f64(tiny);
        for dy in &mut case.dy[row] {
            *dy = T::from_f64(dy.to_f64() * tiny_gradient);
        }
    }
    // The sums of this one are no larger, and it is ordinary.
    if rows > 10 {
        case.dy[10 * width..11 * width].fill(T::from_f64(0.0));
    }
    case
}

/// Rows that are written again among others, against the model.
fn rows_written_again_have_the_bits_of_the_model<T: Element>() {
    for has_parameters in [true, false] {
        for width in [17, 64, 100, 128, 256, 300, 768, 5000] {
            let case = with_hard_rows(Case::<T>::random(27, width, has_parameters, has_parameters, 7));
            has_the_bits_of_the_model(&case, 0, &format!("width {width}, parameters: {has_parameters}"));
        }
    }
}

#[test]
fn rows_written_again_in_the_middle_of_a_block_have_the_bits_of_the_model() {
    rows_written_again_have_the_bits_of_the_model::<f32>();
    rows_written_again_have_the_bits_of_the_model::<f64>();
}

/// Rows of whole cache lines and not, at their start and elsewhere, streamed a batch at a time (up to 1.5 KiB forward, and 512
/// bytes backward, with AVX2 a KiB) and alone, of one segment and of several; dgamma and dbeta of one group of rows and of two.
fn streaming_changes_no_bit<T: Element>(has_parameters: bool) {
    for (rows, width) in [16, 17, 32, 64, 100, 128, 255, 256, 300, 768, 1500, 2048, 3072, 5000]
        .map(|width| (19, width))
        .into_iter()
        .chain([(141, 16), (141, 65), (270, 200)])
        .chain([24, 32, 48, 64, 96, 128, 150, 192, 200, 256].map(|width| (43, width)))
    {
        let case = with_hard_rows(Case::<T>::random(rows, width, has_parameters, has_parameters, 6));
        same_bits_streamed(&case);
    }
    // Blocks of ordinary rows alone, the first of all as well.
    for width in [32, 64, 256, 300] {
        same_bits_streamed(&Case::<T>::random(27, width, has_parameters, has_parameters, 8));
    }
}

fn same_bits_streamed<T: Element>(case: &Case<T>) {
    for backend in backends() {
        for offset in [0, 1, 4, 13] {
            let layer = case.layer(backend);
            let expected = case.run_layer(&layer.clone().streaming(Streaming::Never), offset);
            let found = case.run_layer(&layer.streaming(Streaming::Always), offset);
            let what = format!("{} {backend:?}, width {}, offset {offset}", T::NAME, case.width);
            found.assert_same_bits(&expected, &what);
        }
    }
}

#[test]
fn streaming_stores_change_no_bit() {
    for has_parameters in [true, false] {
        streaming_changes_no_bit::<f32>(has_parameters);
        streaming_changes_no_bit::<f64>(has_parameters);
    }
}

/// dx without dgamma and dbeta goes other ways than with them, and has the same bits.
fn dx_alone_has_the_same_bits<T: Element>(has_gamma: bool) {
    for width in [16, 24, 32, 48, 64, 65, 96, 128, 192, 256, 512, 513, 768, 1024, 4096, 4097, 5000] {
        let case = with_hard_rows(Case::<T>::random(43, width, has_gamma, false, 7));
        for (backend, offset) in backends().into_iter().flat_map(|backend| [(backend, 0), (backend, 3)]) {
            let layer = case.layer(backend);
            let expected = case.run_layer(&layer, offset);
            let statistics = Statistics { mean: &expected.mean, rstd: &expected.rstd };
            let (x, dy) = (Framed::from_slice(&case.x, offset), Framed::from_slice(&case.dy, offset));
            for streaming in [Streaming::Always, Streaming::Never] {
                let [mut dx, mut sum] = [(); 2].map(|()| Framed::from_slice(&case.x, offset));
                for gradient in [GradientMut::Overwrite(dx.slice_mut()), GradientMut::Accumulate(sum.slice_mut())] {
                    let gradients = GradientsMut { dx: Some(gradient), ..GradientsMut::default() };
                    let layer = layer.clone().streaming(streaming);
                    layer.backward_into(dy.slice(), x.slice(), statistics, gradients).unwrap();
                }
                let (dx, sum) = (dx.finish(), sum.finish());
                for (i, &expected) in expected.dx.iter().enumerate() {
                    let expected_sum = T::from_f64(case.x[i].to_f64() + expected.to_f64());
                    let found = [dx[i], sum[i]].map(|value| value.to_f64().to_bits());
                    let expected = [expected, expected_sum].map(|value| value.to_f64().to_bits());
                    assert_eq!(found, expected, "{} {backend:?}, {width}, {offset}, {streaming:?}, {i}", T::NAME);
                }
            }
        }
    }
}

#[test]
fn dx_alone_has_the_bits_of_dx_with_dgamma_and_dbeta() {
    for has_gamma in [true, false] {
        dx_alone_has_the_same_bits::<f32>(has_gamma);
        dx_alone_has_the_same_bits::<f64>(has_gamma);
    }
}

/// Runs this program's test of the offsets again, with `LLM_OPERATOR_REQUIRE`.
fn again_requiring(backends: &str) -> (bool, String) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "backends::bits_do_not_depend_on_the_offset", "--nocapture"])
        .env("LLM_OPERATOR_REQUIRE", backends)
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn a_required_backend_that_is_missing_fails_the_tests() {
    for required in ["", "portable", " portable ,", "portable,portable"] {
        let (passed, printed) = again_requiring(required);
        assert!(passed && printed.contains("1 passed"), "{required:?}: {printed}");
    }
    for required in ["avx1024", "portable,avx1024", "AVX2"] {
        let (passed, printed) = again_requiring(required);
        assert!(!passed && printed.contains("which LLM_OPERATOR_REQUIRE asks for"), "{required:?}: {printed}");
    }
}
