//! `Incident Changed`: an event for each version, before the registry records it.

use aws_double::{AwsFault, FaultPosition};
use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::microsoft::IncidentApi;
use sim::IncidentSeed;

use super::harness::{APIS, SyncHarness, TENANT};

const SUMMARY: [(&str, &str); 1] = [("INCIDENT_EVENTS", "summary")];

impl SyncHarness {
    /// Takes the events about single versions off the bus.
    fn incident_events(&self) -> Vec<Value> {
        let events = self.backends.events().into_iter().filter(|(kind, _)| kind == "Incident Changed");
        events.map(|(_, detail)| detail).collect()
    }
}

fn poll_body() -> [String; 1] {
    [json!({"tenant_id": TENANT, "kind": "poll"}).to_string()]
}

#[tokio::test]
async fn event_of_a_version_has_all_members_on_both_apis() {
    for api in APIS {
        let sync = SyncHarness::start_with(api, &SUMMARY).await;
        let last_update = sync.clock.now() - SignedDuration::from_secs(60);
        let id = sync.put_seed(IncidentSeed {
            status: "inProgress".into(),
            severity: "high".into(),
            assigned_to: Some("ada@contoso.example".into()),
            last_update: Some(last_update),
            created: Some(last_update),
            alerts: 2,
            display_name: "\u{fc}".repeat(501),
            custom_tags: vec!["vip".into()],
            ..IncidentSeed::default()
        });
        sync.poll().await;
        let events = sync.incident_events();
        let object = sync.backends.objects("incidents/").remove(0);
        let key = format!("{TENANT}/{id}/{last_update}");
        let sent = &sync.delivered()[0].json["incident"];
        let url = if api == IncidentApi::Graph { &sent["incidentWebUrl"] } else { &sent["incidentUri"] };
        assert!(url.as_str().unwrap().starts_with("https://security.microsoft.com/"));
        let expected = json!({
            "key": key, "tenant_id": TENANT, "customer": "Contoso", "incident_id": id, "change": "created",
            "title": "\u{fc}".repeat(500), "status": "in_progress", "severity": "high",
            "assigned_to": "ada@contoso.example", "alerts": 2, "tags": ["vip"], "merged_into": null,
            "url": url, "created": last_update, "last_updated": last_update,
            "bucket": sync.backends.bucket, "object": object
        });
        assert_eq!(events, [expected], "{api}");
        sync.advance(60);
        sync.update(&id, |incident| incident.status = "resolved".into());
        sync.poll().await;
        let events = sync.incident_events();
        assert_eq!(
            (events.len(), &events[0]["change"], &events[0]["status"]),
            (1, &json!("closed"), &json!("resolved"))
        );
        sync.advance(60);
        sync.poll().await;
        assert_eq!(sync.incident_events(), [json!(null); 0], "a quiet poll");
    }
}

#[tokio::test]
async fn events_name_the_object_of_each_delivery_format() {
    for (format, prefix) in [("envelope", "incidents/"), ("ocsf", "ocsf/"), ("both", "incidents/")] {
        let sync = SyncHarness::start_with(APIS[0], &[SUMMARY[0], ("DELIVERY_FORMAT", format)]).await;
        sync.put(60);
        sync.poll().await;
        let events = sync.incident_events();
        assert_eq!(events.len(), 1, "{format}");
        assert_eq!(events[0]["object"], sync.backends.objects(prefix).remove(0), "{format}");
    }
}

#[tokio::test]
async fn without_the_setting_no_version_has_an_event() {
    let sync = SyncHarness::start_with(APIS[0], &[("INCIDENT_EVENTS", "none")]).await;
    sync.put(60);
    sync.poll().await;
    assert_eq!(sync.incident_events().len(), 0);
    assert_eq!(sync.delivered().len(), 1);
}

#[tokio::test]
async fn large_events_are_sent_in_requests_of_256_kb() {
    let sync = SyncHarness::start_with(APIS[0], &SUMMARY).await;
    for number in 0..25 {
        sync.put_seed(IncidentSeed {
            last_update: Some(sync.clock.now() - SignedDuration::from_secs(60 + number)),
            // The longest event: JSON writes six bytes for each of these characters.
            custom_tags: vec!["\u{1}".repeat(600); 60],
            ..IncidentSeed::default()
        });
    }
    sync.poll().await;
    assert_eq!(sync.incident_events().len(), 25);
    let calls = sync.backends.double.account().calls("PutEvents");
    assert_eq!(calls, 1 + 25, "two of these exceed 256 KB");
}

#[tokio::test]
async fn refused_entries_are_sent_again_and_only_those() {
    let sync = SyncHarness::start_with(APIS[0], &SUMMARY).await;
    for number in 0..25 {
        sync.put(60 + number);
    }
    // The request after the object is about the object, the next three are about versions.
    let refusals = [2, 3, 4].map(|request| (FaultPosition::Delivery(request), AwsFault::Partial));
    sync.backends.double.account().plan("it", refusals.to_vec());
    sync.poll().await;
    let events = sync.incident_events();
    let keys: std::collections::BTreeSet<&str> = events.iter().map(|event| event["key"].as_str().unwrap()).collect();
    assert_eq!((events.len(), keys.len()), (25, 25));
    assert_eq!(sync.backends.double.account().calls("PutEvents"), 1 + 3 + 1, "the three refused ones in one request");
    sync.assert_complete();
}

#[tokio::test]
async fn version_with_a_refused_event_is_not_recorded() {
    for api in APIS {
        let sync = SyncHarness::start_with(api, &SUMMARY).await;
        sync.put(60);
        sync.backends.double.account().refused_detail_type = Some("Incident Changed".into());
        assert_ne!(sync.hand_over(&poll_body()).await, json!({"batchItemFailures": []}));
        assert_eq!(sync.backends.double.account().items("VERSIONS#").len(), 0, "{api}");
        assert_eq!(sync.incident_events().len(), 0);
        sync.backends.double.account().refused_detail_type = None;
        sync.advance(60);
        assert_eq!(sync.hand_over(&poll_body()).await, json!({"batchItemFailures": []}));
        let events = sync.incident_events();
        assert_eq!(events.len(), 1, "{api}");
        assert_eq!(events[0]["change"], "created");
        assert_eq!(events[0]["object"], sync.backends.objects("incidents/").remove(0));
        sync.assert_complete();
    }
}
