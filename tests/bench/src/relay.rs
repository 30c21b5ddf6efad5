//! Stands between the functions and the local AWS: counts what they call, and when an object is in the bucket.
//!
//! It also lets the writes of one item pass one after the other. DynamoDB does that itself; moto's threads may check the
//! conditions of two writes before either takes place.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::Value;
use shared::clock::Clock;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::capacity::{Capacity, key_of};
use crate::counts::{Counts, float};
use devstack::Failed;

/// The largest request that a function makes: an object.
const LARGEST: usize = 64 << 20;
/// Calls that the local AWS has in hand at a time: one process of Python does not get faster by more.
const AT_ONCE: usize = 4;
/// How many writes of different items may pass at once, at most.
const TURNS: usize = 64;

/// The headers that belong to a connection and not to what goes over it.
const OF_THE_CONNECTION: [HeaderName; 4] =
    [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// An object that was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its key in the bucket.
    pub key: String,
    /// When the bucket had it.
    pub at: Timestamp,
}

/// The relay. It serves until the runtime ends.
#[derive(Clone, Debug)]
pub struct Relay {
    url: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: OnceLock<String>,
    client: reqwest::Client,
    clock: Clock,
    slots: Semaphore,
    turns: [tokio::sync::Mutex<()>; TURNS],
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    counts: Counts,
    capacity: Capacity,
    written: Vec<Written>,
}

impl Relay {
    /// Listens on a port of its own; what comes before [`Relay::lead_to`] is refused.
    pub async fn start() -> Result<Self, Failed> {
        let client = devstack::http_client().map_err(|error| Failed(error.to_string()))?;
        let shared = Arc::new(Shared {
            target: OnceLock::new(),
            client,
            clock: Clock::system(),
            slots: Semaphore::new(AT_ONCE),
            turns: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            book: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            // Without it a small answer may wait for the other side's acknowledgement.
            let _ = stream.set_nodelay(true);
        });
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { url, shared })
    }

    /// The functions' `AWS_ENDPOINT_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where everything goes from now on; said once.
    pub fn lead_to(&self, endpoint: &str) {
        self.shared.target.get_or_init(|| endpoint.to_owned());
    }

    /// What the functions called so far: calls by service and operation, `dynamodb.read_units`, `dynamodb.write_units`,
    /// `sqs.messages`, `events.entries`, `s3.bytes`, and `aws.seconds`, in which the local AWS kept them waiting.
    pub fn counts(&self) -> Counts {
        self.shared.book().counts.clone()
    }

    /// The objects that were written so far, without the first ones, which the caller knows already.
    pub fn written_after(&self, known: usize) -> Vec<Written> {
        self.shared.book().written.iter().skip(known).cloned().collect()
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, call: &Call, request: &Value) -> Option<&tokio::sync::Mutex<()>> {
        let item = match (call.service, call.operation.as_str()) {
            ("dynamodb", "UpdateItem" | "DeleteItem") => &request["Key"],
            ("dynamodb", "PutItem") => &request["Item"],
            _ => return None,
        };
        let mut hasher = DefaultHasher::new();
        key_of(item).hash(&mut hasher);
        let turn = hasher.finish() % u64::try_from(TURNS).unwrap_or(1);
        self.turns.get(usize::try_from(turn).unwrap_or_default())
    }

    async fn forward(&self, parts: &Parts, body: Bytes) -> Result<(StatusCode, HeaderMap, Bytes), reqwest::Error> {
        let path = parts.uri.path_and_query().map(axum::http::uri::PathAndQuery::as_str).unwrap_or_default();
        let url = format!("{}{path}", self.target.get().map(String::as_str).unwrap_or_default());
        let request = self.client.request(parts.method.clone(), url).headers(passed_on(&parts.headers)).body(body);
        let answer = request.send().await?;
        let (status, headers) = (answer.status(), passed_on(answer.headers()));
        Ok((status, headers, answer.bytes().await?))
    }

    fn note(&self, call: &Call, request: &Value, status: StatusCode, answer: &[u8], sent: usize, seconds: f64) {
        let mut book = self.book();
        let (service, operation) = (call.service, &call.operation);
        book.counts.add(format!("{service}:{operation}"), 1.0);
        book.counts.add("aws.seconds", seconds);
        match (service, operation.as_str()) {
            ("dynamodb", _) => {
                let answer = serde_json::from_slice(answer).unwrap_or_default();
                let units = book.capacity.of(operation, request, &answer, status.is_success());
                book.counts.add("dynamodb.read_units", units.read);
                book.counts.add("dynamodb.write_units", units.write);
            }
            ("sqs" | "events", _) => {
                let entries = request["Entries"].as_array().map_or(1, Vec::len);
                book.counts.add(if service == "sqs" { "sqs.messages" } else { "events.entries" }, float(entries));
            }
            ("s3", "PUT") if status.is_success() => {
                book.counts.add("s3.bytes", float(sent));
                book.written.push(Written { key: call.object.clone(), at: self.clock.now() });
            }
            _ => {}
        }
    }
}

/// What a request calls.
struct Call {
    service: &'static str,
    operation: String,
    /// In S3: the key in the bucket.
    object: String,
}

impl Call {
    fn of(parts: &Parts) -> Self {
        let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
        let Some((api, operation)) = target.and_then(|target| target.split_once('.')) else {
            let (_, object) = parts.uri.path().trim_start_matches('/').split_once('/').unwrap_or_default();
            // The SDK writes `=` as it is or encoded.
            let object = object.replace("%3D", "=");
            return Self { service: "s3", operation: parts.method.to_string(), object };
        };
        let service = match api {
            "DynamoDB_20120810" => "dynamodb",
            "AmazonSQS" => "sqs",
            "AWSEvents" => "events",
            "secretsmanager" => "secretsmanager",
            "TrentService" => "kms",
            _ => "other",
        };
        Self { service, operation: operation.to_owned(), object: String::new() }
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LARGEST).await else { return StatusCode::PAYLOAD_TOO_LARGE.into_response() };
    let call = Call::of(&parts);
    let json = if call.service == "s3" { Value::Null } else { serde_json::from_slice(&body).unwrap_or_default() };
    let _turn = match shared.turn(&call, &json) {
        Some(turn) => Some(turn.lock().await),
        None => None,
    };
    let (sent, began) = (body.len(), Clock::system().now());
    // It is never closed.
    let _slot = shared.slots.acquire().await;
    match shared.forward(&parts, body).await {
        Ok((status, headers, answer)) => {
            shared.note(&call, &json, status, &answer, sent, Clock::system().now().duration_since(began).as_secs_f64());
            (status, headers, Body::from(answer)).into_response()
        }
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in OF_THE_CONNECTION {
        headers.remove(name);
    }
    headers
}
