//! A bar on stderr for work that takes over a second, where stderr is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use llm_operator::grad_check;
use std::cell::Cell;
use std::io::{Read, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Work shorter than this shows nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Time between two looks at a check.
const REFRESH: Duration = Duration::from_millis(100);

/// Bytes between two looks at the clock.
const STEP: usize = 1 << 20;

/// How far some work has come. Quick work is never seen.
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
    shown: Cell<bool>,
}

impl Progress {
    /// For the reading or writing of `total` bytes.
    pub(crate) fn bytes(task: &'static str, total: u64) -> Self {
        Self::new(task, total, "{msg} {wide_bar} {bytes} of {total_bytes}, {eta} left")
    }

    /// For work that tells itself how far it is.
    fn forwards(task: &'static str) -> Self {
        Self::new(task, 0, "{msg} {wide_bar} {pos} of {len} forwards, {eta} left")
    }

    fn new(task: &'static str, total: u64, template: &str) -> Self {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        bar.set_style(style);
        bar.set_message(task);
        Self { bar, started: Instant::now(), shown: Cell::new(false) }
    }

    /// `steps` more are done.
    fn advance(&self, steps: u64) {
        self.bar.inc(steps);
        self.show();
    }

    /// Shows the bar where the work has taken long enough to wonder.
    fn show(&self) {
        if !self.shown.get() && self.started.elapsed() >= PATIENCE {
            self.shown.set(true);
            // Draws on a terminal only.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    /// A reader or writer whose bytes count.
    pub(crate) fn counting<F>(&self, file: F) -> Counting<'_, F> {
        Counting { file, progress: self }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Runs a check, and shows how far it has come.
pub(crate) fn watch<R: Send>(task: &'static str, check: &grad_check::Progress, work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let (end, ended) = mpsc::channel::<()>();
        scope.spawn(move || {
            let progress = Progress::forwards(task);
            // The other end goes away when the work is done, or panics.
            while ended.recv_timeout(REFRESH) == Err(RecvTimeoutError::Timeout) {
                progress.bar.set_length(check.expected());
                progress.bar.set_position(check.done());
                progress.show();
            }
        });
        let result = work();
        drop(end);
        result
    })
}

/// Reads or writes in steps, so that the bar moves within one long read.
pub(crate) struct Counting<'p, F> {
    file: F,
    progress: &'p Progress,
}

impl<F: Read> Read for Counting<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let step = buffer.len().min(STEP);
        let count = self.file.read(&mut buffer[..step])?;
        self.progress.advance(count as u64);
        Ok(count)
    }
}

impl<F: Write> Write for Counting<'_, F> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(&buffer[..buffer.len().min(STEP)])?;
        self.progress.advance(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
