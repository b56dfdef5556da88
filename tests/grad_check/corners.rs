//! Shapes and values at the edges.

use ndarray::ArrayD;

use super::layer_norm::LayerNorm;
use llm_operator::grad_check::{Function, GradCheck, Input, Mode, Operation, Outcome, Report, Verdict};
use llm_operator::numpy_random::default_rng;
use llm_operator::{Backend, LayerNormOperation};

const MODES: [Mode; 5] = [Mode::Auto, Mode::Exhaustive, Mode::Local, Mode::Directional, Mode::Line];

fn run(operation: &LayerNorm, mode: Mode) -> Report {
    let (inputs, dy) = operation.data::<f64>(&mut default_rng(1), |_, x| x);
    GradCheck::new().mode(mode).run(operation, &inputs, &dy).unwrap()
}

#[test]
fn an_input_without_rows_is_inconclusive_and_no_panic() {
    for mode in MODES {
        let report = run(&LayerNorm::new(&[0, 4]), mode);
        assert_eq!(report.verdict, Verdict::Inconclusive, "{mode}");
        assert!(report.reasons.iter().any(|reason| reason.contains("no elements")), "{mode}: {report}");
        // A parameter of no rows has the gradient zero, which nothing can show.
        assert_eq!(run(&LayerNorm::affine(&[0, 4]), mode).verdict, Verdict::Inconclusive, "{mode}");
    }
}

#[test]
fn rows_without_elements_are_inconclusive_and_no_panic() {
    let square = Function::new("square", [4, 0], |x: &ArrayD<f64>| x * x, |x, dy| 2.0 * x * dy).independent_rows();
    let empty = ArrayD::zeros(vec![4, 0]);
    for mode in MODES {
        let report = GradCheck::new().mode(mode).run(&square, std::slice::from_ref(&empty), &empty).unwrap();
        assert_eq!(report.verdict, Verdict::Inconclusive, "{mode}");
    }
}

#[test]
fn a_row_of_one_element_has_no_gradient_and_is_inconclusive() {
    for mode in MODES {
        let report = run(&LayerNorm::new(&[5, 1]), mode);
        assert_eq!(report.verdict, Verdict::Inconclusive, "{mode}: {report}");
        assert!(report.reasons.iter().any(|reason| reason.contains("does not see it")), "{mode}: {report}");
    }
}

#[test]
fn one_row_that_the_loss_does_not_see_is_named() {
    let operation = LayerNorm::new(&[6, 9]);
    let (inputs, mut dy) = operation.data::<f64>(&mut default_rng(1), |_, x| x);
    dy.as_slice_mut().unwrap()[36..45].fill(0.7);
    for mode in [Mode::Local, Mode::Exhaustive] {
        let report = GradCheck::new().mode(mode).run(&operation, &inputs, &dy).unwrap();
        assert_eq!(report.verdict, Verdict::Inconclusive, "{mode}: {report}");
        assert_eq!(report.inputs[0].blind_rows, [4], "{mode}");
        assert_eq!(report.inputs[0].counts.inconclusive, 9);
        assert!(report.reasons.iter().any(|reason| reason.contains("the first is row 4")));
    }
}

#[test]
fn single_elements_as_rows_find_their_step() {
    // The scale of exp is 1, however small the element is.
    let exp = Function::new("exp", [8, 1], |x: &ArrayD<f64>| x.mapv(f64::exp), |x, dy| dy * &x.mapv(f64::exp));
    let exp = exp.independent_rows();
    let x = ArrayD::from_shape_vec(vec![8, 1], vec![1e-9, -1e-6, 0.0, 0.5, -2.0, 3.0, 1e-3, -1e-12]).unwrap();
    let dy = default_rng(4).standard_normal(&[8, 1]);
    for mode in [Mode::Auto, Mode::Local, Mode::Exhaustive] {
        let report = GradCheck::new().mode(mode).run(&exp, std::slice::from_ref(&x), &dy).unwrap();
        assert_eq!(report.verdict, Verdict::Passed, "{mode}: {report}");
    }
}

