//! The arithmetic of LayerNorm, written once for every instruction set.
//!
//! A kernel works on a block of contiguous rows, given as plain slices whose lengths have been checked. It
//! knows neither threads nor views.
//!
//! # Order of the additions
//!
//! The same bits on every backend need one fixed order, which depends on the width alone:
//!
//! - A row is cut into segments of [`segment`] elements (16 KiB), a segment into 64-byte chunks.
//! - Forward adds chunk `i` of a segment to accumulator `i mod 4`, and after a run of 32 chunks adds up the accumulators in a
//!   tree. Backward adds up four chunks, and those to a running sum. A run's sum is added to the segment's total; the tail,
//!   shorter than a chunk and filled up with values that add nothing, is added to the total last.
//! - The lanes of the total are added, the last four in `f64` ([`Lanes::sum`]).
//! - What the segments gave is finished in `f64`, with a compensated sum over the segments.
//!
//! [`Lanes::sum`]: crate::simd::Lanes::sum

pub(crate) mod backward;
mod careful;
pub(crate) mod copy;
pub(crate) mod forward;
mod joined;
mod narrow;
pub(crate) mod reduce;
mod stats;
mod streams;
#[cfg(test)]
mod tests;
pub(crate) mod wide;
mod wide_lanes;

use crate::Element;
use crate::element::Vectorized;

/// A kernel with what it works on.
#[derive(Debug)]
pub(crate) enum Work<'a, T> {
    Forward(forward::Forward<'a, T>),
    Backward(backward::Backward<'a, T>),
    LongForward(forward::long_rows::LongRows<'a, T>),
    LongBackward(backward::long_rows::LongRows<'a, T>),
    AddInto(reduce::AddInto<'a, T>),
    AddLost(reduce::AddLost<'a, T>),
    Copy(copy::Copy<'a, T>),
}

/// What a loop does with its output.
const NOT_WRITTEN: u8 = 0;
const STORED: u8 = 1;
/// Past the caches, where rows begin and end with cache lines.
const STREAMED: u8 = 2;
/// Past the caches, wherever rows begin ([`joined`]).
const JOINED: u8 = 3;

/// Bytes of a first-level cache, of most CPUs that have AVX2: a larger one only holds more.
const FIRST_LEVEL: usize = 32 << 10;

/// Bytes of a row, at most, of which it holds five: those of two rows on their way, of the output, and of gamma and beta; or, in
/// backward, twice x and dy, and dx.
const FIFTH: usize = FIRST_LEVEL / 5;

/// Bytes of a row, at most, whose sums are finished with those of seven others: no more chunks than a run has.
const TOGETHER: usize = 3 << 9;

/// Elements in a segment: 16 KiB of them, so that a second pass over a segment finds it in the first-level
/// cache.
pub(crate) const fn segment<T: Vectorized>() -> usize {
    256 * T::LANES
}

/// Elements before the first address in `slice` that is a multiple of 64, all of them where there is none.
#[inline(always)]
pub(crate) fn misaligned<T>(slice: &[T]) -> usize {
    let address = slice.as_ptr().addr();
    ((address.next_multiple_of(64) - address) / size_of::<T>()).min(slice.len())
}

/// The first `len` elements of a buffer at a multiple of 64 bytes: of an empty buffer zeros.
#[inline(always)]
pub(crate) fn room<T: Element>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if len == 0 {
        return &mut [];
    }
    if buffer.len() < len + T::LANES {
        // Zeros from the allocator take less time than zeros that are written.
        *buffer = vec![T::ZERO; len + T::LANES];
    }
    let start = misaligned(buffer);
    &mut buffer[start..start + len]
}
