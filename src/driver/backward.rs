//! Backward over all rows, and the sums of the parameter gradients.
//!
//! Rows are cut into at most [`PARTS`] parts. The kernel adds up the parameter gradients of a part, and the parts are added
//! in a tree.

use super::{Streaming, long_rows};
use crate::Element;
use crate::kernel::backward::{Backward, GROUP, ParameterSums, prefers_caches};
use crate::kernel::forward::{Parameters, Place};
use crate::kernel::reduce::{AddInto, AddLost};
use crate::kernel::{self, Work};
use crate::rows::Rows;
use crate::simd::{BATCH, Backend, is_amd};

/// Parts that have parameter gradients of their own, at most: a power of two, for as many threads. A part under way has three
/// more sets (of eight rows, of a group of rows, and of what rounding took), so that no more than 64 are alive at any time.
const PARTS: usize = 16;

/// Bytes of x for which a part is worth its own parameter gradients.
const PART_BYTES: usize = 96 << 10;

/// Rows for which it is: the first and the last of a part from memory are read and written alone, not while others are, and
/// its sums are a row's length to be added to those of the other parts.
const PART_ROWS: usize = 2 * BATCH;

/// Parts of fewer rows that are worth it all the same, so that as many threads have work, of rows that they do not share.
const BUSY_PARTS: usize = 8;

