//! Finds the tenants that are due and sends one message to the queue for each.
//!
//! A schedule starts this function. Runs may overlap: a run claims a tenant by moving its due time, and only one run
//! succeeds with that. A lost message is replaced when the tenant is due again.

use futures_util::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    config::Variables,
    error::{Error, Result},
    lambda::{
        event::{Event, Invocation, InvocationError},
        runtime::Platform,
    },
    queue::{SyncKind, SyncMessage, SyncQueue},
    registry::{
        Registry, Write,
        due::{DUE_SHARDS, Due},
    },
    text::from_json_object,
};

/// Tenants of one shard that are claimed and then queued together. A queue batch holds ten messages.
const CLAIM_BATCH: usize = 20;

/// The function's configuration, from its environment variables.
#[derive(Debug)]
pub struct Config {
    table_name: String,
    sync_queue_url: String,
    poll_interval: SignedDuration,
}

impl Config {
    /// Reads the variables. After `None`, `variables` names what is missing.
    pub fn read(variables: &mut Variables<'_>) -> Option<Self> {
        let table_name = variables.required("TABLE_NAME");
        let sync_queue_url = variables.required("SYNC_QUEUE_URL");
        let poll_interval = variables.at_least("POLL_INTERVAL_SECONDS", 60, 1);
        // Only checked here. incident-fetch uses it to set the next due time of a quiet tenant.
        variables.at_least("POLL_MAX_INTERVAL_SECONDS", poll_interval, poll_interval);
        Some(Self {
            table_name: table_name?,
            sync_queue_url: sync_queue_url?,
            poll_interval: SignedDuration::from_secs(poll_interval.into()),
        })
    }
}

/// The function, which turns a schedule's input into queue messages.
#[derive(Debug)]
pub struct App {
    registry: Registry,
    queue: SyncQueue,
    clock: Clock,
    poll_interval: SignedDuration,
}

/// The input of a schedule: a poll or a sweep. Only an operator starts a backfill.
#[derive(Deserialize)]
struct ScheduleInput {
    kind: SyncKind,
}

/// The tenants of one run.
#[derive(Clone, Copy, Default)]
struct DispatchCounts {
    /// Tenants that this run found due and claimed.
    due: usize,
    /// Messages that the queue accepted.
    queued: usize,
}

impl App {
    /// Builds the function with its clients.
    pub fn new(config: Config, platform: &Platform) -> Self {
        Self {
            registry: Registry::new(&platform.aws, config.table_name),
            queue: SyncQueue::new(&platform.aws, config.sync_queue_url),
            clock: platform.clock.clone(),
            poll_interval: config.poll_interval,
        }
    }

    /// Responds with `{due, queued}`: the tenants that were due, and the messages that are on the queue for them.
    ///
    /// # Errors
    /// `invalid_request` for another input than a schedule's, `deadline_exceeded`, and `internal` for a failure of AWS.
    pub async fn handle(&self, event: Value, invocation: Invocation) -> Result<Value, InvocationError> {
        let work = async {
            let Event::Direct(input) = Event::parse(event) else {
                return Err(Error::InvalidRequest("This function is started by a schedule.".into()));
            };
            let input: ScheduleInput =
                from_json_object(input).filter(|input: &ScheduleInput| input.kind != SyncKind::Backfill).ok_or_else(
                    || Error::InvalidRequest(r#"The input must be {"kind": "poll"} or {"kind": "sweep"}."#.into()),
                )?;
            let started = self.clock.now();
            let DispatchCounts { due, queued } = invocation.deadline.run(self.dispatch(input.kind, started)).await?;
            let duration_ms = self.clock.milliseconds_since(started);
            tracing::info!(kind = ?input.kind, due, queued, duration_ms, "tenants dispatched");
            Ok(json!({"due": due, "queued": queued}))
        };
        invocation.in_request_span(work).await.map_err(|error| {
            let request_id = &invocation.request_id;
            tracing::error!(request_id, code = error.code().0, cause = %error, "dispatch failed");
            error.into()
        })
    }

    async fn dispatch(&self, kind: SyncKind, now: Timestamp) -> Result<DispatchCounts> {
        let shards = try_join_all((0..DUE_SHARDS).map(|shard| self.dispatch_shard(shard, kind, now))).await?;
        Ok(shards.into_iter().fold(DispatchCounts::default(), |sum, shard| DispatchCounts {
            due: sum.due + shard.due,
            queued: sum.queued + shard.queued,
        }))
    }

    /// Queues messages for one partition of the `due` index. Polls are for tenants that are due. A sweep is for every
    /// tenant of the index and does not move due times.
    async fn dispatch_shard(&self, shard: u32, kind: SyncKind, now: Timestamp) -> Result<DispatchCounts> {
        let due_until = (kind == SyncKind::Poll).then_some(now);
        let mut counts = DispatchCounts::default();
        let mut next = None;
        loop {
            let page = self.registry.due(shard, due_until, next).await?;
            // In small batches: a tenant that is claimed when time runs out gets no message until it is due again.
            for batch in page.tenants.chunks(CLAIM_BATCH) {
                let claimed = if kind == SyncKind::Poll { self.claim(batch, now).await? } else { batch.to_vec() };
                let messages: Vec<SyncMessage> = claimed.iter().map(|due| SyncMessage::new(due.tenant, kind)).collect();
                counts.due += messages.len();
                counts.queued += self.queue.send_all(&messages).await?;
            }
            next = page.next;
            if next.is_none() {
                return Ok(counts);
            }
        }
    }

    /// Moves the due time of each tenant to the next run, and returns the tenants for which no other run was faster.
    async fn claim(&self, due: &[Due], now: Timestamp) -> Result<Vec<Due>> {
        // The schedule is not exact. Without the slack a tenant could become due just after the next run.
        let slack = (self.poll_interval / 10).min(SignedDuration::from_secs(5));
        let next = now + (self.poll_interval - slack);
        let outcomes = try_join_all(due.iter().map(|due| self.registry.claim_due(due, next))).await?;
        let claimed = due.iter().zip(outcomes).filter(|(_, outcome)| *outcome == Write::Done);
        Ok(claimed.map(|(due, _)| due.clone()).collect())
    }
}
