//! The fundamental theorem along a line: the change of the loss from `x - h e` to `x + h e` is the integral of the
//! gradient between them, which the operation's own backward gives at three points (Gauss-Legendre):
//!
//! ```text
//! L(x + h e) - L(x - h e) = h sum_k w_k <a(x + h t_k e), e>,   t = -sqrt(3/5), 0, sqrt(3/5),   w = 5/9, 8/9, 5/9
//! ```
//!
//! The rule is exact for polynomials of degree five, so `h` may be half the row's scale, and the noise, divided by so
//! large a step, small: in `f32` a hundred times smaller than that of the best central difference. What is left of the
//! rule's own error falls with `h^6`: the same at `h / 2` shows it.

use std::sync::Mutex;

use ndarray::ArrayD;

use super::components::scales;
use super::error::{CheckError, Probe};
use super::local::Local;
use super::measured::Measured;
use super::operation::Locality;
use super::step::nearest_power_of_two;
use super::workers::deal_out;
use crate::Element;
use crate::change::change_of_loss;

/// The outer node, sqrt(3/5).
const NODE: f64 = 0.774_596_669_241_483_4;

/// Half the length of a line, in units of the row's scale; where the first is too noisy a longer one may do: moving one
/// of many elements far does little to its row.
const REACHES: [f64; 2] = [0.5, 2.0];

/// Elements of a row that are many. Of 3 and 4 elements the longer line comes near the end of the gradient's power series,
/// and its error exceeded the floor in one of 150 random cases of LayerNorm; of 6 and more, in none of 20,000.
const MANY: usize = 8;

/// Elements that are moved together, because they reach different rows: each with its step.
type Colour = Vec<(usize, f64)>;

