//! The loop that writes gradients alone: tiles of a few chunks of columns, all rows of the batch to a tile, so that a tile's
//! dgamma and dbeta stay in registers from the first row to the last.

use super::piece::Coefficients;
use super::{FULL, PLAIN};
use crate::Element;
use crate::kernel::joined::Waiting;
use crate::kernel::streams::{chunks, chunks_mut};
use crate::kernel::{JOINED, STREAMED};
use crate::simd::{BATCH, Isa, Lanes};
use std::ops::Range;

/// 64-byte chunks in a tile: dgamma and dbeta are all registers of AVX2.
const TILE: usize = 4;

/// The same of rows with gamma that are stored, not streamed, and longer than [`LONG`] chunks, of an instruction set that has
/// registers for it. Where rows begin at the same distance from a multiple of 4 KiB, so do the lines of x, dy and dx of all rows
/// of a tile, and a first-level cache has eight places or twelve for them: a line of dx may have to go again before its store has
/// come. The longer a row's part is, the fewer rows are on their way at a time. Rows of 1024 columns took 1.3 times as long in
/// tiles of four chunks on an EPYC, of 2048 and of 4096 columns 1.25 times. (Without gamma it is one row at a time, and took 1.1
/// times as long in long tiles.)
const LONG_TILE: usize = 8;

/// Chunks of the longest row that keeps to short tiles: it has the loops of known length.
const LONG: usize = 16;

/// A batch of rows, and gamma, dgamma and dbeta.
#[derive(Debug)]
pub(super) struct Block<'a, T: Element, I: Isa> {
    pub(super) isa: I,
    pub(super) width: usize,
    pub(super) x: &'a [T],
    pub(super) dy: &'a [T],
    /// The columns from `dx_start` on, at least those that are written; `dx_stride` elements from row to row. A joined row is the
    /// only one, goes as a whole, and begins with the places of those that wait.
    pub(super) dx: &'a mut [T],
    pub(super) dx_start: usize,
    pub(super) dx_stride: usize,
    /// The rows of the batch whose gradients are written.
    pub(super) written: Range<usize>,
    pub(super) rows: &'a Coefficients<[T; BATCH]>,
    pub(super) gamma: &'a [T],
    pub(super) dgamma: &'a mut [T],
    pub(super) dbeta: &'a mut [T],
    /// What waits for the line of a joined row's next chunk.
    pub(super) waiting: Waiting<T::Lanes<I>>,
}

