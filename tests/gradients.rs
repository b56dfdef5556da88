//! The kernels' gradients pass the checker, on every shape and seed; each planted bug is caught and named.

use llm_operator::grad_check::{
    Function, GradCheck, Identity, Input, Mode, Operation, Outcome, Report, Verdict, random_inputs,
};
use llm_operator::numpy_random::default_rng;
use llm_operator::{Element, LayerNormOperation, assert_gradients};
use ndarray::{ArrayD, Axis};
use std::ops::Range;

/// Register tails of 6, 0, 7, 1 and 0 elements; few rows and many.
const SHAPES: [&[usize]; 6] = [&[2, 4, 6], &[16, 64], &[3, 5, 7], &[200, 17], &[1, 33], &[8, 128]];

const SEEDS: Range<u64> = 0..24;

#[test]
fn right_gradients_in_f64_pass() {
    for shape in SHAPES {
        for seed in SEEDS {
            assert_gradients!(f64: LayerNormOperation::new(shape), seed = seed);
            assert_gradients!(f64: LayerNormOperation::new(shape).gamma().beta(), seed = seed);
        }
    }
}

#[test]
fn right_gradients_in_f32_pass() {
    for shape in SHAPES {
        for seed in SEEDS {
            assert_gradients!(f32: LayerNormOperation::new(shape), seed = seed);
            assert_gradients!(f32: LayerNormOperation::new(shape).gamma().beta(), seed = seed);
        }
    }
}

#[test]
fn right_gradients_pass_in_every_mode() {
    for mode in [Mode::Exhaustive, Mode::Local, Mode::Directional, Mode::Line] {
        let operation = LayerNormOperation::new(&[6, 20]).gamma().beta();
        assert_gradients!(f64: operation, seed = 5, check = GradCheck::new().mode(mode));
    }
    // In f32 a difference is noisier than a line.
    let line = GradCheck::new().mode(Mode::Line);
    assert_gradients!(f32: LayerNormOperation::new(&[6, 20]).gamma().beta(), seed = 5, check = line);
}

#[test]
fn several_normalized_dimensions_pass() {
    assert_gradients!(f64: LayerNormOperation::new(&[5, 3, 4]).normalized_dims(2).gamma().beta());
    assert_gradients!(f32: LayerNormOperation::new(&[5, 3, 4]).normalized_dims(2).gamma().beta());
}

/// Rows of deviation 1 at a mean of 50, where an `f32` x has lost six bits, and at means where it has lost half of
/// them.
#[test]
fn rows_far_from_zero_pass() {
    fn passes<T: Element>(seed: u64, mean: f64) {
        let operation = LayerNormOperation::new(&[8, 768]);
        let mut rng = default_rng(seed);
        let x = rng.standard_normal(&[8, 768]).mapv(|x| T::from_f64(mean + x));
        let dy = rng.standard_normal(&[8, 768]).mapv(T::from_f64);
        let report = GradCheck::new().run::<T>(&operation, &[x], &dy).unwrap();
        assert_eq!(report.verdict, Verdict::Passed, "mean {mean}, seed {seed}: {report}");
    }
    for seed in 0..20 {
        passes::<f64>(seed, 50.0);
        passes::<f32>(seed, 50.0);
        passes::<f64>(seed, 1e6);
        passes::<f32>(seed, 1e4);
    }
}

/// Upstream gradients near both ends of the range of `f32`, whose products with differences leave it.
#[test]
fn huge_and_tiny_upstream_gradients_pass() {
    fn passes<T: Element>(scale: f64) {
        let operation = LayerNormOperation::new(&[12, 40]).gamma().beta();
        let (inputs, dy) = random_inputs::<T>(&operation, 11);
        let dy = dy.mapv(|dy| T::from_f64(scale * dy.to_f64()));
        for mode in [Mode::Local, Mode::Exhaustive] {
            let report = GradCheck::new().mode(mode).run::<T>(&operation, &inputs, &dy).unwrap();
            assert_eq!(report.verdict, Verdict::Passed, "{} {scale:e}, {mode}: {report}", T::NAME);
        }
    }
    for scale in [1e-35, 1e-20, 1e20, 1e36] {
        passes::<f32>(scale);
        passes::<f64>(scale);
    }
}

/// LayerNorm whose gradients are spoiled after they are computed.
struct Spoiled<T> {
    right: LayerNormOperation,
    spoil: fn(&mut [ArrayD<T>]),
}

impl<T: Element> Operation<T> for Spoiled<T> {
    fn name(&self) -> String {
        Operation::<T>::name(&self.right)
    }

    fn inputs(&self) -> Vec<Input> {
        Operation::<T>::inputs(&self.right)
    }

    fn output_shape(&self) -> Vec<usize> {
        Operation::<T>::output_shape(&self.right)
    }

    fn forward(&self, inputs: &[ArrayD<T>], output: &mut ArrayD<T>) -> Outcome {
        self.right.forward(inputs, output)
    }

    fn backward(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>, gradients: &mut [ArrayD<T>]) -> Outcome {
        self.right.backward(inputs, dy, gradients)?;
        (self.spoil)(gradients);
        Ok(())
    }

    fn forward_rows(&self, rows: Range<usize>, inputs: &[&[T]], output: &mut [T]) -> Option<Outcome> {
        self.right.forward_rows(rows, inputs, output)
    }

    fn identities(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>, gradients: &[ArrayD<T>]) -> Vec<Identity> {
        self.right.identities(inputs, dy, gradients)
    }
}

