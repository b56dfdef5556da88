//! The sums of full batches of rows that are not long, with less to do for a row than for a piece of one. Of the commonest widths
//! the number of chunks is known, so that no loop is left, and gamma stays in registers where there are enough.

use super::piece::{GROUP, RUN, RowSums, Terms, guarded};
use super::pipeline::{Finish, Pipeline};
use super::{Backward, PLAIN};
use crate::Element;
use crate::kernel::TOGETHER;
use crate::kernel::stats::BatchSums;
use crate::simd::{BATCH, Isa, Lanes};

impl<T: Element, I: Isa> Pipeline<'_, '_, T, I> {
    /// Takes the sums of a full batch of rows of a run of chunks at most; where `CHUNKS` is not 0, of so many and no tail. The
    /// additions are those of [`Piece::run`](super::piece::Piece::run). What `sums` holds is not read: it is room that need not
    /// be cleared for each batch.
    #[inline(always)]
    pub(super) fn sums_of_short_rows<const CHUNKS: usize, const MODE: u8>(&mut self, sums: &mut BatchSums<T, I, 3>) {
        const { assert!(TOGETHER <= 64 * RUN * GROUP) };
        let isa = self.isa;
        let first = self.rows.start;
        let width = self.plan.known::<T, CHUNKS>().width;
        let count = width / T::LANES;
        let load = |chunk: &T::Chunk| T::Lanes::load(isa, chunk);
        let Backward { parameters, x, dy, mean, .. } = &*self.backward;
        let here = first * width..(first + BATCH) * width;
        let (x, dy) = (&x[here.clone()], &dy[here]);
        let mean = &mean[first..first + BATCH];
        let scaled = if const { MODE == PLAIN } { 0 } else { width };
        let (gamma, gamma_tail) = T::chunks(&parameters.gamma.unwrap_or(&[])[..scaled]);
        let mut gammas = [guarded(isa, None); CHUNKS];
        if const { MODE != PLAIN } {
            for k in 0..CHUNKS {
                gammas[k] = guarded(isa, Some(load(&gamma[k])));
            }
        }
        for i in 0..BATCH {
            let mean = T::Lanes::splat(isa, mean[i]);
            let row = i * width..(i + 1) * width;
            let ((x, x_tail), (dy, dy_tail)) = (T::chunks(&x[row.clone()]), T::chunks(&dy[row]));
            // All of one length, for the compiler to see.
            let (x, dy, gamma) = (&x[..count], &dy[..count], &gamma[..scaled / T::LANES]);
            let terms = |k: usize| {
                let gamma = match (CHUNKS, MODE) {
                    (0, PLAIN) => guarded(isa, None),
                    (0, _) => guarded(isa, Some(load(&gamma[k]))),
                    _ => gammas[k],
                };
                Terms::new(mean, load(&x[k]), load(&dy[k]), gamma)
            };
            let mut row = RowSums::zero(isa);
            let rest = count - count % GROUP;
            for k in (0..rest).step_by(GROUP) {
                row = row.plus_group([terms(k), terms(k + 1), terms(k + 2), terms(k + 3)]);
            }
            for k in rest..count {
                row = row.plus(terms(k));
            }
            if !count.is_multiple_of(GROUP) {
                // The run is added to a total there, which turns a -0 into 0: a product of the rest may have vanished. (What a
                // group is added to is never -0, nor is what comes of it.)
                row = RowSums::zero(isa) + row;
            }
            if const { CHUNKS == 0 } && !x_tail.is_empty() {
                let zero = T::Lanes::splat(isa, T::ZERO);
                let gamma =
                    if const { MODE == PLAIN } { None } else { Some(T::Lanes::load_tail(isa, gamma_tail, zero)) };
                row = row.plus(Terms::of_few(isa, mean, x_tail, dy_tail, gamma));
            }
            [sums[0][i], sums[1][i], sums[2][i]] = [row.g, row.d, row.product];
        }
        isa.run(Finish { pipeline: self, sums, totals: None });
        self.rows.start += BATCH;
    }
}
