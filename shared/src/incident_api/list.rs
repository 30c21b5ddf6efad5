//! A list of incidents, read row by row while the response arrives.

use http::StatusCode;
use jiff::Timestamp;

pub use super::odata::MAX_ROW_BYTES;
use super::odata::{ODataEnvelope, ODataReader};
use crate::{error::Result, http::Response};

/// A list whose rows are still arriving.
pub struct IncidentList {
    response: Response,
    rows: ODataReader,
    count: u32,
}

/// The facts about a list that are known after its last row.
#[derive(Clone, Debug, PartialEq)]
pub struct ListEnd {
    /// The number of rows in the response.
    pub rows: u32,
    /// The response had a next link: Microsoft has further rows.
    pub more: bool,
    /// Status 206: Microsoft could not read a part of the list.
    pub partial: bool,
    /// The `Date` header: Microsoft's time at the start of the response.
    pub date: Option<Timestamp>,
}

impl IncidentList {
    pub(super) fn new(response: Response) -> Self {
        Self { response, rows: ODataReader::default(), count: 0 }
    }

    /// Returns the next row exactly as Microsoft sent it, and `None` after the last one.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::error::Error::Malformed) when the body is not an `OData` collection,
    /// [`Error::Unreachable`](crate::error::Error::Unreachable) when it breaks off or the deadline passes.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(row) = self.rows.next_row() {
                self.count += 1;
                return Ok(Some(row));
            }
            match self.response.chunk().await? {
                Some(bytes) => self.rows.push(&bytes).map_err(|_| self.response.malformed())?,
                None => return Ok(None),
            }
        }
    }

    /// Returns the facts about the whole list. The caller has read all rows before.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::error::Error::Malformed) when the body is not a complete `OData` collection.
    pub fn end(self) -> Result<ListEnd> {
        let malformed = self.response.malformed();
        let partial = self.response.status() == StatusCode::PARTIAL_CONTENT;
        let date = self.response.date();
        let ODataEnvelope { next_link, .. } = self.rows.finish().map_err(|_| malformed)?;
        Ok(ListEnd { rows: self.count, more: next_link.is_some(), partial, date })
    }
}
