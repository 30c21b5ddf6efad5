//! The simulator's own clock and its identifiers: the only places that ask the machine for time and randomness.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};

/// Microsoft's time: real time plus an offset, or frozen. All handles of one simulator share it.
#[derive(Clone, Debug, Default)]
pub struct SimClock(Arc<Mutex<Reading>>);

#[derive(Debug, Default)]
struct Reading {
    offset: SignedDuration,
    frozen: Option<Timestamp>,
}

impl SimClock {
    /// The time that Microsoft would give now.
    pub fn now(&self) -> Timestamp {
        let reading = self.reading();
        reading.frozen.unwrap_or_else(|| {
            let real = real_time();
            real.checked_add(reading.offset).unwrap_or(real)
        })
    }

    /// Moves the clock, running or frozen. Negative durations move it back.
    pub fn advance(&self, by: SignedDuration) {
        let mut reading = self.reading();
        match reading.frozen {
            Some(at) => reading.frozen = Some(at.checked_add(by).unwrap_or(at)),
            None => reading.offset = reading.offset.saturating_add(by),
        }
    }

    /// Stops the clock at a time.
    pub fn freeze(&self, at: Timestamp) {
        self.reading().frozen = Some(at);
    }

    /// Lets a frozen clock run on from where it stood.
    pub fn thaw(&self) {
        let mut reading = self.reading();
        if let Some(at) = reading.frozen.take() {
            reading.offset = at.duration_since(real_time());
        }
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::disallowed_methods, reason = "the simulator is a neighbour with a clock of its own")]
pub(crate) fn real_time() -> Timestamp {
    Timestamp::now()
}

/// A random GUID, lower case.
#[expect(clippy::disallowed_methods, reason = "nobody has to predict what Microsoft calls a thing")]
pub(crate) fn guid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A random value that fits into a URL.
#[expect(clippy::disallowed_methods, reason = "nobody has to predict what Microsoft calls a thing")]
pub(crate) fn opaque() -> String {
    let halves = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
    URL_SAFE_NO_PAD.encode(halves.map(uuid::Uuid::into_bytes).concat())
}

/// Cut to 100 ns, the resolution of Microsoft's stores.
pub(crate) fn to_ticks(at: Timestamp) -> Timestamp {
    let nanos = at.as_nanosecond();
    Timestamp::from_nanosecond(nanos - nanos.rem_euclid(100)).unwrap_or(at)
}

/// An IMF-fixdate, as in the `Date` and `Retry-After` headers.
pub(crate) fn http_date(at: Timestamp) -> String {
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
