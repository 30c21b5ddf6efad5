//! Polls that find nothing: one request, no lease, and one write in five minutes.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use shared::registry::lease::Acquired;
use sim::{Fault, FaultKind};

use super::harness::{APIS, SyncHarness, TENANT, active, hand_over, invocation, tenant};
use crate::backends::lines_of;

fn poll() -> String {
    json!({"tenant_id": TENANT, "kind": "poll"}).to_string()
}

/// The operations of DynamoDB that write.
const WRITES: [&str; 4] = ["UpdateItem", "PutItem", "DeleteItem", "TransactWriteItems"];

fn writes(sync: &SyncHarness) -> usize {
    WRITES.iter().map(|operation| sync.backends.double.account().calls(operation)).sum()
}

fn reads(sync: &SyncHarness) -> usize {
    ["GetItem", "BatchGetItem", "Query"].iter().map(|operation| sync.backends.double.account().calls(operation)).sum()
}

/// Polls once, so that the feed is settled and the token cached.
async fn settled(api: shared::microsoft::IncidentApi) -> SyncHarness {
    let sync = SyncHarness::start(api).await;
    sync.put(3_600);
    sync.poll().await;
    sync
}

/// Hands over poll messages with the times at which they were queued.
async fn hand_over_sent(sync: &SyncHarness, sent: &[Timestamp]) {
    let record = |(number, at): (usize, &Timestamp)| {
        json!({"messageId": format!("m-{number}"), "body": poll(), "eventSource": "aws:sqs",
               "attributes": {"SentTimestamp": at.as_millisecond().to_string()}})
    };
    let records: Vec<Value> = sent.iter().enumerate().map(record).collect();
    let response = sync.app.handle(json!({"Records": records}), invocation(Duration::from_secs(30))).await.unwrap();
    assert_eq!(response, json!({"batchItemFailures": []}));
}

#[tokio::test]
async fn quiet_poll_is_one_request_one_read_and_no_write() {
    for api in APIS {
        let sync = settled(api).await;
        for _ in 0..4 {
            sync.advance(60);
            let before = (sync.calls(), writes(&sync), reads(&sync));
            sync.poll().await;
            assert_eq!((sync.calls(), writes(&sync), reads(&sync)), (before.0 + 1, before.1, before.2 + 1), "{api}");
        }
    }
}

#[tokio::test]
async fn quiet_tenant_writes_once_in_five_minutes() {
    for api in APIS {
        let sync = settled(api).await;
        let before = writes(&sync);
        for minute in 1..=30 {
            sync.advance(60);
            sync.poll().await;
            assert_eq!(writes(&sync) - before, minute / 5, "{api} after {minute} minutes");
            let written_at = sync.feed().await.last_success_at.unwrap();
            assert!(sync.clock.now().duration_since(written_at) < SignedDuration::from_mins(5));
        }
        let covered = sync.feed().await.covered_until.unwrap();
        assert!(sync.clock.now().duration_since(covered) <= SignedDuration::from_secs(5), "{api}");
    }
}

#[tokio::test]
async fn what_comes_after_quiet_polls_is_delivered_once() {
    for api in APIS {
        let sync = settled(api).await;
        for round in 0..8 {
            for _ in 0..round {
                sync.advance(60);
                sync.poll().await;
            }
            sync.advance(60);
            sync.put(20);
            sync.poll().await;
            sync.assert_complete();
        }
    }
}

#[tokio::test]
async fn waiting_messages_of_a_tenant_cost_one_request() {
    for api in APIS {
        for at_once in [true, false] {
            let sync = settled(api).await;
            let sent: Vec<Timestamp> =
                (1..=20).map(|tick| sync.clock.now() + SignedDuration::from_mins(tick)).collect();
            sync.advance(20 * 60 + 5);
            let calls = sync.calls();
            if at_once {
                hand_over_sent(&sync, &sent).await;
            } else {
                for at in &sent {
                    hand_over_sent(&sync, &[*at]).await;
                    sync.advance(1);
                }
            }
            assert_eq!(sync.calls() - calls, 1, "{api}, at once: {at_once}");
            // The next tick is polled.
            sync.advance(60);
            hand_over_sent(&sync, &[sync.clock.now()]).await;
            assert_eq!(sync.calls() - calls, 2, "{api}, at once: {at_once}");
        }
    }
}

