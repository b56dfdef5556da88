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
//! (Ba, Kiros and Hinton, "Layer Normalization", 2016; derived step by step in [`reference`](mod@crate::reference).) What is
//! added up is `g`, `d = x - mean` and `g * d`; `h` is `d * rstd`, and `rstd`, the same for the whole row, multiplies the sums.
//!
//! The saved mean is rounded to the element type. `mean(h)` recovers what that took away, from sums that are taken
//! anyway; so backward sees the same corrected mean as forward, and a mean that another library computed less well
//! does no harm.
//!
//! Rows go in batches, in one of two ways, which give the same bits:
//!
//! - *In blocks*, where x and dy are in cache, if dgamma or dbeta is wanted, or if rows have gamma and are very short or longer
//!   than a segment; without gamma, if rows are very short and dx is not streamed; and on [AMD's CPUs](crate::simd::is_amd)
//!   from memory, if rows are of up to 512 bytes (with AVX2 and a tail of up to a kilobyte), or have gamma and more than 4 KiB:
//!   the sums of a batch are taken ([`piece`], [`short`]), and then its gradients are written in tiles of columns, all rows to
//!   a tile, which keeps dgamma and dbeta in registers ([`block`]). Without gamma rows of 16 to 48 columns took 0.3 to 0.7
//!   times as long so on an EPYC.
//! - *Fused*, all others: the gradients of a batch are written in the same loop that takes the sums of the next, as in
//!   [`forward`](super::forward), and what memory sends is asked for 12.5 KiB ahead. A batch is one row, unless rows are very
//!   short. dgamma and dbeta of eight rows are added up in the first-level cache. With dx streamed that is one even stream: on
//!   a Xeon 0.9 to 1.3 times a sum of two arrays where blocks took 1.2 to 2.1. In cache, with dgamma and dbeta, blocks are
//!   faster: fused, rows of 256 to 4096 columns took 0.98 to 1.5 times as long on an EPYC, and only those of 1024 less, 0.87
//!   times. (Without dgamma and dbeta rows of 256 to 2048 columns took 1.1 to 1.47 times as long in blocks as fused.)
//!   Instruction sets without specialized loops always go in blocks. ([AMD's CPUs](crate::simd::is_amd) have ways of their
//!   own.)
//!
//! Past the caches rows go as they are where they begin and end with cache lines; else those that go fused, one at a time, are
//! [`joined`](super::joined) where that pays, and others are written in a nearer cache and copied.
//!
//! What the gradients of a row are made of is computed without lanes, beside the sums of the row after it; of very short and
//! of very long rows, and of those of up to 1.5 KiB in blocks, eight at a time.
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
mod pipeline;
mod plan;
mod short;

