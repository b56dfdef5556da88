//! The steps of rows that go one at a time, as a whole: what their gradients are made of is computed without lanes. A CPU that
//! looks far ahead takes the sums of the row after it meanwhile.

use super::{Pipeline, is_clearly_ordinary, targets};
use crate::Element;
use crate::kernel::backward::piece::{Coefficients, GUARD, Piece, RowSums};
use crate::kernel::backward::plan::Plan;
use crate::kernel::backward::{Backward, FULL, PLAIN};
use crate::kernel::copy::Bring;
use crate::kernel::joined::Waiting;
use crate::kernel::{JOINED, NOT_WRITTEN, STORED};
use crate::simd::{BATCH, Isa, Lanes};

impl<T: Element, I: Isa> Pipeline<'_, '_, T, I> {
    /// The sums of the next batch, row by row.
    #[inline(always)]
    pub(super) fn sums_by_row<const MODE: u8>(&mut self) {
        let isa = self.isa;
        let width = self.plan.width;
        for i in 0..self.plan.batch {
            let row = self.rows.start + i;
            let Backward { parameters, x, dy, mean, rstd, .. } = &*self.backward;
            let piece = Piece {
                summed_x: &x[row * width..][..width],
                summed_dy: &dy[row * width..][..width],
                gamma: if const { MODE == PLAIN } { &[] } else { parameters.gamma.unwrap_or(&[]) },
                ..Piece::default()
            };
            let about = [mean[row], rstd[row]];
            let unused = Coefficients::<T>::default().lanes(isa);
            let mean = T::Lanes::splat(isa, mean[row]);
            let zero = RowSums::zero(isa);
            let sums = piece.run::<I, NOT_WRITTEN, MODE, false>(isa, unused, mean, zero, &mut Waiting::none(isa));
            let (coefficients, size) = finished(sums, about, width);
            self.set(i, row, coefficients, size);
        }
        self.rows.start += self.plan.batch;
    }

    /// Takes the sums of rows and writes the gradients of the row before each, fused, as long as rows are ordinary and
    /// their dgamma and dbeta belong to one block: one row at least. The batch is the last of them.
    #[inline(always)]
    pub(in crate::kernel::backward) fn fused_rows<
        const CHUNKS: usize,
        const WRITE: u8,
        const MODE: u8,
        const AHEAD: bool,
    >(
        &mut self,
    ) {
        let isa = self.isa;
        let width = if const { CHUNKS > 0 } { CHUNKS * T::LANES } else { self.plan.width };
        let is_staged = const { WRITE == STORED } && !self.staged.is_empty();
        // Joined rows begin with the places of those that wait.
        let mut waiting = if const { WRITE == JOINED } { self.waiting } else { Waiting::none(isa) };
        let before = waiting.count();
        let first = self.rows.start;
        let most = if const { MODE == FULL } { BATCH - self.counts.in_block } else { usize::MAX };
        let count = self.rows.len().min(most);
        let mut coefficients = self.batch.rows.of_row(0);
        let Backward { parameters, x, dy, mean, rstd, dx, sums: parameter_sums, .. } = &mut *self.backward;
        let is_first_block = parameter_sums.as_ref().is_some_and(|sums| sums.is_zero);
        let (dgamma, dbeta) = if const { MODE == FULL } {
            targets::<T, true>(parameter_sums, self.block, width)
        } else {
            (&mut [][..], &mut [][..])
        };
        let gamma = if const { MODE == PLAIN } { &[] } else { parameters.gamma.unwrap_or(&[]) };
        let accumulate = dx.as_ref().is_some_and(|(_, accumulate)| *accumulate);
        let dx = dx
            .as_mut()
            .map_or(&mut [][..], |(dx, _)| &mut dx[(first - 1) * width - before..(first - 1 + count) * width]);
        let here = (first - 1) * width..(first + count) * width;
        let (near_x, near_dy) = (&x[here.clone()], &dy[here]);
        let (mean, rstd) = (&mean[first..][..count], &rstd[first..][..count]);
        let mut done = 0;
        let mut size;
        loop {
            let start = done * width;
            let ahead = if AHEAD {
                let ahead = ((first + done) * width + Plan::AHEAD * T::LANES).min(x.len() - width);
                ahead..ahead + width
            } else {
                0..0
            };
            let (written_x, summed_x) = near_x[start..][..2 * width].split_at(width);
            let (written_dy, summed_dy) = near_dy[start..][..2 * width].split_at(width);
            let piece = Piece {
                x: written_x,
                dy: written_dy,
                dx: if is_staged {
                    &mut self.staged[..width]
                } else {
                    &mut dx[before + start - waiting.count()..before + start + width]
                },
                gamma,
                dgamma: &mut *dgamma,
                dbeta: &mut *dbeta,
                summed_x,
                summed_dy,
                ahead_x: &x[ahead.clone()],
                ahead_dy: &dy[ahead],
            };
            let about = [mean[done], rstd[done]];
            let lanes = coefficients.lanes(isa);
            let mean = T::Lanes::splat(isa, mean[done]);
            let sums = piece.run::<I, WRITE, MODE, AHEAD>(isa, lanes, mean, RowSums::zero(isa), &mut waiting);
            if is_staged && !dx.is_empty() {
                let target = &mut dx[start..][..width];
                isa.run(Bring { staged: self.staged, target, accumulate, stream: true });
            }
            (coefficients, size) = finished(sums, about, width);
            done += 1;
            if done == count || !is_clearly_ordinary(coefficients.rstd, size) {
                break;
            }
        }
        self.rows.start += done;
        if const { WRITE == JOINED } {
            self.waiting = waiting;
        }
        self.set(0, self.rows.start - 1, coefficients, size);
        if const { MODE == FULL } {
            self.counts.is_pending = !is_first_block;
            self.count_rows::<true>(done);
        }
    }

    /// Row `i` of the batch is done; `size` is that of its sums.
    #[inline(always)]
    fn set(&mut self, i: usize, row: usize, coefficients: Coefficients<T>, size: f64) {
        self.batch.rows.set_row(i, coefficients);
        let ordinary = is_clearly_ordinary(coefficients.rstd, size) || self.is_ordinary(row, size);
        self.batch.is_ordinary[i] = ordinary;
        // Of a batch of one row that is fused this is the whole batch.
        self.batch.ordinary = ordinary && (i == 0 || self.batch.ordinary);
    }
}

/// What the gradients of a row are made of, as in [`finish`](Pipeline::finish), and the size of its sums.
#[inline(always)]
fn finished<T: Element, I: Isa>(
    sums: RowSums<T::Lanes<I>>,
    [mean, rstd]: [T; 2],
    width: usize,
) -> (Coefficients<T>, f64) {
    let (per_element, minus_per_element) = (1.0 / width as f64, -1.0 / width as f64);
    let (per_guard, scale) = (1.0 / GUARD, rstd.to_f64());
    let (sum_g, sum_h, sum_product) =
        (sums.g.sum() * per_guard, sums.d.sum() * scale, sums.product.sum() * per_guard * scale);
    let product = sum_product - sum_h * per_element * sum_g;
    let coefficients = Coefficients {
        mean,
        rstd,
        minus_correction: T::from_f64(sum_h * minus_per_element),
        minus_mean_g: T::from_f64(sum_g * minus_per_element),
        mean_product: T::from_f64(product * per_element),
    };
    (coefficients, product.abs() + sum_g.abs())
}
