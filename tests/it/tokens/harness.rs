//! One deployment with its AWS and its Microsoft, and processes that request tokens.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    entra::token_cache::Tokens,
    error::Error,
    http::{Deadline, HttpClient},
    microsoft::{IncidentApi, Microsoft},
    registry::Registry,
    tenant::TenantId,
};
use sim::{Fault, FaultKind, Host, Sim};
use tracing::Instrument;

use crate::backends::{Backends, CLIENT_ID, CLIENT_SECRET, SECRET};

pub(super) const A: &str = "11111111-2222-4333-8444-abcdefabcdef";
pub(super) const B: &str = "22222222-2222-4333-8444-abcdefabcdef";

/// The latency of Entra. Requests that start at the same time overlap.
const LATENCY: FaultKind = FaultKind::Latency { least_millis: 30, most_millis: 30 };

/// One deployment: its clock, its AWS, its Microsoft. Each [`TokenHarness::process`] is a function's process of its own.
pub(super) struct TokenHarness {
    pub(super) clock: Clock,
    pub(super) backends: Backends,
}

impl TokenHarness {
    pub(super) async fn start() -> Self {
        let clock = Clock::by_hand("2026-11-22T10:00:00Z".parse().unwrap());
        let harness = Self { backends: Backends::start(&clock).await, clock };
        harness.sim().clock().freeze(harness.clock.now());
        harness.register(sim::App { client_secrets: vec![CLIENT_SECRET.into()], ..sim::App::default() });
        harness.sim().fault(Fault::new(LATENCY).on(Host::Entra));
        for tenant in [A, B] {
            harness.customer(tenant);
        }
        harness
    }

    pub(super) fn sim(&self) -> &Sim {
        &self.backends.sim
    }

    /// Replaces the app's registration at Entra.
    pub(super) fn register(&self, app: sim::App) {
        self.sim().register_app(sim::App { client_id: CLIENT_ID.into(), ..app });
    }

    /// A tenant that has consented to both incident APIs. Its tokens live for an hour.
    pub(super) fn customer(&self, tenant: &str) {
        self.backends.customer(tenant, "", &["SecurityIncident.Read.All", "Incident.Read.All"]);
        self.sim().update_tenant(tenant, |tenant| tenant.token_lifetime_seconds = Some(3_600));
    }

    pub(super) fn registry(&self) -> Registry {
        Registry::new(&self.backends.aws, self.backends.table.clone())
    }

    pub(super) fn process(&self) -> Tokens {
        self.process_with(|_| {})
    }

    /// A process with another configuration.
    pub(super) fn process_with(&self, change: impl FnOnce(&mut Microsoft)) -> Tokens {
        let outbound = HttpClient::default();
        let random = Arc::new(aws_lc_rs::rand::SystemRandom::new());
        let (mut microsoft, aws) = (self.backends.microsoft(), &self.backends.aws);
        change(&mut microsoft);
        Tokens::new(&microsoft, outbound, aws, self.registry(), self.clock.clone(), random)
    }

    /// Makes Entra accept a client secret.
    pub(super) fn know(&self, secret: &str) {
        let now = self.clock.now();
        self.sim().add_client_secret(CLIENT_ID, secret, now, now + SignedDuration::from_hours(24));
    }

    /// Makes Entra refuse a client secret.
    pub(super) fn forget_secret(&self, secret: &str) {
        self.sim().remove_client_secret(CLIENT_ID, secret);
    }

    /// The effect on the next token request of a tenant, after the ones that were scripted before.
    pub(super) fn script(&self, tenant: &str, kind: FaultKind) {
        self.sim().fault(token_fault(tenant, kind).times(1));
    }

    /// The effect on every token request of a tenant from now on.
    pub(super) fn always(&self, tenant: &str, kind: FaultKind) {
        self.sim().fault(token_fault(tenant, kind));
    }

    /// The number of token requests so far for a tenant.
    pub(super) fn asked_for(&self, tenant: &str) -> usize {
        self.sim().count(Host::Entra, tenant)
    }

    /// The number of token requests so far.
    pub(super) fn asked(&self) -> usize {
        self.sim().calls().len()
    }

    /// A parameter of the latest token request.
    pub(super) fn last(&self, name: &str) -> String {
        self.sim().calls().last().unwrap().form[name].clone()
    }

    /// Gives the credential a new current value. The former one becomes the previous one.
    pub(super) fn set_secret(&self, value: &Value) {
        self.backends.double.account().set_secret(SECRET, value);
    }

    pub(super) fn aws_calls(&self, operation: &str) -> usize {
        self.backends.double.account().calls(operation)
    }

    /// Lets time go by for us and for Microsoft.
    pub(super) fn pass(&self, seconds: i64) {
        self.clock.advance(SignedDuration::from_secs(seconds));
        self.sim().clock().freeze(self.clock.now());
    }
}

fn token_fault(authority: &str, kind: FaultKind) -> Fault {
    Fault::new(kind).on(Host::Entra).path(&format!("/{authority}/oauth2/"))
}

/// A refusal of the client with this AADSTS number.
pub(super) fn refusal(code: u64) -> FaultKind {
    error(401, &json!({"error": "invalid_client", "error_codes": [code]}))
}

/// An error of the token endpoint.
pub(super) fn error(status: u16, body: &Value) -> FaultKind {
    response(status, &body.to_string())
}

/// A response of the token endpoint.
pub(super) fn response(status: u16, body: &str) -> FaultKind {
    FaultKind::Status { status, body: Some(body.to_owned()), headers: vec![] }
}

/// A token with other claims than those that the request calls for.
pub(super) fn claims(claims: Value) -> FaultKind {
    let Value::Object(claims) = claims else { panic!("{claims} is not an object") };
    FaultKind::Claims { claims }
}

pub(super) fn secret(value: &str) -> Value {
    json!({"client_id": CLIENT_ID, "client_secret": value})
}

pub(super) fn tenant(text: &str) -> TenantId {
    text.parse().unwrap()
}

/// The tenant with this number.
pub(super) fn numbered(number: usize) -> String {
    format!("{number:08}-2222-4333-8444-abcdefabcdef")
}

pub(super) fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(20), &Clock::system())
}

pub(super) async fn ask(tokens: &Tokens, of: &str) -> Result<String, Error> {
    tokens.access_token(&tenant(of), IncidentApi::Graph, soon()).await.map(|token| token.expose().to_owned())
}

/// Requests tokens of as many tenants at the same time.
pub(super) async fn ask_many(harness: &TokenHarness, tokens: &Tokens, count: usize) -> Vec<Result<String, Error>> {
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..count {
        harness.customer(&numbered(number + 1));
        let tokens = tokens.clone();
        let caller = async move { ask(&tokens, &numbered(number + 1)).await };
        callers.spawn(caller.in_current_span());
    }
    callers.join_all().await
}