use super::forward::{Parameters, Place};
use super::joined::Waiting;
use super::{JOINED, STORED, STREAMED, careful, room, segment};
use crate::Element;
use crate::simd::{BATCH, Isa, Kernel, Lanes};
use parameter_sums::Counts;
pub(crate) use parameter_sums::{GROUP, ParameterSums};
use pipeline::{Batch, Pipeline};
pub(crate) use plan::prefers_caches;
use plan::{Plan, is_whole_lines};
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
    /// Whether to go the ways of [AMD's CPUs](crate::simd::is_amd).
    pub(crate) is_amd: bool,
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
        let width = self.parameters.width;
        let is_far = self.place == Place::Memory;
        let streams = is_far && is_whole_lines(width, self.dx.as_ref());
        // From memory rows go fused on CPUs other than AMD's, where nothing else was measured.
        let pays_in_blocks = self.is_amd && Plan::pays_in_blocks::<T, I>(width, self.dx.as_ref());
        // Without gamma.
        let is_short_block = is_far && pays_in_blocks || Plan::is_short::<T>(width) && !streams;
        let is_fused = is_far && !pays_in_blocks && !(self.is_amd && Plan::is_long_for_blocks::<T>(width));
        let joins = is_far && Plan::pays_joined::<T, I>(width, self.dx.as_ref());
        if !I::SPECIALIZED {
            // One loop does for those that cannot write past the caches.
            return match (self.parameters.gamma.is_some(), self.sums.is_some()) {
                (false, _) => self.all_rows::<I, STORED, PLAIN, false, false>(isa),
                (true, false) => self.all_rows::<I, STORED, SCALED, false, false>(isa),
                (true, true) => self.all_rows::<I, STORED, FULL, false, false>(isa),
            };
        }
        match (self.parameters.gamma.is_some(), self.sums.is_some()) {
            (false, _) if is_short_block && streams => self.all_rows::<I, STREAMED, PLAIN, false, false>(isa),
            (false, _) if is_short_block => self.all_rows::<I, STORED, PLAIN, false, false>(isa),
            (false, _) if streams => self.all_rows::<I, STREAMED, PLAIN, true, true>(isa),
            (false, _) if joins => self.all_rows::<I, JOINED, PLAIN, true, true>(isa),
            (false, _) if is_far => self.all_rows::<I, STORED, PLAIN, true, true>(isa),
            (false, _) => self.all_rows::<I, STORED, PLAIN, true, false>(isa),
            // Fused, the sums cost nothing, so there is no loop without them.
            (true, _) if is_fused && streams => self.all_rows::<I, STREAMED, FULL, true, true>(isa),
            (true, _) if is_fused && joins => self.all_rows::<I, JOINED, FULL, true, true>(isa),
            (true, _) if is_fused => self.all_rows::<I, STORED, FULL, true, true>(isa),
            (true, false) if streams => self.all_rows::<I, STREAMED, SCALED, false, false>(isa),
            (true, true) if streams => self.all_rows::<I, STREAMED, FULL, false, false>(isa),
            (true, false) if !is_far && Plan::goes_by_row::<T>(width) => {
                self.all_rows::<I, STORED, SCALED, true, false>(isa);
            }
            (true, false) => self.all_rows::<I, STORED, SCALED, false, false>(isa),
            (true, true) => self.all_rows::<I, STORED, FULL, false, false>(isa),
        }
        if self.place == Place::Memory {
            isa.fence();
        }
    }
}

/// [`Backward::batches`] as a function of its own, so that the loops of one width have no part in how those of another are
/// compiled.
#[derive(Debug)]
struct Batches<'f, 'a, T, const CHUNKS: usize, const WRITE: u8, const MODE: u8, const FUSED: bool, const AHEAD: bool> {
    backward: &'f mut Backward<'a, T>,
    plan: Plan,
    rows: Range<usize>,
    counts: &'f mut Counts,
    block: &'f mut [T],
}

impl<T: Element, const CHUNKS: usize, const WRITE: u8, const MODE: u8, const FUSED: bool, const AHEAD: bool> Kernel
    for Batches<'_, '_, T, CHUNKS, WRITE, MODE, FUSED, AHEAD>
{
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { backward, plan, rows, counts, block } = self;
        backward.batches::<I, CHUNKS, WRITE, MODE, FUSED, AHEAD>(isa, plan, rows, counts, block);
    }
}

