//! What a check found, as plain data.

use ndarray::ArrayD;

use super::Mode;
use super::error::Stage;
use super::judge::Judge;
use super::operation::Locality;
use super::power::Power;
use super::step::Step;
use super::verdict::{Tolerance, Verdict};

/// The version of [`Report`]'s fields; it grows when one changes its meaning or goes.
pub const SCHEMA_VERSION: u32 = 1;

/// What a check found.
///
/// Its text form starts with the two lines of the notebook, then the verdict. No field but [`timing`](Self::timing),
/// which must be asked for, depends on time or on the number of threads: the same check gives the same report, bit for
/// bit.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The operation's name.
    pub operation: String,
    /// The element type: `f32` or `f64`.
    pub element: &'static str,
    /// How the differences were taken.
    pub mode: Mode,
    /// How their step was chosen.
    pub step: Step,
    /// The greatest `|analytic - numeric|` over all components of all inputs.
    pub max_abs_diff: f64,
    /// [`max_abs_diff`](Self::max_abs_diff) over the greatest `|analytic| + |numeric|`, plus 1e-22. A headline, never
    /// the verdict.
    pub relative_diff: f64,
    /// The worst of what follows.
    pub verdict: Verdict,
    /// Whether the check was asked to end before it had come to its end ([`Progress::stop`](super::Progress::stop)).
    pub stopped: bool,
    /// Why the verdict is not `Passed`, in words.
    pub reasons: Vec<String>,
    /// What was accepted.
    pub tolerance: Tolerance,
    /// The measured error of the forward, in units of the unit roundoff and of the output (rms).
    pub kappa: f64,
    /// Whether `kappa` was measured against the operation in `f64`; otherwise by differences of the forward itself.
    pub kappa_against_f64: bool,
    /// What the check cost, in forwards of the whole input.
    pub forwards: u64,
    /// One entry for each input that was judged.
    pub inputs: Vec<InputReport>,
    /// What was checked exactly, without differences.
    pub checks: Vec<Check>,
    /// A line that repeats the check, if whoever ran it gave one.
    pub repeat: Option<String>,
    /// How long it took, where that was asked for ([`GradCheck::timed`](super::GradCheck::timed)).
    #[cfg_attr(feature = "cli", serde(skip_serializing_if = "Option::is_none"))]
    pub timing: Option<Timing>,
}

/// How long a check took, and what plain forwards of the whole input take on the same threads, measured in the same
/// run.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Timing {
    /// Seconds of the whole check.
    pub seconds: f64,
    /// Seconds of what the mode is made of: the differences of all inputs, with pilots and second looks, and the
    /// verification of independence. The rest is exact checks, the noise, and judging.
    pub measuring_seconds: f64,
    /// Seconds of one forward of the whole input: the median of some before and some after the check.
    pub forward_seconds: f64,
    /// Forwards, and backwards, that the mode takes by definition. For `R` rows of `C` columns in mode `local`: `4 C`
    /// for the differences and their truncation, 4 for each parameter, and to verify the independence of the rows `2 n`, where `n` is
    /// the least number of which half, rounded down, can be chosen in at least `R` ways: 26 for 1024 rows, 30 for 4096, 46 for
    /// a million. Pilots, second looks, and what verifies the independence of columns are not among them.
    pub forwards: u64,
    /// The seconds of measuring over those of so many forwards.
    pub ratio: f64,
}

/// A property that holds exactly or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Check {
    /// Its name.
    pub name: String,
    /// Whether it holds.
    pub holds: bool,
    /// What was seen.
    pub detail: String,
}

impl Check {
    pub(super) fn passed(name: &str, detail: String) -> Self {
        Self { name: name.to_owned(), holds: true, detail }
    }

    pub(super) fn failed(name: &str, detail: String) -> Self {
        Self { name: name.to_owned(), holds: false, detail }
    }
}

