//! LayerNorm as an operation of the gradient checker.

use crate::grad_check::{Identity, Input, Locality, Operation, Outcome, layer_norm_identities, layer_norm_terms};
use crate::{Backend, Element, GradientMut, GradientsMut, LayerNorm, Statistics, StatisticsMut};
use ndarray::{ArrayD, IxDyn};
use std::borrow::Cow;

/// [`LayerNorm`] on an x of a fixed shape, for [`GradCheck`](crate::grad_check::GradCheck).
///
/// Its inputs are `x`, then `gamma` and `beta` where it has them, each of the shape of the normalized dimensions. The
/// same value is an operation on `f32` and on `f64`; in `f32`, its noise is measured against itself in `f64`.
///
/// Nothing is checked before it is used: a shape without a row to normalize, or an `epsilon` that is negative, ends a
/// check with [`CheckError::Refused`](crate::grad_check::CheckError::Refused).
///
/// ```
/// use llm_operator::LayerNormOperation;
/// use llm_operator::grad_check::{GradCheck, Verdict};
/// use llm_operator::numpy_random::default_rng;
///
/// let mut rng = default_rng(1000);
/// let [x, dy] = [(); 2].map(|()| rng.random(&[3, 8]));
/// let [gamma, beta] = [(); 2].map(|()| rng.random(&[8]));
/// let operation = LayerNormOperation::new(&[3, 8]).gamma().beta();
/// let report = GradCheck::new().run(&operation, &[x, gamma, beta], &dy)?;
/// assert_eq!(report.verdict, Verdict::Passed);
/// # Ok::<(), llm_operator::grad_check::CheckError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LayerNormOperation {
    shape: Vec<usize>,
    normalized_dims: usize,
    epsilon: f64,
    gamma: bool,
    beta: bool,
    backend: Option<Backend>,
}

impl LayerNormOperation {
    /// Normalizes the last dimension of an x of this shape, with `epsilon` 1e-5, without gamma and beta.
    pub fn new(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), normalized_dims: 1, epsilon: 1e-5, gamma: false, beta: false, backend: None }
    }

    /// Normalizes this many of the last dimensions together.
    #[must_use]
    pub fn normalized_dims(mut self, dims: usize) -> Self {
        self.normalized_dims = dims;
        self
    }

    /// What is added to the variance.
    #[must_use]
    pub fn epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Takes gamma as an input after x.
    #[must_use]
    pub fn gamma(mut self) -> Self {
        self.gamma = true;
        self
    }

    /// Takes beta as the last input.
    #[must_use]
    pub fn beta(mut self) -> Self {
        self.beta = true;
        self
    }

    /// Runs on `backend` instead of [`Backend::chosen`].
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// The dimensions that are not normalized, and those that are. Where x has fewer than asked for, none is
    /// normalized, which LayerNorm refuses.
    fn split_shape(&self) -> (&[usize], &[usize]) {
        let outer = self.shape.len().checked_sub(self.normalized_dims).unwrap_or(self.shape.len());
        self.shape.split_at(outer)
    }

    /// How many rows x has.
    fn rows(&self) -> usize {
        self.split_shape().0.iter().product()
    }

    /// How many elements of x a row has.
    fn width(&self) -> usize {
        self.split_shape().1.iter().product()
    }

    /// The layer with its parameters: the inputs after x.
    fn layer<'p, T: Element>(&self, parameters: impl IntoIterator<Item = &'p [T]>) -> LayerNorm<'p, T> {
        let mut parameters = parameters.into_iter();
        let mut layer = LayerNorm::with_shape(self.split_shape().1).epsilon(self.epsilon);
        if let Some(gamma) = parameters.by_ref().take(usize::from(self.gamma)).next() {
            layer = layer.gamma(gamma);
        }
        if let Some(beta) = parameters.take(usize::from(self.beta)).next() {
            layer = layer.beta(beta);
        }
        match self.backend {
            Some(backend) => layer.backend(backend),
            None => layer,
        }
    }
}

impl<T: Element> Operation<T> for LayerNormOperation {
    fn name(&self) -> String {
        "layer_norm".to_owned()
    }

    fn inputs(&self) -> Vec<Input> {
        let x = Input { name: "x".to_owned(), shape: self.shape.clone(), locality: Locality::Rows(self.rows()) };
        let parameter = |name, present: bool| present.then(|| Input::columns(name, self.split_shape().1));
        [Some(x), parameter("gamma", self.gamma), parameter("beta", self.beta)].into_iter().flatten().collect()
    }

