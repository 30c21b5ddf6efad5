//! The Lambda Runtime API for the function processes: one listener, with a path prefix for each process.
//!
//! A process is started with `AWS_LAMBDA_RUNTIME_API=http://127.0.0.1:PORT/{function}/{process}`. The runtime client
//! appends `/2018-06-01/runtime/…` to that path. The scheme is required, because the crate `http` parses no path without
//! one. See <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    ambient,
    error::{FunctionError, StackError},
};

/// Lambda's limit of 6 MB on a response, with room for its JSON encoding.
const MAX_RESPONSE_BYTES: usize = 8 * 1024 * 1024;

/// One event for a process, with the channels that report its progress.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) request_id: String,
    pub(crate) payload: String,
    /// Counts from the moment at which the process receives the event, as in Lambda.
    pub(crate) timeout: Duration,
    pub(crate) arn: String,
    /// Receives the time at which the process received the event.
    pub(crate) received: oneshot::Sender<Instant>,
    /// Receives the function's response or error.
    pub(crate) response: oneshot::Sender<Result<Value, FunctionError>>,
}

/// The queue of events for one process, and the event that it is working on.
#[derive(Debug)]
pub(crate) struct Mailbox {
    invocations: tokio::sync::Mutex<mpsc::Receiver<Invocation>>,
    running: Mutex<Option<Running>>,
    init_error: Mutex<Option<FunctionError>>,
}

#[derive(Debug)]
struct Running {
    request_id: String,
    response: oneshot::Sender<Result<Value, FunctionError>>,
}

impl Mailbox {
    /// The error that the process reported while it initialised.
    pub(crate) fn init_error(&self) -> Option<FunctionError> {
        self.init_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Passes a response on. Returns `false` if it does not belong to the running event, or if the caller has stopped
    /// waiting for it.
    fn complete(&self, request_id: &str, response: Result<Value, FunctionError>) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let matching = running.take_if(|running| running.request_id == request_id);
        matching.is_some_and(|running| running.response.send(response).is_ok())
    }
}

type Mailboxes = Arc<Mutex<HashMap<String, Arc<Mailbox>>>>;

/// The listener for all processes. It stops when it is dropped.
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
            .layer(DefaultBodyLimit::max(MAX_RESPONSE_BYTES))
            .with_state(Arc::clone(&mailboxes));
        let server = tokio::spawn(async move {
            // Serving on loopback ends only with the task.
            let _ = axum::serve(listener, routes).await;
        })
        .abort_handle();
        Ok(Self { address, mailboxes, server })
    }

    /// The value of `AWS_LAMBDA_RUNTIME_API` for a process.
    pub(crate) fn base_url(&self, function: &str, process: u64) -> String {
        format!("http://{}/{function}/{process}", self.address)
    }

    /// Creates the mailbox of a process that is about to start.
    pub(crate) fn register(&self, function: &str, process: u64) -> (mpsc::Sender<Invocation>, Arc<Mailbox>) {
        let (sender, receiver) = mpsc::channel(1);
        let mailbox = Arc::new(Mailbox {
            invocations: tokio::sync::Mutex::new(receiver),
            running: Mutex::default(),
            init_error: Mutex::default(),
        });
        let mut mailboxes = self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner);
        mailboxes.insert(format!("{function}/{process}"), Arc::clone(&mailbox));
        (sender, mailbox)
    }

    /// Removes the mailbox of a process that has ended.
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
        return error_response(StatusCode::FORBIDDEN, "State.Forbidden", "no such process");
    };
    let Some(invocation) = mailbox.invocations.lock().await.recv().await else {
        // The process is about to be killed. Until then it waits, as in Lambda.
        return std::future::pending().await;
    };
    let received_at = crate::ambient::instant();
    let timeout = i64::try_from(invocation.timeout.as_millis()).unwrap_or(i64::MAX);
    let deadline = ambient::now().as_millisecond().saturating_add(timeout);
    *mailbox.running.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(Running { request_id: invocation.request_id.clone(), response: invocation.response });
    // The caller may have stopped waiting. The process gets its event nevertheless.
    let _ = invocation.received.send(received_at);
    let root = invocation.request_id.replace('-', "");
    let trace = format!("Root=1-{:.8}-{:.24};Parent={:.16};Sampled=0", root, &root[8..], root);
    (
        [
            ("content-type", "application/json".to_owned()),
            ("lambda-runtime-aws-request-id", invocation.request_id),
            ("lambda-runtime-deadline-ms", deadline.to_string()),
            ("lambda-runtime-invoked-function-arn", invocation.arn),
            ("lambda-runtime-trace-id", trace),
        ],
        invocation.payload,
    )
        .into_response()
}

async fn response(
    State(mailboxes): State<Mailboxes>,
    Path((function, process, request_id)): Path<(String, String, String)>,
    body: Bytes,
) -> Response {
    let response = match serde_json::from_slice(&body) {
        Ok(value) => Ok(value),
        Err(_) => Err(FunctionError::new("Runtime.InvalidResponse", "the function's response is not JSON")),
    };
    accept(&mailboxes, &function, &process, &request_id, response)
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
        return error_response(StatusCode::FORBIDDEN, "State.Forbidden", "no such process");
    };
    *mailbox.init_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(function_error(&headers, &body));
    accepted()
}

fn accept(
    mailboxes: &Mailboxes,
    function: &str,
    process: &str,
    request_id: &str,
    response: Result<Value, FunctionError>,
) -> Response {
    let is_accepted =
        mailbox(mailboxes, function, process).is_some_and(|mailbox| mailbox.complete(request_id, response));
    if is_accepted {
        accepted()
    } else {
        error_response(StatusCode::BAD_REQUEST, "InvalidRequestID", "Invalid request ID")
    }
}

fn accepted() -> Response {
    (StatusCode::ACCEPTED, axum::Json(json!({ "status": "OK" }))).into_response()
}

fn error_response(status: StatusCode, error_type: &str, message: &str) -> Response {
    (status, axum::Json(json!({ "errorType": error_type, "errorMessage": message }))).into_response()
}

/// Parses the error in the body. The header supplies the error type if the body has none.
fn function_error(headers: &HeaderMap, body: &[u8]) -> FunctionError {
    let mut error: FunctionError = serde_json::from_slice(body).unwrap_or_else(|_| FunctionError::new("", ""));
    if error.error_type.is_empty() {
        let header = headers.get("lambda-runtime-function-error-type").and_then(|value| value.to_str().ok());
        header.unwrap_or("Unhandled").clone_into(&mut error.error_type);
    }
    error
}
