//! Time: the system's, or a test's.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// The source of all times and deadlines: the system's clocks, or a clock that a test moves by hand.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    by_hand: Option<&'static ByHand>,
}

/// Instants that never go back, for deadlines. Two sources with one origin are moved together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MonotonicClock {
    by_hand: Option<&'static ByHand>,
}

#[derive(Debug)]
struct ByHand {
    start: Timestamp,
    moved_micros: AtomicI64,
}

impl Clock {
    /// The clocks of the operating system.
    pub fn system() -> Self {
        Self { by_hand: None }
    }

    /// A clock that stands at `start` until [`Clock::advance`] moves it. It has microsecond resolution. Its memory is
    /// never freed, so that deadlines are `Copy`.
    pub fn by_hand(start: Timestamp) -> Self {
        Self { by_hand: Some(Box::leak(Box::new(ByHand { start, moved_micros: AtomicI64::new(0) }))) }
    }

    /// The present time of day in UTC.
    pub fn now(&self) -> Timestamp {
        self.by_hand
            .map_or_else(system_now, |clock| clock.start.saturating_add(clock.moved()).unwrap_or(Timestamp::MAX))
    }

    /// Whole milliseconds since an instant, for log lines.
    pub fn milliseconds_since(&self, started: Timestamp) -> i64 {
        i64::try_from(self.now().duration_since(started).as_millis()).unwrap_or(i64::MAX)
    }

    /// Moves a clock that is set by hand, and all deadlines on it. The system's clock is not moved.
    pub fn advance(&self, by: SignedDuration) {
        if let Some(clock) = self.by_hand {
            let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
            clock.moved_micros.fetch_add(micros, Ordering::SeqCst);
        }
    }

    pub(crate) fn monotonic(&self) -> MonotonicClock {
        MonotonicClock { by_hand: self.by_hand }
    }
}

impl ByHand {
    fn moved(&self) -> SignedDuration {
        SignedDuration::from_micros(self.moved_micros.load(Ordering::SeqCst))
    }
}

impl MonotonicClock {
    /// The system's instant, plus the time by which a test moved the clock forward. Waits that have started do not
    /// notice such a move.
    pub(crate) fn now(self) -> Instant {
        let moved = self.by_hand.map_or(Duration::ZERO, |clock| Duration::try_from(clock.moved()).unwrap_or_default());
        system_instant() + moved
    }
}

/// Waits before a repeated attempt, twice as long before each further one: 200 ms before the second.
pub(crate) async fn pause_before_attempt(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(100 << attempt.saturating_sub(1).min(6))).await;
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the system's time of day")]
fn system_now() -> Timestamp {
    Timestamp::now()
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the system's monotonic clock")]
fn system_instant() -> Instant {
    Instant::now()
}
