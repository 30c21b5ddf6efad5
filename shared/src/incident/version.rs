//! Versions of an incident: the last delivered one, and the comparison of a record with it.

use std::{
    cmp::Ordering,
    fmt::{self, Write as _},
    str::FromStr,
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::record::{Record, Severity, State};
use crate::{microsoft::IncidentApi, tenant::TenantId, text::format_with_capacity};

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
    /// The change with which it was delivered. `None`: the release that stored the version kept none.
    pub change: Option<Change>,
    /// The API that the record was read from.
    pub api: IncidentApi,
    /// The record had at least one alert.
    pub with_alerts: bool,
    /// The severity under which the registry counts the incident as open. It is stored beside the packed form.
    pub open: Option<Severity>,
    /// The version before this one, if this one's time lay in Microsoft's future when it was read.
    pub before: Option<Box<DeliveredVersion>>,
    /// The time since which Microsoft has shown only older records of the incident.
    pub older_since: Option<Timestamp>,
}

/// The time for which older records of an incident are stale reads.
pub const MAX_STALE: SignedDuration = SignedDuration::from_hours(1);

/// The bytes of a version's key with an id of twenty digits, and of its hash, which the name of an object is made of, too.
const KEY_CAPACITY: usize = 112;

/// The bytes of the packed form of a version, and some to spare.
const PACKED_CAPACITY: usize = 64;

/// The difference that clocks of Microsoft's servers may have.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(5);

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
    /// It is older than the last delivered version, because the response lags behind. Nothing is delivered.
    Stale,
}

/// The time at which a record was read, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadTime {
    /// The time by our clock.
    pub ours: Timestamp,
    /// The `Date` of the response, where it is known.
    pub microsofts: Option<Timestamp>,
}

impl ReadTime {
    /// Returns true for a time in Microsoft's future. Our clock must agree, because a wrong `Date` alone shows nothing.
    fn is_well_before(self, time: Timestamp) -> bool {
        self.microsofts.is_some_and(|date| time > date.max(self.ours) + MAX_CLOCK_SKEW)
    }
}

/// Compares a record with the last delivered version of its incident.
///
/// An older record is a stale read, unless the delivered time lies in Microsoft's future or Microsoft has shown only older
/// records for [`MAX_STALE`]. Then it is a version: Microsoft has put the time right.
///
/// After a tenant changed its API, times are compared to the millisecond until the new API has shown the incident once.
/// The two APIs need not agree on smaller fractions, nor on the ids of alerts, but on whether there are any.
pub fn compare(
    delivered: Option<&DeliveredVersion>,
    seen: &Record,
    api: IncidentApi,
    read_at: ReadTime,
) -> VersionComparison {
    let Some(delivered) = delivered else { return VersionComparison::New { change: Change::Created, ordinal: 1 } };
    let change = change_between(delivered.state, seen.state());
    let is_same_api = delivered.api == api;
    let order = if is_same_api {
        seen.last_updated.cmp(&delivered.last_updated)
    } else {
        seen.last_updated.as_millisecond().cmp(&delivered.last_updated.as_millisecond())
    };
    match order {
        Ordering::Less if delivered.is_overdue(read_at) => {
            VersionComparison::New { change, ordinal: earlier_ordinal(delivered, seen, read_at) }
        }
        Ordering::Less => VersionComparison::Stale,
        Ordering::Equal if !is_same_api && delivered.state == seen.state() && !adds_alerts(delivered, seen) => {
            VersionComparison::SameOnOtherApi
        }
        Ordering::Equal
            if is_same_api && (delivered.state_hash == seen.state_hash || omits_alerts(delivered, seen)) =>
        {
            VersionComparison::Same
        }
        Ordering::Equal | Ordering::Greater => {
            VersionComparison::New { change, ordinal: next_ordinal(delivered, seen) }
        }
    }
}

/// A record that was read without its alerts has another state hash, and says nothing about the alerts.
fn omits_alerts(delivered: &DeliveredVersion, seen: &Record) -> bool {
    seen.alerts.is_none() && delivered.with_alerts && delivered.state == seen.state()
}

/// A version that was delivered without alerts, for instance because Graph could not send them, lacks those of this record.
fn adds_alerts(delivered: &DeliveredVersion, seen: &Record) -> bool {
    !delivered.with_alerts && seen.alerts.is_some_and(|alerts| alerts > 0)
}

fn next_ordinal(delivered: &DeliveredVersion, seen: &Record) -> u32 {
    if delivered.last_updated == seen.last_updated { delivered.ordinal + 1 } else { 1 }
}