impl<T: Element> Local<'_, T> {
    /// Measures again, along lines, what `measured` leaves inconclusive, or all of it; `limit` colours at most.
    ///
    /// The numeric gradient that is stored is the one under test plus its mean error along the line.
    pub(super) fn measure_lines(
        &self,
        k: usize,
        analytic: &[f64],
        measured: &mut Measured,
        limit: usize,
        everything: bool,
    ) -> Result<(), CheckError> {
        let variance = self.row_variance()?;
        let reaches = if self.problem.declared[k].row_len() < MANY { &REACHES[..1] } else { &REACHES };
        for (round, &reach) in reaches.iter().enumerate() {
            let mut colours = self.colours(k, analytic, measured, everything && round == 0, reach);
            colours.truncate(limit);
            self.lines(k, analytic, measured, &colours, &variance, everything && round == 0)?;
        }
        Ok(())
    }

    /// Measures colours along their lines, some at a time: what is found of them takes memory until it is stored.
    fn lines(
        &self,
        k: usize,
        analytic: &[f64],
        measured: &mut Measured,
        colours: &[Colour],
        variance: &[f64],
        replace: bool,
    ) -> Result<(), CheckError> {
        const BATCH: usize = 8;
        let mut batches = colours.chunks(BATCH);
        batches.try_for_each(|colours| self.some_lines(k, analytic, measured, colours, variance, replace))
    }

    /// Measures colours along their lines; `replace` says whether whatever was known is replaced, or only what is less
    /// sharp.
    fn some_lines(
        &self,
        k: usize,
        analytic: &[f64],
        measured: &mut Measured,
        colours: &[Colour],
        variance: &[f64],
        replace: bool,
    ) -> Result<(), CheckError> {
        let found = Mutex::new(Vec::new());
        deal_out(
            colours,
            1,
            || Ok(()),
            |(), colours| {
                for colour in colours {
                    let wide = self.residuals(k, analytic, colour, 1.0)?;
                    let narrow = self.residuals(k, analytic, colour, 0.5)?;
                    for ((&(element, step), wide), narrow) in colour.iter().zip(wide).zip(narrow) {
                        let row = self.row_of(k, element);
                        let variance = row.map_or_else(|| variance.iter().sum(), |row| variance[row]);
                        let sigma = f64::sqrt(variance) / (std::f64::consts::SQRT_2 * 0.5 * step);
                        // Granted a fall with h^3 only; and the backward rounds its own three values.
                        let rule = (wide - narrow).abs() / 8.0;
                        let rounding = 8.0 * T::UNIT_ROUNDOFF * analytic[element].abs();
                        let floor = 6.0 * sigma + 2.0 * rule + rounding;
                        found.lock().iter_mut().for_each(|found| found.push((element, narrow, floor, 0.5 * step)));
                    }
                }
                Ok(())
            },
        )?;
        let mut found = found.into_inner().unwrap_or_default();
        found.sort_by_key(|&(element, ..)| element);
        for (element, residual, floor, step) in found {
            if replace || floor < measured.floor[element] {
                measured.set_known(element, analytic[element] + residual, floor, step);
            }
        }
        Ok(())
    }

    /// The row that an element's loss is confined to, where that was verified.
    fn row_of(&self, k: usize, element: usize) -> Option<usize> {
        let declared = &self.problem.declared[k];
        (self.rows_verified && matches!(declared.locality, Locality::Rows(_))).then(|| element / declared.row_len())
    }

    /// What is to be measured: a column of all rows at once where rows are independent, else one element at a time.
    fn colours(&self, k: usize, analytic: &[f64], measured: &Measured, everything: bool, reach: f64) -> Vec<Colour> {
        let row_len = self.problem.declared[k].row_len();
        let scales = scales(self.problem.input(k), row_len);
        let in_rows = self.row_of(k, 0).is_some();
        let mut colours = vec![Colour::new(); if in_rows { row_len } else { analytic.len() }];
        self.judge.components(analytic, measured, |element, component| {
            let undecided = component.floor > component.tolerance && component.difference().is_finite();
            if everything || undecided {
                let step = nearest_power_of_two(reach * scales[element / row_len]);
                colours[if in_rows { element % row_len } else { element }].push((element, step));
            }
        });
        colours.retain(|colour| !colour.is_empty());
        colours
    }

    /// The variance that the outputs of each row add to the loss.
    fn row_variance(&self) -> Result<Vec<f64>, CheckError> {
        let problem = self.problem;
        let mut y = problem.poisoned_output();
        problem.forward(&problem.inputs, &mut y, || None)?;
        let rows = y.as_slice().unwrap_or_default().chunks(problem.width()).zip(problem.dy().chunks(problem.width()));
        Ok(rows
            .enumerate()
            .map(|(row, (y, dy))| {
                let size: f64 = y.iter().zip(dy).map(|(y, dy)| (y.to_f64() * dy.to_f64()).powi(2)).sum();
                size * self.noise.unit_variance(row)
            })
            .collect())
    }

    /// For each element of a colour, by how much the mean slope of the loss exceeds the mean of the gradient.
    fn residuals(&self, k: usize, analytic: &[f64], colour: &Colour, factor: f64) -> Result<Vec<f64>, CheckError> {
        let problem = self.problem;
        let mut inputs = problem.inputs.to_vec();
        let declared = &problem.declared[k];
        let first = colour.first().copied().unwrap_or_default();
        let probe = |sign: f64| {
            let (index, step) = (problem.index(k, first.0), sign * factor * first.1);
            move || Some(Probe { input: declared.name.clone(), index, step })
        };
        let place = |inputs: &mut [ArrayD<T>], position: f64| {
            let values = inputs[k].as_slice_mut().unwrap_or_default();
            for &(element, step) in colour {
                values[element] = T::from_f64(problem.input(k)[element].to_f64() + position * factor * step);
            }
        };
        // Of the gradients only the elements of the colour are kept.
        let mut slopes = |position: f64| -> Result<Vec<f64>, CheckError> {
            place(&mut inputs, position);
            let gradients = problem.backward(&inputs, &problem.upstream)?;
            let gradient = gradients[k].as_slice().unwrap_or_default();
            Ok(colour.iter().map(|&(element, _)| gradient[element].to_f64()).collect())
        };
        let nodes = slopes(NODE)?.into_iter().zip(slopes(-NODE)?);
        let (mut plus, mut minus) = (problem.poisoned_output(), problem.poisoned_output());
        place(&mut inputs, 1.0);
        problem.forward(&inputs, &mut plus, probe(1.0))?;
        place(&mut inputs, -1.0);
        problem.forward(&inputs, &mut minus, probe(-1.0))?;
        let (plus, minus) = (plus.as_slice().unwrap_or_default(), minus.as_slice().unwrap_or_default());
        let width = problem.width();
        Ok(colour
            .iter()
            .zip(nodes)
            .map(|(&(element, step), (above, below))| {
                let outputs = match self.row_of(k, element) {
                    Some(row) => row * width..(row + 1) * width,
                    None => 0..plus.len(),
                };
                let change = change_of_loss(&plus[outputs.clone()], &minus[outputs.clone()], &problem.dy()[outputs]);
                let mean = (5.0 * (above + below) + 8.0 * analytic[element]) / 18.0;
                let value = problem.input(k)[element].to_f64();
                let stored = |sign: f64| T::from_f64(value + sign * factor * step).to_f64();
                change / (stored(1.0) - stored(-1.0)) - mean
            })
            .collect())
    }
}
