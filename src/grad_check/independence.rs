//! Whether the rows are as independent as the operation declares: verified, exactly, before anything relies on it.
//!
//! In each pass some of the rows are filled with other values, and a row that is left alone must keep its bits, in the output
//! and in the gradient. The passes in which a row is filled are its code. All codes are different and have half of the
//! passes, rounded up, so none of them holds another: of any two rows, each is once left alone while the other changes, and
//! every dependence of a row on one other is seen. (One that shows only where several others change at a time is seen where a
//! pass fills those and leaves the row.) There are as many codes as ways to choose so many passes, so that not many
//! more than `log2 rows` passes do, each a forward and a backward: 15 for 4096 rows. (Sperner, "Ein Satz über Untermengen einer
//! endlichen Menge", 1928: no other codes would do with fewer. The bits of the row's number, set and not set, would take 24.)
//!
//! What a dependent row depends on is then found by filling ever fewer rows, in about as many passes again. A check whose
//! forward has such a row ends there, so that it costs less than one without.

use std::ops::Range;

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
    // Rows without elements keep all the bits that they have.
    if problem.rows > 1 && problem.output_len() > 0 && problem.declared.iter().any(|input| in_rows(input.locality)) {
        checks.extend(verify_rows(problem, backward)?);
    }
    for (k, input) in problem.declared.iter().enumerate() {
        if input.locality == Locality::Columns && input.len() > 1 {
            checks.push(verify_columns(problem, k)?);
        }
    }
    Ok(checks)
}

/// Which numbers are filled with other values in which pass.
struct Passes {
    /// Of each number, a bit for each pass.
    codes: Vec<u64>,
    count: u32,
}

impl Passes {
    /// Those that tell so many numbers apart.
    fn of(numbers: usize) -> Self {
        let count = count(numbers);
        let mut code = (1 << count.div_ceil(2)) - 1;
        let mut codes = Vec::with_capacity(numbers);
        while codes.len() < numbers {
            codes.push(code);
            code = next_of_as_many_bits(code);
        }
        Self { codes, count }
    }

    fn is_filled(&self, number: usize, pass: u32) -> bool {
        self.codes[number] >> pass & 1 == 1
    }
}

/// Passes that tell so many numbers apart: the fewest of which there are as many halves as numbers.
pub(super) fn count(numbers: usize) -> u32 {
    (0..u64::BITS).find(|&passes| halves(passes) >= numbers as u128).unwrap_or(u64::BITS)
}

/// The ways to choose half of so many: of an odd number there are as many rounded up as down.
fn halves(of: u32) -> u128 {
    // Each product is a number of ways itself, and divides without a rest.
    (1..=u128::from(of / 2)).fold(1, |ways, chosen| ways * (u128::from(of) - chosen + 1) / chosen)
}

/// The next larger number with as many bits set. (Gosper; Beeler, Gosper and Schroeppel, "HAKMEM", 1972, item 175.)
fn next_of_as_many_bits(bits: u64) -> u64 {
    if bits == 0 {
        return 0;
    }
    let lowest = bits & bits.wrapping_neg();
    let carried = bits.wrapping_add(lowest);
    carried | (((bits ^ carried) >> 2) / lowest)
}

/// An operation with arrays in which rows are filled.
struct Filled<'p, 'a, T: Element> {
    problem: &'p Problem<'a, T>,
    /// Which rows are.
    filled: Vec<bool>,
    inputs: Vec<ArrayD<T>>,
    dy: ArrayD<T>,
    y: ArrayD<T>,
    /// None, unless the backward is under test.
    gradients: Vec<ArrayD<T>>,
}

impl<'p, 'a, T: Element> Filled<'p, 'a, T> {
    /// No row yet.
    fn new(problem: &'p Problem<'a, T>, backward: bool) -> Self {
        Self {
            problem,
            filled: vec![false; problem.rows],
            inputs: problem.inputs.to_vec(),
            dy: problem.upstream.clone().into_owned(),
            y: problem.poisoned_output(),
            // New ones for each pass would take longer to come by than to fill, a page at a time.
            gradients: if backward { problem.poisoned_gradients() } else { Vec::new() },
        }
    }