/// The ordinal of a version that is older than the delivered one. It is above 1 where a version with the same time may have
/// been delivered before.
fn earlier_ordinal(delivered: &DeliveredVersion, seen: &Record, read_at: ReadTime) -> u32 {
    match &delivered.before {
        Some(before) if seen.last_updated > before.last_updated => 1,
        Some(before) => before.ordinal + 1,
        None if read_at.is_well_before(delivered.last_updated) => 1,
        None => delivered.ordinal + 1,
    }
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
    /// The last delivered version once `record` is delivered with this ordinal, as the first of its incident.
    pub fn of(record: &Record, ordinal: u32, api: IncidentApi) -> Self {
        Self {
            last_updated: record.last_updated,
            state: record.state(),
            state_hash: record.state_hash.clone(),
            ordinal,
            change: Some(Change::Created),
            api,
            with_alerts: record.alerts.is_some_and(|alerts| alerts > 0),
            open: record.open_severity(),
            before: None,
            older_since: None,
        }
    }

    /// The last delivered version once `record` is delivered after this one.
    #[must_use]
    pub fn followed_by(&self, record: &Record, ordinal: u32, api: IncidentApi, read_at: ReadTime) -> Self {
        let change = Some(change_between(self.state, record.state()));
        let mut next = Self { change, ..Self::of(record, ordinal, api) };
        if read_at.is_well_before(record.last_updated) {
            next.before = if read_at.is_well_before(self.last_updated) {
                self.before.clone()
            } else {
                Some(Box::new(Self { before: None, older_since: None, ..self.clone() }))
            };
        }
        next
    }

    /// Returns true if an older record that is read now is not a stale read.
    fn is_overdue(&self, read_at: ReadTime) -> bool {
        read_at.is_well_before(self.last_updated)
            || self.older_since.is_some_and(|since| read_at.ours.duration_since(since) >= MAX_STALE)
    }

    /// The packed form that the registry stores, which [`fmt::Display`] writes.
    pub fn packed(&self) -> String {
        format_with_capacity(PACKED_CAPACITY, format_args!("{self}"))
    }

    /// Writes the parts of the packed form that all releases read and write.
    fn write_common_parts(&self, out: &mut impl fmt::Write) -> fmt::Result {
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
        write!(out, "{} {state}{api}{alerts} {} {}", self.last_updated, self.state_hash, self.ordinal)
    }

    fn common_parts(&self) -> String {
        let mut parts = String::with_capacity(PACKED_CAPACITY);
        // A String takes everything.
        let _ = self.write_common_parts(&mut parts);
        parts
    }

    /// The text for what [`fmt::Display`] leaves out of its history, if there is anything. The registry stores it beside the packed form,
    /// which older releases read. It begins with the parts that those read, so that it counts for this version only.
    pub fn notes(&self) -> Option<String> {
        let or_none = |part: Option<String>| part.unwrap_or_else(|| "-".into());
        let (since, before) = (self.older_since.map(|since| since.to_string()), self.before.as_ref());
        (since.is_some() || before.is_some())
            .then(|| format!("{}|{}|{}", self.common_parts(), or_none(since), or_none(before.map(ToString::to_string))))
    }

    /// This version with its notes. Notes of another version are ignored.
    #[must_use]
    pub fn with_notes(self, notes: &str) -> Self {
        let [version, since, before] = notes.split('|').collect::<Vec<_>>()[..] else { return self };
        if version != self.common_parts() {
            return self;
        }
        Self { older_since: since.parse().ok(), before: before.parse().ok().map(Box::new), ..self }
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
    /// The difference from the version before. `None`: it is not known, or not told because a caller reads it live.
    pub change: Option<Change>,
    /// Position among the versions with this time of last update: 1 for the first.
    pub ordinal: u32,
    /// The time of our call to Microsoft.
    pub fetched_at: Timestamp,
}

impl Version<'_> {
    /// The key by which consumers recognise a version that is delivered twice.
    pub fn key(&self) -> String {
        let Record { incident_id, last_updated, .. } = self.record;
        let mut key =
            format_with_capacity(KEY_CAPACITY, format_args!("{}/{incident_id}/{last_updated}", self.tenant_id));
        if self.ordinal > 1 {
            // A String takes everything.
            let _ = write!(key, "~{}", self.ordinal);
        }
        key
    }
}

/// The changes as the packed form marks them.
const CHANGE_MARKS: [(Change, &str); 5] = [
    (Change::Created, "c"),
    (Change::Updated, "u"),
    (Change::Merged, "m"),
    (Change::Reopened, "r"),
    (Change::Closed, "x"),
];

/// The packed form that the registry stores: `2026-01-01T00:00:00.1234567Z oga 0123456789abcdef 1 c`.
///
/// Its parts are the time of the last update, three marks, the state hash, the ordinal and the change. The marks are the
/// state (`o`pen, `r`esolved, `m`erged), the API (`g`raph, `d`efender) and the alerts (`a`, or `-` for none). The change is
/// a mark, too, and is missing where it is not known. A newer release may have other marks, and more parts behind these;
/// read as the first of each, the time and the hash still show what was delivered.
impl fmt::Display for DeliveredVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_common_parts(f)?;
        let mark = CHANGE_MARKS.iter().find(|(change, _)| Some(*change) == self.change);
        mark.map_or(Ok(()), |(_, mark)| write!(f, " {mark}"))
    }
}

/// The text is not the packed form of a [`DeliveredVersion`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotADeliveredVersion;

impl FromStr for DeliveredVersion {
    type Err = NotADeliveredVersion;

    fn from_str(text: &str) -> Result<Self, NotADeliveredVersion> {
        let parts: Vec<&str> = text.split(' ').collect();
        let [last_updated, marks, state_hash, ordinal, ref further @ ..] = parts[..] else {
            return Err(NotADeliveredVersion);
        };
        let [state, api, alerts, ..] = marks.as_bytes()[..] else { return Err(NotADeliveredVersion) };
        Ok(Self {
            last_updated: last_updated.parse().map_err(|_| NotADeliveredVersion)?,
            state: match state {
                b'r' => State::Resolved,
                b'm' => State::Redirected,
                _ => State::Open,
            },
            api: match api {
                b'd' => IncidentApi::Defender,
                _ => IncidentApi::Graph,
            },
            with_alerts: alerts == b'a',
            state_hash: state_hash.to_owned(),
            ordinal: ordinal.parse().map_err(|_| NotADeliveredVersion)?,
            change: CHANGE_MARKS.iter().find(|(_, mark)| further.first() == Some(mark)).map(|(change, _)| *change),
            open: None,
            before: None,
            older_since: None,
        })
    }
}

#[cfg(test)]
mod tests;
