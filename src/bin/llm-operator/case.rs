//! What a check is run on: a LayerNorm, its inputs and an upstream gradient, drawn or read from files.

use crate::layer::LayerFiles;
use crate::npy::{FileElement, Input};
use crate::progress::Progress;
use anyhow::{bail, ensure};
use clap::ValueEnum;
use llm_operator::grad_check::Operation;
use llm_operator::numpy_random::{Generator, default_rng};
use llm_operator::{Element, LayerNormOperation};
use ndarray::{ArrayD, Dimension, IxDyn};

/// A LayerNorm, its inputs and an upstream gradient.
pub(crate) struct Case<T> {
    pub(crate) operation: LayerNormOperation,
    /// x, then gamma and beta where the operation has them.
    pub(crate) inputs: Vec<ArrayD<T>>,
    pub(crate) g: ArrayD<T>,
    normalized_shape: Vec<usize>,
    epsilon: f64,
    has_gamma: bool,
    has_beta: bool,
}

/// How values are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Inputs {
    /// As `rng.random` gives them: gamma and beta in [0, 1), x and g negated as the notebook has them.
    Uniform,
    /// Normal numbers of mean 0 and deviation 1.
    Normal,
}

impl Inputs {
    fn draw(self, rng: &mut Generator, shape: &[usize]) -> ArrayD<f64> {
        match self {
            Inputs::Uniform => rng.random(shape),
            Inputs::Normal => rng.standard_normal(shape),
        }
    }
}

/// A case that is drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generated<'a> {
    pub(crate) shape: &'a [usize],
    pub(crate) seed: u64,
    pub(crate) inputs: Inputs,
    pub(crate) affine: bool,
    pub(crate) normalized_dims: usize,
    pub(crate) epsilon: f64,
}

impl Generated<'_> {
    /// Draws x, g, gamma and beta, in this order, and rounds them to `T`.
    pub(crate) fn draw<T: Element>(&self) -> anyhow::Result<Case<T>> {
        let normalized_shape = self.checked_shape()?;
        let mut rng = default_rng(self.seed);
        let sign = if self.inputs == Inputs::Uniform { -1.0 } else { 1.0 };
        let [x, g] = [(); 2].map(|()| self.inputs.draw(&mut rng, self.shape).mapv(|value| T::from_f64(sign * value)));
        let mut operation =
            LayerNormOperation::new(self.shape).normalized_dims(self.normalized_dims).epsilon(self.epsilon);
        let mut inputs = vec![x];
        if self.affine {
            operation = operation.gamma().beta();
            inputs.extend([(); 2].map(|()| self.inputs.draw(&mut rng, normalized_shape).mapv(T::from_f64)));
        }
        let normalized_shape = normalized_shape.to_vec();
        Ok(Case {
            operation,
            inputs,
            g,
            normalized_shape,
            epsilon: self.epsilon,
            has_gamma: self.affine,
            has_beta: self.affine,
        })
    }

    /// The normalized dimensions of a shape that can be checked.
    fn checked_shape(&self) -> anyhow::Result<&[usize]> {
        let (shape, dims) = (self.shape, self.normalized_dims);
        let available = shape.len();
        ensure!(
            dims <= available,
            "--normalized-dims: expected at most {available}, the number of dimensions of --shape, found {dims}"
        );
        let normalized_shape = &shape[available - dims..];
        ensure!(
            !normalized_shape.contains(&0),
            "--shape: expected at least one element to normalize over, found {shape:?}"
        );
        let elements = shape
            .iter()
            .filter(|&&length| length > 0)
            .try_fold(1, |product: usize, &length| product.checked_mul(length));
        // x, g, the output and the gradient, at least.
        let needed = elements.and_then(|elements| elements.checked_mul(4));
        if needed.is_none_or(|needed| Vec::<f64>::new().try_reserve_exact(needed).is_err()) {
            bail!("--shape: expected a shape that fits in memory, found {shape:?}");
        }
        Ok(normalized_shape)
    }
}

