//! A number of about 106 bits and any size: a pair of `f64` with an exponent of its own.
//!
//! The pairs of [`exact`](super::exact) overflow where squares of `f64` do. Here nothing overflows and nothing underflows,
//! so a row of any finite bits has an exact answer to be compared with.

use super::exact::Double;
use llm_operator::Element;
use std::cmp::Ordering;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// `(high + low) * 2^exponent`, with `1 <= |high| < 2`, or zero.
#[derive(Clone, Copy, Debug)]
pub struct Number {
    pair: Double,
    exponent: i64,
}

/// Beyond so many bits an addend is below the last digit of a pair, even after its leading half cancelled.
const OUT_OF_SIGHT: i64 = 250;

fn power_of_two(exponent: i64) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

impl Number {
    pub const ZERO: Self = Self { pair: Double(0.0, 0.0), exponent: i64::MIN / 2 };

    /// Of a finite value, exactly.
    pub fn of<T: Element>(value: T) -> Self {
        let value = value.to_f64();
        assert!(value.is_finite(), "{value} is not finite");
        if value.abs() < power_of_two(-900) {
            Self::normalized(Double(value * power_of_two(120), 0.0), -120)
        } else {
            Self::normalized(Double(value, 0.0), 0)
        }
    }

    /// `2^exponent`.
    pub fn power(exponent: i64) -> Self {
        Self { pair: Double(1.0, 0.0), exponent }
    }

    fn normalized(pair: Double, exponent: i64) -> Self {
        if pair.0 == 0.0 {
            return Self::ZERO;
        }
        let shift = (pair.0.to_bits() >> 52 & 0x7ff) as i64 - 1023;
        if shift == 1023 {
            // 2^-1023 is not a normal number.
            return Self::normalized(Double(pair.0 * 0.25, pair.1 * 0.25), exponent + 2);
        }
        let factor = power_of_two(-shift);
        Self { pair: Double(pair.0 * factor, pair.1 * factor), exponent: exponent + shift }
    }

    pub fn is_zero(self) -> bool {
        self.pair.0 == 0.0
    }

    pub fn abs(self) -> Self {
        if self.pair.0 < 0.0 { -self } else { self }
    }

    pub fn squared(self) -> Self {
        self * self
    }

    /// Of a number that is not negative.
    pub fn sqrt(self) -> Self {
        let odd = self.exponent.rem_euclid(2);
        let factor = if odd == 1 { 2.0 } else { 1.0 };
        let root = Double(self.pair.0 * factor, self.pair.1 * factor).sqrt();
        Self::normalized(root, (self.exponent - odd) / 2)
    }

    pub fn max(self, other: Self) -> Self {
        if self < other { other } else { self }
    }

    /// The nearest `f64`, near enough to print.
    pub fn value(self) -> f64 {
        let half = self.exponent.clamp(-2000, 2000) / 2;
        self.pair.value() * 2.0_f64.powi(half as i32) * 2.0_f64.powi((self.exponent.clamp(-2000, 2000) - half) as i32)
    }
}

impl Neg for Number {
    type Output = Self;
    fn neg(self) -> Self {
        Self { pair: Double(-self.pair.0, -self.pair.1), exponent: self.exponent }
    }
}

impl Add for Number {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let (large, small) = if self.exponent < other.exponent { (other, self) } else { (self, other) };
        let distance = large.exponent - small.exponent;
        if distance > OUT_OF_SIGHT {
            return large;
        }
        let factor = power_of_two(-distance);
        let small = Double(small.pair.0 * factor, small.pair.1 * factor);
        Self::normalized(large.pair + small, large.exponent)
    }
}

impl Sub for Number {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Number {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self::normalized(self.pair * other.pair, self.exponent + other.exponent)
    }
}

impl Mul<f64> for Number {
    type Output = Self;
    fn mul(self, factor: f64) -> Self {
        self * Self::of(factor)
    }
}

impl Div for Number {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        assert!(!other.is_zero(), "a division by zero");
        Self::normalized(self.pair / other.pair, self.exponent - other.exponent)
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        (*self - *other).is_zero()
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (*self - *other).pair.0.partial_cmp(&0.0)
    }
}

impl std::iter::Sum for Number {
    fn sum<I: Iterator<Item = Self>>(numbers: I) -> Self {
        numbers.fold(Self::ZERO, |sum, number| sum + number)
    }
}
