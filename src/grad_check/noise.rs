//! How noisy the operation's forward is: measured, not assumed.
//!
//! An output `y` is taken to carry an error of deviation `kappa u |y|`. So the loss carries one of
//! `kappa u sqrt(sum (G y)^2)` over the outputs that depend on the probe, and a central difference of step `h` one of
//! `sigma = that / (sqrt(2) h)`. Three things are measured: `kappa` of each row, which grows where the row is ill
//! conditioned; how much the errors of one row's outputs hang together, which makes the loss noisier than its
//! parts (an error of the mean shifts a whole row); and both for the forward at hand, on the inputs at hand.

use std::ops::Range;

use ndarray::ArrayD;
use rayon::prelude::*;

use super::error::{CheckError, Stage};
use super::operation::Locality;
use super::problem::{Problem, caught};
use super::stack::Stack;
use super::{Call, Operation};
use crate::Element;
use crate::numpy_random::default_rng;

/// Weights of the fourth difference, which no smooth function survives over steps of a few units in the last place.
/// The sum of their squares is 70, so that `sum(weight * error) / sqrt(70)` has the deviation of one error
/// (J. J. Moré and S. M. Wild, "Estimating computational noise", 2011).
const FOURTH_DIFFERENCE: [f64; 5] = [1.0, -4.0, 6.0, -4.0, 1.0];
const SUM_OF_SQUARES: f64 = 70.0;

/// Every output is rounded once at least: less than this is luck.
const LEAST_KAPPA: f64 = 0.5;

/// The noise of the forward.
pub(super) struct Noise {
    /// The rms over all outputs.
    pub(super) kappa: f64,
    /// Whether the forward in `f64` was the measure.
    pub(super) against_f64: bool,
    /// For each row of the output, `kappa u`.
    row_unit: Vec<f64>,
}

impl Noise {
    /// Nothing was measured.
    pub(super) fn unknown() -> Self {
        Self { kappa: f64::NAN, against_f64: false, row_unit: Vec::new() }
    }

    /// The variance that one product `G y` of a row adds to the loss, in units of the product's square.
    pub(super) fn unit_variance(&self, row: usize) -> f64 {
        self.row_unit[row].powi(2)
    }
}

/// Sums of squares over the samples of one row.
#[derive(Default, Clone, Copy)]
struct RowSums {
    /// `sum (G error)^2`
    each: f64,
    /// `(sum G error)^2`
    together: f64,
    /// `sum (G y)^2`
    size: f64,
}

/// Measures the noise, with a few forwards on inputs that differ from the given ones in their last bits.
pub(super) fn measure<T: Element>(
    problem: &Problem<'_, T>,
    by_blocks: bool,
    allowance: Option<u64>,
) -> Result<Noise, CheckError> {
    let twin = problem.operation.in_f64().filter(|_| T::UNIT_ROUNDOFF > f64::UNIT_ROUNDOFF);
    // Few outputs need several samples; a million outputs are samples enough.
    let repeats = (2048 / problem.output_len().max(1)).clamp(1, 8);
    // No more than a tenth of what the check may cost.
    let repeats = repeats.min(allowance.map_or(repeats, |forwards| (forwards / 50) as usize)).max(1);
    let sums = match by_blocks {
        true => sample_blocks(problem, twin, repeats)?,
        false => None,
    };
    let sums = match sums {
        Some(sums) => sums,
        None => {
            let mut sums = vec![RowSums::default(); problem.rows];
            for repeat in 0..repeats {
                match twin {
                    Some(twin) => sample_against_f64(problem, twin, repeat, &mut sums)?,
                    None => sample_whole(problem, repeat, &mut sums)?,
                }
            }
            sums
        }
    };
    Ok(summarize::<T>(&sums, twin.is_some()))
}

/// Points on a line through an input, on a grid so coarse that each point is stored without rounding: a rounded input
/// would add its own noise to the outputs. The line is drawn from its seed for every point, instead of being kept.
#[derive(Debug, Clone, Copy)]
struct Jitter {
    seed: u64,
}

impl Jitter {
    /// The line of an input, or of its rows from `start` on.
    fn new(repeat: usize, input: usize, start: usize) -> Self {
        Self { seed: (repeat as u64) << 48 | (input as u64) << 40 | start as u64 }
    }

