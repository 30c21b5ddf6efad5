//! The memory of rows, which all tenants of a process share.

use std::{marker::PhantomData, ops::Deref, sync::Arc};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// The size up to which a row needs no place. Fifty tenants may hold such rows at once.
pub(super) const MAX_SMALL_ROW_BYTES: usize = 64 << 10;

/// The size up to which several rows are in memory at once. Of larger ones, one is.
const MAX_MEDIUM_ROW_BYTES: usize = 1 << 20;

/// The number of rows above the small size that are in memory at once. One that arrives slowly must not hold up all
/// others.
const MEDIUM_ROWS: usize = 4;

/// The places for rows that are not small. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct RowMemory {
    medium: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// A row, with its place in memory until it is dropped.
///
/// It borrows what it was read from. So no caller keeps a row while it asks for the next one, which may wait for a place.
#[derive(Debug)]
pub struct Row<'a> {
    bytes: Bytes,
    _places: Places,
    source: PhantomData<&'a mut ()>,
}

impl Deref for Row<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[derive(Debug, Default)]
struct Places {
    medium: Option<OwnedSemaphorePermit>,
    large: Option<OwnedSemaphorePermit>,
}

/// The places of a row that is still arriving.
#[derive(Debug)]
pub(super) struct ArrivingRow {
    memory: RowMemory,
    places: Places,
}

impl RowMemory {
    pub(super) fn new() -> Self {
        Self { medium: Arc::new(Semaphore::new(MEDIUM_ROWS)), large: Arc::new(Semaphore::new(1)) }
    }

    pub(super) fn arriving_row(&self) -> ArrivingRow {
        ArrivingRow { memory: self.clone(), places: Places::default() }
    }
}

impl ArrivingRow {
    /// Waits for the places that a row of this size needs. A row takes that of a large one after that of a medium one, and
    /// needs no further one, so no two rows wait for each other.
    pub(super) async fn reserve(&mut self, bytes_so_far: usize) -> Result<()> {
        let Places { medium, large } = &mut self.places;
        if bytes_so_far > MAX_SMALL_ROW_BYTES && medium.is_none() {
            *medium = Some(place(&self.memory.medium).await?);
        }
        if bytes_so_far > MAX_MEDIUM_ROW_BYTES && large.is_none() {
            *large = Some(place(&self.memory.large).await?);
        }
        Ok(())
    }

    /// Hands over a row that has arrived, with its places.
    pub(super) fn complete<'a>(&mut self, bytes: Bytes) -> Row<'a> {
        Row { bytes, _places: std::mem::take(&mut self.places), source: PhantomData }
    }
}

async fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    places.clone().acquire_owned().await.map_err(|error| Error::internal("the memory of rows is closed", error))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::{FutureExt, future::join_all};

    use super::*;

    /// A row that arrives, if there is a place for it now.
    fn arrive(memory: &RowMemory, bytes: usize) -> Option<Row<'static>> {
        let mut arriving = memory.arriving_row();
        arriving.reserve(bytes).now_or_never()?.unwrap();
        Some(arriving.complete(vec![0; bytes].into()))
    }

    #[test]
    fn few_medium_rows_and_one_large_row_have_a_place() {
        let memory = RowMemory::new();
        let mut medium: Vec<_> = (0..MEDIUM_ROWS).map(|_| arrive(&memory, MAX_MEDIUM_ROW_BYTES).unwrap()).collect();
        assert!(arrive(&memory, MAX_SMALL_ROW_BYTES + 1).is_none(), "a medium row waits");
        assert_eq!(arrive(&memory, MAX_SMALL_ROW_BYTES).unwrap().len(), MAX_SMALL_ROW_BYTES, "a small one does not");
        medium.pop();
        let large = arrive(&memory, MAX_MEDIUM_ROW_BYTES + 1).unwrap();
        medium.pop();
        assert!(arrive(&memory, MAX_MEDIUM_ROW_BYTES + 1).is_none(), "another large row waits");
        assert!(arrive(&memory, MAX_MEDIUM_ROW_BYTES).is_some(), "a medium one does not");
        drop(large);
        assert!(arrive(&memory, MAX_MEDIUM_ROW_BYTES + 1).is_some(), "dropped rows leave their places");
    }

    #[tokio::test]
    async fn places_of_a_row_are_not_those_of_the_next() {
        let memory = RowMemory::new();
        let mut growing = memory.arriving_row();
        growing.reserve(MAX_MEDIUM_ROW_BYTES + 1).await.unwrap();
        growing.reserve(MAX_MEDIUM_ROW_BYTES + 2).await.unwrap();
        assert_eq!(memory.medium.available_permits(), MEDIUM_ROWS - 1);
        let row = growing.complete(vec![0; 5].into());
        drop(growing);
        assert_eq!(memory.large.available_permits(), 0);
        drop(row);
        assert_eq!((memory.medium.available_permits(), memory.large.available_permits()), (MEDIUM_ROWS, 1));
    }

    #[tokio::test]
    async fn abandoned_list_leaves_its_places() {
        let memory = RowMemory::new();
        let mut growing = memory.arriving_row();
        growing.reserve(MAX_MEDIUM_ROW_BYTES + 1).await.unwrap();
        drop(growing);
        assert_eq!((memory.medium.available_permits(), memory.large.available_permits()), (MEDIUM_ROWS, 1));
    }

    /// Fifty lists of rows of all sizes, which arrive in pieces and wait for other things while they are held.
    #[tokio::test]
    async fn all_lists_end_and_few_rows_are_held_at_once() {
        let memory = RowMemory::new();
        let sizes = [5, MAX_SMALL_ROW_BYTES, MAX_SMALL_ROW_BYTES + 1, MAX_MEDIUM_ROW_BYTES, MAX_MEDIUM_ROW_BYTES + 1];
        let (held, most) = (Cell::new([0, 0]), Cell::new([0, 0]));
        let change = |bytes: usize, by: i32| {
            let [medium, large] = held.get();
            let is = |larger: bool| if larger { by } else { 0 };
            held.set([medium + is(bytes > MAX_SMALL_ROW_BYTES), large + is(bytes > MAX_MEDIUM_ROW_BYTES)]);
            most.set([most.get()[0].max(held.get()[0]), most.get()[1].max(held.get()[1])]);
        };
        let read = async |list: usize| {
            let mut arriving = memory.arriving_row();
            for row in 0..sizes.len() {
                let size = sizes[(list + row) % sizes.len()];
                for part in 1..=4 {
                    arriving.reserve(size * part / 4).await.unwrap();
                    tokio::task::yield_now().await;
                }
                let row = arriving.complete(vec![0; 1].into());
                change(size, 1);
                tokio::task::yield_now().await;
                change(size, -1);
                drop(row);
            }
            list
        };
        let ended = join_all((0..50).map(read)).await;
        assert_eq!(ended.len(), 50);
        let [medium, large] = most.get();
        assert!(medium <= 4 && large == 1, "{medium} and {large} rows were held at once");
    }
}
