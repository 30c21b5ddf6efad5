//! The pages of one list, joined with `$skip`. Pure rules.
//!
//! Each page after the first begins with the last row of the page before it. If that row still stands at its place, as
//! many rows stand before it as before, so no row has slipped over the page's edge, whatever the order of the rows is. A
//! page that does not join in this way, or that repeats a row, proves nothing: the window is split instead.

use jiff::Timestamp;

use shared::{
    incident_api::query::MAX_SKIP,
    registry::position::{ListPosition, PageSizes, RowTimes},
};

use super::page_read::PageRead;

/// The number of rows that a list may have to be read page by page. `$skip` reaches little further.
pub(super) const MAX_LIST_ROWS: u32 = 450;

/// The next step after a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageStep {
    /// The list is read to its end.
    Complete,
    /// The list goes on, or may do so.
    NextPage,
    /// `$skip` does not reach the rest.
    TooLong,
    /// The rows have no fixed order, or move faster than they are read.
    Unordered,
}

/// What a page was asked for.
#[derive(Clone, Copy)]
pub(crate) struct AskedPage {
    /// The end of the window.
    pub(crate) to: Option<Timestamp>,
    /// The most rows that the page may have.
    pub(crate) top: u32,
    /// The time of the response.
    pub(crate) shown_at: Timestamp,
    /// A page that looks like the last one is not believed.
    pub(crate) confirms_end: bool,
}

/// The value of `$skip` for the next page.
pub(crate) fn skip_of(list: &ListPosition) -> u32 {
    list.last_row + u32::from(list.is_past_last_row)
}

/// Notes a page of a list: the first one where `list` is `None`. Returns the next step and the number of new rows.
///
/// What was read of a complete list is all of it, whatever its order: between its first row and its last one no place is
/// left out, and each place had another row.
pub(crate) fn note_page(
    list: &mut Option<ListPosition>,
    page: &PageRead,
    asked: AskedPage,
    sizes: &mut PageSizes,
) -> (PageStep, u32) {
    let looks_complete = !page.more && page.rows < asked.top;
    if page.more || page.rows >= asked.top {
        sizes.confirmed = sizes.confirmed.max(page.rows);
    }
    let is_believed = looks_complete && (page.rows == 0 || !asked.confirms_end && sizes.believes(page.rows));
    let Some(known) = list else {
        if is_believed {
            return (PageStep::Complete, page.rows);
        }
        *list = Some(after_first_page(page, asked, looks_complete));
        return (PageStep::NextPage, page.rows);
    };
    known.shown.extend(page.times());
    if known.is_past_last_row {
        // A page size of one leaves no row to join pages by.
        let step = if page.rows == 0 { PageStep::Complete } else { PageStep::Unordered };
        return (step, page.rows);
    }
    if known.looked_complete && !page.more && is_last_of(known, &page.keys) {
        // The rows have another order now, but are as many as the first page showed, so that page had them all.
        sizes.confirmed = sizes.confirmed.max(known.rows);
        return (PageStep::Complete, 0);
    }
    let kept_their_places = if known.steps_back { rows_back(known) + 1 } else { 1 };
    let is_sound = |joined: usize| {
        // Rows came before them. If they are no newer ones, they have changed places with rows that were not read.
        let hides_none = joined <= kept_their_places || newest_come_first(page, joined);
        hides_none && known.is_new(&page.keys[joined..])
    };
    let joined = join(&known.last_page, &page.keys, known.steps_back).filter(|joined| is_sound(*joined));
    let Some(joined) = joined else {
        return (after_page_apart(known, page, kept_their_places, sizes), 0);
    };
    known.steps_back = false;
    known.last_row = page.first_row.unwrap_or(known.last_row) + page.rows.saturating_sub(1);
    let new = &page.keys[joined..];
    if new.is_empty() {
        return (after_last_row(known, page, sizes), 0);
    }
    if known.looked_complete {
        sizes.note_silent_cap(known.last_page.len());
    }
    known.looked_complete = looks_complete;
    let is_last = is_believed && sizes.believes(page.rows);
    (after_new_rows(known, page, new, is_last), u32::try_from(new.len()).unwrap_or(u32::MAX))
}

