//! `sweep`: the difference between the gradients against the step.

use crate::case::Case;
use crate::layer::explain;
use crate::npy::{ElementType, FileElement};
use crate::outputs::Outputs;
use crate::progress;
use crate::report::Head;
use crate::subject::{Subject, SubjectArguments};
use anyhow::bail;
use clap::ValueEnum;
use llm_operator::Backend;
use llm_operator::grad_check::{self, Conclusion, GradCheck, Operation, Progress};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Show how the difference between a gradient and finite differences depends on their step
///
/// On the same inputs as check. Where a gradient is right, the difference falls with growing steps, as the rounding
/// noise does, and then rises, as the truncation does; a difference that stays is an error of the gradient.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    subject: SubjectArguments,

    /// The gradient to look at.
    #[arg(long, value_enum, default_value_t = Of::X)]
    of: Of,

    /// File to draw the curve to, as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// An input of LayerNorm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Of {
    X,
    Gamma,
    Beta,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    head: Head,
    #[serde(flatten)]
    sweep: grad_check::Sweep,
    /// What the curve says.
    words: String,
    /// The command that repeats the sweep.
    repeat: String,
}

impl Report {
    /// As that of a check: 0 where no error is seen, 1 where one is, 3 where nothing is.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.sweep.conclusion {
            Conclusion::Agrees => 0,
            Conclusion::Error => 1,
            Conclusion::Nothing => 3,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.sweep)?;
        writeln!(formatter, "to repeat: {}", self.repeat)
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Report> {
    let backend = Backend::chosen().map_err(explain)?.name();
    let subject = Subject::open(&arguments.subject)?;
    let mut outputs = Outputs::plan([("--svg", arguments.svg.as_deref())])?;
    let of = format!("{:?}", arguments.of).to_lowercase();
    let sweep = match subject.element() {
        ElementType::F32 => sweep::<f32>(&subject.case()?, &of)?,
        ElementType::F64 => sweep::<f64>(&subject.case()?, &of)?,
    };
    if arguments.svg.is_some() {
        match sweep.svg() {
            Ok(svg) => outputs.write_text("--svg", &svg)?,
            Err(error) => bail!("--svg: {error}"),
        }
    }
    outputs.commit()?;
    let repeat = format!("llm-operator sweep {} --of {of}", subject.repeat());
    let words = sweep.in_words();
    let head = Head { command: "sweep", source: subject.source(), gradients: backend };
    Ok(Report { head, sweep, words, repeat })
}

fn sweep<T: FileElement>(case: &Case<T>, of: &str) -> anyhow::Result<grad_check::Sweep> {
    let declared = Operation::<T>::inputs(&case.operation);
    let Some(input) = declared.iter().position(|input| input.name == of) else {
        let names: Vec<_> = declared.iter().map(|input| &input.name[..]).collect();
        bail!("--of: expected an input that this LayerNorm has ({}), found {of}", names.join(", "));
    };
    let progress = Arc::new(Progress::default());
    let check = GradCheck::new().progress(Arc::clone(&progress));
    Ok(progress::watch("Sweeping", &progress, || check.sweep(&case.operation, &case.inputs, &case.g, input))?)
}
