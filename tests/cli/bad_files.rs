//! Files that must be refused, with a message that names the flag, the file, what was expected and what was found.

use crate::folder::{Folder, f64_bytes, npy};

/// What `forward` says of a file of these bytes.
fn message(bytes: &[u8]) -> String {
    let folder = Folder::new();
    folder.bytes("x.npy", bytes);
    let message = folder.run("forward --x x.npy --y y.npy").refused();
    assert_eq!(folder.names(), ["x.npy"], "nothing is written");
    let message = message.strip_prefix("error: --x (x.npy): ").expect("the flag and the file come first");
    message.strip_suffix('\n').expect("a whole line").to_owned()
}

fn header(descr: &str, shape: &str) -> String {
    format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")
}

#[test]
fn elements_other_than_little_endian_floats_are_refused() {
    for version in [1, 2, 3] {
        for descr in ["'>f4'", "'>f8'"] {
            let expected = format!("expected little-endian f32 or f64 ('<f4' or '<f8'), found big-endian {descr}");
            assert_eq!(message(&npy(version, &header(descr, "(1,)"), &[0; 8])), expected);
        }
        for descr in [
            "'<f2'", "'<f16'", "'<i8'", "'<u4'", "'|i1'", "'|b1'", "'<c8'", "'<c16'", "'<U2'", "'|S8'", "'|V8'",
            "'|O'", "'f8'", "'=f8'", "'|f8'", "'<F8'", "'<f8 '", "''", "None", "True", "8",
        ] {
            let expected = format!("expected elements of f32 or f64 ('<f4' or '<f8'), found {descr}");
            assert_eq!(message(&npy(version, &header(descr, "(1,)"), &[0; 8])), expected);
        }
    }
    let nested = "expected elements of f32 or f64, found a header with nested values";
    for descr in ["[('a', '<f4'), ('b', '<f4')]", "('<f4', (2,))", "'<M8[s]'", "'<m8[ns]'"] {
        assert_eq!(message(&npy(1, &header(descr, "(1,)"), &[0; 8])), nested);
    }
}

#[test]
fn a_file_of_another_format_is_refused() {
    let expected = "expected a .npy file, which starts with the bytes \\x93NUMPY and a version, found something else";
    for bytes in [&b""[..], b"\x93NUM", b"\x93NUMPY", b"PK\x03\x04 an archive of arrays", &[0; 300]] {
        assert_eq!(message(bytes), expected);
    }
    let mut future = npy(1, &header("'<f8'", "(1,)"), &[0; 8]);
    future[6] = 4;
    assert_eq!(message(&future), "expected version 1.0, 2.0 or 3.0 of the .npy format, found 4.0");
}

#[test]
fn a_file_that_ends_early_is_refused_wherever_it_ends() {
    for version in [1, 2, 3] {
        let whole = npy(version, &header("'<f8'", "(2, 3)"), &f64_bytes(&[1.0; 6]));
        for length in 0..whole.len() {
            let message = message(&whole[..length]);
            assert!(message.starts_with("expected "), "{length}: {message}");
            let found = if length < 8 { "found something else" } else { "the file is truncated" };
            assert!(message.ends_with(found), "{length}: {message}");
        }
    }
    let short = npy(1, &header("'<f8'", "(2, 3)"), &f64_bytes(&[1.0; 5]));
    let expected = "expected 48 bytes of data after the header, for f64 and shape [2, 3], found 40: \
                    the file is truncated";
    assert_eq!(message(&short), expected);
}

#[test]
fn trailing_bytes_are_refused() {
    let long = npy(1, &header("'<f4'", "(2,)"), &[0; 9]);
    let expected = "expected 8 bytes of data after the header, for f32 and shape [2], found 9: \
                    bytes trail after the data";
    assert_eq!(message(&long), expected);
    let expected = "expected 0 bytes of data after the header, for f32 and shape [0, 3], found 1: \
                    bytes trail after the data";
    assert_eq!(message(&npy(1, &header("'<f4'", "(0, 3)"), &[0; 1])), expected);
}

