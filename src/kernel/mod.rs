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
//! - Chunk `i` of a segment is added to accumulator `i mod A`, where `A` is stated beside each loop; the tail,
//!   shorter than a chunk, is filled up with values that add nothing and goes to the last accumulator.
//! - Accumulators are added in a tree, then the lanes of the one that is left ([`Lanes::sum`]).
//! - What the segments gave is finished in `f64`, with a compensated sum over the segments.
//!
//! [`Lanes::sum`]: crate::simd::Lanes::sum

pub(crate) mod backward;
pub(crate) mod copy;
pub(crate) mod forward;
pub(crate) mod reduce;
mod rescue;
mod stats;

use crate::element::Vectorized;

/// Elements in a segment: 16 KiB of them, so that a second pass over a segment finds it in the first-level
/// cache.
pub(crate) const fn segment<T: Vectorized>() -> usize {
    256 * T::LANES
}

/// Elements before the first address in `slice` that is a multiple of 64, all of them where there is none.
#[inline(always)]
fn misaligned<T>(slice: &[T]) -> usize {
    let address = slice.as_ptr().addr();
    ((address.next_multiple_of(64) - address) / size_of::<T>()).min(slice.len())
}