fn times<T: Element>(value: &mut T, factor: f64) {
    *value = T::from_f64(factor * value.to_f64());
}

/// What is done to the gradients of x, gamma and beta, and the words that name it.
fn bugs<T: Element>() -> [(&'static str, fn(&mut [ArrayD<T>])); 10] {
    [
        ("x: the analytic gradient is zero everywhere", |all| all[0].fill(T::from_f64(0.0))),
        ("row 6, column 5 is 1.1000 times what it should be", |all| times(&mut all[0][[6, 5]], 1.1)),
        ("row 6, column 5 has the wrong sign", |all| times(&mut all[0][[6, 5]], -1.0)),
        ("all wrong components lie in row 6, which is zero", |all| {
            all[0].index_axis_mut(Axis(0), 6).fill(T::from_f64(0.0));
        }),
        ("two components are swapped: row 6, column 1 and row 6, column 9", |all| all[0].swap([6, 1], [6, 9])),
        ("times the numeric one: a constant scale", |all| all[0].iter_mut().for_each(|value| times(value, 1.02))),
        ("columns 16..=19 of 20: the tail of the row", |all| {
            all[0]
                .rows_mut()
                .into_iter()
                .for_each(|mut row| row.iter_mut().skip(16).for_each(|value| times(value, 0.0)));
        }),
        ("rows are shifted by one", |all| all[0].as_slice_mut().unwrap().rotate_right(20)),
        ("1 components of the analytic gradient are not finite", |all| all[0][[6, 5]] = T::from_f64(f64::NAN)),
        ("beta: the analytic gradient is 2.0000", |all| all[2].iter_mut().for_each(|value| times(value, 2.0))),
    ]
}

fn check<T: Element>(operation: &dyn Operation<T>, mode: Mode) -> Report {
    let (inputs, dy) = random_inputs(operation, 3);
    GradCheck::new().mode(mode).run(operation, &inputs, &dy).unwrap()
}

fn every_bug_is_named<T: Element>(modes: &[Mode]) {
    for &mode in modes {
        for (words, spoil) in bugs::<T>() {
            let right = LayerNormOperation::new(&[12, 20]).gamma().beta();
            let report = check::<T>(&Spoiled { right, spoil }, mode);
            assert!(report.verdict >= Verdict::Wrong, "{words}, {mode}: {report}");
            assert!(report.reasons.iter().any(|reason| reason.contains(words)), "{words}, {mode}: {report}");
        }
    }
}

#[test]
fn planted_bugs_in_f64_are_named() {
    every_bug_is_named::<f64>(&[Mode::Auto, Mode::Local, Mode::Exhaustive]);
}

#[test]
fn planted_bugs_in_f32_are_named() {
    every_bug_is_named::<f32>(&[Mode::Auto]);
}

/// y = x^2, but for one element that takes its value from the row before, which no difference along a column could
/// tell.
#[test]
fn an_operation_whose_rows_depend_on_each_other_in_one_place_is_named() {
    let leaking = |x: &ArrayD<f64>| {
        let mut y = x * x;
        y[[11, 2]] += 1e-9 * x[[7, 0]];
        y
    };
    let operation = Function::new("leaking square", [16, 3], leaking, |x, dy| 2.0 * x * dy).independent_rows();
    for mode in [Mode::Auto, Mode::Local] {
        let report = check::<f64>(&operation, mode);
        assert_eq!(report.verdict, Verdict::Wrong, "{report}");
        let named = |reason: &String| reason.starts_with("independence of rows: row 11 ") && reason.contains("row 7");
        assert!(report.reasons.iter().any(named), "{report}");
    }
}

/// Of two elements dx is all but 0: what differences show there is rounding, which changes with beta.
#[test]
fn right_gradients_of_rows_of_two_elements_are_not_accused() {
    for seed in 0..40 {
        let operation = LayerNormOperation::new(&[5, 2]).beta();
        let mut rng = default_rng(seed);
        let x = rng.standard_normal(&[5, 2]).mapv(|x| (16.0 * (x - 80.0)) as f32);
        let beta = rng.standard_normal(&[2]).mapv(|beta| 8.0 * beta as f32);
        let dy = rng.standard_normal(&[5, 2]).mapv(|dy| 32.0 * dy as f32);
        let report = GradCheck::new().mode(Mode::Exhaustive).run(&operation, &[x, beta], &dy).unwrap();
        assert!(report.verdict <= Verdict::Inconclusive, "seed {seed}: {report}");
    }
}

/// Their normalized values and their gradients are 0: nothing is seen, and nobody accused.
#[test]
fn right_gradients_of_constant_rows_without_epsilon_are_not_accused() {
    fn not_accused<T: Element>(width: usize) {
        let operation = LayerNormOperation::new(&[3, width]).epsilon(0.0).gamma();
        let mut rng = default_rng(2);
        let x = ArrayD::from_elem(vec![3, width], T::from_f64(0.75));
        let [gamma, dy] = [vec![width], vec![3, width]].map(|shape| rng.standard_normal(&shape).mapv(T::from_f64));
        let report = GradCheck::new().run(&operation, &[x, gamma], &dy).unwrap();
        let identities = report.reasons.iter().filter(|reason| reason.contains("sum(dx"));
        assert_eq!(identities.count(), 0, "width {width}: {report}");
        if width == 1 {
            assert!(report.verdict <= Verdict::Inconclusive, "width {width}: {report}");
        }
    }
    for width in [1, 2, 5, 16, 33] {
        not_accused::<f32>(width);
        not_accused::<f64>(width);
    }
}
