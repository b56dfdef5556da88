//! LayerNorm as an operation of the gradient checker: what it computes, and what it declares.

use llm_operator::grad_check::{CheckError, GradCheck, Locality, Operation, Verdict};
use llm_operator::numpy_random::default_rng;
use llm_operator::{Backend, Element, LayerNorm, LayerNormOperation};
use ndarray::{ArrayD, IxDyn};

fn draw<T: Element>(seed: u64, shapes: &[&[usize]]) -> Vec<ArrayD<T>> {
    let mut rng = default_rng(seed);
    shapes.iter().map(|shape| rng.standard_normal(shape).mapv(T::from_f64)).collect()
}

#[test]
fn every_backend_has_right_gradients() {
    for backend in Backend::available() {
        let operation = LayerNormOperation::new(&[5, 19]).gamma().beta().backend(backend);
        let mut inputs = draw::<f64>(1, &[&[5, 19], &[19], &[19], &[5, 19]]);
        let dy = inputs.pop().unwrap();
        let report = GradCheck::new().run(&operation, &inputs, &dy).unwrap();
        assert_eq!(report.verdict, Verdict::Passed, "{}: {report}", backend.name());
        let [inputs, dy] =
            [inputs, vec![dy]].map(|arrays| arrays.iter().map(|array| array.mapv(|x| x as f32)).collect::<Vec<_>>());
        let report = GradCheck::new().run(&operation, &inputs, &dy[0]).unwrap();
        assert_eq!(report.verdict, Verdict::Passed, "{}: {report}", backend.name());
    }
}

#[test]
fn each_parameter_may_come_without_the_other() {
    let plain = LayerNormOperation::new(&[2, 3, 4]).normalized_dims(2).epsilon(0.1);
    let names = |operation: &LayerNormOperation| -> Vec<String> {
        Operation::<f64>::inputs(operation).into_iter().map(|input| input.name).collect()
    };
    for (operation, expected) in [
        (plain.clone(), &["x"][..]),
        (plain.clone().gamma(), &["x", "gamma"]),
        (plain.clone().beta(), &["x", "beta"]),
        (plain.beta().gamma(), &["x", "gamma", "beta"]),
    ] {
        assert_eq!(names(&operation), expected);
        let mut shapes = vec![&[2, 3, 4][..]];
        shapes.resize(expected.len(), &[3, 4]);
        let dy = draw::<f64>(3, &[&[2, 3, 4]]).remove(0);
        let report = GradCheck::new().run(&operation, &draw(2, &shapes), &dy).unwrap();
        assert_eq!(report.verdict, Verdict::Passed, "{report}");
        assert_eq!(report.inputs.len(), expected.len());
    }
}

#[test]
fn rows_and_columns_are_declared_as_layer_norm_has_them() {
    let inputs = Operation::<f32>::inputs(&LayerNormOperation::new(&[2, 3, 4, 5]).normalized_dims(2).gamma());
    assert_eq!((&inputs[0].shape[..], inputs[0].locality), (&[2, 3, 4, 5][..], Locality::Rows(6)));
    assert_eq!((&inputs[1].shape[..], inputs[1].locality), (&[4, 5][..], Locality::Columns));
}

#[test]
fn forward_is_layer_norms_and_a_block_of_rows_has_its_bits() {
    for (rows, width) in [(1, 1), (7, 3), (33, 16), (12, 65), (3, 1000)] {
        let inputs = draw::<f32>(9, &[&[rows, width], &[width], &[width]]);
        let [x, gamma, beta] = [0, 1, 2].map(|input| inputs[input].as_slice().unwrap());
        let operation = LayerNormOperation::new(&[rows, width]).gamma().beta().epsilon(1e-3);
        let mut output = ArrayD::from_elem(IxDyn(&[rows, width]), f32::NAN);
        operation.forward(&inputs, &mut output).unwrap();
        let layer = LayerNorm::new(width).gamma(gamma).beta(beta).epsilon(1e-3);
        assert_eq!(output, layer.forward(inputs[0].view()).unwrap().0);
        for block in [0..rows, 0..1, rows / 2..rows, rows - 1..rows] {
            let elements = block.start * width..block.end * width;
            let mut part = vec![f32::NAN; elements.len()];
            let row_inputs = [&x[elements.clone()], gamma, beta];
            let numbers = block.clone().collect::<Vec<_>>();
            operation.forward_rows(&numbers, &row_inputs, &mut part).unwrap().unwrap();
            assert_eq!(part, output.as_slice().unwrap()[elements], "rows {block:?} of {rows}, width {width}");
        }
    }
}

#[test]
fn noise_is_measured_in_f64_where_that_is_another_type() {
    let operation = LayerNormOperation::new(&[2, 3]);
    assert!(Operation::<f32>::in_f64(&operation).is_some());
    assert!(Operation::<f64>::in_f64(&operation).is_none());
}

#[test]
fn what_layer_norm_refuses_ends_the_check() {
    let x = draw::<f64>(4, &[&[2, 3]]).remove(0);
    for (operation, expected) in [
        (
            LayerNormOperation::new(&[2, 3]).epsilon(-1.0),
            "epsilon: expected a finite number that is zero or more, found -1",
        ),
        (LayerNormOperation::new(&[2, 3]).normalized_dims(0), "width: expected at least one element to normalize over"),
        (LayerNormOperation::new(&[2, 3]).normalized_dims(3), "width: expected at least one element to normalize over"),
    ] {
        let error = GradCheck::new().run(&operation, std::slice::from_ref(&x), &x).unwrap_err();
        assert!(matches!(&error, CheckError::Refused { message, .. } if message.starts_with(expected)), "{error}");
    }
}
