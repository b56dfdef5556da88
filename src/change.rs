//! What a change of an operation's outputs does to the loss: `sum((plus - minus) dy)`, where `dy` is the upstream
//! gradient.
//!
//! The outputs are subtracted before the product is summed, so that the loss of digits is that of the outputs, not of the
//! loss. The loops are plain, and compiled once for each instruction set: in the one that a program is compiled for they
//! take as long as the forwards between them. Every operation is rounded as it is written, into sixteen running sums and
//! one tree: the bits are the same on every instruction set, and wherever a row is computed.

use crate::Element;
use crate::simd::{Backend, Isa, Kernel};
use std::sync::OnceLock;

/// Running sums of a change of the loss: what a register of the narrowest type holds.
const LANES: usize = 16;

/// Chunks that are summed in the type of the outputs, where that is allowed.
const CHUNKS: usize = 64;

/// `sum((plus - minus) * dy)` in `f64`.
pub(crate) fn change_of_loss<T: Element>(plus: &[T], minus: &[T], dy: &[T]) -> f64 {
    let mut found = [0.0];
    // No row at all has no width either.
    if !plus.is_empty() {
        changes_of_rows(plus, minus, dy, plus.len(), &[false], &mut found);
    }
    found[0]
}

/// The same of each row of `width` elements; faster where `near` says that the row's outputs hardly differ, and that no
/// product nears the ends of the type's range: in the type of the outputs over some chunks, and in `f64` from there on.
///
/// A product is then rounded by `u |G (y+ - y-)|`, where the outputs themselves were by `u |G y|`: this adds nothing to
/// the noise of a difference that is small beside the outputs.
pub(crate) fn changes_of_rows<T: Element>(
    plus: &[T],
    minus: &[T],
    dy: &[T],
    width: usize,
    near: &[bool],
    found: &mut [f64],
) {
    static BACKEND: OnceLock<Backend> = OnceLock::new();
    // One that the environment asks for and that does not exist is an operation's to refuse.
    let backend = BACKEND.get_or_init(|| Backend::chosen().unwrap_or_else(|_| Backend::available()[0]));
    backend.run(Changes { plus, minus, dy, width, near, found });
}

/// The work, for an instruction set.
struct Changes<'a, T> {
    plus: &'a [T],
    minus: &'a [T],
    dy: &'a [T],
    width: usize,
    near: &'a [bool],
    found: &'a mut [f64],
}

impl<T: Element> Kernel for Changes<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let Self { plus, minus, dy, width, near, found } = self;
        for (row, (found, near)) in found.iter_mut().zip(near).enumerate() {
            let [plus, minus, dy] = [plus, minus, dy].map(|all| &all[row * width..(row + 1) * width]);
            *found = if *near { in_type(plus, minus, dy) } else { in_f64(plus, minus, dy) };
        }
    }
}

#[inline(always)]
fn in_f64<T: Element>(plus: &[T], minus: &[T], dy: &[T]) -> f64 {
    let mut sums = [0.0; LANES];
    let (plus, plus_tail) = plus.as_chunks::<LANES>();
    let (minus, minus_tail) = minus.as_chunks::<LANES>();
    let (dy, dy_tail) = dy.as_chunks::<LANES>();
    for ((plus, minus), dy) in plus.iter().zip(minus).zip(dy) {
        for lane in 0..LANES {
            sums[lane] += (plus[lane].to_f64() - minus[lane].to_f64()) * dy[lane].to_f64();
        }
    }
    tree(sums) + of_tail(plus_tail, minus_tail, dy_tail)
}

#[inline(always)]
fn in_type<T: Element>(plus: &[T], minus: &[T], dy: &[T]) -> f64 {
    let mut sums = [0.0; LANES];
    let (plus, plus_tail) = plus.as_chunks::<LANES>();
    let (minus, minus_tail) = minus.as_chunks::<LANES>();
    let (dy, dy_tail) = dy.as_chunks::<LANES>();
    for ((plus, minus), dy) in plus.chunks(CHUNKS).zip(minus.chunks(CHUNKS)).zip(dy.chunks(CHUNKS)) {
        let partial = of_chunks(plus, minus, dy);
        for lane in 0..LANES {
            sums[lane] += partial[lane].to_f64();
        }
    }
    tree(sums) + of_tail(plus_tail, minus_tail, dy_tail)
}

