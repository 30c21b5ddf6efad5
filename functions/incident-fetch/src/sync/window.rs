//! How spans of last update are cut, so that one answer holds all of each. Pure rules.

use jiff::{SignedDuration, Timestamp};

use shared::incident::span::Span;

/// How full an answer should be: room is left for what changes meanwhile.
const FULLNESS: f64 = 0.7;

/// Within how many seconds rows count as having changed at once.
const CLUMP: i64 = 2;

/// An instant's whole second.
pub(crate) fn floor(instant: Timestamp) -> Timestamp {
    Timestamp::from_second(instant.as_second() - i64::from(instant.subsec_nanosecond() < 0)).unwrap_or(instant)
}

/// The whole second at an instant or after it.
pub(crate) fn ceil(instant: Timestamp) -> Timestamp {
    let floor = floor(instant);
    if floor == instant { floor } else { floor + SignedDuration::from_secs(1) }
}

/// The next span to ask for: from `at`, as wide as `width`, to `end` at most. It has no end where `end` is none and the
/// width reaches into the future. `blocked` spans are left out; `None`: only such ones are left before `end`.
pub(crate) fn next_span(
    at: Timestamp,
    width: Option<i64>,
    end: Option<Timestamp>,
    now: Timestamp,
    blocked: &[Span],
) -> Option<Span> {
    let mut at = floor(at);
    // Where blocked spans touch, one leads into the next.
    while let Some(block) = blocked.iter().find(|block| block.contains(at)) {
        at = block.to?;
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
    let next_block = blocked.iter().map(|block| block.from).filter(|from| *from > at).min();
    if let Some(block) = next_block
        && to.is_none_or(|to| to > block)
    {
        to = Some(block);
    }
    Some(Span { from: at, to })
}

/// How wide the next span may be after an answer that held all of the last one.
pub(crate) fn widened(span: Span, now: Timestamp, rows: u32, top: u32) -> i64 {
    let length = length(span, now);
    let wanted = f64::from(top) * FULLNESS;
    let factor = (wanted / f64::from(rows.max(1))).clamp(0.5, 8.0);
    scaled(length, factor).max(1)
}

/// How wide the next span may be after an answer that did not hold all of `span`, from the times of last update that it
/// showed: always narrower, and never nothing.
pub(crate) fn narrowed(span: Span, now: Timestamp, shown: &[Timestamp], top: u32) -> i64 {
    let length = length(span, now);
    let half = (length / 2).max(1);
    let (Some(first), Some(last)) = (shown.iter().min(), shown.iter().max()) else { return half };
    let shown_seconds = (last.as_second() - first.as_second()).max(1);
    let before = first.as_second() - span.from.as_second();
    if shown_seconds <= CLUMP && before > 0 {
        // They all changed at once. That says nothing about what lies before, and so the cut goes right between.
        return before.min(length - 1).max(1);
    }
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let density = shown.len() as f64 / shown_seconds as f64;
    #[expect(clippy::cast_possible_truncation, reason = "an estimate, bounded below")]
    let estimate = (f64::from(top) * FULLNESS / density) as i64;
    estimate.clamp(1, half)
}

/// How many seconds a span has, up to `now` where it has no end; at least one.
pub(crate) fn length(span: Span, now: Timestamp) -> i64 {
    let to = span.to.unwrap_or(now.max(span.from));
    (to.as_second() - span.from.as_second()).max(1)
}

fn scaled(length: i64, factor: f64) -> i64 {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an estimate")]
    let scaled = (length as f64 * factor) as i64;
    scaled
}

/// How far a window that was read completely covers: to its end, but never past five seconds before the moment at which
/// Microsoft answered, because what is written just then may not be shown yet.
pub(crate) fn reached(span: Span, answered_at: Timestamp) -> Timestamp {
    let shown = answered_at - SignedDuration::from_secs(5);
    span.to.map_or(shown, |to| to.min(shown))
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
    fn a_span_without_a_width_goes_on_for_ever() {
        assert_eq!(next_span(at(0), None, None, at(100), &[]), Some(span(0, None)));
        assert_eq!(next_span(at(0), Some(10), None, at(100), &[]), Some(span(0, Some(10))));
        assert_eq!(next_span(at(95), Some(10), None, at(100), &[]), Some(span(95, None)));
        assert_eq!(next_span(at(0), Some(10), Some(at(5)), at(100), &[]), Some(span(0, Some(5))));
        assert_eq!(next_span(at(5), Some(10), Some(at(5)), at(100), &[]), None);
    }

    #[test]
    fn blocked_seconds_are_left_out() {
        let blocked = [span(10, Some(11)), span(11, Some(12))];
        assert_eq!(next_span(at(0), None, None, at(100), &blocked), Some(span(0, Some(10))));
        assert_eq!(next_span(at(10), None, None, at(100), &blocked), Some(span(12, None)));
        assert_eq!(next_span(at(10), None, Some(at(12)), at(100), &blocked), None);
    }

    #[test]
    fn the_cut_follows_the_density_that_was_seen() {
        // Fifty rows within the last 100 of 1,000 seconds: 70 seconds hold 35 of them.
        let shown: Vec<Timestamp> = (0..50).map(|row| at(900 + row * 2)).collect();
        assert_eq!(narrowed(span(0, Some(1000)), at(1000), &shown, 50), 68);
        assert_eq!(widened(span(0, Some(70)), at(1000), 35, 50), 70);
        assert_eq!(widened(span(0, Some(70)), at(1000), 0, 50), 560);
    }

    #[test]
    fn no_more_is_covered_than_could_be_seen() {
        assert_eq!(reached(span(0, Some(50)), at(100)), at(50));
        assert_eq!(reached(span(0, Some(99)), at(100)), at(95));
        assert_eq!(reached(span(0, None), at(100)), at(95));
    }

    proptest! {
        #[test]
        fn narrowing_ends_at_one_second(length in 2_i64..10_000_000, rows in prop::collection::vec(0_i64..10_000_000, 0..60)) {
            let mut width = length;
            let shown: Vec<Timestamp> = rows.into_iter().map(at).collect();
            for _ in 0..64 {
                let inside: Vec<Timestamp> = shown.iter().copied().filter(|row| *row < at(width)).collect();
                let next = narrowed(span(0, Some(width)), at(length), &inside, 50);
                prop_assert!(next >= 1 && (next < width || width == 1));
                width = next;
            }
            prop_assert_eq!(width, 1);
        }

        #[test]
        fn spans_cover_everything_without_gap(widths in prop::collection::vec(1_i64..500, 1..50), end in 1_i64..5_000) {
            let mut reached = at(0);
            for width in widths.into_iter().cycle().take(5_000) {
                let Some(next) = next_span(reached, Some(width), Some(at(end)), at(10_000), &[]) else { break };
                prop_assert_eq!(next.from, reached);
                reached = next.to.unwrap();
            }
            prop_assert_eq!(reached, at(end));
        }
    }
}
