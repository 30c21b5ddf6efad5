//! Incidents as OCSF events, for consumers that want one schema over all vendors.
//!
//! Follows OCSF 1.7.0, [Incident Finding](https://schema.ocsf.io/1.7.0/classes/incident_finding) (class 2005) with the
//! profile `incident`. It is the first release with every attribute that is used here; the events are valid under 1.8.0,
//! too. Times are milliseconds of the epoch.
//!
//! Nothing is lost: what has no place in the schema is in `unmapped`, under the names and with the values that Microsoft
//! sent, without nulls. The same goes for each alert, in `unmapped.alerts`, in the order that they were sent in. Only the
//! fractions of a millisecond go, and `metadata.original_time` keeps those of the last update.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, de::Visitor};
use serde_json::{Map, Number, Value, json, value::RawValue};

use crate::{
    error::{Error, Result},
    incident::{
        record::{Record, State, snake_case, time},
        version::Change,
    },
    microsoft::IncidentApi,
    tenant::TenantId,
};

const SCHEMA_VERSION: &str = "1.7.0";
const CATEGORY: u32 = 2;
const CLASS: u32 = 2005;

/// Below this nesting JSON stays text.
const DEEPEST: usize = 64;

/// One version of an incident, on its way to being an OCSF event.
#[derive(Clone, Copy, Debug)]
pub struct Finding<'a> {
    /// Whose incident it is: `metadata.tenant_uid`.
    pub tenant_id: &'a TenantId,
    /// Where it was read: the tag `api`.
    pub api: IncidentApi,
    /// The incident.
    pub record: &'a Record,
    /// How it differs from the version before: the tag `change`. None where it is read live; `activity_id` then says what
    /// the record shows: a resolved incident is closed, one that was not updated since is created, any other is updated.
    pub change: Option<Change>,
    /// The key of the version: `metadata.uid`.
    pub key: &'a str,
    /// When it was read: `metadata.logged_time`.
    pub fetched_at: Timestamp,
}

/// The Incident Finding of a version. The content of a record never makes it fail.
///
/// - `finding_info_list` has one entry for each alert. The schema requires the list, so an incident that has no alerts, or
///   was read without them, stands in it itself.
/// - The schema requires one of `assignee` and `assignee_group`: nobody assigned is a group named `Unassigned`, and there
///   is no `assignee`.
/// - A number that JSON's usual reading would round or refuse is the text of its digits. Half a surrogate pair, which no
///   text can hold, is U+FFFD.
pub fn incident_finding(finding: &Finding<'_>) -> Result<Value> {
    let record = finding.record;
    let raw: &RawValue = serde_json::from_str(&record.json)
        .map_err(|_| Error::Internal("a record that was read is no longer JSON".into()))?;
    let mut sent = match faithful(raw, 0) {
        Value::Object(members) => members,
        other => Map::from_iter([("record".to_owned(), other)]),
    };

    let metadata = metadata(finding, &mut sent);
    let (activity_id, activity_name) = activity(finding.change, record);
    let severity = severity(record, &mut sent);
    let status = status(record, &sent);
    let verdict = verdict(&sent);
    let title = take_text(&mut sent, &["displayName", "incidentName"]);
    let desc = take_text(&mut sent, &["description"]);
    let (assignee, assignee_group) = assignee(record, &mut sent);
    let mut findings = alerts(record, &mut sent);
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
        "activity_id": activity_id,
        "activity_name": activity_name,
        "assignee": assignee,
        "assignee_group": assignee_group,
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
        "type_name": format!("Incident Finding: {activity_name}"),
        "type_uid": CLASS * 100 + activity_id,
        "verdict": verdict.caption,
        "verdict_id": verdict.id,
    }));
    // The two that may be large are moved in, not copied.
    event["finding_info_list"] = Value::Array(findings);
    if let Some(rest) = unmapped(sent) {
        event["unmapped"] = rest;
    }
    Ok(event)
}

/// Where the event comes from. `correlation_uid` is the same for all versions of one incident.
fn metadata(finding: &Finding<'_>, sent: &mut Map<String, Value>) -> Value {
    let record = finding.record;
    let mut tags = vec![json!({"name": "api", "value": finding.api})];
    tags.extend(finding.change.map(|change| json!({"name": "change", "value": change})));
    for mapped in ["id", "incidentId", "tenantId"] {
        sent.remove(mapped);
    }
    present(json!({
        "correlation_uid": format!("{}/{}", finding.tenant_id, record.incident_id),
        "logged_time": finding.fetched_at.as_millisecond(),
        "original_event_uid": record.incident_id,
        "original_time": take_text(sent, &["lastUpdateDateTime", "lastUpdateTime"]),
        "product": {"name": "Microsoft Defender XDR", "vendor_name": "Microsoft"},
        "profiles": ["incident"],
        "tags": tags,
        "tenant_uid": finding.tenant_id,
        "uid": finding.key,
        "version": SCHEMA_VERSION,
    }))
}

