//! The routes that the page may use, and no others. Each is one route of the HTTP API; the token route is not among them.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde_json::{Map, Value, json};

use super::{Console, Mode, gate};
use crate::problem::Problem;

/// The limit of a request's body: a hunting query with the ids of its tenants.
const MAX_BODY_BYTES: usize = 256 << 10;

/// The parameters of the lists.
const PARAMETERS: [&str; 11] =
    ["assigned_to", "from", "history", "limit", "next", "severity", "sort", "status", "to", "wait_seconds", "format"];

/// The members of responses that the browser gets from no list.
const WITHHELD: [&str; 2] = ["consent_url", "access_token"];

type Shared = State<Arc<Console>>;

pub(super) fn api() -> Router<Arc<Console>> {
    Router::new()
        .route(gate::KEY_PATH, post(key))
        .route("/api/session", get(session))
        .route("/api/tenants", get(read))
        .route("/api/tenants/{tenant_id}", get(read).delete(change_tenant))
        .route("/api/tenants/{tenant_id}/pause", post(change_tenant))
        .route("/api/tenants/{tenant_id}/resume", post(change_tenant))
        .route("/api/tenants/{tenant_id}/sync", post(change_tenant))
        .route("/api/tenants/{tenant_id}/sync/{job_id}", get(read).delete(change_tenant))
        .route("/api/tenants/{tenant_id}/incidents", get(read))
        .route("/api/tenants/{tenant_id}/incidents/{incident_id}", get(read))
        .route("/api/incidents", get(read))
        .route("/api/invitations", get(read).post(invite))
        .route("/api/invitations/{invitation_id}", delete(revoke))
        .route("/api/hunting", post(hunt))
        .route("/api/hunting/{hunt_id}", get(read).delete(cancel_hunt))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
}

/// The response to what the console does not serve.
pub(super) async fn no_such_route() -> Response {
    refuse(&Problem { status: Some(404), ..Problem::new("not_found", "The console has no such route.") })
}

/// A problem as a response. What has no status happened between this server and the API.
pub(super) fn refuse(problem: &Problem) -> Response {
    let status = problem.status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::BAD_GATEWAY);
    let body = serde_json::to_vec(problem).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
}

fn respond(outcome: Result<Value, Problem>) -> Response {
    match outcome {
        Ok(value) => ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response(),
        Err(problem) => refuse(&problem),
    }
}

fn invalid(detail: &str) -> Problem {
    Problem { status: Some(400), ..Problem::new("invalid_request", detail) }
}