#[tokio::test]
async fn two_workers_that_find_the_same_deliver_it_once() {
    for api in APIS {
        let sync = settled(api).await;
        let other = sync.another();
        for _ in 0..5 {
            sync.advance(60);
            sync.put(20);
            // Both read the feed before one of them writes.
            sync.backends.sim.fault(Fault::new(FaultKind::Hang { millis: 150 }).times(2));
            let (bodies, time) = ([poll()], Duration::from_secs(30));
            let (one, two) = tokio::join!(hand_over(&sync.app, &bodies, time), hand_over(&other, &bodies, time));
            assert_eq!((one, two), (json!({"batchItemFailures": []}), json!({"batchItemFailures": []})));
            sync.poll().await;
            sync.assert_complete();
        }
    }
}

#[tokio::test]
async fn quiet_poll_writes_nothing_over_another_worker() {
    for api in APIS {
        let sync = settled(api).await;
        // The write of this poll is due.
        sync.advance(300);
        sync.backends.sim.fault(Fault::new(FaultKind::Hang { millis: 300 }).times(1));
        let bodies = [poll()];
        let later = sync.clock.now() + SignedDuration::from_hours(1);
        let overtaking = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = sync.clock.now();
            let acquired = sync.registry.acquire_lease(&tenant(), now, now).await.unwrap();
            let Acquired::Lease(mut lease) = acquired else { panic!("a quiet poll has no lease") };
            lease.feed.covered_until = Some(later);
            let write = sync.registry.release_lease(&mut lease, None, now).await.unwrap();
            assert_eq!(write, shared::registry::Write::Done);
        };
        let (response, ()) = tokio::join!(hand_over(&sync.app, &bodies, Duration::from_secs(30)), overtaking);
        assert_eq!(response, json!({"batchItemFailures": []}));
        assert_eq!(sync.feed().await.covered_until, Some(later), "{api}");
    }
}

#[tokio::test]
async fn quiet_polls_of_an_invocation_share_one_log_line() {
    let sync = settled(APIS[0]).await;
    let others = ["2", "3"].map(|digit| TENANT.replace("000000000001", &format!("00000000000{digit}")));
    for other in &others {
        sync.backends.customer(other, "fabrikam.example", &[APIS[0].write_role()]);
        let other = other.parse().unwrap();
        sync.registry.create_tenant(&active(other, APIS[0])).await.unwrap();
        sync.registry.open_feed(&other, sync.clock.now()).await.unwrap();
    }
    let tenants = [TENANT, others[0].as_str(), others[1].as_str()];
    let bodies = tenants.map(|tenant| json!({"tenant_id": tenant, "kind": "poll"}).to_string());
    sync.hand_over(&bodies).await;
    sync.advance(60);
    let lines_before = lines_of(&sync.backends.request_id).len();
    let record = |body: &String| json!({"messageId": body, "body": body, "eventSource": "aws:sqs"});
    let records: Vec<Value> = bodies.iter().map(record).collect();
    let mut quiet = invocation(Duration::from_secs(30));
    quiet.request_id.clone_from(&sync.backends.request_id);
    sync.app.handle(json!({"Records": records}), quiet).await.unwrap();
    let lines = lines_of(&sync.backends.request_id).split_off(lines_before);
    let metrics: Vec<&Value> = lines.iter().filter(|line| line.get("_aws").is_some()).collect();
    assert_eq!((lines.len(), metrics.len()), (1, 1), "{lines:?}");
    assert_eq!((&metrics[0]["quiet"], &metrics[0]["Polled"]), (&json!(3), &json!(3.0)), "{lines:?}");
    assert_eq!(metrics[0]["LagSeconds"], json!([5.0, 5.0, 5.0]), "{lines:?}");
}
