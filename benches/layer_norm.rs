//! Forward and backward on each backend, beside the copy of the same bytes and the expression that a user would write.
//!
//! `cargo bench -- forward_f32` runs a group, `cargo bench -- avx512/2048x1024` a row of it. Every answer is checked
//! once before it is timed.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use llm_operator::grad_check::{GradCheck, Mode, Operation, Verdict};
use llm_operator::{
    Backend, Element, GradientMut, GradientsMut, LayerNorm, LayerNormOperation, Statistics, StatisticsMut, reference,
    roofline,
};
use ndarray::{Array1, Array2, ArrayD, ArrayView2, Axis};
use std::time::Duration;

/// Rows and width: cached, many short rows, beyond the caches, few long rows.
const SHAPES: [(usize, usize); 5] = [(64, 768), (1024, 64), (2048, 1024), (8192, 768), (16, 65_536)];

/// The arrays of one shape.
struct Case<T> {
    rows: usize,
    width: usize,
    x: Vec<T>,
    dy: Vec<T>,
    gamma: Vec<T>,
    beta: Vec<T>,
    output: Vec<T>,
    mean: Vec<T>,
    rstd: Vec<T>,
    dgamma: Vec<T>,
    dbeta: Vec<T>,
}

impl<T: Element> Case<T> {
    fn new((rows, width): (usize, usize)) -> Self {
        let fill = |len: usize, step: usize| -> Vec<T> {
            (0..len).map(|i| T::from_f64((i.wrapping_mul(step) % 1009) as f64 / 1009.0 - 0.4)).collect()
        };
        Self {
            rows,
            width,
            x: fill(rows * width, 757),
            dy: fill(rows * width, 331),
            gamma: fill(width, 7),
            beta: fill(width, 13),
            output: fill(rows * width, 1),
            mean: fill(rows, 1),
            rstd: fill(rows, 1),
            dgamma: fill(width, 1),
            dbeta: fill(width, 1),
        }
    }

    fn forward(&mut self, backend: Backend) {
        let Self { x, output, mean, rstd, gamma, beta, .. } = self;
        let layer = LayerNorm::new(self.width).gamma(gamma).beta(beta).backend(backend);
        layer.forward_into(x, output, Some(StatisticsMut { mean, rstd })).expect("the shapes fit");
    }

    fn backward(&mut self, backend: Backend) {
        let Self { x, dy, output, mean, rstd, gamma, dgamma, dbeta, .. } = self;
        let gradients = GradientsMut {
            dx: Some(GradientMut::Overwrite(output)),
            dgamma: Some(GradientMut::Overwrite(dgamma)),
            dbeta: Some(GradientMut::Overwrite(dbeta)),
        };
        let layer = LayerNorm::new(self.width).gamma(gamma).backend(backend);
        layer.backward_into(dy, x, Statistics { mean, rstd }, gradients).expect("the shapes fit");
    }

    fn view(&self) -> ArrayView2<'_, T> {
        ArrayView2::from_shape((self.rows, self.width), &self.x).expect("the vector has the shape's elements")
    }

    /// The output of the first and the last row is what the reference says.
    fn check(&self, is_forward: bool) {
        let double = |values: &[T]| values.iter().map(|value| value.to_f64()).collect::<Vec<_>>();
        for row in [0, self.rows - 1] {
            let span = row * self.width..(row + 1) * self.width;
            let (x, gamma) = (double(&self.x[span.clone()]), double(&self.gamma));
            let expected = if is_forward {
                reference::forward(&x, self.width, Some(&gamma), Some(&double(&self.beta)), 1e-5).y
            } else {
                reference::backward(&double(&self.dy[span.clone()]), &x, self.width, Some(&gamma), 1e-5).dx
            };
            for (found, expected) in double(&self.output[span]).into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-4, "{found} is timed where {expected} is right");
            }
        }
    }
}

fn configured<'a>(criterion: &'a mut Criterion, name: String) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_millis(1500));
    group
}

fn one_thread(call: impl FnOnce() + Send) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread can be started");
    pool.install(call);
}

fn forward<T: Element>(criterion: &mut Criterion) {
    let mut group = configured(criterion, format!("forward_{}", T::NAME));
    for shape in SHAPES {
        let mut case = Case::<T>::new(shape);
        let size = format!("{}x{}", case.rows, case.width);
        group.throughput(Throughput::Bytes((2 * case.x.len() * size_of::<T>()) as u64));
        for backend in Backend::available() {
            case.forward(backend);
            case.check(true);
            group.bench_function(BenchmarkId::new(backend.name(), &size), |bencher| {
                one_thread_iter(bencher, || case.forward(backend));
            });
        }
        let backend = Backend::chosen().expect("the environment names a backend that is there");
        for stream in [false, true] {
            let name = if stream { "copy_streamed" } else { "copy" };
            let Case { x, output, .. } = &mut case;
            group.bench_function(BenchmarkId::new(name, &size), |bencher| {
                one_thread_iter(bencher, || roofline::copy(backend, x, output, stream).expect("the lengths fit"));
            });
        }
        group.bench_function(BenchmarkId::new("ndarray_expression", &size), |bencher| {
            bencher.iter(|| naive(case.view()));
        });
    }
    group.finish();
}

