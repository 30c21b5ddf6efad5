//! The binaries that are measured, built for release if the bench is.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio};

use devstack::{Console, Failed, Progress as _};
use serde::Deserialize;
use tokio::process::Command;

/// The deployed functions.
pub const FUNCTIONS: [&str; 6] =
    ["consent-callback", "incident-dispatch", "incident-fetch", "secret-rotation", "tenant-admin", "token-issuance"];

#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds these functions with the features of the deployed ones, and returns the path of each binary.
pub async fn functions(names: &[&str], console: &mut Console) -> Result<BTreeMap<String, PathBuf>, Failed> {
    console.step("building the functions");
    let packages = names.iter().flat_map(|name| ["--package", name]);
    build(&packages.collect::<Vec<_>>()).await
}

/// Builds a binary of this package: `floor`, the function that returns its event, or `work`.
pub async fn of_bench(name: &str, console: &mut Console) -> Result<PathBuf, Failed> {
    console.step(&format!("building {name}"));
    let mut built = build(&["--package", "bench", "--bin", name]).await?;
    built.remove(name).ok_or_else(|| Failed(format!("cargo built no {name}")))
}

/// Builds the operator's program.
pub async fn operator(console: &mut Console) -> Result<PathBuf, Failed> {
    console.step("building mandate");
    let mut built = build(&["--package", "mandate"]).await?;
    built.remove("mandate").ok_or_else(|| Failed("cargo built no mandate".to_owned()))
}

async fn build(what: &[&str]) -> Result<BTreeMap<String, PathBuf>, Failed> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked", "--message-format=json-render-diagnostics"]).args(what);
    if cfg!(debug_assertions) {
        // With the features of the bench, whose build of the dependencies is there.
        cargo.args(["--package", "bench"]);
    } else {
        cargo.arg("--release");
    }
    let child = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = child.spawn()?.wait_with_output().await?;
    if !output.status.success() {
        return Err(Failed("cargo failed".to_owned()));
    }
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    Ok(messages.filter_map(|message| Some((message.target?.name, message.executable?))).collect())
}
