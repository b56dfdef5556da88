//! The memory roofline, on the same tasks as the kernels.

use crate::Element;
use crate::kernel::Work;
use crate::kernel::copy::Copy;
use crate::simd::Backend;

/// `output = a`, or `a + b`. All are of one length.
pub(crate) fn copy<T: Element>(backend: Backend, a: &[T], b: Option<&[T]>, output: &mut [T], stream: bool) {
    if super::is_parallel::<T>(output.len()) {
        split(backend, a, b, output, stream);
    } else {
        T::run(backend, Work::Copy(Copy { a, b, output, stream }));
    }
}

fn split<T: Element>(backend: Backend, a: &[T], b: Option<&[T]>, output: &mut [T], stream: bool) {
    let Some(middle) = super::middle(output.len(), super::TASK_BYTES / size_of::<T>()) else {
        return T::run(backend, Work::Copy(Copy { a, b, output, stream }));
    };
    let (a_left, a_right) = a.split_at(middle);
    let (b_left, b_right) = b.map(|b| b.split_at(middle)).unzip();
    let (left, right) = output.split_at_mut(middle);
    rayon::join(|| split(backend, a_left, b_left, left, stream), || split(backend, a_right, b_right, right, stream));
}
