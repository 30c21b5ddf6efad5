//! Several workers, duplicates, short invocations, malformed messages.

use std::time::Duration;

use aws_double::{AwsFault, FaultPosition};
use jiff::SignedDuration;
use serde_json::json;
use shared::{
    queue::SyncKind,
    registry::{
        Registry, Write,
        jobs::{Job, JobKind, JobStatus},
    },
};
use sim::{Fault, FaultKind};

use super::harness::{APIS, SyncHarness, TENANT, hand_over, tenant};

fn poll() -> String {
    json!({"tenant_id": TENANT, "kind": "poll"}).to_string()
}

#[tokio::test]
async fn two_workers_on_one_tenant_deliver_no_version_twice() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        for number in 0..130 {
            sync.put(number * 60);
        }
        let other = sync.another();
        let bodies = [poll(), poll()];
        let long = Duration::from_secs(30);
        let (one, two) = tokio::join!(hand_over(&sync.app, &bodies, long), hand_over(&other, &bodies, long));
        assert_eq!((one, two), (json!({"batchItemFailures": []}), json!({"batchItemFailures": []})));
        sync.advance(60);
        sync.poll().await;
        sync.assert_complete();
    }
}

#[tokio::test]
async fn lease_of_a_dead_worker_ends_with_its_deadline() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.put(60);
        let until = sync.clock.now() + SignedDuration::from_secs(11);
        sync.registry.acquire_lease(&tenant(), sync.clock.now(), until).await.unwrap();
        sync.poll().await;
        assert!(sync.delivered().is_empty(), "the lease is respected");
        sync.advance(12);
        sync.poll().await;
        sync.assert_complete();
    }
}

#[tokio::test]
async fn worker_that_fails_leaves_the_tenant_to_the_next_one() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.put(60);
        sync.backends.double.account().refused_detail_type = Some("Incidents Delivered".into());
        assert_ne!(sync.hand_over(&[poll()]).await, json!({"batchItemFailures": []}), "{api}");
        sync.backends.double.account().refused_detail_type = None;
        let taken_at = sync.clock.now();
        assert_eq!(
            hand_over(&sync.another(), &[poll()], Duration::from_secs(30)).await,
            json!({"batchItemFailures": []})
        );
        sync.assert_complete();
        assert_eq!(sync.feed().await.last_success_at, Some(taken_at), "{api}: not after the lease of the first one");
    }
}

/// A job that a message starts goes on by itself, wherever its first worker dies.
#[tokio::test]
async fn job_of_a_dead_worker_goes_on() {
    for request in 1..12 {
        let sync = SyncHarness::start(APIS[1]).await;
        for number in 0..400 {
            sync.put(5 * 86_400 + number * 3_600);
        }
        sync.poll().await;
        let limits = sim::Limits { per_minute: Some(3), ..sim::Limits::default() };
        sync.backends.sim.set_limits(sim::Host::Defender, Some(TENANT), limits);
        let config = sync.backends.double.config_of(&aws_double::base_config().await, "mortal", 2);
        let mortal = super::harness::fetch_as(&sync.backends, &config, &sync.clock, &[]);
        sync.backends.double.account().plan("mortal", vec![(FaultPosition::Request(request), AwsFault::KilledAfter)]);
        let backfill = json!({"tenant_id": TENANT, "kind": "backfill"}).to_string();
        hand_over(&mortal, std::slice::from_ref(&backfill), Duration::from_secs(20)).await;
        // The lease of the dead worker ends, and SQS delivers its message again.
        let mut bodies = vec![backfill];
        for _ in 0..60 {
            sync.advance(120);
            for body in bodies {
                sync.hand_over(&[body]).await;
            }
            bodies = sync.backends.messages().into_iter().map(|(_, body)| body.to_string()).collect();
        }
        assert_eq!(sync.keys().len(), 400, "killed after request {request}: {:?}", sync.feed().await);
        assert!(sync.feed().await.open_jobs.is_empty(), "killed after request {request}");
    }
}

#[tokio::test]
async fn worker_without_its_lease_moves_no_cursor() {
    let sync = SyncHarness::start(APIS[0]).await;
    let now = sync.clock.now();
    let shared::registry::lease::Acquired::Lease(mut old) =
        sync.registry.acquire_lease(&tenant(), now, now).await.unwrap()
    else {
        panic!("the lease is free")
    };
    sync.advance(1);
    sync.poll().await;
    let covered = sync.feed().await.covered_until;
    old.feed.covered_until = Some(now + SignedDuration::from_hours(1));
    assert_eq!(sync.registry.commit_feed(&mut old, now).await.unwrap(), Write::Conflict);
    assert_eq!(sync.feed().await.covered_until, covered);
}

