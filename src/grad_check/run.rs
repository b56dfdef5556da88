//! The builder of a check, and the order of its parts.

use std::fmt;
use std::sync::Arc;

use ndarray::ArrayD;

use super::components;
use super::error::CheckError;
use super::judge::{Judge, judge_input, nan_max};
use super::noise::{self, Noise};
use super::operation::Operation;
use super::problem::{Problem, check_count, check_shape};
use super::progress::Progress;
use super::report::{InputReport, Report, SCHEMA_VERSION};
use super::step::Step;
use super::verdict::{Tolerance, Verdict};
use crate::Element;

/// How the differences are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Mode {
    /// Every component of every input, one at a time: two forwards of the whole input each, and as many again for the
    /// truncation. Any operation.
    Exhaustive,
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Exhaustive => "exhaustive",
        })
    }
}

/// A gradient that was computed elsewhere, perhaps in a lower precision than the differences.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    gradient: ArrayD<f64>,
    unit_roundoff: f64,
}

impl Given {
    /// A gradient of an input's shape; its type's unit roundoff widens the tolerance that it is judged by.
    pub fn new<T: Element>(gradient: &ArrayD<T>) -> Self {
        Self { gradient: gradient.mapv(T::to_f64), unit_roundoff: T::UNIT_ROUNDOFF }
    }
}

/// A check of an operation's gradient.
///
/// ```
/// use llm_operator::grad_check::{Function, GradCheck, Verdict};
/// use llm_operator::numpy_random::default_rng;
/// use ndarray::ArrayD;
///
/// let wrong = Function::new("square", [3, 4], |x: &ArrayD<f64>| x * x, |x, dy| x * dy);
/// let mut rng = default_rng(1000);
/// let report = GradCheck::new().run(&wrong, &[rng.random(&[3, 4])], &rng.random(&[3, 4]))?;
/// assert_eq!(report.verdict, Verdict::Wrong);
/// # Ok::<(), llm_operator::grad_check::CheckError>(())
/// ```
#[derive(Debug, Clone)]
pub struct GradCheck {
    mode: Mode,
    step: Step,
    atol: Option<f64>,
    rtol: Option<f64>,
    progress: Arc<Progress>,
}

impl Default for GradCheck {
    fn default() -> Self {
        Self { mode: Mode::Exhaustive, step: Step::Balanced, atol: None, rtol: None, progress: Arc::default() }
    }
}

impl GradCheck {
    /// A check with balanced steps and the tolerance that suits the element type.
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses this step for every component, as the notebook does; by default noise and truncation are balanced.
    #[must_use]
    pub fn eps(mut self, eps: f64) -> Self {
        self.step = Step::Fixed(eps);
        self
    }

    /// Chooses how the differences are taken.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Accepts this error in each component, in units of the gradient; by default 0.
    #[must_use]
    pub fn atol(mut self, atol: f64) -> Self {
        self.atol = Some(atol);
        self
    }

    /// Accepts this error relative to the component or its row; by default 1e-6 for `f64` and 1e-3 for `f32`.
    #[must_use]
    pub fn rtol(mut self, rtol: f64) -> Self {
        self.rtol = Some(rtol);
        self
    }