fn activity(change: Option<Change>, record: &Record) -> (u32, &'static str) {
    match change {
        Some(Change::Created) => (1, "Create"),
        Some(Change::Closed) => (3, "Close"),
        None if record.state() == State::Resolved => (3, "Close"),
        None if record.created == Some(record.last_updated) => (1, "Create"),
        None | Some(Change::Updated | Change::Merged | Change::Reopened) => (2, "Update"),
    }
}

/// A value of one of OCSF's enumerations. Its caption is the schema's, or the word that was sent where it is `Other`.
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

/// The classification decides, and the determination tells apart what it leaves open. Both stay in `unmapped`: the verdict
/// holds less than they do.
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

/// The user and the group that the incident is assigned to: exactly one of them is there.
fn assignee(record: &Record, sent: &mut Map<String, Value>) -> (Option<Value>, Option<Value>) {
    let Some(name) = &record.assigned_to else {
        let desc = "Nobody is assigned; the schema requires an assignee or a group.";
        return (None, Some(json!({"name": "Unassigned", "desc": desc})));
    };
    sent.remove("assignedTo");
    // A user needs a name, whatever else there is.
    (Some(present(json!({"name": name, "email_addr": is_email(name).then_some(name)}))), None)
}

/// One finding for each alert. What they hold beyond that stays where it was.
fn alerts(record: &Record, sent: &mut Map<String, Value>) -> Vec<Value> {
    let Some(Value::Array(alerts)) = sent.get_mut("alerts") else { return Vec::new() };
    let objects = alerts.iter_mut().enumerate().filter_map(|(index, alert)| Some((index, alert.as_object_mut()?)));
    let findings = objects.map(|(index, alert)| {
        let finding = finding_info(alert, || format!("{}#{index}", record.incident_id));
        alert.retain(|_, value| !value.is_null());
        finding
    });
    findings.collect()
}

/// An alert's finding. `unnamed` stands for an identifier where none was sent: the schema requires one. The identifier is
/// not taken out, so that what remains of the alert can be told whose it is.
fn finding_info(alert: &mut Map<String, Value>, unnamed: impl FnOnce() -> String) -> Value {
    let uid = ["id", "alertId", "providerAlertId"].iter().find_map(|name| match alert.get(*name)? {
        Value::String(id) if !id.is_empty() => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    });
    present(json!({
        "analytic": analytic(alert),
        "attacks": attacks(alert),
        "created_time": take_time(alert, &["createdDateTime", "creationTime"]),
        "desc": take_text(alert, &["description"]),
        "first_seen_time": take_time(alert, &["firstActivityDateTime", "firstActivity"]),
        "last_seen_time": take_time(alert, &["lastActivityDateTime", "lastActivity"]),
        "modified_time": take_time(alert, &["lastUpdateDateTime", "lastUpdatedTime"]),
        "product": take_text(alert, &["productName", "serviceSource"]).map(|name| json!({"name": name})),
        "src_url": take_link(alert, &["alertWebUrl"]),
        "title": take_text(alert, &["title"]),
        "types": take_text(alert, &["category"]).map(|category| [category]),
        "uid": uid.unwrap_or_else(unnamed),
        "uid_alt": take_text(alert, &["providerAlertId"]),
    }))
}

fn analytic(alert: &mut Map<String, Value>) -> Option<Value> {
    let uid = take_text(alert, &["detectorId"]);
    let name = take_text(alert, &["detectionSource"]);
    if uid.is_none() && name.is_none() {
        return None;
    }
    let kind = match name.as_deref().map(snake_case).as_deref() {
        Some("custom_detection") => Item::of(1, "Rule"),
        _ => Item::unknown(),
    };
    Some(present(json!({"uid": uid, "name": name, "type": kind.caption, "type_id": kind.id})))
}

/// The alert's techniques, `T1566` or, with a sub-technique, `T1566.001`. A list with anything else in it also stays in
/// `unmapped`.
fn attacks(alert: &mut Map<String, Value>) -> Option<Vec<Value>> {
    let sent = alert.get("mitreTechniques")?.as_array()?;
    let attacks: Vec<Value> = sent
        .iter()
        .filter_map(Value::as_str)
        .filter(|uid| !uid.is_empty())
        .map(|uid| match uid.split_once('.') {
            Some((technique, _)) if !technique.is_empty() => {
                json!({"technique": {"uid": technique}, "sub_technique": {"uid": uid}})
            }
            _ => json!({"technique": {"uid": uid}}),
        })
        .collect();
    if attacks.len() == sent.len() {
        alert.remove("mitreTechniques");
    }
    (!attacks.is_empty()).then_some(attacks)
}

