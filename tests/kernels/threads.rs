//! Results have the same bits on any number of threads, and in a pool of the caller's.

use crate::support::{Case, Outcome, Random, backends};
use llm_operator::{Backend, Element, GradientMut, GradientsMut, Statistics, Streaming};
use ndarray::{Array2, ArrayD, s};

fn same_bits_on_any_number_of_threads<T: Element>(rows: usize, width: usize) {
    let case = Case::<T>::random(rows, width, true, true, 31);
    let backend = backends().pop().unwrap();
    let mut expected = None;
    for threads in [1, 2, 3, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let found = pool.install(|| case.run(backend, 1));
        let expected = expected.get_or_insert_with(|| found.clone());
        found.assert_same_bits(expected, &format!("{} {rows}x{width} on {threads} threads", T::NAME));
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for (rows, width) in [(1, 100), (3, 100_000), (16, 65_536), (1000, 768), (4099, 257), (100_000, 8), (129, 4096)] {
        same_bits_on_any_number_of_threads::<f32>(rows, width);
        same_bits_on_any_number_of_threads::<f64>(rows, width);
    }
}

#[test]
fn calls_nest_in_a_parallel_loop_of_the_caller() {
    use rayon::prelude::*;
    let case = Case::<f32>::random(700, 300, true, true, 32);
    let backend = backends().pop().unwrap();
    let expected = case.run(backend, 0);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    pool.install(|| {
        (0..20).into_par_iter().for_each(|_| case.run(backend, 0).assert_same_bits(&expected, "nested"));
    });
}

/// What a call gives on one thread, it gives on more.
#[track_caller]
fn same_on_more_threads<T: Element>(what: &str, call: impl Fn() -> Outcome<T> + Send + Sync) {
    let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&call);
    let expected = on(1);
    for threads in [2, 3, 8] {
        on(threads).assert_same_bits(&expected, &format!("{} {what}, {threads} threads", T::NAME));
    }
}

/// Rows that several threads share: of whole chunks and not, fewer than the threads and not many more.
fn long_shapes() -> [(usize, usize); 4] {
    [(1, 1_000_003), (1, 262_144), (3, 300_001), (9, 70_000)]
}

/// Without gamma and beta, with both, and with either.
const PARAMETERS: [(bool, bool); 4] = [(false, false), (true, true), (true, false), (false, true)];

fn long_rows_have_the_same_bits<T: Element>() {
    for (rows, width) in long_shapes() {
        let full = Case::<T>::random(rows, width, true, true, 33);
        for (gamma, beta) in PARAMETERS {
            let case = Case {
                gamma: full.gamma.clone().filter(|_| gamma),
                beta: full.beta.clone().filter(|_| beta),
                ..full.clone()
            };
            for backend in backends() {
                let stores = [(1, Streaming::Always), (1, Streaming::Never), (0, Streaming::Always)];
                // How results are stored has little to do with the parameters.
                for (offset, streaming) in stores.into_iter().take(if gamma && beta { 3 } else { 1 }) {
                    let layer = case.layer(backend).streaming(streaming);
                    let what = format!(
                        "{backend:?} {rows}x{width}, gamma {gamma}, beta {beta}, offset {offset}, streaming {streaming:?}"
                    );
                    same_on_more_threads(&what, || case.run_layer(&layer, offset));
                }
            }
        }
    }
}

#[test]
fn long_rows_of_f32_have_the_same_bits_on_any_number_of_threads() {
    long_rows_have_the_same_bits::<f32>();
}

#[test]
fn long_rows_of_f64_have_the_same_bits_on_any_number_of_threads() {
    long_rows_have_the_same_bits::<f64>();
}

/// Every backend that rounds once has the bits of the model, on rows that threads share as well.
#[test]
fn shared_rows_have_the_bits_of_the_model() {
    fn check<T: Element>(width: usize) {
        let case = Case::<T>::random(2, width, true, true, 34);
        let expected = case.run(Backend::model(), 0);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(8).build().unwrap();
        for backend in backends().into_iter().filter(crate::support::is_fused).chain([Backend::model()]) {
            let found = pool.install(|| case.run(backend, 1));
            found.assert_same_bits(&expected, &format!("{} {backend:?}, width {width}", T::NAME));
        }
    }
    check::<f32>(70_003);
    check::<f64>(40_001);
}

