//! How many rows and columns go together.

use crate::Element;
use crate::kernel::segment;
use crate::simd::BATCH;

/// How rows of some width are taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) width: usize,
    /// Rows that go together.
    pub(super) batch: usize,
    /// Columns that go together: all, or a segment or a part of one.
    pub(super) tile: usize,
    /// Columns of a row in the buffer that dx may go by way of: all, or those that go together.
    pub(super) staged: usize,
}

impl Plan {
    /// Bytes of x in a batch of rows that are fused with the next.
    const BATCH_BYTES: usize = 12 << 10;
    /// Chunks of a row in a buffer, at most: a segment has a whole number of so many.
    pub(super) const STAGED: usize = 64;
    /// Chunks from one that is read to the one that is asked for; as in forward, no multiple of 4 KiB.
    pub(super) const AHEAD: usize = 40;

    pub(super) fn new<T: Element>(width: usize, is_fused: bool) -> Self {
        let most = Self::BATCH_BYTES / (width * size_of::<T>());
        Self {
            width,
            // A part of a block of eight.
            batch: if is_fused { 1 << most.clamp(1, BATCH).ilog2() } else { BATCH },
            tile: width.min(segment::<T>()),
            staged: width,
        }
    }

    /// As in forward.
    #[inline(always)]
    pub(super) fn known<T: Element, const CHUNKS: usize>(self) -> Self {
        if const { CHUNKS > 0 } {
            Self { width: CHUNKS * T::LANES, batch: BATCH, tile: CHUNKS * T::LANES, staged: CHUNKS * T::LANES }
        } else {
            self
        }
    }
}
