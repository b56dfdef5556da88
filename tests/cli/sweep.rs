//! `sweep`: the difference between the gradients against the step.

use crate::folder::Folder;

#[test]
fn a_right_gradient_follows_noise_and_truncation() {
    let folder = Folder::new();
    for line in [
        "sweep",
        "sweep --shape 8,64 --inputs normal",
        "sweep --shape 8,64 --affine --of gamma",
        "sweep --shape 8,64 --dtype f32 --affine --of beta",
        "sweep --shape 3,5,7 --dtype f32 --inputs normal",
    ] {
        let sweep = folder.run(&format!("{line} --json")).json(0);
        assert_eq!(sweep["conclusion"], "agrees", "{line}");
        let steps: Vec<f64> =
            sweep["points"].as_array().unwrap().iter().map(|point| point["step"].as_f64().unwrap()).collect();
        assert!(steps.len() > 10 && steps.windows(2).all(|pair| pair[0] < pair[1]), "{line}: {steps:?}");
        assert!(folder.run(line).passed().contains("<- best"), "{line}");
    }
    let text = folder.run("sweep --shape 8,64 --inputs normal").passed();
    assert!(text.contains("(slope -1, noise)") && text.contains("(slope +2, truncation)"), "{text}");
}

#[test]
fn the_curve_is_drawn_and_takes_the_place_of_a_file_at_once() {
    let folder = Folder::new();
    folder.bytes("curve.svg", b"before");
    folder.run("sweep --shape 4,16 --svg curve.svg").passed();
    let svg = std::fs::read_to_string(folder.path("curve.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("noise, slope -1") && svg.contains("best step"));
    assert_eq!(folder.names(), ["curve.svg"]);
}

#[test]
fn files_are_swept_at_their_own_values_and_the_last_line_repeats_it() {
    let folder = Folder::new();
    folder.array("x.npy", &[2, 3], &[1.0, 2.0, 4.0, 0.0, 1.0, 5.0]).array(
        "g.npy",
        &[2, 3],
        &[1.0, 0.0, 3.0, 2.0, 7.0, 1.0],
    );
    let text = folder.run("sweep --x x.npy --g g.npy").passed();
    let repeat = text.lines().last().unwrap().strip_prefix("to repeat: llm-operator ").unwrap();
    assert_eq!(folder.run(repeat).passed(), text);
}

#[test]
fn where_nothing_can_be_seen_it_says_so() {
    let run = Folder::new().run("sweep --shape 5,1");
    assert_eq!((run.code, &run.stderr[..]), (3, ""), "{}", run.stdout);
    assert!(run.stdout.contains("the loss does not see this input"), "{}", run.stdout);
}

#[test]
fn what_cannot_be_swept_is_refused() {
    let folder = Folder::new();
    for (line, expected) in [
        ("sweep --of gamma", "--of: expected an input that this LayerNorm has (x), found gamma"),
        ("sweep --of dx", "invalid value 'dx' for '--of <OF>'"),
        ("sweep --x missing.npy --g missing.npy", "--x (missing.npy): cannot open the file"),
        ("sweep --svg missing/s.svg", "--svg (missing/s.svg): expected a directory that exists"),
        ("sweep --shape 3,0", "--shape: expected at least one element to normalize over"),
    ] {
        let message = folder.run(line).refused();
        assert!(message.starts_with(&format!("error: {expected}")), "{line}: {message}");
    }
    assert!(folder.names().is_empty());
}
