//! Backward over rows narrower than a register: [`narrow`](crate::kernel::narrow).
//!
//! dgamma and dbeta of a group of [`GROUP`] rows are added up in each lane, row `i` in lane `i mod 8`, and then the upper half
//! of the lanes is added to the lower half until one is left: 16 and 3 additions, each in arithmetic of twice the digits.

use super::careful_rows::{add_sums, careful_row};
use super::{Backward, GROUP};
use crate::Element;
use crate::kernel::careful::NARROW;
use crate::kernel::forward::Parameters;
use crate::kernel::narrow::{self, Column, Results, Statistics};
use crate::kernel::stats::values;
use crate::kernel::wide::{self, Wide, power_of_two};
use crate::kernel::wide_lanes::WideLanes;
use crate::simd::{BATCH, Isa, Lanes};
use std::ops::Range;

/// `mean(g * xhat)` in `f64` that is smaller, and not 0, is left to the scalar code.
const LEAST_MEAN_PRODUCT: f64 = power_of_two(-300);

/// Memory for the columns of eight rows.
#[derive(Debug)]
struct Columns<T: Element, I: Isa> {
    /// `x - mean`, then `xhat`.
    xhat: [Column<T, I>; NARROW],
    g: [Column<T, I>; NARROW],
    dgamma: [Column<T, I>; NARROW],
    dbeta: [Column<T, I>; NARROW],
    dx: Results<T>,
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
    fn new<I: Isa>(columns: &Columns<T, I>, width: usize) -> Self {
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
        let zeros = [Column::<T, I>::new(isa, I::F64::splat(isa, 0.0)); NARROW];
        let mut columns =
            Columns { xhat: zeros, g: zeros, dgamma: zeros, dbeta: zeros, dx: [[T::ZERO; BATCH]; NARROW] };
        for first in (0..self.mean.len()).step_by(GROUP) {
            let end = self.mean.len().min(first + GROUP);
            let mut sums = None;
            for next in (first..end).step_by(BATCH) {
                // Sums that hold a row which is not ordinary are no longer ordinary themselves.
                let is_batch = are_ordinary && next + BATCH <= end && sums.is_none();
                if !(is_batch && self.narrow_batch(isa, next, &gamma, &mut columns)) {
                    let sums = match &mut sums {
                        _ if self.sums.is_none() => None,
                        Some(sums) => Some(sums),
                        none => Some(none.insert(SumsOfLanes::new(&columns, width))),
                    };
                    self.careful_rows(next..end.min(next + BATCH), sums);
                }
            }
            if let Some(target) = &mut self.sums {
                let sums = sums.unwrap_or_else(|| SumsOfLanes::new(&columns, width));
                sums.add_into(target.of_group(width), width);
                target.close_group(isa);
                columns.dgamma = zeros;
                columns.dbeta = zeros;
            }
        }
    }

    /// At most eight rows, one at a time.
    #[inline(never)]
    fn careful_rows(&mut self, rows: Range<usize>, mut sums: Option<&mut SumsOfLanes<T>>) {
        let width = self.parameters.width;
        for (i, row) in rows.enumerate() {
            let span = row * width..(row + 1) * width;
            let dx = self.dx.as_mut().map(|(dx, accumulate)| (&mut dx[span.clone()], *accumulate));
            let sums = sums.as_mut().map(|sums| (&mut sums.dgamma[i][..width], &mut sums.dbeta[i][..width]));
            careful_row(&self.parameters, &self.x[span.clone()], &self.dy[span], dx, sums);
        }
    }

