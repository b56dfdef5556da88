//! How long a check takes, beside plain forwards.

use std::time::{Duration, Instant};

use ndarray::ArrayD;

use super::error::{Call, CheckError, Stage};
use super::problem::{Problem, caught};
use super::report::Timing;
use crate::Element;

/// Forwards that are timed before a check, and after it, at least.
const FORWARDS: usize = 5;

/// Time that is spent on them, at least.
const PATIENCE: Duration = Duration::from_millis(5);

/// Forwards that are timed at most.
const MANY: usize = 200;

/// Measures a check.
pub(super) struct Clock {
    start: Instant,
    elapsed: Duration,
    forwards: Vec<f64>,
}

impl Clock {
    /// Times some forwards, and starts.
    pub(super) fn start<T: Element>(problem: &Problem<'_, T>) -> Result<Self, CheckError> {
        let forwards = forwards(problem)?;
        Ok(Self { start: Instant::now(), elapsed: Duration::ZERO, forwards })
    }

    /// Stops, and times some forwards more.
    pub(super) fn stop<T: Element>(&mut self, problem: &Problem<'_, T>) -> Result<(), CheckError> {
        self.elapsed = self.start.elapsed();
        self.forwards.extend(forwards(problem)?);
        Ok(())
    }

    /// What was found, beside so many forwards, which took as long as `measuring` with all that belongs to them.
    pub(super) fn timing(mut self, forwards: u64, measuring: Duration) -> Timing {
        self.forwards.sort_by(f64::total_cmp);
        let forward_seconds = self.forwards[self.forwards.len() / 2];
        let (seconds, measuring_seconds) = (self.elapsed.as_secs_f64(), measuring.as_secs_f64());
        let ratio = measuring_seconds / (forwards as f64 * forward_seconds);
        Timing { seconds, measuring_seconds, forward_seconds, forwards, ratio }
    }
}

/// The seconds of some forwards of the whole input. They are no part of the check, and not counted.
fn forwards<T: Element>(problem: &Problem<'_, T>) -> Result<Vec<f64>, CheckError> {
    let mut output: ArrayD<T> = problem.poisoned_output();
    let mut forward = || -> Result<f64, CheckError> {
        let start = Instant::now();
        caught(|| problem.operation.forward(&problem.inputs, &mut output))
            .map_err(|failure| failure.at(Call::unperturbed(Stage::Forward)))?;
        Ok(start.elapsed().as_secs_f64())
    };
    // The first call may start threads, and meets new memory.
    forward()?;
    let start = Instant::now();
    let mut seconds = Vec::new();
    while seconds.len() < FORWARDS || (start.elapsed() < PATIENCE && seconds.len() < MANY) {
        seconds.push(forward()?);
    }
    Ok(seconds)
}
