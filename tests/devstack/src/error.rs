//! Errors of the stack itself. Each prints as one line that says what to do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The reason why the stack did not start, or why a part of it failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum StackError {
    /// Another program listens on a port that the caller chose.
    PortTaken {
        /// The TCP port on the loopback address.
        port: u16,
    },
    /// No `python3` on the path.
    PythonMissing,
    /// `python3` cannot make virtual environments.
    VenvMissing {
        /// The last line that Python printed.
        detail: String,
    },
    /// The Python packages could not be installed.
    PipFailed {
        /// The last line that pip printed.
        detail: String,
    },
    /// The functions did not compile.
    BuildFailed {
        /// The last lines that cargo printed; empty if they went to the terminal already.
        detail: String,
    },
    /// The local AWS did not start.
    AwsNotReady {
        /// The last line that it printed.
        detail: String,
    },
    /// The template could not be deployed to the local AWS.
    DeployFailed {
        /// The last line that the deployment printed.
        detail: String,
    },
    /// The simulator of Microsoft did not start.
    SimulatorFailed {
        /// The simulator's own error message.
        detail: String,
    },
    /// A call to the local AWS failed.
    Aws {
        /// The failed operation, such as "reading a queue".
        doing: &'static str,
        /// The SDK's error with all its causes.
        detail: String,
    },
    /// A step of the app credential's rotation failed, and the rotation with it.
    RotationFailed {
        /// The step's name in Secrets Manager, such as `setSecret`.
        step: &'static str,
        /// The error that the function returned.
        error: FunctionError,
    },
    /// A call to our own HTTP API failed below HTTP.
    Http {
        /// The failed operation, such as "calling our HTTP API".
        doing: &'static str,
        /// The HTTP client's error message.
        detail: String,
    },
    /// A file or a process of the stack could not be handled.
    Io {
        /// The failed operation, such as "running cargo".
        doing: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The template has no such function, schedule or event source.
    Unknown {
        /// The kind of resource, such as "function".
        kind: &'static str,
        /// The name that was not found.
        name: String,
    },
}

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PortTaken { port } => {
                write!(f, "port {port} is taken by another program; choose others with `--port N`")
            }
            Self::PythonMissing => {
                f.write_str("python3 is not on PATH; install Python 3.10 or later for the local AWS")
            }
            Self::VenvMissing { detail } => {
                write!(
                    f,
                    "python3 cannot make a virtual environment (on Debian: apt-get install python3-venv): {detail}"
                )
            }
            Self::PipFailed { detail } => write!(f, "pip could not install the local AWS: {detail}"),
            Self::BuildFailed { detail } if detail.is_empty() => {
                f.write_str("the functions do not compile (see above)")
            }
            Self::BuildFailed { detail } => write!(f, "the functions do not compile: {detail}"),
            Self::AwsNotReady { detail } => write!(f, "the local AWS did not start: {detail}"),
            Self::DeployFailed { detail } => write!(f, "infra/template.yaml could not be deployed locally: {detail}"),
            Self::SimulatorFailed { detail } => write!(f, "the simulator of Microsoft did not start: {detail}"),
            Self::Aws { doing, detail } | Self::Http { doing, detail } => write!(f, "{doing}: {detail}"),
            Self::RotationFailed { step, error } => write!(f, "the rotation failed at {step}: {error}"),
            Self::Io { doing, source } => write!(f, "{doing}: {source}"),
            Self::Unknown { kind, name } => write!(f, "the template has no {kind} named {name}"),
        }
    }
}

impl std::error::Error for StackError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::RotationFailed { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl StackError {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// A failed invocation, as Lambda reports it to a direct caller.
///
/// Beside the function's own error types there are `Sandbox.Timedout` after the deadline, `Runtime.ExitError` when the
/// process ended, and `Runtime.InvalidEntrypoint` when it could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionError {
    /// The member `errorType` of the function's error.
    #[serde(default)]
    pub error_type: String,
    /// The member `errorMessage` of the function's error.
    #[serde(default)]
    pub error_message: String,
}

impl FunctionError {
    pub(crate) fn new(error_type: &str, error_message: impl Into<String>) -> Self {
        Self { error_type: error_type.to_owned(), error_message: error_message.into() }
    }

    /// Returns `true` if the process was killed at its deadline, or because it asked for no event in time.
    pub fn is_timeout(&self) -> bool {
        self.error_type == TIMED_OUT
    }
}

pub(crate) const TIMED_OUT: &str = "Sandbox.Timedout";
pub(crate) const EXITED: &str = "Runtime.ExitError";

impl fmt::Display for FunctionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.error_type, self.error_message)
    }
}

impl std::error::Error for FunctionError {}

/// The error message of a whole program run, in one line: an error, or a check that failed.
#[derive(Debug)]
pub struct Failed(pub String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<StackError> for Failed {
    fn from(error: StackError) -> Self {
        Self(error.to_string())
    }
}

impl From<FunctionError> for Failed {
    fn from(error: FunctionError) -> Self {
        Self(format!("a function failed: {error}"))
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}