impl<T: FileElement> Case<T> {
    /// Reads files whose types and shapes fit.
    pub(crate) fn read(x: &Input, g: &Input, layer: &LayerFiles, progress: &Progress) -> anyhow::Result<Self> {
        let (has_gamma, has_beta) = (layer.gamma.is_some(), layer.beta.is_some());
        let mut inputs = vec![read_finite(x, progress)?];
        for parameter in [&layer.gamma, &layer.beta].into_iter().flatten() {
            inputs.push(read_finite(parameter, progress)?);
        }
        let g = read_finite(g, progress)?;
        let dims = layer.normalized_shape.len();
        let mut operation = LayerNormOperation::new(&x.shape).normalized_dims(dims).epsilon(layer.epsilon);
        if has_gamma {
            operation = operation.gamma();
        }
        if has_beta {
            operation = operation.beta();
        }
        let (normalized_shape, epsilon) = (layer.normalized_shape.clone(), layer.epsilon);
        Ok(Self { operation, inputs, g, normalized_shape, epsilon, has_gamma, has_beta })
    }
}

impl<T: Element> Case<T> {
    pub(crate) fn has_gamma(&self) -> bool {
        self.has_gamma
    }

    pub(crate) fn has_beta(&self) -> bool {
        self.has_beta
    }

    /// Where gamma or beta is needed but missing, what it stands for: 1 and 0.
    pub(crate) fn with_parameters(mut self, gamma: bool, beta: bool) -> Self {
        let constant = |value| ArrayD::from_elem(IxDyn(&self.normalized_shape), T::from_f64(value));
        if gamma && !self.has_gamma {
            self.inputs.insert(1, constant(1.0));
            self.operation = self.operation.gamma();
            self.has_gamma = true;
        }
        if beta && !self.has_beta {
            self.inputs.push(constant(0.0));
            self.operation = self.operation.beta();
            self.has_beta = true;
        }
        self
    }

    /// The same values in f64: each is exact.
    pub(crate) fn in_f64(self) -> Case<f64> {
        Case {
            operation: self.operation,
            inputs: self.inputs.iter().map(|input| input.mapv(T::to_f64)).collect(),
            g: self.g.mapv(T::to_f64),
            normalized_shape: self.normalized_shape,
            epsilon: self.epsilon,
            has_gamma: self.has_gamma,
            has_beta: self.has_beta,
        }
    }
}

impl Case<f64> {
    /// Whether a gradient of x, perhaps rounded to `f32`, is that of the same LayerNorm without gamma.
    pub(crate) fn is_without_gamma(&self, dx: &ArrayD<f64>) -> bool {
        let (x, dims) = (&self.inputs[0], self.normalized_shape.len());
        let plain = LayerNormOperation::new(x.shape()).normalized_dims(dims).epsilon(self.epsilon);
        let mut expected = [ArrayD::zeros(x.raw_dim())];
        if plain.backward(&self.inputs[..1], &self.g, &mut expected).is_err() {
            return false;
        }
        let size = expected[0].iter().fold(0.0, |size: f64, value| size.max(value.abs()));
        expected[0].iter().zip(dx).all(|(expected, dx)| (expected - dx).abs() <= 1e-5 * size)
    }
}

/// Reads the values at which a gradient is to be checked: at NaN or infinity there is none.
fn read_finite<T: FileElement>(input: &Input, progress: &Progress) -> anyhow::Result<ArrayD<T>> {
    let array: ArrayD<T> = input.read(progress)?;
    if let Some((index, value)) = array.indexed_iter().find(|(_, value)| !value.to_f64().is_finite()) {
        let (source, index) = (&input.source, index.slice().to_vec());
        bail!("{source}: expected finite numbers to check a gradient at, found {value} at {index:?}");
    }
    Ok(array)
}
