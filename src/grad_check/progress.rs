//! How far a check has come, and how to end it early.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counters that a check writes and any other thread may read, to draw a bar or to end the check.
///
/// ```
/// use std::sync::Arc;
/// use llm_operator::grad_check::{GradCheck, Progress};
///
/// let progress = Arc::new(Progress::default());
/// let check = GradCheck::new().progress(Arc::clone(&progress));
/// // Another thread shows `progress.done()` of `progress.expected()`, and may call `progress.stop()`.
/// # drop(check);
/// assert_eq!(progress.done(), 0);
/// ```
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    expected: AtomicU64,
    stopped: AtomicBool,
}

impl Progress {
    /// Forwards of the whole input carried out until now; a block of rows counts as its share of one.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Forwards that the check expects to need in all, as soon as it has begun; components that need a second look come
    /// on top of it.
    pub fn expected(&self) -> u64 {
        self.expected.load(Ordering::Relaxed).max(self.done())
    }

    /// Asks the check to end soon, with a report on what was found until then: its
    /// [`stopped`](super::Report::stopped) is set, and it never passes. (A sweep ends with
    /// [`CheckError::Stopped`](super::CheckError::Stopped).)
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether the check was asked to end.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub(super) fn advance(&self, forwards: u64) {
        self.done.fetch_add(forwards, Ordering::Relaxed);
    }

    pub(super) fn expect(&self, forwards: u64) {
        self.expected.fetch_add(forwards, Ordering::Relaxed);
    }
}
