//! One page of a list: the newest incidents that the caller wants, bounded in number and in bytes.

use std::{cmp::Reverse, collections::BTreeMap};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::{incident::record::Record, tenant::TenantId, text::LossyText};

/// The maximum size of the incidents in one response, as [`escaped_len`] counts. Lambda allows 6 MB, and the rest of the
/// response needs a part of it.
pub(crate) const MAX_RESPONSE_BYTES: usize = 5_500_000;

/// The place of an incident in a list, which begins with the newest last update.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Position {
    newest_first: Reverse<Timestamp>,
    /// `None` comes before all tenants. No incident has that position.
    tenant: Option<TenantId>,
    /// The length comes first, so that identifiers are in the order of their numbers.
    incident_id: (usize, String),
}

impl Position {
    /// The position of a record of `tenant`.
    pub(crate) fn of(tenant: TenantId, record: &Record) -> Self {
        let incident_id = (record.incident_id.len(), record.incident_id.clone());
        Self { newest_first: Reverse(record.last_updated), tenant: Some(tenant), incident_id }
    }

    /// The position between the incidents last updated at `begin` or later and all older ones.
    fn after_all_since(begin: Timestamp) -> Self {
        let before = begin.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(Timestamp::MIN);
        Self { newest_first: Reverse(before), tenant: None, incident_id: (0, String::new()) }
    }

    /// The time of last update.
    pub(super) fn last_updated(&self) -> Timestamp {
        self.newest_first.0
    }

    /// The identifier of the incident.
    pub(super) fn incident_id(&self) -> &str {
        &self.incident_id.1
    }
}

/// A rendered incident of a list.
pub(crate) struct Row {
    pub(crate) position: Position,
    pub(crate) incident: Box<RawValue>,
}

/// The rows of one tenant for a page.
#[derive(Default)]
pub(crate) struct TenantPage {
    pub(crate) rows: Vec<Row>,
    /// The position up to which no row is missing; `None`: up to the end of the list.
    pub(crate) complete_to: Option<Position>,
}

/// The length of JSON as a string within Lambda's own JSON, where a quote and a backslash take two bytes. Nothing else
/// is escaped: serde wrote the JSON, or it is Microsoft's without white space.
pub(crate) fn escaped_len(json: &str) -> usize {
    json.len() + json.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count()
}

/// Returns a record that fits into a response: the record itself, or else the record without its alerts. `None`: even
/// that is too large.
///
/// A list does not end at a large incident. Its reader sees that the member `alerts` is missing, which is an empty array
/// in an incident that has none. The hash stays that of the whole record, so that the key is the one under which the
/// version was or will be delivered.
pub(super) fn truncate_to_fit(record: Record) -> Option<Record> {
    if escaped_len(&record.json) <= MAX_RESPONSE_BYTES { Some(record) } else { without_alerts(&record) }
}

/// Returns a record without its alerts, if it has any and fits into a response then.
pub(super) fn without_alerts(record: &Record) -> Option<Record> {
    let members: BTreeMap<LossyText<'_>, &RawValue> = serde_json::from_str(&record.json).ok()?;
    let mut members: BTreeMap<_, _> = members.into_iter().map(|(name, value)| (name.0, value)).collect();
    members.remove("alerts")?;
    let json = serde_json::to_string(&members).ok()?;
    let record = Record { untruncated_bytes: Some(record.json.len()), json: json.into(), ..record.clone() };
    Some(record).filter(|record| escaped_len(&record.json) <= MAX_RESPONSE_BYTES)
}

/// Collects the newest incidents of one tenant, bounded in number and in bytes.
pub(super) struct PageBuilder {
    pub(super) rows: BTreeMap<Position, Record>,
    bytes: usize,
    max_rows: usize,
    /// The newest incident that was left out. No older one is added, however small, because a list has no gaps.
    left_out: Option<Position>,
}

impl PageBuilder {
    /// A page of at most `limit` incidents.
    pub(super) fn new(limit: u32) -> Self {
        Self { rows: BTreeMap::new(), bytes: 0, max_rows: limit as usize, left_out: None }
    }

    /// Adds a record that [`truncate_to_fit`] returned. At least the newest one therefore stays.
    pub(super) fn add(&mut self, position: Position, record: Record) {
        if self.left_out.as_ref().is_some_and(|left_out| position >= *left_out) {
            return;
        }
        self.bytes += escaped_len(&record.json);
        if let Some(replaced) = self.rows.insert(position, record) {
            self.bytes -= escaped_len(&replaced.json);
        }
        while self.rows.len() > self.max_rows || self.bytes > MAX_RESPONSE_BYTES {
            let Some((position, oldest)) = self.rows.pop_last() else { return };
            self.bytes -= escaped_len(&oldest.json);
            self.left_out = Some(position);
        }
    }