/// The techniques of all alerts, each once, in the order of the alerts.
fn attacks_of_all(findings: &[Value]) -> Option<Vec<Value>> {
    let mut seen: Vec<&Value> = Vec::new();
    for attack in findings.iter().filter_map(|finding| finding["attacks"].as_array()).flatten() {
        if !seen.contains(&attack) {
            seen.push(attack);
        }
    }
    (!seen.is_empty()).then(|| seen.into_iter().cloned().collect())
}

fn unmapped(mut rest: Map<String, Value>) -> Option<Value> {
    rest.retain(|name, value| !value.is_null() && !name.starts_with("@odata."));
    (!rest.is_empty()).then_some(Value::Object(rest))
}

/// An object without its nulls.
fn present(mut object: Value) -> Value {
    if let Value::Object(members) = &mut object {
        members.retain(|_, value| !value.is_null());
    }
    object
}

fn text<'a>(sent: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    sent.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// Takes out the first of these members that `read` understands; the others stay.
fn take<T>(sent: &mut Map<String, Value>, names: &[&str], read: impl Fn(&str) -> Option<T>) -> Option<T> {
    let (name, value) = names.iter().find_map(|name| Some((name, read(text(sent, name)?)?)))?;
    sent.remove(*name);
    Some(value)
}

fn take_text(sent: &mut Map<String, Value>, names: &[&str]) -> Option<String> {
    take(sent, names, |text| Some(text.to_owned()))
}

fn take_time(sent: &mut Map<String, Value>, names: &[&str]) -> Option<i64> {
    take(sent, names, |text| time(text).map(Timestamp::as_millisecond))
}

/// Consumers make links of these, so nothing but `https` passes.
fn take_link(sent: &mut Map<String, Value>, names: &[&str]) -> Option<String> {
    take(sent, names, |text| text.starts_with("https://").then(|| text.to_owned()))
}

/// Whether a text is an address by the schema's pattern of `email_t`.
fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let Some((host, top)) = domain.split_once('.') else { return false };
    let letters = |text: &str, others: &str| {
        !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric() || others.contains(letter))
    };
    letters(local, "!#$%&'*+,-./=?^_`{|}~") && letters(host, "-") && letters(top, "-.")
}

/// The JSON that was sent as a value, whatever is in it: see [`incident_finding`] for what a value cannot hold.
fn faithful(raw: &RawValue, depth: usize) -> Value {
    let sent = raw.get();
    let read = match sent.as_bytes().first() {
        Some(b'{') if depth < DEEPEST => serde_json::from_str::<BTreeMap<Text, &RawValue>>(sent).ok().map(|members| {
            members.into_iter().map(|(name, value)| (name.0, faithful(value, depth + 1))).collect::<Value>()
        }),
        Some(b'[') if depth < DEEPEST => serde_json::from_str::<Vec<&RawValue>>(sent)
            .ok()
            .map(|items| items.into_iter().map(|item| faithful(item, depth + 1)).collect::<Value>()),
        Some(b'"') => serde_json::from_str::<Text>(sent).ok().map(|text| Value::String(text.0)),
        Some(b't' | b'f' | b'n') => serde_json::from_str(sent).ok(),
        Some(b'-' | b'0'..=b'9') => exact_number(sent).map(Value::Number),
        _ => None,
    };
    read.unwrap_or_else(|| Value::String(sent.to_owned()))
}

/// The number, unless a 64-bit integer or float would be another one. Fifteen digits always fit into a float.
fn exact_number(sent: &str) -> Option<Number> {
    let number: Number = serde_json::from_str(sent).ok()?;
    let mantissa = sent.split(['e', 'E']).next().unwrap_or_default();
    let digits = mantissa.chars().filter(char::is_ascii_digit).skip_while(|digit| *digit == '0').count();
    let vanished = digits > 0 && number.as_f64() == Some(0.0);
    (!number.is_f64() || (digits <= 15 && !vanished) || number.to_string() == sent).then_some(number)
}

