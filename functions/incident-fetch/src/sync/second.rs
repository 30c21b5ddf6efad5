//! Seconds with more rows than one list shows. They are split by time of creation. Pure rules.

use jiff::{SignedDuration, Timestamp};

use shared::{
    incident::span::Span,
    registry::position::{Position, RowTimes, SecondPosition},
};

use super::window::{floor, middle, order_of};

/// Gives a second a window of its own, between the parts of the next window before and after it.
pub(super) fn isolate_second(position: &mut Position, window: Span, second: Timestamp) {
    position.list = None;
    let ends = [second + SignedDuration::from_secs(1), second];
    position.ends.extend(ends.into_iter().filter(|end| *end > window.from && window.contains(*end)));
}

/// The second that most of the shown rows share.
pub(super) fn crowded_second(shown: &[RowTimes]) -> Option<Timestamp> {
    let second = floor(middle(shown.iter().map(|row| row.updated).collect())?);
    let rows = shown.iter().filter(|row| floor(row.updated) == second).count();
    (rows > 1 && rows * 2 > shown.len()).then_some(second)
}

/// The second that most rows of a list's last page share, which has `page` rows, and not those of the page before it.
pub(super) fn begins_to_crowd(shown: &[RowTimes], page: usize) -> Option<Timestamp> {
    let (before, last) = shown.split_at(shown.len().checked_sub(page)?);
    let before = &before[before.len().saturating_sub(page)..];
    crowded_second(last).filter(|second| !before.is_empty() && crowded_second(before) != Some(*second))
}

/// Returns true if rows come in the order of their creation, which all of them have to have.
pub(super) fn come_in_order_of_creation<'a>(rows: impl IntoIterator<Item = &'a RowTimes>) -> bool {
    seconds_of_creation(rows).is_some_and(|created| order_of(&created).is_some())
}

/// The seconds in which rows were created; `None` if one has no time of creation.
fn seconds_of_creation<'a>(rows: impl IntoIterator<Item = &'a RowTimes>) -> Option<Vec<Timestamp>> {
    rows.into_iter().map(|row| row.created.map(floor)).collect()
}

/// Ends the list of a second, or of a part of it, before its last row, so that the rows before that are all of one part and
/// the rest is another one. The list goes on with that part, whose next page shows that it is complete. `shown` is the list's
/// last page. Returns false if it has no order by time of creation.
pub(super) fn end_list_of_second(position: &mut Position, shown: &[RowTimes]) -> bool {
    let Some(created) = seconds_of_creation(shown) else { return false };
    let (Some(list), Some(last_time)) = (&mut position.list, created.last().copied()) else { return false };
    let Some(newest_first) = order_of(&created) else { return false };
    let at = if newest_first { last_time + SignedDuration::from_secs(1) } else { last_time };
    let part = position.second.as_ref().map_or(SecondPosition::WHOLE, SecondPosition::part);
    let ended = created.iter().filter(|time| **time == last_time).count();
    if shown.len() != list.last_page.len() || at <= part.from || !part.contains(at) {
        return false;
    }
    for key in list.last_page.drain(shown.len() - ended..) {
        list.seen.remove(&key);
    }
    let ended = u32::try_from(ended).unwrap_or(u32::MAX);
    (list.last_row, list.rows) = (list.last_row.saturating_sub(ended), list.rows.saturating_sub(ended));
    let (older, newer) = (Span { to: Some(at), ..part }, Span { from: at, ..part });
    let second = position.second.get_or_insert_with(SecondPosition::all_of_it);
    second.parts.pop();
    second.parts.extend(if newest_first { [older, newer] } else { [newer, older] });
    true
}

/// Splits the second at the position, or the next part of it, by the times of creation that its list showed so far: at
/// `preferred` where that is possible. Returns false if no split tells its rows apart.
pub(super) fn split_second(position: &mut Position, shown: &[Option<Timestamp>], preferred: Option<Timestamp>) -> bool {
    position.list = None;
    if let Some(crowded) = &mut position.crowded {
        crowded.fits = None;
    }
    let second = position.second.get_or_insert_with(SecondPosition::all_of_it);
    let Span { from, to } = second.part();
    let is_inside = |time: &Timestamp| *time >= from && to.is_none_or(|to| *time < to);
    let mut seconds: Vec<Timestamp> = shown.iter().flatten().copied().map(floor).filter(is_inside).collect();
    seconds.sort_unstable();
    let (Some(first), Some(last)) = (seconds.first(), seconds.last()) else { return false };
    let after_first = *first + SignedDuration::from_secs(1);
    let preferred = preferred.map(floor).filter(|time| is_inside(time) && time > first);
    let split = match preferred.unwrap_or(seconds[seconds.len() / 2]) {
        inside if inside > *first => inside,
        _ if last > first => *last,
        // All rows of the response share one second. Others may not: that second is read alone, and the time around it.
        _ if *first > from => *first,
        _ if to.is_none_or(|to| after_first < to) => after_first,
        _ => return false,
    };
    second.parts.pop();
    second.parts.extend([Span { from: split, to }, Span { from, to: Some(split) }]);
    true
}

