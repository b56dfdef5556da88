//! A gradient checker for any operation: it compares the gradient that a `backward` computes with difference quotients
//! of the `forward`, and says of each component whether it agrees, whether it is wrong, or whether nothing could be seen.
//!
//! # The mathematics
//!
//! For an operation `f` and an upstream gradient `G` the loss is `L(x) = sum(f(x) * G)`, so that the gradient under test is
//! what `backward` gives for `G`. The numeric gradient is the central difference
//!
//! ```text
//! D_i = (L(x + h e_i) - L(x - h e_i)) / ((x + h e_i) - (x - h e_i))
//! ```
//!
//! with the points as they are stored. Its rounding noise has the deviation `sigma_i = kappa u sqrt(sum (G_j y_j)^2) / (sqrt(2) h)`,
//! summed over the outputs that depend on `x_i`, where `u` is the unit roundoff and `kappa` is measured on the forward itself;
//! its truncation error is about `T_i = |D_i(2h) - D_i(h)| / 3`. An error below `floor_i = 6 sigma_i + 2 T_i` cannot be seen, an
//! error below `tol_i = atol + rtol max(|a_i|, |D_i|, rms of the row)` is accepted, and each component is
//!
//! | verdict | where |
//! |---|---|
//! | passed | the gradients differ by no more than is accepted, and the floor is below the tolerance |
//! | wrong | they differ by more than the floor and by more than the tolerance |
//! | inconclusive | the floor is above the tolerance; or both gradients of a whole row vanish within ten floors |
//! | invalid | a NaN, an infinity, or a step that changed nothing |
//!
//! A run passes only if every component does.

mod components;
mod error;
mod exhaustive;
mod function;
mod judge;
mod measured;
mod noise;
mod operation;
mod problem;
mod progress;
mod report;
mod run;
mod step;
mod text;
mod verdict;

pub use error::{Call, CheckError, Probe, Stage};
pub use function::Function;
pub use operation::{Input, Locality, Operation, Outcome};
pub use progress::Progress;
pub use report::{Components, Counts, InputReport, Report, SCHEMA_VERSION, Worst};
pub use run::{Given, GradCheck, Mode};
pub use step::Step;
pub use verdict::{Tolerance, Verdict};

#[cfg(test)]
mod tests;
