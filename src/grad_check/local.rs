//! Central differences of an operation whose rows are independent: one column of *all* rows is perturbed at once, and
//! the change of the loss is split by row. All components of an input of width `C` cost `2 C` forwards, whatever the
//! rows.
//!
//! Where the operation can run a block of rows, a block stays in cache while its columns are perturbed in turn, and the
//! blocks are dealt out to the threads. Otherwise the columns are, and each worker forwards a clone of all inputs.

use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use super::block::{Block, Move};
use super::components::pilot_step;
use super::error::{CheckError, unless_stopped};
use super::exhaustive::Difference;
use super::judge::{Judge, rms};
use super::measured::{Measured, MeasuredRows};
use super::noise::Noise;
use super::problem::Problem;
use super::step::{Reach, Step, balanced, growth, nearest_power_of_two, quieter, row_scale, sharper};
use super::verdict::Tolerance;
use super::workers::deal_out;
use crate::Element;

/// Columns whose third derivative is looked at before the step of a row is chosen.
const PILOTS: usize = 4;

/// The share of the tolerance that the noise of a difference may take: the pilots know the size of a row roughly.
const SHARE: f64 = 0.75;

/// How often an inconclusive component is looked at again, with a step of its own.
const RETRIES: usize = 2;

/// What the parts of the mode share.
pub(super) struct Local<'a, T: Element> {
    pub(super) problem: &'a Problem<'a, T>,
    pub(super) noise: &'a Noise,
    pub(super) step: Step,
    pub(super) judge: &'a Judge,
    /// Whether the operation can be run on a block of rows.
    pub(super) by_blocks: bool,
    /// Whether the declared independence was verified, so that the loss may be split by it.
    pub(super) rows_verified: bool,
}

