//! The quarantine of one tenant: records, incidents and spans that cannot be read, and their retries.

use aws_lc_rs::digest::{SHA256, digest};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Progress, Stop, Worker, bisect::SecondListing, is_transient, pass::Pass, window::floor};
use shared::{
    error::{Error, Result},
    incident::{
        record::{Alerts, Unreadable, UnreadableRecord},
        span::Span,
    },
    incident_api::query::IncidentQuery,
    registry::{Write, position::Position, quarantine::QuarantineEntry},
    telemetry::{self, Metric},
    text::hex,
};

/// The maximum number of quarantine entries that one poll retries.
const MAX_RETRIES_PER_POLL: usize = 2;

/// The reason of incidents that were delivered without their alerts, because those cannot be read.
pub(super) const UNREADABLE_ALERTS: &str = "unreadable_alerts";

/// What the responses for a stretch of time have left out, although the stretch was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeftOut {
    /// The alerts, which we did without.
    Alerts,
    /// Something. Microsoft says no more.
    Something,
}

impl LeftOut {
    /// The reason and the beginning of the name of a quarantine entry.
    fn reason_and_prefix(self) -> (&'static str, &'static str) {
        match self {
            Self::Alerts => (UNREADABLE_ALERTS, "alerts"),
            Self::Something => ("partial_response", "partial"),
        }
    }
}

/// The result of retrying a quarantine entry.
enum Retry {
    Readable,
    StillFailing,
    /// Time or budget ran out at this position.
    Unfinished(Box<Position>, Option<Error>),
}

/// A record, incident or span that cannot be read.
struct Unread<'a> {
    name: String,
    reason: &'a str,
    incident_id: Option<String>,
    span: Span,
    /// No response that holds the span can be read. Polls leave it out.
    blocks: bool,
    /// The row as Microsoft sent it, where it may be stored.
    record: Value,
}

