//! Whether the rows are as independent as the operation declares: verified, exactly, before anything relies on it.
//!
//! In pass `b` every row whose number has bit `b` set is filled with other values, and then every other row instead. A
//! row that is left alone must keep its bits, in the output and in the gradient. Any two rows differ in some bit, so
//! each is once left alone while the other changes: `2 ceil(log2 rows)` forwards and as many backwards see every
//! dependence. A row that depends on one other changes in just the passes of the bits in which the two differ, which
//! names the other.

use ndarray::ArrayD;
use rayon::prelude::*;

use super::error::CheckError;
use super::operation::Locality;
use super::problem::Problem;
use super::report::Check;
use crate::Element;

/// The check that splitting the loss by rows relies on.
const FORWARD: &str = "independence of rows";

/// Whether the checks allow the loss to be split by rows and columns: what the backward does is for the differences to
/// tell.
pub(super) fn may_split(checks: &[Check]) -> bool {
    let relied_on = |check: &&Check| check.name == FORWARD || check.name.starts_with(COLUMNS);
    checks.iter().filter(relied_on).all(|check| check.holds)
}

/// The checks of parameters, before the parameter's name.
const COLUMNS: &str = "independence of columns of ";

/// Verifies all that the inputs declare, in the forward and, where it is under test, in the backward; the first
/// counterexample fails the check.
pub(super) fn verify<T: Element>(problem: &Problem<'_, T>, backward: bool) -> Result<Vec<Check>, CheckError> {
    let mut checks = Vec::new();
    let in_rows = |locality| matches!(locality, Locality::Rows(_));
    if problem.rows > 1 && problem.declared.iter().any(|input| in_rows(input.locality)) {
        checks.extend(verify_rows(problem, backward)?);
    }
    for (k, input) in problem.declared.iter().enumerate() {
        if input.locality == Locality::Columns && input.len() > 1 {
            checks.push(verify_columns(problem, k)?);
        }
    }
    Ok(checks)
}

/// The passes: each bit that a number below `count` can have, set and not set.
fn passes(count: usize) -> impl Iterator<Item = (u32, bool)> {
    let bits = usize::BITS - count.saturating_sub(1).leading_zeros();
    (0..bits).flat_map(|bit| [(bit, true), (bit, false)])
}

/// Whether number `number` is filled with other values in a pass.
fn is_filled(number: usize, (bit, set): (u32, bool)) -> bool {
    (number >> bit & 1 == 1) == set
}

/// The forward's rows, and the backward's.
fn verify_rows<T: Element>(problem: &Problem<'_, T>, backward: bool) -> Result<Vec<Check>, CheckError> {
    let mut inputs = problem.inputs.to_vec();
    let mut dy = problem.upstream.clone().into_owned();
    let mut y = problem.poisoned_output();
    // Poisoned once: that all of them is written is verified on its own. New ones for each pass would take longer to come by than
    // to fill, a page at a time.
    let mut gradients = if backward { problem.poisoned_gradients() } else { Vec::new() };
    let mut bits = |inputs: &[ArrayD<T>], dy: &ArrayD<T>, looked_at: &(dyn Fn(usize) -> bool + Sync)| {
        problem.forward(inputs, &mut y, || None)?;
        let of_output = bits_of_rows(y.as_slice().unwrap_or_default(), problem.width(), looked_at);
        if backward {
            problem.backward_into(inputs, dy, &mut gradients)?;
        }
        Ok::<_, CheckError>([of_output, gradient_bits(problem, &gradients, looked_at)])
    };
    let before = bits(&inputs, &dy, &|_| true)?;
    // For each row, the bits whose passes changed it though it was left alone.
    let mut changed = [vec![0_usize; problem.rows], vec![0; problem.rows]];
    let mut last = None;
    for pass in passes(problem.rows) {
        for (k, input) in inputs.iter_mut().enumerate() {
            if let Locality::Rows(_) = problem.declared[k].locality {
                fill(problem.input(k), input, problem.declared[k].row_len(), pass, last);
            }
        }
        fill(problem.dy(), &mut dy, problem.width(), pass, last);
        last = Some(pass);
        let after = bits(&inputs, &dy, &|row| !is_filled(row, pass))?;
        for ((changed, before), after) in changed.iter_mut().zip(&before).zip(&after) {
            for row in (0..problem.rows).filter(|&row| !is_filled(row, pass) && before[row] != after[row]) {
                changed[row] |= 1 << pass.0;
            }
        }
    }
    let [of_output, of_gradient] = changed;
    let mut checks = vec![row_check(FORWARD, "output", &of_output)];
    if backward {
        checks.push(row_check("independence of rows in the backward", "gradient", &of_gradient));
    }
    Ok(checks)
}

fn row_check(name: &str, what: &str, changed: &[usize]) -> Check {
    let Some(row) = changed.iter().position(|&bits| bits != 0) else {
        let rows = changed.len();
        return Check::passed(
            name,
            format!("each of {rows} rows of the {what} kept its bits while the others changed"),
        );
    };
    let other = row ^ changed[row];
    let dependent = changed.iter().filter(|&&bits| bits != 0).count();
    Check::failed(name, format!("row {row} of the {what} depends on row {other}; {dependent} rows depend on another"))
}

