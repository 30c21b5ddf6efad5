//! The processes of one function. An event starts one when none is idle; each serves one event at a time and is replaced
//! when it ends.

mod process;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::sync::{Semaphore, oneshot};

use self::process::Process;
use crate::{
    ambient,
    error::{EXITED, FunctionError, TIMED_OUT},
    log_book::LogBook,
    runtime_api::{Invocation, RuntimeApi},
};

/// The time in which a process must ask for its first event. Lambda allows 10 s; a debug build beside a running compiler
/// needs more.
const INIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The part of a function's configuration that its processes need.
#[derive(Clone, Debug)]
pub(crate) struct FunctionSpec {
    pub(crate) name: String,
    pub(crate) binary: String,
    pub(crate) arn: String,
    pub(crate) timeout: Duration,
    /// The complete environment of its processes, except `AWS_LAMBDA_RUNTIME_API`.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) max_processes: usize,
}

/// The invocations of a function since the stack started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of events that a process received.
    pub invocations: u64,
    /// Sum of the times from an event's receipt to its end. Lambda would bill these and the starts of processes.
    pub total_duration: Duration,
    /// The longest time from an event's receipt to its end.
    pub max_duration: Duration,
}

/// A function and its processes.
#[derive(Debug)]
pub(crate) struct Pool {
    spec: FunctionSpec,
    program: Mutex<PathBuf>,
    runtime: Arc<RuntimeApi>,
    logs: Arc<LogBook>,
    concurrency: Semaphore,
    idle: Mutex<Vec<Arc<Process>>>,
    processes: Mutex<Vec<Weak<Process>>>,
    next_process: AtomicU64,
    usage: Mutex<Usage>,
}

/// The result of handing one event to one process.
enum Delivery {
    /// The process received the event: its response, or the reason why there is none.
    Completed(Result<Value, FunctionError>),
    /// The process ended before it received the event, so that another process can still serve it.
    NotReceived(FunctionError),
}

impl Pool {
    pub(crate) fn new(spec: FunctionSpec, program: PathBuf, runtime: Arc<RuntimeApi>, logs: Arc<LogBook>) -> Arc<Self> {
        Arc::new(Self {
            concurrency: Semaphore::new(spec.max_processes),
            spec,
            program: Mutex::new(program),
            runtime,
            logs,
            idle: Mutex::default(),
            processes: Mutex::default(),
            next_process: AtomicU64::new(1),
            usage: Mutex::default(),
        })
    }

    pub(crate) fn spec(&self) -> &FunctionSpec {
        &self.spec
    }

    pub(crate) fn usage(&self) -> Usage {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Invokes the function with its own timeout. The invocation continues when the caller stops waiting, as in Lambda.
    pub(crate) async fn invoke(self: &Arc<Self>, payload: &Value) -> Result<Value, FunctionError> {
        self.invoke_within(payload, self.spec.timeout).await
    }

    /// Invokes the function with `timeout` in place of its own. The time counts from the receipt of the event.
    pub(crate) async fn invoke_within(
        self: &Arc<Self>,
        payload: &Value,
        timeout: Duration,
    ) -> Result<Value, FunctionError> {
        let pool = Arc::clone(self);
        let payload = payload.to_string();
        match tokio::spawn(async move { pool.run(payload, timeout).await }).await {
            Ok(response) => response,
            Err(_) => Err(FunctionError::new(EXITED, "the stack is shutting down")),
        }
    }

    /// Lets the processes that start from now on be of another program.
    pub(crate) fn deploy(&self, program: PathBuf) {
        *self.program.lock().unwrap_or_else(PoisonError::into_inner) = program;
    }

    /// Kills all processes at once, also those that are serving an event. The next event starts a new one.
    pub(crate) fn kill(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for process in self.processes.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(process) = process.upgrade() {
                process.kill();
            }
        }
    }

    /// Kills all processes and starts no more.
    pub(crate) fn close(&self) {
        self.concurrency.close();
        self.kill();
    }

