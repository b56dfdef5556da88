//! The steps in which batches of rows are taken: one is normalized while the sums of the next are taken.

use super::piece::{Coefficients, Piece};
use super::plan::Plan;
use super::{Forward, save};
use crate::Element;
use crate::kernel::copy::Bring;
use crate::kernel::joined::Waiting;
use crate::kernel::stats::{self, BatchSums, CloseSegment, LaneSums, Moments, RowMoments, SegmentTotals, TakeAgain};
use crate::kernel::{JOINED, NOT_WRITTEN, STORED, STREAMED, careful, segment};
use crate::simd::{BATCH, Isa, Kernel, Lanes};
use std::ops::Range;

/// What the rows of a batch are normalized by.
///
/// At cache lines of its own: it is written as registers, and read by rows soon after, which waits where a register was cut.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Batch<T> {
    pub(super) variance: [f64; BATCH],
    pub(super) mean: [T; BATCH],
    pub(super) rstd: [T; BATCH],
    /// What the rounding of the mean lost, times `rstd`, negative.
    pub(super) minus_shift: [T; BATCH],
    /// Whether all rows are free of overflow and underflow.
    pub(super) ordinary: bool,
}

impl<T: Element> Batch<T> {
    /// Those of row `i`, in every lane.
    #[inline(always)]
    pub(super) fn coefficients<I: Isa>(&self, isa: I, i: usize) -> Coefficients<T::Lanes<I>> {
        Coefficients {
            mean: T::Lanes::splat(isa, self.mean[i]),
            rstd: T::Lanes::splat(isa, self.rstd[i]),
            minus_shift: T::Lanes::splat(isa, self.minus_shift[i]),
        }
    }
}

/// Batches of rows on their way.
#[derive(Debug)]
pub(super) struct Pipeline<'f, 'a, T: Element, I: Isa> {
    pub(super) isa: I,
    pub(super) plan: Plan,
    /// Rows whose sums are to be taken: whole batches.
    pub(super) rows: Range<usize>,
    /// The batch before them, which is to be normalized.
    pub(super) batch: Batch<T>,
    /// A batch of short rows, a row, or a tile of a long one, on the way past the caches.
    pub(super) staged: &'f mut [T],
    /// What waits for the next joined row.
    pub(super) waiting: Waiting<T::Lanes<I>>,
    pub(super) forward: &'f mut Forward<'a, T>,
}

/// A step of a pipeline as a function of its own, for those that take sums alone or write alone: so they are compiled once for
/// all widths.
#[derive(Debug)]
pub(super) struct Step<
    'p,
    'f,
    'a,
    T: Element,
    J: Isa,
    const WRITE: u8,
    const SUM: bool,
    const AFFINE: bool,
    const AHEAD: bool,
>(pub(super) &'p mut Pipeline<'f, 'a, T, J>);

impl<T: Element, J: Isa, const WRITE: u8, const SUM: bool, const AFFINE: bool, const AHEAD: bool> Kernel
    for Step<'_, '_, '_, T, J, WRITE, SUM, AFFINE, AHEAD>
{
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        self.0.step::<WRITE, SUM, AFFINE, AHEAD>();
    }
}

/// [`Pipeline::row`] as a function of its own, where no row is written.
#[derive(Debug)]
pub(super) struct SumsOfRow<'p, 'f, 'a, T: Element, J: Isa>(pub(super) &'p mut Pipeline<'f, 'a, T, J>);

impl<T: Element, J: Isa> Kernel for SumsOfRow<'_, '_, '_, T, J> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        self.0.row::<NOT_WRITTEN, false, false>();
    }
}

