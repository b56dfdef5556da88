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
        changes_of_rows(&[[plus, minus]], dy, plus.len(), &[false], &mut found);
    }
    found[0]
}

/// The same of each row of `width` elements, between several pairs of outputs that share their upstream gradient; `found`
/// gets the changes of the first pair's rows, then those of the next.
///
/// Faster where `near` says that the row's outputs hardly differ, and that no product nears the ends of the type's
/// range: in the type of the outputs over some registers and most of their lanes, and in `f64` from there on. A product
/// is then rounded by `u |G (y+ - y-)|`, where the outputs themselves were by `u |G y|`: this adds nothing to the noise
/// of a difference that is small beside the outputs.
pub(crate) fn changes_of_rows<T: Element>(
    pairs: &[[&[T]; 2]],
    dy: &[T],
    width: usize,
    near: &[bool],
    found: &mut [f64],
) {
    static BACKEND: OnceLock<Backend> = OnceLock::new();
    // One that the environment asks for and that does not exist is an operation's to refuse.
    let backend = BACKEND.get_or_init(|| Backend::chosen().unwrap_or_else(|_| Backend::available()[0]));
    backend.run(Changes { pairs, dy, width, near, found });
}

/// The work, for an instruction set.
struct Changes<'a, T> {
    /// The outputs on both sides.
    pairs: &'a [[&'a [T]; 2]],
    dy: &'a [T],
    width: usize,
    near: &'a [bool],
    found: &'a mut [f64],
}

impl<T: Element> Kernel for Changes<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { pairs, dy, width, near, found } = self;
        let rows = near.len();
        // Two pairs at once read the upstream gradient once: reading is what takes the time.
        let (two, one) = pairs.as_chunks::<2>();
        let (found_of_two, found_of_one) = found.split_at_mut(2 * rows * two.len());
        for (pairs, found) in two.iter().zip(found_of_two.chunks_mut((2 * rows).max(1))) {
            of_pairs(isa, *pairs, dy, width, near, found);
        }
        if let [pair] = one {
            of_pairs(isa, [*pair], dy, width, near, found_of_one);
        }
    }
}

#[inline(always)]
fn of_pairs<T: Element, I: Isa, const PAIRS: usize>(
    isa: I,
    pairs: [[&[T]; 2]; PAIRS],
    dy: &[T],
    width: usize,
    near: &[bool],
    found: &mut [f64],
) {
    let rows = near.len();
    for first in (0..rows).step_by(BATCH / PAIRS) {
        let near = &near[first..rows.min(first + BATCH / PAIRS)];
        let row = |i: usize| (first + i) * width..(first + i + 1) * width;
        let mut total = I::F64::splat(isa, 0.0);
        for start in (0..width).step_by(RUN * T::LANES) {
            let mut registers = [T::Lanes::splat(isa, T::ZERO); BATCH];
            for (i, _) in near.iter().enumerate().filter(|(_, near)| **near) {
                let run = row(i).start + start..row(i).end.min(row(i).start + start + RUN * T::LANES);
                // `map` of an array would be a call of its own here.
                let mut parts = pairs;
                parts.as_flattened_mut().iter_mut().for_each(|part| *part = &part[run.clone()]);
                let sums = in_type(isa, parts, &dy[run]);
                registers[i * PAIRS..][..PAIRS].copy_from_slice(&sums);
            }
            total = total + T::Lanes::sums(isa, &registers);
        }
        let total = values(total);
        for (i, near) in near.iter().enumerate() {
            for (pair, [plus, minus]) in pairs.iter().enumerate() {
                found[pair * rows + first + i] =
                    if *near { total[i * PAIRS + pair] } else { in_f64([plus, minus, dy].map(|all| &all[row(i)])) };
            }
        }
    }
}