/// Backward over rows `first..first + mean.len()`.
#[derive(Debug)]
pub(crate) struct BackwardJob<'a, 'x, T> {
    pub(crate) backend: Backend,
    pub(crate) parameters: Parameters<'a, T>,
    pub(crate) x: &'a Rows<'x, T>,
    pub(crate) dy: &'a Rows<'x, T>,
    /// One element a row.
    pub(crate) mean: &'a [T],
    /// The same.
    pub(crate) rstd: &'a [T],
    /// `rows * width` elements where it is wanted, and whether to add to it.
    pub(crate) dx: Option<(&'a mut [T], bool)>,
    /// Whether to write dx past the caches.
    pub(crate) streaming: Streaming,
    /// Whether the sums of dgamma and dbeta hold those of rows before these: of others they are zeros.
    pub(crate) continues: bool,
}

/// Runs a job that starts at row 0; writes dgamma and dbeta, `width` elements each, where they are wanted, or adds to them.
pub(crate) fn backward<T: Element>(job: BackwardJob<'_, '_, T>, mut gradients: [Option<(&mut [T], bool)>; 2]) {
    let width = job.parameters.width;
    let rows = job.mean.len();
    let wants_sums = gradients.iter().any(Option::is_some);
    let parallel = super::is_parallel::<T>(rows * width);
    let streaming = match job.streaming {
        Streaming::Auto if wants_sums && prefers_caches(width, job.dx.as_ref()) => Streaming::Never,
        streaming => streaming,
    };
    let place = super::place(streaming, 3 * rows * width * size_of::<T>(), parallel);
    let mut gamma = Vec::new();
    let mut parameters = job.parameters;
    if wants_sums || parameters.gamma.is_some() {
        // The kernel knows no sums without gamma.
        let many = rows >= super::MANY_ROWS;
        parameters.gamma = Some(super::aligned(&mut gamma, parameters.gamma, T::from_f64(1.0), width, many));
    }
    let mut job = BackwardJob { parameters, ..job };
    if !wants_sums {
        if parallel && long_rows::is_shared::<T>(rows, width) {
            return long_rows::backward(job, place, None);
        }
        let task = if parallel { super::task_rows::<T>(rows, width) } else { rows };
        return job.split(0, task, parallel, place, None);
    }
    let busy = if long_rows::are_long::<T>(width) { 1 } else { (rows / BATCH).min(BUSY_PARTS) };
    let worth = (rows * width * size_of::<T>() / PART_BYTES).min((rows / PART_ROWS).max(busy));
    let parts = worth.clamp(1, PARTS).next_power_of_two();
    let part = rows.div_ceil(parts).max(1);
    let part = part.next_multiple_of(if part <= GROUP { BATCH } else { GROUP });
    if rows <= BATCH && long_rows::are_long::<T>(width) {
        // Sums as long as the rows would take more time than the rows. These need none, on one thread either.
        let gradients = gradients.each_mut().map(|gradient| gradient.as_mut().map(|(sum, add)| (&mut **sum, *add)));
        if long_rows::backward_of_batch(&mut job, place, gradients) {
            return;
        }
    }
    let is_shared = parallel && rows > BATCH && long_rows::is_shared::<T>(rows.div_ceil(part), width);
    let len = ParameterSums::<T>::len(width);
    // At a multiple of 64 bytes, as all parts and the start of dbeta in them then are.
    let mut buffer = Vec::new();
    let sums = kernel::room(&mut buffer, rows.div_ceil(part).max(1) * len);
    let backend = job.backend;
    if is_shared && part <= GROUP {
        long_rows::backward(job, place, Some((sums, part)));
    } else {
        job.split(0, part, parallel, place, Some(sums));
    }
    add_parts(backend, sums, len);
    for (gradient, start) in gradients.into_iter().zip([0, ParameterSums::<T>::start_of_dbeta(width)]) {
        if let Some((target, accumulate)) = gradient {
            put(&sums[start..][..width], target, accumulate);
        }
    }
}

/// Writes a parameter gradient, or adds it.
fn put<T: Element>(sums: &[T], target: &mut [T], accumulate: bool) {
    for (target, sum) in target.iter_mut().zip(sums) {
        // A zero whose sign is that of its terms or plus, as they were added up, becomes plus zero.
        let sum = sum.to_f64() + 0.0;
        *target = T::from_f64(if accumulate { target.to_f64() + sum } else { sum });
    }
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
    T::run(backend, Work::AddLost(AddLost { total: &mut parts[..len], lost: &lost }));
}

impl<T: Element> BackwardJob<'_, '_, T> {
    /// Halves the job down to `task` rows; `sums` has one part for each task.
    pub(super) fn split(self, first: usize, task: usize, parallel: bool, place: Place, sums: Option<&mut [T]>) {
        let width = self.parameters.width;
        let Some(middle) = super::middle(self.mean.len(), task) else {
            return self.run(first, place, sums);
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
        let (sums_left, sums_right) = super::split_optional(sums, middle / task * ParameterSums::<T>::len(width));
        let left = BackwardJob { mean: mean_left, rstd: rstd_left, dx: dx_left, ..self };
        let right = BackwardJob { mean: mean_right, rstd: rstd_right, dx: dx_right, ..self };
        let left = || left.split(first, task, parallel, place, sums_left);
        let right = || right.split(first + middle, task, parallel, place, sums_right);
        if parallel {
            rayon::join(left, right);
        } else {
            left();
            right();
        }
    }

    /// On this thread; `sums` has one part.
    fn run(self, first: usize, place: Place, mut sums: Option<&mut [T]>) {
        let Self { backend, parameters, x, dy, mean, rstd, mut dx, continues, .. } = self;
        let width = parameters.width;
        let rows = mean.len();
        let in_place = x.is_contiguous() && dy.is_contiguous();
        let step = if in_place { rows.max(1) } else { GROUP };
        let [mut x_gathered, mut dy_gathered, mut staged, mut block] = [(); 4].map(|()| Vec::new());
        // The sums of one group, at a multiple of 64 bytes, and what adding them up lost; the first group needs neither.
        let len = if sums.is_some() && rows > GROUP { ParameterSums::<T>::len(width) } else { 0 };
        let mut lost = vec![T::ZERO; len];
        let mut group = Vec::new();
        let group = kernel::room(&mut group, len);
        for start in (0..rows).step_by(step) {
            let end = rows.min(start + step);
            let span = start * width..end * width;
            let kernel = Backward {
                parameters,
                x: x.block(first + start..first + end, &mut x_gathered),
                dy: dy.block(first + start..first + end, &mut dy_gathered),
                mean: &mean[start..end],
                rstd: &rstd[start..end],
                dx: dx.as_mut().map(|(dx, accumulate)| (&mut dx[span], *accumulate)),
                sums: sums.as_deref_mut().map(|total| ParameterSums {
                    total,
                    lost: &mut lost,
                    group,
                    is_first: start == 0,
                    is_zero: start == 0 && !continues,
                }),
                place,
                is_amd: is_amd(),
                staged: &mut staged,
                block: &mut block,
            };
            T::run(backend, Work::Backward(kernel));
        }
        if let (Some(total), true) = (sums, len > 0) {
            T::run(backend, Work::AddLost(AddLost { total, lost: &lost }));
        }
    }
}
