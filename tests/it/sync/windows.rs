//! Nothing is lost at the edges of responses, and every version comes once.

use jiff::SignedDuration;
use serde_json::json;
use shared::microsoft::IncidentApi;
use sim::{Fault, FaultKind, Incident, IncidentSeed, RetryAfter};

use super::harness::{APIS, Line, SyncHarness, TENANT, host, tenant};
use crate::{cases::Cases, snapshots};

#[tokio::test]
async fn each_change_is_delivered_once_with_its_kind() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let (one, two) = (sync.put(60), sync.put(7200));
        sync.poll().await;
        sync.poll().await;
        let mut delivered: Vec<_> = sync.delivered().iter().map(Line::id_and_change).collect();
        delivered.sort();
        assert_eq!(delivered, [(one.clone(), "created".into()), (two.clone(), "created".into())]);

        for (status, change) in [("inProgress", "updated"), ("resolved", "closed"), ("active", "reopened")] {
            sync.advance(60);
            sync.update(&one, |incident| incident.status = status.into());
            sync.poll().await;
            sync.poll().await;
            let lines = sync.delivered();
            let newest =
                lines.iter().max_by_key(|line| line.json["last_updated"].as_str().unwrap().to_owned()).unwrap();
            assert_eq!(newest.id_and_change(), (one.clone(), change.into()), "{api}");
        }
        sync.advance(60);
        assert!(sync.backends.sim.merge_incident(TENANT, &one, &two));
        sync.poll().await;
        sync.poll().await;
        assert!(sync.delivered().iter().any(|line| line.id_and_change() == (one.clone(), "merged".into())));
        sync.assert_complete();
        assert_eq!(sync.feed().await.incidents_total, 2);
    }
}

#[tokio::test]
async fn delivered_line_has_the_documented_form_and_path() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let last_update = "2027-01-15T23:59:59.9089300Z".parse().unwrap();
        let id = sync.put_seed(IncidentSeed {
            display_name: "zero\u{200b}width ü \u{1f600}".into(),
            last_update: Some(last_update),
            created: Some(last_update),
            alerts: 2,
            ..IncidentSeed::default()
        });
        sync.poll().await;
        let lines = sync.delivered();
        let [line] = &lines[..] else { panic!("one line, not {}", lines.len()) };
        assert_eq!(line.json["key"], format!("{TENANT}/{id}/2027-01-15T23:59:59.90893Z"));
        assert_eq!(line.json["incident_id"], id);
        snapshots::assert_json(&format!("incident-line-{api}"), &line.json, &[]);
        assert!(line.object.starts_with(&format!("incidents/tenant_id={TENANT}/date=2027-01-15/")));
        assert!(line.object.ends_with(".ndjson.gz"));
        let events = sync.backends.events();
        let [(detail_type, detail)] = &events[..] else { panic!("one event, not {events:?}") };
        assert_eq!(detail_type, "Incidents Delivered");
        assert_eq!(
            detail,
            &json!({"tenant_id": TENANT, "bucket": sync.backends.bucket, "object": line.object, "count": 1,
                    "from": "2027-01-15T23:59:59.90893Z", "to": "2027-01-15T23:59:59.90893Z"})
        );
    }
}

#[tokio::test]
async fn all_incidents_of_one_instant_arrive() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let instant = sync.clock.now() - SignedDuration::from_secs(600);
        for number in 0..120 {
            let created = instant - SignedDuration::from_secs(number * 7);
            sync.put_seed(IncidentSeed {
                last_update: Some(instant),
                created: Some(created),
                ..IncidentSeed::default()
            });
        }
        sync.poll().await;
        sync.assert_complete();
        assert_eq!(sync.keys().len(), 120);
    }
}

