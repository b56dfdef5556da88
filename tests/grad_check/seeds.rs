//! Right gradients are never accused, whatever the numbers are.

use super::layer_norm::LayerNorm;
use llm_operator::Element;
use llm_operator::grad_check::{GradCheck, Mode, Verdict};
use llm_operator::numpy_random::default_rng;

/// `PLACE` maps a row and a normal number to what is stored.
fn all_pass<T: Element>(shape: &[usize], seeds: u64, mode: Mode, place: fn(usize, f64) -> f64) {
    let operation = LayerNorm::new(shape);
    for seed in 0..seeds {
        let (inputs, dy) = operation.data::<T>(&mut default_rng(seed), place);
        let report = GradCheck::new().mode(mode).run(&operation, &inputs, &dy).unwrap();
        assert_eq!(report.verdict, Verdict::Passed, "{} {shape:?} seed {seed}\n{report}", T::NAME);
    }
}

fn all_pass_in_both(shape: &[usize], seeds: u64, place: fn(usize, f64) -> f64) {
    all_pass::<f64>(shape, seeds, Mode::Auto, place);
    all_pass::<f32>(shape, seeds, Mode::Auto, place);
}

#[test]
fn small_shapes_pass_a_hundred_times() {
    for shape in [&[2, 4, 6][..], &[3, 5, 7], &[16, 64]] {
        all_pass_in_both(shape, 100, |_, x| x);
    }
}

#[test]
fn small_shapes_pass_exhaustively_too() {
    for shape in [&[2, 4, 6][..], &[3, 5, 7]] {
        all_pass::<f64>(shape, 30, Mode::Exhaustive, |_, x| x);
    }
}

#[test]
fn many_rows_pass_a_hundred_times() {
    all_pass_in_both(&[64, 256], 100, |_, x| x);
}

#[test]
fn a_wide_row_passes_a_hundred_times() {
    all_pass_in_both(&[1, 1000], 100, |_, x| x);
}

#[test]
fn rows_scaled_from_a_hundredth_to_a_thousand_pass_a_hundred_times() {
    all_pass_in_both(&[200, 17], 100, |row, x| x * 10_f64.powf(-2.0 + 5.0 * row as f64 / 199.0));
}

#[test]
fn rows_far_from_zero_pass_a_hundred_times() {
    all_pass_in_both(&[8, 768], 100, |_, x| 50.0 + x);
}

#[test]
fn inputs_and_upstream_gradients_of_one_sign_pass() {
    for shape in [&[2, 4, 6][..], &[64, 256], &[8, 768]] {
        for seed in 0..10 {
            let mut rng = default_rng(seed);
            let (x, dy) = (-rng.random(shape), -rng.random(shape));
            let (x32, dy32) = (x.mapv(|x| x as f32), dy.mapv(|dy| dy as f32));
            let operation = LayerNorm::new(shape);
            let report = GradCheck::new().run(&operation, &[x], &dy).unwrap();
            assert_eq!(report.verdict, Verdict::Passed, "f64 {shape:?} seed {seed}\n{report}");
            let report = GradCheck::new().run(&operation, &[x32], &dy32).unwrap();
            assert_eq!(report.verdict, Verdict::Passed, "f32 {shape:?} seed {seed}\n{report}");
        }
    }
}
