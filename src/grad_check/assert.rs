//! A gradient check as one line of a test.

use ndarray::ArrayD;

use super::operation::Operation;
use super::run::GradCheck;
use super::verdict::Verdict;
use crate::Element;
use crate::numpy_random::default_rng;

/// The seed of [`assert_gradients!`](crate::assert_gradients) where none is given.
pub const DEFAULT_SEED: u64 = 1000;

/// Normal inputs of the shapes that an operation declares, and an upstream gradient, from a seed.
///
/// Neither is of one sign: an upstream gradient that is lies close to the one direction that LayerNorm does not see.
pub fn random_inputs<T: Element>(operation: &dyn Operation<T>, seed: u64) -> (Vec<ArrayD<T>>, ArrayD<T>) {
    let mut rng = default_rng(seed);
    let inputs = operation.inputs().iter().map(|input| rng.standard_normal(&input.shape).mapv(T::from_f64)).collect();
    (inputs, rng.standard_normal(&operation.output_shape()).mapv(T::from_f64))
}

/// Panics with the report unless the gradients pass; what [`assert_gradients!`](crate::assert_gradients) calls.
#[track_caller]
pub fn assert_pass<T: Element>(operation: &dyn Operation<T>, seed: u64, check: &GradCheck) {
    let (inputs, dy) = random_inputs(operation, seed);
    let line = format!("seed {seed}: the inputs are random_inputs(&operation, {seed})");
    match check.clone().repeat(line).run(operation, &inputs, &dy) {
        Ok(report) if report.verdict == Verdict::Passed => {}
        Ok(report) => panic!("the gradients did not pass (seed {seed}):\n{report}"),
        Err(error) => panic!("the gradients could not be checked (seed {seed}): {error}"),
    }
}

/// Checks an operation's gradients at random inputs, and panics with the whole report unless they pass.
///
/// The numbers come from a fixed seed, which a failure prints; another may be given, and the settings of the check.
///
/// ```
/// use llm_operator::assert_gradients;
/// use llm_operator::grad_check::{Function, GradCheck};
/// use ndarray::ArrayD;
///
/// let slope = |x: f64| 1.0 - x.tanh().powi(2);
/// let tanh = Function::new("tanh", [3, 5], |x: &ArrayD<f64>| x.mapv(f64::tanh), |x, dy| dy * &x.mapv(slope));
/// assert_gradients!(tanh);
/// assert_gradients!(tanh, seed = 7);
/// assert_gradients!(tanh, seed = 7, check = GradCheck::new().rtol(1e-8));
/// ```
///
/// Of an operation on several types the type is named, before a colon:
///
/// ```
/// use llm_operator::{LayerNormOperation, assert_gradients};
///
/// let operation = LayerNormOperation::new(&[4, 16]).gamma().beta();
/// assert_gradients!(f64: operation);
/// assert_gradients!(f32: operation, seed = 7);
/// ```
#[macro_export]
macro_rules! assert_gradients {
    ($element:ident : $operation:expr $(, $setting:ident = $value:expr)*) => {{
        let operation: &dyn $crate::grad_check::Operation<$element> = &$operation;
        $crate::assert_gradients!(@settings operation $(, $setting = $value)*)
    }};
    (@settings $operation:ident) => {
        $crate::assert_gradients!(@settings $operation, seed = $crate::grad_check::DEFAULT_SEED)
    };
    (@settings $operation:ident, seed = $seed:expr) => {
        $crate::assert_gradients!(@settings $operation, seed = $seed, check = $crate::grad_check::GradCheck::new())
    };
    (@settings $operation:ident, seed = $seed:expr, check = $check:expr) => {
        $crate::grad_check::assert_pass($operation, $seed, &$check)
    };
    ($operation:expr) => {
        $crate::assert_gradients!($operation, seed = $crate::grad_check::DEFAULT_SEED)
    };
    ($operation:expr, seed = $seed:expr) => {
        $crate::assert_gradients!($operation, seed = $seed, check = $crate::grad_check::GradCheck::new())
    };
    ($operation:expr, seed = $seed:expr, check = $check:expr) => {
        $crate::grad_check::assert_pass(&$operation, $seed, &$check)
    };
}
