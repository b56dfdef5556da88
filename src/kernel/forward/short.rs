//! Batches of short rows of a known number of chunks: as [`Pipeline::step`], with no loop in it whose length the compiler does
//! not know, and with gamma and beta of very short rows in registers. In that one rows of 16 and 48 columns took 1.9 to 2.1
//! times as long on an EPYC, and of 96 and 192 columns 1.2 to 1.5 times.

use super::Forward;
use super::pipeline::{Finish, Pipeline};
use crate::Element;
use crate::kernel::STREAMED;
use crate::kernel::copy::Bring;
use crate::kernel::stats::{self, ACCUMULATORS, BatchSums, LaneSums};
use crate::kernel::streams::{batch, batch_mut, chunks};
use crate::simd::{BATCH, Isa, Lanes};

/// Chunks of a row whose gamma and beta stay in registers, at most. Where registers are too few for so many, as those of AVX2
/// are, they are read again as in longer rows.
const IN_REGISTERS: usize = 4;

impl<T: Element, I: Isa> Pipeline<'_, '_, T, I> {
    /// Normalizes a full batch of rows of `CHUNKS` chunks and no tail, and takes the sums of the next. What `sums` holds is not
    /// read: it is room that need not be cleared for each batch.
    ///
    /// The additions are those of [`Piece::run`](super::piece::Piece::run), without those of zeros. These change nothing but
    /// a -0, of which the sum of a row is only made if all its `d` are; then all elements are -0, as is their pilot, and `d` is 0.
    #[inline(always)]
    pub(super) fn short_rows<const CHUNKS: usize, const WRITE: u8, const AFFINE: bool, const AHEAD: bool>(
        &mut self,
        sums: &mut BatchSums<T, I, 2>,
    ) {
        let isa = self.isa;
        let width = CHUNKS * T::LANES;
        let next = self.rows.start;
        let is_staged = !self.staged.is_empty();
        let load = |chunk: &T::Chunk| T::Lanes::load(isa, chunk);
        let Forward { parameters, x, y, .. } = &mut *self.forward;
        let of_batch = (next - BATCH) * width..next * width;
        let of_next = &x[next * width..][..BATCH * width];
        let pilots = stats::pilots(isa, of_next, width);
        if AHEAD && self.rows.len() > BATCH {
            stats::prefetch_pilots(isa, &x[(next + BATCH) * width..][..BATCH * width], width);
        }
        let (written, summed) = (batch::<T, CHUNKS>(&x[of_batch.clone()]), batch::<T, CHUNKS>(of_next));
        let y = &mut y[of_batch];
        let target = batch_mut::<T, CHUNKS>(if is_staged { &mut *self.staged } else { &mut *y });
        // Without them any chunks do, which are not read.
        let [gamma, beta] = [parameters.gamma, parameters.beta];
        let [gamma, beta] = if AFFINE {
            [chunks::<T, CHUNKS>(gamma.unwrap_or(&[])), chunks::<T, CHUNKS>(beta.unwrap_or(&[]))]
        } else {
            [&written[0]; 2]
        };
        let mut in_registers = [[T::Lanes::splat(isa, T::ZERO); IN_REGISTERS]; 2];
        if AFFINE && const { CHUNKS <= IN_REGISTERS } {
            for k in 0..CHUNKS {
                [in_registers[0][k], in_registers[1][k]] = [load(&gamma[k]), load(&beta[k])];
            }
        }
        for i in 0..BATCH {
            let ahead = self.plan.ahead::<T>(next, i, 0).min(x.len() - width);
            let ahead = chunks::<T, CHUNKS>(&x[ahead..]);
            let pilot = T::Lanes::splat(isa, pilots[i]);
            let coefficients = self.batch.coefficients(isa, i);
            let mut run = [LaneSums::zero(isa); ACCUMULATORS];
            for first in (0..CHUNKS).step_by(ACCUMULATORS) {
                for n in 0..ACCUMULATORS {
                    let k = first + n;
                    if k >= CHUNKS {
                        break;
                    }
                    if AHEAD {
                        isa.prefetch(&ahead[k]);
                    }
                    let d = load(&summed[i][k]) - pilot;
                    run[n] = if const { CHUNKS <= ACCUMULATORS } { LaneSums::of(d) } else { run[n].plus(d) };
                    let mut value = coefficients.normalized(load(&written[i][k]));
                    if AFFINE {
                        let [gamma, beta] = if const { CHUNKS <= IN_REGISTERS } {
                            [in_registers[0][k], in_registers[1][k]]
                        } else {
                            [load(&gamma[k]), load(&beta[k])]
                        };
                        value = value.mul_add(gamma, beta);
                    }
                    let y = &mut target[i][k];
                    if const { WRITE == STREAMED } { value.stream(y) } else { value.store(y) }
                }
            }
            let row = match CHUNKS {
                1 => run[0],
                2 => run[0] + run[1],
                _ => stats::tree(run),
            };
            [sums[0][i], sums[1][i]] = [row.sum, row.squares];
        }
        if is_staged {
            isa.run(Bring { staged: self.staged, target: y, accumulate: false, stream: true });
        }
        if !self.batch.ordinary {
            self.rescue::<WRITE>(next - BATCH);
        }
        isa.run(Finish { pipeline: self, pilots, sums, totals: None });
        self.rows.start += BATCH;
    }
}
