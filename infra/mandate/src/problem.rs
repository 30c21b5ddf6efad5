//! The error of a command: what the API reported, or why it could not be reached.

use std::{error::Error, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A failure. `code`, `title`, `detail` and `reason` are the API's own words (RFC 9457) where it responded, and
/// this program's where it did not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The HTTP status; `None` if no response arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// A word for programs, like `not_found`.
    pub code: String,
    /// The short name of this kind of problem.
    pub title: String,
    /// The cause, this time.
    pub detail: String,
    /// The reason that the API names, like `role_missing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The identifier of the request in the logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The seconds after which the API may be called again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
    /// The next step of the person, where the program knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Problem {
    /// A problem that this program found itself.
    pub fn new(code: &str, detail: impl Into<String>) -> Self {
        Self {
            status: None,
            code: code.to_owned(),
            title: title(code).to_owned(),
            detail: detail.into(),
            reason: None,
            instance: None,
            retry_after_seconds: None,
            advice: None,
        }
    }

    /// The problem of a command line that cannot be parsed.
    pub(crate) fn usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        let said = text.split("\n\nUsage:").next().unwrap_or_default().split("\n\nFor more").next().unwrap_or_default();
        let words: Vec<_> = said.trim_start_matches("error:").split_whitespace().collect();
        Self::new("usage", words.join(" "))
    }

    /// The same problem with what the person can do next.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The problem in the body of a response that reports a failure.
    pub(crate) fn of_response(status: u16, body: &[u8], retry_after_seconds: Option<u64>) -> Self {
        let members: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| members[name].as_str().map(str::to_owned);
        let mut problem = match (text("code"), text("detail")) {
            (Some(code), Some(detail)) => {
                Self { title: text("title").unwrap_or_else(|| title(&code).to_owned()), ..Self::new(&code, detail) }
            }
            // The gateway's own refusals have the gateway's body.
            _ => match status {
                401 | 403 => Self::new("forbidden", text("message").unwrap_or_else(|| "Forbidden".into())),
                404 => Self::new("no_such_route", "This address has no such route. Is it the API of Mandate?"),
                429 => Self::new("throttled", "The gateway lets no more requests in at the moment."),
                413 => Self::new("invalid_request", "The request is too large."),
                _ => Self::new(
                    "unexpected_response",
                    format!("The response has status {status} and no problem document."),
                ),
            },
        };
        problem.status = Some(status);
        problem.reason = text("reason");
        problem.instance = text("instance");
        problem.retry_after_seconds = retry_after_seconds;
        problem
    }
}

/// The words of the cause behind an error, such as a name that is not found, or a certificate that is not trusted.
pub(crate) fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

/// The title of a problem of this program's own.
fn title(code: &str) -> &'static str {
    match code {
        "forbidden" => "The caller may not do this",
        "no_api" => "The address of the API is not known",
        "no_credentials" => "No AWS credentials were found",
        "stack_not_readable" => "The stack could not be read",
        "unreachable" => "No response arrived",
        "usage" => "The arguments do not fit",
        _ => "The request failed",
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl Error for Problem {}
