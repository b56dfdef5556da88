//! `check`: the notebook's case, generated cases, files, and gradients that were computed elsewhere.

use crate::folder::{Folder, Run};
use serde_json::Value;

/// The shape of the files.
const SHAPE: [usize; 3] = [2, 4, 6];

/// x, g and gamma in files, and the gradients that `backward` gives, in f64 or rounded to f32.
fn folder(single: bool) -> Folder {
    let folder = Folder::new();
    let wave = |step: f64, count: usize| (0..count).map(|index| (index as f64 * step).sin()).collect::<Vec<f64>>();
    for (name, shape, elements) in
        [("x.npy", &SHAPE[..], wave(1.7, 48)), ("g.npy", &SHAPE[..], wave(0.9, 48)), ("gamma.npy", &[6], wave(1.1, 6))]
    {
        if single {
            folder.array(name, shape, &elements.iter().map(|&element| element as f32).collect::<Vec<f32>>());
        } else {
            folder.array(name, shape, &elements);
        }
    }
    let line = "backward --x x.npy --g g.npy --gamma gamma.npy --dx dx.npy --dgamma dgamma.npy --dbeta dbeta.npy";
    folder.run(line).passed();
    folder
}

/// Multiplies one element of a file.
fn scale(folder: &Folder, name: &str, element: usize, factor: f64) {
    let mut array = folder.read::<f64>(name);
    array.as_slice_mut().unwrap()[element] *= factor;
    folder.array(name, array.shape(), array.as_slice().unwrap());
}

const THEIRS: &str = "check --x x.npy --g g.npy --gamma gamma.npy --dx dx.npy --dgamma dgamma.npy --dbeta dbeta.npy";

fn code(run: &Run) -> i32 {
    assert_eq!(run.stderr, "", "stdout: {}", run.stdout);
    run.code
}

/// The notebook printed 1.1812836819835582e-09 and 2.61470216195465e-10.
#[test]
fn without_arguments_it_is_the_notebooks_case() {
    let folder = Folder::new();
    for backend in llm_operator::Backend::available() {
        let stdout = folder.run_with("", backend.name()).passed();
        let mut lines = stdout.lines();
        let mut number = |name: &str| {
            let line = lines.next().unwrap();
            line.strip_prefix(name).expect(line).parse::<f64>().unwrap()
        };
        let (max_abs_diff, relative_diff) = (number("max_abs_diff: "), number("relative_diff: "));
        assert!(max_abs_diff > 0.0 && max_abs_diff < 5e-9, "{max_abs_diff}");
        assert!(relative_diff > 0.0 && relative_diff < 1e-9, "{relative_diff}");
        // Their quotient is the greatest gradient, which rounding does not move.
        let greatest = 1.1812836819835582e-09 / 2.61470216195465e-10;
        assert!((max_abs_diff / relative_diff / greatest - 1.0).abs() < 1e-8, "{}", max_abs_diff / relative_diff);
        assert_eq!(lines.next(), Some("verdict: passed"));
        for line in ["check", "check --shape 2,4,6 --seed 1000 --eps 1e-6"] {
            assert_eq!(folder.run_with(line, backend.name()).passed(), stdout);
        }
    }
}

#[test]
fn the_notebooks_case_as_json_has_the_same_numbers() {
    let folder = Folder::new();
    let text = folder.run("check").passed();
    for line in ["--json", "check --json", "--json check"] {
        let report = folder.run(line).json(0);
        assert_eq!(report["verdict"], "passed");
        assert_eq!((&report["command"], &report["source"]), (&Value::from("check"), &Value::from("generated")));
        assert_eq!(report["gradients"], "portable");
        assert_eq!(report["inputs"][0]["shape"], serde_json::json!([2, 4, 6]));
        assert_eq!(report["inputs"][0]["counts"]["passed"], 48);
        let printed: f64 = text.lines().next().unwrap().trim_start_matches("max_abs_diff: ").parse().unwrap();
        assert_eq!(report["max_abs_diff"].as_f64(), Some(printed));
    }
}

