//! Full batches of short rows: as [`Pipeline::step`], with less to do for a row than that does for a piece of one. In its loops
//! rows of 16 and 48 columns took 1.9 to 2.1 times as long on an EPYC, of 24 to 80 columns 1.4 to 1.65 times, of 100 to 320
//! columns 1.2 to 1.5 times. Of the commonest widths the number of chunks is known, so that no loop is left, and gamma and
//! beta of very short rows are in registers.

use super::Forward;
use super::pipeline::{Finish, Pipeline};
use crate::Element;
use crate::kernel::copy::Bring;
use crate::kernel::joined::Waiting;
use crate::kernel::stats::{self, ACCUMULATORS, BatchSums, LaneSums, RUN};
use crate::kernel::{JOINED, STORED, TOGETHER};
use crate::simd::{BATCH, Isa, Lanes};

/// Chunks of a row whose gamma and beta stay in registers, at most. Where registers are too few for so many, as those of AVX2
/// are, they are read again as in longer rows.
const IN_REGISTERS: usize = 4;

impl<T: Element, I: Isa> Pipeline<'_, '_, T, I> {
    /// Normalizes a full batch of rows of a run of chunks at most, and takes the sums of the next. Where `CHUNKS` is not 0, rows
    /// have so many chunks and no tail. What `sums` holds is not read: it is room that need not be cleared for each batch.
    ///
    /// The additions are those of [`Piece::run`](super::piece::Piece::run), without those of zeros. These change nothing but
    /// a -0, of which the sum of a row is only made if all its `d` are; then all elements are -0, as is their pilot, and `d` is
    /// 0.
    #[inline(always)]
    pub(super) fn short_rows<const CHUNKS: usize, const WRITE: u8, const AFFINE: bool, const AHEAD: bool>(
        &mut self,
        sums: &mut BatchSums<T, I, 2>,
    ) {
        const { assert!(TOGETHER <= 64 * RUN * ACCUMULATORS) };
        let isa = self.isa;
        let width = if const { CHUNKS > 0 } { CHUNKS * T::LANES } else { self.plan.width };
        let count = width / T::LANES;
        let next = self.rows.start;
        let load = |chunk: &T::Chunk| T::Lanes::load(isa, chunk);
        let Forward { parameters, x, y, .. } = &mut *self.forward;
        let of_batch = (next - BATCH) * width..next * width;
        let of_next = &x[next * width..][..BATCH * width];
        let pilots = stats::pilots(isa, of_next, width);
        if AHEAD && self.rows.len() > BATCH {
            stats::prefetch_pilots(isa, &x[(next + BATCH) * width..][..BATCH * width], width);
        }
        let of_last = &x[of_batch.clone()];
        let is_staged = const { WRITE == STORED } && !self.staged.is_empty();
        // Joined rows begin with the places of those that wait.
        let mut waiting = if const { WRITE == JOINED } { self.waiting } else { Waiting::none(isa) };
        let before = waiting.count();
        let y = &mut y[of_batch.start - before..of_batch.end];
        let target = if is_staged { &mut *self.staged } else { &mut *y };
        let (affine, ahead_count) = (if AFFINE { width } else { 0 }, if AHEAD { count } else { 0 });
        let (gamma, gamma_tail) = T::chunks(&parameters.gamma.unwrap_or(&[])[..affine]);
        let (beta, beta_tail) = T::chunks(&parameters.beta.unwrap_or(&[])[..affine]);
        let mut in_registers = [[T::Lanes::splat(isa, T::ZERO); IN_REGISTERS]; 2];
        if AFFINE && const { Self::are_in_registers(CHUNKS) } {
            for k in 0..CHUNKS {
                [in_registers[0][k], in_registers[1][k]] = [load(&gamma[k]), load(&beta[k])];
            }
        }
        for i in 0..BATCH {
            let row = i * width..(i + 1) * width;
            let (summed, summed_tail) = T::chunks(&of_next[row.clone()]);
            let (written, written_tail) = T::chunks(&of_last[row.clone()]);
            let (target, target_tail) = if const { WRITE == JOINED } {
                let target = &mut target[before + row.start - waiting.count()..before + row.end];
                let (target, places) = target.split_at_mut(count * T::LANES);
                (T::chunks_mut(target).0, places)
            } else {
                T::chunks_mut(&mut target[row])
            };
            let ahead = if AHEAD { self.plan.ahead::<T>(next, i, 0).min(x.len() - width) } else { 0 };
            // All that are used have one length, for the compiler to see.
            let ahead = &T::chunks(&x[ahead..]).0[..ahead_count];
            let (summed, written, target) = (&summed[..count], &written[..count], &mut target[..count]);
            let (gamma, beta) = (&gamma[..affine / T::LANES], &beta[..affine / T::LANES]);
            let pilot = T::Lanes::splat(isa, pilots[i]);
            let coefficients = self.batch.coefficients(isa, i);
            let mut run = [LaneSums::zero(isa); ACCUMULATORS];
            // A closure would be a function of its own, compiled for another instruction set.
            macro_rules! chunk {
                ($k:expr, $n:expr) => {{
                    let (k, n): (usize, usize) = ($k, $n);
                    if AHEAD {
                        isa.prefetch(&ahead[k]);
                    }
                    let d = load(&summed[k]) - pilot;
                    run[n] =
                        if const { CHUNKS > 0 && CHUNKS <= ACCUMULATORS } { LaneSums::of(d) } else { run[n].plus(d) };
                    let mut value = coefficients.normalized(load(&written[k]));
                    if AFFINE {
                        let [gamma, beta] = if const { Self::are_in_registers(CHUNKS) } {
                            [in_registers[0][k], in_registers[1][k]]
                        } else {
                            [load(&gamma[k]), load(&beta[k])]
                        };
                        value = value.mul_add(gamma, beta);
                    }
                    let y = &mut target[k];
                    waiting.write::<T, I, WRITE>(value, y);
                }};
            }
            let grouped = count - count % ACCUMULATORS;
            for first in (0..grouped).step_by(ACCUMULATORS) {
                for n in 0..ACCUMULATORS {
                    chunk!(first + n, n);
                }
            }
            for n in 0..ACCUMULATORS - 1 {
                if grouped + n < count {
                    chunk!(grouped + n, n);
                }
            }
            let mut row = match CHUNKS {
                1 => run[0],
                2 => run[0] + run[1],
                _ => stats::tree(run),
            };
            if const { CHUNKS == 0 } && !summed_tail.is_empty() {
                row = row.plus(T::Lanes::load_tail(isa, summed_tail, pilot) - pilot);
                let value = coefficients.few::<T, I, AFFINE>(isa, written_tail, [gamma_tail, beta_tail]);
                waiting.write_few::<T, I, WRITE>(value, target_tail);
            }
            [sums[0][i], sums[1][i]] = [row.sum, row.squares];
        }
        if is_staged {
            isa.run(Bring { staged: self.staged, target: y, accumulate: false, stream: true });
        }
        if const { WRITE == JOINED } {
            self.waiting = waiting;
        }
        if !self.batch.ordinary {
            self.rescue::<WRITE>(next - BATCH);
        }
        isa.run(Finish { pipeline: self, pilots, sums, totals: None });
        self.rows.start += BATCH;
    }

    /// Whether gamma and beta of rows of so many chunks stay in registers.
    const fn are_in_registers(chunks: usize) -> bool {
        0 < chunks && chunks <= IN_REGISTERS
    }
}
