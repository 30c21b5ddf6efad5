//! Tenants, feeds, jobs, quarantine entries and versions that a newer release has stored.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::{
    incident::span::Span,
    microsoft::IncidentApi,
    registry::{
        Write,
        jobs::{Job, JobKind, JobStatus},
        lease::Acquired,
        quarantine::QuarantineEntry,
        tenants::Status,
    },
    tenant::Reason,
};

use super::harness::{APIS, SyncHarness, TENANT, active, invocation, tenant};
use crate::{
    backends::request,
    later_release::{assert_kept, item, key, later, upgrade},
};

#[tokio::test]
async fn list_shows_tenants_of_a_newer_release_with_their_words() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    let other = TENANT.replace("000000000001", "000000000002");
    sync.registry.create_tenant(&active(other.parse().unwrap(), IncidentApi::Graph)).await.unwrap();
    for (name, word) in [("status", "suspended"), ("reason", "licence_expired")] {
        let mut account = sync.backends.double.account();
        account.item_mut(&format!("TENANT#{TENANT}"), "PROFILE").unwrap().insert(name.into(), json!({"S": word}));
    }
    let page = sync.registry.tenants(None, 10, None).await.unwrap();
    let words: Vec<_> =
        page.items.iter().map(|tenant| (tenant.status.as_str(), tenant.reason.map(Reason::as_str))).collect();
    assert_eq!(words, [("suspended", Some("licence_expired")), ("active", None)]);
    assert_eq!(serde_json::to_value(&page.items[0]).unwrap()["status"], "suspended");
    // Nobody reads it, nobody polls it, and it stays what it is.
    sync.put(60);
    sync.poll().await;
    let path = format!("/tenants/{TENANT}/incidents");
    // The word is one of the newer release's description, not of ours.
    let response = sync.app.handle(request("GET", &path, "", None), invocation(Duration::from_secs(9))).await.unwrap();
    let problem: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
    assert_eq!((&response["statusCode"], &problem["code"]), (&json!(409), &json!("tenant_not_active")));
    assert_eq!(problem["reason"], "licence_expired");
    assert!(sync.delivered().is_empty());
    assert_eq!(sync.tenant().await.status.as_str(), "suspended");
    assert!(sync.feed().await.due_at.is_some(), "the newer release goes on with it");
}

#[tokio::test]
async fn pause_for_a_reason_of_a_newer_release_outlasts_success() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    {
        let mut account = sync.backends.double.account();
        let profile = account.item_mut(&format!("TENANT#{TENANT}"), "PROFILE").unwrap();
        profile.insert("status".into(), json!({"S": "paused"}));
        profile.insert("reason".into(), json!({"S": "contract_ended"}));
    }
    sync.put(60);
    sync.poll().await;
    let tenant = sync.tenant().await;
    assert_eq!((tenant.status, tenant.reason.map(Reason::as_str)), (Status::Paused, Some("contract_ended")));
    assert_eq!((sync.calls(), sync.delivered().len()), (0, 0));
}

#[tokio::test]
async fn feed_job_quarantine_and_versions_keep_what_was_added() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let id = sync.put(60);
        sync.message(json!({"tenant_id": TENANT, "kind": "sweep", "job_id": "s"})).await;
        let now = sync.clock.now();
        let job = Job::new("j".into(), tenant(), JobKind::Backfill, now - SignedDuration::from_hours(48), now);
        sync.registry.create_job(&job).await.unwrap();
        let span = Span { from: now - SignedDuration::from_hours(1), to: Some(now) };
        let entry = QuarantineEntry::new("q".into(), "unreadable", None, span, now);
        assert_eq!(sync.registry.quarantine(&tenant(), &entry).await.unwrap(), Write::Done);
        let upgraded = upgrade(&sync.backends.double);
        // The job runs, the entry is tried again, a version is recorded, and a sweep writes its result into the feed.
        sync.advance(600);
        sync.update(&id, |incident| incident.status = "resolved".into());
        sync.message(json!({"tenant_id": TENANT, "kind": "backfill", "job_id": "j"})).await;
        sync.poll().await;
        let before = sync.feed().await.last_sweep.unwrap().at;
        sync.message(json!({"tenant_id": TENANT, "kind": "sweep", "job_id": "s2"})).await;
        assert!(sync.feed().await.last_sweep.unwrap().at > before);
        assert_eq!(sync.registry.job(&tenant(), "j").await.unwrap().unwrap().status, JobStatus::Done);
        sync.assert_complete();
        let gone = usize::from(sync.registry.quarantine_entries(&tenant()).await.unwrap().is_empty());
        assert_kept(&sync.backends.double, upgraded - gone);
        let feed = item(&sync.backends.double, &format!("TENANT#{TENANT}"), "FEED");
        assert_eq!(feed["last_sweep"]["M"]["later"], later(), "{api}: inside of it, too");
    }
}

