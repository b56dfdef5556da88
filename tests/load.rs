//! Many callers at once, pools of their own, and panics: the results keep their bits, and the pool its threads.

use llm_operator::grad_check::{CheckError, GradCheck, Input, Operation, Outcome, Verdict, random_inputs};
use llm_operator::numpy_random::default_rng;
use llm_operator::{
    Element, GradientMut, GradientsMut, LayerNorm, LayerNormOperation, Statistics, StatisticsMut, assert_gradients,
};
use ndarray::ArrayD;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

/// One call, forward and backward, and the bits of all that it writes.
trait Call: Send + Sync {
    fn bits(&self) -> Vec<u64>;
}

struct Layer<T> {
    width: usize,
    x: Vec<T>,
    dy: Vec<T>,
    gamma: Option<Vec<T>>,
    beta: Option<Vec<T>>,
}

impl<T: Element> Layer<T> {
    fn new(rows: usize, width: usize, affine: bool) -> Self {
        let mut rng = default_rng((rows * 1000 + width) as u64);
        let mut draw = |len: usize| -> Vec<T> { rng.standard_normal(&[len]).iter().map(|&v| T::from_f64(v)).collect() };
        let (x, dy) = (draw(rows * width), draw(rows * width));
        let [gamma, beta] = [(); 2].map(|()| affine.then(|| draw(width)));
        Self { width, x, dy, gamma, beta }
    }
}

impl<T: Element> Call for Layer<T> {
    fn bits(&self) -> Vec<u64> {
        let Self { width, x, dy, gamma, beta } = self;
        let (rows, nan) = (x.len() / width, T::from_f64(f64::NAN));
        let mut layer = LayerNorm::new(*width);
        if let (Some(gamma), Some(beta)) = (gamma, beta) {
            layer = layer.gamma(gamma).beta(beta);
        }
        let [mut y, mut dx] = [(); 2].map(|()| vec![nan; x.len()]);
        let [mut mean, mut rstd] = [(); 2].map(|()| vec![nan; rows]);
        let [mut dgamma, mut dbeta] = [(); 2].map(|()| vec![nan; *width]);
        layer.forward_into(x, &mut y, Some(StatisticsMut { mean: &mut mean, rstd: &mut rstd })).unwrap();
        let gradients = GradientsMut {
            dx: Some(GradientMut::Overwrite(&mut dx)),
            dgamma: Some(GradientMut::Overwrite(&mut dgamma)),
            dbeta: Some(GradientMut::Overwrite(&mut dbeta)),
        };
        layer.backward_into(dy, x, Statistics { mean: &mean, rstd: &rstd }, gradients).unwrap();
        [y, mean, rstd, dx, dgamma, dbeta].iter().flatten().map(|value| value.to_f64().to_bits()).collect()
    }
}

/// Calls that stay on their thread, and calls that are dealt out; short rows and long ones, in both types.
fn calls() -> Vec<Box<dyn Call>> {
    vec![
        Box::new(Layer::<f32>::new(1, 1, false)),
        Box::new(Layer::<f64>::new(3, 5, true)),
        Box::new(Layer::<f32>::new(7, 33, true)),
        Box::new(Layer::<f64>::new(16, 64, false)),
        Box::new(Layer::<f32>::new(2, 300, false)),
        Box::new(Layer::<f64>::new(40, 17, true)),
        Box::new(Layer::<f32>::new(64, 256, true)),
        Box::new(Layer::<f64>::new(1, 2000, true)),
        Box::new(Layer::<f32>::new(300, 8, true)),
        Box::new(Layer::<f32>::new(600, 128, true)),
        Box::new(Layer::<f64>::new(300, 128, true)),
        Box::new(Layer::<f32>::new(2, 70_000, true)),
    ]
}

/// How often each of `calls` is made among a thousand: the large ones seldom.
const OFTEN: [usize; 12] = [160, 160, 160, 160, 120, 120, 60, 30, 24, 2, 2, 2];

