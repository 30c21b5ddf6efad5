//! Windows: spans of last update that are split so that one list holds all of each. Pure rules.

use jiff::{SignedDuration, Timestamp};

use shared::{
    incident::span::Span,
    registry::position::{Position, RowTimes},
};

/// The part of what one reading holds that a window should fill. The rest is left for an uneven spread.
pub(super) const TARGET_FULLNESS: f64 = 0.8;

/// The time before a response's `Date` for which the response may not show everything yet.
const VISIBILITY_DELAY: SignedDuration = SignedDuration::from_secs(5);

/// The whole second that an instant lies in.
pub(crate) fn floor(instant: Timestamp) -> Timestamp {
    Timestamp::from_second(instant.as_second() - i64::from(instant.subsec_nanosecond() < 0)).unwrap_or(instant)
}

/// The whole second at an instant or after it.
pub(super) fn ceil(instant: Timestamp) -> Timestamp {
    let floor = floor(instant);
    if floor == instant { floor } else { floor + SignedDuration::from_secs(1) }
}

/// A window: a span of last update, or a part of one second of it by time of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) span: Span,
    pub(super) created: Option<Span>,
}

/// The next window of a position, up to `end`. It has no end where `end` is `None` and its own reaches into the future.
/// Quarantined spans are left out. `None`: no other time is left before `end`.
pub(super) fn next_window(
    position: &mut Position,
    end: Option<Timestamp>,
    now: Timestamp,
    quarantined: &[Span],
) -> Option<Window> {
    let mut at = floor(position.at);
    // Where quarantined spans touch, one leads into the next.
    while let Some(span) = quarantined.iter().find(|span| span.contains(at)) {
        at = span.to?;
    }
    if at != position.at {
        position.move_to(at);
    }
    position.ends.retain(|end| *end > at);
    // Whatever Microsoft dates later than now is in the next list up to the present, or its time comes.
    if at >= end.unwrap_or(ceil(now) + SignedDuration::from_secs(1)) {
        return None;
    }
    if let Some(second) = &position.second {
        let span = Span { from: at, to: Some(at + SignedDuration::from_secs(1)) };
        return Some(Window { span, created: Some(second.part()) });
    }
    let mut to = match (position.ends.last(), end) {
        (Some(near), Some(end)) => Some(end.min(*near)),
        (Some(near), None) => Some(*near).filter(|near| *near < now),
        (None, end) => end,
    };
    let next_quarantined = quarantined.iter().map(|span| span.from).filter(|from| *from > at).min();
    if let Some(from) = next_quarantined
        && to.is_none_or(|to| to > from)
    {
        to = Some(from);
    }
    if position.list.as_ref().is_some_and(|list| list.to != to) {
        position.list = None;
    }
    Some(Window { span: Span { from: at, to }, created: None })
}

/// Notes that a window is read completely. Returns true unless other parts of its second are still to read.
pub(super) fn go_past(position: &mut Position, window: Window) -> bool {
    position.list = None;
    position.failures_without_search = 0;
    if let Some(second) = &mut position.second {
        second.parts.pop();
        second.readings = None;
        if !second.parts.is_empty() {
            return false;
        }
        position.second = None;
    }
    if let Some(to) = window.span.to {
        position.move_to(to);
    }
    true
}

/// Splits the next window at `at`, or elsewhere inside it where `at` is outside.
pub(super) fn split_at(position: &mut Position, window: Span, now: Timestamp, at: Timestamp) {
    let last = window.from + SignedDuration::from_secs((seconds(window, now) - 1).max(1));
    let first = window.from + SignedDuration::from_secs(1);
    position.list = None;
    position.second = None;
    position.ends.push(floor(at).clamp(first, last.max(first)));
}

/// Returns true for times of which the latest come first, and false for those of which the earliest do; `None` for others and
/// where all are the same.
pub(super) fn order_of(times: &[Timestamp]) -> Option<bool> {
    let newest_first = times.first() > times.last();
    let is_in_order = times.is_sorted() || times.is_sorted_by(|left, right| left >= right);
    (is_in_order && times.first() != times.last()).then_some(newest_first)
}

