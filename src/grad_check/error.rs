//! Why a check could not be carried out.

use std::fmt;

/// Why there is no report: the arguments do not fit the operation, or the operation did not finish.
///
/// A gradient that is wrong is no error: it is a [`Report`](super::Report) whose verdict says so.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// A list of arrays is not as long as the operation's list of inputs.
    #[error("{argument}: expected {expected} arrays, one for each input of the operation, found {found}")]
    Count {
        /// The argument at fault.
        argument: &'static str,
        /// How many inputs the operation declares.
        expected: usize,
        /// How many arrays were given.
        found: usize,
    },
    /// An array does not have the shape that the operation declares.
    #[error("{name}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The array at fault.
        name: String,
        /// The shape that the operation declares.
        expected: Vec<usize>,
        /// The shape that it had.
        found: Vec<usize>,
    },
    /// What the operation declares about itself contradicts itself.
    #[error("{operation}: {problem}")]
    Declaration {
        /// The operation's name.
        operation: String,
        /// What does not fit.
        problem: String,
    },
    /// A setting of the checker makes no sense.
    #[error("{setting}: expected {expected}, found {found}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it was.
        found: String,
    },
    /// The operation returned an error.
    #[error("{call}: {message}")]
    Refused {
        /// Which call.
        call: Call,
        /// The operation's own message.
        message: String,
    },
    /// The operation panicked.
    #[error("{call}: panicked: {message}")]
    Panicked {
        /// Which call.
        call: Call,
        /// The panic's message.
        message: String,
    },
    /// The caller asked for the sweep to end, through [`Progress::stop`](super::Progress::stop); a check that is asked to
    /// ends with a report.
    #[error("stopped before the end, after {forwards} forwards")]
    Stopped {
        /// Forwards carried out until then.
        forwards: u64,
    },
}

/// Lets what was found count where the caller asked for the end: what was not looked at says so itself.
pub(super) fn unless_stopped(outcome: Result<(), CheckError>) -> Result<(), CheckError> {
    match outcome {
        Err(CheckError::Stopped { .. }) => Ok(()),
        outcome => outcome,
    }
}

impl CheckError {
    /// The exit code of a command that ends with this error: 1 where the operation is at fault, 2 where its caller is.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { .. } | Self::Panicked { .. } => 1,
            _ => 2,
        }
    }
}

/// One call of the operation, as an error message names it.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
pub struct Call {
    /// What was called.
    pub stage: Stage,
    /// The component that was perturbed, if one was.
    pub probe: Option<Probe>,
}

impl Call {
    /// A call on the inputs as they were given.
    pub(super) fn unperturbed(stage: Stage) -> Self {
        Self { stage, probe: None }
    }
}

/// One component of one input, and by how much it was moved.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize))]
pub struct Probe {
    /// The input's name.
    pub input: String,
    /// The component's index; where a whole column of rows was perturbed, the column alone, and nothing where each row was
    /// perturbed in a column of its own.
    pub index: Vec<usize>,
    /// What was added to it; of a call that takes several perturbed copies, the greatest.
    pub step: f64,
}

/// Where in a check something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Stage {
    /// The inputs, as given.
    Input,
    /// The upstream gradient, as given.
    Upstream,
    /// The operation's forward pass.
    Forward,
    /// The operation's backward pass.
    Backward,
    /// The gradient under test.
    Analytic,
    /// The difference quotient.
    Numeric,
    /// The step of a difference: too small to change the value it is added to.
    Step,
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Input => "input",
            Self::Upstream => "upstream gradient",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Analytic => "analytic gradient",
            Self::Numeric => "numeric gradient",
            Self::Step => "step",
        })
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.probe {
            None => write!(formatter, "{}", self.stage),
            Some(Probe { input, index, step }) => {
                write!(formatter, "{} with {input}{index:?} moved by {step:e}", self.stage)
            }
        }
    }
}
