//! The binaries of the functions and of the operator's program. Cargo builds them and reports their paths.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio};

use serde::Deserialize;
use tokio::{process::Command, sync::OnceCell};

use crate::{ambient, console::Progress, error::StackError, paths};

/// The result of the build. All stacks of a process share it.
static BUILT: OnceCell<BTreeMap<String, PathBuf>> = OnceCell::const_new();

/// The package and binary of the operator's program.
const OPERATOR: &str = "mandate";

/// Builds every package under `functions/` in the development profile, and returns the path of each binary.
pub async fn build(progress: &dyn Progress) -> Result<BTreeMap<String, PathBuf>, StackError> {
    BUILT.get_or_try_init(|| async { run_cargo(&packages()?, &[], progress).await }).await.cloned()
}

/// Builds the operator's program in the development profile, and returns its path. The functions do not wait for it: its
/// dependencies are a quarter of all.
pub async fn build_operator(progress: &dyn Progress) -> Result<PathBuf, StackError> {
    let mut built = run_cargo(&[OPERATOR.to_owned()], &[], progress).await?;
    built.remove(OPERATOR).ok_or_else(|| StackError::BuildFailed { detail: format!("cargo built no {OPERATOR}") })
}

/// Builds the functions once more, as a release after this one: their items have what this one does not know. Returns the
/// paths of copies, because the build of this release puts its own binaries in their place.
pub(crate) async fn build_later_release(progress: &mut dyn Progress) -> Result<BTreeMap<String, PathBuf>, StackError> {
    progress.step("building the functions as a later release");
    let packages = packages()?;
    let built = run_cargo(&packages, &["--features", "shared/later-release"], progress).await?;
    let doing = "copying the later release";
    let directory = paths::state().join("later-release");
    std::fs::create_dir_all(&directory).map_err(StackError::io(doing))?;
    let mut copies = BTreeMap::new();
    for package in packages {
        let Some(binary) = built.get(&package) else { continue };
        let copy = directory.join(&package);
        std::fs::copy(binary, &copy).map_err(StackError::io(doing))?;
        copies.insert(package, copy);
    }
    Ok(copies)
}

async fn run_cargo(
    packages: &[String],
    features: &[&str],
    progress: &dyn Progress,
) -> Result<BTreeMap<String, PathBuf>, StackError> {
    let mut cargo = Command::new(ambient::environment("CARGO").unwrap_or_else(|| "cargo".to_owned()));
    cargo.args(["build", "--locked", "--message-format=json-render-diagnostics"]).args(features);
    // Built together with the stack, the dependencies get the features that they have in a build of the stack alone and of
    // the whole workspace (`tests/it/features.rs`). Otherwise each of these builds would rebuild what another one built.
    cargo.args(["--package", env!("CARGO_PKG_NAME")]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    let stderr = if progress.shows_output() { Stdio::inherit() } else { Stdio::piped() };
    let child = cargo.current_dir(paths::workspace()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    let output = child.kill_on_drop(true).spawn().map_err(StackError::io("starting cargo"))?;
    let output = output.wait_with_output().await.map_err(StackError::io("running cargo"))?;
    if !output.status.success() {
        return Err(StackError::BuildFailed { detail: tail(&output.stderr, 30) });
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

fn packages() -> Result<Vec<String>, StackError> {
    let folder = paths::workspace().join("functions");
    let entries = std::fs::read_dir(&folder).map_err(StackError::io("reading the folder functions/"))?;
    let packages = entries.flatten().filter(|entry| entry.path().join("Cargo.toml").is_file());
    let mut packages: Vec<_> = packages.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    packages.sort();
    Ok(packages)
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .filter_map(|message| Some((message.target?.name, message.executable?)))
        .collect()
}

/// Returns the last `lines` lines of a program's output that are not blank.
pub(crate) fn tail(output: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(output);
    let all: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_cargo_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"shared"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"tenant-admin"},"executable":"/t/debug/tenant-admin"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let paths = executables(messages);
        assert_eq!(paths.into_iter().collect::<Vec<_>>(), [("tenant-admin".into(), "/t/debug/tenant-admin".into())]);
    }
}
