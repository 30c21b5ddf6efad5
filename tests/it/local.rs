//! What handlers in this process stand on: one local AWS for all tests, with names of its own for each; a Microsoft of
//! their own.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::{
    config::Credentials,
    types::{
        AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection, ProjectionType,
        ScalarAttributeType,
    },
};
use aws_sdk_eventbridge::types::Target;
use devstack::{ACCOUNT_ID, Quiet, REGION};
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
use tokio::sync::OnceCell;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;

/// What a function in this process has from outside, with its own clock.
pub(crate) fn platform(aws: &SdkConfig, clock: &Clock) -> Platform {
    let random = Arc::new(aws_lc_rs::rand::SystemRandom::new());
    Platform { aws: aws.clone(), http: HttpClient::new().unwrap(), clock: clock.clone(), random }
}

pub(crate) const CLIENT_ID: &str = "5b1c7d0e-0a0b-4c0d-8e0f-0123456789ab";
pub(crate) const CALLER: &str = "arn:aws:sts::123456789012:assumed-role/operator/ada";
const CLIENT_SECRET: &str = "canary-client-secret";

/// The port of the one local AWS, which ends when its standard input does, and so with this process.
pub(crate) async fn server() -> u16 {
    static SERVER: OnceCell<(u16, Child)> = OnceCell::const_new();
    let start = async || {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("devstack").join("aws_server.py");
        let mut child = Command::new(devstack::interpreter(&mut Quiet).await.unwrap())
            .arg(script)
            .env("MOTO_ACCOUNT_ID", ACCOUNT_ID)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (line.trim().parse().unwrap(), child)
    };
    SERVER.get_or_init(start).await.0
}

/// AWS and Microsoft for one test.
pub(crate) struct Local {
    pub(crate) aws: SdkConfig,
    pub(crate) sim: Sim,
    pub(crate) table: String,
    pub(crate) queue_url: String,
    pub(crate) bucket: String,
    pub(crate) bus: String,
    events_url: String,
    secret: String,
    /// Of all requests of this test.
    pub(crate) request_id: String,
}

