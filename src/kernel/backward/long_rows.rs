//! Backward of rows so long that several threads share each, in three steps.
//!
//! As in [forward](crate::kernel::forward::long_rows): the sums of a long row are those of its segments, added up, and dx,
//! dgamma and dbeta of a column depend on the row's sums and on that column alone. So:
//!
//! 1. [`Segments`]: the sums of some segments of a row.
//! 2. [`Finish`]: the sums of all segments of a batch of rows are added up, in their order, and finished.
//! 3. [`Columns`]: the gradients of some columns are written, in tiles, all rows of the batch to a tile, so that dgamma and
//!    dbeta of a column are added up in the order of the rows.
//!
//! The bits are those of [`Backward`], which takes the same loops. Rows outside the ordinary range are not computed here.

use super::block::Block;
use super::parameter_sums::Counts;
use super::piece::{Coefficients, Piece, RowSums};
use super::pipeline::{Batch, Pipeline};
use super::plan::Plan;
use super::{Backward, FULL, PLAIN, SCALED};
use crate::Element;
use crate::kernel::copy::Bring;
use crate::kernel::forward::{Parameters, Place};
use crate::kernel::joined::Waiting;
use crate::kernel::stats::CompensatedSum;
use crate::kernel::{NOT_WRITTEN, STORED, room, segment};
use crate::simd::{BATCH, Isa, Kernel, Lanes};
use std::ops::Range;

/// Chunks in a tile: of eight rows, dgamma and dbeta it is 20 KiB, which leave room in a first-level cache.
const TILE: usize = 32;

/// A step.
#[derive(Debug)]
pub(crate) enum LongRows<'a, T> {
    Segments(Segments<'a, T>),
    Finish(Finish<'a, T>),
    Columns(Columns<'a, T>),
}

/// [`RowSums`] of a segment.
pub(crate) type SegmentSums = [f64; 3];

/// The sums of segments of a row.
#[derive(Debug)]
pub(crate) struct Segments<'a, T> {
    /// All of it.
    pub(crate) x: &'a [T],
    pub(crate) dy: &'a [T],
    pub(crate) gamma: Option<&'a [T]>,
    pub(crate) mean: T,
    /// The number of the first segment.
    pub(crate) first: usize,
    /// Of each segment.
    pub(crate) sums: &'a mut [SegmentSums],
}

/// What the gradients of a batch of rows are made of.
#[derive(Debug)]
pub(crate) struct Differentiator<T>(Batch<T>);

impl<T: Element> Default for Differentiator<T> {
    fn default() -> Self {
        Self(Batch::default())
    }
}

impl<T> Differentiator<T> {
    /// Whether all rows are free of overflow and underflow: the gradients of others are not made of this.
    pub(crate) fn is_ordinary(&self) -> bool {
        self.0.ordinary
    }
}

/// What the gradients of a batch of rows are made of, from the sums of their segments.
#[derive(Debug)]
pub(crate) struct Finish<'a, T> {
    pub(crate) parameters: Parameters<'a, T>,
    /// The rows, [`BATCH`] of them at most.
    pub(crate) x: &'a [T],
    pub(crate) dy: &'a [T],
    pub(crate) mean: &'a [T],
    pub(crate) rstd: &'a [T],
    /// The sums of all segments of the first row, then of the second, and so on.
    pub(crate) sums: &'a [SegmentSums],
    pub(crate) found: &'a mut Differentiator<T>,
}

/// Some columns of the gradients of a batch of ordinary rows.
#[derive(Debug)]
pub(crate) struct Columns<'a, T> {
    pub(crate) parameters: Parameters<'a, T>,
    /// The rows, all columns of them.
    pub(crate) x: &'a [T],
    pub(crate) dy: &'a [T],
    pub(crate) differentiator: &'a Differentiator<T>,
    /// The columns: they begin with a segment.
    pub(crate) columns: Range<usize>,
    /// Those columns of dx of each row, where it is wanted, and whether to add to it.
    pub(crate) dx: Option<([&'a mut [T]; BATCH], bool)>,
    /// Those columns of dgamma and of dbeta, the same. gamma is there where either is wanted.
    pub(crate) sums: [Option<(&'a mut [T], bool)>; 2],
    pub(crate) place: Place,
    /// Whether to write the sums past the caches: not where they are soon added to.
    pub(crate) stream_sums: bool,
}

impl<T: Element> Kernel for LongRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self {
            Self::Segments(kernel) if kernel.gamma.is_some() => kernel.run::<I, SCALED>(isa),
            Self::Segments(kernel) => kernel.run::<I, PLAIN>(isa),
            Self::Finish(kernel) => kernel.run(isa),
            Self::Columns(kernel) if kernel.parameters.gamma.is_none() => kernel.run::<I, PLAIN>(isa),
            Self::Columns(kernel) => match kernel.sums {
                [None, None] => kernel.run::<I, SCALED>(isa),
                _ => kernel.run::<I, FULL>(isa),
            },
        }
    }
}

impl<T: Element> Segments<'_, T> {
    #[inline(always)]
    fn run<I: Isa, const MODE: u8>(self, isa: I) {
        let Self { x, dy, gamma, mean, first, sums } = self;
        let gamma = gamma.unwrap_or(&[]);
        let mean = T::Lanes::splat(isa, mean);
        let unused = Coefficients::<T>::default().lanes(isa);
        for (i, sums) in sums.iter_mut().enumerate() {
            let start = (first + i) * segment::<T>();
            let len = segment::<T>().min(x.len() - start);
            let piece = Piece {
                gamma: if MODE == PLAIN { gamma } else { &gamma[start..][..len] },
                summed_x: &x[start..][..len],
                summed_dy: &dy[start..][..len],
                ..Piece::default()
            };
            let zero = RowSums::zero(isa);
            let found = piece.run::<I, NOT_WRITTEN, MODE, false>(isa, unused, mean, zero, &mut Waiting::none(isa));
            *sums = [found.g.sum(), found.d.sum(), found.product.sum()];
        }
    }
}

