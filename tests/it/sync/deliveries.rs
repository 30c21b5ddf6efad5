//! The pages of a list are one delivery, and no row is lost where it fails.

use std::time::Duration;

use aws_double::{AwsFault, FaultPosition};
use jiff::SignedDuration;
use serde_json::json;
use shared::microsoft::IncidentApi;
use sim::{Fault, FaultKind, Order, RetryAfter};

use super::harness::{APIS, SyncHarness, TENANT, hand_over, host};

/// The caller that all clients of a test share.
const CALLER: &str = "it";

/// The time of an invocation in which no list has to be delivered before its end.
const MINUTE: Duration = Duration::from_mins(1);

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// Rows on three pages or more.
const ROWS: i64 = 250;

/// Rows of one day, the newest of which changed so long ago.
fn put_rows(sync: &SyncHarness, rows: i64, newest: SignedDuration) {
    (0..rows).for_each(|number| drop(sync.put(newest.as_secs() + number * 20)));
}

fn poll() -> [String; 1] {
    [json!({"tenant_id": TENANT, "kind": "poll"}).to_string()]
}

/// A backfill of the span between two times, which are given by how long ago they were.
fn backfill(sync: &SyncHarness, from: SignedDuration, to: SignedDuration) -> [String; 1] {
    let now = sync.clock.now();
    [json!({"tenant_id": TENANT, "kind": "backfill", "from": now - from, "to": now - to}).to_string()]
}

/// Lets the next delivery fail in each of its attempts.
fn fail_next_delivery(sync: &SyncHarness) {
    let conflicts = [0, 1, 2].map(|attempt| (FaultPosition::Delivery(attempt), AwsFault::Conflict));
    sync.backends.double.account().plan(CALLER, conflicts.to_vec());
}

/// Hands a message over which works without a failure.
async fn done(sync: &SyncHarness, message: &[String]) {
    assert_eq!(hand_over(&sync.app, message, MINUTE).await, json!({"batchItemFailures": []}), "{}", sync.api);
}

/// Hands a message over which fails, so that SQS delivers it again.
async fn failed(sync: &SyncHarness, message: &[String]) {
    let outcome = hand_over(&sync.app, message, MINUTE).await;
    assert_eq!(outcome["batchItemFailures"].as_array().unwrap().len(), 1, "{}: {outcome}", sync.api);
}

#[tokio::test]
async fn list_of_several_pages_is_one_delivery() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        put_rows(&sync, ROWS, SignedDuration::from_mins(1));
        done(&sync, &poll()).await;
        sync.assert_complete();
        let account = sync.backends.double.account();
        let calls = ["PutObject", "PutEvents", "TransactWriteItems"].map(|operation| account.calls(operation));
        assert_eq!(calls, [1, 1, 1], "{api}");
    }
}

#[tokio::test]
async fn pages_are_delivered_one_by_one_when_time_is_short() {
    // A page after the first one begins with the last row of the page before it.
    for (api, pages) in [(IncidentApi::Graph, 6), (IncidentApi::Defender, 3)] {
        let sync = SyncHarness::start(api).await;
        put_rows(&sync, ROWS, SignedDuration::from_mins(1));
        let outcome = hand_over(&sync.app, &poll(), Duration::from_secs(14)).await;
        assert_eq!(outcome, json!({"batchItemFailures": []}));
        sync.assert_complete();
        assert_eq!(sync.backends.double.account().calls("PutObject"), pages, "{api}");
    }
}

#[tokio::test]
async fn rows_of_a_list_whose_delivery_fails_are_read_again() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        put_rows(&sync, ROWS, DAY * 3);
        sync.poll().await;
        assert!(sync.keys().is_empty(), "{api}: only the backfill reads them");
        fail_next_delivery(&sync);
        let backfill = backfill(&sync, DAY * 4, DAY * 2);
        failed(&sync, &backfill).await;
        assert!(sync.keys().is_empty(), "{api}");
        // SQS delivers the message again.
        done(&sync, &backfill).await;
        sync.assert_complete();
    }
}

#[tokio::test]
async fn place_in_a_list_that_was_not_delivered_is_forgotten() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        // Two pages.
        put_rows(&sync, i64::from(api.largest_page()) + 20, DAY * 3);
        sync.poll().await;
        sync.backends.sim.configure(|behaviour| {
            (behaviour.graph.empty_pages, behaviour.defender.empty_pages) = (1, 1);
        });
        // Microsoft throttles after the page without rows before the second page, and the bucket refuses the first one.
        let mut throttle = Fault::new(FaultKind::Throttle { retry_after: RetryAfter::Seconds(30) }).on(host(api));
        (throttle.after, throttle.times) = (3, Some(1));
        sync.backends.sim.fault(throttle);
        fail_next_delivery(&sync);
        let backfill = backfill(&sync, DAY * 4, DAY * 2);
        hand_over(&sync.app, &backfill, MINUTE).await;
        assert!(sync.keys().is_empty(), "{api}");
        sync.backends.sim.clear_faults();
        for _ in 0..3 {
            sync.advance(60);
            done(&sync, &backfill).await;
        }
        sync.assert_complete();
    }
}

#[tokio::test]
async fn failure_of_ours_keeps_no_page_before_it_back() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.backends.sim.configure(|behaviour| {
            (behaviour.graph.order, behaviour.defender.order) = (Order::UpdatedDescending, Order::UpdatedDescending);
        });
        let first = sync.put(3_000);
        sync.poll().await;
        {
            let mut account = sync.backends.double.account();
            let block = account.items("VERSIONS#")[0];
            let [pk, sk] = ["pk", "sk"].map(|key| block[key]["S"].as_str().unwrap().to_owned());
            account.item_mut(&pk, &sk).unwrap().insert(format!("i{first}"), json!({"S": "unreadable"}));
        }
        // The newest ones come first, and those beside the unreadable version last.
        (0..ROWS).for_each(|number| drop(sync.put(2_900 - number * 10)));
        failed(&sync, &backfill(&sync, SignedDuration::from_hours(1), SignedDuration::ZERO)).await;
        assert!(sync.keys().len() > 50, "{api}: {} were delivered", sync.keys().len());
    }
}

#[tokio::test]
async fn incidents_of_many_days_are_delivered_before_the_list_ends() {
    for (api, format, deliveries) in
        [(IncidentApi::Graph, "envelope", 3), (IncidentApi::Defender, "envelope", 3), (IncidentApi::Graph, "both", 5)]
    {
        let sync = SyncHarness::start_with(api, &[("DELIVERY_FORMAT", format)]).await;
        (1..=40).for_each(|number| drop(sync.put(DAY.as_secs() * number)));
        sync.poll().await;
        let before = sync.backends.double.account().calls("TransactWriteItems");
        done(&sync, &backfill(&sync, DAY * 41, SignedDuration::ZERO)).await;
        sync.assert_complete();
        // Each object of a batch has a compressor, and a batch has at most sixteen.
        let calls = sync.backends.double.account().calls("TransactWriteItems") - before;
        assert_eq!(calls, deliveries, "{api}, {format}");
    }
}