    /// Fills these rows, and restores all others; gives hashes of the bits of those others in the output, and in the gradient.
    fn bits(&mut self, fills: &dyn Fn(usize) -> bool) -> Result<[Vec<u64>; 2], CheckError> {
        let problem = self.problem;
        let fills: Vec<bool> = (0..self.filled.len()).map(fills).collect();
        for (k, input) in self.inputs.iter_mut().enumerate() {
            if let Locality::Rows(_) = problem.declared[k].locality {
                fill(problem.input(k), input, problem.declared[k].row_len(), &self.filled, &fills);
            }
        }
        fill(problem.dy(), &mut self.dy, problem.width(), &self.filled, &fills);
        self.filled = fills;
        problem.forward(&self.inputs, &mut self.y, || None)?;
        let left_alone = |row: usize| !self.filled[row];
        let of_output = bits_of_rows(self.y.as_slice().unwrap_or_default(), problem.width(), &left_alone);
        if !self.gradients.is_empty() {
            problem.backward_into(&self.inputs, &self.dy, &mut self.gradients)?;
        }
        let of_gradients = gradient_bits(problem, &self.gradients, &left_alone);
        poison_rows(&mut self.y, problem.width());
        for (gradient, declared) in self.gradients.iter_mut().zip(&problem.declared) {
            if let Locality::Rows(_) = declared.locality {
                poison_rows(gradient, declared.row_len());
            }
        }
        Ok([of_output, of_gradients])
    }
}

/// The forward's rows, and the backward's.
fn verify_rows<T: Element>(problem: &Problem<'_, T>, backward: bool) -> Result<Vec<Check>, CheckError> {
    let rows = problem.rows;
    let passes = Passes::of(rows);
    let mut filled = Filled::new(problem, backward);
    let before = filled.bits(&|_| false)?;
    // Whether a row changed though it was left alone.
    let mut changed = [vec![false; rows], vec![false; rows]];
    for pass in 0..passes.count {
        let after = filled.bits(&|row| passes.is_filled(row, pass))?;
        for ((changed, before), after) in changed.iter_mut().zip(&before).zip(&after) {
            for row in (0..rows).filter(|&row| !passes.is_filled(row, pass)) {
                changed[row] |= before[row] != after[row];
            }
        }
    }
    let names = [(FORWARD, "output"), ("independence of rows in the backward", "gradient")];
    let mut checks = Vec::new();
    for (which, (name, what)) in names.into_iter().enumerate().take(1 + usize::from(backward)) {
        let Some(row) = changed[which].iter().position(|&changed| changed) else {
            let kept = format!("each of {rows} rows of the {what} kept its bits while the others changed");
            checks.push(Check::passed(name, kept));
            continue;
        };
        let before = before[which][row];
        let other = cause(row, rows, |fills| Ok(filled.bits(fills)?[which][row] != before))?;
        let other = in_words("row", other);
        let dependent = changed[which].iter().filter(|&&changed| changed).count();
        let lost = format!("row {row} of the {what} depends on {other}; {dependent} of {rows} rows depend on others");
        checks.push(Check::failed(name, lost));
    }
    Ok(checks)
}

/// One of `count` numbers that number `of` depends on, if the search comes upon one that is enough by itself; `changes` says whether
/// it changes where some are filled.
fn cause(
    of: usize,
    count: usize,
    mut changes: impl FnMut(&dyn Fn(usize) -> bool) -> Result<bool, CheckError>,
) -> Result<Option<usize>, CheckError> {
    let mut changes = |among: &Range<usize>| changes(&|number| number != of && among.contains(&number));
    let mut among = 0..count;
    while among.len() > 1 {
        let middle = among.start + among.len() / 2;
        let first = among.start..middle;
        among = if changes(&first)? { first } else { middle..among.end };
    }
    Ok(if changes(&among)? { Some(among.start) } else { None })
}

/// What [`cause`] found among things of this name.
fn in_words(name: &str, cause: Option<usize>) -> String {
    cause.map_or_else(|| "several others together".to_owned(), |number| format!("{name} {number}"))
}

