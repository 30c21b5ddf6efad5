//! AWS and Microsoft in this process, for measured processes of functions.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
};

use aws_double::Aws;
use devstack::Failed;
use flate2::bufread::GzDecoder;
use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    error::Error,
    microsoft::{Cloud, IncidentApi},
    registry::{
        Registry,
        tenants::{Status, Tenant},
    },
    tenant::TenantId,
};
use sim::{App, Host, IncidentSeed, Sim, SimOptions, TenantSeed};

use crate::counts::{Counts, float};

/// The name of the app credential in Secrets Manager.
const SECRET: &str = "app";
const CLIENT_ID: &str = "5b1c7d0e-0a0b-4c0d-8e0f-0123456789ab";
const CLIENT_SECRET: &str = "bench-client-secret";

/// One deployment's neighbours.
pub struct Stand {
    /// AWS.
    pub aws: Aws,
    /// Microsoft.
    pub sim: Sim,
    registry: Registry,
    clock: Clock,
}

impl Stand {
    /// Starts both, with the app registered and its credential stored.
    pub async fn start() -> Result<Self, Failed> {
        let clock = Clock::system();
        let now = clock.clone();
        let aws = Aws::start(move || now.now()).await?;
        aws.account().set_secret(SECRET, &json!({"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}));
        let sim = Sim::start(SimOptions::default()).await?;
        sim.register_app(App {
            client_id: CLIENT_ID.into(),
            client_secrets: vec![CLIENT_SECRET.into()],
            requested_roles: IncidentApi::ALL.map(|api| api.read_role().to_owned()).into(),
            ..App::default()
        });
        let registry = Registry::new(&aws.config().await, aws_double::TABLE.into());
        Ok(Self { aws, sim, registry, clock })
    }

    /// The registry, whose calls the functions do not make.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The variables of the peer beside those of every function.
    pub fn peer_variables(&self) -> Vec<(&'static str, String)> {
        let audience = Cloud::Commercial.resource(IncidentApi::Defender).to_owned();
        let own =
            [("CLIENT_ID", CLIENT_ID.to_owned()), ("CLIENT_SECRET", CLIENT_SECRET.to_owned()), ("AUDIENCE", audience)];
        self.variables().into_iter().chain(own).collect()
    }

    /// The variables of `incident-fetch`, with the one that its C library reads.
    pub fn fetch_variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = self.variables();
        variables.push(("MALLOC_MMAP_THRESHOLD_", (1 << 20).to_string()));
        variables
    }

    /// The variables of every function.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let text = str::to_owned;
        vec![
            ("AWS_ENDPOINT_URL", text(self.aws.endpoint())),
            ("APP_CREDENTIAL_SECRET_ID", text(SECRET)),
            ("ROTATION_CREDENTIAL_SECRET_ID", text("rotation")),
            ("HOME_TENANT_ID", text("11733a9e-0000-4000-8000-000000000000")),
            ("ENTRA_AUTHORITY_HOST", text(self.sim.entra_url())),
            ("GRAPH_ENDPOINT", text(self.sim.graph_url())),
            ("DEFENDER_ENDPOINT", text(self.sim.defender_url())),
            ("TABLE_NAME", text(aws_double::TABLE)),
            ("SYNC_QUEUE_URL", text(aws_double::QUEUE_URL)),
            ("INCIDENT_BUCKET", text(aws_double::BUCKET)),
            ("EVENT_BUS_NAME", text(aws_double::BUS)),
            ("PARTNER_NAME", text("Bench")),
        ]
    }

    /// Onboards a tenant that was active for a day, with these incidents.
    pub async fn onboard(
        &self,
        tenant: TenantId,
        api: IncidentApi,
        incidents: impl Iterator<Item = IncidentSeed>,
    ) -> Result<(), Failed> {
        let tenant_id = tenant.to_string();
        let now = self.clock.now();
        self.sim.add_tenant(TenantSeed {
            tenant_id: tenant_id.clone(),
            domain: format!("{tenant_id}.example"),
            ..TenantSeed::default()
        });
        self.sim.grant(&tenant_id, CLIENT_ID, &[api.read_role()]);
        for incident in incidents {
            self.sim.put_incident(&tenant_id, incident);
        }
        let active = Tenant {
            roles: vec![api.read_role().to_owned()],
            activated_at: Some(now),
            ..Tenant::new(tenant, "Bench".to_owned(), Status::Active, api)
        };
        let written = async {
            self.registry.create_tenant(&active).await?;
            self.registry.open_feed(&tenant, now).await
        };
        written.await.map_err(|error: Error| Failed(error.to_string()))
    }

    /// The number of calls to AWS and to Microsoft so far, as `dynamodb:GetItem` or `microsoft:token`.
    pub fn calls(&self) -> Counts {
        let mut counts = Counts::default();
        for (operation, calls) in self.aws.account().calls_by_operation() {
            let service = match operation.as_str() {
                "GetItem" | "BatchGetItem" | "Query" => "dynamodb reads",
                "PutItem" | "UpdateItem" | "DeleteItem" | "TransactWriteItems" => "dynamodb writes",
                "PutObject" => "s3",
                "PutEvents" => "events",
                "SendMessage" | "SendMessageBatch" => "sqs",
                _ => "other",
            };
            counts.add(format!("{service}:{operation}"), float(*calls));
        }
        for call in self.sim.calls() {
            counts.add(if call.host == Host::Entra { "microsoft:token" } else { "microsoft:incidents" }, 1.0);
        }
        counts
    }

    /// The number of versions that were delivered so far, by the events.
    pub fn delivered(&self) -> u64 {
        let account = self.aws.account();
        account.events.iter().filter_map(|event| event.detail["count"].as_u64()).sum()
    }

    /// The lines of a delivered object.
    pub fn lines(&self, key: &str) -> Result<Vec<Value>, Failed> {
        let body =
            self.aws.account().objects.iter().rfind(|object| object.key == key).map(|object| object.body.clone());
        let body = body.ok_or_else(|| Failed(format!("there is no object {key}")))?;
        let lines = BufReader::new(GzDecoder::new(body.as_ref())).lines();
        lines.map(|line| serde_json::from_str(&line?).map_err(|error| Failed(format!("{key}: {error}")))).collect()
    }

    /// Takes the waiting messages off the queue, as an event of it.
    pub fn waiting(&self) -> Vec<Value> {
        let mut account = self.aws.account();
        let received = account.receive(usize::MAX);
        for message in &received {
            account.delete_message(&message.id);
        }
        received.iter().filter_map(|message| serde_json::from_str(&message.body).ok()).collect()
    }
}

/// An incident that was last updated `seconds_ago`, with two to four alerts.
pub fn incident(number: usize, seconds_ago: i64) -> IncidentSeed {
    let last_update = Clock::system().now() - SignedDuration::from_secs(seconds_ago);
    IncidentSeed {
        display_name: "Multi-stage incident involving Initial access & Lateral movement on one endpoint".to_owned(),
        alerts: 2 + number % 3,
        created: Some(last_update),
        last_update: Some(last_update),
        ..IncidentSeed::default()
    }
}

/// The event of the queue with these messages, each with its id.
pub fn queue_event<'a>(messages: impl Iterator<Item = (&'a str, &'a str)>) -> Value {
    let record = |(id, body)| json!({"messageId": id, "body": body, "eventSource": "aws:sqs"});
    json!({"Records": messages.map(record).collect::<Vec<_>>()})
}