/// Eight rows at most are one sum; where there are more, a row whose dy is 0 adds nothing to it.
#[test]
fn parameter_gradients_of_long_rows_are_those_that_rows_of_zeros_leave_as_they_are() {
    fn check<T: Element>(rows: usize, width: usize) {
        let few = Case::<T>::random(rows, width, true, true, 38);
        let mut more = few.clone();
        more.x.extend(Random(39).normals::<T>((9 - rows) * width, 0.0, 1.0));
        more.dy.resize(9 * width, T::from_f64(0.0));
        for backend in backends() {
            let on = |threads, case: &Case<T>| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| case.run(backend, 1))
            };
            let expected = on(1, &more);
            for threads in [1, 3] {
                let found = on(threads, &few);
                let mut expected = expected.clone();
                for values in [&mut expected.y, &mut expected.dx] {
                    values.truncate(rows * width);
                }
                for values in [&mut expected.mean, &mut expected.rstd] {
                    values.truncate(rows);
                }
                found
                    .assert_same_bits(&expected, &format!("{} {backend:?} {rows}x{width}, {threads} threads", T::NAME));
            }
        }
    }
    for (rows, width) in [(1, 100_000), (1, 70_001), (8, 65_543)] {
        check::<f32>(rows, width);
        check::<f64>(rows, width);
    }
}

