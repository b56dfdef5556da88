//! Forward: `y = gamma * xhat + beta`, with the statistics of [`stats`](super::stats).
//!
//! A row is read for its statistics and then to be normalized: from memory the first time, from cache the second.
//! `y` is written once, past the caches where the caller asks for that. Rows go in batches that a first-level cache
//! holds, and while one batch is written the next is fetched.

use super::careful::{self, CarefulRow};
use super::copy;
use super::stats::{self, RowStatistics, Segment};
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
    /// Room for a batch of short rows on the way past the caches.
    pub(crate) staged: &'a mut Vec<T>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();

    /// Full batches of the commonest short widths by loops of known length, all other rows by loops over any.
    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let width = self.parameters.width;
        let rows = self.x.len() / width;
        if width < careful::NARROW {
            return self.narrow_rows();
        }
        let full = rows / BATCH * BATCH;
        let mut first = 0;
        if I::SPECIALIZED && width.is_multiple_of(T::LANES) {
            first = match width / T::LANES {
                4 => self.rows::<I, 4>(isa, 0..full),
                8 => self.rows::<I, 8>(isa, 0..full),
                16 => self.rows::<I, 16>(isa, 0..full),
                _ => 0,
            };
        }
        self.rows::<I, 0>(isa, first..rows);
        if self.stream {
            isa.fence();
        }
    }
}

/// Bytes of x in a batch of rows: with as many of y, what a first-level cache holds.
const BATCH_BYTES: usize = 24 << 10;

/// Bytes of a row below which rows are streamed a batch at a time: of each stretch, the cache lines at its two ends
/// cannot be streamed.
const STREAMED_ALONE: usize = 1 << 10;

impl<T: Element> Forward<'_, T> {
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
    fn rows<I: Isa, const CHUNKS: usize>(&mut self, isa: I, range: std::ops::Range<usize>) -> usize {
        let (_, width) = stats::known::<T, CHUNKS>(0, self.parameters.width);
        let is_long = CHUNKS == 0 && width > super::segment::<T>();
        let batch = if is_long { 1 } else { (BATCH_BYTES / (width * size_of::<T>())).clamp(1, BATCH) };
        let in_batches = self.stream && width * size_of::<T>() < STREAMED_ALONE;
        for first in range.clone().step_by(batch) {
            let (rows, _) = stats::known::<T, CHUNKS>(batch.min(range.end - first), width);
            let (x, next) = self.x[first * width..].split_at(rows * width);
            // Near the end there is no next batch: what is asked for again is in cache.
            let next = if next.len() < x.len() { x } else { &next[..x.len()] };
            let found = if is_long {
                stats::long_row(isa, x, self.segments)
            } else {
                stats::short_rows::<T, I, CHUNKS>(isa, x, rows, width)
            };
            let finished = Finished::new(&found, rows, self.parameters.epsilon);
            let y = &mut self.y[first * width..][..rows * width];
            if in_batches {
                self.staged.resize(x.len(), T::ZERO);
                let pass = LastPass { parameters: self.parameters, found: &finished, x, next, stream: false };
                pass.rows::<I, CHUNKS>(isa, rows, self.staged);
                copy::copy(isa, self.staged, y, true);
            } else {
                let pass = LastPass { parameters: self.parameters, found: &finished, x, next, stream: self.stream };
                pass.rows::<I, CHUNKS>(isa, rows, y);
            }
            save(&mut self.mean, first, &finished.reported_mean[..rows]);
            save(&mut self.rstd, first, &finished.rstd[..rows]);
            if !finished.ordinary {
                if self.stream {
                    // Streamed rows are about to be written again.
                    isa.fence();
                }
                self.rescue(first, rows, &finished);
            }
        }
        range.end
    }

    /// Does the rows of a batch again that are outside the ordinary range.
    #[inline(never)]
    fn rescue(&mut self, first: usize, rows: usize, found: &Finished<T>) {
        let width = self.parameters.width;
        for row in 0..rows {
            let span = (first + row) * width..(first + row + 1) * width;
            let x = &self.x[span.clone()];
            let is_right = found.is_ordinary[row] || found.is_positive[row] && careful::is_constant(x);
            if !is_right {
                let (mean, rstd) = careful_row(&self.parameters, x, &mut self.y[span]);
                save(&mut self.mean, first + row, &[mean]);
                save(&mut self.rstd, first + row, &[rstd]);
            }
        }
    }
}

/// The statistics of a batch of rows, as the last pass uses them.
#[derive(Clone, Copy, Debug)]
struct Finished<T> {
    mean: [T; BATCH],
    correction: [T; BATCH],
    rstd: [T; BATCH],
    /// The mean, rounded once.
    reported_mean: [T; BATCH],
    /// Whether a row is free of overflow and underflow.
    is_ordinary: [bool; BATCH],
    /// Whether the variance with `epsilon` is; then a constant row is right as well.
    is_positive: [bool; BATCH],
    /// Whether all rows that are there are ordinary.
    ordinary: bool,
}

