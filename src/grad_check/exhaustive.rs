//! Central differences, one component at a time: two forwards of the whole input for `D` and two for its truncation, or
//! four where the step is large.
//!
//! The components are dealt out to workers. A worker owns one clone of the inputs and two output buffers; it perturbs
//! one element, runs forward, restores the element, and nothing is allocated on the way. The outputs are subtracted
//! before the product with the upstream gradient is summed, so that the loss of digits is that of the outputs, not of
//! the loss.

use std::sync::Mutex;

use ndarray::ArrayD;

use super::error::{CheckError, Probe};
use super::noise::Noise;
use super::operation::Locality;
use super::problem::Problem;
use super::step::truncation;
use super::verdict::NO_STEP;
use super::workers::deal_out;
use crate::Element;
use crate::change::change_of_loss;

/// One component that is to be differentiated, and the step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) input: usize,
    pub(super) element: usize,
    pub(super) step: f64,
    /// Whether the step is so large that two quotients do not tell its truncation.
    pub(super) far: bool,
}

/// A difference quotient and what is known about its error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Difference {
    /// `D(h)`; NaN where the step changed nothing.
    pub(super) numeric: f64,
    /// The deviation of its rounding noise.
    pub(super) sigma: f64,
    /// Its [truncation error](super::step::truncation).
    pub(super) truncation: f64,
    /// `h`.
    pub(super) step: f64,
}

impl Difference {
    pub(super) const UNKNOWN: Self = Self { numeric: f64::NAN, sigma: f64::NAN, truncation: f64::NAN, step: f64::NAN };

    /// A step so small that it changed nothing.
    pub(super) fn without_step(step: f64) -> Self {
        Self { numeric: f64::NAN, sigma: f64::INFINITY, truncation: 0.0, step }
    }

    /// The least error of an analytic gradient that this difference can show.
    pub(super) fn floor(&self) -> f64 {
        if self.numeric.is_nan() && self.sigma == f64::INFINITY {
            return NO_STEP;
        }
        6.0 * self.sigma + 2.0 * self.truncation
    }

    /// The logarithm of a step that is a normal power of two.
    pub(super) fn exponent(&self) -> i16 {
        (self.step.to_bits() >> (f64::MANTISSA_DIGITS - 1)) as i16 - (f64::MAX_EXP - 1) as i16
    }
}

/// Requests in one task: enough to make the hand-over free, few enough to share the last ones out.
const TASK: usize = 16;

/// The differences that are asked for, in their order, on all threads of the ambient pool.
///
/// A worker's results depend on the request alone, so they have the same bits on any number of threads; of several
/// failures the first in order is returned.
pub(super) fn differences<T: Element>(
    problem: &Problem<'_, T>,
    noise: &OutputNoise<T>,
    requests: &[Request],
) -> Result<Vec<Difference>, CheckError> {
    let found = Mutex::new(vec![Difference::UNKNOWN; requests.len()]);
    let jobs: Vec<_> = requests.iter().enumerate().collect();
    deal_out(
        &jobs,
        TASK,
        || Ok(Worker::new(problem)),
        |worker, jobs| {
            for &(position, request) in jobs {
                let difference = worker.difference(problem, noise, *request)?;
                // Nothing can panic while the lock is held, so it is never poisoned.
                found.lock().iter_mut().for_each(|found| found[position] = difference);
            }
            Ok(())
        },
    )?;
    Ok(found.into_inner().unwrap_or_default())
}

/// What the outputs add to the variance of the loss.
pub(super) fn output_noise<T: Element>(
    problem: &Problem<'_, T>,
    noise: &Noise,
    k: usize,
) -> Result<OutputNoise<T>, CheckError> {
    let mut y = problem.poisoned_output();
    problem.forward(&problem.inputs, &mut y, || None)?;
    let y = y.into_raw_vec_and_offset().0;
    let width = problem.width();
    let units: Vec<f64> = (0..problem.rows).map(|row| noise.unit_variance(row)).collect();
    let squares = |(y, dy): (&T, &T)| (y.to_f64() * dy.to_f64()).powi(2);
    let rows = y.chunks(width).zip(problem.dy().chunks(width)).zip(&units);
    let rows = rows.map(|((y, dy), unit)| unit * y.iter().zip(dy).map(squares).sum::<f64>()).collect();
    let mut columns = Vec::new();
    if problem.declared[k].locality == Locality::Columns {
        let len = problem.input(k).len();
        columns.resize(len, 0.0);
        for (o, output) in y.iter().zip(problem.dy()).enumerate() {
            columns[o % len] += units[o / width] * squares(output);
        }
    }
    Ok(OutputNoise { y, units, rows, columns })
}

