//! The running stack: the functions behind an emulated Lambda, API Gateway, SQS event source and Scheduler, AWS by moto,
//! Microsoft by the simulator.

mod start;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use axum::http::{HeaderMap, Method};
use serde::Deserialize;
use serde_json::Value;
use sim::Sim;
use tokio::{sync::broadcast, task::JoinSet};

pub use self::start::{Builds, Ports, SignIn, StackOptions};
use crate::{
    aws::{Aws, Resources},
    console::Progress,
    error::{FunctionError, StackError},
    event_source::EventSource,
    failures::Failures,
    gateway::Gateway,
    log_book::{LogBook, LogLine},
    microsoft::Microsoft,
    pool::{Pool, Usage},
    rotation::Rotation,
    schedule::Schedule,
};

/// The client id of the partner's app in the simulator.
pub const CLIENT_ID: &str = "5b1c7d0e-0a0b-4c0d-8e0f-0123456789ab";
/// The time in which a process's last lines arrive through its pipes after its response.
const LOG_DELAY: Duration = Duration::from_millis(50);

/// A response of our HTTP API.
#[derive(Clone, Debug)]
pub struct ApiResponse {
    /// The HTTP status code.
    pub status: u16,
    /// All headers, with every `set-cookie`.
    pub headers: HeaderMap,
    /// The body as UTF-8 text.
    pub body: String,
}

impl ApiResponse {
    /// Parses the body as JSON. Returns `null` if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// Returns a header's value; empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// A build of the functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The functions as they are.
    This,
    /// The functions as a later release: they store what this one does not know.
    Later,
}

/// The binaries of both releases.
#[derive(Debug)]
struct Programs {
    this: BTreeMap<String, PathBuf>,
    later: BTreeMap<String, PathBuf>,
}

/// What became of the items that a later release stored.
#[derive(Debug, Deserialize)]
pub struct LaterItems {
    /// The items by kind.
    pub kinds: BTreeMap<String, LaterKind>,
    /// The keys of those that lost something which this release does not know.
    pub lost: Vec<String>,
}

/// Items of one kind that a later release stored.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct LaterKind {
    /// The number of items that are still there.
    pub stored: usize,
    /// The number of those that this release has written since.
    pub written: usize,
    /// The number of words in them that this release does not know.
    pub words: usize,
}

/// A running stack. Dropping it kills all its processes; [`Stack::shutdown`] also waits until they have exited.
///
/// Its tasks run on the runtime that started it.
#[derive(Debug)]
pub struct Stack {
    api_url: String,
    client: reqwest::Client,
    functions: BTreeMap<String, Arc<Pool>>,
    programs: Programs,
    event_sources: Vec<Arc<EventSource>>,
    schedules: Vec<Arc<Schedule>>,
    rotations: Vec<Rotation>,
    failures: Arc<Failures>,
    logs: Arc<LogBook>,
    resources: Resources,
    microsoft: Microsoft,
    events: tokio::sync::Mutex<Vec<Value>>,
    // The following parts stop when they are dropped, in this order.
    trigger_tasks: JoinSet<()>,
    gateway: Option<Gateway>,
    aws: Aws,
}

impl Stack {
    /// Builds the functions, creates what is missing and starts everything.
    pub async fn start(options: StackOptions, progress: &mut dyn Progress) -> Result<Self, StackError> {
        start::start(options, progress).await
    }

    /// Stops everything and waits until all processes have exited.
    pub async fn shutdown(mut self) {
        self.trigger_tasks.shutdown().await;
        self.gateway = None;
        for function in self.functions.values() {
            function.stop().await;
        }
        self.aws.stop().await;
    }

    /// The URL of our HTTP API, without a slash at the end.
    pub fn api_url(&self) -> &str {
        &self.api_url
    }

    /// Calls a route of our HTTP API as an operator with IAM credentials.
    pub async fn call(
        &self,
        method: &str,
        path_and_query: &str,
        body: Option<Value>,
    ) -> Result<ApiResponse, StackError> {
        let scope = "Credential=AKIDLOCALOPERATOR/20260101/eu-central-1/execute-api/aws4_request";
        let signature = format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature={:064}", 0);
        let mut headers = vec![("authorization", signature.as_str())];
        if body.is_some() {
            headers.push(("content-type", "application/json"));
        }
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        self.public(method, path_and_query, &headers, body).await
    }

