//! Rows that share their seconds of last update and of creation, or have no time of creation. No split tells them apart.

use super::{Progress, Worker, page_read::PageRead};
use shared::{
    error::Result,
    incident_api::query::{IncidentQuery, MAX_SKIP},
    registry::position::Readings,
};

/// The maximum number of readings. One shows all rows whose order stays. Where each response has another order, and a page
/// holds a ninth of the rows, a row in five thousand is left after eight.
const MAX_READINGS: u32 = 8;

impl Worker<'_> {
    /// Pages through inseparable rows with `$skip`, until as many different rows were seen as the list has places. `readings`
    /// says where to go on, and how far it came, however it ends.
    pub(super) async fn read_inseparable(
        &mut self,
        query: &IncidentQuery,
        readings: &mut Readings,
    ) -> Result<Progress> {
        while readings.complete < MAX_READINGS && readings.skip <= MAX_SKIP {
            if self.out_of_time() {
                return Ok(Progress::OutOfTime);
            }
            let mut page = PageRead::default();
            self.read(&IncidentQuery { skip: readings.skip, ..query.clone() }, &mut page).await?;
            self.flush().await?;
            self.stats.moved = true;
            readings.seen.extend(page.keys.iter().cloned());
            let places = readings.skip + page.rows;
            if !page.is_last(query.top, *self.lease.feed.page_sizes(self.api)) {
                readings.skip = places;
                continue;
            }
            if readings.seen.len() >= usize::try_from(places).unwrap_or(usize::MAX) {
                return Ok(Progress::Complete);
            }
            readings.complete += 1;
            readings.skip = 0;
        }
        self.quarantine_span(query.updated, "inseparable").await.map(|()| Progress::Complete)
    }
}