/// Times calls within a pool of one thread, so that none of them wakes another.
fn one_thread_iter(bencher: &mut criterion::Bencher<'_>, mut call: impl FnMut() + Send) {
    bencher.iter_custom(|iterations| {
        let mut elapsed = Duration::ZERO;
        one_thread(|| {
            let start = std::time::Instant::now();
            for _ in 0..iterations {
                call();
            }
            elapsed = start.elapsed();
        });
        elapsed
    });
}

/// LayerNorm as one writes it with `ndarray`.
fn naive<T: Element>(x: ArrayView2<'_, T>) -> Array2<f64> {
    let x = x.mapv(T::to_f64);
    let mean: Array1<f64> = x.mean_axis(Axis(1)).expect("the rows are not empty");
    let centred = &x - &mean.insert_axis(Axis(1));
    let variance = centred.mapv(|d| d * d).mean_axis(Axis(1)).expect("the rows are not empty");
    &centred / &variance.mapv(|v| (v + 1e-5).sqrt()).insert_axis(Axis(1))
}

fn backward<T: Element>(criterion: &mut Criterion) {
    let mut group = configured(criterion, format!("backward_{}", T::NAME));
    for shape in SHAPES {
        let mut case = Case::<T>::new(shape);
        let size = format!("{}x{}", case.rows, case.width);
        group.throughput(Throughput::Bytes((3 * case.x.len() * size_of::<T>()) as u64));
        for backend in Backend::available() {
            case.forward(backend);
            case.backward(backend);
            case.check(false);
            group.bench_function(BenchmarkId::new(backend.name(), &size), |bencher| {
                one_thread_iter(bencher, || case.backward(backend));
            });
        }
        let backend = Backend::chosen().expect("the environment names a backend that is there");
        for stream in [false, true] {
            let name = if stream { "copy_streamed" } else { "copy" };
            let Case { x, dy, output, .. } = &mut case;
            group.bench_function(BenchmarkId::new(name, &size), |bencher| {
                one_thread_iter(bencher, || roofline::add(backend, x, dy, output, stream).expect("the lengths fit"));
            });
        }
    }
    group.finish();
}

fn threads(criterion: &mut Criterion) {
    let mut group = configured(criterion, "threads_f32".to_owned());
    let backend = Backend::chosen().expect("the environment names a backend that is there");
    for shape in [(64, 768), (8192, 768)] {
        let mut case = Case::<f32>::new(shape);
        for threads in [1, 2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
            for is_forward in [true, false] {
                let op = if is_forward { "forward" } else { "backward" };
                let id = BenchmarkId::new(format!("{op}_{threads}"), format!("{}x{}", case.rows, case.width));
                let case = &mut case;
                group.bench_function(id, |bencher| {
                    pool.install(|| {
                        bencher.iter(|| if is_forward { case.forward(backend) } else { case.backward(backend) });
                    });
                });
            }
        }
    }
    group.finish();
}

fn checker(criterion: &mut Criterion) {
    let mut group = configured(criterion, "grad_check_f64".to_owned());
    for shape in [[2, 4, 6], [1, 16, 64]] {
        let operation = LayerNormOperation::new(&shape);
        let values = Case::<f64>::new((shape[0] * shape[1], shape[2]));
        let array = |values: &[f64]| ArrayD::from_shape_vec(shape.to_vec(), values.to_vec()).expect("the shape fits");
        let (x, g) = (array(&values.x), array(&values.dy));
        let check = || GradCheck::new().run(&operation, std::slice::from_ref(&x), &g).expect("the check runs");
        assert_eq!(check().verdict.exit_code(), 0, "a right gradient is timed");
        let id = BenchmarkId::new("default", format!("{shape:?}"));
        group.bench_function(id, |bencher| bencher.iter(check));
    }
    group.finish();
}

/// A check in mode `local`, and the forwards of the whole input that its report counts, on the same threads.
fn checker_local<T: Element>(criterion: &mut Criterion) {
    let mut group = configured(criterion, format!("grad_check_local_{}", T::NAME));
    group.sample_size(10).measurement_time(Duration::from_secs(4));
    for (rows, width) in [(64, 256), (1024, 256), (1024, 768)] {
        let operation = LayerNormOperation::new(&[rows, width]);
        let values = Case::<T>::new((rows, width));
        let array = |values: &[T]| ArrayD::from_shape_vec(vec![rows, width], values.to_vec()).expect("the shape fits");
        let (x, g) = ([array(&values.x)], array(&values.dy));
        let check = GradCheck::new().mode(Mode::Local);
        let report = check.clone().timed().run(&operation, &x, &g).expect("the check runs");
        assert_eq!(report.verdict, Verdict::Passed, "a right gradient is timed: {report}");
        let forwards = report.timing.expect("it was asked for").forwards;
        let size = format!("{rows}x{width}");
        group.bench_function(BenchmarkId::new("check", &size), |bencher| {
            bencher.iter(|| check.run(&operation, &x, &g).expect("the check runs"));
        });
        let mut y = g.clone();
        group.bench_function(BenchmarkId::new(format!("{forwards}_forwards"), &size), |bencher| {
            bencher.iter(|| {
                for _ in 0..forwards {
                    operation.forward(&x, &mut y).expect("the shapes fit");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(
    benches,
    forward::<f32>,
    forward::<f64>,
    backward::<f32>,
    backward::<f64>,
    threads,
    checker,
    checker_local::<f64>,
    checker_local::<f32>
);
criterion_main!(benches);
