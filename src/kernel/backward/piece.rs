//! The loop over the columns of a row that takes its sums, and may write dx of a row of the batch before at the same time.

use super::{FULL, PLAIN};
use crate::Element;
use crate::kernel::joined::Waiting;
use crate::kernel::streams::{Streams, Used};
use crate::kernel::{JOINED, NOT_WRITTEN};
use crate::simd::{BATCH, Isa, Lanes};
use std::ops::Add;

/// Chunks that are summed before they are added to a running sum.
pub(super) const GROUP: usize = 4;
/// Groups after which running sums are emptied into totals: see `stats`.
pub(super) const RUN: usize = 8;

/// What the gradients of rows are made of: of one row, of one row in every lane, or of each row of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Coefficients<L> {
    pub(super) mean: L,
    pub(super) rstd: L,
    /// `-mean(h)`.
    pub(super) minus_correction: L,
    /// `-mean(g)`.
    pub(super) minus_mean_g: L,
    /// `mean(g * xhat)`.
    pub(super) mean_product: L,
}

impl<T: Element> Coefficients<[T; BATCH]> {
    /// Those of row `i`.
    #[inline(always)]
    pub(super) fn of_row(&self, i: usize) -> Coefficients<T> {
        Coefficients {
            mean: self.mean[i],
            rstd: self.rstd[i],
            minus_correction: self.minus_correction[i],
            minus_mean_g: self.minus_mean_g[i],
            mean_product: self.mean_product[i],
        }
    }

    #[inline(always)]
    pub(super) fn set_row(&mut self, i: usize, row: Coefficients<T>) {
        self.mean[i] = row.mean;
        self.rstd[i] = row.rstd;
        self.minus_correction[i] = row.minus_correction;
        self.minus_mean_g[i] = row.minus_mean_g;
        self.mean_product[i] = row.mean_product;
    }
}

impl<T: Element> Coefficients<T> {
    /// Those of the row in every lane.
    #[inline(always)]
    pub(super) fn lanes<I: Isa>(self, isa: I) -> Coefficients<T::Lanes<I>> {
        Coefficients {
            mean: T::Lanes::splat(isa, self.mean),
            rstd: T::Lanes::splat(isa, self.rstd),
            minus_correction: T::Lanes::splat(isa, self.minus_correction),
            minus_mean_g: T::Lanes::splat(isa, self.minus_mean_g),
            mean_product: T::Lanes::splat(isa, self.mean_product),
        }
    }
}

impl<L> Coefficients<L> {
    /// The normalized value, and dx.
    #[inline(always)]
    pub(super) fn gradient<T: Element, I: Isa>(&self, x: L, dy: L, gamma: Option<L>) -> (L, L)
    where
        L: Lanes<T, I>,
    {
        let xhat = (x - self.mean).mul_add(self.rstd, self.minus_correction);
        // `g - mean(g)` in one rounding: it is where most of the digits go.
        let centred = match gamma {
            Some(gamma) => dy.mul_add(gamma, self.minus_mean_g),
            None => dy + self.minus_mean_g,
        };
        (xhat, xhat.neg_mul_add(self.mean_product, centred) * self.rstd)
    }
}

/// [`GUARD`] times `g` of a chunk, and `d = x - mean`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<L> {
    g: L,
    d: L,
}

impl<L> Terms<L> {
    /// Those of a row with this mean, where gamma is [`guarded`].
    #[inline(always)]
    pub(super) fn new<T: Element, I: Isa>(mean: L, x: L, dy: L, gamma: L) -> Self
    where
        L: Lanes<T, I>,
    {
        Self { g: dy * gamma, d: x - mean }
    }

