//! From two gradients to a report on one input.

use std::ops::Range;

use ndarray::{ArrayD, IxDyn};
use rayon::prelude::*;

use super::error::Stage;
use super::measured::Measured;
use super::patterns::Picture;
use super::power;
use super::problem::{Problem, index_of};
use super::report::{Components, Counts, Direction, InputReport, Worst};
use super::verdict::{Component, GRANTED_ROUNDINGS, ROUNDINGS_OF_TERMS, Tolerance, Verdict};
use crate::Element;

/// How the components of an input are judged.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Judge {
    tolerance: Tolerance,
    row_len: usize,
    /// What rounding may leave of the gradient under test: of each row, or of each component; empty where it is
    /// unknown.
    rounding: Vec<f64>,
    /// Whether the gradient under test was computed in a lower precision than the differences: what rounding did to it
    /// is then accepted. Otherwise it is only not called an error, as the tolerance of the type is far above it on most
    /// rows.
    lower_precision: bool,
}

impl Judge {
    /// `given` is the unit roundoff of the type in which the gradient under test was computed, `own` that of the
    /// differences, and `terms` what the terms of each row or component of the gradient amount to.
    pub(super) fn new(tolerance: Tolerance, row_len: usize, given: f64, own: f64, mut terms: Vec<f64>) -> Self {
        let lower_precision = given > own;
        // Differences of the same type already ask for a tolerance above the gradient's own rounding.
        let granted = if lower_precision { GRANTED_ROUNDINGS * given } else { 0.0 };
        terms.iter_mut().for_each(|term| *term *= ROUNDINGS_OF_TERMS * given);
        let tolerance = Tolerance { rtol: tolerance.rtol + granted, ..tolerance };
        Self { tolerance, row_len, rounding: terms, lower_precision }
    }

    /// What rounding may leave of an element.
    pub(super) fn rounding(&self, element: usize, len: usize) -> f64 {
        let each = self.rounding.len() == len;
        self.rounding.get(if each { element } else { element / self.row_len }).copied().unwrap_or(0.0)
    }

    /// Two slopes, of the size that the tolerance is relative to.
    pub(super) fn along(&self, scale: f64, rounding: f64, [analytic, numeric, floor]: [f64; 3]) -> Component {
        let accepted = if self.lower_precision { rounding } else { 0.0 };
        Component { analytic, numeric, floor, tolerance: self.tolerance.at(scale) + accepted, rounding }
    }

    /// Components in a row.
    pub(super) fn row_len(&self) -> usize {
        self.row_len
    }

    /// What is accepted.
    pub(super) fn tolerance(&self) -> Tolerance {
        self.tolerance
    }

    /// Calls `visit` with each component that was looked at, row by row, in order.
    pub(super) fn components(&self, analytic: &[f64], measured: &Measured, visit: impl FnMut(usize, Component)) {
        self.components_of(0, analytic.len(), analytic, &measured.numeric, &measured.floor, visit);
    }

    /// The components of one row that were looked at.
    pub(super) fn components_of_row(
        &self,
        row: usize,
        analytic: &[f64],
        measured: &Measured,
        mut visit: impl FnMut(usize, Component),
    ) {
        let start = row * self.row_len;
        let range = start..(start + self.row_len).min(analytic.len());
        let [a, d, floor] = [analytic, &measured.numeric, &measured.floor].map(|all| &all[range.clone()]);
        self.components_of(start, analytic.len(), a, d, floor, |element, component| visit(start + element, component));
    }

    /// What `work` makes of blocks of consecutive rows, in order, on all threads. The blocks depend on the shape alone.
    pub(super) fn each_block<R: Send>(
        &self,
        analytic: &[f64],
        measured: &Measured,
        work: impl Fn(Range<usize>) -> R + Sync,
    ) -> Vec<R> {
        /// Components that are worth a hand-over.
        const WORTH: usize = 1 << 14;
        let rows = analytic.len().min(measured.numeric.len()).div_ceil(self.row_len);
        let together = WORTH.div_ceil(self.row_len);
        let blocks: Vec<_> = (0..rows).step_by(together).map(|start| start..(start + together).min(rows)).collect();
        blocks.into_par_iter().map(&work).collect()
    }

