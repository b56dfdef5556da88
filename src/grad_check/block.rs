//! A block of rows whose columns are perturbed, each row by a step of its own.

use std::ops::Range;

use ndarray::ArrayD;

use super::error::{CheckError, Probe};
use super::exhaustive::Difference;
use super::noise::Noise;
use super::problem::Problem;
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
    /// The column that is perturbed, as it was given.
    column: Vec<f64>,
    /// What the last perturbation did to the loss of each row, and the width of the difference.
    changes: Vec<f64>,
    wide: Vec<f64>,
    widest: Vec<f64>,
    widths: Vec<f64>,
    /// What the last call of [`differences`](Self::differences) found, for each row.
    pub(super) found: Vec<Difference>,
}

/// A copy of what is perturbed, and two outputs.
enum Buffers<T> {
    /// The rows of the perturbed input alone.
    Rows { perturbed: Vec<T>, plus: Vec<T>, minus: Vec<T> },
    /// All inputs.
    Everything { inputs: Vec<ArrayD<T>>, plus: ArrayD<T>, minus: ArrayD<T> },
}

/// What the noise of a row's loss lies between where no product of it nears the ends of the range of `f32`.
const SMALL: f64 = 1e-30;
const LARGE: f64 = 1e18;

/// Which of the two outputs a forward writes.
#[derive(Clone, Copy)]
enum Side {
    Plus,
    Minus,
}

