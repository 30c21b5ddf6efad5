//! The processes of one function: started when an event needs one, one event at a time each, replaced when they end.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::{
    process::Command,
    sync::{Notify, Semaphore, mpsc, oneshot, watch},
    task::AbortHandle,
};

use crate::{
    ambient,
    error::{EXITED, FunctionError, TIMED_OUT},
    log_book::{Channel, LogBook},
    runtime_api::{Delivery, Mailbox, RuntimeApi},
};

/// How long a process may take to ask for its first event. Lambda gives 10 s; a debug build beside a running compiler
/// gets more.
const INIT_LIMIT: Duration = Duration::from_secs(30);

/// What a function is.
#[derive(Clone, Debug)]
pub(crate) struct FunctionSpec {
    pub(crate) name: String,
    pub(crate) binary: String,
    pub(crate) path: PathBuf,
    pub(crate) arn: String,
    pub(crate) timeout: Duration,
    /// The whole environment of its processes but the address of the Runtime API.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) max_processes: usize,
}

/// What a function was used for so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Events that a process took.
    pub invocations: u64,
    /// From the taking of an event to its end, added up: what Lambda would bill, without the starts of processes.
    pub busy: Duration,
    /// The longest of these.
    pub longest: Duration,
}

/// A function and its processes.
#[derive(Debug)]
pub(crate) struct Pool {
    spec: FunctionSpec,
    runtime: Arc<RuntimeApi>,
    logs: Arc<LogBook>,
    slots: Semaphore,
    idle: Mutex<Vec<Arc<Worker>>>,
    alive: Mutex<Vec<Weak<Worker>>>,
    next_process: AtomicU64,
    usage: Mutex<Usage>,
}

/// One process. Dropping the last handle kills it.
#[derive(Debug)]
struct Worker {
    events: mpsc::Sender<Delivery>,
    mailbox: Arc<Mailbox>,
    kill: Arc<Notify>,
    exit: watch::Receiver<Option<String>>,
    watcher: AbortHandle,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The task owns the child, which is killed with it.
        self.watcher.abort();
    }
}

impl Worker {
    async fn exited(&self) -> String {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_default(),
            Err(_) => "the process was given up".to_owned(),
        }
    }

    fn is_alive(&self) -> bool {
        self.exit.borrow().is_none()
    }
}

/// How an event fared with one process.
enum Attempt {
    Answered(Result<Value, FunctionError>),
    /// The process ended before it took the event, which is as good as new.
    NotTaken(FunctionError),
}

