//! Output files: all of them or none, and never half of one.

use crate::folder::Folder;

fn folder() -> Folder {
    let folder = Folder::new();
    folder.array("x.npy", &[1, 2], &[-2.0, 2.0]).zeros("bad.npy", &[3]);
    folder
}

#[test]
fn a_path_that_no_file_can_take_is_refused() {
    let folder = folder();
    std::fs::create_dir(folder.path("directory")).unwrap();
    let names = folder.names();
    for (path, expected) in [
        ("directory", "expected a file to write, found a directory"),
        ("directory/", "expected a file to write, found a directory"),
        (".", "expected a file to write, found a directory"),
        ("missing/y.npy", "expected a directory that exists, found missing"),
        ("new/", "expected the name of a file, found none"),
        ("x.npy/y.npy", "cannot write the file"),
        #[cfg(unix)]
        ("/dev/null", "expected a regular file to write, found a pipe or a device"),
    ] {
        for flag in ["--y", "--mean", "--rstd"] {
            let message = folder.run(&format!("forward --x x.npy {flag} {path}")).refused();
            assert!(message.starts_with(&format!("error: {flag} ({path}): {expected}")), "{message}");
        }
    }
    assert_eq!(folder.names(), names);
}

#[test]
fn two_outputs_in_one_file_are_refused() {
    let folder = folder();
    let message = folder.run("forward --x x.npy --y out.npy --mean ./out.npy").refused();
    let expected = "error: --mean (./out.npy): expected a file of its own, found the file of --y (out.npy)\n";
    assert_eq!(message, expected);
    assert_eq!(folder.names(), ["bad.npy", "x.npy"]);
}

#[test]
fn a_run_that_fails_leaves_what_was_there() {
    let folder = folder();
    folder.bytes("y.npy", b"before");
    for line in [
        "forward --x x.npy --gamma bad.npy --y y.npy --mean mean.npy",
        "forward --x missing.npy --y y.npy --mean mean.npy",
        "forward --x x.npy --y y.npy --mean missing/mean.npy",
    ] {
        folder.run(line).refused();
        assert_eq!(std::fs::read(folder.path("y.npy")).unwrap(), b"before", "{line}");
        assert_eq!(folder.names(), ["bad.npy", "x.npy", "y.npy"], "{line}");
    }
}

#[test]
fn a_file_that_exists_is_replaced_and_nothing_else_is_left() {
    let folder = folder();
    folder.bytes("y.npy", &[0; 1000]);
    folder.run("forward --x x.npy --epsilon 0 --y y.npy").passed();
    assert_eq!(folder.read::<f64>("y.npy").as_slice(), Some(&[-1.0, 1.0][..]));
    assert_eq!(folder.names(), ["bad.npy", "x.npy", "y.npy"]);
}

#[test]
fn an_output_may_take_the_place_of_an_input() {
    let folder = folder();
    folder.run("forward --x x.npy --epsilon 0 --y x.npy").passed();
    assert_eq!(folder.read::<f64>("x.npy").as_slice(), Some(&[-1.0, 1.0][..]));
    assert_eq!(folder.names(), ["bad.npy", "x.npy"]);
}

#[cfg(unix)]
mod on_unix {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(folder: &Folder, name: &str) -> u32 {
        std::fs::metadata(folder.path(name)).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_new_file_has_the_permissions_of_any_new_file() {
        let folder = folder();
        folder.run("forward --x x.npy --y y.npy").passed();
        // `x.npy` was made in the ordinary way.
        assert_eq!(mode(&folder, "y.npy"), mode(&folder, "x.npy"));
    }

    #[test]
    fn a_file_that_is_replaced_keeps_its_permissions() {
        let folder = folder();
        folder.bytes("y.npy", b"before");
        std::fs::set_permissions(folder.path("y.npy"), PermissionsExt::from_mode(0o640)).unwrap();
        folder.run("forward --x x.npy --y y.npy").passed();
        assert_eq!(mode(&folder, "y.npy"), 0o640);
    }

    #[test]
    fn a_symbolic_link_stays_and_its_file_is_replaced() {
        let folder = folder();
        folder.bytes("real.npy", b"before");
        symlink("real.npy", folder.path("link.npy")).unwrap();
        folder.run("forward --x x.npy --epsilon 0 --y link.npy").passed();
        assert!(folder.path("link.npy").is_symlink());
        assert_eq!(folder.read::<f64>("real.npy").as_slice(), Some(&[-1.0, 1.0][..]));
        let message = folder.run("forward --x x.npy --y real.npy --mean link.npy").refused();
        assert!(message.contains("found the file of --y (real.npy)"), "{message}");
        symlink("nothing.npy", folder.path("dangling.npy")).unwrap();
        let message = folder.run("forward --x x.npy --y dangling.npy").refused();
        assert!(message.contains("expected a file to write, found a symbolic link to nothing"), "{message}");
    }
}
