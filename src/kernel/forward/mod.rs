//! Forward: `y = gamma * xhat + beta`, with the statistics of [`stats`](super::stats).
//!
//! Rows go in batches. While a batch is normalized, the sums of the next are taken in the same loop
//! ([`piece`]): x is read from memory once, in one even stream, and again from cache; `y` is written once, past the caches
//! where the caller asks for that.
//!
//! Rows too long for a first-level cache to hold two of them go in tiles of columns, all rows of the batch to a tile, so
//! that gamma and beta are read once a batch and not once a row. Rows so long that several threads share them go in the
//! steps of [`long_rows`].

pub(crate) mod long_rows;
mod narrow;
mod piece;

use super::careful::{self, CarefulRow};
use super::copy::Bring;
use super::stats::{self, BatchSums, CloseSegment, LaneSums, Moments, SegmentTotals, TakeAgain};
use super::wide::Wide;
use super::wide_lanes::WideLanes;
use super::{NOT_WRITTEN, STORED, STREAMED, room};
use crate::Element;
use crate::simd::{BATCH, Isa, Kernel, Lanes, values};
use piece::{Coefficients, Piece};
use std::ops::Range;

/// What forward needs besides x: the same for all rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameters<'a, T> {
    pub(crate) width: usize,
    /// `width` elements, or none for all ones.
    pub(crate) gamma: Option<&'a [T]>,
    /// `width` elements, or none for all zeros.
    pub(crate) beta: Option<&'a [T]>,
    pub(crate) epsilon: f64,
}

/// Where inputs and outputs are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the second-level cache of a core.
    Near,
    /// In a cache that cores share.
    Shared,
    /// In memory: outputs are written past the caches.
    Memory,
}

/// Forward over a block of rows.
#[derive(Debug)]
pub(crate) struct Forward<'a, T> {
    /// gamma and beta are both there, or neither.
    pub(crate) parameters: Parameters<'a, T>,
    /// `rows * width` elements.
    pub(crate) x: &'a [T],
    /// As many.
    pub(crate) y: &'a mut [T],
    /// The mean of each row, where it is wanted.
    pub(crate) mean: Option<&'a mut [T]>,
    /// `rstd` of each row, where it is wanted.
    pub(crate) rstd: Option<&'a mut [T]>,
    pub(crate) place: Place,
    /// Room for outputs on their way past the caches.
    pub(crate) staged: &'a mut Vec<T>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        if self.parameters.width < careful::NARROW {
            return self.narrow_rows(isa);
        }
        let is_aligned = super::misaligned(self.y) == 0 && self.parameters.width.is_multiple_of(T::LANES);
        let is_affine = self.parameters.gamma.is_some();
        if !I::SPECIALIZED {
            // One loop does for those that neither ask for memory ahead nor write past the caches.
            return match is_affine {
                false => self.all_rows::<I, STORED, false, false>(isa),
                true => self.all_rows::<I, STORED, true, false>(isa),
            };
        }
        match (self.place, is_affine) {
            (Place::Near, false) => self.all_rows::<I, STORED, false, false>(isa),
            (Place::Near, true) => self.all_rows::<I, STORED, true, false>(isa),
            (Place::Memory, false) if is_aligned => self.all_rows::<I, STREAMED, false, true>(isa),
            (Place::Memory, true) if is_aligned => self.all_rows::<I, STREAMED, true, true>(isa),
            (_, false) => self.all_rows::<I, STORED, false, true>(isa),
            (_, true) => self.all_rows::<I, STORED, true, true>(isa),
        }
        if self.place == Place::Memory {
            isa.fence();
        }
    }
}

/// How rows of some width are taken.
#[derive(Clone, Copy, Debug)]
struct Plan {
    width: usize,
    /// Rows that go together.
    batch: usize,
    /// Columns that go together: all, or whole chunks.
    tile: usize,
}

