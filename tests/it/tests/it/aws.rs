//! AWS for handlers: a table, a secret, and a bus whose events are kept, of each test's own.

use std::sync::atomic::{AtomicU32, Ordering};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::{
    config::Credentials,
    types::{
        AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection, ProjectionType,
        ScalarAttributeType,
    },
};
use aws_sdk_eventbridge::types::Target;
use serde_json::Value;
use tokio::sync::OnceCell;

static SERVER: OnceCell<devstack::Aws> = OnceCell::const_new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// What a handler needs of AWS.
pub(crate) struct Aws {
    /// For clients; connections are not shared between tests, whose runtimes end.
    pub(crate) config: SdkConfig,
    /// The table, with its two indexes.
    pub(crate) table: String,
    /// The app credential.
    pub(crate) secret: String,
    /// The event bus.
    pub(crate) bus: String,
    events_queue: String,
}

/// A configuration for an endpoint that takes any key.
pub(crate) async fn config(endpoint: &str) -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(devstack::REGION))
        .credentials_provider(Credentials::new("local", "local", None, None, "it"))
        .endpoint_url(endpoint)
        .load()
        .await
}

impl Aws {
    /// Makes a table, a secret and a bus.
    pub(crate) async fn make(credential: &Value) -> Self {
        let server = SERVER.get_or_init(|| async { devstack::Aws::bare().await.unwrap() }).await;
        let config = config(server.endpoint()).await;
        let name = format!("t{}", COUNT.fetch_add(1, Ordering::SeqCst));
        make_table(&config, &name).await;
        let secrets = aws_sdk_secretsmanager::Client::new(&config);
        secrets.create_secret().name(&name).secret_string(credential.to_string()).send().await.unwrap();
        let events_queue = make_bus(&config, &name).await;
        Self { config, table: name.clone(), secret: name.clone(), bus: name, events_queue }
    }

    /// The events since it was last asked.
    pub(crate) async fn events(&self) -> Vec<Value> {
        let queue = aws_sdk_sqs::Client::new(&self.config);
        let mut events = Vec::new();
        loop {
            let receive = queue.receive_message().queue_url(&self.events_queue).max_number_of_messages(10);
            let messages = receive.send().await.unwrap().messages.unwrap_or_default();
            if messages.is_empty() {
                return events;
            }
            for message in messages {
                events.push(serde_json::from_str(message.body().unwrap()).unwrap());
                let receipt = message.receipt_handle().unwrap();
                queue.delete_message().queue_url(&self.events_queue).receipt_handle(receipt).send().await.unwrap();
            }
        }
    }
}

fn key(name: &str, kind: KeyType) -> KeySchemaElement {
    KeySchemaElement::builder().attribute_name(name).key_type(kind).build().unwrap()
}

fn index(name: &str, hash: &str, range: &str, projection: ProjectionType) -> GlobalSecondaryIndex {
    GlobalSecondaryIndex::builder()
        .index_name(name)
        .key_schema(key(hash, KeyType::Hash))
        .key_schema(key(range, KeyType::Range))
        .projection(Projection::builder().projection_type(projection).build())
        .build()
        .unwrap()
}

async fn make_table(config: &SdkConfig, name: &str) {
    use ScalarAttributeType::{N, S};
    let attributes = [("pk", S), ("sk", S), ("due_shard", S), ("due_at", N), ("listing", S), ("listed_at", S)];
    let attributes = attributes
        .map(|(name, kind)| AttributeDefinition::builder().attribute_name(name).attribute_type(kind).build().unwrap());
    aws_sdk_dynamodb::Client::new(config)
        .create_table()
        .table_name(name)
        .billing_mode(BillingMode::PayPerRequest)
        .set_attribute_definitions(Some(attributes.to_vec()))
        .key_schema(key("pk", KeyType::Hash))
        .key_schema(key("sk", KeyType::Range))
        .global_secondary_indexes(index("due", "due_shard", "due_at", ProjectionType::KeysOnly))
        .global_secondary_indexes(index("listing", "listing", "listed_at", ProjectionType::All))
        .send()
        .await
        .unwrap();
}

async fn make_bus(config: &SdkConfig, name: &str) -> String {
    let queue = aws_sdk_sqs::Client::new(config).create_queue().queue_name(name).send().await.unwrap();
    let events = aws_sdk_eventbridge::Client::new(config);
    events.create_event_bus().name(name).send().await.unwrap();
    let pattern = serde_json::json!({"account": [devstack::ACCOUNT_ID]}).to_string();
    events.put_rule().name(name).event_bus_name(name).event_pattern(pattern).send().await.unwrap();
    let arn = format!("arn:aws:sqs:{}:{}:{name}", devstack::REGION, devstack::ACCOUNT_ID);
    let target = Target::builder().id("queue").arn(arn).build().unwrap();
    events.put_targets().rule(name).event_bus_name(name).targets(target).send().await.unwrap();
    queue.queue_url.unwrap()
}
