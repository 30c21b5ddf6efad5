//! The start of a stack: its options, and the wiring of its parts.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{net::TcpListener, task::JoinSet};

use super::{CLIENT_ID, Programs, Stack, http_failed, unknown};
use crate::{
    ACCOUNT_ID, REGION, ambient,
    aws::{Aws, DeployedFunction, Deployment},
    console::Progress,
    error::StackError,
    event_source::EventSource,
    failures::Failures,
    functions,
    gateway::Gateway,
    log_book::LogBook,
    microsoft::{self, HOME_TENANT_ID, Microsoft, SimulatedApp},
    paths,
    pool::{FunctionSpec, Pool},
    python,
    rotation::Rotation,
    runtime_api::RuntimeApi,
    schedule::Schedule,
};

const APP: SimulatedApp =
    SimulatedApp { client_id: CLIENT_ID, client_secret: "local~client-secret~of-the-simulated-app" };
/// The rotation's own app.
const ROTATOR: SimulatedApp = SimulatedApp {
    client_id: "5b1c7d0e-0a0b-4c0d-8e0f-0123456789cd",
    client_secret: "local~client-secret~of-the-rotation",
};
/// The app of [`SignIn::OwnRegistration`].
const SIGN_IN_APP: SimulatedApp = SimulatedApp {
    client_id: "5b1c7d0e-0a0b-4c0d-8e0f-0123456789ef",
    client_secret: "local~client-secret~of-the-sign-in",
};
/// The largest number of processes of one function. Further events wait.
const MAX_PROCESSES: usize = 10;

/// The ports of the stack on the loopback address. For 0, the system chooses one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ports {
    /// The port of our HTTP API.
    pub api: u16,
    /// The port of Microsoft's login host.
    pub entra: u16,
    /// The port of Microsoft Graph.
    pub graph: u16,
    /// The port of the Defender API.
    pub defender: u16,
}

/// The app registration that administrators sign in with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SignIn {
    /// The partner's app, whose credential `consent-callback` then has.
    #[default]
    App,
    /// A second registration in the simulator, without permissions.
    OwnRegistration,
}

/// The builds of the functions that a stack has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Builds {
    /// This release.
    #[default]
    This,
    /// Also a later release, for [`Stack::deploy`].
    ThisAndLater,
}

/// The options of a stack. The default is what tests need: ephemeral ports, a simulator, and triggers by hand.
#[derive(Debug, Default)]
pub struct StackOptions {
    /// The ports on which our HTTP API and the simulator listen.
    pub ports: Ports,
    /// Parameters of the template. `PartnerName` has no default in the template, but has one here.
    pub parameters: BTreeMap<String, String>,
    /// Environment variables by binary, in addition to the template's. The key `*` is for all binaries.
    pub environment: BTreeMap<String, BTreeMap<String, String>>,
    /// Use the real Microsoft: start no simulator and override no host.
    pub live: bool,
    /// The app credential as JSON. Without it, the stack registers an app in the simulator and uses that app's secret,
    /// which it can also rotate.
    pub credential: Option<Value>,
    /// The app registration that administrators sign in with.
    pub sign_in: SignIn,
    /// Run the schedules and deliver the queue's messages automatically. Otherwise [`Stack::tick`] and
    /// [`Stack::drain_queue`] do so.
    pub automatic_triggers: bool,
    /// The period of the schedule that polls, in place of the template's rate. Only for automatic triggers.
    pub poll_interval: Option<Duration>,
    /// The directory of the functions' output; `target/devstack/logs` by default.
    pub logs: Option<PathBuf>,
    /// Delete the log files of earlier runs. Otherwise lines are appended to them.
    pub fresh_logs: bool,
    /// The builds of the functions.
    pub builds: Builds,
}