impl<T: Element> Backward<'_, T> {
    /// Whether rows of `CHUNKS` chunks have a loop of their own: not dx with gamma and no sums, not fused rows that lie anywhere
    /// in memory, and of those that are longer than very short ones only 16 chunks fused, or any with sums that are not streamed.
    /// Of the latter 96 columns took 1.36 times as long on an EPYC in a loop over any width, 128 1.2 times, 256 1.06 times.
    const fn is_common<const CHUNKS: usize, const WRITE: u8, const MODE: u8, const FUSED: bool, const AHEAD: bool>()
    -> bool {
        let is_short = Plan::is_short::<T>(CHUNKS * T::LANES) && (!FUSED || WRITE == STREAMED);
        let is_row = CHUNKS == Plan::ROW_CHUNKS && FUSED;
        let is_block = !FUSED && WRITE == STORED && MODE == FULL;
        CHUNKS * T::LANES >= careful::NARROW
            && MODE != SCALED
            && (WRITE == STREAMED || !AHEAD)
            && (is_short || is_row || is_block)
    }

    /// Full batches of the commonest widths by loops of known length, all other rows by loops over any.
    #[inline(always)]
    fn all_rows<I: Isa, const WRITE: u8, const MODE: u8, const FUSED: bool, const AHEAD: bool>(&mut self, isa: I) {
        let width = self.parameters.width;
        let count = self.mean.len();
        let mut plan = Plan::new::<T>(width, FUSED);
        let whole_batch = plan.batch;
        let mut first = 0;
        let mut counts = Counts::default();
        let mut buffer = std::mem::take(self.block);
        let block = room(&mut buffer, if FUSED && MODE == FULL { ParameterSums::<T>::len(width) } else { 0 });
        block.fill(T::ZERO);
        // The last batch may have fewer rows.
        while first < count {
            plan.batch = plan.batch.min(count - first);
            let rows = first..count - (count - first) % plan.batch;
            first = rows.end;
            let is_known = plan.batch == whole_batch && width.is_multiple_of(T::LANES);
            let (backward, counts, block) = (&mut *self, &mut counts, &mut *block);
            macro_rules! by_length {
                ($($known:literal)*) => {
                    match if is_known { width / T::LANES } else { 0 } {
                        $($known if const { I::SPECIALIZED && Self::is_common::<$known, WRITE, MODE, FUSED, AHEAD>() } => {
                            isa.run(Batches::<_, $known, WRITE, MODE, FUSED, AHEAD> { backward, plan, rows, counts, block });
                        })*
                        _ => isa.run(Batches::<_, 0, WRITE, MODE, FUSED, AHEAD> { backward, plan, rows, counts, block }),
                    }
                };
            }
            by_length!(1 2 3 4 6 8 12 16);
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
    fn batches<I: Isa, const CHUNKS: usize, const WRITE: u8, const MODE: u8, const FUSED: bool, const AHEAD: bool>(
        &mut self,
        isa: I,
        plan: Plan,
        rows: Range<usize>,
        counts: &mut Counts,
        block: &mut [T],
    ) {
        // dx that is not at multiples of 64 bytes goes past the caches by way of a buffer, and so do the first and the last of
        // rows that are joined, and dx that is added to, or that nobody wants.
        let is_overwritten = self.dx.as_ref().is_some_and(|(_, accumulate)| !accumulate);
        let joins = const { WRITE == JOINED };
        let is_staged = joins || const { WRITE == STORED } && (self.place == Place::Memory || !is_overwritten);
        let mut buffer = std::mem::take(self.staged);
        let mut plan = plan;
        if is_staged && !(FUSED && plan.width <= segment::<T>()) {
            plan.tile = plan.tile.min(Plan::STAGED * T::LANES);
            plan.staged = plan.tile;
        }
        let staged = room(&mut buffer, if is_staged { plan.batch * plan.staged } else { 0 });
        let apart = const { MODE != FULL } && self.is_amd && plan.pays_apart::<T>(AHEAD);
        let waiting = Waiting::none(isa);
        let mut pipeline =
            Pipeline { isa, plan, rows, batch: Batch::default(), staged, waiting, counts, block, backward: self };
        if FUSED {
            pipeline.sums::<MODE>();
            // There is no row to join the first one to.
            if joins && !pipeline.rows.is_empty() {
                pipeline.write_alone::<WRITE, MODE, FUSED>();
                pipeline.sums::<MODE>();
            }
            while !pipeline.rows.is_empty() {
                if !pipeline.batch.ordinary {
                    pipeline.write_alone::<WRITE, MODE, FUSED>();
                    pipeline.sums::<MODE>();
                } else if const { MODE != FULL } && apart {
                    pipeline.write::<WRITE, MODE, FUSED>();
                    pipeline.sums::<MODE>();
                } else if const { CHUNKS == Plan::ROW_CHUNKS } || const { CHUNKS == 0 } && plan.by_row {
                    pipeline.fused_rows::<CHUNKS, WRITE, MODE, AHEAD>();
                } else if const { CHUNKS != Plan::ROW_CHUNKS && WRITE != JOINED } {
                    pipeline.step::<CHUNKS, WRITE, true, MODE, FUSED, AHEAD>(0..plan.batch);
                }
            }
            pipeline.write_alone::<WRITE, MODE, FUSED>();
        } else {
            let mut sums = [[T::Lanes::splat(isa, T::ZERO); BATCH]; 3];
            while !pipeline.rows.is_empty() {
                if const { CHUNKS > 0 } {
                    pipeline.sums_of_short_rows::<CHUNKS, MODE>(&mut sums);
                } else {
                    pipeline.sums::<MODE>();
                }
                if const { CHUNKS > 0 } && pipeline.batch.ordinary {
                    pipeline.step::<CHUNKS, WRITE, false, MODE, FUSED, false>(0..plan.batch);
                } else {
                    pipeline.write::<WRITE, MODE, FUSED>();
                }
            }
        }
        *self.staged = buffer;
    }
}
