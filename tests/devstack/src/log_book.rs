//! The output of the functions: kept in memory for tests, appended to one file per binary, and sent to subscribers.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    sync::broadcast,
};

use crate::error::StackError;

/// Lines of one function that are kept in memory. A stack may run for days; older lines are only in the files.
const MAX_LINES: usize = 100_000;

/// One line that a function printed.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// The binary of the function that printed it.
    pub binary: String,
    /// The line as printed; a line of standard error is `{"stderr": "…"}`.
    pub line: String,
}

#[derive(Debug)]
pub(crate) struct LogBook {
    directory: PathBuf,
    outputs: Mutex<BTreeMap<String, Output>>,
    followers: broadcast::Sender<LogLine>,
}

#[derive(Debug, Default)]
struct Output {
    lines: Vec<String>,
    file: Option<File>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
}

impl LogBook {
    /// Opens the directory and creates it if needed. Files of earlier runs are kept.
    pub(crate) fn open(directory: &Path) -> Result<Arc<Self>, StackError> {
        std::fs::create_dir_all(directory)
            .map_err(StackError::io(format!("making the log directory {}", directory.display())))?;
        let (followers, _) = broadcast::channel(4096);
        Ok(Arc::new(Self { directory: directory.to_owned(), outputs: Mutex::default(), followers }))
    }

    /// Deletes the files of earlier runs.
    pub(crate) fn delete_files(&self) -> Result<(), StackError> {
        let entries = std::fs::read_dir(&self.directory).map_err(StackError::io("reading the log directory"))?;
        for entry in entries.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "jsonl") {
                std::fs::remove_file(entry.path()).map_err(StackError::io("emptying the log directory"))?;
            }
        }
        Ok(())
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn lines(&self, binary: &str) -> Vec<String> {
        let outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        outputs.get(binary).map(|output| output.lines.clone()).unwrap_or_default()
    }

    pub(crate) fn follow(&self) -> broadcast::Receiver<LogLine> {
        self.followers.subscribe()
    }

    pub(crate) fn write(&self, binary: &str, channel: Channel, text: &str) {
        let line = match channel {
            Channel::Stdout => text.to_owned(),
            Channel::Stderr => serde_json::json!({ "stderr": text }).to_string(),
        };
        {
            let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
            let output = outputs.entry(binary.to_owned()).or_default();
            if output.file.is_none() {
                let path = self.directory.join(format!("{binary}.jsonl"));
                output.file = OpenOptions::new().create(true).append(true).open(path).ok();
            }
            if let Some(file) = &mut output.file {
                // One write per line, so that lines of several stacks do not mix. A full disk must not stop a function.
                let _ = file.write_all(format!("{line}\n").as_bytes());
            }
            if output.lines.len() == MAX_LINES {
                output.lines.drain(..MAX_LINES / 2);
            }
            output.lines.push(line.clone());
        }
        // There may be no subscriber.
        let _ = self.followers.send(LogLine { binary: binary.to_owned(), line });
    }

    /// Copies a pipe of a process line by line until it ends. Bytes that are not UTF-8 are replaced.
    pub(crate) async fn copy(self: Arc<Self>, binary: String, channel: Channel, pipe: impl AsyncRead + Unpin) {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line);
                    self.write(&binary, channel, text.trim_end_matches(['\n', '\r']));
                }
            }
        }
    }
}
