//! Backward: dx, dgamma and dbeta.
//!
//! With `g = dy * gamma`, `h = (x - mean) * rstd` and means over the row,
//!
//! ```text
//! xhat   = h - mean(h)                        what the rounding of the mean left is taken off again
//! dx     = rstd * (g - mean(g) - xhat * mean(g * xhat))
//! dgamma = sum over rows of dy * xhat
//! dbeta  = sum over rows of dy
//! ```
//!
//! (Ba, Kiros and Hinton, "Layer Normalization", 2016; derived step by step in [`reference`](mod@crate::reference).)
//! The saved mean is rounded to the element type. `mean(h)` recovers what that took away, from sums that the
//! first pass takes anyway; so backward sees the same corrected mean as forward, and a mean that another
//! library computed less well does no harm.
//!
//! Rows come in blocks of at most [`BLOCK`]. The first pass over a block takes the three sums of each row. The
//! second goes over the block in tiles of columns, all rows of the block to a tile, so that a tile's dgamma and
//! dbeta stay in registers from the first row to the last, and x and dy are found in cache.

use super::careful::{self, CarefulRow};
use super::forward::Parameters;
use super::stats::CompensatedSum;
use super::wide::Wide;
use crate::Element;
use crate::simd::{BATCH, Isa, Kernel, Lanes};

/// Rows that go together through the second pass.
pub(crate) const BLOCK: usize = BATCH;
/// 64-byte chunks in a tile of columns: with dgamma and dbeta, half of the registers of AVX2.
const TILE: usize = 4;
/// Accumulators for each of the three sums of a row: three times two chains hide the latency of an addition.
const ACCUMULATORS: usize = 2;
/// Pairs of chunks after which the accumulators are emptied into a total: see `stats`.
const RUN: usize = 16;

/// Backward over a block of rows.
#[derive(Debug)]
pub(crate) struct Backward<'a, T> {
    pub(crate) parameters: Parameters<'a, T>,
    /// `rows * width` elements.
    pub(crate) x: &'a [T],
    /// As many.
    pub(crate) dy: &'a [T],
    /// Of each row.
    pub(crate) mean: &'a [T],
    /// Of each row.
    pub(crate) rstd: &'a [T],
    /// As many as x, where it is wanted, and whether to add to it.
    pub(crate) dx: Option<(&'a mut [T], bool)>,
    /// `width` elements of dgamma and of dbeta, which are added to, where either is wanted.
    pub(crate) sums: Option<(&'a mut [T], &'a mut [T])>,
    /// Whether to write dx past the caches.
    pub(crate) stream: bool,
}

/// What the second pass needs of a row.
#[derive(Clone, Copy, Debug, Default)]
struct Row<T> {
    mean: T,
    rstd: T,
    /// `mean(h)`.
    correction: T,
    /// `-mean(g)`.
    minus_mean_g: T,
    /// `mean(g * xhat)`.
    mean_product: T,
    /// Whether all of them are free of overflow and underflow.
    ordinary: bool,
}

/// What the second pass does with dx.
const NO_DX: u8 = 0;
const OVERWRITE_DX: u8 = 1;
const ACCUMULATE_DX: u8 = 2;

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.parameters.gamma {
            Some(gamma) => self.with_gamma::<I, true>(isa, gamma),
            None => self.with_gamma::<I, false>(isa, &[]),
        }
    }
}

