//! Rows that share their seconds of last update and of creation, or have no time of creation. No split tells them apart.

use super::{Progress, Worker, page_read::PageRead};
use shared::{
    error::Result,
    incident_api::query::{IncidentQuery, MAX_SKIP},
    registry::position::Readings,
};

/// The maximum number of readings in a row of which none shows a row for the first time. One reading shows all rows whose
/// order stays. Where each response has another order, no number of readings is enough for certain.
const MAX_FRUITLESS_READINGS: u32 = 8;

/// The maximum number of readings. A list that changes longer than that is not read to its end.
const MAX_READINGS: u32 = 64;

impl Worker<'_> {
    /// Pages through inseparable rows with `$skip`, at least twice, until as many different rows were seen as the list has
    /// places. `readings` says where to go on, and how far it came, however it ends.
    pub(super) async fn read_inseparable(
        &mut self,
        query: &IncidentQuery,
        readings: &mut Readings,
    ) -> Result<Progress> {
        while readings.fruitless < MAX_FRUITLESS_READINGS
            && readings.complete < MAX_READINGS
            && readings.skip <= MAX_SKIP
        {
            if self.out_of_time() {
                return Ok(Progress::OutOfTime);
            }
            let top = if readings.skip == 0 { query.top.min(first_page(readings.fruitless)) } else { query.top };
            let mut page = PageRead::default();
            self.read(&IncidentQuery { skip: readings.skip, top, ..query.clone() }, &mut page).await?;
            self.flush().await?;
            self.stats.moved = true;
            let seen_before = readings.seen.len();
            readings.seen.extend(page.keys.iter().cloned());
            if readings.seen.len() > seen_before {
                readings.fruitless = 0;
            }
            let places = readings.skip + page.rows;
            if !page.is_last(top, *self.lease.feed.page_sizes(self.api)) {
                readings.skip = places;
                continue;
            }
            if readings.places.replace(places) != Some(places) {
                // Rows that leave the list make room for others to slip past a page. Only rows that were seen in a list of
                // constant length count.
                readings.seen.clear();
            } else if readings.seen.len() >= usize::try_from(places).unwrap_or(usize::MAX) {
                return Ok(Progress::Complete);
            }
            readings.complete += 1;
            readings.fruitless += 1;
            readings.skip = 0;
        }
        self.quarantine_span(query.updated, "inseparable").await.map(|()| Progress::Complete)
    }
}

/// The most rows of a reading's first page, after so many readings without a new row. Each reading has other edges between
/// its pages, so that an order that changes in a regular way does not show the same rows again and again.
fn first_page(fruitless_readings: u32) -> u32 {
    if fruitless_readings == 0 { u32::MAX } else { 1 + 3 * fruitless_readings % 7 }
}