impl Local {
    pub(crate) async fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("it-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        sink();
        let aws = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .credentials_provider(Credentials::new("local", "local", None, None, "it"))
            .endpoint_url(format!("http://127.0.0.1:{}", server().await))
            .load()
            .await;
        let sim = Sim::start(SimOptions::default()).await.unwrap();
        sim.register_app(App {
            client_id: CLIENT_ID.into(),
            client_secrets: vec![CLIENT_SECRET.into()],
            requested_roles: vec!["SecurityIncident.Read.All".into(), "Incident.Read.All".into()],
            ..App::default()
        });
        create_table(&aws, &name).await;
        let queue_url = create_queue(&aws, &name).await;
        let events_url = create_queue(&aws, &format!("{name}-events")).await;
        create_bus(&aws, &name).await;
        aws_sdk_s3::Client::from_conf(aws_sdk_s3::config::Builder::from(&aws).force_path_style(true).build())
            .create_bucket()
            .bucket(&name)
            .create_bucket_configuration(
                aws_sdk_s3::types::CreateBucketConfiguration::builder()
                    .location_constraint(aws_sdk_s3::types::BucketLocationConstraint::EuCentral1)
                    .build(),
            )
            .send()
            .await
            .unwrap();
        aws_sdk_secretsmanager::Client::new(&aws)
            .create_secret()
            .name(&name)
            .secret_string(json!({"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}).to_string())
            .send()
            .await
            .unwrap();
        let (table, bucket, bus, secret) = (name.clone(), name.clone(), name.clone(), name.clone());
        let request_id = format!("request-of-{name}");
        Self { aws, sim, table, queue_url, bucket, bus, events_url, secret, request_id }
    }

    /// What functions are told of Microsoft.
    pub(crate) fn microsoft(&self) -> Microsoft {
        Microsoft {
            app_credential_secret_id: self.secret.clone(),
            cloud: Cloud::Commercial,
            endpoints: Endpoints {
                authority: self.sim.entra_url().parse().unwrap(),
                graph: self.sim.graph_url().parse().unwrap(),
                defender: self.sim.defender_url().parse().unwrap(),
            },
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

    /// The bodies on the queue of jobs, with the group of each.
    pub(crate) async fn messages(&self) -> Vec<(String, Value)> {
        receive(&self.aws, &self.queue_url).await
    }

    /// What the bus was told: detail-type and detail.
    pub(crate) async fn events(&self) -> Vec<(String, Value)> {
        let events = receive(&self.aws, &self.events_url).await;
        let told = events.into_iter().map(|(_, mut event)| {
            assert_eq!(event["source"], "partner.incidents");
            (event["detail-type"].as_str().unwrap().to_owned(), event["detail"].take())
        });
        told.collect()
    }

    pub(crate) async fn objects(&self, prefix: &str) -> Vec<String> {
        let client =
            aws_sdk_s3::Client::from_conf(aws_sdk_s3::config::Builder::from(&self.aws).force_path_style(true).build());
        let listed = client.list_objects_v2().max_keys(1000).bucket(&self.bucket).prefix(prefix).send().await.unwrap();
        listed.contents.unwrap_or_default().into_iter().filter_map(|object| object.key).collect()
    }
}

impl Local {
    /// What an object holds.
    pub(crate) async fn object(&self, key: &str) -> Vec<u8> {
        let client =
            aws_sdk_s3::Client::from_conf(aws_sdk_s3::config::Builder::from(&self.aws).force_path_style(true).build());
        let object = client.get_object().bucket(&self.bucket).key(key).send().await.unwrap();
        object.body.collect().await.unwrap().to_vec()
    }
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

/// A request as API Gateway hands it over for an IAM caller.
pub(crate) fn request(method: &str, path: &str, query: &str, body: Option<&str>) -> Value {
    json!({
        "version": "2.0", "rawPath": path, "rawQueryString": query, "headers": {"content-type": "application/json"},
        "requestContext": {
            "http": {"method": method, "path": path}, "stage": "$default", "domainName": "api.example.com",
            "authorizer": {"iam": {"userArn": CALLER}}
        },
        "body": body, "isBase64Encoded": false
    })
}

async fn create_table(aws: &SdkConfig, name: &str) {
    let key = |name: &str, kind| KeySchemaElement::builder().attribute_name(name).key_type(kind).build().unwrap();
    let attribute =
        |name: &str, kind| AttributeDefinition::builder().attribute_name(name).attribute_type(kind).build().unwrap();
    let index = |name: &str, hash: &str, range: &str, projected| {
        GlobalSecondaryIndex::builder()
            .index_name(name)
            .key_schema(key(hash, KeyType::Hash))
            .key_schema(key(range, KeyType::Range))
            .projection(Projection::builder().projection_type(projected).build())
            .build()
            .unwrap()
    };
    aws_sdk_dynamodb::Client::new(aws)
        .create_table()
        .table_name(name)
        .billing_mode(BillingMode::PayPerRequest)
        .key_schema(key("pk", KeyType::Hash))
        .key_schema(key("sk", KeyType::Range))
        .attribute_definitions(attribute("pk", ScalarAttributeType::S))
        .attribute_definitions(attribute("sk", ScalarAttributeType::S))
        .attribute_definitions(attribute("due_shard", ScalarAttributeType::S))
        .attribute_definitions(attribute("due_at", ScalarAttributeType::N))
        .attribute_definitions(attribute("listing", ScalarAttributeType::S))
        .attribute_definitions(attribute("listed_at", ScalarAttributeType::S))
        .global_secondary_indexes(index("due", "due_shard", "due_at", ProjectionType::KeysOnly))
        .global_secondary_indexes(index("listing", "listing", "listed_at", ProjectionType::All))
        .send()
        .await
        .unwrap();
}

async fn create_queue(aws: &SdkConfig, name: &str) -> String {
    let created = aws_sdk_sqs::Client::new(aws).create_queue().queue_name(name).send().await.unwrap();
    created.queue_url.unwrap()
}

/// A bus whose events all come to the queue `{name}-events`.
async fn create_bus(aws: &SdkConfig, name: &str) {
    let events = aws_sdk_eventbridge::Client::new(aws);
    events.create_event_bus().name(name).send().await.unwrap();
    let pattern = json!({"account": [ACCOUNT_ID]}).to_string();
    events.put_rule().name(name).event_bus_name(name).event_pattern(pattern).send().await.unwrap();
    let arn = format!("arn:aws:sqs:{REGION}:{ACCOUNT_ID}:{name}-events");
    let target = Target::builder().id("tap").arn(arn).build().unwrap();
    events.put_targets().rule(name).event_bus_name(name).targets(target).send().await.unwrap();
}

async fn receive(aws: &SdkConfig, queue_url: &str) -> Vec<(String, Value)> {
    let queue = aws_sdk_sqs::Client::new(aws);
    let mut all = Vec::new();
    loop {
        let received = queue
            .receive_message()
            .queue_url(queue_url)
            .max_number_of_messages(10)
            .message_system_attribute_names(aws_sdk_sqs::types::MessageSystemAttributeName::All)
            .send()
            .await
            .unwrap();
        let Some(messages) = received.messages else { return all };
        for message in messages {
            let receipt = message.receipt_handle.unwrap();
            queue.delete_message().queue_url(queue_url).receipt_handle(receipt).send().await.unwrap();
            let group = message.attributes.unwrap_or_default();
            let group = group.get(&aws_sdk_sqs::types::MessageSystemAttributeName::MessageGroupId).cloned();
            all.push((group.unwrap_or_default(), serde_json::from_str(&message.body.unwrap()).unwrap()));
        }
    }
}

/// A tenant on Graph that stands like this, of which nothing more is known.
pub(crate) fn customer_s_tenant(tenant_id: TenantId, status: Status, reason: Option<Reason>) -> Tenant {
    Tenant {
        tenant_id,
        customer: "Contoso".into(),
        status,
        reason,
        api: IncidentApi::Graph,
        roles: vec![],
        consented_at: None,
        consented_by: None,
        activated_at: None,
        offboarded_at: None,
        verification: None,
        revision: 0,
    }
}
