//! DynamoDB, S3, SQS, EventBridge and Secrets Manager in a few hundred lines, as far as the sync speaks to them: fast
//! enough for thousands of histories, and able to fail at any request, before or after it took effect.
//!
//! Every life of a worker has a number, which its credentials name. A worker that is killed goes on in this process, but
//! nothing it does has an effect any more.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig};
use aws_sdk_dynamodb::config::{Credentials, SharedCredentialsProvider};
use aws_sdk_s3::config::RequestChecksumCalculation;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use shared::clock::Clock;
use tokio::sync::Notify;

use super::table::{Item, Terms};
use crate::local::CLIENT_ID;

pub(super) const SECRET: &str = "canary-client-secret";
pub(super) const QUEUE: &str = "http://queue.invalid/sync";

/// How long a message stays unseen after it was handed out, and how often it is: as in the template.
const VISIBILITY: SignedDuration = SignedDuration::from_secs(360);
const MOST_RECEIVES: u32 = 5;

/// What a request to AWS meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strike {
    /// Nothing was done, and the answer cannot be read.
    LostBefore,
    /// All was done, and the answer cannot be read.
    LostAfter,
    /// Status 500; nothing was done.
    FailedBefore,
    /// Status 500, although all was done.
    FailedAfter,
    /// Throttled.
    Throttled,
    /// The next batch is accepted, and its first entry refused.
    Partial,
    /// The worker dies just before the request.
    KilledBefore,
    /// The worker dies just after the request.
    KilledAfter,
    /// The worker sleeps before its request is sent.
    HeldBefore,
    /// The worker sleeps before the answer arrives.
    HeldAfter,
}

/// Which request of an invocation it is that something strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spot {
    /// The n-th, from 1.
    Request(u32),
    /// The n-th from the first object on: 0 is the object, then come the event, what is known, and the cursor.
    Delivery(u32),
}

/// Defects of the product, acted out from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faked {
    /// Conditions on the fence always hold.
    pub(super) no_fence: bool,
    /// An object is in the bucket only once its worker has written everything else.
    pub(super) s3_last: bool,
}

#[derive(Clone)]
pub(super) struct Aws {
    state: Arc<Mutex<World>>,
    port: u16,
    pub(super) reached: Arc<Notify>,
    pub(super) release: Arc<Notify>,
}

/// An object, in the order of writing.
#[derive(Clone)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) body: Bytes,
}

#[derive(Clone)]
pub(super) struct Queued {
    pub(super) id: String,
    pub(super) body: String,
    visible_at: Timestamp,
    receives: u32,
}

#[derive(Default)]
struct Life {
    requests: u32,
    since_object: Option<u32>,
    plan: Vec<(Spot, Strike)>,
    dead: bool,
    late_objects: Vec<Object>,
}

#[derive(Default)]
pub(super) struct World {
    items: BTreeMap<(String, String), Item>,
    pub(super) objects: Vec<Object>,
    /// Detail-type and detail.
    pub(super) events: Vec<(String, Value)>,
    pub(super) queue: Vec<Queued>,
    lives: HashMap<u32, Life>,
    messages: u32,
    pub(super) faked: Faked,
    pub(super) clock: Clock,
    /// What must never be and was.
    pub(super) wrong: Vec<String>,
    /// What struck, for those who read a failure.
    pub(super) struck: Vec<String>,
}

