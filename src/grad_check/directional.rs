//! Random directions: one number for a whole input, `<a, r> = dL(r)`, for a few forwards.
//!
//! The components of a direction are a random sign times a uniform number of [0.5, 1.5], in units of the row's scale.
//! Signs matter: a direction of one sign lies along the one that LayerNorm removes. A single wrong component is always
//! seen, if it is above the floor; several can cancel, and an error whose norm is `m` floors is missed by one direction
//! with a chance of at most about `1.5 / m`.

use ndarray::ArrayD;

use super::components::{pilot_step, scales};
use super::error::{CheckError, Probe};
use super::judge::Judge;
use super::noise::Noise;
use super::problem::Problem;
use super::report::Direction;
use super::step::{MOST_GROWTH, NEAR, Reach, Step, sharper, truncation};
use super::verdict::Component;
use crate::Element;
use crate::change::change_of_loss;
use crate::numpy_random::default_rng;

/// What is needed to differentiate along a direction.
pub(super) struct Directional<'a, T: Element> {
    problem: &'a Problem<'a, T>,
    k: usize,
    analytic: &'a [f64],
    /// The deviation of the rounding noise of the loss.
    noise: f64,
    scales: Vec<f64>,
    inputs: Vec<ArrayD<T>>,
    plus: ArrayD<T>,
    minus: ArrayD<T>,
}

/// The change of the loss from one end of a direction to the other, and what the gradient under test says of it.
struct Change {
    numeric: f64,
    analytic: f64,
    /// The root of the sum of the squares of what the components add: what `analytic` amounts to if the signs are
    /// random.
    size: f64,
    /// The same of what rounding may have done to the components.
    rounding: f64,
}

impl<'a, T: Element> Directional<'a, T> {
    pub(super) fn new(
        problem: &'a Problem<'a, T>,
        noise: &Noise,
        k: usize,
        analytic: &'a [f64],
    ) -> Result<Self, CheckError> {
        let (mut plus, minus) = (problem.poisoned_output(), problem.poisoned_output());
        problem.forward(&problem.inputs, &mut plus, || None)?;
        let width = problem.width();
        let outputs = plus.iter().zip(problem.dy()).enumerate();
        let variance: f64 =
            outputs.map(|(o, (y, dy))| (y.to_f64() * dy.to_f64()).powi(2) * noise.unit_variance(o / width)).sum();
        let scales = scales(problem.input(k), problem.declared[k].row_len());
        let inputs = problem.inputs.to_vec();
        Ok(Self { problem, k, analytic, noise: variance.sqrt(), scales, inputs, plus, minus })
    }

    /// Judges `count` directions.
    pub(super) fn judge(
        &mut self,
        count: usize,
        step: Step,
        judge: &Judge,
        directions: &mut Vec<Direction>,
    ) -> Result<(), CheckError> {
        for number in 0..count {
            directions.push(self.direction(number, step, judge)?);
        }
        Ok(())
    }

    fn direction(&mut self, number: usize, step: Step, judge: &Judge) -> Result<Direction, CheckError> {
        let mut step = match step {
            Step::Fixed(eps) => eps,
            Step::Balanced => pilot_step::<T>(),
        };
        let mut best = self.at(number, step, judge)?;
        if best.floor > best.tolerance {
            // One better step at most: a direction has but one number to get right.
            let sigma = best.sigma / step;
            // All elements are moved, each by about a step of its row's scale.
            step = sharper(step, sigma, best.truncation / step, MOST_GROWTH, Reach::of_row(1.0, 1));
            let again = self.at(number, step, judge)?;
            if again.floor < best.floor {
                best = again;
            }
        }
        let Found { component, .. } = best;
        Ok(Direction {
            analytic: component.analytic,
            numeric: component.numeric,
            floor: component.floor,
            tolerance: component.tolerance,
            verdict: component.verdict(),
        })
    }

    /// The slopes along a direction, per unit of it.
    fn at(&mut self, number: usize, step: f64, judge: &Judge) -> Result<Found, CheckError> {
        let wide = self.change(number, 2.0 * step, judge)?;
        let narrow = self.change(number, step, judge)?;
        // The residuals are linear in an error of the gradient: only the truncation is left of their differences.
        let residual = |change: &Change, factor: f64| (change.numeric - change.analytic) / factor;
        let widest = if step > NEAR { Some(residual(&self.change(number, 4.0 * step, judge)?, 4.0)) } else { None };
        let truncation = truncation(residual(&narrow, 1.0), residual(&wide, 2.0), widest);
        let sigma = std::f64::consts::SQRT_2 * self.noise;
        let unit = 2.0 * step;
        let scale = narrow.numeric.abs().max(narrow.analytic.abs()).max(narrow.size) / unit;
        let parts = [narrow.analytic, narrow.numeric, 6.0 * sigma + 2.0 * truncation].map(|part| part / unit);
        let component = judge.along(scale, narrow.rounding / unit, parts);
        let (floor, tolerance) = (component.floor, component.tolerance);
        Ok(Found { component, floor, tolerance, sigma, truncation })
    }

    fn change(&mut self, number: usize, step: f64, judge: &Judge) -> Result<Change, CheckError> {
        let (problem, k) = (self.problem, self.k);
        let row_len = problem.declared[k].row_len();
        let (mut analytic, mut square, mut rounding) = (0.0, 0.0, 0.0);
        let len = problem.input(k).len();
        // The ends are drawn for each side anew, instead of being kept.
        let ends = |visit: &mut dyn FnMut(usize, T, T)| {
            let mut rng = default_rng((number as u64) << 8 | k as u64);
            for (element, x) in problem.input(k).iter().enumerate() {
                let scale = self.scales[element / row_len.max(1)];
                let sign = if rng.next_uniform() < 0.5 { -1.0 } else { 1.0 };
                let size = step * scale * sign * (0.5 + rng.next_uniform());
                visit(element, T::from_f64(x.to_f64() + size), T::from_f64(x.to_f64() - size));
            }
        };
        let probe = |step| move || Some(Probe { input: problem.declared[k].name.clone(), index: Vec::new(), step });
        let values = self.inputs[k].as_slice_mut().unwrap_or_default();
        ends(&mut |element, above, below| {
            values[element] = above;
            // The points as they are stored.
            let width = above.to_f64() - below.to_f64();
            let part = self.analytic[element] * width;
            analytic += part;
            square += part * part;
            rounding += (judge.rounding(element, len) * width).powi(2);
        });
        problem.forward(&self.inputs, &mut self.plus, probe(step))?;
        let values = self.inputs[k].as_slice_mut().unwrap_or_default();
        ends(&mut |element, _, below| values[element] = below);
        problem.forward(&self.inputs, &mut self.minus, probe(-step))?;
        let (plus, minus) = (self.plus.as_slice().unwrap_or_default(), self.minus.as_slice().unwrap_or_default());
        let numeric = change_of_loss(plus, minus, problem.dy());
        Ok(Change { numeric, analytic, size: square.sqrt(), rounding: rounding.sqrt() })
    }
}

/// One slope, with the parts of its floor.
struct Found {
    component: Component,
    floor: f64,
    tolerance: f64,
    sigma: f64,
    truncation: f64,
}
