//! `forward`: LayerNorm of a file.

use crate::layer::{Layer, LayerArguments, LayerFiles, explain};
use crate::npy::{ElementType, FileElement, Input};
use crate::outputs::{Outputs, Report, Written};
use crate::progress::Progress;
use llm_operator::Backend;
use ndarray::{ArrayD, IxDyn};
use std::path::PathBuf;

/// Write y = gamma * (x - mean) / sqrt(var + epsilon) + beta for an x in a file
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("outputs").required(true).multiple(true)))]
pub(crate) struct Arguments {
    /// File of x: any number of dimensions, one at least.
    #[arg(long, value_name = "FILE")]
    x: PathBuf,

    #[command(flatten)]
    layer: LayerArguments,

    /// File to write y to, of the shape of x.
    #[arg(long, value_name = "FILE", group = "outputs")]
    y: Option<PathBuf>,

    /// File to write the means to, of the shape of the dimensions that are not normalized.
    #[arg(long, value_name = "FILE", group = "outputs")]
    mean: Option<PathBuf>,

    /// File to write 1 / sqrt(var + epsilon) to, of the shape of the dimensions that are not normalized.
    #[arg(long, value_name = "FILE", group = "outputs")]
    rstd: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Report> {
    let x = Input::open("--x", &arguments.x)?;
    let layer = LayerFiles::open(&arguments.layer, &x)?;
    let outputs = Outputs::plan([
        ("--y", arguments.y.as_deref()),
        ("--mean", arguments.mean.as_deref()),
        ("--rstd", arguments.rstd.as_deref()),
    ])?;
    let backend = Backend::chosen().map_err(explain)?.name();
    let outputs = match x.element {
        ElementType::F32 => forward::<f32>(x, layer, outputs)?,
        ElementType::F64 => forward::<f64>(x, layer, outputs)?,
    };
    Ok(Report { command: "forward", backend, outputs })
}

fn forward<T: FileElement>(x: Input, layer: LayerFiles, mut outputs: Outputs) -> anyhow::Result<Vec<Written>> {
    let progress = Progress::bytes("Reading", x.size + layer.size());
    let x: ArrayD<T> = x.read(&progress)?;
    let layer: Layer<T> = layer.read(&progress)?;
    drop(progress);

    let (y, cache) = layer.layer_norm().forward(x.view()).map_err(explain)?;
    let per_row = |statistic: &[T]| ArrayD::from_shape_vec(IxDyn(&layer.outer_shape), statistic.to_vec());
    outputs.write("--y", &y)?;
    outputs.write("--mean", &per_row(cache.mean())?)?;
    outputs.write("--rstd", &per_row(cache.rstd())?)?;
    outputs.commit()
}
