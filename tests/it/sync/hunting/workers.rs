//! Hunts under faults: repeated messages, several workers, workers that die, quotas and outages.

use aws_double::{AwsFault, FaultPosition, base_config};
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::registry::tenants::{Status, Tenant};
use sim::{Fault, FaultKind, RetryAfter};

use super::{HuntHarness, QUERY_PATH, TENANT, row};
use crate::sync::harness::{fetch_as, hand_over};

const TIME: std::time::Duration = std::time::Duration::from_secs(30);

/// The only message on the queue.
fn message(hunts: &HuntHarness) -> String {
    let mut messages = hunts.sync.backends.messages();
    assert_eq!(messages.len(), 1, "{messages:?}");
    messages.remove(0).1.to_string()
}

fn fault(hunts: &HuntHarness, kind: FaultKind, times: u32) {
    hunts.sync.backends.sim.fault(Fault { times: Some(times), ..Fault::new(kind).path(QUERY_PATH) });
}

/// Asserts that the hunt ended with one result.
async fn assert_one_result(hunts: &HuntHarness, hunt: &str, case: &str) {
    let progress = hunts.read(hunt).await;
    assert_eq!((&progress["status"], &progress["rows"]), (&json!("done"), &json!(2)), "{case}: {progress}");
    assert_eq!(progress["results"].as_array().unwrap().len(), 2, "{case}");
    assert_eq!(progress["failures"], json!([]), "{case}");
    let objects = hunts.sync.backends.objects("hunts/");
    assert_eq!(json!(objects), progress["objects"], "{case}");
    assert_eq!(hunts.rows_of(&objects[0]).len(), 2, "{case}");
}

#[tokio::test]
async fn message_that_comes_again_asks_nothing() {
    let hunts = HuntHarness::start().await;
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    let body = message(&hunts);
    for _ in 0..3 {
        hunts.sync.hand_over(std::slice::from_ref(&body)).await;
    }
    assert_eq!(hunts.queries(TENANT), 1);
    assert_one_result(&hunts, &hunt, "redelivered").await;
}

#[tokio::test]
async fn two_workers_send_one_query() {
    let hunts = HuntHarness::start().await;
    fault(&hunts, FaultKind::Hang { millis: 300 }, 1);
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    let body = [message(&hunts)];
    let (one, another) = (hunts.sync.another(), hunts.sync.another());
    tokio::join!(hand_over(&one, &body, TIME), hand_over(&another, &body, TIME));
    assert_eq!(hunts.queries(TENANT), 1);
    assert_one_result(&hunts, &hunt, "two workers").await;
    // The one that was too late left a message, in case the other would die.
    hunts.sync.advance(40);
    hunts.sync.hand_over(&[message(&hunts)]).await;
    assert_eq!(hunts.queries(TENANT), 1);
}

#[tokio::test]
async fn worker_that_dies_anywhere_leaves_one_result() {
    let base = base_config().await;
    let mut deaths = 0;
    for (request, fault) in
        (1..30).flat_map(|request| [(request, AwsFault::KilledBefore), (request, AwsFault::KilledAfter)])
    {
        let hunts = HuntHarness::start().await;
        let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
        let body = [message(&hunts)];
        let double = &hunts.sync.backends.double;
        let doomed = fetch_as(&hunts.sync.backends, &double.config_of(&base, "doomed", 1), &hunts.sync.clock, &[]);
        double.account().plan("doomed", vec![(FaultPosition::Request(request), fault)]);
        hand_over(&doomed, &body, TIME).await;
        let died = !double.account().end_invocation("doomed");
        deaths += usize::from(died);
        // Whoever has its claim is gone by then.
        hunts.sync.advance(360);
        let mut bodies: Vec<String> =
            hunts.sync.backends.messages().into_iter().map(|(_, body)| body.to_string()).collect();
        bodies.push(body[0].clone());
        for body in bodies {
            hunts.sync.hand_over(&[body]).await;
        }
        let case = format!("{fault:?} at {request}");
        assert_one_result(&hunts, &hunt, &case).await;
        assert!(hunts.queries(TENANT) <= 2, "{case}");
        if !died {
            assert!(deaths > 10, "{deaths} requests");
            return;
        }
    }
    panic!("a hunt makes fewer requests");
}