/// The event of the queue with messages of these bodies.
pub fn event_of(bodies: &[Value]) -> Value {
    let messages: Vec<(String, String)> =
        bodies.iter().enumerate().map(|(number, body)| (format!("m-{number}"), body.to_string())).collect();
    queue_event(messages.iter().map(|(id, body)| (id.as_str(), body.as_str())))
}

/// The message that polls a tenant.
pub fn poll_message(tenant: &TenantId) -> Value {
    json!({"tenant_id": tenant, "kind": "poll"})
}

/// A request of an IAM caller, as API Gateway passes it on. `route` is `POST /tenants/{tenant_id}/token`, for example.
pub fn request(route: &str, parameters: &[(&str, &str)], body: Option<&Value>) -> Value {
    let (method, pattern) = route.split_once(' ').unwrap_or_default();
    let fill = |path: String, (name, value): &(&str, &str)| path.replace(&format!("{{{name}}}"), value);
    let path = parameters.iter().fold(pattern.to_owned(), fill);
    json!({
        "version": "2.0", "routeKey": route, "pathParameters": parameters.iter().copied().collect::<BTreeMap<_, _>>(),
        "rawPath": path, "rawQueryString": "", "headers": {"content-type": "application/json"},
        "requestContext": {
            "http": {"method": method, "path": path}, "stage": "$default", "domainName": "api.example.com",
            "authorizer": {"iam": {"userArn": "arn:aws:sts::123456789012:assumed-role/operator/ada"}}
        },
        "body": body.map(Value::to_string), "isBase64Encoded": false
    })
}
