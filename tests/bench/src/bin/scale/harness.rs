//! The measured system: the functions' processes, their triggers, AWS behind the relay, and Microsoft with its latency.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_double::{Account, QueuedMessage};
use bench::{
    binaries,
    counts::{Counts, float},
    deployment::TEMPLATE,
    lambda::Function,
    relay::Relay,
    stand::{Stand, queue_event},
};
use devstack::{Console, Failed};
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::clock::Clock;
use sim::{Fault, FaultKind, Host, Sim};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

/// The range of Microsoft's response times.
const MIN_LATENCY_MILLIS: u64 = 150;
const MAX_LATENCY_MILLIS: u64 = 400;
/// The measured functions, each with the prefix of its counts.
const FETCH: (&str, &str) = ("incident-fetch", "fetch");
const DISPATCH: (&str, &str) = ("incident-dispatch", "dispatch");
/// The number of messages that SQS returns at once, at most.
const RECEIVED_AT_ONCE: usize = 10;
/// The time between two looks at an empty queue.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Triggers of the functions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Triggers {
    /// The measurement ticks the schedule and drains the queue, with one process.
    ByHand,
    /// Schedule and queue trigger the functions as in AWS, with this poll interval.
    EverySeconds(u32),
}

/// One invocation.
#[derive(Clone, Copy, Debug)]
struct Run {
    function: &'static str,
    started: Timestamp,
    ended: Timestamp,
}

/// The running parts of one measurement.
pub(crate) struct ScaleHarness {
    parts: Arc<Parts>,
    /// Schedule and queue, if they trigger by themselves.
    _triggers: JoinSet<()>,
}

struct Parts {
    stand: Stand,
    relay: Relay,
    binaries: BTreeMap<String, PathBuf>,
    variables: Vec<(&'static str, String)>,
    /// The processes of `incident-fetch`, each of which handles one batch at a time.
    fetchers: Vec<tokio::sync::Mutex<Function>>,
    /// Two schedules may tick at the same time.
    dispatchers: [tokio::sync::Mutex<Function>; 2],
    clock: Clock,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    runs: Vec<Run>,
    failures: Vec<String>,
    /// Bytes that processes logged before they ended.
    earlier_log_bytes: usize,
}

impl ScaleHarness {
    /// Builds the functions and starts everything.
    pub(crate) async fn start(triggers: Triggers, console: &mut Console) -> Result<Self, Failed> {
        let binaries = binaries::functions(&[FETCH.0, DISPATCH.0], console).await?;
        let stand = Stand::start().await?;
        let latency = FaultKind::Latency { least_millis: MIN_LATENCY_MILLIS, most_millis: MAX_LATENCY_MILLIS };
        stand.sim.fault(Fault::new(latency));
        let relay = Relay::start(stand.aws.endpoint()).await?;
        let (interval, longest, processes) = match triggers {
            // By hand, tenants are quiet for long only where a measurement wants it.
            Triggers::ByHand => (60, 900, 1),
            Triggers::EverySeconds(seconds) => (seconds, seconds, TEMPLATE.maximum_concurrency),
        };
        let mut variables = stand.variables();
        variables.retain(|(name, _)| *name != "AWS_ENDPOINT_URL");
        variables.extend([
            ("AWS_ENDPOINT_URL", relay.url().to_owned()),
            ("POLL_INTERVAL_SECONDS", interval.to_string()),
            ("POLL_MAX_INTERVAL_SECONDS", longest.to_string()),
        ]);
        let start = async |(name, _): (&str, &str)| {
            Ok::<_, Failed>(tokio::sync::Mutex::new(Function::start(&binaries[name], &[], &variables).await?))
        };
        let mut fetchers = Vec::new();
        for _ in 0..processes {
            fetchers.push(start(FETCH).await?);
        }
        let dispatchers = [start(DISPATCH).await?, start(DISPATCH).await?];
        let (clock, record) = (Clock::system(), Mutex::default());
        let parts = Arc::new(Parts { stand, relay, binaries, variables, fetchers, dispatchers, clock, record });
        let mut tasks = JoinSet::new();
        if let Triggers::EverySeconds(seconds) = triggers {
            tasks.spawn(tick_every(Arc::clone(&parts), Duration::from_secs(seconds.into())));
            for process in 0..parts.fetchers.len() {
                tasks.spawn(deliver_batches(Arc::clone(&parts), process));
            }
        }
        Ok(Self { parts, _triggers: tasks })
    }

    pub(crate) fn stand(&self) -> &Stand {
        &self.parts.stand
    }

    pub(crate) fn sim(&self) -> &Sim {
        &self.parts.stand.sim
    }

    pub(crate) fn relay(&self) -> &Relay {
        &self.parts.relay
    }

    pub(crate) fn account(&self) -> MutexGuard<'_, Account> {
        self.parts.stand.aws.account()
    }

    /// Replaces the process of `incident-fetch` by a new one, which knows no tokens.
    pub(crate) async fn restart(&self) -> Result<(), Failed> {
        let new = Function::start(&self.parts.binaries[FETCH.0], &[], &self.parts.variables).await?;
        let ended = std::mem::replace(&mut *self.parts.fetchers[0].lock().await, new);
        self.parts.record().earlier_log_bytes += ended.log_bytes();
        Ok(())
    }

    /// Dispatches polls, as the schedule does. `dispatcher` is 0 or 1.
    pub(crate) async fn tick(&self, dispatcher: usize) -> Result<Value, Failed> {
        self.parts.tick(dispatcher).await
    }

    /// Delivers the messages on the queue until none is visible, and returns their number.
    pub(crate) async fn drain(&self) -> Result<usize, Failed> {
        let mut delivered = 0;
        loop {
            let batch = self.account().receive(TEMPLATE.batch);
            if batch.is_empty() {
                return Ok(delivered);
            }
            delivered += batch.len();
            self.parts.deliver(0, &batch).await?;
        }
    }

