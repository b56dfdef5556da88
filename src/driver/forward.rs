//! Forward over all rows.

use super::Streaming;
use crate::Element;
use crate::kernel::Work;
use crate::kernel::forward::{Forward, Parameters};
use crate::rows::Rows;
use crate::simd::Backend;

/// Forward over rows `first..first + rows`.
#[derive(Debug)]
pub(crate) struct ForwardJob<'a, T> {
    pub(crate) backend: Backend,
    pub(crate) parameters: Parameters<'a, T>,
    pub(crate) x: &'a Rows<'a, T>,
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
pub(crate) fn forward<T: Element>(mut job: ForwardJob<'_, T>) {
    job.streaming = job.streaming.decided(2 * size_of_val(job.y));
    if super::is_parallel::<T>(job.y.len()) { job.split(0) } else { job.run(0) }
}

impl<T: Element> ForwardJob<'_, T> {
    fn split(self, first: usize) {
        let width = self.parameters.width;
        let Some(middle) = super::middle(self.y.len() / width, super::task_rows::<T>(width)) else {
            return self.run(first);
        };
        let (y_left, y_right) = self.y.split_at_mut(middle * width);
        let (mean_left, mean_right) = super::split_optional(self.mean, middle);
        let (rstd_left, rstd_right) = super::split_optional(self.rstd, middle);
        let left = ForwardJob { y: y_left, mean: mean_left, rstd: rstd_left, ..self };
        let right = ForwardJob { y: y_right, mean: mean_right, rstd: rstd_right, ..self };
        rayon::join(|| left.split(first), || right.split(first + middle));
    }

    /// On this thread: all at once where the rows lie one after the other, else so many as a task has.
    fn run(self, first: usize) {
        let width = self.parameters.width;
        let rows = self.y.len() / width;
        let step = if self.x.is_contiguous() { rows.max(1) } else { super::task_rows::<T>(width) };
        let (mut gathered, mut segments, mut staged) = (Vec::new(), Vec::new(), Vec::new());
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
                stream: self.streaming == Streaming::Always,
                segments: &mut segments,
                staged: &mut staged,
            };
            T::run(self.backend, Work::Forward(kernel));
        }
    }
}