/// The segments behind `/api`. Each is a name of letters, digits, hyphens and underscores, so none leads elsewhere.
fn segments(uri: &Uri) -> Result<Vec<&str>, Problem> {
    let path = uri.path().strip_prefix("/api/").unwrap_or_default();
    let is_name = |segment: &&str| {
        (1..=128).contains(&segment.len())
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let segments: Vec<&str> = path.split('/').collect();
    if segments.iter().all(is_name) { Ok(segments) } else { Err(invalid("The path has a segment that is no name.")) }
}

/// The body as an object.
fn object(body: &Bytes) -> Result<Map<String, Value>, Problem> {
    serde_json::from_slice(body).map_err(|_| invalid("The body is no JSON object."))
}

/// The name in `customer`, which the confirmation showed. It is for this server, and is taken out of the body.
fn confirmed_customer(body: &mut Map<String, Value>) -> Result<String, Problem> {
    match body.remove("customer") {
        Some(Value::String(customer)) => Ok(customer),
        _ => Err(invalid("`customer` must be the name that the confirmation showed.")),
    }
}

fn customer_changed() -> Problem {
    let detail = "The customer is not the one that the confirmation named.";
    Problem { status: Some(409), ..Problem::new("customer_changed", detail) }
}

impl Console {
    /// Refuses without `--write`.
    fn may_change(&self) -> Result<(), Problem> {
        match self.mode {
            Mode::Write => Ok(()),
            Mode::ReadOnly => {
                let detail = "The console is read only. `mandate console --write` allows changes.";
                Err(Problem { status: Some(403), ..Problem::new("read_only", detail) })
            }
        }
    }

    async fn read(&self, uri: &Uri) -> Result<Value, Problem> {
        let path = segments(uri)?;
        let pairs: Vec<_> = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).collect();
        if pairs.iter().any(|(name, _)| !PARAMETERS.contains(&name.as_ref())) {
            return Err(invalid("The query has an unknown parameter."));
        }
        let query: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).collect();
        let mut value = self.api.get(&path, &query).await?;
        if path[0] == "invitations" {
            withhold(&mut value);
        }
        Ok(value)
    }

    /// A change of one tenant. The customer's name in the confirmation must be the tenant's now.
    async fn change_tenant(&self, method: Method, uri: &Uri, body: &Bytes) -> Result<Value, Problem> {
        self.may_change()?;
        let path = segments(uri)?;
        let mut body = object(body)?;
        let customer = confirmed_customer(&mut body)?;
        let tenant = self.api.get(&path[..2], &[]).await?;
        if tenant["customer"].as_str() != Some(&customer) {
            return Err(customer_changed());
        }
        let body = (!body.is_empty()).then_some(Value::Object(body));
        self.api.send(method, &path, &[], body.as_ref()).await
    }

    async fn invite(&self, body: &Bytes) -> Result<Value, Problem> {
        self.may_change()?;
        let body = Value::Object(object(body)?);
        self.api.post(&["invitations"], Some(&body)).await
    }

    /// Revokes an invitation of the customer that the confirmation named.
    async fn revoke(&self, uri: &Uri, body: &Bytes) -> Result<Value, Problem> {
        self.may_change()?;
        let path = segments(uri)?;
        let customer = confirmed_customer(&mut object(body)?)?;
        let mut next = None;
        loop {
            let mut query = vec![("limit", "100")];
            query.extend(next.as_deref().map(|next: &str| ("next", next)));
            let page = self.api.get(&["invitations"], &query).await?;
            let mut invitations = page["invitations"].as_array().into_iter().flatten();
            if let Some(found) = invitations.find(|one| one["invitation_id"].as_str() == Some(path[1])) {
                if found["customer"].as_str() != Some(&customer) {
                    return Err(customer_changed());
                }
                return self.api.delete(&path).await;
            }
            next = page["next"].as_str().map(str::to_owned);
            if next.is_none() {
                return Err(Problem { status: Some(404), ..Problem::new("not_found", "There is no such invitation.") });
            }
        }
    }

    /// A hunt reads and changes nothing, so it needs no `--write`.
    async fn hunt(&self, body: &Bytes) -> Result<Value, Problem> {
        let body = Value::Object(object(body)?);
        let value = self.api.post(&["hunting"], Some(&body)).await?;
        if let Some(hunt_id) = value["hunt_id"].as_str() {
            self.remember_hunt(hunt_id);
        }
        Ok(value)
    }

    async fn cancel_hunt(&self, uri: &Uri) -> Result<Value, Problem> {
        let path = segments(uri)?;
        if !self.started_hunt(path[1]) {
            self.may_change()?;
        }
        self.api.delete(&path).await
    }
}

/// Removes members that no list should have: the browser gets the link of an invitation only when it makes one.
fn withhold(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|name, _| !WITHHELD.contains(&name.as_str()));
            members.values_mut().for_each(withhold);
        }
        Value::Array(entries) => entries.iter_mut().for_each(withhold),
        _ => {}
    }
}

async fn key(State(console): Shared) -> Response {
    respond(console.pass.give_key().map(|key| json!({ "key": key })).ok_or_else(|| Problem {
        status: Some(403),
        ..Problem::new("key_given", "This console is open in another window or browser, and lets in one only.")
    }))
}

async fn session(State(console): Shared) -> Response {
    let write = console.mode == Mode::Write;
    respond(Ok(json!({ "write": write, "api": console.api.address(), "version": env!("CARGO_PKG_VERSION") })))
}

async fn read(State(console): Shared, uri: Uri) -> Response {
    respond(console.read(&uri).await)
}

async fn change_tenant(State(console): Shared, method: Method, uri: Uri, body: Bytes) -> Response {
    respond(console.change_tenant(method, &uri, &body).await)
}

async fn invite(State(console): Shared, body: Bytes) -> Response {
    respond(console.invite(&body).await)
}

async fn revoke(State(console): Shared, uri: Uri, body: Bytes) -> Response {
    respond(console.revoke(&uri, &body).await)
}

async fn hunt(State(console): Shared, body: Bytes) -> Response {
    respond(console.hunt(&body).await)
}

async fn cancel_hunt(State(console): Shared, uri: Uri) -> Response {
    respond(console.cancel_hunt(&uri).await)
}