impl Aws {
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let aws = Self { state: Arc::default(), port, reached: Arc::default(), release: Arc::default() };
        let router = Router::new().fallback(serve).with_state(aws.clone());
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| stream.set_nodelay(true).unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        aws
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.state.lock().unwrap()
    }

    /// An empty account.
    pub(super) fn clear(&self, clock: Clock, faked: Faked) {
        *self.world() = World { faked, clock, ..World::default() };
    }

    /// What the clients of all lives have in common.
    pub(super) async fn config(&self) -> SdkConfig {
        aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .no_credentials()
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .load()
            .await
    }

    /// For the clients of one life, which try a request so often.
    pub(super) fn of(&self, config: &SdkConfig, life: u32, tries: u32) -> SdkConfig {
        let retries = RetryConfig::standard().with_max_attempts(tries).with_initial_backoff(Duration::from_millis(1));
        let credentials = Credentials::new(format!("life-{life}"), "local", None, None, "it");
        let builder = config.to_builder().endpoint_url(format!("http://127.0.0.1:{}", self.port)).retry_config(retries);
        builder.credentials_provider(SharedCredentialsProvider::new(credentials)).build()
    }

    /// From its next request on, a life meets what is planned.
    pub(super) fn plan(&self, life: u32, plan: Vec<(Spot, Strike)>) {
        let mut world = self.world();
        let life = world.lives.entry(life).or_default();
        (life.requests, life.since_object, life.plan) = (0, None, plan);
    }

    /// What a worker's invocation has left to do at its end; whether the worker is alive.
    pub(super) fn ended(&self, life: u32) -> bool {
        let mut world = self.world();
        let life = world.lives.entry(life).or_default();
        life.plan.clear();
        let (dead, late) = (life.dead, std::mem::take(&mut life.late_objects));
        if !dead {
            world.objects.extend(late);
        }
        !dead
    }
}

impl World {
    /// The messages that may be taken now, which then are unseen for a while.
    pub(super) fn receive(&mut self) -> Vec<Queued> {
        let now = self.clock.now();
        self.queue.retain(|message| message.receives < MOST_RECEIVES || message.visible_at > now);
        let mut received = Vec::new();
        for message in self.queue.iter_mut().filter(|message| message.visible_at <= now) {
            message.visible_at = now + VISIBILITY;
            message.receives += 1;
            received.push(message.clone());
        }
        received
    }

    /// Takes a message off the queue.
    pub(super) fn delete(&mut self, id: &str) {
        self.queue.retain(|message| message.id != id);
    }

    /// What `incident-dispatch` would do for a tenant.
    pub(super) fn dispatch(&mut self, tenant: &str, kind: &str) {
        let now = self.clock.now();
        let feed = self.items.get_mut(&(format!("TENANT#{tenant}"), "FEED".to_owned())).unwrap();
        let due = feed.get("due_at").and_then(|due| due["N"].as_str()?.parse::<i64>().ok());
        let Some(due) = due.filter(|_| feed.contains_key("due_shard")) else { return };
        if kind == "poll" {
            if due > now.as_millisecond() {
                return;
            }
            feed.insert("due_at".into(), json!({"N": (now.as_millisecond() + 55_000).to_string()}));
        }
        self.enqueue(&json!({"tenant_id": tenant, "kind": kind}).to_string(), 0);
    }

    fn enqueue(&mut self, body: &str, delay: i64) {
        self.messages += 1;
        let (id, visible_at) = (format!("m-{}", self.messages), self.clock.now() + SignedDuration::from_secs(delay));
        self.queue.push(Queued { id, body: body.to_owned(), visible_at, receives: 0 });
    }

    fn strike(&mut self, life: u32, operation: &str) -> Option<Strike> {
        let life_state = self.lives.entry(life).or_default();
        life_state.requests += 1;
        life_state.since_object = match life_state.since_object {
            None => (operation == "PutObject").then_some(0),
            Some(since) => Some(since + 1),
        };
        let (now, since) = (life_state.requests, life_state.since_object);
        let batch = matches!(operation, "PutEvents" | "SendMessageBatch");
        let due = life_state.plan.iter().position(|(spot, strike)| match (strike, spot) {
            (Strike::Partial, _) => batch,
            (_, Spot::Request(at)) => *at == now,
            (_, Spot::Delivery(at)) => Some(*at) == since,
        })?;
        let (_, strike) = life_state.plan.remove(due);
        self.struck.push(format!("life {life}, request {now}, {operation}: {strike:?}"));
        Some(strike)
    }

