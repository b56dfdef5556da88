//! Rows that several threads share: few long ones, which would not keep all threads busy by rows.
//!
//! Batches of rows come one after the other. For each, the sums of its segments are taken in parallel, one thread finishes
//! them, and then columns are written in parallel. The array of those sums grows with the width alone; that they are taken
//! by segments changes no bit (see [`kernel`](crate::kernel)), so how many threads there are may decide who goes
//! this way.
//!
//! A batch with a row outside the ordinary range goes by rows, after its sums are known: such rows are computed with
//! care, in one piece.

use super::{BackwardJob, ForwardJob, TASK_BYTES, TASKS};
use crate::Element;
use crate::kernel::backward::ParameterSums;
use crate::kernel::backward::long_rows as backward_rows;
use crate::kernel::forward::Place;
use crate::kernel::forward::long_rows as forward_rows;
use crate::kernel::{Work, segment};
use crate::simd::BATCH;
use std::ops::Range;

/// Bytes of a row from which it pays to share it: what each thread does to it takes longer than to wake one, twice.
const SHARED_BYTES: usize = 256 << 10;

/// Whether rows of `width` are so long.
pub(super) fn are_long<T>(width: usize) -> bool {
    width * size_of::<T>() >= SHARED_BYTES
}

/// Whether threads share rows of `width`, where there are so many `tasks` of whole rows.
pub(super) fn is_shared<T>(tasks: usize, width: usize) -> bool {
    are_long::<T>(width) && leaves_idle(tasks, rayon::current_num_threads())
}

/// Whether so many threads would spend a quarter of their time or more without work, if they all took turns at these tasks.
fn leaves_idle(tasks: usize, threads: usize) -> bool {
    let turns = tasks.div_ceil(threads) * threads;
    4 * (turns - tasks) >= turns && tasks > 0
}

/// Forward of all rows.
pub(super) fn forward<T: Element>(job: ForwardJob<'_, '_, T>, place: Place) {
    // From outside the pool, one way into it is enough.
    rayon::scope(|_| {
        let ForwardJob { backend, parameters, x, y, mut mean, mut rstd, streaming } = job;
        let width = parameters.width;
        // Rows of a view are gathered one at a time: there may be little room for more.
        let batch = if x.is_contiguous() { BATCH } else { 1 };
        let mut gathered = Vec::new();
        let mut sums = Vec::new();
        for (i, y) in y.chunks_mut(batch * width).enumerate() {
            let rows = i * batch..i * batch + y.len() / width;
            let mut job = ForwardJob {
                backend,
                parameters,
                x,
                y,
                mean: mean.as_deref_mut().map(|mean| &mut mean[rows.clone()]),
                rstd: rstd.as_deref_mut().map(|rstd| &mut rstd[rows.clone()]),
                streaming,
            };
            if !share_forward(&mut job, x.block(rows.clone(), &mut gathered), &mut sums, place) {
                job.split(rows.start, 1, place);
            }
        }
    });
}

/// Shares the rows of a batch; or says that they are not for that, and writes no y.
fn share_forward<T: Element>(
    job: &mut ForwardJob<'_, '_, T>,
    x: &[T],
    sums: &mut Vec<forward_rows::SegmentSums>,
    place: Place,
) -> bool {
    use forward_rows::{Columns, Finish, LongRows, Normalizer, Segments};
    let (backend, parameters) = (job.backend, job.parameters);
    let width = parameters.width;
    let rows = x.len() / width;
    let segments = width.div_ceil(segment::<T>());
    sums.resize(rows * segments, [0.0; 2]);
    each_row_of_segments(segments, sums, &|row, first, sums| {
        let kernel = Segments { row: &x[row * width..][..width], first, sums };
        T::run(backend, Work::LongForward(LongRows::Segments(kernel)));
    });
    let mut normalizer = Normalizer::default();
    let (mean, rstd) = (job.mean.as_deref_mut(), job.rstd.as_deref_mut());
    let kernel = Finish { parameters, x, sums, mean, rstd, found: &mut normalizer };
    T::run(backend, Work::LongForward(LongRows::Finish(kernel)));
    if !normalizer.is_ordinary() {
        return false;
    }
    let y: [_; BATCH] = rows_of(job.y, width);
    each_stretch_of_columns(rows, width, y, &|columns, y| {
        let kernel = Columns { parameters, x, normalizer: &normalizer, first: columns.start, y, place };
        T::run(backend, Work::LongForward(LongRows::Columns(kernel)));
    });
    true
}

