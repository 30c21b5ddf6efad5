//! The commands, one file for each part of the API.

mod follow;
pub(crate) mod hunt;
mod incident;
pub(crate) mod incidents;
pub(crate) mod invitations;
pub(crate) mod jobs;
pub(crate) mod shell;
pub mod tenants;
pub(crate) mod token;

use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::Value;

use crate::{api::Api, output::Output, problem::Problem, text::shown};

/// The most failures in a row that a wait for progress outlives.
const MAX_FAILURES_IN_A_ROW: usize = 20;

/// The wait after a failure, unless the response names a longer one.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// A command's connection and its output.
pub(crate) struct Session {
    pub(crate) api: Api,
    pub(crate) out: Output,
}

impl Session {
    /// Reads the progress of something that runs at the server. A failure that passes does not end the wait for it.
    pub(crate) async fn get_patiently(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        bar: &ProgressBar,
    ) -> Result<Value, Problem> {
        let mut failures = 0;
        loop {
            match self.api.get(path, query).await {
                Err(problem) if is_passing(&problem) && failures < MAX_FAILURES_IN_A_ROW => {
                    failures += 1;
                    bar.suspend(|| self.note_retry(&problem));
                    let named = problem.retry_after_seconds.map(Duration::from_secs).unwrap_or_default();
                    tokio::time::sleep(named.max(RETRY_INTERVAL)).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Says on standard error that a request has failed and is repeated.
    pub(crate) fn note_retry(&self, problem: &Problem) {
        let (code, detail) = (shown(&problem.code), shown(&problem.detail));
        self.out.note(format_args!("mandate: {code}: {detail} It is tried again."));
    }
}

/// Returns true if the same request may succeed later.
pub(crate) fn is_passing(problem: &Problem) -> bool {
    matches!(
        problem.code.as_str(),
        "throttled" | "upstream_error" | "upstream_unreachable" | "deadline_exceeded" | "unreachable" | "gone"
    )
}

/// The member of a JSON object as text; a dash for null and for what is no text.
pub(crate) fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or("–")
}

/// Reads all pages of a list.
pub(crate) async fn all_pages(
    api: &Api,
    path: &[&str],
    query: &[(&str, &str)],
    member: &str,
) -> Result<Vec<Value>, Problem> {
    let mut items = Vec::new();
    let mut next: Option<String> = None;
    loop {
        let mut page_query = vec![("limit", "100")];
        page_query.extend_from_slice(query);
        page_query.extend(next.as_deref().map(|next| ("next", next)));
        let mut page = api.get(path, &page_query).await?;
        if let Value::Array(more) = page[member].take() {
            items.extend(more);
        }
        match page["next"].as_str() {
            Some(token) => next = Some(token.to_owned()),
            None => return Ok(items),
        }
    }
}
