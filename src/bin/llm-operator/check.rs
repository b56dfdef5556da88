//! `check`: the gradients of LayerNorm against finite differences.

use crate::case::Case;
use crate::interrupt::{INTERRUPTED, stoppable};
use crate::layer::explain;
use crate::npy::{ElementType, FileElement, Input};
use crate::outputs::Outputs;
use crate::progress;
use crate::report::Head;
use crate::settings::Settings;
use crate::subject::{Subject, SubjectArguments, quoted};
use clap::Parser;
use llm_operator::grad_check::{self, Given, GradCheck, InputReport, Progress, Verdict};
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
    #[command(flatten)]
    subject: SubjectArguments,

    #[command(flatten)]
    settings: Settings,

    /// File of a gradient of x, computed elsewhere, to judge.
    #[arg(long, value_name = "FILE", requires = "x")]
    dx: Option<PathBuf>,

    /// File of a gradient of gamma to judge; without --gamma, at gamma = 1.
    #[arg(long, value_name = "FILE", requires = "x")]
    dgamma: Option<PathBuf>,

    /// File of a gradient of beta to judge.
    #[arg(long, value_name = "FILE", requires = "x")]
    dbeta: Option<PathBuf>,

    /// File to draw the differences to, as SVG: of the gradient that fares worst.
    #[arg(long, value_name = "FILE")]
    heatmap: Option<PathBuf>,

    /// Say how long the check took, beside plain forwards of the whole input; these lines differ from run to run.
    #[arg(long)]
    time: bool,

    /// Print nothing: the exit code tells.
    #[arg(long)]
    pub(crate) quiet: bool,
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

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    head: Head,
    #[serde(flatten)]
    report: grad_check::Report,
}

impl Report {
    /// 0, 1 or 3 for the verdict, and 130 for a check that was interrupted.
    pub(crate) fn exit_code(&self) -> u8 {
        if self.report.stopped { INTERRUPTED } else { self.report.verdict.exit_code() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.report)
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Report> {
    let backend = Backend::chosen().map_err(explain)?.name();
    let subject = Subject::open(&arguments.subject)?;
    let theirs = Theirs::open(arguments, &subject)?;
    let mut outputs = Outputs::plan([("--heatmap", arguments.heatmap.as_deref())])?;
    let (check, how) = arguments.settings.check(&subject)?;
    let repeat = format!("llm-operator check {}{} {how}", subject.repeat(), theirs.repeat());
    let check = check.repeat(repeat);
    let check = if arguments.time { check.timed() } else { check };
    let report = match subject.element() {
        ElementType::F32 => judge::<f32>(check, &subject, &theirs, arguments.quiet)?,
        ElementType::F64 => judge::<f64>(check, &subject, &theirs, arguments.quiet)?,
    };
    // Where nothing was compared there is nothing to draw, and the verdict says so.
    if arguments.heatmap.is_some()
        && let Some(svg) = worst(&report).and_then(|input| input.svg().ok())
    {
        outputs.write_text("--heatmap", &svg)?;
    }
    outputs.commit()?;
    let gradients = if theirs.any() { "files" } else { backend };
    let head = Head { command: "check", source: subject.source(), gradients };
    Ok(Report { head, report })
}

/// The first of the inputs with the worst verdict.
fn worst(report: &grad_check::Report) -> Option<&InputReport> {
    report.inputs.iter().rev().max_by_key(|input| input.verdict)
}

/// The files of gradients that were computed elsewhere.
struct Theirs {
    dx: Option<Input>,
    dgamma: Option<Input>,
    dbeta: Option<Input>,
}

impl Theirs {
    fn open(arguments: &Arguments, subject: &Subject<'_>) -> anyhow::Result<Self> {
        let Some(files) = &subject.files else { return Ok(Self { dx: None, dgamma: None, dbeta: None }) };
        let x = &files.x;
        let dx = Input::open_optional("--dx", arguments.dx.as_deref())?;
        if let Some(dx) = &dx {
            dx.expect_type_of(x)?;
            dx.expect_shape_of(x)?;
        }
        let open_parameter = |flag, path: &Option<PathBuf>| -> anyhow::Result<Option<Input>> {
            let gradient = Input::open_optional(flag, path.as_deref())?;
            if let Some(gradient) = &gradient {
                gradient.expect_type_of(x)?;
                files.layer.expect_normalized_shape(gradient, x)?;
            }
            Ok(gradient)
        };
        let dgamma = open_parameter("--dgamma", &arguments.dgamma)?;
        let dbeta = open_parameter("--dbeta", &arguments.dbeta)?;
        Ok(Self { dx, dgamma, dbeta })
    }

    fn files(&self) -> impl Iterator<Item = &Input> {
        [&self.dx, &self.dgamma, &self.dbeta].into_iter().flatten()
    }

    fn any(&self) -> bool {
        self.files().next().is_some()
    }

    /// The arguments that name these files again.
    fn repeat(&self) -> String {
        self.files().map(|file| format!(" {} {}", file.source.flag, quoted(&file.source.path))).collect()
    }

    /// Reads one gradient for each input of the case, where there is a file of it.
    fn read<T: FileElement>(&self, case: &Case<T>) -> anyhow::Result<Vec<Option<Given>>> {
        let progress = progress::Progress::bytes("Reading", self.files().map(|input| input.size).sum());
        let read = |input: &Option<Input>| -> anyhow::Result<Option<Given>> {
            input.as_ref().map(|input| Ok(Given::new(&input.read::<T>(&progress)?))).transpose()
        };
        let mut given = vec![read(&self.dx)?];
        given.extend(case.has_gamma().then(|| read(&self.dgamma)).transpose()?);
        given.extend(case.has_beta().then(|| read(&self.dbeta)).transpose()?);
        Ok(given)
    }
}

/// Judges our gradients in `T`, or theirs in `f64`.
fn judge<T: FileElement>(
    check: GradCheck,
    subject: &Subject<'_>,
    theirs: &Theirs,
    quiet: bool,
) -> anyhow::Result<grad_check::Report> {
    let case = subject.case::<T>()?;
    if !theirs.any() {
        return compare(check, &case, None, quiet);
    }
    // A gamma that only stands for a missing one cannot be forgotten.
    let may_forget = case.has_gamma();
    let case = case.with_parameters(theirs.dgamma.is_some(), theirs.dbeta.is_some());
    let given = theirs.read(&case)?;
    let case = case.in_f64();
    let mut report = compare(check, &case, Some(&given), quiet)?;
    let wrong = |input: &InputReport| input.name == "x" && input.verdict == Verdict::Wrong;
    if may_forget
        && let Some(x) = report.inputs.iter().find(|input| wrong(input))
        && case.is_without_gamma(&x.components.analytic)
    {
        report.reasons.push("x: this is the gradient for gamma = 1: gamma is forgotten".to_owned());
    }
    Ok(report)
}

/// Runs a check of our gradients, or of those that are given, and shows how far it has come.
fn compare<T: Element>(
    check: GradCheck,
    case: &Case<T>,
    given: Option<&[Option<Given>]>,
    quiet: bool,
) -> anyhow::Result<grad_check::Report> {
    let progress = Arc::new(Progress::default());
    let check = check.progress(Arc::clone(&progress));
    let work = || match given {
        None => check.run(&case.operation, &case.inputs, &case.g),
        Some(given) => check.judge(&case.operation, &case.inputs, &case.g, given),
    };
    let work = || stoppable(&progress, work);
    Ok(if quiet { work()? } else { progress::watch("Checking", &progress, work)? })
}