impl Plan {
    /// Bytes of a batch of short rows: of the batch that is written and of the next, with gamma and beta, so much that a
    /// first-level cache holds them.
    const BATCH_BYTES: usize = 12 << 10;
    /// Bytes of a row that goes as a whole, at most.
    const WHOLE: usize = 8 << 10;
    /// Chunks in a tile of a longer row: whole runs, and a segment has a whole number of tiles.
    const TILE: usize = 64;
    /// Chunks from one that is read to the one that is asked for from memory. No multiple of 4 KiB,
    /// as rows may be: what is asked for, read and written would all have one place in a page, and with 64 chunks 2048x1024
    /// took 1.31 times as long as a copy where it takes 1.20 (medians on a Xeon).
    const AHEAD: usize = 40;

    fn new<T: Element>(width: usize, is_affine: bool) -> Self {
        let bytes = width * size_of::<T>();
        if bytes <= Self::WHOLE {
            Self { width, batch: (Self::BATCH_BYTES / bytes).clamp(1, BATCH), tile: width }
        } else {
            // Rows share what a tile reads of gamma and beta; without those, one row at a time is found in nearer caches.
            Self { width, batch: if is_affine { BATCH } else { 1 }, tile: Self::TILE * T::LANES }
        }
    }

    /// Where `CHUNKS` is not 0 the rows are of so many chunks without a tail, in full batches, and the compiler knows it: the
    /// loops over short rows then have no loop left in them.
    #[inline(always)]
    fn known<T: Element, const CHUNKS: usize>(self) -> Self {
        if const { CHUNKS > 0 } {
            Self { width: CHUNKS * T::LANES, batch: BATCH, tile: CHUNKS * T::LANES }
        } else {
            self
        }
    }

    /// Whether rows go as a whole.
    #[inline(always)]
    fn is_whole(self) -> bool {
        self.tile == self.width
    }

    /// The element to ask for while that of a row of the batch from `first` on is read which `column` begins.
    #[inline(always)]
    fn ahead<T: Element>(self, first: usize, row: usize, column: usize) -> usize {
        if self.is_whole() {
            return (first + row) * self.width + Self::AHEAD * T::LANES;
        }
        // Tiles of the rows of a batch come one after the other.
        let tile = column / self.tile * self.batch + row + 1;
        let (tile, row) = (tile / self.batch * self.tile, tile % self.batch);
        if tile < self.width { (first + row) * self.width + tile } else { (first + self.batch + row) * self.width }
    }
}

/// What the rows of a batch are normalized by.
#[derive(Clone, Copy, Debug, Default)]
struct Batch<T> {
    mean: [T; BATCH],
    rstd: [T; BATCH],
    /// What the rounding of the mean lost, times `rstd`, negative.
    minus_shift: [T; BATCH],
    variance: [f64; BATCH],
    /// Whether all rows are free of overflow and underflow.
    ordinary: bool,
}