    /// Calls a route of our HTTP API with these headers only, so without a signature. Redirects are not followed.
    pub async fn public(
        &self,
        method: &str,
        path_and_query: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Result<ApiResponse, StackError> {
        let doing = "calling our HTTP API";
        let method = Method::from_bytes(method.as_bytes()).map_err(|error| http_failed(doing, &error))?;
        let mut request = self.client.request(method, format!("{}{path_and_query}", self.api_url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.body(body.into()).send().await.map_err(|error| http_failed(doing, &error))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.text().await.map_err(|error| http_failed(doing, &error))?;
        Ok(ApiResponse { status, headers, body })
    }

    /// Invokes a function directly, with its own timeout.
    pub async fn invoke(&self, binary: &str, payload: Value) -> Result<Value, FunctionError> {
        self.function(binary)?.invoke(&payload).await
    }

    /// Invokes a function directly, with `time_left` in place of its own timeout.
    pub async fn invoke_with_deadline(
        &self,
        binary: &str,
        payload: Value,
        time_left: Duration,
    ) -> Result<Value, FunctionError> {
        self.function(binary)?.invoke_within(&payload, time_left).await
    }

    /// Triggers the schedule whose input has this `kind` once, for all tenants, and returns the function's response.
    pub async fn tick(&self, kind: &str) -> Result<Value, FunctionError> {
        let schedule = self.schedules.iter().find(|schedule| schedule.kind() == Some(kind));
        match schedule {
            Some(schedule) => schedule.tick_for_all().await,
            None => Err(FunctionError::new("Devstack.Unknown", format!("no schedule has the kind {kind}"))),
        }
    }

    /// Delivers the messages on the queue, and those that arrive meanwhile, as the event source does. Returns how many
    /// messages were delivered. A message that fails is delivered once and is visible again afterwards. A message with a
    /// delay stays on the queue.
    pub async fn drain_queue(&self) -> Result<usize, StackError> {
        let mut messages = 0;
        for source in &self.event_sources {
            messages += source.drain(&self.failures).await?;
        }
        Ok(messages)
    }

    /// Returns the bodies of the messages in the dead-letter queue. The messages stay there.
    pub async fn dead_letters(&self) -> Result<Vec<String>, StackError> {
        self.aws.message_bodies(&self.resources.dead_letter_queue_url).await
    }

    /// Returns every `incident/1` line in the bucket, in the order of the objects' keys. Each line gets an additional member
    /// `object`: the key of its object.
    pub async fn delivered(&self) -> Result<Vec<Value>, StackError> {
        let mut lines = Vec::new();
        for key in self.objects("incidents/").await? {
            lines.extend(self.incident_lines(&key).await?);
        }
        Ok(lines)
    }

    /// Returns the `incident/1` lines of one object, in the format of [`Stack::delivered`].
    pub async fn incident_lines(&self, object: &str) -> Result<Vec<Value>, StackError> {
        let text = self.object_text(object).await?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let incidents = lines.filter(|line| line.get("schema").is_some_and(|schema| schema == "incident/1"));
        Ok(incidents
            .map(|mut line| {
                line["object"] = object.into();
                line
            })
            .collect())
    }

    /// Returns the keys of the bucket's objects under a prefix.
    pub async fn objects(&self, prefix: &str) -> Result<Vec<String>, StackError> {
        self.aws.object_keys(&self.resources.bucket, prefix).await
    }

    /// Returns the text of an object in the bucket, decompressed if its key ends in `.gz`.
    pub async fn object_text(&self, key: &str) -> Result<String, StackError> {
        self.aws.object_text(&self.resources.bucket, key).await
    }

    /// Returns every event of the bus since the start, in the form in which EventBridge delivers them to a target.
    pub async fn events(&self) -> Result<Vec<Value>, StackError> {
        self.events_after(0).await
    }

    /// Returns the events of [`Stack::events`] without the first `skipped` ones.
    pub async fn events_after(&self, skipped: usize) -> Result<Vec<Value>, StackError> {
        let mut events = self.events.lock().await;
        events.extend(self.aws.new_events().await?);
        Ok(events.iter().skip(skipped).cloned().collect())
    }

    /// Returns the lines that a function has printed, without the oldest ones if they are more than 100,000. A line of
    /// standard error is `{"stderr": "…"}`.
    pub async fn logs(&self, binary: &str) -> Vec<String> {
        tokio::time::sleep(LOG_DELAY).await;
        self.logs.lines(binary)
    }

    /// Subscribes to the lines that the functions print from now on.
    pub fn follow_logs(&self) -> broadcast::Receiver<LogLine> {
        self.logs.follow()
    }

    /// Returns the invocations by the queue and the schedules that failed since the last call, as one line each.
    pub fn take_failures(&self) -> Vec<String> {
        self.failures.take()
    }

    /// Returns a function's usage since the start, by invocations of all kinds.
    pub fn usage(&self, binary: &str) -> Usage {
        self.functions.get(binary).map(|function| function.usage()).unwrap_or_default()
    }

    /// Kills a function's processes at once, also those that are serving an event. The next event starts a new one.
    pub fn kill(&self, binary: &str) {
        if let Some(function) = self.functions.get(binary) {
            function.kill();
        }
    }

    /// Replaces the faults of the local AWS: a list of `{"service", "kind", "times"}` as `aws_faults.py` describes it.
    pub async fn fail_aws(&self, faults: &Value) -> Result<(), StackError> {
        let request = self.client.put(format!("{}/stack/faults", self.aws.endpoint()));
        let response = request.body(faults.to_string()).send().await.and_then(reqwest::Response::error_for_status);
        response.map(drop).map_err(|error| http_failed("planning faults of AWS", &error))
    }

    /// Lets the processes that start from now on be those of a release. The others go on until they end or are killed.
    ///
    /// Without [`Builds::ThisAndLater`] there is only this release.
    pub fn deploy(&self, release: Release) {
        let programs = match release {
            Release::This => &self.programs.this,
            Release::Later => &self.programs.later,
        };
        for (binary, function) in &self.functions {
            if let Some(program) = programs.get(binary) {
                function.deploy(program.clone());
            }
        }
    }

    /// Kills the processes of all functions at once. The next event of each starts a new one.
    pub fn kill_all(&self) {
        self.functions.values().for_each(|function| function.kill());
    }

    /// Returns what became of the items of the later release. With a release it first notes that writes from now on are
    /// that release's.
    pub async fn later_items(&self, writer: Option<Release>) -> Result<LaterItems, StackError> {
        let url = format!("{}/stack/later-release", self.aws.endpoint());
        let request = match writer {
            Some(release) => self.client.put(url).body((release == Release::Later).to_string()),
            None => self.client.get(url),
        };
        let failed = |error: reqwest::Error| http_failed("reading the items of a later release", &error);
        let response = request.send().await.and_then(reqwest::Response::error_for_status);
        response.map_err(failed)?.json().await.map_err(failed)
    }

    /// The simulator of Microsoft, unless the stack is live.
    pub fn sim(&self) -> Option<&Sim> {
        self.microsoft.sim()
    }

    /// The physical names of the resources that the template creates.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// The local AWS, for tests that create SDK clients.
    pub fn aws(&self) -> &Aws {
        &self.aws
    }

    /// Sets the app credential, without a rotation.
    pub async fn put_secret(&self, credential: Value) -> Result<(), StackError> {
        self.aws.put_secret(&self.resources.secret, &credential).await
    }

    /// Rotates the app's client secret as Secrets Manager does: creates a pending version, then calls the four steps.
    pub async fn rotate(&self) -> Result<(), StackError> {
        let rotation = self.rotations.iter().find(|rotation| rotation.secret() == self.resources.secret);
        rotation.ok_or_else(|| unknown("rotation", &self.resources.secret))?.rotate().await
    }

    fn function(&self, binary: &str) -> Result<&Arc<Pool>, FunctionError> {
        let found = self.functions.get(binary);
        found.ok_or_else(|| FunctionError::new("Devstack.Unknown", format!("no function runs {binary}")))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        for function in self.functions.values() {
            function.close();
        }
    }
}

fn http_failed(doing: &'static str, error: &dyn std::error::Error) -> StackError {
    StackError::Http { doing, detail: error.to_string() }
}

fn unknown(kind: &'static str, name: &str) -> StackError {
    StackError::Unknown { kind, name: name.to_owned() }
}
