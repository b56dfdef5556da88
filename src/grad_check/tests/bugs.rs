//! Planted bugs are caught, and right gradients are not accused.

use super::super::{GradCheck, Mode, Verdict};
use super::layer_norm::{Bug, LayerNorm};
use crate::Element;
use crate::numpy_random::default_rng;

const BUGS_OF_DX: [Bug; 13] = [
    Bug::Zeros,
    Bug::OneElement,
    Bug::RowZeroed,
    Bug::TwoSwapped,
    Bug::Scale,
    Bug::OneSign,
    Bug::TailDropped,
    Bug::RowsShifted,
    Bug::RowOffset,
    Bug::OneNan,
    Bug::DegreesOfFreedom,
    Bug::MeanTermDropped,
    Bug::VarianceTermDropped,
];

const BUGS_OF_PARAMETERS: [Bug; 3] = [Bug::GammaForgotten, Bug::RowMissingInDgamma, Bug::DbetaDoubled];

fn verdict<T: Element>(operation: &LayerNorm, seed: u64) -> Verdict {
    let (inputs, dy) = operation.data::<T>(&mut default_rng(seed), |_, x| x);
    let report = GradCheck::new().mode(Mode::Exhaustive).run(operation, &inputs, &dy).unwrap();
    report.verdict
}

#[test]
fn every_planted_bug_is_caught() {
    for shape in [&[2, 4, 6][..], &[16, 20], &[3, 5, 7]] {
        for bug in BUGS_OF_DX.into_iter().chain(BUGS_OF_PARAMETERS) {
            let right = LayerNorm::affine(shape);
            let wrong = right.clone().with(bug);
            let expected = if bug == Bug::OneNan { Verdict::Invalid } else { Verdict::Wrong };
            assert_eq!(verdict::<f64>(&wrong, 3), expected, "{bug:?} in f64 at {shape:?}");
            assert_eq!(verdict::<f32>(&wrong, 3), expected, "{bug:?} in f32 at {shape:?}");
        }
    }
}

#[test]
fn a_right_gradient_is_never_called_wrong() {
    for seed in 0..20 {
        for operation in [LayerNorm::affine(&[2, 4, 6]), LayerNorm::new(&[3, 5, 7]), LayerNorm::new(&[4, 64])] {
            assert_eq!(verdict::<f64>(&operation, seed), Verdict::Passed, "f64, seed {seed}");
            assert_eq!(verdict::<f32>(&operation, seed), Verdict::Passed, "f32, seed {seed}");
        }
    }
}
