//! How many rows and columns go together.

use crate::Element;
use crate::kernel::careful::NARROW;
use crate::kernel::segment;
use crate::simd::{BATCH, reads_apart};

/// Whether rows whose dgamma and dbeta are wanted go in blocks, past no cache, even from memory: short ones, where a CPU
/// [reads them apart](reads_apart). 65536x64 took 1.4 times as long fused and streamed, on an EPYC.
pub(crate) fn prefers_blocks<T: Element>(width: usize) -> bool {
    width >= NARROW && width * size_of::<T>() <= Plan::SHORT && reads_apart()
}

/// How rows of some width are taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) width: usize,
    /// Rows that go together.
    pub(super) batch: usize,
    /// Whether rows, as a whole, have their sums taken and finished one at a time.
    pub(super) by_row: bool,
    /// Columns that go together: all, or a segment or a part of one.
    pub(super) tile: usize,
    /// Columns of a row in the buffer that dx may go by way of: all, or those that go together.
    pub(super) staged: usize,
}

impl Plan {
    /// Bytes of a short row, at most. (In forward longer ones pay for eight at a time: there is less to do for each.)
    const SHORT: usize = 256;
    /// Chunks of a row in a buffer, at most, where rows do not go there as a whole: a segment has a whole number of so many.
    pub(super) const STAGED: usize = 64;
    /// Chunks from one that is read to the one that is asked for, as in forward, but of two arrays at a time.
    pub(super) const AHEAD: usize = 200;

    pub(super) fn new<T: Element>(width: usize, is_fused: bool) -> Self {
        let bytes = width * size_of::<T>();
        Self {
            width,
            batch: if is_fused && bytes > Self::SHORT { 1 } else { BATCH },
            by_row: bytes > Self::SHORT && width <= segment::<T>(),
            tile: width.min(segment::<T>()),
            staged: width,
        }
    }

    /// Whether rows are so long that it pays to write dx without gamma before the sums of the next row are taken, where a CPU
    /// [reads apart](reads_apart).
    pub(super) fn pays_apart<T: Element>(self) -> bool {
        self.by_row && self.width * size_of::<T>() > 2 << 10
    }

    /// As in forward.
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
