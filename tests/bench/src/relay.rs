//! A relay between the functions and AWS. It counts calls and records the time at which an object was written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use devstack::Failed;
use jiff::Timestamp;
use serde_json::Value;
use shared::clock::Clock;
use tokio::net::TcpListener;

use crate::{
    capacity::{Capacity, Outcome},
    counts::{Counts, float},
};

/// The largest accepted request body. The largest one of a function is an object.
const MAX_REQUEST_BYTES: usize = 64 << 20;

/// Headers that belong to one connection and are not forwarded.
const HOP_HEADERS: [HeaderName; 4] =
    [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// An object that a function wrote.
#[derive(Clone, Debug)]
pub struct WrittenObject {
    /// The object's key in the bucket.
    pub key: String,
    /// The time at which the bucket had confirmed the write.
    pub at: Timestamp,
}

/// A running relay. It serves until the runtime ends.
#[derive(Clone, Debug)]
pub struct Relay {
    url: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: String,
    client: reqwest::Client,
    clock: Clock,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    counts: Counts,
    capacity: Capacity,
    written: Vec<WrittenObject>,
}

impl Relay {
    /// Listens on an ephemeral port and forwards requests to `target`.
    pub async fn start(target: &str) -> Result<Self, Failed> {
        let client = devstack::http_client().map_err(|error| Failed(error.to_string()))?;
        let shared =
            Arc::new(Shared { target: target.to_owned(), client, clock: Clock::system(), record: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            // Otherwise a small response may wait for the acknowledgement of the previous packet.
            let _ = stream.set_nodelay(true);
        });
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { url, shared })
    }

    /// The value of the functions' `AWS_ENDPOINT_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the counts since the start: calls by service and operation, `dynamodb.read_units`, `dynamodb.write_units`,
    /// `sqs.messages`, `events.entries`, `s3.bytes`, and `aws.seconds`, the time that the functions waited for AWS.
    pub fn counts(&self) -> Counts {
        self.shared.record().counts.clone()
    }

    /// Returns the objects that were written since the start, without the first `skipped` ones.
    pub fn written_after(&self, skipped: usize) -> Vec<WrittenObject> {
        self.shared.record().written.iter().skip(skipped).cloned().collect()
    }
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn forward(&self, parts: &Parts, body: Bytes) -> Result<(StatusCode, HeaderMap, Bytes), reqwest::Error> {
        let path = parts.uri.path_and_query().map(axum::http::uri::PathAndQuery::as_str).unwrap_or_default();
        let url = format!("{}{path}", self.target);
        let request =
            self.client.request(parts.method.clone(), url).headers(without_hop_headers(&parts.headers)).body(body);
        let response = request.send().await?;
        let (status, headers) = (response.status(), without_hop_headers(response.headers()));
        Ok((status, headers, response.bytes().await?))
    }

    fn count(
        &self,
        call: &Call,
        request: &Value,
        status: StatusCode,
        response: &[u8],
        sent_bytes: usize,
        seconds: f64,
    ) {
        let mut record = self.record();
        let (service, operation) = (call.service, &call.operation);
        record.counts.add(format!("{service}:{operation}"), 1.0);
        record.counts.add("aws.seconds", seconds);
        match (service, operation.as_str()) {
            ("dynamodb", _) => {
                let response = serde_json::from_slice(response).unwrap_or_default();
                let outcome = if status.is_success() { Outcome::Accepted } else { Outcome::Refused };
                let units = record.capacity.of(operation, request, &response, outcome);
                record.counts.add("dynamodb.read_units", units.read);
                record.counts.add("dynamodb.write_units", units.write);
            }
            ("sqs" | "events", _) => {
                let entries = request["Entries"].as_array().map_or(1, Vec::len);
                record.counts.add(if service == "sqs" { "sqs.messages" } else { "events.entries" }, float(entries));
            }
            ("s3", "PUT") if status.is_success() => {
                record.counts.add("s3.bytes", float(sent_bytes));
                record.written.push(WrittenObject { key: call.object.clone(), at: self.clock.now() });
            }
            _ => {}
        }
    }
}

/// The call that a request makes.
struct Call {
    service: &'static str,
    operation: String,
    /// The object's key; empty for all services but S3.
    object: String,
}

impl Call {
    fn parse(parts: &Parts) -> Self {
        let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
        let Some((api, operation)) = target.and_then(|target| target.split_once('.')) else {
            let (_, object) = parts.uri.path().trim_start_matches('/').split_once('/').unwrap_or_default();
            // The SDK sends `=` literally or percent-encoded.
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
    let Ok(body) = to_bytes(body, MAX_REQUEST_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let call = Call::parse(&parts);
    let json = if call.service == "s3" { Value::Null } else { serde_json::from_slice(&body).unwrap_or_default() };
    let (sent_bytes, started) = (body.len(), devstack::instant());
    match shared.forward(&parts, body).await {
        Ok((status, headers, response)) => {
            shared.count(&call, &json, status, &response, sent_bytes, started.elapsed().as_secs_f64());
            (status, headers, Body::from(response)).into_response()
        }
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

fn without_hop_headers(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in HOP_HEADERS {
        headers.remove(name);
    }
    headers
}
