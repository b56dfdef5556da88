//! The mean and `rstd` of a row: a shifted algorithm in one pass, with a correction.
//!
//! A *pilot* is a number of the element type near the mean: that of four chunks spread over the row (of all
//! elements where there are no more), taken as `x0 + mean(x - x0)` with the row's first element `x0`. Then one pass
//! takes `d = x - pilot`, `sum(d)` and `sum(d * d)`, and
//!
//! ```text
//! c    = sum(d) / width                        the distance of the mean from the pilot
//! var  = sum(d * d) / width - c^2
//! rstd = 1 / sqrt(var + epsilon)
//! ```
//!
//! What is added up has the size of the row's spread, not of its mean: a row at 1e8 with a spread of 10 loses
//! nothing. The difference cancels only where `c^2` is not small beside `var`; with a pilot of 64 elements it is about
//! 1/64 of it. Where it is more than `var`, as in a row whose four chunks are unlike the rest, a second pass is
//! taken about the mean that the first one found: the corrected two-pass algorithm. (Chan, Golub and LeVeque,
//! "Algorithms for Computing the Sample Variance", 1983, have both.)
//!
//! The mean is kept as `pilot + c`, rounded to the element type, and what that rounding lost, the *correction*; both are
//! subtracted from x. Rows longer than a segment are taken segment by segment, and the segments' moments put together
//! in `f64`. So a row is read from memory once for its statistics, however long it is.

use crate::Element;
use crate::simd::{BATCH, Isa, Lanes};

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

/// The moments of segments about a number near the mean of each, at most [`BATCH`] of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments<T> {
    /// The number that was subtracted from each element.
    mean: [T; BATCH],
    /// `sum(x - mean)`.
    sum: [f64; BATCH],
    /// `sum((x - mean)^2)`.
    squares: [f64; BATCH],
}

/// The moments of one segment of a long row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    len: f64,
    mean: f64,
    sum: f64,
    squares: f64,
}

/// Means and variances of rows: the mean of a row is `mean + correction`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowStatistics<T> {
    /// The means, as rounded to the element type.
    pub(crate) mean: [T; BATCH],
    /// The true means less `mean`.
    pub(crate) correction: [f64; BATCH],
    /// The variances, without `epsilon`.
    pub(crate) variance: [f64; BATCH],
}

/// The statistics of at most [`BATCH`] rows, each of one segment at most.
///
/// Rows go together so that one finds work to do while the sums of another are finished.
#[inline(always)]
pub(super) fn short_rows<T: Element, I: Isa, const CHUNKS: usize>(
    isa: I,
    x: &[T],
    rows: usize,
    width: usize,
) -> RowStatistics<T> {
    let moments = moments::<T, I, CHUNKS>(isa, x, rows, width);
    let per_element = 1.0 / width as f64;
    let mut found = RowStatistics { mean: [T::ZERO; BATCH], correction: [0.0; BATCH], variance: [0.0; BATCH] };
    for i in 0..BATCH {
        let pilot = moments.mean[i].to_f64();
        let distance = moments.sum[i] * per_element;
        found.mean[i] = T::from_f64(pilot + distance);
        found.correction[i] = (pilot - found.mean[i].to_f64()) + distance;
        found.variance[i] = not_negative((moments.squares[i] - distance * moments.sum[i]) * per_element);
    }
    found
}

/// The statistics of one row of several segments, in the first place of each array.
#[inline(always)]
pub(super) fn long_row<T: Element, I: Isa>(isa: I, x: &[T], segments: &mut Vec<Segment>) -> RowStatistics<T> {
    segments.clear();
    let len = super::segment::<T>();
    for segment in x.chunks(len) {
        let moments = moments::<T, I, 0>(isa, segment, 1, segment.len());
        segments.push(Segment {
            len: segment.len() as f64,
            mean: moments.mean[0].to_f64(),
            sum: moments.sum[0],
            squares: moments.squares[0],
        });
    }
    from_segments(segments)
}

