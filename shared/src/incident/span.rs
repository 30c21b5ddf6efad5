//! Spans of time in whole seconds.

use jiff::Timestamp;

/// A span of time in whole seconds, its beginning included and its end not. Without an end it goes on for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Begins with this second.
    pub from: Timestamp,
    /// Ends before this second.
    pub to: Option<Timestamp>,
}

impl Span {
    /// Whether an instant lies in it.
    pub fn contains(&self, instant: Timestamp) -> bool {
        self.from <= instant && self.to.is_none_or(|to| instant < to)
    }

    /// Its length in whole seconds; `None` without an end.
    pub fn seconds(&self) -> Option<i64> {
        self.to.map(|to| to.as_second() - self.from.as_second())
    }
}
