//! OCSF findings as they are delivered and read live.

use std::{collections::BTreeMap, io::Read};

use flate2::read::GzDecoder;
use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::microsoft::IncidentApi;
use sim::{AlertCategories, EvidenceSet, Fault, FaultKind, Giant, IncidentSeed};

use super::harness::{APIS, SyncHarness, TENANT};
use crate::ocsf::assert_valid;

async fn start(api: IncidentApi) -> SyncHarness {
    SyncHarness::start_with(api, &[("DELIVERY_FORMAT", "both")]).await
}

/// The delivered findings by incident id, the newest of each. All are valid.
fn delivered(sync: &SyncHarness) -> BTreeMap<String, Value> {
    let mut findings: BTreeMap<String, Value> = BTreeMap::new();
    for object in sync.backends.objects("ocsf/") {
        let mut text = String::new();
        GzDecoder::new(sync.backends.object(&object).as_slice()).read_to_string(&mut text).unwrap();
        for line in text.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            assert_valid(&event);
            let id = event["metadata"]["original_event_uid"].as_str().unwrap().to_owned();
            let newest = findings.entry(id).or_insert_with(|| event.clone());
            if newest["time"].as_i64() < event["time"].as_i64() {
                *newest = event;
            }
        }
    }
    findings
}

async fn live(sync: &SyncHarness, id: &str) -> Value {
    let (status, event) = sync.call("GET", &format!("/tenants/{TENANT}/incidents/{id}"), "format=ocsf", None).await;
    assert_eq!(status, 200, "{event}");
    assert_valid(&event);
    event
}

/// An event without what differs by the way it was read: the time.
fn without_time(mut event: Value) -> Value {
    event["metadata"]["logged_time"] = Value::Null;
    event
}

#[tokio::test]
async fn delivered_and_live_findings_agree() {
    for api in APIS {
        let sync = start(api).await;
        let all = sync.put_seed(IncidentSeed {
            evidence: EvidenceSet::AllTypes,
            alert_categories: AlertCategories::Both,
            custom_tags: vec!["crown jewels".into()],
            ..IncidentSeed::default()
        });
        let closed = sync.put_seed(IncidentSeed { status: "resolved".into(), ..IncidentSeed::default() });
        let merged = sync.put_seed(IncidentSeed::default());
        sync.backends.sim.change_incident_silently(TENANT, &merged, |incident| {
            "redirected".clone_into(&mut incident.status);
            incident.redirect_incident_id = Some(1);
            incident.priority_score = Some(90);
        });
        sync.advance(10);
        sync.poll().await;
        let findings = delivered(&sync);
        for id in [&all, &closed, &merged] {
            assert_eq!(without_time(findings[id].clone()), without_time(live(&sync, id).await), "{id} on {api}");
        }
        let finding = &findings[&all]["finding_info_list"][0];
        assert_eq!(finding["types"], json!(["Execution", "InitialAccess", "Exfiltration"]));
        assert_eq!(findings[&all]["metadata"]["labels"], json!(["crown jewels"]));
        let observables = findings[&all]["observables"].as_array().unwrap().len();
        assert!(observables > if api == IncidentApi::Graph { 120 } else { 20 }, "{observables} on {api}");
        assert_eq!(findings[&closed]["activity_name"], "Close");
        assert_eq!(findings[&merged]["finding_info_list"][0]["related_events"][0]["uid"], "1");
        if api == IncidentApi::Graph {
            assert_eq!(findings[&merged]["priority"], "Critical");
        }
    }
}

#[tokio::test]
async fn live_finding_of_each_version_is_the_delivered_one() {
    for api in APIS {
        let sync = start(api).await;
        let created = Some(sync.clock.now() - SignedDuration::from_hours(2));
        let id = sync.put_seed(IncidentSeed { created, ..IncidentSeed::default() });
        for (status, activity, change) in [
            ("active", "Create", "created"),
            ("resolved", "Close", "closed"),
            ("resolved", "Update", "updated"),
            ("active", "Update", "reopened"),
        ] {
            sync.advance(60);
            sync.update(&id, |incident| status.clone_into(&mut incident.status));
            let before = live(&sync, &id).await;
            sync.poll().await;
            let finding = delivered(&sync).remove(&id).unwrap();
            let tags = finding["metadata"]["tags"].as_array().unwrap();
            assert!(tags.contains(&json!({"name": "change", "value": change})), "{tags:?} on {api}");
            assert_eq!(finding["activity_name"], activity, "{change} on {api}");
            for shown in [before, live(&sync, &id).await] {
                assert_eq!(without_time(shown), without_time(finding.clone()), "{change} on {api}");
            }
        }
    }
}

#[tokio::test]
async fn findings_without_their_alerts_say_so() {
    let sync = start(IncidentApi::Graph).await;
    let giant = Some(Giant { alerts: 300, bytes_each: 20 << 10 });
    let large = sync.put_seed(IncidentSeed { giant, last_update: Some(sync.clock.now()), ..IncidentSeed::default() });
    let event = live(&sync, &large).await;
    let metadata = &event["metadata"];
    assert_eq!((&metadata["is_truncated"], event.get("observables")), (&json!(true), None));
    assert!(
        metadata["untruncated_size"].as_u64().is_some_and(|kilobytes| (6_000..7_000).contains(&kilobytes)),
        "{metadata}"
    );

    let poisoned = sync.put(60);
    sync.backends.sim.fault(Fault::new(FaultKind::status(500)).tenant(TENANT).incident(&poisoned).with_expand());
    sync.advance(10);
    sync.poll().await;
    let findings = delivered(&sync);
    assert_eq!(findings[&large]["metadata"].get("is_truncated"), None, "it is delivered whole");
    assert_eq!(findings[&poisoned]["metadata"]["is_truncated"], true);
}

#[tokio::test]
async fn moved_alert_is_a_version_of_both_incidents() {
    for api in APIS {
        let sync = start(api).await;
        let (from, into) = (sync.put(120), sync.put(60));
        sync.poll().await;
        sync.advance(60);
        let alert = sync.backends.sim.incident(TENANT, &from).unwrap().alerts[0].id.clone();
        assert_eq!(sync.backends.sim.move_alerts(TENANT, &[alert], Some(&into)).as_deref(), Some(into.as_str()));
        sync.poll().await;
        sync.assert_complete();
        let findings = delivered(&sync);
        let alerts = |id: &str| findings[id]["finding_info_list"].as_array().unwrap().len();
        assert_eq!(
            (alerts(&into), &findings[&from]["finding_info_list"][0]["types"]),
            (2, &json!(["Incident"])),
            "{api}"
        );
    }
}
