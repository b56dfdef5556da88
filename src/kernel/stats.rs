//! The mean and `rstd` of a row: a corrected two-pass algorithm.
//!
//! Pass one takes `sum(x - x0)`, where `x0` is the row's first element: what is added up has the size of the
//! row's spread, not of its mean, so that a row at 1e8 with a spread of 10 loses nothing. It gives
//! `mean = x0 + sum / width`, rounded to the element type.
//!
//! Pass two takes `d = x - mean`, `sum(d)` and `sum(d * d)`. With `correction = sum(d) / width`, the rounding
//! of the mean,
//!
//! ```text
//! var  = sum(d * d) / width - correction^2
//! rstd = 1 / sqrt(var + epsilon)
//! xhat = (d - correction) * rstd
//! ```
//!
//! (Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", 1983; the correction serves the
//! normalized value as well.) Rows longer than a segment take both passes segment by segment, while the
//! segment is in cache, and the segments' moments are put together in `f64` by the same paper's formula. So a
//! row costs one pass over memory, however long it is.

use crate::Element;
use crate::simd::{Isa, Lanes};

/// A sum that carries its own rounding error along (Neumaier's variant of Kahan's algorithm).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CompensatedSum {
    sum: f64,
    lost: f64,
}

impl CompensatedSum {
    #[inline(always)]
    pub(super) fn plus(self, value: f64) -> Self {
        let sum = self.sum + value;
        let lost = if self.sum.abs() >= value.abs() { (self.sum - sum) + value } else { (value - sum) + self.sum };
        Self { sum, lost: self.lost + lost }
    }

    #[inline(always)]
    pub(super) fn add(&mut self, value: f64) {
        *self = self.plus(value);
    }

    #[inline(always)]
    pub(super) fn value(self) -> f64 {
        self.sum + self.lost
    }
}

/// The moments of a segment about `mean`, a number of the element type near its mean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    /// Elements in the segment.
    len: f64,
    /// The number that was subtracted from each element.
    mean: f64,
    /// `sum(x - mean)`.
    sum: f64,
    /// `sum((x - mean)^2)`.
    squares: f64,
}

/// Mean and variance of a row: its mean is `mean + correction`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowStatistics<T> {
    /// The mean, as rounded to the element type.
    pub(crate) mean: T,
    /// The true mean less `mean`.
    pub(crate) correction: f64,
    /// The variance, without `epsilon`.
    pub(crate) variance: f64,
}

impl<T: Element> RowStatistics<T> {
    /// Puts together the moments of a row's segments.
    #[inline(always)]
    pub(crate) fn from_segments(segments: &[Moments]) -> Self {
        if let [only] = segments {
            return Self::from_segment(*only);
        }
        let Some(first) = segments.first() else {
            return Self { mean: T::ZERO, correction: 0.0, variance: 0.0 };
        };
        // Means of the segments, as distances from that of the first: those are small where the row's mean is
        // large.
        let distance = |segment: &Moments| (segment.mean - first.mean) + segment.sum / segment.len;
        let mut width = 0.0;
        let mut sum = CompensatedSum::default();
        for segment in segments {
            width += segment.len;
            sum.add(segment.len * distance(segment));
        }
        let shift = sum.value() / width;
        let mut squares = CompensatedSum::default();
        for segment in segments {
            squares.add(segment.squares - segment.sum / segment.len * segment.sum);
            let between = distance(segment) - shift;
            squares.add(segment.len * between * between);
        }
        let mean = T::from_f64(first.mean + shift);
        Self { mean, correction: (first.mean - mean.to_f64()) + shift, variance: not_negative(squares.value() / width) }
    }

    /// The statistics of a row that is one segment.
    #[inline(always)]
    pub(crate) fn from_segment(moments: Moments) -> Self {
        let correction = moments.sum / moments.len;
        let variance = (moments.squares - correction * moments.sum) / moments.len;
        Self { mean: T::from_f64(moments.mean), correction, variance: not_negative(variance) }
    }

    /// The mean that is reported: rounded once.
    #[inline(always)]
    pub(crate) fn rounded_mean(&self) -> T {
        T::from_f64(self.mean.to_f64() + self.correction)
    }
}

