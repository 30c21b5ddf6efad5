//! The memory of large rows, which all tenants of a process share.

use std::{ops::Deref, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::odata::MAX_ROW_BYTES;
use crate::error::{Error, Result};

/// The size up to which a row needs no share. Fifty tenants may hold such rows at once.
const MAX_SMALL_ROW_BYTES: usize = 1 << 20;

/// The memory for large rows. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct RowMemory(Arc<Semaphore>);

/// A row, with its share of the memory until it is dropped.
#[derive(Debug)]
pub struct Row {
    bytes: Vec<u8>,
    _share: Option<OwnedSemaphorePermit>,
}

impl Deref for Row {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The share of a row that is still arriving.
#[derive(Debug)]
pub(super) struct ArrivingRow {
    memory: RowMemory,
    share: Option<OwnedSemaphorePermit>,
}

impl RowMemory {
    /// Memory for one row of the largest size, or for several smaller ones.
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_ROW_BYTES)))
    }

    pub(super) fn arriving_row(&self) -> ArrivingRow {
        ArrivingRow { memory: self.clone(), share: None }
    }
}

impl ArrivingRow {
    /// Waits for a share if the row is large by now. Its size is not known yet, so that it takes all of the memory. Two rows
    /// that grow could otherwise wait for each other.
    pub(super) async fn reserve(&mut self, bytes_so_far: usize) -> Result<()> {
        if bytes_so_far > MAX_SMALL_ROW_BYTES && self.share.is_none() {
            let all = u32::try_from(MAX_ROW_BYTES).unwrap_or(u32::MAX);
            let share = self.memory.0.clone().acquire_many_owned(all).await;
            self.share = Some(share.map_err(|error| Error::internal("the memory of rows is closed", error))?);
        }
        Ok(())
    }

    /// Hands a row that has arrived over. It keeps as much of the memory as it needs.
    pub(super) fn complete(&mut self, bytes: Vec<u8>) -> Row {
        let is_large = bytes.len() > MAX_SMALL_ROW_BYTES;
        let mut share = if is_large { self.share.take() } else { None };
        let share = share.as_mut().and_then(|all| all.split(bytes.len().min(all.num_permits())));
        Row { bytes, _share: share }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// A row that arrives, if there is memory for it now.
    fn arrive(memory: &RowMemory, bytes: usize) -> Option<Row> {
        let mut arriving = memory.arriving_row();
        arriving.reserve(bytes).now_or_never()?.unwrap();
        Some(arriving.complete(vec![0; bytes]))
    }

    #[test]
    fn large_rows_share_the_memory_of_one() {
        let memory = RowMemory::new();
        let largest = arrive(&memory, MAX_ROW_BYTES).unwrap();
        assert!(arrive(&memory, MAX_SMALL_ROW_BYTES + 1).is_none(), "a large row waits");
        assert!(arrive(&memory, MAX_SMALL_ROW_BYTES).is_some(), "a small one does not");
        assert_eq!(largest.len(), MAX_ROW_BYTES);
        drop(largest);
        assert!(arrive(&memory, MAX_ROW_BYTES).is_some(), "dropped rows give their memory back");
    }

    #[tokio::test]
    async fn row_takes_all_memory_while_it_grows_and_then_its_size() {
        let memory = RowMemory::new();
        let mut growing = memory.arriving_row();
        growing.reserve(MAX_SMALL_ROW_BYTES + 1).await.unwrap();
        growing.reserve(MAX_SMALL_ROW_BYTES + 2).await.unwrap();
        assert!(arrive(&memory, MAX_SMALL_ROW_BYTES + 1).is_none());
        let row = growing.complete(vec![0; 10 << 20]);
        assert_eq!(memory.0.available_permits(), MAX_ROW_BYTES - row.len());
        // The next row of the same list has no share yet.
        assert_eq!(growing.complete(vec![0; 5]).len(), 5);
        drop(row);
        assert_eq!(memory.0.available_permits(), MAX_ROW_BYTES);
    }

    #[tokio::test]
    async fn list_that_is_abandoned_gives_its_memory_back() {
        let memory = RowMemory::new();
        let mut growing = memory.arriving_row();
        growing.reserve(MAX_SMALL_ROW_BYTES + 1).await.unwrap();
        drop(growing);
        assert_eq!(memory.0.available_permits(), MAX_ROW_BYTES);
    }
}