    /// The position up to which no incident is missing, if everything last updated from `read_from` on was added.
    /// `read_from` is `None` where the whole list was, and so is the result where no incident was left out.
    pub(super) fn complete_to(&self, read_from: Option<Timestamp>) -> Option<Position> {
        let oldest = self.rows.last_key_value().map(|(oldest, _)| oldest.clone());
        let oldest = oldest.filter(|_| self.left_out.is_some());
        [oldest, read_from.map(Position::after_all_since)].into_iter().flatten().min()
    }

    /// Returns true if no incident older than `read_from` can belong to the page any more.
    pub(super) fn is_full(&self, read_from: Timestamp) -> bool {
        self.left_out.is_some()
            && self.rows.last_key_value().is_some_and(|(oldest, _)| oldest.last_updated() >= read_from)
    }
}

#[cfg(test)]
mod tests {
    use shared::{incident::record::Alerts, microsoft::IncidentApi};

    use super::*;

    fn tenant() -> TenantId {
        "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap()
    }

    #[test]
    fn page_bounded_by_bytes_has_no_gaps() {
        let record = |second: u32, bytes: usize| {
            let note = "x".repeat(bytes);
            let json = format!(r#"{{"id":"1","lastUpdateDateTime":"2026-11-22T09:00:{second:02}Z","note":"{note}"}}"#);
            Record::parse(json.as_bytes(), &tenant(), IncidentApi::Graph, Alerts::Included).unwrap()
        };
        let mut page = PageBuilder::new(50);
        for (second, bytes) in [(30, MAX_RESPONSE_BYTES - 1_000), (20, 5_000), (10, 1), (40, 1)] {
            let record = record(second, bytes);
            page.add(Position::of(tenant(), &record), record);
        }
        let times: Vec<String> = page.rows.values().map(|record| record.last_updated.to_string()).collect();
        let kept = ["2026-11-22T09:00:40Z", "2026-11-22T09:00:30Z"];
        assert_eq!(times, kept, "incidents older than one that was left out come on the next page");
        assert_eq!(page.complete_to(None), Some(Position::of(tenant(), &record(30, 1))));
    }

    #[test]
    fn large_incident_loses_its_alerts_or_is_left_out() {
        let sent = |alerts: usize, note: usize| {
            let (alert, note) = (format!(r#"{{"id":"{}"}}"#, "a".repeat(1_000)), "x".repeat(note));
            let alerts = vec![alert; alerts].join(",");
            let json = format!(
                r#"{{"id":"1","lastUpdateDateTime":"2026-11-22T09:00:00Z","alerts":[{alerts}],"note":"{note}"}}"#
            );
            Record::parse(json.as_bytes(), &tenant(), IncidentApi::Graph, Alerts::Included).unwrap()
        };
        let small = sent(1, 1);
        assert_eq!(truncate_to_fit(small.clone()), Some(small));
        let giant = sent(6_000, 1);
        let truncated = truncate_to_fit(giant.clone()).unwrap();
        assert_eq!(&*truncated.json, r#"{"id":"1","lastUpdateDateTime":"2026-11-22T09:00:00Z","note":"x"}"#);
        assert_eq!(
            (truncated.state_hash, truncated.alerts),
            (giant.state_hash, giant.alerts),
            "its key is that of the whole record"
        );
        assert_eq!(truncate_to_fit(sent(1, MAX_RESPONSE_BYTES)), None);
    }

    #[test]
    fn odd_member_name_keeps_no_incident_out_of_a_list() {
        let alert = "a".repeat(MAX_RESPONSE_BYTES);
        let json = format!(
            r#"{{"id":"1","lastUpdateDateTime":"2026-11-22T09:00:00Z","x\ud83d":1,"x":1,"x":2,"alerts":[{{"id":"{alert}"}}]}}"#
        );
        let record = Record::parse(json.as_bytes(), &tenant(), IncidentApi::Graph, Alerts::Included).unwrap();
        let truncated = truncate_to_fit(record.clone()).unwrap();
        assert!(truncated.json.len() < 200, "{}", truncated.json);
        assert_eq!(truncated.untruncated_bytes, Some(record.json.len()));
    }
}
