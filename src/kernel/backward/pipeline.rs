//! The steps in which batches of rows are taken: sums, and gradients, each alone or both in one loop. Those of rows that go one
//! at a time are in [`row`], those that write gradients alone in [`write`](mod@write).

mod row;
mod write;

use super::block::Block;
use super::parameter_sums::{Counts, ParameterSums};
use super::piece::{Coefficients, GUARD, Piece, RowSums};
use super::plan::Plan;
use super::{Backward, FULL, PLAIN, SCALED};
use crate::Element;
use crate::kernel::copy::Bring;
use crate::kernel::joined::Waiting;
use crate::kernel::stats::{self, BatchSums, CloseSegment, SegmentTotals};
use crate::kernel::{JOINED, NOT_WRITTEN, STORED, careful, segment};
use crate::simd::{BATCH, Isa, Kernel, Lanes, values};
use std::ops::Range;

/// What the gradients of the rows of a batch are made of, at cache lines of its own as in forward.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Batch<T> {
    pub(super) rows: Coefficients<[T; BATCH]>,
    /// Whether a row is free of overflow and underflow.
    pub(super) is_ordinary: [bool; BATCH],
    /// Whether all are.
    pub(super) ordinary: bool,
}

/// No row yet: ordinary ones, so far.
impl<T: Element> Default for Batch<T> {
    fn default() -> Self {
        Self { rows: Coefficients::default(), is_ordinary: [true; BATCH], ordinary: true }
    }
}

/// Batches of rows on their way.
#[derive(Debug)]
pub(super) struct Pipeline<'f, 'a, T: Element, I: Isa> {
    pub(super) isa: I,
    pub(super) plan: Plan,
    /// Rows whose sums are to be taken: whole batches.
    pub(super) rows: Range<usize>,
    /// The batch before them, whose gradients are to be written.
    pub(super) batch: Batch<T>,
    /// A batch of short rows of dx, a row, or a tile of a long one.
    pub(super) staged: &'f mut [T],
    /// What waits for the next joined row.
    pub(super) waiting: Waiting<T::Lanes<I>>,
    pub(super) counts: &'f mut Counts,
    /// dgamma and dbeta of up to eight rows, where fused.
    pub(super) block: &'f mut [T],
    pub(super) backward: &'f mut Backward<'a, T>,
}

/// A step of a pipeline as a function of its own, compiled once for all widths and for all that call it.
#[derive(Debug)]
struct Step<'p, 'f, 'a, T: Element, J: Isa, const WRITE: u8, const SUM: bool, const MODE: u8, const FUSED: bool>(
    &'p mut Pipeline<'f, 'a, T, J>,
    Range<usize>,
);

impl<T: Element, J: Isa, const WRITE: u8, const SUM: bool, const MODE: u8, const FUSED: bool> Kernel
    for Step<'_, '_, '_, T, J, WRITE, SUM, MODE, FUSED>
{
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        self.0.step::<0, WRITE, SUM, MODE, FUSED, false>(self.1);
    }
}

/// [`Pipeline::finish`] as a function of its own.
#[derive(Debug)]
pub(super) struct Finish<'p, 'f, 'a, T: Element, J: Isa> {
    pub(super) pipeline: &'p mut Pipeline<'f, 'a, T, J>,
    /// Those of [`RowSums`].
    pub(super) sums: &'p BatchSums<T, J, 3>,
    /// Of long rows.
    pub(super) totals: Option<&'p SegmentTotals<3>>,
}

impl<T: Element, J: Isa> Kernel for Finish<'_, '_, '_, T, J> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let sums = stats::of_rows::<T, J, 3>(self.pipeline.isa, self.sums, self.totals);
        self.pipeline.finish(sums);
    }
}

/// The sums of the next batch as a function of its own: together, row by row, or in steps.
#[derive(Debug)]
struct Sums<'p, 'f, 'a, T: Element, J: Isa, const MODE: u8>(&'p mut Pipeline<'f, 'a, T, J>);