#[test]
fn a_nan_in_the_input_is_invalid_in_its_row_alone() {
    let operation = LayerNorm::new(&[4, 8]);
    let (mut inputs, dy) = operation.data::<f64>(&mut default_rng(1), |_, x| x);
    inputs[0][[2, 3]] = f64::NAN;
    for mode in [Mode::Local, Mode::Auto] {
        let report = GradCheck::new().mode(mode).run(&operation, &inputs, &dy).unwrap();
        assert_eq!(report.verdict, Verdict::Invalid, "{mode}: {report}");
        assert_eq!((report.inputs[0].counts.invalid, report.inputs[0].counts.passed), (8, 24), "{mode}: {report}");
    }
}

#[test]
fn arrays_in_another_order_give_the_same_report() {
    let operation = LayerNorm::new(&[4, 8]);
    let (inputs, dy) = operation.data::<f64>(&mut default_rng(1), |_, x| x);
    let fortran = |array: &ArrayD<f64>| {
        let transposed = array.t().as_standard_layout().into_owned();
        transposed.reversed_axes()
    };
    let plain = GradCheck::new().run(&operation, &inputs, &dy).unwrap();
    let turned = fortran(&inputs[0]);
    assert!(!turned.is_standard_layout());
    assert_eq!(GradCheck::new().run(&operation, &[turned], &fortran(&dy)).unwrap(), plain);
}

/// A LayerNorm with a reference in `f64`, and with blocks that are not quite the whole.
struct Twin {
    layer_norm: LayerNorm,
    blocks_differ: bool,
}

impl Operation<f32> for Twin {
    fn name(&self) -> String {
        "twin".to_owned()
    }
    fn inputs(&self) -> Vec<Input> {
        Operation::<f32>::inputs(&self.layer_norm)
    }
    fn output_shape(&self) -> Vec<usize> {
        self.layer_norm.shape.clone()
    }
    fn forward(&self, inputs: &[ArrayD<f32>], output: &mut ArrayD<f32>) -> Outcome {
        self.layer_norm.forward(inputs, output)
    }
    fn backward(&self, inputs: &[ArrayD<f32>], dy: &ArrayD<f32>, gradients: &mut [ArrayD<f32>]) -> Outcome {
        self.layer_norm.backward(inputs, dy, gradients)
    }
    fn forward_rows(&self, rows: &[usize], inputs: &[&[f32]], output: &mut [f32]) -> Option<Outcome> {
        let outcome = self.layer_norm.forward_rows(rows, inputs, output);
        output[0] += if self.blocks_differ { 1e-3 } else { 0.0 };
        outcome
    }
    fn in_f64(&self) -> Option<&dyn Operation<f64>> {
        Some(&self.layer_norm)
    }
}

fn run_twin(blocks_differ: bool) -> Report {
    let layer_norm = LayerNorm::new(&[32, 40]);
    let (inputs, dy) = layer_norm.data::<f32>(&mut default_rng(3), |_, x| x);
    GradCheck::new().run(&Twin { layer_norm, blocks_differ }, &inputs, &dy).unwrap()
}

#[test]
fn the_noise_measured_against_f64_agrees_with_that_of_fourth_differences() {
    let against = run_twin(false);
    assert!(against.kappa_against_f64 && against.verdict == Verdict::Passed, "{against}");
    let layer_norm = LayerNorm::new(&[32, 40]);
    let (inputs, dy) = layer_norm.data::<f32>(&mut default_rng(3), |_, x| x);
    let alone = GradCheck::new().run(&layer_norm, &inputs, &dy).unwrap();
    assert!(!alone.kappa_against_f64);
    let ratio = alone.kappa / against.kappa;
    assert!((0.5..2.0).contains(&ratio), "{} and {}", alone.kappa, against.kappa);
}

#[test]
fn blocks_of_another_function_are_found_and_not_relied_on() {
    let report = run_twin(true);
    let check = report.checks.iter().find(|check| !check.holds).unwrap();
    assert_eq!(check.name, "blocks of rows have the bits of the whole");
    assert!(check.detail.starts_with("row 0 of a block"), "{report}");
    assert_eq!(report.verdict, Verdict::Wrong);
    // The gradient itself is right, and the whole forwards show it.
    assert_eq!(report.inputs[0].verdict, Verdict::Passed);
}

/// `y = n x^2`, where `n` is the number of the row from 1 on: it runs on any rows, told which they are.
struct Numbered {
    /// What happens to a row that has the number of one before it in a call.
    repeated: Repeated,
}

#[derive(Clone, Copy, PartialEq)]
enum Repeated {
    Right,
    Other,
    /// It is taken for the one before.
    Remembered,
}

