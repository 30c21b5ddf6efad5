//! `Tenant Status Changed` comes at least once for each change, also where the bus is down at the change.

use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::microsoft::IncidentApi;

use super::harness::{SyncHarness, TENANT, grant};
use crate::backends::{Backends, CLIENT_ID, invocation, request};

/// `from`, `to` and `reason` of each change of status that was reported since the last call.
fn changes(backends: &Backends) -> Vec<[Value; 3]> {
    let events = backends.events().into_iter().filter(|(kind, _)| kind == "Tenant Status Changed");
    events.map(|(_, detail)| ["from", "to", "reason"].map(|name| detail[name].clone())).collect()
}

fn change(from: Option<&str>, to: &str, reason: Option<&str>) -> [Value; 3] {
    [json!(from), json!(to), json!(reason)]
}

async fn poll(sync: &SyncHarness) {
    sync.hand_over(&[json!({"tenant_id": TENANT, "kind": "poll"}).to_string()]).await;
}

fn admin(sync: &SyncHarness) -> tenant_admin::App {
    let backends = &sync.backends;
    let config = tenant_admin::Config {
        microsoft: backends.microsoft(),
        table_name: backends.table.clone(),
        sync_queue_url: backends.queue_url.clone(),
        incident_bucket: backends.bucket.clone(),
        event_bus_name: Some(backends.bus.clone()),
        public_base_url: None,
        sweep: SignedDuration::from_hours(72),
        jwt_audience: None,
    };
    tenant_admin::App::new(config, &crate::backends::platform(&backends.aws, &sync.clock))
}

#[tokio::test]
async fn pause_and_resume_are_announced_once_the_bus_is_back() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    let bus_is_down = |is_down| sync.backends.double.account().bus_is_down = is_down;
    poll(&sync).await;
    bus_is_down(true);
    sync.backends.sim.revoke(TENANT, CLIENT_ID);
    sync.advance(600);
    poll(&sync).await;
    assert_eq!(sync.tenant().await.status.as_str(), "paused");
    sync.advance(900);
    poll(&sync).await;
    bus_is_down(false);
    sync.advance(900);
    poll(&sync).await;
    assert_eq!(changes(&sync.backends), [change(Some("active"), "paused", Some("consent_missing"))]);

    bus_is_down(true);
    grant(&sync);
    sync.advance(900);
    poll(&sync).await;
    assert_eq!(sync.tenant().await.status.as_str(), "active");
    bus_is_down(false);
    sync.advance(60);
    poll(&sync).await;
    assert_eq!(changes(&sync.backends), [change(Some("paused"), "active", None)]);
    sync.advance(60);
    poll(&sync).await;
    assert!(changes(&sync.backends).is_empty());
    assert!(sync.tenant().await.unannounced.is_empty());
}

#[tokio::test]
async fn operators_changes_are_announced_without_a_further_call() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    let (admin, path) = (admin(&sync), format!("/tenants/{TENANT}"));
    let call = async |method: &str, path: &str| {
        let response =
            admin.handle(request(method, path, "", None), invocation(&sync.backends.request_id)).await.unwrap();
        assert_eq!(response["statusCode"], 200, "{response}");
    };
    for (method, path, expected) in [
        ("POST", format!("{path}/pause"), change(Some("active"), "paused", Some("operator"))),
        ("POST", format!("{path}/resume"), change(Some("paused"), "active", None)),
        ("DELETE", path.clone(), change(Some("active"), "offboarded", None)),
    ] {
        sync.backends.double.account().bus_is_down = true;
        call(method, &path).await;
        assert!(changes(&sync.backends).is_empty());
        sync.backends.double.account().bus_is_down = false;
        sync.advance(60);
        // Nobody polls a paused or offboarded tenant: the call has left a message.
        for (_, body) in sync.backends.messages() {
            assert_eq!(sync.hand_over(&[body.to_string()]).await, json!({"batchItemFailures": []}));
        }
        assert_eq!(changes(&sync.backends), [expected], "{method} {path}");
    }
}