/// [`Pipeline::finish`] as a function of its own.
#[derive(Debug)]
pub(super) struct Finish<'p, 'f, 'a, T: Element, J: Isa> {
    pub(super) pipeline: &'p mut Pipeline<'f, 'a, T, J>,
    pub(super) pilots: [T; BATCH],
    /// `sum(d)` and `sum(d * d)`.
    pub(super) sums: &'p BatchSums<T, J, 2>,
    /// Of long rows.
    pub(super) totals: Option<&'p SegmentTotals<2>>,
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
    pub(super) fn step<const WRITE: u8, const SUM: bool, const AFFINE: bool, const AHEAD: bool>(&mut self) {
        let isa = self.isa;
        let plan = self.plan;
        let Plan { width, batch, tile, .. } = plan;
        let is_long = width > segment::<T>();
        let next = self.rows.start;
        // In the first step there is no batch before.
        let first = if const { WRITE == NOT_WRITTEN } { next } else { next - batch };
        let is_staged = const { WRITE == STORED } && !self.staged.is_empty();
        let Forward { parameters, x, y, .. } = &mut *self.forward;
        let following = if self.rows.len() > batch { &x[(next + batch) * width..][..batch * width] } else { &[] };
        let summed = if SUM { &x[next * width..][..batch * width] } else { &[] };
        let written = if const { WRITE == NOT_WRITTEN } { 0..0 } else { first * width..(first + batch) * width };
        let written_x = &x[written.clone()];
        let y_start = written.start;
        let (gamma, beta) = (parameters.gamma.unwrap_or(&[]), parameters.beta.unwrap_or(&[]));
        let zero = T::Lanes::splat(isa, T::ZERO);
        let mut sums = [[zero; BATCH]; 2];
        let mut totals = SegmentTotals::default();
        // Of each row of a batch that goes in tiles, what waits for the next tile.
        let mut of_rows = [Waiting::none(isa); BATCH];
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
                let is_joined_tile = const { WRITE == JOINED } && !plan.is_whole();
                if is_joined_tile && start == 0 {
                    let before = &y[..y_start + place];
                    // What the row before ends with is computed last.
                    of_rows[i] = if i == 0 { Waiting::at_end(isa, before) } else { Waiting::unknown(isa, before) };
                }
                let waiting = if is_joined_tile { &mut of_rows[i] } else { &mut self.waiting };
                let piece = Piece {
                    x: if const { WRITE == NOT_WRITTEN } { &[] } else { &written_x[place..][..len] },
                    y: match (WRITE, is_staged, plan.is_whole()) {
                        (JOINED, ..) => &mut y[y_start + place - waiting.count()..y_start + place + len],
                        (NOT_WRITTEN, ..) => &mut [],
                        (_, true, true) => &mut self.staged[i * width..][..width],
                        (_, true, false) => &mut self.staged[..len],
                        (_, false, _) => &mut y[y_start + place..][..len],
                    },
                    gamma,
                    beta,
                    summed: if SUM { &summed[place..][..len] } else { &[] },
                    ahead: if AHEAD { &x[ahead.min(x.len() - len)..][..len] } else { &[] },
                };
                let coefficients = self.batch.coefficients(isa, i);
                let about = T::Lanes::splat(isa, pilots[i]);
                let row = LaneSums { sum: sums[0][i], squares: sums[1][i] };
                let row = piece.run::<I, WRITE, SUM, AFFINE, AHEAD>(isa, coefficients, about, row, waiting);
                [sums[0][i], sums[1][i]] = [row.sum, row.squares];
                if is_joined_tile && end == width {
                    if i == 0 {
                        // The lines in which rows of the batch meet went past the caches without it.
                        isa.fence();
                    }
                    waiting.settle(&mut y[..y_start + place + len]);
                }
                if const { WRITE != NOT_WRITTEN } && is_staged && !plan.is_whole() {
                    let target = &mut y[y_start + place..][..len];
                    isa.run(Bring { staged: &self.staged[..len], target, accumulate: false, stream: true });
                }
            }
            if SUM && is_long && (end == width || end.is_multiple_of(segment::<T>())) {
                isa.run(CloseSegment::<T, I, 2> { isa, sums: &mut sums, totals: &mut totals });
            }
        }
        if const { WRITE != NOT_WRITTEN } {
            if is_staged && plan.is_whole() {
                let target = &mut y[y_start..][..batch * width];
                isa.run(Bring { staged: self.staged, target, accumulate: false, stream: true });
            }
            if !self.batch.ordinary {
                self.rescue::<WRITE>(first);
            }
        }
        if SUM {
            isa.run(Finish { pipeline: self, pilots, sums: &sums, totals: is_long.then_some(&totals) });
            self.rows.start += batch;
        }
    }

    /// [`step`](Self::step) of batches of one row that goes as a whole. What the next row is to be normalized by is computed
    /// without lanes, and while its sums wait for nothing else: a CPU that looks far ahead takes the sums of the row
    /// after it meanwhile.
    #[inline(always)]
    pub(super) fn row<const WRITE: u8, const AFFINE: bool, const AHEAD: bool>(&mut self) {
        let isa = self.isa;
        let width = self.plan.width;
        let next = self.rows.start;
        let written = if const { WRITE == NOT_WRITTEN } { 0..0 } else { (next - 1) * width..next * width };
        let Forward { parameters, x, y, .. } = &mut *self.forward;
        let summed = &x[next * width..][..width];
        let ahead = self.plan.ahead::<T>(next, 0, 0).min(x.len() - width);
        let is_staged = const { WRITE == STORED } && !self.staged.is_empty();
        let waiting = if const { WRITE == JOINED } { self.waiting.count() } else { 0 };
        let pilot = stats::pilot(isa, summed);
        let piece = Piece {
            x: &x[written.clone()],
            y: if is_staged { &mut *self.staged } else { &mut y[written.start - waiting..written.end] },
            gamma: if AFFINE { parameters.gamma.unwrap_or(&[]) } else { &[] },
            beta: if AFFINE { parameters.beta.unwrap_or(&[]) } else { &[] },
            summed,
            ahead: if AHEAD { &x[ahead..][..width] } else { &[] },
        };
        let row = piece.run::<I, WRITE, true, AFFINE, AHEAD>(
            isa,
            self.batch.coefficients(isa, 0),
            T::Lanes::splat(isa, pilot),
            LaneSums::zero(isa),
            &mut self.waiting,
        );
        if const { WRITE != NOT_WRITTEN } {
            if is_staged {
                isa.run(Bring { staged: self.staged, target: &mut y[written], accumulate: false, stream: true });
            }
            if !self.batch.ordinary {
                self.rescue::<WRITE>(next - 1);
            }
        }
        let moments = RowMoments { pilot, sum: row.sum.sum(), squares: row.squares.sum() };
        self.finish_row(moments.statistics(isa, summed));
        self.rows.start += 1;
    }

    /// Writes the first batch, to which joined rows are going to be joined.
    #[inline(always)]
    pub(super) fn write_first<const AFFINE: bool>(&mut self) {
        self.isa.run(Step::<_, _, STORED, false, AFFINE, false>(self));
        let written = self.rows.start * self.plan.width;
        if self.plan.is_whole() {
            self.waiting = Waiting::at_end(self.isa, &self.forward.y[..written]);
        }
    }

    /// Writes what still waits of joined rows, and the last batch.
    #[inline(always)]
    pub(super) fn write_last<const AFFINE: bool>(&mut self) {
        let written = (self.rows.start - self.plan.batch) * self.plan.width;
        self.waiting.settle(&mut self.forward.y[..written]);
        self.isa.run(Step::<_, _, STORED, false, AFFINE, false>(self));
    }

    /// Does the rows of the batch from `first` on again that are outside the ordinary range.
    #[inline(always)]
    pub(super) fn rescue<const WRITE: u8>(&mut self, first: usize) {
        let end = (first + self.plan.batch) * self.plan.width;
        let joins = const { WRITE == JOINED } && self.plan.is_whole();
        if joins {
            self.waiting.settle(&mut self.forward.y[..end]);
        }
        if WRITE == STREAMED || !self.staged.is_empty() {
            // Streamed rows are about to be written again.
            self.isa.fence();
        }
        self.forward.rescue(first, self.plan.batch, &self.batch.variance);
        if joins {
            self.waiting = Waiting::at_end(self.isa, &self.forward.y[..end]);
        }
    }

    /// What the next row is to be normalized by, as in [`finish`](Self::finish).
    #[inline(always)]
    fn finish_row(&mut self, (mean, correction, variance): (T, f64, f64)) {
        let epsilon = self.forward.parameters.epsilon;
        let with_epsilon = variance + epsilon;
        let (rstd, minus_shift, reported_mean) = rounded(mean, correction, root::<T>(with_epsilon));
        (self.batch.mean[0], self.batch.rstd[0], self.batch.minus_shift[0]) = (mean, rstd, minus_shift);
        self.batch.variance[0] = variance;
        self.batch.ordinary = careful::is_ordinary::<T>(variance, with_epsilon);
        save(&mut self.forward.mean, self.rows.start, &[reported_mean]);
        save(&mut self.forward.rstd, self.rows.start, &[rstd]);
    }

    /// What the batch is to be normalized by; its statistics are saved where they are wanted.
    #[inline(always)]
    pub(super) fn finish(&mut self, mut moments: Moments<T>) {
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
        for i in 0..BATCH {
            with_epsilon[i] = found.variance[i] + epsilon;
            roots[i] = root::<T>(with_epsilon[i]);
        }
        let mut ordinary = true;
        let mut reported_mean = [T::ZERO; BATCH];
        self.batch.mean = found.mean;
        self.batch.variance = found.variance;
        for i in 0..BATCH {
            ordinary &= careful::is_ordinary::<T>(found.variance[i], with_epsilon[i]);
            (self.batch.rstd[i], self.batch.minus_shift[i], reported_mean[i]) =
                rounded(found.mean[i], found.correction[i], roots[i]);
        }
        self.batch.ordinary = ordinary;
        save(&mut self.forward.mean, first, &reported_mean[..batch]);
        save(&mut self.forward.rstd, first, &self.batch.rstd[..batch]);
    }
}

