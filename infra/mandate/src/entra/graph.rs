//! Microsoft Graph as the operator calls it, with a person's own token.

use std::{io::Write, time::Duration};

use http::Method;
use serde_json::{Value, json};
use shared::{
    http::{Endpoint, HttpClient},
    text::Secret,
};

use crate::{
    problem::{Problem, innermost},
    text::safe_json,
};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_BODY_BYTES: usize = 4 << 20;

/// A client of Microsoft Graph. A dry run prints its writes and sends only its reads.
pub(super) struct Graph {
    pub(super) endpoint: Endpoint,
    pub(super) http: HttpClient,
    pub(super) token: Secret,
    pub(super) dry_run: bool,
}

impl Graph {
    /// GET of a path with OData options, whose names are given without the `$`.
    pub(super) async fn get(&self, path: &str, options: &[(&str, &str)]) -> Result<Value, Problem> {
        self.send(Method::GET, path, options, None).await
    }

    /// Prints a write on standard error, then sends it. A dry run stops after the first.
    pub(super) async fn write(&self, method: Method, path: &str, body: &Value) -> Result<Value, Problem> {
        let written = json!({"method": method.as_str(), "path": path, "body": body});
        let _ = writeln!(std::io::stderr().lock(), "{}", safe_json(&written));
        if self.dry_run { Ok(Value::Null) } else { self.send(method, path, &[], Some(body)).await }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        options: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value, Problem> {
        let mut url = self.endpoint.join(&format!("/v1.0{path}"));
        for (name, value) in options {
            url.query_pairs_mut().append_pair(&format!("${name}"), value);
        }
        let mut request =
            self.http.request(method.clone(), url).bearer_auth(self.token.expose()).timeout(RESPONSE_TIMEOUT);
        request = request.header("accept", "application/json");
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| {
            Problem::new("unreachable", format!("Microsoft Graph cannot be reached: {}.", innermost(&error)))
        })?;
        let status = response.status();
        let bytes = response.bytes().await.unwrap_or_default();
        let value: Value =
            if bytes.len() > MAX_BODY_BYTES { Value::Null } else { serde_json::from_slice(&bytes).unwrap_or_default() };
        if status.is_success() {
            return Ok(value);
        }
        let said = value["error"]["message"].as_str().unwrap_or_default();
        let problem = Problem::new("graph_refused", format!("{method} {path}: {} {said}", status.as_u16()));
        Err(if status.as_u16() == 401 || status.as_u16() == 403 {
            problem.advise("The signed-in person needs the role Application Administrator in this tenant.")
        } else {
            problem
        })
    }
}
