//! Incidents as OCSF events, for consumers that want one schema over all vendors.
//!
//! The events follow OCSF 1.7.0, class 2005,
//! [Incident Finding](https://schema.ocsf.io/1.7.0/classes/incident_finding), with the profile `incident`. It is the
//! first release with every attribute that is used here. The events are valid under 1.8.0, too. Times are milliseconds
//! of the epoch.
//!
//! Nothing is lost. A member without a place in the schema is in `unmapped`, under the name and with the value that
//! Microsoft sent, unless it is null. Such members of alerts are in `unmapped.alerts`, in the order of the alerts. Times
//! lose the fraction of a millisecond, except that `metadata.original_time` keeps the last update as it was sent.

mod alert;
mod json;

use jiff::Timestamp;
use serde_json::{Map, Value, json, value::RawValue};

use self::{
    alert::{attacks_of_all, findings},
    json::{lossless_value, present, take_link, take_text, text},
};
use super::{
    record::{Record, State, snake_case},
    version::{Change, Version},
};
use crate::error::{Error, Result};

const SCHEMA_VERSION: &str = "1.7.0";
const CATEGORY: u32 = 2;
const CLASS: u32 = 2005;

/// The Incident Finding of a version.
///
/// - `finding_info_list` has one entry for each alert. The schema requires the list. So an incident without alerts, or
///   one that was read without them, is its own only entry.
/// - The schema requires one of `assignee` and `assignee_group`. An incident that is assigned to no person has the group
///   `Unassigned`.
/// - A live read has no tag `change`. Its `activity_id` is what the record shows: a resolved incident is closed, one that
///   was not updated since its creation is created, any other is updated.
/// - A number that a 64-bit integer or float would round is the text of its digits. Half a surrogate pair, which no text
///   can hold, is U+FFFD.
///
/// # Errors
/// None because of the content of a record.
pub fn incident_finding(version: &Version<'_>) -> Result<Value> {
    let record = version.record;
    let raw: &RawValue = serde_json::from_str(&record.json)
        .map_err(|error| Error::internal("a parsed record is no longer JSON", error))?;
    let mut sent = match lossless_value(raw) {
        Value::Object(members) => members,
        other => Map::from_iter([("record".to_owned(), other)]),
    };

    let metadata = metadata(version, &mut sent);
    let activity = activity(version.change, record);
    let severity = severity(record, &mut sent);
    let status = status(record, &sent);
    let verdict = verdict(&sent);
    let title = take_text(&mut sent, &["displayName", "incidentName"]);
    let desc = take_text(&mut sent, &["description"]);
    let (assignee_member, assignee) = assignee(record, &mut sent);
    let mut findings = findings(record, &mut sent);
    let start = findings.iter().filter_map(|finding| finding["first_seen_time"].as_i64()).min();
    let end = findings.iter().filter_map(|finding| finding["last_seen_time"].as_i64()).max();
    let attacks = attacks_of_all(&findings);
    if findings.is_empty() {
        findings.push(present(json!({
            "uid": record.incident_id,
            "title": title,
            "desc": desc,
            "types": ["Incident"],
            "created_time": record.created.map(Timestamp::as_millisecond),
            "modified_time": record.last_updated.as_millisecond(),
        })));
    }

    let mut event = present(json!({
        "activity_id": activity.id,
        "activity_name": activity.caption,
        "attacks": attacks,
        "category_name": "Findings",
        "category_uid": CATEGORY,
        "class_name": "Incident Finding",
        "class_uid": CLASS,
        "comment": take_text(&mut sent, &["resolvingComment"]),
        "desc": desc,
        "end_time": end,
        "message": title,
        "metadata": metadata,
        "severity": severity.caption,
        "severity_id": severity.id,
        "src_url": take_link(&mut sent, &["incidentWebUrl", "incidentUri"]),
        "start_time": start,
        "status": status.caption,
        "status_code": take_text(&mut sent, &["status"]),
        "status_id": status.id,
        "time": record.last_updated.as_millisecond(),
        "type_name": format!("Incident Finding: {}", activity.caption),
        "type_uid": CLASS * 100 + activity.id,
        "verdict": verdict.caption,
        "verdict_id": verdict.id,
    }));
    event[assignee_member] = assignee;
    // The two that may be large are moved in, not copied.
    event["finding_info_list"] = Value::Array(findings);
    if let Some(rest) = unmapped(sent) {
        event["unmapped"] = rest;
    }
    Ok(event)
}

