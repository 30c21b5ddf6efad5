//! The Lambda Runtime API, as the function processes see it: one listener, and a path prefix per process.
//!
//! A process is started with `AWS_LAMBDA_RUNTIME_API=http://127.0.0.1:PORT/{function}/{process}`; the runtime client
//! puts `/2018-06-01/runtime/…` behind whatever path its base has (the scheme is needed for that: without one, `http`
//! takes no path). See <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::ambient;
use crate::error::{FunctionError, StackError};

/// Lambda's limit on an answer, with room for what JSON adds around it.
const ANSWER_LIMIT: usize = 8 * 1024 * 1024;

/// One event on its way to a process.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) request_id: String,
    pub(crate) payload: String,
    /// Counted from the moment at which the process takes the event, as Lambda does.
    pub(crate) timeout: Duration,
    pub(crate) arn: String,
    /// Told when the process has taken the event.
    pub(crate) taken: oneshot::Sender<Instant>,
    /// Told what the process answers.
    pub(crate) answer: oneshot::Sender<Result<Value, FunctionError>>,
}

/// Where one process gets its events and leaves its answers.
#[derive(Debug)]
pub(crate) struct Mailbox {
    inbox: tokio::sync::Mutex<mpsc::Receiver<Delivery>>,
    current: Mutex<Option<Current>>,
    init_error: Mutex<Option<FunctionError>>,
}

#[derive(Debug)]
struct Current {
    request_id: String,
    answer: oneshot::Sender<Result<Value, FunctionError>>,
}

impl Mailbox {
    /// What the process said about why it cannot start.
    pub(crate) fn init_error(&self) -> Option<FunctionError> {
        self.init_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hands the answer over if it belongs to the event in hand.
    fn answer(&self, request_id: &str, answer: Result<Value, FunctionError>) -> bool {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match current.take_if(|current| current.request_id == request_id) {
            // Who asked may have stopped waiting.
            Some(current) => current.answer.send(answer).is_ok(),
            None => false,
        }
    }
}

type Mailboxes = Arc<Mutex<HashMap<String, Arc<Mailbox>>>>;

/// The listener. It stops when it is dropped.
#[derive(Debug)]
pub(crate) struct RuntimeApi {
    address: SocketAddr,
    mailboxes: Mailboxes,
    server: AbortHandle,
}

impl RuntimeApi {
    pub(crate) async fn start() -> Result<Self, StackError> {
        let doing = "starting the Lambda Runtime API";
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(StackError::io(doing))?;
        let address = listener.local_addr().map_err(StackError::io(doing))?;
        let mailboxes = Mailboxes::default();
        let routes = Router::new()
            .route("/{function}/{process}/2018-06-01/runtime/invocation/next", get(next))
            .route("/{function}/{process}/2018-06-01/runtime/invocation/{request_id}/response", post(response))
            .route("/{function}/{process}/2018-06-01/runtime/invocation/{request_id}/error", post(error))
            .route("/{function}/{process}/2018-06-01/runtime/init/error", post(init_error))
            .layer(DefaultBodyLimit::max(ANSWER_LIMIT))
            .with_state(Arc::clone(&mailboxes));
        let server = tokio::spawn(async move {
            // Serving on loopback ends only with the task.
            let _ = axum::serve(listener, routes).await;
        })
        .abort_handle();
        Ok(Self { address, mailboxes, server })
    }

    /// The value of `AWS_LAMBDA_RUNTIME_API` for a process.
    pub(crate) fn base(&self, function: &str, process: u64) -> String {
        format!("http://{}/{function}/{process}", self.address)
    }

    /// Makes the mailbox of a process that is about to start.
    pub(crate) fn register(&self, function: &str, process: u64) -> (mpsc::Sender<Delivery>, Arc<Mailbox>) {
        let (sender, receiver) = mpsc::channel(1);
        let mailbox = Arc::new(Mailbox {
            inbox: tokio::sync::Mutex::new(receiver),
            current: Mutex::default(),
            init_error: Mutex::default(),
        });
        let mut mailboxes = self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner);
        mailboxes.insert(format!("{function}/{process}"), Arc::clone(&mailbox));
        (sender, mailbox)
    }

