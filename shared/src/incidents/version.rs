//! Versions: what was delivered of an incident, and whether what is seen now is another version of it.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Surface,
    record::{Record, State},
};

/// How a version differs from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Never delivered before.
    Created,
    /// None of the others.
    Updated,
    /// Merged into another incident.
    Merged,
    /// Resolved before, and not now.
    Reopened,
    /// Resolved now, and not before.
    Closed,
}

/// The version of an incident that was delivered last.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// Its time of last update.
    pub last_updated: Timestamp,
    /// Its state.
    pub state: State,
    /// Its digest ([`Record::digest`]).
    pub digest: String,
    /// Which one it is of those that share its time of last update: 1 for the first.
    pub ordinal: u32,
    /// Where it was read.
    pub surface: Surface,
    /// Whether it had alerts.
    pub with_alerts: bool,
}

/// What a record that was read is, compared with what was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A version to deliver.
    New {
        /// How it differs from the one before.
        change: Change,
        /// Which one it is of those that share its time of last update.
        ordinal: u32,
    },
    /// The version that was delivered last.
    Same,
    /// The version that was delivered last, as another surface shows it: to be noted, not delivered.
    SameElsewhere,
    /// An older version: an answer that lags behind.
    Stale,
}

/// Compares a record with what was delivered.
///
/// When a tenant changes its surface, times are compared to the millisecond until the new surface has shown the incident
/// once: the two need not agree on fractions, nor on the names of alerts.
pub fn judge(known: Option<&Known>, seen: &Record, surface: Surface) -> Verdict {
    let Some(known) = known else { return Verdict::New { change: Change::Created, ordinal: 1 } };
    let change = change_between(known.state, seen.state());
    if known.surface != surface {
        let (then, now) = (known.last_updated.as_millisecond(), seen.last_updated.as_millisecond());
        return match now.cmp(&then) {
            std::cmp::Ordering::Less => Verdict::Stale,
            std::cmp::Ordering::Equal if known.state == seen.state() => Verdict::SameElsewhere,
            _ => Verdict::New { change, ordinal: next_ordinal(known, seen) },
        };
    }
    match seen.last_updated.cmp(&known.last_updated) {
        std::cmp::Ordering::Less => Verdict::Stale,
        std::cmp::Ordering::Equal if known.digest == seen.digest || hides_alerts(known, seen) => Verdict::Same,
        _ => Verdict::New { change, ordinal: next_ordinal(known, seen) },
    }
}

/// A record that was read without its alerts says nothing about them.
fn hides_alerts(known: &Known, seen: &Record) -> bool {
    seen.alerts.is_none() && known.with_alerts && known.state == seen.state()
}

fn next_ordinal(known: &Known, seen: &Record) -> u32 {
    if known.last_updated == seen.last_updated { known.ordinal + 1 } else { 1 }
}

fn change_between(before: State, now: State) -> Change {
    match (before, now) {
        (State::Open | State::Resolved, State::Redirected) => Change::Merged,
        (State::Open | State::Redirected, State::Resolved) => Change::Closed,
        (State::Resolved, State::Open) => Change::Reopened,
        (State::Open | State::Redirected, State::Open)
        | (State::Resolved, State::Resolved)
        | (State::Redirected, State::Redirected) => Change::Updated,
    }
}

impl Known {
    /// What is known once `record` was delivered as its `ordinal`-th version.
    pub fn of(record: &Record, ordinal: u32, surface: Surface) -> Self {
        Self {
            last_updated: record.last_updated,
            state: record.state(),
            digest: record.digest.clone(),
            ordinal,
            surface,
            with_alerts: record.alerts.is_some_and(|alerts| alerts > 0),
        }
    }
}

/// The key of a version: two deliveries of one version have the same.
pub fn key(tenant: &crate::entra::TenantId, record: &Record, ordinal: u32) -> String {
    let base = format!("{tenant}/{}/{}", record.incident_id, record.last_updated);
    if ordinal > 1 { format!("{base}~{ordinal}") } else { base }
}

/// Packed for the registry: parts with a space between them.
impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Open => 'o',
            State::Resolved => 'r',
            State::Redirected => 'm',
        };
        let surface = match self.surface {
            Surface::Graph => 'g',
            Surface::Defender => 'd',
        };
        let alerts = if self.with_alerts { 'a' } else { '-' };
        write!(f, "{} {state}{surface}{alerts} {} {}", self.last_updated, self.digest, self.ordinal)
    }
}