    /// Returns the counts since the start: those of the relay, the calls to Microsoft, and `invocations`, `seconds` and
    /// `log_bytes` of each measured function.
    pub(crate) async fn counts(&self) -> Counts {
        let mut counts = self.relay().counts();
        for call in self.sim().calls() {
            let operation = match call.host {
                Host::Entra => "token",
                Host::Graph | Host::Defender => "incidents",
            };
            counts.add(format!("microsoft:{operation}"), 1.0);
        }
        let mut log_bytes = BTreeMap::from([(FETCH, self.parts.record().earlier_log_bytes), (DISPATCH, 0)]);
        for (function, processes) in
            [(FETCH, self.parts.fetchers.as_slice()), (DISPATCH, self.parts.dispatchers.as_slice())]
        {
            for process in processes {
                *log_bytes.entry(function).or_default() += process.lock().await.log_bytes();
            }
        }
        for (function, bytes) in log_bytes {
            let runs = self.runs(function.0);
            let seconds = runs.iter().map(|run| run.ended.duration_since(run.started).as_secs_f64()).sum();
            counts.add(format!("{}.invocations", function.1), float(runs.len()));
            counts.add(format!("{}.seconds", function.1), seconds);
            counts.add(format!("{}.log_bytes", function.1), float(bytes));
        }
        counts
    }

    fn runs(&self, function: &str) -> Vec<Run> {
        self.parts.record().runs.iter().filter(|run| run.function == function).copied().collect()
    }

    /// The longest invocation of `incident-fetch`.
    pub(crate) fn longest_batch(&self) -> f64 {
        let durations = self.runs(FETCH.0).into_iter().map(|run| run.ended.duration_since(run.started).as_secs_f64());
        durations.fold(0.0, f64::max)
    }

    /// Seconds from each dispatch within a period to the last poll that ended before the next one.
    pub(crate) fn dispatch_times(&self, period: &Range<Timestamp>) -> Vec<f64> {
        let dispatches: Vec<Timestamp> = self.runs(DISPATCH.0).iter().map(|run| run.started).collect();
        let polls: Vec<Timestamp> = self.runs(FETCH.0).iter().map(|run| run.ended).collect();
        let within = dispatches.windows(2).filter(|pair| pair.iter().all(|at| period.contains(at)));
        let last = within.filter_map(|pair| {
            let of_tick = polls.iter().filter(|poll| (pair[0]..pair[1]).contains(*poll));
            Some(of_tick.max()?.duration_since(pair[0]).as_secs_f64())
        });
        last.collect()
    }

    /// Fails if a message is in the dead-letter queue or an invocation has failed.
    pub(crate) fn check_failures(&self) -> Result<(), Failed> {
        let dead_letters = self.account().dead_letters;
        if dead_letters > 0 {
            return Err(Failed(format!("{dead_letters} messages became dead letters")));
        }
        match self.parts.record().failures.first() {
            Some(failure) => Err(Failed(format!("an invocation failed: {failure}"))),
            None => Ok(()),
        }
    }
}

impl Parts {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn invoke(
        &self,
        function: &'static str,
        process: &tokio::sync::Mutex<Function>,
        event: &Value,
    ) -> Result<Value, Failed> {
        let mut process = process.lock().await;
        let started = self.clock.now();
        let response = process.invoke(event).await?.response;
        let run = Run { function, started, ended: self.clock.now() };
        self.record().runs.push(run);
        if response["errorType"].is_string() {
            self.record().failures.push(format!("{function}: {response}"));
        }
        Ok(response)
    }

    async fn tick(&self, dispatcher: usize) -> Result<Value, Failed> {
        self.invoke(DISPATCH.0, &self.dispatchers[dispatcher], &json!({"kind": "poll"})).await
    }

    /// Passes a batch to a process and deletes the messages that it does not report as failed.
    async fn deliver(&self, process: usize, batch: &[QueuedMessage]) -> Result<(), Failed> {
        let event = queue_event(batch.iter().map(|message| (message.id.as_str(), message.body.as_str())));
        let response = self.invoke(FETCH.0, &self.fetchers[process], &event).await?;
        let failed = response["batchItemFailures"].as_array();
        let mut account = self.stand.aws.account();
        for message in batch {
            let is_failed =
                failed.is_none_or(|failed| failed.iter().any(|item| item["itemIdentifier"] == message.id.as_str()));
            if !is_failed {
                account.delete_message(&message.id);
            }
        }
        Ok(())
    }

    /// Collects a batch as the event source does: until it is full, or its window has passed since the first message.
    async fn collect(&self) -> Vec<QueuedMessage> {
        let (mut batch, mut window) = (Vec::new(), None);
        loop {
            let most = RECEIVED_AT_ONCE.min(TEMPLATE.batch - batch.len());
            batch.extend(self.stand.aws.account().receive(most));
            if !batch.is_empty() && window.is_none() {
                window = Some(devstack::instant() + TEMPLATE.batch_window);
            }
            if batch.len() == TEMPLATE.batch || window.is_some_and(|end| devstack::instant() >= end) {
                return batch;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}

async fn tick_every(parts: Arc<Parts>, period: Duration) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(failed) = parts.tick(0).await {
            parts.record().failures.push(failed.to_string());
            return;
        }
    }
}

async fn deliver_batches(parts: Arc<Parts>, process: usize) {
    loop {
        let batch = parts.collect().await;
        if let Err(failed) = parts.deliver(process, &batch).await {
            parts.record().failures.push(failed.to_string());
            return;
        }
    }
}
