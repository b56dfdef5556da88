//! `check` in every mode, within a budget, quietly, on any number of threads, and as a picture.

use crate::folder::Folder;
use assert_cmd::cargo::cargo_bin_cmd;

#[test]
fn every_mode_passes_right_gradients() {
    let folder = Folder::new();
    for (line, mode) in [
        ("--shape 8,128,768 --mode local", "local"),
        ("--shape 4,16,32 --affine --mode exhaustive --inputs normal", "exhaustive"),
        ("--shape 16,64 --affine --mode directional --inputs normal", "directional"),
        ("--shape 4,12 --dtype f32 --affine --mode line --inputs normal", "line"),
        ("--shape 16,64 --dtype f32 --affine --mode auto", "auto"),
        ("--shape 64,256 --mode auto --budget 200", "auto"),
        ("--shape 64,256 --budget 500ms", ""),
    ] {
        let run = folder.run(&format!("check {line} --json"));
        if mode.is_empty() {
            assert!(
                run.stderr.contains("expected seconds above zero, as 10s, or a number of forwards"),
                "{}",
                run.stderr
            );
            continue;
        }
        let report = run.json(0);
        assert_eq!((&report["verdict"], &report["mode"]), (&"passed".into(), &mode.into()), "{line}");
    }
}

#[test]
fn a_budget_limits_the_forwards_and_says_what_it_left_out() {
    let report = Folder::new().run("check --shape 64,256 --budget 200 --json").json(0);
    assert!(report["forwards"].as_u64().unwrap() <= 300, "{}", report["forwards"]);
    assert!(report["inputs"][0]["not_looked_at"].as_u64().unwrap() > 0);
    assert_eq!(report["inputs"][0]["directions"].as_array().unwrap().len(), 8);
    Folder::new().run("check --shape 64,256 --budget 2s").passed();
}

#[test]
fn the_tolerances_are_what_is_accepted() {
    let folder = Folder::new();
    let report = folder.run("check --rtol 1e-4 --atol 1e-9 --json").json(0);
    assert_eq!((report["tolerance"]["rtol"].as_f64(), report["tolerance"]["atol"].as_f64()), (Some(1e-4), Some(1e-9)));
    // Sharper than the noise: nothing can be certified, and nothing is accused.
    assert_eq!(folder.run("check --shape 4,12 --rtol 1e-15").code, 3);
}

/// The truncation cannot be told from two steps out there.
#[test]
fn a_step_beyond_the_scale_of_x_accuses_nobody() {
    let folder = Folder::new();
    for seed in 0..10 {
        for eps in ["0.1", "0.3", "1", "3", "10", "1e3"] {
            let run = folder.run(&format!("check --shape 4,6 --affine --seed {seed} --eps {eps}"));
            assert_eq!(run.code, 3, "seed {seed}, eps {eps}: {}", run.stdout);
        }
    }
}

#[test]
fn quiet_prints_nothing_and_tells_by_its_code() {
    let folder = Folder::new();
    assert_eq!(folder.run("check --quiet").passed(), "");
    assert_eq!(folder.run("check --quiet --json").passed(), "");
    let run = folder.run("check --shape 5,1 --quiet");
    assert_eq!((run.code, &run.stdout[..], &run.stderr[..]), (3, "", ""));
}

#[test]
fn the_report_is_the_same_on_any_number_of_threads() {
    let folder = Folder::new();
    for line in [
        "check --json",
        "check --shape 40,33 --affine --json --inputs normal",
        "check --shape 40,33 --dtype f32 --affine --json",
        "check --shape 6,20 --mode exhaustive --affine --json",
        "check --shape 64,256 --budget 300 --json",
        "check --shape 5,16 --dtype f32 --mode line --json",
        "sweep --shape 8,32 --json",
    ] {
        let on = |threads: &str| {
            let arguments = line.split_whitespace();
            let output =
                cargo_bin_cmd!("llm-operator").args(arguments).env("RAYON_NUM_THREADS", threads).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{line}, {threads} threads");
            String::from_utf8(output.stdout).unwrap()
        };
        let one = on("1");
        for threads in ["2", "3"] {
            assert_eq!(on(threads), one, "{line}, {threads} threads");
        }
    }
    assert!(folder.names().is_empty());
}

