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
    /// So many of one value, `bytes` behind a page: a multiple of an element's size.
    pub(super) fn filled(len: usize, value: T, bytes: usize) -> Self {
        let mut placed = Self::zeros(len, bytes);
        placed.fill(value);
        placed
    }

    /// Copies of a stretch, one after the other, at a page.
    pub(super) fn copies(stretch: &[T], copies: usize) -> Self {
        let mut placed = Self::zeros(copies * stretch.len(), 0);
        placed.chunks_exact_mut(stretch.len().max(1)).for_each(|copy| copy.copy_from_slice(stretch));
        placed
    }

    fn zeros(len: usize, bytes: usize) -> Self {
        let buffer = vec![T::ZERO; len + (PAGE + bytes) / size_of::<T>()];
        let address = buffer.as_ptr().addr();
        let start = (address.next_multiple_of(PAGE) - address + bytes) / size_of::<T>();
        Self { buffer, start, len }
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
            let mut placed = Placed::filled(len, 2.0, bytes);
            assert_eq!(placed.as_ptr().addr() % PAGE, bytes);
            assert_eq!(*placed, vec![2.0; len]);
            placed.fill(3.0);
            let mut outside = placed.buffer[..placed.start].iter().chain(&placed.buffer[placed.start + len..]);
            assert!(outside.all(|value| *value == 0.0));
        }
    }

    #[test]
    fn copies_lie_one_after_the_other_at_a_page() {
        let placed = Placed::copies(&[1.0_f32, 2.0, 3.0], 2);
        assert_eq!(placed.as_ptr().addr() % PAGE, 0);
        assert_eq!(*placed, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
        assert_eq!(*Placed::<f64>::copies(&[], 4), []);
    }
}