    /// Those of fewer elements than a register has: lanes without one have `d` and `g` zero.
    #[inline(always)]
    pub(super) fn of_few<T: Element, I: Isa>(isa: I, mean: L, x: &[T], dy: &[T], gamma: Option<L>) -> Self
    where
        L: Lanes<T, I>,
    {
        let dy = L::load_tail(isa, dy, L::splat(isa, T::ZERO));
        Self::new(mean, L::load_tail(isa, x, mean), dy, guarded(isa, gamma))
    }
}

/// gamma, or 1 where there is none, times [`GUARD`].
#[inline(always)]
pub(super) fn guarded<T: Element, I: Isa, L: Lanes<T, I>>(isa: I, gamma: Option<L>) -> L {
    let guard = L::splat(isa, T::from_f64(GUARD));
    match gamma {
        Some(gamma) => gamma * guard,
        None => guard,
    }
}

/// The sums are of so many times `g`, so that no `g` is too large without a trace. A power of two changes no digit; but eight times
/// a `g` of more than an eighth of the largest number is infinite (or NaN, if gamma alone is as large, and dy 0), and so remains the
/// sum: the row is computed with care. In the other rows nothing overflows on the way to dx: with `m` for the largest number,
/// `|g| <= m/8`, so that `|mean(g)| <= m/8`; and as sums are at most `m`, in a row of
/// [`NARROW`](crate::kernel::careful::NARROW) elements or more, whose statistics are its own, `|xhat mean(g xhat)| <=
/// sqrt(width) m/width <= m/4`. Sums of `g` itself may cancel where a `g - mean(g)` is out of the range and dx is not.
pub(super) const GUARD: f64 = 8.0;

/// [`GUARD`] times `sum(g)`, `sum(d)`, and [`GUARD`] times `sum(g * d)`, lane by lane. (`rstd` is the same for all that is added
/// up, and so comes last.)
#[derive(Clone, Copy, Debug)]
pub(super) struct RowSums<L> {
    pub(super) g: L,
    pub(super) d: L,
    pub(super) product: L,
}

impl<L: Add<Output = L>> Add for RowSums<L> {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self { g: self.g + other.g, d: self.d + other.d, product: self.product + other.product }
    }
}

impl<L> RowSums<L> {
    #[inline(always)]
    pub(super) fn zero<T: Element, I: Isa>(isa: I) -> Self
    where
        L: Lanes<T, I>,
    {
        let zero = L::splat(isa, T::ZERO);
        Self { g: zero, d: zero, product: zero }
    }

    /// With one chunk more.
    #[inline(always)]
    pub(super) fn plus<T: Element, I: Isa>(self, terms: Terms<L>) -> Self
    where
        L: Lanes<T, I>,
    {
        Self { g: self.g + terms.g, d: self.d + terms.d, product: terms.g.mul_add(terms.d, self.product) }
    }

    /// With a group more, added pairwise.
    #[inline(always)]
    pub(super) fn plus_group<T: Element, I: Isa>(self, [a, b, c, d]: [Terms<L>; GROUP]) -> Self
    where
        L: Lanes<T, I>,
    {
        let pair = |a: Terms<L>, b: Terms<L>| a.g.mul_add(a.d, b.g * b.d);
        Self {
            g: self.g + ((a.g + b.g) + (c.g + d.g)),
            d: self.d + ((a.d + b.d) + (c.d + d.d)),
            product: self.product + (pair(a, b) + pair(c, d)),
        }
    }
}

/// The same columns of two rows, and of gamma. What is not used is empty.
#[derive(Debug, Default)]
pub(super) struct Piece<'a, T> {
    /// Columns of the row whose dx is written.
    pub(super) x: &'a [T],
    pub(super) dy: &'a [T],
    /// Of a joined row, beginning with the places of those that wait.
    pub(super) dx: &'a mut [T],
    pub(super) gamma: &'a [T],
    /// What the row adds to, where dgamma and dbeta are wanted.
    pub(super) dgamma: &'a mut [T],
    pub(super) dbeta: &'a mut [T],
    /// Columns of the row whose sums are taken.
    pub(super) summed_x: &'a [T],
    pub(super) summed_dy: &'a [T],
    /// Elements of x and dy to ask for: they are read soon.
    pub(super) ahead_x: &'a [T],
    pub(super) ahead_dy: &'a [T],
}

