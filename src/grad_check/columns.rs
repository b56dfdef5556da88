//! Central differences of a parameter whose element `j` reaches column `j` of the output alone: all elements are moved
//! at once, each by its own step, and the change of the loss is split by column. A pair of forwards does for all of it.

use ndarray::ArrayD;
use rayon::prelude::*;

use super::components::pilot_step;
use super::error::{CheckError, Probe};
use super::exhaustive::Difference;
use super::local::Local;
use super::measured::Measured;
use super::problem::Problem;
use super::step::{Step, balanced, nearest_power_of_two, row_scale};
use crate::Element;

/// How often the steps are improved: from the pilot to the balanced ones, and once more.
const ROUNDS: usize = 2;

impl<T: Element> Local<'_, T> {
    /// Measures every component of input `k`, which is declared in columns.
    pub(super) fn measure_columns(&self, k: usize, analytic: &[f64]) -> Result<Measured, CheckError> {
        let len = self.problem.input(k).len();
        let fixed = if let Step::Fixed(eps) = self.step { Some(eps) } else { None };
        let mut measured = Measured::unknown(len, fixed);
        if len == 0 || self.problem.output_len() == 0 {
            measured.numeric.fill(0.0);
            measured.floor.fill(0.0);
            return Ok(measured);
        }
        let mut ends = Ends::new(self.problem, k);
        let variance = self.column_variance(&mut ends, len)?;
        if let Some(eps) = fixed {
            let found = self.column_differences(&mut ends, &vec![eps; len], &variance)?;
            found.iter().enumerate().for_each(|(element, found)| measured.set(element, found));
            return Ok(measured);
        }
        let scale = row_scale::<T>(self.problem.input(k).iter().map(|value| value.to_f64()));
        let scales = self.problem.input(k).iter().map(|value| scale.max(0.1 * value.to_f64().abs()));
        let mut steps: Vec<f64> = scales.map(|scale| nearest_power_of_two(pilot_step::<T>() * scale)).collect();
        let mut best = vec![Difference::UNKNOWN; len];
        for round in 0..=ROUNDS {
            let found = self.column_differences(&mut ends, &steps, &variance)?;
            let mut moved = false;
            for ((best, found), step) in best.iter_mut().zip(found).zip(&mut steps) {
                if best.floor().is_nan() || found.floor() < best.floor() {
                    *best = found;
                }
                let next = nearest_power_of_two(balanced(best.step, best.sigma, best.truncation));
                if next.is_normal() && next != *step {
                    (*step, moved) = (next, true);
                }
            }
            if !moved || round == ROUNDS {
                break;
            }
        }
        best.iter().enumerate().for_each(|(element, found)| measured.set(element, found));
        measured.note = self.miscounted_row(&mut ends, &steps, analytic, &measured)?;
        Ok(measured)
    }

    /// Whether the error of the gradient under test is just what one row adds to it: that row is missing, or counted
    /// twice.
    fn miscounted_row(
        &self,
        ends: &mut Ends<T>,
        steps: &[f64],
        analytic: &[f64],
        measured: &Measured,
    ) -> Result<Option<String>, CheckError> {
        let error: Vec<f64> = analytic.iter().zip(&measured.numeric).map(|(a, d)| a - d).collect();
        let squares: f64 = error.iter().map(|error| error * error).sum();
        let noise: f64 = measured.floor.iter().map(|floor| floor * floor).sum();
        // Of a right gradient nothing is left to explain.
        if squares.is_nan() || squares <= 16.0 * noise || analytic.len() < 2 {
            return Ok(None);
        }
        let len = steps.len();
        ends.move_all(self.problem, steps, 1.0)?;
        let change = ends.change_of_loss(self.problem);
        let outputs: Vec<f64> = (0..self.problem.output_len()).map(|o| change(o) / ends.widths[o % len]).collect();
        for (row, share) in outputs.chunks(len).enumerate() {
            for (sign, words) in [(-1.0, "is missing from"), (1.0, "is counted twice in")] {
                let rest: f64 = error.iter().zip(share).map(|(error, share)| (error - sign * share).powi(2)).sum();
                if rest <= 1e-4 * squares + noise && outputs.len() > len {
                    return Ok(Some(format!("row {row} {words} the sum over the rows")));
                }
            }
        }
        Ok(None)
    }

    /// The variance that the rounding of each column's outputs adds to the loss.
    fn column_variance(&self, ends: &mut Ends<T>, len: usize) -> Result<Vec<f64>, CheckError> {
        let problem = self.problem;
        problem.forward(&problem.inputs, &mut ends.plus, || None)?;
        let (y, dy) = (ends.plus.as_slice().unwrap_or_default(), problem.dy());
        let width = problem.width();
        Ok(sums_of_columns(problem.output_len(), len, |o| {
            (y[o].to_f64() * dy[o].to_f64()).powi(2) * self.noise.unit_variance(o / width)
        }))
    }

    fn column_differences(
        &self,
        ends: &mut Ends<T>,
        steps: &[f64],
        variance: &[f64],
    ) -> Result<Vec<Difference>, CheckError> {
        let wide = self.column_quotients(ends, steps, 2.0)?;
        let narrow = self.column_quotients(ends, steps, 1.0)?;
        let pairs = wide.iter().zip(&narrow).zip(steps.iter().zip(variance));
        Ok(pairs
            .map(|((&(wide, _), &(numeric, width)), (&step, variance))| {
                if width == 0.0 {
                    return Difference::without_step(step);
                }
                let sigma = variance.sqrt() / (std::f64::consts::SQRT_2 * 0.5 * width);
                Difference { numeric, sigma, truncation: (wide - numeric).abs() / 3.0, step }
            })
            .collect())
    }

    /// For each element the difference quotient and the width that it was taken over.
    fn column_quotients(&self, ends: &mut Ends<T>, steps: &[f64], factor: f64) -> Result<Vec<(f64, f64)>, CheckError> {
        ends.move_all(self.problem, steps, factor)?;
        let changes = sums_of_columns(self.problem.output_len(), steps.len(), ends.change_of_loss(self.problem));
        let quotient = |(change, &width): (f64, &f64)| (if width > 0.0 { change / width } else { f64::NAN }, width);
        Ok(changes.into_iter().zip(&ends.widths).map(quotient).collect())
    }
}

