//! Central differences of an operation whose rows are independent: one column of *all* rows is perturbed at once, and
//! the change of the loss is split by row. All components of an input of width `C` cost `2 C` forwards, whatever the
//! rows.
//!
//! Where the operation can run a block of rows, a block stays in cache while its columns are perturbed in turn, and the
//! blocks are dealt out to the threads. Otherwise the columns are, and each worker forwards a clone of all inputs.

use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use super::block::Block;
use super::components::pilot_step;
use super::error::{CheckError, unless_stopped};
use super::exhaustive::Difference;
use super::judge::Judge;
use super::measured::{Measured, MeasuredRows};
use super::noise::Noise;
use super::problem::Problem;
use super::step::{Reach, Step, balanced, nearest_power_of_two, row_scale, sharper};
use super::workers::deal_out;
use crate::Element;

/// Columns whose third derivative is looked at before the step of a row is chosen.
const PILOTS: usize = 4;

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
                    block.differences(column, &pilots.steps)?;
                    pilots.add(&block.found);
                }
                pilots.balanced()
            }
        };
        for &column in columns {
            block.differences(column, &steps)?;
            for (row, found) in block.found.iter().enumerate() {
                measured.set(row * row_len + column, found);
            }
        }
        if self.step == Step::Balanced {
            for _ in 0..RETRIES {
                for (column, steps) in self.retries(&block, measured) {
                    block.differences(column, &steps)?;
                    block.found.iter().enumerate().for_each(|(row, found)| {
                        measured.improve(row * row_len + column, found);
                    });
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
        let jobs = columns.iter().map(|&column| (column, &steps[..])).collect::<Vec<_>>();
        deal_out_columns(&block, &jobs, &|column, found| {
            rows.lock().iter_mut().for_each(|rows| {
                found.iter().enumerate().for_each(|(row, found)| rows.set(row * row_len + column, found));
            });
        })?;
        for _ in 0..if self.step == Step::Balanced { RETRIES } else { 0 } {
            let again = rows.lock().map(|rows| self.retries(&block, &rows)).unwrap_or_default();
            let jobs = again.iter().map(|(column, steps)| (*column, &steps[..])).collect::<Vec<_>>();
            deal_out_columns(&block, &jobs, &|column, found| {
                rows.lock().iter_mut().for_each(|rows| {
                    found.iter().enumerate().for_each(|(row, found)| rows.improve(row * row_len + column, found));
                });
            })?;
        }
        Ok(())
    }

    /// The step of each row, from pilots of all rows at once.
    fn whole_steps(&self, k: usize, block: &mut Block<'_, T>) -> Result<Vec<f64>, CheckError> {
        let mut pilots = Pilots::new(block, self.whole_scale(k));
        block.reaches = pilots.reaches();
        let found = Mutex::new(vec![Vec::new(); block.row_len()]);
        let jobs = pilots.columns().into_iter().map(|column| (column, &pilots.steps[..])).collect::<Vec<_>>();
        deal_out_columns(block, &jobs, &|column, differences| {
            found.lock().iter_mut().for_each(|found| found[column] = differences.to_vec());
        })?;
        let found = found.into_inner().unwrap_or_default();
        found.iter().filter(|found| !found.is_empty()).for_each(|found| pilots.add(found));
        Ok(pilots.balanced())
    }

    /// The scale of the whole input, where its rows are single elements.
    fn whole_scale(&self, k: usize) -> Option<f64> {
        let single = self.problem.declared[k].row_len() == 1;
        single.then(|| row_scale::<T>(self.problem.input(k).iter().map(|x| x.to_f64())))
    }

    /// The columns that hold an inconclusive component, each with the step that those components ask for and 0 for the
    /// others.
    fn retries(&self, block: &Block<'_, T>, measured: &MeasuredRows<'_>) -> Vec<(usize, Vec<f64>)> {
        let row_len = block.row_len();
        let mut columns = vec![Vec::new(); row_len];
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
                let step = sharper(old, sigma, truncation, *reach);
                if step.is_normal() && step != old {
                    columns[column].resize(block.rows(), 0.0);
                    columns[column][row] = step;
                }
            },
        );
        columns.into_iter().enumerate().filter(|(_, steps)| !steps.is_empty()).collect()
    }
}

/// Perturbs columns by the steps given for each, on workers with siblings of `block`, and hands the differences to
/// `write`.
fn deal_out_columns<T: Element>(
    block: &Block<'_, T>,
    jobs: &[(usize, &[f64])],
    write: &(dyn Fn(usize, &[Difference]) + Sync),
) -> Result<(), CheckError> {
    deal_out(
        jobs,
        1,
        || Ok(block.sibling()),
        |block, jobs| {
            jobs.iter().try_for_each(|&(column, steps)| {
                block.differences(column, steps)?;
                write(column, &block.found);
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
    relative: Vec<Vec<f64>>,
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
        let relative = vec![Vec::new(); scales.len()];
        Self { row_len, scales, steps, relative }
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
        for ((relative, found), scale) in self.relative.iter_mut().zip(found).zip(&self.scales) {
            let step = balanced(found.step, found.sigma, found.truncation) / scale;
            if step.is_normal() {
                relative.push(step);
            }
        }
    }

    /// The steps. One that is too great costs truncation, as its square: so rather a small one of those asked for.
    fn balanced(self) -> Vec<f64> {
        let steps = self.relative.into_iter().zip(self.scales).zip(self.steps);
        steps
            .map(|((mut relative, scale), pilot)| {
                relative.sort_by(f64::total_cmp);
                relative.get(relative.len() / 3).map_or(pilot, |relative| nearest_power_of_two(relative * scale))
            })
            .collect()
    }
}
