//! Forward: `y = gamma * xhat + beta`, with the statistics of [`stats`](super::stats).
//!
//! While a row is normalized, the sums of a later one are taken in the same loop ([`piece`]): x is read from memory once, in
//! one even stream, and again from cache; `y` is written once, past the caches where the caller asks for that.
//!
//! - Rows of up to 1.5 KiB, of 1 KiB where they come from memory and have no tail, go in batches of eight, whose statistics take
//!   hardly longer than those of one row ([`short`]); those of the commonest widths in loops of known length.
//! - Longer ones go one at a time: a first-level cache of 32 KiB then holds the row until it is normalized, and its statistics
//!   are computed without lanes while the CPU takes the sums of the row after it. On an EPYC 64x768 took 1.2 to 1.35
//!   times as long in batches of four rows.
//! - Rows too long for a first-level cache to hold two of them and the rest, on [AMD's CPUs](crate::simd::is_amd) from 6.5 KiB on
//!   with gamma and beta in cache, on others and else from 8 KiB, go in tiles of columns; with gamma and beta eight rows to a
//!   tile, so that those are read once a batch and not once a row.
//! - Without gamma and beta [AMD's CPUs](crate::simd::is_amd) rather take the sums of a whole row and then write it, from rows of
//!   three kilobytes on in memory, and of eight in cache, up to half of a first-level cache.
//! - Rows so long that several threads share them go in the steps of [`long_rows`].
//!
//! Past the caches rows go as they are where they begin and end with cache lines; else they are [`joined`](super::joined) where
//! that pays, and others are written in a nearer cache and copied. Rows in tiles are joined each by itself: a line that two rows
//! of a batch share goes with what is known of it, and the rest, the end of the upper row, is stored into it in the end.

pub(crate) mod long_rows;
mod narrow;
mod piece;
mod pipeline;
mod plan;
mod short;

use super::careful::{self, CarefulRow};
use super::joined::Waiting;
use super::{JOINED, NOT_WRITTEN, STORED, STREAMED, room};
use crate::Element;
use crate::simd::{BATCH, Isa, Kernel, Lanes};
use pipeline::{Batch, Pipeline, Step, SumsOfRow};
use plan::Plan;
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
    /// In a cache, of a core or one that cores share.
    Cache,
    /// In memory: it is asked for ahead, and outputs are written past the caches.
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
    /// Whether to go the ways of [AMD's CPUs](crate::simd::is_amd).
    pub(crate) is_amd: bool,
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
        let plan = || Plan::new::<T>(self.parameters.width, is_affine, self.place, self.is_amd);
        let joins = self.place == Place::Memory && !is_aligned && plan().pays_joined::<T, I>();
        match (self.place, is_affine) {
            // To ask caches for what is in them takes longer, 1.02 to 1.2 times on an EPYC; the first batch alone does.
            (Place::Cache, false) => self.all_rows::<I, STORED, false, false>(isa),
            (Place::Cache, true) => self.all_rows::<I, STORED, true, false>(isa),
            (Place::Memory, false) if is_aligned => self.all_rows::<I, STREAMED, false, true>(isa),
            (Place::Memory, true) if is_aligned => self.all_rows::<I, STREAMED, true, true>(isa),
            (Place::Memory, false) if joins => self.all_rows::<I, JOINED, false, true>(isa),
            (Place::Memory, true) if joins => self.all_rows::<I, JOINED, true, true>(isa),
            (Place::Memory, false) => self.all_rows::<I, STORED, false, true>(isa),
            (Place::Memory, true) => self.all_rows::<I, STORED, true, true>(isa),
        }
        if self.place == Place::Memory {
            isa.fence();
        }
    }
}

/// [`Forward::batches`] as a function of its own, so that the loops of one width have no part in how those of another are
/// compiled.
#[derive(Debug)]
struct Batches<'f, 'a, T, const CHUNKS: usize, const WRITE: u8, const AFFINE: bool, const AHEAD: bool>(
    &'f mut Forward<'a, T>,
    Plan,
    Range<usize>,
);

impl<T: Element, const CHUNKS: usize, const WRITE: u8, const AFFINE: bool, const AHEAD: bool> Kernel
    for Batches<'_, '_, T, CHUNKS, WRITE, AFFINE, AHEAD>
{
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.0.batches::<I, CHUNKS, WRITE, AFFINE, AHEAD>(isa, self.1, self.2);
    }
}

