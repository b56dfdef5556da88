//! Rows that need more care than speed: in scalar [`Wide`] arithmetic, with at least twice the digits.
//!
//! - Rows narrower than [`NARROW`]. There the terms of `dx` cancel: of width 2, all that is left of
//!   `g - mean(g) - xhat * mean(g * xhat)` is `epsilon / (var + epsilon)` of it. Ordinary ones go eight at a time
//!   ([`narrow`](super::narrow)): what is here defines their bits.
//! - Rows whose squares overflow or vanish although the answer is representable, and in backward rows with a `dy gamma` near
//!   the end of the range. The row is scaled by powers of two
//!   that bring its largest magnitude, and its spread (or `sqrt(epsilon)`, where that is larger), to about 1. That is
//!   exact, and LayerNorm of a scaled row is LayerNorm of the row: `y(s x, s^2 epsilon) = y(x, epsilon)`, and `dx` and
//!   `rstd` take the factor `1 / s`. An ordinary row pays one test on its variance ([`is_ordinary`]) for that.

use super::wide::{self, Wide, power_of_two, scaled};
use crate::Element;

/// Elements from which a row has so many directions that the terms of its `dx` do not all but cancel.
pub(super) const NARROW: usize = 16;

/// The variances for which single-precision squares neither overflowed nor lost bits to
/// underflow: each square is off by 2^-150 at most, 2^-50 of the smallest sum.
const ORDINARY_F32: (f64, f64) = (power_of_two(-100), power_of_two(126));
/// The same in double precision.
const ORDINARY_F64: (f64, f64) = (power_of_two(-900), power_of_two(1000));

/// Whether the variance, with and without `epsilon`, says that a row was computed without overflow and underflow. NaN says
/// no, and so does 0: a row so near constant is looked at again.
#[inline(always)]
pub(super) fn is_ordinary<T: Element>(variance: f64, variance_and_epsilon: f64) -> bool {
    let (least, most) = if T::HAS_WIDE_RANGE { ORDINARY_F64 } else { ORDINARY_F32 };
    variance >= least && variance_and_epsilon <= most
}

/// Whether all elements of a row are the same number: then no difference lost bits to underflow.
pub(super) fn is_constant<T: Element>(x: &[T]) -> bool {
    x.iter().all(|value| *value == x[0] && value.to_f64().is_finite())
}

/// Whether the gradients of a row are not all 0, but so small that products of them with `x - mean` lose bits to underflow: none
/// reaches 2^-80 in `f32`, 2^-500 in `f64`. In a row whose [`rstd` is ordinary](is_ordinary_rstd) a product is off by
/// 2^-150 at most in `f32`, in units of `g * xhat` 2^-110, and by 2^-1075 in `f64`, which is 2^-625.
pub(super) fn is_tiny<T: Element>(dy: &[T], gamma: Option<&[T]>) -> bool {
    let least = power_of_two(if T::HAS_WIDE_RANGE { -500 } else { -80 });
    let g = |j: usize| (dy[j].to_f64() * gamma.map_or(1.0, |gamma| gamma[j].to_f64())).abs();
    let largest = (0..dy.len()).map(g).fold(0.0, f64::max);
    largest < least && dy.iter().any(|dy| *dy != T::ZERO)
}

/// Whether the `rstd` that a forward pass saved says that `x - mean` as a whole is not so small that its products lose bits that
/// count, nor so large that it overflows itself. Where its products overflow their sum shows it.
#[inline(always)]
pub(super) fn is_ordinary_rstd<T: Element>(rstd: T) -> bool {
    let (least, most) =
        if T::HAS_WIDE_RANGE { (power_of_two(-500), power_of_two(450)) } else { (power_of_two(-63), power_of_two(40)) };
    rstd.to_f64() >= least && rstd.to_f64() <= most
}

/// The power of two by which values are taken smaller, so that sums and squares of them stay in range; `None` where one
/// of them is infinite or NaN. The squares of `f32` are in the range of `f64` as they are.
#[inline(always)]
fn range<T: Element>(values: &[T]) -> Option<i32> {
    let mut largest = 0.0_f64;
    let mut finite = true;
    for value in values {
        let magnitude = value.to_f64().abs();
        finite &= magnitude < f64::INFINITY;
        largest = largest.max(magnitude);
    }
    finite.then(|| if T::HAS_WIDE_RANGE { wide::exponent(largest) } else { 0 })
}

/// A row of x with its statistics.
///
/// Two powers of two keep all that is computed in range: one is near the largest `|x|`, the other near the largest
/// `|x - mean|`, or `sqrt(epsilon)` where that is larger.
#[derive(Clone, Copy, Debug)]
pub(super) struct CarefulRow<'a, T: Element> {
    x: &'a [T],
    /// x is taken times 2^-exponent.
    exponent: i32,
    /// The mean of x so taken.
    mean: T::Wide,
    /// `x - mean` is taken times 2^-spread.
    spread: i32,
    /// `rstd` of the row so taken; 0 where the variance and `epsilon` both are.
    rstd: T::Wide,
    /// `epsilon` so taken, times the square of that.
    epsilon_share: T::Wide,
}