impl Numbered {
    const SHAPE: [usize; 2] = [40, 24];

    fn row(number: usize, x: &[f64], y: &mut [f64]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = (number + 1) as f64 * x * x);
    }
}

impl Operation<f64> for Numbered {
    fn name(&self) -> String {
        "numbered".to_owned()
    }
    fn inputs(&self) -> Vec<Input> {
        vec![Input::rows("x", Self::SHAPE)]
    }
    fn output_shape(&self) -> Vec<usize> {
        Self::SHAPE.to_vec()
    }
    fn forward(&self, inputs: &[ArrayD<f64>], output: &mut ArrayD<f64>) -> Outcome {
        let (x, y) = (inputs[0].as_slice().unwrap(), output.as_slice_mut().unwrap());
        let rows = x.chunks(Self::SHAPE[1]).zip(y.chunks_mut(Self::SHAPE[1]));
        rows.enumerate().for_each(|(number, (x, y))| Self::row(number, x, y));
        Ok(())
    }
    fn backward(&self, inputs: &[ArrayD<f64>], dy: &ArrayD<f64>, gradients: &mut [ArrayD<f64>]) -> Outcome {
        for (element, dx) in gradients[0].iter_mut().enumerate() {
            let number = element / Self::SHAPE[1];
            *dx = 2.0 * (number + 1) as f64 * inputs[0].as_slice().unwrap()[element] * dy.as_slice().unwrap()[element];
        }
        Ok(())
    }
    fn forward_rows(&self, rows: &[usize], inputs: &[&[f64]], output: &mut [f64]) -> Option<Outcome> {
        let columns = Self::SHAPE[1];
        for (i, (x, y)) in inputs[0].chunks(columns).zip(output.chunks_mut(columns)).enumerate() {
            Self::row(rows[i], x, y);
            if self.repeated == Repeated::Other && rows[..i].contains(&rows[i]) {
                y[0] += 1e-9;
            }
        }
        for i in 0..rows.len() {
            let first = rows.iter().position(|row| *row == rows[i]).unwrap();
            if self.repeated == Repeated::Remembered {
                output.copy_within(first * columns..(first + 1) * columns, i * columns);
            }
        }
        Some(Ok(()))
    }
}

#[test]
fn an_operation_is_told_which_rows_a_call_is_of() {
    let mut rng = default_rng(5);
    let [x, dy] = [(); 2].map(|()| rng.random(&Numbered::SHAPE));
    let run = |repeated| {
        let check = GradCheck::new().mode(Mode::Local);
        check.run(&Numbered { repeated }, std::slice::from_ref(&x), &dy).unwrap()
    };
    let report = run(Repeated::Right);
    assert_eq!(report.verdict, Verdict::Passed, "{report}");
    for repeated in [Repeated::Other, Repeated::Remembered] {
        let report = run(repeated);
        let check = report.checks.iter().find(|check| !check.holds).unwrap();
        assert_eq!(check.name, "blocks of rows have the bits of the whole", "{report}");
    }
}

/// Of long rows in `f32` the noise of a balanced step is above the tolerance: the pilots show that, and what they could not
/// foresee is looked at once more. (How noisy they are depends on the backend: the model is the same on every CPU.)
#[test]
fn noisy_rows_are_certified_and_hardly_looked_at_twice() {
    let operation = LayerNormOperation::new(&[4, 1152]).backend(Backend::model());
    let mut rng = default_rng(1000);
    let [x, dy] = [(); 2].map(|()| rng.random(&[4, 1152]).mapv(|value: f64| value as f32));
    let report = GradCheck::new().mode(Mode::Local).run(&operation, &[x], &dy).unwrap();
    assert_eq!(report.verdict, Verdict::Passed, "{report}");
    // Four for each column, and a little for what is looked at again. It would be ten where most components were.
    assert!(report.forwards < 5 * 1152, "{} forwards", report.forwards);
}

/// A tolerance that the first look hardly reaches: what is looked at once more lies in other columns in each row.
#[test]
fn what_a_second_look_can_certify_is_certified_in_every_row() {
    let operation = LayerNormOperation::new(&[24, 64]).backend(Backend::model());
    let mut rng = default_rng(7);
    let [x, dy] = [(); 2].map(|()| rng.random(&[24, 64]).mapv(|value: f64| value as f32));
    let check = |rtol: f64| {
        GradCheck::new().mode(Mode::Local).rtol(rtol).run(&operation, std::slice::from_ref(&x), &dy).unwrap()
    };
    let (once, again) = (check(5e-4), check(2e-4));
    assert!(once.verdict == Verdict::Passed && again.forwards > once.forwards, "{again}");
    // Of some even the longest step leaves the noise above this tolerance: 3 here, and 90 if a second look missed its row.
    let undecided = again.inputs[0].counts.inconclusive;
    assert!(undecided < 10, "{undecided}");
}

