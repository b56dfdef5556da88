//! What the README shows is what the program prints.

use assert_cmd::Command;

/// The rows of the notebook's case are narrow: they are computed in scalar arithmetic that has the same bits
/// everywhere.
#[test]
fn the_readme_shows_what_the_run_command_prints() {
    let output = Command::cargo_bin("llm-operator").unwrap().output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let first: Vec<&str> = printed.lines().take(3).collect();
    assert!(first[0].starts_with("max_abs_diff: ") && first[2] == "verdict: passed", "{printed}");
    let readme = include_str!("../../README.md");
    assert!(readme.contains(&first.join("\n")), "README.md does not show what is printed:\n{}", first.join("\n"));
}