/// One register of sums in the type of the outputs for each pair.
#[inline(always)]
fn in_type<T: Element, I: Isa, const PAIRS: usize>(
    isa: I,
    pairs: [[&[T]; 2]; PAIRS],
    dy: &[T],
) -> [T::Lanes<I>; PAIRS] {
    let load = |chunk: &T::Chunk| T::Lanes::load(isa, chunk);
    let zero = T::Lanes::splat(isa, T::ZERO);
    let load_tail = |tail: &[T]| T::Lanes::load_tail(isa, tail, zero);
    let (dy, dy_tail) = T::chunks(dy);
    // As many chunks as dy has: the bounds of the loop are then those of all slices.
    let mut chunks = [[dy; 2]; PAIRS];
    for (chunks, side) in chunks.as_flattened_mut().iter_mut().zip(pairs.as_flattened()) {
        *chunks = &T::chunks(side).0[..dy.len()];
    }
    let mut sums = [[zero; CHAINS]; PAIRS];
    let whole = dy.len() / CHAINS * CHAINS;
    for at in (0..whole).step_by(CHAINS) {
        for chain in 0..CHAINS {
            let dy = load(&dy[at + chain]);
            for ([plus, minus], sums) in chunks.iter().zip(&mut sums) {
                sums[chain] = sums[chain] + (load(&plus[at + chain]) - load(&minus[at + chain])) * dy;
            }
        }
    }
    for at in whole..dy.len() {
        let dy = load(&dy[at]);
        for ([plus, minus], sums) in chunks.iter().zip(&mut sums) {
            sums[0] = sums[0] + (load(&plus[at]) - load(&minus[at])) * dy;
        }
    }
    if !dy_tail.is_empty() {
        let dy = load_tail(dy_tail);
        for (pair, sums) in pairs.iter().zip(&mut sums) {
            let [plus, minus] = pair.map(|side| load_tail(T::chunks(side).1));
            sums[1] = sums[1] + (plus - minus) * dy;
        }
    }
    sums.map(|[even, odd]| even + odd)
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
                backend.run(Changes { pairs: &[[&plus, &minus]], dy: &dy, width, near, found: &mut found });
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

    /// A block takes two pairs at once, and three where a step is large.
    fn pairs_together_have_the_bits_of_each<T: Element>() {
        for width in WIDTHS {
            let [plus, minus, dy] = rows::<T>(width);
            // Four pairs between the arrays, no two of them alike.
            let pairs = [[&plus[..], &minus[..]], [&minus, &plus], [&plus, &dy], [&dy, &minus]];
            let near: [bool; ROWS] = std::array::from_fn(|row| row % 3 != 1);
            for backend in Backend::available() {
                let changes = |pairs: &[[&[T]; 2]]| {
                    let mut found = vec![f64::NAN; pairs.len() * ROWS];
                    backend.run(Changes { pairs, dy: &dy, width, near: &near, found: &mut found });
                    found.into_iter().map(f64::to_bits).collect::<Vec<_>>()
                };
                for count in 1..=pairs.len() {
                    let alone = pairs[..count].iter().flat_map(|pair| changes(&[*pair])).collect::<Vec<_>>();
                    assert_eq!(changes(&pairs[..count]), alone, "{count} pairs, {backend:?}, width {width}");
                }
            }
        }
    }

    #[test]
    fn changes_between_several_pairs_have_the_bits_of_each_pair() {
        pairs_together_have_the_bits_of_each::<f32>();
        pairs_together_have_the_bits_of_each::<f64>();
    }

    /// The blocks in which a check runs depend on the shape, and which rows are near on the data.
    #[test]
    fn a_change_has_the_same_bits_wherever_its_row_is_computed() {
        for width in WIDTHS {
            let [plus, minus, dy] = rows::<f32>(width);
            let mut together = [f64::NAN; ROWS];
            changes_of_rows(&[[&plus, &minus]], &dy, width, &[true; ROWS], &mut together);
            for (row, together) in together.into_iter().enumerate() {
                let mut alone = [f64::NAN];
                let [plus, minus, dy] = [&plus, &minus, &dy].map(|all| &all[row * width..(row + 1) * width]);
                changes_of_rows(&[[plus, minus]], dy, width, &[true], &mut alone);
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
            changes_of_rows(&[[&plus, &minus]], &dy, width, &[true, false], &mut found);
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
