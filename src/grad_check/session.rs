//! One check, from the noise to the verdicts: which measurement each input gets, and what it may cost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::components;
use super::directional::Directional;
use super::error::{Call, CheckError, Stage, unless_stopped};
use super::exact;
use super::follows;
use super::independence;
use super::judge::{Judge, judge_input};
use super::local::Local;
use super::measured::Measured;
use super::noise::{self, Noise};
use super::operation::Locality;
use super::problem::{Problem, caught};
use super::report::{Check, Direction, InputReport};
use super::run::{Budget, Given, Mode};
use super::step::Step;
use super::verdict::Tolerance;
use crate::Element;

/// Directions that are tried where not every component is.
const DIRECTIONS: usize = 8;

/// Output elements that may be computed for one input without a budget where nothing is known of its rows; some
/// seconds.
const DEFAULT_WORK: u64 = 1 << 32;

/// What a check is asked to do, and what it has found so far.
pub(super) struct Session<'a, T: Element> {
    pub(super) problem: &'a Problem<'a, T>,
    pub(super) mode: Mode,
    pub(super) step: Step,
    pub(super) tolerance: Tolerance,
    pub(super) budget: Option<Budget>,
    /// Whether the gradient under test is the operation's own, so that it can be had at other points too.
    pub(super) own_backward: bool,
    /// Forwards that the measurements took by definition, without pilots, second looks and the measure of the noise.
    pub(super) counted: AtomicU64,
    /// Nanoseconds that passed in what they are counted for.
    pub(super) measuring: AtomicU64,
}

/// What a session found.
pub(super) struct Findings {
    pub(super) noise: Noise,
    pub(super) inputs: Vec<InputReport>,
    pub(super) checks: Vec<Check>,
    /// Whether the caller asked for the end before it had come.
    pub(super) stopped: bool,
}

/// How one input is measured.
enum Plan {
    /// Every component.
    All,
    /// This many components, or columns of components, and some directions.
    Sample(usize),
    /// Directions alone.
    Directions,
    /// Every component along a line.
    Lines,
}

