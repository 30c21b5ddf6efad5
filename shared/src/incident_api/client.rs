//! Reads incidents of one tenant from one surface.

use std::{sync::Arc, time::Duration};

use http::{StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use reqwest::RequestBuilder;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::{
    odata::{MAX_ROW_BYTES, ODataEnvelope, ODataReader},
    query::IncidentQuery,
};
use crate::{
    clock::Clock,
    entra::{access_token::AccessToken, token_cache::Tokens},
    error::{Error, Result},
    http::{Deadline, HttpClient, Response, send},
    incident::span::Span,
    microsoft::{Endpoints, IncidentApi},
    registry::Registry,
    tenant::{Reason, TenantId},
};

/// How long one answer may take from its first byte to its last.
const LONGEST_ANSWER: Duration = Duration::from_secs(25);

/// The largest incident that is read for somebody who waits: an answer to them is smaller still.
const LARGEST_LIVE: usize = 16 << 20;

const LIST: &str = "the list of incidents";
const ONE: &str = "one incident";

/// The call that changes an incident, as errors name it.
pub const CHANGE: &str = "the change of an incident";

/// The call that adds a comment, as errors name it.
pub const COMMENT: &str = "the comment on an incident";

/// The call that hunts, as errors name it.
pub const HUNT: &str = "the hunting query";

/// The pause after a 429 that names none.
const DEFAULT_PAUSE: SignedDuration = SignedDuration::from_secs(60);

/// The client for both surfaces.
#[derive(Clone)]
pub struct Incidents {
    endpoints: Endpoints,
    outbound: HttpClient,
    tokens: Tokens,
    registry: Registry,
    clock: Clock,
}

/// Which token a call may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenFreshness {
    /// Whatever is cached.
    Cached,
    /// One that Entra has confirmed lately.
    Confirmed,
}

/// How old a token may be that a poll uses. Entra refuses the next one once consent is withdrawn, and the interface
/// promises to notice within 30 seconds of polling. A change relies on it as well: consent to writing may be as fresh.
pub const CONFIRMED: SignedDuration = SignedDuration::from_secs(25);

/// A list as it arrives.
pub struct IncidentList {
    answer: Response,
    rows: ODataReader,
    count: u32,
    partial: bool,
}

/// The end of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct ListEnd {
    /// Rows that came.
    pub rows: u32,
    /// Whether Microsoft says that there are more.
    pub more: bool,
    /// Whether Microsoft says that a part of it could not be had (206).
    pub partial: bool,
    /// Microsoft's time when it began to answer.
    pub date: Option<Timestamp>,
}

impl IncidentList {
    /// The next row, as it was sent; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(row) = self.rows.next_row() {
                self.count += 1;
                return Ok(Some(row));
            }
            match self.answer.chunk().await? {
                Some(bytes) => self.rows.push(&bytes).map_err(|_| self.answer.unexpected_status())?,
                None => return Ok(None),
            }
        }
    }

    /// What is known once all rows were taken.
    pub fn end(self) -> Result<ListEnd> {
        let unexpected_status = self.answer.unexpected_status();
        let date = self.answer.date();
        let ODataEnvelope { next_link, .. } = self.rows.finish().map_err(|_| unexpected_status)?;
        Ok(ListEnd { rows: self.count, more: next_link.is_some(), partial: self.partial, date })
    }
}

impl Incidents {
    /// Speaks to the API hosts of `endpoints`.
    pub fn new(endpoints: Endpoints, outbound: HttpClient, tokens: Tokens, registry: Registry, clock: Clock) -> Self {
        Self { endpoints, outbound, tokens, registry, clock }
    }

    /// One small live read with a given token: shows that the tenant's incidents can be had.
    pub async fn probe(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        token: &AccessToken,
        deadline: Deadline,
    ) -> Result<()> {
        let now = self.clock.now();
        self.registry.take_call(tenant, api, now).await?;
        let query = IncidentQuery { top: 1, alerts: false, ..IncidentQuery::of(Span { from: now, to: None }, api) };
        let request = self.outbound.get(query.url(self.endpoints.of(api), api));
        let answer = self.send_with(request, token, LIST, deadline).await?;
        let answer = match answer.status() {
            StatusCode::UNAUTHORIZED => return Err(Error::Refused(Reason::RoleMissing)),
            _ => self.checked(tenant, api, answer).await?,
        };
        answer.bytes().await.map(|_| ())
    }

    /// Asks for a list, for a poll: with a token that Entra has confirmed lately.
    pub async fn list(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        query: &IncidentQuery,
        deadline: Deadline,
    ) -> Result<IncidentList> {
        self.list_trusting(tenant, api, query, TokenFreshness::Confirmed, deadline).await
    }