impl Pool {
    pub(crate) fn new(spec: FunctionSpec, runtime: Arc<RuntimeApi>, logs: Arc<LogBook>) -> Arc<Self> {
        Arc::new(Self {
            slots: Semaphore::new(spec.max_processes),
            spec,
            runtime,
            logs,
            idle: Mutex::default(),
            alive: Mutex::default(),
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

    /// Invokes the function with its own timeout. The invocation goes on when the caller stops waiting, as in Lambda.
    pub(crate) async fn invoke(self: &Arc<Self>, payload: &Value) -> Result<Value, FunctionError> {
        self.invoke_within(payload, self.spec.timeout).await
    }

    /// Invokes the function so that `timeout` is left when it takes the event.
    pub(crate) async fn invoke_within(
        self: &Arc<Self>,
        payload: &Value,
        timeout: Duration,
    ) -> Result<Value, FunctionError> {
        let pool = Arc::clone(self);
        let payload = payload.to_string();
        match tokio::spawn(async move { pool.run(payload, timeout).await }).await {
            Ok(answer) => answer,
            Err(_) => Err(FunctionError::new(EXITED, "the stack is shutting down")),
        }
    }

    /// Kills all its processes now, those at work too. The next event starts another.
    pub(crate) fn kill(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for worker in self.alive.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(worker) = worker.upgrade() {
                worker.kill.notify_one();
            }
        }
    }

    /// Kills all its processes, and starts none again.
    pub(crate) fn close(&self) {
        self.slots.close();
        self.kill();
    }

    /// Kills all its processes, starts none again, and waits until they have gone.
    pub(crate) async fn stop(&self) {
        self.slots.close();
        let alive: Vec<_> = self.alive.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        for worker in alive.iter().filter_map(Weak::upgrade) {
            worker.kill.notify_one();
            worker.exited().await;
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn run(&self, payload: String, timeout: Duration) -> Result<Value, FunctionError> {
        let Ok(_slot) = self.slots.acquire().await else {
            return Err(FunctionError::new(EXITED, "the stack is shutting down"));
        };
        // A process found idle may be dying; a new one that dies before its first event is the function's failure.
        while let Some(worker) = self.take_idle() {
            if let Attempt::Answered(answer) = self.attempt(worker, &payload, timeout).await {
                return answer;
            }
        }
        let worker = self.start_process()?;
        match self.attempt(worker, &payload, timeout).await {
            Attempt::Answered(answer) => answer,
            Attempt::NotTaken(error) => Err(error),
        }
    }

    async fn attempt(&self, worker: Arc<Worker>, payload: &str, timeout: Duration) -> Attempt {
        let request_id = ambient::request_id().to_string();
        let (taken, is_taken) = oneshot::channel();
        let (answer, mut answered) = oneshot::channel();
        let delivery = Delivery {
            request_id: request_id.clone(),
            payload: payload.to_owned(),
            timeout,
            arn: self.spec.arn.clone(),
            taken,
            answer,
        };
        if worker.events.send(delivery).await.is_err() {
            return Attempt::NotTaken(FunctionError::new(EXITED, "the process has ended"));
        }
        let taken_at = tokio::select! {
            biased;
            Ok(taken_at) = is_taken => taken_at,
            status = worker.exited() => {
                let error = worker.mailbox.init_error();
                return Attempt::NotTaken(error.unwrap_or_else(|| exit_error(&request_id, &status)));
            }
            () = tokio::time::sleep(INIT_LIMIT) => {
                worker.kill.notify_one();
                let seconds = INIT_LIMIT.as_secs();
                let message = format!("RequestId: {request_id} Error: the process asked for no event in {seconds} s");
                return Attempt::NotTaken(FunctionError::new(TIMED_OUT, message));
            }
        };
        let answer = tokio::select! {
            biased;
            Ok(answer) = &mut answered => {
                self.give_back(worker);
                answer
            }
            status = worker.exited() => Err(exit_error(&request_id, &status)),
            () = tokio::time::sleep_until(taken_at + timeout) => {
                worker.kill.notify_one();
                let seconds = timeout.as_secs_f64();
                let message = format!("RequestId: {request_id} Error: Task timed out after {seconds:.2} seconds");
                Err(FunctionError::new(TIMED_OUT, message))
            }
        };
        self.note_use(taken_at.elapsed());
        Attempt::Answered(answer)
    }

    fn note_use(&self, busy: Duration) {
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.invocations += 1;
        usage.busy += busy;
        usage.longest = usage.longest.max(busy);
    }

    fn take_idle(&self) -> Option<Arc<Worker>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(worker) = idle.pop() {
            if worker.is_alive() {
                return Some(worker);
            }
        }
        None
    }

    fn give_back(&self, worker: Arc<Worker>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
    }

    fn start_process(&self) -> Result<Arc<Worker>, FunctionError> {
        let process = self.next_process.fetch_add(1, Ordering::Relaxed);
        let function = self.spec.name.clone();
        let (events, mailbox) = self.runtime.register(&function, process);
        let mut child = Command::new(&self.spec.path)
            .env_clear()
            .envs(&self.spec.environment)
            .env("AWS_LAMBDA_RUNTIME_API", self.runtime.base(&function, process))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C in the terminal reaches the stack alone, which then ends the processes in its own order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                self.runtime.unregister(&function, process);
                let message = format!("{} cannot be started: {error}", self.spec.path.display());
                FunctionError::new("Runtime.InvalidEntrypoint", message)
            })?;
        if let Some(pipe) = child.stdout.take() {
            tokio::spawn(Arc::clone(&self.logs).copy(self.spec.binary.clone(), Channel::Stdout, pipe));
        }
        if let Some(pipe) = child.stderr.take() {
            tokio::spawn(Arc::clone(&self.logs).copy(self.spec.binary.clone(), Channel::Stderr, pipe));
        }
        let (ended, exit) = watch::channel(None);
        let kill = Arc::new(Notify::new());
        let killed = Arc::clone(&kill);
        let runtime = Arc::clone(&self.runtime);
        let watcher = tokio::spawn(async move {
            let status = tokio::select! {
                status = child.wait() => status,
                () = killed.notified() => {
                    // It may have ended on its own just now.
                    let _ = child.start_kill();
                    child.wait().await
                }
            };
            runtime.unregister(&function, process);
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            // Nobody listens when the pool has gone.
            let _ = ended.send(Some(status));
        })
        .abort_handle();
        let worker = Arc::new(Worker { events, mailbox, kill, exit, watcher });
        let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        alive.retain(|worker| worker.strong_count() > 0);
        alive.push(Arc::downgrade(&worker));
        Ok(worker)
    }
}

fn exit_error(request_id: &str, status: &str) -> FunctionError {
    FunctionError::new(EXITED, format!("RequestId: {request_id} Error: Runtime exited with error: {status}"))
}

/// `testdata/function.py` behind a Runtime API of its own.
#[cfg(test)]
pub(crate) mod test_function {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    /// The logs' folder goes with it.
    pub(crate) struct Function {
        pub(crate) pool: Arc<Pool>,
        pub(crate) logs: Arc<LogBook>,
    }

