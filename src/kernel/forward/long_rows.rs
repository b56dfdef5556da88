//! Forward of rows so long that several threads share each, in three steps.
//!
//! The sums of a long row are those of its segments, added up (see [`kernel`](crate::kernel)): whoever takes them, they
//! are the same. And an element of y depends on the row's statistics and on its own column alone. So:
//!
//! 1. [`Segments`]: the sums of some segments of a row about its pilot.
//! 2. [`Finish`]: the sums of all segments of a batch of rows are added up, in their order, and finished.
//! 3. [`Columns`]: some columns of the rows of the batch are normalized, in tiles, all rows to a tile.
//!
//! The first and the last are for many threads. All three take their numbers through the loops that [`Forward`] takes them
//! through, in the same order: y and the statistics have the same bits. Rows outside the ordinary range are not computed
//! here; [`Normalizer::is_ordinary`] says whether there are any.
//!
//! Forward reads x twice, here as there. What it costs to share rows is the time in which the second step waits for
//! all threads.

use super::piece::{Coefficients, Piece};
use super::pipeline::{Batch, Pipeline};
use super::plan::Plan;
use super::{Forward, Parameters, Place};
use crate::Element;
use crate::kernel::copy::Bring;
use crate::kernel::joined::Waiting;
use crate::kernel::stats::{self, CompensatedSum, LaneSums, Moments};
use crate::kernel::{NOT_WRITTEN, STORED, room, segment};
use crate::simd::{BATCH, Isa, Kernel, Lanes};

/// A step.
#[derive(Debug)]
pub(crate) enum LongRows<'a, T> {
    Segments(Segments<'a, T>),
    Finish(Finish<'a, T>),
    Columns(Columns<'a, T>),
}

/// `sum(d)` and `sum(d * d)` of a segment.
pub(crate) type SegmentSums = [f64; 2];

/// The sums of segments of a row.
#[derive(Debug)]
pub(crate) struct Segments<'a, T> {
    pub(crate) row: &'a [T],
    /// The number of the first segment.
    pub(crate) first: usize,
    /// Of each segment.
    pub(crate) sums: &'a mut [SegmentSums],
}

/// What the rows of a batch are normalized by.
#[derive(Debug, Default)]
pub(crate) struct Normalizer<T>(Batch<T>);

impl<T> Normalizer<T> {
    /// Whether all rows are free of overflow and underflow: others are not normalized by this.
    pub(crate) fn is_ordinary(&self) -> bool {
        self.0.ordinary
    }
}

/// The statistics of a batch of rows.
#[derive(Debug)]
pub(crate) struct Finish<'a, T> {
    pub(crate) parameters: Parameters<'a, T>,
    /// The rows, [`BATCH`] of them at most.
    pub(crate) x: &'a [T],
    /// The sums of all segments of the first row, then of the second, and so on.
    pub(crate) sums: &'a [SegmentSums],
    /// The mean of each row, where it is wanted.
    pub(crate) mean: Option<&'a mut [T]>,
    /// `rstd` of each row, where it is wanted.
    pub(crate) rstd: Option<&'a mut [T]>,
    pub(crate) found: &'a mut Normalizer<T>,
}

/// Some columns of y of a batch of ordinary rows.
#[derive(Debug)]
pub(crate) struct Columns<'a, T> {
    /// gamma and beta are both there, or neither.
    pub(crate) parameters: Parameters<'a, T>,
    /// The rows, all columns of them.
    pub(crate) x: &'a [T],
    pub(crate) normalizer: &'a Normalizer<T>,
    /// The first of the columns: it begins a segment.
    pub(crate) first: usize,
    /// The columns of each row.
    pub(crate) y: [&'a mut [T]; BATCH],
    pub(crate) place: Place,
}

impl<T: Element> Kernel for LongRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self {
            Self::Segments(kernel) => kernel.run(isa),
            Self::Finish(kernel) => kernel.run(isa),
            Self::Columns(kernel) if kernel.parameters.gamma.is_some() => kernel.run::<I, true>(isa),
            Self::Columns(kernel) => kernel.run::<I, false>(isa),
        }
    }
}

