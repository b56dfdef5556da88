//! What the checker knows of an operation: how to run it forward and backward, and what it claims about its rows.

use ndarray::ArrayD;
use std::error::Error;

use crate::Element;

/// What a call of an operation returns: nothing, or the operation's own error.
pub type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// Anything that can be run forward and backward.
///
/// The loss that is differentiated is `L(inputs) = sum(forward(inputs) * dy)`, so the gradient under test is what
/// [`backward`](Self::backward) writes for `dy`. All arrays that an operation is given are contiguous and in C order.
///
/// ```
/// use llm_operator::grad_check::{GradCheck, Input, Operation, Outcome, Verdict};
/// use ndarray::{Array1, ArrayD};
///
/// /// `y = x^2`.
/// struct Square;
///
/// impl Operation<f64> for Square {
///     fn name(&self) -> String {
///         "square".to_owned()
///     }
///     fn inputs(&self) -> Vec<Input> {
///         vec![Input::shared("x", [3])]
///     }
///     fn output_shape(&self) -> Vec<usize> {
///         vec![3]
///     }
///     fn forward(&self, inputs: &[ArrayD<f64>], output: &mut ArrayD<f64>) -> Outcome {
///         output.zip_mut_with(&inputs[0], |y, x| *y = x * x);
///         Ok(())
///     }
///     fn backward(&self, inputs: &[ArrayD<f64>], dy: &ArrayD<f64>, gradients: &mut [ArrayD<f64>]) -> Outcome {
///         gradients[0].assign(&(2.0 * &inputs[0] * dy));
///         Ok(())
///     }
/// }
///
/// let x = Array1::from(vec![1.0, -2.0, 0.5]).into_dyn();
/// let dy = Array1::from(vec![0.3, 0.7, -1.1]).into_dyn();
/// let report = GradCheck::new().run(&Square, &[x], &dy)?;
/// assert_eq!(report.verdict, Verdict::Passed);
/// # Ok::<(), llm_operator::grad_check::CheckError>(())
/// ```
pub trait Operation<T: Element>: Sync {
    /// What the report calls the operation.
    fn name(&self) -> String;

    /// The inputs that are differentiated, in the order of the arrays that the other methods take.
    fn inputs(&self) -> Vec<Input>;

    /// The shape of the output, and so of the upstream gradient.
    fn output_shape(&self) -> Vec<usize>;

    /// Computes the output from the inputs, writing every element of it.
    ///
    /// # Errors
    ///
    /// Whatever the operation refuses; the check then ends with [`CheckError::Refused`](super::CheckError::Refused).
    fn forward(&self, inputs: &[ArrayD<T>], output: &mut ArrayD<T>) -> Outcome;

    /// Computes the gradient of `sum(forward(inputs) * dy)` with respect to each input, writing every element.
    ///
    /// # Errors
    ///
    /// Whatever the operation refuses; the check then ends with [`CheckError::Refused`](super::CheckError::Refused).
    fn backward(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>, gradients: &mut [ArrayD<T>]) -> Outcome;

    /// Computes some rows of the output, with the same bits as [`forward`](Self::forward).
    ///
    /// `rows` has the number of each of them in the whole output, for an operation that treats its rows differently. Of
    /// an input declared [`Locality::Rows`] the slice holds those rows alone, one after the other, of any other the whole
    /// input; `output` has room for those rows. A number may come several times, each time with other elements: a call
    /// takes a few rows perturbed in different ways. An operation that answers with `Some` is checked far faster: some
    /// rows stay in cache while all of their columns are perturbed in turn. By default `None`: it cannot be run so.
    fn forward_rows(&self, rows: &[usize], inputs: &[&[T]], output: &mut [T]) -> Option<Outcome> {
        let _ = (rows, inputs, output);
        None
    }

    /// The same operation in `f64`, if it exists: the rounding noise of the forward is then measured against it.
    fn in_f64(&self) -> Option<&dyn Operation<f64>> {
        None
    }

    /// What the terms of each gradient amount to before they cancel: of an input in rows one number for each row, the
    /// greatest of its components; of any other input one for each component; of an input of which nothing is known
    /// none.
    ///
    /// A right gradient is off by some roundings of that size. Where the exact gradient is 0 because its terms cancel,
    /// a difference quotient shows that it is, and what rounding leaves of the analytic one would look like an error;
    /// and where a row is ill conditioned, a gradient of lower precision is no better than its roundings. By default
    /// nothing is known. [`layer_norm_terms`](super::layer_norm_terms) has those of LayerNorm.
    fn gradient_terms(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>) -> Vec<Vec<f64>> {
        let _ = (inputs, dy);
        Vec::new()
    }

    /// Whether all rows are treated alike, so that permuting them permutes the results, bit for bit; it is then
    /// checked.
    fn rows_are_alike(&self) -> bool {
        false
    }

    /// Equations that the gradients satisfy whatever the numbers are, for the results of one backward; they are
    /// checked.
    ///
    /// [`layer_norm_identities`](super::layer_norm_identities) has those of LayerNorm.
    fn identities(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>, gradients: &[ArrayD<T>]) -> Vec<Identity> {
        let _ = (inputs, dy, gradients);
        Vec::new()
    }
}

/// One instance of an equation that a gradient satisfies.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// The equation, as `sum(dx) = 0`.
    pub name: String,
    /// Where it was evaluated, as `row 3`.
    pub place: String,
    /// Its left side.
    pub left: f64,
    /// Its right side.
    pub right: f64,
    /// By how much rounding may set them apart.
    pub bound: f64,
}

/// One input of an operation: its name, its shape, and which outputs its elements reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// What the report calls the input.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Which outputs its elements reach.
    pub locality: Locality,
}

impl Input {
    /// An input whose rows are all dimensions but the last, and where row `r` reaches row `r` of the output alone.
    pub fn rows(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let rows = shape.iter().take(shape.len().saturating_sub(1)).product();
        Self { name: name.into(), shape, locality: Locality::Rows(rows) }
    }

    /// A parameter whose element `j` reaches column `j` of the output alone, as LayerNorm's `gamma` and `beta`.
    pub fn columns(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into(), locality: Locality::Columns }
    }

    /// An input of which nothing is claimed: any element may reach any output.
    pub fn shared(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into(), locality: Locality::Shared }
    }

    /// How many elements the input has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the input has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many consecutive elements are judged by one scale: a row where rows are declared, all of a parameter, and
    /// otherwise the last dimension of an array that has more than one.
    pub(super) fn row_len(&self) -> usize {
        let length = match self.locality {
            Locality::Rows(rows) => self.len() / rows.max(1),
            Locality::Columns => self.len(),
            Locality::Shared => self.shape.last().copied().unwrap_or(1),
        };
        length.max(1)
    }
}

/// Which outputs an element of an input reaches: a claim that the mode `local` verifies before it relies on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Locality {
    /// The input and the output are this many rows of equal length, and row `r` reaches row `r` alone.
    Rows(usize),
    /// The output's rows are as long as the input, and element `j` reaches element `j` of each row alone.
    Columns,
    /// Any element may reach any output.
    Shared,
}
