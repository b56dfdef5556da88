//! [`Wide`](super::wide::Wide) numbers, one in each lane of a register: eight rows in the arithmetic of one.
//!
//! Each operation has the bits of the scalar one, on every instruction set, for numbers whose products and rounding errors
//! stay in range ([`narrow`](super::narrow) says which rows are so, and leaves others to the scalar code). Three things are
//! left out or done otherwise, and change no bit:
//!
//! - No rounding error is tested for being finite: all are.
//! - The error of a product is had from one fused multiply-add, where the hardware rounds that once, and not from the
//!   halves of the factors. Both are exact, and so the same number, where the product is at least 2^-968: the products of
//!   the halves are then multiples of 2^-1074. [`WideLanes::times_any`], [`divided`](WideLanes::divided) and
//!   [`reciprocal_sqrt`](WideLanes::reciprocal_sqrt), whose factors may be what is left where others cancel, take the halves
//!   everywhere.
//! - A zero that the scalar code adds is not added. It could change a negative zero alone, and neither error of a sum nor
//!   of a product is ever that: equal numbers subtracted give a positive zero.

use super::wide::Double;
use crate::simd::{BATCH, Isa, Lanes, values};
use std::fmt::Debug;
use std::ops::{Add, Mul, Sub};

/// Numbers with at least twice the digits of the element type, one in each lane.
pub(crate) trait WideLanes<W, I: Isa>:
    Copy + Debug + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self>
{
    /// Exact.
    fn new(isa: I, value: I::F64) -> Self;

    /// Rounded to `f64`.
    fn value(self) -> I::F64;

    /// `self + new(value)`.
    fn plus(self, value: I::F64) -> Self;

    /// `self * new(value)`.
    fn times(self, value: I::F64) -> Self;

    /// `new(a) * new(b)`.
    fn product(isa: I, a: I::F64, b: I::F64) -> Self;

    /// `self * other`, for factors that may be next to nothing.
    fn times_any(self, other: Self) -> Self;

    /// `-self`, zeros included.
    fn negative(self) -> Self;

    /// `self` times powers of two.
    fn scaled(self, powers: I::F64) -> Self;

    /// `self / divisor`, for a divisor that is a whole number.
    fn divided(self, divisor: f64) -> Self;

    /// `1 / sqrt(self)`, for positive numbers.
    fn reciprocal_sqrt(self) -> Self;

    /// The numbers one by one.
    fn numbers(self) -> [W; BATCH];
}

/// Whether a whole number is a power of two: to divide by it is to multiply by its reciprocal, which is exact.
#[inline(always)]
fn is_power_of_two(divisor: f64) -> bool {
    (divisor as u32).is_power_of_two()
}

/// `a / b`, lane by lane.
#[inline(always)]
fn quotient<I: Isa>(isa: I, a: I::F64, b: I::F64) -> I::F64 {
    let (mut a, b) = (values(a), values(b));
    for i in 0..BATCH {
        a[i] /= b[i];
    }
    I::F64::load(isa, &a)
}

/// `1 / sqrt(value)`, lane by lane, each operation rounded.
#[inline(always)]
fn reciprocal_root<I: Isa>(isa: I, value: I::F64) -> I::F64 {
    let mut found = values(value);
    for i in 0..BATCH {
        found[i] = 1.0 / found[i].sqrt();
    }
    I::F64::load(isa, &found)
}

/// A multiplication by -1 is exact, and turns the sign of zeros too.
#[inline(always)]
fn negative<I: Isa>(isa: I, value: I::F64) -> I::F64 {
    value * I::F64::splat(isa, -1.0)
}

/// `f64` in each lane: the arithmetic of `f32` rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Single<I: Isa>(I::F64, I);

impl<I: Isa> Add for Single<I> {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0, self.1)
    }
}

impl<I: Isa> Sub for Single<I> {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0, self.1)
    }
}

impl<I: Isa> Mul for Single<I> {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(self.0 * other.0, self.1)
    }
}

impl<I: Isa> WideLanes<f64, I> for Single<I> {
    #[inline(always)]
    fn new(isa: I, value: I::F64) -> Self {
        Self(value, isa)
    }

    #[inline(always)]
    fn value(self) -> I::F64 {
        self.0
    }

    #[inline(always)]
    fn plus(self, value: I::F64) -> Self {
        Self(self.0 + value, self.1)
    }

    #[inline(always)]
    fn times(self, value: I::F64) -> Self {
        Self(self.0 * value, self.1)
    }

    #[inline(always)]
    fn product(isa: I, a: I::F64, b: I::F64) -> Self {
        Self(a * b, isa)
    }

    #[inline(always)]
    fn times_any(self, other: Self) -> Self {
        self * other
    }

    #[inline(always)]
    fn negative(self) -> Self {
        Self(negative(self.1, self.0), self.1)
    }

    #[inline(always)]
    fn scaled(self, powers: I::F64) -> Self {
        self.times(powers)
    }

    #[inline(always)]
    fn divided(self, divisor: f64) -> Self {
        if is_power_of_two(divisor) {
            return self.times(I::F64::splat(self.1, 1.0 / divisor));
        }
        Self(quotient(self.1, self.0, I::F64::splat(self.1, divisor)), self.1)
    }

    #[inline(always)]
    fn reciprocal_sqrt(self) -> Self {
        Self(reciprocal_root(self.1, self.0), self.1)
    }