#[tokio::test]
async fn rows_with_equal_times_are_paged_until_two_reads_agree() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let instant = sync.clock.now() - SignedDuration::from_secs(600);
        for _ in 0..260 {
            sync.put_seed(IncidentSeed {
                last_update: Some(instant),
                created: Some(instant),
                ..IncidentSeed::default()
            });
        }
        sync.poll().await;
        sync.advance(120);
        sync.poll().await;
        sync.assert_complete();
        assert_eq!(sync.keys().len(), 260);
        assert_eq!(sync.feed().await.quarantined, 0);
    }
}

#[tokio::test]
async fn crowded_second_resumes_after_the_budget_runs_out() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let instant = sync.clock.now() - SignedDuration::from_secs(600);
        let count = 40 * i64::from(api.largest_page());
        for number in 0..count {
            sync.put_seed(IncidentSeed {
                last_update: Some(instant),
                created: Some(instant - SignedDuration::from_secs(number)),
                alerts: 0,
                ..IncidentSeed::default()
            });
        }
        let mut polls = 0;
        while sync.feed().await.last_success_at.is_none() {
            sync.poll().await;
            sync.advance(60);
            polls += 1;
            assert!(polls < 8, "{api}: {:?}", sync.feed().await);
        }
        sync.assert_complete();
        assert_eq!(sync.feed().await.quarantined, 0, "{api}");
        assert!(polls > 1, "the budget held all of it: the test shows nothing");
        assert!(sync.calls() <= 40 * 14 / 10 + 4, "{} calls on {api}", sync.calls());
    }
}

#[tokio::test]
async fn crowded_second_is_read_call_by_call() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let instant = sync.clock.now() - SignedDuration::from_hours(5);
        for number in 0..600 {
            let created = Some(instant - SignedDuration::from_secs(number));
            sync.put_seed(IncidentSeed { last_update: Some(instant), created, alerts: 0, ..IncidentSeed::default() });
        }
        let limits = sim::Limits { per_minute: Some(1), ..sim::Limits::default() };
        sync.backends.sim.set_limits(host(api), Some(TENANT), limits);
        let fewest = 600_u32.div_ceil(api.largest_page());
        // Its list is read once until it is too long, and then once more in parts.
        for _ in 0..2 * fewest + 8 {
            sync.poll().await;
            sync.advance(122);
        }
        assert!(sync.feed().await.last_success_at.is_some(), "{:?}", sync.feed().await);
        sync.assert_complete();
    }
}

#[tokio::test]
async fn inseparable_rows_are_quarantined_and_the_feed_goes_on() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let instant = sync.clock.now() - SignedDuration::from_secs(600);
        let seed = || IncidentSeed { last_update: Some(instant), created: Some(instant), ..IncidentSeed::default() };
        for _ in 0..720 {
            sync.put_seed(IncidentSeed { alerts: 0, ..seed() });
        }
        let later = sync.put(30);
        for _ in 0..40 {
            sync.poll().await;
            sync.advance(60);
        }
        let delivered = sync.delivered();
        assert!(delivered.iter().any(|line| line.id_and_change().0 == later), "{api}: {:?}", sync.feed().await);
        let entries = sync.registry.quarantine_entries(&tenant()).await.unwrap();
        let quarantined: Vec<_> = entries.iter().map(|one| (one.reason.as_str(), one.blocks, one.tries)).collect();
        assert_eq!(quarantined, [("inseparable", true, 2)], "{api}");
        assert!(sync.feed().await.covered_until.unwrap() > sync.clock.now() - SignedDuration::from_mins(6));
    }
}

/// Pages of a ninth of the rows, and an order that turns with each response, so that the places of many readings hold the
/// same rows.
#[tokio::test]
async fn inseparable_rows_are_read_while_readings_show_new_ones() {
    for earlier_responses in 0..12 {
        let sync = SyncHarness::start(IncidentApi::Graph).await;
        sync.backends.sim.configure(|behaviour| {
            let list = &mut behaviour.graph;
            (list.order, list.shuffle_ties) = (sim::Order::CreatedDescending, true);
            (list.page_size, list.next_link) = (Some(7), sim::NextLink::Skip);
        });
        for _ in 0..earlier_responses {
            sync.poll().await;
            sync.advance(60);
        }
        let instant = Some(sync.clock.now() - SignedDuration::from_secs(300));
        for _ in 0..61 {
            sync.put_seed(IncidentSeed { last_update: instant, created: instant, ..IncidentSeed::default() });
        }
        for _ in 0..6 {
            sync.poll().await;
            sync.advance(60);
        }
        let quarantined = sync.feed().await.quarantined;
        assert_eq!((sync.keys().len(), quarantined), (61, 0), "after {earlier_responses} responses");
    }
}

