//! The mean and `rstd` of a row: a shifted algorithm in one pass, with a correction.
//!
//! A *pilot* is a number of the element type near the mean: that of four chunks spread over the row, or of 16 elements of a
//! short one. Then one pass takes `d = x - pilot`, `sum(d)` and `sum(d * d)`, and
//!
//! ```text
//! c    = sum(d) / width                        the distance of the mean from the pilot
//! var  = sum(d * d) / width - c^2
//! rstd = 1 / sqrt(var + epsilon)
//! ```
//!
//! What is added up has the size of the row's spread, not of its mean: a row at 1e8 with a spread of 10 loses
//! nothing. The difference cancels only where `c^2` is not small beside `var`; with a pilot of 16 to 64 elements it is about
//! 1/16 to 1/64 of it. Where it is more than `var`, as in a row whose chunks are unlike the rest, a second pass is
//! taken about the mean that the first one found: the corrected two-pass algorithm. (Chan, Golub and LeVeque,
//! "Algorithms for Computing the Sample Variance", 1983, have both.)
//!
//! The mean is kept as `pilot + c`, rounded to the element type, and what that rounding lost, the *correction*; both are
//! subtracted from x. So a row is read from memory once for its statistics, however long it is.

use super::segment;
use crate::Element;
use crate::element::Vectorized;
use crate::simd::{BATCH, Isa, Kernel, Lanes, values};
use std::ops::Add;

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

/// `sum(d)` and `sum(d * d)`, lane by lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaneSums<L> {
    pub(super) sum: L,
    pub(super) squares: L,
}

impl<L> LaneSums<L> {
    #[inline(always)]
    pub(super) fn zero<T: Element, I: Isa>(isa: I) -> Self
    where
        L: Lanes<T, I>,
    {
        let zero = L::splat(isa, T::ZERO);
        Self { sum: zero, squares: zero }
    }

    /// Those of one chunk.
    #[inline(always)]
    pub(super) fn of<T: Element, I: Isa>(d: L) -> Self
    where
        L: Lanes<T, I>,
    {
        Self { sum: d, squares: d * d }
    }

    #[inline(always)]
    pub(super) fn plus<T: Element, I: Isa>(self, d: L) -> Self
    where
        L: Lanes<T, I>,
    {
        Self { sum: self.sum + d, squares: d.mul_add(d, self.squares) }
    }
}

impl<L: Add<Output = L>> Add for LaneSums<L> {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self { sum: self.sum + other.sum, squares: self.squares + other.squares }
    }
}

/// `N` sums of each row of a batch, lane by lane.
pub(super) type BatchSums<T, I, const N: usize> = [[<T as Vectorized>::Lanes<I>; BATCH]; N];

/// The same sums over the segments of long rows.
pub(super) type SegmentTotals<const N: usize> = [[CompensatedSum; BATCH]; N];

/// The end of a segment: its sums are added to those of the segments before, and others started.
#[derive(Debug)]
pub(super) struct CloseSegment<'s, T: Element, J: Isa, const N: usize> {
    pub(super) isa: J,
    pub(super) sums: &'s mut BatchSums<T, J, N>,
    pub(super) totals: &'s mut SegmentTotals<N>,
}

impl<T: Element, J: Isa, const N: usize> Kernel for CloseSegment<'_, T, J, N> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for (sums, totals) in self.sums.iter_mut().zip(self.totals) {
            let part = values(T::Lanes::sums(self.isa, sums));
            for i in 0..BATCH {
                totals[i].add(part[i]);
            }
            *sums = [T::Lanes::splat(self.isa, T::ZERO); BATCH];
        }
    }
}

/// The sums of whole rows: of their segments where they are long.
#[inline(always)]
pub(super) fn of_rows<T: Element, I: Isa, const N: usize>(
    isa: I,
    sums: &BatchSums<T, I, N>,
    totals: Option<&SegmentTotals<N>>,
) -> [[f64; BATCH]; N] {
    let mut found = [[0.0; BATCH]; N];
    for k in 0..N {
        match totals {
            Some(totals) => {
                for i in 0..BATCH {
                    found[k][i] = totals[k][i].value();
                }
            }
            None => found[k] = values(T::Lanes::sums(isa, &sums[k])),
        }
    }
    found
}

/// Accumulators for the sums of a row: enough to hide the latency of an addition, few enough for 16 ymm.
pub(super) const ACCUMULATORS: usize = 4;

/// Groups of chunks after which the accumulators are emptied into a total: a running sum of many squares of numbers
/// with few bits, as rows far from zero have, would round the same way again and again.
pub(super) const RUN: usize = 8;

/// The chunks of a row that its pilot is the mean of: so many, so far apart.
///
/// The number of elements is a power of two: sums of equal numbers are then exact.
#[derive(Clone, Copy, Debug)]
struct PilotChunks {
    first: usize,
    step: usize,
    count: usize,
}

