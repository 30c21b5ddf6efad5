//! Records that are odd in form: what is odd costs only itself.

use serde_json::{Value, json};
use shared::microsoft::IncidentApi;
use sim::{Fault, FaultKind, IncidentSeed};

use super::harness::{APIS, SyncHarness, TENANT};

#[tokio::test]
async fn record_with_the_names_of_both_apis_is_delivered() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let time = json!("2020-01-01T00:00:00Z");
        let extra = match api {
            IncidentApi::Graph => json!({"incidentId": 8001, "lastUpdateTime": time, "createdTime": time}),
            IncidentApi::Defender => json!({"id": "8001", "lastUpdateDateTime": time, "createdDateTime": time}),
        };
        let Value::Object(extra) = extra else { panic!("an object") };
        sync.put_seed(IncidentSeed {
            extra,
            alerts: 1,
            last_update: Some(sync.clock.now()),
            ..IncidentSeed::default()
        });
        sync.put(60);
        sync.advance(10);
        sync.poll().await;
        sync.assert_complete();
        assert_eq!((sync.keys().len(), sync.feed().await.quarantined), (2, 0), "{api}");
    }
}

/// Incidents of tomorrow, whose ids are GUIDs, among others that are odd in their own ways.
#[tokio::test]
async fn incidents_with_odd_ids_are_delivered_once() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let (id, time) = match api {
            IncidentApi::Graph => ("id", "lastUpdateDateTime"),
            IncidentApi::Defender => ("incidentId", "lastUpdateTime"),
        };
        let now = sync.clock.now();
        let ids = ["6f1b8a3e-09c4-4d0e-9a57-5b7e2f6f6a10", "0f1b8a3e-09c4-4d0e-9a57-5b7e2f6f6a10", "0029", "29"];
        let row =
            |name: &&str| json!({id: name, time: now, "tenantId": "", "alerts": [null, {"id": "a", "alertId": "a"}]});
        let body = json!({"value": ids.iter().map(row).collect::<Vec<_>>()}).to_string();
        let list = FaultKind::Status { status: 200, body: Some(body), headers: Vec::new() };
        sync.backends.sim.fault(Fault::new(list).tenant(TENANT).method("GET").path(api.incidents_path()));
        for _ in 0..3 {
            sync.poll().await;
            sync.advance(60);
        }
        let mut delivered: Vec<String> = sync.delivered().iter().map(|line| line.id_and_change().0).collect();
        delivered.sort();
        let mut expected = ids;
        expected.sort_unstable();
        assert_eq!(delivered, expected, "{api}: each once");
        assert_eq!(sync.feed().await.quarantined, 0);
    }
}
