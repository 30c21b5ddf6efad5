//! Several workers, duplicates, short invocations, malformed messages.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::json;
use shared::{clock::Clock, http::Deadline, queue::SyncKind, registry::Write};
use sim::{Fault, FaultKind};

use super::feed::{Feed, SURFACES, TENANT, active, hand_over, tenant};

fn poll() -> String {
    json!({"tenant_id": TENANT, "kind": "poll"}).to_string()
}

#[tokio::test]
async fn two_workers_on_one_tenant_deliver_no_version_twice() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        for number in 0..130 {
            feed.put(number * 60);
        }
        let other = feed.another();
        let bodies = [poll(), poll()];
        let long = Duration::from_secs(30);
        let (one, two) = tokio::join!(hand_over(&feed.app, &bodies, long), hand_over(&other, &bodies, long));
        assert_eq!((one, two), (json!({"batchItemFailures": []}), json!({"batchItemFailures": []})));
        feed.advance(60);
        feed.poll().await;
        feed.assert_complete().await;
    }
}

#[tokio::test]
async fn f19_a_worker_that_died_holds_nobody_up_past_its_deadline() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        feed.put(60);
        let until = feed.clock.now() + SignedDuration::from_secs(11);
        feed.registry.acquire_lease(&tenant(), feed.clock.now(), until).await.unwrap();
        feed.poll().await;
        assert!(feed.delivered().await.is_empty(), "the lease is respected");
        feed.advance(12);
        feed.poll().await;
        feed.assert_complete().await;
    }
}

#[tokio::test]
async fn a_worker_whose_lease_has_passed_to_another_moves_no_cursor() {
    let feed = Feed::start(SURFACES[0]).await;
    let now = feed.clock.now();
    let shared::registry::lease::Acquired::Lease(mut old) =
        feed.registry.acquire_lease(&tenant(), now, now).await.unwrap()
    else {
        panic!("the lease is free")
    };
    feed.advance(1);
    feed.poll().await;
    let covered = feed.feed().await.covered_until;
    old.feed.covered_until = Some(now + SignedDuration::from_hours(1));
    assert_eq!(feed.registry.commit_feed(&mut old).await.unwrap(), Write::Conflict);
    assert_eq!(feed.feed().await.covered_until, covered);
}

#[tokio::test]
async fn what_somebody_reads_live_while_a_worker_is_at_work_counts_in_one_budget() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let now = feed.clock.now();
        let until = now + SignedDuration::from_secs(30);
        let acquired = feed.registry.acquire_lease(&tenant(), now, until).await.unwrap();
        let shared::registry::lease::Acquired::Lease(mut lease) = acquired else { panic!("the lease is free") };
        for _ in 0..5 {
            lease.take_call(surface, SyncKind::Poll, now).unwrap();
            feed.registry.take_call(&tenant(), surface, now).await.unwrap();
        }
        assert_eq!(feed.registry.commit_feed(&mut lease).await.unwrap(), Write::Done);
        lease.take_call(surface, SyncKind::Poll, now).unwrap();
        assert_eq!(feed.registry.release_lease(&mut lease).await.unwrap(), Write::Done);
        let paid_until = feed.feed().await.budget(surface).paid_until.unwrap();
        assert_eq!(paid_until, now + SignedDuration::from_millis(2_500) * 11, "{surface}");
    }
}

#[tokio::test]
async fn messages_that_are_not_understood_fail_alone() {
    let feed = Feed::start(SURFACES[0]).await;
    feed.put(60);
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
    let answer = feed.hand_over(&bodies).await;
    let failed: Vec<&str> = answer["batchItemFailures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["itemIdentifier"].as_str().unwrap())
        .collect();
    assert_eq!(failed, ["m-0-7", "m-2-7", "m-4-7", "m-5-7", "m-6-7"]);
    feed.assert_complete().await;
}

#[tokio::test]
async fn short_invocations_make_progress_and_go_on_by_themselves() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        for number in 0..130 {
            feed.put(number * 60);
        }
        feed.local.sim.fault(Fault::new(FaultKind::Hang { millis: 300 }));
        let mut waiting = vec![poll()];
        let mut rounds = 0;
        while !waiting.is_empty() && rounds < 40 {
            rounds += 1;
            let enough = Deadline::within(Duration::from_secs(3), &Clock::system());
            assert_eq!(
                hand_over(&feed.app, &waiting[..1], Duration::from_secs(3)).await,
                json!({"batchItemFailures": []})
            );
            assert!(!enough.left().is_zero());
            waiting = feed.local.messages().into_iter().map(|(_, body)| body.to_string()).collect();
            feed.advance(5);
        }
        feed.assert_complete().await;
    }
}

#[tokio::test]
async fn f20_an_offboarded_or_paused_tenant_is_left_alone() {
    use shared::registry::tenants::{Status, Tenant};
    for status in [Status::Paused, Status::Offboarded] {
        let feed = Feed::start(SURFACES[0]).await;
        feed.put(60);
        let change = |tenant: &mut Tenant| {
            tenant.status = status;
            tenant.reason = (status == Status::Paused).then_some(shared::tenant::Reason::Operator);
            Ok(())
        };
        feed.registry.change_tenant(&tenant(), change).await.unwrap();
        feed.poll().await;
        assert_eq!(feed.calls(), 0);
        assert!(feed.delivered().await.is_empty());
    }
}

#[tokio::test]
async fn dispatch_claims_each_tenant_once_in_an_interval() {
    let feed = Feed::start(SURFACES[0]).await;
    for number in 2..40 {
        let other = format!("{number:x}1111111-2222-4333-8444-000000000001");
        let other: shared::tenant::TenantId = other[other.len() - 36..].parse().unwrap();
        feed.registry.create_tenant(&active(other, SURFACES[0])).await.ok();
        feed.registry.open_feed(&other, feed.clock.now()).await.unwrap();
    }
    let lookup = |name: &str| match name {
        "TABLE_NAME" => Some(feed.local.table.clone()),
        "SYNC_QUEUE_URL" => Some(feed.local.queue_url.clone()),
        _ => None,
    };
    let config = shared::config::load(&lookup, incident_dispatch::Config::read).unwrap();
    let app = incident_dispatch::App::new(config, &crate::local::platform(&feed.local.aws, &feed.clock));
    let tick = |kind: &str| app.handle(json!({"kind": kind}), super::feed::invocation(Duration::from_secs(20)));
    let (one, two) = tokio::join!(tick("poll"), tick("poll"));
    let queued = one.unwrap()["queued"].as_u64().unwrap() + two.unwrap()["queued"].as_u64().unwrap();
    let messages = feed.local.messages();
    assert_eq!(messages.len() as u64, queued);
    let mut tenants: Vec<_> = messages.iter().map(|(group, body)| (group.clone(), body["tenant_id"].clone())).collect();
    tenants.sort_by_key(|(group, _)| group.clone());
    tenants.dedup();
    assert_eq!(tenants.len(), messages.len(), "nobody twice");
    assert!(tenants.iter().all(|(group, tenant)| tenant == group), "the tenant is its message's group");
    feed.advance(30);
    assert_eq!(tick("poll").await.unwrap()["due"], 0);
    feed.advance(29);
    assert_eq!(tick("poll").await.unwrap()["due"], queued);
    assert_eq!(tick("sweep").await.unwrap()["queued"], queued);
    for wrong in [json!({"kind": "dance"}), json!({}), json!(null), json!(["poll"]), json!({"Records": []})] {
        let refused = app.handle(wrong, super::feed::invocation(Duration::from_secs(20))).await.unwrap_err();
        assert_eq!(refused.code, "invalid_request");
    }
}
