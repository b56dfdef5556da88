//! A block of rows, of each of which an element is perturbed by a step of its own.

use std::ops::Range;

use ndarray::{ArrayD, IxDyn};

use super::error::{CheckError, Probe};
use super::exhaustive::Difference;
use super::noise::Noise;
use super::placed::Placed;
use super::problem::{PAIRS, Problem};
use super::stack::Stack;
use super::step::{Reach, truncation};
use crate::Element;
use crate::change::changes_of_rows;

/// Rows of input `k`, with the buffers to perturb and to forward them.
pub(super) struct Block<'p, T: Element> {
    problem: &'p Problem<'p, T>,
    k: usize,
    rows: Range<usize>,
    buffers: Buffers<T>,
    /// The deviation of the rounding noise of each row's loss.
    noise: Vec<f64>,
    /// Whether the products of a row's loss stay well within the range of the type.
    in_range: Vec<bool>,
    /// Of each row how far it may be moved; empty where a step is fixed, and distrusted as a whole.
    pub(super) reaches: Vec<Reach>,
    /// What the perturbations did to the loss of each row, and the widths of their differences: those of all rows for
    /// the step, then for its multiples.
    changes: Vec<f64>,
    widths: Vec<f64>,
    /// What the last call of [`differences`](Self::differences) found, for each row.
    pub(super) found: Vec<Difference>,
}

/// By how much an element of a row is moved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Move {
    pub(super) column: usize,
    pub(super) step: f64,
}

/// Copies of what is perturbed, and their outputs.
enum Buffers<T> {
    /// The rows alone, in pairs of copies: those of a pair are moved up in the first and down in the second.
    Rows { stack: Stack<T>, output: Placed<T> },
    /// All inputs, moved up for one output and down for the other.
    Everything { inputs: Vec<ArrayD<T>>, plus: ArrayD<T>, minus: ArrayD<T> },
}

/// Where the outputs lie from a page, in bytes; the copies of the rows lie at its start.
const PHASE: usize = 2048;

/// The multiples of a step by which a column is moved: the third where the step is large.
const MULTIPLES: [f64; 3] = [1.0, 2.0, 4.0];

/// What the noise of a row's loss lies between where no product of it nears the ends of the range of `f32`.
const SMALL: f64 = 1e-30;
const LARGE: f64 = 1e18;

impl<'p, T: Element> Block<'p, T> {
    /// A block that is forwarded alone.
    pub(super) fn of_rows(
        problem: &'p Problem<'p, T>,
        noise: &Noise,
        k: usize,
        rows: Range<usize>,
    ) -> Result<Self, CheckError> {
        let copies = 2 * problem.pairs_of_copies();
        let len = copies * rows.len() * problem.width();
        let output = Placed::filled(len, T::from_f64(f64::NAN), PHASE);
        let buffers = Buffers::Rows { stack: Stack::new(problem, &rows, copies), output };
        Self::new(problem, noise, k, rows, buffers)
    }

    /// All rows, forwarded with a clone of all inputs.
    pub(super) fn of_everything(problem: &'p Problem<'p, T>, noise: &Noise, k: usize) -> Result<Self, CheckError> {
        let (plus, minus) = (problem.poisoned_output(), problem.poisoned_output());
        let buffers = Buffers::Everything { inputs: problem.inputs.to_vec(), plus, minus };
        Self::new(problem, noise, k, 0..problem.rows, buffers)
    }

    /// Frees the buffers; what is known of the rows stays.
    pub(super) fn release(&mut self) {
        let nothing = ArrayD::default(IxDyn(&[0]));
        self.buffers = Buffers::Everything { inputs: Vec::new(), plus: nothing.clone(), minus: nothing };
    }

    /// Another block of all rows, with buffers of its own, and without a forward to learn what this one knows.
    pub(super) fn sibling(&self) -> Self {
        let (problem, count) = (self.problem, self.rows());
        let (plus, minus) = (problem.poisoned_output(), problem.poisoned_output());
        Self {
            problem,
            k: self.k,
            rows: self.rows.clone(),
            buffers: Buffers::Everything { inputs: problem.inputs.to_vec(), plus, minus },
            noise: self.noise.clone(),
            in_range: self.in_range.clone(),
            reaches: self.reaches.clone(),
            changes: vec![0.0; MULTIPLES.len() * count],
            widths: vec![0.0; MULTIPLES.len() * count],
            found: vec![Difference::UNKNOWN; count],
        }
    }