    #[inline(always)]
    fn numbers(self) -> [f64; BATCH] {
        values(self.0)
    }
}

/// A [`Double`] in each lane: the arithmetic of `f64` rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair<I: Isa> {
    high: I::F64,
    low: I::F64,
    isa: I,
}

impl<I: Isa> Pair<I> {
    /// `a + b` and its rounding error, exactly (Knuth).
    #[inline(always)]
    fn sum(isa: I, a: I::F64, b: I::F64) -> Self {
        let high = a + b;
        let b_part = high - a;
        Self { high, low: (a - (high - b_part)) + (b - b_part), isa }
    }

    /// `a * b` and its rounding error, exactly.
    #[inline(always)]
    fn exact_product(isa: I, a: I::F64, b: I::F64) -> Self {
        if !I::FUSED {
            return Self::product_of_halves(isa, a, b);
        }
        let high = a * b;
        Self { high, low: a.mul_add(b, negative(isa, high)), isa }
    }

    /// The same from halves of 26 bits (Veltkamp, Dekker).
    #[inline(always)]
    fn product_of_halves(isa: I, a: I::F64, b: I::F64) -> Self {
        let high = a * b;
        let ([a_upper, a_lower], [b_upper, b_lower]) = (halves(isa, a), halves(isa, b));
        let low = ((a_upper * b_upper - high) + a_upper * b_lower + a_lower * b_upper) + a_lower * b_lower;
        Self { high, low, isa }
    }

    /// A product with the terms that `cross` the digits of its factors.
    #[inline(always)]
    fn with_cross_terms(self, cross: I::F64) -> Self {
        Self::sum(self.isa, self.high, self.low + cross)
    }
}

/// The upper and the lower 26 bits of numbers.
#[inline(always)]
fn halves<I: Isa>(isa: I, value: I::F64) -> [I::F64; 2] {
    let scaled = I::F64::splat(isa, 134_217_729.0) * value; // 2^27 + 1
    let upper = scaled - (scaled - value);
    [upper, value - upper]
}

impl<I: Isa> Add for Pair<I> {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let isa = self.isa;
        let (high, low) = (Self::sum(isa, self.high, other.high), Self::sum(isa, self.low, other.low));
        let high = Self::sum(isa, high.high, high.low + low.high);
        Self::sum(isa, high.high, high.low + low.low)
    }
}

impl<I: Isa> Sub for Pair<I> {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Add::add(self, other.negative())
    }
}

impl<I: Isa> Mul for Pair<I> {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        let cross = self.high * other.low + self.low * other.high;
        Self::exact_product(self.isa, self.high, other.high).with_cross_terms(cross)
    }
}

impl<I: Isa> WideLanes<Double, I> for Pair<I> {
    #[inline(always)]
    fn new(isa: I, value: I::F64) -> Self {
        Self { high: value, low: I::F64::splat(isa, 0.0), isa }
    }

    #[inline(always)]
    fn value(self) -> I::F64 {
        self.high + self.low
    }

    #[inline(always)]
    fn plus(self, value: I::F64) -> Self {
        // The sum of the lower parts is that of `self`, and the last sum of the scalar code finds nothing left to do.
        let high = Self::sum(self.isa, self.high, value);
        Self::sum(self.isa, high.high, high.low + self.low)
    }

    #[inline(always)]
    fn times(self, value: I::F64) -> Self {
        Self::exact_product(self.isa, self.high, value).with_cross_terms(self.low * value)
    }

    #[inline(always)]
    fn product(isa: I, a: I::F64, b: I::F64) -> Self {
        let product = Self::exact_product(isa, a, b);
        // Of the scalar code's last sum only that is left which makes a negative zero positive.
        Self { high: product.high + product.low, ..product }
    }

    #[inline(always)]
    fn times_any(self, other: Self) -> Self {
        let cross = self.high * other.low + self.low * other.high;
        Self::product_of_halves(self.isa, self.high, other.high).with_cross_terms(cross)
    }

    #[inline(always)]
    fn negative(self) -> Self {
        Self { high: negative(self.isa, self.high), low: negative(self.isa, self.low), ..self }
    }

    #[inline(always)]
    fn scaled(self, powers: I::F64) -> Self {
        Self { high: self.high * powers, low: self.low * powers, ..self }
    }

    #[inline(always)]
    fn divided(self, divisor: f64) -> Self {
        let isa = self.isa;
        if is_power_of_two(divisor) {
            return self.scaled(I::F64::splat(isa, 1.0 / divisor));
        }
        let divisor = I::F64::splat(isa, divisor);
        let upper = quotient(isa, self.high, divisor);
        let rest = self - Self::product_of_halves(isa, upper, divisor);
        Self::sum(isa, upper, quotient(isa, rest.value(), divisor))
    }

    #[inline(always)]
    fn reciprocal_sqrt(self) -> Self {
        let isa = self.isa;
        let splat = |value| Self::new(isa, I::F64::splat(isa, value));
        let root = Self::new(isa, reciprocal_root(isa, self.high));
        let error = splat(1.0) - self.times_any(root).times_any(root);
        root + root.times_any(error).times_any(splat(0.5))
    }

    #[inline(always)]
    fn numbers(self) -> [Double; BATCH] {
        let (high, low) = (values(self.high), values(self.low));
        let mut found = [Double::of_parts(0.0, 0.0); BATCH];
        for i in 0..BATCH {
            found[i] = Double::of_parts(high[i], low[i]);
        }
        found
    }
}