/// A row of the first page leaves the list, so that the next one slips from the second page to the first.
#[tokio::test]
async fn row_that_leaves_between_two_pages_hides_no_inseparable_one() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    let shuffle = |shuffles: bool| {
        sync.backends.sim.configure(|behaviour| {
            let list = &mut behaviour.graph;
            (list.page_size, list.next_link, list.shuffle_ties) = (Some(7), sim::NextLink::Skip, shuffles);
        });
    };
    shuffle(true);
    // No later poll reads them again.
    let instant = Some(sync.clock.now() - SignedDuration::from_hours(5));
    let put =
        || sync.put_seed(IncidentSeed { last_update: instant, created: instant, alerts: 1, ..IncidentSeed::default() });
    (0..8).for_each(|_| drop(put()));
    let limits = sim::Limits { per_minute: Some(1), ..sim::Limits::default() };
    sync.backends.sim.set_limits(sim::Host::Graph, Some(TENANT), limits);
    let skip = async || sync.feed().await.pass_position?.second?.readings.map(|readings| readings.skip);
    let until = async |place| {
        for _ in 0..40 {
            if skip().await == Some(place) {
                return;
            }
            sync.advance(61);
            sync.poll().await;
        }
        panic!("{:?}", sync.feed().await.pass_position);
    };
    until(0).await;
    // They come before the others, and no page has shown them yet.
    let fresh: Vec<String> = (0..10).map(|_| put()).collect();
    shuffle(false);
    until(7).await;
    sync.update(fresh.last().unwrap(), |incident| incident.severity = "low".into());
    for _ in 0..20 {
        sync.advance(61);
        sync.poll().await;
    }
    sync.assert_complete();
}

#[tokio::test]
async fn busy_day_arrives_whole_with_few_calls() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        for number in 0..400 {
            sync.put(number * 200);
        }
        for _ in 0..5 {
            sync.poll().await;
            sync.advance(60);
        }
        sync.assert_complete();
        let fewest = 400 / usize::try_from(api.largest_page()).unwrap();
        assert!(sync.calls() <= fewest * 3 + 10, "{} calls on {api}", sync.calls());
    }
}

#[tokio::test]
async fn late_arrivals_come_with_the_next_poll_or_sweep() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.poll().await;
        sync.advance(3600);
        sync.poll().await;
        let within = sync.put(10 * 60);
        sync.poll().await;
        let late = sync.put(40 * 60);
        sync.poll().await;
        let delivered: Vec<_> = sync.delivered().iter().map(Line::id_and_change).collect();
        assert_eq!(delivered, [(within, "created".into())], "{api}");
        sync.message(json!({"tenant_id": TENANT, "kind": "sweep"})).await;
        assert!(sync.delivered().iter().any(|line| line.id_and_change() == (late.clone(), "created".into())));
        let sweep = sync.feed().await.last_sweep.unwrap();
        assert_eq!(sweep.missing, 1, "{api}");
        sync.assert_complete();
    }
}

#[tokio::test]
async fn change_without_a_new_time_is_another_version() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let id = sync.put(60);
        sync.poll().await;
        let now = sync.clock.now();
        assert!(sync.backends.sim.change_incident_silently(TENANT, &id, |incident| {
            incident.add_alert(now);
        }));
        sync.poll().await;
        sync.poll().await;
        let keys = sync.keys();
        assert_eq!(keys.len(), 2);
        assert!(keys.keys().any(|key| key.ends_with("~2")), "{keys:?}");
        assert!(keys.values().all(|count| *count == 1));
    }
}

