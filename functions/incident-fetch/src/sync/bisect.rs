//! What cannot be read is found, set aside with its reason, and tried again later; the rest goes on.

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::{
    Worker,
    ingest::Reading,
    is_transient,
    window::{length, narrowed, next_span},
    windows::Second,
};
use shared::{
    error::{Error, Result},
    incident::{
        record::{Alerts, Record, Unreadable},
        span::Span,
        version::{VersionComparison, compare},
    },
    incident_api::{
        client::TokenFreshness,
        query::{IncidentQuery, MAX_SKIP},
    },
    microsoft::IncidentApi,
    registry::{Write, quarantine::QuarantineEntry},
    telemetry,
    text::hex,
};

/// Calls after which more budget would not help: it was all but whole.
const MOST_OF_A_BUDGET: u32 = 16;

/// How many of the things set aside one poll tries again.
const RETRIES: usize = 2;

impl Worker<'_> {
    /// Reads a second of which no list can be had with alerts, an incident at a time; what cannot be read even so is set
    /// aside. `lists_ids`: a list without alerts may be had.
    pub(super) async fn one_by_one(&mut self, second: Span, lists_ids: bool) -> Result<()> {
        let before = self.lease.calls;
        let outcome = if lists_ids && self.api == IncidentApi::Graph {
            self.one_by_one_by_id(second).await
        } else {
            self.one_by_one_by_row(second).await
        };
        self.flush().await?;
        match outcome {
            // The budget does not hold it: it would begin from the first row again and again.
            Err(Error::Throttled { until }) if self.lease.calls - before >= MOST_OF_A_BUDGET => {
                self.quarantine_span(second, "not_read_to_its_end").await?;
                Err(Error::Throttled { until })
            }
            outcome => outcome,
        }
    }

    /// Graph lists without alerts, and then each incident can be asked for by its id.
    async fn one_by_one_by_id(&mut self, second: Span) -> Result<()> {
        let question = IncidentQuery { alerts: Alerts::Omitted, ..IncidentQuery::of(second, self.api) };
        let mut ids = Vec::new();
        let tenant = self.tenant.tenant_id;
        let listed = async {
            let mut listing = self.client().list(&question, TokenFreshness::Confirmed).await?;
            while let Some(row) = listing.next().await? {
                match Record::parse(&row, &tenant, Alerts::Omitted) {
                    Ok(record) => {
                        let api = self.api;
                        let known = self.known(&record.incident_id).await?;
                        if matches!(compare(known, &record, api), VersionComparison::New { .. }) {
                            ids.push(record.incident_id);
                        }
                    }
                    Err(why) => self.quarantine_row(&row, why, &question).await?,
                }
            }
            listing.end()
        }
        .await;
        let whole = match listed {
            Ok(end) => !end.more && end.rows < question.top,
            Err(error) if is_transient(&error) => false,
            Err(error) => return Err(error),
        };
        for id in ids {
            if self.out_of_time() {
                return Err(Error::DeadlineExceeded);
            }
            match self.read_one(&id, Alerts::Included).await {
                Ok(_) | Err(Error::NotFound) => continue,
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
            self.alive().await?;
            // Without its alerts it is better told than not at all; the rest follows when it can be read.
            let reason = match self.read_one(&id, Alerts::Omitted).await {
                Ok(_) => "unreadable_alerts",
                Err(error) if is_transient(&error) => "unreadable",
                Err(Error::NotFound) => continue,
                Err(error) => return Err(error),
            };
            self.set_incident_aside(&id, second, reason).await?;
        }
        // What is not in the list, or where there is none, is found row by row.
        if whole { Ok(()) } else { self.one_by_one_by_row(second).await }
    }

    /// Where no list can be had (on Defender, whose alerts always come along, there is none without): the second's rows are
    /// read in runs that grow, and a run that fails is halved until the row that fails stands alone.
    async fn one_by_one_by_row(&mut self, second: Span) -> Result<()> {
        let mut question = IncidentQuery::of(second, self.api);
        let most = std::mem::replace(&mut question.top, 1);
        // Before which row the next one lies that fails, as far as is known.
        let mut fails_before = None;
        while question.skip <= MAX_SKIP {
            if self.out_of_time() {
                return Err(Error::DeadlineExceeded);
            }
            let mut reading = Reading::default();
            match self.read(&question, &mut reading).await {
                Ok(()) if reading.rows == 0 => return Ok(()),
                Ok(()) => {
                    question.skip += reading.rows;
                    let left = fails_before.map_or(0, |end: u32| end.saturating_sub(question.skip));
                    question.top = if left > 0 { (left / 2).max(1) } else { (question.top * 2).min(most) };
                }
                Err(error) if is_transient(&error) => {
                    self.alive().await?;
                    if question.top == 1 {
                        self.quarantine_span(second, "unreadable").await?;
                        question.skip += 1;
                        fails_before = None;
                    } else {
                        fails_before = Some(question.skip + question.top);
                        question.top /= 2;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.quarantine_span(second, "inseparable").await
    }

    /// Tries again what was set aside and is due. `false`: time ran out before the end.
    pub(super) async fn retry_quarantined(&mut self) -> Result<bool> {
        let now = self.sync.clock.now();
        let due: Vec<QuarantineEntry> =
            self.set_aside.iter().filter(|one| one.next_try_at <= now).take(RETRIES).cloned().collect();
        for mut one in due {
            if self.out_of_time() {
                return Ok(false);
            }
            match self.retry(&one).await {
                Ok(true) => {
                    self.sync.registry.release_from_quarantine(&self.tenant.tenant_id, &one.name).await?;
                    self.set_aside.retain(|other| other.name != one.name);
                    self.lease.feed.quarantined = self.set_aside.len() as u64;
                    tracing::info!(name = one.name, "what was set aside could be read");
                }
                Ok(false) => {
                    // It may have been met again within a narrower span.
                    let met = self.set_aside.iter_mut().find(|other| other.name == one.name);
                    one = QuarantineEntry { tries: one.tries, ..met.as_deref().cloned().unwrap_or(one) };
                    one.note_failed_retry(now);
                    self.sync.registry.update_quarantine_entry(&self.tenant.tenant_id, &one).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether what was set aside can be read now.
    async fn retry(&mut self, one: &QuarantineEntry) -> Result<bool> {
        if let Some(id) = &one.incident_id {
            match self.read_one(id, Alerts::Included).await {
                Ok(_) | Err(Error::NotFound) => {}
                Err(error) if is_transient(&error) => {
                    // Others may have come into its second since.
                    self.one_by_one(one.span(), true).await?;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        let met = self.met;
        let (mut at, mut width) = (one.from, None);
        while let Some(span) = next_span(at, width, Some(one.to), one.to, &[]) {
            if self.out_of_time() {
                return Err(Error::DeadlineExceeded);
            }
            let question = IncidentQuery::of(span, self.api);
            let mut reading = Reading::default();
            let outcome = self.read(&question, &mut reading).await;
            self.flush().await?;
            match outcome {
                Ok(()) if self.is_whole(&reading, &question) => {}
                Ok(()) if length(span, one.to) > 1 => {
                    width = Some(narrowed(span, one.to, &reading.times(), question.top));
                    continue;
                }
                Ok(()) => match self.read_second(span, &reading, None).await? {
                    Second::Whole => {}
                    Second::OutOfTime => return Err(Error::DeadlineExceeded),
                    Second::Failing(_) => return Ok(false),
                },
                Err(error) if is_transient(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
            let Some(to) = span.to else { break };
            at = to;
        }
        Ok(self.met == met)
    }

    /// Sets a row aside that is no record. One of another tenant is not kept: it is nobody's business here.
    pub(super) async fn quarantine_row(&mut self, row: &[u8], why: Unreadable, question: &IncidentQuery) -> Result<()> {
        let name = hex(&digest(&SHA256, row).as_ref()[..16]);
        let kept = match why {
            Unreadable::ForeignTenant => {
                tracing::error!("a record of another tenant was sent, and is not delivered");
                let tenant = self.tenant.tenant_id;
                telemetry::metrics(self.sync.clock.now(), Some(&tenant), &[("ForeignRecord", "Count", 1.0)]);
                Value::Null
            }
            Unreadable::NotJson | Unreadable::NoId | Unreadable::NoLastUpdate => {
                json!(String::from_utf8_lossy(row))
            }
        };
        let to = question.updated.to.unwrap_or_else(|| self.sync.clock.now());
        self.put_aside(name, why.as_str(), None, Span { from: question.updated.from, to: Some(to) }, false, kept).await
    }

    async fn set_incident_aside(&mut self, incident_id: &str, second: Span, reason: &str) -> Result<()> {
        self.put_aside(
            format!("incident-{incident_id}"),
            reason,
            Some(incident_id.to_owned()),
            second,
            true,
            Value::Null,
        )
        .await
    }

    /// Sets a whole span aside.
    pub(super) async fn quarantine_span(&mut self, span: Span, reason: &str) -> Result<()> {
        self.put_aside(format!("span-{}", span.from.as_second()), reason, None, span, true, Value::Null).await
    }

    async fn put_aside(
        &mut self,
        name: String,
        reason: &str,
        incident_id: Option<String>,
        span: Span,
        blocks: bool,
        record: Value,
    ) -> Result<()> {
        let now = self.sync.clock.now();
        let tenant = self.tenant.tenant_id;
        let to = span.to.unwrap_or(now);
        let mut one = QuarantineEntry::new(name, reason, incident_id, span, now);
        one.blocks = blocks;
        self.met += 1;
        let known = self.set_aside.iter().find(|other| other.name == one.name);
        if known.is_some_and(|known| known.span() == one.span()) {
            return Ok(());
        }
        let is_new = known.is_none();
        let told = json!({"tenant_id": tenant, "incident_id": one.incident_id, "api": self.api, "reason": reason,
                          "from": span.from, "to": to, "set_aside_at": now, "record": record});
        self.sync.bucket.write_quarantined(&tenant, &one.name, &told).await?;
        if is_new {
            // Counted first: what is counted and not noted is put right by the next run, but nobody looks for a note that
            // is not counted.
            self.lease.feed.quarantined = self.set_aside.len() as u64 + 1;
            if self.sync.registry.commit_feed(self.lease).await? == Write::Conflict {
                // The lease has passed to another, who meets the same.
                return Err(Error::DeadlineExceeded);
            }
        }
        if self.sync.registry.quarantine(&tenant, &one).await? == Write::Conflict {
            // It was met before, elsewhere or by a worker that died before it counted it.
            self.sync.registry.update_quarantine_entry(&tenant, &one).await?;
        }
        tracing::warn!(name = one.name, reason, incident_id = one.incident_id, "set aside");
        self.set_aside.retain(|other| other.name != one.name);
        self.set_aside.push(one);
        self.tally.set_aside += u64::from(is_new);
        self.lease.feed.quarantined = self.set_aside.len() as u64;
        Ok(())
    }
}