/// Puts together the moments of a row's segments.
fn from_segments<T: Element>(segments: &[Segment]) -> RowStatistics<T> {
    let mut found = RowStatistics { mean: [T::ZERO; BATCH], correction: [0.0; BATCH], variance: [0.0; BATCH] };
    let Some(first) = segments.first() else {
        return found;
    };
    // Means of the segments, as distances from that of the first: those are small where the row's mean is large.
    let distance = |segment: &Segment| (segment.mean - first.mean) + segment.sum / segment.len;
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
    found.mean[0] = T::from_f64(first.mean + shift);
    found.correction[0] = (first.mean - found.mean[0].to_f64()) + shift;
    found.variance[0] = not_negative(squares.value() / width);
    found
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

/// The moments of at most [`BATCH`] rows or segments of one width.
#[inline(always)]
fn moments<T: Element, I: Isa, const CHUNKS: usize>(isa: I, x: &[T], rows: usize, width: usize) -> Moments<T> {
    let pilots = pilots::<T, I, CHUNKS>(isa, x, rows, width);
    let mut found = moments_about::<T, I, CHUNKS>(isa, x, rows, width, pilots);
    let per_element = 1.0 / width as f64;
    let is_far = |found: &Moments<T>, i: usize| {
        let mean = found.sum[i] * per_element;
        // True where the variance is less than the square of the distance; false where either is NaN.
        found.squares[i] < 2.0 * mean * found.sum[i]
    };
    let mut any_is_far = false;
    for i in 0..BATCH {
        any_is_far |= is_far(&found, i);
    }
    if any_is_far {
        let mut means = pilots;
        for i in 0..BATCH {
            if is_far(&found, i) {
                means[i] = T::from_f64(pilots[i].to_f64() + found.sum[i] * per_element);
            }
        }
        found = moments_about::<T, I, 0>(isa, x, rows, width, means);
    }
    found
}

/// The number of rows and their width. Where `CHUNKS` is not 0 there are [`BATCH`] rows of so many chunks and no tail, and
/// the compiler knows it: the loops over short rows then have no loop left in them.
#[inline(always)]
pub(super) fn known<T: Element, const CHUNKS: usize>(rows: usize, width: usize) -> (usize, usize) {
    if CHUNKS > 0 { (BATCH, CHUNKS * T::LANES) } else { (rows, width) }
}

/// Chunks of a row that its pilot is the mean of.
const PILOT: usize = 4;

/// A number near the mean of each row.
#[inline(always)]
fn pilots<T: Element, I: Isa, const CHUNKS: usize>(isa: I, x: &[T], rows: usize, width: usize) -> [T; BATCH] {
    let zero = T::Lanes::splat(isa, T::ZERO);
    let mut totals = [zero; BATCH];
    let mut first = [T::ZERO; BATCH];
    let (rows, width) = known::<T, CHUNKS>(rows, width);
    let chunks = width / T::LANES;
    let count = PILOT.min(chunks);
    // Four equal steps, of one chunk at least: `chunks` is 4 at least where there are four.
    let step = (chunks / PILOT).max(1);
    for i in 0..rows.min(BATCH) {
        let row = &x[i * width..][..width];
        first[i] = row[0];
        let shift = T::Lanes::splat(isa, row[0]);
        let row = T::chunks(row).0;
        for k in 0..count {
            totals[i] = totals[i] + (T::Lanes::load(isa, &row[k * step]) - shift);
        }
    }
    let totals = T::Lanes::sums(totals);
    let per_element = 1.0 / (count * T::LANES).max(1) as f64;
    let mut found = [T::ZERO; BATCH];
    for i in 0..BATCH {
        found[i] = T::from_f64(first[i].to_f64() + totals[i] * per_element);
    }
    found
}

/// The moments of rows about given numbers.
#[inline(always)]
fn moments_about<T: Element, I: Isa, const CHUNKS: usize>(
    isa: I,
    x: &[T],
    rows: usize,
    width: usize,
    mean: [T; BATCH],
) -> Moments<T> {
    let zero = T::Lanes::splat(isa, T::ZERO);
    let [mut sum, mut squares] = [[zero; BATCH]; 2];
    let (rows, width) = known::<T, CHUNKS>(rows, width);
    for i in 0..rows.min(BATCH) {
        (sum[i], squares[i]) = sum_and_squares(isa, &x[i * width..][..width], mean[i]);
    }
    Moments { mean, sum: T::Lanes::sums(sum), squares: T::Lanes::sums(squares) }
}

/// `sum(d)` and `sum(d * d)` of `d = x - mean`, lane by lane.
#[inline(always)]
fn sum_and_squares<T: Element, I: Isa>(isa: I, x: &[T], mean: T) -> (T::Lanes<I>, T::Lanes<I>) {
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
    (total, total_squares)
}

/// Four accumulators, added pairwise.
#[inline(always)]
fn tree<L: std::ops::Add<Output = L> + Copy>([a, b, c, d]: [L; ACCUMULATORS]) -> L {
    (a + b) + (c + d)
}
