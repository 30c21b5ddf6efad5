use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    incident::ocsf::tests::{event, with},
    microsoft::IncidentApi,
};

use super::*;

/// One piece of evidence of each type, as Graph and Defender write it.
const SAMPLES: &str = include_str!("../../../../../tests/sim/src/store/evidence.json");

fn samples() -> Value {
    serde_json::from_str(SAMPLES).unwrap()
}

/// The event of a record whose only alert has this evidence.
fn event_of(member: &str, evidence: &[Value]) -> Value {
    with(&format!(r#""alerts":[{{"id":"a","{member}":{}}}]"#, json!(evidence)), None)
}

/// The value in an event that the name of an observable points to.
fn pointed_to<'e>(event: &'e Value, name: &str) -> &'e Value {
    let path = name.replace(['.', '['], "/").replace(']', "");
    event.pointer(&format!("/{path}")).unwrap_or_else(|| panic!("{name} points to nothing"))
}

/// The observables of an event as lines. Each must point to its value.
fn lines(event: &Value, place: &str) -> Vec<String> {
    let observables = event["observables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let line = |observable: &Value| {
        let text = |name: &str| observable[name].as_str().unwrap();
        let sent = pointed_to(event, text("name"));
        assert_eq!(sent.as_str().map_or_else(|| sent.to_string(), str::to_owned), text("value"));
        let name = text("name").strip_prefix(place).unwrap();
        format!("{name} = {} {} {}", observable["type_id"], text("type"), text("value"))
    };
    observables.iter().map(line).collect()
}

#[test]
fn each_type_of_evidence_has_its_observables() {
    let expected: BTreeMap<String, Vec<String>> =
        serde_json::from_str(include_str!("../fixtures/observables.json")).unwrap();
    let samples = samples();
    let mut found = BTreeMap::new();
    for (member, kind) in [("evidence", "@odata.type"), ("entities", "entityType")] {
        for sample in samples[member].as_array().unwrap() {
            let event = event_of(member, std::slice::from_ref(sample));
            let lines = lines(&event, &format!("unmapped.alerts[0].{member}[0]."));
            found.insert(sample[kind].as_str().unwrap().to_owned(), lines);
        }
    }
    assert_eq!(found.len(), 48 + 10);
    assert_eq!(found, expected, "{}", serde_json::to_string_pretty(&found).unwrap());
    let without: Vec<_> = found.iter().filter(|(_, lines)| lines.is_empty()).map(|(kind, _)| kind).collect();
    assert_eq!(without, ["MailCluster"], "Defender's says nothing but the words of a query");
}

#[test]
fn evidence_of_an_unknown_type_has_observables() {
    let unknown = json!({
        "@odata.type": "#microsoft.graph.security.quantumEvidence", "hostName": "qpu-1", "clientIp": "198.51.100.1",
        "controlEmailAddress": "q@contoso.example", "parts": [{"sha256": "ab12", "callbackUrl": "https://q.example"}],
        "note": "198.51.100.2", "destinationPort": 8443,
    });
    assert_eq!(
        lines(&event_of("evidence", &[unknown]), "unmapped.alerts[0].evidence[0]."),
        [
            "clientIp = 2 IP Address 198.51.100.1",
            "controlEmailAddress = 5 Email Address q@contoso.example",
            "destinationPort = 11 Port 8443",
            "hostName = 1 Hostname qpu-1",
            "parts[0].callbackUrl = 6 URL String https://q.example",
            "parts[0].sha256 = 8 Hash ab12",
        ]
    );
}

#[test]
fn placeholders_and_other_forms_are_no_observables() {
    let evidence = [
        json!({"ipAddress": "-", "url": "", "fileName": " - ", "userPrincipalName": null, "sha256": []}),
        json!({"ipAddress": "host-1", "macAddress": "18:36:F3:98:4F", "recipient": "8:orgid:1", "hostName": "a host"}),
        json!({"destinationPort": 70_000, "processId": -1, "countryLetterCode": "DEU", "ipInterfaces": [null, true, "::"]}),
        json!({"labels": {"hostName": "a", "nested": {"ipAddress": "198.51.100.1"}}}),
        json!(null),
        json!("198.51.100.1"),
    ];
    assert_eq!(
        lines(&event_of("evidence", &evidence), "unmapped.alerts[0].evidence"),
        ["[2].ipInterfaces[2] = 2 IP Address ::"]
    );
    assert_eq!(event_of("evidence", &[]).get("observables"), None);
}

#[test]
fn value_is_listed_once_where_it_is_first() {
    let alerts = r#""alerts":[7,{"id":"a","evidence":[{"ipAddress":"198.51.100.1"},{"senderIp":"198.51.100.1"}]},
        {"id":"b","evidence":[{"ipAddress":"198.51.100.1"},{"ipAddress":"198.51.100.2"}]}],
        "entities":[{"ipAddress":"198.51.100.3"}]"#;
    assert_eq!(
        lines(&with(alerts, None), "unmapped."),
        [
            "entities[0].ipAddress = 2 IP Address 198.51.100.3",
            "alerts[1].evidence[0].ipAddress = 2 IP Address 198.51.100.1",
            "alerts[2].evidence[1].ipAddress = 2 IP Address 198.51.100.2",
        ]
    );
}

#[test]
fn device_of_defender_has_its_observables() {
    let record = r#"{"incidentId":7,"lastUpdateTime":"2026-01-01T00:00:00Z","alerts":[{"alertId":"a","devices":[
        {"mdatpDeviceId":"335b","aadDeviceId":null,"deviceDnsName":"host-1.contoso.example","osBuild":26200}]}]}"#;
    assert_eq!(
        lines(&event(record, IncidentApi::Defender, None), "unmapped.alerts[0].devices[0]."),
        ["deviceDnsName = 1 Hostname host-1.contoso.example", "mdatpDeviceId = 47 Device Object: uid 335b"]
    );
}
