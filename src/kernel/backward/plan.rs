//! How many rows and columns go together.

use crate::Element;
use crate::kernel::careful::NARROW;
use crate::kernel::{FIFTH, TOGETHER, misaligned, segment};
use crate::simd::{BATCH, Isa, is_amd};

/// dx, and whether to add to it.
type Dx<'a, T> = (&'a mut [T], bool);

/// Whether dx is written, as whole cache lines, so that it can go past the caches without a buffer.
#[inline(always)]
pub(super) fn is_whole_lines<T: Element>(width: usize, dx: Option<&Dx<'_, T>>) -> bool {
    width.is_multiple_of(T::LANES) && dx.is_some_and(|(dx, accumulate)| misaligned(dx) == 0 && !accumulate)
}

/// Whether dx of rows whose dgamma and dbeta are wanted is better not written past the caches, even to memory: on [AMD's
/// CPUs](is_amd) that of short rows that would go by way of a buffer. On an EPYC 131072x40 took 1.15 times as long so,
/// 100000x20 1.13 times, 60000x60 1.02 times; 16 bytes past a line 65536x48 and 65536x64 1.05 times, but 131072x32 0.87 times;
/// added to 131072x32 1.1 times, 65536x64 as long; at whole lines 65536x64 takes 0.75 to 0.95 times as long
/// streamed as not.
pub(crate) fn prefers_caches<T: Element>(width: usize, dx: Option<&Dx<'_, T>>) -> bool {
    width >= NARROW && Plan::is_short::<T>(width) && !is_whole_lines(width, dx) && is_amd()
}

/// How rows of some width are taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) width: usize,
    /// Rows that go together.
    pub(super) batch: usize,
    /// Whether rows, as a whole, have their sums taken and finished one at a time, unless it is
    /// [together](Self::has_sums_together).
    pub(super) by_row: bool,
    /// Columns that go together: all, or a segment or a part of one.
    pub(super) tile: usize,
    /// Columns of a row in the buffer that dx may go by way of: all, or those that go together.
    pub(super) staged: usize,
}

impl Plan {
    /// Bytes of a short row, at most.
    const SHORT: usize = 256;
    /// Chunks of the commonest row that goes by itself, fused: it has a loop of known length. (In blocks other rows have, too.)
    pub(super) const ROW_CHUNKS: usize = 16;
    /// Chunks of a row in a buffer, at most, where rows do not go there as a whole: a segment has a whole number of so many.
    pub(super) const STAGED: usize = 64;
    /// Chunks from one that is read to the one that is asked for, as in forward, but of two arrays at a time.
    pub(super) const AHEAD: usize = 200;

    /// Whether the sums of the batch, a full one, are taken and finished together. On an EPYC backward of rows of 24 to 112
    /// columns took 1.14 to 1.3 times as long row by row, of 144 to 300 columns 1.07 to 1.1 times, of 320 and 384 1.03 times, of
    /// 500 and more as long.
    pub(super) fn has_sums_together<T: Element>(self) -> bool {
        self.batch == BATCH && self.width * size_of::<T>() <= TOGETHER
    }

    /// Whether rows are so short that they always go in batches.
    pub(super) const fn is_short<T: Element>(width: usize) -> bool {
        width * size_of::<T>() <= Self::SHORT
    }

    pub(super) fn new<T: Element>(width: usize, is_fused: bool) -> Self {
        Self {
            width,
            batch: if is_fused && !Self::is_short::<T>(width) { 1 } else { BATCH },
            by_row: Self::goes_by_row::<T>(width),
            tile: width.min(segment::<T>()),
            staged: width,
        }
    }

    /// Whether rows that are fused go one at a time, as a whole.
    pub(super) fn goes_by_row<T: Element>(width: usize) -> bool {
        !Self::is_short::<T>(width) && width <= segment::<T>()
    }