    /// The same for some rows of an input of `len` elements, whose first element is number `start`; `visit` is told
    /// numbers that count from there.
    pub(super) fn components_of(
        &self,
        start: usize,
        len: usize,
        analytic: &[f64],
        numeric: &[f64],
        floor: &[f64],
        mut visit: impl FnMut(usize, Component),
    ) {
        let rows = analytic.chunks(self.row_len).zip(numeric.chunks(self.row_len));
        for (row, (analytic, numeric)) in rows.enumerate() {
            let rms = rms(numeric);
            let of_row = self.rounding(start + row * self.row_len, len);
            let one_for_each = self.rounding.len() == len;
            for (column, (&analytic, &numeric)) in analytic.iter().zip(numeric).enumerate() {
                let element = row * self.row_len + column;
                let floor = floor[element];
                if floor == f64::INFINITY && numeric.is_nan() {
                    // Not looked at.
                    continue;
                }
                let rounding = if one_for_each { self.rounding[start + element] } else { of_row };
                let scale = rms.max(analytic.abs()).max(numeric.abs());
                visit(element, self.along(scale, rounding, [analytic, numeric, floor]));
            }
        }
    }
}

/// The root mean square of what is finite.
pub(super) fn rms(values: &[f64]) -> f64 {
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
    judge: Judge,
    analytic: Vec<f64>,
    measured: Measured,
    directions: Vec<Direction>,
) -> InputReport {
    let declared = &problem.declared[k];
    let tallies = judge.each_block(&analytic, &measured, |rows| {
        let mut tally = Tally::default();
        for row in rows {
            judge.components_of_row(row, &analytic, &measured, |element, component| tally.add(element, component));
            tally.close_row(row, judge.row_len);
        }
        tally
    });
    let mut tally = Tally::default();
    tallies.into_iter().for_each(|block| tally.merge(block));
    let blind = tally.rows > 0 && tally.blind_rows.len() == tally.rows;
    let blind = blind || tally.rows == 0 && !directions.is_empty() && directions.iter().all(Direction::is_blind);
    let unseen = if blind || analytic.is_empty() { Verdict::Inconclusive } else { Verdict::Passed };
    let along = directions.iter().map(|direction| direction.verdict);
    let verdict = along.fold(tally.counts.worst().max(unseen), Verdict::max);
    for direction in &directions {
        tally.max_abs_diff = nan_max(tally.max_abs_diff, (direction.analytic - direction.numeric).abs());
        tally.max_magnitude = nan_max(tally.max_magnitude, direction.analytic.abs() + direction.numeric.abs());
    }
    let worst = tally
        .worst
        .map(|Found { element, component, .. }| worst(problem, k, element, component, measured.step(element)));
    let x = |element: usize| problem.input(k)[element].to_f64();
    let patterns = patterns(&judge, verdict, &x, &analytic, &measured);
    // Only a gradient that passed, and that the loss sees, can be spoiled.
    let power =
        (verdict == Verdict::Passed && tally.seen > 0).then(|| power::measure(&judge, &x, &analytic, &measured));
    let survived = power.iter().flat_map(|power| &power.mutants).any(|mutant| mutant.required && !mutant.caught);
    // Where only a sample was looked at, the directions answer for the rest.
    let unanswered = survived || tally.seen < analytic.len();
    let verdict = if unanswered && directions.is_empty() { verdict.max(Verdict::Inconclusive) } else { verdict };
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
        not_looked_at: analytic.len() - tally.seen,
        without_step: tally.without_step,
        directions,
        patterns,
        power,
        blind_rows: if judge.row_len > 1 { tally.blind_rows } else { Vec::new() },
        blind,
        judge,
        components: Components {
            analytic: array(analytic),
            numeric: array(measured.numeric),
            floor: array(measured.floor),
        },
    }
}

