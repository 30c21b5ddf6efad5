//! One process of a function, as Lambda runs it, with the runtime API on loopback.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use devstack::Failed;
use serde_json::Value;
use tokio::{
    io::AsyncReadExt as _,
    net::TcpListener,
    process::{Child, ChildStdout, Command},
    sync::{Mutex, mpsc},
    time::Instant,
};

/// The longest time for a start or an invocation.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(10);

/// A process with its runtime API. The process ends when this is dropped.
pub struct Function {
    process: Child,
    started: Instant,
    events: mpsc::UnboundedSender<String>,
    polls: mpsc::UnboundedReceiver<Instant>,
    responses: mpsc::UnboundedReceiver<(Instant, Bytes)>,
    log_bytes: Arc<AtomicUsize>,
}

/// The outcome of one invocation.
#[derive(Debug)]
pub struct Invocation {
    /// The time from the event to the whole response, at the runtime API.
    pub duration: Duration,
    /// The function's response, or its error.
    pub response: Value,
}

struct Runtime {
    events: Mutex<mpsc::UnboundedReceiver<String>>,
    polls: mpsc::UnboundedSender<Instant>,
    responses: mpsc::UnboundedSender<(Instant, Bytes)>,
}

impl Function {
    /// Starts a program with these variables and no others.
    pub async fn start(program: &Path, arguments: &[&str], variables: &[(&str, String)]) -> Result<Self, Failed> {
        let (events, taken) = mpsc::unbounded_channel();
        let (polled, polls) = mpsc::unbounded_channel();
        let (responded, responses) = mpsc::unbounded_channel();
        let runtime = Arc::new(Runtime { events: Mutex::new(taken), polls: polled, responses: responded });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let routes = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{request_id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{request_id}/error", post(response))
            .with_state(runtime);
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            // A response that is sent late is a response nevertheless.
            let _ = stream.set_nodelay(true);
        });
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs([("AWS_LAMBDA_FUNCTION_NAME", "bench"), ("AWS_LAMBDA_FUNCTION_VERSION", "1")])
            .envs([("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512"), ("AWS_LAMBDA_LOG_GROUP_NAME", "bench")])
            .envs([("AWS_REGION", "eu-central-1"), ("AWS_ACCESS_KEY_ID", "it"), ("AWS_SECRET_ACCESS_KEY", "local")])
            .env("AWS_LAMBDA_LOG_STREAM_NAME", "bench")
            .env("AWS_LAMBDA_RUNTIME_API", address)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let started = devstack::instant();
        let mut process = command.spawn().map_err(|error| Failed(format!("{}: {error}", program.display())))?;
        let log_bytes = Arc::<AtomicUsize>::default();
        if let Some(log) = process.stdout.take() {
            tokio::spawn(count(log, Arc::clone(&log_bytes)));
        }
        Ok(Self { process, started, events, polls, responses, log_bytes })
    }

    /// The number of bytes that the process has logged so far.
    pub fn log_bytes(&self) -> usize {
        self.log_bytes.load(Ordering::Relaxed)
    }

    /// The time from the start of the process to its first request for an event.
    pub async fn first_poll(&mut self) -> Result<Duration, Failed> {
        let polled = before_the_end(&mut self.process, self.polls.recv()).await?;
        Ok(polled.duration_since(self.started))
    }

    /// Passes an event to the function and waits for its response.
    pub async fn invoke(&mut self, event: &Value) -> Result<Invocation, Failed> {
        let event = event.to_string();
        let handed_over = devstack::instant();
        self.events.send(event).map_err(|_| Failed("the runtime API ended".to_owned()))?;
        let (at, body) = before_the_end(&mut self.process, self.responses.recv()).await?;
        let response = serde_json::from_slice(&body).map_err(|error| Failed(error.to_string()))?;
        Ok(Invocation { duration: at.duration_since(handed_over), response })
    }

    /// The processor time that the threads of the process have used so far. That of a thread that has ended is left out.
    ///
    /// The kernel counts it in nanoseconds for each thread, and in hundredths of a second for the process. The latter are
    /// too coarse: a twentieth of what `incidents` measures.
    pub fn cpu(&self) -> Result<Duration, Failed> {
        let mut nanoseconds = 0;
        for thread in std::fs::read_dir(self.proc_path("task")?)? {
            let times = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            let on_processor = times.split(' ').next().and_then(|time| time.parse::<u64>().ok());
            nanoseconds += on_processor.ok_or_else(|| Failed("the kernel keeps no times of threads".to_owned()))?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// The most memory that the process has held, in KiB.
    pub fn peak_kib(&self) -> Result<u64, Failed> {
        let status = std::fs::read_to_string(self.proc_path("status")?)?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse().ok());
        peak.ok_or_else(|| Failed("the process shows no peak".to_owned()))
    }

    /// Ends the process by a signal, as Lambda does, and waits until it has ended.
    pub async fn end(mut self) -> Result<(), Failed> {
        if let Some(process) = self.process.id() {
            Command::new("kill").args(["-TERM", &process.to_string()]).status().await?;
        }
        self.process.wait().await?;
        Ok(())
    }

    fn proc_path(&self, name: &str) -> Result<PathBuf, Failed> {
        let process = self.process.id().ok_or_else(|| Failed("the process has ended".to_owned()))?;
        Ok(format!("/proc/{process}/{name}").into())
    }
}

/// What the process does next.
///
/// # Errors
/// The process has ended, or does nothing for too long.
async fn before_the_end<T>(process: &mut Child, next: impl Future<Output = Option<T>>) -> Result<T, Failed> {
    tokio::select! {
        next = tokio::time::timeout(RESPONSE_TIMEOUT, next) => {
            next.ok().flatten().ok_or_else(|| Failed("the function does not respond".to_owned()))
        }
        status = process.wait() => Err(Failed(format!("the function ended: {}", status?))),
    }
}

/// Reads a log to its end.
async fn count(mut log: ChildStdout, bytes: Arc<AtomicUsize>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = log.read(&mut buffer).await {
        bytes.fetch_add(read, Ordering::Relaxed);
    }
}

async fn next(State(runtime): State<Arc<Runtime>>) -> impl IntoResponse {
    let _ = runtime.polls.send(devstack::instant());
    let Some(event) = runtime.events.lock().await.recv().await else {
        // The process is about to be killed.
        return std::future::pending().await;
    };
    let headers = [
        ("content-type", "application/json"),
        ("lambda-runtime-aws-request-id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd"),
        ("lambda-runtime-deadline-ms", "4102444800000"),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:eu-central-1:123456789012:function:bench"),
    ];
    (headers, event)
}

async fn response(State(runtime): State<Arc<Runtime>>, body: Bytes) -> StatusCode {
    let _ = runtime.responses.send((devstack::instant(), body));
    StatusCode::ACCEPTED
}
