//! `check`: the gradients of LayerNorm against finite differences.

use crate::case::{Case, Generated, Inputs};
use crate::layer::{LayerArguments, LayerFiles, explain};
use crate::npy::{ElementType, FileElement, Input};
use crate::progress;
use clap::{Parser, ValueEnum};
use llm_operator::grad_check::{Given, GradCheck, Mode, Progress, Verdict};
use llm_operator::{Backend, Element};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Compare the gradients of LayerNorm with finite differences
///
/// Without arguments: `x = -rng.random((2, 4, 6))`, then `g = -rng.random((2, 4, 6))`, with
/// `rng = numpy.random.default_rng(1000)`, epsilon 1e-5 and a step of 1e-6.
///
/// With --x and --g: on the values of these files. With --dx, --dgamma or --dbeta, too, it is the gradients in those
/// files that are judged, instead of our own: in f64, whatever the type of the files.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Shape of x and g.
    #[arg(long, value_name = "N,...", default_value = "2,4,6", value_parser = parse_shape)]
    shape: Shape,

    /// Seed of x, g, gamma and beta, which are drawn in this order as NumPy's `default_rng` draws them.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    seed: u64,

    /// Type in which gradients and differences are computed.
    #[arg(long, value_enum, default_value_t = Dtype::F64)]
    dtype: Dtype,

    /// Check gamma and beta, too.
    #[arg(long)]
    affine: bool,

    /// Distribution of the values.
    #[arg(long, value_enum, default_value_t = Inputs::Uniform)]
    inputs: Inputs,

    /// Step of the differences, or `auto`: chosen for each element [default: 1e-6 without arguments, else auto].
    #[arg(long, value_name = "STEP", value_parser = parse_eps, allow_hyphen_values = true)]
    eps: Option<Eps>,

    /// File of x, instead of random values.
    #[arg(long, value_name = "FILE", requires = "g", conflicts_with_all = GENERATED)]
    x: Option<PathBuf>,

    /// File of the upstream gradient, of the shape and type of x.
    #[arg(long, value_name = "FILE", requires = "x")]
    g: Option<PathBuf>,

    #[command(flatten)]
    layer: LayerArguments,

    /// File of a gradient of x, computed elsewhere, to judge.
    #[arg(long, value_name = "FILE", requires = "x")]
    dx: Option<PathBuf>,

    /// File of a gradient of gamma to judge; without --gamma, at gamma = 1.
    #[arg(long, value_name = "FILE", requires = "x")]
    dgamma: Option<PathBuf>,

    /// File of a gradient of beta to judge.
    #[arg(long, value_name = "FILE", requires = "x")]
    dbeta: Option<PathBuf>,
}

impl Default for Arguments {
    /// As where none is given.
    fn default() -> Self {
        /// The arguments as a command of their own.
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            arguments: Arguments,
        }
        Alone::parse_from(["check"]).arguments
    }
}

/// The arguments that make random values.
const GENERATED: [&str; 5] = ["shape", "seed", "dtype", "affine", "inputs"];

/// The element types that can be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dtype {
    F32,
    F64,
}

/// A shape. (A type of its own, as `clap` takes a `Vec` for an argument that is given many times.)
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape(Vec<usize>);

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths: Vec<String> = self.0.iter().map(usize::to_string).collect();
        formatter.write_str(&lengths.join(","))
    }
}

fn parse_shape(text: &str) -> Result<Shape, String> {
    let lengths: Result<Vec<usize>, _> = text.split(',').map(|length| length.trim().parse()).collect();
    Ok(Shape(lengths.map_err(|_| "expected lengths with commas between them, such as 2,4,6".to_owned())?))
}

/// The step of the differences.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Eps {
    Auto,
    Fixed(f64),
}

impl fmt::Display for Eps {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Eps::Auto => formatter.write_str("auto"),
            Eps::Fixed(step) => write!(formatter, "{step:e}"),
        }
    }
}

fn parse_eps(text: &str) -> Result<Eps, String> {
    if text == "auto" {
        return Ok(Eps::Auto);
    }
    let step = text.parse().ok().filter(|&step: &f64| step.is_finite() && step > 0.0);
    step.map(Eps::Fixed).ok_or_else(|| "expected a finite number above zero, or auto".to_owned())
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    command: &'static str,
    /// Where the inputs come from: `generated` or `files`.
    source: &'static str,
    /// Where the gradients come from that were judged: the backend, or `files`.
    gradients: &'static str,
    /// The command that repeats the check, where its inputs were generated.
    repeat: Option<String>,
    #[serde(flatten)]
    report: llm_operator::grad_check::Report,
}

