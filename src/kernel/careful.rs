//! Rows that need more care than speed: in scalar [`Wide`] arithmetic, with at least twice the digits.
//!
//! - Rows narrower than [`NARROW`]. There the terms of `dx` cancel: of width 2, all that is left of
//!   `g - mean(g) - xhat * mean(g * xhat)` is `epsilon / (var + epsilon)` of it.
//! - Rows whose squares overflow or vanish although the answer is representable. The row is scaled by a power of two
//!   that brings its largest magnitude (or `sqrt(epsilon)`, where that is larger) to about 1. Scaling by a power of two is
//!   exact, and LayerNorm of a scaled row is LayerNorm of the row: `y(s x, s^2 epsilon) = y(x, epsilon)`, and `dx` and
//!   `rstd` take the factor `1 / s`. An ordinary row pays one test on its variance ([`is_ordinary`]) for that.

use super::wide::Wide;
use crate::Element;

/// Elements from which a row has so many directions that the terms of its `dx` do not all but cancel.
pub(super) const NARROW: usize = 16;

/// The values of `var + epsilon` for which single-precision squares neither overflowed nor lost bits to
/// underflow: each square is off by 2^-150 at most, 2^-50 of the smallest sum.
const ORDINARY_F32: (f64, f64) = (power_of_two(-100), power_of_two(126));
/// The same in double precision.
const ORDINARY_F64: (f64, f64) = (power_of_two(-900), power_of_two(1000));

const fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// Whether `var + epsilon` says that a row was computed without overflow and underflow. NaN says no.
#[inline(always)]
pub(super) fn is_ordinary<T: Element>(variance_and_epsilon: f64) -> bool {
    let (least, most) = if T::HAS_WIDE_RANGE { ORDINARY_F64 } else { ORDINARY_F32 };
    variance_and_epsilon >= least && variance_and_epsilon <= most
}

/// The same of the `rstd` that a forward pass saved.
#[inline(always)]
pub(super) fn is_ordinary_rstd<T: Element>(rstd: T) -> bool {
    let (least, most) =
        if T::HAS_WIDE_RANGE { (power_of_two(-500), power_of_two(450)) } else { (power_of_two(-63), power_of_two(50)) };
    rstd.to_f64() >= least && rstd.to_f64() <= most
}

/// `value * 2^exponent`, for any exponent, rounded once.
#[inline(always)]
fn scaled(value: f64, exponent: i32) -> f64 {
    if exponent == 0 { value } else { scaled_by_steps(value, exponent) }
}

fn scaled_by_steps(mut value: f64, mut exponent: i32) -> f64 {
    while exponent > 1023 {
        value *= power_of_two(1023);
        exponent -= 1023;
    }
    while exponent < -1022 {
        // 53 less than could be: the intermediate value is then subnormal only where the result vanishes.
        value *= power_of_two(-969);
        exponent += 969;
    }
    value * power_of_two(exponent)
}

/// The exponent of a positive finite value, `2^e <= value < 2^(e + 1)`; 0 for zero.
fn exponent(value: f64) -> i32 {
    if value == 0.0 {
        return 0;
    }
    let biased = (value.to_bits() >> 52 & 0x7ff) as i32;
    if biased == 0 { exponent(value * power_of_two(64)) - 64 } else { biased - 1023 }
}

/// The power of two by which values are taken smaller, so that sums and squares of them stay in range; `None` where one
/// of them is infinite or NaN. The squares of `f32` are in the range of `f64` as they are.
#[inline(always)]
fn range<T: Element>(values: &[T], at_least: f64) -> Option<i32> {
    let mut largest = at_least;
    let mut finite = true;
    for value in values {
        let magnitude = value.to_f64().abs();
        finite &= magnitude < f64::INFINITY;
        largest = largest.max(magnitude);
    }
    finite.then(|| if T::HAS_WIDE_RANGE { exponent(largest) } else { 0 })
}

/// A row of x with its statistics.
#[derive(Clone, Copy, Debug)]
pub(super) struct CarefulRow<'a, T: Element> {
    x: &'a [T],
    /// The row is taken times 2^-exponent.
    exponent: i32,
    /// The mean of the scaled row.
    mean: T::Wide,
    /// `rstd` of the scaled row; 0 where the variance and `epsilon` both are.
    rstd: T::Wide,
}

impl<'a, T: Element> CarefulRow<'a, T> {
    /// The statistics of a row; `None` where it holds a NaN or an infinity.
    #[inline(always)]
    pub(super) fn new(x: &'a [T], epsilon: f64) -> Option<Self> {
        let exponent = range(x, epsilon.sqrt())?;
        let value = |x: &T| T::Wide::new(scaled(x.to_f64(), -exponent));
        let width = x.len() as f64;
        let zero = T::Wide::new(0.0);
        let mut sum = zero;
        for x in x {
            sum = sum + value(x);
        }
        let mean = sum.divided(width);
        let mut squares = zero;
        for x in x {
            let d = value(x) - mean;
            squares = squares + d * d;
        }
        let denominator = squares.divided(width) + T::Wide::new(scaled(epsilon, -2 * exponent));
        let rstd = if denominator.value() > 0.0 { denominator.reciprocal_sqrt() } else { zero };
        Some(Self { x, exponent, mean, rstd })
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
        T::from_f64(if rstd == 0.0 { f64::INFINITY } else { scaled(rstd, -self.exponent) })
    }

    /// The normalized value of one element: 0 in a constant row, whatever `epsilon`.
    #[inline(always)]
    pub(super) fn xhat(&self, column: usize) -> T::Wide {
        (T::Wide::new(scaled(self.x[column].to_f64(), -self.exponent)) - self.mean) * self.rstd
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
        let dy_exponent = range(dy, 0.0)?;
        let gamma_exponent = gamma.map_or(Some(0), |gamma| range(gamma, 0.0))?;
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
        let centred = self.g(column) - self.mean_g - self.row.xhat(column) * self.mean_product;
        let exponent = self.dy_exponent + self.gamma_exponent - self.row.exponent;
        T::from_f64(scaled((centred * self.row.rstd).value(), exponent))
    }
}
