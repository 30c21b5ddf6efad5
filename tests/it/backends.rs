//! The servers behind handlers in this process: an AWS and a Microsoft for each test.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, LazyLock, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use aws_config::SdkConfig;
use aws_double::Aws;
use devstack::{Auth, Route, Routes, raw_path};
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    http::{Deadline, HttpClient},
    lambda::{event::Invocation, runtime::Platform},
    microsoft::{Cloud, Endpoints, IncidentApi, Microsoft},
    registry::tenants::{Status, Tenant},
    telemetry::JsonLines,
    tenant::{Reason, TenantId},
};
use sim::{App, Sim, SimOptions, TenantSeed};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;

use crate::contract::assert_component;

/// What a function in this process has from outside, with its own clock.
pub(crate) fn platform(aws: &SdkConfig, clock: &Clock) -> Platform {
    let random = Arc::new(aws_lc_rs::rand::SystemRandom::new());
    Platform { aws: aws.clone(), http: HttpClient::default(), clock: clock.clone(), random }
}

pub(crate) const CLIENT_ID: &str = "5b1c7d0e-0a0b-4c0d-8e0f-0123456789ab";
pub(crate) const CALLER: &str = "arn:aws:sts::123456789012:assumed-role/operator/ada";
pub(crate) const CLIENT_SECRET: &str = "canary-client-secret";

/// The name of the app's credential in Secrets Manager.
pub(crate) const SECRET: &str = "app";

/// AWS and Microsoft for one test.
pub(crate) struct Backends {
    /// The configuration of the clients of the code under test.
    pub(crate) aws: SdkConfig,
    pub(crate) double: Aws,
    pub(crate) sim: Sim,
    pub(crate) table: String,
    pub(crate) queue_url: String,
    pub(crate) bucket: String,
    pub(crate) bus: String,
    /// Of all requests of this test.
    pub(crate) request_id: String,
}

