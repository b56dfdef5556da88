//! Any bytes as an input file of the command line: an error that names the flag and the file, or the very elements that
//! the bytes hold, and never more memory than a few times the file.
//!
//! The reader is compiled in by its path: it belongs to the binary, and to make it part of the library would make
//! the reading of files part of the library's promises. It asks for a file, so the bytes are written to one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use npy::{ElementType, FileElement, Input};
use progress::Progress;
use std::cell::RefCell;
use std::io::{Seek, Write};
use std::path::Path;
use tempfile::NamedTempFile;

#[path = "../../src/bin/llm-operator/npy.rs"]
#[allow(dead_code, reason = "the subcommands use more of it")]
mod npy;
#[path = "../../src/bin/llm-operator/progress.rs"]
#[allow(dead_code, reason = "the subcommands use more of it")]
mod progress;

thread_local! {
    static FILE: RefCell<NamedTempFile> = RefCell::new(NamedTempFile::new().expect("a temporary file"));
}

fuzz_target!(|bytes: &[u8]| FILE.with_borrow_mut(|file| {
    file.as_file().set_len(0).expect("an empty file");
    file.rewind().expect("a file");
    file.write_all(bytes).expect("room for the file");
    check(file.path(), bytes);
}));

fn check(path: &Path, bytes: &[u8]) {
    let start = format!("--x ({}): ", path.display());
    match Input::open("--x", path) {
        Ok(input) => match input.element {
            ElementType::F32 => read(&input, bytes, f32::from_le_bytes, f32::to_bits),
            ElementType::F64 => read(&input, bytes, f64::from_le_bytes, f64::to_bits),
        },
        Err(error) => {
            let message = format!("{error:#}");
            assert!(message.starts_with(&start), "the error does not name the file: {message}");
            assert!(message.len() < 40_000, "an error of {} bytes", message.len());
        }
    }
}

/// A header that was accepted is kept: the elements are the last bytes of the file, in the order in which it has them.
fn read<T: FileElement, B: PartialEq, const SIZE: usize>(
    input: &Input,
    bytes: &[u8],
    from_bytes: fn([u8; SIZE]) -> T,
    to_bits: fn(T) -> B,
) {
    let array = input.read::<T>(&Progress::bytes("reading", input.size)).expect("the header was accepted");
    let count: usize = input.shape.iter().product();
    assert_eq!(array.shape(), input.shape);
    assert_eq!(array.len(), count);
    let (elements, rest) = bytes[bytes.len() - count * SIZE..].as_chunks::<SIZE>();
    assert!(rest.is_empty());
    let found = array.as_slice_memory_order().expect("the file's order is the array's");
    for (&found, &expected) in found.iter().zip(elements) {
        assert!(to_bits(found) == to_bits(from_bytes(expected)), "an element has other bits");
    }
}