impl<T: Element> Segments<'_, T> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { row, first, sums } = self;
        let pilot = T::Lanes::splat(isa, stats::pilots(isa, row, row.len())[0]);
        for (i, sums) in sums.iter_mut().enumerate() {
            let start = (first + i) * segment::<T>();
            let len = segment::<T>().min(row.len() - start);
            let ahead = (start + Plan::AHEAD * T::LANES).min(row.len() - len);
            let piece = Piece {
                x: &[],
                y: &mut [],
                gamma: &[],
                beta: &[],
                summed: &row[start..][..len],
                ahead: &row[ahead..][..len],
            };
            let unused = Coefficients { mean: pilot, rstd: pilot, minus_shift: pilot };
            let zero = LaneSums::zero(isa);
            let found =
                piece.run::<I, NOT_WRITTEN, true, false, true>(isa, unused, pilot, zero, &mut Waiting::none(isa));
            *sums = [found.sum.sum(), found.squares.sum()];
        }
    }
}

impl<T: Element> Finish<'_, T> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { parameters, x, sums, mean, rstd, found } = self;
        let width = parameters.width;
        let batch = x.len() / width;
        let mut moments = Moments { pilot: stats::pilots(isa, x, width), sum: [0.0; BATCH], squares: [0.0; BATCH] };
        for (i, sums) in sums.chunks_exact(sums.len() / batch).enumerate() {
            let mut totals = [CompensatedSum::default(); 2];
            for sums in sums {
                totals[0].add(sums[0]);
                totals[1].add(sums[1]);
            }
            (moments.sum[i], moments.squares[i]) = (totals[0].value(), totals[1].value());
        }
        let staged = &mut Vec::new();
        let mut forward = Forward { parameters, x, y: &mut [], mean, rstd, place: Place::Cache, is_amd: false, staged };
        let mut pipeline = Pipeline {
            isa,
            plan: Plan { width, batch, tile: width, apart: false },
            rows: 0..batch,
            batch: Batch::default(),
            staged: &mut [],
            waiting: Waiting::none(isa),
            forward: &mut forward,
        };
        pipeline.finish(moments);
        found.0 = pipeline.batch;
    }
}

impl<T: Element> Columns<'_, T> {
    #[inline(always)]
    fn run<I: Isa, const AFFINE: bool>(self, isa: I) {
        let Self { parameters, x, normalizer: Normalizer(rows), first, y, place } = self;
        let width = parameters.width;
        let plan = Plan { width, batch: x.len() / width, tile: Plan::TILE * T::LANES, apart: false };
        let (gamma, beta) = (parameters.gamma.unwrap_or(&[]), parameters.beta.unwrap_or(&[]));
        // The ends of stretches that do not lie at multiples of 64 bytes cannot be streamed: all go by way of a buffer.
        let streams = place == Place::Memory && I::SPECIALIZED;
        let mut buffer = Vec::new();
        let staged = room(&mut buffer, if streams { plan.tile } else { 0 });
        for start in (0..y[0].len()).step_by(plan.tile) {
            let len = plan.tile.min(y[0].len() - start);
            let column = first + start;
            let gamma = if AFFINE { &gamma[column..][..len] } else { gamma };
            let beta = if AFFINE { &beta[column..][..len] } else { beta };
            for i in 0..plan.batch {
                let ahead = plan.ahead::<T>(0, i, column).min(x.len() - len);
                let y = &mut y[i][start..][..len];
                let piece = Piece {
                    x: &x[i * width + column..][..len],
                    y: if streams { &mut staged[..len] } else { &mut *y },
                    gamma,
                    beta,
                    summed: &[],
                    ahead: &x[ahead..][..len],
                };
                let coefficients = rows.coefficients(isa, i);
                let zero = LaneSums::zero(isa);
                piece.run::<I, STORED, false, AFFINE, true>(isa, coefficients, zero.sum, zero, &mut Waiting::none(isa));
                if streams {
                    isa.run(Bring { staged: &staged[..len], target: y, accumulate: false, stream: true });
                }
            }
        }
        if streams {
            isa.fence();
        }
    }
}