impl<T: Element> Local<'_, T> {
    /// Measures some columns of input `k`, which is declared in rows.
    pub(super) fn measure_rows(&self, k: usize, columns: &[usize]) -> Result<Measured, CheckError> {
        let problem = self.problem;
        let row_len = problem.declared[k].row_len();
        let fixed = if let Step::Fixed(eps) = self.step { Some(eps) } else { None };
        let mut measured = Measured::not_looked_at(problem.input(k).len(), fixed);
        if problem.rows == 0 || measured.numeric.is_empty() {
            return Ok(measured);
        }
        if self.by_blocks {
            let rows = problem.block_rows();
            let whole = self.whole_scale(k);
            let blocks: Vec<_> = problem.blocks().into_iter().zip(measured.rows_mut(rows * row_len)).collect();
            let outcomes: Vec<_> = blocks
                .into_par_iter()
                .map(|(rows, mut measured)| self.block(k, rows, columns, whole, &mut measured))
                .collect();
            unless_stopped(outcomes.into_iter().collect())?;
        } else {
            unless_stopped(self.whole(k, columns, &mut measured))?;
        }
        Ok(measured)
    }

    /// All columns of one block of rows, on the calling thread.
    fn block(
        &self,
        k: usize,
        rows: Range<usize>,
        columns: &[usize],
        whole: Option<f64>,
        measured: &mut MeasuredRows<'_>,
    ) -> Result<(), CheckError> {
        let mut block = Block::of_rows(self.problem, self.noise, k, rows)?;
        let row_len = block.row_len();
        let steps = match self.step {
            Step::Fixed(eps) => vec![eps; block.rows()],
            Step::Balanced => {
                let mut pilots = Pilots::new(&block, whole);
                block.reaches = pilots.reaches();
                for column in pilots.columns() {
                    block.differences(&of_column(column, &pilots.steps))?;
                    pilots.add(&block.found);
                }
                pilots.sharp_enough(self.judge.tolerance())
            }
        };
        for &column in columns {
            block.differences(&of_column(column, &steps))?;
            for (row, found) in block.found.iter().enumerate() {
                measured.set(row * row_len + column, found);
            }
        }
        if self.step == Step::Balanced {
            for _ in 0..RETRIES {
                let retries = self.retries(&block, measured);
                if retries.is_empty() {
                    break;
                }
                for moves in retries.rounds() {
                    block.differences(&moves)?;
                    improve(measured, row_len, &moves, &block.found);
                }
            }
        }
        Ok(())
    }

    /// All columns of all rows at once, dealt out to workers.
    fn whole(&self, k: usize, columns: &[usize], measured: &mut Measured) -> Result<(), CheckError> {
        let mut block = Block::of_everything(self.problem, self.noise, k)?;
        block.release();
        let row_len = block.row_len();
        let steps = match self.step {
            Step::Fixed(eps) => vec![eps; block.rows()],
            Step::Balanced => self.whole_steps(k, &mut block)?,
        };
        let len = measured.numeric.len();
        let rows = Mutex::new(measured.rows_mut(len).remove(0));
        deal_out_moves(&block, columns.len(), &|job| of_column(columns[job], &steps), &|job, _, found| {
            rows.lock().iter_mut().for_each(|rows| {
                found.iter().enumerate().for_each(|(row, found)| rows.set(row * row_len + columns[job], found));
            });
        })?;
        for _ in 0..if self.step == Step::Balanced { RETRIES } else { 0 } {
            let retries = rows.lock().map(|rows| self.retries(&block, &rows)).unwrap_or_default();
            if retries.is_empty() {
                break;
            }
            deal_out_moves(&block, retries.rounds().len(), &|job| retries.round(job), &|_, moves, found| {
                rows.lock().iter_mut().for_each(|rows| improve(rows, row_len, moves, found));
            })?;
        }
        Ok(())
    }

    /// The step of each row, from pilots of all rows at once.
    fn whole_steps(&self, k: usize, block: &mut Block<'_, T>) -> Result<Vec<f64>, CheckError> {
        let mut pilots = Pilots::new(block, self.whole_scale(k));
        block.reaches = pilots.reaches();
        let found = Mutex::new([(); PILOTS].map(|()| Vec::new()));
        let columns = pilots.columns();
        deal_out_moves(block, columns.len(), &|job| of_column(columns[job], &pilots.steps), &|job, _, differences| {
            found.lock().iter_mut().for_each(|found| found[job] = differences.to_vec());
        })?;
        found.into_inner().unwrap_or_default().iter().for_each(|found| pilots.add(found));
        Ok(pilots.sharp_enough(self.judge.tolerance()))
    }

    /// The scale of the whole input, where its rows are single elements.
    fn whole_scale(&self, k: usize) -> Option<f64> {
        let single = self.problem.declared[k].row_len() == 1;
        single.then(|| row_scale::<T>(self.problem.input(k).iter().map(|x| x.to_f64())))
    }

    /// The inconclusive components of each row, each with the step that it asks for.
    fn retries(&self, block: &Block<'_, T>, measured: &MeasuredRows<'_>) -> Retries {
        let row_len = block.row_len();
        let mut rows = vec![Vec::new(); block.rows()];
        // No gradient under test is needed to see that a floor is too high: the numeric one has the same size.
        let (start, len) = (block.start() * row_len, self.problem.declared[block.input()].len());
        self.judge.components_of(
            start,
            len,
            measured.numeric,
            measured.numeric,
            measured.floor,
            |element, component| {
                let undecided = component.floor > component.tolerance;
                if !undecided {
                    return;
                }
                let (row, column) = (element / row_len, element % row_len);
                let old = measured.step(element);
                let sigma = block.sigma(row, old);
                let truncation = (0.5 * (component.floor - 6.0 * sigma)).max(0.0);
                let Some(reach) = block.reaches.get(row) else { return };
                let growth = growth(sigma, SHARE * component.tolerance);
                let step = sharper(old, sigma, truncation, growth, *reach);
                if step.is_normal() && step != old {
                    rows[row].push(Move { column, step });
                }
            },
        );
        Retries { rows }
    }
}

/// One column of all rows, each by its own step.
fn of_column(column: usize, steps: &[f64]) -> Vec<Move> {
    steps.iter().map(|&step| Move { column, step }).collect()
}

/// Components that are looked at again. As rows are independent, a round takes one of each row, whatever its column: there
/// are as many rounds as the row with the most of them has, not as all rows together have columns.
#[derive(Default)]
struct Retries {
    rows: Vec<Vec<Move>>,
}

impl Retries {
    fn is_empty(&self) -> bool {
        self.rows.iter().all(Vec::is_empty)
    }

    fn rounds(&self) -> impl ExactSizeIterator<Item = Vec<Move>> {
        (0..self.rows.iter().map(Vec::len).max().unwrap_or(0)).map(|round| self.round(round))
    }

    /// A row that has no more of them is left alone.
    fn round(&self, round: usize) -> Vec<Move> {
        self.rows.iter().map(|row| row.get(round).copied().unwrap_or(Move { column: 0, step: 0.0 })).collect()
    }
}

