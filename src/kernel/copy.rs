//! A plain copy, and a sum of two arrays: what the kernels' memory traffic costs without their arithmetic.

use crate::Element;
use crate::simd::{Isa, Kernel, Lanes};

/// `output = a`, or `a + b`: one read or two, and one write.
#[derive(Debug)]
pub(crate) struct Copy<'a, T> {
    pub(crate) a: &'a [T],
    pub(crate) b: Option<&'a [T]>,
    pub(crate) output: &'a mut [T],
    /// Whether to write past the caches.
    pub(crate) stream: bool,
}

impl<T: Element> Kernel for Copy<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let head = super::misaligned(self.output);
        let (first, output) = self.output.split_at_mut(head);
        let (a_first, a) = self.a.split_at(head);
        match self.b {
            None => {
                first.copy_from_slice(a_first);
                let ((a, a_tail), (output, tail)) = (T::chunks(a), T::chunks_mut(output));
                for (output, a) in output.iter_mut().zip(a) {
                    put::<T, I>(T::Lanes::load(isa, a), output, self.stream);
                }
                tail.copy_from_slice(a_tail);
            }
            Some(b) => {
                let (b_first, b) = b.split_at(head);
                add_tail(isa, a_first, b_first, first);
                let ((a, a_tail), (b, b_tail)) = (T::chunks(a), T::chunks(b));
                let (output, tail) = T::chunks_mut(output);
                for ((output, a), b) in output.iter_mut().zip(a).zip(b) {
                    put::<T, I>(T::Lanes::load(isa, a) + T::Lanes::load(isa, b), output, self.stream);
                }
                add_tail(isa, a_tail, b_tail, tail);
            }
        }
        isa.fence();
    }
}

#[inline(always)]
fn put<T: Element, I: Isa>(value: T::Lanes<I>, output: &mut T::Chunk, stream: bool) {
    if stream { value.stream(output) } else { value.store(output) }
}

#[inline(always)]
fn add_tail<T: Element, I: Isa>(isa: I, a: &[T], b: &[T], output: &mut [T]) {
    let zero = T::Lanes::splat(isa, T::ZERO);
    (T::Lanes::load_tail(isa, a, zero) + T::Lanes::load_tail(isa, b, zero)).store_tail(output);
}
