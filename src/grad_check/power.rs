//! What the check would have caught: the gradient is spoiled in ways that bugs have, and judged again on the same
//! differences.

use super::judge::Judge;
use super::measured::Measured;
use super::verdict::{Component, Verdict};

/// What a check of an input was able to see.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Power {
    /// The least error of scale, as a fraction, that some component would have shown.
    pub scale: f64,
    /// The least error that any single component would have shown, in units of the rms of its row.
    pub element: f64,
    /// The spoiled gradients, and whether they were caught.
    pub mutants: Vec<Mutant>,
}

/// A spoiled gradient.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
pub struct Mutant {
    /// What was done to it.
    pub name: String,
    /// Whether it was judged wrong.
    pub caught: bool,
    /// Whether it must be: not where it hardly differs from the right one, or by no more than twice the tolerance.
    pub required: bool,
}

/// A way to spoil a row of a gradient, given the row of the input.
type Spoil = fn(row: &mut [f64], x: &[f64]);

/// Spoils the middle row alone, or all rows.
const ROW: bool = false;
const ALL: bool = true;

/// Components of a tail: what is left of a register.
const TAIL: usize = 8;

const MUTANTS: [(&str, bool, Spoil); 7] = [
    ("all zeros", ALL, |row, _| row.fill(0.0)),
    ("one row zeroed", ROW, |row, _| row.fill(0.0)),
    ("scale off by 2 %", ALL, |row, _| row.iter_mut().for_each(|value| *value *= 1.02)),
    ("two components swapped", ROW, |row, _| {
        let order = |&a: &usize, &b: &usize| row[a].total_cmp(&row[b]);
        let least = (0..row.len()).min_by(order).unwrap_or(0);
        let greatest = (0..row.len()).max_by(order).unwrap_or(0);
        row.swap(least, greatest);
    }),
    ("tail of the rows dropped", ALL, |row, _| {
        let tail = row.len() - TAIL.min(row.len().div_ceil(2));
        row[tail..].fill(0.0);
    }),
    ("a mean term of 5 % dropped", ROW, |row, _| {
        let offset = 0.05 * rms(row);
        row.iter_mut().for_each(|value| *value += offset);
    }),
    ("a variance term of 5 % dropped", ROW, |row, x| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let centred: Vec<f64> = x.iter().map(|x| x - mean).collect();
        let factor = 0.05 * rms(row) / rms(&centred);
        if factor.is_finite() {
            row.iter_mut().zip(centred).for_each(|(value, x)| *value += factor * x);
        }
    }),
];

fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|value| value * value).sum::<f64>() / values.len().max(1) as f64).sqrt()
}

/// Spoils a gradient that passed in each way and judges it again; no forward is run.
pub(super) fn measure(judge: &Judge, x: &dyn Fn(usize) -> f64, analytic: &[f64], measured: &Measured) -> Power {
    let row_len = judge.row_len();
    let rows = analytic.len() / row_len;
    let blocks = judge.each_block(analytic, measured, |rows| {
        let mut least = Least::default();
        for row in rows {
            let size = rms(&measured.numeric[row * row_len..((row + 1) * row_len).min(analytic.len())]);
            judge.components_of_row(row, analytic, measured, |_, component| least.add(&component, size));
        }
        least
    });
    let least = blocks.into_iter().fold(Least::default(), Least::and);
    let mut power = Power { scale: least.scale, element: least.element, mutants: Vec::new() };
    for (name, all, spoil) in MUTANTS {
        // A row of one element has no shape to spoil.
        if row_len > 1 || all {
            let spoiled = if all { 0..rows } else { rows / 2..rows / 2 + 1 };
            let (mut caught, mut required) = (false, false);
            for row in spoiled {
                let outcome = spoil_row(judge, x, analytic, measured, row, spoil);
                caught |= outcome.caught;
                required |= outcome.differs;
                // The other rows would change nothing.
                if caught {
                    break;
                }
            }
            power.mutants.push(Mutant { name: name.to_owned(), caught, required });
        }
    }
    if row_len > 1 {
        let factor = row_len as f64 / (row_len - 1) as f64;
        let caught = power.scale < factor - 1.0;
        let required = factor - 1.0 > 2.0 * least.beyond_tolerance;
        power.mutants.push(Mutant { name: "n - 1 for n".to_owned(), caught, required });
    }
    power
}

/// The least errors that would show.
struct Least {
    /// Of scale, in some component.
    scale: f64,
    /// Of scale, if the differences were exact: more than what is accepted.
    beyond_tolerance: f64,
    /// Of every single component, in units of its row's rms.
    element: f64,
}

impl Default for Least {
    fn default() -> Self {
        Self { scale: f64::INFINITY, beyond_tolerance: f64::INFINITY, element: 0.0 }
    }
}

impl Least {
    fn add(&mut self, component: &Component, size_of_row: f64) {
        let (least_seen, size) = (component.least_seen(), component.numeric.abs());
        self.scale = self.scale.min(least_seen / size);
        self.beyond_tolerance = self.beyond_tolerance.min(component.tolerance.max(component.rounding) / size);
        if size_of_row > 0.0 {
            self.element = self.element.max(least_seen / size_of_row);
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            scale: self.scale.min(other.scale),
            beyond_tolerance: self.beyond_tolerance.min(other.beyond_tolerance),
            element: self.element.max(other.element),
        }
    }
}

/// What became of a spoiled row.
struct Outcome {
    /// A component that was looked at is judged wrong.
    caught: bool,
    /// A component that was looked at was changed by more than a hundredth of the row's rms: equal ones may be swapped.
    differs: bool,
}

fn spoil_row(
    judge: &Judge,
    x: &dyn Fn(usize) -> f64,
    analytic: &[f64],
    measured: &Measured,
    row: usize,
    spoil: Spoil,
) -> Outcome {
    let range = row * judge.row_len()..(row + 1) * judge.row_len();
    let given = &analytic[range.clone()];
    let mut spoiled = given.to_vec();
    let x: Vec<f64> = range.clone().map(x).collect();
    spoil(&mut spoiled, &x);
    let least = 1e-2 * rms(given);
    let mut outcome = Outcome { caught: false, differs: false };
    let (numeric, floor) = (&measured.numeric[range.clone()], &measured.floor[range.clone()]);
    judge.components_of(range.start, analytic.len(), &spoiled, numeric, floor, |column, component| {
        outcome.caught |= component.verdict() >= Verdict::Wrong;
        outcome.differs |= (spoiled[column] - given[column]).abs() > least;
    });
    outcome
}
