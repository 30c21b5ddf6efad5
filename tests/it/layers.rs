//! The floors of `shared`: a room uses only rooms on lower floors, so that each can be read, tested and cut out alone.

use std::{fs, path::Path};

/// The rooms of `shared/src`, a folder or a file each, from the ground up.
const FLOORS: [&[&str]; 10] = [
    &["clock", "text"],
    &["tenant"],
    &["error"],
    &["http", "telemetry", "random"],
    &["microsoft", "aws"],
    &["incident", "config", "queue"],
    &["registry", "lambda"],
    &["entra", "delivery"],
    &["incident_api"],
    &["onboarding"],
];

/// The files above all floors: they may use every room, and no room uses them. `testing` serves unit tests alone.
const ROOF: [&str; 3] = ["lib", "clients", "testing"];

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room)).map(|floor| floor + 1)
}

/// The rooms that a file names behind `crate::`, each with its line. Comments do not count, nor do the unit tests at the
/// end of a file or in a file `tests.rs`.
fn uses(source: &str) -> Vec<(usize, &str)> {
    let code = source.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let paths = code.match_indices("crate::").filter(|(at, _)| {
        let before = code[..*at].rsplit('\n').next().unwrap_or_default();
        !before.contains("//") && !before.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_')
    });
    let line = |at: usize| 1 + code[..at].matches('\n').count();
    let starts = paths.flat_map(|(at, path)| {
        let start = at + path.len();
        if code[start..].starts_with('{') { firsts_of_group(code, start) } else { vec![start] }
    });
    starts.map(|start| (line(start), identifier(&code[start..]))).collect()
}

/// The places at which the members of the `{…}` begin that starts at `open`.
fn firsts_of_group(code: &str, open: usize) -> Vec<usize> {
    let (mut depth, mut begins, mut firsts) = (0, false, Vec::new());
    for (at, letter) in code[open..].char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ if begins && letter.is_alphabetic() => {
                firsts.push(open + at);
                begins = false;
            }
            _ => {}
        }
        match depth {
            0 => break,
            1 if matches!(letter, '{' | ',') => begins = true,
            _ => {}
        }
    }
    firsts
}

fn identifier(code: &str) -> &str {
    code.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next().unwrap_or_default()
}

/// The uses in one file of `room` that break the rule, a line each.
fn violations(room: &str, file: &str, source: &str) -> Vec<String> {
    if ROOF.contains(&room) || file.ends_with("/tests.rs") {
        return Vec::new();
    }
    let Some(own) = floor(room) else { return vec![format!("{file}: the room {room} has no floor")] };
    let up = uses(source).into_iter().filter(|(_, used)| *used != room && floor(used).is_none_or(|floor| floor >= own));
    up.map(|(line, used)| match floor(used) {
        Some(floor) => format!("{file}:{line}: {room} (floor {own}) uses {used} (floor {floor})"),
        None => format!("{file}:{line}: {room} (floor {own}) uses {used}, which has no floor"),
    })
    .collect()
}

fn rust_files(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path.to_str().unwrap().to_owned());
        }
    }
    files
}

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

#[test]
fn a_room_of_shared_uses_only_lower_floors() {
    let source = repository().join("shared/src");
    let mut found = Vec::new();
    let mut rooms = Vec::new();
    for file in rust_files(&source) {
        let inside = Path::new(&file).strip_prefix(&source).unwrap();
        let room = inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let shown = format!("shared/src/{}", inside.display());
        found.extend(violations(&room, &shown, &fs::read_to_string(&file).unwrap()));
        rooms.push(room);
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    for room in FLOORS.iter().copied().flatten() {
        assert!(rooms.iter().any(|there| there == room), "the room {room} is gone: take it off its floor");
    }
}

#[test]
fn functions_and_the_simulator_depend_on_none_of_their_kind() {
    let functions: Vec<String> = fs::read_dir(repository().join("functions"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("Cargo.toml").exists())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    let packages = functions.iter().map(|name| format!("functions/{name}")).chain([
        "shared".into(),
        "tests/sim".into(),
        "infra/mandate".into(),
    ]);
    for package in packages {
        let manifest = fs::read_to_string(repository().join(&package).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split_once("[dependencies]").unwrap().1;
        let named = |name: &str| dependencies.lines().any(|line| identifier_of_dependency(line) == name);
        for function in &functions {
            assert!(!named(function), "{package} depends on the function {function}");
        }
        assert!(package != "tests/sim" || !named("shared"), "the simulator depends on shared");
    }
}

#[test]
fn functions_are_built_without_the_features_of_tools() {
    let manifest = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let members = manifest.split_once("\ndefault-members = [").unwrap().1.split_once(']').unwrap().0;
    assert_eq!(members, r#""shared", "functions/*""#);
}

fn identifier_of_dependency(line: &str) -> &str {
    line.split(['.', ' ', '=']).next().unwrap_or_default()
}

#[test]
fn an_arrow_up_is_reported_with_its_line() {
    let source = "//! Uses crate::onboarding in prose.\n\nuse crate::{\n    error::{Error, Result},\n    entra::token_cache::Tokens,\n};\n\
                  fn f() -> crate::lambda::event::Event {}\n\n#[cfg(test)]\nmod tests {\n    use crate::onboarding::Onboarding;\n}\n";
    let found = violations("registry", "shared/src/registry/mod.rs", source);
    assert_eq!(
        found,
        [
            "shared/src/registry/mod.rs:5: registry (floor 7) uses entra (floor 8)",
            "shared/src/registry/mod.rs:7: registry (floor 7) uses lambda (floor 7)",
        ]
    );
    assert_eq!(violations("attic", "shared/src/attic.rs", ""), ["shared/src/attic.rs: the room attic has no floor"]);
}
