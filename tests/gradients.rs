//! The kernels' gradients pass the checker, on every shape and seed; each planted bug is caught and named.

use llm_operator::grad_check::{Function, GradCheck, Mode, Operation, Report, Verdict, random_inputs};
use llm_operator::numpy_random::default_rng;
use llm_operator::{Element, LayerNormOperation, assert_gradients};
use ndarray::{ArrayD, Axis};
use spoiled::Spoiled;
use std::ops::Range;

#[path = "support/spoiled.rs"]
mod spoiled;

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

/// y = x^2, but for one element that takes something from two rows before, when both are others than usual.
#[test]
fn a_row_that_depends_on_two_others_together_is_named() {
    let usual = default_rng(1000).random(&[16, 3]);
    let leaking = |x: &ArrayD<f64>| {
        let mut y = x * x;
        y[[11, 2]] += (x[[7, 0]] - usual[[7, 0]]) * (x[[3, 0]] - usual[[3, 0]]);
        y
    };
    let operation = Function::new("leaking square", [16, 3], leaking, |x, dy| 2.0 * x * dy).independent_rows();
    let dy = default_rng(1).random(&[16, 3]);
    let report = GradCheck::new().mode(Mode::Local).run(&operation, std::slice::from_ref(&usual), &dy).unwrap();
    assert_eq!(report.verdict, Verdict::Wrong, "{report}");
    let named = "row 11 of the output depends on several others together; 1 of 16 rows depend on others";
    assert!(report.reasons.iter().any(|reason| reason.contains(named)), "{report}");
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

/// A row of two elements 500 deviations from zero: the rounding of its mean alone is more than what rounding leaves of dx.
/// Both sides of the identity are -1.270460062055439448e-2 (exact arithmetic with 120 digits).
#[test]
fn a_right_gradient_of_two_elements_far_from_zero_is_not_accused_by_an_identity() {
    let x = array(&[1, 2], &[-0.042294371592039144, -0.04212802670243114]);
    let beta = array(&[2], &[0.0005508134284906421, -0.001236523555272717]);
    let dy = array(&[1, 2], &[7.697035796209355e-05, -0.0014526448818508305]);
    let operation = LayerNormOperation::new(&[1, 2]).beta();
    let report = GradCheck::new().mode(Mode::Local).run::<f64>(&operation, &[x, beta], &dy).unwrap();
    assert!(report.verdict <= Verdict::Inconclusive, "{report}");
}

/// Row 1, column 2, at step 256 of a row of deviation 680: the square and the fourth power of the step cancel in `D(2h) -
/// D(h)`, which is 3.9e-12, while the truncation error is -9.9e-12 (exact arithmetic).
#[test]
fn a_right_gradient_is_not_accused_where_the_truncation_vanishes_by_chance() {
    let x = [
        [-2655.345947265625, -964.2991333007812, -1441.5435791015625],
        [-2104.449951171875, -776.0021362304688, -2308.59716796875],
        [-1324.65625, -2452.39404296875, -2189.437744140625],
        [-2346.0107421875, -2540.473876953125, -1938.1829833984375],
        [-1646.757080078125, -2681.22021484375, -1746.683349609375],
    ];
    let dy = [
        [2.0925397872924805, 3.072824001312256, 1.172194242477417],
        [1.1148889064788818, -0.023983359336853027, 0.5168969631195068],
        [0.9982663989067078, -0.32408076524734497, 2.2868876457214355],
        [1.0697575807571411, 1.4953664541244507, 3.5295112133026123],
        [1.2981029748916626, -0.17082442343235016, 1.0648093223571777],
    ];
    let gamma = array(&[3], &[1.5523213505730382e-06, 0.00019101744692306966, -1.746070120134391e-05]);
    let beta = array(&[3], &[-0.0014506821753457189, -0.0014118122635409236, -0.0019983218517154455]);
    let inputs = [array(&[5, 3], x.as_flattened()), gamma, beta];
    let operation = LayerNormOperation::new(&[5, 3]).gamma().beta().epsilon(0.01);
    for mode in [Mode::Local, Mode::Exhaustive, Mode::Auto] {
        let dy = array(&[5, 3], dy.as_flattened());
        let report = GradCheck::new().mode(mode).run::<f32>(&operation, &inputs, &dy).unwrap();
        assert!(report.verdict <= Verdict::Inconclusive, "{mode}: {report}");
    }
}

/// A beta of 1e-5 beside a gamma of 1e4: its step is lost in the rounding of y, no output changes, and nothing is seen. An
/// element whose output hides it has the noise of its column all the same.
#[test]
fn a_right_gradient_of_a_beta_that_rounding_hides_is_not_accused() {
    let operation = LayerNormOperation::new(&[3, 5]).gamma().beta();
    let mut rng = default_rng(4);
    let mut sized = |shape: &[usize], size: f32| rng.standard_normal(shape).mapv(|value| size * value as f32);
    let inputs = [sized(&[3, 5], 1.0), sized(&[5], 1e4), sized(&[5], 1e-5)];
    let dy = sized(&[3, 5], 1.0);
    for mode in [Mode::Exhaustive, Mode::Local, Mode::Auto] {
        let report = GradCheck::new().mode(mode).run(&operation, &inputs, &dy).unwrap();
        assert!(report.verdict <= Verdict::Inconclusive, "{mode}: {report}");
        assert_ne!(report.inputs[2].verdict, Verdict::Passed, "{mode}: {report}");
    }
}

fn array<T: Element>(shape: &[usize], values: &[f64]) -> ArrayD<T> {
    ArrayD::from_shape_vec(shape.to_vec(), values.iter().copied().map(T::from_f64).collect()).unwrap()
}