impl<T: Element> Forward<'_, T> {
    /// Full batches of the commonest short widths by loops of known length, all other rows by loops over any.
    #[inline(always)]
    fn all_rows<I: Isa, const WRITE: u8, const AFFINE: bool, const AHEAD: bool>(&mut self, isa: I) {
        let width = self.parameters.width;
        let rows = self.x.len() / width;
        let mut plan = Plan::new::<T>(width, AFFINE);
        let mut first = 0;
        // The last batch may have fewer rows.
        while first < rows {
            plan.batch = plan.batch.min(rows - first);
            let full = first..rows - (rows - first) % plan.batch;
            first = full.end;
            // Of f64 other widths are common.
            if const { I::SPECIALIZED && !T::HAS_WIDE_RANGE } && plan.batch == BATCH {
                if width == 4 * T::LANES {
                    self.batches::<I, 4, WRITE, AFFINE, AHEAD>(isa, plan, full);
                    continue;
                } else if width == 16 * T::LANES {
                    self.batches::<I, 16, WRITE, AFFINE, AHEAD>(isa, plan, full);
                    continue;
                }
            }
            self.batches::<I, 0, WRITE, AFFINE, AHEAD>(isa, plan, full);
        }
    }

    /// Full batches: the sums of the first are taken, then each is normalized while the sums of the next are taken, and
    /// then the last is normalized.
    #[inline(always)]
    fn batches<I: Isa, const CHUNKS: usize, const WRITE: u8, const AFFINE: bool, const AHEAD: bool>(
        &mut self,
        isa: I,
        plan: Plan,
        rows: Range<usize>,
    ) {
        // Rows that do not lie at multiples of 64 bytes go past the caches by way of a buffer: of each stretch, the cache
        // lines at its two ends cannot be streamed.
        let is_staged = WRITE == STORED && AHEAD && self.place == Place::Memory;
        let mut buffer = std::mem::take(self.staged);
        let staged = match (is_staged, plan.is_whole()) {
            (false, _) => &mut [],
            (true, true) => room(&mut buffer, plan.batch * plan.width),
            (true, false) => room(&mut buffer, plan.tile),
        };
        let mut pipeline = Pipeline { isa, plan, rows, batch: Batch::default(), staged, forward: self };
        isa.run(Step::<_, _, NOT_WRITTEN, true, false, true>(&mut pipeline));
        while !pipeline.rows.is_empty() {
            pipeline.step::<CHUNKS, WRITE, true, AFFINE, AHEAD>();
        }
        isa.run(Step::<_, _, WRITE, false, AFFINE, false>(&mut pipeline));
        *self.staged = buffer;
    }

    /// Does the rows of a batch again that are outside the ordinary range.
    #[inline(never)]
    fn rescue(&mut self, first: usize, rows: usize, variance: &[f64; BATCH]) {
        let width = self.parameters.width;
        for row in 0..rows {
            let span = (first + row) * width..(first + row + 1) * width;
            let x = &self.x[span.clone()];
            let with_epsilon = variance[row] + self.parameters.epsilon;
            // A constant row is right where the variance with `epsilon` is.
            let is_right = careful::is_ordinary::<T>(variance[row], with_epsilon)
                || careful::is_ordinary::<T>(with_epsilon, with_epsilon) && careful::is_constant(x);
            if !is_right {
                let (mean, rstd) = careful_row(&self.parameters, x, &mut self.y[span]);
                save(&mut self.mean, first + row, &[mean]);
                save(&mut self.rstd, first + row, &[rstd]);
            }
        }
    }
}

/// Batches of rows on their way.
#[derive(Debug)]
struct Pipeline<'f, 'a, T, I> {
    isa: I,
    plan: Plan,
    /// Rows whose sums are to be taken: whole batches.
    rows: Range<usize>,
    /// The batch before them, which is to be normalized.
    batch: Batch<T>,
    /// A batch of short rows, or a tile of a long one, on the way past the caches.
    staged: &'f mut [T],
    forward: &'f mut Forward<'a, T>,
}

/// A step of a pipeline as a function of its own, for the first and the last, which are taken once: so they are compiled
/// once for all widths.
#[derive(Debug)]
struct Step<'p, 'f, 'a, T, J, const WRITE: u8, const SUM: bool, const AFFINE: bool, const AHEAD: bool>(
    &'p mut Pipeline<'f, 'a, T, J>,
);

impl<T: Element, J: Isa, const WRITE: u8, const SUM: bool, const AFFINE: bool, const AHEAD: bool> Kernel
    for Step<'_, '_, '_, T, J, WRITE, SUM, AFFINE, AHEAD>
{
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        self.0.step::<0, WRITE, SUM, AFFINE, AHEAD>();
    }
}

/// [`Pipeline::finish`] as a function of its own.
#[derive(Debug)]
struct Finish<'p, 'f, 'a, T: Element, J: Isa> {
    pipeline: &'p mut Pipeline<'f, 'a, T, J>,
    pilots: [T; BATCH],
    /// `sum(d)` and `sum(d * d)`.
    sums: &'p BatchSums<T, J, 2>,
    /// Of long rows.
    totals: Option<&'p SegmentTotals<2>>,
}

impl<T: Element, J: Isa> Kernel for Finish<'_, '_, '_, T, J> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let [sum, squares] = stats::of_rows::<T, J, 2>(self.pipeline.isa, self.sums, self.totals);
        self.pipeline.finish(Moments { pilot: self.pilots, sum, squares });
    }
}

