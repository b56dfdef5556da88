//! Backward over rows narrower than a register: [`narrow`](crate::kernel::narrow).
//!
//! dgamma and dbeta of a group of [`GROUP`] rows are added up in each lane, row `i` in lane `i mod 8`, and then the upper half
//! of the lanes is added to the lower half until one is left: 16 and 3 additions, each in arithmetic of twice the digits.

use super::careful_rows::{add_sums, careful_row};
use super::{Backward, GROUP};
use crate::Element;
use crate::kernel::careful::NARROW;
use crate::kernel::copy::Bring;
use crate::kernel::forward::Parameters;
use crate::kernel::forward::Place;
use crate::kernel::narrow::{self, Column, Columns, ROOM, SPAN, STAGED, Statistics, TOGETHER};
use crate::kernel::wide::{self, Wide, power_of_two};
use crate::kernel::wide_lanes::WideLanes;
use crate::simd::{BATCH, Isa, Lanes, values};
use std::ops::Range;

/// `mean(g * xhat)` in `f64` that is smaller, and not 0, is left to the scalar code.
const LEAST_MEAN_PRODUCT: f64 = power_of_two(-300);

/// Memory for the columns of rows that go together, and for sums.
#[derive(Debug)]
struct Scratch<T: Element, I: Isa> {
    /// x; then dy, scaled; then dx.
    values: [Columns<I>; TOGETHER],
    dy: [Columns<I>; TOGETHER],
    last_rows: [T; SPAN],
    /// `x - mean`, then `xhat`.
    xhat: [[Column<T, I>; NARROW]; TOGETHER],
    g: [[Column<T, I>; NARROW]; TOGETHER],
    dgamma: [Column<T, I>; NARROW],
    dbeta: [Column<T, I>; NARROW],
}

/// gamma as the rows need it.
#[derive(Clone, Copy, Debug)]
struct Gamma {
    /// gamma times 2^-exponent.
    scaled: [f64; NARROW],
    exponent: i32,
    is_there: bool,
}

impl Gamma {
    #[inline(always)]
    fn new<T: Element>(gamma: Option<&[T]>) -> Self {
        let mut found = Self { scaled: [0.0; NARROW], exponent: 0, is_there: gamma.is_some() };
        let gamma = gamma.unwrap_or(&[]);
        if T::HAS_WIDE_RANGE {
            let mut largest = 0.0_f64;
            for gamma in gamma {
                largest = largest.max(gamma.to_f64().abs());
            }
            found.exponent = wide::exponent(largest);
        }
        for (scaled, gamma) in found.scaled.iter_mut().zip(gamma) {
            *scaled = wide::scaled(gamma.to_f64(), -found.exponent);
        }
        found
    }
}

/// The sums of a group in each lane: of row `i` in lane `i mod 8`.
#[derive(Debug)]
struct SumsOfLanes<T: Element> {
    dgamma: [[T::Wide; NARROW]; BATCH],
    dbeta: [[T::Wide; NARROW]; BATCH],
}

impl<T: Element> SumsOfLanes<T> {
    #[inline(always)]
    fn zero() -> Self {
        let [dgamma, dbeta] = [[[T::Wide::new(0.0); NARROW]; BATCH]; 2];
        Self { dgamma, dbeta }
    }

    #[inline(always)]
    fn new<I: Isa>(columns: &Scratch<T, I>, width: usize) -> Self {
        let Self { mut dgamma, mut dbeta } = Self::zero();
        for column in 0..width {
            let (of_gamma, of_beta) = (columns.dgamma[column].numbers(), columns.dbeta[column].numbers());
            for i in 0..BATCH {
                dgamma[i][column] = of_gamma[i];
                dbeta[i][column] = of_beta[i];
            }
        }
        Self { dgamma, dbeta }
    }

    /// The upper half of the lanes is added to the lower half until one is left.
    #[inline(always)]
    fn add_into(mut self, totals: (&mut [T], &mut [T]), width: usize) {
        let mut half = BATCH / 2;
        while half > 0 {
            for i in 0..half {
                for column in 0..width {
                    self.dgamma[i][column] = self.dgamma[i][column] + self.dgamma[i + half][column];
                    self.dbeta[i][column] = self.dbeta[i][column] + self.dbeta[i + half][column];
                }
            }
            half /= 2;
        }
        add_sums(Some(totals), &self.dgamma[0], &self.dbeta[0]);
    }
}

