//! Forward: `y = gamma * xhat + beta`, with the statistics of [`stats`](super::stats).
//!
//! A row is read three times: for its mean, for its variance, and to be normalized. It comes from memory the
//! first time only, the other two find it in cache. `y` is written once, past the caches where the caller
//! asks for that.

use super::careful::{self, CarefulRow};
use super::stats::{self, Segment};
use super::wide::Wide;
use crate::Element;
use crate::simd::{BATCH, Isa, Kernel, Lanes};

/// What forward needs besides x: the same for all rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameters<'a, T> {
    pub(crate) width: usize,
    /// `width` elements, or none for all ones.
    pub(crate) gamma: Option<&'a [T]>,
    /// `width` elements, or none for all zeros.
    pub(crate) beta: Option<&'a [T]>,
    pub(crate) epsilon: f64,
}

/// Forward over a block of rows.
#[derive(Debug)]
pub(crate) struct Forward<'a, T> {
    pub(crate) parameters: Parameters<'a, T>,
    /// `rows * width` elements.
    pub(crate) x: &'a [T],
    /// As many.
    pub(crate) y: &'a mut [T],
    /// The mean of each row, where it is wanted.
    pub(crate) mean: Option<&'a mut [T]>,
    /// `rstd` of each row, where it is wanted.
    pub(crate) rstd: Option<&'a mut [T]>,
    /// Whether to write y past the caches.
    pub(crate) stream: bool,
    /// Room for the moments of the segments of one row.
    pub(crate) segments: &'a mut Vec<Segment>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match (self.parameters.gamma, self.parameters.beta) {
            (Some(gamma), Some(beta)) => self.widths::<I, true, true>(isa, gamma, beta),
            (Some(gamma), None) => self.widths::<I, true, false>(isa, gamma, &[]),
            (None, Some(beta)) => self.widths::<I, false, true>(isa, &[], beta),
            (None, None) => self.widths::<I, false, false>(isa, &[], &[]),
        }
    }
}

/// Bytes of x in a batch of rows: with as many of y, what a first-level cache holds.
const BATCH_BYTES: usize = 24 << 10;

