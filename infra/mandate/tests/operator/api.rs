//! An API with canned responses, and the program in front of it.

use std::{
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::to_bytes,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::process::Command;

pub(crate) const CONTOSO: &str = "c0c0a000-1111-4111-8111-c0c0a0000001";
pub(crate) const FABRIKAM: &str = "fab00000-2222-4222-8222-fab000000002";

/// A request as the API received it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Received {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

type Responder = dyn Fn(&Received) -> (u16, Value) + Send + Sync;

struct Shared {
    received: Mutex<Vec<Received>>,
    respond: Box<Responder>,
}

/// The API. It ends with the test.
pub(crate) struct Api {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

impl Api {
    /// Serves what `respond` returns for a request, as a status and a JSON body.
    pub(crate) async fn start(respond: impl Fn(&Received) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared { received: Mutex::default(), respond: Box::new(respond) });
        let router = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, shared }
    }

    /// Serves these bodies by method and path, and a problem for everything else.
    pub(crate) async fn of(routes: Vec<(&'static str, String, Value)>) -> Self {
        Self::start(move |request| {
            let found = routes.iter().find(|(method, path, _)| *method == request.method && *path == request.path);
            found.map_or_else(
                || problem(404, "not_found", "There is no such thing."),
                |(_, _, body)| (200, body.clone()),
            )
        })
        .await
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// The program with these arguments, before it starts. It knows nothing of the machine but the API.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program(arguments);
        command.env("MANDATE_API", &self.url);
        command
    }

    /// Runs the program to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Run {
        Run::of(self.command(arguments).output().await.unwrap())
    }
}

async fn receive(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let signed =
        parts.headers.get("authorization").is_some_and(|value| value.as_bytes().starts_with(b"AWS4-HMAC-SHA256 "));
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let received = Received {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    let (status, body) = if signed { (shared.respond)(&received) } else { (403, json!({"message": "Forbidden"})) };
    shared.received.lock().unwrap().push(received);
    let status = StatusCode::from_u16(status).unwrap();
    if body.is_null() { status.into_response() } else { (status, axum::Json(body)).into_response() }
}

/// A problem document of the interface.
pub(crate) fn problem(status: u16, code: &str, detail: &str) -> (u16, Value) {
    (
        status,
        json!({"type": "about:blank", "title": code, "status": status, "detail": detail, "instance": "r", "code": code}),
    )
}

/// The program without an API.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mandate"));
    command.args(arguments).env_clear().env("TZ", "UTC").env("HOME", "/nonexistent").env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// The output of a run, and its exit status.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The output's lines, each a JSON object.
    pub(crate) fn objects(&self) -> Vec<Value> {
        assert_eq!(self.status, Some(0), "{self:?}");
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A Tenant of the API.
pub(crate) fn tenant(id: &str, customer: &str, status: &str, reason: Option<&str>, lag: i64) -> Value {
    json!({
        "tenant_id": id, "customer": customer, "status": status, "reason": reason, "api": "graph",
        "roles": ["SecurityIncident.Read.All"], "consented_at": "2026-11-20T08:00:00Z", "consented_by": "adele@contoso.example",
        "last_success_at": "2026-11-22T09:59:00Z", "covered_until": "2026-11-22T09:59:00Z", "lag_seconds": lag,
        "incidents_total": 12, "quarantined": 0,
        "last_sweep": {"at": "2026-11-22T03:00:00Z", "checked": 9, "missing": 0},
        "open_incidents": {"informational": 0, "low": 1, "medium": 0, "high": 2},
    })
}

/// An Incident of the API with this title.
pub(crate) fn incident(tenant: &str, id: &str, title: &str) -> Value {
    json!({
        "schema": "incident/1", "key": format!("{tenant}/{id}/2026-11-22T09:58:00Z"), "tenant_id": tenant, "incident_id": id,
        "change": null, "api": "graph", "last_updated": "2026-11-22T09:58:00Z", "fetched_at": "2026-11-22T10:00:00Z",
        "incident": {
            "id": id, "displayName": title, "severity": "high", "status": "inProgress", "assignedTo": null,
            "lastUpdateDateTime": "2026-11-22T09:58:00Z", "createdDateTime": "2026-11-22T09:00:00Z",
            "incidentWebUrl": "https://security.microsoft.com/incident2/1", "customTags": [title], "comments": [
                {"comment": title, "createdByDisplayName": title, "createdDateTime": "2026-11-22T09:30:00Z"}],
            "description": title,
            "alerts": [{"id": "a", "title": title, "severity": "medium", "status": "new", "detectionSource": "microsoftDefenderForEndpoint",
                        "firstActivityDateTime": "2026-11-22T08:59:00Z",
                        "evidence": [{"@odata.type": "#microsoft.graph.security.deviceEvidence", "deviceDnsName": title}]}],
        },
    })
}
