//! The command line of `llm_operator`: check a gradient, run LayerNorm on files, look at the machine.
//!
//! One file a subcommand: it holds the arguments (as the help shows them), what is done with them, and what is printed.
//! What subcommands share stands beside them: [`layer`] (the arguments that make a LayerNorm), [`case`] (what a check
//! is run on), [`subject`] and [`settings`] (the arguments of a check), [`npy`] (input files), [`outputs`] (output
//! files), [`progress`], [`report`] (stdout).
//!
//! A new subcommand is a file, a `mod` line, and a variant of [`Command`].

mod backward;
mod bench;
mod case;
mod check;
mod forward;
mod info;
mod interrupt;
mod layer;
mod npy;
mod outputs;
mod progress;
mod report;
mod settings;
mod subject;
mod sweep;

use clap::{Parser, Subcommand};
use llm_operator::grad_check::CheckError;
use std::process::ExitCode;

/// LayerNorm on the CPU, forward and backward, and a finite-difference check of its gradients.
///
/// Without a subcommand: check, without arguments.
#[derive(Debug, Parser)]
#[command(name = "llm-operator", version, propagate_version = true, after_help = EXIT_CODES)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,

    /// Print the result as JSON.
    #[arg(long, global = true)]
    json: bool,
}

/// The end of `--help`.
const EXIT_CODES: &str = "\
Exit codes: 0 done (check, sweep: every gradient is right), 1 a gradient is wrong, 2 bad usage or input, \
3 nothing could be certified, 130 interrupted (check: the report is on what was found until then).

Files are NumPy's .npy, of little-endian f32 or f64, in C or Fortran order; outputs are in C order.";

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Arguments),
    Sweep(sweep::Arguments),
    Forward(forward::Arguments),
    Backward(backward::Arguments),
    Info(info::Arguments),
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    match run(CommandLine::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(error.downcast_ref().map_or(BAD_INPUT, CheckError::exit_code))
        }
    }
}

/// The exit code of bad usage or input.
const BAD_INPUT: u8 = 2;

/// Runs the subcommand and gives the exit code.
fn run(command_line: CommandLine) -> anyhow::Result<u8> {
    let json = command_line.json;
    match command_line.command {
        Some(Command::Check(arguments)) => return check(&arguments, json),
        Some(Command::Sweep(arguments)) => {
            let report = sweep::run(&arguments)?;
            report::print(&report, json)?;
            return Ok(report.exit_code());
        }
        Some(Command::Forward(arguments)) => report::print(&forward::run(&arguments)?, json)?,
        Some(Command::Backward(arguments)) => report::print(&backward::run(&arguments)?, json)?,
        Some(Command::Info(arguments)) => report::print(&info::run(&arguments)?, json)?,
        Some(Command::Bench(arguments)) => arguments.run(json)?,
        None => return check(&check::Arguments::default(), json),
    }
    Ok(0)
}

fn check(arguments: &check::Arguments, json: bool) -> anyhow::Result<u8> {
    let report = check::run(arguments)?;
    if !arguments.quiet {
        report::print(&report, json)?;
    }
    Ok(report.exit_code())
}
