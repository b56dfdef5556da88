//! Stretches of arrays that a loop goes through in step: elements, 64-byte chunks, or groups of chunks.
//!
//! A loop over groups of a known number of chunks has no check of an index left in it: all stretches are cut to one
//! length first ([`Streams::cut`]), and which of them are used at all is known when the loop is compiled.

use crate::Element;
use crate::element::Vectorized;

/// `READ` stretches to read, and `WRITTEN` to write.
#[derive(Debug)]
pub(super) struct Streams<'a, C, const READ: usize, const WRITTEN: usize> {
    pub(super) read: [&'a [C]; READ],
    pub(super) written: [&'a mut [C]; WRITTEN],
}

/// Which of them are used: the others are empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used<const READ: usize, const WRITTEN: usize> {
    pub(super) read: [bool; READ],
    pub(super) written: [bool; WRITTEN],
}

impl<C, const READ: usize, const WRITTEN: usize> Default for Streams<'_, C, READ, WRITTEN> {
    #[inline(always)]
    fn default() -> Self {
        Self { read: [&[]; READ], written: [(); WRITTEN].map(|()| &mut [][..]) }
    }
}

impl<'a, T: Vectorized, const READ: usize, const WRITTEN: usize> Streams<'a, T, READ, WRITTEN> {
    /// The chunks, and the elements that the last of them leaves over.
    #[inline(always)]
    pub(super) fn into_chunks(self) -> (Streams<'a, T::Chunk, READ, WRITTEN>, Self) {
        let (mut chunks, mut tails) = (Streams::default(), Self::default());
        for i in 0..READ {
            (chunks.read[i], tails.read[i]) = T::chunks(self.read[i]);
        }
        for (i, stretch) in self.written.into_iter().enumerate() {
            (chunks.written[i], tails.written[i]) = T::chunks_mut(stretch);
        }
        (chunks, tails)
    }
}

impl<'a, C, const READ: usize, const WRITTEN: usize> Streams<'a, C, READ, WRITTEN> {
    /// The first `len` of each that is used.
    #[inline(always)]
    pub(super) fn cut(self, used: Used<READ, WRITTEN>, len: usize) -> Self {
        let mut found = Self::default();
        for i in 0..READ {
            found.read[i] = &self.read[i][..if used.read[i] { len } else { 0 }];
        }
        for (i, stretch) in self.written.into_iter().enumerate() {
            found.written[i] = &mut stretch[..if used.written[i] { len } else { 0 }];
        }
        found
    }

    /// Groups of `N`, and what the last of them leaves over.
    #[inline(always)]
    pub(super) fn into_groups<const N: usize>(self) -> (Streams<'a, [C; N], READ, WRITTEN>, Self) {
        let (mut groups, mut rest) = (Streams::default(), Self::default());
        for i in 0..READ {
            (groups.read[i], rest.read[i]) = self.read[i].as_chunks();
        }
        for (i, stretch) in self.written.into_iter().enumerate() {
            (groups.written[i], rest.written[i]) = stretch.as_chunks_mut();
        }
        (groups, rest)
    }
}

impl<C, const N: usize, const READ: usize, const WRITTEN: usize> Streams<'_, [C; N], READ, WRITTEN> {
    /// The chunks of one group.
    #[inline(always)]
    pub(super) fn group(&mut self, used: Used<READ, WRITTEN>, k: usize) -> Streams<'_, C, READ, WRITTEN> {
        let mut found = Streams::default();
        for i in 0..READ {
            if used.read[i] {
                found.read[i] = &self.read[i][k];
            }
        }
        for (i, stretch) in self.written.iter_mut().enumerate() {
            if used.written[i] {
                found.written[i] = &mut stretch[k];
            }
        }
        found
    }
}

/// The first `CHUNKS` chunks of a slice of at least so many.
#[inline(always)]
pub(super) fn chunks<T: Element, const CHUNKS: usize>(slice: &[T]) -> &[T::Chunk; CHUNKS] {
    T::chunks(slice).0.first_chunk().expect("the caller cut as many columns as CHUNKS chunks have")
}

/// As [`chunks`], to write.
#[inline(always)]
pub(super) fn chunks_mut<T: Element, const CHUNKS: usize>(slice: &mut [T]) -> &mut [T::Chunk; CHUNKS] {
    T::chunks_mut(slice).0.first_chunk_mut().expect("the caller cut as many columns as CHUNKS chunks have")
}