#[tokio::test]
async fn late_alerts_arrive_without_a_new_time() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let last_update = sync.clock.now() - SignedDuration::from_secs(10);
        sync.put_seed(IncidentSeed {
            last_update: Some(last_update),
            created: Some(last_update),
            alerts: 1,
            alerts_visible_from: Some(sync.clock.now() + SignedDuration::from_mins(14)),
            ..IncidentSeed::default()
        });
        sync.poll().await;
        for _ in 0..18 {
            sync.advance(60);
            sync.poll().await;
        }
        let lines = sync.delivered();
        assert_eq!(lines.len(), 2, "{api}");
        assert!(
            lines.iter().any(|line| line.json["incident"]["alerts"].as_array().is_some_and(|alerts| alerts.len() == 1))
        );
    }
}

#[tokio::test]
async fn late_alerts_arrive_after_an_interrupted_second_reading() {
    for api in APIS {
        for kind in [FaultKind::Throttle { retry_after: RetryAfter::Seconds(120) }, FaultKind::status(500)] {
            let sync = SyncHarness::start_with(api, &[("POLL_OVERLAP_SECONDS", "300")]).await;
            let start = sync.clock.now();
            for ago in [10, 20, 30] {
                let last_update = start - SignedDuration::from_secs(ago);
                sync.put_seed(IncidentSeed {
                    last_update: Some(last_update),
                    created: Some(last_update),
                    alerts: 1,
                    alerts_visible_from: Some(start + SignedDuration::from_secs(850)),
                    ..IncidentSeed::default()
                });
            }
            // The overlap has passed them when their alerts appear, and so the second reading alone finds these.
            for _ in 0..15 {
                sync.poll().await;
                sync.advance(60);
            }
            let one = format!("{}/", api.incidents_path());
            sync.backends.sim.fault(Fault::new(kind.clone()).path(&one).after(1).times(1));
            for _ in 0..24 {
                sync.poll().await;
                sync.advance(60);
            }
            let filled = sync.delivered();
            let filled = filled.iter().filter(|line| line.json["key"].as_str().unwrap().ends_with("~2")).count();
            assert_eq!(filled, 3, "{api} {kind:?}: {:?}", sync.feed().await.rechecks);
        }
    }
}

#[tokio::test]
async fn stale_responses_are_not_delivered() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let id = sync.put(120);
        sync.poll().await;
        sync.advance(60);
        sync.update(&id, |incident| incident.status = "resolved".into());
        sync.poll().await;
        sync.backends.sim.fault(sim::Fault::new(sim::FaultKind::Stale { versions: 1 }));
        sync.poll().await;
        sync.backends.sim.clear_faults();
        sync.poll().await;
        assert_eq!(sync.delivered().len(), 2, "{api}");
    }
}

#[tokio::test]
async fn incidents_older_than_the_feed_come_by_backfill_only() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let old: Vec<String> = (0..130).map(|number| sync.put((30 + number) * 24 * 3600)).collect();
        let new = sync.put(60);
        sync.poll().await;
        assert_eq!(sync.delivered().iter().map(Line::id_and_change).collect::<Vec<_>>(), [(new, "created".into())]);
        for _ in 0..6 {
            sync.message(json!({"tenant_id": TENANT, "kind": "backfill", "job_id": "job-1"})).await;
            sync.advance(300);
        }
        let job = sync.registry.job(&tenant(), "job-1").await.unwrap().unwrap();
        assert_eq!(job.status, shared::registry::jobs::JobStatus::Done, "{api}");
        assert_eq!(job.delivered, old.len() as u64);
        sync.assert_complete();
        let fewest = 130 / usize::try_from(api.largest_page()).unwrap() + 1;
        assert!(sync.calls() <= fewest * 3 + 12, "{} calls on {api}", sync.calls());
    }
}

