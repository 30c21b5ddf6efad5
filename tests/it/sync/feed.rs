//! One tenant's feed on one surface, and what was delivered of it.

use std::{collections::BTreeMap, io::Read, time::Duration};

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
use sim::IncidentSeed;

use crate::local::{CLIENT_ID, Local, customer_s_tenant, request};

pub(super) const TENANT: &str = "11111111-2222-4333-8444-000000000001";

/// Both surfaces, for tests that hold on each.
pub(super) const SURFACES: [IncidentApi; 2] = IncidentApi::ALL;

/// A tenant that was active for an hour when the test begins.
pub(super) struct Feed {
    pub(super) local: Local,
    pub(super) clock: Clock,
    pub(super) app: App,
    pub(super) registry: Registry,
    pub(super) surface: IncidentApi,
}

/// A delivered line with the object that it lies in.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) object: String,
    pub(super) json: Value,
}

impl Line {
    pub(super) fn told(&self) -> (String, String) {
        let text = |name: &str| self.json[name].as_str().unwrap().to_owned();
        (text("incident_id"), text("change"))
    }
}

pub(super) fn start_of_test() -> Timestamp {
    "2027-01-16T10:00:00Z".parse().unwrap()
}

pub(super) fn tenant() -> TenantId {
    TENANT.parse().unwrap()
}

impl Feed {
    pub(super) async fn start(surface: IncidentApi) -> Self {
        Self::start_with(surface, &[]).await
    }

    pub(super) async fn start_with(surface: IncidentApi, variables: &[(&str, &str)]) -> Self {
        let clock = Clock::by_hand(start_of_test());
        let local = Local::start(&clock).await;
        let role = surface.write_role();
        local.customer(TENANT, "contoso.example", &[role]);
        local.sim.clock().freeze(start_of_test());
        let app = fetch(&local, &clock, variables);
        let registry = Registry::new(&local.aws, local.table.clone());
        registry.create_tenant(&active(tenant(), surface)).await.unwrap();
        registry.open_feed(&tenant(), clock.now()).await.unwrap();
        Self { local, clock, app, registry, surface }
    }

    /// Another worker: the same function in another process, with nothing in memory.
    pub(super) fn another(&self) -> App {
        fetch(&self.local, &self.clock, &[])
    }

    pub(super) fn advance(&self, seconds: i64) {
        self.clock.advance(SignedDuration::from_secs(seconds));
        self.local.sim.clock().freeze(self.clock.now());
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
        self.local.sim.put_incident(TENANT, seed)
    }

    pub(super) fn update(&self, id: &str, change: impl FnOnce(&mut sim::Incident)) {
        let now = self.clock.now();
        assert!(self.local.sim.update_incident(TENANT, id, |incident| {
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
            waiting = self.local.messages().into_iter().map(|(_, body)| body).collect();
        }
        panic!("the work goes on and on");
    }

    pub(super) async fn hand_over(&self, bodies: &[String]) -> Value {
        hand_over(&self.app, bodies, Duration::from_secs(30)).await
    }

    pub(super) async fn call(&self, method: &str, path: &str, query: &str, body: Option<&str>) -> (u16, Value) {
        let answer =
            self.app.handle(request(method, path, query, body), invocation(Duration::from_secs(29))).await.unwrap();
        let json = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
        (u16::try_from(answer["statusCode"].as_u64().unwrap()).unwrap(), json)
    }

    pub(super) async fn delivered(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for object in self.local.objects("incidents/") {
            let bytes = self.local.object(&object);
            let mut text = String::new();
            GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).unwrap();
            lines.extend(
                text.lines().map(|line| Line { object: object.clone(), json: serde_json::from_str(line).unwrap() }),
            );
        }
        lines
    }

    /// How often each key was delivered.
    pub(super) async fn keys(&self) -> BTreeMap<String, usize> {
        let mut keys = BTreeMap::new();
        for line in self.delivered().await {
            *keys.entry(line.json["key"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        }
        keys
    }

    /// That every incident of the simulator was delivered in its present version, and every version once.
    pub(super) async fn assert_complete(&self) {
        let keys = self.keys().await;
        for incident in self.local.sim.incidents(TENANT) {
            let key = format!("{TENANT}/{}/{}", incident.id, incident.last_update);
            assert!(keys.contains_key(&key), "{key} was not delivered on {:?}", self.surface);
        }
        assert!(keys.values().all(|count| *count == 1), "a version was delivered twice: {keys:?}");
    }

    pub(super) fn calls(&self) -> usize {
        let surface = match self.surface {
            IncidentApi::Graph => sim::Host::Graph,
            IncidentApi::Defender => sim::Host::Defender,
        };
        self.local.sim.count(surface, TENANT)
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
        ..customer_s_tenant(tenant_id, Status::Active, None)
    }
}

pub(super) fn fetch(local: &Local, clock: &Clock, variables: &[(&str, &str)]) -> App {
    let microsoft = local.microsoft();
    let fixed = [
        ("APP_CREDENTIAL_SECRET_ID", microsoft.app_credential_secret_id.as_str()),
        ("ENTRA_AUTHORITY_HOST", local.sim.entra_url()),
        ("GRAPH_ENDPOINT", local.sim.graph_url()),
        ("DEFENDER_ENDPOINT", local.sim.defender_url()),
        ("TABLE_NAME", local.table.as_str()),
        ("SYNC_QUEUE_URL", local.queue_url.as_str()),
        ("INCIDENT_BUCKET", local.bucket.as_str()),
        ("EVENT_BUS_NAME", local.bus.as_str()),
    ];
    let lookup =
        |name: &str| variables.iter().chain(&fixed).find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let config = shared::config::load(&lookup, Config::read).unwrap();
    App::new(config, &crate::local::platform(&local.aws, clock))
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
    Invocation { request_id: "request-1".into(), deadline: Deadline::within(time, &Clock::system()) }
}

/// Grants again what a test took away.
pub(super) fn grant(feed: &Feed) {
    feed.local.sim.grant(TENANT, CLIENT_ID, &[feed.surface.write_role()]);
}
