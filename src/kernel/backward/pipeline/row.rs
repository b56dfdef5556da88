//! The steps of rows that go one at a time, as a whole: what their gradients are made of is computed without lanes.

use super::{Pipeline, is_clearly_ordinary, targets};
use crate::Element;
use crate::kernel::NOT_WRITTEN;
use crate::kernel::backward::piece::{GUARD, Piece, RowSums};
use crate::kernel::backward::plan::Plan;
use crate::kernel::backward::{Backward, FULL, PLAIN};
use crate::kernel::copy::Bring;
use crate::simd::{Isa, Kernel, Lanes};

/// [`Pipeline::sums_by_row`] as a function of its own.
#[derive(Debug)]
pub(super) struct SumsByRow<'p, 'f, 'a, T, J, const MODE: u8>(pub(super) &'p mut Pipeline<'f, 'a, T, J>);

impl<T: Element, J: Isa, const MODE: u8> Kernel for SumsByRow<'_, '_, '_, T, J, MODE> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        self.0.sums_by_row::<MODE>();
    }
}

impl<T: Element, I: Isa> Pipeline<'_, '_, T, I> {
    /// The sums of the next batch, row by row. What the gradients of a row are made of is computed without lanes: a CPU that
    /// looks far ahead takes the sums of the row after it meanwhile.
    #[inline(always)]
    fn sums_by_row<const MODE: u8>(&mut self) {
        for i in 0..self.plan.batch {
            self.row::<0, NOT_WRITTEN, MODE>(i);
        }
        self.rows.start += self.plan.batch;
    }

    /// Fused [`step`](Self::step) of batches of one row, whose sums are finished as in [`sums_by_row`](Self::sums_by_row).
    #[inline(always)]
    pub(in crate::kernel::backward) fn fused_row<const CHUNKS: usize, const WRITE: u8, const MODE: u8>(&mut self) {
        self.row::<CHUNKS, WRITE, MODE>(0);
        if const { MODE == FULL } {
            self.count_rows::<true>(1);
        }
        self.rows.start += 1;
    }

    /// Takes the sums of row `i` of the next batch, and what its gradients are made of. Where `WRITE` says so, the batch is of
    /// one row, and the gradients of the row before it are written.
    #[inline(always)]
    fn row<const CHUNKS: usize, const WRITE: u8, const MODE: u8>(&mut self, i: usize) {
        let isa = self.isa;
        let width = if const { CHUNKS > 0 } { CHUNKS * T::LANES } else { self.plan.width };
        let next = self.rows.start + i;
        let here = next * width..(next + 1) * width;
        let is_staged = !self.staged.is_empty();
        let Backward { parameters, x, dy, mean, rstd, dx, sums: parameter_sums, .. } = &mut *self.backward;
        let written = if const { WRITE == NOT_WRITTEN } { 0..0 } else { here.start - width..here.start };
        let is_first_block = parameter_sums.as_ref().is_some_and(|sums| sums.is_zero);
        let (dgamma, dbeta) = if const { MODE == FULL && WRITE != NOT_WRITTEN } {
            targets::<T, true>(parameter_sums, self.block, width)
        } else {
            (&mut [][..], &mut [][..])
        };
        let accumulate = dx.as_ref().is_some_and(|(_, accumulate)| *accumulate);
        let dx = dx.as_mut().map_or(&mut [][..], |(dx, _)| &mut dx[written.clone()]);
        let ahead = if const { WRITE == NOT_WRITTEN } {
            0..0
        } else {
            let ahead = (here.start + Plan::AHEAD * T::LANES).min(x.len() - width);
            ahead..ahead + width
        };
        let piece = Piece {
            x: &x[written.clone()],
            dy: &dy[written],
            dx: if is_staged && const { WRITE != NOT_WRITTEN } { &mut *self.staged } else { &mut *dx },
            gamma: if const { MODE == PLAIN } { &[] } else { parameters.gamma.unwrap_or(&[]) },
            dgamma,
            dbeta,
            summed_x: &x[here.clone()],
            summed_dy: &dy[here],
            ahead_x: &x[ahead.clone()],
            ahead_dy: &dy[ahead],
        };
        let about = [T::Lanes::splat(isa, mean[next]), T::Lanes::splat(isa, rstd[next])];
        let sums = piece.run::<I, WRITE, MODE>(isa, self.batch.rows.splat(isa, 0), about, RowSums::zero(isa));
        if const { WRITE != NOT_WRITTEN } {
            if is_staged && !dx.is_empty() {
                isa.run(Bring { staged: self.staged, target: dx, accumulate, stream: true });
            }
            self.counts.is_pending = const { MODE == FULL } && !is_first_block;
        }
        self.finish_row(i, [sums.g.sum(), sums.h.sum(), sums.product.sum()]);
    }

    /// [`finish`](Self::finish) for row `i` of the next batch.
    #[inline(always)]
    fn finish_row(&mut self, i: usize, [sum_g, sum_h, sum_product]: [f64; 3]) {
        let row = self.rows.start + i;
        let width = self.plan.width as f64;
        let (per_element, minus_per_element) = (1.0 / width, -1.0 / width);
        let sum_g = sum_g * (1.0 / GUARD);
        let product = sum_product - sum_h * per_element * sum_g;
        let rows = &mut self.batch.rows;
        (rows.mean[i], rows.rstd[i]) = (self.backward.mean[row], self.backward.rstd[row]);
        rows.minus_correction[i] = T::from_f64(sum_h * minus_per_element);
        rows.minus_mean_g[i] = T::from_f64(sum_g * minus_per_element);
        rows.mean_product[i] = T::from_f64(product * per_element);
        let size = product.abs() + sum_g.abs();
        let ordinary = is_clearly_ordinary(rows.rstd[i], size) || self.is_ordinary(row, size);
        self.batch.is_ordinary[i] = ordinary;
        // Of a batch of one row that is fused this is the whole batch.
        self.batch.ordinary = ordinary && (i == 0 || self.batch.ordinary);
    }
}