impl FromStr for Known {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let [last_updated, marks, digest, ordinal] = text.split(' ').collect::<Vec<_>>()[..] else { return Err(()) };
        let [state, surface, alerts] = marks.as_bytes()[..] else { return Err(()) };
        Ok(Self {
            last_updated: last_updated.parse().map_err(|_| ())?,
            state: match state {
                b'o' => State::Open,
                b'r' => State::Resolved,
                b'm' => State::Redirected,
                _ => return Err(()),
            },
            surface: match surface {
                b'g' => Surface::Graph,
                b'd' => Surface::Defender,
                _ => return Err(()),
            },
            with_alerts: alerts == b'a',
            digest: digest.to_owned(),
            ordinal: ordinal.parse().map_err(|_| ())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(time: &str, status: &str, alerts: &[&str]) -> Record {
        let alerts: Vec<String> = alerts.iter().map(|id| format!(r#"{{"id":"{id}"}}"#)).collect();
        let json = format!(
            r#"{{"id":"7","lastUpdateDateTime":"{time}","status":"{status}","alerts":[{}]}}"#,
            alerts.join(",")
        );
        let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        Record::read(json.as_bytes(), &tenant, true).unwrap()
    }

    fn new(change: Change, ordinal: u32) -> Verdict {
        Verdict::New { change, ordinal }
    }

    #[test]
    fn changes_are_called_by_the_interface_s_rule() {
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.0000001Z");
        let table = [
            ("active", "redirected", Change::Merged),
            ("resolved", "redirected", Change::Merged),
            ("active", "resolved", Change::Closed),
            ("redirected", "resolved", Change::Closed),
            ("resolved", "inProgress", Change::Reopened),
            ("active", "inProgress", Change::Updated),
            ("redirected", "redirected", Change::Updated),
            ("resolved", "resolved", Change::Updated),
            ("redirected", "active", Change::Updated),
        ];
        for (before, now, change) in table {
            let known = Known::of(&record(early, before, &[]), 1, Surface::Graph);
            assert_eq!(
                judge(Some(&known), &record(late, now, &[]), Surface::Graph),
                new(change, 1),
                "{before} → {now}"
            );
        }
        assert_eq!(judge(None, &record(early, "resolved", &[]), Surface::Graph), new(Change::Created, 1));
    }

    #[test]
    fn one_time_may_have_several_versions_and_an_older_one_is_stale() {
        let time = "2026-01-01T00:00:00Z";
        let first = record(time, "active", &["a"]);
        let known = Known::of(&first, 1, Surface::Graph);
        assert_eq!(judge(Some(&known), &first, Surface::Graph), Verdict::Same);
        let second = record(time, "active", &["a", "b"]);
        assert_eq!(judge(Some(&known), &second, Surface::Graph), new(Change::Updated, 2));
        let known = Known::of(&second, 2, Surface::Graph);
        assert_eq!(judge(Some(&known), &record(time, "resolved", &["a"]), Surface::Graph), new(Change::Closed, 3));
        assert_eq!(
            judge(Some(&known), &record("2025-12-31T23:59:59.9999999Z", "active", &[]), Surface::Graph),
            Verdict::Stale
        );
        assert_eq!(
            key(&"11111111-2222-4333-8444-abcdefabcdef".parse().unwrap(), &second, 2),
            "11111111-2222-4333-8444-abcdefabcdef/7/2026-01-01T00:00:00Z~2"
        );
    }

    #[test]
    fn another_surface_is_compared_to_the_millisecond() {
        let known = Known::of(&record("2026-01-01T00:00:00.1234567Z", "active", &["a"]), 1, Surface::Defender);
        assert_eq!(
            judge(Some(&known), &record("2026-01-01T00:00:00.1230000Z", "active", &["z"]), Surface::Graph),
            Verdict::SameElsewhere
        );
        assert_eq!(
            judge(Some(&known), &record("2026-01-01T00:00:00.124Z", "active", &["a"]), Surface::Graph),
            new(Change::Updated, 1)
        );
        assert_eq!(
            judge(Some(&known), &record("2026-01-01T00:00:00.122Z", "active", &["a"]), Surface::Graph),
            Verdict::Stale
        );
    }

    #[test]
    fn what_is_known_survives_packing() {
        let known = Known::of(&record("2026-01-01T00:00:00.1234567Z", "redirected", &["a"]), 3, Surface::Defender);
        assert_eq!(known.to_string().parse::<Known>(), Ok(known));
    }
}