/// Changes the second of three rows, or the only one.
type Hardship<T> = (&'static str, fn(&mut Case<T>));

fn second_row<T>(case: &mut Case<T>) -> (&mut [T], &mut [T]) {
    let row = case.width * (case.x.len() / case.width / 2);
    (&mut case.x[row..][..case.width], &mut case.dy[row..][..case.width])
}

fn scale<T: Element>(values: &mut [T], f32_factor: f64, f64_factor: f64) {
    let factor = if T::NAME == "f32" { f32_factor } else { f64_factor };
    for value in values {
        *value = T::from_f64(value.to_f64() * factor);
    }
}

fn hardships<T: Element>() -> [Hardship<T>; 9] {
    [
        ("far from its pilot", |case| {
            // The pilot is the mean of four chunks spread over the row.
            let (x, _) = second_row(case);
            let chunk = 64 / size_of::<T>();
            let step = x.len() / chunk / 4;
            for k in 0..4 {
                x[k * step * chunk..][..chunk].fill(T::from_f64(1000.0));
            }
        }),
        ("a NaN in x", |case| second_row(case).0[12_345] = T::from_f64(f64::NAN)),
        ("an infinity in dy", |case| second_row(case).1[54_321] = T::from_f64(f64::INFINITY)),
        ("huge", |case| scale(second_row(case).0, 1e30, 1e250)),
        ("tiny", |case| {
            case.epsilon = 0.0;
            scale(second_row(case).0, 1e-30, 1e-250);
        }),
        ("tiny dy", |case| scale(second_row(case).1, 1e-35, 1e-300)),
        ("huge dy", |case| scale(second_row(case).1, 1e37, 1e305)),
        ("constant", |case| second_row(case).0.fill(T::from_f64(0.1))),
        ("zero dy", |case| second_row(case).1.fill(T::from_f64(0.0))),
    ]
}

fn hard_long_rows_have_the_same_bits<T: Element>() {
    for (rows, width) in [(1, 100_003), (3, 70_001)] {
        for (name, change) in hardships::<T>() {
            for gamma in [true, false] {
                let mut case = Case::<T>::random(rows, width, gamma, gamma, 35);
                change(&mut case);
                for backend in backends() {
                    let what = format!("{backend:?} {rows}x{width}, a row that is {name}, gamma {gamma}");
                    same_on_more_threads(&what, || case.run(backend, 1));
                }
            }
        }
    }
}

/// Rows that one thread takes in blocks of eight, and more threads a batch at a time: the second begins with what the first
/// left, and may have a row that is computed alone.
#[test]
fn later_batches_of_long_rows_have_the_same_bits_on_any_number_of_threads() {
    fn check<T: Element>(rows: usize, width: usize) {
        for row in [2, 8, 13] {
            for is_hard in [false, true] {
                let mut case = Case::<T>::random(rows, width, true, true, 38);
                if is_hard {
                    scale(&mut case.dy[row * width..][..width], 1e-35, 1e-300);
                }
                for backend in backends() {
                    let what = format!("{backend:?} {rows}x{width}, row {row} hard: {is_hard}");
                    same_on_more_threads(&what, || case.run(backend, 1));
                }
            }
        }
    }
    check::<f32>(16, 65_536);
    check::<f32>(21, 66_001);
    check::<f64>(16, 32_768);
}

/// A product that underflows is a zero with a sign; its sum is plus zero, whoever adds it up.
#[test]
fn the_sign_of_a_zero_sum_is_the_same_on_any_number_of_threads() {
    let least = f32::from_bits(1);
    for (rows, width) in [(1, 64), (1, 2048), (16, 65_536)] {
        let mut case = Case::<f32>::random(rows, width, true, true, 39);
        for row in 0..rows {
            // Around zero, so that half of the products of a normalized value below 1/2 are negative.
            case.dy[row * width..][..width / 2].fill(least);
        }
        for backend in backends() {
            let layer = case.layer(backend);
            let never = case.run_layer(&layer.clone().streaming(Streaming::Never), 0);
            let always = case.run_layer(&layer.streaming(Streaming::Always), 0);
            always.assert_same_bits(&never, &format!("{backend:?} {rows}x{width}, streamed"));
            same_on_more_threads(&format!("{backend:?} {rows}x{width}"), || case.run(backend, 0));
        }
    }
}

#[test]
fn hard_long_rows_of_f32_have_the_same_bits_on_any_number_of_threads() {
    hard_long_rows_have_the_same_bits::<f32>();
}

#[test]
fn hard_long_rows_of_f64_have_the_same_bits_on_any_number_of_threads() {
    hard_long_rows_have_the_same_bits::<f64>();
}

/// Each subset of the gradients, overwritten and added to.
fn gradients_of_long_rows_have_the_same_bits<T: Element>() {
    for (rows, width) in [(1, 150_001), (3, 80_000)] {
        for gamma in [true, false] {
            let case = Case::<T>::random(rows, width, gamma, false, 36);
            for backend in backends() {
                let forward = case.run(backend, 0);
                let layer = case.layer(backend);
                for accumulate in [false, true] {
                    for wanted in 1..8 {
                        let what =
                            format!("{backend:?} {rows}x{width}, gradients {wanted:03b}, accumulate {accumulate}");
                        same_on_more_threads(&what, || {
                            let mut found = forward.clone();
                            let Outcome { mean, rstd, dx, dgamma, dbeta, .. } = &mut found;
                            for (i, values) in [&mut *dx, &mut *dgamma, &mut *dbeta].into_iter().enumerate() {
                                // Not of the size that is added, and not the same everywhere.
                                *values = Random(i as u64).normals(values.len(), 1.0, 100.0);
                            }
                            let gradient = |i: u32, values| {
                                let gradient = if accumulate {
                                    GradientMut::Accumulate(values)
                                } else {
                                    GradientMut::Overwrite(values)
                                };
                                (wanted >> i & 1 == 1).then_some(gradient)
                            };
                            let gradients = GradientsMut {
                                dx: gradient(0, &mut dx[..]),
                                dgamma: gradient(1, &mut dgamma[..]),
                                dbeta: gradient(2, &mut dbeta[..]),
                            };
                            layer.backward_into(&case.dy, &case.x, Statistics { mean, rstd }, gradients).unwrap();
                            found
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn any_gradients_of_long_rows_have_the_same_bits_on_any_number_of_threads() {
    gradients_of_long_rows_have_the_same_bits::<f32>();
    gradients_of_long_rows_have_the_same_bits::<f64>();
}

/// Every second element of longer rows, through the forms that take views.
#[test]
fn long_rows_of_views_have_the_same_bits_on_any_number_of_threads() {
    let vec = |array: ArrayD<f32>| array.iter().copied().collect::<Vec<f32>>();
    for (rows, width) in [(1, 200_003), (3, 90_001)] {
        let case = Case::<f32>::random(rows, width, true, true, 37);
        let spread = |values: &[f32]| {
            let mut spread = Array2::from_elem((rows, 2 * width), f32::NAN);
            for (i, value) in values.iter().enumerate() {
                spread[[i / width, i % width * 2]] = *value;
            }
            spread
        };
        let (x, dy) = (spread(&case.x), spread(&case.dy));
        let (x, dy) = (x.slice(s![.., ..;2]), dy.slice(s![.., ..;2]));
        let contiguous = case.run(backends().pop().unwrap(), 0);
        for backend in backends() {
            let call = || {
                let layer = case.layer(backend);
                let (y, cache) = layer.forward(x.into_dyn()).unwrap();
                let gradients = layer.backward(dy.into_dyn(), &cache).unwrap();
                Outcome {
                    y: vec(y),
                    mean: cache.mean().to_vec(),
                    rstd: cache.rstd().to_vec(),
                    dx: vec(gradients.dx),
                    dgamma: vec(gradients.dgamma.unwrap()),
                    dbeta: vec(gradients.dbeta.unwrap()),
                }
            };
            same_on_more_threads(&format!("{backend:?} {rows}x{width}, a view"), call);
            if backend == backends().pop().unwrap() {
                call().assert_same_bits(&contiguous, "a view, and the same rows in one piece");
            }
        }
    }
}
