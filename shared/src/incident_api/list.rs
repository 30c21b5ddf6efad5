//! A list of incidents, read row by row while the response arrives.

use std::ops::Deref;

use http::StatusCode;
use jiff::Timestamp;
use url::Url;

pub use super::{odata::MAX_ROW_BYTES, row_memory::Row};
use super::{
    query::{IncidentQuery, next_page_of},
    row_memory::RowMemory,
    rows::ArrivingRows,
};
use crate::{
    error::Result,
    http::Response,
    incident::record::{Alerts, Record, Unreadable},
    microsoft::IncidentApi,
    registry::position::NextPage,
    tenant::TenantId,
};

/// The number of pages without rows that are followed in a row. A list with more of them does not end.
pub const MAX_EMPTY_PAGES: u32 = 5;

/// The member with the link to the next page.
const NEXT_LINK: &str = "@odata.nextLink";

/// A list whose rows are still arriving.
pub struct IncidentList {
    url: Url,
    rows: ArrivingRows,
    count: u32,
}

/// The facts about a list that are known after its last row.
#[derive(Clone, Debug, PartialEq)]
pub struct ListEnd {
    /// The number of rows in the response.
    pub rows: u32,
    /// The response had a next link: Microsoft has further rows, or says so.
    pub more: bool,
    /// The page that the next link names, if it leads to this list.
    pub next_page: Option<NextPage>,
    /// Status 206: Microsoft could not read a part of the list.
    pub partial: bool,
    /// The list's [`IncidentList::date`].
    pub date: Option<Timestamp>,
}

impl ListEnd {
    /// The query for the next page, if this one had no rows and yet a next link. Such a page says nothing about the end of
    /// the list ("Paging Microsoft Graph data in your app": a page may hold no rows, and only the absence of a next link
    /// ends a list). A link that leads elsewhere is not followed: the rows at this place are asked for by `$skip`. `None`
    /// also for a link to what was just asked for, behind which nothing can be.
    pub fn after_empty_page(&self, query: &IncidentQuery) -> Option<IncidentQuery> {
        if self.rows > 0 || !self.more {
            return None;
        }
        let here = query.next_page.clone().unwrap_or(NextPage::Skip(query.skip));
        let next_page = self.next_page.clone().unwrap_or(here);
        let is_new = query.next_page.as_ref() != Some(&next_page);
        is_new.then(|| IncidentQuery { next_page: Some(next_page), ..query.clone() })
    }
}

/// The record of a row. One that is not small has its row's places in memory until it is dropped: it holds as much as the
/// row.
#[derive(Debug)]
pub struct ListedRecord<'a> {
    record: Record,
    /// The row without its bytes.
    _places: Option<Row<'a>>,
}

impl<'a> ListedRecord<'a> {
    /// Parses a row, which `api` sent for `tenant`.
    ///
    /// # Errors
    /// The reason to quarantine the row, and the row.
    pub fn of(
        mut row: Row<'a>,
        tenant: &TenantId,
        api: IncidentApi,
        alerts: Alerts,
    ) -> std::result::Result<Self, (Unreadable, Row<'a>)> {
        match Record::parse_owned(std::mem::take(&mut row.bytes), tenant, api, alerts) {
            Ok(record) => Ok(Self { record, _places: Some(row) }),
            Err((why, bytes)) => {
                row.bytes = bytes;
                Err((why, row))
            }
        }
    }

    /// The record, without a place in memory.
    pub fn into_record(self) -> Record {
        self.record
    }
}

impl Deref for ListedRecord<'_> {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}

impl IncidentList {
    pub(super) fn new(url: Url, response: Response, memory: &RowMemory) -> Self {
        Self { url, rows: ArrivingRows::new(response, &["value"], memory), count: 0 }
    }

    /// Returns the next row exactly as Microsoft sent it, and `None` after the last one. A large row waits until the process
    /// has memory for it.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::error::Error::Malformed) when the body is not an `OData` collection,
    /// [`Error::Unreachable`](crate::error::Error::Unreachable) when it breaks off or the deadline passes, and
    /// [`Error::DeadlineExceeded`](crate::error::Error::DeadlineExceeded) when the wait for memory is too long.
    pub async fn next(&mut self) -> Result<Option<Row<'_>>> {
        let row = self.rows.next().await?;
        self.count += u32::from(row.is_some());
        Ok(row)
    }

    /// Returns the record of the next row, which `api` sent for `tenant`, and `None` after the last row. A row that cannot be
    /// parsed is returned with the reason.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn next_record(
        &mut self,
        tenant: &TenantId,
        api: IncidentApi,
        alerts: Alerts,
    ) -> Result<Option<std::result::Result<ListedRecord<'_>, (Unreadable, Row<'_>)>>> {
        if let Some(record) = self.rows.next_parsed(|text| Record::parse_first(text, tenant, api, alerts)) {
            self.count += 1;
            return Ok(Some(Ok(ListedRecord { record, _places: None })));
        }
        let row = self.next().await?;
        Ok(row.map(|row| ListedRecord::of(row, tenant, api, alerts)))
    }

    /// The `Date` header: Microsoft's time at the start of the response.
    pub fn date(&self) -> Option<Timestamp> {
        self.rows.response().date()
    }

    /// Returns the facts about the whole list. The caller has read all rows before.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::error::Error::Malformed) when the body is not a complete `OData` collection.
    pub fn end(self) -> Result<ListEnd> {
        let partial = self.rows.response().status() == StatusCode::PARTIAL_CONTENT;
        let date = self.date();
        let malformed = self.rows.response().malformed();
        let members = self.rows.finish()?;
        if !members.all("value").any(|rows| rows.get().starts_with('[')) {
            return Err(malformed);
        }
        // A link that cannot be read says that there is more, too.
        let more = members.all(NEXT_LINK).any(|link| link.get() != "null");
        let next_page = members.find(&[NEXT_LINK], |link| {
            let link: String = serde_json::from_str(link.get()).ok()?;
            next_page_of(&link, &self.url)
        });
        Ok(ListEnd { rows: self.count, more, next_page, partial, date })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;

    use super::*;
    use crate::http::HttpClient;

    #[tokio::test]
    async fn large_record_has_its_place_in_memory_until_it_is_dropped() {
        let alert = format!(r#"{{"id":"a","description":"{}"}}"#, "x".repeat(2 << 20));
        let row =
            |id: u32| format!(r#"{{"id":"{id}","lastUpdateDateTime":"2026-11-22T09:00:00Z","alerts":[{alert}]}}"#);
        let body = Bytes::from(format!(r#"{{"value":[{},{}]}}"#, row(1), row(2)));
        let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        for piece in [64 << 10, body.len()] {
            let pieces = body.chunks(piece).map(|piece| body.slice_ref(piece)).collect();
            let memory = RowMemory::new(HttpClient::default());
            let url = "https://graph.microsoft.com/v1.0/security/incidents".parse().unwrap();
            let mut list = IncidentList::new(url, Response::of_pieces(pieces), &memory);
            let has_place = || memory.arriving_row().reserve(2 << 20).now_or_never().is_some();
            for id in ["1", "2"] {
                let record =
                    list.next_record(&tenant, IncidentApi::Graph, Alerts::Included).await.unwrap().unwrap().unwrap();
                assert_eq!((&*record.incident_id, record.alerts), (id, Some(1)));
                assert!(!has_place(), "another large row waits, in pieces of {piece}");
                drop(record);
                assert!(has_place());
            }
            assert!(list.next_record(&tenant, IncidentApi::Graph, Alerts::Included).await.unwrap().is_none());
        }
    }
}
