//! The loop over columns: one row is normalized while the sums of a row of the next batch are taken.
//!
//! Reading ahead in memory, arithmetic and writing are then one even stream of instructions, as in a copy: none of them
//! waits for another to end.

use crate::Element;
use crate::kernel::stats::{self, LaneSums};
use crate::simd::{Isa, Lanes};

/// What a piece does with y.
pub(super) const NOT_WRITTEN: u8 = 0;
pub(super) const STORED: u8 = 1;
pub(super) const STREAMED: u8 = 2;

/// The same columns of two rows, and of gamma and beta. What is not used is empty.
#[derive(Debug)]
pub(super) struct Piece<'a, T> {
    /// Columns of the row that is written.
    pub(super) x: &'a [T],
    pub(super) y: &'a mut [T],
    pub(super) gamma: &'a [T],
    pub(super) beta: &'a [T],
    /// Columns of the row whose sums are taken.
    pub(super) summed: &'a [T],
    /// Elements to ask for: they are read soon.
    pub(super) ahead: &'a [T],
}

/// What a row is normalized by, in every lane: `y = ((x - mean) * rstd - shift) * gamma + beta`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coefficients<L> {
    pub(super) mean: L,
    pub(super) rstd: L,
    /// What the rounding of the mean lost, times `rstd`, negative.
    pub(super) minus_shift: L,
}

/// The piece in chunks of 64 bytes, or in groups of them. What is not used is empty.
#[derive(Debug)]
struct Chunks<'a, C> {
    x: &'a [C],
    y: &'a mut [C],
    gamma: &'a [C],
    beta: &'a [C],
    summed: &'a [C],
    ahead: &'a [C],
}

/// As many chunks as there are accumulators.
type Group<C> = [C; stats::ACCUMULATORS];

/// What is done to each chunk.
#[derive(Clone, Copy, Debug)]
struct Loop<T: Element, I: Isa, const WRITE: u8, const SUM: bool, const AFFINE: bool, const AHEAD: bool> {
    isa: I,
    coefficients: Coefficients<T::Lanes<I>>,
    pilot: T::Lanes<I>,
}

