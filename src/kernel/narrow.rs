//! Rows narrower than [`NARROW`](super::careful::NARROW), eight at a time: one row a lane.
//!
//! What [`careful`](super::careful) defines for one row in scalar arithmetic is done here for eight, operation by
//! operation and in the same order, so that the bits are those of the scalar code on every instruction set. Eight rows are
//! turned into columns, registers of `f64` or pairs of them ([`wide_lanes`](super::wide_lanes)), and the results turned back.
//! A loop over columns then does for eight rows what a loop over the elements of a row does:
//!
//! ```text
//! for each column:  mean += x
//! for each column:  centred = x - mean, squares += centred^2
//! rstd = 1 / sqrt(squares / width + epsilon)
//! for each column:  y = centred * rstd * gamma + beta, or the terms of the gradients
//! ```
//!
//! A column of a row waits for the one before, in a sum that has to keep its order; so [`TOGETHER`] times eight rows go through
//! each loop side by side. Their results are written to a buffer, and from there past the caches where the caller asks for
//! that.
//!
//! Instruction sets chosen at run time have this; the portable backend, for which it would be much to
//! compile, and the model take the scalar code. Rows that this is not for are left to that, too, with the others of their
//! eight, and so are the last, fewer than eight:
//!
//! - those with a NaN or an infinity, and constant rows without `epsilon`: their `rstd` is not finite;
//! - in `f64`, those with an element other than 0 outside [2^-128, 2^128], or with such parameters: see below.
//!
//! # Powers of two
//!
//! In `f32` nothing is scaled. In `f64` the scalar code takes x, dy and gamma times powers of two that bring their largest
//! elements to about 1, and `x - mean` again. Here x is not scaled. Its sums and the mean are the same numbers but for the
//! power of two: elements from 2^-128 to 2^129 are multiples of 2^-180, those scaled of 2^-308, and each quotient of the two
//! in a division of pairs has at most 56 bits more. So all numbers up to `x - mean`, and their rounding errors, are multiples
//! of 2^-292 and 2^-420, far above the least number, and additions, subtractions and divisions of such numbers round the
//! same way whatever power of two they are taken times. From there on all is scaled as in the scalar code.
//!
//! # Products in `f64`
//!
//! A fused multiply-add finds the same error of a product as the scalar code where the product is 0 or at least 2^-968.
//! `x - mean`, if not 0, is at least 2^-292, and 2^-421 when it is scaled, as is `xhat` within a factor of 8. dy and gamma
//! are at least 2^-128 and when scaled 2^-257, their product 2^-514: so the products of all these are large enough, and none
//! is near the end of the range. That leaves `mean(g * xhat)`, where much can cancel: it is tested to be 0 or at least
//! 2^-300.
//!
//! # Cost
//!
//! In `f32` the moves from rows to columns and back, about one instruction an element each, and of rows of few elements the
//! root and the division; in `f64` the arithmetic of pairs, of 64 bytes about 15 instructions an element forward and 40
//! backward.

use super::careful::NARROW;
use super::wide::{self, Wide, power_of_two};
use super::wide_lanes::WideLanes;
use crate::Element;
use crate::element::Vectorized;
use crate::simd::{BATCH, Isa, Lanes, values};

/// A column of eight rows.
pub(super) type Column<T, I> = <<T as Vectorized>::Wide as Wide>::Lanes<I>;

/// The exponents of ordinary numbers.
const ORDINARY: i32 = 128;

/// Whether all numbers are as large as the proofs above ask for, or 0. In `f32` nothing is asked for.
#[inline(always)]
pub(super) fn are_ordinary<T: Element>(numbers: &[T]) -> bool {
    let mut ordinary = true;
    if T::HAS_WIDE_RANGE {
        for number in numbers {
            let size = number.to_f64().abs();
            ordinary &= (size == 0.0) | ((size >= power_of_two(-ORDINARY)) & (size <= power_of_two(ORDINARY)));
        }
    }
    ordinary
}

/// Whether rows with `epsilon` may be ordinary.
#[inline(always)]
pub(super) fn is_ordinary_epsilon<T: Element>(epsilon: f64) -> bool {
    !T::HAS_WIDE_RANGE
        || epsilon == 0.0
        || (power_of_two(-2 * ORDINARY)..=power_of_two(2 * ORDINARY)).contains(&epsilon)
}

/// Numbers in columns of eight rows.
pub(super) type Columns<I> = [<I as Isa>::F64; NARROW];

/// Elements that may be read and written from the first of eight rows on: behind a row come others, or nothing.
pub(super) const SPAN: usize = (BATCH - 1) * (NARROW - 1) + NARROW;

