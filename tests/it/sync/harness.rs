//! One tenant that is read by one incident API, and the lines delivered of it.

use std::{collections::BTreeMap, io::Read, time::Duration};

use aws_config::SdkConfig;
use flate2::read::GzDecoder;
use incident_fetch::{App, Config};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    http::Deadline,
    lambda::event::Invocation,
    microsoft::IncidentApi,
    registry::{
        Registry,
        tenants::{Status, Tenant},
    },
    tenant::TenantId,
};
use sim::{Host, IncidentSeed};

use crate::{
    backends::{Backends, CLIENT_ID, request, tenant_record},
    contract::{assert_answer, assert_component},
};

pub(super) const TENANT: &str = "11111111-2222-4333-8444-000000000001";

/// Both incident APIs, for tests that hold on each.
pub(super) const APIS: [IncidentApi; 2] = IncidentApi::ALL;

/// A tenant that was active for an hour when the test begins.
pub(super) struct SyncHarness {
    pub(super) backends: Backends,
    pub(super) clock: Clock,
    pub(super) app: App,
    pub(super) registry: Registry,
    pub(super) api: IncidentApi,
}

/// A delivered line with the object that it lies in.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) object: String,
    pub(super) json: Value,
}

impl Line {
    pub(super) fn id_and_change(&self) -> (String, String) {
        let text = |name: &str| self.json[name].as_str().unwrap().to_owned();
        (text("incident_id"), text("change"))
    }
}

pub(super) fn start_of_test() -> Timestamp {
    "2027-01-16T10:00:00Z".parse().unwrap()
}

/// The simulator's host of an incident API.
pub(super) fn host(api: IncidentApi) -> Host {
    match api {
        IncidentApi::Graph => Host::Graph,
        IncidentApi::Defender => Host::Defender,
    }
}

pub(super) fn tenant() -> TenantId {
    TENANT.parse().unwrap()
}

impl SyncHarness {
    pub(super) async fn start(api: IncidentApi) -> Self {
        Self::start_with(api, &[]).await
    }

    pub(super) async fn start_with(api: IncidentApi, variables: &[(&str, &str)]) -> Self {
        let clock = Clock::by_hand(start_of_test());
        let backends = Backends::start(&clock).await;
        let role = api.write_role();
        backends.customer(TENANT, "contoso.example", &[role]);
        backends.sim.clock().freeze(start_of_test());
        let app = fetch(&backends, &clock, variables);
        let registry = Registry::new(&backends.aws, backends.table.clone());
        registry.create_tenant(&active(tenant(), api)).await.unwrap();
        registry.open_feed(&tenant(), clock.now()).await.unwrap();
        Self { backends, clock, app, registry, api }
    }

    /// Another worker: the same function in another process, with nothing in memory.
    pub(super) fn another(&self) -> App {
        fetch(&self.backends, &self.clock, &[])
    }

    pub(super) fn advance(&self, seconds: i64) {
        self.clock.advance(SignedDuration::from_secs(seconds));
        self.backends.sim.clock().freeze(self.clock.now());
    }

    /// An incident last updated `seconds_ago`.
    pub(super) fn put(&self, seconds_ago: i64) -> String {
        let last_update = self.clock.now() - SignedDuration::from_secs(seconds_ago);
        self.put_seed(IncidentSeed {
            last_update: Some(last_update),
            created: Some(last_update),
            ..IncidentSeed::default()
        })
    }

    pub(super) fn put_seed(&self, seed: IncidentSeed) -> String {
        self.backends.sim.put_incident(TENANT, seed)
    }

    pub(super) fn update(&self, id: &str, change: impl FnOnce(&mut sim::Incident)) {
        let now = self.clock.now();
        assert!(self.backends.sim.update_incident(TENANT, id, |incident| {
            incident.last_update = now;
            change(incident);
        }));
    }

    pub(super) async fn poll(&self) {
        self.message(json!({"tenant_id": TENANT, "kind": "poll"})).await;
    }

    /// Hands a message over, and then those that follow from it, until the queue is empty.
    pub(super) async fn message(&self, body: Value) {
        let mut waiting = vec![body];
        for _ in 0..50 {
            if waiting.is_empty() {
                return;
            }
            for body in waiting {
                assert_eq!(self.hand_over(&[body.to_string()]).await, json!({"batchItemFailures": []}));
            }
            waiting = self.backends.messages().into_iter().map(|(_, body)| body).collect();
        }
        panic!("the work goes on and on");
    }