#[tokio::test]
async fn quarantine_entry_keeps_what_a_newer_release_added() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    let now = sync.clock.now();
    let span = Span { from: now - SignedDuration::from_hours(1), to: Some(now) };
    let mut entry = QuarantineEntry::new("q".into(), "unreadable", None, span, now);
    assert_eq!(sync.registry.quarantine(&tenant(), &entry).await.unwrap(), Write::Done);
    let upgraded = upgrade(&sync.backends.double);
    entry.note_failed_retry(now);
    sync.registry.update_quarantine_entry(&tenant(), &entry).await.unwrap();
    assert_eq!(sync.registry.quarantine_entries(&tenant()).await.unwrap(), [entry]);
    assert_kept(&sync.backends.double, upgraded);
}

#[tokio::test]
async fn jobs_of_a_newer_release_are_shown_and_left_alone() {
    for (name, word) in [("kind", "reindex"), ("status", "suspended")] {
        let sync = SyncHarness::start(IncidentApi::Graph).await;
        let now = sync.clock.now();
        let job = Job::new("j".into(), tenant(), JobKind::Backfill, now - SignedDuration::from_hours(48), now);
        sync.registry.create_job(&job).await.unwrap();
        let pk = format!("TENANT#{TENANT}");
        sync.backends.double.account().item_mut(&pk, "JOB#j").unwrap().insert(name.into(), json!({"S": word}));
        sync.advance(600);
        let id = sync.put(60);
        sync.poll().await;
        sync.message(json!({"tenant_id": TENANT, "kind": "backfill", "job_id": "j"})).await;
        assert_eq!(sync.delivered().len(), 1, "{id} is delivered by the poll");
        let job = sync.registry.job(&tenant(), "j").await.unwrap().unwrap();
        assert!([job.kind.as_str(), job.status.as_str()].contains(&word));
        assert_eq!(item(&sync.backends.double, &pk, "JOB#j")[name], json!({"S": word}));
        assert!(sync.feed().await.open_jobs.contains("j"), "it is still open");
    }
}

#[tokio::test]
async fn version_with_marks_of_a_newer_release_is_delivered_once() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.put(60);
        sync.poll().await;
        {
            let mut account = sync.backends.double.account();
            let (pk, sk) = key(account.items("VERSIONS#")[0]);
            let block = account.item_mut(&pk, &sk).unwrap();
            for (_, value) in block.iter_mut().filter(|(name, _)| name.starts_with('i')) {
                let packed = value["S"].as_str().unwrap();
                *value = json!({"S": format!("{packed} more")});
            }
        }
        sync.advance(60);
        sync.poll().await;
        sync.assert_complete();
    }
}

#[tokio::test]
async fn open_incident_under_a_severity_of_a_newer_release_goes_on() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    let id = sync.put(60);
    let word = sync.backends.sim.incident(TENANT, &id).unwrap().severity;
    sync.poll().await;
    let (pk, sk) = key(sync.backends.double.account().items("VERSIONS#")[0]);
    let mark = format!("o{id}");
    {
        let mut account = sync.backends.double.account();
        account.item_mut(&pk, &sk).unwrap().insert(mark.clone(), json!({"S": "critical"}));
        let counts = account.item_mut(&pk, "OPEN").unwrap();
        counts.insert(word.clone(), json!({"N": "0"}));
        counts.insert("critical".into(), json!({"N": "3"}));
    }
    sync.advance(60);
    sync.update(&id, |incident| incident.assigned_to = Some("ada@contoso.example".into()));
    sync.poll().await;
    sync.poll().await;
    sync.assert_complete();
    assert_eq!((sync.delivered().len(), sync.feed().await.failures), (2, 0));
    assert_eq!(item(&sync.backends.double, &pk, &sk)[&mark], json!({"S": word}));
    let counts = item(&sync.backends.double, &pk, "OPEN");
    assert_eq!(
        (&counts[&word], &counts["critical"]),
        (&json!({"N": "1"}), &json!({"N": "2"})),
        "both with their marks"
    );
}

#[tokio::test]
async fn lease_writes_what_changed_and_nothing_else() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    sync.put(60);
    sync.poll().await;
    let (now, until) = (sync.clock.now(), sync.clock.now() + SignedDuration::from_secs(30));
    let pk = format!("TENANT#{TENANT}");
    let before = item(&sync.backends.double, &pk, "FEED");
    let Acquired::Lease(mut lease) = sync.registry.acquire_lease(&tenant(), now, until).await.unwrap() else {
        panic!("the lease is free")
    };
    assert_eq!(sync.registry.commit_feed(&mut lease, now).await.unwrap(), Write::Done, "nothing has changed");
    assert_eq!(sync.registry.release_lease(&mut lease, None, now).await.unwrap(), Write::Done);
    let mut after = item(&sync.backends.double, &pk, "FEED");
    after.insert("fence".into(), before["fence"].clone());
    assert_eq!(after, before);
}
