//! The client of one tenant's incident API. It pays for its own calls.

use std::{sync::Arc, time::Duration};

use http::{StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use reqwest::RequestBuilder;
use serde_json::Value;
use url::Url;

use super::{
    hunting::HuntingResult,
    list::IncidentList,
    query::IncidentQuery,
    response::{ResponseClass, classify_response},
    row_memory::{Row, RowMemory},
};
use crate::{
    clock::Clock,
    entra::{access_token::AccessToken, token_cache::Tokens},
    error::{Call, Error, Result},
    http::{Deadline, HttpClient, Response, send},
    incident::{record::Alerts, span::Span},
    microsoft::{Endpoints, IncidentApi},
    queue::SyncKind,
    registry::{Registry, budget::BudgetOf, lease::Lease},
    telemetry::{self, Metric},
    tenant::{Reason, TenantId},
};

/// The longest time that one response may take, from its first byte to its last.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(25);

/// The longest time for which a worker relies on `throttled_until` as it last read it. Other functions write it, too.
const THROTTLING_MAX_AGE: SignedDuration = SignedDuration::from_secs(2);

/// The incident APIs of all tenants. Requests are sent only by the [`TenantClient`] that [`Incidents::of`] returns.
#[derive(Clone)]
pub struct Incidents {
    endpoints: Endpoints,
    http: HttpClient,
    tokens: Tokens,
    registry: Registry,
    clock: Clock,
    row_memory: RowMemory,
}

/// The access token that a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFreshness {
    /// Any cached token that is still usable.
    Cached,
    /// A token that Entra issued less than this time ago.
    YoungerThan(SignedDuration),
}

/// The budget that a client takes its calls out of.
pub enum CallBudget<'a> {
    /// The budget as a worker's lease has it, for work of this kind. The calls are stored when the lease is committed.
    Lease(&'a mut Lease, SyncKind),
    /// The budget in the table, for a person who waits. Each call is stored at once.
    Table,
}

/// One tenant's incident API until a deadline.
///
/// Each method takes one call out of the budget before its request leaves. Where Microsoft refuses the token, the request
/// is repeated once with a fresh token, for the same call of the budget. A `Retry-After` is stored for all functions, and
/// in the lease.
///
/// # Errors
/// Each method returns [`Error::Throttled`] without a request when the budget is used up or Microsoft asked to wait. It
/// returns [`Error::Refused`] with [`Reason::RoleMissing`] only if a fresh token lacks the role that the call needs, and
/// with [`Reason::ResourceAbsent`] if the API forbids the call in spite of the role.
pub struct TenantClient<'a> {
    incidents: &'a Incidents,
    tenant: TenantId,
    api: IncidentApi,
    budget: CallBudget<'a>,
    deadline: Deadline,
}

impl Incidents {
    /// A client of the API hosts in `endpoints`.
    pub fn new(endpoints: Endpoints, http: HttpClient, tokens: Tokens, registry: Registry, clock: Clock) -> Self {
        let row_memory = RowMemory::new(http.clone());
        Self { endpoints, http, tokens, registry, clock, row_memory }
    }

    /// The client of one tenant.
    pub fn of<'a>(
        &'a self,
        tenant: TenantId,
        api: IncidentApi,
        budget: CallBudget<'a>,
        deadline: Deadline,
    ) -> TenantClient<'a> {
        TenantClient { incidents: self, tenant, api, budget, deadline }
    }
}

