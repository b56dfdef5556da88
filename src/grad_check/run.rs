//! The builder of a check, and the order of its parts.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ndarray::ArrayD;

use super::clock::Clock;
use super::error::CheckError;
use super::judge::nan_max;
use super::operation::Operation;
use super::problem::{Problem, check_count, check_shape};
use super::progress::Progress;
use super::report::{Check, InputReport, Report, SCHEMA_VERSION};
use super::session::{Findings, Session};
use super::step::Step;
use super::verdict::{Tolerance, Verdict};
use crate::Element;

/// How the differences are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Mode {
    /// `Local` where rows or columns are declared independent; `Exhaustive` where that is affordable; else
    /// `Directional` and a sample of the components, spread evenly. What stays inconclusive is measured again by
    /// `Line`.
    Auto,
    /// Every component of every input, one at a time: two forwards of the whole input each, and as many again for the
    /// truncation. Any operation.
    Exhaustive,
    /// Every component of inputs whose rows or columns are declared independent, a column of all rows at once, after
    /// that declaration has been verified: two forwards for each column, and as many again for the truncation. Inputs
    /// of which nothing is declared are checked exhaustively.
    Local,
    /// A few random directions of each input: four forwards each, whatever the number of components.
    Directional,
    /// Every component, by the integral of the gradient along a line through it: for low precision, where a difference
    /// quotient is too noisy. Needs the operation's own backward.
    Line,
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Exhaustive => "exhaustive",
            Self::Directional => "directional",
            Self::Line => "line",
            Self::Local => "local",
        })
    }
}

/// What a check may cost; in mode [`Mode::Auto`] it decides how much is looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// Forwards of the whole input.
    Forwards(u64),
    /// Seconds; a forward is timed to tell how many they buy, so the coverage depends on the machine.
    Seconds(f64),
}

/// A gradient that was computed elsewhere, perhaps in a lower precision than the differences.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    gradient: ArrayD<f64>,
    pub(super) unit_roundoff: f64,
}

impl Given {
    /// A gradient of an input's shape; its type's unit roundoff widens the tolerance that it is judged by.
    pub fn new<T: Element>(gradient: &ArrayD<T>) -> Self {
        Self { gradient: gradient.mapv(T::to_f64), unit_roundoff: T::UNIT_ROUNDOFF }
    }

    /// The values in C order.
    pub(super) fn into_values(self) -> Vec<f64> {
        if self.gradient.is_standard_layout() {
            self.gradient.into_raw_vec_and_offset().0
        } else {
            self.gradient.iter().copied().collect()
        }
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
    budget: Option<Budget>,
    repeat: Option<String>,
    timed: bool,
    progress: Arc<Progress>,
}

impl Default for GradCheck {
    fn default() -> Self {
        let (mode, step) = (Mode::Auto, Step::Balanced);
        Self { mode, step, atol: None, rtol: None, budget: None, repeat: None, timed: false, progress: Arc::default() }
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

    /// Limits what the check may cost, roughly; by default every component is looked at where that takes some seconds.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// The line that the report shows to repeat this check: a command, or a seed and how it is used.
    #[must_use]
    pub fn repeat(mut self, line: impl Into<String>) -> Self {
        self.repeat = Some(line.into());
        self
    }

    /// Adds to the report how long the check took, and how that compares with plain forwards; by default the report
    /// depends on nothing but what is checked.
    #[must_use]
    pub fn timed(mut self) -> Self {
        self.timed = true;
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
        T::check(self, operation, inputs, dy, None)
    }

    /// Judges gradients that were computed elsewhere, one for each input or `None`, against differences of the
    /// operation.
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
        T::check(self, operation, inputs, dy, Some(gradients))
    }

    pub(super) fn problem<'a, T: Element>(
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
        given: Option<Vec<Option<Given>>>,
    ) -> Result<Report, CheckError> {
        let own_backward = given.is_none();
        if self.mode == Mode::Line && !own_backward {
            let found = "a gradient from elsewhere".to_owned();
            return Err(CheckError::Setting { setting: "mode line", expected: "the operation's own backward", found });
        }
        let (mode, step, tolerance, budget) = (self.mode, self.step, self.tolerance::<T>(), self.budget);
        let [counted, measuring] = [(); 2].map(|()| AtomicU64::new(0));
        let session = Session { problem, mode, step, tolerance, budget, own_backward, counted, measuring };
        let mut clock = if self.timed { Some(Clock::start(problem)?) } else { None };
        let findings = session.run(given)?;
        if let Some(clock) = &mut clock {
            clock.stop(problem)?;
        }
        let (forwards, measuring) =
            (session.counted.into_inner(), Duration::from_nanos(session.measuring.into_inner()));
        let report = self.report(problem, tolerance, findings);
        Ok(Report { timing: clock.map(|clock| clock.timing(forwards, measuring)), ..report })
    }

