//! Rows that share their seconds of last update and of creation, or have no time of creation. No split tells them apart.

use std::collections::BTreeSet;

use super::{
    Progress, Worker,
    ingest::{PageRead, RowTimes},
};
use shared::{
    error::Result,
    incident::span::Span,
    incident_api::query::{IncidentQuery, MAX_SKIP},
};

/// The maximum number of readings, until two of them agree.
const MAX_PAGED_READINGS: usize = 3;

impl Worker<'_> {
    /// Pages through inseparable rows with `$skip`, until two readings agree.
    pub(super) async fn read_paged(&mut self, second: Span, created: Option<Span>) -> Result<Progress> {
        let mut previous: Option<BTreeSet<RowTimes>> = None;
        for _ in 0..MAX_PAGED_READINGS {
            let mut seen = BTreeSet::new();
            let mut skip = 0;
            loop {
                let query = IncidentQuery { created, skip, ..IncidentQuery::of(second, self.api) };
                if skip > MAX_SKIP {
                    return self.quarantine_span(second, "inseparable").await.map(|()| Progress::Complete);
                }
                if self.out_of_time() {
                    return Ok(Progress::OutOfTime);
                }
                let mut page = PageRead::default();
                self.read(&query, &mut page).await?;
                self.flush().await?;
                seen.extend(page.rows_shown.iter().cloned());
                let looks_complete = !page.more && page.rows < query.top;
                if looks_complete && self.lease.feed.page_sizes(self.api).believes(page.rows) || page.rows == 0 {
                    break;
                }
                skip += page.rows;
            }
            if previous.as_ref() == Some(&seen) {
                return Ok(Progress::Complete);
            }
            previous = Some(seen);
        }
        Ok(Progress::Complete)
    }
}