/// The larger of the value and zero; NaN where it is NaN (which `max` would turn into 0).
#[inline(always)]
fn not_negative(value: f64) -> f64 {
    if value < 0.0 { 0.0 } else { value }
}

/// Accumulators for the sums of a row: enough to hide the latency of an addition, few enough for 16 ymm.
const ACCUMULATORS: usize = 4;

/// Groups of chunks after which the accumulators are emptied into a total: a running sum of many squares of numbers
/// with few bits, as rows far from zero have, would round the same way again and again.
const RUN: usize = 8;

/// The moments of one segment: two passes over it.
#[inline(always)]
pub(crate) fn moments<T: Element, I: Isa>(isa: I, x: &[T]) -> Moments {
    let Some(&first) = x.first() else {
        return Moments { len: 0.0, mean: 0.0, sum: 0.0, squares: 0.0 };
    };
    let len = x.len() as f64;
    let mean = T::from_f64(first.to_f64() + shifted_sum(isa, x, first) / len);
    let (sum, squares) = sum_and_squares(isa, x, mean);
    Moments { len, mean: mean.to_f64(), sum, squares }
}

/// `sum(x - shift)`.
#[inline(always)]
fn shifted_sum<T: Element, I: Isa>(isa: I, x: &[T], shift: T) -> f64 {
    let shift = T::Lanes::splat(isa, shift);
    let zero = T::Lanes::splat(isa, T::ZERO);
    let mut total = zero;
    let (chunks, tail) = T::chunks(x);
    for run in chunks.chunks(RUN * ACCUMULATORS) {
        let mut sum = [zero; ACCUMULATORS];
        let (groups, rest) = run.as_chunks::<ACCUMULATORS>();
        for group in groups {
            for i in 0..ACCUMULATORS {
                sum[i] = sum[i] + (T::Lanes::load(isa, &group[i]) - shift);
            }
        }
        for i in 0..ACCUMULATORS - 1 {
            if i < rest.len() {
                sum[i] = sum[i] + (T::Lanes::load(isa, &rest[i]) - shift);
            }
        }
        total = total + tree(sum);
    }
    if !tail.is_empty() {
        total = total + (T::Lanes::load_tail(isa, tail, shift) - shift);
    }
    total.sum()
}

/// `sum(d)` and `sum(d * d)` of `d = x - mean`.
#[inline(always)]
fn sum_and_squares<T: Element, I: Isa>(isa: I, x: &[T], mean: T) -> (f64, f64) {
    let mean = T::Lanes::splat(isa, mean);
    let zero = T::Lanes::splat(isa, T::ZERO);
    let (mut total, mut total_squares) = (zero, zero);
    let (chunks, tail) = T::chunks(x);
    for run in chunks.chunks(RUN * ACCUMULATORS) {
        let [mut sum, mut squares] = [[zero; ACCUMULATORS]; 2];
        let (groups, rest) = run.as_chunks::<ACCUMULATORS>();
        for group in groups {
            for i in 0..ACCUMULATORS {
                let d = T::Lanes::load(isa, &group[i]) - mean;
                sum[i] = sum[i] + d;
                squares[i] = d.mul_add(d, squares[i]);
            }
        }
        for i in 0..ACCUMULATORS - 1 {
            if i < rest.len() {
                let d = T::Lanes::load(isa, &rest[i]) - mean;
                sum[i] = sum[i] + d;
                squares[i] = d.mul_add(d, squares[i]);
            }
        }
        total = total + tree(sum);
        total_squares = total_squares + tree(squares);
    }
    if !tail.is_empty() {
        let d = T::Lanes::load_tail(isa, tail, mean) - mean;
        total = total + d;
        total_squares = d.mul_add(d, total_squares);
    }
    (total.sum(), total_squares.sum())
}

/// Four accumulators, added pairwise.
#[inline(always)]
fn tree<L: std::ops::Add<Output = L> + Copy>([a, b, c, d]: [L; ACCUMULATORS]) -> L {
    (a + b) + (c + d)
}
