//! The closure form of an operation: a function of one array.

use ndarray::ArrayD;

use super::operation::{Input, Operation, Outcome};
use crate::Element;

/// A function of one array and its gradient, as two closures.
///
/// ```
/// use llm_operator::grad_check::{Function, GradCheck, Verdict};
/// use ndarray::{Array, ArrayD};
///
/// let cube = Function::new("cube", [2, 3], |x: &ArrayD<f64>| x * x * x, |x, dy| 3.0 * x * x * dy);
/// let x = Array::linspace(-1.0, 1.5, 6).into_shape_with_order(vec![2, 3]).unwrap();
/// let dy = x.mapv(f64::cos);
/// let report = GradCheck::new().run(&cube, &[x], &dy)?;
/// assert_eq!(report.verdict, Verdict::Passed);
/// # Ok::<(), llm_operator::grad_check::CheckError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Function<F, B> {
    name: String,
    input: Input,
    output_shape: Vec<usize>,
    forward: F,
    backward: B,
}

impl<F, B> Function<F, B> {
    /// A function of an array of `shape`, whose output has the same shape; `backward` takes `x` and `dy`, gives `dx`.
    pub fn new<T>(name: impl Into<String>, shape: impl Into<Vec<usize>>, forward: F, backward: B) -> Self
    where
        F: Fn(&ArrayD<T>) -> ArrayD<T> + Sync,
        B: Fn(&ArrayD<T>, &ArrayD<T>) -> ArrayD<T> + Sync,
    {
        let shape = shape.into();
        Self { name: name.into(), output_shape: shape.clone(), input: Input::shared("x", shape), forward, backward }
    }

    /// Declares that the output has another shape than the input.
    #[must_use]
    pub fn output_shape(mut self, shape: impl Into<Vec<usize>>) -> Self {
        self.output_shape = shape.into();
        self
    }

    /// Declares that row `r` of the input, which is all of its last dimension, reaches row `r` of the output alone.
    #[must_use]
    pub fn independent_rows(mut self) -> Self {
        self.input = Input::rows(self.input.name, self.input.shape);
        self
    }
}

impl<T, F, B> Operation<T> for Function<F, B>
where
    T: Element,
    F: Fn(&ArrayD<T>) -> ArrayD<T> + Sync,
    B: Fn(&ArrayD<T>, &ArrayD<T>) -> ArrayD<T> + Sync,
{
    fn name(&self) -> String {
        self.name.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![self.input.clone()]
    }

    fn output_shape(&self) -> Vec<usize> {
        self.output_shape.clone()
    }

    fn forward(&self, inputs: &[ArrayD<T>], output: &mut ArrayD<T>) -> Outcome {
        // Replaced, not assigned: a result of the wrong shape must be seen, not broadcast.
        *output = (self.forward)(&inputs[0]);
        Ok(())
    }

    fn backward(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>, gradients: &mut [ArrayD<T>]) -> Outcome {
        gradients[0] = (self.backward)(&inputs[0], dy);
        Ok(())
    }
}
