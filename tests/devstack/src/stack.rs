//! The whole stack: the functions behind an emulated Lambda, API Gateway, SQS and Scheduler, AWS by moto, Microsoft by
//! the simulator.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use axum::http::{HeaderMap, Method};
use serde_json::Value;
use sim::Sim;
use tokio::{net::TcpListener, sync::broadcast, task::JoinSet};

use crate::{
    ACCOUNT_ID, REGION, ambient,
    aws::{Aws, DeployedFunction, Deployment, Resources},
    console::Progress,
    error::{FunctionError, StackError},
    event_source::EventSource,
    failures::Failures,
    functions,
    gateway::Gateway,
    log_book::{LogBook, LogLine},
    microsoft::{self, HOME_TENANT_ID, Microsoft, Registered},
    paths,
    pool::{FunctionSpec, Pool, Usage},
    python,
    rotation::Rotation,
    runtime_api::RuntimeApi,
    schedule::Schedule,
};

/// The client id of the partner's app in the simulator.
pub const CLIENT_ID: &str = "5b1c7d0e-0a0b-4c0d-8e0f-0123456789ab";
const APP: Registered = Registered { client_id: CLIENT_ID, client_secret: "local~client-secret~of-the-simulated-app" };
/// The rotation's own app.
const ROTATOR: Registered = Registered {
    client_id: "5b1c7d0e-0a0b-4c0d-8e0f-0123456789cd",
    client_secret: "local~client-secret~of-the-rotation",
};
/// Any process more of one function waits.
const MAX_PROCESSES: usize = 10;
/// What a process may still have in its pipes when its answer is there.
const LOG_DELAY: Duration = Duration::from_millis(50);

/// The ports of the stack; 0 lets the system choose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ports {
    /// Our HTTP API.
    pub api: u16,
    /// Microsoft's login host.
    pub entra: u16,
    /// Microsoft Graph.
    pub graph: u16,
    /// The Defender API.
    pub defender: u16,
}

/// How a stack is to be.
#[derive(Debug, Default)]
pub struct StackOptions {
    /// Where it listens.
    pub ports: Ports,
    /// Parameters of the template. `PartnerName`, which has no default there, has one here.
    pub parameters: BTreeMap<String, String>,
    /// Environment variables on top of the template's, for each binary; `*` is for all.
    pub environment: BTreeMap<String, BTreeMap<String, String>>,
    /// A simulator to use in place of one that the stack starts.
    pub sim: Option<Sim>,
    /// Speak to the real Microsoft: no simulator, and no host is overridden.
    pub live: bool,
    /// The app credential's JSON. Without one, the stack registers an app in the simulator, uses its secret, and can
    /// rotate it.
    pub credential: Option<Value>,
    /// Whether schedules tick and messages are delivered by themselves; otherwise by [`Stack::tick`] and
    /// [`Stack::drain_queue`].
    pub pump: bool,
    /// With `pump`: how often the schedule that polls ticks, in place of the template's rate.
    pub poll_every: Option<Duration>,
    /// Where the functions' output goes; `target/devstack/logs` by default.
    pub logs: Option<PathBuf>,
    /// Empty the log files first; otherwise lines are appended.
    pub fresh_logs: bool,
}

/// An answer of our HTTP API.
#[derive(Clone, Debug)]
pub struct ApiReply {
    /// The status code.
    pub status: u16,
    /// The headers, with every `set-cookie`.
    pub headers: HeaderMap,
    /// The body as text.
    pub body: String,
}