#[test]
fn every_kind_of_generated_case_passes() {
    let folder = Folder::new();
    for line in [
        "check --affine",
        "check --dtype f32 --affine",
        "check --inputs normal --seed 7 --shape 3,17 --affine",
        "check --shape 2,3,4,5 --normalized-dims 2 --affine --inputs normal",
        "check --epsilon 0.5 --eps 1e-5 --inputs normal",
        "check --shape 9 --inputs normal",
    ] {
        let report = folder.run(&format!("{line} --json")).json(0);
        assert_eq!(report["verdict"], "passed", "{line}");
        let names: Vec<&str> =
            report["inputs"].as_array().unwrap().iter().map(|input| input["name"].as_str().unwrap()).collect();
        assert_eq!(names, if line.contains("--affine") { &["x", "gamma", "beta"][..] } else { &["x"] }, "{line}");
        assert_eq!(report["element"], if line.contains("f32") { "f32" } else { "f64" });
    }
}

#[test]
fn the_last_line_repeats_the_run() {
    let folder = Folder::new();
    for line in ["check", "check --affine --dtype f32 --inputs normal --seed 3 --shape 2,5 --eps 1e-2 --epsilon 0.25"] {
        let run = folder.run(line);
        let repeat = run.stdout.lines().last().unwrap().strip_prefix("to repeat: llm-operator ").unwrap();
        let again = folder.run(repeat);
        assert_eq!((again.code, &again.stdout), (run.code, &run.stdout));
    }
}

