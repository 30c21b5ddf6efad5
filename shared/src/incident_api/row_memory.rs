//! The memory of rows, which all tenants of a process share.

use std::{marker::PhantomData, ops::Deref, sync::Arc};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    error::{Error, Result},
    http::HttpClient,
};

/// The size up to which a row needs no place, in bytes. Fifty tenants may hold such rows at once.
pub(super) const MAX_SMALL_ROW_BYTES: usize = 64 << 10;

/// The sizes above which a row needs a place, in bytes, and how many such rows are in memory at once. A row that arrives
/// slowly must not hold up all others of its size; of the largest, one must be enough.
const PLACES: [(usize, usize); 3] = [(MAX_SMALL_ROW_BYTES, 4), (LARGE_ROW_BYTES, 2), (1 << 20, 1)];

/// The size above which a row has the connections closed, in bytes. One by which so much came keeps a buffer of up to 400 KB
/// for as long as it is open, and `reqwest` has no setting for it.
const LARGE_ROW_BYTES: usize = 256 << 10;

/// The places for rows that are not small. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct RowMemory(Arc<Memory>);

#[derive(Debug)]
struct Memory {
    /// In the order of [`PLACES`].
    places: [Arc<Semaphore>; PLACES.len()],
    http: HttpClient,
}

/// A row, with its places in memory until it is dropped.
///
/// It borrows what it was read from. So no caller keeps a row while it asks for the next one, which may wait for a place.
#[derive(Debug)]
pub struct Row<'a> {
    pub(super) bytes: Bytes,
    _places: Vec<OwnedSemaphorePermit>,
    source: PhantomData<&'a mut ()>,
}

impl Deref for Row<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The places of a row that is still arriving.
#[derive(Debug)]
pub(super) struct ArrivingRow {
    memory: RowMemory,
    /// In the order of [`PLACES`], those that the row has.
    places: Vec<OwnedSemaphorePermit>,
}

impl RowMemory {
    /// The memory of rows that arrive by this client.
    pub(super) fn new(http: HttpClient) -> Self {
        Self(Arc::new(Memory { places: PLACES.map(|(_, rows)| Arc::new(Semaphore::new(rows))), http }))
    }

    pub(super) fn arriving_row(&self) -> ArrivingRow {
        ArrivingRow { memory: self.clone(), places: Vec::new() }
    }
}

impl ArrivingRow {
    /// Waits for the places that a row of this size needs. It takes them in the order of their sizes, and each holder of the
    /// largest needs no further one, so no two rows wait for each other.
    pub(super) async fn reserve(&mut self, bytes_so_far: usize) -> Result<()> {
        for ((size, _), places) in PLACES.iter().zip(&self.memory.0.places).skip(self.places.len()) {
            if bytes_so_far <= *size {
                break;
            }
            let place = places.clone().acquire_owned().await;
            self.places.push(place.map_err(|error| Error::internal("the memory of rows is closed", error))?);
            if *size >= LARGE_ROW_BYTES {
                self.memory.0.http.close_connections();
            }
        }
        Ok(())
    }

    /// Hands over a row that has arrived, with its places.
    pub(super) fn complete<'a>(&mut self, bytes: Bytes) -> Row<'a> {
        Row { bytes, _places: std::mem::take(&mut self.places), source: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::{FutureExt, future::join_all};
    use url::Url;

    use super::*;

    /// A size of each kind, from one that needs no place to one that needs all.
    const SIZES: [usize; 4] = [MAX_SMALL_ROW_BYTES, LARGE_ROW_BYTES, 1 << 20, (1 << 20) + 1];

    fn row_memory() -> RowMemory {
        RowMemory::new(HttpClient::default())
    }

    /// A row that arrives, if there is a place for it now.
    fn arrive(memory: &RowMemory, bytes: usize) -> Option<Row<'static>> {
        let mut arriving = memory.arriving_row();
        arriving.reserve(bytes).now_or_never()?.unwrap();
        Some(arriving.complete(vec![0; bytes].into()))
    }

    fn free_places(memory: &RowMemory) -> [usize; 3] {
        memory.0.places.each_ref().map(|places| places.available_permits())
    }

    #[test]
    fn few_large_rows_have_a_place() {
        let memory = row_memory();
        let [small, larger, large, largest] = SIZES;
        let mut rows: Vec<_> = (0..4).map(|_| arrive(&memory, larger).unwrap()).collect();
        assert!(arrive(&memory, small + 1).is_none(), "a fifth row above the small size waits");
        assert_eq!(arrive(&memory, small).unwrap().len(), small, "a small one does not");
        rows.truncate(2);
        let one = arrive(&memory, largest).unwrap();
        assert!(arrive(&memory, largest).is_none(), "another one of the largest waits");
        let other = arrive(&memory, large).unwrap();
        assert_eq!(free_places(&memory), [0, 0, 0]);
        rows.clear();
        assert!(arrive(&memory, larger + 1).is_none(), "a third large row waits");
        assert!(arrive(&memory, larger).is_some(), "a smaller one does not");
        drop((one, other));
        assert!(arrive(&memory, largest).is_some(), "dropped rows leave their places");
    }

    #[test]
    fn connections_are_closed_for_a_large_row() {
        let memory = row_memory();
        let url = Url::parse("http://127.0.0.1/").unwrap();
        for (bytes, are_closed) in [(SIZES[0], false), (SIZES[1], false), (SIZES[1] + 1, true), (SIZES[3], true)] {
            let _ = memory.0.http.get(url.clone());
            let row = arrive(&memory, bytes).unwrap();
            assert_eq!(memory.0.http.has_connections(), !are_closed, "for {} bytes", row.len());
        }
    }

    #[tokio::test]
    async fn places_of_a_row_are_not_those_of_the_next() {
        let memory = row_memory();
        let mut growing = memory.arriving_row();
        growing.reserve(SIZES[3]).await.unwrap();
        growing.reserve(SIZES[3] + 1).await.unwrap();
        assert_eq!(free_places(&memory), [3, 1, 0]);
        let row = growing.complete(vec![0; 5].into());
        drop(growing);
        assert_eq!(free_places(&memory), [3, 1, 0]);
        drop(row);
        assert_eq!(free_places(&memory), [4, 2, 1]);
    }

    #[tokio::test]
    async fn abandoned_list_leaves_its_places() {
        let memory = row_memory();
        let mut growing = memory.arriving_row();
        growing.reserve(SIZES[3]).await.unwrap();
        drop(growing);
        assert_eq!(free_places(&memory), [4, 2, 1]);
    }

    /// Fifty lists of rows of all sizes, which arrive in pieces and wait for other things while they are held.
    #[tokio::test]
    async fn all_lists_end_and_few_rows_are_held_at_once() {
        let memory = row_memory();
        let (held, most) = (Cell::new([0; 3]), Cell::new([0; 3]));
        let change = |bytes: usize, by: i32| {
            let mut now = held.get();
            for (held, (size, _)) in now.iter_mut().zip(PLACES) {
                *held += if bytes > size { by } else { 0 };
            }
            held.set(now);
            most.set([0, 1, 2].map(|kind| most.get()[kind].max(now[kind])));
        };
        let read = async |list: usize| {
            let mut arriving = memory.arriving_row();
            for row in 0..SIZES.len() {
                let size = SIZES[(list + row) % SIZES.len()];
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
        assert_eq!(most.get(), [4, 2, 1], "rows of each size were held at once");
    }
}
