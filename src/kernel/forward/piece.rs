//! The loop over columns: one row is normalized while the sums of a row of the next batch are taken.
//!
//! Reading ahead in memory, arithmetic and writing are then one even stream of instructions, as in a copy: none of them
//! waits for another to end.

use crate::Element;
use crate::kernel::joined::Waiting;
use crate::kernel::stats::{self, LaneSums};
use crate::kernel::streams::{Streams, Used};
use crate::kernel::{JOINED, NOT_WRITTEN};
use crate::simd::{Isa, Lanes};

/// The same columns of two rows, and of gamma and beta. What is not used is empty.
#[derive(Debug)]
pub(super) struct Piece<'a, T> {
    /// Columns of the row that is written.
    pub(super) x: &'a [T],
    /// Of a joined row, beginning with the places of those that wait.
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

impl<L> Coefficients<L> {
    #[inline(always)]
    pub(super) fn normalized<T: Element, I: Isa>(&self, x: L) -> L
    where
        L: Lanes<T, I>,
    {
        (x - self.mean).mul_add(self.rstd, self.minus_shift)
    }

    /// y of fewer elements than a register has.
    #[inline(always)]
    pub(super) fn few<T: Element, I: Isa, const AFFINE: bool>(&self, isa: I, x: &[T], [gamma, beta]: [&[T]; 2]) -> L
    where
        L: Lanes<T, I>,
    {
        let load = |values: &[T]| L::load_tail(isa, values, self.mean);
        let mut value = self.normalized(load(x));
        if AFFINE {
            value = value.mul_add(load(gamma), load(beta));
        }
        value
    }
}

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
    /// x, gamma, beta, summed and ahead are read; y is written.
    const USED: Used<5, 1> =
        Used { read: [WRITE != NOT_WRITTEN, AFFINE, AFFINE, SUM, AHEAD], written: [WRITE != NOT_WRITTEN] };

    /// One chunk of each: x is normalized, and the other row's is added to `sums`.
    #[inline(always)]
    fn chunk(
        self,
        streams: &mut Streams<'_, T::Chunk, 5, 1>,
        k: usize,
        sums: &mut LaneSums<T::Lanes<I>>,
        waiting: &mut Waiting<T::Lanes<I>>,
    ) {
        let load = |chunk| T::Lanes::load(self.isa, chunk);
        let [x, gamma, beta, summed, ahead] = streams.read;
        if AHEAD {
            self.isa.prefetch(&ahead[k]);
        }
        if SUM {
            *sums = sums.plus(load(&summed[k]) - self.pilot);
        }
        if const { WRITE != NOT_WRITTEN } {
            let mut value = self.coefficients.normalized(load(&x[k]));
            if AFFINE {
                value = value.mul_add(load(&gamma[k]), load(&beta[k]));
            }
            let y = &mut streams.written[0][k];
            waiting.write::<T, I, WRITE>(value, y);
        }
    }

    /// The same of fewer elements than a register has.
    #[inline(always)]
    fn tail(self, streams: Streams<'_, T, 5, 1>, sums: &mut LaneSums<T::Lanes<I>>, waiting: &mut Waiting<T::Lanes<I>>) {
        let [x, gamma, beta, summed, _] = streams.read;
        let [y] = streams.written;
        if SUM && !summed.is_empty() {
            *sums = sums.plus(T::Lanes::load_tail(self.isa, summed, self.pilot) - self.pilot);
        }
        if const { WRITE != NOT_WRITTEN } && !x.is_empty() {
            let value = self.coefficients.few::<T, I, AFFINE>(self.isa, x, [gamma, beta]);
            waiting.write_few::<T, I, WRITE>(value, y);
        }
    }
}

impl<T: Element> Piece<'_, T> {
    /// Writes y, and gives `sums` with those of the other row added.
    ///
    /// A streamed piece has y aligned to 64 bytes, and no tail; a joined one has y aligned where the first that wait belong, and
    /// those that wait at its end are left in `waiting`.
    #[inline(always)]
    pub(super) fn run<I: Isa, const WRITE: u8, const SUM: bool, const AFFINE: bool, const AHEAD: bool>(
        self,
        isa: I,
        coefficients: Coefficients<T::Lanes<I>>,
        pilot: T::Lanes<I>,
        mut sums: LaneSums<T::Lanes<I>>,
        waiting: &mut Waiting<T::Lanes<I>>,
    ) -> LaneSums<T::Lanes<I>> {
        let this = Loop::<T, I, WRITE, SUM, AFFINE, AHEAD> { isa, coefficients, pilot };
        let used = Loop::<T, I, WRITE, SUM, AFFINE, AHEAD>::USED;
        let Self { x, y, gamma, beta, summed, ahead } = self;
        let len = if SUM { summed.len() } else { x.len() } / T::LANES;
        // Behind the lines that whole chunks fill are the places of those that wait then, and of the row's tail.
        let (y, places) = y.split_at_mut(if const { WRITE == JOINED } { len * T::LANES } else { y.len() });
        let (chunks, mut tails) = Streams { read: [x, gamma, beta, summed, ahead], written: [y] }.into_chunks();
        if const { WRITE == JOINED } {
            tails.written = [places];
        }
        // Of its own here, for registers.
        let mut still_waiting = if const { WRITE == JOINED } { *waiting } else { Waiting::none(isa) };
        let (groups, rest) = chunks.cut(used, len).into_groups::<{ stats::ACCUMULATORS }>();
        let (group_count, rest_len) = (len / stats::ACCUMULATORS, len % stats::ACCUMULATORS);
        let (mut groups, mut rest) = (groups.cut(used, group_count), rest.cut(used, rest_len));
        let zero = LaneSums::zero(isa);
        for first in (0..len.div_ceil(stats::ACCUMULATORS)).step_by(stats::RUN) {
            let mut run = [zero; stats::ACCUMULATORS];
            for k in first..group_count.min(first + stats::RUN) {
                let mut group = groups.group(used, k);
                for i in 0..stats::ACCUMULATORS {
                    this.chunk(&mut group, i, &mut run[i], &mut still_waiting);
                }
            }
            if group_count < first + stats::RUN {
                for i in 0..stats::ACCUMULATORS - 1 {
                    if i < rest_len {
                        this.chunk(&mut rest, i, &mut run[i], &mut still_waiting);
                    }
                }
            }
            if SUM {
                sums = sums + stats::tree(run);
            }
        }
        this.tail(tails, &mut sums, &mut still_waiting);
        if const { WRITE == JOINED } {
            *waiting = still_waiting;
        }
        sums
    }
}
