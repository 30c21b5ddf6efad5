//! Records that are odd in form: what is odd costs only itself.

use serde_json::{Value, json};
use shared::microsoft::IncidentApi;
use sim::{Fault, FaultKind, Giant, IncidentSeed};

use super::harness::{APIS, SyncHarness, TENANT, active};
use crate::backends::{invocation, lines_of};

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

#[tokio::test]
async fn odd_rows_and_members_of_a_list_cost_only_themselves() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let (id, time) = match api {
            IncidentApi::Graph => ("id", "lastUpdateDateTime"),
            IncidentApi::Defender => ("incidentId", "lastUpdateTime"),
        };
        let row = |name: &str| json!({id: name, time: sync.clock.now(), "alerts": [{"id": "a", "alertId": "a"}]});
        let (first, second) = (row("1"), row("2"));
        let body = format!(r#"{{"\ud800":1,"value":[null,{first},7],"x":1,"value":[{second}],"x":2}}"#);
        let list = FaultKind::Status { status: 200, body: Some(body), headers: Vec::new() };
        sync.backends.sim.fault(Fault::new(list).tenant(TENANT).method("GET").path(api.incidents_path()));
        sync.poll().await;
        let feed = sync.feed().await;
        assert_eq!((sync.delivered().len(), feed.quarantined, feed.failures), (2, 2, 0), "{api}");
    }
}

#[tokio::test]
async fn incidents_that_are_not_read_again_are_counted_in_the_log() {
    let sync = SyncHarness::start(IncidentApi::Defender).await;
    for _ in 0..103 {
        sync.put_seed(IncidentSeed { alerts: 0, ..IncidentSeed::default() });
    }
    let body = json!({"tenant_id": TENANT, "kind": "poll"}).to_string();
    let event = json!({"Records": [{"messageId": "m", "body": body, "eventSource": "aws:sqs"}]});
    sync.app.handle(event, invocation(&sync.backends.request_id)).await.unwrap();
    sync.assert_complete();
    let dropped: u64 =
        lines_of(&sync.backends.request_id).iter().filter_map(|line| line["dropped_rechecks"].as_u64()).sum();
    assert_eq!((sync.feed().await.rechecks.len(), dropped), (100, 3));
}

/// Large rows of several tenants in one process wait for each other, and all of them are delivered.
#[tokio::test]
async fn large_incidents_of_several_tenants_are_delivered() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    let tenants: Vec<String> = (1..=4).map(|number| format!("11111111-2222-4333-8444-00000000000{number}")).collect();
    for tenant in &tenants {
        if tenant != TENANT {
            sync.backends.customer(tenant, &format!("{tenant}.example"), &[sync.api.write_role()]);
            sync.registry.create_tenant(&active(tenant.parse().unwrap(), sync.api)).await.unwrap();
            sync.registry.open_feed(&tenant.parse().unwrap(), sync.clock.now()).await.unwrap();
        }
        for _ in 0..2 {
            let giant = Some(Giant { alerts: 300, bytes_each: 5 << 10 });
            sync.backends.sim.put_incident(tenant, IncidentSeed { giant, ..IncidentSeed::default() });
        }
    }
    let polls: Vec<String> =
        tenants.iter().map(|tenant| json!({"tenant_id": tenant, "kind": "poll"}).to_string()).collect();
    assert_eq!(sync.hand_over(&polls).await, json!({"batchItemFailures": []}));
    assert_eq!(sync.delivered().len(), 8);
}
