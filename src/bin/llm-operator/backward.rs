//! `backward`: the gradients of LayerNorm for files.

use crate::layer::{Layer, LayerArguments, LayerFiles, explain};
use crate::npy::{ElementType, FileElement, Input};
use crate::outputs::{Outputs, Report, Written};
use crate::progress::Progress;
use llm_operator::Backend;
use ndarray::ArrayD;
use std::path::PathBuf;

/// Write the gradients with respect to x, gamma and beta of a loss whose gradient with respect to y is in a file
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("outputs").required(true).multiple(true)))]
pub(crate) struct Arguments {
    /// File of x: any number of dimensions, one at least.
    #[arg(long, value_name = "FILE")]
    x: PathBuf,

    /// File of the upstream gradient, of the shape and type of x.
    #[arg(long, value_name = "FILE")]
    g: PathBuf,

    #[command(flatten)]
    layer: LayerArguments,

    /// File to write the gradient of x to.
    #[arg(long, value_name = "FILE", group = "outputs")]
    dx: Option<PathBuf>,

    /// File to write the gradient of gamma to; without --gamma, the gradient at gamma = 1.
    #[arg(long, value_name = "FILE", group = "outputs")]
    dgamma: Option<PathBuf>,

    /// File to write the gradient of beta to; may be asked for without --beta.
    #[arg(long, value_name = "FILE", group = "outputs")]
    dbeta: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Report> {
    let x = Input::open("--x", &arguments.x)?;
    let g = Input::open("--g", &arguments.g)?;
    g.expect_type_of(&x)?;
    g.expect_shape_of(&x)?;
    let layer = LayerFiles::open(&arguments.layer, &x)?;
    let outputs = Outputs::plan([
        ("--dx", arguments.dx.as_deref()),
        ("--dgamma", arguments.dgamma.as_deref()),
        ("--dbeta", arguments.dbeta.as_deref()),
    ])?;
    let backend = Backend::chosen().map_err(explain)?.name();
    let outputs = match x.element {
        ElementType::F32 => backward::<f32>(x, g, layer, outputs)?,
        ElementType::F64 => backward::<f64>(x, g, layer, outputs)?,
    };
    Ok(Report { command: "backward", backend, outputs })
}

fn backward<T: FileElement>(
    x: Input,
    g: Input,
    layer: LayerFiles,
    mut outputs: Outputs,
) -> anyhow::Result<Vec<Written>> {
    let progress = Progress::bytes("Reading", x.size + g.size + layer.size());
    let x: ArrayD<T> = x.read(&progress)?;
    let g: ArrayD<T> = g.read(&progress)?;
    let mut layer: Layer<T> = layer.read(&progress)?;
    drop(progress);

    // The library gives the gradients of the parameters that it has; 1 and 0 are what a missing one stands for.
    let width = layer.normalized_shape.iter().product();
    layer.gamma.get_or_insert_with(|| vec![T::from_f64(1.0); width]);
    layer.beta.get_or_insert_with(|| vec![T::from_f64(0.0); width]);
    let layer_norm = layer.layer_norm();
    let (_, cache) = layer_norm.forward(x.view()).map_err(explain)?;
    let gradients = layer_norm.backward(g.view(), &cache).map_err(explain)?;
    outputs.write("--dx", &gradients.dx)?;
    if let Some(dgamma) = &gradients.dgamma {
        outputs.write("--dgamma", dgamma)?;
    }
    if let Some(dbeta) = &gradients.dbeta {
        outputs.write("--dbeta", dbeta)?;
    }
    outputs.commit()
}
