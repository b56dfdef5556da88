//! The difference of the two gradients against the step: noise on the left, truncation on the right, and whatever does
//! not change with the step is an error of the gradient.

use std::fmt;

use ndarray::ArrayD;

use super::components::scales;
use super::error::CheckError;
use super::exhaustive::{Difference, Request, differences, output_noise};
use super::noise;
use super::operation::Operation;
use super::run::GradCheck;
use super::session::spread;
use crate::Element;

/// Components that a sweep looks at.
const COMPONENTS: usize = 16;

/// Steps in a decade.
const PER_DECADE: i32 = 2;

/// How far, in floors, a difference must lie above the best floor to be called an error.
const FLOORS: f64 = 3.0;

/// The difference of the analytic and the numeric gradient of one input over many steps.
///
/// All differences are root mean squares over some components, spread over the input, relative to that of the numeric
/// gradient at the best step.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Sweep {
    /// The operation's name.
    pub operation: String,
    /// The element type: `f32` or `f64`.
    pub element: &'static str,
    /// The input's name.
    pub input: String,
    /// How many of its components were looked at.
    pub components: usize,
    /// One point for each step, in ascending order.
    pub points: Vec<SweepPoint>,
    /// The step with the lowest floor.
    pub best_step: f64,
    /// The noise times the step: noise falls with slope -1.
    pub noise: f64,
    /// The truncation error over the square of the step, which it grows with (slope +2); 0 where it was never above the
    /// noise.
    pub truncation: f64,
    /// What the curve says.
    pub conclusion: Conclusion,
}

/// One step of a sweep.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
pub struct SweepPoint {
    /// The step.
    pub step: f64,
    /// `|analytic - numeric|`.
    pub difference: f64,
    /// The deviation of the rounding noise of the numeric gradient.
    pub noise: f64,
    /// `6 noise + 2 truncation`: the least error that can be seen at this step.
    pub floor: f64,
}

/// What a sweep says about the gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Conclusion {
    /// The difference follows noise and truncation: no error is seen.
    Agrees,
    /// The difference stays above both, whatever the step (slope 0): the gradient is wrong.
    Error,
    /// No step gives finite numbers, or the loss does not see the input.
    Nothing,
}

impl GradCheck {
    /// Takes differences of input `input` over all steps from the spacing of its numbers to its own scale.
    ///
    /// # Errors
    ///
    /// If the arrays do not have the shapes that the operation declares, if there is no such input, or if the operation
    /// fails or panics.
    ///
    /// ```
    /// use llm_operator::grad_check::{Conclusion, Function, GradCheck};
    /// use llm_operator::numpy_random::default_rng;
    /// use ndarray::ArrayD;
    ///
    /// let cube = Function::new("cube", [5], |x: &ArrayD<f64>| x * x * x, |x, dy| 3.0 * x * x * dy);
    /// let mut rng = default_rng(1);
    /// let sweep = GradCheck::new().sweep(&cube, &[rng.random(&[5])], &rng.random(&[5]), 0)?;
    /// assert_eq!(sweep.conclusion, Conclusion::Agrees);
    /// # Ok::<(), llm_operator::grad_check::CheckError>(())
    /// ```
    pub fn sweep<T: Element>(
        &self,
        operation: &dyn Operation<T>,
        inputs: &[ArrayD<T>],
        dy: &ArrayD<T>,
        input: usize,
    ) -> Result<Sweep, CheckError> {
        T::sweep(self, operation, inputs, dy, input)
    }
}

/// [`GradCheck::sweep`].
pub(super) fn sweep<T: Element>(
    check: &GradCheck,
    operation: &dyn Operation<T>,
    inputs: &[ArrayD<T>],
    dy: &ArrayD<T>,
    input: usize,
) -> Result<Sweep, CheckError> {
    let problem = check.problem(operation, inputs, dy)?;
    let Some(declared) = problem.declared.get(input) else {
        let found = format!("input {input} of {}", problem.declared.len());
        return Err(CheckError::Setting { setting: "input", expected: "the number of an input", found });
    };
    let analytic = problem.backward(&problem.inputs, &problem.upstream)?.swap_remove(input);
    let analytic = analytic.as_slice().unwrap_or_default();
    let noise = noise::measure(&problem, false, None)?;
    let elements = spread(analytic.len(), COMPONENTS);
    let steps = steps::<T>(&scales(problem.input(input), declared.row_len()));
    let mut requests = Vec::new();
    for &step in &steps {
        requests.extend(elements.iter().map(|&element| Request { input, element, step, far: false }));
    }
    let noise = output_noise(&problem, &noise, input)?;
    problem.expect_forwards(4 * requests.len() as u64);
    let found = differences(&problem, &noise, &requests)?;
    let analytic: Vec<f64> = elements.iter().map(|&element| analytic[element].to_f64()).collect();
    let curve = found.chunks(elements.len().max(1)).map(|found| Rms::of(found, &analytic)).collect::<Vec<_>>();
    Ok(Sweep {
        operation: problem.name.clone(),
        element: T::NAME,
        input: declared.name.clone(),
        components: elements.len(),
        ..Sweep::from_curve(&steps, &curve)
    })
}

