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
    ///
    /// Before and after the calls of the operation all arrays are gone through together: to hand work to the threads takes as
    /// long as to go through some ten thousand elements.
    fn bits(&mut self, fills: &dyn Fn(usize) -> bool) -> Result<[Vec<u64>; 2], CheckError> {
        let problem = self.problem;
        let fills: Vec<bool> = (0..self.filled.len()).map(fills).collect();
        let in_rows = |k: usize| matches!(problem.declared[k].locality, Locality::Rows(_));
        let row_len = |k: usize| problem.declared[k].row_len();
        let inputs = self.inputs.iter_mut().enumerate().filter(|(k, _)| in_rows(*k));
        let mut jobs: Vec<_> = inputs
            .flat_map(|(k, input)| Stretch::all(input, row_len(k)).map(move |rows| (problem.input(k), rows)))
            .collect();
        jobs.extend(Stretch::all(&mut self.dy, problem.width()).map(|rows| (problem.dy(), rows)));
        share_out(jobs, |(_, rows)| rows.rows.len(), |(original, rows)| rows.fill(original, &self.filled, &fills));
        self.filled = fills;
        problem.forward(&self.inputs, &mut self.y, || None)?;
        if !self.gradients.is_empty() {
            problem.backward_into(&self.inputs, &self.dy, &mut self.gradients)?;
        }
        let gradients = self.gradients.iter_mut().enumerate().filter(|(k, _)| in_rows(*k));
        let mut arrays: Vec<_> = gradients.map(|(k, gradient)| (gradient, row_len(k))).collect();
        arrays.push((&mut self.y, problem.width()));
        let mut hashes = vec![vec![0; problem.rows]; arrays.len()];
        let jobs = arrays.into_iter().zip(&mut hashes);
        let jobs: Vec<_> = jobs
            .flat_map(|((array, row_len), hashes)| {
                Stretch::all(array, row_len).zip(hashes.chunks_mut(Stretch::<T>::rows(row_len)))
            })
            .collect();
        share_out(jobs, |(rows, _)| rows.rows.len(), |(rows, hashes)| rows.take_bits(&self.filled, hashes));
        let of_output = hashes.pop().unwrap_or_default();
        let mut of_gradients = vec![0_u64; problem.rows];
        for hashes in hashes {
            of_gradients.iter_mut().zip(hashes).for_each(|(all, hash)| *all = all.rotate_left(7) ^ hash);
        }
        Ok([of_output, of_gradients])
    }
}

/// Shares out jobs on so many elements each to the threads, in tasks that are worth it.
fn share_out<J: Send>(jobs: Vec<J>, elements: impl Fn(&J) -> usize, work: impl Fn(J) + Send + Sync) {
    let tasks = (jobs.iter().map(elements).sum::<usize>() / GRAIN).max(1);
    let least = jobs.len().div_ceil(tasks).max(1);
    jobs.into_par_iter().with_min_len(least).for_each(work);
}

/// Some rows of an array: what a thread goes through at a time.
struct Stretch<'a, T> {
    /// The number of the first.
    first: usize,
    row_len: usize,
    rows: &'a mut [T],
}

impl<'a, T: Element> Stretch<'a, T> {
    /// Rows in a stretch, but in the last.
    fn rows(row_len: usize) -> usize {
        GRAIN.div_ceil(row_len)
    }

    /// All rows of an array in C order.
    fn all(array: &'a mut ArrayD<T>, row_len: usize) -> impl Iterator<Item = Self> {
        let rows = Self::rows(row_len);
        let stretches = array.as_slice_mut().unwrap_or_default().chunks_mut(rows * row_len).enumerate();
        stretches.map(move |(i, stretch)| Self { first: i * rows, row_len, rows: stretch })
    }

    /// The numbers of the rows, and the rows.
    fn numbered(self) -> impl Iterator<Item = (usize, &'a mut [T])> {
        (self.first..).zip(self.rows.chunks_exact_mut(self.row_len))
    }

    /// Fills the rows that `fills` names with other values, and restores all others; those of `filled` were filled before.
    ///
    /// A row takes the values of the next one, turned by one element and made a little smaller: values that the operation
    /// can be expected to take, and others than before even where all rows are alike.
    fn fill(self, original: &[T], filled: &[bool], fills: &[bool]) {
        let row_len = self.row_len;
        let rows = original.len() / row_len;
        for (row, target) in self.numbered().filter(|(row, _)| fills[*row] != filled[*row]) {
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
        }
    }

    /// Takes hashes of the rows that are not filled, and [poisons](poison) all.
    fn take_bits(self, filled: &[bool], hashes: &mut [u64]) {
        for ((row, values), hash) in self.numbered().zip(hashes) {
            if !filled[row] {
                *hash = hash_of_row(values);
            }
            poison(values);
        }
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

/// One of `count` numbers that number `of` depends on, if the search comes upon one that is enough by itself; `changes` says
/// whether it changes where some are filled.
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
        Stretch::all(&mut inputs[k], 1).for_each(|elements| elements.fill(problem.input(k), &filled, &fills));
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

/// [Poisons](poison) all rows.
fn poison_rows<T: Element>(array: &mut ArrayD<T>, row_len: usize) {
    let rows = array.as_slice_mut().unwrap_or_default().par_chunks_mut(row_len);
    rows.with_min_len(GRAIN.div_ceil(row_len)).for_each(poison);
}

/// Poisons both ends of a row: one that the next call leaves out must not pass for one that kept its bits.
fn poison<T: Element>(row: &mut [T]) {
    let poison = T::from_f64(f64::NAN);
    (row[0], row[row.len() - 1]) = (poison, poison);
}

/// Elements below which a task is not worth its hand-over.
const GRAIN: usize = 1 << 15;

/// A hash of the bits of each row.
pub(super) fn row_bits<T: Element>(values: &[T], row_len: usize) -> Vec<u64> {
    values.par_chunks(row_len).with_min_len(GRAIN.div_ceil(row_len)).map(hash_of_row).collect()
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