    /// Whether rows are so long that it pays [AMD's CPUs](is_amd) to write dx alone before the sums of the next row are
    /// taken. In cache, where a first-level cache has no room for x and dy of two rows and dx: on an EPYC rows of 1792 to 4096
    /// columns took 0.77 to 0.98 times as long so, of 1536 0.95 to 1.03 times, of 1024 1.15 times.
    pub(super) fn pays_apart<T: Element>(self, is_far: bool) -> bool {
        let bytes = self.width * size_of::<T>();
        self.by_row && bytes > if is_far { 2 << 10 } else { FIFTH }
    }

    /// Whether rows from memory are so short that it pays to take the sums of eight, and then to write dx of those.
    ///
    /// On an EPYC streamed rows of 64 to 128 columns of f32 took 0.5 to 0.77 times as long so with gamma, 0.65 to 0.95 times
    /// without, of 192 1.02 and 1.14 times, of 256 1.22 and 1.37 times. Where those fused are joined, rows with a tail of 70
    /// and 100 columns took 0.73 to 0.88 times as long with AVX-512, of 125 0.8 to 1.15 times, of 150 to 250 1 to 1.4 times;
    /// with AVX2 of 70 to 125 columns 0.6 to 0.68 times, of 150 and 200 0.9 to 0.97 times, of 250 1.06 to 1.11 times. Where dx
    /// is added to or not wanted, rows of 70 to 128 columns took 0.53 to 0.88 times as long, of 150 and 250 1.03 to 1.11 times.
    pub(super) fn pays_in_blocks<T: Element, I: Isa>(width: usize, dx: Option<&Dx<'_, T>>) -> bool {
        let is_overwritten = dx.is_some_and(|(_, accumulate)| !accumulate);
        let joins_slowly = const { I::REGISTERS < 32 } && is_overwritten && !width.is_multiple_of(T::LANES);
        width * size_of::<T>() <= if joins_slowly { 1 << 10 } else { 512 }
    }

    /// Whether rows from memory that do not begin and end with cache lines are [joined](crate::kernel::joined) on their way past
    /// the caches, where they go fused, rather than written in a nearer cache first.
    ///
    /// On an EPYC with AVX-512 rows of 300 to 700 columns with a tail took 0.6 to 0.8 times as long so, of 1000 to 2040 0.78 to
    /// 1 times; those without, in an array that begins 16 bytes past a line, 0.68 to 0.93 times. With AVX2 those with a tail
    /// took 0.8 to 1.1 times as long, and in forward those without 1.1 to 1.3 times.
    pub(super) fn pays_joined<T: Element, I: Isa>(width: usize, dx: Option<&Dx<'_, T>>) -> bool {
        let is_overwritten = dx.is_some_and(|(_, accumulate)| !accumulate);
        let has_tail = !width.is_multiple_of(T::LANES);
        is_overwritten && Self::goes_by_row::<T>(width) && (has_tail || const { I::REGISTERS >= 32 })
    }

    /// Whether rows from memory are so long that with gamma it pays [AMD's CPUs](is_amd) to take the sums of eight rows, and then
    /// to write dx of those. On an EPYC rows of 1280 to 8192 columns of f32 took 0.7 to 0.9 times as long so on one thread, and
    /// 0.75 to 1 times on two, of f64 (768 to 4096) 0.8 to 0.95 times; rows of 512 to 1024 columns of f32 1.05 to 1.2 times.
    pub(super) fn is_long_for_blocks<T: Element>(width: usize) -> bool {
        width * size_of::<T>() > 4 << 10
    }

    /// Where `CHUNKS` is not 0 the rows are of so many chunks without a tail, in full batches, and the compiler knows it: the
    /// loops over short rows then have no loop left in them.
    #[inline(always)]
    pub(super) fn known<T: Element, const CHUNKS: usize>(self) -> Self {
        if const { CHUNKS > 0 } {
            Self {
                width: CHUNKS * T::LANES,
                batch: BATCH,
                by_row: false,
                tile: CHUNKS * T::LANES,
                staged: CHUNKS * T::LANES,
            }
        } else {
            self
        }
    }
}