/// What was found about one input.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
#[non_exhaustive]
pub struct InputReport {
    /// The input's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What the operation declares about it.
    pub locality: Locality,
    /// The worst verdict on a component, or inconclusive where the loss does not see the input.
    pub verdict: Verdict,
    /// How many components have each verdict.
    pub counts: Counts,
    /// The greatest `|analytic - numeric|`.
    pub max_abs_diff: f64,
    /// The greatest `|analytic| + |numeric|`.
    pub max_magnitude: f64,
    /// The worst component; none of an input without elements.
    pub worst: Option<Worst>,
    /// How many components were not looked at one by one, but along [`directions`](Self::directions) alone.
    pub not_looked_at: usize,
    /// How many components had a step so small that it changed nothing.
    pub without_step: usize,
    /// The slopes along random directions of the whole input; none where every component was looked at.
    pub directions: Vec<Direction>,
    /// What the wrong components have in common, in words.
    pub patterns: Vec<String>,
    /// What the check would have caught; of an input that passed.
    pub power: Option<Power>,
    /// Rows on which both gradients vanish within ten floors, so that a wrong one would not be seen.
    pub blind_rows: Vec<usize>,
    /// Whether the whole input is such a row.
    pub blind: bool,
    /// Every component.
    #[cfg_attr(feature = "cli", serde(skip))]
    pub components: Components,
    /// What each component was judged by.
    #[cfg_attr(feature = "cli", serde(skip))]
    pub(super) judge: Judge,
}

impl InputReport {
    /// Components in a row, which are judged by one scale.
    #[cfg(feature = "cli")]
    pub(super) fn row_len(&self) -> usize {
        self.judge.row_len()
    }
}

/// The gradients of one input, each of the input's shape.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Components {
    /// The gradient under test.
    pub analytic: ArrayD<f64>,
    /// The difference quotients.
    pub numeric: ArrayD<f64>,
    /// The least error that each difference quotient can show.
    pub floor: ArrayD<f64>,
}

/// How many components have each verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
#[expect(missing_docs, reason = "the names are those of the verdicts")]
pub struct Counts {
    pub passed: usize,
    pub inconclusive: usize,
    pub wrong: usize,
    pub invalid: usize,
}

impl Counts {
    pub(super) fn add(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Inconclusive => self.inconclusive += 1,
            Verdict::Wrong => self.wrong += 1,
            Verdict::Invalid => self.invalid += 1,
        }
    }

    /// The worst verdict that any component has.
    pub(super) fn worst(&self) -> Verdict {
        match self {
            Self { invalid: 1.., .. } => Verdict::Invalid,
            Self { wrong: 1.., .. } => Verdict::Wrong,
            Self { inconclusive: 1.., .. } => Verdict::Inconclusive,
            _ => Verdict::Passed,
        }
    }
}

/// The slope of the loss along a random direction of a whole input, in units of the scales of its rows.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
pub struct Direction {
    /// The product of the gradient under test and the direction.
    pub analytic: f64,
    /// The difference quotient.
    pub numeric: f64,
    /// The least error that the difference quotient can show.
    pub floor: f64,
    /// The greatest error that is accepted.
    pub tolerance: f64,
    /// As of a component.
    pub verdict: Verdict,
}

impl Direction {
    pub(super) fn is_blind(&self) -> bool {
        self.analytic.abs().max(self.numeric.abs()) <= 10.0 * self.floor
    }
}

/// The component of an input with the worst verdict and, among those, the greatest difference for what is allowed.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
pub struct Worst {
    /// Its index in the input.
    pub index: Vec<usize>,
    /// Its verdict.
    pub verdict: Verdict,
    /// Where a component that is invalid, or that had no step, went wrong.
    pub stage: Option<Stage>,
    /// The input's value there.
    pub x: f64,
    /// The gradient under test.
    pub analytic: f64,
    /// The difference quotient.
    pub numeric: f64,
    /// `6 sigma + 2 T`: the least error that the difference quotient can show.
    pub floor: f64,
    /// The greatest error that is accepted.
    pub tolerance: f64,
    /// What rounding may leave of the gradient under test where it should be 0; 0 where the operation does not say.
    pub rounding: f64,
    /// `|analytic - numeric| / floor`.
    pub floors: f64,
    /// The step of the difference quotient.
    pub step: f64,
}