impl<T: Element, J: Isa, const MODE: u8> Kernel for Sums<'_, '_, '_, T, J, MODE> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let (isa, plan) = (self.0.isa, self.0.plan);
        if plan.has_sums_together::<T>() {
            self.0.sums_of_short_rows::<0, MODE>(&mut [[T::Lanes::splat(isa, T::ZERO); BATCH]; 3]);
        } else if plan.by_row {
            self.0.sums_by_row::<MODE>();
        } else {
            isa.run(Step::<_, _, NOT_WRITTEN, true, MODE, false>(self.0, 0..0));
        }
    }
}

impl<T: Element, I: Isa> Pipeline<'_, '_, T, I> {
    /// Writes the gradients of the rows `written` of a batch, where `WRITE` says so, and takes the sums of the next, where
    /// `SUM` does.
    #[inline(always)]
    pub(super) fn step<
        const CHUNKS: usize,
        const WRITE: u8,
        const SUM: bool,
        const MODE: u8,
        const FUSED: bool,
        const AHEAD: bool,
    >(
        &mut self,
        written: Range<usize>,
    ) {
        let isa = self.isa;
        let Plan { width, batch, tile, staged, .. } = self.plan.known::<T, CHUNKS>();
        let is_long = CHUNKS == 0 && width > segment::<T>();
        let next = self.rows.start;
        // In the first step there is no batch before.
        let first = if const { WRITE == NOT_WRITTEN } { next } else { next - batch };
        assert!(!SUM || WRITE != JOINED, "joined rows have their sums taken elsewhere");
        let is_staged = const { WRITE == STORED } && !self.staged.is_empty();
        // A joined row begins with the places of those that wait.
        let before = if const { WRITE == JOINED } { self.waiting.count() } else { 0 };
        let Backward { parameters, x, dy, mean, dx, sums: parameter_sums, .. } = &mut *self.backward;
        let gamma = if const { MODE == PLAIN } { &[] } else { parameters.gamma.unwrap_or(&[]) };
        let is_first_block = parameter_sums.as_ref().is_some_and(|sums| sums.is_zero);
        let (dgamma, dbeta) = if const { MODE == FULL && WRITE != NOT_WRITTEN } {
            targets::<T, FUSED>(parameter_sums, self.block, width)
        } else {
            (&mut [][..], &mut [][..])
        };
        let span = |row: usize, is_used: bool| if is_used { row * width..(row + batch) * width } else { 0..0 };
        let (summed_x, summed_dy) = (&x[span(next, SUM)], &dy[span(next, SUM)]);
        let of_batch = span(first, WRITE != NOT_WRITTEN);
        let (written_x, written_dy) = (&x[of_batch.clone()], &dy[of_batch.clone()]);
        let accumulate = dx.as_ref().is_some_and(|(_, accumulate)| *accumulate);
        let dx = dx.as_mut().map_or(&mut [][..], |(dx, _)| &mut dx[of_batch.start - before..of_batch.end]);
        let means = if SUM { &mean[next..][..batch] } else { &[] };

        let zero = [T::Lanes::splat(isa, T::ZERO); BATCH];
        let mut sums = [zero; 3];
        let mut totals = SegmentTotals::default();
        for start in (0..width).step_by(tile) {
            let end = width.min(start + tile);
            if SUM {
                for i in 0..batch {
                    let here = i * width + start..i * width + end;
                    let written = if const { WRITE == NOT_WRITTEN } { 0..0 } else { here.clone() };
                    let has_sums = MODE == FULL && WRITE != NOT_WRITTEN;
                    let ahead = if AHEAD {
                        let ahead = (next * width + here.start + Plan::AHEAD * T::LANES).min(x.len() - (end - start));
                        ahead..ahead + (end - start)
                    } else {
                        0..0
                    };
                    let piece = Piece {
                        x: &written_x[written.clone()],
                        dy: &written_dy[written.clone()],
                        dx: match (is_staged, staged < width) {
                            (true, true) => &mut self.staged[..written.len()],
                            (true, false) => &mut self.staged[written.clone()],
                            (false, _) => &mut dx[written.clone()],
                        },
                        gamma: if const { MODE == PLAIN } { &[] } else { &gamma[start..end] },
                        dgamma: if has_sums { &mut dgamma[start..end] } else { &mut [] },
                        dbeta: if has_sums { &mut dbeta[start..end] } else { &mut [] },
                        summed_x: &summed_x[here.clone()],
                        summed_dy: &summed_dy[here],
                        ahead_x: &x[ahead.clone()],
                        ahead_dy: &dy[ahead],
                    };
                    let mean = T::Lanes::splat(isa, means[i]);
                    let coefficients = self.batch.rows.of_row(i).lanes(isa);
                    let row = RowSums { g: sums[0][i], d: sums[1][i], product: sums[2][i] };
                    let row = piece.run::<I, WRITE, MODE, AHEAD>(isa, coefficients, mean, row, &mut self.waiting);
                    [sums[0][i], sums[1][i], sums[2][i]] = [row.g, row.d, row.product];
                    if const { WRITE != NOT_WRITTEN } && is_staged && staged < width && !dx.is_empty() {
                        isa.run(Bring {
                            staged: &self.staged[..end - start],
                            target: &mut dx[written],
                            accumulate,
                            stream: true,
                        });
                    }
                }
            } else {
                let mut block = Block {
                    isa,
                    width,
                    x: written_x,
                    dy: written_dy,
                    dx: if is_staged { &mut *self.staged } else { &mut *dx },
                    dx_start: if is_staged && staged < width { start } else { 0 },
                    dx_stride: if is_staged { staged } else { width },
                    written: written.clone(),
                    rows: &self.batch.rows,
                    gamma,
                    dgamma: &mut *dgamma,
                    dbeta: &mut *dbeta,
                    waiting: self.waiting,
                };
                block.columns::<WRITE, MODE, FUSED>(start..end);
                if const { WRITE == JOINED } {
                    self.waiting = block.waiting;
                }
                if is_staged && staged < width && !dx.is_empty() {
                    for i in written.clone() {
                        let target = &mut dx[i * width + start..i * width + end];
                        let staged = &self.staged[i * staged..][..end - start];
                        isa.run(Bring { staged, target, accumulate, stream: true });
                    }
                }
            }
            if SUM && is_long && (end == width || end.is_multiple_of(segment::<T>())) {
                isa.run(CloseSegment::<T, I, 3> { isa, sums: &mut sums, totals: &mut totals });
            }
        }
        if const { WRITE != NOT_WRITTEN } {
            if is_staged && staged == width && !dx.is_empty() {
                let here = written.start * width..written.end * width;
                isa.run(Bring { staged: &self.staged[here.clone()], target: &mut dx[here], accumulate, stream: true });
            }
            if const { MODE == FULL } {
                self.counts.is_pending = FUSED && !is_first_block;
                self.count_rows::<FUSED>(written.len());
            }
        }
        if SUM {
            isa.run(Finish { pipeline: self, sums: &sums, totals: is_long.then_some(&totals) });
            self.rows.start += batch;
        }
    }