impl ApiReply {
    /// The body as JSON; `null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// A header's value; empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// A running stack. Dropping it ends all its processes; [`Stack::shutdown`] also waits until they have gone.
///
/// Its tasks live on the runtime that started it.
#[derive(Debug)]
pub struct Stack {
    api_url: String,
    client: reqwest::Client,
    functions: BTreeMap<String, Arc<Pool>>,
    sources: Vec<Arc<EventSource>>,
    schedules: Vec<Arc<Schedule>>,
    rotations: Vec<Rotation>,
    failures: Arc<Failures>,
    logs: Arc<LogBook>,
    resources: Resources,
    microsoft: Microsoft,
    events: tokio::sync::Mutex<Vec<Value>>,
    // What follows ends with its drop, in this order.
    pumps: JoinSet<()>,
    gateway: Option<Gateway>,
    aws: Aws,
}

impl Stack {
    /// Builds the functions, makes what is missing and starts everything.
    pub async fn start(options: StackOptions, progress: &mut dyn Progress) -> Result<Self, StackError> {
        let api = listen(options.ports.api).await?;
        if !options.live && options.sim.is_none() {
            microsoft::check_ports(options.ports)?;
        }
        let port = api.local_addr().map_err(StackError::io("listening"))?.port();
        let api_url = format!("http://localhost:{port}");

        let binaries = functions::build(progress).await?;
        let python = python::interpreter(progress).await?;
        let logs = LogBook::open(&options.logs.unwrap_or_else(|| paths::state().join("logs")), options.fresh_logs)?;

        progress.step("starting Microsoft and AWS on this machine");
        let microsoft = match (options.live, options.sim) {
            (true, _) => Microsoft::real(),
            (false, Some(sim)) => Microsoft::simulated(sim),
            (false, None) => Microsoft::start(options.ports).await?,
        };
        let mut aws = Aws::start(&python, &logs.directory().join("aws.log")).await?;

        progress.step("deploying infra/template.yaml");
        let mut parameters = options.parameters;
        parameters.entry("PartnerName".to_owned()).or_insert_with(|| "Litware Security".to_owned());
        parameters.entry("PublicBaseUrl".to_owned()).or_insert_with(|| api_url.clone());
        let credential = if let Some(credential) = options.credential {
            credential
        } else {
            microsoft.register_apps(&APP, &ROTATOR, &format!("{api_url}/consent/callback"));
            let rotator = aws.create_secret("mandate-rotation", &ROTATOR.credential()).await?;
            parameters.entry("RotationCredentialSecretArn".to_owned()).or_insert(rotator);
            parameters.entry("HomeTenantId".to_owned()).or_insert_with(|| HOME_TENANT_ID.to_owned());
            APP.credential()
        };
        let deployment = aws.deploy(&python, &parameters).await?;
        aws.tap(&deployment.resources.event_bus).await?;
        aws.put_secret(&deployment.resources.secret, &credential).await?;

        let runtime = Arc::new(RuntimeApi::start().await?);
        let mut by_name = BTreeMap::new();
        for deployed in &deployment.functions {
            let path = binaries.get(&deployed.binary).cloned();
            let path = path.ok_or_else(|| unknown("binary", &deployed.binary))?;
            let environment = environment(deployed, &aws, &microsoft, &options.environment);
            let pool = Pool::new(spec(deployed, path, environment), Arc::clone(&runtime), Arc::clone(&logs));
            by_name.insert(deployed.name.clone(), pool);
        }
        let (sources, schedules, rotations) = wire(&deployment, &by_name, &aws)?;
        let gateway = Gateway::serve(api, deployment.routes, by_name.clone());
        let functions = by_name.into_values().map(|pool| (pool.spec().binary.clone(), pool)).collect();

        let failures = Arc::new(Failures::default());
        let mut pumps = JoinSet::new();
        if options.pump {
            for source in &sources {
                pumps.spawn(Arc::clone(source).pump(Arc::clone(&failures)));
            }
            for schedule in &schedules {
                let every = options.poll_every.filter(|_| schedule.kind() == Some("poll"));
                pumps.spawn(Arc::clone(schedule).pump(every, Arc::clone(&failures)));
            }
        }
        Ok(Self {
            api_url,
            client: ambient::http_client().map_err(|error| http_failed("making an HTTP client", &error))?,
            functions,
            sources,
            schedules,
            rotations,
            failures,
            logs,
            resources: deployment.resources,
            microsoft,
            events: tokio::sync::Mutex::default(),
            pumps,
            gateway: Some(gateway),
            aws,
        })
    }

    /// Ends everything and waits until no process is left.
    pub async fn shutdown(mut self) {
        self.pumps.shutdown().await;
        self.gateway = None;
        for function in self.functions.values() {
            function.stop().await;
        }
        self.aws.stop().await;
    }

    /// Where our HTTP API is, without a slash at the end.
    pub fn api_url(&self) -> &str {
        &self.api_url
    }

    /// Calls a route of our HTTP API as an operator with IAM credentials.
    pub async fn call(&self, method: &str, path_and_query: &str, body: Option<Value>) -> Result<ApiReply, StackError> {
        let scope = "Credential=AKIDLOCALOPERATOR/20260101/eu-central-1/execute-api/aws4_request";
        let signature = format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature={:064}", 0);
        let mut headers = vec![("authorization", signature.as_str())];
        if body.is_some() {
            headers.push(("content-type", "application/json"));
        }
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        self.public(method, path_and_query, &headers, body).await
    }

