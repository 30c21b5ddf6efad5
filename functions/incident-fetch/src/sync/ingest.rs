//! What is taken out of answers, and the order in which it is committed.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use super::{RECHECK_AFTER, Worker, is_transient};
use shared::{
    delivery::bucket::{Batch, WrittenBatch},
    error::{Call, Error, Result},
    incident::{
        record::{Alerts, Record, Unreadable},
        version::{Change, DeliveredVersion, Version, VersionComparison, compare},
    },
    incident_api::{client::TokenFreshness, odata::MAX_ROW_BYTES, query::IncidentQuery},
    registry::{feed::Recheck, tenants::Status, versions::VersionBlock},
};

/// Compressed bytes after which a batch is written although more is to come.
const LARGEST_BATCH: usize = 4 << 20;

/// The most incidents without alerts that are remembered for another look.
const MOST_RECHECKS: usize = 100;

/// After how many failures in one poll the others wait: an outage is met with few requests.
const MOST_FAILED_RECHECKS: u32 = 2;

/// What an answer showed.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Rows that came.
    pub(crate) rows: u32,
    /// Whether there is more than that.
    pub(crate) more: bool,
    /// When Microsoft answered.
    pub(crate) date: Option<Timestamp>,
    /// The readable rows.
    pub(crate) shown: Vec<Shown>,
}

/// A row, as far as cutting spans needs it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shown {
    pub(crate) last_updated: Timestamp,
    pub(crate) created: Option<Timestamp>,
    pub(crate) incident_id: String,
}

impl Reading {
    pub(super) fn times(&self) -> Vec<Timestamp> {
        self.shown.iter().map(|shown| shown.last_updated).collect()
    }
}