/// The number of rows in a window by the density of the rows that a response showed of it.
pub(super) fn estimated_rows(window: Span, now: Timestamp, shown: &[RowTimes]) -> f64 {
    density(window, now, shown).map_or(0.0, |density| density.rows_per_second * as_f64(seconds(window, now)))
}

/// The place to split a window, so that the part with the shown rows has about `wanted` rows.
pub(super) fn split_point(window: Span, now: Timestamp, shown: &[RowTimes], wanted: u32) -> Timestamp {
    let seconds = seconds(window, now);
    let Some(Density { rows_per_second, shows_the_end }) = density(window, now, shown) else {
        return window.from + SignedDuration::from_secs(seconds / 2);
    };
    #[expect(clippy::cast_possible_truncation, reason = "an estimate, bounded by the caller")]
    let width = (f64::from(wanted) * TARGET_FULLNESS / rows_per_second).ceil().min(as_f64(seconds)) as i64;
    let from_start = if shows_the_end { seconds - width } else { width };
    window.from + SignedDuration::from_secs(from_start)
}

/// The order of a list's rows, and their density, by the rows that it showed so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RowOrder {
    pub(super) newest_first: bool,
    seconds_per_row: f64,
}

impl RowOrder {
    /// The order of rows by last update, or by creation; `None` if they have neither.
    pub(super) fn of(shown: &[RowTimes]) -> Option<Self> {
        let updated: Vec<Timestamp> = shown.iter().map(|row| row.updated).collect();
        let created: Option<Vec<Timestamp>> = shown.iter().map(|row| row.created).collect();
        [Some(updated), created].into_iter().flatten().find_map(|times| {
            let newest_first = order_of(&times)?;
            let width = times.last()?.as_second() - times.first()?.as_second();
            let rows = as_f64(i64::try_from(times.len()).ok()?);
            Some(Self { newest_first, seconds_per_row: as_f64(width.abs()) / rows })
        })
    }

    /// The number of rows in a window of whose list these are the first ones, if the rest is as dense.
    pub(super) fn rows_in(self, window: Span, now: Timestamp, shown: &[RowTimes]) -> f64 {
        let times = shown.iter().map(|row| row.updated.as_second());
        let (Some(oldest), Some(newest)) = (times.clone().min(), times.max()) else { return 0.0 };
        let from = window.from.as_second();
        let left = if self.newest_first { oldest - from } else { from + seconds(window, now) - newest };
        as_f64(i64::try_from(shown.len()).unwrap_or(i64::MAX)) + as_f64(left) / self.seconds_per_row
    }

    /// The end of the part of a window that holds about `wanted` of its first rows, or its beginning where the newest come
    /// first; `None` if that is outside of the window.
    fn end_of_rows(self, window: Span, now: Timestamp, shown: &[RowTimes], wanted: u32) -> Option<Timestamp> {
        #[expect(clippy::cast_possible_truncation, reason = "an estimate, compared with the window")]
        let width = (f64::from(wanted) * TARGET_FULLNESS * self.seconds_per_row) as i64;
        let times = shown.iter().map(|row| row.updated);
        let width = SignedDuration::from_secs(width);
        let at = if self.newest_first { times.max()?.checked_sub(width) } else { times.min()?.checked_add(width) };
        let end = window.from + SignedDuration::from_secs(seconds(window, now));
        at.ok().filter(|at| window.from < *at && *at < end)
    }
}

/// The place to split a window whose list has more rows than `wanted`, by the rows that the list showed so far. Rows without
/// an order may be a sample of the whole list, so that their middle is the best guess.
pub(super) fn split_point_of_long_list(window: Span, now: Timestamp, shown: &[RowTimes], wanted: u32) -> Timestamp {
    let mut updated: Vec<Timestamp> = shown.iter().map(|row| row.updated).collect();
    updated.sort_unstable();
    let known = updated.get(wanted as usize * 4 / 5).copied().filter(|_| wanted > 0);
    let by_order = || RowOrder::of(shown).and_then(|order| order.end_of_rows(window, now, shown, wanted));
    known.or_else(by_order).or_else(|| middle(updated)).unwrap_or(window.from)
}