impl<T: Element> Backward<'_, T> {
    /// So many rows at a time as go together; those that are not ordinary, and the last, one at a time.
    #[inline(always)]
    pub(in crate::kernel) fn narrow_rows<I: Isa>(&mut self, isa: I) {
        let Parameters { width, epsilon, gamma, .. } = self.parameters;
        let rows = self.mean.len();
        if rows < BATCH {
            // To lay out the memory below takes longer than these.
            let mut staged = [T::ZERO; SPAN];
            let mut sums = SumsOfLanes::zero();
            let is_summed = self.sums.is_some();
            self.careful_rows(0..rows, is_summed.then_some(&mut sums), &mut staged);
            self.write_dx(isa, 0..rows, &staged, false);
            return self.close_narrow_group(isa, sums);
        }
        let are_ordinary =
            I::SPECIALIZED && narrow::is_ordinary_epsilon::<T>(epsilon) && narrow::are_ordinary(gamma.unwrap_or(&[]));
        let gamma = Gamma::new(if are_ordinary { gamma } else { None });
        let zero = I::F64::splat(isa, 0.0);
        let zeros = [Column::<T, I>::new(isa, zero); NARROW];
        let [values, dy] = [[[zero; NARROW]; TOGETHER]; 2];
        let [xhat, g] = [[zeros; TOGETHER]; 2];
        let mut scratch = Scratch { values, dy, last_rows: [T::ZERO; SPAN], xhat, g, dgamma: zeros, dbeta: zeros };
        let mut staged = [T::ZERO; ROOM];
        let streams = self.place == Place::Memory;
        for first in (0..rows).step_by(GROUP) {
            let end = rows.min(first + GROUP);
            // Sums that hold a row which is not ordinary are no longer ordinary themselves: the others of its group are
            // added to these.
            let mut sums = None;
            for start in (first..end).step_by(STAGED) {
                let stop = end.min(start + STAGED);
                let batches = if are_ordinary { (stop - start) / BATCH } else { 0 };
                if batches > 0 {
                    self.narrow_batches(isa, start, batches, &gamma, &mut scratch, &mut sums, &mut staged);
                }
                for next in (start + batches * BATCH..stop).step_by(BATCH) {
                    let sums = self.sums_of_lanes(&scratch, &mut sums);
                    self.careful_rows(next..stop.min(next + BATCH), sums, &mut staged[(next - start) * width..]);
                }
                self.write_dx(isa, start..stop, &staged, streams);
            }
            if self.sums.is_some() {
                let sums = match sums {
                    Some(sums) => sums,
                    None => SumsOfLanes::new(&scratch, width),
                };
                self.close_narrow_group(isa, sums);
                scratch.dgamma = zeros;
                scratch.dbeta = zeros;
            }
        }
        if streams {
            isa.fence();
        }
    }

    /// Brings dx of rows from the buffer where it belongs.
    #[inline(always)]
    fn write_dx<I: Isa>(&mut self, isa: I, rows: Range<usize>, staged: &[T], streams: bool) {
        let width = self.parameters.width;
        let staged = &staged[..rows.len() * width];
        let span = rows.start * width..rows.end * width;
        if let Some((dx, accumulate)) = &mut self.dx {
            isa.run(Bring { staged, target: &mut dx[span], accumulate: *accumulate, stream: streams });
        }
    }

    /// Adds the sums of a group to the totals, where they are wanted.
    #[inline(always)]
    fn close_narrow_group<I: Isa>(&mut self, isa: I, sums: SumsOfLanes<T>) {
        let width = self.parameters.width;
        if let Some(target) = &mut self.sums {
            sums.add_into(target.of_group(width), width);
            target.close_group(isa);
        }
    }

    /// The sums that rows are added to one at a time, where sums are wanted.
    #[inline(always)]
    fn sums_of_lanes<'s, I: Isa>(
        &self,
        scratch: &Scratch<T, I>,
        sums: &'s mut Option<SumsOfLanes<T>>,
    ) -> Option<&'s mut SumsOfLanes<T>> {
        if self.sums.is_some() && sums.is_none() {
            *sums = Some(SumsOfLanes::new(scratch, self.parameters.width));
        }
        sums.as_mut()
    }

    /// At most eight rows, one at a time.
    #[inline(never)]
    fn careful_rows(&mut self, rows: Range<usize>, mut sums: Option<&mut SumsOfLanes<T>>, dx: &mut [T]) {
        let width = self.parameters.width;
        for ((i, row), dx) in rows.enumerate().zip(dx.chunks_exact_mut(width)) {
            let span = row * width..(row + 1) * width;
            let dx = self.dx.is_some().then_some((dx, false));
            let sums = sums.as_mut().map(|sums| (&mut sums.dgamma[i][..width], &mut sums.dbeta[i][..width]));
            careful_row(&self.parameters, &self.x[span.clone()], &self.dy[span], dx, sums);
        }
    }

    /// Some times eight rows. Where they are fewer than go together, the first are computed again in the place of others.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "a part of a loop that keeps all of these")]
    fn narrow_batches<I: Isa>(
        &mut self,
        isa: I,
        start: usize,
        batches: usize,
        gamma: &Gamma,
        scratch: &mut Scratch<T, I>,
        sums: &mut Option<SumsOfLanes<T>>,
        staged: &mut [T],
    ) {
        let width = self.parameters.width;
        let Scratch { values, dy, last_rows, xhat, .. } = scratch;
        for k in 0..TOGETHER {
            let first = if k < batches { start + k * BATCH } else { start };
            narrow::read_columns(isa, self.x, first * width, width, last_rows, &mut values[k]);
            narrow::read_columns(isa, self.dy, first * width, width, last_rows, &mut dy[k]);
        }
        let found = Statistics::<T, I, TOGETHER>::new(isa, values, width, self.parameters.epsilon, xhat);
        for column in 0..width.min(NARROW) {
            for k in 0..TOGETHER {
                xhat[k][column] = xhat[k][column] * found.rstd[k];
            }
        }
        let are_ordinary =
            if self.dx.is_some() { dx_of_batches(isa, width, gamma, &found, scratch) } else { found.are_ordinary };
        for k in 0..batches.min(TOGETHER) {
            let first = start + k * BATCH;
            let span = first * width..(first + BATCH) * width;
            let staged = &mut staged[k * BATCH * width..];
            let is_ordinary = are_ordinary[k]
                && sums.is_none()
                && narrow::are_ordinary(&self.x[span.clone()])
                && narrow::are_ordinary(&self.dy[span]);
            if !is_ordinary {
                let sums = self.sums_of_lanes(scratch, sums);
                self.careful_rows(first..first + BATCH, sums, staged);
                continue;
            }
            if self.dx.is_some() {
                narrow::write_rows(isa, &scratch.values[k], width, staged);
            }
            if self.sums.is_some() {
                let Scratch { dy, xhat, dgamma, dbeta, .. } = &mut *scratch;
                for column in 0..width.min(NARROW) {
                    dgamma[column] = dgamma[column] + xhat[k][column].times(dy[k][column]);
                    dbeta[column] = dbeta[column].plus(dy[k][column]);
                }
            }
        }
    }
}

