//! The Python virtual environment of the local AWS. It is created once, and again when the requirements change.

use std::{
    fs::File,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use crate::{error::StackError, functions::tail, paths};

/// Returns the path of the environment's interpreter. Creates the environment first if it is missing or outdated, in half a
/// minute.
pub async fn interpreter() -> Result<PathBuf, StackError> {
    let requirements_text = requirements()?;
    let state = paths::state();
    std::fs::create_dir_all(&state).map_err(StackError::io(format!("creating {}", state.display())))?;
    let python = venv().join("bin").join("python");
    if is_up_to_date(&requirements_text) {
        return Ok(python);
    }
    let _lock = lock(state.join("venv.lock")).await?;
    // Another process may have created it while this one waited.
    if is_up_to_date(&requirements_text) {
        return Ok(python);
    }
    create_venv().await?;
    install_packages(&python).await?;
    std::fs::write(stamp(), &requirements_text).map_err(StackError::io("stamping the Python environment"))?;
    Ok(python)
}

/// Returns `true` if [`interpreter`] has nothing to create.
pub(crate) fn exists() -> bool {
    requirements().is_ok_and(|text| is_up_to_date(&text))
}

fn requirements_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("requirements.txt")
}

fn requirements() -> Result<String, StackError> {
    std::fs::read_to_string(requirements_path()).map_err(StackError::io("reading requirements.txt"))
}

/// The folder of the environment.
fn venv() -> PathBuf {
    paths::state().join("venv")
}

/// The file with the requirements that are installed.
fn stamp() -> PathBuf {
    venv().join("requirements.installed")
}

fn is_up_to_date(requirements_text: &str) -> bool {
    std::fs::read_to_string(stamp()).is_ok_and(|installed| installed == requirements_text)
}

/// Locks the file against other processes until the returned handle is dropped.
async fn lock(path: PathBuf) -> Result<File, StackError> {
    let locked = tokio::task::spawn_blocking(move || {
        let file = File::create(path)?;
        file.lock()?;
        Ok(file)
    });
    let locked = locked.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    locked.map_err(StackError::io("locking the Python environment"))
}

async fn create_venv() -> Result<(), StackError> {
    let output = Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(venv())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => StackError::PythonMissing,
            _ => StackError::Io { doing: "starting python3".to_owned(), source: error },
        })?;
    if output.status.success() {
        return Ok(());
    }
    let printed = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    Err(StackError::VenvMissing { detail: tail(printed, 1) })
}

async fn install_packages(python: &Path) -> Result<(), StackError> {
    let output = Command::new(python)
        // Python compiles what is imported, which is little of what is installed.
        .args(["-m", "pip", "install", "--no-compile", "--quiet", "--disable-pip-version-check", "--no-input"])
        .arg("--requirement")
        .arg(requirements_path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(StackError::io("running pip"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(StackError::PipFailed { detail: tail(&output.stderr, 1) })
}
