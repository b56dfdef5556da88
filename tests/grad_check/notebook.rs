//! The notebook's own case.

use super::layer_norm::LayerNorm;
use llm_operator::grad_check::{GradCheck, Mode, Verdict};
use llm_operator::numpy_random::default_rng;

/// `X = -rng.random((2, 4, 6))`, `G = -rng.random((2, 4, 6))` with `rng = numpy.random.default_rng(1000)`, `epsilon`
/// 1e-5 and `eps` 1e-6. The notebook printed 1.1812836819835582e-09 and 2.61470216195465e-10.
#[test]
fn the_notebooks_case_prints_numbers_of_the_notebooks_size() {
    let mut rng = default_rng(1000);
    let (x, dy) = (-rng.random(&[2, 4, 6]), -rng.random(&[2, 4, 6]));
    let check = GradCheck::new().eps(1e-6).mode(Mode::Exhaustive);
    let report = check.run(&LayerNorm::new(&[2, 4, 6]), &[x], &dy).unwrap();
    println!("{report}");
    assert_eq!(report.verdict, Verdict::Passed);
    // Rounding in another order of summation moves the digits, not their size.
    let ratio = report.max_abs_diff / 1.1812836819835582e-09;
    assert!((0.2..5.0).contains(&ratio), "max_abs_diff is {}", report.max_abs_diff);
    // The quotient of the two is the greatest magnitude, which rounding does not move.
    let magnitude = report.max_abs_diff / report.relative_diff;
    assert!((magnitude / (1.1812836819835582e-09 / 2.61470216195465e-10) - 1.0).abs() < 1e-8);
    let text = report.to_string();
    let mut lines = text.lines();
    assert!(
        lines.next().unwrap().starts_with("max_abs_diff: ") && lines.next().unwrap().starts_with("relative_diff: ")
    );
    assert_eq!(lines.next(), Some("verdict: passed"));
}