#[test]
fn a_heat_map_is_written_whatever_the_verdict() {
    let folder = Folder::new();
    folder.array("x.npy", &[2, 3], &[1.0, 2.0, 4.0, 0.0, 1.0, 5.0]).array(
        "g.npy",
        &[2, 3],
        &[1.0, 0.0, 3.0, 2.0, 7.0, 1.0],
    );
    folder.zeros("dx.npy", &[2, 3]);
    folder.run("check --heatmap right.svg").passed();
    assert_eq!(folder.run("check --x x.npy --g g.npy --dx dx.npy --heatmap wrong.svg").code, 1);
    for name in ["right.svg", "wrong.svg"] {
        let svg = std::fs::read_to_string(folder.path(name)).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("floor"), "{name}");
    }
    // There is nothing to draw.
    assert_eq!(folder.run("check --shape 0,6 --heatmap none.svg").code, 3);
    let message = folder.run("check --heatmap missing/map.svg").refused();
    assert!(message.starts_with("error: --heatmap (missing/map.svg): expected a directory that exists"), "{message}");
    assert_eq!(folder.names(), ["dx.npy", "g.npy", "right.svg", "wrong.svg", "x.npy"]);
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let folder = Folder::new();
    for (line, expected) in [
        ("check --mode local --budget 10s", "--budget: expected --mode auto"),
        ("check --mode line --eps 1e-3", "--eps: expected auto with --mode line"),
        ("check --mode fast", "invalid value 'fast' for '--mode <MODE>'"),
        ("check --budget 0", "invalid value '0' for '--budget <COST>': expected seconds above zero"),
        ("check --budget -3s", "invalid value '-3s' for '--budget <COST>': expected seconds above zero"),
        ("check --budget nans", "invalid value 'nans' for '--budget <COST>': expected seconds above zero"),
        ("check --rtol -1", "invalid value '-1' for '--rtol <NUMBER>': expected a finite number that is zero or more"),
        (
            "check --atol inf",
            "invalid value 'inf' for '--atol <NUMBER>': expected a finite number that is zero or more",
        ),
    ] {
        let message = folder.run(line).refused();
        assert!(message.starts_with(&format!("error: {expected}")), "{line}: {message}");
    }
}

/// Times are told where they are asked for, and nowhere else: reports can be compared.
#[test]
fn the_time_is_told_beside_that_of_the_forwards_it_counts() {
    let folder = Folder::new();
    let line = "check --shape 40,33 --affine --inputs normal --mode local";
    let plain = folder.run(line).passed();
    let timed = folder.run(&format!("{line} --time")).passed();
    let times: Vec<&str> = timed.lines().filter(|line| line.starts_with("time: ")).collect();
    let [time] = times[..] else { panic!("{timed}") };
    assert_eq!(timed.replace(&format!("{time}\n"), ""), plain);
    // 2 C + 4 for the differences, as many for their truncation; and 8 forwards and 8 backwards for the independence of 40 rows:
    // there are 70 ways to choose 4 of 8 passes, and 35 to choose 3 of 7.
    let forwards = 2 * (2 * 33 + 4) + 2 * 8;
    assert!(time.contains(&format!(" times {forwards} forwards of the whole input")), "{time}");
    let report = folder.run(&format!("{line} --time --json")).json(0);
    let timing = &report["timing"];
    assert_eq!(timing["forwards"], forwards);
    let [seconds, measuring, forward, ratio] =
        ["seconds", "measuring_seconds", "forward_seconds", "ratio"].map(|name| timing[name].as_f64().unwrap());
    assert!(seconds > measuring && measuring > 0.0 && forward > 0.0);
    assert!((ratio * forward * f64::from(forwards) / measuring - 1.0).abs() < 1e-9, "{timing}");
    assert!(folder.run(&format!("{line} --json")).json(0).get("timing").is_none());
}
