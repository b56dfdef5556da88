//! The four-way verdict on one component, and what it is judged by.
//!
//! A difference quotient `D` carries rounding noise of deviation `sigma` and a truncation error of about `T`. So
//! `floor = 6 sigma + 2 T` is the least error of the analytic gradient `a` that it can show, and `tolerance` the greatest
//! that is accepted. Where the floor exceeds the tolerance, agreement proves nothing.

use std::fmt;

/// What is known about a component, an input, or a whole run. The worse is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "cli", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Verdict {
    /// The analytic gradient agrees with the numeric one, which was sharp enough to show an error.
    Passed,
    /// The numeric gradient is not sharp enough, or the loss does not see the operation: nothing is certified.
    Inconclusive,
    /// The analytic gradient differs by more than the noise and by more than the tolerance.
    Wrong,
    /// A NaN, an infinity, or a step that changed nothing.
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

/// The same for each time that the values of a row are larger than they vary: in a lower precision their mean was rounded
/// as they are, and differences from it are no better.
pub(super) const GRANTED_ROUNDINGS_FAR: f64 = 16.0;

/// One component: the two gradients and how far they may lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Component {
    pub(super) analytic: f64,
    pub(super) numeric: f64,
    pub(super) floor: f64,
    pub(super) tolerance: f64,
}

impl Component {
    pub(super) fn difference(&self) -> f64 {
        (self.analytic - self.numeric).abs()
    }

    pub(super) fn verdict(&self) -> Verdict {
        let difference = self.difference();
        if !(difference.is_finite() && self.floor.is_finite()) {
            Verdict::Invalid
        } else if difference > self.floor && difference > self.tolerance {
            Verdict::Wrong
        } else if self.floor > self.tolerance {
            Verdict::Inconclusive
        } else {
            Verdict::Passed
        }
    }

    /// Whether both gradients vanish within ten floors, so that a wrong one could not be told from a right one.
    pub(super) fn is_blind(&self) -> bool {
        self.analytic.abs() <= 10.0 * self.floor && self.numeric.abs() <= 10.0 * self.floor
    }

    /// The difference in units of what is allowed; greatest for what cannot be compared at all.
    pub(super) fn excess(&self) -> f64 {
        let difference = self.difference();
        if difference == 0.0 {
            0.0
        } else {
            let excess = difference / self.floor.max(self.tolerance);
            if excess.is_nan() { f64::INFINITY } else { excess }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(analytic: f64, numeric: f64, floor: f64, tolerance: f64) -> Verdict {
        Component { analytic, numeric, floor, tolerance }.verdict()
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