/// Backward of all rows; `sums`, all zeros, has one part for each so many of them: whole batches, one group at most.
pub(super) fn backward<T: Element>(job: BackwardJob<'_, '_, T>, place: Place, mut sums: Option<(&mut [T], usize)>) {
    rayon::scope(|_| {
        let BackwardJob { backend, parameters, x, dy, mean, rstd, mut dx, streaming, .. } = job;
        let width = parameters.width;
        let len = ParameterSums::<T>::len(width);
        let mut room = Room::default();
        for (i, mean) in mean.chunks(BATCH).enumerate() {
            let first = i * BATCH;
            let rows = first..first + mean.len();
            let span = rows.start * width..rows.end * width;
            let dx = dx.as_mut().map(|(dx, accumulate)| (&mut dx[span], *accumulate));
            let rstd = &rstd[rows];
            let continues = sums.as_ref().is_some_and(|(_, part)| !first.is_multiple_of(*part));
            let mut job = BackwardJob { backend, parameters, x, dy, mean, rstd, dx, streaming, continues };
            let mut part = sums.as_mut().map(|(sums, part)| &mut sums[first / *part * len..][..len]);
            let gradients = match part.as_deref_mut() {
                Some(part) => {
                    let (dgamma, dbeta) = part.split_at_mut(ParameterSums::<T>::start_of_dbeta(width));
                    [Some((&mut dgamma[..width], continues)), Some((&mut dbeta[..width], continues))]
                }
                None => [None, None],
            };
            if !share_backward(&mut job, first, place, gradients, false, &mut room) {
                // With parameter gradients, a batch is one task.
                let task = if part.is_some() { BATCH } else { 1 };
                job.split(first, task, true, place, part);
            }
        }
    });
}

/// Backward of at most [`BATCH`] rows, whose dgamma and dbeta go where the caller wants them, or are added to what is
/// there; or says that the rows are not for that, and writes nothing.
pub(super) fn backward_of_batch<T: Element>(
    job: &mut BackwardJob<'_, '_, T>,
    place: Place,
    gradients: [Option<(&mut [T], bool)>; 2],
) -> bool {
    rayon::scope(|_| share_backward(job, 0, place, gradients, true, &mut Room::default()))
}

/// Room for what batches of rows need, one after the other.
#[derive(Debug, Default)]
struct Room<T> {
    /// Rows that are gathered from views.
    x: Vec<T>,
    dy: Vec<T>,
    sums: Vec<backward_rows::SegmentSums>,
}

