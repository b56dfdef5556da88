//! What goes wrong outside of the program: an interrupt, a full disk, a reader that goes away, a folder without permission.

use crate::folder::Folder;
use assert_cmd::cargo::cargo_bin;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Starts the program in a folder.
fn start(folder: &Folder, line: &str, stdout: impl Into<Stdio>) -> Child {
    Command::new(cargo_bin!("llm-operator"))
        .args(line.split_whitespace())
        .current_dir(folder.path("."))
        // A check that takes half a minute then takes it on any machine.
        .env("RAYON_NUM_THREADS", "1")
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The exit code, stdout and stderr.
fn end(child: Child) -> (Option<i32>, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A check of half a minute, interrupted after a second or two.
fn interrupted(line: &str) -> (String, Folder) {
    let folder = Folder::new();
    let child = start(&folder, line, Stdio::piped());
    std::thread::sleep(Duration::from_millis(2000));
    let start = Instant::now();
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let (code, stdout, stderr) = end(child);
    assert_eq!((code, &stderr[..]), (Some(130), ""), "{stdout}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    (stdout, folder)
}

#[test]
fn an_interrupt_ends_a_long_check_with_what_was_found_so_far() {
    let (report, folder) = interrupted("check --shape 8,1024,768 --mode local --heatmap map.svg");
    assert!(report.contains("verdict: inconclusive\n  stopped after "), "{report}");
    assert!(report.contains("to repeat: llm-operator check --shape 8,1024,768"), "{report}");
    assert!(folder.names().iter().all(|name| name == "map.svg"), "{:?}", folder.names());
    let (report, _) = interrupted("check --shape 300,700 --mode exhaustive --json");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["stopped"], &report["verdict"]), (&true.into(), &"inconclusive".into()));
    assert!(report["inputs"][0]["not_looked_at"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_check_that_is_not_interrupted_does_not_say_that_it_was() {
    let report = Folder::new().run("check --json").json(0);
    assert_eq!(report["stopped"], false);
}

/// Writes fail as on a full disk from the first kilobyte on: the limit of a file's size is that, and its signal is ignored.
#[test]
fn a_disk_that_is_full_is_an_error_and_the_old_file_stays_whole() {
    let folder = Folder::new();
    folder.zeros("x.npy", &[64, 64]).bytes("y.npy", b"before");
    let script = "trap '' XFSZ; ulimit -f 1; exec \"$0\" forward --x x.npy --mean mean.npy --y y.npy";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(cargo_bin!("llm-operator"))
        .current_dir(folder.path("."))
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.starts_with("error: --y (y.npy): cannot write the file"), "{message}");
    assert_eq!(std::fs::read(folder.path("y.npy")).unwrap(), b"before");
    assert_eq!(folder.names(), ["x.npy", "y.npy"]);
}

/// The files are complete; what cannot be told is that they are.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_stdout_is_an_error_after_whole_files() {
    let folder = Folder::new();
    folder.zeros("x.npy", &[64, 64]);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (code, _, message) = end(start(&folder, "forward --x x.npy --y y.npy", full));
    assert_eq!(code, Some(2));
    assert!(message.starts_with("error: stdout: cannot write the result"), "{message}");
    assert_eq!(folder.read::<f64>("y.npy").shape(), [64, 64]);
    assert_eq!(folder.names(), ["x.npy", "y.npy"]);
}

#[test]
fn a_reader_that_went_away_costs_no_file() {
    let folder = Folder::new();
    folder.zeros("x.npy", &[64, 64]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(end(start(&folder, "forward --x x.npy --y y.npy", writer)), (Some(0), String::new(), String::new()));
    assert_eq!(folder.read::<f64>("y.npy").shape(), [64, 64]);
}

/// In a folder that takes no files, nothing is computed first.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_takes_no_files_is_found_before_anything_is_computed() {
    let start = Instant::now();
    let message = Folder::new().run("check --shape 8,1024,768 --mode local --heatmap /proc/map.svg").refused();
    assert!(message.starts_with("error: --heatmap (/proc/map.svg): cannot create a file in /proc"), "{message}");
    // The check itself would take several times as long.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(File::open("/proc/map.svg").is_err());
}