    /// Forgets a process that has ended.
    pub(crate) fn unregister(&self, function: &str, process: u64) {
        let mut mailboxes = self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner);
        mailboxes.remove(&format!("{function}/{process}"));
    }
}

impl Drop for RuntimeApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn mailbox(mailboxes: &Mailboxes, function: &str, process: &str) -> Option<Arc<Mailbox>> {
    let mailboxes = mailboxes.lock().unwrap_or_else(PoisonError::into_inner);
    mailboxes.get(&format!("{function}/{process}")).cloned()
}

async fn next(State(mailboxes): State<Mailboxes>, Path((function, process)): Path<(String, String)>) -> Response {
    let Some(mailbox) = mailbox(&mailboxes, &function, &process) else {
        return refusal(StatusCode::FORBIDDEN, "State.Forbidden", "no such process");
    };
    let Some(delivery) = mailbox.inbox.lock().await.recv().await else {
        // The process is being ended, and until then it waits, as it does in Lambda.
        return std::future::pending().await;
    };
    let taken_at = ambient::instant();
    let timeout = i64::try_from(delivery.timeout.as_millis()).unwrap_or(i64::MAX);
    let deadline = ambient::now().as_millisecond().saturating_add(timeout);
    *mailbox.current.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(Current { request_id: delivery.request_id.clone(), answer: delivery.answer });
    // Who asked may have stopped waiting; the process gets its event all the same.
    let _ = delivery.taken.send(taken_at);
    let root = delivery.request_id.replace('-', "");
    let trace = format!("Root=1-{:.8}-{:.24};Parent={:.16};Sampled=0", root, &root[8..], root);
    (
        [
            ("content-type", "application/json".to_owned()),
            ("lambda-runtime-aws-request-id", delivery.request_id),
            ("lambda-runtime-deadline-ms", deadline.to_string()),
            ("lambda-runtime-invoked-function-arn", delivery.arn),
            ("lambda-runtime-trace-id", trace),
        ],
        delivery.payload,
    )
        .into_response()
}

async fn response(
    State(mailboxes): State<Mailboxes>,
    Path((function, process, request_id)): Path<(String, String, String)>,
    body: Bytes,
) -> Response {
    let answer = match serde_json::from_slice(&body) {
        Ok(value) => Ok(value),
        Err(_) => Err(FunctionError::new("Runtime.InvalidResponse", "the function's answer is not JSON")),
    };
    accept(&mailboxes, &function, &process, &request_id, answer)
}

async fn error(
    State(mailboxes): State<Mailboxes>,
    Path((function, process, request_id)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    accept(&mailboxes, &function, &process, &request_id, Err(function_error(&headers, &body)))
}

async fn init_error(
    State(mailboxes): State<Mailboxes>,
    Path((function, process)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(mailbox) = mailbox(&mailboxes, &function, &process) else {
        return refusal(StatusCode::FORBIDDEN, "State.Forbidden", "no such process");
    };
    *mailbox.init_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(function_error(&headers, &body));
    accepted()
}

fn accept(
    mailboxes: &Mailboxes,
    function: &str,
    process: &str,
    request_id: &str,
    answer: Result<Value, FunctionError>,
) -> Response {
    let known = mailbox(mailboxes, function, process).is_some_and(|mailbox| mailbox.answer(request_id, answer));
    if known { accepted() } else { refusal(StatusCode::BAD_REQUEST, "InvalidRequestID", "Invalid request ID") }
}

fn accepted() -> Response {
    (StatusCode::ACCEPTED, axum::Json(json!({ "status": "OK" }))).into_response()
}

fn refusal(status: StatusCode, error_type: &str, message: &str) -> Response {
    (status, axum::Json(json!({ "errorType": error_type, "errorMessage": message }))).into_response()
}

/// The error as the body tells it; the header stands in where the body does not say.
fn function_error(headers: &HeaderMap, body: &[u8]) -> FunctionError {
    let mut error: FunctionError = serde_json::from_slice(body).unwrap_or_else(|_| FunctionError::new("", ""));
    if error.error_type.is_empty() {
        let header = headers.get("lambda-runtime-function-error-type").and_then(|value| value.to_str().ok());
        header.unwrap_or("Unhandled").clone_into(&mut error.error_type);
    }
    error
}
