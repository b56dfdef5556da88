//! The gradients of a batch, written while no sums are taken, and where its dgamma and dbeta go.

use super::{Pipeline, Step};
use crate::Element;
use crate::kernel::backward::careful_rows::{Targets, rescued_row};
use crate::kernel::backward::parameter_sums::GROUP;
use crate::kernel::backward::plan::Plan;
use crate::kernel::backward::{Backward, FULL};
use crate::kernel::joined::Waiting;
use crate::kernel::{JOINED, STORED};
use crate::simd::{BATCH, Isa, Kernel};

/// [`Pipeline::write_batch`] as a function of its own.
#[derive(Debug)]
struct WriteBatch<'p, 'f, 'a, T: Element, J: Isa, const WRITE: u8, const MODE: u8, const FUSED: bool>(
    &'p mut Pipeline<'f, 'a, T, J>,
);

impl<T: Element, J: Isa, const WRITE: u8, const MODE: u8, const FUSED: bool> Kernel
    for WriteBatch<'_, '_, '_, T, J, WRITE, MODE, FUSED>
{
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        self.0.write_batch::<WRITE, MODE, FUSED>();
    }
}

impl<T: Element, I: Isa> Pipeline<'_, '_, T, I> {
    /// Writes the gradients of the batch before. Without sums it is the same whether fused or not.
    #[inline(always)]
    pub(in crate::kernel::backward) fn write<const WRITE: u8, const MODE: u8, const FUSED: bool>(&mut self) {
        if const { MODE == FULL } {
            self.isa.run(WriteBatch::<_, _, WRITE, MODE, FUSED>(self));
        } else {
            self.isa.run(WriteBatch::<_, _, WRITE, MODE, false>(self));
        }
    }

    /// [`write`](Self::write), but of rows that are joined one that is not: the first, the last, or one that is not ordinary. It
    /// goes by way of the buffer, and the next may be joined to it.
    #[inline(always)]
    pub(in crate::kernel::backward) fn write_alone<const WRITE: u8, const MODE: u8, const FUSED: bool>(&mut self) {
        if const { WRITE != JOINED } {
            return self.write::<WRITE, MODE, FUSED>();
        }
        let width = self.plan.width;
        let (start, end) = ((self.rows.start - self.plan.batch) * width, self.rows.start * width);
        if let Some((dx, _)) = &mut self.backward.dx {
            self.waiting.settle(&mut dx[..start]);
        }
        self.write::<STORED, MODE, FUSED>();
        if let Some((dx, _)) = &self.backward.dx {
            self.waiting = Waiting::at_end(self.isa, &dx[..end]);
        }
    }

    /// Counts rows whose dgamma and dbeta were added to the block, where fused, or to the group.
    #[inline(always)]
    pub(super) fn count_rows<const FUSED: bool>(&mut self, rows: usize) {
        self.counts.in_block += rows;
        if self.counts.in_block >= BATCH || !FUSED {
            self.add_block();
            self.counts.in_group += std::mem::take(&mut self.counts.in_block);
            if self.counts.in_group >= GROUP
                && let Some(sums) = &mut self.backward.sums
            {
                sums.close_group(self.isa);
                self.counts.in_group = 0;
            }
        }
    }

    /// Adds the block to the group, if it holds anything. What comes next is another block.
    #[inline(always)]
    fn add_block(&mut self) {
        let Some(sums) = &mut self.backward.sums else { return };
        sums.is_zero = false;
        if std::mem::take(&mut self.counts.is_pending) {
            sums.add_block(self.isa, self.block);
        }
    }

    /// Writes the gradients of the batch before, with care those of rows that are not ordinary.
    #[inline(always)]
    fn write_batch<const WRITE: u8, const MODE: u8, const FUSED: bool>(&mut self) {
        let isa = self.isa;
        let Plan { width, batch, .. } = self.plan;
        let mut start = 0;
        while start < batch {
            let mut end = start + 1;
            if self.batch.is_ordinary[start] {
                while end < batch && self.batch.is_ordinary[end] {
                    end += 1;
                }
                isa.run(Step::<_, _, WRITE, false, MODE, FUSED>(self, start..end));
            } else {
                let row = self.rows.start - batch + start;
                let span = row * width..(row + 1) * width;
                self.add_block();
                let Backward { parameters, x, dy, dx, sums, .. } = &mut *self.backward;
                let targets = Targets {
                    dx: dx.as_mut().map(|(dx, accumulate)| (&mut dx[span.clone()], *accumulate)),
                    sums: sums.as_mut().map(|sums| sums.of_group(width)),
                };
                rescued_row(parameters, &x[span.clone()], &dy[span], targets);
                if const { MODE == FULL } {
                    self.count_rows::<FUSED>(1);
                }
            }
            start = end;
        }
    }
}
