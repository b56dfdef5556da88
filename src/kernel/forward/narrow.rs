//! Forward over rows narrower than a register: [`narrow`](crate::kernel::narrow).

use super::{Forward, Place, careful_row, save};
use crate::Element;
use crate::kernel::careful::NARROW;
use crate::kernel::copy::Bring;
use crate::kernel::narrow::{self, Column, Columns, ROOM, SPAN, STAGED, Statistics, TOGETHER};
use crate::kernel::wide_lanes::WideLanes;
use crate::simd::{BATCH, Isa, Lanes};
use std::ops::Range;

/// Memory for the columns of rows.
#[derive(Debug)]
struct Scratch<T: Element, I: Isa> {
    /// x, then y.
    values: [Columns<I>; TOGETHER],
    /// `x - mean`.
    centred: [[Column<T, I>; NARROW]; TOGETHER],
    last_rows: [T; SPAN],
}

impl<T: Element> Forward<'_, T> {
    /// So many rows at a time as go together; those that are not ordinary, and the last, one at a time.
    #[inline(always)]
    pub(in crate::kernel) fn narrow_rows<I: Isa>(&mut self, isa: I) {
        let parameters = self.parameters;
        let width = parameters.width;
        let rows = self.x.len() / width;
        if rows < BATCH {
            // To lay out the memory below takes longer than these.
            let y = std::mem::take(&mut self.y);
            return self.careful_rows(0..rows, y);
        }
        let are_ordinary = I::SPECIALIZED
            && narrow::is_ordinary_epsilon::<T>(parameters.epsilon)
            && narrow::are_ordinary(parameters.gamma.unwrap_or(&[]))
            && narrow::are_ordinary(parameters.beta.unwrap_or(&[]));
        let zero = I::F64::splat(isa, 0.0);
        let centred = [[Column::<T, I>::new(isa, zero); NARROW]; TOGETHER];
        let values = [[zero; NARROW]; TOGETHER];
        let mut scratch = Scratch { values, centred, last_rows: [T::ZERO; SPAN] };
        let mut staged = [T::ZERO; ROOM];
        let streams = self.place == Place::Memory;
        for start in (0..rows).step_by(STAGED) {
            let end = rows.min(start + STAGED);
            // The last rows, fewer than eight, go one at a time.
            let batches = if are_ordinary { (end - start) / BATCH } else { 0 };
            if batches > 0 {
                self.narrow_batches(isa, start, batches, &mut scratch, &mut staged);
            }
            let done = start + batches * BATCH;
            self.careful_rows(done..end, &mut staged[(done - start) * width..]);
            let target = &mut self.y[start * width..end * width];
            isa.run(Bring { staged: &staged[..(end - start) * width], target, accumulate: false, stream: streams });
        }
        if streams {
            isa.fence();
        }
    }

    /// One row after the other.
    #[inline(never)]
    fn careful_rows(&mut self, rows: Range<usize>, y: &mut [T]) {
        let width = self.parameters.width;
        for (y, row) in y.chunks_exact_mut(width).zip(rows) {
            let (mean, rstd) = careful_row(&self.parameters, &self.x[row * width..(row + 1) * width], y);
            save(&mut self.mean, row, &[mean]);
            save(&mut self.rstd, row, &[rstd]);
        }
    }

    /// Some times eight rows. Where they are fewer than go together, the first are computed again in the place of others.
    #[inline(always)]
    fn narrow_batches<I: Isa>(
        &mut self,
        isa: I,
        start: usize,
        batches: usize,
        scratch: &mut Scratch<T, I>,
        staged: &mut [T],
    ) {
        let width = self.parameters.width;
        let Scratch { values, centred, last_rows } = scratch;
        for k in 0..TOGETHER {
            let first = if k < batches { start + k * BATCH } else { start };
            narrow::read_columns(isa, self.x, first * width, width, last_rows, &mut values[k]);
        }
        let found = Statistics::<T, I, TOGETHER>::new(isa, values, width, self.parameters.epsilon, centred);
        let splat = |value: T| I::F64::splat(isa, value.to_f64());
        for column in 0..width.min(NARROW) {
            for k in 0..TOGETHER {
                let mut value = centred[k][column] * found.rstd[k];
                if let Some(gamma) = self.parameters.gamma {
                    value = value.times(splat(gamma[column]));
                }
                if let Some(beta) = self.parameters.beta {
                    value = value.plus(splat(beta[column]));
                }
                values[k][column] = value.value();
            }
        }
        for k in 0..batches.min(TOGETHER) {
            let first = start + k * BATCH;
            let y = &mut staged[k * BATCH * width..];
            let x = &self.x[first * width..(first + BATCH) * width];
            if found.are_ordinary[k] && narrow::are_ordinary(x) {
                if self.mean.is_some() {
                    save(&mut self.mean, first, &found.means(k));
                }
                if self.rstd.is_some() {
                    save(&mut self.rstd, first, &found.rstds(isa, k));
                }
                narrow::write_rows(isa, &values[k], width, y);
            } else {
                self.careful_rows(first..first + BATCH, y);
            }
        }
    }
}