/// The outputs with all elements of a parameter moved up, and down.
struct Ends<T> {
    k: usize,
    /// All inputs, of which one is moved.
    inputs: Vec<ArrayD<T>>,
    plus: ArrayD<T>,
    minus: ArrayD<T>,
    /// How far apart the elements were.
    widths: Vec<f64>,
}

impl<T: Element> Ends<T> {
    fn new(problem: &Problem<'_, T>, k: usize) -> Self {
        let (plus, minus) = (problem.poisoned_output(), problem.poisoned_output());
        Self { k, inputs: problem.inputs.to_vec(), plus, minus, widths: vec![0.0; problem.declared[k].len()] }
    }

    /// Moves each element by `factor` times its own step.
    fn move_all(&mut self, problem: &Problem<'_, T>, steps: &[f64], factor: f64) -> Result<(), CheckError> {
        let Self { k, inputs, plus, minus, widths } = self;
        let k = *k;
        widths.fill(0.0);
        for (sign, output) in [(1.0, plus), (-1.0, minus)] {
            let moved = inputs[k].as_slice_mut().unwrap_or_default().iter_mut();
            for (((value, original), step), width) in moved.zip(problem.input(k)).zip(steps).zip(&mut *widths) {
                *value = T::from_f64(original.to_f64() + sign * factor * step);
                *width += sign * value.to_f64();
            }
            let step = sign * factor * steps.iter().fold(0.0, |greatest: f64, step| greatest.max(*step));
            let probe = || Some(Probe { input: problem.declared[k].name.clone(), index: Vec::new(), step });
            problem.forward(inputs, output, probe)?;
        }
        Ok(())
    }

    /// What each element of the output adds to the change of the loss.
    fn change_of_loss<'s>(&'s self, problem: &'s Problem<'_, T>) -> impl Fn(usize) -> f64 + Sync {
        let [plus, minus] = [&self.plus, &self.minus].map(|y| y.as_slice().unwrap_or_default());
        let dy = problem.dy();
        move |o| (plus[o].to_f64() - minus[o].to_f64()) * dy[o].to_f64()
    }
}

/// Of each of `len` columns the sum of its elements' terms, in the order of the rows; the columns are dealt out to threads.
fn sums_of_columns(elements: usize, len: usize, term: impl Fn(usize) -> f64 + Sync) -> Vec<f64> {
    /// Columns in a task: whole cache lines.
    const TOGETHER: usize = 64;
    let mut sums = vec![0.0; len];
    sums.par_chunks_mut(TOGETHER).enumerate().for_each(|(task, sums)| {
        for row in (0..elements).step_by(len) {
            let first = row + task * TOGETHER;
            sums.iter_mut().enumerate().for_each(|(column, sum)| *sum += term(first + column));
        }
    });
    sums
}
