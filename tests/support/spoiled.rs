//! LayerNorm whose gradients are spoiled after they are computed, for the tests of the checker and for its fuzz target.

use llm_operator::grad_check::{Input, Operation, Outcome};
use llm_operator::{Element, LayerNormOperation};
use ndarray::ArrayD;

/// What `spoil` makes of the gradients of `right`. It names no identities: the differences have to see it.
pub(crate) struct Spoiled<S> {
    pub(crate) right: LayerNormOperation,
    pub(crate) spoil: S,
}

impl<T: Element, S: Fn(&mut [ArrayD<T>]) + Sync> Operation<T> for Spoiled<S> {
    fn name(&self) -> String {
        "a spoiled layer_norm".to_owned()
    }

    fn inputs(&self) -> Vec<Input> {
        Operation::<T>::inputs(&self.right)
    }

    fn output_shape(&self) -> Vec<usize> {
        Operation::<T>::output_shape(&self.right)
    }

    fn forward(&self, inputs: &[ArrayD<T>], output: &mut ArrayD<T>) -> Outcome {
        self.right.forward(inputs, output)
    }

    fn backward(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>, gradients: &mut [ArrayD<T>]) -> Outcome {
        self.right.backward(inputs, dy, gradients)?;
        (self.spoil)(gradients);
        Ok(())
    }

    fn forward_rows(&self, rows: &[usize], inputs: &[&[T]], output: &mut [T]) -> Option<Outcome> {
        self.right.forward_rows(rows, inputs, output)
    }
}
