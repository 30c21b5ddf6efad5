//! Long, because each part of a finding has its sample here, beside the official schema that all are validated against.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::{json::MAX_DEPTH, *};
use crate::{
    incident::record::Alerts,
    microsoft::IncidentApi,
    tenant::TenantId,
    testing::{damaged, with_odd_members},
};

const GRAPH: &str = include_str!("fixtures/graph.json");
const DEFENDER: &str = include_str!("fixtures/defender.json");

fn tenant() -> TenantId {
    "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap()
}

/// The event of a record. It is checked against the schema.
fn event_of(record: &Record, api: IncidentApi, change: Option<Change>) -> Value {
    let fetched_at = "2026-03-01T00:00:00.5Z".parse().unwrap();
    let version = Version { tenant_id: tenant(), api, record, change, ordinal: 1, fetched_at };
    let mut json = Vec::new();
    write_incident_finding(&version, &mut json).unwrap();
    let event = serde_json::from_slice(&json).unwrap();
    assert_conforms(&event);
    event
}

pub(super) fn event(json: &str, api: IncidentApi, change: Option<Change>) -> Value {
    event_of(&Record::parse(json.as_bytes(), &tenant(), api, Alerts::Included).unwrap(), api, change)
}

/// The event of a record with these members.
pub(super) fn with(members: &str, change: Option<Change>) -> Value {
    let json = format!(r#"{{"id":"7","lastUpdateDateTime":"2026-01-01T00:00:00Z",{members}}}"#);
    event(&json, IncidentApi::Graph, change)
}

/// Checks an event against the official schema of the release, and its captions against those of the schema.
pub(super) fn assert_conforms(event: &Value) {
    static SCHEMA: LazyLock<(Value, jsonschema::Validator)> = LazyLock::new(|| {
        let schema = serde_json::from_str(include_str!("fixtures/incident_finding-1.8.0.schema.json")).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        (schema, validator)
    });
    let (schema, validator) = &*SCHEMA;
    let errors: Vec<String> =
        validator.iter_errors(event).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    assert_captions(event, schema, schema);
    assert_eq!(event["metadata"]["version"], "1.8.0");
    assert_eq!(event["metadata"]["profiles"], json!(["incident"]));
    let activity = (event["activity_id"].as_i64().unwrap(), event["activity_name"].as_str().unwrap());
    assert_eq!(event["type_uid"].as_i64(), Some(200_500 + activity.0));
    assert_eq!(event["type_name"], format!("Incident Finding: {}", activity.1));
    assert!(event.get("assignee").is_some() != event.get("assignee_group").is_some(), "{event}");
}

/// Checks that the caption beside each value of an enumeration is the schema's. That of Other is the source's own word.
fn assert_captions(object: &Value, of_object: &Value, schema: &Value) {
    for (name, attribute) in of_object["properties"].as_object().unwrap() {
        let Some(value) = object.get(name) else { continue };
        if let Some(sibling) = attribute["sibling"].as_str()
            && *value != 99
        {
            assert_eq!(object[sibling], attribute["captions"][value.to_string()], "{name} of {object}");
        }
        for (attribute, values) in [(attribute, std::slice::from_ref(value)), (&attribute["items"], items(value))] {
            if let Some(reference) = attribute["$ref"].as_str() {
                let definition = schema.pointer(&reference[1..]).unwrap();
                for value in values {
                    assert_captions(value, definition, schema);
                }
            }
        }
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[test]
fn maps_an_incident_of_graph() {
    assert_eq!(
        event(GRAPH, IncidentApi::Graph, Some(Change::Reopened)),
        serde_json::from_str::<Value>(include_str!("fixtures/graph.finding.json")).unwrap()
    );
}

#[test]
fn maps_an_incident_of_defender() {
    assert_eq!(
        event(DEFENDER, IncidentApi::Defender, Some(Change::Merged)),
        serde_json::from_str::<Value>(include_str!("fixtures/defender.finding.json")).unwrap()
    );
}

#[test]
fn activity_is_the_change_or_what_a_live_record_shows() {
    for (change, status, created, activity) in [
        (Some(Change::Created), "active", "2025-01-01T00:00:00Z", 1),
        (Some(Change::Created), "redirected", "2025-01-01T00:00:00Z", 1),
        (Some(Change::Created), "resolved", "2025-01-01T00:00:00Z", 3),
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
fn enumerations_are_mapped_in_both_spellings() {
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
fn assignee_is_an_address_or_a_name() {
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
fn incident_without_alerts_is_its_own_finding() {
    let event = with(r#""displayName":"Lonely","createdDateTime":"2025-12-31T23:59:59Z","alerts":[]"#, None);
    assert_eq!(
        event["finding_info_list"],
        json!([{"uid": "7", "title": "Lonely", "types": ["Incident"], "created_time": 1_767_225_599_000_i64,
                "modified_time": 1_767_225_600_000_i64}])
    );
}

#[test]
fn members_that_cannot_be_mapped_stay_as_sent() {
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
fn numbers_stay_exact_and_texts_are_not_cut() {
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
fn half_a_surrogate_pair_becomes_a_replacement_character() {
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
fn deep_nesting_is_kept_as_text() {
    let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let mut value = &with(&format!(r#""deep":{nested}"#), None)["unmapped"]["deep"];
    let mut depth = 1;
    while let Value::Array(items) = value {
        value = &items[0];
        depth += 1;
    }
    assert_eq!((depth, value.as_str().map(str::len)), (MAX_DEPTH, Some(2 * (10_000 - MAX_DEPTH + 1))));
}

#[test]
fn version_resolved_at_first_sight_is_closed_in_both_forms() {
    let members = r#""status":"resolved","createdDateTime":"2026-01-01T00:00:00Z""#;
    let (delivered, live) = (with(members, Some(Change::Created)), with(members, None));
    for name in ["activity_id", "activity_name", "type_uid", "type_name", "status_id"] {
        assert_eq!(delivered[name], live[name], "{name}");
    }
    assert_eq!(delivered["activity_name"], "Close");
}

#[test]
fn priority_follows_the_bounds_of_the_score() {
    for (score, priority) in [
        ("100", json!([4, "Critical"])),
        ("85.5", json!([4, "Critical"])),
        ("85", json!([2, "Medium"])),
        ("15", json!([2, "Medium"])),
        ("14.9", json!([1, "Low"])),
        ("0", json!([1, "Low"])),
        ("null", json!([null, null])),
        (r#""high""#, json!([null, null])),
    ] {
        let event = with(&format!(r#""priorityScore":{score}"#), None);
        assert_eq!(json!([event["priority_id"], event["priority"]]), priority, "{score}");
    }
}

#[test]
fn tags_of_all_kinds_are_labels() {
    let event = with(r#""customTags":["a","b","a",""],"tags":["c"],"systemTags":["b",null,"d"]"#, None);
    assert_eq!(event["metadata"]["labels"], json!(["a", "b", "c", "d"]));
    assert_eq!(
        event["metadata"]["tags"],
        json!([{"name": "api", "value": "graph"}, {"name": "system_tags", "values": ["b", "d"]}])
    );
    assert_eq!(event.get("unmapped"), None);
    let odd = with(r#""customTags":["a",7],"systemTags":{}"#, None);
    assert_eq!(
        (&odd["metadata"]["labels"], &odd["unmapped"]),
        (&json!(["a"]), &json!({"customTags": ["a", 7], "systemTags": {}}))
    );
    assert_eq!(with(r#""customTags":[]"#, None)["metadata"].get("labels"), None);
}

#[test]
fn categories_are_types_after_the_category() {
    for (members, types, rest) in [
        (
            r#""category":null,"categories":["InitialAccess","Exfiltration"]"#,
            json!(["InitialAccess", "Exfiltration"]),
            json!({}),
        ),
        (
            r#""category":"Malware","categories":["Exfiltration","Malware"]"#,
            json!(["Malware", "Exfiltration"]),
            json!({}),
        ),
        (r#""category":"Malware""#, json!(["Malware"]), json!({})),
        (
            r#""category":7,"categories":["Malware",null,{}]"#,
            json!(["Malware"]),
            json!({"category": 7, "categories": ["Malware", null, {}]}),
        ),
        (r#""category":"","categories":[]"#, json!(null), json!({"category": ""})),
    ] {
        let event = with(&format!(r#""alerts":[{{{members}}}]"#), None);
        assert_eq!(
            (&event["finding_info_list"][0]["types"], &event["unmapped"]["alerts"][0]),
            (&types, &rest),
            "{members}"
        );
    }
}

#[test]
fn merge_target_is_a_related_event_of_each_finding() {
    for alerts in ["[]", r#"[{"id":"a"},{"id":"b"}]"#] {
        let event = with(
            &format!(r#""status":"redirected","redirectIncidentId":"600","alerts":{alerts}"#),
            Some(Change::Merged),
        );
        for finding in items(&event["finding_info_list"]) {
            assert_eq!(finding["related_events"][0]["uid"], "600");
        }
        assert_eq!(event["unmapped"].get("redirectIncidentId"), None);
    }
    assert_eq!(with(r#""redirectIncidentId":"0""#, None)["finding_info_list"][0].get("related_events"), None);
}

#[test]
fn comment_is_of_the_resolution_or_the_newest() {
    let comments = r#""comments":[{"comment":"second","createdDateTime":"2026-01-01T00:00:02Z"},
        {"comment":"first","createdDateTime":"2026-01-01T00:00:01Z"},null,{"comment":null},{"comment":"undated"}]"#;
    let event = with(comments, None);
    assert_eq!(event["comment"], "second");
    assert_eq!(items(&event["unmapped"]["comments"]).len(), 5, "the list has what the comment lacks");
    assert_eq!(with(&format!(r#"{comments},"resolvingComment":"done""#), None)["comment"], "done");
    assert_eq!(with(r#""comments":{}"#, None).get("comment"), None);
}

#[test]
fn times_that_were_never_set_are_no_times() {
    for never in ["0001-01-01T00:00:00", "0001-01-01T00:00:00.0000000Z", "1601-01-01T00:00:00Z", "1970-01-01T00:00:00Z"]
    {
        let event = with(
            &format!(
                r#""createdDateTime":"{never}","alerts":[{{"id":"a","firstActivityDateTime":"{never}","lastActivityDateTime":"{never}"}},
                    {{"id":"b","firstActivityDateTime":"2026-01-01T00:00:00Z"}}]"#
            ),
            None,
        );
        assert_eq!(event["finding_info_list"][0], json!({"uid": "a"}), "{never}");
        assert_eq!((event["start_time"].as_i64(), event.get("end_time")), (Some(1_767_225_600_000), None), "{never}");
        assert_eq!(event["unmapped"]["alerts"][0]["firstActivityDateTime"], never);
        let alone = with(&format!(r#""createdDateTime":"{never}""#), None);
        assert_eq!(alone["finding_info_list"][0].get("created_time"), None, "{never}");
    }
}

#[test]
fn analytic_of_rules_and_of_learning_has_its_type() {
    for (source, kind) in [
        ("customDetection", json!([1, "Rule"])),
        ("scheduledAlerts", json!([1, "Rule"])),
        ("NrtAlerts", json!([1, "Rule"])),
        ("builtInMl", json!([4, "Learning (ML/DL)"])),
        ("microsoftDefenderForEndpoint", json!([0, "Unknown"])),
    ] {
        let event = with(&format!(r#""alerts":[{{"id":"a","detectionSource":"{source}"}}]"#), None);
        let analytic = &event["finding_info_list"][0]["analytic"];
        assert_eq!(json!([analytic["type_id"], analytic["type"]]), kind, "{source}");
    }
}

/// A record that was read without its alerts, one that lost them here, and whole ones.
#[test]
fn finding_without_its_alerts_is_marked_as_truncated() {
    let mark = |json: &str, alerts: Alerts, cut: Option<&str>| {
        let record = Record::parse(json.as_bytes(), &tenant(), IncidentApi::Graph, alerts).unwrap();
        let untruncated_bytes = cut.map(|_| 2_000_000);
        let record = Record { json: cut.unwrap_or(json).into(), untruncated_bytes, ..record };
        let event = event_of(&record, IncidentApi::Graph, None);
        let metadata = &event["metadata"];
        (metadata["is_truncated"].as_bool(), metadata["untruncated_size"].as_i64())
    };
    let bare = r#"{"id":"7","lastUpdateDateTime":"2026-01-01T00:00:00Z"}"#;
    let whole = r#"{"id":"7","lastUpdateDateTime":"2026-01-01T00:00:00Z","alerts":[{"id":"a"}]}"#;
    let empty = r#"{"id":"7","lastUpdateDateTime":"2026-01-01T00:00:00Z","alerts":[]}"#;
    assert_eq!(mark(bare, Alerts::Omitted, None), (Some(true), None));
    assert_eq!(mark(whole, Alerts::Included, Some(bare)), (Some(true), Some(1_954)));
    for json in [bare, whole, empty] {
        assert_eq!(mark(json, Alerts::Included, None), (None, None), "{json}");
    }
}

#[test]
fn own_names_of_an_api_count_in_findings_too() {
    let both = r#"{"id":"8001","incidentId":8002,"lastUpdateTime":"2026-02-02T00:00:00Z",
        "lastUpdateDateTime":"2026-01-01T00:00:00Z","displayName":"graph","incidentName":"defender",
        "alerts":[{"alertId":"d","id":"g","creationTime":"2026-02-02T00:00:00Z","createdDateTime":"2026-01-01T00:00:00Z"}]}"#;
    for (api, alert, title, time) in [
        (IncidentApi::Graph, "g", "graph", "2026-01-01T00:00:00Z"),
        (IncidentApi::Defender, "d", "defender", "2026-02-02T00:00:00Z"),
    ] {
        let event = event(both, api, None);
        assert_eq!((&event["message"], &event["metadata"]["original_time"]), (&json!(title), &json!(time)));
        let finding = &event["finding_info_list"][0];
        assert_eq!((&finding["uid"], &finding["created_time"]), (&json!(alert), &event["time"]));
    }
}

#[test]
fn null_replaces_no_member_of_its_name() {
    let event = with(
        r#""displayName":null,"displayName":"kept","displayName":null,"new":1,"new":2,"alerts":[{"id":"a"}],"alerts":null"#,
        None,
    );
    assert_eq!((&event["message"], &event["unmapped"]["new"]), (&json!("kept"), &json!(2)));
    assert_eq!(event["finding_info_list"][0]["uid"], "a");
}

/// The event of a record, if it can be parsed. It is checked against the schema.
fn event_if_readable(json: &[u8]) -> Option<Value> {
    let api = IncidentApi::Graph;
    let record = Record::parse(json, &tenant(), api, Alerts::Included).ok()?;
    Some(event_of(&record, api, None))
}

const WHOLE: &str = r#"{"id":"924565","status":"active","severity":"low","assignedTo":"ada@contoso.example","priorityScore":90,"classification":"truePositive","customTags":["a"],"displayName":"t","redirectIncidentId":"7","createdDateTime":"2026-01-02T03:04:05.12Z","lastUpdateDateTime":"2026-01-02T03:04:05.12Z","comments":[{"comment":"c","createdDateTime":"2026-01-02T03:04:05Z"}],"alerts":[{"id":"da1","category":"Malware","categories":["Exfiltration"],"detectionSource":"builtInMl","mitreTechniques":["T1.001"],"firstActivityDateTime":"2026-01-02T03:04:05Z","evidence":[{"ipAddress":"198.51.100.1","processId":7}]}]}"#;

proptest! {
    #[test]
    fn damaged_record_has_a_valid_finding_or_none(raw in damaged(WHOLE)) {
        event_if_readable(&raw);
    }

    #[test]
    fn record_damaged_by_odd_members_has_a_valid_finding(
        sent in with_odd_members(
            WHOLE,
            &["id", "status", "severity", "priorityScore", "customTags", "systemTags", "displayName", "comments", "createdDateTime", "resolvingComment", "incidentWebUrl", "evidence", "unmapped"],
            &[("incidentId", "1"), ("incidentName", r#""x""#), ("tags", r#"["b",null,7]"#), ("lastUpdateTime", r#""never""#)],
            &[r#""alerts":["#, r#""evidence":["#, r#""categories":["#, r#""customTags":["#, r#""comments":["#],
        ),
    ) {
        let event = event_if_readable(sent.as_bytes()).unwrap();
        let metadata = &event["metadata"];
        prop_assert_eq!(metadata["original_event_uid"].as_str(), Some("924565"), "{}", sent);
        prop_assert_eq!(event["observables"].as_array().map(Vec::len), Some(2), "{}", sent);
        prop_assert_eq!(event["finding_info_list"].as_array().map(Vec::len), Some(1), "{}", sent);
    }
}
