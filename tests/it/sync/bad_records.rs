//! Records that cannot be read keep nothing else back, however few calls are permitted.

use jiff::SignedDuration;
use serde_json::json;
use shared::registry::{jobs::JobStatus, tenants::Status};
use sim::{Fault, FaultKind, IncidentSeed};

use super::harness::{APIS, SyncHarness, TENANT, host, tenant};

/// Hands over a poll and what waits in the queue, once a minute.
async fn work_for(sync: &SyncHarness, minutes: usize) {
    for _ in 0..minutes {
        sync.advance(61);
        let mut bodies = vec![json!({"tenant_id": TENANT, "kind": "poll"}).to_string()];
        bodies.extend(sync.backends.messages().into_iter().map(|(_, body)| body.to_string()));
        for body in bodies {
            sync.hand_over(&[body]).await;
        }
    }
}

fn delivered(sync: &SyncHarness) -> usize {
    sync.keys().len()
}

#[tokio::test]
async fn backfill_ends_beside_two_bad_records_side_by_side() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let day = 86_400;
        for number in 0..30 {
            sync.put(9 * day + number * 600);
        }
        let bad: Vec<String> = (0..2).map(|number| sync.put(10 * day - number)).collect();
        for id in &bad {
            sync.backends.sim.fault(Fault::poison(TENANT, id));
        }
        // No list with either of them can be read, with its alerts or without.
        work_for(&sync, 1).await;
        sync.hand_over(&[json!({"tenant_id": TENANT, "kind": "backfill", "job_id": "job-1"}).to_string()]).await;
        work_for(&sync, 40).await;
        let job = sync.registry.job(&tenant(), "job-1").await.unwrap().unwrap();
        assert_eq!(job.status, JobStatus::Done, "{api}: {job:?}");
        assert_eq!(delivered(&sync), 30, "{api}");
        assert_eq!(sync.feed().await.quarantined, 2, "{api}");
        sync.backends.sim.clear_faults();
        sync.advance(7 * 3_600);
        work_for(&sync, 2).await;
        sync.assert_complete();
        assert_eq!(sync.feed().await.quarantined, 0, "{api}");
    }
}

/// So many incidents of one second that it is read by time of creation.
#[tokio::test]
async fn bad_record_keeps_no_later_part_of_its_second_back() {
    // The newest come first. One of the bad ones is in a later page of the second's list, the other in the first.
    for (api, bad) in APIS.into_iter().flat_map(|api| [(api, 60), (api, 680)]) {
        let sync = SyncHarness::start(api).await;
        let updated = sync.clock.now() - SignedDuration::from_secs(300);
        let seed = |number: i64| IncidentSeed {
            last_update: Some(updated),
            created: Some(updated - SignedDuration::from_secs(900 - number)),
            ..IncidentSeed::default()
        };
        let ids: Vec<String> = (0..700).map(|number| sync.put_seed(seed(number))).collect();
        sync.backends.sim.fault(Fault::poison(TENANT, &ids[bad]));
        work_for(&sync, 12).await;
        assert_eq!(delivered(&sync), 699, "{api}: {:?}", sync.feed().await);
        assert_eq!(sync.feed().await.quarantined, 1, "{api}");
        sync.backends.sim.clear_faults();
        sync.advance(25 * 3_600);
        work_for(&sync, 3).await;
        sync.assert_complete();
        assert_eq!(sync.feed().await.quarantined, 0, "{api}");
    }
}

#[tokio::test]
async fn forbidden_incident_pauses_no_tenant() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let id = sync.put_seed(IncidentSeed { alerts: 0, ..IncidentSeed::default() });
        sync.poll().await;
        let path = format!("{}/{id}", api.incidents_path());
        sync.backends.sim.fault(Fault::new(FaultKind::status(403)).on(host(api)).path(&path));
        for _ in 0..4 {
            sync.advance(900);
            sync.put(5);
            sync.poll().await;
        }
        let status = sync.registry.tenant(&tenant()).await.unwrap().unwrap().status;
        assert_eq!((status, delivered(&sync)), (Status::Active, 5), "{api}");
    }
}

/// A record that no response can hold, where Microsoft permits so few calls that no search comes to its end.
#[tokio::test]
async fn bad_record_holds_nothing_up_where_few_calls_are_permitted() {
    for api in APIS {
        for per_minute in [1, 2, 3] {
            let sync = SyncHarness::start(api).await;
            sync.put(7_200);
            let bad = sync.put(3_600);
            (0..3).for_each(|number| drop(sync.put(1_800 + number)));
            sync.backends.sim.fault(Fault::poison(TENANT, &bad));
            let limits = sim::Limits { per_minute: Some(per_minute), ..sim::Limits::default() };
            sync.backends.sim.set_limits(host(api), Some(TENANT), limits);
            for _ in 0..16 {
                work_for(&sync, 10).await;
                if delivered(&sync) == 4 {
                    break;
                }
            }
            assert_eq!(delivered(&sync), 4, "{api}, {per_minute} a minute: {:?}", sync.feed().await);
            sync.backends.sim.clear_faults();
            // The next retry may come after a day.
            sync.advance(25 * 3_600);
            work_for(&sync, 20).await;
            sync.assert_complete();
            assert_eq!(sync.feed().await.quarantined, 0, "{api}, {per_minute} a minute");
        }
    }
}

#[tokio::test]
async fn bad_record_of_another_form_at_each_reading_is_one_entry() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let foreign = json!("22222222-2222-4333-8444-000000000009");
        let extra = serde_json::Map::from_iter([("tenantId".to_owned(), foreign)]);
        let bad = sync.put_seed(IncidentSeed { extra, ..IncidentSeed::default() });
        for number in 0..10 {
            sync.backends.sim.change_incident_silently(TENANT, &bad, |incident| {
                incident.extra.insert("readings".to_owned(), number.into());
            });
            sync.poll().await;
            sync.advance(20);
        }
        assert_eq!(sync.feed().await.quarantined, 1, "{api}");
        assert_eq!(sync.backends.objects(&format!("quarantine/tenant_id={TENANT}/")).len(), 1, "{api}");
    }
}

#[tokio::test]
async fn pages_without_rows_are_passed_call_by_call() {
    for api in APIS {
        for empty_pages in [1, 3] {
            let sync = SyncHarness::start(api).await;
            sync.backends.sim.configure(|behaviour| {
                (behaviour.graph.empty_pages, behaviour.defender.empty_pages) = (empty_pages, empty_pages);
            });
            (0..5).for_each(|number| drop(sync.put(600 + number * 60)));
            let limits = sim::Limits { per_minute: Some(1), ..sim::Limits::default() };
            sync.backends.sim.set_limits(host(api), Some(TENANT), limits);
            work_for(&sync, 30).await;
            assert_eq!(delivered(&sync), 5, "{api}, {empty_pages} pages: {:?}", sync.feed().await);
        }
    }
}