/// Builds the functions, creates what is missing and starts everything.
pub(super) async fn start(options: StackOptions, progress: &mut dyn Progress) -> Result<Stack, StackError> {
    let api = listen(options.ports.api).await?;
    if !options.live {
        microsoft::check_ports(options.ports)?;
    }
    let port = api.local_addr().map_err(StackError::io("listening"))?.port();
    let api_url = format!("http://localhost:{port}");

    let later = match options.builds {
        Builds::This => BTreeMap::new(),
        Builds::ThisAndLater => functions::build_later_release(progress).await?,
    };
    progress.step(if python::exists() {
        "building the functions"
    } else {
        "building the functions, and creating the Python environment of the local AWS (only the first time)"
    });
    let (this, python) = tokio::try_join!(functions::build(progress), python::interpreter())?;
    let logs = LogBook::open(&options.logs.unwrap_or_else(|| paths::state().join("logs")))?;
    if options.fresh_logs {
        logs.delete_files()?;
    }

    progress.step("starting Microsoft and AWS on this machine");
    let microsoft = if options.live { Microsoft::Real } else { Microsoft::simulate(options.ports).await? };
    let mut aws = Aws::start(&python, &logs.directory().join("aws.log")).await?;

    progress.step("deploying infra/template.yaml");
    let mut parameters = options.parameters;
    parameters.entry("PartnerName".to_owned()).or_insert_with(|| "Litware Security".to_owned());
    parameters.entry("PublicBaseUrl".to_owned()).or_insert_with(|| api_url.clone());
    let credential = if let Some(credential) = options.credential {
        credential
    } else {
        let redirect_uri = format!("{api_url}/consent/callback");
        microsoft.register_apps(&APP, &ROTATOR, &redirect_uri);
        if options.sign_in == SignIn::OwnRegistration {
            microsoft.register_sign_in(&SIGN_IN_APP, &redirect_uri);
            let secret = aws.create_secret("mandate-sign-in", &SIGN_IN_APP.credential()).await?;
            parameters.insert("SignInCredentialSecretArn".to_owned(), secret);
            parameters.insert("AppClientId".to_owned(), CLIENT_ID.to_owned());
        }
        let rotator = aws.create_secret("mandate-rotation", &ROTATOR.credential()).await?;
        parameters.entry("RotationCredentialSecretArn".to_owned()).or_insert(rotator);
        parameters.entry("HomeTenantId".to_owned()).or_insert_with(|| HOME_TENANT_ID.to_owned());
        APP.credential()
    };
    let deployment = aws.deploy(&python, &parameters).await?;
    aws.tap_event_bus(&deployment.resources.event_bus).await?;
    aws.put_secret(&deployment.resources.secret, &credential).await?;

    let runtime = Arc::new(RuntimeApi::start().await?);
    let mut by_name = BTreeMap::new();
    for deployed in &deployment.functions {
        let program = this.get(&deployed.binary).cloned();
        let program = program.ok_or_else(|| unknown("binary", &deployed.binary))?;
        let environment = environment(deployed, &aws, &microsoft, &options.environment);
        let pool = Pool::new(spec(deployed, environment), program, Arc::clone(&runtime), Arc::clone(&logs));
        by_name.insert(deployed.name.clone(), pool);
    }
    let triggers = Triggers::new(&deployment, &by_name, &aws)?;
    let gateway = Gateway::serve(api, deployment.routes, by_name.clone());
    let functions = by_name.into_values().map(|pool| (pool.spec().binary.clone(), pool)).collect();

    let failures = Arc::new(Failures::default());
    let trigger_tasks =
        if options.automatic_triggers { triggers.spawn(options.poll_interval, &failures) } else { JoinSet::new() };
    Ok(Stack {
        api_url,
        client: ambient::http_client().map_err(|error| http_failed("creating an HTTP client", &error))?,
        functions,
        programs: Programs { this, later },
        event_sources: triggers.event_sources,
        schedules: triggers.schedules,
        rotations: triggers.rotations,
        failures,
        logs,
        resources: deployment.resources,
        microsoft,
        events: tokio::sync::Mutex::default(),
        trigger_tasks,
        gateway: Some(gateway),
        aws,
    })
}

async fn listen(port: u16) -> Result<TcpListener, StackError> {
    TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| microsoft::port_error(port, error))
}

/// Everything of the template that invokes a function, except the HTTP API.
struct Triggers {
    event_sources: Vec<Arc<EventSource>>,
    schedules: Vec<Arc<Schedule>>,
    rotations: Vec<Rotation>,
}

impl Triggers {
    fn new(deployment: &Deployment, functions: &BTreeMap<String, Arc<Pool>>, aws: &Aws) -> Result<Self, StackError> {
        let find = |name: &String| functions.get(name).cloned().ok_or_else(|| unknown("function", name));
        let mut triggers = Self { event_sources: Vec::new(), schedules: Vec::new(), rotations: Vec::new() };
        for config in &deployment.event_sources {
            let function = find(&config.function)?;
            triggers.event_sources.push(EventSource::new(config.clone(), function, aws.sqs().clone()));
        }
        for config in &deployment.schedules {
            triggers.schedules.push(Schedule::new(config.clone(), find(&config.function)?));
        }
        for config in &deployment.rotations {
            let function = find(&config.function)?;
            triggers.rotations.push(Rotation::new(config.secret.clone(), function, aws.secrets()));
        }
        Ok(triggers)
    }

    /// Starts the event sources and the schedules. They run until the returned set is dropped.
    fn spawn(&self, poll_interval: Option<Duration>, failures: &Arc<Failures>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for source in &self.event_sources {
            tasks.spawn(Arc::clone(source).run(Arc::clone(failures)));
        }
        for schedule in &self.schedules {
            let period = poll_interval.filter(|_| schedule.kind() == Some("poll"));
            tasks.spawn(Arc::clone(schedule).run(period, Arc::clone(failures)));
        }
        tasks
    }
}

fn spec(deployed: &DeployedFunction, environment: BTreeMap<String, String>) -> FunctionSpec {
    FunctionSpec {
        name: deployed.name.clone(),
        binary: deployed.binary.clone(),
        arn: format!("arn:aws:lambda:{REGION}:{ACCOUNT_ID}:function:{}", deployed.name),
        timeout: Duration::from_secs(deployed.timeout_seconds),
        environment,
        max_processes: MAX_PROCESSES,
    }
}

/// Builds a function's environment. Later sources override earlier ones: Lambda, the template, the local AWS, the
/// simulator's hosts, the caller.
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
    // The local AWS records the calls of each function by its access key.
    environment.insert("AWS_ACCESS_KEY_ID".to_owned(), deployed.binary.clone());
    if deployed.binary != "incident-dispatch" {
        environment.extend(microsoft.function_environment());
    }
    for key in ["*", &deployed.binary] {
        environment.extend(extra.get(key).cloned().unwrap_or_default());
    }
    environment
}
