//! Backward: dx, dgamma and dbeta.
//!
//! With `g = dy * gamma`, `h = (x - mean) * rstd` and means over the row,
//!
//! ```text
//! xhat   = h - mean(h)                        what the rounding of the mean left is taken off again
//! dx     = rstd * (g - mean(g) - xhat * mean(g * xhat))
//! dgamma = sum over rows of dy * xhat
//! dbeta  = sum over rows of dy
//! ```
//!
//! (Ba, Kiros and Hinton, "Layer Normalization", 2016; derived step by step in [`reference`](mod@crate::reference).)
//! The saved mean is rounded to the element type. `mean(h)` recovers what that took away, from sums that are taken
//! anyway; so backward sees the same corrected mean as forward, and a mean that another library computed less well
//! does no harm.
//!
//! Rows go in batches, in one of two ways, which give the same bits:
//!
//! - *In blocks*, where x and dy are in cache: the sums of a batch are taken row by row ([`piece`]), and then its gradients
//!   are written in tiles of columns, all rows to a tile, which keeps dgamma and dbeta in registers ([`block`]).
//! - *Fused*, where x and dy come from memory, or dx alone is wanted and all is near: the gradients of a batch are written in
//!   the same loop that takes the sums of the next, as in [`forward`](super::forward), and what memory sends is asked for
//!   2.5 KiB ahead. dgamma and dbeta of eight rows are added up in the first-level cache. With dx streamed that is one even
//!   stream: on a Xeon 0.9 to 1.3 times a sum of two arrays where blocks took 1.2 to 2.1; with dx stored it is slower than
//!   blocks.
//!
//! dgamma and dbeta are added up over eight rows, those over groups of [`GROUP`] rows, and the groups with a
//! compensated sum: no running sum is so long that its rounding errors, all of one sign where rows are alike, could add
//! up to much. Narrow rows have an order of their own ([`narrow`]). Rows that several threads share go in the steps of
//! [`long_rows`].

mod block;
mod careful_rows;
pub(crate) mod long_rows;
mod narrow;
mod parameter_sums;
mod piece;
mod plan;

use super::copy::Bring;
use super::forward::{Parameters, Place};
use super::stats::{self, BatchSums, CloseSegment, SegmentTotals};
use super::{NOT_WRITTEN, STORED, STREAMED, careful, room};
use crate::Element;
use crate::simd::{BATCH, Isa, Kernel, Lanes, values};
use block::Block;
use careful_rows::{Targets, rescued_row};
use parameter_sums::Counts;
pub(crate) use parameter_sums::{GROUP, ParameterSums};
use piece::{Coefficients, GUARD, Piece, RowSums};
use plan::Plan;
use std::ops::Range;

/// What is computed: dx without gamma, dx with gamma, or dx, dgamma and dbeta with gamma.
const PLAIN: u8 = 0;
const SCALED: u8 = 1;
const FULL: u8 = 2;

/// Backward over a block of rows.
#[derive(Debug)]
pub(crate) struct Backward<'a, T> {
    /// gamma is there where sums are wanted.
    pub(crate) parameters: Parameters<'a, T>,
    /// `rows * width` elements.
    pub(crate) x: &'a [T],
    /// As many.
    pub(crate) dy: &'a [T],
    /// Of each row.
    pub(crate) mean: &'a [T],
    /// Of each row.
    pub(crate) rstd: &'a [T],
    /// As many elements as x, where it is wanted, and whether to add to it.
    pub(crate) dx: Option<(&'a mut [T], bool)>,
    /// dgamma and dbeta, where either is wanted.
    pub(crate) sums: Option<ParameterSums<'a, T>>,
    pub(crate) place: Place,
    /// Room for dx on its way past the caches, or to be added.
    pub(crate) staged: &'a mut Vec<T>,
    /// Room for dgamma and dbeta of eight rows.
    pub(crate) block: &'a mut Vec<T>,
}

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        if self.parameters.width < careful::NARROW {
            return self.narrow_rows(isa);
        }
        let is_aligned = self.parameters.width.is_multiple_of(T::LANES)
            && self.dx.as_ref().is_some_and(|(dx, accumulate)| super::misaligned(dx) == 0 && !accumulate);
        let streams = self.place == Place::Memory && is_aligned;
        let (near, far) = (self.place == Place::Near, self.place == Place::Memory);
        if !I::SPECIALIZED {
            // One loop does for those that cannot write past the caches.
            return match (self.parameters.gamma.is_some(), self.sums.is_some()) {
                (false, _) => self.all_rows::<I, STORED, PLAIN, false>(isa),
                (true, false) => self.all_rows::<I, STORED, SCALED, false>(isa),
                (true, true) => self.all_rows::<I, STORED, FULL, false>(isa),
            };
        }
        match (self.parameters.gamma.is_some(), self.sums.is_some()) {
            (false, _) if streams => self.all_rows::<I, STREAMED, PLAIN, true>(isa),
            (false, _) if near || far => self.all_rows::<I, STORED, PLAIN, true>(isa),
            (false, _) => self.all_rows::<I, STORED, PLAIN, false>(isa),
            // From memory the sums cost nothing, so there is no loop without them.
            (true, _) if streams => self.all_rows::<I, STREAMED, FULL, true>(isa),
            (true, _) if far => self.all_rows::<I, STORED, FULL, true>(isa),
            (true, false) => self.all_rows::<I, STORED, SCALED, false>(isa),
            (true, true) => self.all_rows::<I, STORED, FULL, false>(isa),
        }
        if self.place == Place::Memory {
            isa.fence();
        }
    }
}