#[cfg(test)]
mod tests {
    use shared::registry::position::ListPosition;

    use super::*;
    use crate::sync::window::{
        go_past, next_window,
        tests::{at, position, row_at, span},
    };

    #[test]
    fn second_is_split_by_creation_until_one_second_is_left() {
        let mut position = position(0, &[]);
        let shown = [Some(at(-10)), Some(at(-5)), Some(at(-5)), None];
        assert!(split_second(&mut position, &shown, None));
        let window = |position: &mut Position| next_window(position, None, at(100), &[]).unwrap();
        let first = window(&mut position);
        assert_eq!(first.created, Some(Span { from: Timestamp::UNIX_EPOCH, to: Some(at(-5)) }));
        assert!(!go_past(&mut position, first));
        let rest = window(&mut position);
        assert_eq!(rest.created, Some(span(-5, None)));
        assert!(split_second(&mut position, &shown, None), "that second alone, and what was created later");
        assert_eq!(window(&mut position).created, Some(span(-5, Some(-4))));
        assert!(!split_second(&mut position, &shown, None), "no split tells these apart");
        let inseparable = window(&mut position);
        assert!(!go_past(&mut position, inseparable));
        let last = window(&mut position);
        assert_eq!(last.created, Some(span(-4, None)));
        assert!(go_past(&mut position, last));
        assert_eq!(position, Position::at(at(1)));
    }

    #[test]
    fn crowded_second_has_a_window_of_its_own() {
        let shown = [row_at(7), row_at(20), row_at(20), row_at(20)];
        assert_eq!(crowded_second(&shown), Some(at(20)));
        assert_eq!(crowded_second(&[row_at(7), row_at(20)]), None);
        assert_eq!(crowded_second(&[]), None);
        let mut position = position(0, &[50]);
        isolate_second(&mut position, span(0, Some(50)), at(20));
        for expected in [span(0, Some(20)), span(20, Some(21)), span(21, Some(50))] {
            let window = next_window(&mut position, Some(at(100)), at(100), &[]).unwrap();
            assert_eq!(window.span, expected);
            go_past(&mut position, window);
        }
        isolate_second(&mut position, span(50, None), at(50));
        let first = next_window(&mut position, None, at(100), &[]).unwrap();
        assert_eq!(first.span, span(50, Some(51)), "nothing comes before it");
    }

    #[test]
    fn list_of_a_second_ends_before_its_last_row_and_goes_on_in_a_part() {
        let list = |rows: &[i64]| ListPosition {
            to: Some(at(1)),
            shown_at: at(100),
            last_row: 9,
            rows: 10,
            last_page: (0..rows.len()).map(|row| row.to_string()).collect(),
            steps_back: false,
            is_past_last_row: false,
            looked_complete: false,
            seen: (0..rows.len()).map(|row| row.to_string()).collect(),
            shown: Vec::new(),
        };
        let created = |rows: &[i64]| -> Vec<RowTimes> {
            rows.iter().map(|row| RowTimes { updated: at(0), created: Some(at(*row)) }).collect()
        };
        let older = |to: i64| Span { from: Timestamp::UNIX_EPOCH, to: Some(at(to)) };
        let newer = |from: i64| span(from, None);
        for (rows, next, later, left) in
            [(&[-3, -4, -6, -6][..], newer(-5), older(-5), 8), (&[-9, -8, -8, -2], older(-2), newer(-2), 9)]
        {
            let mut position = Position { list: Some(list(rows)), ..position(0, &[]) };
            assert!(end_list_of_second(&mut position, &created(rows)));
            let window = next_window(&mut position, None, at(100), &[]).unwrap();
            assert_eq!(window.created, Some(next));
            let list = position.list.as_ref().unwrap();
            assert_eq!((list.rows, list.last_row), (left, left - 1));
            assert_eq!(list.last_page.len() + 10 - left as usize, rows.len());
            assert_eq!(list.seen.len(), list.last_page.len());
            assert!(!go_past(&mut position, window));
            assert_eq!(next_window(&mut position, None, at(100), &[]).unwrap().created, Some(later));
        }
        for rows in [&[-3, -9, -4][..], &[-5, -5, -5], &[-5]] {
            let before = Position { list: Some(list(rows)), ..position(0, &[]) };
            let mut position = before.clone();
            assert!(!end_list_of_second(&mut position, &created(rows)), "no order, or one second: {rows:?}");
            assert_eq!(position, before);
        }
        let mut with_unreadable_row = Position { list: Some(list(&[-3, -4, -5])), ..position(0, &[]) };
        assert!(!end_list_of_second(&mut with_unreadable_row, &created(&[-3, -4])));
    }
}