impl<'a, T: Element> CarefulRow<'a, T> {
    /// The statistics of a row; `None` where it holds a NaN or an infinity.
    #[inline(always)]
    pub(super) fn new(x: &'a [T], epsilon: f64) -> Option<Self> {
        let zero = T::Wide::new(0.0);
        let exponent = range(x)?;
        let mut row = Self { x, exponent, mean: zero, spread: exponent, rstd: zero, epsilon_share: zero };
        let width = x.len() as f64;
        for column in 0..x.len() {
            row.mean = row.mean + row.scaled_x(column);
        }
        row.mean = row.mean.divided(width);
        if T::HAS_WIDE_RANGE {
            let mut largest = 0.0_f64;
            for column in 0..x.len() {
                largest = largest.max((row.scaled_x(column) - row.mean).value().abs());
            }
            // Of a constant row `epsilon` alone counts.
            let of_epsilon = wide::exponent(epsilon.sqrt());
            row.spread = match (largest > 0.0, epsilon > 0.0) {
                (true, true) => (wide::exponent(largest) + exponent).max(of_epsilon),
                (true, false) => wide::exponent(largest) + exponent,
                (false, _) => of_epsilon,
            };
        }
        let mut squares = zero;
        for column in 0..x.len() {
            let d = row.centred(column);
            squares = squares + d * d;
        }
        let epsilon = T::Wide::new(scaled(epsilon, -2 * row.spread));
        let denominator = squares.divided(width) + epsilon;
        if denominator.value() > 0.0 {
            row.rstd = denominator.reciprocal_sqrt();
            row.epsilon_share = epsilon * row.rstd * row.rstd;
        }
        Some(row)
    }

    #[inline(always)]
    fn scaled_x(&self, column: usize) -> T::Wide {
        T::Wide::new(scaled(self.x[column].to_f64(), -self.exponent))
    }

    /// `x - mean`, scaled.
    #[inline(always)]
    fn centred(&self, column: usize) -> T::Wide {
        (self.scaled_x(column) - self.mean).scaled(self.exponent - self.spread)
    }

    /// The mean, rounded once.
    #[inline(always)]
    pub(super) fn mean(&self) -> T {
        T::from_f64(scaled(self.mean.value(), self.exponent))
    }

    /// `rstd`: it may be too large or too small for the type. Infinite for a constant row without `epsilon`.
    #[inline(always)]
    pub(super) fn rstd(&self) -> T {
        let rstd = self.rstd.value();
        T::from_f64(if rstd == 0.0 { f64::INFINITY } else { scaled(rstd, -self.spread) })
    }

    /// The normalized value of one element: 0 in a constant row, whatever `epsilon`.
    #[inline(always)]
    pub(super) fn xhat(&self, column: usize) -> T::Wide {
        self.centred(column) * self.rstd
    }

    /// The row's output.
    #[inline(always)]
    pub(super) fn normalize(&self, gamma: Option<&[T]>, beta: Option<&[T]>, y: &mut [T]) {
        for (column, y) in y.iter_mut().enumerate() {
            let mut value = self.xhat(column);
            if let Some(gamma) = gamma {
                value = value * T::Wide::new(gamma[column].to_f64());
            }
            if let Some(beta) = beta {
                value = value + T::Wide::new(beta[column].to_f64());
            }
            *y = T::from_f64(value.value());
        }
    }

    /// The row's dx; `None` where dy (or gamma) holds a NaN or an infinity.
    #[inline(always)]
    pub(super) fn dx(&self, dy: &'a [T], gamma: Option<&'a [T]>) -> Option<CarefulDx<'a, T>> {
        let dy_exponent = range(dy)?;
        let gamma_exponent = gamma.map_or(Some(0), range)?;
        let zero = T::Wide::new(0.0);
        let mut found =
            CarefulDx { row: *self, dy, gamma, dy_exponent, gamma_exponent, mean_g: zero, mean_product: zero };
        let (mut sum, mut product) = (zero, zero);
        for column in 0..dy.len() {
            let g = found.g(column);
            sum = sum + g;
            product = product + g * self.xhat(column);
        }
        found.mean_g = sum.divided(dy.len() as f64);
        found.mean_product = product.divided(dy.len() as f64);
        Some(found)
    }
}

/// The dx of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct CarefulDx<'a, T: Element> {
    row: CarefulRow<'a, T>,
    dy: &'a [T],
    gamma: Option<&'a [T]>,
    dy_exponent: i32,
    gamma_exponent: i32,
    mean_g: T::Wide,
    mean_product: T::Wide,
}

impl<T: Element> CarefulDx<'_, T> {
    #[inline(always)]
    fn g(&self, column: usize) -> T::Wide {
        let dy = T::Wide::new(scaled(self.dy[column].to_f64(), -self.dy_exponent));
        match self.gamma {
            Some(gamma) => dy * T::Wide::new(scaled(gamma[column].to_f64(), -self.gamma_exponent)),
            None => dy,
        }
    }

    /// One element.
    #[inline(always)]
    pub(super) fn value(&self, column: usize) -> T {
        let centred = if self.dy.len() == 2 {
            // `xhat` is the same number twice, once negative, and `1 - mean(xhat^2) = epsilon * rstd^2`: what is left of
            // the other terms is known without the digits that they cancel.
            (self.g(column) - self.mean_g) * self.row.epsilon_share
        } else {
            self.g(column) - self.mean_g - self.row.xhat(column) * self.mean_product
        };
        let exponent = self.dy_exponent + self.gamma_exponent - self.row.spread;
        T::from_f64(scaled((centred * self.row.rstd).value(), exponent))
    }
}
