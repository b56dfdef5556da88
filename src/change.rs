//! What a change of an operation's outputs does to the loss: `sum((plus - minus) dy)`, where `dy` is the upstream
//! gradient.
//!
//! The outputs are subtracted before the product is summed, so that the loss of digits is that of the outputs, not of the
//! loss. Compiled once for each instruction set: in the one that a program is compiled for this takes as long as the
//! forwards between which it stands. Every operation is rounded as it is written, in one order: the bits are the same on
//! every instruction set, and wherever a row is computed.

use crate::Element;
use crate::simd::{BATCH, Backend, Isa, Kernel, Lanes, values};
use std::sync::OnceLock;

/// Registers that are summed in the type of the outputs, where that is allowed.
const RUN: usize = 64;

/// Running sums of a row, so that one addition need not wait for the one before.
const CHAINS: usize = 2;

/// Running sums in `f64`.
const LANES: usize = 16;

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
/// product nears the ends of the type's range: in the type of the outputs over some registers and most of their lanes, and in `f64` from
/// there on.
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
    backend.run(Changes { rows: [plus, minus, dy], width, near, found });
}

/// The work, for an instruction set.
struct Changes<'a, T> {
    /// The outputs on both sides, and the upstream gradient.
    rows: [&'a [T]; 3],
    width: usize,
    near: &'a [bool],
    found: &'a mut [f64],
}

impl<T: Element> Kernel for Changes<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { rows, width, near, found } = self;
        let batches = found.chunks_mut(BATCH).zip(near.chunks(BATCH)).enumerate();
        for (batch, (found, near)) in batches {
            let row = |i: usize| (batch * BATCH + i) * width..(batch * BATCH + i + 1) * width;
            let mut total = I::F64::splat(isa, 0.0);
            for start in (0..width).step_by(RUN * T::LANES) {
                let mut registers = [T::Lanes::splat(isa, T::ZERO); BATCH];
                for (i, _) in near.iter().enumerate().filter(|(_, near)| **near) {
                    let run = row(i).start + start..row(i).end.min(row(i).start + start + RUN * T::LANES);
                    registers[i] = in_type(isa, rows.map(|all| &all[run.clone()]));
                }
                total = total + T::Lanes::sums(isa, &registers);
            }
            let total = values(total);
            for (i, (found, near)) in found.iter_mut().zip(near).enumerate() {
                *found = if *near { total[i] } else { in_f64(rows.map(|all| &all[row(i)])) };
            }
        }
    }
}

/// One register of sums in the type of the outputs.
#[inline(always)]
fn in_type<T: Element, I: Isa>(isa: I, [plus, minus, dy]: [&[T]; 3]) -> T::Lanes<I> {
    let load = |chunk: &T::Chunk| T::Lanes::load(isa, chunk);
    let zero = T::Lanes::splat(isa, T::ZERO);
    let load_tail = |tail: &[T]| T::Lanes::load_tail(isa, tail, zero);
    let (plus, plus_tail) = T::chunks(plus);
    let (minus, minus_tail) = T::chunks(minus);
    let (dy, dy_tail) = T::chunks(dy);
    let mut sums = [zero; CHAINS];
    let (plus, plus_rest) = plus.as_chunks::<CHAINS>();
    let (minus, minus_rest) = minus.as_chunks::<CHAINS>();
    let (dy, dy_rest) = dy.as_chunks::<CHAINS>();
    for ((plus, minus), dy) in plus.iter().zip(minus).zip(dy) {
        for chain in 0..CHAINS {
            sums[chain] = sums[chain] + (load(&plus[chain]) - load(&minus[chain])) * load(&dy[chain]);
        }
    }
    for ((plus, minus), dy) in plus_rest.iter().zip(minus_rest).zip(dy_rest) {
        sums[0] = sums[0] + (load(plus) - load(minus)) * load(dy);
    }
    if !plus_tail.is_empty() {
        sums[1] = sums[1] + (load_tail(plus_tail) - load_tail(minus_tail)) * load_tail(dy_tail);
    }
    sums[0] + sums[1]
}

#[inline(always)]
fn in_f64<T: Element>([plus, minus, dy]: [&[T]; 3]) -> f64 {
    let mut sums = [0.0; LANES];
    let (plus, plus_tail) = plus.as_chunks::<LANES>();
    let (minus, minus_tail) = minus.as_chunks::<LANES>();
    let (dy, dy_tail) = dy.as_chunks::<LANES>();
    for ((plus, minus), dy) in plus.iter().zip(minus).zip(dy) {
        for lane in 0..LANES {
            sums[lane] += (plus[lane].to_f64() - minus[lane].to_f64()) * dy[lane].to_f64();
        }
    }
    let mut tail = 0.0;
    for ((plus, minus), dy) in plus_tail.iter().zip(minus_tail).zip(dy_tail) {
        tail += (plus.to_f64() - minus.to_f64()) * dy.to_f64();
    }
    tree(sums) + tail
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

    /// More rows than are summed together.
    const ROWS: usize = BATCH + 3;

    fn rows<T: Element>(width: usize) -> [Vec<T>; 3] {
        let mut rng = default_rng(width as u64);
        [(); 3].map(|()| rng.standard_normal(&[ROWS * width]).iter().map(|&value| T::from_f64(value)).collect())
    }

    fn every_backend_has_the_same_bits<T: Element>() {
        for width in WIDTHS {
            let [plus, minus, dy] = rows::<T>(width);
            let changes = |backend: Backend| {
                let mut found = [f64::NAN; ROWS];
                let near: [bool; ROWS] = std::array::from_fn(|row| row % 3 != 1);
                let near = &near;
                backend.run(Changes { rows: [&plus, &minus, &dy], width, near, found: &mut found });
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

    /// The blocks in which a check runs depend on the shape, and which rows are near on the data.
    #[test]
    fn a_change_has_the_same_bits_wherever_its_row_is_computed() {
        for width in WIDTHS {
            let [plus, minus, dy] = rows::<f32>(width);
            let mut together = [f64::NAN; ROWS];
            changes_of_rows(&plus, &minus, &dy, width, &[true; ROWS], &mut together);
            for (row, together) in together.into_iter().enumerate() {
                let mut alone = [f64::NAN];
                let [plus, minus, dy] = [&plus, &minus, &dy].map(|all| &all[row * width..(row + 1) * width]);
                changes_of_rows(plus, minus, dy, width, &[true], &mut alone);
                assert_eq!(alone[0].to_bits(), together.to_bits(), "row {row} of width {width}");
            }
        }
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