impl<T: Element> Session<'_, T> {
    /// Judges the gradients that are given, or else the operation's own.
    pub(super) fn run(&self, given: Option<Vec<Option<Given>>>) -> Result<Findings, CheckError> {
        let mut findings = Findings { noise: Noise::unknown(), inputs: Vec::new(), checks: Vec::new(), stopped: false };
        unless_stopped(self.find(given, &mut findings))?;
        findings.stopped = self.problem.is_stopped();
        Ok(findings)
    }

    fn find(&self, given: Option<Vec<Option<Given>>>, findings: &mut Findings) -> Result<(), CheckError> {
        let problem = self.problem;
        let checks = &mut findings.checks;
        let allowance = self.allowance()?;
        let splits = self.splits();
        problem.expect_forwards(self.expected(given.as_deref(), allowance));
        exact::verify(problem, self.own_backward, checks)?;
        if splits {
            let backwards = if self.own_backward { self.independence() } else { 0 };
            self.counted.fetch_add(self.independence() + backwards, Ordering::Relaxed);
            let independence = self.measuring(|| independence::verify(problem, self.own_backward))?;
            let may_split = independence::may_split(&independence);
            checks.extend(independence);
            // What is split by row would be split wrongly.
            if !may_split {
                return Ok(());
            }
        }
        if self.own_backward {
            checks.extend(follows::verify(problem)?);
        }
        let mut by_blocks = splits && problem.runs_blocks()?;
        if by_blocks {
            let blocks = exact::blocks(problem)?;
            // What is found on blocks of another function would say nothing about this one.
            by_blocks = blocks.holds;
            checks.push(blocks);
        }
        findings.noise = noise::measure(problem, by_blocks, allowance)?;
        let noise = &findings.noise;
        let mut terms = self.gradient_terms()?;
        // Only now: what was verified before needs the memory.
        let analytic = match given {
            Some(given) => given,
            None => {
                let gradients = problem.backward(&problem.inputs, &problem.upstream)?;
                checks.extend(exact::identities(problem, &gradients));
                if let Some(twin) = problem.operation.in_f64() {
                    checks.extend(exact::against_f64(problem, twin, &gradients, &terms)?);
                }
                gradients.into_iter().map(|gradient| Some(Given::new(&gradient))).collect()
            }
        };
        let mut left = analytic.iter().flatten().count() as u64;
        for (k, given) in analytic.into_iter().enumerate() {
            let Some(given) = given else { continue };
            let share = allowance.map(|forwards| forwards.saturating_sub(problem.forwards()) / left);
            left -= 1;
            let row_len = problem.declared[k].row_len();
            let terms = std::mem::take(&mut terms[k]);
            let judge = Judge::new(self.tolerance, row_len, given.unit_roundoff, T::UNIT_ROUNDOFF, terms);
            let local = Local { problem, noise, step: self.step, judge: &judge, by_blocks, rows_verified: splits };
            let analytic = given.into_values();
            let (measured, directions) = self.measuring(|| self.measure(&local, k, &analytic, share))?;
            findings.inputs.push(judge_input(problem, k, judge, analytic, measured, directions));
            if problem.is_stopped() {
                break;
            }
        }
        Ok(())
    }

    /// Runs what forwards are counted for.
    fn measuring<R>(&self, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let found = work();
        self.measuring.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        found
    }

    /// Whether the declared independence of rows and columns is relied on, after it was verified.
    fn splits(&self) -> bool {
        matches!(self.mode, Mode::Local | Mode::Auto | Mode::Line)
    }

    /// Forwards that the differences of an input take by definition, with those for their truncation: two for `D(h)`
    /// and two for `D(2h)`, for each element that is moved or for each column of elements that are moved together.
    fn differences(&self, k: usize, plan: &Plan) -> u64 {
        let declared = &self.problem.declared[k];
        let (all, fewer) = match declared.locality {
            Locality::Rows(_) if self.splits() => (declared.row_len(), usize::MAX),
            Locality::Columns if self.splits() => (1, 1),
            _ => (declared.len(), usize::MAX),
        };
        4 * match plan {
            Plan::All => all as u64,
            Plan::Sample(count) => (*count).min(fewer).min(all) as u64 + DIRECTIONS as u64,
            Plan::Directions => DIRECTIONS as u64,
            // As many backwards again.
            Plan::Lines => 2 * declared.row_len().min(all) as u64,
        }
    }

    /// Forwards, and as many backwards, that verify the independence of rows.
    fn independence(&self) -> u64 {
        let splits =
            self.splits() && self.problem.declared.iter().any(|input| matches!(input.locality, Locality::Rows(_)));
        let rows = if splits { self.problem.rows } else { 1 };
        u64::from(independence::count(rows))
    }

    /// Roughly what the whole check is going to cost.
    fn expected(&self, given: Option<&[Option<Given>]>, allowance: Option<u64>) -> u64 {
        /// Forwards of the exact checks, of the noise, and of the pilots of an input, about.
        const EXACT: u64 = 12;
        const PILOTS: u64 = 16;
        let judged = |k: &usize| given.is_none_or(|given| given[*k].is_some());
        let inputs: Vec<usize> = (0..self.problem.declared.len()).filter(judged).collect();
        let share = allowance.map(|allowance| allowance / inputs.len().max(1) as u64);
        let differences = inputs.iter().map(|&k| PILOTS + self.differences(k, &self.plan(k, share))).sum::<u64>();
        EXACT + self.independence() + differences
    }

    /// What the operation says of the terms of its gradients; of each input as many numbers as are asked for, or none.
    fn gradient_terms(&self) -> Result<Vec<Vec<f64>>, CheckError> {
        let problem = self.problem;
        let mut terms = Vec::new();
        caught(|| {
            terms = problem.operation.gradient_terms(&problem.inputs, &problem.upstream);
            Ok(())
        })
        .map_err(|failure| failure.at(Call::unperturbed(Stage::Backward)))?;
        terms.resize(problem.declared.len(), Vec::new());
        for (terms, declared) in terms.iter().zip(&problem.declared) {
            let expected = match declared.locality {
                Locality::Rows(rows) => rows,
                Locality::Columns | Locality::Shared => declared.len(),
            };
            if !terms.is_empty() && terms.len() != expected {
                let found = terms.len();
                let wrong = format!("{} has {found} gradient terms where {expected} were expected", declared.name);
                return Err(CheckError::Declaration { operation: problem.name.clone(), problem: wrong });
            }
        }
        Ok(terms)
    }

    /// The forwards that the budget buys.
    fn allowance(&self) -> Result<Option<u64>, CheckError> {
        Ok(match self.budget {
            None => None,
            Some(Budget::Forwards(forwards)) => Some(forwards),
            Some(Budget::Seconds(seconds)) => {
                let mut y = self.problem.poisoned_output();
                // The first call may start threads.
                self.problem.forward(&self.problem.inputs, &mut y, || None)?;
                let start = Instant::now();
                self.problem.forward(&self.problem.inputs, &mut y, || None)?;
                Some((seconds / start.elapsed().as_secs_f64().max(1e-9)) as u64)
            }
        })
    }

    fn plan(&self, k: usize, share: Option<u64>) -> Plan {
        let declared = &self.problem.declared[k];
        match self.mode {
            Mode::Exhaustive | Mode::Local => return Plan::All,
            Mode::Directional => return Plan::Directions,
            Mode::Line => return Plan::Lines,
            Mode::Auto => {}
        }
        let (probes, pilots) = match declared.locality {
            Locality::Rows(_) => (declared.row_len(), 32),
            Locality::Columns => (1, 8),
            Locality::Shared => (declared.len(), 40),
        };
        let allowed = match (share, declared.locality) {
            (Some(share), _) => share,
            (None, Locality::Shared) => DEFAULT_WORK / self.problem.output_len().max(1) as u64,
            (None, _) => u64::MAX,
        };
        if 4 * probes as u64 + pilots <= allowed {
            return Plan::All;
        }
        let spent = 4 * DIRECTIONS as u64 + pilots;
        Plan::Sample((allowed.saturating_sub(spent) / 4) as usize)
    }

    fn measure(
        &self,
        local: &Local<'_, T>,
        k: usize,
        analytic: &[f64],
        share: Option<u64>,
    ) -> Result<(Measured, Vec<Direction>), CheckError> {
        let problem = self.problem;
        let fixed = if let Step::Fixed(eps) = self.step { Some(eps) } else { None };
        let plan = self.plan(k, share);
        self.counted.fetch_add(self.differences(k, &plan), Ordering::Relaxed);
        let mut directions = Vec::new();
        if !matches!(plan, Plan::All | Plan::Lines) && !analytic.is_empty() {
            let judged = Directional::new(problem, local.noise, k, analytic)
                .and_then(|mut directional| directional.judge(DIRECTIONS, self.step, local.judge, &mut directions));
            unless_stopped(judged)?;
        }
        let mut measured = match plan {
            Plan::Directions => Measured::not_looked_at(analytic.len(), fixed),
            Plan::Lines => {
                let mut measured = Measured::unknown(analytic.len(), None);
                unless_stopped(local.measure_lines(k, analytic, &mut measured, usize::MAX, true))?;
                measured.forget_unknown();
                measured
            }
            Plan::All => self.measure_components(local, k, analytic, usize::MAX)?,
            Plan::Sample(count) => self.measure_components(local, k, analytic, count)?,
        };
        if matches!(self.mode, Mode::Auto) && self.own_backward && self.step == Step::Balanced {
            // A line costs about as much as twelve forwards.
            let work = DEFAULT_WORK / problem.output_len().max(1) as u64 / 12;
            let limit = share.map_or(work, |share| share / 24).max(1) as usize;
            unless_stopped(local.measure_lines(k, analytic, &mut measured, limit, false))?;
        }
        if let Some(eps) = fixed {
            let row_len = local.judge.row_len();
            measured.distrust_far_steps(local.judge, &components::scales(problem.input(k), row_len), eps);
        }
        Ok((measured, directions))
    }

    /// Every component, or `count` columns or components of them, spread evenly.
    fn measure_components(
        &self,
        local: &Local<'_, T>,
        k: usize,
        analytic: &[f64],
        count: usize,
    ) -> Result<Measured, CheckError> {
        match self.problem.declared[k].locality {
            Locality::Rows(_) if local.rows_verified => {
                local.measure_rows(k, &spread(self.problem.declared[k].row_len(), count))
            }
            Locality::Columns if local.rows_verified && count > 0 => match local.measure_columns(k, analytic) {
                Err(CheckError::Stopped { .. }) => Ok(Measured::not_looked_at(analytic.len(), None)),
                measured => measured,
            },
            _ => {
                let elements = Spread { len: analytic.len(), count };
                match components::measure(self.problem, local.noise, k, self.step, local.judge, analytic, elements) {
                    // Not even the pilots were done.
                    Err(CheckError::Stopped { .. }) => Ok(Measured::not_looked_at(analytic.len(), None)),
                    measured => measured,
                }
            }
        }
    }
}

