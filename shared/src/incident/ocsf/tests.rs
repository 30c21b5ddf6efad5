use super::{json::MAX_DEPTH, *};
use crate::{incident::record::Alerts, microsoft::IncidentApi, tenant::TenantId};

const GRAPH: &str = include_str!("fixtures/graph.json");
const DEFENDER: &str = include_str!("fixtures/defender.json");

fn tenant() -> TenantId {
    "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap()
}

fn event(json: &str, api: IncidentApi, change: Option<Change>) -> Value {
    let record = Record::parse(json.as_bytes(), &tenant(), api, Alerts::Included).unwrap();
    let fetched_at = "2026-03-01T00:00:00.5Z".parse().unwrap();
    let version = Version { tenant_id: tenant(), api, record: &record, change, ordinal: 1, fetched_at };
    let event = incident_finding(&version).unwrap();
    assert_conforms(&event);
    event
}

/// The event of a record with these members.
fn with(members: &str, change: Option<Change>) -> Value {
    let json = format!(r#"{{"id":"7","lastUpdateDateTime":"2026-01-01T00:00:00Z",{members}}}"#);
    event(&json, IncidentApi::Graph, change)
}

/// Checks the members and types that OCSF 1.7.0 requires of the class and of the objects that are used.
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
    optional_text(event, &["comment", "desc", "message", "severity", "src_url", "status", "status_code", "verdict"]);
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