/// What the gradients of the rows of a batch are made of.
#[derive(Clone, Copy, Debug)]
struct Batch<T> {
    rows: Coefficients<[T; BATCH]>,
    /// Whether a row is free of overflow and underflow.
    is_ordinary: [bool; BATCH],
    /// Whether all are.
    ordinary: bool,
}

impl<T: Element> Backward<'_, T> {
    /// Whether rows of the commonest short width have loops of their own: not those of f64, which has other common widths in
    /// chunks, not dx with gamma and no sums, and not rows that lie anywhere in memory.
    const fn is_common<const WRITE: u8, const MODE: u8, const FUSED: bool>() -> bool {
        !T::HAS_WIDE_RANGE && MODE != SCALED && !(MODE == FULL && WRITE == STORED && FUSED)
    }

    /// Full batches of the commonest short width by loops of known length, all other rows by loops over any.
    #[inline(always)]
    fn all_rows<I: Isa, const WRITE: u8, const MODE: u8, const FUSED: bool>(&mut self, isa: I) {
        let width = self.parameters.width;
        let rows = self.mean.len();
        let mut plan = Plan::new::<T>(width, FUSED);
        let mut first = 0;
        let mut counts = Counts::default();
        let mut buffer = std::mem::take(self.block);
        let block = room(&mut buffer, if FUSED && MODE == FULL { ParameterSums::<T>::len(width) } else { 0 });
        block.fill(T::ZERO);
        // The last batch may have fewer rows.
        while first < rows {
            plan.batch = plan.batch.min(rows - first);
            let full = first..rows - (rows - first) % plan.batch;
            first = full.end;
            if const { I::SPECIALIZED && Self::is_common::<WRITE, MODE, FUSED>() }
                && width == 4 * T::LANES
                && plan.batch == BATCH
            {
                self.batches::<I, 4, WRITE, MODE, FUSED>(isa, plan, full, &mut counts, block);
            } else {
                self.batches::<I, 0, WRITE, MODE, FUSED>(isa, plan, full, &mut counts, block);
            }
        }
        if let Some(sums) = &mut self.sums {
            if counts.is_pending {
                sums.add_block(isa, block);
            }
            if counts.in_group + counts.in_block > 0 {
                sums.close_group(isa);
            }
        }
        *self.block = buffer;
    }

    /// Full batches: of each the sums are taken, and then its gradients are written; with `FUSED`, dx of each is written while
    /// the sums of the next are taken.
    #[inline(always)]
    fn batches<I: Isa, const CHUNKS: usize, const WRITE: u8, const MODE: u8, const FUSED: bool>(
        &mut self,
        isa: I,
        plan: Plan,
        rows: Range<usize>,
        counts: &mut Counts,
        block: &mut [T],
    ) {
        // dx that is not at multiples of 64 bytes goes past the caches by way of a buffer, and so does one that is
        // added to, or that nobody wants.
        let is_overwritten = self.dx.as_ref().is_some_and(|(_, accumulate)| !accumulate);
        let is_staged = WRITE == STORED && (self.place == Place::Memory || !is_overwritten);
        let mut buffer = std::mem::take(self.staged);
        let mut plan = plan;
        if is_staged && !(FUSED && plan.width <= Plan::STAGED * T::LANES) {
            plan.tile = plan.tile.min(Plan::STAGED * T::LANES);
            plan.staged = plan.tile;
        }
        let staged = room(&mut buffer, if is_staged { plan.batch * plan.staged } else { 0 });
        let batch = Batch { rows: Coefficients::default(), is_ordinary: [true; BATCH], ordinary: true };
        let mut pipeline = Pipeline { isa, plan, rows, batch, staged, counts, block, backward: self };
        if FUSED {
            pipeline.sums::<MODE>();
            while !pipeline.rows.is_empty() {
                if pipeline.batch.ordinary {
                    pipeline.step::<CHUNKS, WRITE, true, MODE, FUSED>(0..plan.batch);
                } else {
                    pipeline.write::<WRITE, MODE, FUSED>();
                    pipeline.sums::<MODE>();
                }
            }
            pipeline.write::<WRITE, MODE, FUSED>();
        } else {
            while !pipeline.rows.is_empty() {
                if const { CHUNKS > 0 } {
                    pipeline.step::<CHUNKS, NOT_WRITTEN, true, MODE, FUSED>(0..0);
                } else {
                    pipeline.sums::<MODE>();
                }
                if const { CHUNKS > 0 } && pipeline.batch.ordinary {
                    pipeline.step::<CHUNKS, WRITE, false, MODE, FUSED>(0..plan.batch);
                } else {
                    pipeline.write::<WRITE, MODE, FUSED>();
                }
            }
        }
        *self.staged = buffer;
    }
}

