//! LayerNorm for the CPU, forward and backward, and a finite-difference gradient checker for any operation: two halves
//! that prove each other.
//!
//! # The mathematics
//!
//! For each row `x` of `C` elements, with means over the row,
//!
//! ```text
//! mean = mean(x)       var = mean((x - mean)^2)       rstd = 1 / sqrt(var + epsilon)
//! xhat = (x - mean) * rstd
//! y    = gamma * xhat + beta
//!
//! g      = dy * gamma
//! dx     = rstd * (g - mean(g) - xhat * mean(g * xhat))
//! dgamma = sum over rows of dy * xhat
//! dbeta  = sum over rows of dy
//! ```
//!
//! [`mod@reference`] is this as plain loops, with the derivation.
//!
//! # Example
//!
//! ```
//! use llm_operator::{layer_norm, layer_norm_backward};
//! use ndarray::array;
//!
//! let x = array![[1.0_f32, 2.0, 3.0, 4.0], [4.0, 2.0, 2.0, 4.0]];
//! let (y, cache) = layer_norm(x.view(), 1e-5)?;
//! let dy = array![[0.0_f32, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, -1.0]];
//! let dx = layer_norm_backward(dy.view(), &cache)?; // the cache borrows x: no copy
//! assert_eq!((y.shape(), dx.shape()), (x.shape(), x.shape()));
//! # Ok::<(), llm_operator::Error>(())
//! ```
//!
//! [`LayerNorm`] is the whole of it: gamma, beta, several normalized dimensions, the caller's own memory
//! ([`LayerNorm::forward_into`], [`LayerNorm::backward_into`]), the choice of gradients, to overwrite or to accumulate.
//! [`grad_check`] checks the gradient of anything that runs forward and backward.
//!
//! # The numerical contract
//!
//! - y and dx are within 4 units in the last place of the row's largest exact value, `rstd` within 4 of its own, dgamma and
//!   dbeta within 8 of the largest, for rows of any width up to 100,000 and up to 100,000 of them, near zero or at a mean
//!   1e8 times the deviation, where the terms of a result do not all but cancel.
//! - Where they cancel, the error stays as small beside the terms: of y beside `|gamma xhat| + |beta|`, of dx beside
//!   `rstd * max |dy * gamma|`, of dgamma and dbeta beside the sum of the magnitudes. (For `dy = y` the exact dx is nearly 0, and
//!   what is left of it in the element type is mostly rounding.) Of widths below 16, where that is common, y and dx are
//!   computed in twice the digits.
//! - Finite input never gives a wrong result silently: rows whose squares overflow or vanish are computed as well as others,
//!   from the smallest subnormal number to the largest. Only a sum over rows that leaves the range on the way is infinite.
//! - A row with NaN or an infinity in x or dy gives NaN in that row, and leaves all others alone. (dgamma and dbeta are sums
//!   over rows, and take it up.)
//! - Of width 1, y is beta, dx and dgamma are exactly 0. No rows give empty outputs and parameter gradients of 0. A
//!   constant row without `epsilon` gives y = beta and dx = 0.
//! - The results of one shape have the same bits on any number of threads, on every backend with fused multiply-add (AVX2,
//!   AVX-512, and whatever is built for such a target), at every alignment; y and dx also for any split of the
//!   rows into calls. The portable backend of a baseline build is within the same bounds.
//! - The work runs on rayon's ambient pool; small work stays on the calling thread.
//!
//! # The map
//!
//! Data flows one way, `layer_norm -> rows -> driver -> simd::Backend -> kernel -> simd::Lanes`:
//!
//! | module | what it knows |
//! |---|---|
//! | `layer_norm` | the public functions, [`LayerNorm`] |
//! | `rows` | views and slices as rows of known width |
//! | `driver` | how rows become tasks for rayon |
//! | `kernel` | the arithmetic, once for all instruction sets |
//! | `simd` | what a register is: portable, AVX2, AVX-512, and the model that they are tested against |
//! | [`mod@reference`] | the definition, as scalar loops |
//! | [`grad_check`] | the checker, which knows operations only through a trait |
//! | [`numpy_random`] | NumPy's random numbers, bit for bit |
//! | [`roofline`] | the speed of memory |

mod driver;
mod element;
mod error;
pub mod grad_check;
mod kernel;
mod layer_norm;
mod layer_norm_operation;
pub mod numpy_random;
pub mod reference;
pub mod roofline;
mod rows;
mod simd;

pub use driver::Streaming;
pub use element::Element;
pub use error::Error;
pub use layer_norm::{
    GradientMut, Gradients, GradientsMut, LayerNorm, LayerNormCache, Statistics, StatisticsMut, layer_norm,
    layer_norm_backward,
};
pub use layer_norm_operation::LayerNormOperation;
pub use simd::Backend;

/// The examples of `README.md`, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
