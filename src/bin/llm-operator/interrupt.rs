//! Ctrl-C in a long check ends it with what was found until then.

use llm_operator::grad_check::Progress;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of a run that was interrupted: what a shell gives for the signal.
pub(crate) const INTERRUPTED: u8 = 130;

/// Runs a check that the first interrupt asks to end, and that the second ends at once.
pub(crate) fn stoppable<R>(check: &Arc<Progress>, work: impl FnOnce() -> R) -> R {
    let running = Arc::new(AtomicBool::new(true));
    let (progress, is_running) = (Arc::clone(check), Arc::clone(&running));
    let handled = ctrlc::set_handler(move || {
        if !is_running.load(Ordering::Relaxed) || progress.is_stopped() {
            std::process::exit(i32::from(INTERRUPTED));
        }
        progress.stop();
    });
    // Where no handler can be set, an interrupt ends the run as it always does.
    drop(handled);
    let result = work();
    running.store(false, Ordering::Relaxed);
    result
}