fn after_first_page(page: &PageRead, asked: AskedPage, looked_complete: bool) -> ListPosition {
    ListPosition {
        to: asked.to,
        shown_at: asked.shown_at,
        last_row: page.first_row.unwrap_or(0) + page.rows.saturating_sub(1),
        rows: page.rows,
        last_page: page.keys.clone(),
        steps_back: false,
        is_past_last_row: false,
        looked_complete,
        seen: page.keys.iter().cloned().collect(),
        shown: page.times().collect(),
    }
}

/// The number of rows by which a page steps back that was to begin with the last row of the page before it and does not.
fn rows_back(known: &ListPosition) -> usize {
    (known.last_page.len() / 2).max(1)
}

/// The step after a page that does not join the page before it.
fn after_page_apart(
    known: &mut ListPosition,
    page: &PageRead,
    kept_their_places: usize,
    sizes: &mut PageSizes,
) -> PageStep {
    if std::mem::replace(&mut known.steps_back, true) {
        let is_longer = usize::try_from(page.rows).is_ok_and(|rows| rows > kept_their_places);
        if known.looked_complete && is_longer {
            sizes.note_silent_cap(known.last_page.len());
        }
        return PageStep::Unordered;
    }
    // Rows before it have left the list. The page that begins a little earlier holds them again.
    known.last_row = known.last_row.saturating_sub(u32::try_from(rows_back(known)).unwrap_or(u32::MAX));
    PageStep::NextPage
}

/// The step after a page that joins the one before it and shows nothing else.
fn after_last_row(known: &mut ListPosition, page: &PageRead, sizes: &mut PageSizes) -> PageStep {
    let size_before = u32::try_from(known.last_page.len()).unwrap_or(u32::MAX);
    if page.more || page.rows >= size_before {
        known.is_past_last_row = true;
        return PageStep::NextPage;
    }
    sizes.confirmed = sizes.confirmed.max(size_before);
    // A larger page that is not cut shows that the cap was a passing one.
    sizes.silent_cap = sizes.silent_cap.filter(|cap| size_before <= *cap);
    PageStep::Complete
}

/// The step after a page that joins the one before it and shows the rows `new`.
fn after_new_rows(known: &mut ListPosition, page: &PageRead, new: &[String], is_last: bool) -> PageStep {
    known.rows += u32::try_from(new.len()).unwrap_or(u32::MAX);
    known.seen.extend(new.iter().cloned());
    known.last_page.clone_from(&page.keys);
    if is_last {
        PageStep::Complete
    } else if known.last_row > MAX_SKIP {
        PageStep::TooLong
    } else {
        PageStep::NextPage
    }
}

/// Returns true if `page` is one row of a list whose first page is known, asked for at the place of the last row of that.
fn is_last_of(list: &ListPosition, page: &[String]) -> bool {
    list.is_first_page()
        && list.rows > 1
        && list.last_row + 1 == list.rows
        && matches!(page, [row] if list.last_page.contains(row))
}

/// The number of rows at the beginning of `page` that are the end of `before`, in the same order. `None`: the pages do not
/// join. A page that was asked for from the last row on begins with it. One from further back repeats several rows.
fn join(before: &[String], page: &[String], from_further_back: bool) -> Option<usize> {
    let counts = if from_further_back { 2..=before.len().min(page.len()) } else { 1..=page.len().min(1) };
    counts.rev().find(|count| before.ends_with(&page[..*count]))
}