#[tokio::test]
async fn backfill_beyond_the_budget_continues_until_it_is_done() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let pages = 30;
        let count = pages * i64::from(api.largest_page());
        for number in 0..count {
            let at = sync.clock.now() - SignedDuration::from_hours(48) - SignedDuration::from_mins(number * 20);
            sync.put_seed(IncidentSeed {
                last_update: Some(at),
                created: Some(at),
                alerts: 0,
                ..IncidentSeed::default()
            });
        }
        sync.poll().await;
        let message = json!({"tenant_id": TENANT, "kind": "backfill", "job_id": "job-1"}).to_string();
        let mut minutes = 0;
        let done = loop {
            // What goes on with it waits on the queue for a while; time here is moved by hand.
            sync.hand_over(std::slice::from_ref(&message)).await;
            let job = sync.registry.job(&tenant(), "job-1").await.unwrap().unwrap();
            if !job.status.is_open() {
                break job;
            }
            sync.advance(60);
            minutes += 1;
            assert!(minutes < 15, "{api}: {job:?}");
        };
        assert_eq!((done.delivered, done.fraction()), (u64::try_from(count).unwrap(), 1.0), "{api}");
        let calls = i64::try_from(sync.calls()).unwrap();
        assert!(calls <= pages * 2 + 30, "{calls} calls on {api}");
    }
}

#[tokio::test]
async fn switched_incident_api_repeats_and_loses_nothing() {
    let sync = SyncHarness::start(shared::microsoft::IncidentApi::Defender).await;
    let one = sync.put(60);
    sync.poll().await;
    sync.backends.sim.grant(TENANT, crate::backends::CLIENT_ID, &["SecurityIncident.Read.All"]);
    let change = |tenant: &mut shared::registry::tenants::Tenant| {
        tenant.api = shared::microsoft::IncidentApi::Graph;
        Ok(())
    };
    sync.registry.change_tenant(&tenant(), sync.clock.now(), change).await.unwrap();
    sync.advance(60);
    let two = sync.put(5);
    sync.poll().await;
    sync.advance(60);
    sync.update(&one, |incident| incident.status = "resolved".into());
    sync.poll().await;
    let mut delivered: Vec<_> = sync.delivered().iter().map(Line::id_and_change).collect();
    delivered.sort();
    assert_eq!(delivered, [(one.clone(), "closed".into()), (one, "created".into()), (two, "created".into())]);
}

#[tokio::test]
async fn late_change_during_a_first_pass_of_several_works_is_found_by_polls() {
    let mut cases = Cases::default();
    for api in APIS {
        // Microsoft throttles at one of the requests of the first pass, so that the next work goes on with it.
        for after in 4..=10 {
            cases.add(format!("{api}, throttled after {after} requests"), async move {
                let sync = SyncHarness::start(api).await;
                (0..100).for_each(|number| drop(sync.put(960 + number * 60)));
                (0..500).for_each(|number| drop(sync.put(60 + number * 8 / 5)));
                let late = sync.put(880);
                let throttle = FaultKind::Throttle { retry_after: RetryAfter::Seconds(30) };
                let mut throttle = Fault::new(throttle).on(host(api));
                (throttle.after, throttle.times) = (after, Some(1));
                sync.backends.sim.fault(throttle);
                sync.poll().await;
                // With the time that it had, which is within the overlap now and not any more at the next poll.
                let resolve = |incident: &mut Incident| incident.status = "resolved".into();
                assert!(sync.backends.sim.change_incident_silently(TENANT, &late, resolve));
                for _ in 0..6 {
                    sync.advance(60);
                    sync.poll().await;
                }
                let is_late_change = |line: &Line| {
                    let status = line.json["incident"]["status"].as_str().unwrap();
                    line.id_and_change().0 == late && status.eq_ignore_ascii_case("resolved")
                };
                assert!(sync.delivered().iter().any(is_late_change), "{:?}", sync.feed().await);
            });
        }
    }
    cases.run().await;
}
