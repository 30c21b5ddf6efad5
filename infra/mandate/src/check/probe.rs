//! Requests to Microsoft with a tenant's own token, and what their responses show. Nothing of it names a person.

use std::time::Duration;

use futures_util::StreamExt;
use http::{HeaderMap, Method, header};
use jiff::fmt::rfc2822;
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    http::{Endpoint, HttpClient},
    microsoft::IncidentApi,
    text::Secret,
};
use url::Url;

use crate::problem::{Problem, innermost};

const RESPONSE_TIMEOUT: Duration = Duration::from_mins(1);
/// The most empty pages before rows.
const MAX_EMPTY_PAGES: usize = 10;

const MAX_BODY_BYTES: usize = 64 << 20;

/// The longest wait after a 429, and the number of such waits for one request.
const MAX_WAIT: Duration = Duration::from_secs(30);
const MAX_WAITS: usize = 2;

/// One tenant's incident API.
pub(super) struct Probe<'a> {
    pub(super) http: &'a HttpClient,
    pub(super) endpoint: Endpoint,
    pub(super) api: IncidentApi,
    pub(super) token: Secret,
}

/// The reason why a point has no finding.
pub(super) enum Unjudged {
    /// The response says nothing about the point: a failure that may pass, or a refused caller.
    Point(String),
    /// No response arrived, so no further point is tried on this API.
    Api(Problem),
}

impl From<Problem> for Unjudged {
    fn from(problem: Problem) -> Self {
        Self::Api(problem)
    }
}

/// A response, as far as a check reads it.
pub(super) struct Probed {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
}

impl Probe<'_> {
    fn list_url(&self, options: &[(&str, &str)]) -> Url {
        let mut url = self.endpoint.join(self.api.incidents_path());
        for (name, value) in options {
            url.query_pairs_mut().append_pair(&format!("${name}"), value);
        }
        url
    }

    /// Lists incidents with these OData options, whose names are given without the `$`.
    pub(super) async fn list(&self, options: &[(&str, &str)]) -> Result<Probed, Unjudged> {
        self.send(Method::GET, self.list_url(options), None).await
    }

    /// The same without waits, and with a 429 as a result.
    pub(super) async fn list_at_once(&self, options: &[(&str, &str)]) -> Result<Probed, Problem> {
        self.send_once(Method::GET, self.list_url(options), None).await
    }

    /// The first page of a list that has rows, for points that its refusal says nothing about.
    pub(super) async fn read_rows(&self, top: &str) -> Result<Probed, Unjudged> {
        let probed = self.list_rows(&[("top", top)]).await?;
        if probed.is_success() { Ok(probed) } else { Err(Unjudged::Point(probed.outcome())) }
    }

    /// The first page of a list that has rows, past empty pages with a next link.
    pub(super) async fn list_rows(&self, options: &[(&str, &str)]) -> Result<Probed, Unjudged> {
        let mut probed = self.list(options).await?;
        for _ in 0..MAX_EMPTY_PAGES {
            let Some(link) = probed.next_link().filter(|_| probed.rows().is_empty()).map(str::to_owned) else { break };
            let Some(next) = self.follow(&link).await? else { break };
            probed = next;
        }
        Ok(probed)
    }

    /// Reads one incident.
    pub(super) async fn read(&self, id: &str) -> Result<Probed, Unjudged> {
        let url = self.endpoint.join(&format!("{}/{id}", self.api.incidents_path()));
        self.send(Method::GET, url, None).await
    }

    /// Follows a next link, if it leads to the same host.
    pub(super) async fn follow(&self, link: &str) -> Result<Option<Probed>, Unjudged> {
        match Url::parse(link) {
            Ok(url) if url.origin() == self.endpoint.join("/").origin() => {
                self.send(Method::GET, url, None).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Runs a hunting query.
    pub(super) async fn hunt(&self, query: &str) -> Result<Probed, Unjudged> {
        let path = match self.api {
            IncidentApi::Graph => "/v1.0/security/runHuntingQuery",
            IncidentApi::Defender => "/api/advancedhunting/run",
        };
        self.send(Method::POST, self.endpoint.join(path), Some(&json!({"Query": query}))).await
    }

    /// Sends a request, and once more after a 429 with a short wait. What is left is a success, or a refusal of the
    /// request itself.
    async fn send(&self, method: Method, url: Url, body: Option<&Value>) -> Result<Probed, Unjudged> {
        let mut waits = 0;
        loop {
            let probed = self.send_once(method.clone(), url.clone(), body).await?;
            match probed.wait().filter(|wait| *wait <= MAX_WAIT && waits < MAX_WAITS) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return probed.judged(),
            }
            waits += 1;
        }
    }

    async fn send_once(&self, method: Method, url: Url, body: Option<&Value>) -> Result<Probed, Problem> {
        let mut request = self.http.request(method, url).bearer_auth(self.token.expose()).timeout(RESPONSE_TIMEOUT);
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable = |error: reqwest::Error| {
            Problem::new(
                "unreachable",
                format!("Microsoft's {} API does not respond: {}.", self.api, innermost(&error)),
            )
        };
        let response = request.send().await.map_err(unreachable)?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let (mut bytes, mut stream) = (Vec::new(), response.bytes_stream());
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(unreachable)?);
            if bytes.len() > MAX_BODY_BYTES {
                return Err(Problem::new("unexpected_response", "A response has more than 64 MiB."));
            }
        }
        Ok(Probed { status, headers, body: serde_json::from_slice(&bytes).unwrap_or_default() })
    }
}

