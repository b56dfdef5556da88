//! The checks that need no differences.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::ArrayD;

use super::layer_norm::{Bug, LayerNorm};
use llm_operator::grad_check::{GradCheck, Input, Operation, Outcome, Report, Verdict, layer_norm_identities};
use llm_operator::numpy_random::default_rng;

/// `y = x`, with something wrong.
struct Faulty {
    forward: fn(&ArrayD<f64>, &mut ArrayD<f64>),
    backward: fn(&ArrayD<f64>, &mut ArrayD<f64>),
}

impl Operation<f64> for Faulty {
    fn name(&self) -> String {
        "faulty".to_owned()
    }
    fn inputs(&self) -> Vec<Input> {
        vec![Input::rows("x", [3, 4])]
    }
    fn output_shape(&self) -> Vec<usize> {
        vec![3, 4]
    }
    fn forward(&self, inputs: &[ArrayD<f64>], output: &mut ArrayD<f64>) -> Outcome {
        (self.forward)(&inputs[0], output);
        Ok(())
    }
    fn backward(&self, _: &[ArrayD<f64>], dy: &ArrayD<f64>, gradients: &mut [ArrayD<f64>]) -> Outcome {
        (self.backward)(dy, &mut gradients[0]);
        Ok(())
    }
}

fn copy(from: &ArrayD<f64>, to: &mut ArrayD<f64>) {
    to.assign(from);
}

fn run(operation: &Faulty) -> Report {
    let mut rng = default_rng(6);
    GradCheck::new().run(operation, &[rng.standard_normal(&[3, 4])], &rng.standard_normal(&[3, 4])).unwrap()
}

/// The name and the detail of the first check that fails.
fn failed(report: &Report) -> (&str, &str) {
    assert!(matches!(report.verdict, Verdict::Wrong | Verdict::Invalid), "{report}");
    let check = report.checks.iter().find(|check| !check.holds).unwrap_or_else(|| panic!("{report}"));
    (&check.name, &check.detail)
}

#[test]
fn the_identity_holds_all_checks() {
    let report = run(&Faulty { forward: copy, backward: copy });
    assert_eq!(report.verdict, Verdict::Passed, "{report}");
    assert!(report.checks.len() >= 5 && report.checks.iter().all(|check| check.holds));
}

#[test]
fn an_element_that_is_never_written_is_found() {
    let skip: fn(&ArrayD<f64>, &mut ArrayD<f64>) = |from, to| {
        let kept = to[[1, 2]];
        to.assign(from);
        to[[1, 2]] = kept;
    };
    let report = run(&Faulty { forward: skip, backward: copy });
    assert_eq!(failed(&report).0, "forward writes all of its result and repeats it");
    assert_eq!(failed(&report).1, "1 rows of result 0 differ, the first is row 1");
    let report = run(&Faulty { forward: copy, backward: skip });
    assert_eq!(failed(&report).0, "backward writes all of its result and repeats it");
}

#[test]
fn a_gradient_that_is_added_to_what_the_buffer_held_is_found() {
    let report = run(&Faulty { forward: copy, backward: |dy, dx| *dx += dy });
    assert_eq!(failed(&report).0, "backward writes all of its result and repeats it");
}

#[test]
fn a_result_that_changes_from_call_to_call_is_found() {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let drift: fn(&ArrayD<f64>, &mut ArrayD<f64>) = |from, to| {
        to.assign(from);
        to[[2, 0]] += 1e-12 * CALLS.fetch_add(1, Ordering::Relaxed) as f64;
    };
    assert_eq!(
        failed(&run(&Faulty { forward: drift, backward: copy })).0,
        "forward writes all of its result and repeats it"
    );
}

#[test]
fn a_result_that_depends_on_the_threads_is_found() {
    let threads: fn(&ArrayD<f64>, &mut ArrayD<f64>) = |from, to| {
        to.assign(from);
        to[[0, 0]] *= 1.0 + 1e-15 * rayon::current_num_threads() as f64;
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    let report = pool.install(|| run(&Faulty { forward: copy, backward: threads }));
    assert_eq!(failed(&report).0, "backward on one thread");
}

#[test]
fn a_backward_that_is_not_linear_is_found() {
    let report = run(&Faulty { forward: copy, backward: |dy, dx| dx.assign(&dy.mapv(|dy| dy + 1e-9 * dy * dy)) });
    assert_eq!(failed(&report).0, "backward is linear in the upstream gradient");
}

/// A LayerNorm that names its identities and says that its rows are alike.
struct Strict(LayerNorm, Mutex<Cell<bool>>);

impl Operation<f64> for Strict {
    fn name(&self) -> String {
        "strict".to_owned()
    }
    fn inputs(&self) -> Vec<Input> {
        Operation::<f64>::inputs(&self.0)
    }
    fn output_shape(&self) -> Vec<usize> {
        self.0.shape.clone()
    }
    fn forward(&self, inputs: &[ArrayD<f64>], output: &mut ArrayD<f64>) -> Outcome {
        self.0.forward(inputs, output)
    }
    fn backward(&self, inputs: &[ArrayD<f64>], dy: &ArrayD<f64>, gradients: &mut [ArrayD<f64>]) -> Outcome {
        self.0.backward(inputs, dy, gradients)?;
        if self.1.lock().unwrap().get() {
            gradients[0][[0, 0]] *= 1.0 + 1e-15;
        }
        Ok(())
    }
    fn rows_are_alike(&self) -> bool {
        true
    }
    fn identities(
        &self,
        inputs: &[ArrayD<f64>],
        dy: &ArrayD<f64>,
        g: &[ArrayD<f64>],
    ) -> Vec<llm_operator::grad_check::Identity> {
        layer_norm_identities(&inputs[0], Some(&inputs[1]), dy, 1e-5, &g[0], Some((&g[1], &g[2])))
    }
}

fn strict(bug: Option<Bug>, first_row_differs: bool) -> Report {
    let operation = Strict(LayerNorm { bug, ..LayerNorm::affine(&[6, 10]) }, Mutex::new(Cell::new(first_row_differs)));
    let (inputs, dy) = operation.0.data::<f64>(&mut default_rng(2), |_, x| 5.0 + x);
    GradCheck::new().run(&operation, &inputs, &dy).unwrap()
}

#[test]
fn the_identities_of_layer_norm_hold_for_a_right_gradient() {
    let report = strict(None, false);
    assert_eq!(report.verdict, Verdict::Passed, "{report}");
    for name in ["sum(dx) = 0", "dgamma = sum(dy xhat)", "dbeta = sum(dy)", "rows may be permuted"] {
        assert!(report.checks.iter().any(|check| check.name == name && check.holds), "{name}: {report}");
    }
}

#[test]
fn the_identities_name_the_term_that_is_missing() {
    assert_eq!(failed(&strict(Some(Bug::MeanTermDropped), false)).0, "sum(dx) = 0");
    let variance = strict(Some(Bug::VarianceTermDropped), false);
    assert!(failed(&variance).0.starts_with("sum(dx xhat)"), "{variance}");
    assert_eq!(failed(&strict(Some(Bug::RowMissingInDgamma), false)).0, "dgamma = sum(dy xhat)");
    assert_eq!(failed(&strict(Some(Bug::DbetaDoubled), false)).0, "dbeta = sum(dy)");
}

#[test]
fn a_row_that_is_treated_unlike_the_others_is_found() {
    assert_eq!(failed(&strict(None, true)).0, "rows may be permuted");
}