/// rstd, `-correction * rstd`, and the mean that is reported: `mean` is what is subtracted, `root` the exact rstd.
#[inline(always)]
fn rounded<T: Element>(mean: T, correction: f64, root: f64) -> (T, T, T) {
    (T::from_f64(root), T::from_f64(-(correction * root)), T::from_f64(mean.to_f64() + correction))
}

/// `rstd`, of the variance with `epsilon`: of `f64` rows, which have no wider type to be rounded from, by a step of Newton's
/// iteration, `r + r (1 - v r^2) / 2`, that takes off what the root and the quotient were rounded by.
#[inline(always)]
fn root<T: Element>(with_epsilon: f64) -> f64 {
    let root = 1.0 / with_epsilon.sqrt();
    if !T::HAS_WIDE_RANGE {
        return root;
    }
    let product = with_epsilon * root;
    let lost = with_epsilon.mul_add(root, -product);
    let error = (-product).mul_add(root, 1.0) - lost * root;
    root.mul_add(0.5 * error, root)
}

#[cfg(test)]
mod tests {
    use super::root;
    use crate::kernel::wide::{Double, Wide};

    /// Rounded once, `rstd` is off by a factor of `1 + 2^-53` at most; a root and a quotient that are each rounded by more.
    #[test]
    fn rstd_of_f64_rows_is_rounded_once() {
        for i in 0..20_000 {
            let variance = 2.0_f64.powi(i % 1200 - 600) * (1.0 + f64::from(i) / 9973.0);
            let rstd = Double::new(root::<f64>(variance));
            let error = (Double::new(variance) * rstd * rstd - Double::new(1.0)).value();
            assert!(error.abs() <= 1.001 * 2.0_f64.powi(-52), "variance {variance:e}: {:e}", error);
        }
    }
}