    fn report<T: Element>(&self, problem: &Problem<'_, T>, tolerance: Tolerance, findings: Findings) -> Report {
        let Findings { noise, inputs, checks, stopped } = findings;
        let greatest = |of: fn(&InputReport) -> f64| inputs.iter().map(of).fold(0.0, nan_max);
        let max_abs_diff = if inputs.is_empty() { f64::NAN } else { greatest(|input| input.max_abs_diff) };
        let max_magnitude = greatest(|input| input.max_magnitude);
        let nothing = if inputs.is_empty() || stopped { Verdict::Inconclusive } else { Verdict::Passed };
        let forwards = problem.forwards();
        let early = stopped.then(|| format!("stopped after {forwards} forwards: this is what was found until then"));
        let failed = checks.iter().filter(|check| !check.holds).map(|_| Verdict::Wrong);
        Report {
            schema_version: SCHEMA_VERSION,
            operation: problem.name.clone(),
            element: T::NAME,
            mode: self.mode,
            step: self.step,
            max_abs_diff,
            // The notebook's own formula.
            relative_diff: max_abs_diff / (max_magnitude + 1e-22),
            verdict: inputs.iter().map(|input| input.verdict).chain(failed).fold(nothing, Verdict::max),
            stopped,
            reasons: early
                .into_iter()
                .chain(inputs.iter().flat_map(reasons))
                .chain(checks.iter().filter_map(broken))
                .collect(),
            tolerance,
            kappa: noise.kappa,
            kappa_against_f64: noise.against_f64,
            forwards,
            inputs,
            checks,
            repeat: self.repeat.clone(),
            timing: None,
        }
    }
}

/// [`GradCheck::run`] and [`GradCheck::judge`].
pub(super) fn check<T: Element>(
    check: &GradCheck,
    operation: &dyn Operation<T>,
    inputs: &[ArrayD<T>],
    dy: &ArrayD<T>,
    given: Option<&[Option<Given>]>,
) -> Result<Report, CheckError> {
    let problem = check.problem(operation, inputs, dy)?;
    if let Some(gradients) = given {
        check_count("gradients", problem.declared.len(), gradients.len())?;
        for (given, input) in gradients.iter().zip(&problem.declared) {
            if let Some(given) = given {
                check_shape(&format!("gradient of {}", input.name), &input.shape, given.gradient.shape())?;
            }
        }
    }
    check.judge_all(&problem, given.map(<[_]>::to_vec))
}

/// What a broken property says.
fn broken(check: &Check) -> Option<String> {
    (!check.holds).then(|| format!("{}: {}", check.name, check.detail))
}

/// Why an input did not pass, in words.
fn reasons(input: &InputReport) -> Vec<String> {
    let (name, counts) = (&input.name, input.counts);
    let total = input.components.analytic.len();
    let mut reasons = Vec::new();
    for (number, direction) in input.directions.iter().enumerate() {
        if direction.verdict != Verdict::Passed {
            reasons.push(format!("{name}: {} along random direction {number}", direction.verdict));
        }
    }
    let mut say = |count: usize, what: &str| {
        if count > 0 {
            reasons.push(format!("{name}: {count} of {total} components {what}"));
        }
    };
    let power = input.power.iter().flat_map(|power| &power.mutants);
    let survivors: Vec<_> =
        power.filter(|mutant| mutant.required && !mutant.caught).map(|mutant| &mutant.name[..]).collect();
    say(counts.invalid, "are not finite");
    say(counts.wrong, "differ by more than the noise and the tolerance");
    say(input.without_step, "cannot be certified: their step is so small that x + step and x - step are one number");
    say(
        counts.inconclusive - input.without_step,
        "cannot be certified: the noise is above the tolerance, or the loss does not see them",
    );
    if !survivors.is_empty() {
        reasons.push(format!("{name}: the check would not have seen: {}", survivors.join(", ")));
    }
    reasons.extend(input.patterns.iter().map(|pattern| format!("{name}: {pattern}")));
    if input.not_looked_at > 0 && input.directions.is_empty() {
        reasons.push(format!("{name}: {} of {total} components were not looked at", input.not_looked_at));
    }
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