impl TenantClient<'_> {
    /// Shows by one small read with a given token that the tenant's incidents are readable.
    pub async fn probe(&mut self, token: &AccessToken) -> Result<()> {
        let now = self.incidents.clock.now();
        self.take_call(Call::ListIncidents, now).await?;
        let span = Span { from: now, to: None };
        let query = IncidentQuery { top: 1, alerts: Alerts::Omitted, ..IncidentQuery::of(span, self.api) };
        let request = self.incidents.http.get(self.list_url(&query));
        let response = send_with_token(request, token, Call::ListIncidents, self.deadline).await?;
        self.successful(Call::ListIncidents, response).await?.bytes().await.map(|_| ())
    }

    /// Requests a list. Its rows are still to be read.
    pub async fn list(&mut self, query: &IncidentQuery, freshness: TokenFreshness) -> Result<IncidentList> {
        let url = self.list_url(query);
        let deadline = self.deadline.at_most(RESPONSE_TIMEOUT);
        let response = self.request(Call::ListIncidents, freshness, deadline, |http| http.get(url.clone())).await;
        response.map(|response| IncidentList::new(url.clone(), response, &self.incidents.row_memory))
    }

    /// Returns one incident exactly as Microsoft sent it. A large one waits until the process has memory for it.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the tenant has no such incident, [`Error::Malformed`] where it is larger than
    /// `max_bytes`.
    pub async fn incident(&mut self, incident_id: &str, alerts: Alerts, max_bytes: usize) -> Result<Row<'static>> {
        let mut url = self.incident_url(incident_id);
        if alerts == Alerts::Included && self.api == IncidentApi::Graph {
            url.set_query(Some("$expand=alerts"));
        }
        let deadline = self.deadline.at_most(RESPONSE_TIMEOUT);
        let response =
            self.request(Call::GetIncident, TokenFreshness::Cached, deadline, |http| http.get(url.clone())).await;
        let response = response.map_err(no_such_incident)?;
        let too_large = response.malformed();
        body_up_to(max_bytes, response, &self.incidents.row_memory).await?.ok_or(too_large)
    }

    /// Changes one incident. `body` is in the API's own form.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the tenant has no such incident.
    pub async fn change(&mut self, incident_id: &str, body: &Value) -> Result<()> {
        let url = self.incident_url(incident_id);
        let request = |http: &HttpClient| with_json(http.patch(url.clone()), body);
        let response = self.request(Call::UpdateIncident, TokenFreshness::Cached, self.deadline, request).await;
        response.map(drop).map_err(no_such_incident)
    }

    /// Adds a comment to an incident. Only Graph has this call; Defender takes a comment as part of a change.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the tenant has no such incident.
    pub async fn comment(&mut self, incident_id: &str, body: &Value) -> Result<()> {
        let path = format!("{}/{incident_id}/comments", IncidentApi::Graph.incidents_path());
        let url = self.incidents.endpoints.graph.join(&path);
        let request = |http: &HttpClient| with_json(http.post(url.clone()), body);
        let response = self.request(Call::AddComment, TokenFreshness::Cached, self.deadline, request).await;
        response.map(drop).map_err(no_such_incident)
    }

    /// Runs an advanced hunting query. Only Graph has this call. The rows are still to be read.
    ///
    /// # Errors
    /// [`Error::QueryFailed`] where Microsoft refuses the query itself.
    pub async fn hunt(&mut self, body: &Value) -> Result<HuntingResult> {
        let url = self.incidents.endpoints.graph.join("/v1.0/security/runHuntingQuery");
        let request = |http: &HttpClient| with_json(http.post(url.clone()), body);
        let response = self.request(Call::Hunt, TokenFreshness::Cached, self.deadline, request).await?;
        Ok(HuntingResult::new(response, &self.incidents.row_memory))
    }

    fn list_url(&self, query: &IncidentQuery) -> Url {
        query.url(self.incidents.endpoints.of(self.api), self.api)
    }

    fn incident_url(&self, incident_id: &str) -> Url {
        let path = format!("{}/{incident_id}", self.api.incidents_path());
        self.incidents.endpoints.of(self.api).join(&path)
    }

    /// Takes a call out of the budget and sends a request with a token of the tenant. A refused token is dropped, and a
    /// fresh one tried once; after a 401, once in all work under one lease, and only if the refused one came from the cache.
    async fn request(
        &mut self,
        call: Call,
        freshness: TokenFreshness,
        deadline: Deadline,
        request: impl Fn(&HttpClient) -> RequestBuilder,
    ) -> Result<Response> {
        let started = self.incidents.clock.now();
        self.take_call(call, started).await?;
        let Incidents { tokens, http, .. } = self.incidents;
        let token: Arc<AccessToken> = match freshness {
            TokenFreshness::Cached => tokens.access_token(&self.tenant, self.api, deadline).await?,
            TokenFreshness::YoungerThan(age) => {
                tokens.access_token_no_older_than(&self.tenant, self.api, age, deadline).await?
            }
        };
        let response = send_with_token(request(http), &token, call, deadline).await?;
        // A token that this call requested itself is as fresh as another one would be.
        let is_final = |client: &mut Self| token.is_requested_since(started) || !client.may_replace_token();
        if !refuses_token(&response) || response.status() == StatusCode::UNAUTHORIZED && is_final(self) {
            return self.successful(call, response).await;
        }
        let fresh = tokens.fresh_access_token(&self.tenant, self.api, deadline).await;
        // Without a fresh token, the refused one must not be used again.
        let fresh = fresh.inspect_err(|_| tokens.forget(&self.tenant))?;
        if fresh.roles().is_some_and(|roles| !allows(self.api, roles, call)) {
            return Err(Error::Refused(Reason::RoleMissing));
        }
        let response = send_with_token(request(http), &fresh, call, deadline).await?;
        self.successful(call, response).await
    }

    /// Returns true if a fresh token may show that the token caused a 401: once in all work under one lease.
    fn may_replace_token(&mut self) -> bool {
        match &mut self.budget {
            CallBudget::Table => true,
            CallBudget::Lease(lease, _) => !std::mem::replace(&mut lease.token_was_replaced, true),
        }
    }

    /// The budget of a call. Hunting has its own.
    fn budget_of(&self, call: Call) -> BudgetOf {
        if call == Call::Hunt { BudgetOf::Hunting } else { BudgetOf::Incidents(self.api) }
    }

    async fn take_call(&mut self, call: Call, now: Timestamp) -> Result<()> {
        let registry = &self.incidents.registry;
        let of = self.budget_of(call);
        match &mut self.budget {
            CallBudget::Table => registry.take_call(&self.tenant, of, now).await,
            CallBudget::Lease(lease, kind) => {
                if now >= lease.throttling_read_at + THROTTLING_MAX_AGE {
                    let stored = registry.feed(&self.tenant).await?;
                    if let Some(until) = stored.and_then(|feed| feed.budget(self.api).throttled_until) {
                        lease.feed.set_throttled_until(self.api, until);
                    }
                    lease.throttling_read_at = now;
                }
                lease.take_call(self.api, *kind, now)
            }
        }
    }

    /// Returns a successful response, or the error that it stands for.
    async fn successful(&mut self, call: Call, response: Response) -> Result<Response> {
        let status = response.status();
        if !status.is_success() {
            let (status, microsoft_request_id) = (status.as_u16(), response.request_id());
            tracing::warn!(api = self.api.as_str(), status, microsoft_request_id, "Microsoft refused {call}");
        }
        match classify_response(response, self.incidents.clock.now()).await {
            ResponseClass::Success(response) => Ok(response),
            ResponseClass::Throttled { until } => {
                telemetry::metrics(None, &[Metric::count("Throttled", 1)]);
                Err(self.throttled(call, until).await)
            }
            ResponseClass::Failed(error) => Err(error),
        }
    }

    /// Stores a wait that Microsoft asks for: in the table for all functions, in the lease for the rest of its work.
    async fn throttled(&mut self, call: Call, until: Timestamp) -> Error {
        let of = self.budget_of(call);
        if let CallBudget::Lease(lease, _) = &mut self.budget {
            lease.feed.set_throttled_until(self.api, until);
        }
        match self.incidents.registry.set_throttled_until(&self.tenant, of, until).await {
            Ok(()) => Error::Throttled { until },
            Err(error) => error,
        }
    }
}

