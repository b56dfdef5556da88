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
//! Each sentence names the tests that hold it (`file::test`, of `tests` and `tests/kernels`).
//!
//! - y and dx are within 4 units in the last place (ULP) of the row's largest exact value, `rstd` within 4 of its own,
//!   for rows of any width up to 100,000, where the terms of a result do not all but cancel.
//!   (`accuracy::ordinary_rows_of_every_width_are_within_the_bounds`, `accuracy::wide_rows_are_within_the_bounds`,
//!   `accuracy::a_row_of_ten_million_elements_is_within_the_bounds`)
//! - The same holds near zero and at a mean 1e8 times the deviation.
//!   (`accuracy::rows_far_from_zero_are_within_the_bounds`)
//! - dgamma and dbeta are within 8 ULP of their largest, for up to 100,000 rows.
//!   (`accuracy::parameter_gradients_of_many_rows_are_within_the_bounds`,
//!   `accuracy::parameter_gradients_of_equal_rows_are_within_the_bounds`)
//! - Where the terms cancel, the error is small beside them: of y 4 ULP of `|gamma xhat| + |beta|`, of dx 8 of
//!   `rstd max |dy gamma|`, of dgamma and dbeta 8 of the sum of the magnitudes. (For `dy = y` the exact dx is nearly
//!   0, and what is left of it in the element type is mostly rounding.)
//!   (`contract::results_whose_terms_cancel_are_within_the_bounds_beside_the_terms`)
//! - Of widths below 16, where that is common, y and dx are computed in twice the digits.
//!   (`accuracy::ordinary_rows_of_every_width_are_within_the_bounds`,
//!   `extremes::of_two_elements_dx_is_what_epsilon_leaves`)
//! - Finite input never gives a wrong result silently: rows whose squares overflow or vanish are computed as well as
//!   others, from the smallest subnormal number to the largest. (`accuracy::huge_and_tiny_rows_are_within_the_bounds`,
//!   `forward::finite_rows_at_the_ends_of_the_range_give_finite_values`,
//!   `extremes::subnormal_rows_with_an_ordinary_epsilon`, `extremes::tiny_gradients`,
//!   `extremes::huge_parameters_and_gradients`, `extremes::dx_is_finite_where_what_it_is_made_of_is_not`)
//! - What a factor alone loses below the range is lost: a subnormal `xhat` beside a huge gamma or dy, and in f64 a
//!   `dy gamma` whose factors are both next to nothing beside others of their row.
//!   (`any_bits::any_finite_bits_in_f32_are_within_the_bounds`,
//!   `any_bits::any_finite_bits_in_f64_are_within_the_bounds`)
//! - Only a sum over rows that leaves the range on the way is infinite.
//!   (`contract::only_a_sum_over_rows_that_leaves_the_range_is_infinite`)
//! - A row with NaN or an infinity in x or dy gives NaN in that row, and leaves all others alone; dgamma and dbeta are
//!   sums over rows, and take it up. (`forward::a_row_with_nan_or_infinity_gives_nan_in_that_row_only`,
//!   `backward::nan_in_dy_stays_in_its_row_and_its_columns`)
//! - Of width 1, y is beta, dx and dgamma are exactly 0. (`forward::a_row_of_one_element_gives_beta`,
//!   `backward::of_a_row_of_one_element_dx_and_dgamma_are_exactly_zero`)
//! - No rows give empty outputs and parameter gradients of 0. (`forward::no_rows_give_empty_outputs`,
//!   `backward::no_rows_give_parameter_gradients_of_zero`)
//! - A constant row without `epsilon` gives y = beta and dx = 0.
//!   (`forward::a_constant_row_gives_beta_whatever_epsilon`,
//!   `backward::a_constant_row_without_epsilon_has_no_gradient`)
//! - The results of one shape have the same bits on any number of threads, whoever else calls at the same time.
//!   (`threads::any_number_of_threads_gives_the_same_bits`,
//!   `threads::the_sign_of_a_zero_sum_is_the_same_on_any_number_of_threads`,
//!   `load::a_hundred_thousand_calls_from_eight_threads_keep_their_bits`)
//! - Few long rows are shared by several threads, with the bits of one.
//!   (`threads::long_rows_of_f32_have_the_same_bits_on_any_number_of_threads`,
//!   `threads::long_rows_of_f64_have_the_same_bits_on_any_number_of_threads`,
//!   `threads::hard_long_rows_of_f32_have_the_same_bits_on_any_number_of_threads`,
//!   `threads::hard_long_rows_of_f64_have_the_same_bits_on_any_number_of_threads`,
//!   `threads::later_batches_of_long_rows_have_the_same_bits_on_any_number_of_threads`,
//!   `threads::any_gradients_of_long_rows_have_the_same_bits_on_any_number_of_threads`)
//! - They have the same bits on every backend with fused multiply-add: AVX2, AVX-512, and whatever is built for such a
//!   target. (`backends::f32_has_the_bits_of_the_model_at_every_width`,
//!   `backends::f64_has_the_bits_of_the_model_at_every_width`, `backends::hard_rows_have_the_bits_of_the_model`)
//! - They have the same bits at every alignment, with ordinary and with streaming stores.
//!   (`backends::bits_do_not_depend_on_the_offset`, `backends::streaming_stores_change_no_bit`)
//! - y and dx have the same bits for any split of the rows into calls.
//!   (`forward::rows_in_one_call_or_in_many_have_the_same_bits`,
//!   `contract::dx_of_rows_in_one_call_or_in_many_has_the_same_bits`)
//! - The portable backend of a baseline build is within the same bounds. (All of `accuracy`, which runs on each
//!   backend: `accuracy::ordinary_rows_of_every_width_are_within_the_bounds`)
//! - The work runs on rayon's ambient pool. (`load::calls_from_within_a_callers_pool_keep_their_bits`,
//!   `threads::calls_nest_in_a_parallel_loop_of_the_caller`)
//! - Small work stays on the calling thread. (`small_work::small_work_starts_no_thread`)
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
//! | `change` | what a change of outputs does to a loss, in the registers that the CPU has |
//! | [`grad_check`] | the checker, which knows operations only through a trait |
//! | [`numpy_random`] | NumPy's random numbers, bit for bit |
//! | [`roofline`] | the speed of memory |

mod change;
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
