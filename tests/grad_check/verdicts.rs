//! Other operations than LayerNorm, gradients from elsewhere, and operations that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::{Array2, ArrayD, Axis, Ix2};

use super::layer_norm::LayerNorm;
use llm_operator::grad_check::{CheckError, Function, Given, GradCheck, Mode, Progress, Stage, Verdict};
use llm_operator::numpy_random::default_rng;

fn softmax(x: &ArrayD<f64>) -> ArrayD<f64> {
    let mut y = x.clone();
    for mut row in y.rows_mut() {
        let max = row.fold(f64::NEG_INFINITY, |max, &x| max.max(x));
        row.mapv_inplace(|x| (x - max).exp());
        let sum = row.sum();
        row.mapv_inplace(|x| x / sum);
    }
    y
}

fn softmax_backward(x: &ArrayD<f64>, dy: &ArrayD<f64>) -> ArrayD<f64> {
    let y = softmax(x);
    let mean = (&y * dy).sum_axis(Axis(y.ndim() - 1)).insert_axis(Axis(y.ndim() - 1));
    &y * &(dy - &mean)
}

fn check(operation: &dyn llm_operator::grad_check::Operation<f64>, shape: &[usize], output: &[usize]) -> Verdict {
    let mut rng = default_rng(11);
    let (x, dy) = (rng.standard_normal(shape), rng.standard_normal(output));
    GradCheck::new().run(operation, &[x], &dy).unwrap().verdict
}

#[test]
fn softmax_passes_and_softmax_without_its_mean_term_does_not() {
    let right = Function::new("softmax", [4, 7], softmax, softmax_backward).independent_rows();
    assert_eq!(check(&right, &[4, 7], &[4, 7]), Verdict::Passed);
    let wrong = Function::new("softmax", [4, 7], softmax, |x, dy: &ArrayD<f64>| softmax(x) * dy);
    assert_eq!(check(&wrong, &[4, 7], &[4, 7]), Verdict::Wrong);
}

#[test]
fn a_linear_map_passes_and_its_transpose_does_not() {
    let matrix = default_rng(2).standard_normal(&[5, 5]).into_dimensionality::<Ix2>().unwrap();
    let apply =
        |matrix: &Array2<f64>, x: &ArrayD<f64>| matrix.dot(&x.view().into_dimensionality::<Ix2>().unwrap()).into_dyn();
    let transposed = matrix.t().to_owned();
    let right = Function::new("linear", [5, 3], |x: &ArrayD<f64>| apply(&matrix, x), |_, dy| apply(&transposed, dy));
    assert_eq!(check(&right, &[5, 3], &[5, 3]), Verdict::Passed);
    let wrong = Function::new("linear", [5, 3], |x: &ArrayD<f64>| apply(&matrix, x), |_, dy| apply(&matrix, dy));
    assert_eq!(check(&wrong, &[5, 3], &[5, 3]), Verdict::Wrong);
}

#[test]
fn an_output_of_another_shape_than_the_input_is_checked() {
    let sums = Function::new(
        "sums",
        [3, 4],
        |x: &ArrayD<f64>| x.sum_axis(Axis(1)),
        |x, dy| (x * 0.0 + 1.0) * dy.view().insert_axis(Axis(1)),
    )
    .output_shape([3]);
    assert_eq!(check(&sums, &[3, 4], &[3]), Verdict::Passed);
}

#[test]
fn a_loss_that_does_not_see_the_operation_is_inconclusive() {
    // The sum of a row of LayerNorm without gamma is constant: so is the loss, and its gradient is zero.
    let operation = LayerNorm::new(&[3, 8]);
    let (inputs, dy) = operation.data::<f64>(&mut default_rng(4), |_, x| x);
    let report = GradCheck::new().run(&operation, &inputs, &(dy * 0.0 + 1.0)).unwrap();
    assert_eq!(report.verdict, Verdict::Inconclusive);
    assert!(report.inputs[0].blind && report.reasons.iter().any(|reason| reason.contains("does not see")));
}