impl Report {
    /// What the exit code tells.
    pub(crate) fn verdict(&self) -> Verdict {
        self.report.verdict
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.report)?;
        match &self.repeat {
            Some(repeat) => writeln!(formatter, "repeat: {repeat}"),
            None => Ok(()),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Report> {
    let backend = Backend::chosen().map_err(explain)?.name();
    match (&arguments.x, &arguments.g) {
        (Some(x), Some(g)) => check_files(arguments, &Input::open("--x", x)?, &Input::open("--g", g)?, backend),
        _ => check_generated(arguments, backend),
    }
}

/// The case without arguments, which is the notebook's own.
fn is_notebook(arguments: &Arguments) -> bool {
    arguments.shape.0 == [2, 4, 6]
        && arguments.seed == 1000
        && arguments.dtype == Dtype::F64
        && arguments.inputs == Inputs::Uniform
        && !arguments.affine
        && arguments.layer.norm.epsilon == 1e-5
        && arguments.layer.norm.normalized_dims.unwrap_or(1) == 1
}

fn check_generated(arguments: &Arguments, backend: &'static str) -> anyhow::Result<Report> {
    let Arguments { shape, seed, affine, inputs, .. } = arguments;
    let norm = &arguments.layer.norm;
    let notebook = is_notebook(arguments);
    let eps = arguments.eps.unwrap_or(if notebook { Eps::Fixed(1e-6) } else { Eps::Auto });
    let mut check = check(eps);
    if notebook {
        // One element at a time, as the notebook does.
        check = check.mode(Mode::Exhaustive);
    }
    let generated = Generated {
        shape: &shape.0,
        seed: *seed,
        inputs: *inputs,
        affine: *affine,
        normalized_dims: norm.normalized_dims.unwrap_or(1),
        epsilon: norm.epsilon,
    };
    let report = match arguments.dtype {
        Dtype::F32 => judge::<f32>(check, &generated.draw()?, None)?,
        Dtype::F64 => judge::<f64>(check, &generated.draw()?, None)?,
    };
    let name = |value: &dyn fmt::Debug| format!("{value:?}").to_lowercase();
    let repeat = format!(
        "llm-operator check --shape {shape} --seed {seed} --dtype {} --inputs {}{} --normalized-dims {} \
         --epsilon {:e} --eps {eps}",
        name(&arguments.dtype),
        name(inputs),
        if *affine { " --affine" } else { "" },
        generated.normalized_dims,
        norm.epsilon
    );
    Ok(Report { command: "check", source: "generated", gradients: backend, repeat: Some(repeat), report })
}

fn check_files(arguments: &Arguments, x: &Input, g: &Input, backend: &'static str) -> anyhow::Result<Report> {
    g.expect_type_of(x)?;
    g.expect_shape_of(x)?;
    let layer = LayerFiles::open(&arguments.layer, x)?;
    let dx = Input::open_optional("--dx", arguments.dx.as_deref())?;
    if let Some(dx) = &dx {
        dx.expect_type_of(x)?;
        dx.expect_shape_of(x)?;
    }
    let open_parameter = |flag, path: &Option<PathBuf>| -> anyhow::Result<Option<Input>> {
        let gradient = Input::open_optional(flag, path.as_deref())?;
        if let Some(gradient) = &gradient {
            gradient.expect_type_of(x)?;
            layer.expect_normalized_shape(gradient, x)?;
        }
        Ok(gradient)
    };
    let dgamma = open_parameter("--dgamma", &arguments.dgamma)?;
    let dbeta = open_parameter("--dbeta", &arguments.dbeta)?;
    let theirs = TheirFiles { dx, dgamma, dbeta };
    let check = check(arguments.eps.unwrap_or(Eps::Auto));
    let gradients = if theirs.any() { "files" } else { backend };
    let report = match x.element {
        ElementType::F32 => judge_files::<f32>(check, x, g, &layer, theirs)?,
        ElementType::F64 => judge_files::<f64>(check, x, g, &layer, theirs)?,
    };
    Ok(Report { command: "check", source: "files", gradients, repeat: None, report })
}

/// The files of gradients that were computed elsewhere.
struct TheirFiles {
    dx: Option<Input>,
    dgamma: Option<Input>,
    dbeta: Option<Input>,
}

impl TheirFiles {
    fn any(&self) -> bool {
        [&self.dx, &self.dgamma, &self.dbeta].into_iter().any(Option::is_some)
    }
}

/// Reads files of type `T`, and judges our gradients in `T` or theirs in `f64`.
fn judge_files<T: FileElement>(
    check: GradCheck,
    x: &Input,
    g: &Input,
    layer: &LayerFiles,
    theirs: TheirFiles,
) -> anyhow::Result<llm_operator::grad_check::Report> {
    let inputs = [Some(x), Some(g), layer.gamma.as_ref(), layer.beta.as_ref()].into_iter().flatten();
    let sizes = inputs.chain([&theirs.dx, &theirs.dgamma, &theirs.dbeta].into_iter().flatten());
    let progress = progress::Progress::bytes("Reading", sizes.map(|input| input.size).sum());
    let case: Case<T> = Case::read(x, g, layer, &progress)?;
    if !theirs.any() {
        drop(progress);
        return judge(check, &case, None);
    }
    let case = case.with_parameters(theirs.dgamma.is_some(), theirs.dbeta.is_some());
    let read = |input: &Option<Input>| -> anyhow::Result<Option<Given>> {
        input.as_ref().map(|input| Ok(Given::new(&input.read::<T>(&progress)?))).transpose()
    };
    let mut given = vec![read(&theirs.dx)?];
    given.extend(case.has_gamma().then(|| read(&theirs.dgamma)).transpose()?);
    given.extend(case.has_beta().then(|| read(&theirs.dbeta)).transpose()?);
    drop(progress);
    judge(check, &case.in_f64(), Some(&given))
}

/// A check with this step.
fn check(eps: Eps) -> GradCheck {
    match eps {
        Eps::Auto => GradCheck::new(),
        Eps::Fixed(eps) => GradCheck::new().eps(eps),
    }
}

/// Runs a check of our gradients, or of those that are given.
fn judge<T: Element>(
    check: GradCheck,
    case: &Case<T>,
    given: Option<&[Option<Given>]>,
) -> anyhow::Result<llm_operator::grad_check::Report> {
    let progress = Arc::new(Progress::default());
    let check = check.progress(Arc::clone(&progress));
    Ok(progress::watch("Checking", &progress, || match given {
        None => check.run(&case.operation, &case.inputs, &case.g),
        Some(given) => check.judge(&case.operation, &case.inputs, &case.g, given),
    })?)
}