/// Batches of rows on their way.
#[derive(Debug)]
struct Pipeline<'f, 'a, T, I> {
    isa: I,
    plan: Plan,
    /// Rows whose sums are to be taken: whole batches.
    rows: Range<usize>,
    /// The batch before them, whose gradients are to be written.
    batch: Batch<T>,
    /// A batch of short rows of dx, or a tile of a long one.
    staged: &'f mut [T],
    counts: &'f mut Counts,
    /// dgamma and dbeta of up to eight rows, where fused.
    block: &'f mut [T],
    backward: &'f mut Backward<'a, T>,
}

/// A step of a pipeline as a function of its own, compiled once for all widths and for all that call it.
#[derive(Debug)]
struct Step<'p, 'f, 'a, T, J, const WRITE: u8, const SUM: bool, const MODE: u8, const FUSED: bool>(
    &'p mut Pipeline<'f, 'a, T, J>,
    Range<usize>,
);

impl<T: Element, J: Isa, const WRITE: u8, const SUM: bool, const MODE: u8, const FUSED: bool> Kernel
    for Step<'_, '_, '_, T, J, WRITE, SUM, MODE, FUSED>
{
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        self.0.step::<0, WRITE, SUM, MODE, FUSED>(self.1);
    }
}

/// [`Pipeline::write_batch`] as a function of its own.
#[derive(Debug)]
struct WriteBatch<'p, 'f, 'a, T, J, const WRITE: u8, const MODE: u8, const FUSED: bool>(&'p mut Pipeline<'f, 'a, T, J>);

impl<T: Element, J: Isa, const WRITE: u8, const MODE: u8, const FUSED: bool> Kernel
    for WriteBatch<'_, '_, '_, T, J, WRITE, MODE, FUSED>
{
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        self.0.write_batch::<WRITE, MODE, FUSED>();
    }
}

/// [`Pipeline::finish`] as a function of its own.
#[derive(Debug)]
struct Finish<'p, 'f, 'a, T: Element, J: Isa> {
    pipeline: &'p mut Pipeline<'f, 'a, T, J>,
    /// Those of [`RowSums`].
    sums: &'p BatchSums<T, J, 3>,
    /// Of long rows.
    totals: Option<&'p SegmentTotals<3>>,
}

impl<T: Element, J: Isa> Kernel for Finish<'_, '_, '_, T, J> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let sums = stats::of_rows::<T, J, 3>(self.pipeline.isa, self.sums, self.totals);
        self.pipeline.finish(sums);
    }
}