/// What is done to each chunk.
#[derive(Clone, Copy, Debug)]
struct Loop<T: Element, I: Isa, const WRITE: u8, const MODE: u8, const AHEAD: bool> {
    isa: I,
    coefficients: Coefficients<T::Lanes<I>>,
    /// The mean of the row whose sums are taken.
    mean: T::Lanes<I>,
}

/// x, dy, gamma, summed x and dy are read, x and dy ahead are asked for; dx, dgamma and dbeta are written.
type Arrays<'a, C> = Streams<'a, C, 7, 3>;

impl<T: Element, I: Isa, const WRITE: u8, const MODE: u8, const AHEAD: bool> Loop<T, I, WRITE, MODE, AHEAD> {
    const GAMMA: bool = MODE != PLAIN;
    const SUMS: bool = MODE == FULL && WRITE != NOT_WRITTEN;
    const USED: Used<7, 3> = Used {
        read: [WRITE != NOT_WRITTEN, WRITE != NOT_WRITTEN, Self::GAMMA, true, true, AHEAD, AHEAD],
        written: [WRITE != NOT_WRITTEN, Self::SUMS, Self::SUMS],
    };

    /// What the sums of the one row take of a chunk, asked for ahead.
    #[inline(always)]
    fn terms(self, arrays: &Arrays<'_, T::Chunk>, k: usize) -> Terms<T::Lanes<I>> {
        let load = |chunk: &T::Chunk| T::Lanes::load(self.isa, chunk);
        let [_, _, gamma, summed_x, summed_dy, ahead_x, ahead_dy] = arrays.read;
        if AHEAD {
            self.isa.prefetch(&ahead_x[k]);
            self.isa.prefetch(&ahead_dy[k]);
        }
        let gamma = guarded(self.isa, if Self::GAMMA { Some(load(&gamma[k])) } else { None });
        Terms::new(self.mean, load(&summed_x[k]), load(&summed_dy[k]), gamma)
    }

    /// Writes a chunk of the gradients of the other row.
    #[inline(always)]
    fn write(self, arrays: &mut Arrays<'_, T::Chunk>, k: usize, waiting: &mut Waiting<T::Lanes<I>>) {
        if const { WRITE == NOT_WRITTEN } {
            return;
        }
        let load = |chunk: &T::Chunk| T::Lanes::load(self.isa, chunk);
        let [x, dy, gamma, ..] = arrays.read;
        let gamma = if Self::GAMMA { Some(load(&gamma[k])) } else { None };
        let dy = load(&dy[k]);
        let (xhat, value) = self.coefficients.gradient(load(&x[k]), dy, gamma);
        let [dx, dgamma, dbeta] = &mut arrays.written;
        if Self::SUMS {
            let (dgamma, dbeta) = (&mut dgamma[k], &mut dbeta[k]);
            let sums = (dy.mul_add(xhat, load(dgamma)), load(dbeta) + dy);
            sums.0.store(dgamma);
            sums.1.store(dbeta);
        }
        let dx = &mut dx[k];
        waiting.write::<T, I, WRITE>(value, dx);
    }

