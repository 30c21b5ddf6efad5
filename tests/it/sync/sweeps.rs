//! Sweeps that cannot do their work: they end, and their end does not read like health.

use jiff::SignedDuration;
use serde_json::json;
use shared::registry::{
    Write,
    jobs::{Job, JobKind, JobStatus},
    lease::Acquired,
};

use super::harness::{APIS, SyncHarness, TENANT, tenant};
use crate::backends::lines_of;

const STUCK: &str = "scheduled-stuck";

/// A settled tenant with an open sweep that came no further for so many hours.
async fn with_open_sweep(api: shared::microsoft::IncidentApi, hours: i64) -> SyncHarness {
    let sync = SyncHarness::start(api).await;
    sync.put(3_600);
    sync.poll().await;
    let now = sync.clock.now();
    let mut job = Job::new(STUCK.into(), tenant(), JobKind::Sweep, now - SignedDuration::from_hours(72), now);
    job.status = JobStatus::Running;
    job.progressed_at = Some(now - SignedDuration::from_hours(hours));
    sync.registry.create_job(&job).await.unwrap();
    sync
}

#[tokio::test]
async fn sweep_that_stands_still_for_a_day_fails_and_the_next_begins() {
    for api in APIS {
        let sync = with_open_sweep(api, 25).await;
        sync.message(json!({"tenant_id": TENANT, "kind": "sweep"})).await;
        assert!(sync.feed().await.last_sweep.is_some(), "{api}: the next one does not join it");
        // No message continues it, so polls do.
        sync.advance(600);
        sync.poll().await;
        let job = sync.registry.job(&tenant(), STUCK).await.unwrap().unwrap();
        assert_eq!(job.status, JobStatus::Failed, "{api}");
        assert!(sync.feed().await.open_jobs.is_empty(), "{api}");
    }
}

#[tokio::test]
async fn sweep_that_goes_on_is_joined_by_the_next() {
    for api in APIS {
        let sync = with_open_sweep(api, 23).await;
        sync.message(json!({"tenant_id": TENANT, "kind": "sweep"})).await;
        let job = sync.registry.job(&tenant(), STUCK).await.unwrap().unwrap();
        assert_eq!(job.status, JobStatus::Done, "{api}");
        assert!(sync.feed().await.last_sweep.is_some(), "{api}");
    }
}

#[tokio::test]
async fn sweep_of_a_feed_that_lags_behind_its_span_fails() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.poll().await;
        let now = sync.clock.now();
        let Acquired::Lease(mut lease) = sync.registry.acquire_lease(&tenant(), now, now).await.unwrap() else {
            panic!("the lease is free")
        };
        lease.feed.started_at = Some(now - SignedDuration::from_hours(24 * 20));
        lease.feed.covered_until = Some(now - SignedDuration::from_hours(24 * 10));
        assert_eq!(sync.registry.release_lease(&mut lease, None, now).await.unwrap(), Write::Done);
        sync.message(json!({"tenant_id": TENANT, "kind": "sweep", "job_id": "sweep"})).await;
        let job = sync.registry.job(&tenant(), "sweep").await.unwrap().unwrap();
        assert_eq!(job.status, JobStatus::Failed, "{api}");
        assert_eq!(sync.feed().await.last_sweep, None, "{api}: nothing was compared");
    }
}

#[tokio::test]
async fn scheduled_sweep_reports_the_age_of_the_one_before() {
    let sync = SyncHarness::start(APIS[0]).await;
    sync.poll().await;
    let mut ages = Vec::new();
    for day in 0..3 {
        let lines_before = lines_of(&sync.backends.request_id).len();
        let body = json!({"tenant_id": TENANT, "kind": "sweep"}).to_string();
        let event = json!({"Records": [{"messageId": format!("m-{day}"), "body": body, "eventSource": "aws:sqs"}]});
        let mut invocation = super::harness::invocation(std::time::Duration::from_secs(30));
        invocation.request_id.clone_from(&sync.backends.request_id);
        sync.app.handle(event, invocation).await.unwrap();
        let lines = lines_of(&sync.backends.request_id).split_off(lines_before);
        ages.extend(lines.iter().find_map(|line| line["SweepAgeSeconds"].as_f64()));
        sync.advance(86_400);
        sync.poll().await;
    }
    // The feed began a day before the tenant was active.
    assert_eq!(ages, [86_400.0; 3]);
}