/// A column of the output must not change while only other elements of the parameter do.
fn verify_columns<T: Element>(problem: &Problem<'_, T>, k: usize) -> Result<Check, CheckError> {
    let name = format!("{COLUMNS}{}", problem.declared[k].name);
    let len = problem.declared[k].len();
    let passes = Passes::of(len);
    let mut inputs = problem.inputs.to_vec();
    let mut filled = vec![false; len];
    let (mut before, mut after) = (problem.poisoned_output(), problem.poisoned_output());
    problem.forward(&inputs, &mut before, || None)?;
    let mut differing = |fills: &dyn Fn(usize) -> bool| {
        let fills: Vec<bool> = (0..len).map(fills).collect();
        fill(problem.input(k), &mut inputs[k], 1, &filled, &fills);
        filled = fills;
        poison_rows(&mut after, len);
        problem.forward(&inputs, &mut after, || None)?;
        Ok::<_, CheckError>(differing_bits(&before, &after, len))
    };
    for pass in 0..passes.count {
        let differing_now = differing(&|element| passes.is_filled(element, pass))?;
        let changed = (0..len).find(|&column| !passes.is_filled(column, pass) && differing_now[column] != 0);
        if let Some(column) = changed {
            let other = cause(column, len, |fills| Ok(differing(fills)?[column] != 0))?;
            let other = in_words("element", other);
            return Ok(Check::failed(&name, format!("column {column} of the output depends on {other}")));
        }
    }
    Ok(Check::passed(&name, format!("each of {len} columns kept its bits while other elements changed")))
}

/// Fills the rows that `fills` names with other values, and restores all others; those of `filled` were filled before.
///
/// A row takes the values of the next one, turned by one element and made a little smaller: values that the operation
/// can be expected to take, and others than before even where all rows are alike.
fn fill<T: Element>(original: &[T], array: &mut ArrayD<T>, row_len: usize, filled: &[bool], fills: &[bool]) {
    let rows = original.len() / row_len;
    let target = array.as_slice_mut().unwrap_or_default();
    let targets = target.par_chunks_mut(row_len).with_min_len(GRAIN.div_ceil(row_len));
    targets.enumerate().for_each(|(row, target)| {
        if fills[row] == filled[row] {
            return;
        }
        if fills[row] {
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

/// Poisons both ends of each row: one that the next call leaves out must not pass for one that kept its bits.
fn poison_rows<T: Element>(array: &mut ArrayD<T>, row_len: usize) {
    let rows = array.as_slice_mut().unwrap_or_default().par_chunks_mut(row_len);
    rows.with_min_len(GRAIN.div_ceil(row_len)).for_each(|row| {
        let poison = T::from_f64(f64::NAN);
        (row[0], row[row.len() - 1]) = (poison, poison);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_any_two_numbers_each_is_once_filled_without_the_other() {
        for numbers in [0, 1, 2, 3, 4, 6, 7, 20, 21, 70, 100] {
            let passes = Passes::of(numbers);
            for (a, b) in (0..numbers).flat_map(|a| (0..numbers).map(move |b| (a, b))).filter(|(a, b)| a != b) {
                let apart = (0..passes.count).any(|pass| passes.is_filled(a, pass) && !passes.is_filled(b, pass));
                assert!(apart, "{a} and {b} of {numbers}");
            }
        }
    }

    /// The central binomial coefficients are 1, 2, 3, 6, 10, 20, 35, 70, ...
    #[test]
    fn there_are_as_few_passes_as_there_can_be() {
        let expected = [(0, 0), (1, 0), (2, 2), (3, 3), (4, 4), (6, 4), (7, 5), (10, 5), (11, 6), (20, 6), (21, 7)];
        for (numbers, passes) in expected {
            assert_eq!(count(numbers), passes, "{numbers}");
        }
        assert_eq!([70, 71, 4096, 6435, 6436, 1_000_000].map(count), [8, 9, 15, 15, 16, 23]);
    }

    #[test]
    fn a_cause_is_found_where_one_number_is_enough_and_only_there() {
        for count in [2, 3, 9, 64] {
            for of in 0..count {
                for on in (0..count).filter(|&on| on != of) {
                    assert_eq!(cause(of, count, |fills| Ok(fills(on))).unwrap(), Some(on));
                    let both = |fills: &dyn Fn(usize) -> bool| Ok(fills(on) && fills((on + 1) % count));
                    assert_eq!(cause(of, count, both).unwrap(), None);
                }
            }
        }
    }
}