/// Shares the rows of a batch, which begin with row `first`; or says that they are not for that, and writes nothing. The
/// sums `are_done` if no other batch adds to them.
fn share_backward<T: Element>(
    job: &mut BackwardJob<'_, '_, T>,
    first: usize,
    place: Place,
    gradients: [Option<(&mut [T], bool)>; 2],
    are_done: bool,
    room: &mut Room<T>,
) -> bool {
    use backward_rows::{Columns, Differentiator, Finish, LongRows, Segments};
    let BackwardJob { backend, parameters, x, dy, mean, rstd, .. } = *job;
    let width = parameters.width;
    let rows = mean.len();
    let x = x.block(first..first + rows, &mut room.x);
    let dy = dy.block(first..first + rows, &mut room.dy);
    let segments = width.div_ceil(segment::<T>());
    room.sums.resize(rows * segments, [0.0; 3]);
    each_row_of_segments(segments, &mut room.sums, &|row, first, sums| {
        let span = row * width..(row + 1) * width;
        let (x, dy) = (&x[span.clone()], &dy[span]);
        let kernel = Segments { x, dy, gamma: parameters.gamma, mean: mean[row], first, sums };
        T::run(backend, Work::LongBackward(LongRows::Segments(kernel)));
    });
    let mut differentiator = Differentiator::default();
    let kernel = Finish { parameters, x, dy, mean, rstd, sums: &room.sums, found: &mut differentiator };
    T::run(backend, Work::LongBackward(LongRows::Finish(kernel)));
    if !differentiator.is_ordinary() {
        return false;
    }
    // The rows of dx, then dgamma and dbeta: empty where they are not wanted.
    let (dx, add_dx) = or_empty(job.dx.as_mut().map(|(dx, accumulate)| (&mut **dx, *accumulate)));
    let mut written: [_; BATCH + 2] = rows_of(dx, width);
    let [(dgamma, add_dgamma), (dbeta, add_dbeta)] = gradients.map(or_empty);
    (written[BATCH], written[BATCH + 1]) = (dgamma, dbeta);
    each_stretch_of_columns(rows, width, written, &|columns, written| {
        let [a, b, c, d, e, f, g, h, dgamma, dbeta] = written;
        let dx = (!a.is_empty()).then_some(([a, b, c, d, e, f, g, h], add_dx));
        let sums = [(dgamma, add_dgamma), (dbeta, add_dbeta)].map(|sums| (!sums.0.is_empty()).then_some(sums));
        let stream_sums = are_done && place == Place::Memory;
        let differentiator = &differentiator;
        let kernel = Columns { parameters, x, dy, differentiator, columns, dx, sums, place, stream_sums };
        T::run(backend, Work::LongBackward(LongRows::Columns(kernel)));
    });
    true
}

/// An array that is wanted, or an empty one; and whether to add to it.
fn or_empty<T>(array: Option<(&mut [T], bool)>) -> (&mut [T], bool) {
    array.unwrap_or((&mut [], false))
}

/// The rows of an array of at most `N`, and empty ones after them.
fn rows_of<T, const N: usize>(array: &mut [T], width: usize) -> [&mut [T]; N] {
    let mut found = [(); N].map(|()| &mut [][..]);
    for (found, row) in found.iter_mut().zip(array.chunks_mut(width)) {
        *found = row;
    }
    found
}

/// Segments in a task, of `count` segments that `rows` rows have each.
fn task_segments(rows: usize, count: usize) -> usize {
    let segment_bytes = 16 << 10;
    let least = TASK_BYTES.div_ceil(rows * segment_bytes);
    least.max(count.div_ceil(TASKS * rayon::current_num_threads()))
}

/// Calls `run` in parallel for stretches of `sums`, which has one element for each of the `segments` of each row: with the
/// row, the first segment, and the stretch.
fn each_row_of_segments<S: Send>(segments: usize, sums: &mut [S], run: &(impl Fn(usize, usize, &mut [S]) + Sync)) {
    let task = task_segments(1, sums.len());
    halve_segments(segments, 0, task, sums, run);
}

fn halve_segments<S: Send>(
    segments: usize,
    first: usize,
    task: usize,
    sums: &mut [S],
    run: &(impl Fn(usize, usize, &mut [S]) + Sync),
) {
    if let Some(middle) = super::middle(sums.len(), task) {
        let (left, right) = sums.split_at_mut(middle);
        let left = || halve_segments(segments, first, task, left, run);
        rayon::join(left, || halve_segments(segments, first + middle, task, right, run));
        return;
    }
    let mut first = first;
    let mut rest = sums;
    while !rest.is_empty() {
        let (row, segment) = (first / segments, first % segments);
        let of_row;
        (of_row, rest) = rest.split_at_mut(rest.len().min(segments - segment));
        first += of_row.len();
        run(row, segment, of_row);
    }
}

/// Calls `run` in parallel for stretches of the `width` columns of `rows` rows, each with those columns of all `arrays`.
/// Each stretch begins with a segment; an empty array has empty columns.
fn each_stretch_of_columns<T: Element, const N: usize>(
    rows: usize,
    width: usize,
    arrays: [&mut [T]; N],
    run: &(impl Fn(Range<usize>, [&mut [T]; N]) + Sync),
) {
    let task = task_segments(rows, width.div_ceil(segment::<T>())) * segment::<T>();
    halve_columns(0..width, task, arrays, run);
}

