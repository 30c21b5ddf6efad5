//! A browser of the simulator's own, which completes the pages of a sign-in or an admin consent as a person would.

use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;

use crate::{
    Decision,
    entra::flow::SESSION,
    faults::Host,
    http::{BodyPart, Request, encode},
    respond::respond,
    serve::Shared,
};

/// A person's way through the pages that a URL starts.
pub(crate) struct PageWalk<'a> {
    pub(crate) url: &'a str,
    pub(crate) tenant_id: &'a str,
    /// Name or object ID of the person.
    pub(crate) user: &'a str,
    /// The button on the consent page; `None` for a sign-in, which has no such page.
    pub(crate) decision: Option<Decision>,
}

impl PageWalk<'_> {
    /// Completes the pages until they redirect away from the login host, and returns that URL. The error is the HTML of the
    /// page at which the walk ended.
    pub(crate) fn complete(&self, shared: &Shared) -> Result<String, String> {
        let path_and_query = self.url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
        let (path, query) = path_and_query.ok_or("not a URL")?.split_once('?').unwrap_or_default();
        let mut request = Request {
            host: Host::Entra,
            method: "GET".to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        // Account picker, permissions prompt and consent: no flow has more pages.
        for _ in 0..5 {
            let (response, _) = respond(&mut shared.world(), &request);
            if let Some(location) = response.header("location") {
                return Ok(location.to_owned());
            }
            let cookie = response.header("set-cookie").and_then(|cookie| cookie.split(';').next()).map(str::to_owned);
            let text: String = response
                .body
                .into_iter()
                .map(|part| match part {
                    BodyPart::Text(text) => text,
                    BodyPart::Generated { .. } => String::new(),
                })
                .collect();
            let Some(flow) = attribute_value(&text, "name=\"flow\" value=\"") else { return Err(text) };
            let consenting = text.contains("action=\"/consent\"");
            let choice = if consenting {
                let accepts = self.decision == Some(Decision::Accept) && text.contains("id=\"accept\"");
                format!("decision={}", if accepts { "accept" } else { "cancel" })
            } else {
                let accept = if text.contains("name=\"accept\"") { "&accept=yes" } else { "" };
                format!("user={}{accept}", encode(&format!("{}/{}", self.tenant_id, self.user)))
            };
            "POST".clone_into(&mut request.method);
            request.path = if consenting { "/consent".to_owned() } else { "/login".to_owned() };
            request.query.clear();
            request.headers.insert("content-type", HeaderValue::from_static("application/x-www-form-urlencoded"));
            if let Some(value) =
                cookie.filter(|cookie| cookie.starts_with(SESSION)).and_then(|cookie| cookie.parse().ok())
            {
                request.headers.insert("cookie", value);
            }
            request.body = format!("flow={}&{choice}", encode(flow)).into();
        }
        Err("the pages did not end in a redirect".to_owned())
    }
}

fn attribute_value<'a>(html: &'a str, start: &str) -> Option<&'a str> {
    let rest = &html[html.find(start)? + start.len()..];
    rest.split('"').next()
}
