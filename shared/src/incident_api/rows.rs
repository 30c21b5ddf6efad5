//! The rows of a response, read one by one while it arrives.

use super::{
    odata::{Members, ODataReader},
    row_memory::{ArrivingRow, Row, RowMemory},
};
use crate::{error::Result, http::Response};

/// The rows of a response that are still arriving.
pub(super) struct ArrivingRows {
    response: Response,
    reader: ODataReader,
    arriving: ArrivingRow,
}

impl ArrivingRows {
    /// The rows in the array of `response` that has one of these names.
    pub(super) fn new(response: Response, rows_members: &'static [&'static str], memory: &RowMemory) -> Self {
        Self { response, reader: ODataReader::new(rows_members), arriving: memory.arriving_row() }
    }

    pub(super) fn response(&self) -> &Response {
        &self.response
    }

    /// Returns the next row exactly as Microsoft sent it, and `None` after the last one. A large row waits until the process
    /// has memory for it.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::error::Error::Malformed) for a body without rows,
    /// [`Error::Unreachable`](crate::error::Error::Unreachable) when it breaks off or the deadline passes, and
    /// [`Error::DeadlineExceeded`](crate::error::Error::DeadlineExceeded) when the wait for memory is too long.
    pub(super) async fn next(&mut self) -> Result<Option<Row<'_>>> {
        loop {
            if let Some(row) = self.reader.next_row().map_err(|_| self.response.malformed())? {
                self.response.deadline().run(self.arriving.reserve(row.len())).await?;
                return Ok(Some(self.arriving.complete(row)));
            }
            self.response.deadline().run(self.arriving.reserve(self.reader.arriving_bytes())).await?;
            match self.response.chunk().await? {
                Some(piece) => self.reader.push(piece),
                None => return Ok(None),
            }
        }
    }

    /// Returns the next row as `parse` reads it, if it has arrived as a whole with the rows before it. Otherwise
    /// [`Self::next`] has it. `parse` returns the length of the row, too.
    pub(super) fn next_parsed<T>(&mut self, parse: impl FnOnce(&[u8]) -> Option<(T, usize)>) -> Option<T> {
        self.reader.next_parsed(parse)
    }

    /// Returns the members of the body with each array of rows empty. The caller has read all rows before.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::error::Error::Malformed) when the body is not a complete object.
    pub(super) fn finish(self) -> Result<Members> {
        let malformed = self.response.malformed();
        self.reader.finish().map_err(|_| malformed)
    }
}