impl<T: Element> Backward<'_, T> {
    #[inline(always)]
    fn with_gamma<I: Isa, const GAMMA: bool>(self, isa: I, gamma: &[T]) {
        match (&self.dx, &self.sums) {
            (None, None) => {}
            (None, Some(_)) => self.blocks::<I, GAMMA, NO_DX, true>(isa, gamma),
            (Some((_, false)), None) => self.blocks::<I, GAMMA, OVERWRITE_DX, false>(isa, gamma),
            (Some((_, false)), Some(_)) => self.blocks::<I, GAMMA, OVERWRITE_DX, true>(isa, gamma),
            (Some((_, true)), None) => self.blocks::<I, GAMMA, ACCUMULATE_DX, false>(isa, gamma),
            (Some((_, true)), Some(_)) => self.blocks::<I, GAMMA, ACCUMULATE_DX, true>(isa, gamma),
        }
    }

    #[inline(always)]
    fn blocks<I: Isa, const GAMMA: bool, const DX: u8, const SUMS: bool>(self, isa: I, gamma: &[T]) {
        let Self { parameters, x, dy, mean, rstd, dx, sums, stream } = self;
        let width = parameters.width;
        let dx = dx.map_or(&mut [][..], |(dx, _)| dx);
        let (dgamma, dbeta) = sums.unwrap_or((&mut [], &mut []));
        let count = mean.len();
        if width < careful::NARROW {
            return narrow_rows::<T, DX, SUMS>(&parameters, x, dy, dx, dgamma, dbeta);
        }
        let mut first = 0;
        while first < count {
            let rows = BLOCK.min(count - first);
            let span = first * width..(first + rows) * width;
            let (block_mean, block_rstd) = (&mean[first..first + rows], &rstd[first..first + rows]);
            let found = first_pass::<T, I, GAMMA>(isa, &x[span.clone()], &dy[span], gamma, block_mean, block_rstd);
            // Ordinary rows that follow each other go together, so that sums are added in the order of the rows.
            let mut start = 0;
            while start < rows {
                let span = |rows: std::ops::Range<usize>| (first + rows.start) * width..(first + rows.end) * width;
                if !found[start].ordinary {
                    let span = span(start..start + 1);
                    let dx = if DX == NO_DX { &mut [][..] } else { &mut dx[span.clone()] };
                    rescued_row::<T, DX, SUMS>(&parameters, &x[span.clone()], &dy[span], dx, dgamma, dbeta);
                    start += 1;
                    continue;
                }
                let mut end = start + 1;
                while end < rows && found[end].ordinary {
                    end += 1;
                }
                let span = span(start..end);
                let dx = if DX == NO_DX { &mut [][..] } else { &mut dx[span.clone()] };
                let rows = &found[start..end];
                SecondPass::<T, I, GAMMA, DX, SUMS> {
                    isa,
                    rows,
                    width,
                    x: &x[span.clone()],
                    dy: &dy[span],
                    dx,
                    gamma,
                    dgamma,
                    dbeta,
                    stream,
                }
                .tiles();
                start = end;
            }
            first += rows;
        }
        if stream {
            isa.fence();
        }
    }
}

/// The sums of the rows of a block, and what the second pass makes of them.
///
/// The rows go together so that one finds work to do while the sums of another are finished.
#[inline(always)]
fn first_pass<T: Element, I: Isa, const GAMMA: bool>(
    isa: I,
    x: &[T],
    dy: &[T],
    gamma: &[T],
    mean: &[T],
    rstd: &[T],
) -> [Row<T>; BLOCK] {
    let rows = mean.len().min(BLOCK);
    let width = x.len() / rows.max(1);
    let segment = super::segment::<T>();
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
    [T::Lanes::sums(sum_g), T::Lanes::sums(sum_h), T::Lanes::sums(product)]
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

/// The second pass over ordinary rows that follow each other.
struct SecondPass<'a, T: Element, I: Isa, const GAMMA: bool, const DX: u8, const SUMS: bool> {
    isa: I,
    rows: &'a [Row<T>],
    width: usize,
    x: &'a [T],
    dy: &'a [T],
    dx: &'a mut [T],
    gamma: &'a [T],
    dgamma: &'a mut [T],
    dbeta: &'a mut [T],
    stream: bool,
}

