//! The position of a pass over a span of last update: what is still to read, and how far the next window is read.
//!
//! It is one value, stored with the cursor that it belongs to, so that a pass goes on call by call.

use std::collections::{BTreeSet, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::incident::span::Span;

/// The position of a pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Everything last updated before this time was read.
    pub at: Timestamp,
    /// The ends of the next windows, the nearest one last. A window that was too full is never asked for again, because it
    /// is split here.
    #[serde(default)]
    pub ends: Vec<Timestamp>,
    /// The place inside the second at `at`, if it is split by time of creation.
    #[serde(default)]
    pub second: Option<SecondPosition>,
    /// What is known of the rows in a second at `at` or later that has more of them than one list shows, in no order.
    #[serde(default)]
    pub crowded: Option<CrowdedSecond>,
    /// The place inside the list of the next window, if it has several pages.
    #[serde(default)]
    pub list: Option<ListPosition>,
    /// Pages did not join, so that each window has to fit into one response.
    #[serde(default)]
    pub is_unordered: bool,
    /// The page that is asked for next, where pages without rows came before it.
    #[serde(default)]
    pub after_empty_pages: Option<PageAfterEmpty>,
    /// The number of times in a row that the next window has failed and no call was left to search for the reason.
    #[serde(default)]
    pub failures_without_search: u32,
}

/// The page that the next link of a page without rows has named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageAfterEmpty {
    /// The end of the list's window.
    pub to: Option<Timestamp>,
    /// The page.
    pub page: NextPage,
    /// The number of pages without rows in a row.
    pub empty_pages: u32,
}

/// The page that a next link names. Of a link only this is used, and only if the link leads to the list itself: it may
/// lead anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextPage {
    /// The page after this many rows (`$skip`).
    Skip(u32),
    /// The page of an opaque token (`$skiptoken`).
    SkipToken(String),
}

/// The place inside a second of last update that is split by time of creation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecondPosition {
    /// The ranges of creation that are still to read, the next one last.
    #[serde(default)]
    pub parts: Vec<Span>,
    /// The readings of the next range, if no split tells its rows apart.
    #[serde(default)]
    pub readings: Option<Readings>,
}

/// What is known of the rows in a second that are too many for one list and have no order. Windows are split by it; that
/// all of a part was read, its own list shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CrowdedSecond {
    /// The beginning of the second.
    pub at: Timestamp,
    /// The number of rows in a full page.
    pub page: u32,
    /// The times of creation of rows from all over the second, the earliest first.
    pub sample: Vec<Timestamp>,
    /// The number of pages that were asked for to get the sample.
    pub looks: u32,
    /// The number of rows in the parts that were read, or counted.
    #[serde(default)]
    pub rows: u32,
    /// The number of those rows of the sample that lie in these parts.
    #[serde(default)]
    pub sampled: u32,
    /// Whether the next part, or all of the second, fits into one list; `None`: not known.
    #[serde(default)]
    pub fits: Option<bool>,
}

/// The readings of rows that no split tells apart: page by page, until as many rows were seen as the list has places.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Readings {
    /// Microsoft's time at the first page. What was updated later may be missing.
    pub shown_at: Timestamp,
    /// The rows are a part of their second by time of creation, not all of it.
    pub is_part: bool,
    /// The number of readings that came to their end.
    pub complete: u32,
    /// Those of them since a row was seen for the first time.
    #[serde(default)]
    pub fruitless: u32,
    /// The number of places in the list at the end of the last one.
    #[serde(default)]
    pub places: Option<u32>,
    /// The rows of all readings with as many places, by identifier.
    #[serde(default)]
    pub seen: BTreeSet<String>,
    /// The number of places that the present one has passed.
    #[serde(default)]
    pub skip: u32,
}

