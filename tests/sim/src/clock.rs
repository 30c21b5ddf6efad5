//! The simulator's clock and its random identifiers. Only this file reads the machine's time and randomness.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};

/// Microsoft's time: real time plus an offset, or a frozen time. All handles of one simulator share it.
#[derive(Clone, Debug, Default)]
pub struct SimClock(Arc<Mutex<ClockState>>);

#[derive(Debug, Default)]
struct ClockState {
    offset: SignedDuration,
    frozen: Option<Timestamp>,
}

impl SimClock {
    /// The current time of the simulator.
    pub fn now(&self) -> Timestamp {
        let state = self.state();
        state.frozen.unwrap_or_else(|| {
            let real = real_time();
            real.checked_add(state.offset).unwrap_or(real)
        })
    }

    /// Moves the clock, running or frozen. Negative durations move it back.
    pub fn advance(&self, by: SignedDuration) {
        let mut state = self.state();
        match state.frozen {
            Some(at) => state.frozen = Some(at.checked_add(by).unwrap_or(at)),
            None => state.offset = state.offset.saturating_add(by),
        }
    }

    /// Stops the clock at a time.
    pub fn freeze(&self, at: Timestamp) {
        self.state().frozen = Some(at);
    }

    /// Starts a frozen clock again from the time at which it stopped.
    pub fn thaw(&self) {
        let mut state = self.state();
        if let Some(at) = state.frozen.take() {
            state.offset = at.duration_since(real_time());
        }
    }

    fn state(&self) -> MutexGuard<'_, ClockState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::disallowed_methods, reason = "the simulator stands for another system with its own clock")]
pub(crate) fn real_time() -> Timestamp {
    Timestamp::now()
}

/// A random GUID, lower case.
#[expect(clippy::disallowed_methods, reason = "Microsoft's identifiers are random and no test has to predict them")]
pub(crate) fn guid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A random value that fits into a URL.
#[expect(clippy::disallowed_methods, reason = "Microsoft's identifiers are random and no test has to predict them")]
pub(crate) fn random_token() -> String {
    let halves = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
    URL_SAFE_NO_PAD.encode(halves.map(uuid::Uuid::into_bytes).concat())
}

/// Truncates a time to 100 ns, the resolution of Microsoft's stores.
pub(crate) fn truncate_to_100ns(at: Timestamp) -> Timestamp {
    let nanos = at.as_nanosecond();
    Timestamp::from_nanosecond(nanos - nanos.rem_euclid(100)).unwrap_or(at)
}

/// An IMF-fixdate, as in the `Date` and `Retry-After` headers.
pub(crate) fn http_date(at: Timestamp) -> String {
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