/// Rows whose even columns are straight lines and whose odd ones are not: `sin(2 pi x)`, whose differences over half a
/// period, a whole one and two vanish all three.
#[test]
fn a_step_that_suits_some_columns_does_not_accuse_the_others() {
    let wave = 2.0 * std::f32::consts::PI;
    let each = move |array: &ArrayD<f32>, of: fn(f32, f32) -> f32| {
        let mut values = array.clone();
        values.iter_mut().skip(1).step_by(2).for_each(|x| *x = of(wave, *x));
        values
    };
    let forward = move |x: &ArrayD<f32>| each(x, |wave, x| (wave * x).sin());
    let backward = move |x: &ArrayD<f32>, dy: &ArrayD<f32>| {
        let mut dx = dy.clone();
        dx.iter_mut().zip(x).skip(1).step_by(2).for_each(|(dx, x)| *dx *= wave * (wave * x).cos());
        dx
    };
    let operation = Function::new("waves", [16, 1024], forward, backward).independent_rows();
    let mut rng = default_rng(3);
    let [x, dy] = [(); 2].map(|()| rng.standard_normal(&[16, 1024]).mapv(|value: f64| value as f32));
    for rtol in [1e-3, 1e-4] {
        let check = GradCheck::new().mode(Mode::Local).rtol(rtol);
        let report = check.run(&operation, std::slice::from_ref(&x), &dy).unwrap();
        assert_eq!(report.inputs[0].counts.wrong, 0, "{rtol}: {report}");
    }
}

/// `y = a b`, element by element, with a third input whose rows have none.
struct Products;

impl Products {
    const SHAPE: [usize; 2] = [40, 24];
}

impl Operation<f64> for Products {
    fn name(&self) -> String {
        "products".to_owned()
    }
    fn inputs(&self) -> Vec<Input> {
        vec![Input::rows("a", Self::SHAPE), Input::rows("none", [Self::SHAPE[0], 0]), Input::rows("b", Self::SHAPE)]
    }
    fn output_shape(&self) -> Vec<usize> {
        Self::SHAPE.to_vec()
    }
    fn forward(&self, inputs: &[ArrayD<f64>], output: &mut ArrayD<f64>) -> Outcome {
        output.assign(&(&inputs[0] * &inputs[2]));
        Ok(())
    }
    fn backward(&self, inputs: &[ArrayD<f64>], dy: &ArrayD<f64>, gradients: &mut [ArrayD<f64>]) -> Outcome {
        gradients[0].assign(&(dy * &inputs[2]));
        gradients[2].assign(&(dy * &inputs[0]));
        Ok(())
    }
    fn forward_rows(&self, rows: &[usize], inputs: &[&[f64]], output: &mut [f64]) -> Option<Outcome> {
        assert_eq!(inputs.iter().map(|input| input.len()).collect::<Vec<_>>(), [24, 0, 24].map(|row| row * rows.len()));
        output.iter_mut().zip(inputs[0]).zip(inputs[2]).for_each(|((y, a), b)| *y = a * b);
        Some(Ok(()))
    }
}

#[test]
fn rows_of_several_inputs_are_checked_in_blocks_though_those_of_one_are_empty() {
    let mut rng = default_rng(6);
    let [a, b, dy] = [(); 3].map(|()| rng.random(&Products::SHAPE));
    let inputs = [a, ArrayD::zeros(vec![Products::SHAPE[0], 0]), b];
    for mode in MODES {
        let report = GradCheck::new().mode(mode).run(&Products, &inputs, &dy).unwrap();
        let verdicts: Vec<_> = report.inputs.iter().map(|input| input.verdict).collect();
        assert_eq!(verdicts, [Verdict::Passed, Verdict::Inconclusive, Verdict::Passed], "{mode}: {report}");
        assert_eq!(report.reasons, ["none: has no elements, so there is nothing to compare"], "{mode}");
    }
}
