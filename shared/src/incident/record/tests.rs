use proptest::prelude::*;
use serde_json::value::RawValue;

use super::{members::AlertIds, *};
use crate::testing::{damaged, with_odd_members};

fn tenant() -> TenantId {
    "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap()
}

fn parse(json: &str) -> Result<Record, Unreadable> {
    parse_of(IncidentApi::Graph, json)
}

fn parse_of(api: IncidentApi, json: &str) -> Result<Record, Unreadable> {
    let parsed = Record::parse(json.as_bytes(), &tenant(), api, Alerts::Included);
    let owned = Record::parse_owned(json.as_bytes().to_vec().into(), &tenant(), api, Alerts::Included);
    assert_eq!(owned, parsed.clone().map_err(|why| (why, json.as_bytes().to_vec().into())));
    parsed
}

#[test]
fn parses_records_of_both_apis() {
    let graph = parse(
        r#"{"id":"29","tenantId":"11111111-2222-4333-8444-ABCDEFABCDEF","status":"inProgress","severity":"high",
            "createdDateTime":"2026-01-22T12:09:23.1433333Z","lastUpdateDateTime":"2026-02-25T16:29:33.10Z",
            "assignedTo":null,"redirectIncidentId":null,"alerts":[{"id":"a"},{"id":"b"}]}"#,
    )
    .unwrap();
    let defender = parse_of(
        IncidentApi::Defender,
        r#"{"incidentId":29,"status":"InProgress","severity":"High","createdTime":"2026-01-22T12:09:23.1433333",
            "lastUpdateTime":"2026-02-25T16:29:33.1Z","redirectIncidentId":null,"alerts":[{"alertId":"b"},{"alertId":"a"}]}"#,
    )
    .unwrap();
    assert_eq!(graph.last_updated.to_string(), "2026-02-25T16:29:33.1Z");
    assert_eq!(graph.created.unwrap().to_string(), "2026-01-22T12:09:23.1433333Z");
    assert_eq!(graph.state_hash, defender.state_hash, "the same state has the same hash on both APIs");
    assert_eq!(
        (graph.incident_id, graph.status, graph.severity, graph.created, graph.alerts),
        (defender.incident_id, defender.status, defender.severity, defender.created, defender.alerts)
    );
}

#[test]
fn record_is_one_line_and_otherwise_as_sent() {
    let sent = "{ \"id\" : \"1\",\r\n \"lastUpdateDateTime\":\"2026-01-01T00:00:00Z\", \"n\": 1.50e+400, \"big\": 123456789012345678901234567890, \"t\":\"a\\n b\\u2028 \u{200b}\" }";
    let record = parse(sent).unwrap();
    assert_eq!(
        &*record.json,
        "{\"id\":\"1\",\"lastUpdateDateTime\":\"2026-01-01T00:00:00Z\",\"n\":1.50e+400,\"big\":123456789012345678901234567890,\"t\":\"a\\n b\\u2028 \u{200b}\"}"
    );
}

#[test]
fn owned_record_is_not_copied() {
    let sent = r#"{"id":"1","lastUpdateDateTime":"2026-01-01T00:00:00Z"}"#.as_bytes().to_vec();
    let place = sent.as_ptr();
    let record = Record::parse_owned(sent.into(), &tenant(), IncidentApi::Graph, Alerts::Included).unwrap();
    assert_eq!(record.json.as_ptr(), place);
}

