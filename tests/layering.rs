//! Data flows one way, and each library or language feature is named in one place only.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code lines of every source, without comments, under their path within `src`.
fn code() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = vec![];
    for path in sources(&root) {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
        for line in fs::read_to_string(&path).unwrap().lines() {
            let line = line.trim_start();
            if !line.starts_with("//") {
                found.push((name.clone(), line.to_owned()));
            }
        }
    }
    assert!(found.len() > 500, "the sources were not found");
    found
}

/// Whether `line` has `word` as a word of its own.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(is_part)
            && !line[at + word.len()..].chars().next().is_some_and(is_part)
    })
}

fn assert_only_in(words: &[&str], allowed: &[&str]) {
    let mut seen = false;
    for (name, line) in code() {
        if words.iter().any(|word| if word.contains(':') { line.contains(word) } else { has_word(&line, word) }) {
            seen = true;
            assert!(allowed.iter().any(|folder| name.starts_with(folder)), "{name} names {words:?}: {line}");
        }
    }
    assert!(seen, "nothing names {words:?}: this test looks for the wrong words");
}

#[test]
fn only_the_driver_and_the_checker_name_rayon() {
    assert_only_in(&["rayon"], &["driver/", "grad_check/", "bin/"]);
}

#[test]
fn only_the_portable_backend_names_wide() {
    assert_only_in(&["wide::f32x16", "wide::f64x8", "use wide::"], &["simd/portable.rs", "simd/x86/"]);
}

#[test]
fn only_the_x86_backends_name_intrinsics_and_unsafe() {
    assert_only_in(&["std::arch::", "core::arch::"], &["simd/x86/"]);
    assert_only_in(&["unsafe"], &["simd/x86/"]);
}

/// A layer names only those below it.
#[test]
fn data_flows_one_way() {
    for (layer, above) in [
        ("simd/", &["crate::kernel", "crate::driver", "crate::rows", "crate::layer_norm", "crate::grad_check"][..]),
        ("kernel/", &["crate::driver", "crate::rows", "crate::layer_norm", "crate::grad_check"]),
        ("driver/", &["crate::layer_norm", "crate::grad_check", "LayerNorm"]),
        ("rows.rs", &["crate::driver", "crate::kernel", "crate::simd", "crate::layer_norm"]),
        ("grad_check/", &["crate::driver", "crate::kernel", "crate::simd", "crate::rows"]),
        ("change.rs", &["crate::driver", "crate::kernel", "crate::rows", "crate::layer_norm", "crate::grad_check"]),
        ("reference.rs", &["crate::"]),
    ] {
        for (name, line) in code() {
            if name.starts_with(layer) {
                for above in above {
                    assert!(!line.contains(above), "{name} names {above}: {line}");
                }
            }
        }
    }
}