    fn new(
        problem: &'p Problem<'p, T>,
        noise: &Noise,
        k: usize,
        rows: Range<usize>,
        buffers: Buffers<T>,
    ) -> Result<Self, CheckError> {
        let count = rows.len();
        let [changes, widths] = [(); 2].map(|()| vec![0.0; MULTIPLES.len() * count]);
        let (noise_of_rows, in_range, reaches) = (Vec::new(), Vec::new(), Vec::new());
        let mut block = Self {
            problem,
            k,
            rows,
            buffers,
            noise: noise_of_rows,
            in_range,
            reaches,
            changes,
            widths,
            found: vec![Difference::UNKNOWN; count],
        };
        let (width, dy, start) = (problem.width(), block.dy(), block.start());
        let y = block.unmoved_output()?;
        block.noise = (0..count)
            .map(|row| {
                let outputs = y[row * width..][..width].iter().zip(&dy[row * width..][..width]);
                let size: f64 = outputs.map(|(y, dy)| (y.to_f64() * dy.to_f64()).powi(2)).sum();
                (size * noise.unit_variance(start + row)).sqrt()
            })
            .collect();
        block.in_range = block
            .noise
            .iter()
            .zip(dy.chunks(width))
            .map(|(noise, dy)| {
                let greatest = dy.iter().fold(0.0, |greatest: f64, dy| greatest.max(dy.to_f64().abs()));
                (SMALL..LARGE).contains(noise) && greatest < LARGE
            })
            .collect();
        Ok(block)
    }

    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The number of the first row.
    pub(super) fn start(&self) -> usize {
        self.rows.start
    }

    /// The number of the perturbed input.
    pub(super) fn input(&self) -> usize {
        self.k
    }

    /// Elements in a row of the perturbed input.
    pub(super) fn row_len(&self) -> usize {
        self.problem.declared[self.k].row_len()
    }

