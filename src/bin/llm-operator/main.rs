//! The command line of `llm_operator`: check a gradient, run LayerNorm on files, look at the machine.
//!
//! One file a subcommand: it holds the arguments (as the help shows them), what is done with them, and what is
//! printed. What subcommands share stands beside them: [`layer`] (the arguments that make a LayerNorm), [`npy`]
//! (input files), [`outputs`] (output files), [`progress`], [`report`] (stdout).
//!
//! A new subcommand is a file, a `mod` line, and a variant of [`Command`].

mod backward;
mod bench;
mod forward;
mod info;
mod layer;
mod npy;
mod outputs;
mod progress;
mod report;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// LayerNorm on the CPU, forward and backward, and a finite-difference check of its gradients.
#[derive(Debug, Parser)]
#[command(name = "llm-operator", version, propagate_version = true, after_help = EXIT_CODES)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,

    /// Print the result as JSON.
    #[arg(long, global = true)]
    json: bool,
}

/// The end of `--help`.
const EXIT_CODES: &str = "\
Exit codes: 0 done (check: every gradient is right), 1 a gradient is wrong, 2 bad usage or input, \
3 the check was inconclusive.

Files are NumPy's .npy, of little-endian f32 or f64, in C or Fortran order; outputs are in C order.";

#[derive(Debug, Subcommand)]
enum Command {
    Forward(forward::Arguments),
    Backward(backward::Arguments),
    Info(info::Arguments),
    Bench(bench::Bench),
}

/// What the exit code tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// What was asked for is done, and no gradient is wrong.
    Passed,
}

impl Outcome {
    fn exit_code(self) -> ExitCode {
        match self {
            Outcome::Passed => ExitCode::SUCCESS,
        }
    }
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    match run(command_line) {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command_line: CommandLine) -> anyhow::Result<Outcome> {
    let json = command_line.json;
    match command_line.command {
        Command::Forward(arguments) => report::print(&forward::run(&arguments)?, json)?,
        Command::Backward(arguments) => report::print(&backward::run(&arguments)?, json)?,
        Command::Info(arguments) => report::print(&info::run(&arguments)?, json)?,
        Command::Bench(arguments) => arguments.run()?,
    }
    Ok(Outcome::Passed)
}