    /// Asks for a list, for a person who waits.
    pub async fn list_live(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        query: &IncidentQuery,
        deadline: Deadline,
    ) -> Result<IncidentList> {
        self.list_trusting(tenant, api, query, TokenFreshness::Cached, deadline).await
    }

    async fn list_trusting(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        query: &IncidentQuery,
        trust: TokenFreshness,
        deadline: Deadline,
    ) -> Result<IncidentList> {
        let url = query.url(self.endpoints.of(api), api);
        let deadline = deadline.at_most(LONGEST_ANSWER);
        let request = || self.outbound.get(url.clone());
        let answer = self.ask(tenant, api, request, LIST, trust, deadline).await?;
        let partial = answer.status() == StatusCode::PARTIAL_CONTENT;
        Ok(IncidentList { answer, rows: ODataReader::default(), count: 0, partial })
    }

    /// One incident as it was sent.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the tenant has no such incident, [`Error::Upstream`] where it is larger than any row of
    /// a list may be.
    pub async fn one(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        incident_id: &str,
        alerts: bool,
        deadline: Deadline,
    ) -> Result<Vec<u8>> {
        self.one_within(MAX_ROW_BYTES, tenant, api, (incident_id, alerts), deadline).await
    }

    /// One incident with its alerts, for a person who waits. [`Incidents::one`] takes in larger ones.
    pub async fn one_live(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        incident_id: &str,
        deadline: Deadline,
    ) -> Result<Vec<u8>> {
        self.one_within(LARGEST_LIVE, tenant, api, (incident_id, true), deadline).await
    }