impl<T: Element> Forward<'_, T> {
    /// All rows; full batches of the commonest short widths by loops of known length.
    #[inline(always)]
    fn widths<I: Isa, const GAMMA: bool, const BETA: bool>(mut self, isa: I, gamma: &[T], beta: &[T]) {
        let width = self.parameters.width;
        let rows = self.x.len() / width;
        if width < careful::NARROW {
            return self.narrow_rows();
        }
        let full = rows / BATCH * BATCH;
        let first = match width / T::LANES {
            _ if self.stream || !width.is_multiple_of(T::LANES) => 0,
            4 => self.rows::<I, GAMMA, BETA, 4>(isa, gamma, beta, 0..full),
            8 => self.rows::<I, GAMMA, BETA, 8>(isa, gamma, beta, 0..full),
            16 => self.rows::<I, GAMMA, BETA, 16>(isa, gamma, beta, 0..full),
            _ => 0,
        };
        self.rows::<I, GAMMA, BETA, 0>(isa, gamma, beta, first..rows);
        if self.stream {
            isa.fence();
        }
    }

    #[inline(always)]
    fn narrow_rows(&mut self) {
        let width = self.parameters.width;
        for (row, (x, y)) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)).enumerate() {
            let (mean, rstd) = careful_row(&self.parameters, x, y);
            save(&mut self.mean, row, &[mean]);
            save(&mut self.rstd, row, &[rstd]);
        }
    }

    /// The rows of a range; gives its end. Where `CHUNKS` is not 0 they are full batches of rows of so many chunks.
    #[inline(always)]
    fn rows<I: Isa, const GAMMA: bool, const BETA: bool, const CHUNKS: usize>(
        &mut self,
        isa: I,
        gamma: &[T],
        beta: &[T],
        range: std::ops::Range<usize>,
    ) -> usize {
        let (_, width) = stats::known::<T, CHUNKS>(0, self.parameters.width);
        let is_long = CHUNKS == 0 && width > super::segment::<T>();
        let batch = if is_long { 1 } else { (BATCH_BYTES / (width * size_of::<T>())).clamp(1, BATCH) };
        for first in range.clone().step_by(batch) {
            let (rows, _) = stats::known::<T, CHUNKS>(batch.min(range.end - first), width);
            let (x, next) = self.x[first * width..].split_at(rows * width);
            let y = &mut self.y[first * width..][..rows * width];
            let found = if is_long {
                stats::long_row(isa, x, self.segments)
            } else {
                stats::short_rows::<T, I, CHUNKS>(isa, x, rows, width)
            };
            let (mut mean, mut rstd) = ([T::ZERO; BATCH], [T::ZERO; BATCH]);
            let mut ordinary = true;
            for row in 0..BATCH {
                let variance = found.variance[row] + self.parameters.epsilon;
                ordinary &= careful::is_ordinary::<T>(variance) || row >= rows;
                // `f64` rows have no wider type to finish in but a pair.
                let variance = T::Wide::new(found.variance[row]) + T::Wide::new(self.parameters.epsilon);
                rstd[row] = T::from_f64(variance.reciprocal_sqrt().value());
                mean[row] = T::from_f64(found.mean[row].to_f64() + found.correction[row]);
            }
            for row in 0..rows {
                let (x, y) = (&x[row * width..][..width], &mut y[row * width..][..width]);
                if ordinary || careful::is_ordinary::<T>(found.variance[row] + self.parameters.epsilon) {
                    let correction = T::from_f64(found.correction[row]);
                    let next = &next[(row * width).min(next.len())..];
                    let pass =
                        Normalize::<T, I, GAMMA, BETA>::new(isa, found.mean[row], correction, rstd[row], self.stream);
                    if CHUNKS > 0 { pass.cached(x, y, gamma, beta) } else { pass.row(x, y, gamma, beta, next) }
                } else {
                    (mean[row], rstd[row]) = rescued_row(&self.parameters, x, y);
                }
            }
            save(&mut self.mean, first, &mean[..rows]);
            save(&mut self.rstd, first, &rstd[..rows]);
        }
        range.end
    }
}

/// Writes the statistics of rows from `first` on, where they are wanted.
#[inline(always)]
fn save<T: Copy>(all: &mut Option<&mut [T]>, first: usize, values: &[T]) {
    if let Some(all) = all {
        all[first..first + values.len()].copy_from_slice(values);
    }
}

/// A row that is computed with care; its mean and `rstd`.
#[inline(always)]
fn careful_row<T: Element>(parameters: &Parameters<'_, T>, x: &[T], y: &mut [T]) -> (T, T) {
    match CarefulRow::new(x, parameters.epsilon) {
        Some(row) => {
            row.normalize(parameters.gamma, parameters.beta, y);
            (row.mean(), row.rstd())
        }
        None => {
            let nan = T::from_f64(f64::NAN);
            y.fill(nan);
            (nan, nan)
        }
    }
}

/// The same, away from the code of ordinary rows.
#[inline(never)]
fn rescued_row<T: Element>(parameters: &Parameters<'_, T>, x: &[T], y: &mut [T]) -> (T, T) {
    careful_row(parameters, x, y)
}

/// The last pass over a row: `((x - mean) - correction) * rstd * gamma + beta`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normalize<T: Element, I: Isa, const GAMMA: bool, const BETA: bool> {
    isa: I,
    mean: T::Lanes<I>,
    correction: T::Lanes<I>,
    rstd: T::Lanes<I>,
    stream: bool,
}

impl<T: Element, I: Isa, const GAMMA: bool, const BETA: bool> Normalize<T, I, GAMMA, BETA> {
    #[inline(always)]
    pub(crate) fn new(isa: I, mean: T, correction: T, rstd: T, stream: bool) -> Self {
        Self {
            isa,
            mean: T::Lanes::splat(isa, mean),
            correction: T::Lanes::splat(isa, correction),
            rstd: T::Lanes::splat(isa, rstd),
            stream,
        }
    }

