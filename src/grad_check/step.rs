//! The step of a difference: given, or balanced between noise and truncation.

use super::exhaustive::Difference;
use crate::Element;

/// How the step is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Step {
    /// This step for every component: the notebook's `eps`.
    Fixed(f64),
    /// For each component `cbrt(3 sigma h / M3)`, where `sigma h` is the noise of the loss and `M3` the third
    /// derivative that a pilot pair of differences shows; rounded to a power of two, so that adding it is exact. A
    /// longer one where the noise would be above the tolerance.
    Balanced,
}

/// The share of a row's scale up to which two steps tell the truncation: out there the fourth power of the step is below a
/// sixtieth of its square, in the units in which the derivatives of a row are alike.
pub(super) const NEAR: f64 = 0.125;

/// The truncation error of `D(h)`, from it and from `D(2h)`; beyond [`NEAR`] from `D(4h)` too.
///
/// With `D(h) = a + p + q`, where `p` goes with `h^2` and `q` with `h^4`, `D(2h) - D(h) = 3 p + 15 q`. Of a small step
/// that is `3 p`. Of a large one it vanishes by chance where `q = -p / 5`, though the error is `4 p / 5` then; and
/// of several steps the one whose floor is least is taken, which finds such chances. A second difference, `D(4h) - D(2h) =
/// 12 p + 240 q`, tells the two apart, and each is counted by its size.
pub(super) fn truncation(narrow: f64, wide: f64, widest: Option<f64>) -> f64 {
    let first = wide - narrow;
    let alone = first.abs() / 3.0;
    let Some(widest) = widest else { return alone };
    let fourth = (widest - wide - 4.0 * first) / 180.0;
    let square = first / 3.0 - 5.0 * fourth;
    // What is not a number stays visible.
    let both = square.abs() + fourth.abs();
    if both < alone { alone } else { both }
}

/// The nearest power of two, on the scale of logarithms.
pub(super) fn nearest_power_of_two(value: f64) -> f64 {
    value.log2().round().clamp(-1000.0, 1000.0).exp2()
}

/// The step at which `3 T = 3/2 sigma`, where the error of a central difference is least, from what was found at
/// `step`.
///
/// A truncation below the noise cannot be told from noise: it counts as noise, so a step grows by no more than a
/// factor.
pub(super) fn balanced(step: f64, sigma: f64, truncation: f64) -> f64 {
    let third_derivative = 6.0 * truncation.max(sigma) / (step * step);
    (3.0 * sigma * step / third_derivative).cbrt()
}

/// The step for another look at a difference that was not sharp enough: where truncation cannot be seen, a larger one,
/// since noise falls with it, `growth` times as long, as far as a row reaches.
pub(super) fn sharper(step: f64, sigma: f64, truncation: f64, growth: f64, reach: Reach) -> f64 {
    let unseen = growth * step;
    let sharper =
        nearest_power_of_two(if truncation > 2.0 * sigma { balanced(step, sigma, truncation) } else { unseen });
    sharper.min(reach.farthest)
}

/// By how much a step grows whose noise is above the tolerance: to what brings it to `floor`, a power of two.
pub(super) fn growth(sigma: f64, floor: f64) -> f64 {
    (6.0 * sigma / floor).log2().ceil().exp2().clamp(2.0, MOST_GROWTH)
}

/// By how much a step grows at once, at most.
pub(super) const MOST_GROWTH: f64 = 8.0;

/// A step that is long enough for the noise of a difference to stay below `floor`, or as far as two quotients tell the
/// truncation; `step` where that is so already, or where truncation was seen.
///
/// No longer: what a few columns show of a row says little about the others, whose truncation may vanish at long steps by
/// chance. One that is still too noisy is looked at again by itself.
pub(super) fn quieter(step: f64, found: &[Difference], floor: f64, reach: Reach) -> f64 {
    let noise = |found: &Difference| 6.0 * found.sigma * found.step;
    let noise = found.iter().map(noise).fold(0.0, f64::max);
    let is_seen = |found: &Difference| found.truncation > 2.0 * found.sigma;
    let mut quieter = step;
    while noise > floor * quieter && quieter < MOST_GROWTH * step && !reach.is_far(2.0 * quieter) {
        quieter *= 2.0;
    }
    if found.iter().any(is_seen) { step } else { quieter }
}

/// How far an element of a row may be moved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    near: f64,
    farthest: f64,
}

impl Reach {
    /// Of a row of `len` elements that vary by `scale`.
    ///
    /// Moved by `h`, an element adds `h / len` to the mean and `h^2 (len - 1) / len^2` to the variance, so that a function
    /// of the row's normalized values has a power series in `h` up to `scale len / sqrt(len - 1)`, where the variance
    /// vanishes in the complex plane. Differences tell their truncation well within that: at a sixth of `scale sqrt(len)`
    /// its estimate from three quotients was too low by the factor of 2 that a floor grants in none of 42,000 random
    /// rows of LayerNorm of 2 to 32 elements, at a fourth in four, and beyond a half in one of ten.
    pub(super) fn of_row(scale: f64, len: usize) -> Self {
        let farthest = (scale * (len as f64).sqrt() / 6.0).log2().floor().clamp(-1000.0, 1000.0).exp2();
        Self { near: NEAR * scale, farthest }
    }

