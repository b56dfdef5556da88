//! How many rows and columns of some width go together.

use super::Place;
use crate::Element;
use crate::kernel::{FIFTH, TOGETHER, segment};
use crate::simd::{BATCH, Isa};

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
    /// Bytes of a short row, at most: such rows go in batches of eight, whose statistics take about as long as those of one. On
    /// an EPYC rows of 257 to 384 columns took 1.05 to 1.25 times as long one at a time, of 500 and 512 0.9 to 1.08 times.
    const SHORT: usize = TOGETHER;
    /// The same of rows in memory that have no tail: of 320 to 384 columns took 0.95 to 1.05 times as long one at a time with
    /// gamma and beta, and 0.78 to 0.87 times without. (With a tail, joined, of 260 to 380 columns, 0.91 to 1.1 times with
    /// AVX-512, 0.88 to 1.25 times with AVX2.)
    const SHORT_STREAM: usize = 1 << 10;
    /// Bytes of a row that goes as a whole while another does, at most: a first-level cache holds both, and y.
    const WHOLE: usize = 8 << 10;
    /// The same in cache, where gamma and beta are to find room beside them: that of five rows. On an EPYC rows of 1792 to 2048
    /// columns took 1.05 to 1.18 times as long as a whole as in tiles, of 1600 as long, of 1088 to 1536 0.83 to 0.94 times; from
    /// memory, where tiles break up an even stream, all of them 0.63 to 0.96 times.
    const WHOLE_AFFINE: usize = FIFTH;
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

    /// How rows are taken with gamma and beta or without, on [AMD's CPUs](crate::simd::is_amd) or others.
    pub(super) fn new<T: Element>(width: usize, is_affine: bool, place: Place, is_amd: bool) -> Self {
        let bytes = width * size_of::<T>();
        let is_far = place == Place::Memory;
        let short = if is_far && width.is_multiple_of(T::LANES) { Self::SHORT_STREAM } else { Self::SHORT };
        let whole = if is_amd && is_affine && !is_far { Self::WHOLE_AFFINE } else { Self::WHOLE };
        // In cache only rows of which it holds no two and y: it holds one and y. On an EPYC rows of 2112 to 4096 columns
        // took 0.68 to 0.8 times as long so, of 2048 1.06 times, of 1024 1.3 times.
        let pays_apart = if is_far { bytes >= Self::APART } else { bytes > whole };
        if is_amd && !is_affine && pays_apart && width <= segment::<T>() {
            Self { width, batch: 1, tile: width, apart: true }
        } else if bytes <= whole {
            Self { width, batch: if bytes <= short { BATCH } else { 1 }, tile: width, apart: false }
        } else {
            // Rows share what a tile reads of gamma and beta; without those, one row at a time is found in nearer caches.
            let batch = if is_affine { BATCH } else { 1 };
            Self { width, batch, tile: Self::TILE * T::LANES, apart: false }
        }
    }

    /// Whether rows that do not begin and end with cache lines are [joined](crate::kernel::joined) on their way past the caches,
    /// rather than written in a nearer cache first.
    ///
    /// On an EPYC rows of 150 to 2040 columns with a tail took 0.6 to 0.9 times as long so with AVX-512; those without, in an
    /// array that begins 16 bytes past a line, 0.8 to 1 times from 500 columns on, and 1 to 1.15 times of up to 384; shorter
    /// ones with a tail about as long. With AVX2, which has two instructions and more for one, rows with a tail took 0.8 to
    /// 0.95 times as long, but with gamma and beta of 1000 to 1012 columns 1.15 to 1.5 times (which would be a rule for four
    /// widths), and those without 1.1 to 1.3 times.
    ///
    /// In tiles, with AVX-512, rows of 2500 and 3000 columns took 0.77 to 0.86 times as long, of 4096 to 20000, 16 bytes past a
    /// line, 0.77 to 0.95 times; without gamma and beta, of 8192 and 20000, 1.1 times.
    pub(super) fn pays_joined<T: Element, I: Isa>(self) -> bool {
        let bytes = self.width * size_of::<T>();
        let has_tail = !self.width.is_multiple_of(T::LANES);
        let has_wide_registers = const { I::REGISTERS >= 32 };
        match self.is_whole() {
            false => has_wide_registers && self.batch > 1,
            true => bytes > 512 && (has_tail || has_wide_registers && self.is_by_row()),
        }
    }

    /// Whether rows go one at a time, as a whole.
    #[inline(always)]
    pub(super) fn is_by_row(self) -> bool {
        self.batch == 1 && self.is_whole()
    }

    /// Whether a full batch of rows goes as a whole.
    #[inline(always)]
    pub(super) fn is_short(self) -> bool {
        self.batch == BATCH && self.is_whole()
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