    /// Takes the sums of the next batch: one function for all modes with gamma, and one for that without.
    #[inline(always)]
    pub(super) fn sums<const MODE: u8>(&mut self) {
        if const { MODE == PLAIN } {
            self.isa.run(Sums::<_, _, PLAIN>(self));
        } else {
            self.isa.run(Sums::<_, _, SCALED>(self));
        }
    }

    /// Whether a row is free of overflow and underflow; `size` is that of its sums.
    #[inline(never)]
    fn is_ordinary(&self, row: usize, size: f64) -> bool {
        let width = self.plan.width;
        careful::is_ordinary_rstd(self.backward.rstd[row])
            && size <= largest::<T>()
            && !(size < SMALL
                && careful::is_tiny(&self.backward.dy[row * width..][..width], self.backward.parameters.gamma))
    }

    /// What the gradients of the batch are made of, from the sums of [`RowSums`].
    #[inline(always)]
    pub(super) fn finish(&mut self, [sum_g, sum_d, mut sum_product]: [[f64; BATCH]; 3]) {
        let isa = self.isa;
        let Plan { width, batch, .. } = self.plan;
        let first = self.rows.start;
        for i in batch..BATCH {
            // No row, but an ordinary one.
            sum_product[i] = 1.0;
        }
        let mean = filled_up(&self.backward.mean[first..first + batch], T::ZERO);
        let rstd = filled_up(&self.backward.rstd[first..first + batch], T::from_f64(1.0));
        let per_element = I::F64::splat(isa, 1.0 / width as f64);
        let minus_per_element = I::F64::splat(isa, -1.0 / width as f64);
        let load = |values: &[f64; BATCH]| I::F64::load(isa, values);
        let (sum_g, sum_d, sum_product) = (load(&sum_g), load(&sum_d), load(&sum_product));
        let per_guard = I::F64::splat(isa, 1.0 / GUARD);
        let scale = load(&stats::to_f64(&rstd));
        let (sum_g, sum_h, sum_product) = (sum_g * per_guard, sum_d * scale, sum_product * per_guard * scale);
        let product = sum_product - sum_h * per_element * sum_g;
        self.batch.rows = Coefficients {
            mean,
            rstd,
            minus_correction: stats::rounded(sum_h * minus_per_element),
            minus_mean_g: stats::rounded(sum_g * minus_per_element),
            mean_product: stats::rounded(product * per_element),
        };
        let (sum_g, product) = (values(sum_g), values(product));
        let mut ordinary = true;
        for i in 0..BATCH {
            let size = product[i].abs() + sum_g[i].abs();
            ordinary &= is_clearly_ordinary(rstd[i], size);
        }
        self.batch.is_ordinary = [true; BATCH];
        self.batch.ordinary = ordinary;
        if !ordinary {
            for i in 0..batch {
                self.batch.is_ordinary[i] = self.is_ordinary(first + i, product[i].abs() + sum_g[i].abs());
            }
            self.batch.ordinary = self.batch.is_ordinary == [true; BATCH];
        }
    }
}

