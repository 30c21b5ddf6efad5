//! Spans of time in whole seconds.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A half-open span of time with bounds in whole seconds. Without an end it has no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    /// The first second inside the span.
    pub from: Timestamp,
    /// The first second after the span.
    pub to: Option<Timestamp>,
}

impl Span {
    /// Returns whether an instant lies inside the span.
    pub fn contains(&self, instant: Timestamp) -> bool {
        self.from <= instant && self.to.is_none_or(|to| instant < to)
    }

    /// The length in whole seconds. `None` without an end.
    pub fn seconds(&self) -> Option<i64> {
        self.to.map(|to| to.as_second() - self.from.as_second())
    }
}