/// Returns true if the first rows of a page, so many, show that the newest come first in its list. Rows of one time may have
/// any order, so they show nothing.
fn newest_come_first(page: &PageRead, rows: usize) -> bool {
    let falls = |time: fn(RowTimes) -> Option<Timestamp>| {
        let times: Vec<Option<Timestamp>> = page.times().take(rows).map(time).collect();
        times.is_sorted_by(|left, right| left >= right) && times.first() > times.last()
    };
    falls(|row| Some(row.updated)) || falls(|row| row.created)
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash, Hasher};

    use proptest::prelude::*;

    use super::*;
    use crate::sync::page_read::RowShown;

    const TOP: u32 = 5;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn hash_of(value: impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        hasher.finish()
    }

    /// A page of a server that has `rows` and sends at most `size` of them.
    fn page(rows: &[u32], skip: u32, size: u32, has_links: bool) -> PageRead {
        let skip = skip as usize;
        let keys: Vec<String> = rows.iter().skip(skip).take(size as usize).map(u32::to_string).collect();
        let more = has_links && skip + keys.len() < rows.len();
        PageRead { rows: u32::try_from(keys.len()).unwrap(), keys, more, ..PageRead::default() }
    }

    fn asked() -> AskedPage {
        AskedPage { to: None, top: TOP, shown_at: at(0), confirms_end: false }
    }

    /// Reads a list from a server whose rows change before each request. Returns what was seen, if it was complete.
    fn read(
        mut rows: Vec<u32>,
        size: u32,
        has_links: bool,
        mut change: impl FnMut(usize, &mut Vec<u32>),
    ) -> Option<Vec<u32>> {
        let (mut list, mut sizes, mut seen) = (None, PageSizes::default(), Vec::new());
        for request in 0..100 {
            change(request, &mut rows);
            let page = page(&rows, list.as_ref().map_or(0, skip_of), size, has_links);
            seen.extend(page.keys.iter().map(|key| key.parse::<u32>().unwrap()));
            match note_page(&mut list, &page, asked(), &mut sizes).0 {
                PageStep::Complete => {
                    seen.sort_unstable();
                    seen.dedup();
                    return Some(seen);
                }
                PageStep::NextPage => {}
                PageStep::TooLong | PageStep::Unordered => return None,
            }
        }
        panic!("the list has no end");
    }

    #[test]
    fn list_is_read_to_its_end_with_and_without_links() {
        for count in 0..40 {
            for (size, has_links) in [(TOP, true), (TOP, false), (3, true), (3, false), (2, true)] {
                let rows: Vec<u32> = (0..count).collect();
                assert_eq!(read(rows.clone(), size, has_links, |_, _| {}), Some(rows), "{count} {size} {has_links}");
            }
        }
    }

    #[test]
    fn full_page_with_a_link_to_nothing_is_complete() {
        let (mut list, mut sizes) = (None, PageSizes::default());
        let mut first = page(&[1, 2, 3, 4, 5], 0, TOP, false);
        first.more = true;
        assert_eq!(note_page(&mut list, &first, asked(), &mut sizes), (PageStep::NextPage, 5));
        let mut end = page(&[1, 2, 3, 4, 5], 4, TOP, false);
        end.more = true;
        assert_eq!(note_page(&mut list, &end, asked(), &mut sizes), (PageStep::NextPage, 0));
        assert_eq!(skip_of(list.as_ref().unwrap()), 5);
        assert_eq!(note_page(&mut list, &PageRead::default(), asked(), &mut sizes), (PageStep::Complete, 0));
    }

    #[test]
    fn row_that_came_first_is_left_to_a_later_list_only_where_it_is_newer() {
        let newest_first: fn(u32) -> Timestamp = |row| at(-i64::from(row));
        for (updated, step) in [(newest_first, PageStep::NextPage), (|_| at(0), PageStep::Unordered)] {
            let row = |row: &u32| RowShown { last_updated: updated(*row), created: None, incident_id: row.to_string() };
            let (mut list, mut sizes) = (None, PageSizes::default());
            let mut next = |rows: &[u32]| {
                let shown = PageRead { rows_shown: rows.iter().map(row).collect(), ..page(rows, 0, TOP, false) };
                note_page(&mut list, &shown, asked(), &mut sizes).0
            };
            assert_eq!(next(&[1, 2, 3, 4, 5]), PageStep::NextPage);
            // One row came before them. The page from further back begins with the second one.
            assert_eq!(next(&[4, 5, 6, 7]), PageStep::NextPage);
            assert_eq!(next(&[2, 3, 4, 5, 6]), step);
        }
    }

    #[test]
    fn row_of_an_earlier_page_is_no_new_one_after_a_resumption() {
        let resumed = |list: &ListPosition| serde_json::from_str(&serde_json::to_string(list).unwrap()).unwrap();
        let (mut list, mut sizes) = (None, PageSizes::default());
        for rows in [[1, 2, 3, 4, 5], [5, 6, 7, 8, 9]] {
            assert_eq!(note_page(&mut list, &page(&rows, 0, TOP, false), asked(), &mut sizes).0, PageStep::NextPage);
            list = list.as_ref().map(resumed);
        }
        let repeats = page(&[9, 1, 2], 0, TOP, false);
        assert_eq!(note_page(&mut list, &repeats, asked(), &mut sizes), (PageStep::NextPage, 0));
        assert!(list.unwrap().steps_back, "the pages do not join");
    }

    #[test]
    fn page_without_link_is_believed_up_to_what_was_confirmed() {
        let mut sizes = PageSizes::default();
        let three = page(&[1, 2, 3], 0, TOP, false);
        let mut list = None;
        assert_eq!(note_page(&mut list, &three, asked(), &mut sizes).0, PageStep::NextPage);
        assert_eq!(note_page(&mut list, &page(&[3], 0, TOP, false), asked(), &mut sizes).0, PageStep::Complete);
        assert_eq!(note_page(&mut None, &three, asked(), &mut sizes).0, PageStep::Complete);
        let confirming = AskedPage { confirms_end: true, ..asked() };
        assert_eq!(note_page(&mut None, &three, confirming, &mut sizes).0, PageStep::NextPage);
        // The next page shows rows behind a page that looked like the last one.
        let four = page(&[1, 2, 3, 4], 0, TOP, false);
        let mut list = None;
        assert_eq!(note_page(&mut list, &four, asked(), &mut sizes).0, PageStep::NextPage);
        assert_eq!(note_page(&mut list, &page(&[4, 6], 0, TOP, false), asked(), &mut sizes).0, PageStep::Complete);
        assert_eq!(sizes.silent_cap, Some(4));
        assert!(sizes.believes(3) && !sizes.believes(4));
    }

    proptest! {
        // Rows that stay are seen, whatever leaves, comes or moves between two requests: a row that moves leaves its place
        // and comes to the beginning or to the end. A list that moves too fast is not complete.
        #[test]
        fn row_that_stays_is_never_lost(
            count in 0_u32..60,
            size in 2_u32..=TOP,
            has_links in any::<bool>(),
            changes in prop::collection::vec((0_usize..12, 0_usize..60, 0_u8..4), 0..6),
        ) {
            let rows: Vec<u32> = (0..count).collect();
            let mut moved = Vec::new();
            let mut fresh = 1_000;
            let seen = read(rows.clone(), size, has_links, |request, rows| {
                let mut busy = false;
                for (_, place, kind) in changes.iter().filter(|(before, _, _)| *before == request) {
                    // Two changes that cancel out between two requests look like none.
                    if rows.is_empty() || std::mem::replace(&mut busy, true) { continue }
                    let place = place % rows.len();
                    match kind {
                        0 => moved.push(rows.remove(place)),
                        1 => { let row = rows.remove(place); moved.push(row); rows.insert(0, row); }
                        2 => { let row = rows.remove(place); moved.push(row); rows.push(row); }
                        _ => { fresh += 1; rows.insert(place, fresh); }
                    }
                }
            });
            if let Some(seen) = seen {
                for row in rows.iter().filter(|row| !moved.contains(row)) {
                    prop_assert!(seen.contains(row), "{row} of {count}: {seen:?}");
                }
            }
        }

        #[test]
        fn rows_in_a_new_order_at_each_request_are_not_complete_by_chance(count in 30_u32..60, seed in any::<u64>()) {
            let rows: Vec<u32> = (0..count).collect();
            let seen = read(rows.clone(), TOP, true, |request, rows| {
                rows.sort_by_key(|row| hash_of((seed, request, *row)));
            });
            prop_assert!(seen.is_none_or(|seen| seen == rows));
        }

        // As from a server that joins the lists of its parts, and begins with another part each time.
        #[test]
        fn rows_that_move_round_are_not_complete_by_chance(count in 5_u32..60, turns in prop::collection::vec(0_usize..60, 1..9)) {
            let rows: Vec<u32> = (0..count).collect();
            let seen = read(rows.clone(), TOP, true, |request, rows| {
                let turn = turns.get(request).copied().unwrap_or(0) % rows.len();
                rows.rotate_left(turn);
            });
            prop_assert!(seen.is_none_or(|seen| seen == rows));
        }
    }
}
