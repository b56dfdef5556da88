//! Directions, lines, and what a budget buys.

use super::layer_norm::{Bug, LayerNorm};
use llm_operator::Element;
use llm_operator::grad_check::{Budget, Function, Given, GradCheck, Mode, Report, Verdict};
use llm_operator::numpy_random::default_rng;

fn run<T: Element>(operation: &LayerNorm, check: &GradCheck) -> Report {
    let (inputs, dy) = operation.data::<T>(&mut default_rng(21), |row, x| x * (1.0 + row as f64));
    check.run(operation, &inputs, &dy).unwrap()
}

#[test]
fn directions_pass_a_right_gradient_and_see_zeros_where_a_positive_direction_would_not() {
    let check = GradCheck::new().mode(Mode::Directional);
    let right = LayerNorm::affine(&[16, 64]);
    let report = run::<f64>(&right, &check);
    assert_eq!(report.verdict, Verdict::Passed, "{report}");
    assert_eq!(report.inputs[0].not_looked_at, 1024);
    assert_eq!(run::<f32>(&right, &check).verdict, Verdict::Passed);
    for bug in [Bug::Zeros, Bug::RowZeroed, Bug::Scale, Bug::MeanTermDropped, Bug::OneElement, Bug::OneSign] {
        assert_eq!(run::<f64>(&right.clone().with(bug), &check).verdict, Verdict::Wrong, "{bug:?}");
    }
    // An all-zero gradient is wrong in f32 too.
    assert_eq!(run::<f32>(&right.with(Bug::Zeros), &check).verdict, Verdict::Wrong);
}

#[test]
fn directions_of_a_loss_that_sees_nothing_are_inconclusive() {
    let operation = LayerNorm::new(&[3, 8]);
    let (inputs, dy) = operation.data::<f64>(&mut default_rng(4), |_, x| x);
    let check = GradCheck::new().mode(Mode::Directional);
    let report = check.run(&operation, &inputs, &(dy * 0.0 + 1.0)).unwrap();
    assert_eq!(report.verdict, Verdict::Inconclusive, "{report}");
}

#[test]
fn lines_are_sharper_than_central_differences_in_f32() {
    let operation = LayerNorm::new(&[4, 48]);
    let mean_floor = |mode| {
        let report = run::<f32>(&operation, &GradCheck::new().mode(mode));
        assert_eq!(report.verdict, Verdict::Passed, "{report}");
        let components = &report.inputs[0].components;
        let relative = components.floor.iter().zip(&components.numeric).map(|(floor, d)| floor / d.abs().max(1e-3));
        relative.sum::<f64>() / components.floor.len() as f64
    };
    let (line, central) = (mean_floor(Mode::Line), mean_floor(Mode::Exhaustive));
    assert!(3.0 * line < central, "line {line}, central {central}");
}

#[test]
fn lines_catch_bugs() {
    for bug in [Bug::Zeros, Bug::OneElement, Bug::TwoSwapped, Bug::TailDropped, Bug::VarianceTermDropped] {
        let report = run::<f32>(&LayerNorm::new(&[4, 12]).with(bug), &GradCheck::new().mode(Mode::Line));
        assert_eq!(report.verdict, Verdict::Wrong, "{bug:?}: {report}");
    }
}

#[test]
fn lines_need_the_operations_own_backward() {
    let operation = LayerNorm::new(&[2, 4]);
    let (inputs, dy) = operation.data::<f64>(&mut default_rng(4), |_, x| x);
    let check = GradCheck::new().mode(Mode::Line);
    let error = check.judge(&operation, &inputs, &dy, &[Some(Given::new(&dy))]).unwrap_err();
    assert!(error.to_string().starts_with("mode line: expected the operation's own backward"));
}

#[test]
fn a_budget_buys_directions_and_a_sample_and_the_report_says_how_much() {
    let operation = LayerNorm::new(&[8, 200]);
    let report = run::<f64>(&operation, &GradCheck::new().budget(Budget::Forwards(300)));
    assert_eq!(report.verdict, Verdict::Passed);
    let input = &report.inputs[0];
    assert!(input.counts.passed > 0 && input.not_looked_at > 0 && input.directions.len() == 8);
    assert_eq!(input.counts.passed + input.not_looked_at, 1600);
    assert!(report.forwards <= 300, "{} forwards", report.forwards);
    assert!(report.to_string().contains("one by one, all along 8 directions"));
    // What no sampled column holds is seen along the directions.
    let wrong = run::<f64>(&operation.with(Bug::OneElement), &GradCheck::new().budget(Budget::Forwards(120)));
    assert_eq!(wrong.verdict, Verdict::Wrong);
}

#[test]
fn an_operation_that_declares_nothing_is_sampled_within_its_budget() {
    let cube = Function::new("cube", [30, 20], |x: &ndarray::ArrayD<f64>| x * x * x, |x, dy| 3.0 * x * x * dy);
    let mut rng = default_rng(3);
    let (x, dy) = (rng.standard_normal(&[30, 20]), rng.standard_normal(&[30, 20]));
    let report = GradCheck::new().budget(Budget::Forwards(400)).run(&cube, std::slice::from_ref(&x), &dy).unwrap();
    assert!(report.inputs[0].not_looked_at > 300 && report.inputs[0].counts.passed > 40);
    assert_eq!(GradCheck::new().run(&cube, &[x], &dy).unwrap().inputs[0].counts.passed, 600);
}