#[test]
fn a_shape_beyond_memory_is_refused_before_anything_is_allocated() {
    let huge = npy(1, &header("'<f8'", "(1152921504606846976,)"), &[0; 8]);
    assert!(message(&huge).starts_with("expected an array that fits in memory, found a header that claims shape"));
    // 2^50 bytes fit in no memory, but in an isize: the size of the file tells.
    let large = npy(2, &header("'<f8'", "(140737488355328,)"), &[0; 8]);
    assert!(message(&large).starts_with("expected 1125899906842624 bytes of data after the header"));
    for shape in [
        "(4294967296, 4294967296)",
        "(18446744073709551615, 2)",
        "(0, 4611686018427387904, 4611686018427387904)",
        "(9223372036854775807, 0)",
    ] {
        let message = message(&npy(3, &header("'<f4'", shape), &[]));
        assert!(message.starts_with("expected an array that fits in memory"), "{shape}: {message}");
    }
}

#[test]
fn a_shape_that_is_none_is_refused() {
    for shape in ["(-1,)", "(2, -3)", "(1.5,)", "(99999999999999999999,)", "('2',)", "6", "[6]", "None", "(2+1j,)"] {
        let message = message(&npy(1, &header("'<f8'", shape), &[0; 48]));
        assert!(message.starts_with("expected a .npy header: "), "{shape}: {message}");
    }
}

#[test]
fn a_header_that_is_no_dictionary_of_the_three_keys_is_refused() {
    for header in [
        "{}",
        "{'descr': '<f8', 'fortran_order': False}",
        "{'descr': '<f8', 'shape': (6,)}",
        "{'fortran_order': False, 'shape': (6,)}",
        "{'descr': '<f8', 'fortran_order': 0, 'shape': (6,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (6,), 'more': 1}",
        "{'descr': '<f8\\u0031', 'fortran_order': False, 'shape': (6,), '\\Ndash': 1}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (\u{e9},)}",
    ] {
        let message = message(&npy(3, header, &[0; 48]));
        assert!(message.starts_with("expected a .npy header: "), "{header}: {message}");
    }
}

#[test]
fn a_header_that_is_no_python_is_refused_in_one_line() {
    for header in ["", "not python", "{'descr': '<f8', 'fortran_order': False, 'shape': (6,)", "{'descr': \u{e9}}"] {
        assert_eq!(message(&npy(3, header, &[0; 48])), "expected a .npy header: it is no Python dictionary");
    }
    let found = "non-ascii in array format string; this is not supported in .npy format versions 1.0 and 2.0";
    assert_eq!(message(&npy(1, "{'\u{e9}': 1}", &[0; 48])), format!("expected a .npy header: {found}"));
}

/// A header may claim 4 GiB for itself, and a parser may need a stack as deep as its brackets.
#[test]
fn a_header_without_end_is_refused() {
    let mut claims = b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec();
    claims.extend([b' '; 100]);
    assert_eq!(message(&claims), "expected a header of 4294967295 bytes, found 100: the file is truncated");
    let long = npy(2, &" ".repeat(200_000), &[]);
    assert!(message(&long).starts_with("expected a header of at most 10000 bytes, found one of 2000"));
    for bracket in ["(", "[", "{", "{'descr':"] {
        let deep = npy(1, &bracket.repeat(1000), &[]);
        assert_eq!(message(&deep), "expected elements of f32 or f64, found a header with nested values");
    }
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("directory")).unwrap();
    let message = folder.run("forward --x directory --y y.npy").refused();
    assert_eq!(message, "error: --x (directory): expected a .npy file, found a directory\n");
    let message = folder.run("forward --x missing.npy --y y.npy").refused();
    assert!(message.starts_with("error: --x (missing.npy): cannot open the file: "), "{message}");
    #[cfg(unix)]
    {
        let message = folder.run("forward --x /dev/zero --y y.npy").refused();
        let found = "expected a regular file (its size must be known), found a pipe or a device\n";
        assert_eq!(message, format!("error: --x (/dev/zero): {found}"));
    }
}

#[test]
fn every_input_is_looked_at_before_anything_is_written() {
    let folder = Folder::new();
    folder.zeros("x.npy", &[2, 3]).bytes("bad.npy", b"bad");
    let parameters = "--x x.npy --g x.npy --dx dx.npy";
    for (flag, line) in [
        ("--g", "backward --x x.npy --g bad.npy --dx dx.npy".to_owned()),
        ("--gamma", format!("backward {parameters} --gamma bad.npy")),
        ("--beta", format!("backward {parameters} --beta bad.npy")),
    ] {
        let message = folder.run(&line).refused();
        assert!(message.starts_with(&format!("error: {flag} (bad.npy): expected a .npy file")), "{message}");
    }
    assert_eq!(folder.names(), ["bad.npy", "x.npy"]);
}
