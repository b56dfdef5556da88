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

mod careful_rows;
mod first_pass;
mod second_pass;

use super::careful;
use super::forward::Parameters;
use crate::Element;
use crate::simd::{BATCH, Isa, Kernel};
use careful_rows::{narrow_rows, rescued_row};
use first_pass::first_pass;
use second_pass::second_pass;
use std::ops::Range;

/// Rows that go together through the second pass.
pub(crate) const BLOCK: usize = BATCH;
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
    pub(crate) targets: Targets<'a, T>,
    /// Whether to write dx past the caches.
    pub(crate) stream: bool,
}

/// Where the gradients of some rows go.
#[derive(Debug)]
pub(crate) struct Targets<'a, T> {
    /// As many elements as x, where it is wanted, and whether to add to it.
    pub(crate) dx: Option<(&'a mut [T], bool)>,
    /// `width` elements of dgamma and of dbeta, which are added to, where either is wanted.
    pub(crate) sums: Option<(&'a mut [T], &'a mut [T])>,
}

impl<T> Targets<'_, T> {
    /// Those of the rows whose elements are at `span`.
    #[inline(always)]
    fn of(&mut self, span: Range<usize>) -> Targets<'_, T> {
        Targets {
            dx: self.dx.as_mut().map(|(dx, accumulate)| (&mut dx[span], *accumulate)),
            sums: self.sums.as_mut().map(|(dgamma, dbeta)| (&mut **dgamma, &mut **dbeta)),
        }
    }
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

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { parameters, x, dy, mean, rstd, mut targets, stream } = self;
        let width = parameters.width;
        if width < careful::NARROW {
            return narrow_rows(&parameters, x, dy, targets);
        }
        for first in (0..mean.len()).step_by(BLOCK) {
            let block = first..mean.len().min(first + BLOCK);
            let rows = block.len();
            let span = block.start * width..block.end * width;
            let (block_x, block_dy) = (&x[span.clone()], &dy[span]);
            let found = match parameters.gamma {
                Some(gamma) => {
                    first_pass::<T, I, true>(isa, block_x, block_dy, gamma, &mean[block.clone()], &rstd[block])
                }
                None => first_pass::<T, I, false>(isa, block_x, block_dy, &[], &mean[block.clone()], &rstd[block]),
            };
            // Ordinary rows that follow each other go together, so that sums are added in the order of the rows.
            let mut start = 0;
            while start < rows {
                let mut end = start + 1;
                while found[start].ordinary && end < rows && found[end].ordinary {
                    end += 1;
                }
                let span = (first + start) * width..(first + end) * width;
                let (x, dy, targets) = (&x[span.clone()], &dy[span.clone()], targets.of(span));
                if found[start].ordinary {
                    second_pass(isa, &found[start..end], &parameters, x, dy, targets, stream);
                } else {
                    rescued_row(&parameters, x, dy, targets);
                }
                start = end;
            }
        }
        if stream {
            isa.fence();
        }
    }
}
