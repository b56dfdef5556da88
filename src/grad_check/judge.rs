//! From two gradients to a report on one input.

use ndarray::{ArrayD, IxDyn};

use super::error::Stage;
use super::measured::Measured;
use super::problem::{Problem, index_of};
use super::report::{Components, Counts, InputReport, Worst};
use super::verdict::{Component, GRANTED_ROUNDINGS, Tolerance, Verdict};
use crate::Element;

/// How the components of an input are judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judge {
    tolerance: Tolerance,
    row_len: usize,
}

impl Judge {
    /// `unit_roundoff` is that of the type in which the gradient under test was computed.
    pub(super) fn new(tolerance: Tolerance, row_len: usize, unit_roundoff: f64) -> Self {
        let rtol = tolerance.rtol + GRANTED_ROUNDINGS * unit_roundoff;
        Self { tolerance: Tolerance { rtol, ..tolerance }, row_len }
    }

    /// Calls `visit` with each component, row by row, in order.
    pub(super) fn components(&self, analytic: &[f64], measured: &Measured, mut visit: impl FnMut(usize, Component)) {
        let rows = analytic.chunks(self.row_len).zip(measured.numeric.chunks(self.row_len));
        for (row, (analytic, numeric)) in rows.enumerate() {
            let rms = rms(numeric);
            for (column, (&analytic, &numeric)) in analytic.iter().zip(numeric).enumerate() {
                let element = row * self.row_len + column;
                let scale = rms.max(analytic.abs()).max(numeric.abs());
                let floor = measured.floor[element];
                visit(element, Component { analytic, numeric, floor, tolerance: self.tolerance.at(scale) });
            }
        }
    }
}

/// The root mean square of what is finite.
fn rms(values: &[f64]) -> f64 {
    let (mut sum, mut count) = (0.0, 0_usize);
    for value in values.iter().filter(|value| value.is_finite()) {
        sum += value * value;
        count += 1;
    }
    if count == 0 { 0.0 } else { (sum / count as f64).sqrt() }
}

/// Judges every component of input `k`.
pub(super) fn judge_input<T: Element>(
    problem: &Problem<'_, T>,
    k: usize,
    judge: &Judge,
    analytic: Vec<f64>,
    measured: Measured,
) -> InputReport {
    let declared = &problem.declared[k];
    let mut tally = Tally::new(judge.row_len);
    judge.components(&analytic, &measured, |element, component| tally.add(element, component));
    tally.close_row();
    let blind = tally.rows > 0 && tally.blind_rows.len() == tally.rows;
    let unseen = if blind || analytic.is_empty() { Verdict::Inconclusive } else { Verdict::Passed };
    let verdict = tally.counts.worst().max(unseen);
    let worst = tally.worst.map(|(element, component)| worst(problem, k, element, component, measured.step(element)));
    let array = |values| ArrayD::from_shape_vec(IxDyn(&declared.shape), values).unwrap_or_default();
    InputReport {
        name: declared.name.clone(),
        shape: declared.shape.clone(),
        locality: declared.locality,
        verdict,
        counts: tally.counts,
        max_abs_diff: tally.max_abs_diff,
        max_magnitude: tally.max_magnitude,
        worst,
        blind_rows: if judge.row_len > 1 { tally.blind_rows } else { Vec::new() },
        blind,
        components: Components {
            analytic: array(analytic),
            numeric: array(measured.numeric),
            floor: array(measured.floor),
        },
    }
}

/// What adds up while the components pass by.
struct Tally {
    row_len: usize,
    counts: Counts,
    max_abs_diff: f64,
    max_magnitude: f64,
    worst: Option<(usize, Component)>,
    blind_rows: Vec<usize>,
    rows: usize,
    row_counts: Counts,
    row_blind: bool,
}

impl Tally {
    fn new(row_len: usize) -> Self {
        let (counts, row_counts) = (Counts::default(), Counts::default());
        let (max_abs_diff, max_magnitude, worst) = (0.0, 0.0, None);
        Self {
            row_len,
            counts,
            max_abs_diff,
            max_magnitude,
            worst,
            blind_rows: vec![],
            rows: 0,
            row_counts,
            row_blind: true,
        }
    }

    fn add(&mut self, element: usize, component: Component) {
        if element > 0 && element.is_multiple_of(self.row_len) {
            self.close_row();
        }
        self.row_counts.add(component.verdict());
        self.row_blind &= component.is_blind();
        self.max_abs_diff = nan_max(self.max_abs_diff, component.difference());
        self.max_magnitude = nan_max(self.max_magnitude, component.analytic.abs() + component.numeric.abs());
        let key = |component: &Component| (component.verdict(), component.excess());
        if self.worst.is_none_or(|(_, worst)| key(&component) > key(&worst)) {
            self.worst = Some((element, component));
        }
    }

    /// In a row that the loss does not see, agreement proves nothing. A row of one element is judged with its input.
    fn close_row(&mut self) {
        let mut row = std::mem::take(&mut self.row_counts);
        if row == Counts::default() {
            return;
        }
        if std::mem::replace(&mut self.row_blind, true) {
            self.blind_rows.push(self.rows);
            if self.row_len > 1 {
                row.inconclusive += std::mem::take(&mut row.passed);
            }
        }
        self.rows += 1;
        self.counts.passed += row.passed;
        self.counts.inconclusive += row.inconclusive;
        self.counts.wrong += row.wrong;
        self.counts.invalid += row.invalid;
    }
}

/// The greater of two numbers; NaN if one is NaN, as `numpy.max` has it.
pub(super) fn nan_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn worst<T: Element>(problem: &Problem<'_, T>, k: usize, element: usize, component: Component, step: f64) -> Worst {
    let verdict = component.verdict();
    let x = problem.input(k)[element].to_f64();
    let stage = (verdict == Verdict::Invalid).then(|| {
        if !x.is_finite() {
            Stage::Input
        } else if !component.analytic.is_finite() {
            Stage::Analytic
        } else if T::from_f64(x + step) == T::from_f64(x - step) {
            Stage::Step
        } else {
            Stage::Numeric
        }
    });
    Worst {
        index: index_of(&problem.declared[k].shape, element),
        verdict,
        stage,
        x,
        analytic: component.analytic,
        numeric: component.numeric,
        floor: component.floor,
        tolerance: component.tolerance,
        floors: if component.difference() == 0.0 { 0.0 } else { component.difference() / component.floor },
        step,
    }
}