    /// Whether the truncation of a step needs a third quotient.
    pub(super) fn is_far(&self, step: f64) -> bool {
        step > self.near
    }
}

/// A row whose deviation is below this many roundings is constant but for them: no step would fit between its values.
const SPACINGS: f64 = 256.0;

/// The length over which a row's values vary: their deviation; of a constant row their size, and of zeros 1.
pub(super) fn row_scale<T: Element>(row: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = row.clone().count().max(1) as f64;
    let mean = row.clone().sum::<f64>() / count;
    let deviation = (row.clone().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt();
    let size = row.fold(0.0, |size: f64, value| size.max(value.abs()));
    let scale = if deviation > SPACINGS * T::UNIT_ROUNDOFF * size { deviation } else { size };
    if scale.is_normal() { scale } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_balanced_step_minimizes_noise_plus_truncation() {
        // Noise of 1e-16 in the loss, third derivative 2: error(h) = 1e-16 / (sqrt(2) h) + 2 h^2 / 6.
        let (noise, third) = (1e-16 / f64::sqrt(2.0), 2.0);
        let error = |step: f64| noise / step + third * step * step / 6.0;
        let pilot = 1e-4;
        let step = balanced(pilot, noise / pilot, third * pilot * pilot / 6.0);
        assert!((0.9..1.1).contains(&(error(step) / error(0.9 * step))) && error(step) < 1.001 * error(1.1 * step));
        assert!(error(step) < error(0.5 * step) && error(step) < error(2.0 * step));
    }

    #[test]
    fn a_step_that_is_not_sharp_enough_grows_as_far_as_its_row_reaches() {
        let (short, long) = (Reach::of_row(1.0, 4), Reach::of_row(1.0, 1024));
        assert_eq!(sharper(0.0625, 1e-6, 0.0, 8.0, short), 0.25);
        assert_eq!(sharper(0.0625, 1e-6, 0.0, 8.0, long), 0.5);
        assert_eq!(sharper(0.5, 1e-6, 0.0, 8.0, long), 4.0);
        assert!(long.is_far(0.25) && !long.is_far(0.125));
    }

    #[test]
    fn a_step_grows_by_no_more_than_its_noise_asks_for() {
        for (sigma, expected) in [(1e-9, 2.0), (1.1, 2.0), (2.0, 2.0), (2.1, 4.0), (4.1, 8.0), (f64::INFINITY, 8.0)] {
            assert_eq!(growth(sigma / 6.0, 1.0), expected, "{sigma}");
        }
        assert_eq!(growth(1.0, 0.0), 8.0);
    }

    #[test]
    fn a_step_is_longer_where_its_noise_would_be_above_the_tolerance() {
        let step = 2.0_f64.powi(-7);
        let found = |truncation: f64| Difference { numeric: 1.0, sigma: 1e-3, truncation, step };
        let from_unseen = |floor: f64, reach: Reach| quieter(step, &[found(0.0), found(1e-4)], floor, reach) / step;
        let reach = Reach::of_row(1.0, 1024);
        assert_eq!(from_unseen(7e-3, reach), 1.0);
        assert_eq!(from_unseen(5e-3, reach), 2.0);
        assert_eq!(from_unseen(2e-3, reach), 4.0);
        // No longer than eight times as long, than two quotients suffice for, and than truncation lets it.
        assert_eq!(from_unseen(1e-9, reach), 8.0);
        assert_eq!(from_unseen(1e-9, Reach::of_row(0.25, 1024)), 4.0);
        assert_eq!(quieter(step, &[found(0.0), found(3e-3)], 1e-9, reach), step);
        assert_eq!(quieter(step, &[], 1e-9, reach), step);
    }

    #[test]
    fn a_truncation_that_vanishes_by_chance_is_seen_from_a_third_step() {
        let (a, p, q) = (7.0, -5.0, 1.0);
        let quotient = |h: f64| a + p * h.powi(2) + q * h.powi(4);
        let (narrow, wide, widest) = (quotient(1.0), quotient(2.0), quotient(4.0));
        assert_eq!(truncation(narrow, wide, None), 0.0);
        assert!((truncation(narrow, wide, Some(widest)) - 6.0).abs() < 1e-12);
        assert!(truncation(narrow, wide, Some(f64::NAN)).is_nan());
        // Where the square is all there is, a third step changes nothing.
        assert_eq!(truncation(1.0, 4.0, Some(16.0)), truncation(1.0, 4.0, None));
    }

    #[test]
    fn without_visible_truncation_the_step_grows_by_a_bounded_factor() {
        assert!((0.7..0.9).contains(&balanced(1.0, 1e-9, 0.0)));
    }

    #[test]
    fn a_row_is_measured_by_its_deviation_and_a_constant_row_by_its_size() {
        assert_eq!(row_scale::<f64>([49.0, 51.0].into_iter()), 1.0);
        assert_eq!(row_scale::<f64>([3.0, 3.0].into_iter()), 3.0);
        assert_eq!(row_scale::<f64>([0.0, 0.0].into_iter()), 1.0);
    }
}