    fn write<T: Element>(self, position: usize, given: &[T], values: &mut [T]) {
        let mut rng = default_rng(self.seed);
        for (value, given) in values.iter_mut().zip(given) {
            let given = given.to_f64();
            let bits = rng.next_bits();
            // Twice the spacing of numbers of the next binade: all points of the line stay multiples of it.
            let grid = 8.0 * T::UNIT_ROUNDOFF * power_of_two_below(given.abs());
            let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
            let base = if grid > 0.0 { (given / grid).round() * grid } else { given };
            *value = T::from_f64(base + position as f64 * sign * grid * (3 + (bits >> 1) % 7) as f64);
        }
    }
}

/// The greatest power of two that is not above a positive number; 0 for what has none.
fn power_of_two_below(value: f64) -> f64 {
    if value.is_normal() { f64::from_bits(value.to_bits() & f64::INFINITY.to_bits()) } else { 0.0 }
}

/// One sample of all rows.
fn sample_whole<T: Element>(problem: &Problem<'_, T>, repeat: usize, sums: &mut [RowSums]) -> Result<(), CheckError> {
    let mut inputs = problem.inputs.to_vec();
    let (mut first, mut output) = (problem.poisoned_output(), problem.poisoned_output());
    let mut error = vec![0.0; problem.output_len()];
    for (position, weight) in FOURTH_DIFFERENCE.into_iter().enumerate() {
        for (k, input) in inputs.iter_mut().enumerate() {
            Jitter::new(repeat, k, 0).write(position, problem.input(k), input.as_slice_mut().unwrap_or_default());
        }
        problem.forward(&inputs, if position == 0 { &mut first } else { &mut output }, || None)?;
        if position > 0 {
            let [y, first] = [&output, &first].map(|y| y.as_slice().unwrap_or_default());
            add_difference(weight, y, first, &mut error);
        }
    }
    add_sample(problem.width(), problem.dy(), first.as_slice().unwrap_or_default(), |o| error[o], sums);
    Ok(())
}

/// The samples of all rows, one block after the other; only what is declared in rows is jittered. None where the twin
/// cannot be run on blocks.
fn sample_blocks<T: Element>(
    problem: &Problem<'_, T>,
    twin: Option<&dyn Operation<f64>>,
    repeats: usize,
) -> Result<Option<Vec<RowSums>>, CheckError> {
    let blocks: Vec<Result<Option<Vec<RowSums>>, CheckError>> =
        problem.blocks().into_par_iter().map(|rows| sample_block(problem, twin, repeats, &rows)).collect();
    let mut sums = Vec::with_capacity(problem.rows);
    for block in blocks {
        match block? {
            Some(block) => sums.extend(block),
            None => return Ok(None),
        }
    }
    Ok(Some(sums))
}

fn sample_block<T: Element>(
    problem: &Problem<'_, T>,
    twin: Option<&dyn Operation<f64>>,
    repeats: usize,
    rows: &Range<usize>,
) -> Result<Option<Vec<RowSums>>, CheckError> {
    let width = problem.width();
    let len = rows.len() * width;
    let mut sums = vec![RowSums::default(); rows.len()];
    let given: Vec<_> = problem.rows_of_inputs(rows).collect();
    let mut moved = Stack::new(problem, rows, 1);
    let nan = T::from_f64(f64::NAN);
    let (mut first, mut output) = (vec![nan; len], vec![nan; len]);
    let dy = &problem.dy()[rows.start * width..rows.end * width];
    for repeat in 0..repeats {
        let mut forward = |position: usize, y: &mut [T]| {
            for (k, declared) in problem.declared.iter().enumerate() {
                if let Locality::Rows(_) = declared.locality {
                    Jitter::new(repeat, k, rows.start).write(position, given[k], moved.rows_mut(k));
                }
            }
            problem.count(rows.len())?;
            moved.forward(problem, rows.len(), y, || None)
        };
        let error = match twin {
            None => {
                let mut error = vec![0.0; len];
                forward(0, &mut first)?;
                for (position, weight) in FOURTH_DIFFERENCE.into_iter().enumerate().skip(1) {
                    forward(position, &mut output)?;
                    add_difference(weight, &output, &first, &mut error);
                }
                error
            }
            Some(twin) => {
                forward(0, &mut first)?;
                let inputs = moved.inputs(problem, rows.len());
                let exact: Vec<Vec<f64>> =
                    inputs.iter().map(|input| input.iter().map(|x| x.to_f64()).collect()).collect();
                let exact: Vec<&[f64]> = exact.iter().map(|input| &input[..]).collect();
                let mut expected = vec![f64::NAN; len];
                let mut able = true;
                caught(|| {
                    let outcome = twin.forward_rows(moved.numbers(), &exact, &mut expected);
                    able = outcome.is_some();
                    outcome.unwrap_or(Ok(()))
                })
                .map_err(|failure| failure.at(Call::unperturbed(Stage::Forward)))?;
                if !able {
                    return Ok(None);
                }
                first.iter().zip(&expected).map(|(y, expected)| y.to_f64() - expected).collect()
            }
        };
        add_sample(width, dy, &first, |o| error[o], &mut sums);
    }
    Ok(Some(sums))
}