    /// Calls a route of our HTTP API with just these headers. Redirects are not followed.
    pub async fn public(
        &self,
        method: &str,
        path_and_query: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Result<ApiReply, StackError> {
        let doing = "calling our HTTP API";
        let method = Method::from_bytes(method.as_bytes()).map_err(|error| http_failed(doing, &error))?;
        let mut request = self.client.request(method, format!("{}{path_and_query}", self.api_url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.body(body.into()).send().await.map_err(|error| http_failed(doing, &error))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.text().await.map_err(|error| http_failed(doing, &error))?;
        Ok(ApiReply { status, headers, body })
    }

    /// Invokes a function directly, with its own timeout.
    pub async fn invoke(&self, binary: &str, payload: Value) -> Result<Value, FunctionError> {
        self.function(binary)?.invoke(&payload).await
    }

    /// Invokes a function directly so that it starts with this much time left.
    pub async fn invoke_with_deadline(
        &self,
        binary: &str,
        payload: Value,
        time_left: Duration,
    ) -> Result<Value, FunctionError> {
        self.function(binary)?.invoke_within(&payload, time_left).await
    }

    /// One tick of the schedule whose input has this `kind`; answers what the function does.
    pub async fn tick(&self, kind: &str) -> Result<Value, FunctionError> {
        let schedule = self.schedules.iter().find(|schedule| schedule.kind() == Some(kind));
        match schedule {
            Some(schedule) => schedule.tick().await,
            None => Err(FunctionError::new("Devstack.Unknown", format!("no schedule has the kind {kind}"))),
        }
    }

    /// Delivers what is on the queue, and what comes to it meanwhile, as the event source does; answers how many
    /// messages that were. One that fails is delivered once, and is visible again afterwards; one with a delay waits.
    pub async fn drain_queue(&self) -> Result<usize, StackError> {
        let mut messages = 0;
        for source in &self.sources {
            messages += source.drain(&self.failures).await?;
        }
        Ok(messages)
    }

    /// Delivers one batch, if there is one; answers how many messages were in it.
    pub async fn deliver_batch(&self) -> Result<usize, StackError> {
        for source in &self.sources {
            let messages = source.deliver(&self.failures).await?;
            if messages > 0 {
                return Ok(messages);
            }
        }
        Ok(0)
    }

    /// The bodies of the messages that failed too often. They stay where they are.
    pub async fn dead_letters(&self) -> Result<Vec<String>, StackError> {
        self.aws.bodies(&self.resources.dead_letter_queue_url).await
    }

    /// Every `incident/1` line in the bucket, in the order of the objects' keys. Each has one member more than was
    /// written, `object`: the key that it lies under.
    pub async fn delivered(&self) -> Result<Vec<Value>, StackError> {
        let mut lines = Vec::new();
        for key in self.objects("incidents/").await? {
            lines.extend(self.lines_of(&key).await?);
        }
        Ok(lines)
    }

    /// The `incident/1` lines of one object, as [`Stack::delivered`] gives them.
    pub async fn lines_of(&self, object: &str) -> Result<Vec<Value>, StackError> {
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

    /// The keys in the bucket under a prefix.
    pub async fn objects(&self, prefix: &str) -> Result<Vec<String>, StackError> {
        self.aws.keys(&self.resources.bucket, prefix).await
    }

    /// The text of an object in the bucket, unpacked.
    pub async fn object_text(&self, key: &str) -> Result<String, StackError> {
        self.aws.text(&self.resources.bucket, key).await
    }

    /// Every event of the bus since the start, as EventBridge hands them to a target.
    pub async fn events(&self) -> Result<Vec<Value>, StackError> {
        self.events_after(0).await
    }

    /// The same, without the first ones, which the caller knows already.
    pub async fn events_after(&self, known: usize) -> Result<Vec<Value>, StackError> {
        let mut events = self.events.lock().await;
        events.extend(self.aws.new_events().await?);
        Ok(events.iter().skip(known).cloned().collect())
    }

    /// What a function printed so far (of very much, the later part); a line of standard error is `{"stderr": "…"}`.
    pub async fn logs(&self, binary: &str) -> Vec<String> {
        tokio::time::sleep(LOG_DELAY).await;
        self.logs.lines(binary)
    }

    /// What all functions print from now on.
    pub fn follow_logs(&self) -> broadcast::Receiver<LogLine> {
        self.logs.follow()
    }

    /// The invocations from the queue and the schedules that failed since the last call, in one line each.
    pub fn take_failures(&self) -> Vec<String> {
        self.failures.take()
    }

    /// What a function was used for since the start, by events of all kinds.
    pub fn usage(&self, binary: &str) -> Usage {
        self.functions.get(binary).map(|function| function.usage()).unwrap_or_default()
    }

    /// Kills a function's processes at once, those at work too. The next event starts another.
    pub fn kill(&self, binary: &str) {
        if let Some(function) = self.functions.get(binary) {
            function.kill();
        }
    }

    /// The simulator of Microsoft, unless the stack is live.
    pub fn sim(&self) -> Option<&Sim> {
        self.microsoft.sim()
    }

    /// Names of what the template made.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// The local AWS, for clients of a test's own.
    pub fn aws(&self) -> &Aws {
        &self.aws
    }

    /// Replaces the app credential.
    pub async fn put_secret(&self, credential: Value) -> Result<(), StackError> {
        self.aws.put_secret(&self.resources.secret, &credential).await
    }

    /// Replaces the app's client secret as Secrets Manager does: a pending version, then the four steps.
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

async fn listen(port: u16) -> Result<TcpListener, StackError> {
    TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| microsoft::port_error(port, error))
}

fn http_failed(doing: &'static str, error: &dyn std::error::Error) -> StackError {
    StackError::Http { doing, detail: error.to_string() }
}

fn unknown(kind: &'static str, name: &str) -> StackError {
    StackError::Unknown { kind, name: name.to_owned() }
}

type Wired = (Vec<Arc<EventSource>>, Vec<Arc<Schedule>>, Vec<Rotation>);

fn wire(deployment: &Deployment, functions: &BTreeMap<String, Arc<Pool>>, aws: &Aws) -> Result<Wired, StackError> {
    let find = |name: &String| functions.get(name).cloned().ok_or_else(|| unknown("function", name));
    let mut sources = Vec::new();
    for declared in &deployment.event_sources {
        sources.push(EventSource::new(declared.clone(), find(&declared.function)?, aws.sqs().clone()));
    }
    let mut schedules = Vec::new();
    for declared in &deployment.schedules {
        schedules.push(Schedule::new(declared.clone(), find(&declared.function)?));
    }
    let mut rotations = Vec::new();
    for declared in &deployment.rotations {
        rotations.push(Rotation::new(declared.secret.clone(), find(&declared.function)?, aws.secrets()));
    }
    Ok((sources, schedules, rotations))
}

fn spec(deployed: &DeployedFunction, path: PathBuf, environment: BTreeMap<String, String>) -> FunctionSpec {
    FunctionSpec {
        name: deployed.name.clone(),
        binary: deployed.binary.clone(),
        path,
        arn: format!("arn:aws:lambda:{REGION}:{ACCOUNT_ID}:function:{}", deployed.name),
        timeout: Duration::from_secs(deployed.timeout_seconds),
        environment,
        max_processes: MAX_PROCESSES,
    }
}

/// What Lambda sets, what the template sets, the local AWS, the simulator's hosts, and what the caller adds.
/// <https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html>
fn environment(
    deployed: &DeployedFunction,
    aws: &Aws,
    microsoft: &Microsoft,
    extra: &BTreeMap<String, BTreeMap<String, String>>,
) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::from([
        ("_HANDLER", "bootstrap".to_owned()),
        ("TZ", ":UTC".to_owned()),
        ("LANG", "en_US.UTF-8".to_owned()),
        ("PATH", "/usr/local/bin:/usr/bin/:/bin:/opt/bin".to_owned()),
        ("AWS_EXECUTION_ENV", "AWS_Lambda_provided.al2023".to_owned()),
        ("AWS_LAMBDA_FUNCTION_NAME", deployed.name.clone()),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".to_owned()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", deployed.memory_mb.to_string()),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand".to_owned()),
        ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{}", deployed.name)),
        ("AWS_LAMBDA_LOG_STREAM_NAME", "local".to_owned()),
    ])
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect::<BTreeMap<_, _>>();
    environment.extend(deployed.environment.clone());
    let aws = aws.function_environment();
    environment.extend(aws.map(|(name, value)| (name.to_owned(), value.to_owned())));
    if deployed.binary != "incident-dispatch" {
        environment.extend(microsoft.function_environment());
    }
    for key in ["*", &deployed.binary] {
        environment.extend(extra.get(key).cloned().unwrap_or_default());
    }
    environment
}
