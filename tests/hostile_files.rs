//! Files that claim more than they hold cost no more memory than they hold.
#![cfg(target_os = "linux")]

use nix::sys::resource::{UsageWho, getrusage};
use std::path::Path;
use std::process::Command;

/// The peak memory of the largest child so far, in KiB.
fn peak() -> i64 {
    getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss()
}

/// Runs the program in a folder with 120 MB of addresses, used or not; gives the exit code and stderr.
fn run(folder: &Path, line: &str) -> (Option<i32>, String) {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 120000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_llm-operator")]);
    let output = command.args(line.split_whitespace()).current_dir(folder).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A `.npy` file of version 1.
fn npy(descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// One test: the peak is that of all children of this process.
#[test]
fn a_file_costs_no_more_memory_than_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let write = |bytes: &[u8]| std::fs::write(folder.path().join("x.npy"), bytes).unwrap();
    // What the program takes at all: a small file.
    write(&npy("<f8", "False", "(2, 2)", &[0; 32]));
    for _ in 0..3 {
        let (code, message) = run(folder.path(), "forward --x x.npy --y y.npy");
        assert_eq!(code, Some(0), "{message}");
    }
    let base = peak();
    assert!(base > 500, "{base} KiB");

    // 64 bytes that claim 128 MiB, 8 GiB, 2^60 elements and more; and a header that claims 4 GiB for itself.
    let mut files = Vec::new();
    for shape in ["(16777216,)", "(4096, 4096)", "(1073741824,)", "(1152921504606846976,)", "(4294967296, 4294967296)"]
    {
        for order in ["False", "True"] {
            files.push(npy("<f8", order, shape, &[0; 64]));
            files.push(npy("<f4", order, shape, &[0; 64]));
        }
    }
    files.push([&b"\x93NUMPY\x02\x00\xff\xff\xff\xff"[..], &[b' '; 64]].concat());
    // A right header, and of the 128 MiB that it claims all but one byte: a hole in the file, as none of it is read. (No
    // such array is made here: a child begins with the memory of this process.)
    files.push(npy("<f8", "True", "(4096, 4096)", &[]));
    let last = files.len() - 1;
    for (number, file) in files.into_iter().enumerate() {
        write(&file);
        if number == last {
            let open = std::fs::OpenOptions::new().write(true).open(folder.path().join("x.npy")).unwrap();
            open.set_len(file.len() as u64 + (128 << 20) - 1).unwrap();
        }
        for line in
            ["forward --x x.npy --y y.npy", "check --x x.npy --g x.npy", "backward --x x.npy --g x.npy --dx d.npy"]
        {
            let (code, message) = run(folder.path(), line);
            assert_eq!(code, Some(2), "{line}: {message}");
            assert!(message.starts_with("error: --x (x.npy): expected ") && message.lines().count() == 1, "{message}");
            // Nothing of the data is read; half a MiB for the chance of where the program is loaded.
            let grown = peak() - base;
            assert!(grown <= 512, "{line}: {grown} KiB for file {number}");
        }
    }
}