impl PilotChunks {
    /// Chunks of a row that has pilots from all over it. Four chunks would be a large part of a shorter row; of it 16 elements
    /// in the middle do, whose mean is so near the row's that of ten thousand rows of normal numbers less than one is taken
    /// again.
    const LONG: usize = 16;

    /// Those of a row of so many chunks.
    #[inline(always)]
    fn of<T: Element>(chunks: usize) -> Self {
        if chunks >= Self::LONG {
            Self { first: 0, step: chunks / 4, count: 4 }
        } else {
            let count = if T::LANES < 16 { 2 } else { 1 };
            Self { first: (chunks - count) / 2, step: 1, count }
        }
    }

    /// Added up.
    #[inline(always)]
    fn sum<T: Element, I: Isa>(self, isa: I, chunks: &[T::Chunk]) -> T::Lanes<I> {
        // Not `map`: a closure handed to library code is compiled without this instruction set.
        let load = |k: usize| T::Lanes::load(isa, &chunks[self.first + k * self.step]);
        match self.count {
            1 => load(0),
            2 => load(0) + load(1),
            _ => (load(0) + load(1)) + (load(2) + load(3)),
        }
    }

    /// The share of one element in their mean.
    #[inline(always)]
    fn share<T: Element>(self) -> f64 {
        1.0 / (self.count * T::LANES) as f64
    }
}

/// The pilots of the rows in `x`, at most [`BATCH`] of at least 16 elements: numbers near their means; of a constant row the
/// constant, unless sums of it are infinite. They are summed together, so that no row waits for its own.
#[inline(always)]
pub(super) fn pilots<T: Element, I: Isa>(isa: I, x: &[T], width: usize) -> [T; BATCH] {
    let places = PilotChunks::of::<T>(width / T::LANES);
    let mut registers = [T::Lanes::splat(isa, T::ZERO); BATCH];
    for (row, register) in x.chunks_exact(width).zip(&mut registers) {
        *register = places.sum::<T, I>(isa, T::chunks(row).0);
    }
    rounded(T::Lanes::sums(isa, &registers) * I::F64::splat(isa, places.share::<T>()))
}

/// The [pilot](pilots) of one row.
#[inline(always)]
pub(super) fn pilot<T: Element, I: Isa>(isa: I, row: &[T]) -> T {
    let places = PilotChunks::of::<T>(row.len() / T::LANES);
    T::from_f64(places.sum::<T, I>(isa, T::chunks(row).0).sum() * places.share::<T>())
}

/// Asks for what the pilots of the rows in `x` are made of.
#[inline(always)]
pub(super) fn prefetch_pilots<T: Element, I: Isa>(isa: I, x: &[T], width: usize) {
    let PilotChunks { first, step, count } = PilotChunks::of::<T>(width / T::LANES);
    for row in x.chunks_exact(width) {
        let chunks = T::chunks(row).0;
        for k in 0..count {
            isa.prefetch(&chunks[first + k * step]);
        }
    }
}

/// `sum(d)` and `sum(d * d)` of `d = x - pilot` over whole rows, at most [`BATCH`] of them.
///
/// (Whole cache lines: a value that is written across two of them is long in coming back.)
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Moments<T> {
    pub(super) sum: [f64; BATCH],
    pub(super) squares: [f64; BATCH],
    pub(super) pilot: [T; BATCH],
}

/// Means and variances of rows: the mean of a row is `mean + correction`.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowStatistics<T> {
    /// The means, as rounded to the element type.
    pub(super) mean: [T; BATCH],
    /// The true means less `mean`.
    pub(super) correction: [f64; BATCH],
    /// The variances, without `epsilon`.
    pub(super) variance: [f64; BATCH],
}

impl<T: Element> Moments<T> {
    #[inline(always)]
    pub(super) fn statistics<I: Isa>(&self, isa: I, width: usize) -> RowStatistics<T> {
        let per_element = I::F64::splat(isa, 1.0 / width as f64);
        let load = |values: &[f64; BATCH]| I::F64::load(isa, values);
        let (sum, pilot) = (load(&self.sum), load(&to_f64(&self.pilot)));
        let distance = sum * per_element;
        let mean = rounded(pilot + distance);
        let correction = (pilot - load(&to_f64(&mean))) + distance;
        let mut variance = values((load(&self.squares) - distance * sum) * per_element);
        for i in 0..BATCH {
            variance[i] = not_negative(variance[i]);
        }
        RowStatistics { mean, correction: values(correction), variance }
    }

    /// Whether any row's pilot is so far from its mean that its variance loses digits.
    #[inline(always)]
    pub(super) fn is_any_far(&self, width: usize) -> bool {
        let per_element = 1.0 / width as f64;
        let mut is_any_far = false;
        for i in 0..BATCH {
            is_any_far |= self.row(i).is_far(per_element);
        }
        is_any_far
    }

    /// Those of one row.
    #[inline(always)]
    fn row(&self, i: usize) -> RowMoments<T> {
        RowMoments { pilot: self.pilot[i], sum: self.sum[i], squares: self.squares[i] }
    }
}