#[tokio::test]
async fn table_has_no_unrecorded_rows_of_a_tenant_that_left() {
    let base = base_config().await;
    let mut written = 0;
    for request in 1..30 {
        let hunts = HuntHarness::start().await;
        let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
        let body = [message(&hunts)];
        let double = &hunts.sync.backends.double;
        let doomed = fetch_as(&hunts.sync.backends, &double.config_of(&base, "doomed", 1), &hunts.sync.clock, &[]);
        double.account().plan("doomed", vec![(FaultPosition::Request(request), AwsFault::KilledAfter)]);
        hand_over(&doomed, &body, TIME).await;
        if double.account().end_invocation("doomed") {
            assert!(written > 0, "no worker died between its object and its record");
            return;
        }
        let finished = hunts.read(&hunt).await["status"] == "done";
        written += usize::from(!finished && !hunts.sync.backends.objects("hunts/").is_empty());
        let offboard = |tenant: &mut Tenant| {
            tenant.status = Status::Offboarded;
            Ok(())
        };
        hunts.sync.registry.change_tenant(&TENANT.parse().unwrap(), hunts.sync.clock.now(), offboard).await.unwrap();
        hunts.sync.advance(360);
        hunts.sync.hand_over(&body).await;
        let progress = hunts.read(&hunt).await;
        let failure = json!({"tenant_id": TENANT, "code": "tenant_not_active", "reason": null});
        let expected = if finished { json!([]) } else { json!([failure]) };
        assert_eq!(progress["failures"], expected, "killed after {request}: {progress}");
    }
    panic!("a hunt makes fewer requests");
}

#[tokio::test]
async fn hunting_quota_holds_up_hunting_alone() {
    let hunts = HuntHarness::start().await;
    fault(&hunts, FaultKind::Throttle { retry_after: RetryAfter::Seconds(600) }, 1);
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    hunts.deliver().await;
    assert_eq!(hunts.read(&hunt).await["status"], "running");
    let id = hunts.sync.put(60);
    hunts.sync.poll().await;
    assert_eq!(hunts.sync.delivered().len(), 1, "the feed goes on");
    let path = format!("/tenants/{TENANT}/incidents/{id}");
    assert_eq!(hunts.sync.call("GET", &path, "", None).await.0, 200, "and so do live reads");

    hunts.sync.advance(599);
    hunts.deliver().await;
    assert_eq!(hunts.queries(TENANT), 1, "no query leaves before the time");
    hunts.sync.advance(4);
    hunts.deliver().await;
    assert_eq!(hunts.queries(TENANT), 2);
    assert_one_result(&hunts, &hunt, "throttled").await;
}

/// The cursor of the feed and its calls for incidents, minute by minute, while so many hunts run.
async fn minutes_of_feed(hunts_at_once: u32) -> Vec<(Option<Timestamp>, usize)> {
    let hunts = HuntHarness::start().await;
    for _ in 0..hunts_at_once {
        hunts.begin(json!({"query": "DeviceInfo"})).await;
    }
    let calls = || hunts.sync.backends.sim.calls().iter().filter(|call| call.path.ends_with("/incidents")).count();
    let mut minutes = Vec::new();
    for _ in 0..4 {
        hunts.sync.advance(60);
        hunts.sync.put(30);
        let before = calls();
        tokio::join!(hunts.deliver(), hunts.sync.poll());
        minutes.push((hunts.sync.feed().await.covered_until, calls() - before));
    }
    assert_eq!(hunts.sync.delivered().len(), 4);
    assert_eq!(hunts.queries(TENANT), usize::try_from(hunts_at_once).unwrap());
    minutes
}

#[tokio::test]
async fn twenty_hunts_change_neither_lag_nor_calls_of_the_feed() {
    assert_eq!(minutes_of_feed(20).await, minutes_of_feed(0).await);
}

#[tokio::test]
async fn quotas_of_microsoft_are_waited_for() {
    let hunts = HuntHarness::start().await;
    // The body names the limit, and nothing names the wait.
    hunts.sync.backends.sim.configure(|choices| choices.hunting.per_minute = Some(0));
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    hunts.deliver().await;
    hunts.sync.backends.sim.configure(|choices| choices.hunting.per_minute = Some(45));
    hunts.sync.advance(62);
    hunts.deliver().await;
    assert_one_result(&hunts, &hunt, "calls").await;

    hunts.sync.backends.sim.configure(|choices| choices.hunting.cpu_percent = 100);
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    hunts.deliver().await;
    assert_eq!(hunts.read(&hunt).await["status"], "running");
    // At most as long as a cycle of the quota.
    hunts.sync.advance(902);
    hunts.deliver().await;
    assert_eq!(hunts.read(&hunt).await["rows"], 2);
}

/// In real time, because the HTTP client's time-outs run by the machine's clock.
#[tokio::test]
async fn query_may_run_longer_than_any_other_call() {
    let hunts = HuntHarness::start().await;
    // A second more than the longest silence of other calls.
    fault(&hunts, FaultKind::Hang { millis: 16_000 }, 1);
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    hunts.deliver().await;
    assert_one_result(&hunts, &hunt, "slow").await;
    assert_eq!(hunts.queries(TENANT), 1);
}

