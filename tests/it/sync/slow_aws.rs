//! AWS that hangs, or refuses for a while.

use std::time::Duration;

use aws_double::{AwsFault, FaultPosition};
use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::{
    aws::timeouts,
    clock::Clock,
    delivery::{bucket::Bucket, events::Events},
    registry::Registry,
};

use super::harness::{APIS, SyncHarness, TENANT, hand_over, tenant};

/// The caller that all clients of a test share.
const CALLER: &str = "it";

fn poll() -> String {
    json!({"tenant_id": TENANT, "kind": "poll"}).to_string()
}

#[tokio::test]
async fn hanging_bucket_does_not_hold_an_invocation() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        for number in 0..20 {
            sync.put(number * 60);
        }
        let hang = (FaultPosition::Delivery(0), AwsFault::HeldBefore);
        sync.backends.double.account().plan(CALLER, vec![hang]);
        let bodies = [poll()];
        let invocation = hand_over(&sync.app, &bodies, Duration::from_secs(3));
        let outcome = tokio::time::timeout(Duration::from_secs(30), invocation).await;
        assert_eq!(outcome.expect("it ends by itself"), json!({"batchItemFailures": []}));
        sync.backends.double.release();
        // The lease ends with the invocation.
        sync.advance(60);
        sync.poll().await;
        sync.assert_complete();
    }
}

#[tokio::test]
async fn call_that_hangs_is_tried_again() {
    let sync = SyncHarness::start(APIS[0]).await;
    let config = sync.backends.aws.to_builder().timeout_config(timeouts()).build();
    let registry = Registry::new(&config, sync.backends.table.clone());
    let hang = (FaultPosition::Request(1), AwsFault::HeldBefore);
    sync.backends.double.account().plan(CALLER, vec![hang]);
    let read = tokio::time::timeout(Duration::from_secs(30), registry.tenant(&tenant())).await;
    assert!(read.expect("the attempt has a time-out").unwrap().is_some());
}

#[tokio::test]
async fn refused_events_are_sent_again_after_growing_pauses() {
    let sync = SyncHarness::start(APIS[0]).await;
    let events = Events::new(&sync.backends.aws, Some(sync.backends.bus.clone()));
    let object = shared::delivery::events::DeliveredObject {
        bucket: "bucket".into(),
        object: "object".into(),
        count: 1,
        from: "2026-11-22T09:58:31.25Z".into(),
        to: "2026-11-22T09:58:31.25Z".into(),
    };
    let refusals = vec![(FaultPosition::Request(1), AwsFault::Partial); 2];
    sync.backends.double.account().plan(CALLER, refusals);
    let started = Clock::system().now();
    events.incidents_delivered(&tenant(), &[object]).await.unwrap();
    let took = Clock::system().milliseconds_since(started);
    assert!(took >= 200 + 400, "{took} ms");
    assert_eq!(sync.backends.events().len(), 1);
}

#[tokio::test]
async fn conflicting_writes_are_tried_again_after_growing_pauses() {
    let sync = SyncHarness::start(APIS[0]).await;
    let bucket = Bucket::new(&sync.backends.aws, sync.backends.bucket.clone());
    let conflicts = [1, 2].map(|request| (FaultPosition::Request(request), AwsFault::Conflict));
    sync.backends.double.account().plan(CALLER, conflicts.to_vec());
    let started = Clock::system().now();
    bucket.write_quarantined(&tenant(), "name", &json!({})).await.unwrap();
    let took = Clock::system().milliseconds_since(started);
    assert!(took >= 200 + 400, "{took} ms");
    assert_eq!(sync.backends.objects("quarantine/").len(), 1);
}

/// A page whose rows are on as many days, each of which is an object.
#[tokio::test]
async fn objects_of_a_batch_are_written_at_the_same_time() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let day = 24 * 3600;
        for number in 1..=30 {
            sync.put(number * day);
        }
        let (from, to) = (sync.clock.now() - SignedDuration::from_hours(31 * 24), sync.clock.now());
        let held = (FaultPosition::Delivery(0), AwsFault::HeldBefore);
        sync.poll().await;
        let before = sync.backends.objects("incidents/").len();
        sync.backends.double.account().plan(CALLER, vec![held]);
        let body = json!({"tenant_id": TENANT, "kind": "backfill", "from": from, "to": to}).to_string();
        let bodies = [body];
        let backfill = hand_over(&sync.app, &bodies, Duration::from_secs(30));
        let others = async {
            sync.backends.double.held().await;
            // While one object waits, others are written.
            let written = async {
                while sync.backends.objects("incidents/").len() == before {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let outcome = tokio::time::timeout(Duration::from_secs(20), written).await;
            sync.backends.double.release();
            outcome.expect("one object does not hold the others up");
        };
        let (outcome, ()): (Value, ()) = tokio::join!(backfill, others);
        assert_eq!(outcome, json!({"batchItemFailures": []}), "{api}");
    }
}