    /// The rows as they were given.
    pub(super) fn original(&self) -> &'p [T] {
        let row_len = self.row_len();
        &self.problem.input(self.k)[self.rows.start * row_len..self.rows.end * row_len]
    }

    /// The deviation of the rounding noise of a difference of this step.
    pub(super) fn sigma(&self, row: usize, step: f64) -> f64 {
        self.noise[row] / (std::f64::consts::SQRT_2 * step)
    }

    fn dy(&self) -> &'p [T] {
        let width = self.problem.width();
        &self.problem.dy()[self.rows.start * width..self.rows.end * width]
    }

    /// Perturbs an element of each row, and leaves the difference quotients in [`found`](Self::found); a row whose step is
    /// 0 is left alone, and its difference is unknown.
    pub(super) fn differences(&mut self, moves: &[Move]) -> Result<(), CheckError> {
        let is_far =
            |row: usize, reaches: &[Reach]| reaches.get(row).is_some_and(|reach| reach.is_far(moves[row].step));
        let is_any_far = (0..moves.len()).any(|row| is_far(row, &self.reaches));
        let multiples = if is_any_far { MULTIPLES.len() } else { MULTIPLES.len() - 1 };
        self.count(2 * multiples)?;
        let together = match self.buffers {
            Buffers::Rows { .. } => self.problem.pairs_of_copies(),
            Buffers::Everything { .. } => 1,
        };
        self.widths.fill(0.0);
        for first in (0..multiples).step_by(together) {
            self.move_elements(moves, first..multiples.min(first + together))?;
        }
        self.put_back(moves);
        let rows = self.rows();
        for (row, &Move { step, .. }) in moves.iter().enumerate() {
            let quotient = |multiple: usize| {
                let (change, width) = (self.changes[multiple * rows + row], self.widths[multiple * rows + row]);
                // There is no slope over a width of nothing.
                if width > 0.0 { change / width } else { f64::NAN }
            };
            let width = self.widths[row];
            self.found[row] = if width == 0.0 {
                Difference::without_step(step)
            } else {
                let numeric = quotient(0);
                let widest = is_far(row, &self.reaches).then(|| quotient(2));
                let truncation = truncation(numeric, quotient(1), widest);
                Difference { numeric, sigma: self.sigma(row, 0.5 * width), truncation, step }
            };
        }
        Ok(())
    }

    /// Moves elements by some of the multiples of their steps, up and down, and leaves the change of each row's loss, and
    /// how far apart the two values are as they are stored.
    fn move_elements(&mut self, moves: &[Move], multiples: Range<usize>) -> Result<(), CheckError> {
        let (problem, k, row_len, rows) = (self.problem, self.k, self.row_len(), self.rows());
        let (original, dy, width) = (self.original(), self.dy(), problem.width());
        let results = multiples.start * rows..multiples.end * rows;
        let (changes, widths) = (&mut self.changes[results.clone()], &mut self.widths[results]);
        let pairs = multiples.len();
        let probe = |factor: f64| {
            move || {
                let step = factor * moves.iter().fold(0.0, |greatest: f64, moved| greatest.max(moved.step));
                let mut columns = moves.iter().filter(|moved| moved.step != 0.0).map(|moved| moved.column);
                let column = columns.next();
                let is_common = columns.all(|other| Some(other) == column);
                let index = column.filter(|_| is_common).into_iter().collect();
                Some(Probe { input: problem.declared[k].name.clone(), index, step })
            }
        };
        let move_rows = |copy: &mut [T], factor: f64, widths: &mut [f64]| {
            let rows = copy.chunks_exact_mut(row_len).zip(original.chunks_exact(row_len));
            for (((row, original), &Move { column, step }), width) in rows.zip(moves).zip(widths) {
                row[column] = T::from_f64(original[column].to_f64() + factor * step);
                *width += factor.signum() * row[column].to_f64();
            }
        };
        match &mut self.buffers {
            Buffers::Rows { stack, output } => {
                let mut copies = stack.rows_mut(k).chunks_exact_mut(rows * row_len);
                for (multiple, widths) in MULTIPLES[multiples.clone()].iter().zip(widths.chunks_exact_mut(rows)) {
                    for (factor, copy) in [*multiple, -multiple].into_iter().zip(&mut copies) {
                        move_rows(copy, factor, widths);
                    }
                }
                let output = &mut output[..2 * pairs * rows * width];
                stack.forward(problem, 2 * pairs * rows, output, probe(MULTIPLES[multiples.end - 1]))?;
                let mut ends = output.chunks_exact(rows * width);
                let ends: [[&[T]; 2]; PAIRS] = [(); PAIRS].map(|()| [(); 2].map(|()| ends.next().unwrap_or_default()));
                changes_of_rows(&ends[..pairs], dy, width, &self.in_range, changes);
            }
            Buffers::Everything { inputs, plus, minus } => {
                let each = changes.chunks_exact_mut(rows).zip(widths.chunks_exact_mut(rows));
                for (multiple, (changes, widths)) in MULTIPLES[multiples].iter().zip(each) {
                    for (factor, output) in [(*multiple, &mut *plus), (-multiple, &mut *minus)] {
                        move_rows(inputs[k].as_slice_mut().unwrap_or_default(), factor, widths);
                        problem.forward(inputs, output, probe(factor))?;
                    }
                    let ends = [&*plus, &*minus].map(|y| y.as_slice().unwrap_or_default());
                    changes_of_rows(&[ends], dy, width, &self.in_range, changes);
                }
            }
        }
        Ok(())
    }

    /// Gives elements their original values again.
    fn put_back(&mut self, moves: &[Move]) {
        let (original, row_len, k) = (self.original(), self.row_len(), self.k);
        let moved = match &mut self.buffers {
            Buffers::Rows { stack, .. } => stack.rows_mut(k),
            Buffers::Everything { inputs, .. } => inputs[k].as_slice_mut().unwrap_or_default(),
        };
        for copy in moved.chunks_exact_mut(original.len()) {
            let rows = copy.chunks_exact_mut(row_len).zip(original.chunks_exact(row_len));
            rows.zip(moves).for_each(|((row, original), moved)| row[moved.column] = original[moved.column]);
        }
    }

    /// Counts the rows of so many forwards of a block at once, or threads would wait for each other's counting. A forward of
    /// everything counts itself.
    fn count(&self, forwards: usize) -> Result<(), CheckError> {
        match self.buffers {
            Buffers::Rows { .. } => self.problem.count(self.rows() * forwards),
            Buffers::Everything { .. } => Ok(()),
        }
    }

    /// The output of the rows as they were given.
    fn unmoved_output(&mut self) -> Result<&[T], CheckError> {
        self.count(1)?;
        let (problem, rows) = (self.problem, self.rows());
        match &mut self.buffers {
            Buffers::Rows { stack, output } => {
                let output = &mut output[..rows * problem.width()];
                stack.forward(problem, rows, output, || None)?;
                Ok(output)
            }
            Buffers::Everything { inputs, plus, .. } => {
                problem.forward(inputs, plus, || None)?;
                Ok(plus.as_slice().unwrap_or_default())
            }
        }
    }
}