/// Round steps, from a few spacings of the numbers to the scale of a typical row.
fn steps<T: Element>(scales: &[f64]) -> Vec<f64> {
    let mut sorted = scales.to_vec();
    sorted.sort_by(f64::total_cmp);
    let scale = sorted.get(sorted.len() / 2).copied().unwrap_or(1.0);
    let per_decade = f64::from(PER_DECADE);
    let first = ((8.0 * T::UNIT_ROUNDOFF * scale).log10() * per_decade).ceil() as i32;
    let last = (scale.log10() * per_decade).floor() as i32;
    (first..=last).map(|step| 10_f64.powf(f64::from(step) / per_decade)).collect()
}

/// Root mean squares over the components, at one step.
struct Rms {
    difference: f64,
    numeric: f64,
    noise: f64,
    truncation: f64,
}

impl Rms {
    fn of(found: &[Difference], analytic: &[f64]) -> Self {
        let rms = |value: &dyn Fn(usize) -> f64| {
            let squares = (0..found.len()).map(|component| value(component).powi(2)).sum::<f64>();
            (squares / found.len() as f64).sqrt()
        };
        Self {
            difference: rms(&|component| found[component].numeric - analytic[component]),
            numeric: rms(&|component| found[component].numeric),
            noise: rms(&|component| found[component].sigma),
            truncation: rms(&|component| found[component].truncation),
        }
    }

    fn floor(&self) -> f64 {
        6.0 * self.noise + 2.0 * self.truncation
    }
}

impl Sweep {
    fn from_curve(steps: &[f64], curve: &[Rms]) -> Self {
        let finite =
            || steps.iter().zip(curve).filter(|(_, rms)| rms.floor().is_finite() && rms.difference.is_finite());
        let best = finite().min_by(|(_, a), (_, b)| a.floor().total_cmp(&b.floor()));
        let size = best.map_or(1.0, |(_, best)| best.numeric);
        let unit = if size > 0.0 { size } else { 1.0 };
        // The noise times the step hardly changes; the truncation is seen where it stands out from the noise.
        let mut noises: Vec<f64> = finite().map(|(step, rms)| rms.noise * step / unit).collect();
        noises.sort_by(f64::total_cmp);
        let mut truncations: Vec<f64> = finite()
            .filter(|(_, rms)| rms.truncation > 10.0 * rms.noise && rms.truncation < 0.05 * unit)
            .map(|(step, rms)| rms.truncation / (step * step) / unit)
            .collect();
        truncations.sort_by(f64::total_cmp);
        let median = |sorted: &[f64]| sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let conclusion = match best {
            Some((_, best)) if best.difference > FLOORS * best.floor() => Conclusion::Error,
            Some((_, best)) if best.numeric > 10.0 * best.floor() => Conclusion::Agrees,
            _ => Conclusion::Nothing,
        };
        let points = finite().map(|(&step, rms)| SweepPoint {
            step,
            difference: rms.difference / unit,
            noise: rms.noise / unit,
            floor: rms.floor() / unit,
        });
        Self {
            operation: String::new(),
            element: "",
            input: String::new(),
            components: 0,
            points: points.collect(),
            best_step: best.map_or(f64::NAN, |(step, _)| *step),
            noise: median(&noises),
            truncation: median(&truncations),
            conclusion,
        }
    }

    /// The difference at the step with the lowest floor, and that floor.
    pub(super) fn best(&self) -> Option<SweepPoint> {
        self.points.iter().find(|point| point.step == self.best_step).copied()
    }

    /// What the curve says, in a sentence.
    pub fn in_words(&self) -> String {
        let Some(best) = self.best() else {
            return "no step gives finite numbers".to_owned();
        };
        let SweepPoint { step, difference, floor, .. } = best;
        match self.conclusion {
            Conclusion::Nothing => {
                "both gradients vanish within the noise: the loss does not see this input".to_owned()
            }
            Conclusion::Error => format!(
                "the difference stays at {difference:.1e} whatever the step (slope 0), {:.1e} times what noise and \
                 truncation explain: an error of the gradient",
                difference / floor
            ),
            Conclusion::Agrees if self.truncation == 0.0 => format!(
                "the difference falls with the step (slope -1): noise alone, down to {difference:.1e} at {step:.0e}; \
                 no error is seen"
            ),
            Conclusion::Agrees => format!(
                "the difference falls (slope -1, noise), turns at about {step:.0e} and rises (slope +2, truncation): \
                 no error above {floor:.0e} is seen"
            ),
        }
    }
}

impl fmt::Display for Sweep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, element, input, components, .. } = self;
        writeln!(
            formatter,
            "{operation} in {element}: {input}, {components} components, relative to the gradient's rms"
        )?;
        writeln!(formatter, "{}", self.in_words())?;
        writeln!(formatter, "{:>9}  {:>10}  {:>10}  {:>10}", "step", "difference", "noise", "floor")?;
        for SweepPoint { step, difference, noise, floor } in &self.points {
            let best = if *step == self.best_step { "  <- best" } else { "" };
            writeln!(formatter, "{step:>9.1e}  {difference:>10.2e}  {noise:>10.2e}  {floor:>10.2e}{best}")?;
        }
        Ok(())
    }
}
