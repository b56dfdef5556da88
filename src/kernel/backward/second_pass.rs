//! The second pass over a block: tiles of columns, all rows of the block to a tile.

use super::{Row, Targets};
use crate::Element;
use crate::kernel::forward::Parameters;
use crate::simd::{Isa, Lanes};

/// 64-byte chunks in a tile of columns: with dgamma and dbeta, half of the registers of AVX2.
const TILE: usize = 4;

/// What the pass does with dx.
const NO_DX: u8 = 0;
const OVERWRITE_DX: u8 = 1;
const ACCUMULATE_DX: u8 = 2;

/// The second pass over ordinary rows that follow each other.
#[inline(always)]
pub(super) fn second_pass<T: Element, I: Isa>(
    isa: I,
    rows: &[Row<T>],
    parameters: &Parameters<'_, T>,
    x: &[T],
    dy: &[T],
    targets: Targets<'_, T>,
    stream: bool,
) {
    let (has_gamma, has_sums) = (parameters.gamma.is_some(), targets.sums.is_some());
    let accumulate = targets.dx.as_ref().map(|(_, accumulate)| *accumulate);
    let dx = targets.dx.map_or(&mut [][..], |(dx, _)| dx);
    let (dgamma, dbeta) = targets.sums.unwrap_or((&mut [], &mut []));
    let (gamma, width) = (parameters.gamma.unwrap_or(&[]), parameters.width);
    macro_rules! pass {
        ($gamma:literal, $dx:expr, $sums:literal) => {
            SecondPass::<T, I, $gamma, { $dx }, $sums> { isa, rows, width, x, dy, dx, gamma, dgamma, dbeta, stream }
                .tiles()
        };
    }
    match (has_gamma, accumulate, has_sums) {
        (_, None, false) => {}
        // Without dx, gamma does not matter.
        (_, None, true) => pass!(false, NO_DX, true),
        (false, Some(false), false) => pass!(false, OVERWRITE_DX, false),
        (false, Some(false), true) => pass!(false, OVERWRITE_DX, true),
        (false, Some(true), false) => pass!(false, ACCUMULATE_DX, false),
        (false, Some(true), true) => pass!(false, ACCUMULATE_DX, true),
        (true, Some(false), false) => pass!(true, OVERWRITE_DX, false),
        (true, Some(false), true) => pass!(true, OVERWRITE_DX, true),
        (true, Some(true), false) => pass!(true, ACCUMULATE_DX, false),
        (true, Some(true), true) => pass!(true, ACCUMULATE_DX, true),
    }
}

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
            column = crate::kernel::misaligned(self.dx).min(self.width);
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