impl<T: Element> Finished<T> {
    #[inline(always)]
    fn new(found: &RowStatistics<T>, rows: usize, epsilon: f64) -> Self {
        let zero = [T::ZERO; BATCH];
        let mut finished = Self {
            mean: found.mean,
            correction: zero,
            rstd: zero,
            reported_mean: zero,
            is_ordinary: [true; BATCH],
            is_positive: [true; BATCH],
            ordinary: true,
        };
        for row in 0..BATCH {
            // `f64` rows have no wider type to finish in but a pair.
            let variance = T::Wide::new(found.variance[row]) + T::Wide::new(epsilon);
            finished.is_ordinary[row] = careful::is_ordinary::<T>(found.variance[row], variance.value());
            finished.is_positive[row] = careful::is_ordinary::<T>(variance.value(), variance.value());
            finished.ordinary &= finished.is_ordinary[row] || row >= rows;
            finished.rstd[row] = T::from_f64(variance.reciprocal_sqrt().value());
            finished.correction[row] = T::from_f64(found.correction[row]);
            finished.reported_mean[row] = T::from_f64(found.mean[row].to_f64() + found.correction[row]);
        }
        finished
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

/// The last pass over a batch of rows.
#[derive(Clone, Copy, Debug)]
struct LastPass<'a, T> {
    parameters: Parameters<'a, T>,
    found: &'a Finished<T>,
    x: &'a [T],
    /// The batch that comes next, to be asked for.
    next: &'a [T],
    stream: bool,
}

impl<T: Element> LastPass<'_, T> {
    #[inline(always)]
    fn rows<I: Isa, const CHUNKS: usize>(self, isa: I, rows: usize, y: &mut [T]) {
        match (self.parameters.gamma, self.parameters.beta) {
            (Some(gamma), Some(beta)) => self.with::<I, CHUNKS, true, true>(isa, rows, y, gamma, beta),
            (Some(gamma), None) => self.with::<I, CHUNKS, true, false>(isa, rows, y, gamma, &[]),
            (None, Some(beta)) => self.with::<I, CHUNKS, false, true>(isa, rows, y, &[], beta),
            (None, None) => self.with::<I, CHUNKS, false, false>(isa, rows, y, &[], &[]),
        }
    }

    #[inline(always)]
    fn with<I: Isa, const CHUNKS: usize, const GAMMA: bool, const BETA: bool>(
        self,
        isa: I,
        rows: usize,
        y: &mut [T],
        gamma: &[T],
        beta: &[T],
    ) {
        let (rows, width) = stats::known::<T, CHUNKS>(rows, self.parameters.width);
        for row in 0..rows {
            let span = row * width..(row + 1) * width;
            let pass = Normalize::<T, I, GAMMA, BETA> {
                isa,
                mean: T::Lanes::splat(isa, self.found.mean[row]),
                correction: T::Lanes::splat(isa, self.found.correction[row]),
                rstd: T::Lanes::splat(isa, self.found.rstd[row]),
            };
            let (x, next) = (&self.x[span.clone()], &self.next[span.clone()]);
            if self.stream {
                pass.streamed(x, &mut y[span], gamma, beta, next);
            } else {
                pass.span::<false>(x, &mut y[span], gamma, beta, next);
            }
        }
    }
}

/// The last pass over a row: `((x - mean) - correction) * rstd * gamma + beta`.
#[derive(Clone, Copy, Debug)]
struct Normalize<T: Element, I: Isa, const GAMMA: bool, const BETA: bool> {
    isa: I,
    mean: T::Lanes<I>,
    correction: T::Lanes<I>,
    rstd: T::Lanes<I>,
}

impl<T: Element, I: Isa, const GAMMA: bool, const BETA: bool> Normalize<T, I, GAMMA, BETA> {
    /// A row past the caches. Streaming stores want y aligned; the elements before that go through the caches.
    #[inline(always)]
    fn streamed(self, x: &[T], y: &mut [T], gamma: &[T], beta: &[T], next: &[T]) {
        let head = super::misaligned(y);
        let (x_head, x) = x.split_at(head);
        let (y_head, y) = y.split_at_mut(head);
        let (gamma_head, gamma) = if GAMMA { gamma.split_at(head) } else { (gamma, gamma) };
        let (beta_head, beta) = if BETA { beta.split_at(head) } else { (beta, beta) };
        self.tail(x_head, y_head, gamma_head, beta_head);
        self.span::<true>(x, y, gamma, beta, &next[head..]);
    }

    #[inline(always)]
    fn span<const STREAM: bool>(self, x: &[T], y: &mut [T], gamma: &[T], beta: &[T], next: &[T]) {
        let isa = self.isa;
        let (x, x_tail) = T::chunks(x);
        let (y, y_tail) = T::chunks_mut(y);
        let (gamma, gamma_tail) = T::chunks(gamma);
        let (beta, beta_tail) = T::chunks(beta);
        let y = &mut y[..x.len()];
        let next = &T::chunks(next).0[..x.len()];
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