#[test]
fn a_hundred_thousand_calls_from_eight_threads_keep_their_bits() {
    let calls = calls();
    let expected: Vec<_> = pool(1).install(|| calls.iter().map(|call| call.bits()).collect());
    assert!(expected.iter().flatten().all(|bits| f64::from_bits(*bits).is_finite()));
    let order: Vec<usize> = (0..1000).map(|i| i * 617 % 1000).map(|place| pick(&OFTEN, place)).collect();
    let shared = pool(3);
    let (done, per_thread) = (AtomicUsize::new(0), 100_000 / 8);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (calls, expected, order, shared, done) = (&calls, &expected, &order, &shared, &done);
            scope.spawn(move || {
                for number in 0..per_thread {
                    let call = order[(number + 125 * thread) % order.len()];
                    let bits = shared.install(|| calls[call].bits());
                    assert!(bits == expected[call], "call {call} of thread {thread} has other bits, number {number}");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.into_inner(), 100_000);
}

/// The number whose share `place` falls into.
fn pick(shares: &[usize], place: usize) -> usize {
    let mut end = 0;
    let shares = shares.iter().take_while(|share| {
        end += **share;
        end <= place
    });
    shares.count()
}

#[test]
fn calls_from_within_a_callers_pool_keep_their_bits() {
    let calls = calls();
    let expected: Vec<_> = calls.iter().map(|call| call.bits()).collect();
    for threads in [1, 3] {
        let nested = pool(threads).install(|| {
            // Within tasks within tasks of the same pool.
            (0..20_usize)
                .into_par_iter()
                .map(|_| (0..calls.len()).into_par_iter().filter(|&call| calls[call].bits() != expected[call]).count())
                .sum::<usize>()
        });
        assert_eq!(nested, 0, "{threads} threads");
    }
}

/// `y = 2 x`, that panics where the first element is moved below `least`.
struct Fragile {
    least: f64,
    calls: AtomicUsize,
    panics: AtomicBool,
}

impl Operation<f64> for Fragile {
    fn name(&self) -> String {
        "fragile".to_owned()
    }
    fn inputs(&self) -> Vec<Input> {
        vec![Input::shared("x", [6, 50])]
    }
    fn output_shape(&self) -> Vec<usize> {
        vec![6, 50]
    }
    fn forward(&self, inputs: &[ArrayD<f64>], output: &mut ArrayD<f64>) -> Outcome {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.panics.load(Ordering::Relaxed) {
            assert!(inputs[0][[4, 7]] >= self.least, "moved too far down");
        }
        output.assign(&(2.0 * &inputs[0]));
        Ok(())
    }
    fn backward(&self, _: &[ArrayD<f64>], dy: &ArrayD<f64>, gradients: &mut [ArrayD<f64>]) -> Outcome {
        gradients[0].assign(&(2.0 * dy));
        Ok(())
    }
}

#[test]
fn a_panic_in_a_parallel_check_leaves_the_pool_usable() {
    let shared = Arc::new(pool(3));
    let mut fragile = Fragile { least: 0.0, calls: AtomicUsize::new(0), panics: AtomicBool::new(true) };
    let (x, dy) = random_inputs(&fragile, 5);
    // A step of 1e-3 goes below this, the jitter by which the noise is measured does not.
    fragile.least = x[0][[4, 7]] - 5e-4;
    for _ in 0..20 {
        let error = shared.install(|| GradCheck::new().eps(1e-3).run(&fragile, &x, &dy)).unwrap_err();
        let CheckError::Panicked { call, message } = error else { panic!("{error}") };
        assert_eq!(message, "moved too far down");
        assert_eq!(call.probe.unwrap().index, [4, 7]);
    }
    assert!(fragile.calls.load(Ordering::Relaxed) > 20 * 100);
    // All three threads still work, and the same operation passes.
    assert_eq!(shared.broadcast(|context| context.index()).len(), 3);
    fragile.panics.store(false, Ordering::Relaxed);
    let report = shared.install(|| GradCheck::new().run(&fragile, &x, &dy)).unwrap();
    assert_eq!(report.verdict, Verdict::Passed, "{report}");
    shared.install(|| assert_gradients!(f32: LayerNormOperation::new(&[600, 128])));
}
