//! Rows whose squares overflow or vanish although the answer is representable.
//!
//! The row is scaled by a power of two that brings its largest magnitude (and `sqrt(epsilon)`, where that
//! is larger) to about 1, and computed in scalar `f64` with compensated sums. Scaling by a power of two is exact,
//! and LayerNorm of a scaled row is LayerNorm of the row: `y(s x, s^2 epsilon) = y(x, epsilon)`, and `dx`, `rstd`
//! take the factor `1 / s`. It is slow, and it runs only where an ordinary row's variance leaves the range
//! [`ORDINARY_F32`] or [`ORDINARY_F64`].

use super::stats::CompensatedSum;
use crate::Element;

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
    let (least, most) = if size_of::<T>() == 4 { ORDINARY_F32 } else { ORDINARY_F64 };
    variance_and_epsilon >= least && variance_and_epsilon <= most
}

/// The same of the `rstd` that a forward pass saved.
#[inline(always)]
pub(super) fn is_ordinary_rstd<T: Element>(rstd: T) -> bool {
    let (least, most) = if size_of::<T>() == 4 {
        (power_of_two(-63), power_of_two(50))
    } else {
        (power_of_two(-500), power_of_two(450))
    };
    rstd.to_f64() >= least && rstd.to_f64() <= most
}

/// `value * 2^exponent`, for any exponent, rounded once.
fn scaled(mut value: f64, mut exponent: i32) -> f64 {
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

/// The largest magnitude of a slice; `None` where a value is infinite or NaN.
fn largest<T: Element>(values: &[T]) -> Option<f64> {
    values.iter().try_fold(0.0_f64, |largest, value| {
        let magnitude = value.to_f64().abs();
        magnitude.is_finite().then(|| largest.max(magnitude))
    })
}

/// A row of x, scaled, with its statistics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rescued<'a, T> {
    x: &'a [T],
    /// The row is taken times 2^-exponent.
    exponent: i32,
    /// The mean of the scaled row and what its rounding lost.
    mean: (f64, f64),
    /// `rstd` of the scaled row; 0 where the variance and `epsilon` both are.
    rstd: f64,
}

impl<'a, T: Element> Rescued<'a, T> {
    /// The statistics of a row; `None` where it holds a NaN or an infinity.
    #[inline(never)]
    pub(super) fn new(x: &'a [T], epsilon: f64) -> Option<Self> {
        let exponent = exponent(largest(x)?.max(epsilon.sqrt()));
        let values = || x.iter().map(|x| scaled(x.to_f64(), -exponent));
        let width = x.len() as f64;
        // Distances from the first element: those of a constant row are exactly 0.
        let first = values().next().unwrap_or(0.0);
        let shift = values().map(|x| x - first).fold(CompensatedSum::default(), CompensatedSum::plus).value() / width;
        let about = first + shift;
        let error = values().map(|x| x - about).fold(CompensatedSum::default(), CompensatedSum::plus).value() / width;
        let mean = CompensatedSum::default().plus(about).plus(error).parts();
        let squares = values().map(|x| (x - mean.0 - mean.1).powi(2));
        let variance = squares.fold(CompensatedSum::default(), CompensatedSum::plus).value() / width;
        let sum = variance + scaled(epsilon, -2 * exponent);
        Some(Self { x, exponent, mean, rstd: if sum > 0.0 { 1.0 / sum.sqrt() } else { 0.0 } })
    }

    /// The mean, rounded once.
    pub(super) fn mean(&self) -> T {
        T::from_f64(scaled(self.mean.0, self.exponent))
    }

    /// `rstd`: it may be too large or too small for the type. Infinite for a constant row without `epsilon`.
    pub(super) fn rstd(&self) -> T {
        if self.rstd == 0.0 { T::from_f64(f64::INFINITY) } else { T::from_f64(scaled(self.rstd, -self.exponent)) }
    }

    /// The normalized value of one element: 0 in a constant row, whatever `epsilon`.
    fn xhat(&self, column: usize) -> f64 {
        (scaled(self.x[column].to_f64(), -self.exponent) - self.mean.0 - self.mean.1) * self.rstd
    }

    /// The row's output.
    pub(super) fn normalize(&self, gamma: Option<&[T]>, beta: Option<&[T]>, y: &mut [T]) {
        for (column, y) in y.iter_mut().enumerate() {
            let gamma = gamma.map_or(1.0, |gamma| gamma[column].to_f64());
            let beta = beta.map_or(0.0, |beta| beta[column].to_f64());
            *y = T::from_f64(self.xhat(column).mul_add(gamma, beta));
        }
    }

    /// The row's contribution to `dgamma`, for one element.
    pub(super) fn dgamma(&self, column: usize, dy: T) -> T {
        T::from_f64(self.xhat(column) * dy.to_f64())
    }

    /// The row's dx; `None` where dy (or gamma) holds a NaN or an infinity.
    pub(super) fn dx(&self, dy: &[T], gamma: Option<&[T]>) -> Option<impl Fn(usize) -> T> {
        let dy_exponent = exponent(largest(dy)?);
        let gamma_exponent = gamma.map_or(Some(0), |gamma| largest(gamma).map(exponent))?;
        let g = move |column: usize| {
            let gamma = gamma.map_or(1.0, |gamma| scaled(gamma[column].to_f64(), -gamma_exponent));
            scaled(dy[column].to_f64(), -dy_exponent) * gamma
        };
        let row = *self;
        let width = dy.len() as f64;
        let (mut sum, mut product) = (CompensatedSum::default(), CompensatedSum::default());
        for column in 0..dy.len() {
            sum = sum.plus(g(column));
            product = product.plus(g(column) * row.xhat(column));
        }
        let (mean_g, mean_product) = (sum.value() / width, product.value() / width);
        let exponent = dy_exponent + gamma_exponent - self.exponent;
        Some(move |column| {
            let centred = g(column) - mean_g - row.xhat(column) * mean_product;
            T::from_f64(scaled(centred * row.rstd, exponent))
        })
    }
}
