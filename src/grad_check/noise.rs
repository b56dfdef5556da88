//! How noisy the operation's forward is: measured, not assumed.
//!
//! An output `y` is taken to carry an error of deviation `kappa u |y|`. So the loss carries one of
//! `kappa u sqrt(sum (G y)^2)` over the outputs that depend on the probe, and a central difference of step `h` one of
//! `sigma = that / (sqrt(2) h)`. Three things are measured: `kappa` of each row, which grows where the row is ill
//! conditioned; how much the errors of one row's outputs hang together, which makes the loss noisier than its
//! parts (an error of the mean shifts a whole row); and both for the forward at hand, on the inputs at hand.

use ndarray::ArrayD;

use super::error::{CheckError, Stage};
use super::problem::{Problem, caught};
use super::{Call, Operation};
use crate::Element;
use crate::numpy_random::{Generator, default_rng};

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
pub(super) fn measure<T: Element>(problem: &Problem<'_, T>) -> Result<Noise, CheckError> {
    let twin = problem.operation.in_f64().filter(|_| T::UNIT_ROUNDOFF > f64::UNIT_ROUNDOFF);
    // Few outputs need several samples; a million outputs are samples enough.
    let repeats = (2048 / problem.output_len().max(1)).clamp(1, 8);
    let mut sums = vec![RowSums::default(); problem.rows];
    let mut rng = default_rng(0);
    for _ in 0..repeats {
        let jitter: Vec<_> = (0..problem.inputs.len()).map(|k| Jitter::new(problem.input(k), &mut rng)).collect();
        match twin {
            Some(twin) => sample_against_f64(problem, twin, &jitter, &mut sums)?,
            None => sample_fourth_difference(problem, &jitter, &mut sums)?,
        }
    }
    Ok(summarize::<T>(&sums, twin.is_some()))
}

/// Points on a line through the inputs, on a grid so coarse that each point is stored without rounding: a rounded input
/// would add its own noise to the outputs.
struct Jitter {
    base: Vec<f64>,
    direction: Vec<f64>,
}

impl Jitter {
    fn new<T: Element>(values: &[T], rng: &mut Generator) -> Self {
        let (mut base, mut direction) = (Vec::with_capacity(values.len()), Vec::with_capacity(values.len()));
        for value in values {
            let value = value.to_f64();
            let bits = rng.next_bits();
            // Twice the spacing of numbers of the next binade: all points of the line stay multiples of it.
            let grid = 8.0 * T::UNIT_ROUNDOFF * power_of_two_below(value.abs());
            let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
            base.push(if grid > 0.0 { (value / grid).round() * grid } else { value });
            direction.push(sign * grid * (3 + (bits >> 1) % 7) as f64);
        }
        Self { base, direction }
    }

    fn write<T: Element>(&self, position: usize, array: &mut ArrayD<T>) {
        for ((value, base), direction) in array.iter_mut().zip(&self.base).zip(&self.direction) {
            *value = T::from_f64(base + position as f64 * direction);
        }
    }
}

/// The greatest power of two that is not above a positive number; 0 for what has none.
fn power_of_two_below(value: f64) -> f64 {
    if value.is_normal() { f64::from_bits(value.to_bits() & f64::INFINITY.to_bits()) } else { 0.0 }
}

fn sample_fourth_difference<T: Element>(
    problem: &Problem<'_, T>,
    jitter: &[Jitter],
    sums: &mut [RowSums],
) -> Result<(), CheckError> {
    let mut inputs = problem.inputs.to_vec();
    let (mut output, mut first) = (problem.poisoned_output(), problem.poisoned_output());
    let mut error = vec![0.0; problem.output_len()];
    for (position, weight) in FOURTH_DIFFERENCE.into_iter().enumerate() {
        jitter.iter().zip(&mut inputs).for_each(|(jitter, input)| jitter.write(position, input));
        problem.forward(&inputs, &mut output, || None)?;
        if position == 0 {
            first.assign(&output);
        }
        // The weights sum to zero: differences from the first point are as good, and hardly rounded.
        for ((error, y), first) in error.iter_mut().zip(&output).zip(&first) {
            *error += weight * (y.to_f64() - first.to_f64());
        }
    }
    add_sample(problem, &first, &error, 1.0 / SUM_OF_SQUARES.sqrt(), sums);
    Ok(())
}

fn sample_against_f64<T: Element>(
    problem: &Problem<'_, T>,
    twin: &dyn Operation<f64>,
    jitter: &[Jitter],
    sums: &mut [RowSums],
) -> Result<(), CheckError> {
    let mut inputs = problem.inputs.to_vec();
    jitter.iter().zip(&mut inputs).for_each(|(jitter, input)| jitter.write(0, input));
    let mut output = problem.poisoned_output();
    problem.forward(&inputs, &mut output, || None)?;
    let exact: Vec<ArrayD<f64>> = inputs.iter().map(|input| input.mapv(T::to_f64)).collect();
    let mut expected = ArrayD::from_elem(output.raw_dim(), f64::NAN);
    caught(|| twin.forward(&exact, &mut expected)).map_err(|f| f.at(Call::unperturbed(Stage::Forward)))?;
    super::problem::check_shape("output in f64", output.shape(), expected.shape())?;
    let error: Vec<f64> = output.iter().zip(&expected).map(|(y, expected)| y.to_f64() - expected).collect();
    add_sample(problem, &output, &error, 1.0, sums);
    Ok(())
}

fn add_sample<T: Element>(problem: &Problem<'_, T>, y: &ArrayD<T>, error: &[f64], scale: f64, sums: &mut [RowSums]) {
    let (width, dy) = (problem.width(), problem.dy());
    let y = y.as_slice().unwrap_or_default();
    for ((sums, y), (error, dy)) in sums.iter_mut().zip(y.chunks(width)).zip(error.chunks(width).zip(dy.chunks(width)))
    {
        let mut together = 0.0;
        for ((y, error), dy) in y.iter().zip(error).zip(dy) {
            let error = dy.to_f64() * error * scale;
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