impl<'p, T: Element> Block<'p, T> {
    /// A block that is forwarded alone.
    pub(super) fn of_rows(
        problem: &'p Problem<'p, T>,
        noise: &Noise,
        k: usize,
        rows: Range<usize>,
    ) -> Result<Self, CheckError> {
        let row_len = problem.declared[k].row_len();
        let perturbed = problem.input(k)[rows.start * row_len..rows.end * row_len].to_vec();
        let output = vec![T::from_f64(f64::NAN); rows.len() * problem.width()];
        let buffers = Buffers::Rows { perturbed, plus: output.clone(), minus: output };
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
        self.buffers = Buffers::Rows { perturbed: Vec::new(), plus: Vec::new(), minus: Vec::new() };
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
            column: vec![0.0; count],
            changes: vec![0.0; count],
            wide: vec![0.0; count],
            widest: vec![0.0; count],
            widths: vec![0.0; count],
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
        let [column, changes, wide, widest, widths] = [(); 5].map(|()| vec![0.0; count]);
        let (noise_of_rows, in_range, reaches) = (Vec::new(), Vec::new(), Vec::new());
        let mut block = Self {
            problem,
            k,
            rows,
            buffers,
            noise: noise_of_rows,
            in_range,
            reaches,
            column,
            changes,
            wide,
            widest,
            widths,
            found: vec![Difference::UNKNOWN; count],
        };
        block.count(1)?;
        block.forward(Side::Plus, || None)?;
        let (plus, _) = block.outputs();
        let width = problem.width();
        let dy = block.dy();
        block.noise = (0..count)
            .map(|row| {
                let outputs = plus[row * width..][..width].iter().zip(&dy[row * width..][..width]);
                let size: f64 = outputs.map(|(y, dy)| (y.to_f64() * dy.to_f64()).powi(2)).sum();
                (size * noise.unit_variance(block.rows.start + row)).sqrt()
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

    /// Perturbs one column by each row's own step, and leaves the difference quotients in [`found`](Self::found); a row
    /// whose step is 0 is left alone, and its difference is unknown.
    pub(super) fn differences(&mut self, column: usize, steps: &[f64]) -> Result<(), CheckError> {
        let row_len = self.row_len();
        let mut given = std::mem::take(&mut self.column);
        let rows = self.perturbed_mut().chunks_exact(row_len);
        given.iter_mut().zip(rows).for_each(|(given, row)| *given = row[column].to_f64());
        self.column = given;
        let is_far = |row: usize, reaches: &[Reach]| reaches.get(row).is_some_and(|reach| reach.is_far(steps[row]));
        let is_any_far = (0..steps.len()).any(|row| is_far(row, &self.reaches));
        self.count(if is_any_far { 6 } else { 4 })?;
        if is_any_far {
            self.quotients(column, steps, 4.0)?;
            self.quotients_to(|block| &mut block.widest);
        }
        self.quotients(column, steps, 2.0)?;
        self.quotients_to(|block| &mut block.wide);
        self.quotients(column, steps, 1.0)?;
        self.perturb(column, steps, 0.0);
        for (row, &step) in steps.iter().enumerate() {
            let width = self.widths[row];
            self.found[row] = if width == 0.0 {
                Difference::without_step(step)
            } else {
                let numeric = quotient(self.changes[row], width);
                let widest = is_far(row, &self.reaches).then_some(self.widest[row]);
                let truncation = truncation(numeric, self.wide[row], widest);
                Difference { numeric, sigma: self.sigma(row, 0.5 * width), truncation, step }
            };
        }
        Ok(())
    }

    /// Leaves the change of each row's loss, from one end of its difference to the other, and the width of that.
    fn quotients(&mut self, column: usize, steps: &[f64], factor: f64) -> Result<(), CheckError> {
        let (problem, k) = (self.problem, self.k);
        let probe = |sign: f64| {
            let step = sign * factor * steps.iter().fold(0.0, |greatest: f64, step| greatest.max(*step));
            move || Some(Probe { input: problem.declared[k].name.clone(), index: vec![column], step })
        };
        self.widths.fill(0.0);
        self.perturb(column, steps, factor);
        self.forward(Side::Plus, probe(1.0))?;
        self.perturb(column, steps, -factor);
        self.forward(Side::Minus, probe(-1.0))?;
        let mut changes = std::mem::take(&mut self.changes);
        let (plus, minus) = self.outputs();
        changes_of_rows(plus, minus, self.dy(), problem.width(), &self.in_range, &mut changes);
        self.changes = changes;
        Ok(())
    }

    /// Stores the quotients of the last perturbation.
    fn quotients_to(&mut self, target: impl Fn(&mut Self) -> &mut Vec<f64>) {
        let mut quotients = std::mem::take(target(self));
        let changes = self.changes.iter().zip(&self.widths);
        quotients.iter_mut().zip(changes).for_each(|(value, (change, width))| *value = quotient(*change, *width));
        *target(self) = quotients;
    }

    /// Sets one column to its given values plus `factor` times the steps, and adds the values, as they are stored, to the
    /// widths of the differences; those below the given ones with a minus sign.
    fn perturb(&mut self, column: usize, steps: &[f64], factor: f64) {
        let row_len = self.row_len();
        let given = std::mem::take(&mut self.column);
        let mut widths = std::mem::take(&mut self.widths);
        let rows = self.perturbed_mut().chunks_exact_mut(row_len);
        for (((row, given), step), width) in rows.zip(&given).zip(steps).zip(&mut widths) {
            let value = T::from_f64(given + factor * step);
            row[column] = value;
            if factor != 0.0 {
                *width += factor.signum() * value.to_f64();
            }
        }
        (self.column, self.widths) = (given, widths);
    }

    fn perturbed_mut(&mut self) -> &mut [T] {
        match &mut self.buffers {
            Buffers::Rows { perturbed, .. } => perturbed,
            Buffers::Everything { inputs, .. } => inputs[self.k].as_slice_mut().unwrap_or_default(),
        }
    }

    fn outputs(&self) -> (&[T], &[T]) {
        match &self.buffers {
            Buffers::Rows { plus, minus, .. } => (plus, minus),
            Buffers::Everything { plus, minus, .. } => {
                (plus.as_slice().unwrap_or_default(), minus.as_slice().unwrap_or_default())
            }
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

    /// Runs one forward, which was [counted](Self::count).
    fn forward(&mut self, side: Side, probe: impl FnOnce() -> Option<Probe>) -> Result<(), CheckError> {
        let problem = self.problem;
        match &mut self.buffers {
            Buffers::Everything { inputs, plus, minus } => {
                let output = if let Side::Plus = side { plus } else { minus };
                problem.forward(inputs, output, probe)
            }
            Buffers::Rows { perturbed, plus, minus } => {
                let output = if let Side::Plus = side { plus } else { minus };
                let inputs: Vec<&[T]> = problem
                    .rows_of_inputs(&self.rows)
                    .enumerate()
                    .map(|(k, input)| if k == self.k { &perturbed[..] } else { input })
                    .collect();
                problem.forward_rows(self.rows.clone(), &inputs, output, probe)
            }
        }
    }
}

/// The slope over a difference; none over a width of nothing.
fn quotient(change: f64, width: f64) -> f64 {
    if width > 0.0 { change / width } else { f64::NAN }
}
