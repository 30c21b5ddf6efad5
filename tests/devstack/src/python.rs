//! The Python virtual environment of the local AWS. It is created once, and again when the requirements change.

use std::{
    fs::File,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use crate::{console::Progress, error::StackError, functions::tail, paths};

/// Returns the path of the environment's interpreter. Creates the environment first if it is missing or outdated.
pub async fn interpreter(progress: &mut dyn Progress) -> Result<PathBuf, StackError> {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("requirements.txt");
    let requirements_text =
        std::fs::read_to_string(&requirements).map_err(StackError::io("reading requirements.txt"))?;
    let state = paths::state();
    std::fs::create_dir_all(&state).map_err(StackError::io(format!("creating {}", state.display())))?;
    let venv = state.join("venv");
    let python = venv.join("bin").join("python");
    let stamp = venv.join("requirements.installed");
    if is_up_to_date(&stamp, &requirements_text) {
        return Ok(python);
    }
    let _lock = lock(state.join("venv.lock")).await?;
    // Another process may have created it while this one waited.
    if is_up_to_date(&stamp, &requirements_text) {
        return Ok(python);
    }
    progress.step("creating the Python environment of the local AWS (only the first time; about a minute)");
    create_venv(&venv).await?;
    install_packages(&python, &requirements, progress).await?;
    std::fs::write(&stamp, &requirements_text).map_err(StackError::io("stamping the Python environment"))?;
    Ok(python)
}

fn is_up_to_date(stamp: &Path, requirements_text: &str) -> bool {
    std::fs::read_to_string(stamp).is_ok_and(|installed| installed == requirements_text)
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

async fn create_venv(venv: &Path) -> Result<(), StackError> {
    let output = Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(venv)
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

async fn install_packages(python: &Path, requirements: &Path, progress: &mut dyn Progress) -> Result<(), StackError> {
    let doing = "running pip";
    let mut pip = Command::new(python)
        .args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--requirement"])
        .arg(requirements)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(StackError::io(doing))?;
    if let Some(stdout) = pip.stdout.take() {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.starts_with("Collecting") {
                progress.detail(line.split(" (").next().unwrap_or(&line));
            } else if line.starts_with("Installing") {
                progress.detail("Installing them");
            }
        }
    }
    let output = pip.wait_with_output().await.map_err(StackError::io(doing))?;
    if output.status.success() {
        return Ok(());
    }
    Err(StackError::PipFailed { detail: tail(&output.stderr, 1) })
}