impl Worker<'_> {
    /// Asks once and takes what comes. Rows that came before a failure are taken, too; `reading` tells of them.
    pub(super) async fn read(&mut self, question: &IncidentQuery, reading: &mut Reading) -> Result<()> {
        let tenant = self.tenant.tenant_id;
        let mut listing = self.client().list(question, TokenFreshness::Confirmed).await?;
        while let Some(row) = listing.next().await? {
            reading.rows += 1;
            match Record::parse(&row, &tenant, question.alerts) {
                Ok(record) => {
                    reading.shown.push(Shown {
                        last_updated: record.last_updated,
                        created: record.created,
                        incident_id: record.incident_id.clone(),
                    });
                    self.take(&record).await?;
                }
                Err(why) => self.quarantine_row(&row, why, question).await?,
            }
            if self.batch.size() > LARGEST_BATCH {
                self.flush().await?;
            }
        }
        let end = listing.end()?;
        (reading.more, reading.date) = (end.more, end.date);
        if end.partial && !std::mem::replace(&mut self.partial_answers, true) {
            // Once it may be a hiccup of one of Microsoft's parts; what is missing for longer is the sweep's to find.
            return Err(Error::Partial { call: Call::ListIncidents });
        }
        if end.more && end.rows < question.top {
            if self.nothing_after(question, end.rows).await? {
                reading.more = false;
            } else {
                // The surface gave less than it was asked for although it had more: so few rows may be all of a page.
                self.cap = self.cap.min(end.rows.max(1));
            }
        }
        Ok(())
    }

    /// Whether a list ends after `rows` rows, whatever a next link says, which is never followed: it may lead anywhere.
    async fn nothing_after(&mut self, question: &IncidentQuery, rows: u32) -> Result<bool> {
        let question =
            IncidentQuery { top: 1, skip: question.skip + rows, alerts: Alerts::Omitted, ..question.clone() };
        let mut listing = self.client().list(&question, TokenFreshness::Confirmed).await?;
        Ok(listing.next().await?.is_none())
    }

    /// Whether an answer holds all of what was asked for.
    pub(super) fn is_whole(&self, reading: &Reading, question: &IncidentQuery) -> bool {
        !reading.more && reading.rows < question.top.min(self.cap)
    }

    /// Takes a record into the batch, if it is a version that was not delivered.
    pub(super) async fn take(&mut self, record: &Record) -> Result<()> {
        self.tally.checked += 1;
        let known = self.known(&record.incident_id).await?.cloned();
        let api = self.api;
        match compare(known.as_ref(), record, api) {
            VersionComparison::New { change, ordinal } => {
                // One incident in one batch twice: the first version's object must be there before the second is told.
                if self.batch.contains(&record.incident_id) {
                    self.flush().await?;
                }
                let fetched_at = self.sync.clock.now();
                let tenant_id = self.tenant.tenant_id;
                self.batch.add(&Version { tenant_id, api, record, change: Some(change), ordinal, fetched_at })?;
                self.created += u64::from(change == Change::Created);
                if change == Change::Created && record.alerts == Some(0) {
                    self.recheck_later(&record.incident_id, fetched_at + RECHECK_AFTER);
                }
                self.know(&record.incident_id, DeliveredVersion::of(record, ordinal, api))
            }
            VersionComparison::SameOnOtherApi => {
                let before = known.as_ref().filter(|known| known.last_updated == record.last_updated);
                let noted = DeliveredVersion::of(record, before.map_or(1, |known| known.ordinal), api);
                let delivered = HashMap::from([(record.incident_id.clone(), noted.clone())]);
                self.sync.registry.record_versions(&self.tenant.tenant_id, &delivered).await?;
                self.know(&record.incident_id, noted)
            }
            VersionComparison::Same => Ok(()),
            VersionComparison::Stale => {
                self.tally.stale += 1;
                Ok(())
            }
        }
    }

    /// What was delivered last of an incident, in this batch or before.
    pub(super) async fn known(&mut self, incident_id: &str) -> Result<Option<&DeliveredVersion>> {
        let block = VersionBlock::of(incident_id)?;
        if !self.known.contains_key(&block) {
            let known = self.sync.registry.delivered_versions(&self.tenant.tenant_id, block).await?;
            self.known.insert(block, known);
        }
        Ok(self.known.get(&block).and_then(|known| known.get(incident_id)))
    }

    fn know(&mut self, incident_id: &str, version: DeliveredVersion) -> Result<()> {
        let block = VersionBlock::of(incident_id)?;
        self.known.entry(block).or_default().insert(incident_id.to_owned(), version);
        Ok(())
    }

    /// Writes the batch: objects, then events, then what is known. The cursor comes after, by whoever called.
    ///
    /// # Errors
    /// [`Error::TenantNotActive`] when the tenant was paused or offboarded meanwhile; nothing is written then.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let tenant = self.tenant.tenant_id;
        let present = self.sync.registry.known_tenant(&tenant).await?;
        if present.status != self.tenant.status && present.status != Status::Active {
            return Err(Error::TenantNotActive(present.reason));
        }
        let batch = std::mem::replace(&mut self.batch, Batch::new(self.sync.settings.format));
        let WrittenBatch { objects, versions } = self.sync.bucket.write(&tenant, batch).await?;
        self.sync.events.incidents_delivered(&tenant, &objects).await?;
        self.sync.registry.record_versions(&tenant, &versions).await?;
        let delivered = versions.len() as u64;
        self.tally.delivered += delivered;
        self.lease.feed.incidents_total += std::mem::take(&mut self.created);
        self.lease.feed.last_news_at = Some(self.sync.clock.now());
        tracing::info!(versions = delivered, objects = objects.len(), "incidents delivered");
        Ok(())
    }

    fn recheck_later(&mut self, incident_id: &str, at: Timestamp) {
        let rechecks = &mut self.lease.feed.rechecks;
        if rechecks.len() < MOST_RECHECKS {
            rechecks.push(Recheck { incident_id: incident_id.to_owned(), at });
        }
    }

    /// Reads incidents again that came without alerts a while ago. `false`: time ran out before the end.
    pub(super) async fn recheck(&mut self) -> Result<bool> {
        let now = self.sync.clock.now();
        let mut read = Vec::new();
        let outcome = self.read_due(now, &mut read).await;
        // However it ended: only what is delivered is done.
        self.flush().await?;
        self.lease.feed.rechecks.retain(|recheck| recheck.at > now || !read.contains(&recheck.incident_id));
        outcome
    }

    async fn read_due(&mut self, now: Timestamp, read: &mut Vec<String>) -> Result<bool> {
        let due: Vec<Recheck> = self.lease.feed.rechecks.iter().filter(|recheck| recheck.at <= now).cloned().collect();
        let mut failures = 0;
        for Recheck { incident_id, .. } in due {
            if self.out_of_time() {
                return Ok(false);
            }
            match self.read_one(&incident_id, Alerts::Included).await {
                Ok(_) | Err(Error::NotFound) => read.push(incident_id),
                Err(error) if is_transient(&error) => {
                    let rechecks = self.lease.feed.rechecks.iter_mut();
                    rechecks.filter(|one| one.incident_id == incident_id).for_each(|one| one.at = now + RECHECK_AFTER);
                    failures += 1;
                    if failures >= MOST_FAILED_RECHECKS {
                        return Ok(true);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Reads one incident by its id and takes it.
    pub(super) async fn read_one(&mut self, incident_id: &str, alerts: Alerts) -> Result<Record> {
        let raw = self.client().incident(incident_id, alerts, MAX_ROW_BYTES).await?;
        let record = Record::parse(&raw, &self.tenant.tenant_id, alerts)
            .map_err(|_: Unreadable| Error::Malformed { call: Call::GetIncident })?;
        if record.incident_id != incident_id {
            return Err(Error::Malformed { call: Call::GetIncident });
        }
        self.take(&record).await?;
        Ok(record)
    }

    /// Microsoft's time of an answer; without one, a time that is surely past. A time that is still to come is nobody's.
    pub(super) fn answered_at(&self, reading: &Reading) -> Timestamp {
        let now = self.sync.clock.now();
        reading.date.map_or(now - SignedDuration::from_mins(1), |date| date.min(now))
    }
}
