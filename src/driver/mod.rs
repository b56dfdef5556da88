//! How rows become tasks.
//!
//! Work is halved until a piece is at most one task long; rayon's ambient pool takes the halves. Every row is computed the
//! same wherever the rows are cut, so for y and dx that depends on the number of threads; the parts whose dgamma and dbeta
//! are added up depend on the shape alone. Few long rows are shared ([`long_rows`]), segment by segment and column by
//! column, which changes no sum either. So results have the same bits on any number of threads. Small work stays on
//! the calling thread, which does not even start rayon.

mod backward;
mod cache;
mod copy;
mod forward;
mod long_rows;

pub(crate) use backward::{BackwardJob, backward};
pub(crate) use copy::copy;
pub(crate) use forward::{ForwardJob, forward};

use crate::Element;
use crate::kernel::{self, forward::Place};
use crate::simd::BATCH;

/// Bytes of x below which work stays on the calling thread: to wake another costs about as much as the work. From there on two
/// threads of an EPYC are 1.0 to 1.6 times as fast as one.
const SERIAL_BYTES: usize = 128 << 10;

/// Bytes of x in a task, at least: so many that the cost of a task is hidden.
const TASK_BYTES: usize = 64 << 10;

/// Tasks for each thread: where one thread is held up, others take over its share.
const TASKS: usize = 4;

/// Bytes of rows that are gathered from a view at a time.
const GATHERED_BYTES: usize = 128 << 10;

/// Rows from which it pays to lay out gamma and beta anew. With 8 rows of 768 columns forward takes 1.25 times as long with the
/// copies as without, from 32 on 0.94 to 0.98 times; backward was not measured.
const MANY_ROWS: usize = 32;

/// Rows in a task, where how rows are cut changes no bit.
fn task_rows<T>(rows: usize, width: usize) -> usize {
    task_rows_on(rayon::current_num_threads(), rows, width * size_of::<T>())
}

/// Rows in a task on so many threads: where there are rows enough, as many tasks for each thread, so that none waits long for
/// another. Where a task has many rows they are whole batches of the kernels.
fn task_rows_on(threads: usize, rows: usize, row_bytes: usize) -> usize {
    let most = (rows * row_bytes / TASK_BYTES).clamp(1, TASKS * threads);
    let tasks = if most > threads { most - most % threads } else { most };
    let task = rows.div_ceil(tasks);
    if task >= 8 * BATCH { task.next_multiple_of(BATCH) } else { task }
}

/// Rows that are gathered at a time.
fn gathered_rows<T>(width: usize) -> usize {
    (GATHERED_BYTES / (width * size_of::<T>())).max(1)
}

/// Whether so many elements are worth more than one thread.
fn is_parallel<T>(elements: usize) -> bool {
    elements * size_of::<T>() >= SERIAL_BYTES && rayon::current_num_threads() > 1
}

/// The row at which to halve `rows`, at a multiple of `task` rows; `None` where they are one task.
fn middle(rows: usize, task: usize) -> Option<usize> {
    (rows > task).then(|| rows.div_ceil(task) / 2 * task)
}

/// The first `middle` elements of an optional slice, and the others.
fn split_optional<T>(slice: Option<&mut [T]>, middle: usize) -> (Option<&mut [T]>, Option<&mut [T]>) {
    slice.map(|slice| slice.split_at_mut(middle)).unzip()
}

/// Where a call finds its inputs and outputs, so many bytes that threads share or one thread has all of.
fn place(streaming: Streaming, bytes: usize, is_parallel: bool) -> Place {
    let threads = if is_parallel { rayon::current_num_threads() } else { 1 };
    match streaming.decided(bytes, threads) {
        Streaming::Always => Place::Memory,
        _ => Place::Cache,
    }
}

/// Parameters at a multiple of 64 bytes, `width` of them, so that no load of them touches two cache lines: a copy in `room`
/// where they lie elsewhere and there are `many` rows, or where there are none and `default` takes their place.
fn aligned<'a, T: Element>(
    room: &'a mut Vec<T>,
    values: Option<&'a [T]>,
    default: T,
    width: usize,
    many: bool,
) -> &'a [T] {
    match values {
        Some(values) if !many || kernel::misaligned(values) == 0 => values,
        _ => {
            room.resize(width + 64 / size_of::<T>(), default);
            let start = kernel::misaligned(room);
            let room = &mut room[start..start + width];
            if let Some(values) = values {
                room.copy_from_slice(values);
            }
            room
        }
    }
}

/// Whether outputs are written past the caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streaming {
    /// Where inputs and outputs together are more than half of the last-level cache, or those of a thread fill the pages whose
    /// addresses a core has at hand (8 MiB, or more where the CPU says so: 12 on an EPYC, Zen 4). Not where a CPU is known to
    /// be slower so: AMD's, backward of rows of 16 elements or more in 256 bytes or less, with dgamma or dbeta, where dx is added
    /// to or does not lie at whole cache lines.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Streaming {
    /// The decision for a call that touches so many bytes on so many threads.
    fn decided(self, bytes: usize, threads: usize) -> Self {
        match self {
            Self::Auto if bytes > cache::last_level() / 2 || bytes / threads >= cache::of_thread() => Self::Always,
            Self::Auto => Self::Never,
            decided => decided,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Streaming, TASK_BYTES, TASKS, cache, task_rows_on};

    #[test]
    fn outputs_go_past_the_caches_where_half_of_the_last_or_the_share_of_a_thread_is_too_small() {
        let (half, share) = (cache::last_level() / 2, cache::of_thread());
        for (bytes, threads, expected) in [
            (half.min(share - 1), 1, Streaming::Never),
            (share, 1, Streaming::Always),
            (half.min(2 * share - 1), 2, Streaming::Never),
            (half + 1, usize::MAX, Streaming::Always),
        ] {
            assert_eq!(Streaming::Auto.decided(bytes, threads), expected, "{bytes} bytes, {threads} threads");
            assert_eq!(Streaming::Never.decided(bytes, threads), Streaming::Never);
            assert_eq!(Streaming::Always.decided(bytes, threads), Streaming::Always);
        }
    }

    /// Where there is a task's work for each, no thread has much more than its share, if the one that has least takes the next.
    #[test]
    fn no_thread_has_much_more_to_do_than_another() {
        // 192 KiB would be three tasks of 64 KiB, and one of two threads would take two of them.
        assert_eq!(task_rows_on(2, 64, 768 * 4), 32);
        assert_eq!(task_rows_on(2, 8192, 768 * 4), 1024);
        assert_eq!(task_rows_on(2, 0, 768 * 4), 0);
        for (threads, rows) in (1..=9).flat_map(|threads| (1..600).map(move |rows| (threads, rows))) {
            for row_bytes in [768, 1 << 10, 3 << 10, 4 << 10, 6 << 10, 8 << 10, 32 << 10, 1 << 20] {
                let task = task_rows_on(threads, rows, row_bytes);
                let mut loads = vec![0; threads];
                for first in (0..rows).step_by(task) {
                    *loads.iter_mut().min().unwrap() += task.min(rows - first);
                }
                let (most, share) = (*loads.iter().max().unwrap(), rows.div_ceil(threads));
                let is_even = most * 10 <= share * 13 || most <= share + 2;
                let is_much = rows >= threads && rows * row_bytes >= threads * TASK_BYTES;
                assert!(
                    is_even || !is_much,
                    "{threads} threads, {rows} rows of {row_bytes} bytes in tasks of {task}: one has {most}"
                );
                assert!(rows.div_ceil(task) <= TASKS * threads, "{threads} threads, {rows} rows in tasks of {task}");
            }
        }
    }
}