    /// The same of fewer elements than a register has.
    #[inline(always)]
    fn tail(self, arrays: Arrays<'_, T>, sums: &mut RowSums<T::Lanes<I>>, waiting: &mut Waiting<T::Lanes<I>>) {
        let zero = T::Lanes::splat(self.isa, T::ZERO);
        let load = |values: &[T]| T::Lanes::load_tail(self.isa, values, zero);
        let [x, dy, gamma, summed_x, summed_dy, ..] = arrays.read;
        let gamma = if Self::GAMMA && !gamma.is_empty() { Some(load(gamma)) } else { None };
        if !summed_x.is_empty() {
            *sums = sums.plus(Terms::of_few(self.isa, self.mean, summed_x, summed_dy, gamma));
        }
        if const { WRITE != NOT_WRITTEN } && !x.is_empty() {
            let [dx, dgamma, dbeta] = arrays.written;
            let dy = load(dy);
            let (xhat, value) = self.coefficients.gradient(load(x), dy, gamma);
            if Self::SUMS {
                dy.mul_add(xhat, load(dgamma)).store_tail(dgamma);
                (load(dbeta) + dy).store_tail(dbeta);
            }
            waiting.write_few::<T, I, WRITE>(value, dx);
        }
    }
}

impl<T: Element> Piece<'_, T> {
    /// Writes dx, and gives `sums` with those of the other row, whose mean is `mean`, added.
    ///
    /// A streamed piece has dx aligned to 64 bytes, and no tail; a joined one has dx aligned where the first that wait belong,
    /// and those that wait at its end are left in `waiting`.
    #[inline(always)]
    pub(super) fn run<I: Isa, const WRITE: u8, const MODE: u8, const AHEAD: bool>(
        self,
        isa: I,
        coefficients: Coefficients<T::Lanes<I>>,
        mean: T::Lanes<I>,
        mut sums: RowSums<T::Lanes<I>>,
        waiting: &mut Waiting<T::Lanes<I>>,
    ) -> RowSums<T::Lanes<I>> {
        let this = Loop::<T, I, WRITE, MODE, AHEAD> { isa, coefficients, mean };
        let used = Loop::<T, I, WRITE, MODE, AHEAD>::USED;
        let Self { x, dy, dx, gamma, dgamma, dbeta, summed_x, summed_dy, ahead_x, ahead_dy } = self;
        let len = summed_x.len() / T::LANES;
        // Behind the lines that whole chunks fill are the places of those that wait then, and of the row's tail.
        let (dx, places) = dx.split_at_mut(if const { WRITE == JOINED } { len * T::LANES } else { dx.len() });
        let arrays =
            Arrays { read: [x, dy, gamma, summed_x, summed_dy, ahead_x, ahead_dy], written: [dx, dgamma, dbeta] };
        let (chunks, mut tails) = arrays.into_chunks();
        if const { WRITE == JOINED } {
            tails.written[0] = places;
        }
        // Of its own here, for registers.
        let mut still_waiting = if const { WRITE == JOINED } { *waiting } else { Waiting::none(isa) };
        let (groups, rest) = chunks.cut(used, len).into_groups::<GROUP>();
        let (group_count, rest_len) = (len / GROUP, len % GROUP);
        let (mut groups, mut rest) = (groups.cut(used, group_count), rest.cut(used, rest_len));
        for first in (0..len.div_ceil(GROUP)).step_by(RUN) {
            let mut run = RowSums::zero(isa);
            for k in first..group_count.min(first + RUN) {
                let mut group = groups.group(used, k);
                // All loads of the sums before the stores of the gradients: where arrays are at the same distance from a multiple
                // of 4 KiB, a load after a store to the same distance would wait for it.
                let terms =
                    [this.terms(&group, 0), this.terms(&group, 1), this.terms(&group, 2), this.terms(&group, 3)];
                run = run.plus_group(terms);
                for i in 0..GROUP {
                    this.write(&mut group, i, &mut still_waiting);
                }
            }
            if group_count < first + RUN {
                for i in 0..GROUP - 1 {
                    if i < rest_len {
                        run = run.plus(this.terms(&rest, i));
                        this.write(&mut rest, i, &mut still_waiting);
                    }
                }
            }
            sums = sums + run;
        }
        this.tail(tails, &mut sums, &mut still_waiting);
        if const { WRITE == JOINED } {
            *waiting = still_waiting;
        }
        sums
    }
}
