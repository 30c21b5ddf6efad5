//! What the functions print: kept for the tests, appended to a file per binary, and sent to who follows.

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

/// A stack may be up for days; what is older is in the files.
const MOST_LINES: usize = 100_000;

/// One line that a function printed.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// The function's binary.
    pub binary: String,
    /// The line as printed; a line of standard error is `{"stderr": "…"}`.
    pub line: String,
}

#[derive(Debug)]
pub(crate) struct LogBook {
    directory: PathBuf,
    books: Mutex<BTreeMap<String, Book>>,
    followers: broadcast::Sender<LogLine>,
}

#[derive(Debug, Default)]
struct Book {
    lines: Vec<String>,
    file: Option<File>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
}

impl LogBook {
    /// Opens the folder, without the lines of earlier runs if it is to be `fresh`.
    pub(crate) fn open(directory: &Path, fresh: bool) -> Result<Arc<Self>, StackError> {
        std::fs::create_dir_all(directory)
            .map_err(StackError::io(format!("making the log directory {}", directory.display())))?;
        let entries = std::fs::read_dir(directory).map_err(StackError::io("reading the log directory"))?;
        for entry in entries.flatten().filter(|_| fresh) {
            if entry.path().extension().is_some_and(|extension| extension == "jsonl") {
                std::fs::remove_file(entry.path()).map_err(StackError::io("emptying the log directory"))?;
            }
        }
        let (followers, _) = broadcast::channel(4096);
        Ok(Arc::new(Self { directory: directory.to_owned(), books: Mutex::default(), followers }))
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn lines(&self, binary: &str) -> Vec<String> {
        let books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        books.get(binary).map(|book| book.lines.clone()).unwrap_or_default()
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
            let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
            let book = books.entry(binary.to_owned()).or_default();
            if book.file.is_none() {
                let path = self.directory.join(format!("{binary}.jsonl"));
                book.file = OpenOptions::new().create(true).append(true).open(path).ok();
            }
            if let Some(file) = &mut book.file {
                // One write a line, so that lines of several stacks do not mix. A full disk must not stop a function.
                let _ = file.write_all(format!("{line}\n").as_bytes());
            }
            if book.lines.len() == MOST_LINES {
                book.lines.drain(..MOST_LINES / 2);
            }
            book.lines.push(line.clone());
        }
        // Nobody may be following.
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
