//! A plain copy, and a sum of two arrays: what the kernels' memory traffic costs without their arithmetic. And the way of
//! results that are written in a nearer cache first.

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
        match self.b {
            None => copy(isa, self.a, self.output, self.stream),
            Some(b) => add(isa, self.a, b, self.output, self.stream),
        }
        isa.fence();
    }
}

/// Results that were written in a nearer cache, on their way to where they belong.
#[derive(Debug)]
pub(super) struct Bring<'a, T> {
    pub(super) staged: &'a [T],
    /// As many elements.
    pub(super) target: &'a mut [T],
    /// Whether to add to what is there.
    pub(super) accumulate: bool,
    /// Whether to write past the caches where nothing is added.
    pub(super) stream: bool,
}

impl<T: Element> Kernel for Bring<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        if self.accumulate {
            add_to(isa, self.staged, self.target);
        } else {
            copy(isa, self.staged, self.target, self.stream);
        }
    }
}

/// `output = a`; with `stream`, all but the ends past the caches.
#[inline(always)]
fn copy<T: Element, I: Isa>(isa: I, a: &[T], output: &mut [T], stream: bool) {
    let head = super::misaligned(output);
    let ((a_head, a), (output_head, output)) = (a.split_at(head), output.split_at_mut(head));
    let ((a, a_tail), (output, output_tail)) = (T::chunks(a), T::chunks_mut(output));
    output_head.copy_from_slice(a_head);
    for (output, a) in output.iter_mut().zip(a) {
        put::<T, I>(T::Lanes::load(isa, a), output, stream);
    }
    output_tail.copy_from_slice(a_tail);
}

/// `output = a + b`.
#[inline(always)]
fn add<T: Element, I: Isa>(isa: I, a: &[T], b: &[T], output: &mut [T], stream: bool) {
    let head = super::misaligned(output);
    let ((a_head, a), (b_head, b)) = (a.split_at(head), b.split_at(head));
    let (output_head, output) = output.split_at_mut(head);
    let ((a, a_tail), (b, b_tail)) = (T::chunks(a), T::chunks(b));
    let (output, output_tail) = T::chunks_mut(output);
    add_tail(isa, a_head, b_head, output_head);
    for ((output, a), b) in output.iter_mut().zip(a).zip(b) {
        put::<T, I>(T::Lanes::load(isa, a) + T::Lanes::load(isa, b), output, stream);
    }
    add_tail(isa, a_tail, b_tail, output_tail);
}

/// `output += a`.
#[inline(always)]
fn add_to<T: Element, I: Isa>(isa: I, a: &[T], output: &mut [T]) {
    let (a, a_tail) = T::chunks(a);
    let (output, output_tail) = T::chunks_mut(output);
    for (output, a) in output.iter_mut().zip(a) {
        (T::Lanes::load(isa, a) + T::Lanes::load(isa, output)).store(output);
    }
    for (output, a) in output_tail.iter_mut().zip(a_tail) {
        *output = T::from_f64(output.to_f64() + a.to_f64());
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
