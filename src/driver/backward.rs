//! Backward over all rows, and the sums of the parameter gradients.
//!
//! Rows are cut into at most [`PARTS`] parts of whole groups of [`GROUP`] rows (of whole blocks, where a part is less
//! than a group). The kernel sums a group in blocks of
//! rows, a part adds up its groups with a compensated sum, and the parts are added in a tree: no running sum is so
//! long that its rounding errors, all of one sign where rows are alike, could add up to much.

use super::Streaming;
use crate::Element;
use crate::kernel::Work;
use crate::kernel::backward::{BLOCK, Backward, Targets};
use crate::kernel::forward::Parameters;
use crate::kernel::reduce::AddInto;
use crate::rows::Rows;
use crate::simd::Backend;

/// Parts that have parameter gradients of their own, at most. A part under way has two more sets, so that no more than 64
/// are alive at any time.
const PARTS: usize = 21;

/// Rows whose parameter gradients the kernel sums.
const GROUP: usize = 128;

/// Bytes of x for which a part is worth its own parameter gradients.
const PART_BYTES: usize = 256 << 10;

/// Backward over rows `first..first + mean.len()`.
#[derive(Debug)]
pub(crate) struct BackwardJob<'a, T> {
    pub(crate) backend: Backend,
    pub(crate) parameters: Parameters<'a, T>,
    pub(crate) x: &'a Rows<'a, T>,
    pub(crate) dy: &'a Rows<'a, T>,
    /// One element a row.
    pub(crate) mean: &'a [T],
    /// The same.
    pub(crate) rstd: &'a [T],
    /// `rows * width` elements where it is wanted, and whether to add to it.
    pub(crate) dx: Option<(&'a mut [T], bool)>,
    /// Whether to write dx past the caches.
    pub(crate) streaming: Streaming,
}

/// Runs a job that starts at row 0; gives dgamma and then dbeta, `width` elements each, where they are wanted.
pub(crate) fn backward<T: Element>(mut job: BackwardJob<'_, T>, wants_sums: bool) -> Option<Vec<T>> {
    let width = job.parameters.width;
    let rows = job.mean.len();
    let parallel = super::is_parallel::<T>(rows * width);
    job.streaming = job.streaming.decided(3 * rows * width * size_of::<T>());
    if !wants_sums {
        let task = if parallel { super::task_rows::<T>(width) } else { rows };
        job.split(0, task, parallel, None);
        return None;
    }
    let parts = (rows * width * size_of::<T>() / PART_BYTES).clamp(1, PARTS);
    let part = rows.div_ceil(parts).max(1);
    let part = part.next_multiple_of(if part <= GROUP { BLOCK } else { GROUP });
    let mut sums = vec![T::ZERO; rows.div_ceil(part).max(1) * 2 * width];
    let backend = job.backend;
    job.split(0, part, parallel, Some(&mut sums));
    add_parts(backend, &mut sums, 2 * width);
    sums.truncate(2 * width);
    Some(sums)
}

/// Adds all parts of `len` elements into the first: neighbours first, then pairs of neighbours, and so on.
fn add_parts<T: Element>(backend: Backend, parts: &mut [T], len: usize) {
    if parts.len() == len {
        return;
    }
    let mut lost = vec![T::ZERO; len];
    let mut step = len;
    while step < parts.len() {
        for pair in parts.chunks_mut(2 * step) {
            if pair.len() > step {
                let (total, part) = pair.split_at_mut(step);
                let kernel = AddInto { total: &mut total[..len], lost: &mut lost, part: &part[..len] };
                T::run(backend, Work::AddInto(kernel));
            }
        }
        step *= 2;
    }
    add_lost(&mut parts[..len], &lost);
}

/// Gives back to sums what rounding took; an infinite sum stays what it is (its rounding error is NaN).
fn add_lost<T: Element>(total: &mut [T], lost: &[T]) {
    for (total, lost) in total.iter_mut().zip(lost) {
        if total.to_f64().is_finite() {
            *total = T::from_f64(total.to_f64() + lost.to_f64());
        }
    }
}

impl<T: Element> BackwardJob<'_, T> {
    /// Halves the job down to `task` rows; `sums` has one part for each task.
    fn split(self, first: usize, task: usize, parallel: bool, sums: Option<&mut [T]>) {
        let width = self.parameters.width;
        let Some(middle) = super::middle(self.mean.len(), task) else {
            return self.run(first, sums);
        };
        let (mean_left, mean_right) = self.mean.split_at(middle);
        let (rstd_left, rstd_right) = self.rstd.split_at(middle);
        let (dx_left, dx_right) = self
            .dx
            .map(|(dx, accumulate)| {
                let (left, right) = dx.split_at_mut(middle * width);
                ((left, accumulate), (right, accumulate))
            })
            .unzip();
        let (sums_left, sums_right) = super::split_optional(sums, middle / task * 2 * width);
        let left = BackwardJob { mean: mean_left, rstd: rstd_left, dx: dx_left, ..self };
        let right = BackwardJob { mean: mean_right, rstd: rstd_right, dx: dx_right, ..self };
        let left = || left.split(first, task, parallel, sums_left);
        let right = || right.split(first + middle, task, parallel, sums_right);
        if parallel {
            rayon::join(left, right);
        } else {
            left();
            right();
        }
    }

    /// On this thread; `sums`, all zeros, has one part.
    fn run(self, first: usize, mut sums: Option<&mut [T]>) {
        let Self { backend, parameters, x, dy, mean, rstd, mut dx, streaming } = self;
        let width = parameters.width;
        let rows = mean.len();
        let in_place = sums.is_none() && x.is_contiguous() && dy.is_contiguous();
        let step = if in_place { rows.max(1) } else { GROUP };
        let (mut x_gathered, mut dy_gathered) = (Vec::new(), Vec::new());
        // The sums of one group, and what adding them up lost; the first group is summed in place.
        let scratch = if sums.is_some() && rows > step { 2 * width } else { 0 };
        let [mut group, mut lost] = [(); 2].map(|()| vec![T::ZERO; scratch]);
        for start in (0..rows).step_by(step) {
            let end = rows.min(start + step);
            let span = start * width..end * width;
            let target = sums.as_deref_mut().map(|sums| if start == 0 { sums } else { &mut group[..] });
            let kernel = Backward {
                parameters,
                x: x.block(first + start..first + end, &mut x_gathered),
                dy: dy.block(first + start..first + end, &mut dy_gathered),
                mean: &mean[start..end],
                rstd: &rstd[start..end],
                targets: Targets {
                    dx: dx.as_mut().map(|(dx, accumulate)| (&mut dx[span], *accumulate)),
                    sums: target.map(|sums| sums.split_at_mut(width)),
                },
                stream: streaming == Streaming::Always,
            };
            T::run(backend, Work::Backward(kernel));
            if let (Some(sums), true) = (sums.as_deref_mut(), start > 0) {
                T::run(backend, Work::AddInto(AddInto { total: sums, lost: &mut lost, part: &group }));
                group.fill(T::ZERO);
            }
        }
        if let Some(sums) = sums {
            add_lost(sums, &lost);
        }
    }
}
