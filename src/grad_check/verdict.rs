//! The four-way verdict on one component, and what it is judged by.
//!
//! A difference quotient `D` carries rounding noise of deviation `sigma` and a truncation error of about `T`. So `floor
//! = 6 sigma + 2 T` is the least error of the analytic gradient `a` that it can show, and `tolerance` the greatest that
//! is accepted. Where the floor exceeds the tolerance, agreement proves nothing.

use std::fmt;

/// What is known about a component, an input, or a whole run. The worse is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "cli", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Verdict {
    /// The analytic gradient agrees with the numeric one, which was sharp enough to show an error.
    Passed,
    /// The numeric gradient is not sharp enough, its step changed nothing, or the loss does not see the operation:
    /// nothing is certified.
    Inconclusive,
    /// The analytic gradient differs by more than the noise and by more than the tolerance.
    Wrong,
    /// A NaN or an infinity.
    Invalid,
}

impl Verdict {
    /// The exit code of a command with this verdict: passed 0, wrong or invalid 1, inconclusive 3.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Wrong | Self::Invalid => 1,
            Self::Inconclusive => 3,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Passed => "passed",
            Self::Inconclusive => "inconclusive",
            Self::Wrong => "wrong",
            Self::Invalid => "invalid",
        })
    }
}

/// The greatest error that is accepted: `atol + rtol * max(|a|, |D|, rms of the row's D)`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
pub struct Tolerance {
    /// Absolute part, in units of the gradient.
    pub atol: f64,
    /// Relative part.
    pub rtol: f64,
}

impl Tolerance {
    /// No absolute part, and the relative part that suits differences taken in a type of this unit roundoff: 1e-6
    /// for `f64` and 1e-3 for `f32`, which is about ten times the noise of a good central difference, `u^(2/3)`.
    pub(super) fn for_roundoff(unit_roundoff: f64) -> Self {
        Self { atol: 0.0, rtol: if unit_roundoff < 1e-12 { 1e-6 } else { 1e-3 } }
    }

    /// The tolerance of a component whose greatest magnitude is `scale`.
    pub(super) fn at(&self, scale: f64) -> f64 {
        self.atol + self.rtol * scale
    }
}

/// The roundings that a gradient given in a lower precision is granted, in units of its own unit roundoff and of the
/// row's size: a gradient is a sum of a few terms, each of which may be some times greater than their sum.
pub(super) const GRANTED_ROUNDINGS: f64 = 64.0;

/// The roundings that any gradient is granted, in units of its unit roundoff and of what its terms amount to before
/// they cancel, where that is known.
pub(super) const ROUNDINGS_OF_TERMS: f64 = 8.0;

/// The floor of a component whose step changed nothing: no error would show.
pub(super) const NO_STEP: f64 = f64::MAX;

/// One component: the two gradients and how far they may lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Component {
    pub(super) analytic: f64,
    pub(super) numeric: f64,
    pub(super) floor: f64,
    pub(super) tolerance: f64,
    /// What rounding may leave of the analytic gradient where it should be 0; 0 where that is unknown.
    pub(super) rounding: f64,
}

impl Component {
    pub(super) fn difference(&self) -> f64 {
        (self.analytic - self.numeric).abs()
    }

    pub(super) fn verdict(&self) -> Verdict {
        let difference = self.difference();
        if self.is_without_step() {
            Verdict::Inconclusive
        } else if !(difference.is_finite() && self.floor.is_finite()) {
            Verdict::Invalid
        } else if difference > self.least_seen() {
            Verdict::Wrong
        } else if self.floor > self.tolerance || difference > self.tolerance {
            Verdict::Inconclusive
        } else {
            Verdict::Passed
        }
    }

    /// The least difference that is called an error.
    pub(super) fn least_seen(&self) -> f64 {
        self.floor.max(self.tolerance).max(self.rounding)
    }

    /// Whether the step was so small that it changed nothing, of a gradient that is a number.
    pub(super) fn is_without_step(&self) -> bool {
        self.floor == NO_STEP && self.analytic.is_finite()
    }

    /// Whether both gradients vanish within ten floors, or within rounding, so that a wrong one could not be told from
    /// a right one.
    pub(super) fn is_blind(&self) -> bool {
        let least = self.rounding.max(10.0 * self.floor);
        self.analytic.abs() <= least && self.numeric.abs() <= least
    }

    /// The difference in units of what is allowed; greatest for what cannot be compared at all.
    pub(super) fn excess(&self) -> f64 {
        let difference = self.difference();
        if difference == 0.0 {
            0.0
        } else {
            let excess = difference / self.least_seen();
            if excess.is_nan() { f64::INFINITY } else { excess }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(analytic: f64, numeric: f64, floor: f64, tolerance: f64) -> Verdict {
        Component { analytic, numeric, floor, tolerance, rounding: 0.0 }.verdict()
    }

    #[test]
    fn agreement_within_a_sharp_floor_passes() {
        assert_eq!(verdict(1.0, 1.0 + 1e-9, 1e-8, 1e-6), Verdict::Passed);
        assert_eq!(verdict(1.0, 1.0 + 5e-7, 1e-8, 1e-6), Verdict::Passed);
    }

    #[test]
    fn a_difference_beyond_floor_and_tolerance_is_wrong() {
        assert_eq!(verdict(1.0, 1.1, 1e-8, 1e-6), Verdict::Wrong);
        assert_eq!(verdict(1.0, 1.1, 1e-2, 1e-6), Verdict::Wrong);
    }

    #[test]
    fn a_floor_above_the_tolerance_certifies_nothing() {
        assert_eq!(verdict(1.0, 1.0, 1e-2, 1e-6), Verdict::Inconclusive);
        assert_eq!(verdict(1.0, 1.009, 1e-2, 1e-6), Verdict::Inconclusive);
    }

    #[test]
    fn what_rounding_may_leave_is_neither_accused_nor_passed() {
        let component = |analytic| Component { analytic, numeric: 0.0, floor: 0.0, tolerance: 0.0, rounding: 1e-13 };
        assert_eq!(component(5e-14).verdict(), Verdict::Inconclusive);
        assert_eq!(component(2e-13).verdict(), Verdict::Wrong);
        assert!(component(5e-14).is_blind() && !component(2e-13).is_blind());
    }

    #[test]
    fn a_step_that_changed_nothing_certifies_nothing() {
        assert_eq!(verdict(1.0, f64::NAN, NO_STEP, 1e-6), Verdict::Inconclusive);
        assert_eq!(verdict(f64::NAN, f64::NAN, NO_STEP, 1e-6), Verdict::Invalid);
    }

    #[test]
    fn what_is_not_finite_is_invalid_even_where_both_sides_are_nan() {
        for (analytic, numeric, floor) in [
            (f64::NAN, f64::NAN, 1e-8),
            (f64::NAN, 1.0, 1e-8),
            (1.0, f64::NAN, 1e-8),
            (f64::INFINITY, f64::INFINITY, 1e-8),
            (1.0, 1.0, f64::NAN),
        ] {
            assert_eq!(verdict(analytic, numeric, floor, 1e-6), Verdict::Invalid);
        }
    }

    #[test]
    fn exit_codes_tell_wrong_from_undecided() {
        let codes = [Verdict::Passed, Verdict::Wrong, Verdict::Invalid, Verdict::Inconclusive].map(Verdict::exit_code);
        assert_eq!(codes, [0, 1, 1, 3]);
    }
}
