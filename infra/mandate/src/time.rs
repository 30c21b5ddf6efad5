//! Times and spans as people write and read them. Requests carry UTC.

use std::str::FromStr;

use jiff::{Timestamp, Unit, Zoned, civil::DateTime, tz::TimeZone};
use shared::clock::Clock;

use crate::text::shown;

/// A time that a person names: a span before now (`7d`), a local date or time, or a time with an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(Timestamp);

/// A span of time that a person names: `7d`, `12h`, `90m` or ISO 8601.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span(String);

impl Moment {
    pub(crate) fn at(at: Timestamp) -> Self {
        Self(at)
    }

    pub(crate) fn timestamp(self) -> Timestamp {
        self.0
    }

    /// The time as requests carry it, in whole seconds of UTC.
    pub(crate) fn utc(self) -> String {
        self.0.round(Unit::Second).unwrap_or(self.0).to_string()
    }

    fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Option<Self> {
        if let Ok(span) = text.parse::<jiff::Span>() {
            let ago = Zoned::new(now, zone.clone()).checked_sub(span.abs()).ok()?;
            return Some(Self(ago.timestamp()));
        }
        if let Ok(at) = text.parse::<Timestamp>() {
            return Some(Self(at));
        }
        let local: DateTime = text.parse().ok()?;
        Some(Self(local.to_zoned(zone.clone()).ok()?.timestamp()))
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, Clock::system().now(), &TimeZone::system()).ok_or_else(|| {
            "not a time: write 7d (ago), 2026-11-22, 2026-11-22T10:00 or 2026-11-22T10:00:00Z".to_owned()
        })
    }
}

impl Span {
    /// The span in ISO 8601.
    pub(crate) fn iso(&self) -> &str {
        &self.0
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<jiff::Span>() {
            Ok(span) if span.is_positive() => Ok(Self(span.to_string())),
            _ => Err("not a span of time: write 7d, 12h, 90m or P7D".to_owned()),
        }
    }
}

/// The time of a response. One of Microsoft's without an offset is in UTC.
pub(crate) fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse().or_else(|_| format!("{text}Z").parse()).ok()
}

/// The time of a response, as a person on this machine reads it. Text that is no time is made safe to print.
pub(crate) fn local(text: &str, zone: &TimeZone) -> String {
    timestamp(text)
        .map_or_else(|| shown(text), |at| Zoned::new(at, zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// A number of seconds in its two largest units.
pub(crate) fn seconds(seconds: i64) -> String {
    let (sign, seconds) = if seconds < 0 { ("-", seconds.unsigned_abs()) } else { ("", seconds.unsigned_abs()) };
    let (days, hours, minutes, rest) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let text = match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, minutes) => format!("{minutes}m {rest}s"),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_spans_local_times_and_utc() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        for (text, utc) in [
            ("7d", "2026-11-15T10:00:00Z"),
            ("90m", "2026-11-22T08:30:00Z"),
            ("24 hours", "2026-11-21T10:00:00Z"),
            ("P1D", "2026-11-21T10:00:00Z"),
            ("2026-11-20", "2026-11-19T22:00:00Z"),
            ("2026-11-20T08:30", "2026-11-20T06:30:00Z"),
            ("2026-11-20 08:30:15", "2026-11-20T06:30:15Z"),
            ("2026-11-20T08:30:00Z", "2026-11-20T08:30:00Z"),
            ("2026-11-20T08:30:00-05:00", "2026-11-20T13:30:00Z"),
        ] {
            assert_eq!(Moment::parse(text, now, &zone).map(Moment::utc).as_deref(), Some(utc), "{text}");
        }
        for wrong in ["yesterday", "", "2026-13-01", "7"] {
            assert_eq!(Moment::parse(wrong, now, &zone), None, "{wrong}");
        }
    }

    #[test]
    fn spans_are_sent_in_iso_8601() {
        for (text, iso) in [("7d", "P7D"), ("12h", "PT12H"), ("P30D", "P30D"), ("90m", "PT90M")] {
            assert_eq!(text.parse::<Span>().unwrap().iso(), iso);
        }
        assert!("-7d".parse::<Span>().is_err() && "week".parse::<Span>().is_err());
    }

    #[test]
    fn seconds_are_shown_in_two_units() {
        let shown: Vec<String> = [0, 59, 61, 3700, 90_000, -5].into_iter().map(seconds).collect();
        assert_eq!(shown, ["0s", "59s", "1m 1s", "1h 1m", "1d 1h", "-5s"]);
        assert_eq!(local("2026-11-22T10:00:00.5Z", &TimeZone::UTC), "2026-11-22 10:00:00");
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        for text in
            ["2026-11-22T10:00:00Z", "2026-11-22T10:00:00.1234567", "2026-11-22T10:00:00", "2026-11-22T09:00:00-01:00"]
        {
            assert_eq!(local(text, &zone), "2026-11-22 12:00:00", "{text}");
        }
        assert_eq!(local("2026-11-22", &zone), "2026-11-22");
        assert_eq!(local("never\u{1b}", &TimeZone::UTC), "never\\u{1b}");
    }
}