    fn write(&mut self, key: (String, String), item: Option<Item>) {
        let covered = |item: Option<&Item>| -> Option<Timestamp> { item?["covered_until"]["S"].as_str()?.parse().ok() };
        if key.1 == "FEED" {
            let (before, after) =
                (self.items.get(&key).and_then(|item| item.get("covered_until").map(|_| item)), item.as_ref());
            let before = covered(before);
            let after = covered(after.filter(|item| item.contains_key("covered_until")));
            if before.is_some() && after < before {
                self.wrong.push(format!("covered_until moved back from {before:?} to {after:?}"));
            }
        }
        match item {
            Some(item) => self.items.insert(key, item),
            None => self.items.remove(&key),
        };
    }

    /// All items of a partition whose sort key begins so.
    pub(super) fn items(&self, prefix: &str) -> Vec<&Item> {
        self.items.iter().filter(|((_, sk), _)| sk.starts_with(prefix)).map(|(_, item)| item).collect()
    }

    /// The code of the failure, where it is one.
    fn dynamodb(&mut self, operation: &str, request: &Value) -> Result<Value, &'static str> {
        let key_of =
            |key: &Value| (key["pk"]["S"].as_str().unwrap().to_owned(), key["sk"]["S"].as_str().unwrap().to_owned());
        let terms = Terms::of(request);
        let condition = |world: &Self, key: &(String, String)| {
            let Some(condition) = request["ConditionExpression"].as_str() else { return Ok(()) };
            let ignored = world.faked.no_fence && condition.starts_with("fence = :fence");
            if ignored || terms.hold(condition, world.items.get(key)) {
                return Ok(());
            }
            Err("ConditionalCheckFailedException")
        };
        Ok(match operation {
            "GetItem" => match self.items.get(&key_of(&request["Key"])) {
                Some(item) => json!({"Item": item}),
                None => json!({}),
            },
            "PutItem" => {
                let key = key_of(&request["Item"]);
                condition(self, &key)?;
                self.write(key, request["Item"].as_object().cloned());
                json!({})
            }
            "UpdateItem" => {
                let key = key_of(&request["Key"]);
                condition(self, &key)?;
                let made = || request["Key"].as_object().unwrap().clone();
                let mut item = self.items.get(&key).cloned().unwrap_or_else(made);
                terms.apply(request["UpdateExpression"].as_str().unwrap(), &mut item);
                self.write(key, Some(item.clone()));
                if request["ReturnValues"] == "ALL_NEW" { json!({"Attributes": item}) } else { json!({}) }
            }
            "DeleteItem" => {
                self.write(key_of(&request["Key"]), None);
                json!({})
            }
            "Query" => {
                let condition = request["KeyConditionExpression"].as_str().unwrap();
                let found: Vec<&Item> = self.items.values().filter(|item| terms.hold(condition, Some(item))).collect();
                json!({"Items": found, "Count": found.len()})
            }
            other => panic!("the sync never called {other} before"),
        })
    }

    fn answer(&mut self, operation: &str, request: &Value, partial: bool) -> Response {
        let answer = match operation {
            "GetSecretValue" => {
                let secret = json!({"client_id": CLIENT_ID, "client_secret": SECRET}).to_string();
                Ok(
                    json!({"VersionId": "version-of-the-model-test-1", "SecretString": secret, "VersionStages": ["AWSCURRENT"]}),
                )
            }
            "PutEvents" => {
                let mut entries = Vec::new();
                for (index, entry) in request["Entries"].as_array().unwrap().iter().enumerate() {
                    if partial && index == 0 {
                        entries.push(json!({"ErrorCode": "InternalFailure", "ErrorMessage": "refused"}));
                        continue;
                    }
                    let detail = serde_json::from_str(entry["Detail"].as_str().unwrap()).unwrap();
                    self.events.push((entry["DetailType"].as_str().unwrap().to_owned(), detail));
                    entries.push(json!({"EventId": "e"}));
                }
                Ok(json!({"FailedEntryCount": u32::from(partial), "Entries": entries}))
            }
            "SendMessage" => {
                self.enqueue(request["MessageBody"].as_str().unwrap(), request["DelaySeconds"].as_i64().unwrap_or(0));
                Ok(json!({"MessageId": "m", "MD5OfMessageBody": ""}))
            }
            "SendMessageBatch" => {
                let (mut done, mut failed) = (Vec::new(), Vec::new());
                for (index, entry) in request["Entries"].as_array().unwrap().iter().enumerate() {
                    if partial && index == 0 {
                        failed.push(json!({"Id": entry["Id"], "SenderFault": false, "Code": "InternalError"}));
                        continue;
                    }
                    self.enqueue(entry["MessageBody"].as_str().unwrap(), 0);
                    done.push(json!({"Id": entry["Id"], "MessageId": "m", "MD5OfMessageBody": ""}));
                }
                Ok(json!({"Successful": done, "Failed": failed}))
            }
            _ => self.dynamodb(operation, request),
        };
        answer.map_or_else(failure, |answer| answer.to_string().into_response())
    }

    fn put_object(&mut self, life: u32, key: &str, body: Bytes) -> Response {
        let life = self.lives.entry(life).or_default();
        if self.objects.iter().chain(&life.late_objects).any(|object| object.key == key) {
            let body = "<Error><Code>PreconditionFailed</Code><Message>x</Message></Error>";
            return (StatusCode::PRECONDITION_FAILED, [("content-type", "application/xml")], body).into_response();
        }
        let object = Object { key: key.to_owned(), body };
        if self.faked.s3_last {
            life.late_objects.push(object);
        } else {
            self.objects.push(object);
        }
        StatusCode::OK.into_response()
    }
}