/// Text that may hold half a surrogate pair, as a title does that was cut by a system of UTF-16.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Lossy;

        impl Visitor<'_> for Lossy {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(String::from_utf8_lossy(bytes).into_owned()))
            }
        }

        deserializer.deserialize_bytes(Lossy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAPH: &str = r##"{
        "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#security/incidents/$entity",
        "id": "29", "tenantId": "11111111-2222-4333-8444-abcdefabcdef", "status": "inProgress", "severity": "high",
        "incidentWebUrl": "https://security.microsoft.com/incident2/29/overview?tid=11111111-2222-4333-8444-abcdefabcdef",
        "redirectIncidentId": null, "displayName": "Multi-stage incident involving Persistence",
        "description": "Several alerts on one device.", "createdDateTime": "2026-01-22T12:09:23.1433333Z",
        "lastUpdateDateTime": "2026-02-25T16:29:33.10Z", "assignedTo": "admin@contoso.example",
        "classification": "truePositive", "determination": "multiStagedAttack", "customTags": ["Demo"],
        "systemTags": ["Critical asset"], "lastModifiedBy": "API-App:triage", "resolvingComment": null,
        "summary": "Defender Experts took a look", "priorityScore": 100,
        "comments": [{"comment": "on it", "createdByDisplayName": "Ada", "createdDateTime": "2026-01-23T08:00:00Z"}],
        "alerts": [{
            "id": "da09e47ccc-b74a-45bb-985f-8d6c077b70b6_1", "providerAlertId": "09e47ccc-b74a-45bb-985f-8d6c077b70b6_1",
            "incidentId": "29", "status": "new", "severity": "medium", "classification": null,
            "serviceSource": "microsoftDefenderForEndpoint", "detectionSource": "customDetection",
            "productName": "Microsoft Defender for Endpoint", "detectorId": "da88ec89-31c5-4864-8609-dce36e65bbc4",
            "title": "Anomaly in a registry key", "description": "A key that starts programs was changed.",
            "category": "Persistence", "mitreTechniques": ["T1546.003", "T1112"],
            "alertWebUrl": "https://security.microsoft.com/alerts/da09e47ccc-b74a-45bb-985f-8d6c077b70b6_1",
            "createdDateTime": "2026-01-22T12:09:22.8566667Z", "lastUpdateDateTime": "2026-02-25T16:29:33.1Z",
            "resolvedDateTime": null, "firstActivityDateTime": "2026-01-22T12:08:16.1404016Z",
            "lastActivityDateTime": "2026-01-22T13:36:33.6406679Z", "customDetails": {},
            "evidence": [{"@odata.type": "#microsoft.graph.security.deviceEvidence", "verdict": "suspicious",
                          "deviceDnsName": "w11pro-test", "osBuild": 26200, "azureAdDeviceId": null}]
        }, {
            "id": "second", "title": "Registry change", "mitreTechniques": ["T1112"],
            "firstActivityDateTime": "2026-01-22T12:08:16.139Z", "lastActivityDateTime": null
        }]
    }"##;

    const DEFENDER: &str = r#"{
        "incidentId": 552, "redirectIncidentId": 600, "status": "Redirected", "severity": "Informational",
        "incidentUri": "https://security.microsoft.com/incidents/552?tid=11111111-2222-4333-8444-abcdefabcdef",
        "incidentName": "Email messages containing malicious file removed after delivery\u200b",
        "createdTime": "2024-08-30T08:55:32.21Z", "lastUpdateTime": "2024-09-05T07:20:44.9089383Z",
        "assignedTo": null, "classification": "FalsePositive", "determination": "NoEnoughDataToValidate", "tags": ["mail"],
        "comments": [{"comment": "triaged", "createdBy": "secop@contoso.example", "createdTime": "2024-08-31T01:00:37.84Z"}],
        "alerts": [{
            "alertId": "fa00000000-0000-0000-0000-000000000001", "incidentId": 552,
            "providerAlertId": "00000000-0000-0000-0000-000000000001", "serviceSource": "MicrosoftDefenderForOffice365",
            "creationTime": "2024-08-30T08:55:31.9566667Z", "lastUpdatedTime": "2024-08-30T23:49:40.49Z",
            "resolvedTime": null, "firstActivity": "2024-08-30T08:50:19Z", "lastActivity": "2024-08-30T08:52:19Z",
            "title": "Email messages removed", "description": "Emails that were delivered and later removed",
            "category": "InitialAccess", "status": "InProgress", "severity": "Informational", "investigationId": null,
            "investigationState": "PendingApproval", "detectionSource": "OfficeATP", "mitreTechniques": ["T1566.001"],
            "devices": [{"mdatpDeviceId": "24c222b0b60fe148eeece49ac83910cc6a7ef491", "osBuild": 18363}],
            "entities": [{"entityType": "Mailbox", "mailboxAddress": "pov@contoso.example"}]
        }]
    }"#;

    fn tenant() -> TenantId {
        "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap()
    }

    fn event(json: &str, api: IncidentApi, change: Option<Change>) -> Value {
        let record = Record::parse(json.as_bytes(), &tenant(), true).unwrap();
        let finding = Finding {
            tenant_id: &tenant(),
            api,
            record: &record,
            change,
            key: "the/key",
            fetched_at: "2026-03-01T00:00:00.5Z".parse().unwrap(),
        };
        let event = incident_finding(&finding).unwrap();
        assert_conforms(&event);
        event
    }

    /// An event of a record with these members.
    fn with(members: &str, change: Option<Change>) -> Value {
        let json = format!(r#"{{"id":"7","lastUpdateDateTime":"2026-01-01T00:00:00Z",{members}}}"#);
        event(&json, IncidentApi::Graph, change)
    }

    /// What OCSF 1.7.0 requires of the class and of the objects that are used, and which types it wants.
    fn assert_conforms(event: &Value) {
        let integer = |value: &Value| value.is_i64();
        for name in
            ["activity_id", "category_uid", "class_uid", "severity_id", "status_id", "time", "type_uid", "verdict_id"]
        {
            assert!(integer(&event[name]), "{name} in {event}");
        }
        assert_eq!((&event["category_uid"], &event["class_uid"]), (&json!(2), &json!(2005)));
        assert_eq!(event["type_uid"].as_i64(), event["activity_id"].as_i64().map(|activity| 200_500 + activity));
        assert!([1, 2, 3].contains(&event["activity_id"].as_i64().unwrap()));
        assert!([0, 1, 2, 3, 4, 5, 99].contains(&event["severity_id"].as_i64().unwrap()));
        assert!([0, 1, 2, 3, 4, 99].contains(&event["status_id"].as_i64().unwrap()));
        let metadata = &event["metadata"];
        assert_eq!(metadata["version"], "1.7.0");
        assert_eq!(metadata["profiles"], json!(["incident"]));
        assert_eq!(metadata["product"], json!({"name": "Microsoft Defender XDR", "vendor_name": "Microsoft"}));
        let optional_text = |object: &Value, names: &[&str]| {
            for name in names {
                assert!(object.get(name).is_none_or(Value::is_string), "{name} in {object}");
            }
        };
        optional_text(metadata, &["correlation_uid", "original_event_uid", "original_time", "tenant_uid", "uid"]);
        optional_text(
            event,
            &["comment", "desc", "message", "severity", "src_url", "status", "status_code", "verdict"],
        );
        for assigned in [&event["assignee"], &event["assignee_group"]] {
            assert!(assigned.is_null() || assigned["name"].is_string(), "{event}");
        }
        assert!(event.get("assignee").is_some() != event.get("assignee_group").is_some(), "{event}");
        assert!(event.get("unmapped").is_none_or(Value::is_object));
        let findings = event["finding_info_list"].as_array().unwrap();
        assert!(!findings.is_empty());
        for finding in findings {
            assert!(finding["uid"].is_string(), "{finding}");
            optional_text(finding, &["title", "desc", "src_url", "uid_alt"]);
            for name in ["created_time", "first_seen_time", "last_seen_time", "modified_time"] {
                assert!(finding.get(name).is_none_or(integer), "{name} in {finding}");
            }
            if let Some(analytic) = finding.get("analytic") {
                assert!(integer(&analytic["type_id"]));
                assert!(analytic["name"].is_string() || analytic["uid"].is_string());
            }
            for attack in finding.get("attacks").and_then(Value::as_array).into_iter().flatten() {
                assert!(attack["technique"]["uid"].is_string());
            }
        }
    }

    #[test]
    fn an_incident_of_graph() {
        assert_eq!(
            event(GRAPH, IncidentApi::Graph, Some(Change::Reopened)),
            serde_json::from_str::<Value>(
                r##"{
                "activity_id": 2, "activity_name": "Update", "category_name": "Findings", "category_uid": 2,
                "class_name": "Incident Finding", "class_uid": 2005, "type_name": "Incident Finding: Update", "type_uid": 200502,
                "assignee": {"name": "admin@contoso.example", "email_addr": "admin@contoso.example"},
                "attacks": [
                    {"technique": {"uid": "T1546"}, "sub_technique": {"uid": "T1546.003"}},
                    {"technique": {"uid": "T1112"}}
                ],
                "message": "Multi-stage incident involving Persistence",
                "desc": "Several alerts on one device.",
                "src_url": "https://security.microsoft.com/incident2/29/overview?tid=11111111-2222-4333-8444-abcdefabcdef",
                "severity": "High", "severity_id": 4,
                "status": "In Progress", "status_code": "inProgress", "status_id": 2,
                "verdict": "True Positive", "verdict_id": 2,
                "time": 1772036973100, "start_time": 1769083696139, "end_time": 1769088993640,
                "metadata": {
                    "correlation_uid": "11111111-2222-4333-8444-abcdefabcdef/29",
                    "logged_time": 1772323200500,
                    "original_event_uid": "29",
                    "original_time": "2026-02-25T16:29:33.10Z",
                    "product": {"name": "Microsoft Defender XDR", "vendor_name": "Microsoft"},
                    "profiles": ["incident"],
                    "tags": [{"name": "api", "value": "graph"}, {"name": "change", "value": "reopened"}],
                    "tenant_uid": "11111111-2222-4333-8444-abcdefabcdef",
                    "uid": "the/key",
                    "version": "1.7.0"
                },
                "finding_info_list": [{
                    "uid": "da09e47ccc-b74a-45bb-985f-8d6c077b70b6_1",
                    "uid_alt": "09e47ccc-b74a-45bb-985f-8d6c077b70b6_1",
                    "title": "Anomaly in a registry key",
                    "desc": "A key that starts programs was changed.",
                    "types": ["Persistence"],
                    "src_url": "https://security.microsoft.com/alerts/da09e47ccc-b74a-45bb-985f-8d6c077b70b6_1",
                    "created_time": 1769083762856, "modified_time": 1772036973100,
                    "first_seen_time": 1769083696140, "last_seen_time": 1769088993640,
                    "analytic": {"uid": "da88ec89-31c5-4864-8609-dce36e65bbc4", "name": "customDetection", "type": "Rule", "type_id": 1},
                    "attacks": [
                        {"technique": {"uid": "T1546"}, "sub_technique": {"uid": "T1546.003"}},
                        {"technique": {"uid": "T1112"}}
                    ],
                    "product": {"name": "Microsoft Defender for Endpoint"}
                }, {
                    "uid": "second", "title": "Registry change", "first_seen_time": 1769083696139,
                    "attacks": [{"technique": {"uid": "T1112"}}]
                }],
                "unmapped": {
                    "createdDateTime": "2026-01-22T12:09:23.1433333Z",
                    "classification": "truePositive", "determination": "multiStagedAttack",
                    "customTags": ["Demo"], "systemTags": ["Critical asset"], "lastModifiedBy": "API-App:triage",
                    "summary": "Defender Experts took a look", "priorityScore": 100,
                    "comments": [{"comment": "on it", "createdByDisplayName": "Ada", "createdDateTime": "2026-01-23T08:00:00Z"}],
                    "alerts": [{
                        "id": "da09e47ccc-b74a-45bb-985f-8d6c077b70b6_1", "incidentId": "29", "status": "new", "severity": "medium",
                        "serviceSource": "microsoftDefenderForEndpoint", "customDetails": {},
                        "evidence": [{"@odata.type": "#microsoft.graph.security.deviceEvidence", "verdict": "suspicious",
                                      "deviceDnsName": "w11pro-test", "osBuild": 26200, "azureAdDeviceId": null}]
                    }, {"id": "second"}]
                }
            }"##,
            )
            .unwrap()
        );
    }

    #[test]
    fn an_incident_of_defender() {
        assert_eq!(
            event(DEFENDER, IncidentApi::Defender, Some(Change::Merged)),
            serde_json::from_str::<Value>(
                r#"{
                "activity_id": 2, "activity_name": "Update", "category_name": "Findings", "category_uid": 2,
                "class_name": "Incident Finding", "class_uid": 2005, "type_name": "Incident Finding: Update", "type_uid": 200502,
                "assignee_group": {"name": "Unassigned", "desc": "Nobody is assigned; the schema requires an assignee or a group."},
                "attacks": [{"technique": {"uid": "T1566"}, "sub_technique": {"uid": "T1566.001"}}],
                "message": "Email messages containing malicious file removed after delivery\u200b",
                "src_url": "https://security.microsoft.com/incidents/552?tid=11111111-2222-4333-8444-abcdefabcdef",
                "severity": "Informational", "severity_id": 1,
                "status": "Redirected", "status_code": "Redirected", "status_id": 99,
                "verdict": "Insufficient Data", "verdict_id": 7,
                "time": 1725520844908, "start_time": 1725007819000, "end_time": 1725007939000,
                "metadata": {
                    "correlation_uid": "11111111-2222-4333-8444-abcdefabcdef/552",
                    "logged_time": 1772323200500,
                    "original_event_uid": "552",
                    "original_time": "2024-09-05T07:20:44.9089383Z",
                    "product": {"name": "Microsoft Defender XDR", "vendor_name": "Microsoft"},
                    "profiles": ["incident"],
                    "tags": [{"name": "api", "value": "defender"}, {"name": "change", "value": "merged"}],
                    "tenant_uid": "11111111-2222-4333-8444-abcdefabcdef",
                    "uid": "the/key",
                    "version": "1.7.0"
                },
                "finding_info_list": [{
                    "uid": "fa00000000-0000-0000-0000-000000000001",
                    "uid_alt": "00000000-0000-0000-0000-000000000001",
                    "title": "Email messages removed",
                    "desc": "Emails that were delivered and later removed",
                    "types": ["InitialAccess"],
                    "created_time": 1725008131956, "modified_time": 1725061780490,
                    "first_seen_time": 1725007819000, "last_seen_time": 1725007939000,
                    "analytic": {"name": "OfficeATP", "type": "Unknown", "type_id": 0},
                    "attacks": [{"technique": {"uid": "T1566"}, "sub_technique": {"uid": "T1566.001"}}],
                    "product": {"name": "MicrosoftDefenderForOffice365"}
                }],
                "unmapped": {
                    "createdTime": "2024-08-30T08:55:32.21Z", "redirectIncidentId": 600, "tags": ["mail"],
                    "classification": "FalsePositive", "determination": "NoEnoughDataToValidate",
                    "comments": [{"comment": "triaged", "createdBy": "secop@contoso.example", "createdTime": "2024-08-31T01:00:37.84Z"}],
                    "alerts": [{
                        "alertId": "fa00000000-0000-0000-0000-000000000001", "incidentId": 552, "status": "InProgress",
                        "severity": "Informational", "investigationState": "PendingApproval",
                        "devices": [{"mdatpDeviceId": "24c222b0b60fe148eeece49ac83910cc6a7ef491", "osBuild": 18363}],
                        "entities": [{"entityType": "Mailbox", "mailboxAddress": "pov@contoso.example"}]
                    }]
                }
            }"#,
            )
            .unwrap()
        );
    }

    #[test]
    fn changes_are_activities_and_a_live_reading_is_what_it_shows() {
        for (change, status, created, activity) in [
            (Some(Change::Created), "resolved", "2025-01-01T00:00:00Z", 1),
            (Some(Change::Updated), "resolved", "2025-01-01T00:00:00Z", 2),
            (Some(Change::Merged), "redirected", "2025-01-01T00:00:00Z", 2),
            (Some(Change::Reopened), "active", "2025-01-01T00:00:00Z", 2),
            (Some(Change::Closed), "resolved", "2025-01-01T00:00:00Z", 3),
            (None, "resolved", "2026-01-01T00:00:00Z", 3),
            (None, "active", "2026-01-01T00:00:00.000Z", 1),
            (None, "active", "2025-01-01T00:00:00Z", 2),
        ] {
            let event = with(&format!(r#""status":"{status}","createdDateTime":"{created}""#), change);
            assert_eq!(event["activity_id"], activity, "{change:?} {status} {created}");
            assert_eq!(event["metadata"]["tags"].as_array().unwrap().len(), 1 + usize::from(change.is_some()));
        }
    }

    #[test]
    fn enumerations_are_understood_in_both_spellings() {
        let table = [
            ("status", r#""status":"Active""#, json!([1, "New"])),
            ("status", r#""status":"active""#, json!([1, "New"])),
            ("status", r#""status":"awaitingAction""#, json!([3, "On Hold"])),
            ("status", r#""status":"Resolved""#, json!([4, "Resolved"])),
            ("status", r#""status":"Active","redirectIncidentId":"9""#, json!([99, "Redirected"])),
            ("status", r#""status":"SnoozedForNow""#, json!([99, "SnoozedForNow"])),
            ("status", r#""status":null"#, json!([0, "Unknown"])),
            ("severity", r#""severity":"Low""#, json!([2, "Low"])),
            ("severity", r#""severity":"medium""#, json!([3, "Medium"])),
            ("severity", r#""severity":"UnSpecified""#, json!([0, "Unknown"])),
            ("severity", r#""severity":"Apocalyptic""#, json!([99, "Apocalyptic"])),
            ("severity", r#""severity":5"#, json!([0, "Unknown"])),
            ("verdict", r#""classification":"TruePositive","determination":"Malware""#, json!([2, "True Positive"])),
            ("verdict", r#""classification":"falsePositive","determination":"clean""#, json!([1, "False Positive"])),
            (
                "verdict",
                r#""classification":"falsePositive","determination":"insufficientData""#,
                json!([7, "Insufficient Data"]),
            ),
            (
                "verdict",
                r#""classification":"Informational, expected activity","determination":"SecurityTesting""#,
                json!([6, "Test"]),
            ),
            (
                "verdict",
                r#""classification":"informationalExpectedActivity","determination":"confirmedUserActivity""#,
                json!([5, "Benign"]),
            ),
            ("verdict", r#""classification":"Unknown","determination":"NotAvailable""#, json!([0, "Unknown"])),
            ("verdict", r#""classification":{}"#, json!([0, "Unknown"])),
            ("verdict", r#""classification":"Undecidable""#, json!([99, "Undecidable"])),
        ];
        for (name, members, expected) in table {
            let event = with(members, None);
            assert_eq!(json!([event[format!("{name}_id")], event[name]]), expected, "{members}");
        }
    }

    #[test]
    fn an_assignee_is_an_address_or_a_name() {
        for (sent, address) in [
            ("ada@contoso.example", true),
            ("o'hara+soc@mail.contoso.example", true),
            ("Automation", false),
            ("API-App:ada@contoso.example", false),
            ("ada@localhost", false),
            ("Ada Lovelace", false),
        ] {
            let event = with(&format!(r#""assignedTo":"{sent}""#), None);
            assert_eq!(event["assignee"]["name"], sent);
            assert_eq!(event["assignee"].get("email_addr").is_some(), address, "{sent}");
            assert_eq!(event.get("unmapped"), None);
        }
    }

    #[test]
    fn an_incident_without_alerts_stands_for_itself() {
        let event = with(r#""displayName":"Lonely","createdDateTime":"2025-12-31T23:59:59Z","alerts":[]"#, None);
        assert_eq!(
            event["finding_info_list"],
            json!([{"uid": "7", "title": "Lonely", "types": ["Incident"], "created_time": 1_767_225_599_000_i64,
                    "modified_time": 1_767_225_600_000_i64}])
        );
    }

    #[test]
    fn what_cannot_be_mapped_stays_as_it_was_sent() {
        let event = with(
            r#""displayName":{"en":"x"},"description":7,"incidentWebUrl":"javascript:alert(1)","new":[null,{"deep":true}],
               "alerts":[null,3,{},{"id":17,"title":[],"mitreTechniques":["T1",null,"",".5"],"createdDateTime":"yesterday"}]"#,
            None,
        );
        assert_eq!(
            event["finding_info_list"],
            json!([
                {"uid": "7#2"},
                {"uid": "17", "attacks": [{"technique": {"uid": "T1"}}, {"technique": {"uid": ".5"}}]},
            ])
        );
        assert_eq!(
            event["unmapped"],
            json!({
                "displayName": {"en": "x"}, "description": 7, "incidentWebUrl": "javascript:alert(1)",
                "new": [null, {"deep": true}],
                "alerts": [null, 3, {}, {"id": 17, "title": [], "mitreTechniques": ["T1", null, "", ".5"],
                                         "createdDateTime": "yesterday"}],
            })
        );
        assert_eq!(with(r#""alerts":"none""#, None)["unmapped"], json!({"alerts": "none"}));
    }

    #[test]
    fn numbers_stay_what_they_were_and_texts_are_not_cut() {
        let long = "a".repeat(300_000);
        let event = with(
            &format!(
                r#""n":[0,-7,18446744073709551615,123456789012345678901234567890,1.50,0.1,1e3,1e400,1e-400,0.12345678901234567891],
                   "description":"{long}""#
            ),
            None,
        );
        assert_eq!(
            event["unmapped"]["n"].to_string(),
            r#"[0,-7,18446744073709551615,"123456789012345678901234567890",1.5,0.1,1000.0,"1e400","1e-400","0.12345678901234567891"]"#
        );
        assert_eq!(event["desc"], long);
    }

    #[test]
    fn a_title_that_was_cut_within_a_letter_does_no_harm() {
        let event = with(
            r#""displayName":"Fish \ud83d","new":{"x\ud83d":"\ud83d\udc1f"},"alerts":[{"id":"1","title":"\udc1f!"}]"#,
            None,
        );
        let title = event["message"].as_str().unwrap();
        assert!(title.starts_with("Fish \u{fffd}"), "{title}");
        assert!(event["finding_info_list"][0]["title"].as_str().unwrap().ends_with("\u{fffd}!"));
        let (name, value) = event["unmapped"]["new"].as_object().unwrap().iter().next().unwrap();
        assert!(name.starts_with("x\u{fffd}") && value == "\u{1f41f}", "{name}: {value}");
    }

    #[test]
    fn nesting_without_end_is_kept_as_text() {
        let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let mut value = &with(&format!(r#""deep":{nested}"#), None)["unmapped"]["deep"];
        let mut depth = 1;
        while let Value::Array(items) = value {
            value = &items[0];
            depth += 1;
        }
        assert_eq!((depth, value.as_str().map(str::len)), (DEEPEST, Some(2 * (10_000 - DEEPEST + 1))));
    }
}