impl<T: Element, I: Isa> Block<'_, T, I> {
    /// Some of the columns.
    #[inline(always)]
    pub(super) fn columns<const WRITE: u8, const MODE: u8, const CONTINUED: bool>(&mut self, columns: Range<usize>) {
        let mut column = columns.start;
        if const { I::REGISTERS > 3 * LONG_TILE && MODE != PLAIN && WRITE != STREAMED } && self.width > LONG * T::LANES
        {
            while column + LONG_TILE * T::LANES <= columns.end {
                self.tile::<WRITE, MODE, CONTINUED, LONG_TILE>(column);
                column += LONG_TILE * T::LANES;
            }
        }
        while column + TILE * T::LANES <= columns.end {
            self.tile::<WRITE, MODE, CONTINUED, TILE>(column);
            column += TILE * T::LANES;
        }
        while column + 2 * T::LANES <= columns.end {
            self.tile::<WRITE, MODE, CONTINUED, 2>(column);
            column += 2 * T::LANES;
        }
        while column + T::LANES <= columns.end {
            self.tile::<WRITE, MODE, CONTINUED, 1>(column);
            column += T::LANES;
        }
        if column < columns.end {
            self.tail::<WRITE, MODE, CONTINUED>(column..columns.end);
        }
    }

    /// `CHUNKS` chunks of columns.
    #[inline(always)]
    fn tile<const WRITE: u8, const MODE: u8, const CONTINUED: bool, const CHUNKS: usize>(&mut self, column: usize) {
        let (isa, width) = (self.isa, self.width);
        let load = |chunk: &T::Chunk| T::Lanes::load(isa, chunk);
        let len = CHUNKS * T::LANES;
        let zero = T::Lanes::splat(isa, T::ZERO);
        let mut gamma = [zero; CHUNKS];
        let [mut dgamma, mut dbeta] = [[zero; CHUNKS]; 2];
        if const { MODE != PLAIN } {
            let chunks = chunks::<T, CHUNKS>(&self.gamma[column..column + len]);
            for n in 0..CHUNKS {
                gamma[n] = load(&chunks[n]);
            }
        }
        if const { MODE == FULL } && CONTINUED {
            let a = chunks::<T, CHUNKS>(&self.dgamma[column..column + len]);
            let b = chunks::<T, CHUNKS>(&self.dbeta[column..column + len]);
            for n in 0..CHUNKS {
                (dgamma[n], dbeta[n]) = (load(&a[n]), load(&b[n]));
            }
        }
        for i in self.written.clone() {
            let place = i * width + column..i * width + column + len;
            let row = self.rows.of_row(i).lanes(isa);
            let x = chunks::<T, CHUNKS>(&self.x[place.clone()]);
            let dy = chunks::<T, CHUNKS>(&self.dy[place]);
            let dx = chunks_mut::<T, CHUNKS>(&mut self.dx[i * self.dx_stride + column - self.dx_start..][..len]);
            for n in 0..CHUNKS {
                let dy = load(&dy[n]);
                let (xhat, value) = row.gradient(load(&x[n]), dy, (MODE != PLAIN).then_some(gamma[n]));
                if const { MODE == FULL } {
                    dgamma[n] = dy.mul_add(xhat, dgamma[n]);
                    dbeta[n] = dbeta[n] + dy;
                }
                self.waiting.write::<T, I, WRITE>(value, &mut dx[n]);
            }
        }
        if const { MODE != FULL } {
            return;
        }
        let a = chunks_mut::<T, CHUNKS>(&mut self.dgamma[column..column + len]);
        let b = chunks_mut::<T, CHUNKS>(&mut self.dbeta[column..column + len]);
        for n in 0..CHUNKS {
            let (a, b) = (&mut a[n], &mut b[n]);
            if CONTINUED {
                dgamma[n].store(a);
                dbeta[n].store(b);
            } else {
                (load(a) + dgamma[n]).store(a);
                (load(b) + dbeta[n]).store(b);
            }
        }
    }

    /// Fewer columns than a register has lanes.
    #[inline(always)]
    fn tail<const WRITE: u8, const MODE: u8, const CONTINUED: bool>(&mut self, columns: Range<usize>) {
        let (isa, width) = (self.isa, self.width);
        let zero = T::Lanes::splat(isa, T::ZERO);
        let load = |values: &[T]| T::Lanes::load_tail(isa, values, zero);
        let gamma = if const { MODE == PLAIN } { None } else { Some(load(&self.gamma[columns.clone()])) };
        let (mut dgamma, mut dbeta) = if const { MODE == FULL } && CONTINUED {
            (load(&self.dgamma[columns.clone()]), load(&self.dbeta[columns.clone()]))
        } else {
            (zero, zero)
        };
        for i in self.written.clone() {
            let place = i * width + columns.start..i * width + columns.end;
            let dy = load(&self.dy[place.clone()]);
            let (xhat, value) = self.rows.of_row(i).lanes(isa).gradient(load(&self.x[place]), dy, gamma);
            dgamma = dy.mul_add(xhat, dgamma);
            dbeta = dbeta + dy;
            let dx = i * self.dx_stride + columns.start - self.dx_start;
            // Behind a joined row nothing is.
            let end = if const { WRITE == JOINED } { self.dx.len() } else { dx + columns.len() };
            self.waiting.write_few::<T, I, WRITE>(value, &mut self.dx[dx..end]);
        }
        if const { MODE != FULL } {
            return;
        }
        let (a, b) = (&mut self.dgamma[columns.clone()], &mut self.dbeta[columns]);
        if CONTINUED {
            dgamma.store_tail(a);
            dbeta.store_tail(b);
        } else {
            (load(a) + dgamma).store_tail(a);
            (load(b) + dbeta).store_tail(b);
        }
    }
}