/// A column of the output must not change while only other elements of the parameter do.
fn verify_columns<T: Element>(problem: &Problem<'_, T>, k: usize) -> Result<Check, CheckError> {
    let name = format!("{COLUMNS}{}", problem.declared[k].name);
    let len = problem.declared[k].len();
    let mut inputs = problem.inputs.to_vec();
    let (mut before, mut after) = (problem.poisoned_output(), problem.poisoned_output());
    problem.forward(&inputs, &mut before, || None)?;
    let mut changed = vec![0_usize; len];
    let mut last = None;
    for pass in passes(len) {
        fill(problem.input(k), &mut inputs[k], 1, pass, last);
        last = Some(pass);
        problem.forward(&inputs, &mut after, || None)?;
        let differing = differing_bits(&before, &after, len);
        for column in (0..len).filter(|&column| !is_filled(column, pass) && differing[column] != 0) {
            changed[column] |= 1 << pass.0;
        }
    }
    Ok(match changed.iter().position(|&bits| bits != 0) {
        None => Check::passed(&name, format!("each of {len} columns kept its bits while other elements changed")),
        Some(column) => {
            let other = column ^ changed[column];
            Check::failed(&name, format!("column {column} of the output depends on element {other}"))
        }
    })
}

/// Fills the rows of a pass with other values, and restores all others, where the `last` pass did not leave them so.
///
/// A row takes the values of the next one, turned by one element and made a little smaller: values that the operation
/// can be expected to take, and others than before even where all rows are alike.
fn fill<T: Element>(
    original: &[T],
    array: &mut ArrayD<T>,
    row_len: usize,
    pass: (u32, bool),
    last: Option<(u32, bool)>,
) {
    let rows = original.len() / row_len;
    let target = array.as_slice_mut().unwrap_or_default();
    let targets = target.par_chunks_mut(row_len).with_min_len(GRAIN.div_ceil(row_len));
    targets.enumerate().for_each(|(row, target)| {
        let was_filled = last.is_some_and(|last| is_filled(row, last));
        if is_filled(row, pass) == was_filled {
            return;
        }
        if is_filled(row, pass) {
            let next = if row + 1 < rows { row + 1 } else { 0 };
            let next = &original[next * row_len..][..row_len];
            // Two runs, not one chain of both, which would be gone through element by element.
            let (first, others) = next.split_at(1);
            let (front, back) = target.split_at_mut(others.len());
            for (target, next) in [(front, others), (back, first)] {
                target.iter_mut().zip(next).for_each(|(value, next)| *value = T::from_f64(0.9375 * next.to_f64()));
            }
        } else {
            target.copy_from_slice(&original[row * row_len..][..row_len]);
        }
    });
}

/// Elements below which a task is not worth its hand-over.
const GRAIN: usize = 1 << 15;

/// A hash of the gradients of all inputs that are declared in rows, for each row: arrays as large as these are not
/// kept.
fn gradient_bits<T: Element>(
    problem: &Problem<'_, T>,
    gradients: &[ArrayD<T>],
    looked_at: &(dyn Fn(usize) -> bool + Sync),
) -> Vec<u64> {
    let mut hashes = vec![0_u64; problem.rows];
    for (declared, gradient) in problem.declared.iter().zip(gradients) {
        if let Locality::Rows(_) = declared.locality {
            let rows = bits_of_rows(gradient.as_slice().unwrap_or_default(), declared.row_len(), looked_at);
            hashes.iter_mut().zip(rows).for_each(|(hash, row)| *hash = hash.rotate_left(7) ^ row);
        }
    }
    hashes
}

/// A hash of the bits of each row.
pub(super) fn row_bits<T: Element>(values: &[T], row_len: usize) -> Vec<u64> {
    bits_of_rows(values, row_len, &|_| true)
}

/// The same of the rows that are looked at, and 0 for the others.
fn bits_of_rows<T: Element>(values: &[T], row_len: usize, looked_at: &(dyn Fn(usize) -> bool + Sync)) -> Vec<u64> {
    let rows = values.par_chunks(row_len).with_min_len(GRAIN.div_ceil(row_len)).enumerate();
    rows.map(|(row, values)| if looked_at(row) { hash_of_row(values) } else { 0 }).collect()
}

/// Four hashes, each of a fourth of the numbers, so that the processor need not wait for one multiplication to begin the next,
/// and then a hash of these.
fn hash_of_row<T: Element>(row: &[T]) -> u64 {
    const LANES: usize = 4;
    let mut lanes = [0; LANES];
    let (chunks, tail) = row.as_chunks::<{ 2 * LANES }>();
    for chunk in chunks {
        for lane in 0..LANES {
            let [a, b] = [chunk[2 * lane], chunk[2 * lane + 1]].map(T::bits);
            lanes[lane] = if size_of::<T>() <= size_of::<u32>() {
                mixed(lanes[lane], a | b << u32::BITS)
            } else {
                mixed(mixed(lanes[lane], a), b)
            };
        }
    }
    let hash = tail.iter().fold(0, |hash, value| mixed(hash, value.bits()));
    lanes.into_iter().fold(hash, mixed)
}

/// Of each of `len` columns the bits in which any of its numbers differs.
fn differing_bits<T: Element>(a: &ArrayD<T>, b: &ArrayD<T>, len: usize) -> Vec<u64> {
    let [a, b] = [a, b].map(|array| array.as_slice().unwrap_or_default());
    let together = GRAIN.div_ceil(len) * len;
    let blocks = a.par_chunks(together).zip(b.par_chunks(together)).map(|(a, b)| {
        let mut differing = vec![0; len];
        for (a, b) in a.chunks_exact(len).zip(b.chunks_exact(len)) {
            for (differing, (a, b)) in differing.iter_mut().zip(a.iter().zip(b)) {
                *differing |= a.bits() ^ b.bits();
            }
        }
        differing
    });
    let either = |mut a: Vec<u64>, b: Vec<u64>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a |= b);
        a
    };
    blocks.reduce(|| vec![0; len], either)
}

/// Folds 64 bits into a hash; each step is a bijection, so that one changed number always shows.
fn mixed(hash: u64, bits: u64) -> u64 {
    let product = (hash.rotate_left(5) ^ bits).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The upper bits, a sign among them, would else reach few others.
    product ^ product >> 29
}