/// Sixteen sums in the type of the outputs.
#[inline(always)]
fn of_chunks<T: Element>(plus: &[[T; LANES]], minus: &[[T; LANES]], dy: &[[T; LANES]]) -> [T; LANES] {
    // Each of these is narrowed to one operation of the type: to round twice changes nothing.
    let subtract = |a: T, b: T| T::from_f64(a.to_f64() - b.to_f64());
    let multiply = |a: T, b: T| T::from_f64(a.to_f64() * b.to_f64());
    let add = |a: T, b: T| T::from_f64(a.to_f64() + b.to_f64());
    let mut sums = [T::default(); LANES];
    for ((plus, minus), dy) in plus.iter().zip(minus).zip(dy) {
        for lane in 0..LANES {
            sums[lane] = add(sums[lane], multiply(subtract(plus[lane], minus[lane]), dy[lane]));
        }
    }
    sums
}

#[inline(always)]
fn of_tail<T: Element>(plus: &[T], minus: &[T], dy: &[T]) -> f64 {
    let mut sum = 0.0;
    for ((plus, minus), dy) in plus.iter().zip(minus).zip(dy) {
        sum += (plus.to_f64() - minus.to_f64()) * dy.to_f64();
    }
    sum
}

/// The sum of sixteen numbers, always in the same order.
#[inline(always)]
fn tree(mut sums: [f64; LANES]) -> f64 {
    let mut lanes = LANES;
    while lanes > 1 {
        lanes /= 2;
        for lane in 0..lanes {
            sums[lane] += sums[lane + lanes];
        }
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numpy_random::default_rng;

    /// Rows around the boundaries of a chunk, and of a run of chunks.
    const WIDTHS: [usize; 9] = [1, 2, 15, 16, 17, 40, 1023, 1024, 1057];

    fn rows<T: Element>(width: usize) -> [Vec<T>; 3] {
        let mut rng = default_rng(width as u64);
        [(); 3].map(|()| rng.standard_normal(&[3 * width]).iter().map(|&value| T::from_f64(value)).collect())
    }

    fn every_backend_has_the_same_bits<T: Element>() {
        for width in WIDTHS {
            let [plus, minus, dy] = rows::<T>(width);
            let changes = |backend: Backend| {
                let mut found = [f64::NAN; 3];
                let near = &[true, false, true];
                backend.run(Changes { plus: &plus, minus: &minus, dy: &dy, width, near, found: &mut found });
                found.map(f64::to_bits)
            };
            for backend in Backend::available() {
                assert_eq!(changes(backend), changes(Backend::model()), "{backend:?}, width {width}");
            }
        }
    }

    #[test]
    fn every_backend_sums_a_change_to_the_same_bits() {
        every_backend_has_the_same_bits::<f32>();
        every_backend_has_the_same_bits::<f64>();
    }

    /// Of whole numbers every sum is exact, in any order.
    #[test]
    fn a_change_of_whole_numbers_is_exact() {
        for width in WIDTHS {
            let value = |element: usize, factor: usize| ((element * factor) % 7) as f32 - 3.0;
            let array = |factor: usize| (0..2 * width).map(|element| value(element, factor)).collect::<Vec<_>>();
            let (plus, minus, dy) = (array(3), array(5), array(11));
            let mut found = [f64::NAN; 2];
            changes_of_rows(&plus, &minus, &dy, width, &[true, false], &mut found);
            for (row, found) in found.into_iter().enumerate() {
                let expected: i64 = (row * width..(row + 1) * width)
                    .map(|element| (plus[element] as i64 - minus[element] as i64) * dy[element] as i64)
                    .sum();
                assert_eq!(found, expected as f64, "row {row} of width {width}");
            }
        }
        assert_eq!(change_of_loss::<f64>(&[], &[], &[]), 0.0);
    }
}