#[test]
fn unreadable_records_have_a_reason() {
    let table = [
        ("nonsense", Unreadable::NotJson),
        (r#"{"lastUpdateDateTime":"2026-01-01T00:00:00Z"}"#, Unreadable::NoId),
        (r#"["1","2026-01-01T00:00:00Z"]"#, Unreadable::NotJson),
        (r#"{"id":"a/b","lastUpdateDateTime":"2026-01-01T00:00:00Z"}"#, Unreadable::NoId),
        (r#"{"id":"","lastUpdateDateTime":"2026-01-01T00:00:00Z"}"#, Unreadable::NoId),
        (r#"{"id":true,"lastUpdateDateTime":"2026-01-01T00:00:00Z"}"#, Unreadable::NoId),
        (r#"{"id":1.5,"lastUpdateDateTime":"2026-01-01T00:00:00Z"}"#, Unreadable::NoId),
        (r#"{"id":123456789012345678901,"lastUpdateDateTime":"2026-01-01T00:00:00Z"}"#, Unreadable::NoId),
        (r#"{"id":"1"}"#, Unreadable::NoLastUpdate),
        (r#"{"id":"1","lastUpdateDateTime":5}"#, Unreadable::NoLastUpdate),
        (
            r#"{"id":"1","lastUpdateDateTime":"2026-01-01T00:00:00Z","tenantId":"22222222-2222-4333-8444-abcdefabcdef"}"#,
            Unreadable::ForeignTenant,
        ),
        (
            r#"{"id":"1","lastUpdateDateTime":"2026-01-01T00:00:00Z","tenantId":"22222222-2222-4333-8444-abcdefabcdef","tenantId":""}"#,
            Unreadable::ForeignTenant,
        ),
    ];
    for (json, why) in table {
        assert_eq!(parse(json), Err(why), "{json}");
    }
}

#[test]
fn unknown_words_wrong_types_and_nulls_are_accepted() {
    let record = parse(
        r#"{"id":"1","lastUpdateDateTime":"2026-01-01T00:00:00Z","status":7,"severity":"UnSpecified","alerts":null,"assignedTo":{},"new":[]}"#,
    )
    .unwrap();
    assert_eq!(
        (record.status.as_str(), record.severity.as_deref(), record.alerts),
        ("unknown", Some("un_specified"), Some(0))
    );
}

/// A record of both APIs: each API's own names count, the other's stand beside them with other values.
#[test]
fn own_names_of_an_api_count_beside_the_others() {
    let both = r#"{"id":"8001","incidentId":8002,"lastUpdateTime":"2026-02-02T00:00:00Z",
        "lastUpdateDateTime":"2026-01-01T00:00:00Z","createdTime":"2026-02-01T00:00:00Z",
        "createdDateTime":"2025-12-01T00:00:00Z","alerts":[{"alertId":"d","id":"g"}]}"#;
    for (api, id, updated, created, alert) in [
        (IncidentApi::Graph, "8001", "2026-01-01T00:00:00Z", "2025-12-01T00:00:00Z", "g"),
        (IncidentApi::Defender, "8002", "2026-02-02T00:00:00Z", "2026-02-01T00:00:00Z", "d"),
    ] {
        let record = parse_of(api, both).unwrap();
        assert_eq!(record.incident_id, id);
        assert_eq!(record.last_updated.to_string(), updated);
        assert_eq!(record.created.unwrap().to_string(), created);
        assert_eq!(record.state_hash, state_hash_of("unknown", None, vec![alert.into()]));
    }
    // A name that cannot be read leaves the other one.
    let odd = r#"{"id":null,"incidentId":8002,"lastUpdateDateTime":5,"lastUpdateTime":"2026-02-02T00:00:00Z"}"#;
    assert_eq!(parse(odd).unwrap().incident_id, "8002");
}

#[test]
fn odd_member_costs_only_itself() {
    let id_and_time = r#""id":"8001","lastUpdateDateTime":"2026-01-01T00:00:00Z""#;
    let plain = parse(&format!(r#"{{{id_and_time},"status":"active","alerts":[{{"id":"a"}}]}}"#)).unwrap();
    for odd in [
        r#""status":"active","status":"active","alerts":[{"id":"a"}]"#,
        r#""id":"8001","lastUpdateDateTime":null,"status":"active","alerts":[{"id":"a"}],"alerts":null"#,
        r#""status":"active","assignedTo":"\ud83d","alerts":[null,{"id":"a"},7,"b",[{"id":"c"}]]"#,
        r#""status":"active","alerts":[{"id":"a","alertId":"b"},{"id":"a","id":"a"}]"#,
        r#""status":"active","\udc00":1,"alerts":[{"id":"a","title":"\udc00"}],"tenantId":"""#,
        r#""status":"active","createdDateTime":"never","severity":[],"alerts":[{"id":"a"}]"#,
        r#""status":"active","redirectIncidentId":[],"alerts":[{"id":"a"},{"id":{}},{"id":true}]"#,
    ] {
        let sent = format!("{{{id_and_time},{odd}}}");
        let record = parse(&sent).unwrap_or_else(|why| panic!("{sent}: {why:?}"));
        assert_eq!(record.state_hash, plain.state_hash, "{sent}");
        assert!(record.alerts >= Some(1), "{sent}");
        assert_eq!(&*record.json, sent, "the record is delivered as it was sent");
    }
    let cut = parse(&format!(r#"{{{id_and_time},"assignedTo":"ada\ud83d"}}"#)).unwrap();
    assert!(cut.assigned_to.unwrap().starts_with("ada\u{fffd}"));
}

#[test]
fn digits_beyond_the_nanosecond_are_cut_off() {
    for (sent, read) in [
        ("2026-01-01T00:00:00.1234567899Z", "2026-01-01T00:00:00.123456789Z"),
        ("2026-01-01T00:00:00.00000000000000000000", "2026-01-01T00:00:00Z"),
        ("2026-01-01T02:00:00.9999999999+02:00", "2026-01-01T00:00:00.999999999Z"),
    ] {
        assert_eq!(parse_time(sent).unwrap().to_string(), read, "{sent}");
    }
    for odd in ["2026-01-01T00:00:00.1234567890123x", ".12345678901", "2026.ä", ""] {
        assert_eq!(parse_time(odd), None, "{odd}");
    }
}

#[test]
fn id_may_be_a_short_name() {
    for id in ["29", "0029", "924565000000000000001", "6f1b8a3e-09c4-4d0e-9a57-5b7e2f6f6a10"] {
        let record = parse(&format!(r#"{{"id":"{id}","lastUpdateDateTime":"2026-01-01T00:00:00Z"}}"#));
        assert_eq!(record.unwrap().incident_id, id);
    }
}

#[test]
fn words_become_snake_case() {
    for (sent, ours) in [
        ("InProgress", "in_progress"),
        ("awaitingAction", "awaiting_action"),
        ("Active", "active"),
        ("Informational, expected activity", "informational_expected_activity"),
    ] {
        assert_eq!(snake_case(sent), ours);
    }
}

const NAMES: [&str; 12] = [
    "id",
    "incidentId",
    "tenantId",
    "status",
    "severity",
    "assignedTo",
    "redirectIncidentId",
    "createdDateTime",
    "createdTime",
    "lastUpdateDateTime",
    "lastUpdateTime",
    "new",
];

proptest! {
    /// The names of the other API and repetitions with odd values change nothing of what is read.
    #[test]
    fn record_damaged_by_odd_members_reads_the_same(
        graph in with_odd_members(
            r#"{"id":"924565","tenantId":"11111111-2222-4333-8444-abcdefabcdef","status":"active","severity":"low","assignedTo":"ada","redirectIncidentId":"7","createdDateTime":"2026-01-02T03:04:05.1234567Z","lastUpdateDateTime":"2026-01-02T03:04:05.12Z","alerts":[{"id":"da1","alertId":"x","severity":"low"}]}"#,
            &NAMES,
            &[("incidentId", "1"), ("createdTime", r#""2020-01-01T00:00:00Z""#), ("lastUpdateTime", r#""2020-01-01T00:00:00Z""#)],
            &[r#""alerts":["#],
        ),
        defender in with_odd_members(
            r#"{"incidentId":924565,"tenantId":"11111111-2222-4333-8444-abcdefabcdef","status":"Active","severity":"Low","assignedTo":"ada","redirectIncidentId":7,"createdTime":"2026-01-02T03:04:05.1234567","lastUpdateTime":"2026-01-02T03:04:05.12Z","alerts":[{"alertId":"da1","id":7,"severity":"Low"}]}"#,
            &NAMES,
            &[("id", r#""1""#), ("createdDateTime", r#""2020-01-01T00:00:00Z""#), ("lastUpdateDateTime", r#""2020-01-01T00:00:00Z""#)],
            &[r#""alerts":["#],
        ),
    ) {
        for (api, sent) in [(IncidentApi::Graph, graph), (IncidentApi::Defender, defender)] {
            let record = parse_of(api, &sent);
            prop_assert!(record.is_ok(), "{sent}: {record:?}");
            let record = record.unwrap();
            prop_assert_eq!(&*record.json, &*sent);
            prop_assert_eq!(
                (record.incident_id.as_str(), record.status.as_str(), record.severity.as_deref(), record.assigned_to.as_deref()),
                ("924565", "active", Some("low"), Some("ada")),
                "{}", sent
            );
            prop_assert_eq!(record.last_updated.to_string(), "2026-01-02T03:04:05.12Z");
            let created = record.created.map(|time| time.to_string());
            prop_assert_eq!(created.as_deref(), Some("2026-01-02T03:04:05.1234567Z"));
            prop_assert_eq!((record.merged_into.as_deref(), record.alerts), (Some("7"), Some(1)));
            prop_assert_eq!(record.state_hash, state_hash_of("active", Some("7"), vec!["da1".into()]));
        }
    }

    #[test]
    fn control_character_in_any_text_is_no_json(control in 0u8..32) {
        let control = char::from(control);
        for sent in [
            format!(r#"{{"id":"1","lastUpdateDateTime":"2026-01-02T03:04:05Z","alerts":[{{"id":"a","title":"x{control}y"}}]}}"#),
            format!(r#"{{"id":"1","lastUpdateDateTime":"2026-01-02T03:04:05Z","alerts":[{{"id":"a{control}b"}}]}}"#),
            format!(r#"{{"id":"1","lastUpdateDateTime":"2026-01-02T03:04:05Z","na{control}me":"x","alerts":[]}}"#),
        ] {
            let read = Record::parse(sent.as_bytes(), &tenant(), IncidentApi::Graph, Alerts::Included);
            prop_assert!(matches!(read, Err(Unreadable::NotJson)), "{:?}", sent);
        }
    }

    #[test]
    fn damaged_records_are_unreadable_or_have_an_id(
        raw in damaged(r#"{"id":"924565","tenantId":"11111111-2222-4333-8444-abcdefabcdef","status":"active","redirectIncidentId":null,"createdDateTime":"2026-01-02T03:04:05.1234567Z","lastUpdateDateTime":"2026-01-02T03:04:05.12Z","alerts":[{"id":"da1","severity":"low"}]}"#),
    ) {
        if let Ok(record) = Record::parse(&raw, &tenant(), IncidentApi::Graph, Alerts::Included) {
            prop_assert!((1..=64).contains(&record.incident_id.len()));
            prop_assert!(serde_json::from_str::<serde_json::Value>(&record.json).is_ok());
        }
    }

    #[test]
    fn alerts_read_in_one_pass_are_those_read_one_by_one(
        raw in prop_oneof![
            damaged(r#"{"id":1,"alerts":[null,{"id":"a","x":[{"id":"y"}],"alertId":7},"b",[{"id":"c"}],{"id":null,"alertId":"b"}],"alerts":{}}"#),
            damaged(r#"{"alerts":[{"id":"a","id":"b"},"\ud83d",1e999,{"alertId":"\udc00","\u0069d":"c"},{}],"alerts":null,"n":-1.5e3}"#),
        ],
    ) {
        let names = ["id", "alertId"];
        if str::from_utf8(&raw).is_ok() {
            let whole = |members: &Members<'_>| members.length == raw.len();
            let ids = |list: &'_ [u8]| -> Option<Vec<Option<String>>> {
                let entries: Vec<&RawValue> = serde_json::from_slice(list).ok()?;
                let id = |entry: &RawValue| Some(Members::of(entry.get().as_bytes())?.find(&names, identifier).map(Cow::into_owned));
                Some(entries.into_iter().filter_map(id).collect())
            };
            let one_by_one = Members::of(&raw).filter(whole).map(|members| members.find(&["alerts"], ids));
            let owned = |ids: AlertIds<'_>| ids.into_iter().map(|id| id.map(Cow::into_owned)).collect::<Vec<_>>();
            let in_one_pass = Members::with_alerts(&raw, names).filter(whole).map(|members| members.alerts.map(owned));
            prop_assert_eq!(in_one_pass, one_by_one);
        }
    }

    #[test]
    fn first_record_of_a_text_is_read_as_if_alone(
        first in damaged(r#"{"id":1,"lastUpdateDateTime":"2026-01-01T00:00:00Z","status":"a\u00e9\"}","alerts":[{"id":"b"}]}"#),
        rest in prop::sample::select(&["", " , {\"id\":2}", "]}", "}", "\u{e9}", "1"][..]),
    ) {
        let parsed = Record::parse(&first, &tenant(), IncidentApi::Graph, Alerts::Included);
        let text = [&first, rest.as_bytes()].concat();
        let in_text = Record::parse_first(&text, &tenant(), IncidentApi::Graph, Alerts::Included);
        match in_text {
            // What was put behind it may be white space, or complete a text that was cut.
            Some((record, length)) => {
                prop_assert_eq!(Record::parse(&text[..length], &tenant(), IncidentApi::Graph, Alerts::Included), Ok(record.clone()));
                if let Ok(parsed) = parsed {
                    prop_assert_eq!(parsed, record);
                }
            }
            None => prop_assert!(parsed.is_err()),
        }
    }

    #[test]
    fn json_without_whitespace_has_the_same_value(raw in damaged(r#" { "a b" : "c \" d\\" , "e":[ 1 , "\\" ] } "#)) {
        let sent = String::from_utf8_lossy(&raw).into_owned();
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(&sent) {
            let compact = without_whitespace(&sent);
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&compact).unwrap(), value);
        }
    }
}