fn failure(code: &str) -> Response {
    (StatusCode::BAD_REQUEST, json!({"__type": format!("com.amazonaws#{code}"), "message": "x"}).to_string())
        .into_response()
}

async fn serve(State(aws): State<Aws>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let signed = headers["authorization"].to_str().unwrap();
    let (_, life) = signed.split_once("Credential=life-").unwrap();
    let life: u32 = life.split_once('/').unwrap().0.parse().unwrap();
    let target = headers.get("x-amz-target").map(|target| target.to_str().unwrap());
    let operation = target.map_or("PutObject", |target| target.rsplit('.').next().unwrap());
    let strike = {
        let mut world = aws.world();
        if world.lives.entry(life).or_default().dead {
            return unreadable(operation);
        }
        let strike = world.strike(life, operation);
        if matches!(strike, Some(Strike::KilledBefore | Strike::KilledAfter)) {
            world.lives.entry(life).or_default().dead = true;
        }
        strike
    };
    if strike == Some(Strike::HeldBefore) {
        aws.reached.notify_one();
        aws.release.notified().await;
    }
    let act = || {
        let mut world = aws.world();
        if operation == "PutObject" {
            assert_eq!((method.as_str(), headers["if-none-match"].as_bytes()), ("PUT", b"*".as_slice()));
            let (_, key) = uri.path().trim_start_matches('/').split_once('/').unwrap();
            let key = key.replace("%3D", "=");
            return world.put_object(life, &key, body.clone());
        }
        let request = serde_json::from_slice(&body).unwrap();
        world.answer(operation, &request, strike == Some(Strike::Partial))
    };
    match strike {
        None | Some(Strike::Partial | Strike::HeldBefore) => act(),
        Some(Strike::LostBefore | Strike::KilledBefore) => unreadable(operation),
        Some(Strike::LostAfter | Strike::KilledAfter) => {
            act();
            unreadable(operation)
        }
        Some(Strike::FailedBefore) => broken(),
        Some(Strike::FailedAfter) => {
            act();
            broken()
        }
        Some(Strike::Throttled) if operation == "PutObject" => broken(),
        Some(Strike::Throttled) => failure("ThrottlingException"),
        Some(Strike::HeldAfter) => {
            let answer = act();
            aws.reached.notify_one();
            aws.release.notified().await;
            answer
        }
    }
}

fn unreadable(operation: &str) -> Response {
    // S3 has no body that could be unreadable.
    if operation == "PutObject" { StatusCode::BAD_GATEWAY.into_response() } else { "{".into_response() }
}

fn broken() -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, json!({"__type": "InternalServerError"}).to_string()).into_response()
}
