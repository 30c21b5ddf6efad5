//! Versions: what was delivered of an incident, and whether what is seen now is another version of it.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::record::{Record, State};
use crate::microsoft::IncidentApi;

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
pub struct DeliveredVersion {
    /// Its time of last update.
    pub last_updated: Timestamp,
    /// Its state.
    pub state: State,
    /// Its digest ([`Record::state_hash`]).
    pub state_hash: String,
    /// Which one it is of those that share its time of last update: 1 for the first.
    pub ordinal: u32,
    /// Where it was read.
    pub api: IncidentApi,
    /// Whether it had alerts.
    pub with_alerts: bool,
}

/// What a record that was read is, compared with what was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionComparison {
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
    SameOnOtherApi,
    /// An older version: an answer that lags behind.
    Stale,
}

/// Compares a record with what was delivered.
///
/// When a tenant changes its surface, times are compared to the millisecond until the new surface has shown the incident
/// once: the two need not agree on fractions, nor on the names of alerts.
pub fn compare(known: Option<&DeliveredVersion>, seen: &Record, api: IncidentApi) -> VersionComparison {
    let Some(known) = known else { return VersionComparison::New { change: Change::Created, ordinal: 1 } };
    let change = change_between(known.state, seen.state());
    if known.api != api {
        let (then, now) = (known.last_updated.as_millisecond(), seen.last_updated.as_millisecond());
        return match now.cmp(&then) {
            std::cmp::Ordering::Less => VersionComparison::Stale,
            std::cmp::Ordering::Equal if known.state == seen.state() => VersionComparison::SameOnOtherApi,
            _ => VersionComparison::New { change, ordinal: next_ordinal(known, seen) },
        };
    }
    match seen.last_updated.cmp(&known.last_updated) {
        std::cmp::Ordering::Less => VersionComparison::Stale,
        std::cmp::Ordering::Equal if known.state_hash == seen.state_hash || hides_alerts(known, seen) => {
            VersionComparison::Same
        }
        _ => VersionComparison::New { change, ordinal: next_ordinal(known, seen) },
    }
}

/// A record that was read without its alerts says nothing about them.
fn hides_alerts(known: &DeliveredVersion, seen: &Record) -> bool {
    seen.alerts.is_none() && known.with_alerts && known.state == seen.state()
}

fn next_ordinal(known: &DeliveredVersion, seen: &Record) -> u32 {
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

impl DeliveredVersion {
    /// What is known once `record` was delivered as its `ordinal`-th version.
    pub fn of(record: &Record, ordinal: u32, api: IncidentApi) -> Self {
        Self {
            last_updated: record.last_updated,
            state: record.state(),
            state_hash: record.state_hash.clone(),
            ordinal,
            api,
            with_alerts: record.alerts.is_some_and(|alerts| alerts > 0),
        }
    }
}

/// The key of a version: two deliveries of one version have the same.
pub fn version_key(tenant: &crate::tenant::TenantId, record: &Record, ordinal: u32) -> String {
    let base = format!("{tenant}/{}/{}", record.incident_id, record.last_updated);
    if ordinal > 1 { format!("{base}~{ordinal}") } else { base }
}

/// Packed for the registry: parts with a space between them.
impl fmt::Display for DeliveredVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Open => 'o',
            State::Resolved => 'r',
            State::Redirected => 'm',
        };
        let api = match self.api {
            IncidentApi::Graph => 'g',
            IncidentApi::Defender => 'd',
        };
        let alerts = if self.with_alerts { 'a' } else { '-' };
        write!(f, "{} {state}{api}{alerts} {} {}", self.last_updated, self.state_hash, self.ordinal)
    }
}

impl FromStr for DeliveredVersion {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let [last_updated, marks, state_hash, ordinal] = text.split(' ').collect::<Vec<_>>()[..] else {
            return Err(());
        };
        let [state, api, alerts] = marks.as_bytes()[..] else { return Err(()) };
        Ok(Self {
            last_updated: last_updated.parse().map_err(|_| ())?,
            state: match state {
                b'o' => State::Open,
                b'r' => State::Resolved,
                b'm' => State::Redirected,
                _ => return Err(()),
            },
            api: match api {
                b'g' => IncidentApi::Graph,
                b'd' => IncidentApi::Defender,
                _ => return Err(()),
            },
            with_alerts: alerts == b'a',
            state_hash: state_hash.to_owned(),
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
        Record::parse(json.as_bytes(), &tenant, true).unwrap()
    }

    fn new(change: Change, ordinal: u32) -> VersionComparison {
        VersionComparison::New { change, ordinal }
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
            let known = DeliveredVersion::of(&record(early, before, &[]), 1, IncidentApi::Graph);
            assert_eq!(
                compare(Some(&known), &record(late, now, &[]), IncidentApi::Graph),
                new(change, 1),
                "{before} → {now}"
            );
        }
        assert_eq!(compare(None, &record(early, "resolved", &[]), IncidentApi::Graph), new(Change::Created, 1));
    }

    #[test]
    fn one_time_may_have_several_versions_and_an_older_one_is_stale() {
        let time = "2026-01-01T00:00:00Z";
        let first = record(time, "active", &["a"]);
        let known = DeliveredVersion::of(&first, 1, IncidentApi::Graph);
        assert_eq!(compare(Some(&known), &first, IncidentApi::Graph), VersionComparison::Same);
        let second = record(time, "active", &["a", "b"]);
        assert_eq!(compare(Some(&known), &second, IncidentApi::Graph), new(Change::Updated, 2));
        let known = DeliveredVersion::of(&second, 2, IncidentApi::Graph);
        assert_eq!(
            compare(Some(&known), &record(time, "resolved", &["a"]), IncidentApi::Graph),
            new(Change::Closed, 3)
        );
        assert_eq!(
            compare(Some(&known), &record("2025-12-31T23:59:59.9999999Z", "active", &[]), IncidentApi::Graph),
            VersionComparison::Stale
        );
        assert_eq!(
            version_key(&"11111111-2222-4333-8444-abcdefabcdef".parse().unwrap(), &second, 2),
            "11111111-2222-4333-8444-abcdefabcdef/7/2026-01-01T00:00:00Z~2"
        );
    }

    #[test]
    fn another_surface_is_compared_to_the_millisecond() {
        let known =
            DeliveredVersion::of(&record("2026-01-01T00:00:00.1234567Z", "active", &["a"]), 1, IncidentApi::Defender);
        assert_eq!(
            compare(Some(&known), &record("2026-01-01T00:00:00.1230000Z", "active", &["z"]), IncidentApi::Graph),
            VersionComparison::SameOnOtherApi
        );
        assert_eq!(
            compare(Some(&known), &record("2026-01-01T00:00:00.124Z", "active", &["a"]), IncidentApi::Graph),
            new(Change::Updated, 1)
        );
        assert_eq!(
            compare(Some(&known), &record("2026-01-01T00:00:00.122Z", "active", &["a"]), IncidentApi::Graph),
            VersionComparison::Stale
        );
    }

    #[test]
    fn what_is_known_survives_packing() {
        let known = DeliveredVersion::of(
            &record("2026-01-01T00:00:00.1234567Z", "redirected", &["a"]),
            3,
            IncidentApi::Defender,
        );
        assert_eq!(known.to_string().parse::<DeliveredVersion>(), Ok(known));
    }
}