    async fn one_within(
        &self,
        most: usize,
        tenant: &TenantId,
        api: IncidentApi,
        (incident_id, alerts): (&str, bool),
        deadline: Deadline,
    ) -> Result<Vec<u8>> {
        let mut url = self.incident_url(api, incident_id);
        if alerts && api == IncidentApi::Graph {
            url.set_query(Some("$expand=alerts"));
        }
        let deadline = deadline.at_most(LONGEST_ANSWER);
        let request = || self.outbound.get(url.clone());
        let answer = self.ask(tenant, api, request, ONE, TokenFreshness::Cached, deadline).await;
        let mut answer = answer.map_err(no_such_incident)?;
        let mut body = Vec::new();
        while let Some(bytes) = answer.chunk().await? {
            if body.len() + bytes.len() > most {
                return Err(answer.unexpected_status());
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }

    /// Changes one incident: `body` is the surface's own form of it.
    pub async fn change(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        incident_id: &str,
        body: &Value,
        deadline: Deadline,
    ) -> Result<()> {
        let url = self.incident_url(api, incident_id);
        let request = || self.outbound.patch(url.clone()).json(body);
        let answer = self.ask(tenant, api, request, CHANGE, TokenFreshness::Cached, deadline).await;
        answer.map(drop).map_err(no_such_incident)
    }

    /// Adds a comment to an incident where the surface has a call of its own for that (Graph).
    pub async fn comment(&self, tenant: &TenantId, incident_id: &str, body: &Value, deadline: Deadline) -> Result<()> {
        let path = format!("{}/{incident_id}/comments", IncidentApi::Graph.incidents_path());
        let url = self.endpoints.graph.join(&path);
        let request = || self.outbound.post(url.clone()).json(body);
        let answer = self.ask(tenant, IncidentApi::Graph, request, COMMENT, TokenFreshness::Cached, deadline).await;
        answer.map(drop).map_err(no_such_incident)
    }

    /// Runs an advanced hunting query of one tenant.
    pub async fn hunt<T: serde::de::DeserializeOwned>(
        &self,
        tenant: &TenantId,
        body: &Value,
        deadline: Deadline,
    ) -> Result<T> {
        let url = self.endpoints.graph.join("/v1.0/security/runHuntingQuery");
        let request = || self.outbound.post(url.clone()).json(body);
        let mut answer = self.ask(tenant, IncidentApi::Graph, request, HUNT, TokenFreshness::Cached, deadline).await?;
        let unexpected_status = answer.unexpected_status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            // Microsoft's own cap of a result is 50 MB; a Lambda answer holds 6.
            if bytes.len() + chunk.len() > 6 << 20 {
                return Err(Error::InvalidRequest(
                    "The result is too large for one answer. Ask for fewer rows.".into(),
                ));
            }
            bytes.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&bytes).map_err(|_| unexpected_status)
    }

    fn incident_url(&self, api: IncidentApi, incident_id: &str) -> Url {
        self.endpoints.of(api).join(&format!("{}/{incident_id}", api.incidents_path()))
    }

    /// Sends a request with a token of the tenant. A token that is refused is dropped, and a fresh one tried once.
    async fn ask(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        request: impl Fn() -> RequestBuilder,
        call: &'static str,
        trust: TokenFreshness,
        deadline: Deadline,
    ) -> Result<Response> {
        let token: Arc<AccessToken> = match trust {
            TokenFreshness::Cached => self.tokens.access_token(tenant, api, deadline).await?,
            TokenFreshness::Confirmed => {
                self.tokens.access_token_no_older_than(tenant, api, CONFIRMED, deadline).await?
            }
        };
        let answer = self.send_with(request(), &token, call, deadline).await?;
        let refused = matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        if !refused {
            return self.checked(tenant, api, answer).await;
        }
        let fresh = self.tokens.fresh_access_token(tenant, api, deadline).await?;
        let answer = self.send_with(request(), &fresh, call, deadline).await?;
        if answer.status() == StatusCode::FORBIDDEN || answer.status() == StatusCode::UNAUTHORIZED {
            self.tokens.forget(tenant);
        }
        self.checked(tenant, api, answer).await
    }

    async fn send_with(
        &self,
        request: RequestBuilder,
        token: &AccessToken,
        call: &'static str,
        deadline: Deadline,
    ) -> Result<Response> {
        let request = request
            .header(header::AUTHORIZATION, token.authorization())
            .header(header::ACCEPT, "application/json")
            .header(header::ACCEPT_ENCODING, "identity")
            // Without it newer members of enumerations are hidden behind `unknownFutureValue`.
            .header("prefer", "include-unknown-enum-members");
        send(request, call, deadline).await
    }

    /// An answer that is good to read, or the error that its status means.
    async fn checked(&self, tenant: &TenantId, api: IncidentApi, answer: Response) -> Result<Response> {
        let now = self.clock.now();
        let unexpected_status = answer.unexpected_status();
        match answer.status() {
            status if status.is_success() => Ok(answer),
            StatusCode::FORBIDDEN => {
                let disabled = error_code(answer).await.is_some_and(|code| code == "DisabledFeature");
                Err(Error::Refused(if disabled { Reason::ResourceAbsent } else { Reason::RoleMissing }))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let named = answer.retry_after(now);
                let pause = match named {
                    Some(pause) => pause,
                    None => pause_in_body(answer).await.unwrap_or(DEFAULT_PAUSE),
                };
                Err(self.held(tenant, api, now + pause.max(SignedDuration::from_secs(1))).await)
            }
            StatusCode::SERVICE_UNAVAILABLE => match answer.retry_after(now) {
                Some(pause) => Err(self.held(tenant, api, now + pause.max(SignedDuration::from_secs(1))).await),
                None => Err(unexpected_status),
            },
            _ => Err(unexpected_status),
        }
    }

    /// Notes a pause for all functions.
    async fn held(&self, tenant: &TenantId, api: IncidentApi, until: Timestamp) -> Error {
        match self.registry.set_throttled_until(tenant, api, until).await {
            Ok(()) => Error::Throttled { until },
            Err(error) => error,
        }
    }
}

/// What a 404 means where one incident was asked for. Elsewhere it is the API itself that is not there.
fn no_such_incident(error: Error) -> Error {
    match error {
        Error::Upstream { status: 404, call: ONE | CHANGE | COMMENT } => Error::NotFound,
        other => other,
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

async fn error_code(answer: Response) -> Option<String> {
    answer.json::<ErrorBody>().await.ok().map(|body| body.error.code)
}

async fn pause_in_body(answer: Response) -> Option<SignedDuration> {
    let body: ErrorBody = answer.json().await.ok()?;
    seconds_in(&body.error.message).map(SignedDuration::from_secs)
}

/// The number before the word "second" in an error's text, which is the only place where some 429 name their pause.
fn seconds_in(message: &str) -> Option<i64> {
    let words: Vec<&str> =
        message.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.windows(2).find_map(|pair| {
        let unit = pair[1].to_ascii_lowercase();
        let number: i64 = pair[0].parse::<u32>().ok()?.into();
        match unit.as_str() {
            _ if unit.starts_with("second") || unit == "s" || unit == "sec" => Some(number),
            _ if unit.starts_with("minute") || unit == "min" => Some(number * 60),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_found_in_an_error_s_text() {
        assert_eq!(seconds_in("Rate limit is exceeded. Try again in 42 seconds."), Some(42));
        assert_eq!(seconds_in("You can resume in 2 minutes"), Some(120));
        assert_eq!(seconds_in("Maximum of 50 calls per minute exceeded"), None);
        assert_eq!(seconds_in(""), None);
    }
}
