//! The first pass over a block: three sums of each row.

use super::{BLOCK, Row};
use crate::Element;
use crate::kernel::careful;
use crate::kernel::stats::CompensatedSum;
use crate::simd::{Isa, Lanes};

/// Accumulators for each of the three sums of a row: three times two chains hide the latency of an addition.
const ACCUMULATORS: usize = 2;
/// Pairs of chunks after which the accumulators are emptied into a total: see `stats`.
const RUN: usize = 16;

/// The sums of the rows of a block, and what the second pass makes of them.
///
/// The rows go together so that one finds work to do while the sums of another are finished.
#[inline(always)]
pub(super) fn first_pass<T: Element, I: Isa, const GAMMA: bool>(
    isa: I,
    x: &[T],
    dy: &[T],
    gamma: &[T],
    mean: &[T],
    rstd: &[T],
) -> [Row<T>; BLOCK] {
    let rows = mean.len().min(BLOCK);
    let width = x.len() / rows.max(1);
    let segment = crate::kernel::segment::<T>();
    let [sum_g, sum_h, sum_product] = if width <= segment {
        segment_sums::<T, I, GAMMA>(isa, x, dy, gamma, mean, rstd, 0..width)
    } else {
        let mut sums = [[CompensatedSum::default(); BLOCK]; 3];
        for start in (0..width).step_by(segment) {
            let columns = start..width.min(start + segment);
            let parts = segment_sums::<T, I, GAMMA>(isa, x, dy, gamma, mean, rstd, columns);
            for (sum, part) in sums.as_flattened_mut().iter_mut().zip(parts.as_flattened()) {
                sum.add(*part);
            }
        }
        sums.map(|sums| sums.map(CompensatedSum::value))
    };
    let per_element = 1.0 / width as f64;
    let mut found = [Row::default(); BLOCK];
    for row in 0..rows {
        let correction = sum_h[row] * per_element;
        let product = sum_product[row] - correction * sum_g[row];
        let size = T::from_f64(product.abs() + sum_g[row].abs()).to_f64();
        // Sums as small as that are looked at: they may be of gradients that are all but 0, or cancel.
        let dy = &dy[row * width..][..width];
        let is_small = size < 1e-18 && careful::is_tiny(dy, if GAMMA { Some(gamma) } else { None });
        found[row] = Row {
            mean: mean[row],
            rstd: rstd[row],
            correction: T::from_f64(correction),
            minus_mean_g: T::from_f64(-sum_g[row] * per_element),
            mean_product: T::from_f64(product * per_element),
            ordinary: careful::is_ordinary_rstd(rstd[row]) && size.is_finite() && !is_small,
        };
    }
    found
}

/// `sum(g)`, `sum(h)` and `sum(g * h)` of the rows of a block over some columns, a segment at most.
#[inline(always)]
fn segment_sums<T: Element, I: Isa, const GAMMA: bool>(
    isa: I,
    x: &[T],
    dy: &[T],
    gamma: &[T],
    mean: &[T],
    rstd: &[T],
    columns: std::ops::Range<usize>,
) -> [[f64; BLOCK]; 3] {
    let rows = mean.len().min(BLOCK);
    let width = x.len() / rows.max(1);
    let gamma = if GAMMA { &gamma[columns.clone()] } else { gamma };
    let zero = T::Lanes::splat(isa, T::ZERO);
    let [mut sum_g, mut sum_h, mut product] = [[zero; BLOCK]; 3];
    for row in 0..rows {
        let span = row * width + columns.start..row * width + columns.end;
        let found = row_sums::<T, I, GAMMA>(isa, &x[span.clone()], &dy[span], gamma, mean[row], rstd[row]);
        (sum_g[row], sum_h[row], product[row]) = (found.g, found.h, found.product);
    }
    [T::Lanes::sums(&sum_g), T::Lanes::sums(&sum_h), T::Lanes::sums(&product)]
}

/// `sum(g)`, `sum(h)` and `sum(g * h)`, lane by lane.
#[derive(Clone, Copy)]
struct RowSums<L> {
    g: L,
    h: L,
    product: L,
}

impl<L: std::ops::Add<Output = L>> std::ops::Add for RowSums<L> {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self { g: self.g + other.g, h: self.h + other.h, product: self.product + other.product }
    }
}

impl<L> RowSums<L> {
    #[inline(always)]
    fn plus<T: Element, I: Isa>(self, g: L, h: L) -> Self
    where
        L: Lanes<T, I>,
    {
        Self { g: self.g + g, h: self.h + h, product: g.mul_add(h, self.product) }
    }
}

/// `sum(g)`, `sum(h)` and `sum(g * h)` over a segment.
#[inline(always)]
fn row_sums<T: Element, I: Isa, const GAMMA: bool>(
    isa: I,
    x: &[T],
    dy: &[T],
    gamma: &[T],
    mean: T,
    rstd: T,
) -> RowSums<T::Lanes<I>> {
    let (mean, rstd) = (T::Lanes::splat(isa, mean), T::Lanes::splat(isa, rstd));
    let zero = T::Lanes::splat(isa, T::ZERO);
    let none = RowSums { g: zero, h: zero, product: zero };
    let mut total = none;
    let (x, x_tail) = T::chunks(x);
    let (dy, dy_tail) = T::chunks(dy);
    let (gamma, gamma_tail) = T::chunks(gamma);
    let dy = &dy[..x.len()];
    let gamma = if GAMMA { &gamma[..x.len()] } else { gamma };
    let mut first = 0;
    while first < x.len() {
        let end = x.len().min(first + RUN * ACCUMULATORS);
        let mut sums = [none; ACCUMULATORS];
        for pair in 0..(end - first).div_ceil(ACCUMULATORS) {
            for (i, sums) in sums.iter_mut().enumerate() {
                let chunk = first + pair * ACCUMULATORS + i;
                if chunk < end {
                    let h = (T::Lanes::load(isa, &x[chunk]) - mean) * rstd;
                    let mut g = T::Lanes::load(isa, &dy[chunk]);
                    if GAMMA {
                        g = g * T::Lanes::load(isa, &gamma[chunk]);
                    }
                    *sums = sums.plus(g, h);
                }
            }
        }
        total = total + (sums[0] + sums[1]);
        first = end;
    }
    if !x_tail.is_empty() {
        let h = (T::Lanes::load_tail(isa, x_tail, mean) - mean) * rstd;
        let mut g = T::Lanes::load_tail(isa, dy_tail, zero);
        if GAMMA {
            g = g * T::Lanes::load_tail(isa, gamma_tail, zero);
        }
        total = total.plus(g, h);
    }
    total
}
