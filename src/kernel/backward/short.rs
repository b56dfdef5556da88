//! The sums of rows of a known number of chunks: no loop is left whose length the compiler does not know, and gamma stays in
//! registers where there are enough.

use super::piece::{GROUP, RowSums, Terms, guarded};
use super::pipeline::{Finish, Pipeline};
use super::{Backward, PLAIN};
use crate::Element;
use crate::kernel::stats::BatchSums;
use crate::kernel::streams::{batch, chunks};
use crate::simd::{BATCH, Isa, Lanes};

impl<T: Element, I: Isa> Pipeline<'_, '_, T, I> {
    /// Takes the sums of a full batch of rows of `CHUNKS` chunks, a run at most, and no tail: the additions are those of
    /// [`Piece::run`](super::piece::Piece::run). What `sums` holds is not read: it is room that need not be cleared for each
    /// batch.
    #[inline(always)]
    pub(super) fn sums_of_short_rows<const CHUNKS: usize, const MODE: u8>(&mut self, sums: &mut BatchSums<T, I, 3>) {
        let isa = self.isa;
        let first = self.rows.start;
        let load = |chunk: &T::Chunk| T::Lanes::load(isa, chunk);
        let Backward { parameters, x, dy, mean, .. } = &*self.backward;
        let start = first * CHUNKS * T::LANES;
        let (x, dy) = (batch::<T, CHUNKS>(&x[start..]), batch::<T, CHUNKS>(&dy[start..]));
        let mean = &mean[first..first + BATCH];
        let mut gammas = [guarded(isa, None); CHUNKS];
        if let Some(gamma) = parameters.gamma
            && const { MODE != PLAIN }
        {
            let gamma = chunks::<T, CHUNKS>(gamma);
            for k in 0..CHUNKS {
                gammas[k] = guarded(isa, Some(load(&gamma[k])));
            }
        }
        for i in 0..BATCH {
            let mean = T::Lanes::splat(isa, mean[i]);
            let terms = |k: usize| Terms::new(mean, load(&x[i][k]), load(&dy[i][k]), gammas[k]);
            let mut row = RowSums::zero(isa);
            let rest = CHUNKS - CHUNKS % GROUP;
            for k in (0..rest).step_by(GROUP) {
                row = row.plus_group([terms(k), terms(k + 1), terms(k + 2), terms(k + 3)]);
            }
            for k in rest..CHUNKS {
                row = row.plus(terms(k));
            }
            if const { !CHUNKS.is_multiple_of(GROUP) } {
                // The run is added to a total there, which turns a -0 into 0: a product of the rest may have vanished. (What a
                // group is added to is never -0, nor is what comes of it.)
                row = RowSums::zero(isa) + row;
            }
            [sums[0][i], sums[1][i], sums[2][i]] = [row.g, row.d, row.product];
        }
        isa.run(Finish { pipeline: self, sums, totals: None });
        self.rows.start += BATCH;
    }
}