impl<T: Element> Forward<'_, T> {
    /// Full batches of the commonest short widths by loops of known length, all other rows by loops over any.
    #[inline(always)]
    fn all_rows<I: Isa, const WRITE: u8, const AFFINE: bool, const AHEAD: bool>(&mut self, isa: I) {
        let width = self.parameters.width;
        let rows = self.x.len() / width;
        let mut plan = Plan::new::<T>(width, AFFINE, self.place, self.is_amd);
        let mut first = 0;
        // The last batch may have fewer rows.
        while first < rows {
            plan.batch = plan.batch.min(rows - first);
            let full = first..rows - (rows - first) % plan.batch;
            first = full.end;
            let is_known = plan.batch == BATCH && width.is_multiple_of(T::LANES);
            macro_rules! by_length {
                ($($known:literal)*) => {
                    match if is_known { width / T::LANES } else { 0 } {
                        $($known if const { I::SPECIALIZED && WRITE != JOINED && $known * T::LANES >= careful::NARROW } => {
                            isa.run(Batches::<_, $known, WRITE, AFFINE, AHEAD>(self, plan, full));
                        })*
                        _ => isa.run(Batches::<_, 0, WRITE, AFFINE, AHEAD>(self, plan, full)),
                    }
                };
            }
            by_length!(1 2 3 4 6 8 12 16);
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
        // Where stretches do not lie at multiples of 64 bytes, the cache lines at their two ends cannot be streamed: they go by
        // way of a buffer, and so do the first and the last batch of rows that are joined.
        let joins = const { WRITE == JOINED };
        let is_staged = joins || const { WRITE == STORED && AHEAD };
        let mut buffer = std::mem::take(self.staged);
        let staged = match (is_staged, plan.is_whole()) {
            (false, _) => &mut [],
            (true, true) => room(&mut buffer, plan.batch * plan.width),
            (true, false) => room(&mut buffer, plan.tile),
        };
        let mut pipeline =
            Pipeline { isa, plan, rows, batch: Batch::default(), staged, waiting: Waiting::none(isa), forward: self };
        if const { CHUNKS == 0 } && plan.is_by_row() {
            isa.run(SumsOfRow(&mut pipeline));
            if joins && !pipeline.rows.is_empty() {
                pipeline.write_first::<AFFINE>();
                isa.run(SumsOfRow(&mut pipeline));
            }
            while !pipeline.rows.is_empty() {
                if const { !AFFINE } && plan.apart {
                    isa.run(Step::<_, _, WRITE, false, AFFINE, false>(&mut pipeline));
                    isa.run(SumsOfRow(&mut pipeline));
                } else {
                    pipeline.row::<WRITE, AFFINE, AHEAD>();
                }
            }
        } else {
            isa.run(Step::<_, _, NOT_WRITTEN, true, false, true>(&mut pipeline));
            if joins && !pipeline.rows.is_empty() {
                pipeline.write_first::<AFFINE>();
                isa.run(Step::<_, _, NOT_WRITTEN, true, false, true>(&mut pipeline));
            }
            let mut sums = [[T::Lanes::splat(isa, T::ZERO); BATCH]; 2];
            while !pipeline.rows.is_empty() {
                if const { CHUNKS > 0 } || plan.is_short() {
                    pipeline.short_rows::<CHUNKS, WRITE, AFFINE, AHEAD>(&mut sums);
                } else {
                    pipeline.step::<WRITE, true, AFFINE, AHEAD>();
                }
            }
        }
        if joins {
            pipeline.write_last::<AFFINE>();
        } else {
            isa.run(Step::<_, _, WRITE, false, AFFINE, false>(&mut pipeline));
        }
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

/// Writes the statistics of rows from `first` on, where they are wanted.
#[inline(always)]
fn save<T: Copy>(all: &mut Option<&mut [T]>, first: usize, values: &[T]) {
    let Some(all) = all else { return };
    let target = &mut all[first..first + values.len()];
    // The copy of a known length is no call.
    match (<&mut [T; BATCH]>::try_from(&mut *target), <&[T; BATCH]>::try_from(values)) {
        (Ok(target), Ok(values)) => *target = *values,
        _ => save_few(target, values),
    }
}

/// Not inlined, or both copies become one call.
#[inline(never)]
fn save_few<T: Copy>(target: &mut [T], values: &[T]) {
    target.copy_from_slice(values);
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