impl<T: Element, I: Isa, const GAMMA: bool, const DX: u8, const SUMS: bool> SecondPass<'_, T, I, GAMMA, DX, SUMS> {
    #[inline(always)]
    fn tiles(mut self) {
        let mut column = 0;
        if DX != NO_DX && self.stream {
            column = super::misaligned(self.dx).min(self.width);
            self.narrow(0, column);
        }
        while column + TILE * T::LANES <= self.width {
            self.tile::<TILE>(column);
            column += TILE * T::LANES;
        }
        while column + T::LANES <= self.width {
            self.tile::<1>(column);
            column += T::LANES;
        }
        self.narrow(column, self.width - column);
    }

    /// `CHUNKS` whole chunks of columns.
    #[inline(always)]
    fn tile<const CHUNKS: usize>(&mut self, column: usize) {
        let isa = self.isa;
        let end = column + CHUNKS * T::LANES;
        let zero = T::Lanes::splat(isa, T::ZERO);
        let mut gamma = [zero; CHUNKS];
        let mut dgamma = [zero; CHUNKS];
        let mut dbeta = [zero; CHUNKS];
        if GAMMA {
            let chunks = chunks::<T, CHUNKS>(&self.gamma[column..end]);
            for i in 0..CHUNKS {
                gamma[i] = T::Lanes::load(isa, &chunks[i]);
            }
        }
        for (r, row) in self.rows.iter().enumerate() {
            let row = Registers::new(isa, row);
            let span = r * self.width + column..r * self.width + end;
            let x = chunks::<T, CHUNKS>(&self.x[span.clone()]);
            let dy = chunks::<T, CHUNKS>(&self.dy[span.clone()]);
            for i in 0..CHUNKS {
                let dy = T::Lanes::load(isa, &dy[i]);
                let xhat = row.xhat(T::Lanes::load(isa, &x[i]));
                if SUMS {
                    dgamma[i] = dy.mul_add(xhat, dgamma[i]);
                    dbeta[i] = dbeta[i] + dy;
                }
                if DX != NO_DX {
                    let dx = &mut chunks_mut::<T, CHUNKS>(&mut self.dx[span.clone()])[i];
                    let mut value = row.dx(if GAMMA { Some(gamma[i]) } else { None }, dy, xhat);
                    if DX == ACCUMULATE_DX {
                        value = value + T::Lanes::load(isa, dx);
                    }
                    if self.stream { value.stream(dx) } else { value.store(dx) }
                }
            }
        }
        if SUMS {
            let (a, b) = (&mut self.dgamma[column..end], &mut self.dbeta[column..end]);
            let (a, b) = (chunks_mut::<T, CHUNKS>(a), chunks_mut::<T, CHUNKS>(b));
            for i in 0..CHUNKS {
                (T::Lanes::load(isa, &a[i]) + dgamma[i]).store(&mut a[i]);
                (T::Lanes::load(isa, &b[i]) + dbeta[i]).store(&mut b[i]);
            }
        }
    }

    /// Fewer columns than a register has lanes.
    #[inline(always)]
    fn narrow(&mut self, column: usize, columns: usize) {
        if columns == 0 {
            return;
        }
        let isa = self.isa;
        let end = column + columns;
        let zero = T::Lanes::splat(isa, T::ZERO);
        let load = |values: &[T]| T::Lanes::load_tail(isa, values, zero);
        let gamma = if GAMMA { load(&self.gamma[column..end]) } else { zero };
        let (mut dgamma, mut dbeta) = (zero, zero);
        for (r, row) in self.rows.iter().enumerate() {
            let row = Registers::new(isa, row);
            let span = r * self.width + column..r * self.width + end;
            let dy = load(&self.dy[span.clone()]);
            let xhat = row.xhat(load(&self.x[span.clone()]));
            if SUMS {
                dgamma = dy.mul_add(xhat, dgamma);
                dbeta = dbeta + dy;
            }
            if DX != NO_DX {
                let dx = &mut self.dx[span];
                let mut value = row.dx(if GAMMA { Some(gamma) } else { None }, dy, xhat);
                if DX == ACCUMULATE_DX {
                    value = value + load(dx);
                }
                value.store_tail(dx);
            }
        }
        if SUMS {
            (load(&self.dgamma[column..end]) + dgamma).store_tail(&mut self.dgamma[column..end]);
            (load(&self.dbeta[column..end]) + dbeta).store_tail(&mut self.dbeta[column..end]);
        }
    }
}

/// A row's coefficients in every lane.
struct Registers<L> {
    mean: L,
    rstd: L,
    correction: L,
    minus_mean_g: L,
    mean_product: L,
}

impl<L> Registers<L> {
    #[inline(always)]
    fn new<T: Element, I: Isa>(isa: I, row: &Row<T>) -> Self
    where
        L: Lanes<T, I>,
    {
        Self {
            mean: L::splat(isa, row.mean),
            rstd: L::splat(isa, row.rstd),
            correction: L::splat(isa, row.correction),
            minus_mean_g: L::splat(isa, row.minus_mean_g),
            mean_product: L::splat(isa, row.mean_product),
        }
    }

    #[inline(always)]
    fn xhat<T: Element, I: Isa>(&self, x: L) -> L
    where
        L: Lanes<T, I>,
    {
        (x - self.mean) * self.rstd - self.correction
    }