impl<T: Element, I: Isa, const WRITE: u8, const SUM: bool, const AFFINE: bool, const AHEAD: bool>
    Loop<T, I, WRITE, SUM, AFFINE, AHEAD>
{
    /// The first `len` of each that is used: so the compiler knows that no index below `len` can be wrong.
    #[inline(always)]
    fn cut<C>(self, chunks: Chunks<'_, C>, len: usize) -> Chunks<'_, C> {
        let written = if WRITE == NOT_WRITTEN { 0 } else { len };
        let affine = if AFFINE { len } else { 0 };
        Chunks {
            x: &chunks.x[..written],
            y: &mut chunks.y[..written],
            gamma: &chunks.gamma[..affine],
            beta: &chunks.beta[..affine],
            summed: &chunks.summed[..if SUM { len } else { 0 }],
            ahead: &chunks.ahead[..if AHEAD { len } else { 0 }],
        }
    }

    /// The chunks of one group.
    #[inline(always)]
    fn group<'c, C>(self, groups: &'c mut Chunks<'_, Group<C>>, k: usize) -> Chunks<'c, C> {
        Chunks {
            x: if WRITE == NOT_WRITTEN { &[] } else { &groups.x[k] },
            y: if WRITE == NOT_WRITTEN { &mut [] } else { &mut groups.y[k] },
            gamma: if AFFINE { &groups.gamma[k] } else { &[] },
            beta: if AFFINE { &groups.beta[k] } else { &[] },
            summed: if SUM { &groups.summed[k] } else { &[] },
            ahead: if AHEAD { &groups.ahead[k] } else { &[] },
        }
    }

    /// One chunk of each: x is normalized, and the other row's is added to `sums`.
    #[inline(always)]
    fn chunk(self, chunks: &mut Chunks<'_, T::Chunk>, k: usize, sums: &mut LaneSums<T::Lanes<I>>) {
        let load = |chunk| T::Lanes::load(self.isa, chunk);
        if AHEAD {
            self.isa.prefetch(&chunks.ahead[k]);
        }
        if SUM {
            *sums = sums.plus(load(&chunks.summed[k]) - self.pilot);
        }
        if WRITE != NOT_WRITTEN {
            let mut value = self.coefficients.normalized(load(&chunks.x[k]));
            if AFFINE {
                value = value.mul_add(load(&chunks.gamma[k]), load(&chunks.beta[k]));
            }
            let y = &mut chunks.y[k];
            if WRITE == STREAMED { value.stream(y) } else { value.store(y) }
        }
    }
}

impl<'a, C> Chunks<'a, C> {
    /// Groups of chunks, and what the last of them left over.
    #[inline(always)]
    fn into_groups(self) -> (Chunks<'a, Group<C>>, Self) {
        let (x, x_rest) = self.x.as_chunks();
        let (y, y_rest) = self.y.as_chunks_mut();
        let (gamma, gamma_rest) = self.gamma.as_chunks();
        let (beta, beta_rest) = self.beta.as_chunks();
        let (summed, summed_rest) = self.summed.as_chunks();
        let (ahead, ahead_rest) = self.ahead.as_chunks();
        let rest =
            Self { x: x_rest, y: y_rest, gamma: gamma_rest, beta: beta_rest, summed: summed_rest, ahead: ahead_rest };
        (Chunks { x, y, gamma, beta, summed, ahead }, rest)
    }
}

impl<L> Coefficients<L> {
    #[inline(always)]
    fn normalized<T: Element, I: Isa>(&self, x: L) -> L
    where
        L: Lanes<T, I>,
    {
        (x - self.mean).mul_add(self.rstd, self.minus_shift)
    }
}

impl<T: Element> Piece<'_, T> {
    /// Writes y, and gives `sums` with those of the other row added.
    ///
    /// A streamed piece has y aligned to 64 bytes, and no tail.
    #[inline(always)]
    pub(super) fn run<I: Isa, const WRITE: u8, const SUM: bool, const AFFINE: bool, const AHEAD: bool>(
        self,
        isa: I,
        coefficients: Coefficients<T::Lanes<I>>,
        pilot: T::Lanes<I>,
        mut sums: LaneSums<T::Lanes<I>>,
    ) -> LaneSums<T::Lanes<I>> {
        let (x, x_tail) = T::chunks(self.x);
        let (y, y_tail) = T::chunks_mut(self.y);
        let (gamma, gamma_tail) = T::chunks(self.gamma);
        let (beta, beta_tail) = T::chunks(self.beta);
        let (summed, summed_tail) = T::chunks(self.summed);
        let (ahead, _) = T::chunks(self.ahead);
        let len = if SUM { summed.len() } else { x.len() };
        let this = Loop::<T, I, WRITE, SUM, AFFINE, AHEAD> { isa, coefficients, pilot };
        let (groups, rest) = this.cut(Chunks { x, y, gamma, beta, summed, ahead }, len).into_groups();
        let (group_count, rest_len) = (len / stats::ACCUMULATORS, len % stats::ACCUMULATORS);
        let (mut groups, mut rest) = (this.cut(groups, group_count), this.cut(rest, rest_len));
        let zero = LaneSums::zero(isa);
        for first in (0..len.div_ceil(stats::ACCUMULATORS)).step_by(stats::RUN) {
            let mut run = [zero; stats::ACCUMULATORS];
            for k in first..group_count.min(first + stats::RUN) {
                let mut group = this.group(&mut groups, k);
                for i in 0..stats::ACCUMULATORS {
                    this.chunk(&mut group, i, &mut run[i]);
                }
            }
            if group_count < first + stats::RUN {
                for i in 0..stats::ACCUMULATORS - 1 {
                    if i < rest_len {
                        this.chunk(&mut rest, i, &mut run[i]);
                    }
                }
            }
            if SUM {
                sums = sums + stats::tree(run);
            }
        }
        if WRITE != NOT_WRITTEN && !x_tail.is_empty() {
            let load = |values: &[T]| T::Lanes::load_tail(isa, values, coefficients.mean);
            let mut value = coefficients.normalized(load(x_tail));
            if AFFINE {
                value = value.mul_add(load(gamma_tail), load(beta_tail));
            }
            value.store_tail(y_tail);
        }
        if SUM && !summed_tail.is_empty() {
            sums = sums.plus(T::Lanes::load_tail(isa, summed_tail, pilot) - pilot);
        }
        sums
    }
}