/// dx of rows; of each eight, whether none has to be left to the scalar code.
#[inline(always)]
fn dx_of_batches<T: Element, I: Isa>(
    isa: I,
    width: usize,
    gamma: &Gamma,
    found: &Statistics<T, I, TOGETHER>,
    scratch: &mut Scratch<T, I>,
) -> [bool; TOGETHER] {
    let Scratch { values: dx, dy, xhat, g, .. } = scratch;
    let columns = 0..width.min(NARROW);
    let zero = Column::<T, I>::new(isa, I::F64::splat(isa, 0.0));
    let mut exponents = [[0; BATCH]; TOGETHER];
    if T::HAS_WIDE_RANGE {
        for k in 0..TOGETHER {
            let mut largest = [0.0; BATCH];
            for column in columns.clone() {
                largest = narrow::larger::<I>(largest, dy[k][column]);
            }
            exponents[k] = narrow::exponents(largest);
            let factor = narrow::powers(isa, narrow::times(-1, exponents[k]));
            for column in columns.clone() {
                dx[k][column] = dy[k][column] * factor;
            }
        }
    }
    let [mut minus_mean_g, mut mean_product] = [[zero; TOGETHER]; 2];
    for column in columns.clone() {
        for k in 0..TOGETHER {
            let dy = if T::HAS_WIDE_RANGE { dx[k][column] } else { dy[k][column] };
            let xhat = xhat[k][column];
            if gamma.is_there {
                let product = Column::<T, I>::product(isa, dy, I::F64::splat(isa, gamma.scaled[column]));
                g[k][column] = product;
                minus_mean_g[k] = minus_mean_g[k] + product;
                mean_product[k] = mean_product[k] + product * xhat;
            } else {
                g[k][column] = Column::<T, I>::new(isa, dy);
                minus_mean_g[k] = minus_mean_g[k].plus(dy);
                mean_product[k] = mean_product[k] + xhat.times(dy);
            }
        }
    }
    let mut are_ordinary = found.are_ordinary;
    let mut factor = [I::F64::splat(isa, 1.0); TOGETHER];
    for k in 0..TOGETHER {
        minus_mean_g[k] = minus_mean_g[k].divided(width as f64).negative();
        mean_product[k] = mean_product[k].divided(width as f64);
        if T::HAS_WIDE_RANGE {
            for value in values(mean_product[k].value()) {
                are_ordinary[k] &= (value == 0.0) | (value.abs() >= LEAST_MEAN_PRODUCT);
            }
            for i in 0..BATCH {
                exponents[k][i] += gamma.exponent - found.spread[k][i];
            }
            factor[k] = narrow::powers(isa, exponents[k]);
        } else {
            // Neither dy nor gamma is infinite or NaN.
            are_ordinary[k] &= narrow::are_finite(isa, minus_mean_g[k].value());
        }
    }
    if width == 2 {
        for k in 0..TOGETHER {
            let share = found.epsilon_share(k);
            for column in columns.clone() {
                let centred = (g[k][column] + minus_mean_g[k]).times_any(share);
                dx[k][column] = scaled::<T, I>(centred.times_any(found.rstd[k]), factor[k]);
            }
        }
        return are_ordinary;
    }
    for column in columns {
        for k in 0..TOGETHER {
            let centred = g[k][column] + minus_mean_g[k] - xhat[k][column] * mean_product[k];
            dx[k][column] = scaled::<T, I>(centred.times_any(found.rstd[k]), factor[k]);
        }
    }
    are_ordinary
}

/// Values of dx, taken times powers of two where they were scaled.
#[inline(always)]
fn scaled<T: Element, I: Isa>(dx: Column<T, I>, factor: I::F64) -> I::F64 {
    if T::HAS_WIDE_RANGE { dx.value() * factor } else { dx.value() }
}
