//! Planted bugs are caught, and right gradients are not accused.

use super::layer_norm::{Bug, LayerNorm};
use llm_operator::Element;
use llm_operator::grad_check::{GradCheck, Mode, Report, Verdict};
use llm_operator::numpy_random::default_rng;

/// Each bug, and the words that name it.
const BUGS: [(Bug, &str); 16] = [
    (Bug::Zeros, "zero everywhere"),
    (Bug::OneElement, "is 1.1000 times what it should be"),
    (Bug::RowZeroed, "which is zero"),
    (Bug::TwoSwapped, "two components are swapped"),
    (Bug::Scale, "times the numeric one: a constant scale"),
    (Bug::OneSign, "has the wrong sign"),
    (Bug::TailDropped, "the tail of the row"),
    (Bug::RowsShifted, "rows are shifted by one"),
    (Bug::RowOffset, "is off by a constant"),
    (Bug::OneNan, "1 components of the analytic gradient are not finite"),
    (Bug::DegreesOfFreedom, "n - 1 for n"),
    (Bug::MeanTermDropped, "a constant of its own: the mean term"),
    (Bug::VarianceTermDropped, "a multiple of x - mean: the variance term"),
    (Bug::GammaForgotten, "gamma is forgotten"),
    (Bug::RowMissingInDgamma, "is missing from the sum over the rows"),
    (Bug::DbetaDoubled, "is 2.0000"),
];

fn report<T: Element>(operation: &LayerNorm, mode: Mode, seed: u64) -> Report {
    let (inputs, dy) = operation.data::<T>(&mut default_rng(seed), |_, x| x);
    GradCheck::new().mode(mode).run(operation, &inputs, &dy).unwrap()
}

fn assert_caught(report: &Report, bug: Bug, words: &str) {
    let expected = if bug == Bug::OneNan { Verdict::Invalid } else { Verdict::Wrong };
    assert_eq!(report.verdict, expected, "{bug:?}: {report}");
    assert_eq!(report.verdict.exit_code(), 1);
    assert!(report.reasons.iter().any(|reason| reason.contains(words)), "{bug:?} is not named: {report}");
}

#[test]
fn every_planted_bug_is_caught_and_named_in_f64() {
    for shape in [&[4, 5, 12][..], &[16, 20], &[30, 64]] {
        for (bug, words) in BUGS {
            let wrong = LayerNorm::affine(shape).with(bug);
            assert_caught(&report::<f64>(&wrong, Mode::Local, 3), bug, words);
            assert_caught(&report::<f64>(&wrong, Mode::Auto, 4), bug, words);
        }
    }
}

#[test]
fn every_planted_bug_is_caught_and_named_in_f32() {
    for shape in [&[4, 5, 12][..], &[16, 20]] {
        for (bug, words) in BUGS {
            assert_caught(&report::<f32>(&LayerNorm::affine(shape).with(bug), Mode::Auto, 3), bug, words);
        }
    }
}

#[test]
fn every_planted_bug_is_caught_without_any_declaration() {
    for (bug, words) in BUGS {
        let wrong = LayerNorm { rows: false, ..LayerNorm::affine(&[4, 5, 12]) }.with(bug);
        let report = report::<f64>(&wrong, Mode::Exhaustive, 3);
        // To tell what a row adds, and which input is a parameter, the declaration is needed.
        let declared = [Bug::RowMissingInDgamma, Bug::GammaForgotten].contains(&bug);
        assert_caught(&report, bug, if declared { "" } else { words });
    }
}

#[test]
fn a_check_that_passes_says_what_it_would_have_caught() {
    let report = report::<f32>(&LayerNorm::affine(&[16, 20]), Mode::Auto, 9);
    assert_eq!(report.verdict, Verdict::Passed, "{report}");
    for input in &report.inputs {
        let power = input.power.as_ref().unwrap();
        assert!(power.scale < 2e-3 && power.element < 1e-2, "{report}");
        assert!(power.mutants.len() >= 6 && power.mutants.iter().all(|mutant| mutant.caught || !mutant.required));
    }
    assert!(report.to_string().contains("would have caught: a scale error of"));
}

#[test]
fn a_check_that_would_miss_a_spoiled_gradient_does_not_pass() {
    let operation = LayerNorm::new(&[4, 8]);
    let (inputs, dy) = operation.data::<f64>(&mut default_rng(9), |_, x| x);
    let report = GradCheck::new().rtol(0.5).run(&operation, &inputs, &dy).unwrap();
    assert_eq!(report.verdict, Verdict::Inconclusive);
    assert!(report.reasons.iter().any(|reason| reason.contains("would not have seen: scale off by 2 %")), "{report}");
}

#[test]
fn a_line_that_repeats_the_check_is_shown() {
    let operation = LayerNorm::new(&[2, 4]);
    let (inputs, dy) = operation.data::<f64>(&mut default_rng(9), |_, x| x);
    let report = GradCheck::new().repeat("seed 9").run(&operation, &inputs, &dy).unwrap();
    assert!(report.to_string().ends_with("to repeat: seed 9\n"));
}