    impl Drop for Function {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.logs.directory());
        }
    }

    impl Function {
        pub(crate) async fn new(environment: &[(&str, &str)]) -> Self {
            let folder = std::env::temp_dir().join(format!("devstack-{}", ambient::request_id()));
            let logs = LogBook::open(&folder, false).unwrap();
            let given = [("PATH", "/usr/bin:/bin:/usr/local/bin")].iter().chain(environment);
            let spec = FunctionSpec {
                name: "stack-Function-1".to_owned(),
                binary: "function".to_owned(),
                path: Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/function.py"),
                arn: "arn:aws:lambda:eu-central-1:123456789012:function:stack-Function-1".to_owned(),
                timeout: Duration::from_secs(20),
                environment: given.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
                max_processes: 2,
            };
            let pool = Pool::new(spec, Arc::new(RuntimeApi::start().await.unwrap()), Arc::clone(&logs));
            Self { pool, logs }
        }

        pub(crate) async fn does(&self, what: &str) -> Result<Value, FunctionError> {
            self.pool.invoke(&json!({ "do": what })).await
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{test_function::Function, *};

    async fn function(environment: &[(&str, &str)]) -> Function {
        Function::new(environment).await
    }

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
    async fn a_process_gets_the_headers_and_only_its_own_environment() {
        let function = function(&[("TABLE_NAME", "t")]).await;
        let before = ambient::now().as_millisecond();
        let answer = function.does("echo").await.unwrap();
        let headers = &answer["headers"];
        let deadline: i64 = headers["lambda-runtime-deadline-ms"].as_str().unwrap().parse().unwrap();
        let left = deadline - before;
        assert!((20_000..50_000).contains(&left), "{left} ms left of 20,000 and the start");
        assert!(deadline - ambient::now().as_millisecond() <= 20_000);
        assert_eq!(headers["lambda-runtime-aws-request-id"].as_str().unwrap().len(), 36);
        assert_eq!(headers["lambda-runtime-invoked-function-arn"], function.pool.spec().arn);
        let trace = headers["lambda-runtime-trace-id"].as_str().unwrap();
        assert!(trace.starts_with("Root=1-"), "{trace}");
        let environment = answer["environment"].as_object().unwrap();
        assert_eq!(environment["TABLE_NAME"], "t");
        assert!(environment.get("HOME").is_none());
    }

    #[tokio::test]
    async fn the_deadline_is_the_one_asked_for() {
        let function = function(&[]).await;
        function.does("echo").await.unwrap();
        let before = ambient::now().as_millisecond();
        let answer = function.pool.invoke_within(&json!({ "do": "echo" }), Duration::from_secs(3)).await.unwrap();
        let deadline: i64 = answer["headers"]["lambda-runtime-deadline-ms"].as_str().unwrap().parse().unwrap();
        assert!((3_000..5_000).contains(&(deadline - before)));
    }

    #[tokio::test]
    async fn a_process_serves_again_and_a_second_one_starts_only_beside_it() {
        let function = function(&[]).await;
        let first = function.does("echo").await.unwrap();
        assert_eq!(function.does("echo").await.unwrap()["pid"], first["pid"]);
        let slow = json!({ "do": "echo", "seconds": 0.5 });
        let answers =
            tokio::join!(function.pool.invoke(&slow), function.pool.invoke(&slow), function.pool.invoke(&slow));
        let pids = [answers.0, answers.1, answers.2].map(|answer| answer.unwrap()["pid"].to_string());
        let distinct: std::collections::BTreeSet<_> = pids.iter().collect();
        assert_eq!(distinct.len(), 2, "at most two processes: {pids:?}");
    }

    #[tokio::test]
    async fn a_crash_fails_its_event_and_the_next_one_has_a_new_process() {
        let function = function(&[]).await;
        let first = function.does("echo").await.unwrap();
        let error = function.does("exit").await.unwrap_err();
        assert_eq!(error.error_type, "Runtime.ExitError");
        assert!(error.error_message.ends_with("Runtime exited with error: exit status: 3"), "{error}");
        let second = function.does("echo").await.unwrap();
        assert_ne!(first["pid"], second["pid"]);
    }

    #[tokio::test]
    async fn a_process_that_ends_between_events_fails_none() {
        let function = function(&[]).await;
        for _ in 0..3 {
            function.does("answer and exit").await.unwrap();
        }
    }

    #[tokio::test]
    async fn past_its_deadline_a_process_is_killed() {
        let function = function(&[]).await;
        let pid = function.does("echo").await.unwrap()["pid"].take();
        let hang = json!({ "do": "hang" });
        let error = function.pool.invoke_within(&hang, Duration::from_millis(300)).await.unwrap_err();
        assert!(error.is_timeout());
        assert!(error.error_message.ends_with("Task timed out after 0.30 seconds"), "{error}");
        assert!(is_gone(&pid).await);
    }

    #[tokio::test]
    async fn a_kill_ends_the_event_in_hand() {
        let function = function(&[]).await;
        let pid = function.does("echo").await.unwrap()["pid"].take();
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
        function.does("echo").await.unwrap();
    }

    #[tokio::test]
    async fn errors_are_the_functions_own() {
        let function = function(&[]).await;
        assert_eq!(function.does("error").await.unwrap_err(), FunctionError::new("not_found", "no such thing"));
        assert_eq!(function.does("wrong id").await.unwrap(), 400);
    }

    #[tokio::test]
    async fn a_process_that_cannot_start_says_why() {
        let function = function(&[("FAIL_INIT", "1")]).await;
        assert_eq!(function.does("echo").await.unwrap_err(), FunctionError::new("Test.Init", "no configuration"));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(function.logs.lines("function"), [r#"{"stderr":"no configuration"}"#]);
    }

    #[tokio::test]
    async fn stopping_leaves_no_process() {
        let function = function(&[]).await;
        let pid = function.does("echo").await.unwrap()["pid"].take();
        function.pool.stop().await;
        assert!(!is_alive(&pid));
        assert!(function.does("echo").await.is_err());
    }

    #[test]
    fn a_panic_leaves_no_process() {
        let (tell, told) = std::sync::mpsc::channel();
        let panicked = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let function = function(&[]).await;
                tell.send(function.does("echo").await.unwrap()["pid"].take()).unwrap();
                panic!("as a failing test does");
            });
        });
        assert!(panicked.join().is_err());
        let pid = told.recv().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(runtime.block_on(is_gone(&pid)));
    }
}