/// Eights of rows that go together: so many that none waits for the latencies of another.
pub(super) const TOGETHER: usize = 4;

/// Rows that are written to a buffer, and from there where they belong, past the caches if that is asked for. Whatever the
/// width, they are whole cache lines.
pub(super) const STAGED: usize = TOGETHER * BATCH;

/// Room for so many.
pub(super) const ROOM: usize = (STAGED - BATCH) * (NARROW - 1) + SPAN;

/// The columns of eight rows, of which the first starts at `start`.
#[inline(always)]
pub(super) fn read_columns<T: Element, I: Isa>(
    isa: I,
    x: &[T],
    start: usize,
    width: usize,
    last_rows: &mut [T; SPAN],
    columns: &mut Columns<I>,
) {
    let halves = if width > BATCH { 2 } else { 1 };
    let mut rows = &x[start..];
    if rows.len() < (BATCH - 1) * width + halves * BATCH {
        last_rows[..BATCH * width].copy_from_slice(&rows[..BATCH * width]);
        rows = last_rows;
    }
    for half in 0..halves {
        let mut of_rows = [I::F64::splat(isa, 0.0); BATCH];
        for i in 0..BATCH {
            let row = &rows[i * width + half * BATCH..][..BATCH];
            let mut numbers = [0.0; BATCH];
            for j in 0..BATCH {
                numbers[j] = row[j].to_f64();
            }
            of_rows[i] = I::F64::load(isa, &numbers);
        }
        let found = isa.transposed(of_rows);
        for j in 0..BATCH {
            columns[half * BATCH + j] = found[j];
        }
    }
}

/// Writes columns as eight rows, rounded to the type of the elements, and something behind them.
#[inline(always)]
pub(super) fn write_rows<T: Element, I: Isa>(isa: I, columns: &Columns<I>, width: usize, rows: &mut [T]) {
    let halves = columns.as_chunks::<BATCH>().0;
    let lower = isa.transposed(halves[0]);
    if width <= BATCH {
        for i in 0..BATCH {
            // What is wrong behind a row is overwritten by the next.
            rows[i * width..][..BATCH].copy_from_slice(&rounded::<T, I>(lower[i]));
        }
    } else {
        let upper = isa.transposed(halves[1]);
        for i in 0..BATCH {
            rows[i * width..][..BATCH].copy_from_slice(&rounded::<T, I>(lower[i]));
            rows[i * width + BATCH..][..BATCH].copy_from_slice(&rounded::<T, I>(upper[i]));
        }
    }
}

/// Numbers rounded to the type of the elements.
#[inline(always)]
fn rounded<T: Element, I: Isa>(register: I::F64) -> [T; BATCH] {
    let numbers = values(register);
    let mut found = [T::ZERO; BATCH];
    for i in 0..BATCH {
        found[i] = T::from_f64(numbers[i]);
    }
    found
}

/// The larger of each two magnitudes.
#[inline(always)]
pub(super) fn larger<I: Isa>(mut largest: [f64; BATCH], column: I::F64) -> [f64; BATCH] {
    let column = values(column);
    for i in 0..BATCH {
        let size = column[i].abs();
        largest[i] = if size > largest[i] { size } else { largest[i] };
    }
    largest
}

/// The exponents of normal numbers, and 0 for zeros.
#[inline(always)]
pub(super) fn exponents(largest: [f64; BATCH]) -> [i32; BATCH] {
    let mut found = [0; BATCH];
    for i in 0..BATCH {
        let exponent = (largest[i].to_bits() >> 52) as i32 - 1023;
        found[i] = if largest[i] == 0.0 { 0 } else { exponent };
    }
    found
}

/// Powers of two, for exponents far from the ends.
#[inline(always)]
pub(super) fn powers<I: Isa>(isa: I, exponents: [i32; BATCH]) -> I::F64 {
    let mut found = [0.0; BATCH];
    for i in 0..BATCH {
        found[i] = power_of_two(exponents[i]);
    }
    I::F64::load(isa, &found)
}

/// `K` times eight rows of x with their statistics: [`CarefulRow`](super::careful::CarefulRow) in each lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statistics<T: Element, I: Isa, const K: usize> {
    pub(super) mean: [Column<T, I>; K],
    /// `x - mean` is taken times 2^-spread.
    pub(super) spread: [[i32; BATCH]; K],
    /// `rstd` of the rows so taken.
    pub(super) rstd: [Column<T, I>; K],
    /// `epsilon` so taken.
    epsilon: [Column<T, I>; K],
    /// Whether none of eight rows has to be left to the scalar code.
    pub(super) are_ordinary: [bool; K],
}