impl<T: Element, I: Isa> Pipeline<'_, '_, T, I> {
    /// Normalizes a batch, where `WRITE` says so, and takes the moments of the next, where `SUM` does.
    #[inline(always)]
    fn step<const CHUNKS: usize, const WRITE: u8, const SUM: bool, const AFFINE: bool, const AHEAD: bool>(&mut self) {
        let isa = self.isa;
        let plan = self.plan.known::<T, CHUNKS>();
        let Plan { width, batch, tile } = plan;
        let is_long = CHUNKS == 0 && width > super::segment::<T>();
        let next = self.rows.start;
        // In the first step there is no batch before.
        let first = if const { WRITE == NOT_WRITTEN } { next } else { next - batch };
        let is_staged = !self.staged.is_empty();
        let Forward { parameters, x, y, .. } = &mut *self.forward;
        let following = if self.rows.len() > batch { &x[(next + batch) * width..][..batch * width] } else { &[] };
        let summed = if SUM { &x[next * width..][..batch * width] } else { &[] };
        let written = if const { WRITE == NOT_WRITTEN } { 0..0 } else { first * width..(first + batch) * width };
        let (written_x, y) = (&x[written.clone()], &mut y[written]);
        let (gamma, beta) = (parameters.gamma.unwrap_or(&[]), parameters.beta.unwrap_or(&[]));
        let zero = T::Lanes::splat(isa, T::ZERO);
        let mut sums = [[zero; BATCH]; 2];
        let mut totals = SegmentTotals::default();
        let pilots = if SUM { stats::pilots(isa, summed, width) } else { [T::ZERO; BATCH] };
        if AHEAD {
            stats::prefetch_pilots(isa, following, width);
        }
        for start in (0..width).step_by(tile) {
            let end = width.min(start + tile);
            let len = end - start;
            let gamma = if AFFINE { &gamma[start..end] } else { gamma };
            let beta = if AFFINE { &beta[start..end] } else { beta };
            for i in 0..batch {
                let ahead = plan.ahead::<T>(next, i, start);
                let place = i * width + start;
                let piece = Piece {
                    x: if const { WRITE == NOT_WRITTEN } { &[] } else { &written_x[place..][..len] },
                    y: match (WRITE, is_staged, plan.is_whole()) {
                        (NOT_WRITTEN, ..) => &mut [],
                        (_, true, true) => &mut self.staged[i * width..][..width],
                        (_, true, false) => &mut self.staged[..len],
                        (_, false, _) => &mut y[place..][..len],
                    },
                    gamma,
                    beta,
                    summed: if SUM { &summed[place..][..len] } else { &[] },
                    ahead: if AHEAD { &x[ahead.min(x.len() - len)..][..len] } else { &[] },
                };
                let coefficients = Coefficients {
                    mean: T::Lanes::splat(isa, self.batch.mean[i]),
                    rstd: T::Lanes::splat(isa, self.batch.rstd[i]),
                    minus_shift: T::Lanes::splat(isa, self.batch.minus_shift[i]),
                };
                let about = T::Lanes::splat(isa, pilots[i]);
                let row = LaneSums { sum: sums[0][i], squares: sums[1][i] };
                let row = piece.run::<I, WRITE, SUM, AFFINE, AHEAD>(isa, coefficients, about, row);
                [sums[0][i], sums[1][i]] = [row.sum, row.squares];
                if const { WRITE != NOT_WRITTEN } && is_staged && !plan.is_whole() {
                    let target = &mut y[place..][..len];
                    isa.run(Bring { staged: &self.staged[..len], target, accumulate: false, stream: true });
                }
            }
            if SUM && is_long && (end == width || end.is_multiple_of(super::segment::<T>())) {
                isa.run(CloseSegment::<T, I, 2> { isa, sums: &mut sums, totals: &mut totals });
            }
        }
        if const { WRITE != NOT_WRITTEN } {
            if is_staged && plan.is_whole() {
                isa.run(Bring { staged: self.staged, target: y, accumulate: false, stream: true });
            }
            if !self.batch.ordinary {
                if WRITE == STREAMED || is_staged {
                    // Streamed rows are about to be written again.
                    isa.fence();
                }
                self.forward.rescue(first, batch, &self.batch.variance);
            }
        }
        if SUM {
            isa.run(Finish { pipeline: self, pilots, sums: &sums, totals: is_long.then_some(&totals) });
            self.rows.start += batch;
        }
    }