    /// Eight rows; `false` where one of them has to be left to the scalar code, and nothing was written.
    #[inline(always)]
    fn narrow_batch<I: Isa>(&mut self, isa: I, first: usize, gamma: &Gamma, columns: &mut Columns<T, I>) -> bool {
        let width = self.parameters.width;
        let span = first * width..(first + BATCH) * width;
        let dy = &self.dy[span.clone()];
        let xhat = &mut columns.xhat[..width];
        if !narrow::are_ordinary(dy) {
            return false;
        }
        let Some(found) = Statistics::<T, I>::new(isa, &self.x[span.clone()], self.parameters.epsilon, xhat) else {
            return false;
        };
        for xhat in xhat.iter_mut() {
            *xhat = *xhat * found.rstd;
        }
        let rows = narrow::rows_of(dy, width);
        if let Some((dx, accumulate)) = &mut self.dx {
            let results = &mut columns.dx[..width];
            if !dx_of_batch(isa, &rows, gamma, &found, xhat, &mut columns.g[..width], results) {
                return false;
            }
            for (i, dx) in dx[span].chunks_exact_mut(width).enumerate() {
                if *accumulate {
                    for (dx, result) in dx.iter_mut().zip(&*results) {
                        *dx = T::from_f64(dx.to_f64() + result[i].to_f64());
                    }
                } else {
                    for (dx, result) in dx.iter_mut().zip(&*results) {
                        *dx = result[i];
                    }
                }
            }
        }
        if self.sums.is_some() {
            let (dgamma, dbeta) = (&mut columns.dgamma[..width], &mut columns.dbeta[..width]);
            for column in 0..width {
                let dy = narrow::column_of(isa, &rows, column);
                dgamma[column] = dgamma[column] + xhat[column].times(dy);
                dbeta[column] = dbeta[column].plus(dy);
            }
        }
        true
    }
}

/// dx of eight rows; `false` where one of them has to be left to the scalar code.
#[inline(always)]
fn dx_of_batch<T: Element, I: Isa>(
    isa: I,
    dy: &[&[T]; BATCH],
    gamma: &Gamma,
    found: &Statistics<T, I>,
    xhat: &[Column<T, I>],
    g: &mut [Column<T, I>],
    dx: &mut [[T; BATCH]],
) -> bool {
    let width = xhat.len();
    let gammas = &gamma.scaled[..width];
    let zero = I::F64::splat(isa, 0.0);
    // dy, scaled, and then g in its place.
    for column in 0..width {
        g[column] = Column::<T, I>::new(isa, narrow::column_of(isa, dy, column));
    }
    let mut exponents = [0; BATCH];
    if T::HAS_WIDE_RANGE {
        let mut largest = [0.0; BATCH];
        for g in g.iter() {
            largest = narrow::larger::<I>(largest, g.value());
        }
        exponents = narrow::exponents(largest);
        let mut negative = exponents;
        for i in 0..BATCH {
            negative[i] = -exponents[i];
        }
        let factor = narrow::powers(isa, negative);
        for g in g.iter_mut() {
            *g = Column::<T, I>::new(isa, g.value() * factor);
        }
    }
    let [mut sum, mut product] = [Column::<T, I>::new(isa, zero); 2];
    if gamma.is_there {
        for column in 0..width {
            g[column] = Column::<T, I>::product(isa, g[column].value(), I::F64::splat(isa, gammas[column]));
            sum = sum + g[column];
            product = product + g[column] * xhat[column];
        }
    } else {
        for column in 0..width {
            let dy = g[column].value();
            sum = sum.plus(dy);
            product = product + xhat[column].times(dy);
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
            dx[column] = narrow::rounded::<T, I>(scaled::<T, I>(centred.times_any(found.rstd), factor));
        }
        return true;
    }
    for column in 0..width {
        let centred = if gamma.is_there { g[column] + minus_mean_g } else { minus_mean_g.plus(g[column].value()) };
        let centred = centred - xhat[column] * mean_product;
        dx[column] = narrow::rounded::<T, I>(scaled::<T, I>(centred.times_any(found.rstd), factor));
    }
    true
}

/// Values of dx, taken times powers of two where they were scaled.
#[inline(always)]
fn scaled<T: Element, I: Isa>(dx: Column<T, I>, factor: I::F64) -> I::F64 {
    if T::HAS_WIDE_RANGE { dx.value() * factor } else { dx.value() }
}