    #[inline(always)]
    fn dx<T: Element, I: Isa>(&self, gamma: Option<L>, dy: L, xhat: L) -> L
    where
        L: Lanes<T, I>,
    {
        // `g - mean(g)` in one rounding: it is where most of the digits go.
        let centred = match gamma {
            Some(gamma) => dy.mul_add(gamma, self.minus_mean_g),
            None => dy + self.minus_mean_g,
        };
        xhat.neg_mul_add(self.mean_product, centred) * self.rstd
    }
}

/// A slice of exactly so many chunks.
#[inline(always)]
fn chunks<T: Element, const CHUNKS: usize>(slice: &[T]) -> &[T::Chunk; CHUNKS] {
    T::chunks(slice).0.first_chunk().expect("the caller cut as many columns as CHUNKS chunks have")
}

/// A mutable slice of exactly so many chunks.
#[inline(always)]
fn chunks_mut<T: Element, const CHUNKS: usize>(slice: &mut [T]) -> &mut [T::Chunk; CHUNKS] {
    T::chunks_mut(slice).0.first_chunk_mut().expect("the caller cut as many columns as CHUNKS chunks have")
}

/// Rows narrower than a register, each computed with care.
#[inline(always)]
fn narrow_rows<T: Element, const DX: u8, const SUMS: bool>(
    parameters: &Parameters<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    dgamma: &mut [T],
    dbeta: &mut [T],
) {
    let width = parameters.width;
    let mut sums = [[T::Wide::new(0.0); careful::NARROW]; 2];
    for (row, (x, dy)) in x.chunks_exact(width).zip(dy.chunks_exact(width)).enumerate() {
        let dx = if DX == NO_DX { &mut [][..] } else { &mut dx[row * width..(row + 1) * width] };
        careful_row::<T, DX, SUMS>(parameters, x, dy, dx, &mut sums);
    }
    if SUMS {
        add_wide(dgamma, &sums[0]);
        add_wide(dbeta, &sums[1]);
    }
}

/// One row outside the ordinary range, of any width.
#[inline(never)]
fn rescued_row<T: Element, const DX: u8, const SUMS: bool>(
    parameters: &Parameters<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    dgamma: &mut [T],
    dbeta: &mut [T],
) {
    let mut sums = [vec![], vec![]];
    if SUMS {
        sums = [(); 2].map(|()| vec![T::Wide::new(0.0); x.len()]);
    }
    let [dgamma_row, dbeta_row] = &mut sums;
    careful_row::<T, DX, SUMS>(parameters, x, dy, dx, &mut [dgamma_row, dbeta_row]);
    if SUMS {
        add_wide(dgamma, &sums[0]);
        add_wide(dbeta, &sums[1]);
    }
}

/// One row: its dx, and its part of dgamma and dbeta, which is added to `sums`.
#[inline(always)]
fn careful_row<T: Element, const DX: u8, const SUMS: bool>(
    parameters: &Parameters<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    sums: &mut [impl AsMut<[T::Wide]>; 2],
) {
    let nan = T::from_f64(f64::NAN);
    let row = CarefulRow::new(x, parameters.epsilon);
    if SUMS {
        let [dgamma, dbeta] = sums;
        for (column, (dy, sum)) in dy.iter().zip(dgamma.as_mut()).enumerate() {
            let xhat = row.as_ref().map_or(T::Wide::new(f64::NAN), |row| row.xhat(column));
            *sum = *sum + xhat * T::Wide::new(dy.to_f64());
        }
        for (dy, sum) in dy.iter().zip(dbeta.as_mut()) {
            *sum = *sum + T::Wide::new(dy.to_f64());
        }
    }
    if DX == NO_DX {
        return;
    }
    let found = row.as_ref().and_then(|row| row.dx(dy, parameters.gamma));
    for (column, dx) in dx.iter_mut().enumerate() {
        let value = found.map_or(nan, |found| found.value(column));
        *dx = if DX == ACCUMULATE_DX { T::from_f64(dx.to_f64() + value.to_f64()) } else { value };
    }
}

/// `total += part`, element by element.
#[inline(always)]
fn add_wide<T: Element>(total: &mut [T], part: &[T::Wide]) {
    for (total, part) in total.iter_mut().zip(part) {
        *total = T::from_f64((T::Wide::new(total.to_f64()) + *part).value());
    }
}