/// The origin of the event. `correlation_uid` is the same for all versions of one incident.
fn metadata(version: &Version<'_>, sent: &mut Map<String, Value>) -> Value {
    let record = version.record;
    let mut tags = vec![json!({"name": "api", "value": version.api})];
    tags.extend(version.change.map(|change| json!({"name": "change", "value": change})));
    for mapped in ["id", "incidentId", "tenantId"] {
        sent.remove(mapped);
    }
    present(json!({
        "correlation_uid": format!("{}/{}", version.tenant_id, record.incident_id),
        "logged_time": version.fetched_at.as_millisecond(),
        "original_event_uid": record.incident_id,
        "original_time": take_text(sent, &["lastUpdateDateTime", "lastUpdateTime"]),
        "product": {"name": "Microsoft Defender XDR", "vendor_name": "Microsoft"},
        "profiles": ["incident"],
        "tags": tags,
        "tenant_uid": version.tenant_id,
        "uid": version.key(),
        "version": SCHEMA_VERSION,
    }))
}

fn activity(change: Option<Change>, record: &Record) -> Item {
    match change {
        Some(Change::Created) => Item::of(1, "Create"),
        Some(Change::Closed) => Item::of(3, "Close"),
        None if record.state() == State::Resolved => Item::of(3, "Close"),
        None if record.created == Some(record.last_updated) => Item::of(1, "Create"),
        None | Some(Change::Updated | Change::Merged | Change::Reopened) => Item::of(2, "Update"),
    }
}

/// A value of one of OCSF's enumerations. The caption is the schema's. For `Other` it is the word that was sent.
#[derive(Debug, PartialEq)]
struct Item {
    id: u32,
    caption: String,
}

impl Item {
    fn of(id: u32, caption: &str) -> Self {
        Self { id, caption: caption.to_owned() }
    }

    fn unknown() -> Self {
        Self::of(0, "Unknown")
    }

    fn other(word: &str) -> Self {
        Self::of(99, word)
    }
}

fn severity(record: &Record, sent: &mut Map<String, Value>) -> Item {
    let item = match record.severity.as_deref().unwrap_or_default() {
        "" | "unknown" | "un_specified" | "unspecified" | "unknown_future_value" => Item::unknown(),
        "informational" => Item::of(1, "Informational"),
        "low" => Item::of(2, "Low"),
        "medium" => Item::of(3, "Medium"),
        "high" => Item::of(4, "High"),
        "critical" => Item::of(5, "Critical"),
        other => Item::other(text(sent, "severity").unwrap_or(other)),
    };
    if item.id != 0 {
        sent.remove("severity");
    }
    item
}

fn status(record: &Record, sent: &Map<String, Value>) -> Item {
    match (record.state(), record.status.as_str()) {
        (State::Redirected, _) => Item::other("Redirected"),
        (State::Resolved, _) => Item::of(4, "Resolved"),
        (State::Open, "" | "unknown" | "unknown_future_value") => Item::unknown(),
        (State::Open, "active" | "new") => Item::of(1, "New"),
        (State::Open, "in_progress") => Item::of(2, "In Progress"),
        (State::Open, "awaiting_action") => Item::of(3, "On Hold"),
        (State::Open, other) => Item::other(text(sent, "status").unwrap_or(other)),
    }
}

/// The verdict by the classification and, where it leaves two open, by the determination. Both stay in `unmapped`,
/// because the verdict holds less than they do.
fn verdict(sent: &Map<String, Value>) -> Item {
    let classification = text(sent, "classification").unwrap_or_default();
    let determination = text(sent, "determination").map(snake_case).unwrap_or_default();
    match (snake_case(classification).as_str(), determination.as_str()) {
        ("" | "unknown" | "unknown_future_value", _) => Item::unknown(),
        ("true_positive", _) => Item::of(2, "True Positive"),
        ("false_positive", "insufficient_data" | "not_enough_data_to_validate" | "no_enough_data_to_validate") => {
            Item::of(7, "Insufficient Data")
        }
        ("false_positive", _) => Item::of(1, "False Positive"),
        ("informational_expected_activity", "security_testing") => Item::of(6, "Test"),
        ("informational_expected_activity", _) => Item::of(5, "Benign"),
        _ => Item::other(classification),
    }
}

/// The member `assignee` or `assignee_group`, with its value.
fn assignee(record: &Record, sent: &mut Map<String, Value>) -> (&'static str, Value) {
    let Some(name) = &record.assigned_to else {
        let desc = "Nobody is assigned; the schema requires an assignee or a group.";
        return ("assignee_group", json!({"name": "Unassigned", "desc": desc}));
    };
    sent.remove("assignedTo");
    // The schema requires a user's name.
    ("assignee", present(json!({"name": name, "email_addr": is_email(name).then_some(name)})))
}

fn unmapped(mut rest: Map<String, Value>) -> Option<Value> {
    rest.retain(|name, value| !value.is_null() && !name.starts_with("@odata."));
    (!rest.is_empty()).then_some(Value::Object(rest))
}

/// Returns whether a text is an address by the schema's pattern of `email_t`.
fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let Some((host, top)) = domain.split_once('.') else { return false };
    let letters = |text: &str, others: &str| {
        !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric() || others.contains(letter))
    };
    letters(local, "!#$%&'*+,-./=?^_`{|}~") && letters(host, "-") && letters(top, "-.")
}

#[cfg(test)]
mod tests;
