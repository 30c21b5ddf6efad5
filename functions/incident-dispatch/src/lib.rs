//! Finds the tenants that are due and puts a message on the queue for each.
//!
//! Started by a schedule. Runs may overlap: a tenant is claimed by moving its due time, which only one run can do, and a
//! message that is lost is made up for when the tenant is due again.

use futures_util::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    config::Variables,
    error::{Error, Result},
    lambda::event::{Event, Invocation, InvocationError},
    lambda::runtime::Platform,
    queue::{SyncKind, SyncMessage, SyncQueue},
    registry::{
        Registry, Write,
        due::{DUE_SHARDS, Due},
    },
    text::from_json_object,
};

/// Tenants of one shard that are claimed, and then queued, at a time: two batches of messages.
const AT_ONCE: usize = 20;

/// What the function needs of its environment.
#[derive(Debug)]
pub struct Config {
    table_name: String,
    sync_queue_url: String,
    poll_interval: SignedDuration,
}

impl Config {
    /// Reads it.
    pub fn read(variables: &mut Variables<'_>) -> Option<Self> {
        let table_name = variables.required("TABLE_NAME");
        let sync_queue_url = variables.required("SYNC_QUEUE_URL");
        let poll_interval = variables.at_least("POLL_INTERVAL_SECONDS", 60, 1);
        // The longer pause of a quiet tenant is set by its last poll; here the variable only has to be a possible one.
        variables.at_least("POLL_MAX_INTERVAL_SECONDS", poll_interval, poll_interval);
        Some(Self {
            table_name: table_name?,
            sync_queue_url: sync_queue_url?,
            poll_interval: SignedDuration::from_secs(poll_interval.into()),
        })
    }
}

/// The function.
#[derive(Debug)]
pub struct App {
    registry: Registry,
    queue: SyncQueue,
    clock: Clock,
    poll_interval: SignedDuration,
}

/// What the schedule asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tick {
    Poll,
    Sweep,
}

#[derive(Deserialize)]
struct Input {
    kind: Tick,
}

impl App {
    /// Wires the function up.
    pub fn new(config: Config, platform: &Platform) -> Self {
        Self {
            registry: Registry::new(&platform.aws, config.table_name),
            queue: SyncQueue::new(&platform.aws, config.sync_queue_url),
            clock: platform.clock.clone(),
            poll_interval: config.poll_interval,
        }
    }

    /// Answers `{due, queued}`: how many tenants were due, and for how many a message lies on the queue.
    pub async fn handle(&self, event: Value, invocation: Invocation) -> Result<Value, InvocationError> {
        let work = async {
            let Event::Direct(input) = Event::parse(event) else {
                return Err(Error::InvalidRequest("This function is started by a schedule.".into()));
            };
            let input: Input = from_json_object(input).ok_or_else(|| {
                Error::InvalidRequest(r#"The input must be {"kind": "poll"} or {"kind": "sweep"}."#.into())
            })?;
            let begun = self.clock.now();
            let (due, queued) = invocation.deadline.run(self.dispatch(input.kind, begun)).await?;
            let duration_ms = self.clock.milliseconds_since(begun);
            tracing::info!(kind = ?input.kind, due, queued, duration_ms, "tenants dispatched");
            Ok(json!({"due": due, "queued": queued}))
        };
        let outcome = invocation.in_request_span(work).await;
        outcome.map_err(|error| {
            tracing::error!(request_id = invocation.request_id, code = error.code().0, cause = %error, "dispatch failed");
            error.into()
        })
    }

    async fn dispatch(&self, tick: Tick, now: Timestamp) -> Result<(usize, usize)> {
        let shards = try_join_all((0..DUE_SHARDS).map(|shard| self.dispatch_shard(shard, tick, now))).await?;
        Ok(shards.into_iter().fold((0, 0), |sum, shard| (sum.0 + shard.0, sum.1 + shard.1)))
    }

    async fn dispatch_shard(&self, shard: u32, tick: Tick, now: Timestamp) -> Result<(usize, usize)> {
        let (until, kind) = match tick {
            Tick::Poll => (Some(now), SyncKind::Poll),
            Tick::Sweep => (None, SyncKind::Sweep),
        };
        let (mut found, mut queued, mut next) = (0, 0, None);
        loop {
            let page = self.registry.due(shard, until, next).await?;
            // A few at a time: what was claimed when time runs out would wait for a message until it is due again.
            for some in page.tenants.chunks(AT_ONCE) {
                let claimed = match tick {
                    Tick::Poll => self.claim(some, now).await?,
                    Tick::Sweep => some.to_vec(),
                };
                let messages: Vec<SyncMessage> = claimed.iter().map(|due| SyncMessage::new(due.tenant, kind)).collect();
                found += messages.len();
                queued += self.queue.send_all(&messages).await?;
            }
            next = page.next;
            if next.is_none() {
                return Ok((found, queued));
            }
        }
    }

    /// Those of the tenants whose due time this run could move.
    async fn claim(&self, due: &[Due], now: Timestamp) -> Result<Vec<Due>> {
        // Ticks do not come to the millisecond: a tenant claimed now must be due at the next tick, not just after it.
        let slack = (self.poll_interval / 10).min(SignedDuration::from_secs(5));
        let next = now + (self.poll_interval - slack);
        let outcomes = try_join_all(due.iter().map(|due| self.registry.claim_due(due, next))).await?;
        Ok(due
            .iter()
            .zip(outcomes)
            .filter(|(_, claimed)| *claimed == Write::Done)
            .map(|(due, _)| due.clone())
            .collect())
    }
}
