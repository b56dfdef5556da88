//! Work dealt out to the threads of the ambient pool, each with buffers of its own.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::CheckError;

/// Gives `jobs` away in tasks of `task` consecutive ones, to as many workers as there are threads.
///
/// A worker is made by `worker` once and keeps its buffers. Of several failures the first in the order of the jobs is
/// returned, on any number of threads.
pub(super) fn deal_out<J: Sync, W>(
    jobs: &[J],
    task: usize,
    worker: impl Fn() -> Result<W, CheckError> + Sync,
    work: impl Fn(&mut W, &[J]) -> Result<(), CheckError> + Sync,
) -> Result<(), CheckError> {
    let next = AtomicUsize::new(0);
    let failed = AtomicUsize::new(usize::MAX);
    let failures = Mutex::new(Vec::new());
    let tasks = jobs.len().div_ceil(task.max(1));
    let fail = |number: usize, failure: CheckError| {
        failed.fetch_min(number, Ordering::Relaxed);
        // Nothing can panic while the lock is held, so it is never poisoned.
        failures.lock().iter_mut().for_each(|failures| failures.push((number, failure.clone())));
    };
    let run = || {
        let mut buffers = match worker() {
            Ok(buffers) => buffers,
            Err(failure) => return fail(0, failure),
        };
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            // What comes after a failure is not needed; what comes before it may fail earlier.
            if number >= tasks || number > failed.load(Ordering::Relaxed) {
                return;
            }
            let end = ((number + 1) * task).min(jobs.len());
            if let Err(failure) = work(&mut buffers, &jobs[number * task..end]) {
                return fail(number, failure);
            }
        }
    };
    let workers = rayon::current_num_threads().min(tasks);
    if workers > 1 {
        rayon::scope(|scope| (0..workers).for_each(|_| scope.spawn(|_| run())));
    } else if tasks > 0 {
        run();
    }
    let failures = failures.into_inner().unwrap_or_default();
    failures.into_iter().min_by_key(|&(number, _)| number).map_or(Ok(()), |(_, failure)| Err(failure))
}