    /// Kills all processes, starts no more, and waits until they have exited.
    pub(crate) async fn stop(&self) {
        self.concurrency.close();
        let processes: Vec<_> = self.processes.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        for process in processes.iter().filter_map(Weak::upgrade) {
            process.kill();
            process.exited().await;
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn run(&self, payload: String, timeout: Duration) -> Result<Value, FunctionError> {
        let Ok(_permit) = self.concurrency.acquire().await else {
            return Err(FunctionError::new(EXITED, "the stack is shutting down"));
        };
        // An idle process may be about to exit. A new one that exits before its first event is the function's failure.
        while let Some(process) = self.take_idle() {
            if let Delivery::Completed(response) = self.deliver(process, &payload, timeout).await {
                return response;
            }
        }
        let process = self.start_process()?;
        match self.deliver(process, &payload, timeout).await {
            Delivery::Completed(response) => response,
            Delivery::NotReceived(error) => Err(error),
        }
    }

    async fn deliver(&self, process: Arc<Process>, payload: &str, timeout: Duration) -> Delivery {
        let request_id = ambient::request_id().to_string();
        let (received, is_received) = oneshot::channel();
        let (response, mut responded) = oneshot::channel();
        let invocation = Invocation {
            request_id: request_id.clone(),
            payload: payload.to_owned(),
            timeout,
            arn: self.spec.arn.clone(),
            received,
            response,
        };
        if process.invocations.send(invocation).await.is_err() {
            return Delivery::NotReceived(FunctionError::new(EXITED, "the process has ended"));
        }
        let received_at = tokio::select! {
            biased;
            Ok(received_at) = is_received => received_at,
            status = process.exited() => {
                let error = process.init_error();
                return Delivery::NotReceived(error.unwrap_or_else(|| exit_error(&request_id, &status)));
            }
            () = tokio::time::sleep(INIT_TIMEOUT) => {
                process.kill();
                let seconds = INIT_TIMEOUT.as_secs();
                let message = format!("RequestId: {request_id} Error: the process asked for no event in {seconds} s");
                return Delivery::NotReceived(FunctionError::new(TIMED_OUT, message));
            }
        };
        let response = tokio::select! {
            biased;
            Ok(response) = &mut responded => {
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(process);
                response
            }
            status = process.exited() => Err(exit_error(&request_id, &status)),
            () = tokio::time::sleep_until(received_at + timeout) => {
                process.kill();
                let seconds = timeout.as_secs_f64();
                let message = format!("RequestId: {request_id} Error: Task timed out after {seconds:.2} seconds");
                Err(FunctionError::new(TIMED_OUT, message))
            }
        };
        self.record_usage(received_at.elapsed());
        Delivery::Completed(response)
    }

    fn record_usage(&self, duration: Duration) {
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.invocations += 1;
        usage.total_duration += duration;
        usage.max_duration = usage.max_duration.max(duration);
    }

    fn take_idle(&self) -> Option<Arc<Process>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(process) = idle.pop() {
            if process.is_alive() {
                return Some(process);
            }
        }
        None
    }

    fn start_process(&self) -> Result<Arc<Process>, FunctionError> {
        let number = self.next_process.fetch_add(1, Ordering::Relaxed);
        let program = self.program.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let process = Arc::new(Process::start(&self.spec, &program, number, &self.runtime, &self.logs)?);
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes.retain(|process| process.strong_count() > 0);
        processes.push(Arc::downgrade(&process));
        Ok(process)
    }
}

fn exit_error(request_id: &str, status: &str) -> FunctionError {
    FunctionError::new(EXITED, format!("RequestId: {request_id} Error: Runtime exited with error: {status}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::TestFunction;

    fn is_alive(pid: &Value) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !status.is_empty() && !status.contains(") Z ")
    }

    async fn is_gone(pid: &Value) -> bool {
        for _ in 0..100 {
            if !is_alive(pid) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    #[tokio::test]
    async fn process_gets_lambda_headers_and_only_its_own_environment() {
        let function = TestFunction::new(&[("TABLE_NAME", "t")]).await;
        let before = ambient::now().as_millisecond();
        let response = function.invoke("echo").await.unwrap();
        let headers = &response["headers"];
        let deadline: i64 = headers["lambda-runtime-deadline-ms"].as_str().unwrap().parse().unwrap();
        let left = deadline - before;
        assert!((20_000..50_000).contains(&left), "{left} ms left of 20,000 and the start");
        assert!(deadline - ambient::now().as_millisecond() <= 20_000);
        assert_eq!(headers["lambda-runtime-aws-request-id"].as_str().unwrap().len(), 36);
        assert_eq!(headers["lambda-runtime-invoked-function-arn"], function.pool.spec().arn);
        let trace = headers["lambda-runtime-trace-id"].as_str().unwrap();
        assert!(trace.starts_with("Root=1-"), "{trace}");
        let environment = response["environment"].as_object().unwrap();
        assert_eq!(environment["TABLE_NAME"], "t");
        assert!(environment.get("HOME").is_none());
    }

    #[tokio::test]
    async fn deadline_header_follows_the_requested_timeout() {
        let function = TestFunction::new(&[]).await;
        function.invoke("echo").await.unwrap();
        let before = ambient::now().as_millisecond();
        let response = function.pool.invoke_within(&json!({ "do": "echo" }), Duration::from_secs(3)).await.unwrap();
        let deadline: i64 = response["headers"]["lambda-runtime-deadline-ms"].as_str().unwrap().parse().unwrap();
        assert!((3_000..5_000).contains(&(deadline - before)));
    }

    #[tokio::test]
    async fn idle_process_is_reused_and_a_busy_one_gets_company() {
        let function = TestFunction::new(&[]).await;
        let first = function.invoke("echo").await.unwrap();
        assert_eq!(function.invoke("echo").await.unwrap()["pid"], first["pid"]);
        let slow = json!({ "do": "echo", "seconds": 0.5 });
        let responses =
            tokio::join!(function.pool.invoke(&slow), function.pool.invoke(&slow), function.pool.invoke(&slow));
        let pids = [responses.0, responses.1, responses.2].map(|response| response.unwrap()["pid"].to_string());
        let distinct: std::collections::BTreeSet<_> = pids.iter().collect();
        assert_eq!(distinct.len(), 2, "at most two processes: {pids:?}");
    }

    #[tokio::test]
    async fn crash_fails_only_its_own_event() {
        let function = TestFunction::new(&[]).await;
        let first = function.invoke("echo").await.unwrap();
        let error = function.invoke("exit").await.unwrap_err();
        assert_eq!(error.error_type, "Runtime.ExitError");
        assert!(error.error_message.ends_with("Runtime exited with error: exit status: 3"), "{error}");
        let second = function.invoke("echo").await.unwrap();
        assert_ne!(first["pid"], second["pid"]);
    }

    #[tokio::test]
    async fn process_that_exits_between_events_fails_no_event() {
        let function = TestFunction::new(&[]).await;
        for _ in 0..3 {
            function.invoke("respond and exit").await.unwrap();
        }
    }

    #[tokio::test]
    async fn process_is_killed_at_its_deadline() {
        let function = TestFunction::new(&[]).await;
        let pid = function.invoke("echo").await.unwrap()["pid"].take();
        let hang = json!({ "do": "hang" });
        let error = function.pool.invoke_within(&hang, Duration::from_millis(300)).await.unwrap_err();
        assert!(error.is_timeout());
        assert!(error.error_message.ends_with("Task timed out after 0.30 seconds"), "{error}");
        assert!(is_gone(&pid).await);
    }

    #[tokio::test]
    async fn kill_ends_the_running_event() {
        let function = TestFunction::new(&[]).await;
        let pid = function.invoke("echo").await.unwrap()["pid"].take();
        let pool = Arc::clone(&function.pool);
        let hanging = tokio::spawn(async move { pool.invoke(&json!({ "do": "hang" })).await });
        while !function.logs.lines("function").contains(&r#"{"message": "hang"}"#.to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        function.pool.kill();
        let error = hanging.await.unwrap().unwrap_err();
        assert_eq!(error.error_type, "Runtime.ExitError");
        assert!(error.error_message.contains("signal: 9"), "{error}");
        assert!(is_gone(&pid).await);
        function.invoke("echo").await.unwrap();
    }

    #[tokio::test]
    async fn another_program_takes_over_when_the_processes_end() {
        let function = TestFunction::new(&[]).await;
        function.invoke("echo").await.unwrap();
        function.pool.deploy("/bin/true".into());
        function.invoke("echo").await.unwrap();
        function.pool.kill();
        assert_eq!(function.invoke("echo").await.unwrap_err().error_type, "Runtime.ExitError");
    }

    #[tokio::test]
    async fn error_is_reported_as_the_function_sent_it() {
        let function = TestFunction::new(&[]).await;
        assert_eq!(function.invoke("error").await.unwrap_err(), FunctionError::new("not_found", "no such thing"));
        assert_eq!(function.invoke("wrong id").await.unwrap(), 400);
    }

    #[tokio::test]
    async fn failed_init_reports_its_reason() {
        let function = TestFunction::new(&[("FAIL_INIT", "1")]).await;
        assert_eq!(function.invoke("echo").await.unwrap_err(), FunctionError::new("Test.Init", "no configuration"));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(function.logs.lines("function"), [r#"{"stderr":"no configuration"}"#]);
    }

    #[tokio::test]
    async fn stop_leaves_no_process() {
        let function = TestFunction::new(&[]).await;
        let pid = function.invoke("echo").await.unwrap()["pid"].take();
        function.pool.stop().await;
        assert!(!is_alive(&pid));
        assert!(function.invoke("echo").await.is_err());
    }

    #[test]
    fn panic_leaves_no_process() {
        let (pid_sender, pid_receiver) = std::sync::mpsc::channel();
        let panicked = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let function = TestFunction::new(&[]).await;
                pid_sender.send(function.invoke("echo").await.unwrap()["pid"].take()).unwrap();
                panic!("as a failing test does");
            });
        });
        assert!(panicked.join().is_err());
        let pid = pid_receiver.recv().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(runtime.block_on(is_gone(&pid)));
    }
}