#[tokio::test]
async fn failure_that_a_repeat_may_cure_is_repeated() {
    let hunts = HuntHarness::start().await;
    let body = json!({"error": {"code": "UnknownError", "message": ""}}).to_string();
    let unknown = |status| FaultKind::Status { status, body: Some(body.clone()), headers: Vec::new() };
    fault(&hunts, unknown(504), 1);
    fault(&hunts, FaultKind::Cut, 1);
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    for _ in 0..3 {
        hunts.deliver().await;
        hunts.sync.advance(31);
    }
    assert_eq!(hunts.queries(TENANT), 3);
    assert_one_result(&hunts, &hunt, "cured").await;

    hunts.sync.backends.sim.fault(Fault::new(unknown(500)).path(QUERY_PATH));
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    for _ in 0..5 {
        hunts.deliver().await;
        hunts.sync.advance(61);
    }
    assert_eq!(hunts.queries(TENANT), 6, "three times and no more");
    let progress = hunts.read(&hunt).await;
    assert_eq!((&progress["status"], &progress["tenants_done"]), (&json!("done"), &json!(1)));
    assert_eq!(progress["failures"], json!([{"tenant_id": TENANT, "code": "upstream_error", "reason": null}]));
}

#[tokio::test]
async fn hunt_ends_although_its_messages_are_lost_or_throttled() {
    let hunts = HuntHarness::start().await;
    let lost = hunts.begin(json!({"query": "DeviceInfo"})).await;
    message(&hunts);
    let throttled = hunts.begin(json!({"query": "DeviceInfo"})).await;
    fault(&hunts, FaultKind::Throttle { retry_after: RetryAfter::Seconds(7_000) }, 1);
    hunts.deliver().await;
    hunts.sync.advance(900);
    // A quota that outlasts the hunt is not waited for.
    let hopeless = hunts.begin(json!({"query": "DeviceInfo"})).await;
    hunts
        .sync
        .registry
        .set_throttled_until(
            &TENANT.parse().unwrap(),
            shared::registry::budget::BudgetOf::Hunting,
            hunts.sync.clock.now() + jiff::SignedDuration::from_hours(20),
        )
        .await
        .unwrap();
    hunts.deliver().await;
    let failures = |code: &str| json!([{"tenant_id": TENANT, "code": code, "reason": null}]);
    let progress = hunts.read(&hopeless).await;
    assert_eq!((&progress["status"], &progress["failures"]), (&json!("done"), &failures("throttled")));
    hunts.sync.advance(7_200 - 901);
    assert_eq!(hunts.read(&lost).await["status"], "running");
    hunts.sync.advance(1);
    for (hunt, code) in [(&lost, "deadline_exceeded"), (&throttled, "throttled")] {
        let progress = hunts.read(hunt).await;
        assert_eq!((&progress["status"], &progress["failures"]), (&json!("done"), &failures(code)), "{code}");
    }
    hunts.deliver().await;
    assert_eq!(hunts.queries(TENANT), 1, "what comes after the end is dropped");
}

#[tokio::test]
async fn message_without_a_hunt_fails_and_others_do_not() {
    let hunts = HuntHarness::start().await;
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    let named = message(&hunts);
    let of = |job_id: Value| json!({"tenant_id": TENANT, "kind": "hunt", "job_id": job_id}).to_string();
    let unknown = of(json!("99999999-2222-4333-8444-000000000001"));
    let bodies = [json!({"tenant_id": TENANT, "kind": "hunt"}).to_string(), of(json!("x")), unknown, named];
    let failed = hunts.sync.hand_over(&bodies).await;
    assert_eq!(failed, json!({"batchItemFailures": [{"itemIdentifier": "m-0-4"}, {"itemIdentifier": "m-1-4"}]}));
    assert_one_result(&hunts, &hunt, "in a batch").await;
    // A forged message for a tenant that the hunt is not about reaches nobody.
    let stranger = super::other(7);
    hunts.add_tenant(&stranger, "c").await;
    let hunt_id = hunt.rsplit('/').next().unwrap();
    let forged = json!({"tenant_id": stranger, "kind": "hunt", "job_id": hunt_id}).to_string();
    hunts.sync.hand_over(&[forged]).await;
    assert_eq!(hunts.queries(&stranger), 0);
    hunts.put_table(TENANT, &[], vec![row("later")]);
    assert_one_result(&hunts, &hunt, "still").await;
}
