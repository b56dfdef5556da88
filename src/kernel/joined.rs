//! Outputs that go past the caches wherever they begin.
//!
//! Only a whole cache line goes past them: a part of one has the CPU read it first, and stores behind it wait for that. Rows that
//! do not begin with a line, be it that the array does not (a large `Vec` begins 16 bytes behind one) or that their width is no
//! multiple of a line's, have lines with elements of two registers, and of two rows. So those lanes of a register that belong to
//! the next line wait for it.
//!
//! By way of a buffer that is copied past the caches, whose bursts of writes the reads of the next row wait for, rows with a tail
//! took 1.1 to 1.6 times as long on an EPYC with AVX-512. The plans of [`forward`](super::forward) and
//! [`backward`](super::backward) say which rows are joined.

use crate::Element;
use crate::kernel::{JOINED, STREAMED};
use crate::simd::{Isa, Lanes};

/// Elements that wait for the rest of their cache line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting<L> {
    /// They are in the first lanes.
    values: L,
    /// Fewer than a line has.
    count: usize,
}

impl<L> Waiting<L> {
    /// None.
    #[inline(always)]
    pub(super) fn none<T: Element, I: Isa>(isa: I) -> Self
    where
        L: Lanes<T, I>,
    {
        Self { values: L::splat(isa, T::ZERO), count: 0 }
    }

    /// Those at the end of `written` that share a line with what comes behind. They are written, and are going to be again.
    #[inline(always)]
    pub(super) fn at_end<T: Element, I: Isa>(isa: I, written: &[T]) -> Self
    where
        L: Lanes<T, I>,
    {
        let count = behind_line(written);
        let last = &written[written.len().saturating_sub(count)..];
        Self { values: L::load_tail(isa, last, L::splat(isa, T::ZERO)), count: last.len() }
    }

    /// As many, but not known yet: who writes them does so when their line is gone.
    #[inline(always)]
    pub(super) fn unknown<T: Element, I: Isa>(isa: I, written: &[T]) -> Self
    where
        L: Lanes<T, I>,
    {
        Self { values: L::splat(isa, T::ZERO), count: behind_line(written) }
    }

    /// How many they are: what is put next begins so many elements behind the start of its line.
    #[inline(always)]
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Sends a line on its way: those that wait, and the first of `value`. Its others wait.
    #[inline(always)]
    fn put<T: Element, I: Isa>(&mut self, value: L, line: &mut T::Chunk)
    where
        L: Lanes<T, I>,
    {
        let turned = value.rotated(self.count);
        turned.with_first(self.values, self.count).stream(line);
        self.values = turned;
    }

    /// [`put`](Self::put) of the first elements of `value`, those that `places` has more than wait: with these they may fill a
    /// line or not.
    #[inline(always)]
    fn put_few<T: Element, I: Isa>(&mut self, value: L, places: &mut [T])
    where
        L: Lanes<T, I>,
    {
        let turned = value.rotated(self.count);
        let joined = turned.with_first(self.values, self.count);
        let (line, rest) = T::chunks_mut(places);
        self.count = rest.len();
        self.values = match line.first_mut() {
            Some(line) => {
                joined.stream(line);
                turned
            }
            None => joined,
        };
    }

    /// Writes a line as `WRITE` says: joined, past the caches, or in place.
    #[inline(always)]
    pub(super) fn write<T: Element, I: Isa, const WRITE: u8>(&mut self, value: L, line: &mut T::Chunk)
    where
        L: Lanes<T, I>,
    {
        match WRITE {
            JOINED => self.put(value, line),
            STREAMED => value.stream(line),
            _ => value.store(line),
        }
    }

    /// The same of the first elements of `value`: joined, as [`put_few`](Self::put_few), or in place.
    #[inline(always)]
    pub(super) fn write_few<T: Element, I: Isa, const WRITE: u8>(&mut self, value: L, places: &mut [T])
    where
        L: Lanes<T, I>,
    {
        if const { WRITE == JOINED } {
            self.put_few(value, places);
        } else {
            value.store_tail(places);
        }
    }

    /// Writes those that wait, the last of `output`.
    #[inline(always)]
    pub(super) fn settle<T: Element, I: Isa>(&self, output: &mut [T])
    where
        L: Lanes<T, I>,
    {
        let start = output.len() - self.count;
        self.values.store_tail(&mut output[start..]);
    }
}

/// Elements from the last multiple of 64 to the end of a slice, be they more than it has.
#[inline(always)]
fn behind_line<T>(slice: &[T]) -> usize {
    slice.as_ptr_range().end.addr() % 64 / size_of::<T>()
}

#[cfg(test)]
mod tests {
    use super::Waiting;
    use crate::kernel::room;
    use crate::simd::{Isa, Kernel, Lanes};
    use crate::{Backend, Element};

    /// Writes rows of `width` elements: the first as it is, the others joined to it.
    struct Rows<'a, T> {
        values: &'a [T],
        width: usize,
        output: &'a mut [T],
    }

    impl<T: Element> Kernel for Rows<'_, T> {
        type Output = ();

        fn run<I: Isa>(self, isa: I) {
            let Self { values, width, output } = self;
            output[..width].copy_from_slice(&values[..width]);
            let mut waiting: Waiting<T::Lanes<I>> = Waiting::at_end(isa, &output[..width]);
            for start in (width..values.len()).step_by(width) {
                let places = &mut output[start - waiting.count()..start + width];
                let (chunks, tail) = T::chunks(&values[start..start + width]);
                let (lines, places) = places.split_at_mut(chunks.len() * T::LANES);
                for (line, chunk) in T::chunks_mut(lines).0.iter_mut().zip(chunks) {
                    waiting.put(T::Lanes::load(isa, chunk), line);
                }
                if !tail.is_empty() {
                    waiting
                        .put_few(T::Lanes::load_tail(isa, tail, T::Lanes::splat(isa, T::from_f64(f64::NAN))), places);
                }
            }
            waiting.settle(output);
            isa.fence();
        }
    }

    fn rows_are_written_wherever_they_begin<T: Element>() {
        for backend in Backend::available().into_iter().chain([Backend::model()]) {
            for (offset, width) in
                (0..T::LANES).flat_map(|offset| (T::LANES..4 * T::LANES).map(move |width| (offset, width)))
            {
                let values: Vec<T> = (1..=7 * width).map(|i| T::from_f64(i as f64)).collect();
                let buffer = &mut Vec::new();
                let all = room(buffer, T::LANES + values.len() + T::LANES);
                let output = &mut all[offset..][..values.len()];
                backend.run(Rows { values: &values, width, output });
                assert!(output == values, "{backend:?}, {} at {offset}, {width} columns", T::NAME);
                let mut others = all.iter().enumerate().filter(|(i, _)| !(offset..offset + values.len()).contains(i));
                assert!(others.all(|(_, &value)| value == T::ZERO), "{backend:?}, {offset}, {width}");
            }
        }
    }

    #[test]
    fn joined_rows_are_written_wherever_they_begin() {
        rows_are_written_wherever_they_begin::<f32>();
        rows_are_written_wherever_they_begin::<f64>();
    }
}