    /// A row that is in cache, as the next one is.
    #[inline(always)]
    fn cached(self, x: &[T], y: &mut [T], gamma: &[T], beta: &[T]) {
        let (x, y) = (T::chunks(x).0, T::chunks_mut(y).0);
        let (gamma, beta) = (T::chunks(gamma).0, T::chunks(beta).0);
        let y = &mut y[..x.len()];
        let gamma = if GAMMA { &gamma[..x.len()] } else { gamma };
        let beta = if BETA { &beta[..x.len()] } else { beta };
        for i in 0..x.len() {
            self.chunk(&x[i], gamma.get(i), beta.get(i)).store(&mut y[i]);
        }
    }

    /// A row, or a piece of one with the same piece of gamma and beta.
    #[inline(always)]
    pub(crate) fn row(self, x: &[T], y: &mut [T], gamma: &[T], beta: &[T], next: &[T]) {
        if !self.stream {
            return self.span::<false>(x, y, gamma, beta, next);
        }
        // Streaming stores want y aligned; the elements before that go through the caches.
        let head = super::misaligned(y);
        let (x_head, x) = x.split_at(head);
        let (y_head, y) = y.split_at_mut(head);
        let (gamma_head, gamma) = if GAMMA { gamma.split_at(head) } else { (gamma, gamma) };
        let (beta_head, beta) = if BETA { beta.split_at(head) } else { (beta, beta) };
        self.tail(x_head, y_head, gamma_head, beta_head);
        self.span::<true>(x, y, gamma, beta, next);
    }

    #[inline(always)]
    fn span<const STREAM: bool>(self, x: &[T], y: &mut [T], gamma: &[T], beta: &[T], next: &[T]) {
        let isa = self.isa;
        let (x, x_tail) = T::chunks(x);
        let (y, y_tail) = T::chunks_mut(y);
        let (gamma, gamma_tail) = T::chunks(gamma);
        let (beta, beta_tail) = T::chunks(beta);
        let y = &mut y[..x.len()];
        let next = T::chunks(next).0;
        let next = if next.len() >= x.len() { &next[..x.len()] } else { x };
        let gamma = if GAMMA { &gamma[..x.len()] } else { gamma };
        let beta = if BETA { &beta[..x.len()] } else { beta };
        for i in 0..x.len() {
            isa.prefetch(&next[i]);
            let value = self.chunk(&x[i], gamma.get(i), beta.get(i));
            if STREAM { value.stream(&mut y[i]) } else { value.store(&mut y[i]) }
        }
        self.tail(x_tail, y_tail, gamma_tail, beta_tail);
    }

    /// 64 bytes of a row; gamma and beta are there where `GAMMA` and `BETA` say so.
    #[inline(always)]
    fn chunk(self, x: &T::Chunk, gamma: Option<&T::Chunk>, beta: Option<&T::Chunk>) -> T::Lanes<I> {
        let load = |chunk| T::Lanes::load(self.isa, chunk);
        let value = self.normalized(load(x));
        match (gamma, beta) {
            (Some(gamma), Some(beta)) if GAMMA && BETA => value.mul_add(load(gamma), load(beta)),
            (Some(gamma), _) if GAMMA => value * load(gamma),
            (_, Some(beta)) if BETA => value + load(beta),
            _ => value,
        }
    }

    /// Fewer elements than a register has.
    #[inline(always)]
    fn tail(self, x: &[T], y: &mut [T], gamma: &[T], beta: &[T]) {
        if x.is_empty() {
            return;
        }
        let load = |values: &[T]| T::Lanes::load_tail(self.isa, values, self.mean);
        let mut value = self.normalized(load(x));
        if GAMMA && BETA {
            value = value.mul_add(load(gamma), load(beta));
        } else if GAMMA {
            value = value * load(gamma);
        } else if BETA {
            value = value + load(beta);
        }
        value.store_tail(y);
    }

    #[inline(always)]
    fn normalized(self, x: T::Lanes<I>) -> T::Lanes<I> {
        ((x - self.mean) - self.correction) * self.rstd
    }
}
