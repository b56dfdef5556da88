//! Every bad argument is refused with an error that names it, says what was expected and what was found.

use llm_operator::{
    Backend, Error, GradientMut, GradientsMut, LayerNorm, Statistics, StatisticsMut, layer_norm, layer_norm_backward,
};
use ndarray::{Array0, Array1, Array2, Array3};

const X: [f32; 8] = [1.0; 8];

fn message<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => panic!("a bad argument was accepted"),
        Err(error) => error.to_string(),
    }
}

fn forward(layer: &LayerNorm<'_, f32>, x: &[f32], y: usize, mean: usize, rstd: usize) -> String {
    let (mut y, mut mean, mut rstd) = (vec![7.0; y], vec![7.0; mean], vec![7.0; rstd]);
    let statistics = StatisticsMut { mean: &mut mean, rstd: &mut rstd };
    let message = message(layer.forward_into(x, &mut y, Some(statistics)));
    assert!(y.iter().chain(&mean).chain(&rstd).all(|&value| value == 7.0), "an output was written");
    message
}

#[test]
fn forward_names_the_argument_that_is_wrong() {
    let layer = LayerNorm::new(4);
    assert_eq!(forward(&layer, &X[..7], 7, 1, 1), "x: expected a whole number of rows of 4 elements, found 7 elements");
    assert_eq!(forward(&layer, &X, 7, 2, 2), "y: expected 8 elements, found 7");
    assert_eq!(forward(&layer, &X, 8, 1, 2), "statistics.mean: expected 2 elements, found 1");
    assert_eq!(forward(&layer, &X, 8, 2, 3), "statistics.rstd: expected 2 elements, found 3");
    assert_eq!(forward(&layer.clone().gamma(&X), &X, 8, 2, 2), "gamma: expected 4 elements, found 8");
    assert_eq!(forward(&layer.clone().beta(&X[..1]), &X, 8, 2, 2), "beta: expected 4 elements, found 1");
    let wide = LayerNorm::with_shape(&[3, 4]);
    assert_eq!(
        message(wide.forward(Array2::<f32>::zeros((4, 4)).view())),
        "x: expected a shape that ends in [3, 4], found [4, 4]"
    );
    assert_eq!(
        message(wide.forward(Array1::<f32>::zeros(4).view())),
        "x: expected a shape that ends in [3, 4], found [4]"
    );
}

#[test]
fn backward_names_the_argument_that_is_wrong() {
    let backward = |dy: usize, x: usize, mean: usize, rstd: usize, lengths: [usize; 3]| {
        let [mut dx, mut dgamma, mut dbeta] = lengths.map(|len| vec![7.0; len]);
        let gradients = GradientsMut {
            dx: Some(GradientMut::Overwrite(&mut dx)),
            dgamma: Some(GradientMut::Accumulate(&mut dgamma)),
            dbeta: Some(GradientMut::Overwrite(&mut dbeta)),
        };
        let statistics = Statistics { mean: &X[..mean], rstd: &X[..rstd] };
        let message = message(LayerNorm::new(4).backward_into(&X[..dy], &X[..x], statistics, gradients));
        assert!(dx.iter().chain(&dgamma).chain(&dbeta).all(|&value| value == 7.0), "an output was written");
        message
    };
    assert_eq!(backward(8, 6, 2, 2, [8, 4, 4]), "x: expected a whole number of rows of 4 elements, found 6 elements");
    assert_eq!(backward(4, 8, 2, 2, [8, 4, 4]), "dy: expected 8 elements, found 4");
    assert_eq!(backward(8, 8, 3, 2, [8, 4, 4]), "statistics.mean: expected 2 elements, found 3");
    assert_eq!(backward(8, 8, 2, 1, [8, 4, 4]), "statistics.rstd: expected 2 elements, found 1");
    assert_eq!(backward(8, 8, 2, 2, [4, 4, 4]), "dx: expected 8 elements, found 4");
    assert_eq!(backward(8, 8, 2, 2, [8, 8, 4]), "dgamma: expected 4 elements, found 8");
    assert_eq!(backward(8, 8, 2, 2, [8, 4, 0]), "dbeta: expected 4 elements, found 0");

    let x = Array3::<f64>::zeros((2, 3, 4));
    let (_, cache) = layer_norm(x.view(), 1e-5).unwrap();
    assert_eq!(
        message(layer_norm_backward(Array3::zeros((2, 4, 3)).view(), &cache)),
        "dy: expected shape [2, 3, 4], found [2, 4, 3]"
    );
    assert_eq!(
        message(LayerNorm::with_shape(&[3, 4]).backward(x.view(), &cache)),
        "cache: expected normalized dimensions [3, 4], found [4]"
    );
}

#[test]
fn a_row_has_at_least_one_element() {
    let expected = "width: expected at least one element to normalize over, found normalized dimensions";
    assert_eq!(message(layer_norm(Array2::<f32>::zeros((3, 0)).view(), 1e-5)), format!("{expected} [0]"));
    assert_eq!(message(layer_norm(Array0::<f32>::zeros(()).view(), 1e-5)), format!("{expected} []"));
    let layer = LayerNorm::<f32>::with_shape(&[]);
    assert_eq!(message(layer.forward_into(&[], &mut [], None)), format!("{expected} []"));
    let layer = LayerNorm::<f32>::with_shape(&[5, 0, 2]);
    assert_eq!(message(layer.forward_into(&[], &mut [], None)), format!("{expected} [5, 0, 2]"));
}

#[test]
fn normalized_dimensions_whose_product_overflows_are_refused() {
    let layer = LayerNorm::<f32>::with_shape(&[1 << 40, 1 << 40]);
    assert_eq!(
        message(layer.forward_into(&[], &mut [], None)),
        "width: expected normalized dimensions that a usize can count, found [1099511627776, 1099511627776]"
    );
}

#[test]
fn epsilon_is_finite_and_not_negative() {
    for epsilon in [-1e-9, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let expected = format!("epsilon: expected a finite number that is zero or more, found {epsilon}");
        assert_eq!(message(layer_norm(Array2::<f64>::zeros((3, 2)).view(), epsilon)), expected);
    }
    assert!(layer_norm(Array2::<f64>::zeros((3, 2)).view(), 0.0).is_ok());
    assert!(layer_norm(Array2::<f64>::zeros((3, 2)).view(), -0.0).is_ok());
}

#[test]
fn an_unknown_backend_is_named_with_those_that_there_are() {
    let message = message(Backend::from_name("sse9"));
    assert!(message.starts_with("backend: expected one of portable"), "{message}");
    assert!(message.ends_with(", found \"sse9\""), "{message}");
}
