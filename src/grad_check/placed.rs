//! Arrays at chosen addresses modulo a page, for what is read and written over and over.

use std::ops::{Deref, DerefMut};

use crate::Element;

const PAGE: usize = 4096;

/// An array whose first element lies at a multiple of a page plus some bytes.
///
/// A register's worth of elements then lies in one cache line, where the allocator's addresses put each of them across
/// two. And a core takes a load for one of what it has just stored where the last twelve bits of their addresses agree:
/// arrays that are gone through together are kept apart by a share of a page.
pub(super) struct Placed<T> {
    buffer: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Element> Placed<T> {
    /// The first `len` of `elements`, `bytes` behind a page: a multiple of an element's size.
    pub(super) fn new(len: usize, elements: impl Iterator<Item = T>, bytes: usize) -> Self {
        let buffer = vec![T::ZERO; len + (PAGE + bytes) / size_of::<T>()];
        let address = buffer.as_ptr().addr();
        let start = (address.next_multiple_of(PAGE) - address + bytes) / size_of::<T>();
        let mut placed = Self { buffer, start, len };
        placed.iter_mut().zip(elements).for_each(|(place, element)| *place = element);
        placed
    }
}

impl<T> Deref for Placed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Placed<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_lies_where_it_was_asked_to() {
        for (len, bytes) in [(0, 0), (1, 1024), (5000, 2048)] {
            let mut placed = Placed::new(len, (0..).map(|element| element as f32), bytes);
            assert_eq!(placed.as_ptr().addr() % PAGE, bytes);
            assert!(placed.len() == len && placed.iter().enumerate().all(|(element, &value)| value == element as f32));
            placed.fill(3.0);
            let outside = placed.buffer[..placed.start].iter().chain(&placed.buffer[placed.start + len..]);
            assert!(outside.clone().all(|value| *value == 0.0));
        }
    }
}