#[test]
fn files_are_checked_at_their_own_values() {
    for single in [false, true] {
        let folder = folder(single);
        let report = folder.run("check --x x.npy --g g.npy --gamma gamma.npy --json").json(0);
        assert_eq!((&report["verdict"], &report["source"]), (&Value::from("passed"), &Value::from("files")));
        assert_eq!(report["element"], if single { "f32" } else { "f64" });
        assert_eq!(report["inputs"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn right_gradients_from_elsewhere_pass() {
    let folder = folder(false);
    assert!(folder.run(THEIRS).passed().contains("verdict: passed"));
    let report = folder.run(&format!("{THEIRS} --json")).json(0);
    assert_eq!(report["gradients"], "files");
    assert_eq!(report["inputs"].as_array().unwrap().len(), 3);
}

#[test]
fn right_f32_gradients_are_judged_against_differences_in_f64() {
    let report = folder(true).run(&format!("{THEIRS} --json")).json(0);
    assert_eq!((&report["verdict"], &report["element"]), (&Value::from("passed"), &Value::from("f64")));
    // Closer than any difference taken in f32 could tell.
    assert!(report["relative_diff"].as_f64().unwrap() < 1e-6, "{report}");
}

/// Each element is changed by 10 %, in its turn.
#[test]
fn one_wrong_element_is_found_and_named() {
    let folder = folder(false);
    for element in 0..48 {
        scale(&folder, "dx.npy", element, 1.1);
        let run = folder.run(THEIRS);
        assert_eq!(code(&run), 1, "{element}: {}", run.stdout);
        let index = format!("[{}, {}, {}] wrong", element / 24, element / 6 % 4, element % 6);
        assert!(run.stdout.contains("verdict: wrong") && run.stdout.contains(&index), "{index}: {}", run.stdout);
        scale(&folder, "dx.npy", element, 1.0 / 1.1);
    }
    folder.run(THEIRS).passed();
}

#[test]
fn a_wrong_parameter_gradient_is_found_and_named() {
    for (name, input) in [("dgamma.npy", "gamma"), ("dbeta.npy", "beta")] {
        let folder = folder(false);
        scale(&folder, name, 4, 1.1);
        let report = folder.run(&format!("{THEIRS} --json")).json(1);
        let inputs = report["inputs"].as_array().unwrap();
        let wrong: Vec<&Value> = inputs.iter().filter(|input| input["verdict"] != "passed").collect();
        assert_eq!(wrong.len(), 1, "{report}");
        assert_eq!(wrong[0]["name"], input);
        assert_eq!(wrong[0]["worst"]["index"], serde_json::json!([4]));
    }
}

#[test]
fn a_wrong_element_of_f32_is_found() {
    let folder = folder(true);
    let mut dx = folder.read::<f32>("dx.npy");
    dx.as_slice_mut().unwrap()[17] *= 1.1;
    folder.array("dx.npy", &SHAPE, dx.as_slice().unwrap());
    let run = folder.run(THEIRS);
    assert_eq!(code(&run), 1);
    assert!(run.stdout.contains("[0, 2, 5] wrong"), "{}", run.stdout);
}

#[test]
fn gamma_changes_what_is_right() {
    let folder = folder(false);
    assert_eq!(code(&folder.run("check --x x.npy --g g.npy --dx dx.npy")), 1);
    assert_eq!(code(&folder.run("check --x x.npy --g g.npy --gamma gamma.npy --dx dx.npy --epsilon 0.1")), 1);
    // The parameter gradients do not depend on the parameters.
    folder.run("check --x x.npy --g g.npy --dgamma dgamma.npy --dbeta dbeta.npy").passed();
}

#[test]
fn only_what_was_given_is_judged() {
    let folder = folder(false);
    scale(&folder, "dx.npy", 0, 2.0);
    let report = folder.run("check --x x.npy --g g.npy --gamma gamma.npy --dbeta dbeta.npy --json").json(0);
    let inputs = report["inputs"].as_array().unwrap();
    assert_eq!(inputs.len(), 1);
    assert_eq!(inputs[0]["name"], "beta");
}

#[test]
fn a_gradient_that_is_not_a_number_is_not_right() {
    let folder = folder(false);
    scale(&folder, "dx.npy", 13, f64::NAN);
    let run = folder.run(THEIRS);
    assert_eq!(code(&run), 1);
    assert!(run.stdout.contains("verdict: invalid") && run.stdout.contains("[0, 2, 1] invalid"), "{}", run.stdout);
}

#[test]
fn where_nothing_can_be_seen_it_is_inconclusive() {
    let folder = Folder::new();
    folder.zeros("empty.npy", &[0, 6]).zeros("zeros.npy", &[2, 3]).array(
        "x.npy",
        &[2, 3],
        &[1.0, 2.0, 4.0, 0.0, 1.0, 5.0],
    );
    for line in [
        // One element a row: its gradient is 0, whatever backward computes.
        "check --shape 5,1",
        // No rows.
        "check --shape 0,6",
        "check --x empty.npy --g empty.npy",
        // No loss.
        "check --x x.npy --g zeros.npy",
        // Differences in f32 with a step far too small.
        "check --dtype f32 --eps 1e-6",
        // Steps that change nothing.
        "check --eps 1e-20",
        "check --dtype f32 --eps 1e-9 --mode local --affine",
    ] {
        let run = folder.run(line);
        assert_eq!(code(&run), 3, "{line}: {}", run.stdout);
        assert!(run.stdout.contains("verdict: inconclusive"), "{line}: {}", run.stdout);
        let no_step = run.stdout.contains("their step is so small that x + step and x - step are one number");
        assert_eq!(no_step, line.contains("e-20") || line.contains("e-9"), "{line}: {}", run.stdout);
    }
}

/// The exact dx and dgamma of rows of one element are 0. What rounding leaves of them in f64 is no error; what a bug
/// leaves is.
#[test]
fn what_rounding_leaves_of_a_gradient_that_cancels_is_not_called_an_error() {
    let folder = Folder::new();
    let x: Vec<f64> = (0..40).map(|row| (f64::from(row) * 1.3).sin()).collect();
    let g: Vec<f64> = (0..40).map(|row| (f64::from(row) * 0.7).cos()).collect();
    folder.array("x.npy", &[40, 1], &x).array("g.npy", &[40, 1], &g).array("dbeta.npy", &[1], &[g.iter().sum::<f64>()]);
    let dx = |size: f64| x.iter().map(|x| size * x).collect::<Vec<f64>>();
    let line = "check --x x.npy --g g.npy --dx dx.npy --dgamma dgamma.npy --dbeta dbeta.npy";
    folder.array("dx.npy", &[40, 1], &dx(1e-14)).array("dgamma.npy", &[1], &[2.6e-14]);
    let run = folder.run(line);
    assert_eq!(code(&run), 3, "{}", run.stdout);
    assert!(run.stdout.contains("gamma: the loss does not see it"), "{}", run.stdout);
    folder.array("dgamma.npy", &[1], &[1e-9]);
    assert_eq!(code(&folder.run(line)), 1);
    folder.array("dgamma.npy", &[1], &[2.6e-14]).array("dx.npy", &[40, 1], &dx(1e-9));
    assert_eq!(code(&folder.run(line)), 1);
}

/// In f32 a row far from zero has lost digits of its own, which excuse no error of another row.
#[test]
fn a_row_far_from_zero_does_not_widen_the_tolerance_of_others() {
    let folder = Folder::new();
    let width = 32;
    let wave = |step: f64| (0..8 * width).map(|i| (f64::from(i as u16) * step).sin() as f32).collect::<Vec<f32>>();
    let (mut x, g) = (wave(1.7), wave(0.9));
    x[3 * width..4 * width].iter_mut().for_each(|x| *x += 1e5);
    folder.array("x.npy", &[8, width], &x).array("g.npy", &[8, width], &g);
    folder.run("backward --x x.npy --g g.npy --dx dx.npy").passed();
    let line = "check --x x.npy --g g.npy --dx dx.npy";
    folder.run(line).passed();
    let mut dx = folder.read::<f32>("dx.npy");
    dx[[5, 9]] *= 1.001;
    folder.array("dx.npy", &[8, width], dx.as_slice().unwrap());
    let run = folder.run(line);
    assert_eq!(code(&run), 1, "{}", run.stdout);
    assert!(run.stdout.contains("row 5, column 9 is 1.0010 times what it should be"), "{}", run.stdout);
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let folder = folder(false);
    folder.zeros("row.npy", &[6]).array("dx32.npy", &SHAPE, &[0.0_f32; 48]).bytes("bad.npy", b"bad");
    folder.array("inf.npy", &SHAPE, &[f64::INFINITY; 48]);
    let files = "check --x x.npy --g g.npy";
    for (line, expected) in [
        (format!("{files} --dx row.npy"), "--dx (row.npy): expected shape [2, 4, 6], that of --x (x.npy), found [6]"),
        (format!("{files} --dx dx32.npy"), "--dx (dx32.npy): expected f64, the type of --x (x.npy), found f32"),
        (
            format!("{files} --dgamma g.npy"),
            "--dgamma (g.npy): expected shape [6], the normalized dimensions of --x (x.npy), found [2, 4, 6]",
        ),
        (
            format!("{files} --dbeta g.npy"),
            "--dbeta (g.npy): expected shape [6], the normalized dimensions of --x (x.npy), found [2, 4, 6]",
        ),
        (format!("{files} --dx bad.npy"), "--dx (bad.npy): expected a .npy file"),
        (format!("{files} --dx missing.npy"), "--dx (missing.npy): cannot open the file"),
        (
            "check --x inf.npy --g g.npy".to_owned(),
            "--x (inf.npy): expected finite numbers to check a gradient at, found inf at [0, 0, 0]",
        ),
        (
            "check --x x.npy --g inf.npy".to_owned(),
            "--g (inf.npy): expected finite numbers to check a gradient at, found inf at [0, 0, 0]",
        ),
        (
            "check --x x.npy --g row.npy".to_owned(),
            "--g (row.npy): expected shape [2, 4, 6], that of --x (x.npy), found",
        ),
        ("check --shape 3,0".to_owned(), "--shape: expected at least one element to normalize over, found [3, 0]"),
        (
            "check --normalized-dims 4".to_owned(),
            "--normalized-dims: expected at most 3, the number of dimensions of --shape, found 4",
        ),
        (
            "check --shape 99999999999,99999999999".to_owned(),
            "--shape: expected a shape that fits in memory, found [99999999999, 99999999999]",
        ),
        ("check --shape 3,".to_owned(), "invalid value '3,' for '--shape <N,...>': expected lengths with commas"),
        (
            "check --eps 0".to_owned(),
            "invalid value '0' for '--eps <STEP>': expected a finite number above zero, or auto",
        ),
        (
            "check --eps -1e-6".to_owned(),
            "invalid value '-1e-6' for '--eps <STEP>': expected a finite number above zero",
        ),
        (
            "check --epsilon nan".to_owned(),
            "invalid value 'nan' for '--epsilon <NUMBER>': expected a finite number that is",
        ),
        ("check --seed -1".to_owned(), "unexpected argument '-1' found"),
        ("check --dtype f16".to_owned(), "invalid value 'f16' for '--dtype <DTYPE>'"),
        ("check --x x.npy".to_owned(), "the following required arguments were not provided:\n  --g <FILE>"),
        ("check --dx dx.npy".to_owned(), "the following required arguments were not provided:\n  --g <FILE>"),
        ("check --gamma gamma.npy".to_owned(), "the following required arguments were not provided:\n  --g <FILE>"),
        (format!("{files} --seed 3"), "the argument '--x <FILE>' cannot be used with '--seed <NUMBER>'"),
        (format!("{files} --affine"), "the argument '--x <FILE>' cannot be used with '--affine'"),
    ] {
        let message = folder.run(&line).refused();
        assert!(message.starts_with(&format!("error: {expected}")), "{line}: {message}");
    }
    assert!(folder.run_with("check", "sse9").refused().contains("LLM_OPERATOR_BACKEND: expected one of portable"));
}