    /// Reports how far the check has come, and lets another thread end it.
    #[must_use]
    pub fn progress(mut self, progress: Arc<Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// Checks the operation's own backward at `inputs`, for the upstream gradient `dy`.
    ///
    /// # Errors
    ///
    /// If the arrays do not have the shapes that the operation declares, or if the operation fails or panics.
    pub fn run<T: Element>(
        &self,
        operation: &dyn Operation<T>,
        inputs: &[ArrayD<T>],
        dy: &ArrayD<T>,
    ) -> Result<Report, CheckError> {
        let problem = self.problem(operation, inputs, dy)?;
        let gradients = problem.backward(&problem.inputs, &problem.upstream)?;
        let analytic = gradients.iter().map(|gradient| Some(Given::new(gradient))).collect();
        self.judge_all(&problem, analytic)
    }

    /// Judges gradients that were computed elsewhere, one for each input or `None`, against differences of the operation.
    ///
    /// # Errors
    ///
    /// If the arrays do not have the shapes that the operation declares, or if the operation fails or panics.
    pub fn judge<T: Element>(
        &self,
        operation: &dyn Operation<T>,
        inputs: &[ArrayD<T>],
        dy: &ArrayD<T>,
        gradients: &[Option<Given>],
    ) -> Result<Report, CheckError> {
        let problem = self.problem(operation, inputs, dy)?;
        check_count("gradients", problem.declared.len(), gradients.len())?;
        for (given, input) in gradients.iter().zip(&problem.declared) {
            if let Some(given) = given {
                check_shape(&format!("gradient of {}", input.name), &input.shape, given.gradient.shape())?;
            }
        }
        self.judge_all(&problem, gradients.to_vec())
    }

    fn problem<'a, T: Element>(
        &'a self,
        operation: &'a dyn Operation<T>,
        inputs: &'a [ArrayD<T>],
        dy: &'a ArrayD<T>,
    ) -> Result<Problem<'a, T>, CheckError> {
        let refused =
            |setting, expected, found: f64| CheckError::Setting { setting, expected, found: found.to_string() };
        if let Step::Fixed(eps) = self.step
            && !(eps.is_finite() && eps > 0.0)
        {
            return Err(refused("eps", "a finite number above zero", eps));
        }
        for (setting, value) in [("atol", self.atol), ("rtol", self.rtol)] {
            if let Some(value) = value
                && !(value.is_finite() && value >= 0.0)
            {
                return Err(refused(setting, "a finite number that is zero or more", value));
            }
        }
        Problem::new(operation, inputs, dy, &self.progress)
    }

    fn tolerance<T: Element>(&self) -> Tolerance {
        let default = Tolerance::for_roundoff(T::UNIT_ROUNDOFF);
        Tolerance { atol: self.atol.unwrap_or(default.atol), rtol: self.rtol.unwrap_or(default.rtol) }
    }

    fn judge_all<T: Element>(
        &self,
        problem: &Problem<'_, T>,
        analytic: Vec<Option<Given>>,
    ) -> Result<Report, CheckError> {
        let noise = noise::measure(problem)?;
        let tolerance = self.tolerance::<T>();
        let mut inputs = Vec::new();
        for (k, given) in analytic.into_iter().enumerate() {
            let Some(Given { gradient, unit_roundoff }) = given else { continue };
            // Differences of the same type already ask for a tolerance above the gradient's own rounding.
            let lower = if unit_roundoff > T::UNIT_ROUNDOFF { unit_roundoff } else { 0.0 };
            let judge = Judge::new(tolerance, problem.declared[k].row_len(), lower);
            let analytic: Vec<f64> = gradient.as_standard_layout().iter().copied().collect();
            let measured = components::measure(problem, &noise, k, self.step, &judge, &analytic)?;
            inputs.push(judge_input(problem, k, &judge, analytic, measured));
        }
        Ok(self.report(problem, &noise, tolerance, inputs))
    }

    fn report<T: Element>(
        &self,
        problem: &Problem<'_, T>,
        noise: &Noise,
        tolerance: Tolerance,
        inputs: Vec<InputReport>,
    ) -> Report {
        let greatest = |of: fn(&InputReport) -> f64| inputs.iter().map(of).fold(0.0, nan_max);
        let max_abs_diff = greatest(|input| input.max_abs_diff);
        let max_magnitude = greatest(|input| input.max_magnitude);
        let nothing = if inputs.is_empty() { Verdict::Inconclusive } else { Verdict::Passed };
        Report {
            schema_version: SCHEMA_VERSION,
            operation: problem.name.clone(),
            element: T::NAME,
            mode: self.mode,
            step: self.step,
            max_abs_diff,
            // The notebook's own formula.
            relative_diff: max_abs_diff / (max_magnitude + 1e-22),
            verdict: inputs.iter().map(|input| input.verdict).fold(nothing, Verdict::max),
            reasons: inputs.iter().flat_map(reasons).collect(),
            tolerance,
            kappa: noise.kappa,
            kappa_against_f64: noise.against_f64,
            forwards: problem.forwards(),
            inputs,
        }
    }
}

/// Why an input did not pass, in words.
fn reasons(input: &InputReport) -> Vec<String> {
    let (name, counts) = (&input.name, input.counts);
    let total = input.components.analytic.len();
    let mut reasons = Vec::new();
    let mut say = |count: usize, what: &str| {
        if count > 0 {
            reasons.push(format!("{name}: {count} of {total} components {what}"));
        }
    };
    say(counts.invalid, "are not finite, or their step changed nothing");
    say(counts.wrong, "differ by more than the noise and the tolerance");
    say(counts.inconclusive, "cannot be certified: the noise is above the tolerance, or the loss does not see them");
    if total == 0 {
        reasons.push(format!("{name}: has no elements, so there is nothing to compare"));
    } else if input.blind {
        reasons.push(format!("{name}: the loss does not see it: both gradients vanish within ten floors"));
    } else if !input.blind_rows.is_empty() {
        let rows = input.blind_rows.len();
        reasons.push(format!(
            "{name}: the loss does not see {rows} of its rows, the first is row {}",
            input.blind_rows[0]
        ));
    }
    reasons
}
