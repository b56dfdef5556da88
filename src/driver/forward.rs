//! Forward over all rows.

use super::{Streaming, long_rows};
use crate::Element;
use crate::kernel::Work;
use crate::kernel::forward::{Forward, Parameters, Place};
use crate::rows::Rows;
use crate::simd::{Backend, is_amd};

/// Forward over rows `first..first + rows`.
#[derive(Debug)]
pub(crate) struct ForwardJob<'a, 'x, T> {
    pub(crate) backend: Backend,
    pub(crate) parameters: Parameters<'a, T>,
    pub(crate) x: &'a Rows<'x, T>,
    /// `rows * width` elements.
    pub(crate) y: &'a mut [T],
    /// One element a row, where it is wanted.
    pub(crate) mean: Option<&'a mut [T]>,
    /// The same.
    pub(crate) rstd: Option<&'a mut [T]>,
    /// Whether to write y past the caches.
    pub(crate) streaming: Streaming,
}

/// Runs a job that starts at row 0.
pub(crate) fn forward<T: Element>(job: ForwardJob<'_, '_, T>) {
    let parallel = super::is_parallel::<T>(job.y.len());
    let place = super::place(job.streaming, 2 * size_of_val(job.y), parallel);
    let width = job.parameters.width;
    let many = job.y.len() / width >= super::MANY_ROWS;
    let [mut gamma, mut beta] = [(); 2].map(|()| Vec::new());
    let mut parameters = job.parameters;
    if parameters.gamma.is_some() || parameters.beta.is_some() {
        // The kernel knows both or neither.
        parameters.gamma = Some(super::aligned(&mut gamma, parameters.gamma, T::from_f64(1.0), width, many));
        parameters.beta = Some(super::aligned(&mut beta, parameters.beta, T::ZERO, width, many));
    }
    let job = ForwardJob { parameters, ..job };
    if parallel {
        let rows = job.y.len() / width;
        if long_rows::is_shared::<T>(rows, width) {
            return long_rows::forward(job, place);
        }
        job.split(0, super::task_rows::<T>(rows, width), place);
    } else {
        job.run(0, place);
    }
}

impl<T: Element> ForwardJob<'_, '_, T> {
    /// Halves the job down to `task` rows.
    pub(super) fn split(self, first: usize, task: usize, place: Place) {
        let width = self.parameters.width;
        let Some(middle) = super::middle(self.y.len() / width, task) else {
            return self.run(first, place);
        };
        let (y_left, y_right) = self.y.split_at_mut(middle * width);
        let (mean_left, mean_right) = super::split_optional(self.mean, middle);
        let (rstd_left, rstd_right) = super::split_optional(self.rstd, middle);
        let left = ForwardJob { y: y_left, mean: mean_left, rstd: rstd_left, ..self };
        let right = ForwardJob { y: y_right, mean: mean_right, rstd: rstd_right, ..self };
        rayon::join(|| left.split(first, task, place), || right.split(first + middle, task, place));
    }

    /// On this thread: all at once where the rows lie one after the other, else so many as a task has.
    fn run(self, first: usize, place: Place) {
        let width = self.parameters.width;
        let rows = self.y.len() / width;
        let step = if self.x.is_contiguous() { rows.max(1) } else { super::gathered_rows::<T>(width) };
        let (mut gathered, mut staged) = (Vec::new(), Vec::new());
        let (mut mean, mut rstd) = (self.mean, self.rstd);
        for (i, y) in self.y.chunks_mut(step * width).enumerate() {
            let start = i * step;
            let end = start + y.len() / width;
            let kernel = Forward {
                parameters: self.parameters,
                x: self.x.block(first + start..first + end, &mut gathered),
                y,
                mean: mean.as_deref_mut().map(|mean| &mut mean[start..end]),
                rstd: rstd.as_deref_mut().map(|rstd| &mut rstd[start..end]),
                place,
                is_amd: is_amd(),
                staged: &mut staged,
            };
            T::run(self.backend, Work::Forward(kernel));
        }
    }
}