impl Probed {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Leaves out the responses that say nothing about what was asked for.
    fn judged(self) -> Result<Self, Unjudged> {
        let why = match self.status {
            200..300 if !self.body.is_object() => format!("{}, and the body is no JSON object", self.status),
            403 => format!("{}: the consent may lack a role", self.outcome()),
            429 => format!("{}, {}", self.outcome(), self.retry_after()),
            401 | 408 | 500.. => self.outcome(),
            _ => return Ok(self),
        };
        Err(Unjudged::Point(why))
    }

    /// The wait that a 429 names in its header, at least a second.
    fn wait(&self) -> Option<Duration> {
        let named = self.headers.get(header::RETRY_AFTER).filter(|_| self.status == 429)?.to_str().ok()?.trim();
        let seconds = named.parse().ok().or_else(|| {
            let until = rfc2822::parse(named).ok()?.timestamp();
            u64::try_from(until.duration_since(Clock::system().now()).as_secs().max(0) + 1).ok()
        })?;
        Some(Duration::from_secs(seconds.max(1)))
    }

    pub(super) fn rows(&self) -> &[Value] {
        self.body["value"].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn next_link(&self) -> Option<&str> {
        self.body["@odata.nextLink"].as_str()
    }

    /// The status, with the error code of the body where there is one.
    pub(super) fn outcome(&self) -> String {
        match self.body["error"]["code"].as_str().and_then(word) {
            Some(code) if !self.is_success() => format!("{} {code}", self.status),
            _ => self.status.to_string(),
        }
    }

    /// The form of `Retry-After`: never its value alone, because its form is what differs.
    pub(super) fn retry_after(&self) -> String {
        match self.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()) {
            Some(seconds) if seconds.bytes().all(|byte| byte.is_ascii_digit()) => format!("Retry-After {seconds} s"),
            Some(_) => "Retry-After as a date".to_owned(),
            None => "no Retry-After".to_owned(),
        }
    }

    /// The names of the headers that speak of limits.
    pub(super) fn limit_headers(&self) -> Vec<&str> {
        let names = self.headers.keys().map(header::HeaderName::as_str);
        let mut names: Vec<_> =
            names.filter(|name| name.contains("ratelimit") || name.contains("rate-limit")).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// A short word without anything that could be a name of a person or an address.
pub(super) fn word(text: &str) -> Option<&str> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    (plain && !text.is_empty() && text.len() <= 60).then_some(text)
}
