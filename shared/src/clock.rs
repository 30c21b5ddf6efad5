//! Where the time comes from.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::{SignedDuration, Timestamp};

/// The time of day, either the system's or one that a test moves by hand.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    by_hand: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self { by_hand: None }
    }

    /// A clock that stands at `start` until it is moved with [`Clock::advance`]. Microsecond resolution.
    pub fn by_hand(start: Timestamp) -> Self {
        Self { by_hand: Some(Arc::new(AtomicI64::new(start.as_microsecond()))) }
    }

    /// The present instant.
    pub fn now(&self) -> Timestamp {
        match &self.by_hand {
            Some(micros) => Timestamp::from_microsecond(micros.load(Ordering::SeqCst)).unwrap_or(Timestamp::MAX),
            None => system_now(),
        }
    }

    /// Whole milliseconds since an instant, for log lines.
    pub fn milliseconds_since(&self, begun: Timestamp) -> i64 {
        i64::try_from(self.now().duration_since(begun).as_millis()).unwrap_or(i64::MAX)
    }

    /// Moves a clock that is set by hand; the system's clock is not moved.
    pub fn advance(&self, by: SignedDuration) {
        if let Some(micros) = &self.by_hand {
            let by = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
            micros.fetch_add(by, Ordering::SeqCst);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
fn system_now() -> Timestamp {
    Timestamp::now()
}
