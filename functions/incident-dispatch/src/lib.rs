//! Finds the tenants that are due and sends one message to the queue for each.
//!
//! A schedule starts this function. It writes nothing: a tenant that fails, is throttled or is quiet for long has a due
//! time, which its worker moves. Two runs for one tick queue two polls, of which the second finds nothing. A lost message
//! is replaced by the next tick.

use std::sync::{Mutex, PoisonError};

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
        Registry,
        due::{DUE_SHARDS, Due},
    },
    telemetry::{self, Metric},
    text::from_json_object,
};

/// The interval of the schedule.
const TICK: SignedDuration = SignedDuration::from_mins(1);

const HOUR: SignedDuration = SignedDuration::from_hours(1);

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
        let sync_queue_url = variables.queue_url("SYNC_QUEUE_URL");
        let poll_interval = variables.at_least("POLL_INTERVAL_SECONDS", 60, 1);
        // Only checked here. incident-fetch moves the due time of a quiet tenant by it.
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
    /// The time of the last tick in this process.
    last_tick: Mutex<Option<Timestamp>>,
}

/// The input of a schedule: a poll or a sweep. Only an operator starts a backfill.
#[derive(Deserialize)]
struct ScheduleInput {
    kind: SyncKind,
    /// Each tick of a sweep is for the tenants of one hour among so many; absent: for all tenants.
    spread_hours: Option<u64>,
}

impl ScheduleInput {
    fn is_scheduled(&self) -> bool {
        matches!(self.kind, SyncKind::Poll | SyncKind::Sweep)
    }
}

/// The choice of tenants for one run.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// Those whose polls fall between two ticks.
    Polls { since: Timestamp, now: Timestamp, interval: SignedDuration },
    /// Those whose sweep falls into this hour among so many.
    Sweeps { hour: u64, of: u64 },
}

impl Turn {
    /// Returns true for a tenant that became due since the last tick, or whose turn it is. Where the interval is longer than
    /// the time between two ticks, tenants have their turns at different ticks.
    fn is_of(self, due: &Due) -> bool {
        match self {
            // The schedule is not exact.
            Self::Polls { since, now, interval } if now.duration_since(since) >= interval - interval / 12 => true,
            Self::Polls { since, .. } if due.due_at > since => true,
            Self::Polls { since, now, interval } => {
                let interval = interval.as_secs();
                let turn = i64::try_from(due.turn(interval.unsigned_abs())).unwrap_or(0);
                let turns_until = |time: Timestamp| (time.as_second() - turn).div_euclid(interval);
                turns_until(now) > turns_until(since)
            }
            Self::Sweeps { hour, of } => due.turn(of) == hour,
        }
    }
}

/// The tenants of one run.
#[derive(Clone, Copy, Default)]
struct DispatchCounts {
    /// Tenants whose turn it was.
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
            last_tick: Mutex::new(None),
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
                from_json_object(input).filter(ScheduleInput::is_scheduled).ok_or_else(|| {
                    Error::InvalidRequest(r#"The input must be {"kind": "poll"} or {"kind": "sweep"}."#.into())
                })?;
            let started = self.clock.now();
            let DispatchCounts { due, queued } = invocation.deadline.run(self.dispatch(&input, started)).await?;
            if input.kind == SyncKind::Poll {
                let count = |name, count| Metric::count(name, u64::try_from(count).unwrap_or(u64::MAX));
                telemetry::metrics(None, &[count("Due", due), count("Queued", queued)]);
            }
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

    async fn dispatch(&self, input: &ScheduleInput, now: Timestamp) -> Result<DispatchCounts> {
        let turn = if input.kind == SyncKind::Poll {
            let last = self.last_tick.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
            Turn::Polls { since: last.unwrap_or(now - TICK), now, interval: self.poll_interval }
        } else {
            let of = input.spread_hours.unwrap_or(1).max(1);
            Turn::Sweeps { hour: now.as_second().unsigned_abs() / HOUR.as_secs().unsigned_abs() % of, of }
        };
        let shards = (0..DUE_SHARDS).map(|shard| self.dispatch_shard(shard, input.kind, turn, now));
        Ok(try_join_all(shards).await?.into_iter().fold(DispatchCounts::default(), |sum, shard| DispatchCounts {
            due: sum.due + shard.due,
            queued: sum.queued + shard.queued,
        }))
    }

    /// Queues messages for one partition of the `due` index. Polls are for tenants that are due. A sweep is also for those
    /// that are not.
    async fn dispatch_shard(&self, shard: u32, kind: SyncKind, turn: Turn, now: Timestamp) -> Result<DispatchCounts> {
        let due_until = (kind == SyncKind::Poll).then_some(now);
        let mut counts = DispatchCounts::default();
        let mut next = None;
        loop {
            let page = self.registry.due(shard, due_until, next).await?;
            let due = page.tenants.iter().filter(|due| turn.is_of(due));
            let messages: Vec<SyncMessage> = due.map(|due| SyncMessage::new(due.tenant, kind)).collect();
            counts.due += messages.len();
            counts.queued += self.queue.send_all(&messages).await?;
            next = page.next;
            if next.is_none() {
                return Ok(counts);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn tenants() -> Vec<Due> {
        let id = |number: u32| format!("{number:08x}-2222-4333-8444-000000000001").parse().unwrap();
        (0..600).map(|number| Due { tenant: id(number), due_at: at(-86_400) }).collect()
    }

    #[test]
    fn each_tenant_has_one_turn_in_an_interval() {
        for interval in [90, 300, 900, 3_600] {
            for due in tenants() {
                // Ticks are not exact.
                let ticks: Vec<i64> = (0..=61).map(|tick| tick * 60 + tick * 7 % 5).collect();
                let turns: Vec<i64> = ticks
                    .windows(2)
                    .filter(|pair| {
                        let (since, now) = (at(pair[0]), at(pair[1]));
                        Turn::Polls { since, now, interval: SignedDuration::from_secs(interval) }.is_of(&due)
                    })
                    .map(|pair| pair[1])
                    .collect();
                let apart = turns.windows(2).map(|pair| pair[1] - pair[0]);
                assert!(apart.into_iter().all(|apart| apart <= interval + 65), "{interval}: {turns:?}");
                let most = 3_660 / interval + 1;
                assert!((1..=most).contains(&i64::try_from(turns.len()).unwrap()), "{interval}: {turns:?}");
            }
        }
    }

    #[test]
    fn turns_are_spread_over_the_ticks_of_an_interval() {
        let interval = SignedDuration::from_secs(300);
        for tick in 0..5 {
            let turn = Turn::Polls { since: at(tick * 60), now: at(tick * 60 + 60), interval };
            let queued = tenants().iter().filter(|due| turn.is_of(due)).count();
            assert!((80..=160).contains(&queued), "{queued} of 600 at tick {tick}");
        }
    }

    #[test]
    fn newly_due_tenant_does_not_wait_for_its_turn() {
        let turn = Turn::Polls { since: at(0), now: at(60), interval: SignedDuration::from_hours(1) };
        let due = Due { due_at: at(1), ..tenants()[0].clone() };
        assert!(turn.is_of(&due));
    }

    #[test]
    fn sweeps_are_spread_over_the_day() {
        let of_hour = |hour| tenants().iter().filter(|due| Turn::Sweeps { hour, of: 24 }.is_of(due)).count();
        let hours: Vec<usize> = (0..24).map(of_hour).collect();
        assert_eq!(hours.iter().sum::<usize>(), 600);
        assert!(hours.iter().all(|tenants| (8..=50).contains(tenants)), "{hours:?}");
    }
}
