//! A check takes a few copies of its inputs, however many components it looks at.
#![allow(unsafe_code, reason = "an allocator that counts can be written in no other way")]

#[path = "support/counting.rs"]
mod counting;

use counting::{Counting, peak};
use llm_operator::grad_check::{Budget, GradCheck, Mode, Verdict};
use llm_operator::numpy_random::default_rng;
use llm_operator::{Element, LayerNormOperation};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The memory of a check on one thread, beside the arrays of the caller, in copies of x and the upstream gradient.
fn copies<T: Element>(shape: &[usize], check: &GradCheck) -> f64 {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let operation = LayerNormOperation::new(shape);
    let mut rng = default_rng(7);
    let x = [rng.standard_normal(shape).mapv(T::from_f64)];
    let dy = rng.standard_normal(shape).mapv(T::from_f64);
    let inputs = 2 * x[0].len() * size_of::<T>();
    let (bytes, report) = pool.install(|| peak(|| check.run(&operation, &x, &dy).unwrap()));
    // A few of many narrow rows are too ill conditioned to be certified.
    assert!(report.verdict <= Verdict::Inconclusive, "{report}");
    bytes as f64 / inputs as f64
}

/// One test, so that no other allocates meanwhile.
#[test]
fn a_check_takes_at_most_four_copies_of_its_inputs() {
    let whole = |mode| GradCheck::new().mode(mode);
    let sampled = GradCheck::new().budget(Budget::Forwards(150));
    // A report holds f64, twice as large as inputs in f32. To that an exhaustive check adds whole outputs, and lines
    // the list of what is moved along them.
    let exhaustive = whole(Mode::Exhaustive);
    for (shape, check, most) in [
        (&[2048, 64][..], whole(Mode::Local), [4.0, 4.0]),
        (&[600, 257], whole(Mode::Local), [4.0, 4.0]),
        (&[8000, 16], whole(Mode::Local), [4.0, 4.0]),
        (&[24, 2048], whole(Mode::Auto), [4.0, 4.0]),
        (&[512, 512], whole(Mode::Directional), [4.0, 4.0]),
        (&[512, 512], sampled, [4.0, 4.0]),
        (&[64, 320], exhaustive, [4.0, 6.0]),
        (&[512, 64], whole(Mode::Line), [5.0, 8.0]),
    ] {
        let (double, single) = (copies::<f64>(shape, &check), copies::<f32>(shape, &check));
        println!("{shape:?}: {double:.2} copies in f64, {single:.2} in f32");
        assert!(double <= most[0] && single <= most[1], "{shape:?} {check:?}: {double:.2} in f64, {single:.2} in f32");
    }
}
