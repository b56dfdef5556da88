//! A folder of files in which the program is run.

use assert_cmd::cargo::cargo_bin_cmd;
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::{ReadableElement, WritableElement, read_npy, write_npy};
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// The output of a run that went well, and that had nothing to complain about.
    pub(crate) fn passed(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "stdout: {}", self.stdout);
        self.stdout
    }

    /// The message of a run that was refused, which prints nothing else.
    pub(crate) fn refused(self) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (2, ""), "stderr: {}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self.stderr
    }

    /// The JSON of a run of this exit code.
    pub(crate) fn json(self, code: i32) -> Value {
        assert_eq!((self.code, self.stderr.as_str()), (code, ""), "stdout: {}", self.stdout);
        serde_json::from_str(&self.stdout).expect("stdout is one JSON value")
    }
}

/// A folder that goes away at the end of a test.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the program in this folder; `line` is its arguments, with spaces between them.
    pub(crate) fn run(&self, line: &str) -> Run {
        self.run_with(line, "portable")
    }

    /// The same with another value of `LLM_OPERATOR_BACKEND`.
    pub(crate) fn run_with(&self, line: &str, backend: &str) -> Run {
        let output = cargo_bin_cmd!("llm-operator")
            .args(line.split_whitespace())
            .current_dir(self.0.path())
            .env("LLM_OPERATOR_BACKEND", backend)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().expect("the program was not killed by a signal");
        Run { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Writes an array in C order.
    pub(crate) fn array<T: WritableElement + Copy>(&self, name: &str, shape: &[usize], elements: &[T]) -> &Self {
        let array = ArrayD::from_shape_vec(IxDyn(shape), elements.to_vec()).unwrap();
        write_npy(self.path(name), &array).unwrap();
        self
    }

    /// Writes an array of zeros.
    pub(crate) fn zeros(&self, name: &str, shape: &[usize]) -> &Self {
        self.array(name, shape, &vec![0.0; shape.iter().product()])
    }

    /// Writes a file as it is.
    pub(crate) fn bytes(&self, name: &str, bytes: &[u8]) -> &Self {
        std::fs::write(self.path(name), bytes).unwrap();
        self
    }

    /// Reads an array, which must be in C order.
    pub(crate) fn read<T: ReadableElement>(&self, name: &str) -> ArrayD<T> {
        let array: ArrayD<T> = read_npy(self.path(name)).unwrap();
        assert!(array.is_standard_layout(), "{name} is in C order");
        array
    }

    /// The names of all files, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The bytes of a `.npy` file of a version of the format: the header as it is given, padded as the format asks.
pub(crate) fn npy(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([version, 0]);
    let length_bytes = if version == 1 { 2 } else { 4 };
    let unpadded = bytes.len() + length_bytes + header.len() + 1;
    let padded = format!("{header}{}\n", " ".repeat(unpadded.next_multiple_of(64) - unpadded));
    bytes.extend(&(padded.len() as u32).to_le_bytes()[..length_bytes]);
    bytes.extend(padded.as_bytes());
    bytes.extend(data);
    bytes
}

/// Little-endian f64s.
pub(crate) fn f64_bytes(elements: &[f64]) -> Vec<u8> {
    elements.iter().flat_map(|element| element.to_le_bytes()).collect()
}

/// Elements within `tolerance` of what is expected, and of the expected shape.
pub(crate) fn assert_close<T: Copy + Into<f64>>(found: &ArrayD<T>, shape: &[usize], expected: &[f64], tolerance: f64) {
    assert_eq!(found.shape(), shape);
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let found: f64 = (*found).into();
        assert!((found - expected).abs() <= tolerance, "element {index}: expected {expected}, found {found}");
    }
}
