//! One AWS account on loopback, for tests: DynamoDB, S3, SQS, EventBridge, Secrets Manager, KMS and STS, as far as this
//! project calls them.
//!
//! The double starts in microseconds, keeps everything in memory, takes the time from its owner, and can fail at any
//! request, before or after the request took effect. It is strict: an operation, a parameter or an expression that it
//! does not know is refused with its name, and so is what AWS would refuse. It knows AWS's documents and nothing of the
//! code under test, except for the names and indexes of the account's resources.

mod dynamodb;
mod expression;
mod fault;
mod identity;
mod messages;
mod s3;
mod secrets;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig};
use aws_lc_rs::rsa::KeyPair;
use aws_sdk_s3::config::{Credentials, RequestChecksumCalculation, SharedCredentialsProvider};
use axum::Router;
use jiff::Timestamp;
use tokio::sync::Notify;

pub use dynamodb::Item;
pub use fault::{AwsFault, Defects, FaultPosition};
pub use identity::{ISSUER, ROLE_ARN};
pub use messages::{Event, QueuedMessage};
pub use s3::Object;
pub use secrets::{SecretVersion, secret_arn};

use fault::Caller;
use secrets::Secret;

/// The account's only table, with the keys and indexes that `infra/template.yaml` declares.
pub const TABLE: &str = "table";
/// The account's only bucket.
pub const BUCKET: &str = "bucket";
/// The account's only queue.
pub const QUEUE_URL: &str = "http://queue.invalid/sync";
/// The account's only event bus.
pub const BUS: &str = "bus";

/// Returns the account's time.
type Now = Box<dyn Fn() -> Timestamp + Send + Sync>;

/// A running double. Clones share the account.
#[derive(Clone)]
pub struct Aws {
    shared: Arc<Shared>,
}

struct Shared {
    account: Mutex<Account>,
    endpoint: String,
    kms_key: std::sync::OnceLock<KeyPair>,
    held: Notify,
    released: Notify,
}

/// The account's contents, which tests read and write directly.
pub struct Account {
    now: Now,
    defects: Defects,
    items: BTreeMap<(String, String), Item>,
    /// The tokens of the transactions so far.
    transactions: BTreeSet<String>,
    /// Counts that a defective writer has not written yet.
    late_counts: BTreeMap<(String, String), Item>,
    /// The bucket's objects in the order in which they were written.
    pub objects: Vec<Object>,
    uploads: BTreeMap<String, s3::Upload>,
    /// The accepted events in their order.
    pub events: Vec<Event>,
    /// The bus accepts no events.
    pub bus_is_down: bool,
    /// The bus refuses entries of this detail-type inside successful calls.
    pub refused_detail_type: Option<String>,
    queue: Vec<QueuedMessage>,
    /// The number of messages that were received too often.
    pub dead_letters: usize,
    messages: u32,
    secrets: BTreeMap<String, Secret>,
    secrets_denied: bool,
    tokens: u32,
    callers: BTreeMap<String, Caller>,
    calls: BTreeMap<String, usize>,
    /// The time of the latest request for each operation.
    called_at: BTreeMap<String, Timestamp>,
    /// The faults that were acted out: caller, request and operation.
    pub acted_faults: Vec<String>,
    /// Values that an item's writer took back although they may only grow.
    pub regressions: Vec<String>,
}

impl Account {
    fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static, defects: Defects) -> Self {
        Self {
            now: Box::new(now),
            defects,
            items: BTreeMap::new(),
            transactions: BTreeSet::new(),
            late_counts: BTreeMap::new(),
            objects: Vec::new(),
            uploads: BTreeMap::new(),
            events: Vec::new(),
            bus_is_down: false,
            refused_detail_type: None,
            queue: Vec::new(),
            dead_letters: 0,
            messages: 0,
            secrets: BTreeMap::new(),
            secrets_denied: false,
            tokens: 0,
            callers: BTreeMap::new(),
            calls: BTreeMap::new(),
            called_at: BTreeMap::new(),
            acted_faults: Vec::new(),
            regressions: Vec::new(),
        }
    }

    fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// The number of requests for an operation so far.
    pub fn calls(&self, operation: &str) -> usize {
        self.calls.get(operation).copied().unwrap_or_default()
    }

    /// The time of the latest request for an operation.
    pub fn called_at(&self, operation: &str) -> Option<Timestamp> {
        self.called_at.get(operation).copied()
    }

    /// The number of requests so far for each operation.
    pub fn calls_by_operation(&self) -> &BTreeMap<String, usize> {
        &self.calls
    }
}

impl Aws {
    /// Starts an empty account on a free port of loopback.
    ///
    /// # Errors
    /// The port cannot be opened.
    pub async fn start(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let shared = Shared {
            account: Mutex::new(Account::new(now, Defects::default())),
            endpoint,
            kms_key: std::sync::OnceLock::new(),
            held: Notify::new(),
            released: Notify::new(),
        };
        let aws = Self { shared: Arc::new(shared) };
        // A part of an object has five megabytes and more.
        let unbounded = axum::extract::DefaultBodyLimit::disable();
        let router = Router::new().fallback(wire::serve).layer(unbounded).with_state(aws.clone());
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            // A response that is sent late is a response nevertheless.
            let _ = stream.set_nodelay(true);
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(aws)
    }

    /// Empties the account; its time is from now on `now`.
    pub fn reset(&self, now: impl Fn() -> Timestamp + Send + Sync + 'static, defects: Defects) {
        *self.account() = Account::new(now, defects);
    }

    /// Locks the account for reads and writes by the test.
    pub fn account(&self) -> MutexGuard<'_, Account> {
        self.shared.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The URL of all services.
    pub fn endpoint(&self) -> &str {
        &self.shared.endpoint
    }

    /// The SDK's configuration for a caller without planned faults.
    pub async fn config(&self) -> SdkConfig {
        self.config_of(&base_config().await, "it", 3)
    }

    /// The SDK's configuration for the caller of this name, which tries each request up to `attempts` times.
    pub fn config_of(&self, base: &SdkConfig, caller: &str, attempts: u32) -> SdkConfig {
        let retries =
            RetryConfig::standard().with_max_attempts(attempts).with_initial_backoff(Duration::from_millis(1));
        let credentials = Credentials::new(caller, "local", None, None, "it");
        let builder = base.to_builder().endpoint_url(self.endpoint()).retry_config(retries);
        builder.credentials_provider(SharedCredentialsProvider::new(credentials)).build()
    }
}

/// The part of the SDK's configuration that all callers of a double share, with the connector of the functions.
pub async fn base_config() -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .no_credentials()
        .http_client(shared::aws::http_client())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .load()
        .await
}
