//! LayerNorm for the CPU, forward and backward, and a finite-difference gradient checker for any operation.

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