/// Takes over what is sharper than what is known.
fn improve(measured: &mut MeasuredRows<'_>, row_len: usize, moves: &[Move], found: &[Difference]) {
    // A row that was left alone has learned nothing.
    for (row, (moved, found)) in moves.iter().zip(found).enumerate().filter(|(_, (moved, _))| moved.step != 0.0) {
        measured.improve(row * row_len + moved.column, found);
    }
}

/// Perturbs all rows by the moves of each job, on workers with siblings of `block`, and hands the differences to `write`.
fn deal_out_moves<T: Element>(
    block: &Block<'_, T>,
    jobs: usize,
    moves: &(dyn Fn(usize) -> Vec<Move> + Sync),
    write: &(dyn Fn(usize, &[Move], &[Difference]) + Sync),
) -> Result<(), CheckError> {
    deal_out(
        &(0..jobs).collect::<Vec<_>>(),
        1,
        || Ok(block.sibling()),
        |block, jobs| {
            jobs.iter().try_for_each(|&job| {
                let moves = moves(job);
                block.differences(&moves)?;
                write(job, &moves, &block.found);
                Ok(())
            })
        },
    )
}

/// The step of each row, from a few of its columns.
struct Pilots {
    row_len: usize,
    scales: Vec<f64>,
    steps: Vec<f64>,
    /// What was found of each row.
    found: Vec<Vec<Difference>>,
}

impl Pilots {
    /// A row of one element says nothing about its scale; `whole`, that of the input, then does.
    fn new<T: Element>(block: &Block<'_, T>, whole: Option<f64>) -> Self {
        let row_len = block.row_len();
        let scale = |row: &[T]| match whole {
            Some(whole) => whole.max(0.1 * row[0].to_f64().abs()),
            None => row_scale::<T>(row.iter().map(|x| x.to_f64())),
        };
        let scales: Vec<f64> = block.original().chunks(row_len).map(scale).collect();
        let steps = scales.iter().map(|scale| nearest_power_of_two(pilot_step::<T>() * scale)).collect();
        let found = vec![Vec::new(); scales.len()];
        Self { row_len, scales, steps, found }
    }

    /// How far the elements of each row may be moved.
    fn reaches(&self) -> Vec<Reach> {
        self.scales.iter().map(|scale| Reach::of_row(*scale, self.row_len)).collect()
    }

    /// A few columns, spread over the row.
    fn columns(&self) -> Vec<usize> {
        let pilots = PILOTS.min(self.row_len);
        (0..pilots).map(|pilot| (2 * pilot + 1) * self.row_len / (2 * pilots)).collect()
    }

    fn add(&mut self, found: &[Difference]) {
        self.found.iter_mut().zip(found).for_each(|(row, found)| row.push(*found));
    }

    /// The steps: balanced, but where the noise is then above the tolerance rather longer. All components of the row would
    /// be looked at twice.
    fn sharp_enough(self, tolerance: Tolerance) -> Vec<f64> {
        let reaches = self.reaches();
        let rows = self.found.iter().zip(&self.scales).zip(&self.steps).zip(reaches);
        rows.map(|(((found, scale), &pilot), reach)| {
            let mut steps: Vec<f64> = found
                .iter()
                .map(|found| balanced(found.step, found.sigma, found.truncation) / scale)
                .filter(|step| step.is_normal())
                .collect();
            steps.sort_by(f64::total_cmp);
            // One that is too great costs truncation, as its square: so rather a small one of those asked for.
            let Some(step) = steps.get(steps.len() / 3) else { return pilot };
            let step = nearest_power_of_two(step * scale);
            let size = rms(&found.iter().map(|found| found.numeric).collect::<Vec<_>>());
            quieter(step, found, SHARE * tolerance.at(size), reach)
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_of_retries_takes_one_of_each_row() {
        let of = |columns: &[usize]| columns.iter().map(|&column| Move { column, step: 0.5 }).collect();
        let retries = Retries { rows: vec![of(&[7, 2]), of(&[]), of(&[3])] };
        let rounds: Vec<Vec<(usize, f64)>> =
            retries.rounds().map(|round| round.iter().map(|moved| (moved.column, moved.step)).collect()).collect();
        assert_eq!(rounds, [[(7, 0.5), (0, 0.0), (3, 0.5)], [(2, 0.5), (0, 0.0), (0, 0.0)]]);
        assert!(!retries.is_empty() && Retries { rows: vec![of(&[]), of(&[])] }.is_empty());
        assert_eq!(Retries::default().rounds().len(), 0);
    }
}