/// The place inside a list of several pages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListPosition {
    /// The end of the list's window.
    pub to: Option<Timestamp>,
    /// Microsoft's time at the first page. What was updated later may be missing.
    pub shown_at: Timestamp,
    /// The number of rows before the last one that was read, in Microsoft's order.
    pub last_row: u32,
    /// The number of different rows so far.
    #[serde(default)]
    pub rows: u32,
    /// The keys of the rows of the last page. The next page has to begin with the end of it.
    pub last_page: Vec<String>,
    /// The last page did not join the one before it, and is asked for again from further back.
    #[serde(default)]
    pub steps_back: bool,
    /// The last page brought nothing new and yet has a next link. The next one begins after its last row.
    #[serde(default)]
    pub is_past_last_row: bool,
    /// The last page had no next link and fewer rows than asked for. The next one shows whether that was the end.
    #[serde(default)]
    pub looked_complete: bool,
    /// The keys of all rows so far. A page that repeats one of them proves nothing, in a later invocation, too.
    #[serde(default)]
    pub seen: HashSet<String>,
    /// The times of the rows that this invocation has read of the list.
    #[serde(skip)]
    pub shown: Vec<RowTimes>,
}

/// The times of a row. Windows are split by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowTimes {
    /// The time of last update.
    pub updated: Timestamp,
    /// The time of creation, where it is known.
    pub created: Option<Timestamp>,
}

/// The sizes of pages that an API has shown for a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageSizes {
    /// The largest page of which the API has shown that it is not cut.
    #[serde(default)]
    pub confirmed: u32,
    /// The smallest page that was cut although it had no next link.
    #[serde(default)]
    pub silent_cap: Option<u32>,
}

impl SecondPosition {
    /// All times of creation.
    pub const WHOLE: Span = Span { from: Timestamp::UNIX_EPOCH, to: None };

    /// The range that is read next.
    pub fn part(&self) -> Span {
        self.parts.last().copied().unwrap_or(Self::WHOLE)
    }

    /// The position at the beginning of a second that is not split yet.
    pub fn all_of_it() -> Self {
        Self { parts: vec![Self::WHOLE], readings: None }
    }
}

impl Readings {
    /// The beginning of the first reading.
    pub fn from_beginning(shown_at: Timestamp, is_part: bool) -> Self {
        Self { shown_at, is_part, complete: 0, fruitless: 0, places: None, seen: BTreeSet::new(), skip: 0 }
    }
}

impl PageSizes {
    /// Returns true if a page of `rows` rows without a next link is the end of its list, as far as this API is known.
    pub fn believes(&self, rows: u32) -> bool {
        rows <= self.confirmed && self.silent_cap.is_none_or(|cap| rows < cap)
    }

    /// Notes that a page of `rows` rows was cut although it had no next link.
    pub fn note_silent_cap(&mut self, rows: usize) {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        self.silent_cap = Some(self.silent_cap.map_or(rows, |cap| cap.min(rows)));
    }
}

impl ListPosition {
    /// Returns true if `last_page` is the whole list so far.
    pub fn is_first_page(&self) -> bool {
        self.last_page.len() == self.rows as usize
    }

    /// The times of the rows of the last page, where this invocation has read them all.
    pub fn last_page_shown(&self) -> &[RowTimes] {
        self.shown.len().checked_sub(self.last_page.len()).map_or(&[], |before| &self.shown[before..])
    }

    /// Returns true if none of these rows was seen before.
    pub fn is_new(&self, keys: &[String]) -> bool {
        keys.iter().all(|key| !self.seen.contains(key) && !self.last_page.contains(key))
    }
}

impl Position {
    /// The position at the beginning of a span.
    pub fn at(at: Timestamp) -> Self {
        Self {
            at,
            ends: Vec::new(),
            second: None,
            crowded: None,
            list: None,
            is_unordered: false,
            after_empty_pages: None,
            failures_without_search: 0,
        }
    }

    /// Moves the position to a later time, with the ends of windows after it.
    pub fn move_to(&mut self, at: Timestamp) {
        (self.at, self.second, self.list) = (at, None, None);
        self.failures_without_search = 0;
        self.crowded = self.crowded.take().filter(|crowded| crowded.at >= at);
        self.ends.retain(|end| *end > at);
    }
}
