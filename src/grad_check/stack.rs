//! Copies of a block of rows, one after the other: a call of the operation takes the rows of all of them, each copy
//! perturbed in its own way.

use std::ops::Range;

use super::error::{CheckError, Probe};
use super::operation::Locality;
use super::placed::Placed;
use super::problem::Problem;
use crate::Element;

/// The copies; of inputs that are not declared in rows there are none.
pub(super) struct Stack<T> {
    /// The numbers of the rows of all copies.
    numbers: Vec<usize>,
    inputs: Vec<Option<Placed<T>>>,
}

impl<T: Element> Stack<T> {
    pub(super) fn new(problem: &Problem<'_, T>, rows: &Range<usize>, copies: usize) -> Self {
        let numbers = std::iter::repeat_n(rows.clone(), copies).flatten().collect();
        let inputs = problem.rows_of_inputs(rows).zip(&problem.declared);
        let inputs = inputs
            .map(|(rows, declared)| {
                let is_in_rows = matches!(declared.locality, Locality::Rows(_));
                is_in_rows.then(|| Placed::copies(rows, copies))
            })
            .collect();
        Self { numbers, inputs }
    }

    /// The rows of input `k`, which is declared in rows, in all copies.
    pub(super) fn rows_mut(&mut self, k: usize) -> &mut [T] {
        self.inputs[k].as_deref_mut().unwrap_or_default()
    }

    /// Multiplies the first `rows` rows of the copies by `factor`.
    pub(super) fn scale(&mut self, rows: usize, factor: f64) {
        let len = self.numbers.len();
        for copies in self.inputs.iter_mut().flatten() {
            let moved = rows * (copies.len() / len);
            copies[..moved].iter_mut().for_each(|value| *value = T::from_f64(factor * value.to_f64()));
        }
    }

    /// Runs the first `rows` rows of the copies forward, which the caller has [counted](Problem::count); the operation
    /// must be able to.
    pub(super) fn forward(
        &self,
        problem: &Problem<'_, T>,
        rows: usize,
        output: &mut [T],
        probe: impl FnOnce() -> Option<Probe>,
    ) -> Result<(), CheckError> {
        problem.forward_rows(&self.numbers[..rows], &self.inputs(problem, rows), output, probe)
    }

    /// The numbers of the rows of all copies.
    pub(super) fn numbers(&self) -> &[usize] {
        &self.numbers
    }

    /// What a call of the first `rows` rows of the copies is given.
    pub(super) fn inputs<'s>(&'s self, problem: &'s Problem<'_, T>, rows: usize) -> Vec<&'s [T]> {
        let inputs = self.inputs.iter().enumerate().map(|(k, copies)| match copies {
            Some(copies) => &copies[..rows * (copies.len() / self.numbers.len())],
            None => problem.input(k),
        });
        inputs.collect()
    }
}
