//! Rows that share their seconds of last update and of creation, or have no time of creation. No split tells them apart.

use std::collections::BTreeSet;

use super::{
    Worker,
    ingest::{PageRead, RowShown},
};
use shared::{
    error::Result,
    incident::span::Span,
    incident_api::query::{IncidentQuery, MAX_SKIP},
};

/// The maximum number of readings, until two of them agree.
const MAX_PAGED_READINGS: usize = 3;

impl Worker<'_> {
    /// Pages through inseparable rows with `$skip`, until two readings agree. Returns the number of rows, or `None` when
    /// time ran out.
    pub(super) async fn read_paged(&mut self, second: Span, created: Option<Span>) -> Result<Option<u32>> {
        let mut seen = BTreeSet::new();
        for _ in 0..MAX_PAGED_READINGS {
            let previous: BTreeSet<RowShown> = std::mem::take(&mut seen);
            let mut skip = 0;
            loop {
                let query = IncidentQuery { created, skip, ..IncidentQuery::of(second, self.api) };
                if skip > MAX_SKIP {
                    return self.quarantine_span(second, "inseparable").await.map(|()| Some(count(&seen)));
                }
                if self.out_of_time() {
                    return Ok(None);
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
            if previous == seen {
                break;
            }
        }
        Ok(Some(count(&seen)))
    }
}

fn count(rows: &BTreeSet<RowShown>) -> u32 {
    u32::try_from(rows.len()).unwrap_or(u32::MAX)
}