impl<T: Element, I: Isa, const K: usize> Statistics<T, I, K> {
    /// The statistics of rows of x, and `x - mean` in `centred`. `epsilon` is ordinary.
    #[inline(always)]
    pub(super) fn new(
        isa: I,
        x: &[Columns<I>; K],
        width: usize,
        epsilon: f64,
        centred: &mut [[Column<T, I>; NARROW]; K],
    ) -> Self {
        let zero = Column::<T, I>::new(isa, I::F64::splat(isa, 0.0));
        let columns = 0..width.min(NARROW);
        let [mut mean, mut minus_mean, mut squares, mut rstd] = [[zero; K]; 4];
        for column in columns.clone() {
            for k in 0..K {
                mean[k] = mean[k].plus(x[k][column]);
            }
        }
        for k in 0..K {
            mean[k] = mean[k].divided(width as f64);
            minus_mean[k] = mean[k].negative();
        }
        let mut spread = [[0; BATCH]; K];
        let mut scaled_epsilon = [I::F64::splat(isa, epsilon); K];
        if T::HAS_WIDE_RANGE {
            let mut largest = [[0.0; BATCH]; K];
            for column in columns.clone() {
                for k in 0..K {
                    centred[k][column] = minus_mean[k].plus(x[k][column]);
                    largest[k] = larger::<I>(largest[k], centred[k][column].value());
                }
            }
            let mut factor = scaled_epsilon;
            for k in 0..K {
                spread[k] = spreads(largest[k], epsilon);
                factor[k] = powers(isa, times(-1, spread[k]));
                scaled_epsilon[k] = scaled_epsilon[k] * powers(isa, times(-2, spread[k]));
            }
            for column in columns {
                for k in 0..K {
                    let d = centred[k][column].scaled(factor[k]);
                    centred[k][column] = d;
                    squares[k] = squares[k] + d * d;
                }
            }
        } else {
            for column in columns {
                for k in 0..K {
                    let d = minus_mean[k].plus(x[k][column]);
                    centred[k][column] = d;
                    squares[k] = squares[k] + d * d;
                }
            }
        }
        let mut are_ordinary = [true; K];
        let mut of_rows = [zero; K];
        for k in 0..K {
            let denominator = squares[k].divided(width as f64).plus(scaled_epsilon[k]);
            rstd[k] = denominator.reciprocal_sqrt();
            are_ordinary[k] = are_finite(isa, rstd[k].value());
            of_rows[k] = Column::<T, I>::new(isa, scaled_epsilon[k]);
        }
        Self { mean, spread, rstd, epsilon: of_rows, are_ordinary }
    }

    /// `epsilon / (var + epsilon)`.
    #[inline(always)]
    pub(super) fn epsilon_share(&self, k: usize) -> Column<T, I> {
        self.epsilon[k].times_any(self.rstd[k]).times_any(self.rstd[k])
    }

    /// The means of eight rows, rounded once.
    #[inline(always)]
    pub(super) fn means(&self, k: usize) -> [T; BATCH] {
        rounded::<T, I>(self.mean[k].value())
    }

    /// `rstd` of eight rows.
    #[inline(always)]
    pub(super) fn rstds(&self, isa: I, k: usize) -> [T; BATCH] {
        let rstd = self.rstd[k].value();
        rounded::<T, I>(if T::HAS_WIDE_RANGE { rstd * powers(isa, times(-1, self.spread[k])) } else { rstd })
    }
}

/// Whether no lane is infinite or NaN.
#[inline(always)]
pub(super) fn are_finite<I: Isa>(isa: I, value: I::F64) -> bool {
    (value * I::F64::splat(isa, 0.0)).sum() == 0.0
}

/// `factor * values`.
#[inline(always)]
pub(super) fn times(factor: i32, mut values: [i32; BATCH]) -> [i32; BATCH] {
    for i in 0..BATCH {
        values[i] *= factor;
    }
    values
}

/// The exponents of the largest `x - mean`, or of `sqrt(epsilon)` where that is larger.
#[inline(always)]
fn spreads(largest: [f64; BATCH], epsilon: f64) -> [i32; BATCH] {
    let of_epsilon = wide::exponent(epsilon.sqrt());
    let of_rows = exponents(largest);
    let mut found = [of_epsilon; BATCH];
    for i in 0..BATCH {
        if largest[i] > 0.0 && (epsilon == 0.0 || of_rows[i] > of_epsilon) {
            found[i] = of_rows[i];
        }
    }
    found
}

#[cfg(test)]
mod tests;
