//! A gradient checker for any operation: it compares the gradient that a `backward` computes with difference quotients
//! of the `forward`, and says of each component whether it agrees, whether it is wrong, or whether nothing could be
//! seen.
//!
//! # The mathematics
//!
//! For an operation `f` and an upstream gradient `G` the loss is `L(x) = sum(f(x) * G)`, so that the gradient under
//! test is what `backward` gives for `G`. The numeric gradient is the central difference
//!
//! ```text
//! D_i = (L(x + h e_i) - L(x - h e_i)) / ((x + h e_i) - (x - h e_i))
//! ```
//!
//! with the points as they are stored. Its rounding noise has the deviation `sigma_i = kappa u sqrt(sum (G_j y_j)^2) /
//! (sqrt(2) h)`, summed over the outputs that depend on `x_i`, where `u` is the unit roundoff and `kappa` is measured
//! on the forward itself; its truncation error is about `T_i = |D_i(2h) - D_i(h)| / 3`, and where the step is beyond an
//! eighth of the row's deviation, `D_i(4h)` is looked at too. An error below `floor_i = 6 sigma_i + 2 T_i` cannot be seen, an error below `tol_i = atol + rtol max(|a_i|, |D_i|, rms of the row)` is accepted,
//! and each component is
//!
//! | verdict | where |
//! |---|---|
//! | passed | the gradients differ by no more than is accepted, and the floor is below the tolerance |
//! | wrong | they differ by more than the floor and by more than the tolerance |
//! | inconclusive | the floor is above the tolerance; or the step changed nothing; or a whole row vanishes within ten floors |
//! | invalid | a NaN or an infinity |
//!
//! A run passes only if every component does, if the loss sees every input, and if the check would have caught a
//! gradient that is spoiled as bugs spoil it. Beside the differences it checks what holds exactly: that the same call
//! gives the same bits, into any buffer and on any number of threads; that the backward is linear in `G`; that rows
//! that are declared independent are. The report names what the wrong components have in common, in words.
//!
//! # What it costs
//!
//! With `R` rows of `C` elements that are independent, mode [`Mode::Local`] takes `4 C` forwards of the whole input,
//! and as many forwards and backwards as tell `R` rows apart, 13 of each for 1024 of them; [`GradCheck::timed`] measures
//! it beside plain forwards.
//! Without independence it is `4 N` forwards for `N` elements. Beside the caller's arrays a check takes the memory of
//! at most four copies of the inputs and the upstream gradient for each thread (in `f32`, where a report is twice as
//! large as its inputs, six in mode [`Mode::Exhaustive`] and eight in mode [`Mode::Line`]), where a row has sixteen
//! elements or more. Of 8 x 1024 x 768 elements in `f64`, 101 MB with the upstream gradient, that is 2 copies on two
//! threads together: the gradient under test, the numeric one, the floors and the steps.
//!
//! # Examples
//!
//! A function of one array is two closures ([`Function`]). Softmax, over rows that are independent, so that a column of
//! all rows is perturbed at once:
//!
//! ```
//! use llm_operator::assert_gradients;
//! use llm_operator::grad_check::Function;
//! use ndarray::{ArrayD, Axis};
//!
//! fn softmax(x: &ArrayD<f64>) -> ArrayD<f64> {
//!     let mut y = x.clone();
//!     for mut row in y.rows_mut() {
//!         let greatest = row.fold(f64::NEG_INFINITY, |greatest, &x| greatest.max(x));
//!         row.mapv_inplace(|x| (x - greatest).exp());
//!         let sum = row.sum();
//!         row /= sum;
//!     }
//!     y
//! }
//!
//! let backward = |x: &ArrayD<f64>, dy: &ArrayD<f64>| {
//!     let y = softmax(x);
//!     let mean = (&y * dy).sum_axis(Axis(1)).insert_axis(Axis(1));
//!     &y * &(dy - &mean)
//! };
//! assert_gradients!(Function::new("softmax", [4, 7], softmax, backward).independent_rows());
//! ```
//!
//! Anything else implements [`Operation`]. A matrix product `y = x w`, whose rows depend on all of `w`:
//!
//! ```
//! use llm_operator::grad_check::{GradCheck, Input, Operation, Outcome, Verdict, random_inputs};
//! use ndarray::{ArrayD, ArrayView2, Ix2};
//!
//! struct MatMul;
//!
//! fn matrix(array: &ArrayD<f64>) -> ArrayView2<'_, f64> {
//!     array.view().into_dimensionality::<Ix2>().expect("two dimensions")
//! }
//!
//! impl Operation<f64> for MatMul {
//!     fn name(&self) -> String {
//!         "x w".to_owned()
//!     }
//!     fn inputs(&self) -> Vec<Input> {
//!         vec![Input::rows("x", [6, 4]), Input::shared("w", [4, 3])]
//!     }
//!     fn output_shape(&self) -> Vec<usize> {
//!         vec![6, 3]
//!     }
//!     fn forward(&self, inputs: &[ArrayD<f64>], output: &mut ArrayD<f64>) -> Outcome {
//!         output.assign(&matrix(&inputs[0]).dot(&matrix(&inputs[1])));
//!         Ok(())
//!     }
//!     fn backward(&self, inputs: &[ArrayD<f64>], dy: &ArrayD<f64>, gradients: &mut [ArrayD<f64>]) -> Outcome {
//!         gradients[0].assign(&matrix(dy).dot(&matrix(&inputs[1]).t()));
//!         gradients[1].assign(&matrix(&inputs[0]).t().dot(&matrix(dy)));
//!         Ok(())
//!     }
//! }
//!
//! let (inputs, dy) = random_inputs(&MatMul, 1000);
//! let report = GradCheck::new().run(&MatMul, &inputs, &dy)?;
//! assert_eq!(report.verdict, Verdict::Passed);
//! assert_eq!(report.inputs[1].counts.passed, 12);
//! # Ok::<(), llm_operator::grad_check::CheckError>(())
//! ```

mod assert;
mod block;
mod clock;
mod columns;
mod compiled;
mod components;
mod directional;
mod error;
mod exact;
mod exhaustive;
mod follows;
mod framed;
mod function;
mod identities;
mod independence;
mod judge;
mod line;
mod local;
mod measured;
mod noise;
mod operation;
mod patterns;
mod placed;
mod power;
mod problem;
mod progress;
mod report;
mod run;
mod session;
mod stack;
mod step;
#[cfg(feature = "cli")]
mod svg;
mod sweep;
mod text;
mod verdict;
mod workers;

pub(crate) use compiled::Checked;

pub use assert::{DEFAULT_SEED, assert_pass, random_inputs};
pub use error::{Call, CheckError, Probe, Stage};
pub use function::Function;
pub use identities::{layer_norm_identities, layer_norm_terms};
pub use operation::{Identity, Input, Locality, Operation, Outcome};
pub use power::{Mutant, Power};
pub use progress::Progress;
pub use report::{Check, Components, Counts, Direction, InputReport, Report, SCHEMA_VERSION, Timing, Worst};
pub use run::{Budget, Given, GradCheck, Mode};
pub use step::Step;
pub use sweep::{Conclusion, Sweep, SweepPoint};
pub use verdict::{Tolerance, Verdict};
