//! How many rows and columns of some width go together.

use crate::Element;
use crate::kernel::segment;
use crate::simd::BATCH;

/// How rows of some width are taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) width: usize,
    /// Rows that go together.
    pub(super) batch: usize,
    /// Columns that go together: all, or whole chunks.
    pub(super) tile: usize,
    /// Whether a row is written before the sums of the next are taken.
    pub(super) apart: bool,
}

impl Plan {
    /// Bytes of a short row, at most: such rows go in batches of eight, whose statistics take about as long as those of one.
    const SHORT: usize = 1 << 10;
    /// Bytes of a row that goes as a whole while another does, at most.
    const WHOLE: usize = 8 << 10;
    /// Bytes of a row that is rather read, and then written, at least, where that is preferred. On an EPYC rows of 1024 columns
    /// without gamma and beta, from memory, took 0.75 to 0.85 times as long so, of 768 as long, of 512 1.06 times; with gamma
    /// and beta 1.2 times and more.
    const APART: usize = 3 << 10;
    /// Chunks in a tile of a longer row: whole runs, and a segment has a whole number of tiles.
    pub(super) const TILE: usize = 64;
    /// Chunks from one that is read to the one that is asked for from memory, which is to be in the second-level cache by then:
    /// on an EPYC a loop like this one took 1.2 times as long for 8192x768 with the first-level cache asked for 40 chunks ahead
    /// as without asking, and 0.9 times so. No multiple of 4 KiB, as rows may be: what is asked for, read and written would all
    /// have one place in a page.
    pub(super) const AHEAD: usize = 100;

    /// `prefers_apart` is whether long rows are rather read, and then written.
    pub(super) fn new<T: Element>(width: usize, is_affine: bool, prefers_apart: bool) -> Self {
        let bytes = width * size_of::<T>();
        if prefers_apart && bytes >= Self::APART && width <= segment::<T>() {
            // A first-level cache holds the row until it is written.
            Self { width, batch: 1, tile: width, apart: true }
        } else if bytes <= Self::WHOLE {
            Self { width, batch: if bytes <= Self::SHORT { BATCH } else { 1 }, tile: width, apart: false }
        } else {
            // Rows share what a tile reads of gamma and beta; without those, one row at a time is found in nearer caches.
            let batch = if is_affine { BATCH } else { 1 };
            Self { width, batch, tile: Self::TILE * T::LANES, apart: false }
        }
    }

    /// Whether rows go one at a time, as a whole.
    #[inline(always)]
    pub(super) fn is_by_row(self) -> bool {
        self.batch == 1 && self.is_whole()
    }

    /// Whether rows go as a whole.
    #[inline(always)]
    pub(super) fn is_whole(self) -> bool {
        self.tile == self.width
    }

    /// The element to ask for while that of a row of the batch from `first` on is read which `column` begins.
    #[inline(always)]
    pub(super) fn ahead<T: Element>(self, first: usize, row: usize, column: usize) -> usize {
        if self.is_whole() {
            return (first + row) * self.width + Self::AHEAD * T::LANES;
        }
        // Tiles of the rows of a batch come one after the other.
        let tile = column / self.tile * self.batch + row + 1;
        let (tile, row) = (tile / self.batch * self.tile, tile % self.batch);
        if tile < self.width { (first + row) * self.width + tile } else { (first + self.batch + row) * self.width }
    }
}
