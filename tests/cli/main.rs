//! The command line, run as a user runs it: exit codes, output, files.
#![cfg(feature = "cli")]

mod bad_arguments;
mod bad_files;
mod check;
#[cfg(unix)]
mod faults;
mod files;
mod folder;
mod info;
mod modes;
mod output_files;
mod planted_bugs;
mod readme;
mod sweep;