    fn output_shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn forward(&self, inputs: &[ArrayD<T>], output: &mut ArrayD<T>) -> Outcome {
        let inputs = slices(inputs)?;
        let y = output.as_slice_mut().ok_or(NOT_CONTIGUOUS)?;
        Ok(self.layer(inputs[1..].iter().copied()).forward_into(inputs[0], y, None)?)
    }

    fn backward(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>, gradients: &mut [ArrayD<T>]) -> Outcome {
        let inputs = slices(inputs)?;
        let layer = self.layer(inputs[1..].iter().copied());
        let [mut mean, mut rstd] = [(); 2].map(|()| vec![T::default(); self.rows()]);
        // Of this forward only the statistics are wanted: y goes where dx will be.
        let y = gradients[0].as_slice_mut().ok_or(NOT_CONTIGUOUS)?;
        layer.forward_into(inputs[0], y, Some(StatisticsMut { mean: &mut mean, rstd: &mut rstd }))?;

        let mut gradients = gradients.iter_mut().map(|gradient| gradient.as_slice_mut().map(GradientMut::Overwrite));
        let mut next = |present: bool| if present { gradients.next().flatten() } else { None };
        let gradients = GradientsMut { dx: next(true), dgamma: next(self.gamma), dbeta: next(self.beta) };
        let dy = dy.as_slice().ok_or(NOT_CONTIGUOUS)?;
        Ok(layer.backward_into(dy, inputs[0], Statistics { mean: &mean, rstd: &rstd }, gradients)?)
    }

    fn forward_rows(&self, _: &[usize], inputs: &[&[T]], output: &mut [T]) -> Option<Outcome> {
        let layer = self.layer(inputs[1..].iter().copied());
        Some(layer.forward_into(inputs[0], output, None).map_err(Into::into))
    }

    fn in_f64(&self) -> Option<&dyn Operation<f64>> {
        (T::NAME != f64::NAME).then_some(self)
    }

    /// The results of a row have the same bits wherever it stands.
    fn rows_are_alike(&self) -> bool {
        true
    }

    fn identities(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>, gradients: &[ArrayD<T>]) -> Vec<Identity> {
        let width = self.width();
        let [x, dy, dx] = [&inputs[0], dy, &gradients[0]].map(|array| reshaped(array, &[self.rows(), width]));
        let gamma = self.gamma.then(|| reshaped(&inputs[1], &[width]));
        let parameters =
            (self.gamma && self.beta).then(|| (reshaped(&gradients[1], &[width]), reshaped(&gradients[2], &[width])));
        let parameters = parameters.as_ref().map(|(dgamma, dbeta)| (&**dgamma, &**dbeta));
        layer_norm_identities(&x, gamma.as_deref(), &dy, self.epsilon, &dx, parameters)
    }

    fn gradient_terms(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>) -> Vec<Vec<f64>> {
        let width = self.width();
        let [x, dy] = [&inputs[0], dy].map(|array| reshaped(array, &[self.rows(), width]));
        let gamma = self.gamma.then(|| reshaped(&inputs[1], &[width]));
        let [dx, dgamma, dbeta] = layer_norm_terms(&x, gamma.as_deref(), &dy, self.epsilon);
        [Some(dx), self.gamma.then_some(dgamma), self.beta.then_some(dbeta)].into_iter().flatten().collect()
    }
}

/// The same elements in another shape; a copy only where the shape is another.
fn reshaped<'a, T: Element>(array: &'a ArrayD<T>, shape: &[usize]) -> Cow<'a, ArrayD<T>> {
    // Only the length of the last dimension matters to the identities.
    if array.shape().last() == shape.last() {
        return Cow::Borrowed(array);
    }
    let elements = array.iter().copied().collect();
    // The identities of an empty array are none.
    Cow::Owned(ArrayD::from_shape_vec(IxDyn(shape), elements).unwrap_or_default())
}

/// The checker promises arrays that are contiguous and in C order.
const NOT_CONTIGUOUS: &str = "expected arrays that are contiguous and in C order";

fn slices<T>(arrays: &[ArrayD<T>]) -> Result<Vec<&[T]>, &'static str> {
    arrays.iter().map(|array| array.as_slice().ok_or(NOT_CONTIGUOUS)).collect()
}
