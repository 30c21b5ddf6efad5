//! The contents of a response with a list, and whether the response can be believed. The sync and live lists read with
//! these rules.

use aws_lc_rs::digest::{SHA256, digest};
use jiff::{SignedDuration, Timestamp};

use shared::{
    error::{Call, Error, Result},
    incident::{record::Record, span::Span},
    incident_api::{list::ListEnd, query::IncidentQuery},
    registry::position::{NextPage, PageAfterEmpty, PageSizes, RowTimes},
    text::hex,
};

/// The age that a response without a `Date` header is given. It is longer than any response takes.
const AGE_WITHOUT_DATE: SignedDuration = SignedDuration::from_mins(1);

/// The contents of a response, as far as the choice of the next window needs them.
#[derive(Debug, Default)]
pub(crate) struct PageRead {
    /// The number of rows.
    pub(crate) rows: u32,
    /// The number of rows before the first one, where a next link named it.
    pub(crate) first_row: Option<u32>,
    /// A key for each row: the incident's identifier, or a hash of what cannot be parsed.
    pub(crate) keys: Vec<String>,
    /// Microsoft has further rows, or says so.
    pub(crate) more: bool,
    /// The `Date` of the response.
    pub(crate) date: Option<Timestamp>,
    /// The rows that could be parsed.
    pub(crate) rows_shown: Vec<RowShown>,
    /// The earliest last update of the rows that the query excludes.
    pub(crate) outside: Option<Timestamp>,
    /// The page to go on with, if only pages without rows were read so far.
    pub(crate) after_empty_pages: Option<PageAfterEmpty>,
}

/// What becomes of a response that says that it leaves something out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartialResponse {
    /// It may be a passing failure within Microsoft.
    Refused,
    /// One was refused before. What it leaves out goes into quarantine.
    Accepted,
}

/// The times and the identifier of a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RowShown {
    pub(crate) last_updated: Timestamp,
    pub(crate) created: Option<Timestamp>,
    pub(super) incident_id: String,
}

impl PageRead {
    /// The contents of a page that may be the one after pages without rows.
    pub(crate) fn after(empty_pages: Option<PageAfterEmpty>) -> Self {
        let first_row = empty_pages.as_ref().and_then(|after| skipped_rows(&after.page));
        Self { first_row, after_empty_pages: empty_pages, ..Self::default() }
    }

    /// Notes a row that was parsed.
    pub(crate) fn note(&mut self, record: &Record, query: &IncidentQuery) {
        self.rows += 1;
        if !is_within(record, query) {
            self.outside = self.outside.into_iter().chain([record.last_updated]).min();
        }
        self.keys.push(record.incident_id.clone());
        self.rows_shown.push(RowShown {
            last_updated: record.last_updated,
            created: record.created,
            incident_id: record.incident_id.clone(),
        });
    }

    /// Notes a row that cannot be parsed.
    pub(crate) fn note_unreadable(&mut self, row: &[u8]) {
        self.rows += 1;
        self.keys.push(hex(&digest(&SHA256, row).as_ref()[..8]));
    }

    /// Judges a response by its end.
    ///
    /// # Errors
    /// [`Error::Partial`] for a response that leaves something out, and [`Error::FilterNotApplied`] for one with rows that
    /// the query excludes. The rows are right, but what such a response does not show says nothing.
    pub(crate) fn judge(&mut self, end: &ListEnd, now: Timestamp, partial: PartialResponse) -> Result<()> {
        self.date = end.date;
        if end.partial && partial == PartialResponse::Refused {
            return Err(Error::Partial { call: Call::ListIncidents });
        }
        // A record may be updated while the response is made, so one that was updated just now shows nothing.
        if self.outside.is_some_and(|updated| updated < self.response_time(now) - AGE_WITHOUT_DATE) {
            tracing::warn!("Microsoft did not apply the filter of a list");
            return Err(Error::FilterNotApplied { call: Call::ListIncidents });
        }
        Ok(())
    }

    /// Returns the query after a page without rows but with a next link, which says nothing about the end of the list.
    pub(crate) fn after_empty_page(&mut self, end: &ListEnd, query: &IncidentQuery) -> Option<IncidentQuery> {
        self.more = end.more && end.rows > 0;
        let empty_pages = self.after_empty_pages.take().map_or(0, |after| after.empty_pages) + 1;
        let next = end.after_empty_page(query)?;
        let page = next.next_page.clone()?;
        self.first_row = skipped_rows(&page).or(self.first_row);
        self.after_empty_pages = Some(PageAfterEmpty { to: query.updated.to, page, empty_pages });
        Some(next)
    }

    /// Returns true if no row lies behind this page of at most `top` rows, as far as the API is known.
    pub(crate) fn is_last(&self, top: u32, sizes: PageSizes) -> bool {
        self.rows == 0 || !self.more && self.rows < top && sizes.believes(self.rows)
    }

    /// The times of last update and of creation of the rows.
    pub(crate) fn times(&self) -> impl Iterator<Item = RowTimes> {
        self.rows_shown.iter().map(|row| RowTimes { updated: row.last_updated, created: row.created })
    }

    /// The response's `Date`, never later than now; one minute ago if the header is missing.
    pub(crate) fn response_time(&self, now: Timestamp) -> Timestamp {
        self.date.map_or(now - AGE_WITHOUT_DATE, |date| date.min(now))
    }
}

fn skipped_rows(page: &NextPage) -> Option<u32> {
    match page {
        NextPage::Skip(rows) => Some(*rows),
        NextPage::SkipToken(_) => None,
    }
}

/// Returns false for a record outside of what was asked for.
fn is_within(record: &Record, query: &IncidentQuery) -> bool {
    let created_within = |created: Span| record.created.is_none_or(|time| created.contains(time));
    query.updated.contains(record.last_updated) && query.created.is_none_or(created_within)
}
