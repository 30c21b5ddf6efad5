//! Incidents as OCSF events, for consumers that want one schema over all vendors.
//!
//! The events follow OCSF 1.8.0, class 2005,
//! [Incident Finding](https://schema.ocsf.io/1.8.0/classes/incident_finding), with the profile `incident`. Times are
//! milliseconds of the epoch.
//!
//! Nothing is lost. A member without a place in the schema is in `unmapped`, under the name and with the value that
//! Microsoft sent, unless it is null. Such members of alerts are in `unmapped.alerts`, in the order of the alerts. A member
//! stays there, too, where its place in the schema holds less than it does: the classification, the priority score, the
//! list of comments, and the evidence, to which `observables` points. Times lose the fraction of a millisecond, except
//! that `metadata.original_time` keeps the last update as it was sent. A time that was never set, like year 1, stays in
//! `unmapped`.

mod alert;
mod json;
mod observables;

use serde_json::{Map, Value, json, value::RawValue};

use self::{
    alert::{attacks_of_all, findings},
    json::{distinct, lossless_value, milliseconds, present, take_link, take_text, take_texts, text},
    observables::observables,
};
use super::{
    record::{Record, State, names_of, parse_time, snake_case},
    version::{Change, Version},
};
use crate::error::{Error, Result};

const SCHEMA_VERSION: &str = "1.8.0";
const CATEGORY: u32 = 2;
const CLASS: u32 = 2005;

