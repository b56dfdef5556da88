//! `info`, the help, and what stdout may be.

use crate::folder::Folder;
use assert_cmd::cargo::cargo_bin;
use std::process::{Command, Stdio};

#[test]
fn info_names_the_backend_that_is_used() {
    let stdout = Folder::new().run("info").passed();
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], concat!("llm-operator ", env!("CARGO_PKG_VERSION")));
    assert!(lines[1].starts_with("backends: portable") && lines[1].ends_with("(used: portable)"), "{stdout}");
    assert!(lines[2].starts_with("threads: ") && lines[3].starts_with("caches: "), "{stdout}");
}

#[test]
fn info_as_json_agrees_with_the_library() {
    let report = Folder::new().run("info --json").json(0);
    let backends: Vec<&str> = llm_operator::Backend::available().iter().map(|backend| backend.name()).collect();
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["backends"], serde_json::json!(backends));
    assert_eq!(report["backend"], "portable");
    assert!(report["threads"]["used"].as_u64().unwrap() >= 1);
    for cache in report["caches"].as_array().into_iter().flatten() {
        assert!(cache["bytes"].as_u64().unwrap() >= 1024 && cache["level"].as_u64().unwrap() >= 1, "{cache}");
    }
}

#[test]
fn a_backend_that_is_not_there_is_refused_by_every_command() {
    let folder = Folder::new();
    folder.zeros("x.npy", &[2, 3]);
    for line in ["info", "forward --x x.npy --y y.npy", "backward --x x.npy --g x.npy --dx dx.npy"] {
        let message = folder.run_with(line, "sse9").refused();
        let start = "error: the environment variable LLM_OPERATOR_BACKEND: expected one of portable";
        assert!(message.starts_with(start) && message.ends_with("found \"sse9\"\n"), "{message}");
    }
    assert_eq!(folder.names(), ["x.npy"]);
}

#[test]
fn the_help_tells_files_defaults_and_exit_codes() {
    let help = Folder::new().run("--help").passed();
    assert!(help.contains("little-endian f32 or f64, in C or Fortran order"), "{help}");
    assert!(help.contains("1 a gradient is wrong, 2 bad usage or input, 3 nothing could be certified"), "{help}");
    let help = Folder::new().run("backward --help").passed();
    assert!(help.contains("[default: as many as gamma or beta has, else 1]"), "{help}");
    assert!(help.contains("[default: 1e-5]"), "{help}");
}

/// The other end of the pipe is closed before the program writes.
#[test]
fn a_broken_pipe_is_no_error() {
    let mut child = Command::new(cargo_bin!("llm-operator"))
        .args(["info", "--json"])
        .env("LLM_OPERATOR_BACKEND", "portable")
        .stdout(closed_pipe())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_stdout_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(cargo_bin!("llm-operator")).arg("info").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: stdout: cannot write the result"));
}
