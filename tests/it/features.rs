//! `cargo dev`, the functions that it builds, and the tests share one build of each dependency.

use std::{collections::BTreeSet, process::Command};

use crate::layers::repository;

/// The packages that a build compiles, each with its features.
fn compiled(selection: &[String]) -> BTreeSet<String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--locked", "--offline", "--prefix", "none", "--format", "{p} [{f}]"]);
    let output = cargo.args(selection).current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A package that was listed before ends with a mark.
    let listed = String::from_utf8(output.stdout).unwrap();
    listed.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

#[test]
fn stack_and_functions_are_built_with_the_features_of_the_tests() {
    let functions = std::fs::read_dir(repository().join("functions")).unwrap().map(|entry| entry.unwrap().path());
    let functions: Vec<String> = functions
        .filter(|path| path.join("Cargo.toml").exists())
        .map(|path| format!("--package={}", path.file_name().unwrap().to_str().unwrap()))
        .collect();
    assert!(functions.len() > 5, "{functions:?}");
    let tests = compiled(&["--workspace".to_owned(), "--edges=normal,build,dev".to_owned()]);
    let stack = ["--package=devstack".to_owned(), "--edges=normal,build".to_owned()];
    for selection in [stack.to_vec(), [&stack[..], &functions].concat()] {
        let compiled = compiled(&selection);
        assert!(compiled.iter().any(|package| package.starts_with("aws-sdk-s3 ")), "{compiled:?}");
        let differ: Vec<_> = compiled.difference(&tests).collect();
        assert!(
            differ.is_empty(),
            "built again for the tests, because they need more features; name those in tests/devstack/Cargo.toml: {differ:#?}"
        );
    }
}