/// The Incident Finding of a version.
///
/// - `finding_info_list` has one entry for each alert. The schema requires the list. So an incident without alerts, or
///   one that was read without them, is its own only entry.
/// - The schema requires one of `assignee` and `assignee_group`. An incident that is assigned to no person has the group
///   `Unassigned`.
/// - A version that is resolved when it is first delivered has the activity Close.
/// - A live read has no tag `change`. Its `activity_id` is what the record shows: a resolved incident is closed, one that
///   was not updated since its creation is created, any other is updated.
/// - The incident that this one was merged into is a related event of each finding.
/// - A record that lacks its alerts is marked as truncated, with its size in units of 1,024 bytes where that is known.
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
    let priority = priority(&sent);
    let status = status(record, &sent);
    let verdict = verdict(&sent);
    let names = |graph, defender| names_of(version.api, graph, defender);
    let title = take_text(&mut sent, &names("displayName", "incidentName"));
    let desc = take_text(&mut sent, &["description"]);
    let (assignee_member, assignee) = assignee(record, &mut sent);
    let findings = finding_info_list(version, title.as_deref(), desc.as_deref(), &mut sent);
    let time_of = |finding: &Value, name: &str| finding[name].as_i64();

    let mut event = present(json!({
        "activity_id": activity.id,
        "activity_name": activity.caption,
        "attacks": attacks_of_all(&findings),
        "category_name": "Findings",
        "category_uid": CATEGORY,
        "class_name": "Incident Finding",
        "class_uid": CLASS,
        "comment": comment(&mut sent),
        "desc": desc,
        "end_time": findings.iter().filter_map(|finding| time_of(finding, "last_seen_time")).max(),
        "message": title,
        "metadata": metadata,
        "priority": priority.as_ref().map(|priority| &priority.caption),
        "priority_id": priority.as_ref().map(|priority| priority.id),
        "severity": severity.caption,
        "severity_id": severity.id,
        "src_url": take_link(&mut sent, &names("incidentWebUrl", "incidentUri")),
        "start_time": findings.iter().filter_map(|finding| time_of(finding, "first_seen_time")).min(),
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
    // The three that may be large are moved in, not copied.
    event["finding_info_list"] = Value::Array(findings);
    let observables = observables(&sent);
    if !observables.is_empty() {
        event["observables"] = Value::Array(observables);
    }
    if let Some(rest) = unmapped(sent) {
        event["unmapped"] = rest;
    }
    Ok(event)
}

/// The findings of the alerts. An incident without any is its own only finding.
fn finding_info_list(
    version: &Version<'_>,
    title: Option<&str>,
    desc: Option<&str>,
    sent: &mut Map<String, Value>,
) -> Vec<Value> {
    let record = version.record;
    let mut findings = findings(record, version.api, sent);
    if findings.is_empty() {
        findings.push(present(json!({
            "uid": record.incident_id,
            "title": title,
            "desc": desc,
            "types": ["Incident"],
            "created_time": record.created.and_then(milliseconds),
            "modified_time": record.last_updated.as_millisecond(),
        })));
    }
    if let Some(target) = &record.merged_into {
        sent.remove("redirectIncidentId");
        let desc = "The incident that this one was merged into.";
        let related = json!([{"uid": target, "type": "Incident", "desc": desc}]);
        for finding in &mut findings {
            finding["related_events"] = related.clone();
        }
    }
    findings
}

/// The origin of the event. `correlation_uid` is the same for all versions of one incident.
fn metadata(version: &Version<'_>, sent: &mut Map<String, Value>) -> Value {
    let record = version.record;
    let is_truncated = record.alerts != Some(0) && !sent.contains_key("alerts");
    let mut tags = vec![json!({"name": "api", "value": version.api})];
    tags.extend(version.change.map(|change| json!({"name": "change", "value": change})));
    let of_customer = ["customTags", "tags"].map(|name| take_texts(sent, name));
    let of_microsoft = take_texts(sent, "systemTags");
    if !of_microsoft.is_empty() {
        // Among the labels they look like the customer's own.
        tags.push(json!({"name": "system_tags", "values": of_microsoft}));
    }
    for mapped in ["id", "incidentId", "tenantId"] {
        sent.remove(mapped);
    }
    present(json!({
        "correlation_uid": format!("{}/{}", version.tenant_id, record.incident_id),
        "is_truncated": is_truncated.then_some(true),
        "labels": distinct(of_customer.into_iter().flatten().chain(of_microsoft)),
        "logged_time": version.fetched_at.as_millisecond(),
        "original_event_uid": record.incident_id,
        "original_time": take_text(sent, &names_of(version.api, "lastUpdateDateTime", "lastUpdateTime")),
        "product": {"name": "Microsoft Defender XDR", "vendor_name": "Microsoft"},
        "profiles": ["incident"],
        "tags": tags,
        "tenant_uid": version.tenant_id,
        "uid": version.key(),
        "untruncated_size": record.untruncated_bytes.filter(|_| is_truncated).map(|bytes| bytes.div_ceil(1024)),
        "version": SCHEMA_VERSION,
    }))
}

fn activity(change: Option<Change>, record: &Record) -> Item {
    match change {
        Some(Change::Closed) => Item::of(3, "Close"),
        None | Some(Change::Created) if record.state() == State::Resolved => Item::of(3, "Close"),
        Some(Change::Created) => Item::of(1, "Create"),
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

/// The priority by Microsoft's own bounds of the score.
fn priority(sent: &Map<String, Value>) -> Option<Item> {
    let score = sent.get("priorityScore")?.as_f64()?;
    Some(match score {
        _ if score > 85.0 => Item::of(4, "Critical"),
        _ if score >= 15.0 => Item::of(2, "Medium"),
        _ => Item::of(1, "Low"),
    })
}

/// The comment of the resolution, or else the newest comment. The schema has one comment, without author and time.
fn comment(sent: &mut Map<String, Value>) -> Option<String> {
    let newest = |comments: &Value| {
        let comments = comments.as_array()?.iter().filter_map(Value::as_object);
        let dated = comments.filter_map(|comment| {
            let time = ["createdDateTime", "createdTime"].iter().find_map(|name| text(comment, name));
            Some((time.and_then(parse_time), text(comment, "comment")?))
        });
        dated.max_by_key(|(time, _)| *time).map(|(_, comment)| comment.to_owned())
    };
    take_text(sent, &["resolvingComment"]).or_else(|| newest(sent.get("comments")?))
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

/// The verdict by the classification and, where it leaves two open, by the determination.
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
