//! Backward over rows narrower than a register: [`narrow`](crate::kernel::narrow).
//!
//! dgamma and dbeta of a group of [`GROUP`] rows are added up in each lane, row `i` in lane `i mod 8`, and then the upper half
//! of the lanes is added to the lower half until one is left: 16 and 3 additions, each in arithmetic of twice the digits.

use super::careful_rows::{add_sums, careful_row};
use super::{Backward, GROUP};
use crate::Element;
use crate::kernel::careful::NARROW;
use crate::kernel::copy;
use crate::kernel::forward::Parameters;
use crate::kernel::forward::Place;
use crate::kernel::narrow::{self, Column, Columns, ROOM, SPAN, STAGED, Statistics};
use crate::kernel::stats::values;
use crate::kernel::wide::{self, Wide, power_of_two};
use crate::kernel::wide_lanes::WideLanes;
use crate::simd::{BATCH, Isa, Lanes};
use std::ops::Range;

/// `mean(g * xhat)` in `f64` that is smaller, and not 0, is left to the scalar code.
const LEAST_MEAN_PRODUCT: f64 = power_of_two(-300);

/// Memory for the columns of eight rows, and for sums.
#[derive(Debug)]
struct Scratch<T: Element, I: Isa> {
    x: Columns<I>,
    dy: Columns<I>,
    /// dy, scaled, then dx.
    dx: Columns<I>,
    last_rows: [T; SPAN],
    /// `x - mean`, then `xhat`.
    xhat: [Column<T, I>; NARROW],
    g: [Column<T, I>; NARROW],
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
    fn new<I: Isa>(columns: &Scratch<T, I>, width: usize) -> Self {
        let [mut dgamma, mut dbeta] = [[[T::Wide::new(0.0); NARROW]; BATCH]; 2];
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
    /// Eight rows at a time; those that are not ordinary, and the last, one at a time.
    #[inline(always)]
    pub(super) fn narrow_rows<I: Isa>(&mut self, isa: I) {
        let Parameters { width, epsilon, gamma, .. } = self.parameters;
        let are_ordinary = narrow::is_ordinary_epsilon::<T>(epsilon) && narrow::are_ordinary(gamma.unwrap_or(&[]));
        let gamma = Gamma::new(if are_ordinary { gamma } else { None });
        let zero = I::F64::splat(isa, 0.0);
        let zeros = [Column::<T, I>::new(isa, zero); NARROW];
        let [x, dy, dx] = [[zero; NARROW]; 3];
        let last_rows = [T::ZERO; SPAN];
        let mut scratch = Scratch { x, dy, dx, last_rows, xhat: zeros, g: zeros, dgamma: zeros, dbeta: zeros };
        let mut staged = [T::ZERO; ROOM];
        let streams = self.place == Place::Memory;
        for first in (0..self.mean.len()).step_by(GROUP) {
            let end = self.mean.len().min(first + GROUP);
            let mut sums = None;
            for start in (first..end).step_by(STAGED) {
                let stop = end.min(start + STAGED);
                for next in (start..stop).step_by(BATCH) {
                    let dx = &mut staged[(next - start) * width..];
                    // Sums that hold a row which is not ordinary are no longer ordinary themselves.
                    let is_batch = are_ordinary && next + BATCH <= stop && sums.is_none();
                    if !(is_batch && self.narrow_batch(isa, next, &gamma, &mut scratch, dx)) {
                        let sums = match &mut sums {
                            _ if self.sums.is_none() => None,
                            Some(sums) => Some(sums),
                            none => Some(none.insert(SumsOfLanes::new(&scratch, width))),
                        };
                        self.careful_rows(next..stop.min(next + BATCH), sums, dx);
                    }
                }
                let staged = &staged[..(stop - start) * width];
                match &mut self.dx {
                    Some((dx, true)) => copy::add_to(isa, staged, &mut dx[start * width..stop * width]),
                    Some((dx, false)) => copy::copy(isa, staged, &mut dx[start * width..stop * width], streams),
                    None => {}
                }
            }
            if let Some(target) = &mut self.sums {
                let sums = sums.unwrap_or_else(|| SumsOfLanes::new(&scratch, width));
                sums.add_into(target.of_group(width), width);
                target.close_group(isa);
                scratch.dgamma = zeros;
                scratch.dbeta = zeros;
            }
        }
        if streams {
            isa.fence();
        }
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

    /// Eight rows; `false` where one of them has to be left to the scalar code.
    #[inline(always)]
    fn narrow_batch<I: Isa>(
        &mut self,
        isa: I,
        first: usize,
        gamma: &Gamma,
        scratch: &mut Scratch<T, I>,
        staged: &mut [T],
    ) -> bool {
        let width = self.parameters.width;
        let span = first * width..(first + BATCH) * width;
        if !(narrow::are_ordinary(&self.x[span.clone()]) && narrow::are_ordinary(&self.dy[span])) {
            return false;
        }
        let Scratch { x, dy, dx, last_rows, xhat, g, dgamma, dbeta } = scratch;
        let (xhat, g) = (&mut xhat[..width], &mut g[..width]);
        narrow::read_columns(isa, self.x, first * width, width, last_rows, x);
        let Some(found) = Statistics::<T, I>::new(isa, x, self.parameters.epsilon, xhat) else {
            return false;
        };
        for xhat in xhat.iter_mut() {
            *xhat = *xhat * found.rstd;
        }
        narrow::read_columns(isa, self.dy, first * width, width, last_rows, dy);
        let dy = &dy[..width];
        if self.dx.is_some() {
            if !dx_of_batch(isa, dy, gamma, &found, xhat, g, &mut dx[..width]) {
                return false;
            }
            narrow::write_rows(isa, dx, width, staged);
        }
        if self.sums.is_some() {
            let (dgamma, dbeta) = (&mut dgamma[..width], &mut dbeta[..width]);
            for column in 0..width {
                dgamma[column] = dgamma[column] + xhat[column].times(dy[column]);
                dbeta[column] = dbeta[column].plus(dy[column]);
            }
        }
        true
    }
}

/// dx of eight rows; `false` where one of them has to be left to the scalar code.
#[inline(always)]
fn dx_of_batch<T: Element, I: Isa>(
    isa: I,
    dy: &[I::F64],
    gamma: &Gamma,
    found: &Statistics<T, I>,
    xhat: &[Column<T, I>],
    g: &mut [Column<T, I>],
    dx: &mut [I::F64],
) -> bool {
    let width = xhat.len();
    let gammas = &gamma.scaled[..width];
    let zero = I::F64::splat(isa, 0.0);
    let mut exponents = [0; BATCH];
    if T::HAS_WIDE_RANGE {
        let mut largest = [0.0; BATCH];
        for dy in dy {
            largest = narrow::larger::<I>(largest, *dy);
        }
        exponents = narrow::exponents(largest);
        let mut negative = exponents;
        for i in 0..BATCH {
            negative[i] = -exponents[i];
        }
        let factor = narrow::powers(isa, negative);
        for column in 0..width {
            dx[column] = dy[column] * factor;
        }
    } else {
        dx.copy_from_slice(dy);
    }
    let [mut sum, mut product] = [Column::<T, I>::new(isa, zero); 2];
    if gamma.is_there {
        for column in 0..width {
            g[column] = Column::<T, I>::product(isa, dx[column], I::F64::splat(isa, gammas[column]));
            sum = sum + g[column];
            product = product + g[column] * xhat[column];
        }
    } else {
        for column in 0..width {
            g[column] = Column::<T, I>::new(isa, dx[column]);
            sum = sum.plus(dx[column]);
            product = product + xhat[column].times(dx[column]);
        }
    }
    let minus_mean_g = sum.divided(width as f64).negative();
    let mean_product = product.divided(width as f64);
    let mut ordinary = true;
    if T::HAS_WIDE_RANGE {
        for value in values(mean_product.value()) {
            ordinary &= (value == 0.0) | (value.abs() >= LEAST_MEAN_PRODUCT);
        }
    } else {
        // Neither dy nor gamma is infinite or NaN.
        for value in values(minus_mean_g.value()) {
            ordinary &= value.is_finite();
        }
    }
    if !ordinary {
        return false;
    }
    for i in 0..BATCH {
        exponents[i] += gamma.exponent - found.spread[i];
    }
    let factor = narrow::powers(isa, exponents);
    if width == 2 {
        let share = found.epsilon_share();
        for column in 0..width {
            let centred = (g[column] + minus_mean_g).times_any(share);
            dx[column] = scaled::<T, I>(centred.times_any(found.rstd), factor);
        }
        return true;
    }
    for column in 0..width {
        let centred = if gamma.is_there { g[column] + minus_mean_g } else { minus_mean_g.plus(dx[column]) };
        let centred = centred - xhat[column] * mean_product;
        dx[column] = scaled::<T, I>(centred.times_any(found.rstd), factor);
    }
    true
}

/// Values of dx, taken times powers of two where they were scaled.
#[inline(always)]
fn scaled<T: Element, I: Isa>(dx: Column<T, I>, factor: I::F64) -> I::F64 {
    if T::HAS_WIDE_RANGE { dx.value() * factor } else { dx.value() }
}