/// Adds an output's part of the fourth difference along a line, in units of the error of one output. The weights sum to
/// zero: differences from the first output are as good, and hardly rounded.
fn add_difference<T: Element>(weight: f64, y: &[T], first: &[T], error: &mut [f64]) {
    for ((error, y), first) in error.iter_mut().zip(y).zip(first) {
        *error += weight / SUM_OF_SQUARES.sqrt() * (y.to_f64() - first.to_f64());
    }
}

fn sample_against_f64<T: Element>(
    problem: &Problem<'_, T>,
    twin: &dyn Operation<f64>,
    repeat: usize,
    sums: &mut [RowSums],
) -> Result<(), CheckError> {
    let mut inputs = problem.inputs.to_vec();
    for (k, input) in inputs.iter_mut().enumerate() {
        Jitter::new(repeat, k, 0).write(0, problem.input(k), input.as_slice_mut().unwrap_or_default());
    }
    let mut output = problem.poisoned_output();
    problem.forward(&inputs, &mut output, || None)?;
    let exact: Vec<ArrayD<f64>> = inputs.iter().map(|input| input.mapv(T::to_f64)).collect();
    let mut expected = ArrayD::from_elem(output.raw_dim(), f64::NAN);
    caught(|| twin.forward(&exact, &mut expected)).map_err(|f| f.at(Call::unperturbed(Stage::Forward)))?;
    super::problem::check_shape("output in f64", output.shape(), expected.shape())?;
    let y = output.as_slice().unwrap_or_default();
    let expected = expected.as_standard_layout();
    let expected = expected.as_slice().unwrap_or_default();
    add_sample(problem.width(), problem.dy(), y, |o| y[o].to_f64() - expected[o], sums);
    Ok(())
}

/// Adds the outputs of some rows, and the error of each.
fn add_sample<T: Element>(width: usize, dy: &[T], y: &[T], error: impl Fn(usize) -> f64, sums: &mut [RowSums]) {
    let rows = y.chunks(width).zip(dy.chunks(width)).enumerate();
    for (sums, (row, (y, dy))) in sums.iter_mut().zip(rows) {
        let mut together = 0.0;
        for (column, (y, dy)) in y.iter().zip(dy).enumerate() {
            let error = dy.to_f64() * error(row * width + column);
            sums.each += error * error;
            sums.size += (dy.to_f64() * y.to_f64()).powi(2);
            together += error;
        }
        sums.together += together * together;
    }
}

fn summarize<T: Element>(sums: &[RowSums], against_f64: bool) -> Noise {
    let ratio = |numerator: f64, denominator: f64| {
        let ratio = (numerator / denominator).sqrt();
        if ratio.is_finite() { ratio } else { 0.0 }
    };
    let kappas: Vec<_> = sums.iter().map(|row| ratio(row.each, row.size) / T::UNIT_ROUNDOFF).collect();
    let coherences = sums.iter().map(|row| ratio(row.together, row.size) / T::UNIT_ROUNDOFF);
    let mean_square = |values: &mut dyn Iterator<Item = f64>| {
        values.map(|value| value * value).sum::<f64>() / sums.len().max(1) as f64
    };
    let pooled = mean_square(&mut kappas.iter().copied()).sqrt();
    let coherence = ratio(mean_square(&mut coherences.into_iter()).sqrt(), pooled).powi(2).max(1.0);
    // A row has few samples; the others say what is likely at least.
    let kappas = kappas.iter().map(|kappa| (kappa.max(0.5 * pooled) * coherence).max(LEAST_KAPPA));
    let row_unit = kappas.map(|kappa| kappa * T::UNIT_ROUNDOFF).collect();
    Noise { kappa: (pooled * coherence).max(LEAST_KAPPA), against_f64, row_unit }
}