impl<T: Element> Finish<'_, T> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { parameters, x, dy, mean, rstd, sums, found } = self;
        let width = parameters.width;
        let batch = mean.len();
        let mut of_rows = [[0.0; BATCH]; 3];
        for (i, sums) in sums.chunks_exact(sums.len() / batch).enumerate() {
            let mut totals = [CompensatedSum::default(); 3];
            for sums in sums {
                for k in 0..3 {
                    totals[k].add(sums[k]);
                }
            }
            for k in 0..3 {
                of_rows[k][i] = totals[k].value();
            }
        }
        let [staged, block] = &mut [(); 2].map(|()| Vec::new());
        let (dx, sums, place) = (None, None, Place::Cache);
        let mut backward = Backward { parameters, x, dy, mean, rstd, dx, sums, place, is_amd: false, staged, block };
        let mut pipeline = Pipeline {
            isa,
            plan: Plan { width, batch, by_row: false, tile: width, staged: width },
            rows: 0..batch,
            batch: found.0,
            staged: &mut [],
            waiting: Waiting::none(isa),
            counts: &mut Counts::default(),
            block: &mut [],
            backward: &mut backward,
        };
        pipeline.finish(of_rows);
        found.0 = pipeline.batch;
    }
}

impl<T: Element> Columns<'_, T> {
    #[inline(always)]
    fn run<I: Isa, const MODE: u8>(self, isa: I) {
        let Self {
            parameters,
            x,
            dy,
            differentiator: Differentiator(rows),
            columns,
            mut dx,
            mut sums,
            place,
            stream_sums,
        } = self;
        let width = parameters.width;
        let batch = x.len() / width;
        let gamma = parameters.gamma.unwrap_or(&[]);
        let is_memory = place == Place::Memory;
        // A tile of everything is written in the first-level cache, and brought from there where it belongs: there it may
        // be added to what is there, and go past the caches, wherever it begins.
        let tile = TILE * T::LANES;
        let mut buffer = Vec::new();
        let (staged, staged_sums) = room(&mut buffer, (batch + 2) * tile).split_at_mut(batch * tile);
        for start in (0..columns.len()).step_by(tile) {
            let len = tile.min(columns.len() - start);
            let column = columns.start + start;
            staged_sums.fill(T::ZERO);
            let (dgamma, dbeta) = staged_sums.split_at_mut(tile);
            let mut block = Block {
                isa,
                width,
                x: &x[column..],
                dy: &dy[column..],
                dx: &mut *staged,
                dx_start: 0,
                dx_stride: tile,
                written: 0..batch,
                rows: &rows.rows,
                gamma: if MODE == PLAIN { gamma } else { &gamma[column..] },
                dgamma,
                dbeta,
                waiting: Waiting::none(isa),
            };
            block.columns::<STORED, MODE, false>(0..len);
            if let Some((dx, accumulate)) = &mut dx {
                for i in 0..batch {
                    isa.run(Bring {
                        staged: &staged[i * tile..][..len],
                        target: &mut dx[i][start..][..len],
                        accumulate: *accumulate,
                        stream: is_memory,
                    });
                }
            }
            for (k, sums) in sums.iter_mut().enumerate() {
                if let Some((sums, accumulate)) = sums {
                    isa.run(Bring {
                        staged: &staged_sums[k * tile..][..len],
                        target: &mut sums[start..][..len],
                        accumulate: *accumulate,
                        stream: stream_sums,
                    });
                }
            }
        }
        isa.fence();
    }
}