#[test]
fn gradients_from_elsewhere_are_judged_in_their_own_precision() {
    let operation = LayerNorm::affine(&[3, 8]);
    let (inputs, dy) = operation.data::<f64>(&mut default_rng(4), |_, x| x);
    let own = GradCheck::new().run(&operation, &inputs, &dy).unwrap();
    let single = own.inputs[0].components.analytic.mapv(|value| value as f32);
    let judged = |given: Given| {
        let report = GradCheck::new().rtol(1e-8).judge(&operation, &inputs, &dy, &[Some(given), None, None]).unwrap();
        assert_eq!(report.inputs.len(), 1);
        report.verdict
    };
    assert_eq!(judged(Given::new(&single)), Verdict::Passed);
    // The same values, said to be exact to 53 bits.
    assert_eq!(judged(Given::new(&single.mapv(f64::from))), Verdict::Wrong);
    assert_eq!(judged(Given::new(&single.mapv(|value| value * 1.0001))), Verdict::Wrong);
}

#[test]
fn a_panic_is_reported_with_its_probe() {
    let panics = Function::new(
        "fragile",
        [2, 3],
        |x: &ArrayD<f64>| {
            assert!(x[[1, 2]] > 4.4995, "cannot be moved down");
            x.clone()
        },
        |_, dy| dy.clone(),
    );
    let mut x = ArrayD::from_elem(vec![2, 3], 1.0);
    x[[1, 2]] = 4.5;
    let error = GradCheck::new().eps(1e-3).run(&panics, &[x], &ArrayD::from_elem(vec![2, 3], 1.0)).unwrap_err();
    let CheckError::Panicked { call, message } = &error else { panic!("{error}") };
    assert_eq!(message, "cannot be moved down");
    let probe = call.probe.as_ref().unwrap();
    assert_eq!((call.stage, probe.input.as_str(), &probe.index[..]), (Stage::Forward, "x", &[1, 2][..]));
    assert!(probe.step < 0.0);
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn an_unwritten_gradient_is_invalid() {
    let operation = Function::new(
        "unwritten",
        [4],
        |x: &ArrayD<f64>| x.clone(),
        |_, dy| {
            let mut dx = dy.clone();
            dx[[2]] = f64::NAN;
            dx
        },
    );
    let mut rng = default_rng(1);
    let report = GradCheck::new().run(&operation, &[rng.random(&[4])], &rng.random(&[4])).unwrap();
    assert_eq!(report.verdict, Verdict::Invalid);
    let worst = report.inputs[0].worst.as_ref().unwrap();
    assert_eq!((&worst.index[..], worst.stage), (&[2][..], Some(Stage::Analytic)));
    assert!(report.max_abs_diff.is_nan() && report.to_string().starts_with("max_abs_diff: nan\n"));
}

#[test]
fn a_step_that_changes_nothing_certifies_nothing() {
    let operation = Function::new("identity", [2], |x: &ArrayD<f64>| x.clone(), |_, dy| dy.clone());
    let x = ArrayD::from_elem(vec![2], 1e20);
    let report = GradCheck::new().eps(1e-6).run(&operation, &[x], &ArrayD::from_elem(vec![2], 1.0)).unwrap();
    assert_eq!(report.verdict, Verdict::Inconclusive);
    assert_eq!(report.inputs[0].worst.as_ref().unwrap().stage, Some(Stage::Step));
    let words =
        "x: 2 of 2 components cannot be certified: their step is so small that x + step and x - step are one number";
    assert_eq!(report.reasons, [words]);
}

#[test]
fn a_check_ends_when_it_is_asked_to() {
    let operation = LayerNorm::new(&[4, 8]);
    let (inputs, dy) = operation.data::<f64>(&mut default_rng(4), |_, x| x);
    let progress = Arc::new(Progress::default());
    let check = GradCheck::new().progress(Arc::clone(&progress));
    let report = check.run(&operation, &inputs, &dy).unwrap();
    assert_eq!(progress.done(), report.forwards);
    progress.stop();
    let report = check.run(&operation, &inputs, &dy).unwrap();
    assert!(report.stopped && report.forwards == 0 && report.verdict == Verdict::Inconclusive, "{report}");
    let error = check.sweep(&operation, &inputs, &dy, 0).unwrap_err();
    assert!(matches!(error, CheckError::Stopped { forwards: 0 }));
}

/// A cube whose forward asks for the end when it has been called so often, or gives what was found until then.
fn stopped_after(calls: u64, mode: Mode) -> llm_operator::grad_check::Report {
    let progress = Arc::new(Progress::default());
    let (counter, stop) = (AtomicU64::new(0), Arc::clone(&progress));
    let cube = |x: &ArrayD<f64>| {
        if counter.fetch_add(1, Ordering::Relaxed) + 1 == calls {
            stop.stop();
        }
        x * x * x
    };
    let operation = Function::new("cube", [40, 30], cube, |x, dy| 3.0 * x * x * dy).independent_rows();
    let mut rng = default_rng(3);
    let (x, dy) = (rng.standard_normal(&[40, 30]), rng.standard_normal(&[40, 30]));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| GradCheck::new().mode(mode).progress(progress).run(&operation, &[x], &dy).unwrap())
}

