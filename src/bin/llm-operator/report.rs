//! What goes to stdout: the same result for people and for programs.

use anyhow::Context;
use serde::Serialize;
use std::fmt::Display;
use std::io::{ErrorKind, Write};

/// What the result of a check and that of a sweep begin with.
#[derive(Debug, Serialize)]
pub(crate) struct Head {
    pub(crate) command: &'static str,
    /// Where the inputs come from: `generated` or `files`.
    pub(crate) source: &'static str,
    /// Where the gradients come from that were judged: the backend, or `files`.
    pub(crate) gradients: &'static str,
}

/// Prints a result, as JSON or as text, with a newline at the end.
///
/// A reader that has gone away (`llm-operator info | head -1`) is no error.
pub(crate) fn print<R: Serialize + Display>(result: &R, json: bool) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string_pretty(result)? } else { result.to_string() };
    line(text.trim_end()).map(|_| ())
}

/// Prints a line at once; says whether there is still somebody to read the next.
pub(crate) fn line(text: &str) -> anyhow::Result<bool> {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("stdout: cannot write the result"),
    }
}
