//! The arithmetic of rows that ask for more digits than their type has: `f64` for `f32`, pairs of `f64` for `f64`.
//!
//! It is scalar, uses no fused multiply-add, and so has the same bits on every instruction set.
//! [`wide_lanes`](super::wide_lanes) is the same for eight numbers at a time.

use super::wide_lanes::{Pair, Single, WideLanes};
use crate::simd::Isa;
use std::ops::{Add, Mul, Sub};

/// A number with at least twice the digits of the element type.
pub(crate) trait Wide: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    /// Eight such numbers.
    type Lanes<I: Isa>: WideLanes<Self, I>;

    /// Exact.
    fn new(value: f64) -> Self;

    /// Rounded to `f64`.
    fn value(self) -> f64;

    /// `self * 2^exponent`, exact but for underflow.
    fn scaled(self, exponent: i32) -> Self;

    /// `self / divisor`, for a divisor that is a whole number.
    fn divided(self, divisor: f64) -> Self;

    /// `1 / sqrt(self)`, for a positive number.
    fn reciprocal_sqrt(self) -> Self;
}

pub(super) const fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// `value * 2^exponent`, for any exponent, rounded once.
#[inline(always)]
pub(super) fn scaled(value: f64, exponent: i32) -> f64 {
    if exponent == 0 { value } else { scaled_by_steps(value, exponent) }
}

/// Not inlined: it is seldom taken, and LLVM spends seven seconds on what its loops would become.
#[inline(never)]
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
pub(super) fn exponent(value: f64) -> i32 {
    if value == 0.0 {
        return 0;
    }
    let biased = (value.to_bits() >> 52 & 0x7ff) as i32;
    if biased == 0 { exponent(value * power_of_two(64)) - 64 } else { biased - 1023 }
}

impl Wide for f64 {
    type Lanes<I: Isa> = Single<I>;

    #[inline(always)]
    fn new(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn value(self) -> f64 {
        self
    }

    #[inline(always)]
    fn scaled(self, exponent: i32) -> Self {
        scaled(self, exponent)
    }

    #[inline(always)]
    fn divided(self, divisor: f64) -> Self {
        self / divisor
    }

    #[inline(always)]
    fn reciprocal_sqrt(self) -> Self {
        1.0 / self.sqrt()
    }
}

/// The unevaluated sum of a number and what its rounding lost: about 106 bits.
///
/// (Dekker, "A floating-point technique for extending the available precision", 1971.) Where a value is so large that
/// its rounding error cannot be had without overflow, the error is taken as 0: an ordinary `f64` is left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Double {
    high: f64,
    low: f64,
}

impl Double {
    /// A number and what its rounding lost.
    #[inline(always)]
    pub(super) fn of_parts(high: f64, low: f64) -> Self {
        Self { high, low }
    }

    /// `a + b` and its rounding error, exactly (Knuth).
    #[inline(always)]
    fn sum(a: f64, b: f64) -> Self {
        let high = a + b;
        let b_part = high - a;
        let low = (a - (high - b_part)) + (b - b_part);
        Self { high, low: if low.is_finite() { low } else { 0.0 } }
    }

    /// `a * b` and its rounding error, exactly: the factors are split into halves of 26 bits (Veltkamp).
    #[inline(always)]
    fn product(a: f64, b: f64) -> Self {
        let halves = |value: f64| {
            let scaled = 134_217_729.0 * value; // 2^27 + 1
            let upper = scaled - (scaled - value);
            (upper, value - upper)
        };
        let high = a * b;
        let ((a_upper, a_lower), (b_upper, b_lower)) = (halves(a), halves(b));
        let low = ((a_upper * b_upper - high) + a_upper * b_lower + a_lower * b_upper) + a_lower * b_lower;
        Self { high, low: if low.is_finite() { low } else { 0.0 } }
    }
}

impl Add for Double {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let (high, low) = (Self::sum(self.high, other.high), Self::sum(self.low, other.low));
        let high = Self::sum(high.high, high.low + low.high);
        Self::sum(high.high, high.low + low.low)
    }
}

impl Sub for Double {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self + Self { high: -other.high, low: -other.low }
    }
}

impl Mul for Double {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        let product = Self::product(self.high, other.high);
        Self::sum(product.high, product.low + (self.high * other.low + self.low * other.high))
    }
}

impl Wide for Double {
    type Lanes<I: Isa> = Pair<I>;

    #[inline(always)]
    fn new(value: f64) -> Self {
        Self { high: value, low: 0.0 }
    }

    #[inline(always)]
    fn value(self) -> f64 {
        self.high + self.low
    }

    #[inline(always)]
    fn scaled(self, exponent: i32) -> Self {
        Self { high: scaled(self.high, exponent), low: scaled(self.low, exponent) }
    }

    #[inline(always)]
    fn divided(self, divisor: f64) -> Self {
        let quotient = self.high / divisor;
        let rest = self - Self::product(quotient, divisor);
        Self::sum(quotient, rest.value() / divisor)
    }

    #[inline(always)]
    fn reciprocal_sqrt(self) -> Self {
        // One step of Newton's iteration doubles the digits: r + r (1 - v r^2) / 2.
        let root = Self::new(1.0 / self.high.sqrt());
        let error = Self::new(1.0) - self * root * root;
        root + root * error * Self::new(0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::{Double, Wide, scaled};

    #[test]
    fn a_pair_holds_what_rounding_takes_away() {
        // (1 + 2^-40)^2 = 1 + 2^-39 + 2^-80: the last term is far below the spacing of f64.
        let value = Double::new(1.0 + 2.0_f64.powi(-40));
        let rest = value * value - Double::new(1.0 + 2.0_f64.powi(-39));
        assert_eq!(rest.value(), 2.0_f64.powi(-80));
    }

    #[test]
    fn a_value_at_the_end_of_the_range_is_an_ordinary_number() {
        let product = Double::new(1.5e308) * Double::new(1.0);
        assert_eq!((product + Double::new(1e307)).value(), 1.5e308 + 1e307);
        assert_eq!((Double::new(1.5e308) + Double::new(1.5e308)).value(), f64::INFINITY);
        assert!((Double::new(f64::NAN) * Double::new(1.0)).value().is_nan());
    }

    #[test]
    fn scaling_is_exact_and_rounds_once() {
        assert_eq!(scaled(1.5, -1074), 2.0 * f64::from_bits(1));
        assert_eq!(scaled(f64::from_bits(3), 2000), 3.0 * 2.0_f64.powi(926));
        assert_eq!(scaled(1.0, -2000), 0.0);
        assert_eq!(scaled(-3.0, 1022), -3.0 * 2.0_f64.powi(1022));
    }

    #[test]
    fn a_third_times_three_is_one_to_a_hundred_bits() {
        let third = Double::new(1.0).divided(3.0);
        assert!((third * Double::new(3.0) - Double::new(1.0)).value().abs() < 2.0_f64.powi(-102));
    }

    #[test]
    fn a_reciprocal_root_squared_is_the_reciprocal_to_a_hundred_bits() {
        let root = Double::new(2.0).reciprocal_sqrt();
        assert!((root * root * Double::new(2.0) - Double::new(1.0)).value().abs() < 2.0_f64.powi(-100));
    }
}