/// The time that as many rows lie before as after, of those that a response showed.
pub(super) fn middle(mut shown: Vec<Timestamp>) -> Option<Timestamp> {
    shown.sort_unstable();
    shown.get(shown.len() / 2).copied()
}

/// The end of a window before which about `wanted` rows lie, after a complete window with `rows` rows in `seconds`; `None`
/// if the window is shorter.
pub(super) fn end_by_pace(window: Span, now: Timestamp, pace: (u32, i64), wanted: u32) -> Option<Timestamp> {
    let (rows, seconds_read) = pace;
    let width = f64::from(wanted) * TARGET_FULLNESS * as_f64(seconds_read.max(1)) / f64::from(rows.max(1));
    let seconds = seconds(window, now);
    #[expect(clippy::cast_possible_truncation, reason = "an estimate, bounded by the window")]
    let width = (rows > 0 && width * 1.25 < as_f64(seconds)).then_some(width.max(1.0) as i64);
    width.map(|width| window.from + SignedDuration::from_secs(width))
}

/// The number of rows in so many seconds, after a complete window with `rows` rows in `seconds`.
pub(super) fn rows_by_pace((rows, seconds): (u32, i64), in_seconds: i64) -> f64 {
    f64::from(rows) * as_f64(in_seconds) / as_f64(seconds.max(1))
}

struct Density {
    rows_per_second: f64,
    /// The rows lie near the end of the window, as where the newest come first.
    shows_the_end: bool,
}

fn density(window: Span, now: Timestamp, shown: &[RowTimes]) -> Option<Density> {
    let times = shown.iter().map(|row| row.updated.as_second());
    let (first, last) = (times.clone().min()?, times.max()?);
    let (start, end) = (window.from.as_second(), window.from.as_second() + seconds(window, now));
    let shows_the_end = first - start >= end - last;
    // The time without rows beside the shown ones counts: a burst alone says nothing about the density.
    let spread = if shows_the_end { end - first } else { last + 1 - start };
    let rows = f64::from(u32::try_from(shown.len()).unwrap_or(u32::MAX));
    Some(Density { rows_per_second: rows / as_f64(spread.max(1)), shows_the_end })
}

#[expect(clippy::cast_precision_loss, reason = "estimates")]
fn as_f64(seconds: i64) -> f64 {
    seconds as f64
}

/// The seconds of a window, up to `now` where it has no end; at least 1.
pub(super) fn seconds(window: Span, now: Timestamp) -> i64 {
    let to = window.to.unwrap_or(now.max(window.from));
    (to.as_second() - window.from.as_second()).max(1)
}