/// Adds a JSON body. Microsoft reads letters beyond ASCII right only where the encoding is named.
/// <https://learn.microsoft.com/graph/api/security-security-runhuntingquery>
fn with_json(request: RequestBuilder, body: &Value) -> RequestBuilder {
    request.header(header::CONTENT_TYPE, "application/json; charset=utf-8").json(body)
}

async fn send_with_token(
    request: RequestBuilder,
    token: &AccessToken,
    call: Call,
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

/// Returns true if these app roles allow a call to `api`.
fn allows(api: IncidentApi, roles: &[String], call: Call) -> bool {
    let has = |needed: &str| roles.iter().any(|role| role == needed);
    match call {
        Call::UpdateIncident | Call::AddComment => has(api.write_role()),
        Call::Hunt => has(api.hunting_role()),
        _ => api.readable_with(roles),
    }
}

fn refuses_token(response: &Response) -> bool {
    matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Reads a whole body. `None`: it is larger than `max_bytes`.
async fn body_up_to(max_bytes: usize, mut response: Response, memory: &RowMemory) -> Result<Option<Row<'static>>> {
    let (mut body, mut arriving) = (Vec::new(), memory.arriving_row());
    while let Some(bytes) = response.chunk().await? {
        if body.len() + bytes.len() > max_bytes {
            return Ok(None);
        }
        body.extend_from_slice(&bytes);
        response.deadline().run(arriving.reserve(body.len())).await?;
    }
    Ok(Some(arriving.complete(body.into())))
}

/// A 404 means an unknown incident where one incident was requested. Elsewhere the API itself is not there.
fn no_such_incident(error: Error) -> Error {
    match error {
        Error::Upstream { status: 404, call: Call::GetIncident | Call::UpdateIncident | Call::AddComment } => {
            Error::NotFound
        }
        other => other,
    }
}
