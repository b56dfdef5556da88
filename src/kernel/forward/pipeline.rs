//! The steps in which batches of rows are taken: one is normalized while the sums of the next are taken.

use super::piece::{Coefficients, Piece};
use super::plan::Plan;
use super::{Forward, save};
use crate::Element;
use crate::kernel::copy::Bring;
use crate::kernel::stats::{self, BatchSums, CloseSegment, LaneSums, Moments, SegmentTotals, TakeAgain};
use crate::kernel::wide::Wide;
use crate::kernel::wide_lanes::WideLanes;
use crate::kernel::{NOT_WRITTEN, STREAMED, careful, segment};
use crate::simd::{BATCH, Isa, Kernel, Lanes, values};
use std::ops::Range;

/// What the rows of a batch are normalized by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Batch<T> {
    pub(super) mean: [T; BATCH],
    pub(super) rstd: [T; BATCH],
    /// What the rounding of the mean lost, times `rstd`, negative.
    pub(super) minus_shift: [T; BATCH],
    pub(super) variance: [f64; BATCH],
    /// Whether all rows are free of overflow and underflow.
    pub(super) ordinary: bool,
}

/// Batches of rows on their way.
#[derive(Debug)]
pub(super) struct Pipeline<'f, 'a, T, I> {
    pub(super) isa: I,
    pub(super) plan: Plan,
    /// Rows whose sums are to be taken: whole batches.
    pub(super) rows: Range<usize>,
    /// The batch before them, which is to be normalized.
    pub(super) batch: Batch<T>,
    /// A batch of short rows, or a tile of a long one, on the way past the caches.
    pub(super) staged: &'f mut [T],
    pub(super) forward: &'f mut Forward<'a, T>,
}

/// A step of a pipeline as a function of its own, for the first and the last, which are taken once: so they are compiled
/// once for all widths.
#[derive(Debug)]
pub(super) struct Step<'p, 'f, 'a, T, J, const WRITE: u8, const SUM: bool, const AFFINE: bool, const AHEAD: bool>(
    pub(super) &'p mut Pipeline<'f, 'a, T, J>,
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
    pub(super) fn step<const CHUNKS: usize, const WRITE: u8, const SUM: bool, const AFFINE: bool, const AHEAD: bool>(
        &mut self,
    ) {
        let isa = self.isa;
        let plan = self.plan.known::<T, CHUNKS>();
        let Plan { width, batch, tile } = plan;
        let is_long = CHUNKS == 0 && width > segment::<T>();
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
            if SUM && is_long && (end == width || end.is_multiple_of(segment::<T>())) {
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
