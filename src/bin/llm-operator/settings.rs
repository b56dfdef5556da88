//! How a check is made: the mode, the step, what it may cost and what it accepts.

use crate::subject::Subject;
use anyhow::bail;
use clap::ValueEnum;
use llm_operator::grad_check::{Budget, GradCheck, Mode};
use std::fmt;

/// The arguments that say how gradients are checked.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Settings {
    /// How the differences are taken [default: exhaustive without arguments, else auto].
    #[arg(long, value_enum)]
    mode: Option<ModeName>,

    /// Step of the differences, or `auto`: chosen for each element [default: 1e-6 without arguments, else auto].
    #[arg(long, value_name = "STEP", value_parser = parse_eps, allow_hyphen_values = true)]
    eps: Option<Eps>,

    /// What the check may cost: seconds, as 10s, or a number of forwards; beyond it, a sample and random directions.
    #[arg(long, value_name = "COST", value_parser = parse_budget, allow_hyphen_values = true)]
    budget: Option<Cost>,

    /// Accept this error in each element of a gradient [default: 0].
    #[arg(long, value_name = "NUMBER", value_parser = parse_tolerance, allow_hyphen_values = true)]
    atol: Option<f64>,

    /// Accept this error relative to the element or its row [default: 1e-6 for f64, 1e-3 for f32].
    #[arg(long, value_name = "NUMBER", value_parser = parse_tolerance, allow_hyphen_values = true)]
    rtol: Option<f64>,
}

/// The modes, as the command line names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeName {
    /// Whichever sees every element at the least cost; within a budget, a sample of them and random directions.
    Auto,
    /// One element at a time.
    Exhaustive,
    /// One column of all rows at a time, after it was verified that rows are independent.
    Local,
    /// Random directions of each whole input.
    Directional,
    /// Each element, by the integral of the gradient along a line through it: for low precision.
    Line,
}

impl ModeName {
    fn mode(self) -> Mode {
        match self {
            Self::Auto => Mode::Auto,
            Self::Exhaustive => Mode::Exhaustive,
            Self::Local => Mode::Local,
            Self::Directional => Mode::Directional,
            Self::Line => Mode::Line,
        }
    }
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

/// A budget that can be written down again.
#[derive(Clone, Copy, Debug)]
struct Cost(Budget);

impl fmt::Display for Cost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Budget::Seconds(seconds) => write!(formatter, "{seconds}s"),
            Budget::Forwards(forwards) => write!(formatter, "{forwards}"),
            other => write!(formatter, "{other:?}"),
        }
    }
}

fn parse_budget(text: &str) -> Result<Cost, String> {
    let budget = match text.strip_suffix('s') {
        Some(seconds) => {
            let seconds = seconds.parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds > 0.0);
            seconds.map(Budget::Seconds)
        }
        None => text.parse().ok().filter(|&forwards| forwards > 0).map(Budget::Forwards),
    };
    budget.map(Cost).ok_or_else(|| "expected seconds above zero, as 10s, or a number of forwards above zero".to_owned())
}

fn parse_tolerance(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "expected a finite number that is zero or more".to_owned())
}

impl Settings {
    /// The check that is asked for, and the arguments that ask for it again.
    pub(crate) fn check(&self, subject: &Subject<'_>) -> anyhow::Result<(GradCheck, String)> {
        // The notebook takes one element at a time.
        let as_notebook = subject.is_notebook() && self.budget.is_none();
        let mode = self.mode.unwrap_or(if as_notebook { ModeName::Exhaustive } else { ModeName::Auto });
        let as_notebook = as_notebook && mode == ModeName::Exhaustive;
        let eps = self.eps.unwrap_or(if as_notebook { Eps::Fixed(1e-6) } else { Eps::Auto });
        let mode_name = format!("{mode:?}").to_lowercase();
        if self.budget.is_some() && mode != ModeName::Auto {
            bail!("--budget: expected --mode auto, which alone can do with less, found --mode {mode_name}");
        }
        if mode == ModeName::Line && eps != Eps::Auto {
            bail!("--eps: expected auto with --mode line, which has no differences, found {eps}");
        }
        let mut check = GradCheck::new().mode(mode.mode());
        let mut repeat = format!("--mode {mode_name} --eps {eps}");
        if let Eps::Fixed(eps) = eps {
            check = check.eps(eps);
        }
        if let Some(cost) = self.budget {
            check = check.budget(cost.0);
            repeat += &format!(" --budget {cost}");
        }
        if let Some(atol) = self.atol {
            check = check.atol(atol);
            repeat += &format!(" --atol {atol:e}");
        }
        if let Some(rtol) = self.rtol {
            check = check.rtol(rtol);
            repeat += &format!(" --rtol {rtol:e}");
        }
        Ok((check, repeat))
    }
}