#[test]
fn a_check_that_is_stopped_reports_what_it_found_until_then() {
    for (mode, calls) in [(Mode::Local, 100), (Mode::Exhaustive, 3000), (Mode::Directional, 30), (Mode::Line, 90)] {
        let report = stopped_after(calls, mode);
        assert!(report.stopped && report.forwards <= calls, "{mode}: {report}");
        assert_eq!(report.verdict, Verdict::Inconclusive, "{mode}: {report}");
        assert!(report.reasons[0].starts_with("stopped after "), "{mode}: {report}");
        assert!(report.checks.len() >= 4 && report.checks.iter().all(|check| check.holds), "{mode}: {report}");
        let input = &report.inputs[0];
        let found = input.counts.passed + input.directions.len();
        assert!(found > 0 && input.not_looked_at > 0 && input.counts.invalid == 0, "{mode}: {report}");
        // All the way through, nothing is left out.
        assert!(!stopped_after(u64::MAX, mode).stopped);
    }
    // Not even the exact checks are done.
    let report = stopped_after(2, Mode::Local);
    assert!(report.stopped && report.inputs.is_empty() && report.verdict == Verdict::Inconclusive, "{report}");
}

#[test]
fn arrays_that_do_not_fit_are_refused_by_name() {
    let operation = LayerNorm::affine(&[4, 8]);
    let (inputs, dy) = operation.data::<f64>(&mut default_rng(4), |_, x| x);
    let refused = |inputs: &[ArrayD<f64>], dy: &ArrayD<f64>| {
        let error = GradCheck::new().run(&operation, inputs, dy).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    assert_eq!(refused(&inputs[..2], &dy), "inputs: expected 3 arrays, one for each input of the operation, found 2");
    let swapped = [inputs[1].clone(), inputs[0].clone(), inputs[2].clone()];
    assert_eq!(refused(&swapped, &dy), "x: expected shape [4, 8], found [8]");
    assert_eq!(refused(&inputs, &inputs[1]), "upstream gradient: expected shape [4, 8], found [8]");
    let error = GradCheck::new().eps(0.0).run(&operation, &inputs, &dy).unwrap_err();
    assert_eq!(error.to_string(), "eps: expected a finite number above zero, found 0");
}

#[test]
#[should_panic(expected = "the gradients did not pass (seed 1000):\nmax_abs_diff: ")]
fn the_assertion_of_a_test_fails_with_the_report() {
    llm_operator::assert_gradients!(Function::new("double", [3], |x: &ArrayD<f64>| x * 2.0, |_, dy| dy.clone()));
}

#[test]
fn a_budget_of_seconds_is_kept_roughly() {
    let slow = Function::new(
        "slow",
        [40],
        |x: &ArrayD<f64>| {
            std::thread::sleep(std::time::Duration::from_millis(2));
            x * x
        },
        |x, dy| 2.0 * x * dy,
    );
    let mut rng = default_rng(1);
    let check = GradCheck::new().budget(llm_operator::grad_check::Budget::Seconds(0.2));
    let report = check.run(&slow, &[rng.standard_normal(&[40])], &rng.standard_normal(&[40])).unwrap();
    // 0.2 s buy about a hundred forwards of 2 ms: fewer than the 160 that every component would take.
    assert!((40..=120).contains(&report.forwards), "{report}");
    assert!(report.inputs[0].not_looked_at > 0 && report.inputs[0].directions.len() == 8);
}
