//! The arithmetic of rows that ask for more digits than their type has: `f64` for `f32`, pairs of `f64` for `f64`.
//!
//! It is scalar, uses no fused multiply-add, and so has the same bits on every instruction set.

use std::ops::{Add, Mul, Sub};

/// A number with at least twice the digits of the element type.
pub(crate) trait Wide: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    /// Exact.
    fn new(value: f64) -> Self;

    /// Rounded to `f64`.
    fn value(self) -> f64;

    /// `self / divisor`, for a divisor that is a whole number.
    fn divided(self, divisor: f64) -> Self;

    /// `1 / sqrt(self)`, for a positive number.
    fn reciprocal_sqrt(self) -> Self;
}

impl Wide for f64 {
    #[inline(always)]
    fn new(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn value(self) -> f64 {
        self
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
/// (Dekker, "A floating-point technique for extending the available precision", 1971.) Magnitudes stay well within the
/// range of `f64`: the rows are scaled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Double {
    high: f64,
    low: f64,
}

impl Double {
    /// `a + b` and its rounding error, exactly (Knuth).
    #[inline(always)]
    fn sum(a: f64, b: f64) -> Self {
        let high = a + b;
        let b_part = high - a;
        Self { high, low: (a - (high - b_part)) + (b - b_part) }
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
        Self { high, low }
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
    #[inline(always)]
    fn new(value: f64) -> Self {
        Self { high: value, low: 0.0 }
    }

    #[inline(always)]
    fn value(self) -> f64 {
        self.high + self.low
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
    use super::{Double, Wide};

    #[test]
    fn a_pair_holds_what_rounding_takes_away() {
        // (1 + 2^-40)^2 = 1 + 2^-39 + 2^-80: the last term is far below the spacing of f64.
        let value = Double::new(1.0 + 2.0_f64.powi(-40));
        let rest = value * value - Double::new(1.0 + 2.0_f64.powi(-39));
        assert_eq!(rest.value(), 2.0_f64.powi(-80));
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