/// What the wrong components have in common; nothing where none is wrong.
fn patterns(
    judge: &Judge,
    verdict: Verdict,
    x: &dyn Fn(usize) -> f64,
    analytic: &[f64],
    measured: &Measured,
) -> Vec<String> {
    let mut patterns: Vec<String> = measured.note.iter().cloned().collect();
    if verdict >= Verdict::Wrong {
        let arrays = [analytic, &measured.numeric, &measured.floor];
        let picture = Picture::new(x, arrays, judge.row_len, |visit| judge.components(analytic, measured, visit));
        patterns.extend(picture.in_words());
    }
    patterns
}

/// What adds up while the components of some rows pass by.
#[derive(Default)]
struct Tally {
    counts: Counts,
    max_abs_diff: f64,
    max_magnitude: f64,
    worst: Option<Found>,
    blind_rows: Vec<usize>,
    /// Rows that were closed, of which something was looked at.
    rows: usize,
    seen: usize,
    without_step: usize,
    /// Of the row that is open.
    row_counts: Counts,
    row_sees: bool,
}

/// A component, where it stands, and how bad it is.
struct Found {
    badness: (Verdict, f64),
    element: usize,
    component: Component,
}

impl Tally {
    fn add(&mut self, element: usize, component: Component) {
        let verdict = component.verdict();
        self.seen += 1;
        self.without_step += usize::from(component.is_without_step());
        self.row_counts.add(verdict);
        self.row_sees |= !component.is_blind();
        self.max_abs_diff = nan_max(self.max_abs_diff, component.difference());
        self.max_magnitude = nan_max(self.max_magnitude, component.analytic.abs() + component.numeric.abs());
        let badness = (verdict, component.excess());
        if self.worst.as_ref().is_none_or(|worst| badness > worst.badness) {
            self.worst = Some(Found { badness, element, component });
        }
    }

    /// In a row that the loss does not see, agreement proves nothing. A row of one element is judged with its input.
    fn close_row(&mut self, number: usize, row_len: usize) {
        let mut row = std::mem::take(&mut self.row_counts);
        let sees = std::mem::take(&mut self.row_sees);
        if row == Counts::default() {
            return;
        }
        if !sees {
            self.blind_rows.push(number);
            if row_len > 1 {
                row.inconclusive += std::mem::take(&mut row.passed);
            }
        }
        self.rows += 1;
        self.add_counts(row);
    }

    fn add_counts(&mut self, more: Counts) {
        self.counts.passed += more.passed;
        self.counts.inconclusive += more.inconclusive;
        self.counts.wrong += more.wrong;
        self.counts.invalid += more.invalid;
    }

    /// Takes over what later rows added up to.
    fn merge(&mut self, later: Self) {
        self.add_counts(later.counts);
        self.max_abs_diff = nan_max(self.max_abs_diff, later.max_abs_diff);
        self.max_magnitude = nan_max(self.max_magnitude, later.max_magnitude);
        if let Some(found) = later.worst
            && self.worst.as_ref().is_none_or(|worst| found.badness > worst.badness)
        {
            self.worst = Some(found);
        }
        self.blind_rows.extend(later.blind_rows);
        self.rows += later.rows;
        self.seen += later.seen;
        self.without_step += later.without_step;
    }
}

/// The greater of two numbers; NaN if one is NaN, as `numpy.max` has it.
pub(super) fn nan_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn worst<T: Element>(problem: &Problem<'_, T>, k: usize, element: usize, component: Component, step: f64) -> Worst {
    let verdict = component.verdict();
    let x = problem.input(k)[element].to_f64();
    let stage = match verdict {
        _ if component.is_without_step() => Some(Stage::Step),
        Verdict::Invalid if !x.is_finite() => Some(Stage::Input),
        Verdict::Invalid if !component.analytic.is_finite() => Some(Stage::Analytic),
        Verdict::Invalid => Some(Stage::Numeric),
        _ => None,
    };
    Worst {
        index: index_of(&problem.declared[k].shape, element),
        verdict,
        stage,
        x,
        analytic: component.analytic,
        numeric: component.numeric,
        floor: component.floor,
        tolerance: component.tolerance,
        rounding: component.rounding,
        floors: if component.difference() == 0.0 { 0.0 } else { component.difference() / component.floor },
        step,
    }
}