/// `count` numbers below `len` in ascending order: one of each of as many equal strata, at changing places in it, and
/// always the first and the last, where loops begin and end.
pub(super) fn spread(len: usize, count: usize) -> Vec<usize> {
    Spread { len, count }.iter().collect()
}

/// The same numbers, without a list of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    pub(super) len: usize,
    pub(super) count: usize,
}

impl Spread {
    pub(super) fn iter(self) -> impl Iterator<Item = usize> {
        let Self { len, count } = self;
        (0..count.min(len)).map(move |stratum| match stratum {
            _ if count >= len => stratum,
            0 if count > 1 => 0,
            _ if count > 1 && stratum == count - 1 => len - 1,
            _ => {
                let (start, end) = (stratum * len / count, (stratum + 1) * len / count);
                start + (stratum * 5) % (end - start)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_spread_over_all_strata_and_holds_both_ends() {
        let chosen = spread(768, 24);
        assert_eq!((chosen[0], chosen[23], chosen.len()), (0, 767, 24));
        assert!(chosen.windows(2).all(|pair| pair[0] < pair[1] && pair[1] - pair[0] < 64));
        assert_eq!(spread(5, 9), [0, 1, 2, 3, 4]);
        assert_eq!(spread(5, 0), [0; 0]);
    }
}