impl Worker<'_> {
    /// Retries quarantine entries that are due.
    pub(super) async fn retry_quarantined(&mut self) -> Result<Progress> {
        let now = self.sync.clock.now();
        let due = self.quarantine.iter().filter(|entry| entry.next_try_at <= now);
        let due: Vec<QuarantineEntry> = due.take(MAX_RETRIES_PER_POLL).cloned().collect();
        for mut entry in due {
            if self.out_of_time() {
                return Ok(Progress::OutOfTime);
            }
            let calls_before = self.lease.calls;
            match self.retry(&entry).await? {
                // It stays due until it has its turn, and a call in it.
                Retry::Unfinished(position, Some(error))
                    if (!self.has_turn || self.lease.calls == calls_before)
                        && entry.pass_position.as_ref() == Some(&position) =>
                {
                    return Err(error);
                }
                Retry::Readable => {
                    self.sync.registry.release_from_quarantine(&self.tenant.tenant_id, &entry.name).await?;
                    self.quarantine.retain(|other| other.name != entry.name);
                    self.lease.feed.quarantined = self.quarantine.len() as u64;
                    tracing::info!(name = entry.name, "released from quarantine");
                }
                Retry::Unfinished(position, error) => {
                    entry.note_unfinished_retry(*position, now);
                    self.sync.registry.update_quarantine_entry(&self.tenant.tenant_id, &entry).await?;
                    return error.map_or(Ok(Progress::OutOfTime), Err);
                }
                Retry::StillFailing => {
                    // The retry may have narrowed the entry's span.
                    let narrowed = self.quarantine.iter_mut().find(|other| other.name == entry.name);
                    entry = QuarantineEntry { tries: entry.tries, ..narrowed.as_deref().cloned().unwrap_or(entry) };
                    entry.note_failed_retry(now);
                    self.sync.registry.update_quarantine_entry(&self.tenant.tenant_id, &entry).await?;
                }
            }
        }
        Ok(Progress::Complete)
    }

    async fn retry(&mut self, entry: &QuarantineEntry) -> Result<Retry> {
        if let Some(id) = &entry.incident_id {
            match self.read_one(id, Alerts::Included).await {
                Ok(()) | Err(Error::NotFound) => {}
                Err(error) if is_transient(&error) => {
                    // Other incidents may have come into its second since.
                    return self.retry_second(entry).await;
                }
                Err(error) => return Err(error),
            }
        }
        let hits_before = self.quarantine_hits;
        let position = entry.pass_position.clone().unwrap_or_else(|| Position::at(floor(entry.from)));
        let mut pass = Pass::of_retry(position, entry.to);
        match self.pass(&mut pass).await {
            Ok(Stop::Done) if self.quarantine_hits == hits_before => {
                if entry.reason == UNREADABLE_ALERTS {
                    self.lease.feed.without_alerts_until = None;
                }
                Ok(Retry::Readable)
            }
            Ok(Stop::Done) => Ok(Retry::StillFailing),
            Err(error) if is_transient(&error) && entry.blocks && entry.span().seconds() == Some(1) => {
                self.retry_second(entry).await
            }
            Ok(Stop::OutOfTime | Stop::PollDue | Stop::Overtaken) => {
                Ok(Retry::Unfinished(Box::new(pass.position), None))
            }
            Err(error) if is_transient(&error) => Ok(Retry::StillFailing),
            // What the budget does not hold goes on later, so that other work has its turn.
            Err(error @ Error::Throttled { .. }) => Ok(Retry::Unfinished(Box::new(pass.position), Some(error))),
            Err(error) => Err(error),
        }
    }

    /// Quarantines a row that cannot be parsed. The content of another tenant's row is not stored.
    pub(super) async fn quarantine_row(&mut self, row: &[u8], why: Unreadable, query: &IncidentQuery) -> Result<()> {
        let record = match why {
            Unreadable::ForeignTenant => {
                tracing::error!("a record of another tenant was received and is not delivered");
                let tenant = self.tenant.tenant_id;
                telemetry::metrics(Some(&tenant), &[Metric::count("ForeignRecord", 1)]);
                Value::Null
            }
            Unreadable::NotJson | Unreadable::NoId | Unreadable::NoLastUpdate => json!(String::from_utf8_lossy(row)),
        };
        // A row that has another form at each reading is one entry, at the time of its version where that is known.
        let UnreadableRecord { incident_id, last_updated } = UnreadableRecord::of(row, self.api);
        let identity = incident_id.as_ref().map_or(row, |id| id.as_bytes());
        let name = hex(&digest(&SHA256, identity).as_ref()[..16]);
        let second = last_updated.map(floor).filter(|second| query.updated.contains(*second));
        let end = |second: Timestamp| Some(second + SignedDuration::from_secs(1));
        let span = second.map_or(query.updated, |second| Span { from: second, to: end(second) });
        self.quarantine(Unread { name, reason: why.as_str(), incident_id: None, span, blocks: false, record }).await
    }

    /// Quarantines an incident that cannot be read, or not with its alerts.
    pub(super) async fn quarantine_incident(&mut self, incident_id: &str, second: Span, reason: &str) -> Result<()> {
        let (name, incident_id) = (format!("incident-{incident_id}"), Some(incident_id.to_owned()));
        self.quarantine(Unread { name, reason, incident_id, span: second, blocks: true, record: Value::Null }).await
    }

    /// Quarantines a span whose incidents cannot be read one by one.
    pub(super) async fn quarantine_span(&mut self, span: Span, reason: &str) -> Result<()> {
        let name = format!("span-{}", span.from.as_second());
        self.quarantine(Unread { name, reason, incident_id: None, span, blocks: true, record: Value::Null }).await
    }

    /// Reads the other incidents of a second in which one still fails. Some may have come into it since, or wait behind it.
    async fn retry_second(&mut self, entry: &QuarantineEntry) -> Result<Retry> {
        match self.bisect_second(entry.span(), SecondListing::WithoutAlerts).await {
            Ok(()) => Ok(Retry::StillFailing),
            Err(error) if is_transient(&error) => Ok(Retry::StillFailing),
            // It begins with the same incidents again, but not before others had their turn.
            Err(error @ Error::Throttled { .. }) => {
                Ok(Retry::Unfinished(Box::new(Position::at(floor(entry.from))), Some(error)))
            }
            Err(error) => Err(error),
        }
    }

    /// Quarantines what a window lacks that was passed. Windows that touch are one entry.
    pub(super) async fn quarantine_left_out(&mut self, left_out: LeftOut, window: Span) -> Result<()> {
        let (reason, prefix) = left_out.reason_and_prefix();
        let (from, to) = (window.from, window.to.unwrap_or(self.sync.clock.now()));
        let is_beside = |entry: &&QuarantineEntry| {
            entry.reason == reason && entry.incident_id.is_none() && entry.from <= to && from <= entry.to
        };
        let known = self.quarantine.iter().find(is_beside);
        let name = known.map_or_else(|| format!("{prefix}-{}", from.as_second()), |entry| entry.name.clone());
        let (from, to) = known.map_or((from, to), |entry| (from.min(entry.from), to.max(entry.to)));
        let span = Span { from, to: Some(to) };
        let record = Value::Null;
        self.quarantine(Unread { name, reason, incident_id: None, span, blocks: false, record }).await
    }

    async fn quarantine(&mut self, unread: Unread<'_>) -> Result<()> {
        let Unread { name, reason, incident_id, span, blocks, record } = unread;
        let now = self.sync.clock.now();
        let tenant = self.tenant.tenant_id;
        let to = span.to.unwrap_or(now);
        let mut entry = QuarantineEntry::new(name, reason, incident_id, span, now);
        entry.blocks = blocks;
        self.quarantine_hits += 1;
        let known = self.quarantine.iter().find(|other| other.name == entry.name);
        if known.is_some_and(|known| known.span() == entry.span()) {
            return Ok(());
        }
        let is_new = known.is_none();
        if let Some(known) = known {
            (entry.tries, entry.next_try_at) = (known.tries, known.next_try_at);
            entry.pass_position = known.pass_position.clone().filter(|_| known.from == entry.from);
        }
        self.take_lease().await?;
        let object = json!({"tenant_id": tenant, "incident_id": entry.incident_id, "api": self.api, "reason": reason,
                            "from": span.from, "to": to, "quarantined_at": now, "record": record});
        self.sync.bucket.write_quarantined(&tenant, &entry.name, &object).await?;
        if is_new {
            // Write the counter before the entry: a counter without an entry is corrected by the next run; an entry
            // without a counter would never be retried.
            self.lease.feed.quarantined = self.quarantine.len() as u64 + 1;
            if self.commit_feed().await? == Write::Conflict {
                // The worker that has the lease now finds the same.
                return Err(Error::DeadlineExceeded);
            }
        }
        if self.sync.registry.quarantine(&tenant, &entry).await? == Write::Conflict {
            // Another span found it before, or a worker that died before it wrote the counter.
            self.sync.registry.update_quarantine_entry(&tenant, &entry).await?;
        }
        tracing::warn!(name = entry.name, reason, incident_id = entry.incident_id, "quarantined");
        self.quarantine.retain(|other| other.name != entry.name);
        self.quarantine.push(entry);
        self.stats.quarantined += u64::from(is_new);
        self.lease.feed.quarantined = self.quarantine.len() as u64;
        Ok(())
    }
}
