//! What goes to stdout: the same result for people and for programs.

use anyhow::Context;
use serde::Serialize;
use std::fmt::Display;
use std::io::{ErrorKind, Write};

/// Prints a result, as JSON or as text, with a newline at the end.
///
/// A reader that has gone away (`llm-operator info | head -1`) is no error.
pub(crate) fn print<R: Serialize + Display>(result: &R, json: bool) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string_pretty(result)? } else { result.to_string() };
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("stdout: cannot write the result"),
    }
}