/// The time that a completely read window covers: up to its end, but never later than [`VISIBILITY_DELAY`] before the
/// response. Microsoft may not show yet what was written just then.
pub(super) fn covered_by(window: Span, response_time: Timestamp) -> Timestamp {
    let shown = response_time - VISIBILITY_DELAY;
    window.to.map_or(shown, |to| to.min(shown))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::sync) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    pub(in crate::sync) fn row_at(second: i64) -> RowTimes {
        RowTimes { updated: at(second), created: None }
    }

    pub(in crate::sync) fn span(from: i64, to: Option<i64>) -> Span {
        Span { from: at(from), to: to.map(at) }
    }

    pub(in crate::sync) fn position(from: i64, ends: &[i64]) -> Position {
        Position { ends: ends.iter().copied().map(at).collect(), ..Position::at(at(from)) }
    }

    fn next(mut position: Position, end: Option<i64>, quarantined: &[Span]) -> Option<Span> {
        next_window(&mut position, end.map(at), at(100), quarantined).map(|window| window.span)
    }

    #[test]
    fn window_ends_at_the_nearest_end_or_is_open() {
        assert_eq!(next(position(0, &[]), None, &[]), Some(span(0, None)));
        assert_eq!(next(position(0, &[50, 10]), None, &[]), Some(span(0, Some(10))));
        assert_eq!(next(position(0, &[50, 10, -5]), None, &[]), Some(span(0, Some(10))), "an end that lies behind");
        assert_eq!(next(position(95, &[105]), None, &[]), Some(span(95, None)), "an end in the future");
        assert_eq!(next(position(0, &[10]), Some(5), &[]), Some(span(0, Some(5))));
        assert_eq!(next(position(5, &[]), Some(5), &[]), None);
    }

    #[test]
    fn quarantined_seconds_are_left_out() {
        let quarantined = [span(10, Some(11)), span(11, Some(12))];
        assert_eq!(next(position(0, &[]), None, &quarantined), Some(span(0, Some(10))));
        assert_eq!(next(position(10, &[]), None, &quarantined), Some(span(12, None)));
        assert_eq!(next(position(10, &[]), Some(12), &quarantined), None);
    }

    #[test]
    fn split_leaves_one_list_of_rows_at_the_shown_side() {
        // Fifty rows within the last 100 of 10,000 seconds, or within the first.
        let newest: Vec<RowTimes> = (0..50).map(|row| row_at(9_900 + row * 2)).collect();
        assert_eq!(split_point(span(0, Some(10_000)), at(10_000), &newest, 400), at(9_360));
        let oldest: Vec<RowTimes> = (0..50).map(|row| row_at(row * 2)).collect();
        assert_eq!(split_point(span(0, Some(10_000)), at(10_000), &oldest, 400), at(634));
        assert_eq!(split_point(span(0, Some(10)), at(10_000), &[], 400), at(5));
    }

    #[test]
    fn burst_long_ago_is_no_dense_stretch() {
        let burst = [row_at(3_600); 50];
        let estimated = estimated_rows(span(0, Some(7_200)), at(7_200), &burst);
        assert!((estimated - 100.0).abs() < 1.0, "{estimated}");
    }

    #[test]
    fn window_covers_no_more_than_microsoft_shows() {
        assert_eq!(covered_by(span(0, Some(50)), at(100)), at(50));
        assert_eq!(covered_by(span(0, Some(99)), at(100)), at(95));
        assert_eq!(covered_by(span(0, None), at(100)), at(95));
    }

    proptest! {
        #[test]
        fn splitting_ends_at_one_second(
            length in 2_i64..10_000_000,
            rows in prop::collection::vec(0_i64..10_000_000, 0..60),
            wanted in 1_u32..500,
        ) {
            let shown: Vec<RowTimes> = rows.into_iter().map(row_at).collect();
            let mut position = position(0, &[]);
            for _ in 0..64 {
                let window = next_window(&mut position, Some(at(length)), at(length), &[]).unwrap().span;
                let width = seconds(window, at(length));
                if width == 1 {
                    break;
                }
                let inside: Vec<RowTimes> = shown.iter().copied().filter(|row| window.contains(row.updated)).collect();
                // After a guess that did not help, the rows are halved.
                let guess = split_point(window, at(length), &inside, wanted).min(window.from + SignedDuration::from_secs(width / 2));
                split_at(&mut position, window, at(length), guess);
                let next = next_window(&mut position, Some(at(length)), at(length), &[]).unwrap().span;
                prop_assert!(seconds(next, at(length)) < width);
            }
            let last = next_window(&mut position, Some(at(length)), at(length), &[]).unwrap().span;
            prop_assert_eq!(seconds(last, at(length)), 1);
        }

        #[test]
        fn windows_cover_everything_without_gap(ends in prop::collection::vec(1_i64..5_000, 0..50), end in 1_i64..5_000) {
            let mut sorted = ends;
            sorted.sort_unstable_by(|left, right| right.cmp(left));
            let mut position = position(0, &sorted);
            let mut covered_to = at(0);
            while let Some(window) = next_window(&mut position, Some(at(end)), at(10_000), &[]) {
                prop_assert_eq!(window.span.from, covered_to);
                prop_assert!(go_past(&mut position, window));
                covered_to = window.span.to.unwrap();
            }
            prop_assert_eq!(covered_to, at(end));
        }
    }
}
