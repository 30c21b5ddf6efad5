//! A failing second, read incident by incident. Whatever cannot be read is quarantined with its reason and retried later.

use std::collections::HashSet;

use shared::{
    error::{Error, Result},
    incident::{
        record::{Alerts, Record},
        span::Span,
        version::{ReadTime, VersionComparison, compare},
    },
    incident_api::query::{IncidentQuery, MAX_SKIP},
    microsoft::IncidentApi,
};

use super::{Worker, is_transient, page_read::PageRead, quarantine::UNREADABLE_ALERTS};

/// The lists that the API sends of a failing second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecondListing {
    /// A list without alerts is available.
    WithoutAlerts,
    /// No list is available.
    Unavailable,
}

/// The part of a second's identifiers that a list without alerts has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdList {
    Complete,
    Incomplete,
}

impl Worker<'_> {
    /// Reads a failing second incident by incident and quarantines what cannot be read even so.
    pub(super) async fn bisect_second(&mut self, second: Span, listing: SecondListing) -> Result<()> {
        let outcome = if listing == SecondListing::WithoutAlerts && self.api == IncidentApi::Graph {
            self.bisect_by_id(second).await
        } else {
            let query = IncidentQuery { top: 1, ..IncidentQuery::of(second, self.api) };
            self.bisect_by_row(query, None).await
        };
        self.flush().await?;
        outcome
    }

    /// Reads the list of a part of a second, row by row where its first page failed.
    pub(super) async fn bisect_page(&mut self, failed: &IncidentQuery) -> Result<()> {
        let query = IncidentQuery { top: (failed.top / 2).max(1), ..failed.clone() };
        let outcome = self.bisect_by_row(query, Some(failed.skip + failed.top)).await;
        self.flush().await?;
        outcome
    }

    /// Lists a second without alerts, which only Graph can, and reads each incident by its identifier.
    async fn bisect_by_id(&mut self, second: Span) -> Result<()> {
        let query = IncidentQuery { alerts: Alerts::Omitted, ..IncidentQuery::of(second, self.api) };
        let mut ids = Vec::new();
        let list = match self.list_new_ids(&query, &mut ids).await {
            Ok(list) => list,
            Err(error) if is_transient(&error) => IdList::Incomplete,
            Err(error) => return Err(error),
        };
        for id in ids {
            if self.out_of_time() {
                return Err(Error::DeadlineExceeded);
            }
            match self.read_one(&id, Alerts::Included).await {
                Ok(()) => continue,
                // The list shows it, so it may be there.
                Err(error) if error == Error::NotFound || is_transient(&error) => {}
                Err(error) => return Err(error),
            }
            self.probe_tenant().await?;
            // An incident without its alerts is delivered rather than none. The alerts follow when they can be read.
            let reason = match self.read_one(&id, Alerts::Omitted).await {
                Ok(()) => UNREADABLE_ALERTS,
                Err(error) if error == Error::NotFound || is_transient(&error) => "unreadable",
                Err(error) => return Err(error),
            };
            self.quarantine_incident(&id, second, reason).await?;
        }
        match list {
            IdList::Complete => Ok(()),
            // Incidents that the list leaves out are found row by row.
            IdList::Incomplete => {
                let query = IncidentQuery { top: 1, ..IncidentQuery::of(second, self.api) };
                self.bisect_by_row(query, None).await
            }
        }
    }

    /// Collects the identifiers of the incidents whose version is not delivered yet. Those that arrive before a failure
    /// are in `ids`, too.
    async fn list_new_ids(&mut self, query: &IncidentQuery, ids: &mut Vec<String>) -> Result<IdList> {
        let tenant = self.tenant.tenant_id;
        let mut list = self.list(query).await?;
        let read_at = ReadTime { ours: self.sync.clock.now(), microsofts: list.date() };
        while let Some(row) = list.next().await? {
            match Record::parse(&row, &tenant, self.api, Alerts::Omitted) {
                Ok(record) => {
                    let api = self.api;
                    let delivered = self.delivered_version(&record.incident_id).await?;
                    if matches!(compare(delivered, &record, api, read_at), VersionComparison::New { .. }) {
                        ids.push(record.incident_id);
                    }
                }
                Err(why) => self.quarantine_row(&row, why, query).await?,
            }
        }
        let end = list.end()?;
        let may_lack_some = end.more || end.partial || end.rows >= query.top;
        Ok(if may_lack_some { IdList::Incomplete } else { IdList::Complete })
    }

    /// Reads a second's rows in runs that grow, and halves a run that fails until the failing row stands alone. This is
    /// for seconds without any list: Defender always sends alerts, so it has no list without them.
    ///
    /// `query` is the first run. Its list has a failing row before the place `fails_before`, where that is known.
    async fn bisect_by_row(&mut self, mut query: IncidentQuery, mut fails_before: Option<u32>) -> Result<()> {
        let second = query.updated;
        let mut seen = HashSet::new();
        let full_page = self.api.largest_page();
        let mut failing_rows = 0;
        while query.skip <= MAX_SKIP {
            if self.out_of_time() {
                return Err(Error::DeadlineExceeded);
            }
            let mut page = PageRead::default();
            match self.read(&query, &mut page).await {
                // Rows that share all times may have changed places between two responses, so that others showed in none.
                Ok(()) if page.rows == 0 && seen.len() + failing_rows < query.skip as usize => {
                    return self.quarantine_span(second, "unreadable").await;
                }
                Ok(()) if page.rows == 0 => return Ok(()),
                Ok(()) => {
                    seen.extend(page.keys);
                    query.skip += page.rows;
                    let left = fails_before.map_or(0, |end: u32| end.saturating_sub(query.skip));
                    query.top = if left > 0 { (left / 2).max(1) } else { (query.top * 2).min(full_page) };
                }
                Err(error) if is_transient(&error) => {
                    if query.top == 1 {
                        self.probe_tenant().await?;
                        self.quarantine_span(second, "unreadable").await?;
                        query.skip += 1;
                        failing_rows += 1;
                        fails_before = None;
                        query.top = full_page;
                    } else {
                        fails_before = Some(query.skip + query.top);
                        query.top /= 2;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.quarantine_span(second, "inseparable").await
    }
}