/// What is known of the variance that outputs add to the loss.
pub(super) struct OutputNoise<T> {
    y: Vec<T>,
    /// For each row, the variance in units of `(G y)^2`.
    units: Vec<f64>,
    /// The variance of each row.
    rows: Vec<f64>,
    /// The variance of each column, for an input that is declared in columns.
    columns: Vec<f64>,
}

/// One clone of the inputs, and two outputs.
struct Worker<T> {
    inputs: Vec<ArrayD<T>>,
    plus: ArrayD<T>,
    minus: ArrayD<T>,
}

impl<T: Element> Worker<T> {
    fn new(problem: &Problem<'_, T>) -> Self {
        let (plus, minus) = (problem.poisoned_output(), problem.poisoned_output());
        Self { inputs: problem.inputs.to_vec(), plus, minus }
    }

    fn difference(
        &mut self,
        problem: &Problem<'_, T>,
        noise: &OutputNoise<T>,
        request: Request,
    ) -> Result<Difference, CheckError> {
        let wide = self.quotient(problem, Request { step: 2.0 * request.step, ..request })?;
        let mut variance = self.changed_variance(problem, noise);
        let widest = if request.far {
            let widest = self.quotient(problem, Request { step: 4.0 * request.step, ..request })?;
            variance = variance.max(self.changed_variance(problem, noise));
            Some(widest.value)
        } else {
            None
        };
        let narrow = self.quotient(problem, request)?;
        if narrow.half_step == 0.0 {
            return Ok(Difference::without_step(request.step));
        }
        variance = variance.max(self.changed_variance(problem, noise));
        // The declared row or column takes part even where rounding hid that it moved.
        variance = match problem.declared[request.input].locality {
            Locality::Rows(_) => variance.max(noise.rows[request.element / problem.declared[request.input].row_len()]),
            Locality::Columns => variance.max(noise.columns[request.element]),
            Locality::Shared => variance,
        };
        Ok(Difference {
            numeric: narrow.value,
            sigma: variance.sqrt() / (std::f64::consts::SQRT_2 * narrow.half_step),
            truncation: truncation(narrow.value, wide.value, widest),
            step: request.step,
        })
    }

    /// `(L(x + h) - L(x - h)) / ((x + h) - (x - h))`, with the points as they are stored.
    fn quotient(&mut self, problem: &Problem<'_, T>, request: Request) -> Result<Quotient, CheckError> {
        let Request { input, element, step, .. } = request;
        let value = problem.input(input)[element].to_f64();
        let (above, below) = (T::from_f64(value + step), T::from_f64(value - step));
        let probe = |step| {
            move || {
                Some(Probe { input: problem.declared[input].name.clone(), index: problem.index(input, element), step })
            }
        };
        self.set(request, above);
        problem.forward(&self.inputs, &mut self.plus, probe(step))?;
        self.set(request, below);
        problem.forward(&self.inputs, &mut self.minus, probe(-step))?;
        self.set(request, problem.input(input)[element]);
        let width = above.to_f64() - below.to_f64();
        let (plus, minus) = (self.plus.as_slice().unwrap_or_default(), self.minus.as_slice().unwrap_or_default());
        let change = change_of_loss(plus, minus, problem.dy());
        Ok(Quotient { value: if width > 0.0 { change / width } else { f64::NAN }, half_step: 0.5 * width })
    }

    fn set(&mut self, request: Request, value: T) {
        if let Some(slot) = self.inputs[request.input].as_slice_mut().and_then(|input| input.get_mut(request.element)) {
            *slot = value;
        }
    }

    /// The variance of the outputs that the last probe changed.
    fn changed_variance(&self, problem: &Problem<'_, T>, noise: &OutputNoise<T>) -> f64 {
        let width = problem.width();
        let [plus, minus] = [&self.plus, &self.minus].map(|y| y.as_slice().unwrap_or_default());
        let rows = plus.chunks(width).zip(minus.chunks(width)).enumerate();
        rows.filter(|(_, (plus, minus))| plus != minus)
            .map(|(row, (plus, minus))| {
                let start = row * width;
                let changed = (0..plus.len()).filter(|&column| plus[column] != minus[column]);
                let squares = changed
                    .map(|column| (noise.y[start + column].to_f64() * problem.dy()[start + column].to_f64()).powi(2));
                noise.units[row] * squares.sum::<f64>()
            })
            .sum()
    }
}

struct Quotient {
    value: f64,
    half_step: f64,
}