impl Backends {
    pub(crate) async fn start(clock: &Clock) -> Self {
        sink();
        let clock = clock.clone();
        let double = Aws::start(move || clock.now()).await.unwrap();
        let credential = json!({"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET});
        double.account().set_secret(SECRET, &credential);
        let sim = Sim::start(SimOptions::default()).await.unwrap();
        sim.register_app(App {
            client_id: CLIENT_ID.into(),
            client_secrets: vec![CLIENT_SECRET.into()],
            requested_roles: vec!["SecurityIncident.Read.All".into(), "Incident.Read.All".into()],
            ..App::default()
        });
        Self {
            aws: double.config().await,
            double,
            sim,
            table: aws_double::TABLE.into(),
            queue_url: aws_double::QUEUE_URL.into(),
            bucket: aws_double::BUCKET.into(),
            bus: aws_double::BUS.into(),
            request_id: unique_request_id(),
        }
    }

    /// The functions' configuration of Microsoft.
    pub(crate) fn microsoft(&self) -> Microsoft {
        Microsoft {
            app_credential_secret_id: SECRET.into(),
            cloud: Cloud::Commercial,
            endpoints: Endpoints {
                authority: self.sim.entra_url().parse().unwrap(),
                graph: self.sim.graph_url().parse().unwrap(),
                defender: self.sim.defender_url().parse().unwrap(),
            },
            home_tenant: None,
            function_name: None,
        }
    }

    /// A tenant at Microsoft that has consented to `roles`.
    pub(crate) fn customer(&self, tenant_id: &str, domain: &str, roles: &[&str]) {
        let (tenant, domain) = (tenant_id.to_owned(), domain.to_owned());
        self.sim.add_tenant(TenantSeed { tenant_id: tenant, domain, ..TenantSeed::default() });
        if !roles.is_empty() {
            self.sim.grant(tenant_id, CLIENT_ID, roles);
        }
    }

    /// Takes the visible messages off the queue: the group and the body of each.
    pub(crate) fn messages(&self) -> Vec<(String, Value)> {
        let mut account = self.double.account();
        let received = account.receive(usize::MAX);
        for message in &received {
            account.delete_message(&message.id);
        }
        let parsed = |body: &str| serde_json::from_str(body).unwrap();
        received.into_iter().map(|message| (message.group, parsed(&message.body))).collect()
    }

    /// Takes the events off the bus: detail-type and detail of each.
    pub(crate) fn events(&self) -> Vec<(String, Value)> {
        let events = std::mem::take(&mut self.double.account().events);
        let checked = events.into_iter().map(|event| {
            assert_eq!(event.source, "partner.incidents");
            assert_component(&event.detail_type.replace(' ', ""), &event.detail);
            (event.detail_type, event.detail)
        });
        checked.collect()
    }

    pub(crate) fn objects(&self, prefix: &str) -> Vec<String> {
        self.double.account().keys(prefix)
    }

    pub(crate) fn object(&self, key: &str) -> Vec<u8> {
        self.double.account().object(key).unwrap().to_vec()
    }
}

/// A request id that no other test of this process has.
pub(crate) fn unique_request_id() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("request-of-it-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// An invocation with ten seconds left.
pub(crate) fn invocation(request_id: &str) -> Invocation {
    Invocation { request_id: request_id.into(), deadline: Deadline::within(Duration::from_secs(10), &Clock::system()) }
}

fn sink() -> Arc<Mutex<Vec<u8>>> {
    // One for the process: which subscriber a line goes to is decided for all threads at once.
    static SINK: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    let start = || {
        let sink = Arc::new(Mutex::new(Vec::new()));
        let layer = JsonLines::new(LevelFilter::TRACE, Clock::system(), sink.clone());
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).unwrap();
        sink
    };
    SINK.get_or_init(start).clone()
}

/// The lines that were logged under a request's id.
pub(crate) fn lines_of(request_id: &str) -> Vec<Value> {
    let text = String::from_utf8(sink().lock().unwrap().clone()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["request_id"] == request_id).collect()
}

/// The routes of the API, which are those of the template (`tests/devstack/test_openapi.py`).
pub(crate) fn routes() -> &'static Routes {
    static ROUTES: LazyLock<Routes> = LazyLock::new(|| {
        let api: Value = serde_json::from_str(include_str!("../../infra/openapi.json")).unwrap();
        let mut routes = Vec::new();
        for (path, operations) in api["paths"].as_object().unwrap() {
            for method in operations.as_object().unwrap().keys() {
                let (method, path) = (method.to_uppercase(), path.clone());
                routes.push(Route { method, path, function: String::new(), auth: Auth::None });
            }
        }
        Routes::new(routes)
    });
    &ROUTES
}

/// A public request as API Gateway passes it on. A path that no route has gets a route of its own.
pub(crate) fn public_request(method: &str, path: &str, query: &str) -> Value {
    let (route_key, parameters) = routes()
        .find(method, path)
        .map_or_else(|| (format!("{method} {path}"), BTreeMap::new()), |found| (found.route.key(), found.parameters));
    let raw_path = raw_path(path).unwrap();
    json!({
        "version": "2.0", "routeKey": route_key, "pathParameters": parameters, "rawPath": raw_path,
        "rawQueryString": query, "headers": {"content-type": "application/json"},
        "requestContext": {
            "http": {"method": method, "path": raw_path}, "stage": "$default", "domainName": "api.example.com"
        },
        "isBase64Encoded": false
    })
}

/// A request as API Gateway passes it on for an IAM caller.
pub(crate) fn request(method: &str, path: &str, query: &str, body: Option<&str>) -> Value {
    let mut event = public_request(method, path, query);
    event["requestContext"]["authorizer"] = json!({"iam": {"userArn": CALLER}});
    event["body"] = json!(body);
    event
}

/// A tenant on Graph that stands like this, of which nothing more is known.
pub(crate) fn tenant_record(tenant_id: TenantId, status: Status, reason: Option<Reason>) -> Tenant {
    Tenant { reason, ..Tenant::new(tenant_id, "Contoso".into(), status, IncidentApi::Graph) }
}
