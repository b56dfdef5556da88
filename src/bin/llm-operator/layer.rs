//! The arguments that make a LayerNorm, and the files that they name.

use crate::npy::{FileElement, Input};
use crate::progress::Progress;
use anyhow::{bail, ensure};
use llm_operator::{Error, LayerNorm};
use ndarray::ArrayD;
use std::path::PathBuf;

/// The parameters of a LayerNorm.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LayerArguments {
    /// File of gamma, of the shape of the normalized dimensions [without it: gamma = 1].
    #[arg(long, value_name = "FILE", requires = "x")]
    pub(crate) gamma: Option<PathBuf>,

    /// File of beta, of the shape of the normalized dimensions [without it: beta = 0].
    #[arg(long, value_name = "FILE", requires = "x")]
    pub(crate) beta: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) norm: NormArguments,
}

/// What a LayerNorm is without its parameters.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct NormArguments {
    /// Added to the variance; zero or more.
    #[arg(long, value_name = "NUMBER", default_value = "1e-5", value_parser = parse_epsilon, allow_hyphen_values = true)]
    pub(crate) epsilon: f64,

    /// Normalize the last K dimensions of x together [default: as many as gamma or beta has, else 1].
    #[arg(long, value_name = "K", value_parser = parse_dims, allow_hyphen_values = true)]
    pub(crate) normalized_dims: Option<usize>,
}

fn parse_epsilon(text: &str) -> Result<f64, String> {
    let expected = || "expected a finite number that is zero or more".to_owned();
    let epsilon: f64 = text.parse().map_err(|_| expected())?;
    if epsilon.is_finite() && epsilon >= 0.0 { Ok(epsilon) } else { Err(expected()) }
}

fn parse_dims(text: &str) -> Result<usize, String> {
    let dims = text.parse().ok().filter(|&dims| dims > 0);
    dims.ok_or_else(|| "expected a whole number that is 1 or more".to_owned())
}

/// The parameter files of a LayerNorm on a given x, opened and of the right types and shapes.
#[derive(Debug)]
pub(crate) struct LayerFiles {
    pub(crate) gamma: Option<Input>,
    pub(crate) beta: Option<Input>,
    pub(crate) epsilon: f64,
    /// The normalized dimensions of x.
    pub(crate) normalized_shape: Vec<usize>,
    /// The dimensions of x that are not normalized.
    pub(crate) outer_shape: Vec<usize>,
}

impl LayerFiles {
    /// Opens the files and checks them against x.
    pub(crate) fn open(arguments: &LayerArguments, x: &Input) -> anyhow::Result<Self> {
        let gamma = Input::open_optional("--gamma", arguments.gamma.as_deref())?;
        let beta = Input::open_optional("--beta", arguments.beta.as_deref())?;
        let dims = normalized_dims(arguments.norm.normalized_dims, [&gamma, &beta], x)?;
        let (outer_shape, normalized_shape) = x.shape.split_at(x.shape.len() - dims);
        if normalized_shape.contains(&0) {
            bail!(
                "{}: expected at least one element to normalize over, found shape {:?}, whose last {} {:?}",
                x.source,
                x.shape,
                if dims == 1 { "dimension is" } else { "dimensions are" },
                normalized_shape,
            );
        }
        let files = Self {
            epsilon: arguments.norm.epsilon,
            normalized_shape: normalized_shape.to_vec(),
            outer_shape: outer_shape.to_vec(),
            gamma: None,
            beta: None,
        };
        for parameter in [&gamma, &beta].into_iter().flatten() {
            parameter.expect_type_of(x)?;
            files.expect_normalized_shape(parameter, x)?;
        }
        Ok(Self { gamma, beta, ..files })
    }

    /// A file of a parameter, or of its gradient, has the shape of the normalized dimensions.
    pub(crate) fn expect_normalized_shape(&self, parameter: &Input, x: &Input) -> anyhow::Result<()> {
        let (expected, found) = (&self.normalized_shape, &parameter.shape);
        ensure!(
            expected == found,
            "{}: expected shape {expected:?}, the normalized dimensions of {}, found {found:?}",
            parameter.source,
            x.source
        );
        Ok(())
    }

    /// The bytes of the files.
    pub(crate) fn size(&self) -> u64 {
        [&self.gamma, &self.beta].into_iter().flatten().map(|input| input.size).sum()
    }

    /// Reads the files.
    pub(crate) fn read<T: FileElement>(&self, progress: &Progress) -> anyhow::Result<Layer<T>> {
        let read = |input: &Option<Input>| input.as_ref().map(|input| input.read(progress)).transpose();
        Ok(Layer {
            gamma: read(&self.gamma)?.map(in_c_order),
            beta: read(&self.beta)?.map(in_c_order),
            epsilon: self.epsilon,
            normalized_shape: self.normalized_shape.clone(),
            outer_shape: self.outer_shape.clone(),
        })
    }
}

/// K: what was asked for, else the dimensions of gamma or beta, else 1. There are as many in x.
fn normalized_dims(asked: Option<usize>, parameters: [&Option<Input>; 2], x: &Input) -> anyhow::Result<usize> {
    let available = x.shape.len();
    ensure!(available > 0, "{}: expected at least one dimension to normalize over, found shape []", x.source);
    if let Some(dims) = asked {
        ensure!(
            dims <= available,
            "--normalized-dims: expected at most {available}, the number of dimensions of {}, found {dims}",
            x.source
        );
        return Ok(dims);
    }
    let Some(parameter) = parameters.into_iter().flatten().next() else { return Ok(1) };
    let dims = parameter.shape.len();
    ensure!(
        (1..=available).contains(&dims),
        "{}: expected the shape of the last dimensions of {}, which is {:?}, found {:?}",
        parameter.source,
        x.source,
        x.shape,
        parameter.shape
    );
    Ok(dims)
}

/// The elements in C order, whatever the order of the file.
fn in_c_order<T: Copy>(array: ArrayD<T>) -> Vec<T> {
    array.iter().copied().collect()
}

/// The parameters of a LayerNorm, in memory.
#[derive(Debug)]
pub(crate) struct Layer<T> {
    pub(crate) gamma: Option<Vec<T>>,
    pub(crate) beta: Option<Vec<T>>,
    pub(crate) epsilon: f64,
    pub(crate) normalized_shape: Vec<usize>,
    pub(crate) outer_shape: Vec<usize>,
}

impl<T: FileElement> Layer<T> {
    /// The operation.
    pub(crate) fn layer_norm(&self) -> LayerNorm<'_, T> {
        let mut layer_norm = LayerNorm::with_shape(&self.normalized_shape).epsilon(self.epsilon);
        if let Some(gamma) = &self.gamma {
            layer_norm = layer_norm.gamma(gamma);
        }
        if let Some(beta) = &self.beta {
            layer_norm = layer_norm.beta(beta);
        }
        layer_norm
    }
}

/// An error of the library, in the words of the command line.
pub(crate) fn explain(error: Error) -> anyhow::Error {
    match error {
        // No argument chooses a backend: the environment does.
        Error::Backend { found, available } => anyhow::anyhow!(
            "the environment variable LLM_OPERATOR_BACKEND: expected one of {}, found {found:?}",
            available.join(", ")
        ),
        error => error.into(),
    }
}
