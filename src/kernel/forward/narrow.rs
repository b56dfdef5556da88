//! Forward over rows narrower than a register: [`narrow`](crate::kernel::narrow).

use super::{Forward, careful_row, save};
use crate::Element;
use crate::kernel::careful::NARROW;
use crate::kernel::narrow::{self, Column, Results, Statistics};
use crate::kernel::wide_lanes::WideLanes;
use crate::simd::{BATCH, Isa, Lanes};

impl<T: Element> Forward<'_, T> {
    /// Eight rows at a time; those that are not ordinary, and the last, one at a time.
    #[inline(always)]
    pub(super) fn narrow_rows<I: Isa>(&mut self, isa: I) {
        let parameters = self.parameters;
        let width = parameters.width;
        let are_ordinary = narrow::is_ordinary_epsilon::<T>(parameters.epsilon)
            && narrow::are_ordinary(parameters.gamma.unwrap_or(&[]))
            && narrow::are_ordinary(parameters.beta.unwrap_or(&[]));
        let zero = Column::<T, I>::new(isa, I::F64::splat(isa, 0.0));
        let mut columns = [zero; NARROW];
        let mut results = [[T::ZERO; BATCH]; NARROW];
        let rows = self.x.len() / width;
        for first in (0..rows).step_by(BATCH) {
            let end = rows.min(first + BATCH);
            let is_batch = are_ordinary && end - first == BATCH;
            if !(is_batch && self.narrow_batch(isa, first, &mut columns[..width], &mut results)) {
                for row in first..end {
                    let span = row * width..(row + 1) * width;
                    let (mean, rstd) = careful_row(&parameters, &self.x[span.clone()], &mut self.y[span]);
                    save(&mut self.mean, row, &[mean]);
                    save(&mut self.rstd, row, &[rstd]);
                }
            }
        }
    }

    /// Eight rows; `false` where one of them has to be left to the scalar code, and nothing was written.
    #[inline(always)]
    fn narrow_batch<I: Isa>(
        &mut self,
        isa: I,
        first: usize,
        columns: &mut [Column<T, I>],
        results: &mut Results<T>,
    ) -> bool {
        let width = columns.len();
        let span = first * width..(first + BATCH) * width;
        let Some(found) = Statistics::new(isa, &self.x[span.clone()], self.parameters.epsilon, columns) else {
            return false;
        };
        save(&mut self.mean, first, &found.means());
        save(&mut self.rstd, first, &found.rstds(isa));
        let splat = |value: T| I::F64::splat(isa, value.to_f64());
        let results = &mut results[..width];
        for column in 0..width {
            let mut value = columns[column] * found.rstd;
            if let Some(gamma) = self.parameters.gamma {
                value = value.times(splat(gamma[column]));
            }
            if let Some(beta) = self.parameters.beta {
                value = value.plus(splat(beta[column]));
            }
            results[column] = narrow::rounded::<T, I>(value.value());
        }
        for (i, y) in self.y[span].chunks_exact_mut(width).enumerate() {
            for (y, result) in y.iter_mut().zip(&*results) {
                *y = result[i];
            }
        }
        true
    }
}
