//! Arguments that do not fit together: each is named, with what was expected and what was found.

use crate::folder::Folder;

fn folder() -> Folder {
    let folder = Folder::new();
    folder.zeros("x.npy", &[2, 4, 6]).zeros("row.npy", &[6]).zeros("five.npy", &[5]).zeros("matrix.npy", &[4, 6]);
    folder.array("x32.npy", &[2, 4, 6], &[0.0_f32; 48]).array("row32.npy", &[6], &[0.0_f32; 6]);
    folder.zeros("scalar.npy", &[]).zeros("narrow.npy", &[3, 0]).zeros("deep.npy", &[1, 2, 4, 6]);
    folder
}

/// Each line of arguments is refused with exactly this message, and writes nothing.
fn assert_refused(cases: &[(&str, &str)]) {
    let folder = folder();
    let names = folder.names();
    for (line, expected) in cases {
        assert_eq!(folder.run(line).refused(), format!("error: {expected}\n"), "{line}");
    }
    assert_eq!(folder.names(), names);
}

#[test]
fn shapes_that_do_not_fit_x_are_refused() {
    assert_refused(&[
        (
            "backward --x x.npy --g row.npy --dx dx.npy",
            "--g (row.npy): expected shape [2, 4, 6], that of --x (x.npy), found [6]",
        ),
        (
            "forward --x x.npy --gamma five.npy --y y.npy",
            "--gamma (five.npy): expected shape [6], the normalized dimensions of --x (x.npy), found [5]",
        ),
        (
            "forward --x x.npy --beta five.npy --y y.npy",
            "--beta (five.npy): expected shape [6], the normalized dimensions of --x (x.npy), found [5]",
        ),
        (
            "forward --x x.npy --gamma matrix.npy --beta row.npy --y y.npy",
            "--beta (row.npy): expected shape [4, 6], the normalized dimensions of --x (x.npy), found [6]",
        ),
        (
            "forward --x x.npy --gamma row.npy --normalized-dims 2 --y y.npy",
            "--gamma (row.npy): expected shape [4, 6], the normalized dimensions of --x (x.npy), found [6]",
        ),
        (
            "forward --x x.npy --gamma deep.npy --y y.npy",
            "--gamma (deep.npy): expected the shape of the last dimensions of --x (x.npy), which is [2, 4, 6], \
             found [1, 2, 4, 6]",
        ),
        (
            "forward --x x.npy --beta scalar.npy --y y.npy",
            "--beta (scalar.npy): expected the shape of the last dimensions of --x (x.npy), which is [2, 4, 6], \
             found []",
        ),
    ]);
}

#[test]
fn an_x_without_a_row_to_normalize_is_refused() {
    assert_refused(&[
        (
            "forward --x narrow.npy --y y.npy",
            "--x (narrow.npy): expected at least one element to normalize over, found shape [3, 0], \
             whose last dimension is [0]",
        ),
        (
            "backward --x narrow.npy --g narrow.npy --normalized-dims 2 --dx dx.npy",
            "--x (narrow.npy): expected at least one element to normalize over, found shape [3, 0], \
             whose last dimensions are [3, 0]",
        ),
        (
            "forward --x scalar.npy --y y.npy",
            "--x (scalar.npy): expected at least one dimension to normalize over, found shape []",
        ),
        (
            "forward --x x.npy --normalized-dims 4 --y y.npy",
            "--normalized-dims: expected at most 3, the number of dimensions of --x (x.npy), found 4",
        ),
    ]);
}

#[test]
fn types_other_than_that_of_x_are_refused() {
    assert_refused(&[
        (
            "backward --x x.npy --g x32.npy --dx dx.npy",
            "--g (x32.npy): expected f64, the type of --x (x.npy), found f32",
        ),
        (
            "forward --x x32.npy --gamma row.npy --y y.npy",
            "--gamma (row.npy): expected f32, the type of --x (x32.npy), found f64",
        ),
        (
            "forward --x x.npy --gamma row.npy --beta row32.npy --y y.npy",
            "--beta (row32.npy): expected f64, the type of --x (x.npy), found f32",
        ),
    ]);
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    let folder = folder();
    for epsilon in ["-1", "-1e-300", "nan", "-nan", "inf", "small", "1e999"] {
        let message = folder.run(&format!("forward --x x.npy --y y.npy --epsilon {epsilon}")).refused();
        let expected = format!(
            "error: invalid value '{epsilon}' for '--epsilon <NUMBER>': expected a finite number that is zero or more"
        );
        assert!(message.starts_with(&expected), "{message}");
    }
    for dims in ["0", "-1", "1.5", "two", "99999999999999999999999"] {
        let message = folder.run(&format!("forward --x x.npy --y y.npy --normalized-dims {dims}")).refused();
        let expected =
            format!("error: invalid value '{dims}' for '--normalized-dims <K>': expected a whole number that is 1");
        assert!(message.starts_with(&expected), "{message}");
    }
}

#[test]
fn arguments_that_are_missing_or_unknown_are_refused() {
    let folder = folder();
    for (line, named) in [
        ("forward --y y.npy", "--x <FILE>"),
        ("forward --x x.npy", "<--y <FILE>|--mean <FILE>|--rstd <FILE>>"),
        ("backward --x x.npy --dx dx.npy", "--g <FILE>"),
        ("backward --x x.npy --g x.npy", "<--dx <FILE>|--dgamma <FILE>|--dbeta <FILE>>"),
        ("forward --x x.npy --x x.npy --y y.npy", "'--x <FILE>' cannot be used multiple times"),
        ("forward --x x.npy --y y.npy --eps 1", "unexpected argument '--eps' found"),
        ("forwards --x x.npy", "unrecognized subcommand 'forwards'"),
    ] {
        let message = folder.run(line).refused();
        assert!(message.starts_with("error: ") && message.contains(named), "{line}: {message}");
    }
}