/// The values of the rows of a batch, filled up where it has fewer than eight.
#[inline(always)]
fn filled_up<T: Copy>(values: &[T], fill: T) -> [T; BATCH] {
    match values.try_into() {
        Ok(values) => values,
        Err(_) => few_filled_up(values, fill),
    }
}

/// Not inlined, or all copies become calls.
#[inline(never)]
fn few_filled_up<T: Copy>(values: &[T], fill: T) -> [T; BATCH] {
    let mut found = [fill; BATCH];
    found[..values.len()].copy_from_slice(values);
    found
}

/// Where the dgamma and dbeta of rows are added up: in the block where fused, but for the first eight rows, which need no array
/// of their own. Nobody may want the sums: then they stay in the block.
#[inline(always)]
fn targets<'s, T: Element, const FUSED: bool>(
    sums: &'s mut Option<ParameterSums<'_, T>>,
    block: &'s mut [T],
    width: usize,
) -> (&'s mut [T], &'s mut [T]) {
    match sums {
        Some(sums) if !FUSED || sums.is_zero => sums.of_group(width),
        _ if FUSED => ParameterSums::halves(block, width),
        _ => (&mut [], &mut []),
    }
}

/// Sums as small as that are looked at: they may be of gradients that are all but 0, or cancel. (Larger sums of a row of millions
/// of elements may be of gradients that [`careful::is_tiny`] would call tiny by a few bits: it leaves room for that.)
const SMALL: f64 = 1e-18;

/// The largest number of the element type.
#[inline(always)]
fn largest<T: Element>() -> f64 {
    if T::HAS_WIDE_RANGE { f64::MAX } else { f32::MAX.into() }
}

/// Whether `rstd` and the size of its sums alone say that a row is free of overflow and underflow.
#[inline(always)]
fn is_clearly_ordinary<T: Element>(rstd: T, size: f64) -> bool {
    careful::is_ordinary_rstd(rstd) & (size >= SMALL) & (size <= largest::<T>())
}