    /// What the batch is to be normalized by; its statistics are saved where they are wanted.
    #[inline(always)]
    fn finish(&mut self, mut moments: Moments<T>) {
        let Plan { width, batch, .. } = self.plan;
        let first = self.rows.start;
        for i in batch..BATCH {
            // No row, but an ordinary one.
            moments.squares[i] = width as f64;
        }
        if moments.is_any_far(width) {
            let x = &self.forward.x[first * width..][..batch * width];
            moments = self.isa.run(TakeAgain { moments, x, width });
        }
        let found = moments.statistics(self.isa, width);
        let epsilon = self.forward.parameters.epsilon;
        let (mut roots, mut with_epsilon) = ([0.0; BATCH], [0.0; BATCH]);
        if T::HAS_WIDE_RANGE {
            // `f64` rows have no wider type to finish in but a pair.
            let variance = I::F64::load(self.isa, &found.variance);
            let variance =
                <T::Wide as Wide>::Lanes::<I>::new(self.isa, variance).plus(I::F64::splat(self.isa, epsilon));
            with_epsilon = values(variance.value());
            roots = values(variance.reciprocal_sqrt().value());
            let mut finite = true;
            for i in 0..BATCH {
                finite &= roots[i].is_finite();
            }
            if !finite {
                scalar_roots::<T>(&found.variance, epsilon, &mut roots);
            }
        } else {
            for i in 0..BATCH {
                with_epsilon[i] = found.variance[i] + epsilon;
                roots[i] = 1.0 / with_epsilon[i].sqrt();
            }
        }
        let mut ordinary = true;
        let mut reported_mean = [T::ZERO; BATCH];
        self.batch.mean = found.mean;
        self.batch.variance = found.variance;
        for i in 0..BATCH {
            ordinary &= careful::is_ordinary::<T>(found.variance[i], with_epsilon[i]);
            self.batch.rstd[i] = T::from_f64(roots[i]);
            self.batch.minus_shift[i] = T::from_f64(-(found.correction[i] * roots[i]));
            reported_mean[i] = T::from_f64(found.mean[i].to_f64() + found.correction[i]);
        }
        self.batch.ordinary = ordinary;
        save(&mut self.forward.mean, first, &reported_mean[..batch]);
        save(&mut self.forward.rstd, first, &self.batch.rstd[..batch]);
    }
}

/// `1 / sqrt(variance + epsilon)` of rows near the end of the range, where numbers in lanes overflow on the way.
#[inline(never)]
fn scalar_roots<T: Element>(variance: &[f64; BATCH], epsilon: f64, roots: &mut [f64; BATCH]) {
    for i in 0..BATCH {
        roots[i] = (T::Wide::new(variance[i]) + T::Wide::new(epsilon)).reciprocal_sqrt().value();
    }
}

/// Writes the statistics of rows from `first` on, where they are wanted.
#[inline(always)]
fn save<T: Copy>(all: &mut Option<&mut [T]>, first: usize, values: &[T]) {
    if let Some(all) = all {
        all[first..first + values.len()].copy_from_slice(values);
    }
}

/// A row that is computed with care; its mean and `rstd`.
#[inline(always)]
fn careful_row<T: Element>(parameters: &Parameters<'_, T>, x: &[T], y: &mut [T]) -> (T, T) {
    match CarefulRow::new(x, parameters.epsilon) {
        Some(row) => {
            row.normalize(parameters.gamma, parameters.beta, y);
            (row.mean(), row.rstd())
        }
        None => {
            let nan = T::from_f64(f64::NAN);
            y.fill(nan);
            (nan, nan)
        }
    }
}
