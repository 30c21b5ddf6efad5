//! Windows: spans of last update that are cut so that one response holds all of each. Pure rules.

use jiff::{SignedDuration, Timestamp};

use shared::incident::span::Span;

/// The part of a response that a window should fill. The rest is left for incidents that change meanwhile.
const TARGET_FULLNESS: f64 = 0.7;

/// Rows that lie within this many seconds count as changed at once, in one burst.
const BURST_SECONDS: i64 = 2;

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

/// The next window from `at`, `width` seconds wide, up to `end`. It has no end where `end` is `None` and the width
/// reaches into the future. Quarantined spans are left out. `None`: no other time is left before `end`.
pub(super) fn next_window(
    at: Timestamp,
    width: Option<i64>,
    end: Option<Timestamp>,
    now: Timestamp,
    quarantined: &[Span],
) -> Option<Span> {
    let mut at = floor(at);
    // Where quarantined spans touch, one leads into the next.
    while let Some(span) = quarantined.iter().find(|span| span.contains(at)) {
        at = span.to?;
    }
    if end.is_some_and(|end| at >= end) {
        return None;
    }
    let wide = width.map(|width| at + SignedDuration::from_secs(width.max(1)));
    let mut to = match (wide, end) {
        (Some(wide), Some(end)) => Some(wide.min(end)),
        (Some(wide), None) => (wide < now).then_some(wide),
        (None, end) => end,
    };
    let next_quarantined = quarantined.iter().map(|span| span.from).filter(|from| *from > at).min();
    if let Some(from) = next_quarantined
        && to.is_none_or(|to| to > from)
    {
        to = Some(from);
    }
    Some(Span { from: at, to })
}

/// The width of the next window, in seconds, after a response of `rows` rows that held all of `window`.
pub(super) fn width_after_complete(window: Span, now: Timestamp, rows: u32, top: u32) -> i64 {
    let wanted = f64::from(top) * TARGET_FULLNESS;
    let factor = (wanted / f64::from(rows.max(1))).clamp(0.5, 8.0);
    scale(seconds(window, now), factor).max(1)
}

/// The width of the next window, in seconds, after a response that did not hold all of `window`. `shown` are the times of
/// last update in it. The result is at least 1, and less than the width of `window` where that is more.
pub(super) fn width_after_incomplete(window: Span, now: Timestamp, shown: &[Timestamp], top: u32) -> i64 {
    let seconds = seconds(window, now);
    let half = (seconds / 2).max(1);
    let (Some(first), Some(last)) = (shown.iter().min(), shown.iter().max()) else { return half };
    let shown_seconds = (last.as_second() - first.as_second()).max(1);
    let before = first.as_second() - window.from.as_second();
    if shown_seconds <= BURST_SECONDS && before > 0 {
        // A burst says nothing about the time before it. The window is split right at its beginning.
        return before.min(seconds - 1).max(1);
    }
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let density = shown.len() as f64 / shown_seconds as f64;
    #[expect(clippy::cast_possible_truncation, reason = "an estimate, bounded below")]
    let estimate = (f64::from(top) * TARGET_FULLNESS / density) as i64;
    estimate.clamp(1, half)
}

/// The seconds of a window, up to `now` where it has no end; at least 1.
pub(super) fn seconds(window: Span, now: Timestamp) -> i64 {
    let to = window.to.unwrap_or(now.max(window.from));
    (to.as_second() - window.from.as_second()).max(1)
}

fn scale(seconds: i64, factor: f64) -> i64 {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an estimate")]
    let scaled = (seconds as f64 * factor) as i64;
    scaled
}

/// The time that a completely read window covers: up to its end, but never later than [`VISIBILITY_DELAY`] before the
/// response. Microsoft may not show yet what was written just then.
pub(super) fn covered_by(window: Span, response_time: Timestamp) -> Timestamp {
    let shown = response_time - VISIBILITY_DELAY;
    window.to.map_or(shown, |to| to.min(shown))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn span(from: i64, to: Option<i64>) -> Span {
        Span { from: at(from), to: to.map(at) }
    }

    #[test]
    fn window_without_a_width_has_no_end() {
        assert_eq!(next_window(at(0), None, None, at(100), &[]), Some(span(0, None)));
        assert_eq!(next_window(at(0), Some(10), None, at(100), &[]), Some(span(0, Some(10))));
        assert_eq!(next_window(at(95), Some(10), None, at(100), &[]), Some(span(95, None)));
        assert_eq!(next_window(at(0), Some(10), Some(at(5)), at(100), &[]), Some(span(0, Some(5))));
        assert_eq!(next_window(at(5), Some(10), Some(at(5)), at(100), &[]), None);
    }

    #[test]
    fn quarantined_seconds_are_left_out() {
        let quarantined = [span(10, Some(11)), span(11, Some(12))];
        assert_eq!(next_window(at(0), None, None, at(100), &quarantined), Some(span(0, Some(10))));
        assert_eq!(next_window(at(10), None, None, at(100), &quarantined), Some(span(12, None)));
        assert_eq!(next_window(at(10), None, Some(at(12)), at(100), &quarantined), None);
    }

    #[test]
    fn width_follows_the_density_of_the_rows() {
        // Fifty rows within the last 100 of 1,000 seconds: 70 seconds hold 35 of them.
        let shown: Vec<Timestamp> = (0..50).map(|row| at(900 + row * 2)).collect();
        assert_eq!(width_after_incomplete(span(0, Some(1000)), at(1000), &shown, 50), 68);
        assert_eq!(width_after_complete(span(0, Some(70)), at(1000), 35, 50), 70);
        assert_eq!(width_after_complete(span(0, Some(70)), at(1000), 0, 50), 560);
    }

    #[test]
    fn window_covers_no_more_than_microsoft_shows() {
        assert_eq!(covered_by(span(0, Some(50)), at(100)), at(50));
        assert_eq!(covered_by(span(0, Some(99)), at(100)), at(95));
        assert_eq!(covered_by(span(0, None), at(100)), at(95));
    }

    proptest! {
        #[test]
        fn narrowing_ends_at_one_second(length in 2_i64..10_000_000, rows in prop::collection::vec(0_i64..10_000_000, 0..60)) {
            let mut width = length;
            let shown: Vec<Timestamp> = rows.into_iter().map(at).collect();
            for _ in 0..64 {
                let inside: Vec<Timestamp> = shown.iter().copied().filter(|row| *row < at(width)).collect();
                let next = width_after_incomplete(span(0, Some(width)), at(length), &inside, 50);
                prop_assert!(next >= 1 && (next < width || width == 1));
                width = next;
            }
            prop_assert_eq!(width, 1);
        }

        #[test]
        fn windows_cover_everything_without_gap(widths in prop::collection::vec(1_i64..500, 1..50), end in 1_i64..5_000) {
            let mut covered_to = at(0);
            for width in widths.into_iter().cycle().take(5_000) {
                let Some(next) = next_window(covered_to, Some(width), Some(at(end)), at(10_000), &[]) else { break };
                prop_assert_eq!(next.from, covered_to);
                covered_to = next.to.unwrap();
            }
            prop_assert_eq!(covered_to, at(end));
        }
    }
}
