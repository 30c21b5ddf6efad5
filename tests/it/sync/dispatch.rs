//! The messages that `incident-dispatch` queues, and its writes, of which there are none.

use std::{collections::BTreeSet, time::Duration};

use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::{lambda::event::Invocation, tenant::TenantId};

use super::harness::{APIS, SyncHarness, active, invocation, tenant};
use crate::backends::{lines_of, platform, unique_request_id};

fn dispatcher(sync: &SyncHarness, variables: &[(&str, &str)]) -> incident_dispatch::App {
    let fixed = [("TABLE_NAME", sync.backends.table.as_str()), ("SYNC_QUEUE_URL", sync.backends.queue_url.as_str())];
    let lookup =
        |name: &str| variables.iter().chain(&fixed).find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let config = shared::config::load(&lookup, incident_dispatch::Config::read).unwrap();
    incident_dispatch::App::new(config, &platform(&sync.backends.aws, &sync.clock))
}

async fn tick(app: &incident_dispatch::App, input: Value) -> u64 {
    let response = app.handle(input, invocation(Duration::from_secs(20))).await.unwrap();
    assert_eq!(response["due"], response["queued"]);
    response["queued"].as_u64().unwrap()
}

/// The harness with 39 active tenants.
async fn start() -> SyncHarness {
    let sync = SyncHarness::start(APIS[0]).await;
    for number in 2..40 {
        let other: TenantId = format!("{number:08x}-2222-4333-8444-000000000001").parse().unwrap();
        sync.registry.create_tenant(&active(other, APIS[0])).await.unwrap();
        sync.registry.open_feed(&other, sync.clock.now()).await.unwrap();
    }
    sync
}

#[tokio::test]
async fn each_tick_queues_every_regular_tenant_and_writes_nothing() {
    let sync = start().await;
    let app = dispatcher(&sync, &[]);
    let writes = sync.backends.double.account().calls("UpdateItem");
    for _ in 0..5 {
        assert_eq!(tick(&app, json!({"kind": "poll"})).await, 39);
        let messages = sync.backends.messages();
        assert!(messages.iter().all(|(group, body)| body["tenant_id"] == json!(group)), "its group is the tenant");
        let tenants: BTreeSet<String> = messages.into_iter().map(|(group, _)| group).collect();
        assert_eq!(tenants.len(), 39);
        // The schedule is not exact.
        sync.advance(58);
    }
    assert_eq!(sync.backends.double.account().calls("UpdateItem"), writes);
}

#[tokio::test]
async fn tenant_is_not_queued_before_its_due_time() {
    let sync = start().await;
    let app = dispatcher(&sync, &[]);
    sync.registry.set_due(&tenant(), sync.clock.now() + SignedDuration::from_secs(150)).await.unwrap();
    for queued in [38, 38, 38, 39] {
        assert_eq!(tick(&app, json!({"kind": "poll"})).await, queued);
        sync.advance(60);
    }
}

#[tokio::test]
async fn long_interval_is_spread_over_the_ticks() {
    let sync = start().await;
    let app = dispatcher(&sync, &[("POLL_INTERVAL_SECONDS", "300")]);
    // The feeds were opened just now, and a new feed does not wait for its turn.
    assert_eq!(tick(&app, json!({"kind": "poll"})).await, 39);
    sync.backends.messages();
    let mut queued = Vec::new();
    let mut tenants = BTreeSet::new();
    for _ in 0..5 {
        sync.advance(60);
        queued.push(tick(&app, json!({"kind": "poll"})).await);
        tenants.extend(sync.backends.messages().into_iter().map(|(group, _)| group));
    }
    assert_eq!((queued.iter().sum::<u64>(), tenants.len()), (39, 39), "{queued:?}");
    assert!(queued.iter().all(|count| (1..20).contains(count)), "{queued:?}");
}

#[tokio::test]
async fn two_dispatches_at_once_cost_one_request_more_at_most() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.put(60);
        sync.poll().await;
        for _ in 0..3 {
            sync.advance(60);
            let calls = sync.calls();
            let (one, two) = (dispatcher(&sync, &[]), dispatcher(&sync, &[]));
            let input = || json!({"kind": "poll"});
            assert_eq!(tokio::join!(tick(&one, input()), tick(&two, input())), (1, 1));
            sync.put(5);
            let bodies: Vec<String> = sync.backends.messages().iter().map(|(_, body)| body.to_string()).collect();
            assert_eq!(sync.hand_over(&bodies).await, json!({"batchItemFailures": []}));
            assert!(sync.calls() - calls <= 3, "{api}: {} calls", sync.calls() - calls);
            sync.assert_complete();
        }
    }
}

#[tokio::test]
async fn sweep_is_for_all_tenants_or_for_those_of_the_hour() {
    let sync = start().await;
    let app = dispatcher(&sync, &[]);
    sync.registry.set_due(&tenant(), sync.clock.now() + SignedDuration::from_hours(9)).await.unwrap();
    assert_eq!(tick(&app, json!({"kind": "sweep"})).await, 39);
    sync.backends.messages();
    let mut tenants = Vec::new();
    for _ in 0..24 {
        assert!(tick(&app, json!({"kind": "sweep", "spread_hours": 24})).await < 10);
        tenants.extend(sync.backends.messages().into_iter().map(|(group, _)| group));
        sync.advance(3_600);
    }
    let different: BTreeSet<&String> = tenants.iter().collect();
    assert_eq!((tenants.len(), different.len()), (39, 39));
}

#[tokio::test]
async fn input_that_no_schedule_sends_is_refused() {
    let sync = SyncHarness::start(APIS[0]).await;
    let app = dispatcher(&sync, &[]);
    for wrong in [json!({"kind": "dance"}), json!({}), json!(null), json!(["poll"]), json!({"Records": []})] {
        let refused = app.handle(wrong, invocation(Duration::from_secs(20))).await.unwrap_err();
        assert_eq!(refused.code, "invalid_request");
    }
}

#[tokio::test]
async fn due_and_queued_tenants_of_a_poll_are_metrics() {
    lines_of("");
    let sync = start().await;
    let app = dispatcher(&sync, &[]);
    for (kind, counted) in [("poll", Some(39.0)), ("sweep", None)] {
        let request_id = unique_request_id();
        let tick = Invocation { request_id: request_id.clone(), ..invocation(Duration::from_secs(20)) };
        app.handle(json!({"kind": kind}), tick).await.unwrap();
        let lines = lines_of(&request_id);
        let metric =
            |name: &str| lines.iter().filter(|line| line.get("_aws").is_some()).find_map(|line| line[name].as_f64());
        assert_eq!((metric("Due"), metric("Queued")), (counted, counted), "{kind}");
    }
}
