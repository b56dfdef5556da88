//! What can be wrong with a call: which argument, what was expected, what was found.

use std::fmt;

/// Why a call was refused. Nothing has been computed and no output has been written.
///
/// Every message starts with the name of the argument at fault, then says what was expected and
/// what was found.
///
/// ```
/// use llm_operator::{Error, LayerNorm};
///
/// let x = [1.0_f32; 8];
/// let mut y = [0.0_f32; 8];
/// let gamma = [1.0_f32; 3];
/// let error = LayerNorm::new(4).gamma(&gamma).forward_into(&x, &mut y, None).unwrap_err();
/// assert_eq!(error.to_string(), "gamma: expected 4 elements, found 3");
/// ```
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An array does not have the shape that the other arguments ask for.
    #[error("{argument}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The argument at fault, by its name in the function's signature.
        argument: &'static str,
        /// The shape that it should have had.
        expected: Vec<usize>,
        /// The shape that it had.
        found: Vec<usize>,
    },
    /// The last dimensions of an array are not the normalized dimensions.
    #[error("{argument}: expected a shape that ends in {expected:?}, found {found:?}")]
    TrailingShape {
        /// The argument at fault.
        argument: &'static str,
        /// The normalized dimensions.
        expected: Vec<usize>,
        /// The shape that the array had.
        found: Vec<usize>,
    },
    /// A slice does not have the length that the other arguments ask for.
    #[error("{argument}: expected {expected} elements, found {found}")]
    Length {
        /// The argument at fault.
        argument: &'static str,
        /// The number of elements that it should have had.
        expected: usize,
        /// The number of elements that it had.
        found: usize,
    },
    /// A slice of rows is not a whole number of rows long.
    #[error("{argument}: expected a whole number of rows of {width} elements, found {found} elements")]
    PartialRow {
        /// The argument at fault.
        argument: &'static str,
        /// Elements in one row.
        width: usize,
        /// The number of elements that the slice had.
        found: usize,
    },
    /// The normalized dimensions are missing, or hold no elements: there is nothing to take a mean of.
    #[error("width: expected at least one element to normalize over, found normalized dimensions {found:?}")]
    EmptyWidth {
        /// The normalized dimensions.
        found: Vec<usize>,
    },
    /// The normalized dimensions have more elements than there are addresses.
    #[error("width: expected normalized dimensions that a usize can count, found {found:?}")]
    HugeWidth {
        /// The normalized dimensions.
        found: Vec<usize>,
    },
    /// The cache comes from a layer with other normalized dimensions.
    #[error("cache: expected normalized dimensions {expected:?}, found {found:?}")]
    Cache {
        /// The normalized dimensions of this layer.
        expected: Vec<usize>,
        /// Those of the layer that the cache comes from.
        found: Vec<usize>,
    },
    /// `epsilon` is negative, infinite or NaN.
    #[error("epsilon: expected a finite number that is zero or more, found {found}")]
    Epsilon {
        /// The value given.
        found: f64,
    },
    /// The SIMD backend that was asked for cannot be used.
    #[error("backend: expected one of {}, found {found:?}", List(available))]
    Backend {
        /// The name that was asked for.
        found: String,
        /// The names that this CPU can run.
        available: Vec<&'static str>,
    },
}

/// Words in a sentence: `a, b, c`.
struct List<'a>(&'a [&'static str]);

impl fmt::Display for List<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.join(", "))
    }
}
