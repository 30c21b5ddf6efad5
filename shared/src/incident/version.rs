//! Versions of an incident: the last delivered one, and the comparison of a record with it.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::record::{Record, State};
use crate::{microsoft::IncidentApi, tenant::TenantId};

/// The difference of a version from the one before, by the interface's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// No version of the incident was delivered before.
    Created,
    /// Any difference but the others.
    Updated,
    /// Merged into another incident.
    Merged,
    /// It was resolved, and is open again.
    Reopened,
    /// It is resolved, and was not before.
    Closed,
}

/// The last delivered version of an incident, as the registry keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveredVersion {
    /// Time of the last update that the record showed.
    pub last_updated: Timestamp,
    /// State that the record showed.
    pub state: State,
    /// The [`Record::state_hash`] of the record.
    pub state_hash: String,
    /// Position among the versions with this time of last update: 1 for the first.
    pub ordinal: u32,
    /// The API that the record was read from.
    pub api: IncidentApi,
    /// The record had at least one alert.
    pub with_alerts: bool,
}

/// The result of comparing a record with the last delivered version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionComparison {
    /// It is a version to deliver.
    New {
        /// The difference from the version before.
        change: Change,
        /// Position among the versions with this time of last update: 1 for the first.
        ordinal: u32,
    },
    /// It is the last delivered version.
    Same,
    /// It is the last delivered version, as the other API shows it. The registry notes it; nothing is delivered.
    SameOnOtherApi,
    /// It is older than the last delivered version, because the response lags behind.
    Stale,
}

/// Compares a record with the last delivered version of its incident.
///
/// After a tenant changed its API, times are compared to the millisecond until the new API has shown the incident once.
/// The two APIs need not agree on smaller fractions, nor on the ids of alerts.
pub fn compare(delivered: Option<&DeliveredVersion>, seen: &Record, api: IncidentApi) -> VersionComparison {
    let Some(delivered) = delivered else { return VersionComparison::New { change: Change::Created, ordinal: 1 } };
    let change = change_between(delivered.state, seen.state());
    if delivered.api != api {
        let (then, now) = (delivered.last_updated.as_millisecond(), seen.last_updated.as_millisecond());
        return match now.cmp(&then) {
            std::cmp::Ordering::Less => VersionComparison::Stale,
            std::cmp::Ordering::Equal if delivered.state == seen.state() => VersionComparison::SameOnOtherApi,
            _ => VersionComparison::New { change, ordinal: next_ordinal(delivered, seen) },
        };
    }
    match seen.last_updated.cmp(&delivered.last_updated) {
        std::cmp::Ordering::Less => VersionComparison::Stale,
        std::cmp::Ordering::Equal if delivered.state_hash == seen.state_hash || omits_alerts(delivered, seen) => {
            VersionComparison::Same
        }
        _ => VersionComparison::New { change, ordinal: next_ordinal(delivered, seen) },
    }
}

/// A record that was read without its alerts has another state hash, and says nothing about the alerts.
fn omits_alerts(delivered: &DeliveredVersion, seen: &Record) -> bool {
    seen.alerts.is_none() && delivered.with_alerts && delivered.state == seen.state()
}

fn next_ordinal(delivered: &DeliveredVersion, seen: &Record) -> u32 {
    if delivered.last_updated == seen.last_updated { delivered.ordinal + 1 } else { 1 }
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
    /// The last delivered version once `record` is delivered with this ordinal.
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

/// One version of an incident, to be delivered or shown.
#[derive(Clone, Copy, Debug)]
pub struct Version<'a> {
    /// The tenant that has the incident.
    pub tenant_id: TenantId,
    /// The API that the record was read from.
    pub api: IncidentApi,
    /// The incident as this version shows it.
    pub record: &'a Record,
    /// The difference from the version before. `None`: a caller reads it live.
    pub change: Option<Change>,
    /// Position among the versions with this time of last update: 1 for the first.
    pub ordinal: u32,
    /// The time of our call to Microsoft.
    pub fetched_at: Timestamp,
}

impl Version<'_> {
    /// The key by which consumers recognise a version that is delivered twice.
    pub fn key(&self) -> String {
        let base = format!("{}/{}/{}", self.tenant_id, self.record.incident_id, self.record.last_updated);
        if self.ordinal > 1 { format!("{base}~{}", self.ordinal) } else { base }
    }
}

/// The packed form that the registry stores: `2026-01-01T00:00:00.1234567Z oga 0123456789abcdef 1`.
///
/// Its parts are the time of the last update, three marks, the state hash and the ordinal. The marks are the state
/// (`o`pen, `r`esolved, `m`erged), the API (`g`raph, `d`efender) and the alerts (`a`, or `-` for none).
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

/// The text is not the packed form of a [`DeliveredVersion`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotADeliveredVersion;

impl FromStr for DeliveredVersion {
    type Err = NotADeliveredVersion;

    fn from_str(text: &str) -> Result<Self, NotADeliveredVersion> {
        let [last_updated, marks, state_hash, ordinal] = text.split(' ').collect::<Vec<_>>()[..] else {
            return Err(NotADeliveredVersion);
        };
        let [state, api, alerts] = marks.as_bytes()[..] else { return Err(NotADeliveredVersion) };
        Ok(Self {
            last_updated: last_updated.parse().map_err(|_| NotADeliveredVersion)?,
            state: match state {
                b'o' => State::Open,
                b'r' => State::Resolved,
                b'm' => State::Redirected,
                _ => return Err(NotADeliveredVersion),
            },
            api: match api {
                b'g' => IncidentApi::Graph,
                b'd' => IncidentApi::Defender,
                _ => return Err(NotADeliveredVersion),
            },
            with_alerts: alerts == b'a',
            state_hash: state_hash.to_owned(),
            ordinal: ordinal.parse().map_err(|_| NotADeliveredVersion)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::record::Alerts;

    fn record(time: &str, status: &str, alerts: &[&str]) -> Record {
        let alerts: Vec<String> = alerts.iter().map(|id| format!(r#"{{"id":"{id}"}}"#)).collect();
        let json = format!(
            r#"{{"id":"7","lastUpdateDateTime":"{time}","status":"{status}","alerts":[{}]}}"#,
            alerts.join(",")
        );
        let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        Record::parse(json.as_bytes(), &tenant, IncidentApi::Graph, Alerts::Included).unwrap()
    }

    fn new(change: Change, ordinal: u32) -> VersionComparison {
        VersionComparison::New { change, ordinal }
    }

    #[test]
    fn changes_are_named_by_the_rule_of_the_interface() {
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
    fn one_time_may_have_several_versions() {
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
            Version {
                tenant_id: "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap(),
                api: IncidentApi::Graph,
                record: &second,
                change: None,
                ordinal: 2,
                fetched_at: Timestamp::UNIX_EPOCH,
            }
            .key(),
            "11111111-2222-4333-8444-abcdefabcdef/7/2026-01-01T00:00:00Z~2"
        );
    }

    #[test]
    fn other_api_is_compared_to_the_millisecond() {
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
    fn delivered_version_survives_packing() {
        let known = DeliveredVersion::of(
            &record("2026-01-01T00:00:00.1234567Z", "redirected", &["a"]),
            3,
            IncidentApi::Defender,
        );
        assert_eq!(known.to_string().parse::<DeliveredVersion>(), Ok(known));
    }
}
