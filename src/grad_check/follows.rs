//! Whether the gradient of one input changes with another input as the slope of the loss does: a gradient that forgets
//! `gamma` does not.

use ndarray::ArrayD;

use super::components::{pilot_step, scales};
use super::error::CheckError;
use super::independence::row_bits;
use super::operation::Locality;
use super::problem::Problem;
use super::report::Check;
use crate::Element;
use crate::change::change_of_loss;
use crate::numpy_random::default_rng;

/// A change of the slope below this fraction is no change.
const LEAST_CHANGE: f64 = 1e-2;

/// Units of roundoff that each output of a forward may be off by. Where the slope is all but 0, as that of rows of two
/// elements is, all of its change is rounding.
const ROUNDINGS: f64 = 4.0;

/// Checks the gradient of each input that is declared in rows against each input that is not.
pub(super) fn verify<T: Element>(problem: &Problem<'_, T>) -> Result<Vec<Check>, CheckError> {
    let in_rows = |k: usize| matches!(problem.declared[k].locality, Locality::Rows(_));
    let count = problem.declared.len();
    let mut checks = Vec::new();
    if problem.output_len() == 0 || (0..count).all(in_rows) {
        return Ok(checks);
    }
    let bits = |gradients: Vec<ArrayD<T>>| -> Vec<_> {
        gradients.iter().map(|gradient| row_bits(gradient.as_slice().unwrap_or_default(), 1 << 12)).collect()
    };
    let before = bits(problem.backward(&problem.inputs, &problem.upstream)?);
    for other in (0..count).filter(|&k| !in_rows(k)) {
        let mut inputs = problem.inputs.to_vec();
        inputs[other] = changed(&inputs[other]);
        let after = bits(problem.backward(&inputs, &problem.upstream)?);
        for k in (0..count).filter(|&k| in_rows(k)) {
            let (name, parameter) = (&problem.declared[k].name, &problem.declared[other].name);
            let title = format!("gradient of {name} follows {parameter}");
            if before[k] != after[k] {
                checks.push(Check::passed(&title, format!("it changes with {parameter}")));
                continue;
            }
            let ((slope, noise), (moved, moved_noise)) =
                (slope(problem, k, &problem.inputs)?, slope(problem, k, &inputs)?);
            let unseen = LEAST_CHANGE * slope.abs().max(moved.abs()) + noise + moved_noise;
            let changes = (slope - moved).abs() > unseen;
            checks.push(if changes {
                let detail = format!(
                    "{parameter} is forgotten: the gradient of {name} is the same for other values of {parameter}, \
                     though the slope of the loss changes from {slope:.4e} to {moved:.4e}"
                );
                Check::failed(&title, detail)
            } else {
                Check::passed(&title, "neither it nor the slope of the loss depends on it".to_owned())
            });
        }
    }
    Ok(checks)
}

/// Other values of the same kind: turned by one element, and made a little smaller.
fn changed<T: Element>(array: &ArrayD<T>) -> ArrayD<T> {
    let mut changed = array.clone();
    let next = array.iter().skip(1).chain(array.iter().take(1));
    changed.iter_mut().zip(next).for_each(|(value, next)| *value = T::from_f64(0.9375 * next.to_f64()));
    changed
}

/// The change of the loss along one random direction of input `k`, and the most of it that rounding can make up.
fn slope<T: Element>(problem: &Problem<'_, T>, k: usize, inputs: &[ArrayD<T>]) -> Result<(f64, f64), CheckError> {
    let row_len = problem.declared[k].row_len();
    let scales = scales(problem.input(k), row_len);
    let mut rng = default_rng(23);
    let step = pilot_step::<T>();
    let moves: Vec<f64> =
        (0..problem.input(k).len()).map(|e| step * scales[e / row_len] * (2.0 * rng.next_uniform() - 1.0)).collect();
    let mut inputs = inputs.to_vec();
    let (mut plus, mut minus) = (problem.poisoned_output(), problem.poisoned_output());
    for (sign, output) in [(1.0, &mut plus), (-1.0, &mut minus)] {
        for ((value, x), size) in inputs[k].iter_mut().zip(problem.input(k)).zip(&moves) {
            *value = T::from_f64(x.to_f64() + sign * size);
        }
        problem.forward(&inputs, output, || None)?;
    }
    let (plus, minus) = (plus.as_slice().unwrap_or_default(), minus.as_slice().unwrap_or_default());
    let change = change_of_loss(plus, minus, problem.dy());
    let sizes = plus.iter().zip(minus).map(|(plus, minus)| plus.to_f64().abs() + minus.to_f64().abs());
    let size: f64 = sizes.zip(problem.dy()).map(|(size, dy)| size * dy.to_f64().abs()).sum();
    Ok((change, ROUNDINGS * T::UNIT_ROUNDOFF * size))
}
