//! A block of rows whose columns are perturbed, each row by a step of its own.

use std::ops::Range;

use ndarray::ArrayD;

use super::error::{CheckError, Probe};
use super::exhaustive::{Difference, change_of_loss, change_of_row};
use super::noise::Noise;
use super::problem::Problem;
use crate::Element;

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
    wide: Vec<f64>,
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
            wide: vec![0.0; count],
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
        let unknown = Difference::UNKNOWN;
        let (wide, widths, found) = (vec![0.0; count], vec![0.0; count], vec![unknown; count]);
        let mut block =
            Self { problem, k, rows, buffers, noise: Vec::new(), in_range: Vec::new(), wide, widths, found };
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
        self.quotients(column, steps, 2.0)?;
        for (wide, found) in self.wide.iter_mut().zip(&self.found) {
            *wide = found.numeric;
        }
        self.quotients(column, steps, 1.0)?;
        self.perturb(column, steps, 0.0);
        for (row, &step) in steps.iter().enumerate() {
            let sigma = self.sigma(row, 0.5 * self.widths[row]);
            let found = &mut self.found[row];
            if self.widths[row] == 0.0 {
                *found = Difference::without_step(step);
                continue;
            }
            found.sigma = sigma;
            found.truncation = (self.wide[row] - found.numeric).abs() / 3.0;
            found.step = step;
        }
        Ok(())
    }

    fn quotients(&mut self, column: usize, steps: &[f64], factor: f64) -> Result<(), CheckError> {
        let (problem, k) = (self.problem, self.k);
        let probe = |sign: f64| {
            let step = sign * factor * steps.iter().fold(0.0, |greatest: f64, step| greatest.max(*step));
            move || Some(Probe { input: problem.declared[k].name.clone(), index: vec![column], step })
        };
        self.perturb(column, steps, factor);
        self.widths.fill(0.0);
        self.add_to_widths(column, 1.0);
        self.forward(Side::Plus, probe(1.0))?;
        self.perturb(column, steps, -factor);
        self.add_to_widths(column, -1.0);
        self.forward(Side::Minus, probe(-1.0))?;
        let mut found = std::mem::take(&mut self.found);
        for (row, (found, &width)) in found.iter_mut().zip(&self.widths).enumerate() {
            found.numeric = if width > 0.0 { self.change(row) / width } else { f64::NAN };
        }
        self.found = found;
        Ok(())
    }

    /// The difference between the losses of a row's two outputs.
    fn change(&self, row: usize) -> f64 {
        let (plus, minus) = self.outputs();
        let outputs = row * self.problem.width()..(row + 1) * self.problem.width();
        let change = if self.in_range[row] { change_of_row } else { change_of_loss };
        change(&plus[outputs.clone()], &minus[outputs.clone()], &self.dy()[outputs])
    }

    /// Sets one column to its original values plus `factor` times the steps.
    fn perturb(&mut self, column: usize, steps: &[f64], factor: f64) {
        let row_len = self.row_len();
        let original = self.original();
        let perturbed = self.perturbed_mut();
        for (row, step) in steps.iter().enumerate() {
            let element = row * row_len + column;
            perturbed[element] = T::from_f64(original[element].to_f64() + factor * step);
        }
    }

    /// Adds the column, as it is stored now, to the widths of the differences.
    fn add_to_widths(&mut self, column: usize, sign: f64) {
        let row_len = self.row_len();
        let mut widths = std::mem::take(&mut self.widths);
        let perturbed = self.perturbed_mut();
        for (width, row) in widths.iter_mut().zip(perturbed.chunks(row_len)) {
            *width += sign * row[column].to_f64();
        }
        self.widths = widths;
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
