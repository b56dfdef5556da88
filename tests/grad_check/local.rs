//! The mode for independent rows: it agrees with the exhaustive mode, and verifies what it relies on.

use ndarray::{ArrayD, Axis};

use super::layer_norm::LayerNorm;
use llm_operator::Element;
use llm_operator::grad_check::{GradCheck, Input, Mode, Operation, Outcome, Report, Verdict};
use llm_operator::numpy_random::default_rng;

/// The same operation, of which nothing but whole forwards is known.
pub(super) struct Whole(pub(super) LayerNorm);

impl<T: Element> Operation<T> for Whole {
    fn name(&self) -> String {
        "whole".to_owned()
    }
    fn inputs(&self) -> Vec<Input> {
        Operation::<T>::inputs(&self.0)
    }
    fn output_shape(&self) -> Vec<usize> {
        self.0.shape.clone()
    }
    fn forward(&self, inputs: &[ArrayD<T>], output: &mut ArrayD<T>) -> Outcome {
        self.0.forward(inputs, output)
    }
    fn backward(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>, gradients: &mut [ArrayD<T>]) -> Outcome {
        self.0.backward(inputs, dy, gradients)
    }
}

/// The same operation, whose backward leaves the first row of dx as it is where the second is not the one of `usual`.
struct Forgetful {
    layer_norm: LayerNorm,
    usual: ArrayD<f64>,
}

impl Operation<f64> for Forgetful {
    fn name(&self) -> String {
        "forgetful".to_owned()
    }
    fn inputs(&self) -> Vec<Input> {
        Operation::<f64>::inputs(&self.layer_norm)
    }
    fn output_shape(&self) -> Vec<usize> {
        self.layer_norm.shape.clone()
    }
    fn forward(&self, inputs: &[ArrayD<f64>], output: &mut ArrayD<f64>) -> Outcome {
        self.layer_norm.forward(inputs, output)
    }
    fn backward(&self, inputs: &[ArrayD<f64>], dy: &ArrayD<f64>, gradients: &mut [ArrayD<f64>]) -> Outcome {
        let before = gradients[0].index_axis(Axis(0), 0).to_owned();
        self.layer_norm.backward(inputs, dy, gradients)?;
        if inputs[0].index_axis(Axis(0), 1) != self.usual.index_axis(Axis(0), 1) {
            gradients[0].index_axis_mut(Axis(0), 0).assign(&before);
        }
        Ok(())
    }
}

fn run<T: Element>(operation: &dyn Operation<T>, layer_norm: &LayerNorm, mode: Mode) -> Report {
    let (inputs, dy) = layer_norm.data::<T>(&mut default_rng(8), |row, x| x * 10_f64.powi(row as i32 % 5 - 2));
    GradCheck::new().mode(mode).run(operation, &inputs, &dy).unwrap()
}

/// The numeric gradients of two reports differ by no more than their floors allow.
fn assert_agree(a: &Report, b: &Report) {
    assert_eq!(a.verdict, b.verdict, "{a}\n{b}");
    for (a, b) in a.inputs.iter().zip(&b.inputs) {
        let (a, b) = (&a.components, &b.components);
        for (((a, b), floor), other) in a.numeric.iter().zip(&b.numeric).zip(&a.floor).zip(&b.floor) {
            assert!((a - b).abs() <= floor + other, "{a} and {b}, floors {floor} and {other}");
        }
    }
}

#[test]
fn local_differences_agree_with_exhaustive_ones() {
    for layer_norm in [LayerNorm::affine(&[2, 5, 12]), LayerNorm::affine(&[37, 6]), LayerNorm::affine(&[1, 40])] {
        let exhaustive = run::<f64>(&layer_norm, &layer_norm, Mode::Exhaustive);
        assert_eq!(exhaustive.verdict, Verdict::Passed);
        assert_agree(&exhaustive, &run::<f64>(&layer_norm, &layer_norm, Mode::Local));
        assert_agree(&exhaustive, &run::<f64>(&Whole(layer_norm.clone()), &layer_norm, Mode::Local));
    }
}

#[test]
fn local_costs_a_forward_for_each_column_not_for_each_element() {
    let layer_norm = LayerNorm::new(&[100, 16]);
    let local = run::<f64>(&layer_norm, &layer_norm, Mode::Local);
    assert_eq!(local.inputs[0].counts.passed, 1600);
    // 2 C + 4 for the differences, as many for their truncation, 9 for the independence (there are 126 ways to choose 4 of 9); and
    // pilots and noise.
    assert!(local.forwards <= 2 * (2 * 16 + 4) + 9 + 4 * 4 + 10, "{} forwards", local.forwards);
}

#[test]
fn a_row_that_depends_on_another_is_found_by_name() {
    for (rows, row) in [(2, 1), (9, 8), (64, 37)] {
        let layer_norm = LayerNorm { leaking_row: Some(row), ..LayerNorm::new(&[rows, 8]) };
        let report = run::<f64>(&layer_norm, &layer_norm, Mode::Local);
        assert_eq!(report.verdict, Verdict::Wrong);
        let check = report.checks.iter().find(|check| check.name == "independence of rows").unwrap();
        assert!(!check.holds);
        let expected = format!("row {row} of the output depends on row {}", row - 1);
        assert!(check.detail.starts_with(&expected), "{}", check.detail);
        assert!(report.reasons.iter().any(|reason| reason.contains(&expected)));
    }
}

/// Without poison the row would keep the right values of the call before.
#[test]
fn a_row_that_is_left_unwritten_for_another_is_found_by_name() {
    let layer_norm = LayerNorm::new(&[9, 8]);
    let (inputs, dy) = layer_norm.data::<f64>(&mut default_rng(8), |_, x| x);
    let forgetful = Forgetful { layer_norm, usual: inputs[0].clone() };
    let report = GradCheck::new().mode(Mode::Local).run(&forgetful, &inputs, &dy).unwrap();
    assert_eq!(report.verdict, Verdict::Wrong);
    let check = report.checks.iter().find(|check| check.name == "independence of rows in the backward").unwrap();
    assert!(check.detail.starts_with("row 0 of the gradient depends on row 1; 1 of 9 rows"), "{}", check.detail);
}

#[test]
fn rows_of_very_different_scales_all_pass() {
    let layer_norm = LayerNorm::new(&[50, 17]);
    for mode in [Mode::Local, Mode::Exhaustive] {
        assert_eq!(run::<f64>(&layer_norm, &layer_norm, mode).verdict, Verdict::Passed);
        let report = run::<f32>(&layer_norm, &layer_norm, mode);
        assert_eq!(report.verdict, Verdict::Passed, "{report}");
    }
}
