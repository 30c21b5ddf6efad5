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
mod findings;
mod json;
mod observables;

use std::{
    cell::RefCell,
    io::{self, BufWriter, Write},
};

use serde::{Serialize, Serializer as _, ser::SerializeMap as _};
use serde_json::{Map, Value, json};

use self::{
    findings::{Findings, UnmappedAlerts},
    json::{distinct, members_and_alerts, milliseconds, present, take_link, take_text, take_texts, text},
};
use super::{
    record::{Record, State, names_of, parse_time, snake_case},
    version::{Change, Version},
};

const SCHEMA_VERSION: &str = "1.8.0";
const CATEGORY: u32 = 2;
const CLASS: u32 = 2005;

/// Writes the Incident Finding of a version as JSON, alert by alert.
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
/// Those of `out`, and none because of the content of a record.
pub fn write_incident_finding(version: &Version<'_>, out: impl Write) -> io::Result<()> {
    let record = version.record;
    let (mut sent, alerts) = members_and_alerts(&record.json);
    let head = head(version, &mut sent);
    if record.merged_into.is_some() {
        sent.remove("redirectIncidentId");
    }

    let findings = RefCell::new(Findings::new(record, version.api));
    findings.borrow_mut().observables.add_evidence("unmapped", &sent);
    sent.retain(|name, value| !value.is_null() && !name.starts_with("@odata."));
    let alerts = alerts.map(|sent| UnmappedAlerts { sent, findings: &findings });
    let unmapped = Unmapped { members: sent, alerts };

    // Each alert is read once, while what is left of it is written. So `unmapped` comes before the findings.
    let mut serializer = serde_json::Serializer::new(BufWriter::new(out));
    let mut event = serializer.serialize_map(None)?;
    for (name, value) in head.as_object().into_iter().flatten() {
        event.serialize_entry(name, value)?;
    }
    if !unmapped.is_empty() {
        event.serialize_entry("unmapped", &unmapped)?;
    }
    let own_finding = || {
        present(json!({
            "uid": record.incident_id,
            "title": head.get("message"),
            "desc": head.get("desc"),
            "types": ["Incident"],
            "created_time": record.created.and_then(milliseconds),
            "modified_time": record.last_updated.as_millisecond(),
        }))
    };
    findings.into_inner().write_to(&mut event, own_finding)?;
    event.end()?;
    serializer.into_inner().flush()
}

/// The members of the event that its alerts have no part in.
fn head(version: &Version<'_>, sent: &mut Map<String, Value>) -> Value {
    let record = version.record;
    let metadata = metadata(version, sent);
    let activity = activity(version.change, record);
    let severity = severity(record, sent);
    let priority = priority(sent);
    let status = status(record, sent);
    let verdict = verdict(sent);
    let names = |graph, defender| names_of(version.api, graph, defender);
    let (assignee_member, assignee) = assignee(record, sent);
    let mut head = present(json!({
        "activity_id": activity.id,
        "activity_name": activity.caption,
        "category_name": "Findings",
        "category_uid": CATEGORY,
        "class_name": "Incident Finding",
        "class_uid": CLASS,
        "comment": comment(sent),
        "desc": take_text(sent, &["description"]),
        "message": take_text(sent, &names("displayName", "incidentName")),
        "metadata": metadata,
        "priority": priority.as_ref().map(|priority| &priority.caption),
        "priority_id": priority.as_ref().map(|priority| priority.id),
        "severity": severity.caption,
        "severity_id": severity.id,
        "src_url": take_link(sent, &names("incidentWebUrl", "incidentUri")),
        "status": status.caption,
        "status_code": take_text(sent, &["status"]),
        "status_id": status.id,
        "time": record.last_updated.as_millisecond(),
        "type_name": format!("Incident Finding: {}", activity.caption),
        "type_uid": CLASS * 100 + activity.id,
        "verdict": verdict.caption,
        "verdict_id": verdict.id,
    }));
    head[assignee_member] = assignee;
    head
}

/// The members without a place in the schema.
#[derive(Serialize)]
struct Unmapped<'a, 'record> {
    #[serde(flatten)]
    members: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alerts: Option<UnmappedAlerts<'a, 'record>>,
}

impl Unmapped<'_, '_> {
    fn is_empty(&self) -> bool {
        self.members.is_empty() && self.alerts.is_none()
    }
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