impl<T: Element, I: Isa> Pipeline<'_, '_, T, I> {
    /// Writes the gradients of the rows `written` of a batch, where `WRITE` says so, and takes the sums of the next, where
    /// `SUM` does.
    #[inline(always)]
    fn step<const CHUNKS: usize, const WRITE: u8, const SUM: bool, const MODE: u8, const FUSED: bool>(
        &mut self,
        written: Range<usize>,
    ) {
        let isa = self.isa;
        let Plan { width, batch, tile, staged } = self.plan.known::<T, CHUNKS>();
        let is_long = CHUNKS == 0 && width > super::segment::<T>();
        let next = self.rows.start;
        // In the first step there is no batch before.
        let first = if const { WRITE == NOT_WRITTEN } { next } else { next - batch };
        let is_staged = !self.staged.is_empty();
        let Backward { parameters, x, dy, mean, rstd, dx, sums: parameter_sums, .. } = &mut *self.backward;
        let gamma = if const { MODE == PLAIN } { &[] } else { parameters.gamma.unwrap_or(&[]) };
        // The first eight rows need no array of their own.
        let is_first_block = parameter_sums.as_ref().is_some_and(|sums| sums.is_zero);
        let (dgamma, dbeta) = match parameter_sums {
            // Nobody may want the sums: then they stay in the block.
            _ if const { MODE == FULL } && WRITE != NOT_WRITTEN && FUSED && !is_first_block => {
                ParameterSums::halves(self.block, width)
            }
            Some(sums) if const { MODE == FULL } && WRITE != NOT_WRITTEN => sums.of_group(width),
            _ => (&mut [][..], &mut [][..]),
        };
        let span = |row: usize, is_used: bool| if is_used { row * width..(row + batch) * width } else { 0..0 };
        let (summed_x, summed_dy) = (&x[span(next, SUM)], &dy[span(next, SUM)]);
        let of_batch = span(first, WRITE != NOT_WRITTEN);
        let (written_x, written_dy) = (&x[of_batch.clone()], &dy[of_batch.clone()]);
        let accumulate = dx.as_ref().is_some_and(|(_, accumulate)| *accumulate);
        let dx = dx.as_mut().map_or(&mut [][..], |(dx, _)| &mut dx[of_batch]);
        let about = if SUM { (&mean[next..][..batch], &rstd[next..][..batch]) } else { (&[][..], &[][..]) };

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
                    let ahead = if const { WRITE == NOT_WRITTEN } {
                        0..0
                    } else {
                        let ahead = (next * width + here.start + Plan::AHEAD * T::LANES).min(x.len() - (end - start));
                        ahead..ahead + (end - start)
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
                    let about = [T::Lanes::splat(isa, about.0[i]), T::Lanes::splat(isa, about.1[i])];
                    let coefficients = self.batch.rows.splat(isa, i);
                    let row = RowSums { g: sums[0][i], h: sums[1][i], product: sums[2][i] };
                    let row = piece.run::<I, WRITE, MODE>(isa, coefficients, about, row);
                    [sums[0][i], sums[1][i], sums[2][i]] = [row.g, row.h, row.product];
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
                };
                block.columns::<WRITE, MODE, FUSED>(start..end);
                if is_staged && staged < width && !dx.is_empty() {
                    for i in written.clone() {
                        let target = &mut dx[i * width + start..i * width + end];
                        let staged = &self.staged[i * staged..][..end - start];
                        isa.run(Bring { staged, target, accumulate, stream: true });
                    }
                }
            }
            if SUM && is_long && (end == width || end.is_multiple_of(super::segment::<T>())) {
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
    fn sums<const MODE: u8>(&mut self) {
        if const { MODE == PLAIN } {
            self.isa.run(Step::<_, _, NOT_WRITTEN, true, PLAIN, false>(self, 0..0));
        } else {
            self.isa.run(Step::<_, _, NOT_WRITTEN, true, SCALED, false>(self, 0..0));
        }
    }

    /// Writes the gradients of the batch before. Without sums it is the same whether fused or not.
    #[inline(always)]
    fn write<const WRITE: u8, const MODE: u8, const FUSED: bool>(&mut self) {
        if const { MODE == FULL } {
            self.isa.run(WriteBatch::<_, _, WRITE, MODE, FUSED>(self));
        } else {
            self.isa.run(WriteBatch::<_, _, WRITE, MODE, false>(self));
        }
    }

    /// Counts rows whose dgamma and dbeta were added to the block, where fused, or to the group.
    #[inline(always)]
    fn count_rows<const FUSED: bool>(&mut self, rows: usize) {
        self.counts.in_block += rows;
        if self.counts.in_block >= BATCH || !FUSED {
            self.add_block();
            self.counts.in_group += std::mem::take(&mut self.counts.in_block);
            if self.counts.in_group >= GROUP
                && let Some(sums) = &mut self.backward.sums
            {
                sums.close_group(self.isa);
                self.counts.in_group = 0;
            }
        }
    }

    /// Adds the block to the group, if it holds anything. What comes next is another block.
    #[inline(always)]
    fn add_block(&mut self) {
        let Some(sums) = &mut self.backward.sums else { return };
        sums.is_zero = false;
        if std::mem::take(&mut self.counts.is_pending) {
            sums.add_block(self.isa, self.block);
        }
    }

    /// What the gradients of the batch are made of, from the sums of [`RowSums`].
    #[inline(always)]
    fn finish(&mut self, [sum_g, sum_h, sum_product]: [[f64; BATCH]; 3]) {
        let isa = self.isa;
        let Plan { width, batch, .. } = self.plan;
        let first = self.rows.start;
        let (mut mean, mut rstd) = ([T::ZERO; BATCH], [T::from_f64(1.0); BATCH]);
        mean[..batch].copy_from_slice(&self.backward.mean[first..first + batch]);
        rstd[..batch].copy_from_slice(&self.backward.rstd[first..first + batch]);
        let per_element = I::F64::splat(isa, 1.0 / width as f64);
        let minus_per_element = I::F64::splat(isa, -1.0 / width as f64);
        let load = |values: &[f64; BATCH]| I::F64::load(isa, values);
        let (sum_g, sum_h, sum_product) = (load(&sum_g), load(&sum_h), load(&sum_product));
        let sum_g = sum_g * I::F64::splat(isa, 1.0 / GUARD);
        let product = sum_product - sum_h * per_element * sum_g;
        self.batch.rows = Coefficients {
            mean,
            rstd,
            minus_correction: stats::rounded(sum_h * minus_per_element),
            minus_mean_g: stats::rounded(sum_g * minus_per_element),
            mean_product: stats::rounded(product * per_element),
        };
        // Sums as small as that are looked at: they may be of gradients that are all but 0, or cancel.
        const SMALL: f64 = 1e-18;
        let largest = if T::HAS_WIDE_RANGE { f64::MAX } else { f32::MAX.into() };
        let (sum_g, product) = (values(sum_g), values(product));
        let mut ordinary = true;
        for i in 0..BATCH {
            let size = product[i].abs() + sum_g[i].abs();
            ordinary &= (careful::is_ordinary_rstd(rstd[i]) & (size >= SMALL) & (size <= largest)) | (i >= batch);
        }
        self.batch.is_ordinary = [true; BATCH];
        self.batch.ordinary = ordinary;
        if !ordinary {
            for i in 0..batch {
                let size = product[i].abs() + sum_g[i].abs();
                let dy = &self.backward.dy[(first + i) * width..][..width];
                self.batch.is_ordinary[i] = careful::is_ordinary_rstd(rstd[i])
                    && size <= largest
                    && !(size < SMALL && careful::is_tiny(dy, self.backward.parameters.gamma));
            }
            self.batch.ordinary = self.batch.is_ordinary == [true; BATCH];
        }
    }

    /// Writes the gradients of the batch before, with care those of rows that are not ordinary.
    #[inline(always)]
    fn write_batch<const WRITE: u8, const MODE: u8, const FUSED: bool>(&mut self) {
        let isa = self.isa;
        let Plan { width, batch, .. } = self.plan;
        let mut start = 0;
        while start < batch {
            let mut end = start + 1;
            if self.batch.is_ordinary[start] {
                while end < batch && self.batch.is_ordinary[end] {
                    end += 1;
                }
                isa.run(Step::<_, _, WRITE, false, MODE, FUSED>(self, start..end));
            } else {
                let row = self.rows.start - batch + start;
                let span = row * width..(row + 1) * width;
                self.add_block();
                let Backward { parameters, x, dy, dx, sums, .. } = &mut *self.backward;
                let targets = Targets {
                    dx: dx.as_mut().map(|(dx, accumulate)| (&mut dx[span.clone()], *accumulate)),
                    sums: sums.as_mut().map(|sums| sums.of_group(width)),
                };
                rescued_row(parameters, &x[span.clone()], &dy[span], targets);
                if const { MODE == FULL } {
                    self.count_rows::<FUSED>(1);
                }
            }
            start = end;
        }
    }
}
