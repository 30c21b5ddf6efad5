//! Records on their way from a response into the bucket, and the order in which they are committed.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{
    Progress, RECHECK_DELAY, Worker, another_worker, is_transient,
    page_read::{PageRead, PartialResponse},
    quarantine::LeftOut,
};
use shared::{
    delivery::bucket::WrittenBatch,
    error::{Call, Error, Result},
    incident::{
        record::{Alerts, Record},
        version::{Change, DeliveredVersion, MAX_STALE, ReadTime, Version, VersionComparison, compare},
    },
    incident_api::{
        list::{ListEnd, ListedRecord, MAX_EMPTY_PAGES, MAX_ROW_BYTES},
        query::IncidentQuery,
    },
    registry::{
        Write,
        feed::Recheck,
        tenants::Status,
        versions::{NewVersion, VersionBlock},
    },
    tenant::Reason,
};

/// The size at which a batch is written before its list ends.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// The maximum number of incidents without alerts that wait to be read again.
const MAX_RECHECKS: usize = 100;

/// The number of failed rechecks in one poll after which the others wait. An outage then costs few requests.
const MAX_FAILED_RECHECKS: u32 = 2;

impl Worker<'_> {
    /// Sends one query and ingests the rows of its response. Rows that arrive before a failure are ingested, too, and
    /// counted in `page`. A page without rows but with a next link is followed to the page that has some.
    pub(super) async fn read(&mut self, query: &IncidentQuery, page: &mut PageRead) -> Result<()> {
        let mut query = query.clone();
        while page.after_empty_pages.as_ref().is_none_or(|after| after.empty_pages < MAX_EMPTY_PAGES) {
            let versions_before = self.versions_found;
            let end = Box::pin(self.read_response(&query, page)).await;
            if query.alerts == Alerts::Omitted && self.versions_found > versions_before {
                self.quarantine_left_out(LeftOut::Alerts, query.updated).await?;
            }
            let end = end?;
            if end.partial {
                self.quarantine_left_out(LeftOut::Something, query.updated).await?;
            }
            let Some(next) = page.after_empty_page(&end, &query) else { return Ok(()) };
            query = next;
        }
        Err(Error::Malformed { call: Call::ListIncidents })
    }

    async fn read_response(&mut self, query: &IncidentQuery, page: &mut PageRead) -> Result<ListEnd> {
        let tenant = self.tenant.tenant_id;
        let mut list = self.list(query).await?;
        let date = list.date();
        while let Some(row) = list.next_record(&tenant, self.api, query.alerts).await? {
            match row {
                Ok(record) => {
                    page.note(&record, query);
                    self.ingest(&record, date).await?;
                }
                Err((why, row)) => {
                    page.note_unreadable(&row);
                    self.quarantine_row(&row, why, query).await?;
                }
            }
            if self.batch.size() > MAX_BATCH_BYTES {
                self.flush().await?;
            }
        }
        let end = list.end()?;
        let partial = self.next_partial_response;
        if end.partial {
            self.next_partial_response = PartialResponse::Accepted;
        }
        page.judge(&end, self.sync.clock.now(), partial)?;
        Ok(end)
    }

    /// Adds a record to the batch if it is a version that was not delivered. `date` is that of its response.
    async fn ingest(&mut self, record: &Record, date: Option<Timestamp>) -> Result<()> {
        self.stats.checked += 1;
        let delivered = self.delivered_version(&record.incident_id).await?.cloned();
        let api = self.api;
        let read_at = ReadTime { ours: self.sync.clock.now(), microsofts: date };
        match compare(delivered.as_ref(), record, api, read_at) {
            VersionComparison::New { change, ordinal } => {
                // The object of an incident's first version must be written before its second version is announced.
                if self.batch.contains(&record.incident_id) || !self.batch.has_object_for(record) {
                    self.flush().await?;
                }
                let fetched_at = read_at.ours;
                let tenant_id = self.tenant.tenant_id;
                let open_before = delivered.as_ref().and_then(|delivered| delivered.open);
                let next = delivered.map_or_else(
                    || DeliveredVersion::of(record, ordinal, api),
                    |before| before.followed_by(record, ordinal, api, read_at),
                );
                let version = Version { tenant_id, api, record, change: Some(change), ordinal, fetched_at };
                if let Err(error) = self.batch.add(&version, NewVersion { version: next.clone(), open_before }) {
                    // Its last line may be incomplete.
                    self.batch = self.sync.settings.new_batch();
                    return Err(error);
                }
                self.versions_found += 1;
                self.created_in_batch += u64::from(change == Change::Created);
                if change == Change::Created && record.alerts == Some(0) {
                    self.recheck_later(&record.incident_id, fetched_at + RECHECK_DELAY);
                }
                self.remember(&record.incident_id, next);
            }
            VersionComparison::SameOnOtherApi => {
                let same = delivered.as_ref().filter(|delivered| delivered.last_updated == record.last_updated);
                let version = DeliveredVersion {
                    change: delivered.as_ref().and_then(|delivered| delivered.change),
                    ..DeliveredVersion::of(record, same.map_or(1, |same| same.ordinal), api)
                };
                let open_before = delivered.as_ref().and_then(|delivered| delivered.open);
                let new = NewVersion { version: version.clone(), open_before };
                self.take_lease().await?;
                self.record_versions(&HashMap::from([(record.incident_id.clone(), new)])).await?;
                self.remember(&record.incident_id, version);
            }
            VersionComparison::Same => self.note_older_since(&record.incident_id, delivered, None).await?,
            VersionComparison::Stale => {
                self.stats.stale += 1;
                self.note_older_since(&record.incident_id, delivered, Some(read_at.ours)).await?;
            }
        }
        Ok(())
    }

    /// Stores the time since which only older records of an incident were read, or that its delivered version was read.
    async fn note_older_since(
        &mut self,
        incident_id: &str,
        delivered: Option<DeliveredVersion>,
        since: Option<Timestamp>,
    ) -> Result<()> {
        let Some(delivered) = delivered.filter(|version| version.older_since.is_some() != since.is_some()) else {
            return Ok(());
        };
        // What is recorded with a version replaces its notes, so the version comes first.
        if self.batch.contains(incident_id) {
            self.flush().await?;
        }
        if let Some(since) = since {
            // By then the polls may have passed it.
            self.recheck_later(incident_id, since + MAX_STALE);
        }
        let version = DeliveredVersion { older_since: since, ..delivered };
        self.take_lease().await?;
        self.sync.registry.record_version_notes(&self.tenant.tenant_id, incident_id, &version).await?;
        self.remember(incident_id, version);
        Ok(())
    }

    /// The last delivered version of an incident. The batch counts as delivered.
    pub(super) async fn delivered_version(&mut self, incident_id: &str) -> Result<Option<&DeliveredVersion>> {
        let block = VersionBlock::of(incident_id);
        if !self.delivered_versions.contains_key(&block) {
            let blocks = block.with_next_blocks(|block| self.delivered_versions.contains_key(block));
            let versions = self.sync.registry.delivered_versions_of(&self.tenant.tenant_id, &blocks).await?;
            self.delivered_versions.extend(blocks.into_iter().zip(versions));
        }
        Ok(self.delivered_versions.get(&block).and_then(|versions| versions.get(incident_id)))
    }

    fn remember(&mut self, incident_id: &str, version: DeliveredVersion) {
        let block = VersionBlock::of(incident_id);
        self.delivered_versions.entry(block).or_default().insert(incident_id.to_owned(), version);
    }

    /// Returns whether a version was found that is not delivered, or of which that is not known.
    pub(super) fn has_undelivered_versions(&self) -> bool {
        self.versions_found > self.stats.delivered
    }

    /// Writes the batch: objects, then events, then versions. The caller commits the cursor after that.
    ///
    /// # Errors
    /// [`Error::TenantNotActive`] when the tenant was paused or offboarded meanwhile. Nothing is written then.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.take_lease().await?;
        let tenant = self.tenant.tenant_id;
        let present = self.sync.registry.known_tenant(&tenant).await?;
        // A paused tenant is read to see whether it can be resumed. One that the operator pauses meanwhile is not.
        let is_as_before = (present.status, present.reason) == (self.tenant.status, self.tenant.reason);
        if !is_as_before && present.status != Status::Active {
            return Err(Error::TenantNotActive(present.reason));
        }
        let batch = std::mem::replace(&mut self.batch, self.sync.settings.new_batch());
        let WrittenBatch { objects, versions, changed } = self.sync.bucket.write(&tenant, batch).await?;
        self.sync.events.incidents_delivered(&tenant, &objects).await?;
        self.sync.events.incidents_changed(&present, &changed).await?;
        self.record_versions(&versions).await?;
        let delivered = versions.len() as u64;
        self.stats.delivered += delivered;
        self.lease.feed.incidents_total += std::mem::take(&mut self.created_in_batch);
        self.lease.feed.last_news_at = Some(self.sync.clock.now());
        tracing::info!(versions = delivered, objects = objects.len(), "incidents delivered");
        Ok(())
    }

    /// Records delivered versions.
    ///
    /// # Errors
    /// [`Error::Conflict`] when another worker recorded versions of the same incidents since this one read them. This one
    /// lost its lease then.
    async fn record_versions(&mut self, versions: &HashMap<String, NewVersion>) -> Result<()> {
        match self.sync.registry.record_versions(&self.tenant.tenant_id, versions).await? {
            Write::Done => Ok(()),
            Write::Conflict => {
                self.lease.lose();
                Err(another_worker())
            }
        }
    }

    fn recheck_later(&mut self, incident_id: &str, at: Timestamp) {
        let rechecks = &mut self.lease.feed.rechecks;
        if rechecks.len() < MAX_RECHECKS {
            rechecks.push(Recheck { incident_id: incident_id.to_owned(), at });
        } else {
            self.stats.dropped_rechecks += 1;
        }
    }

    /// Reads the incidents again that had no alerts when they were delivered a while ago.
    pub(super) async fn recheck(&mut self) -> Result<Progress> {
        let now = self.sync.clock.now();
        let mut read = Vec::new();
        let outcome = self.read_due_rechecks(now, &mut read).await;
        // A recheck is done when its incident is delivered, whatever stopped the others.
        self.flush().await?;
        self.lease.feed.rechecks.retain(|recheck| recheck.at > now || !read.contains(&recheck.incident_id));
        outcome
    }

    async fn read_due_rechecks(&mut self, now: Timestamp, read: &mut Vec<String>) -> Result<Progress> {
        let due: Vec<Recheck> = self.lease.feed.rechecks.iter().filter(|recheck| recheck.at <= now).cloned().collect();
        let mut failures = 0;
        for Recheck { incident_id, .. } in due {
            if self.out_of_time() {
                return Ok(Progress::OutOfTime);
            }
            match self.read_one(&incident_id, Alerts::Included).await {
                Ok(()) | Err(Error::NotFound) => read.push(incident_id),
                Err(error) if is_transient(&error) => {
                    let rechecks = self.lease.feed.rechecks.iter_mut();
                    rechecks.filter(|one| one.incident_id == incident_id).for_each(|one| one.at = now + RECHECK_DELAY);
                    failures += 1;
                    if failures >= MAX_FAILED_RECHECKS {
                        return Ok(Progress::Complete);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Complete)
    }

    /// Reads one incident by its identifier and ingests it.
    pub(super) async fn read_one(&mut self, incident_id: &str, alerts: Alerts) -> Result<()> {
        let raw = self.client().incident(incident_id, alerts, MAX_ROW_BYTES).await;
        let raw = raw.map_err(|error| match error {
            // Only lists say that the tenant is forbidden. This is about one incident.
            Error::Refused(Reason::ResourceAbsent) => Error::Upstream { status: 403, call: Call::GetIncident },
            error => error,
        })?;
        let malformed = Error::Malformed { call: Call::GetIncident };
        let parsed = ListedRecord::of(raw, &self.tenant.tenant_id, self.api, alerts);
        let record = parsed.map_err(|_| malformed.clone())?;
        if record.incident_id != incident_id {
            return Err(malformed);
        }
        self.ingest(&record, None).await
    }

    /// Microsoft's time of a response ([`PageRead::response_time`]).
    pub(super) fn response_time(&self, page: &PageRead) -> Timestamp {
        page.response_time(self.sync.clock.now())
    }
}