/// [`Moments`] of one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowMoments<T> {
    pub(super) pilot: T,
    pub(super) sum: f64,
    pub(super) squares: f64,
}

impl<T: Element> RowMoments<T> {
    /// Mean, correction and variance, as in [`RowStatistics`]; of a row of `x` whose pilot is far, about the mean that the
    /// first pass found.
    #[inline(always)]
    pub(super) fn statistics<I: Isa>(mut self, isa: I, x: &[T]) -> (T, f64, f64) {
        let width = x.len();
        let per_element = 1.0 / width as f64;
        if self.is_far(per_element) {
            let Self { pilot, sum, squares } = self;
            let moments = Moments { pilot: [pilot; BATCH], sum: [sum; BATCH], squares: [squares; BATCH] };
            self = isa.run(TakeAgain { moments, x, width }).row(0);
        }
        let distance = self.sum * per_element;
        let mean = T::from_f64(self.pilot.to_f64() + distance);
        let correction = (self.pilot.to_f64() - mean.to_f64()) + distance;
        (mean, correction, not_negative((self.squares - distance * self.sum) * per_element))
    }

    /// Whether the variance is less than the square of the distance; false where either is NaN.
    #[inline(always)]
    fn is_far(&self, per_element: f64) -> bool {
        self.squares < 2.0 * (self.sum * per_element) * self.sum
    }
}

/// The values of a register, rounded to the element type.
#[inline(always)]
pub(super) fn rounded<T: Element, I: Isa, L: Lanes<f64, I>>(register: L) -> [T; BATCH] {
    let exact = values(register);
    let mut found = [T::ZERO; BATCH];
    for i in 0..BATCH {
        found[i] = T::from_f64(exact[i]);
    }
    found
}

#[inline(always)]
pub(super) fn to_f64<T: Element>(elements: &[T; BATCH]) -> [f64; BATCH] {
    let mut found = [0.0; BATCH];
    for i in 0..BATCH {
        found[i] = elements[i].to_f64();
    }
    found
}

/// Takes the moments of the rows whose pilots are far again, about the mean that the first pass found.
#[derive(Debug)]
pub(super) struct TakeAgain<'a, T> {
    pub(super) moments: Moments<T>,
    /// The rows.
    pub(super) x: &'a [T],
    pub(super) width: usize,
}

impl<T: Element> Kernel for TakeAgain<'_, T> {
    type Output = Moments<T>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Moments<T> {
        let Self { mut moments, x, width } = self;
        let per_element = 1.0 / width as f64;
        for (i, row) in x.chunks_exact(width).enumerate() {
            if moments.row(i).is_far(per_element) {
                moments.pilot[i] = T::from_f64(moments.pilot[i].to_f64() + moments.sum[i] * per_element);
                (moments.sum[i], moments.squares[i]) = row_moments(isa, row, moments.pilot[i]);
            }
        }
        moments
    }
}

/// The larger of the value and zero; NaN where it is NaN (which `max` would turn into 0).
#[inline(always)]
fn not_negative(value: f64) -> f64 {
    if value < 0.0 { 0.0 } else { value }
}

/// The moments of one row about a number.
#[inline(always)]
fn row_moments<T: Element, I: Isa>(isa: I, x: &[T], pilot: T) -> (f64, f64) {
    let mut moments = [CompensatedSum::default(); 2];
    for segment in x.chunks(segment::<T>()) {
        let (sum, squares) = segment_moments(isa, segment, pilot);
        moments[0].add(sum);
        moments[1].add(squares);
    }
    (moments[0].value(), moments[1].value())
}

/// The moments of a segment about a number.
#[inline(always)]
pub(super) fn segment_moments<T: Element, I: Isa>(isa: I, x: &[T], pilot: T) -> (f64, f64) {
    let pilot = T::Lanes::splat(isa, pilot);
    let zero = LaneSums::<T::Lanes<I>>::zero(isa);
    let mut total = zero;
    let (chunks, tail) = T::chunks(x);
    for run in chunks.chunks(RUN * ACCUMULATORS) {
        let mut sums = [zero; ACCUMULATORS];
        let (groups, rest) = run.as_chunks::<ACCUMULATORS>();
        for group in groups {
            for i in 0..ACCUMULATORS {
                sums[i] = sums[i].plus(T::Lanes::load(isa, &group[i]) - pilot);
            }
        }
        for i in 0..ACCUMULATORS - 1 {
            if i < rest.len() {
                sums[i] = sums[i].plus(T::Lanes::load(isa, &rest[i]) - pilot);
            }
        }
        total = total + tree(sums);
    }
    if !tail.is_empty() {
        total = total.plus(T::Lanes::load_tail(isa, tail, pilot) - pilot);
    }
    (total.sum.sum(), total.squares.sum())
}

/// Four accumulators, added pairwise.
#[inline(always)]
pub(super) fn tree<L: Add<Output = L> + Copy>([a, b, c, d]: [L; ACCUMULATORS]) -> L {
    (a + b) + (c + d)
}
