//! Forward over rows narrower than a register: [`narrow`](crate::kernel::narrow).

use super::{Forward, Place, careful_row, save};
use crate::Element;
use crate::kernel::careful::NARROW;
use crate::kernel::copy;
use crate::kernel::narrow::{self, Column, Columns, ROOM, SPAN, STAGED, Statistics};
use crate::kernel::wide_lanes::WideLanes;
use crate::simd::{BATCH, Isa, Lanes};
use std::ops::Range;

/// Memory for the columns of eight rows.
#[derive(Debug)]
struct Scratch<T: Element, I: Isa> {
    /// x, then y.
    values: Columns<I>,
    /// `x - mean`.
    centred: [Column<T, I>; NARROW],
    last_rows: [T; SPAN],
}

impl<T: Element> Forward<'_, T> {
    /// Eight rows at a time; those that are not ordinary, and the last, one at a time.
    #[inline(always)]
    pub(super) fn narrow_rows<I: Isa>(&mut self, isa: I) {
        let parameters = self.parameters;
        let width = parameters.width;
        let are_ordinary = narrow::is_ordinary_epsilon::<T>(parameters.epsilon)
            && narrow::are_ordinary(parameters.gamma.unwrap_or(&[]))
            && narrow::are_ordinary(parameters.beta.unwrap_or(&[]));
        let zero = I::F64::splat(isa, 0.0);
        let centred = [Column::<T, I>::new(isa, zero); NARROW];
        let mut scratch = Scratch { values: [zero; NARROW], centred, last_rows: [T::ZERO; SPAN] };
        let mut staged = [T::ZERO; ROOM];
        let streams = self.place == Place::Memory;
        let rows = self.x.len() / width;
        for start in (0..rows).step_by(STAGED) {
            let stop = rows.min(start + STAGED);
            for first in (start..stop).step_by(BATCH) {
                let end = stop.min(first + BATCH);
                let y = &mut staged[(first - start) * width..];
                let is_batch = are_ordinary && end - first == BATCH;
                if !(is_batch && self.narrow_batch(isa, first, &mut scratch, y)) {
                    self.careful_rows(first..end, y);
                }
            }
            copy::copy(isa, &staged[..(stop - start) * width], &mut self.y[start * width..stop * width], streams);
        }
        if streams {
            isa.fence();
        }
    }

    /// At most eight rows, one at a time.
    #[inline(never)]
    fn careful_rows(&mut self, rows: Range<usize>, y: &mut [T]) {
        let width = self.parameters.width;
        for (y, row) in y.chunks_exact_mut(width).zip(rows) {
            let (mean, rstd) = careful_row(&self.parameters, &self.x[row * width..(row + 1) * width], y);
            save(&mut self.mean, row, &[mean]);
            save(&mut self.rstd, row, &[rstd]);
        }
    }

    /// Eight rows; `false` where one of them has to be left to the scalar code.
    #[inline(always)]
    fn narrow_batch<I: Isa>(&mut self, isa: I, first: usize, scratch: &mut Scratch<T, I>, y: &mut [T]) -> bool {
        let width = self.parameters.width;
        if !narrow::are_ordinary(&self.x[first * width..(first + BATCH) * width]) {
            return false;
        }
        let Scratch { values, centred, last_rows } = scratch;
        let centred = &mut centred[..width];
        narrow::read_columns(isa, self.x, first * width, width, last_rows, values);
        let Some(found) = Statistics::new(isa, values, self.parameters.epsilon, centred) else {
            return false;
        };
        if self.mean.is_some() {
            save(&mut self.mean, first, &found.means());
        }
        if self.rstd.is_some() {
            save(&mut self.rstd, first, &found.rstds(isa));
        }
        let splat = |value: T| I::F64::splat(isa, value.to_f64());
        for column in 0..width {
            let mut value = centred[column] * found.rstd;
            if let Some(gamma) = self.parameters.gamma {
                value = value.times(splat(gamma[column]));
            }
            if let Some(beta) = self.parameters.beta {
                value = value.plus(splat(beta[column]));
            }
            values[column] = value.value();
        }
        narrow::write_rows(isa, values, width, y);
        true
    }
}
