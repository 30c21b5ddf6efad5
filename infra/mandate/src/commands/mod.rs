//! The commands, one file for each part of the API.

pub mod hunt;
pub(crate) mod incidents;
pub(crate) mod invitations;
pub(crate) mod jobs;
pub(crate) mod shell;
pub mod tenants;
pub(crate) mod token;

use serde_json::Value;

use crate::{api::Api, output::Output, problem::Problem};

/// A command's connection and its output.
pub(crate) struct Session {
    pub(crate) api: Api,
    pub(crate) out: Output,
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