#[tokio::test]
async fn overtaken_worker_puts_no_progress_of_a_job_back() {
    let sync = SyncHarness::start(APIS[0]).await;
    let now = sync.clock.now();
    let hours_ago = |hours| now - SignedDuration::from_hours(hours);
    let job = Job::new("j".into(), tenant(), JobKind::Backfill, hours_ago(48), now);
    sync.registry.create_job(&job).await.unwrap();
    let stored = async || sync.registry.job(&tenant(), "j").await.unwrap().unwrap();
    let (mut old, mut new) = (stored().await, stored().await);

    new.covered_until = hours_ago(1);
    assert_eq!(sync.registry.commit_job(&mut new, now).await.unwrap(), Write::Done);
    old.covered_until = hours_ago(40);
    assert_eq!(sync.registry.commit_job(&mut old, now).await.unwrap(), Write::Conflict);
    assert_eq!(stored().await, new);
    old.status = JobStatus::Done;
    assert_eq!(sync.registry.commit_job(&mut old, now).await.unwrap(), Write::Conflict);
    assert!(sync.feed().await.open_jobs.contains("j"), "it goes on");

    new.covered_until = now;
    assert_eq!(sync.registry.commit_job(&mut new, now).await.unwrap(), Write::Done);
    assert_eq!(stored().await, new);
}

/// The SDK sends a request again that failed after it was done.
#[tokio::test]
async fn commit_of_a_job_that_is_sent_twice_is_done() {
    let sync = SyncHarness::start(APIS[0]).await;
    let now = sync.clock.now();
    let mut job = Job::new("j".into(), tenant(), JobKind::Backfill, now - SignedDuration::from_hours(48), now);
    sync.registry.create_job(&job).await.unwrap();
    let config = sync.backends.double.config_of(&aws_double::base_config().await, "unlucky", 3);
    let registry = Registry::new(&config, aws_double::TABLE.into());
    sync.backends.double.account().plan("unlucky", vec![(FaultPosition::Request(1), AwsFault::FailedAfter)]);
    job.status = JobStatus::Done;
    assert_eq!(registry.commit_job(&mut job, now).await.unwrap(), Write::Done);
    assert_eq!(sync.registry.job(&tenant(), "j").await.unwrap(), Some(job));
    assert!(sync.feed().await.open_jobs.is_empty());
}

#[tokio::test]
async fn live_reads_and_polls_share_one_budget() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let now = sync.clock.now();
        let until = now + SignedDuration::from_secs(30);
        let acquired = sync.registry.acquire_lease(&tenant(), now, until).await.unwrap();
        let shared::registry::lease::Acquired::Lease(mut lease) = acquired else { panic!("the lease is free") };
        for _ in 0..5 {
            lease.take_call(api, SyncKind::Poll, now).unwrap();
            sync.registry.take_call(&tenant(), api, now).await.unwrap();
        }
        assert_eq!(sync.registry.commit_feed(&mut lease, now).await.unwrap(), Write::Done);
        lease.take_call(api, SyncKind::Poll, now).unwrap();
        assert_eq!(sync.registry.release_lease(&mut lease, None, now).await.unwrap(), Write::Done);
        let paid_until = sync.feed().await.budget(api).paid_until.unwrap();
        let interval = SignedDuration::from_millis(if api == APIS[0] { 1_250 } else { 2_700 });
        assert_eq!(paid_until, now + interval * 11, "{api}");
    }
}

#[tokio::test]
async fn malformed_messages_fail_alone() {
    let sync = SyncHarness::start(APIS[0]).await;
    sync.put(60);
    let unknown = json!({"tenant_id": "99999999-2222-4333-8444-000000000001", "kind": "poll"}).to_string();
    let bodies = [
        "nonsense".to_owned(),
        poll(),
        r#"{"tenant_id": "common", "kind": "poll"}"#.to_owned(),
        unknown,
        json!({"tenant_id": TENANT, "kind": "dance"}).to_string(),
        json!({"tenant_id": TENANT, "kind": "backfill", "from": 5}).to_string(),
        String::new(),
    ];
    let response = sync.hand_over(&bodies).await;
    let failed: Vec<&str> = response["batchItemFailures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["itemIdentifier"].as_str().unwrap())
        .collect();
    assert_eq!(failed, ["m-0-7", "m-2-7", "m-4-7", "m-5-7", "m-6-7"]);
    sync.assert_complete();
}

#[tokio::test]
async fn short_invocations_make_progress_and_continue() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        for number in 0..130 {
            sync.put(number * 60);
        }
        sync.backends.sim.fault(Fault::new(FaultKind::Hang { millis: 300 }));
        let mut waiting = vec![poll()];
        let mut rounds = 0;
        while !waiting.is_empty() && rounds < 40 {
            rounds += 1;
            let enough = shared::http::Deadline::within(Duration::from_secs(3), &shared::clock::Clock::system());
            assert_eq!(
                hand_over(&sync.app, &waiting[..1], Duration::from_secs(3)).await,
                json!({"batchItemFailures": []})
            );
            assert!(!enough.left().is_zero());
            waiting = sync.backends.messages().into_iter().map(|(_, body)| body.to_string()).collect();
            sync.advance(5);
        }
        sync.assert_complete();
    }
}

#[tokio::test]
async fn offboarded_and_paused_tenants_are_not_read() {
    use shared::registry::tenants::{Status, Tenant};
    for status in [Status::Paused, Status::Offboarded] {
        let sync = SyncHarness::start(APIS[0]).await;
        sync.put(60);
        let change = |tenant: &mut Tenant| {
            tenant.status = status;
            tenant.reason = (status == Status::Paused).then_some(shared::tenant::Reason::Operator);
            Ok(())
        };
        sync.registry.change_tenant(&tenant(), sync.clock.now(), change).await.unwrap();
        sync.poll().await;
        assert_eq!(sync.calls(), 0);
        assert!(sync.delivered().is_empty());
    }
}