fn halve_columns<T: Send, const N: usize>(
    columns: Range<usize>,
    task: usize,
    arrays: [&mut [T]; N],
    run: &(impl Fn(Range<usize>, [&mut [T]; N]) + Sync),
) {
    let Some(middle) = super::middle(columns.len(), task) else {
        return run(columns, arrays);
    };
    let [mut left, mut right] = [(); 2].map(|()| [(); N].map(|()| &mut [][..]));
    for (i, array) in arrays.into_iter().enumerate() {
        (left[i], right[i]) = array.split_at_mut(middle.min(array.len()));
    }
    let middle = columns.start + middle;
    let left = || halve_columns(columns.start..middle, task, left, run);
    rayon::join(left, || halve_columns(middle..columns.end, task, right, run));
}

#[cfg(test)]
mod tests {
    use super::{each_row_of_segments, each_stretch_of_columns, is_shared, leaves_idle, rows_of};
    use std::sync::Mutex;

    #[test]
    fn rows_are_shared_where_threads_would_be_idle() {
        for (tasks, threads, expected) in [
            (1, 1, false),
            (1, 2, true),
            (2, 2, false),
            (3, 2, true),
            (5, 2, false),
            (16, 2, false),
            (3, 8, true),
            (8, 8, false),
            (9, 8, true),
            (16, 64, true),
            (0, 8, false),
        ] {
            assert_eq!(leaves_idle(tasks, threads), expected, "{tasks} tasks, {threads} threads");
        }
    }

    #[test]
    fn only_long_rows_are_shared() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| {
            assert!(is_shared::<f32>(1, 10_000_000));
            assert!(is_shared::<f32>(1, 65_536));
            assert!(is_shared::<f64>(1, 32_768));
            assert!(!is_shared::<f32>(1, 32_768));
            assert!(!is_shared::<f32>(16, 65_536));
        });
    }

    /// Two threads wait for each other within the work on one row: so both work on it.
    #[test]
    fn two_threads_work_on_one_row() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let barrier = std::sync::Barrier::new(2);
        let arrivals = std::sync::atomic::AtomicUsize::new(0);
        let meet = || {
            if arrivals.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2 {
                barrier.wait();
            }
        };
        pool.install(|| each_row_of_segments(100, &mut [0; 100], &|_, _, _| meet()));
        arrivals.store(0, std::sync::atomic::Ordering::SeqCst);
        let row = &mut vec![0.0_f32; 500_000][..];
        pool.install(|| each_stretch_of_columns(1, 500_000, [row], &|_, _| meet()));
    }

    #[test]
    fn every_segment_is_taken_once() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let mut found = vec![(9, 9); 7 * 23];
        pool.install(|| {
            each_row_of_segments(23, &mut found, &|row, first, sums| {
                for (i, sums) in sums.iter_mut().enumerate() {
                    *sums = (row, first + i);
                }
            });
        });
        assert!(found.iter().enumerate().all(|(i, found)| *found == (i / 23, i % 23)));
    }

    #[test]
    fn every_column_of_every_row_is_taken_once() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let (rows, width) = (3, 50_003);
        let mut array = vec![0.0_f64; rows * width];
        let stretches = Mutex::new(vec![]);
        pool.install(|| {
            let rows_and_none: [_; 4] = rows_of(&mut array, width);
            each_stretch_of_columns(rows, width, rows_and_none, &|columns, arrays| {
                for (row, array) in arrays.into_iter().enumerate() {
                    assert_eq!(array.len(), if row < rows { columns.len() } else { 0 });
                    for (column, value) in columns.clone().zip(array) {
                        *value += (row * width + column) as f64;
                    }
                }
                stretches.lock().unwrap().push(columns);
            });
        });
        assert!(array.iter().enumerate().all(|(i, value)| *value == i as f64));
        let stretches = stretches.into_inner().unwrap();
        assert!(stretches.len() > 3 && stretches.iter().all(|columns| columns.start % 2048 == 0), "{stretches:?}");
    }
}
