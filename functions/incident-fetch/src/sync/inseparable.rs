//! Rows that share their seconds of last update and of creation, or have no time of creation. No split tells them apart.

use super::{Progress, Worker, page_read::PageRead};
use shared::{
    error::Result,
    incident_api::query::{IncidentQuery, MAX_SKIP},
    registry::position::Readings,
};

/// The maximum number of readings, until two of them agree.
const MAX_READINGS: u32 = 3;

impl Worker<'_> {
    /// Pages through inseparable rows with `$skip`, until two readings agree. `readings` says where to go on, and how far
    /// it came, however it ends.
    pub(super) async fn read_inseparable(
        &mut self,
        query: &IncidentQuery,
        readings: &mut Readings,
    ) -> Result<Progress> {
        while readings.complete < MAX_READINGS {
            if readings.skip > MAX_SKIP {
                return self.quarantine_span(query.updated, "inseparable").await.map(|()| Progress::Complete);
            }
            if self.out_of_time() {
                return Ok(Progress::OutOfTime);
            }
            let mut page = PageRead::default();
            self.read(&IncidentQuery { skip: readings.skip, ..query.clone() }, &mut page).await?;
            self.flush().await?;
            self.stats.moved = true;
            readings.present.extend(page.keys.iter().cloned());
            if !page.is_last(query.top, *self.lease.feed.page_sizes(self.api)) {
                readings.skip += page.rows;
                continue;
            }
            readings.complete += 1;
            readings.skip = 0;
            let present = std::mem::take(&mut readings.present);
            let agrees = readings.complete > 1 && present == readings.last;
            readings.last = present;
            if agrees {
                break;
            }
        }
        Ok(Progress::Complete)
    }
}