    pub(super) async fn hand_over(&self, bodies: &[String]) -> Value {
        hand_over(&self.app, bodies, Duration::from_secs(30)).await
    }

    pub(super) async fn call(&self, method: &str, path: &str, query: &str, body: Option<&str>) -> (u16, Value) {
        let event = request(method, path, query, body);
        let answer = self.app.handle(event.clone(), invocation(Duration::from_secs(29))).await.unwrap();
        assert_answer(&event, &answer);
        let json = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
        (u16::try_from(answer["statusCode"].as_u64().unwrap()).unwrap(), json)
    }

    /// The lines in the bucket, each valid as the description has it.
    pub(super) fn delivered(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for object in self.backends.objects("incidents/") {
            let bytes = self.backends.object(&object);
            let mut text = String::new();
            GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).unwrap();
            lines.extend(text.lines().map(|line| {
                let json = serde_json::from_str(line).unwrap();
                assert_component("Incident", &json);
                Line { object: object.clone(), json }
            }));
        }
        lines
    }

    /// The number of deliveries of each key.
    pub(super) fn keys(&self) -> BTreeMap<String, usize> {
        let mut keys = BTreeMap::new();
        for line in self.delivered() {
            *keys.entry(line.json["key"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        }
        keys
    }

    /// Asserts that each incident's present version was delivered, and no version twice.
    pub(super) fn assert_complete(&self) {
        let keys = self.keys();
        for incident in self.backends.sim.incidents(TENANT) {
            let key = format!("{TENANT}/{}/{}", incident.id, incident.last_update);
            assert!(keys.contains_key(&key), "{key} was not delivered on {:?}", self.api);
        }
        assert!(keys.values().all(|count| *count == 1), "a version was delivered twice: {keys:?}");
    }

    pub(super) fn calls(&self) -> usize {
        self.backends.sim.count(host(self.api), TENANT)
    }

    pub(super) async fn tenant(&self) -> Tenant {
        self.registry.tenant(&tenant()).await.unwrap().unwrap()
    }

    pub(super) async fn feed(&self) -> shared::registry::feed::Feed {
        self.registry.feed(&tenant()).await.unwrap().unwrap()
    }
}

pub(super) fn active(tenant_id: TenantId, api: IncidentApi) -> Tenant {
    Tenant {
        api,
        roles: vec![api.write_role().into()],
        activated_at: Some(start_of_test()),
        ..tenant_record(tenant_id, Status::Active, None)
    }
}

pub(super) fn fetch(backends: &Backends, clock: &Clock, variables: &[(&str, &str)]) -> App {
    fetch_as(backends, &backends.aws, clock, variables)
}

/// The function with credentials of its own, so that its requests to AWS can be told from those of others.
pub(super) fn fetch_as(backends: &Backends, aws: &SdkConfig, clock: &Clock, variables: &[(&str, &str)]) -> App {
    let microsoft = backends.microsoft();
    let fixed = [
        ("APP_CREDENTIAL_SECRET_ID", microsoft.app_credential_secret_id.as_str()),
        ("ENTRA_AUTHORITY_HOST", backends.sim.entra_url()),
        ("GRAPH_ENDPOINT", backends.sim.graph_url()),
        ("DEFENDER_ENDPOINT", backends.sim.defender_url()),
        ("TABLE_NAME", backends.table.as_str()),
        ("SYNC_QUEUE_URL", backends.queue_url.as_str()),
        ("INCIDENT_BUCKET", backends.bucket.as_str()),
        ("EVENT_BUS_NAME", backends.bus.as_str()),
    ];
    let lookup =
        |name: &str| variables.iter().chain(&fixed).find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let config = shared::config::load(&lookup, Config::read).unwrap();
    App::new(config, &crate::backends::platform(aws, clock))
}

pub(super) async fn hand_over(app: &App, bodies: &[String], time: Duration) -> Value {
    let records: Vec<Value> = bodies
        .iter()
        .enumerate()
        .map(|(index, body)| json!({"messageId": format!("m-{index}-{}", bodies.len()), "body": body, "eventSource": "aws:sqs"}))
        .collect();
    app.handle(json!({"Records": records}), invocation(time)).await.unwrap()
}

pub(super) fn invocation(time: Duration) -> Invocation {
    Invocation { request_id: "request-1".into(), deadline: Deadline::within(time, &shared::clock::Clock::system()) }
}

/// Grants again what a test took away.
pub(super) fn grant(sync: &SyncHarness) {
    sync.backends.sim.grant(TENANT, CLIENT_ID, &[sync.api.write_role()]);
}
