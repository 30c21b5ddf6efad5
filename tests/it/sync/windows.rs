//! Nothing is lost at the edges of answers, and every version comes once.

use jiff::SignedDuration;
use serde_json::json;
use sim::{Fault, FaultKind, IncidentSeed, RetryAfter};

use super::feed::{Feed, SURFACES, TENANT, tenant};

#[tokio::test]
async fn changes_are_delivered_once_each_and_told_as_what_they_are() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let (one, two) = (feed.put(60), feed.put(7200));
        feed.poll().await;
        feed.poll().await;
        let mut told: Vec<_> = feed.delivered().await.iter().map(super::feed::Line::told).collect();
        told.sort();
        assert_eq!(told, [(one.clone(), "created".into()), (two.clone(), "created".into())]);

        for (status, change) in [("inProgress", "updated"), ("resolved", "closed"), ("active", "reopened")] {
            feed.advance(60);
            feed.update(&one, |incident| incident.status = status.into());
            feed.poll().await;
            feed.poll().await;
            let lines = feed.delivered().await;
            let newest =
                lines.iter().max_by_key(|line| line.json["last_updated"].as_str().unwrap().to_owned()).unwrap();
            assert_eq!(newest.told(), (one.clone(), change.into()), "{surface}");
        }
        feed.advance(60);
        assert!(feed.local.sim.merge_incident(TENANT, &one, &two));
        feed.poll().await;
        feed.poll().await;
        assert!(feed.delivered().await.iter().any(|line| line.told() == (one.clone(), "merged".into())));
        feed.assert_complete().await;
        assert_eq!(feed.feed().await.incidents_total, 2);
    }
}

#[tokio::test]
async fn a_line_is_what_the_interface_says_and_lies_under_its_day() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let last_update = "2027-01-15T23:59:59.9089300Z".parse().unwrap();
        let id = feed.put_seed(IncidentSeed {
            display_name: "zero\u{200b}width ü \u{1f600}".into(),
            last_update: Some(last_update),
            created: Some(last_update),
            alerts: 2,
            ..IncidentSeed::default()
        });
        feed.poll().await;
        let lines = feed.delivered().await;
        let [line] = &lines[..] else { panic!("one line, not {}", lines.len()) };
        let json = &line.json;
        assert_eq!(json["schema"], "incident/1");
        assert_eq!(json["key"], format!("{TENANT}/{id}/2027-01-15T23:59:59.90893Z"));
        assert_eq!(json["tenant_id"], TENANT);
        assert_eq!(json["incident_id"], id);
        assert_eq!(json["change"], "created");
        assert_eq!(json["api"], surface.as_str());
        assert_eq!(json["last_updated"], "2027-01-15T23:59:59.90893Z");
        assert!(json["fetched_at"].as_str().unwrap().ends_with('Z'));
        assert_eq!(json["incident"]["alerts"].as_array().unwrap().len(), 2);
        assert!(line.object.starts_with(&format!("incidents/tenant_id={TENANT}/date=2027-01-15/")));
        assert!(line.object.ends_with(".ndjson.gz"));
        let events = feed.local.events();
        let [(detail_type, detail)] = &events[..] else { panic!("one event, not {events:?}") };
        assert_eq!(detail_type, "Incidents Delivered");
        assert_eq!(
            detail,
            &json!({"tenant_id": TENANT, "bucket": feed.local.bucket, "object": line.object, "count": 1,
                    "from": "2027-01-15T23:59:59.90893Z", "to": "2027-01-15T23:59:59.90893Z"})
        );
    }
}

#[tokio::test]
async fn f1_a_hundred_and_twenty_incidents_of_one_instant_all_arrive() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let instant = feed.clock.now() - SignedDuration::from_secs(600);
        for number in 0..120 {
            let created = instant - SignedDuration::from_secs(number * 7);
            feed.put_seed(IncidentSeed {
                last_update: Some(instant),
                created: Some(created),
                ..IncidentSeed::default()
            });
        }
        feed.poll().await;
        feed.assert_complete().await;
        assert_eq!(feed.keys().await.len(), 120);
    }
}

#[tokio::test]
async fn f1_rows_that_share_all_instants_are_paged_until_two_readings_agree() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let instant = feed.clock.now() - SignedDuration::from_secs(600);
        for _ in 0..260 {
            feed.put_seed(IncidentSeed {
                last_update: Some(instant),
                created: Some(instant),
                ..IncidentSeed::default()
            });
        }
        feed.poll().await;
        feed.advance(120);
        feed.poll().await;
        feed.assert_complete().await;
        assert_eq!(feed.keys().await.len(), 260);
        assert_eq!(feed.feed().await.quarantined, 0);
    }
}

#[tokio::test]
async fn f1_a_crowded_second_that_the_budget_does_not_hold_is_gone_on_with_where_it_stopped() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let instant = feed.clock.now() - SignedDuration::from_secs(600);
        let count = 16 * i64::from(surface.largest_page());
        for number in 0..count {
            feed.put_seed(IncidentSeed {
                last_update: Some(instant),
                created: Some(instant - SignedDuration::from_secs(number)),
                alerts: 0,
                ..IncidentSeed::default()
            });
        }
        let mut polls = 0;
        while feed.feed().await.last_success_at.is_none() {
            feed.poll().await;
            feed.advance(60);
            polls += 1;
            assert!(polls < 8, "{surface}: {:?}", feed.feed().await);
        }
        feed.assert_complete().await;
        assert_eq!(feed.feed().await.quarantined, 0, "{surface}");
        assert!(polls > 1, "the budget held all of it: the test shows nothing");
        assert!(feed.calls() <= 16 * 6, "{} calls on {surface}", feed.calls());
    }
}

#[tokio::test]
async fn f1_more_rows_than_can_be_told_apart_are_set_aside_with_growing_pauses_and_the_rest_goes_on() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let instant = feed.clock.now() - SignedDuration::from_secs(600);
        let seed = || IncidentSeed { last_update: Some(instant), created: Some(instant), ..IncidentSeed::default() };
        for _ in 0..720 {
            feed.put_seed(IncidentSeed { alerts: 0, ..seed() });
        }
        let later = feed.put(30);
        for _ in 0..40 {
            feed.poll().await;
            feed.advance(60);
        }
        let told = feed.delivered().await;
        assert!(told.iter().any(|line| line.told().0 == later), "{surface}: {:?}", feed.feed().await);
        let aside = feed.registry.quarantine_entries(&tenant()).await.unwrap();
        let aside: Vec<_> = aside.iter().map(|one| (one.reason.as_str(), one.blocks, one.tries)).collect();
        assert_eq!(aside, [("inseparable", true, 2)], "{surface}");
        assert!(feed.feed().await.covered_until.unwrap() > feed.clock.now() - SignedDuration::from_secs(90));
    }
}

#[tokio::test]
async fn a_busy_day_arrives_whole_and_with_few_calls() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        for number in 0..400 {
            feed.put(number * 200);
        }
        for _ in 0..5 {
            feed.poll().await;
            feed.advance(60);
        }
        feed.assert_complete().await;
        let fewest = 400 / usize::try_from(surface.largest_page()).unwrap();
        assert!(feed.calls() <= fewest * 3 + 10, "{} calls on {surface}", feed.calls());
    }
}

#[tokio::test]
async fn f2_late_arrivals_come_with_the_next_poll_or_with_the_sweep() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        feed.poll().await;
        feed.advance(3600);
        feed.poll().await;
        let within = feed.put(10 * 60);
        feed.poll().await;
        let late = feed.put(40 * 60);
        feed.poll().await;
        let told: Vec<_> = feed.delivered().await.iter().map(super::feed::Line::told).collect();
        assert_eq!(told, [(within, "created".into())], "{surface}");
        feed.message(json!({"tenant_id": TENANT, "kind": "sweep"})).await;
        assert!(feed.delivered().await.iter().any(|line| line.told() == (late.clone(), "created".into())));
        let sweep = feed.feed().await.last_sweep.unwrap();
        assert_eq!(sweep.missing, 1, "{surface}");
        feed.assert_complete().await;
    }
}

#[tokio::test]
async fn f8_a_change_without_a_new_time_is_another_version() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let id = feed.put(60);
        feed.poll().await;
        let now = feed.clock.now();
        assert!(feed.local.sim.change_incident_silently(TENANT, &id, |incident| {
            incident.add_alert(now);
        }));
        feed.poll().await;
        feed.poll().await;
        let keys = feed.keys().await;
        assert_eq!(keys.len(), 2);
        assert!(keys.keys().any(|key| key.ends_with("~2")), "{keys:?}");
        assert!(keys.values().all(|count| *count == 1));
    }
}

#[tokio::test]
async fn alerts_that_are_filled_in_later_arrive_without_a_new_time() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let last_update = feed.clock.now() - SignedDuration::from_secs(10);
        feed.put_seed(IncidentSeed {
            last_update: Some(last_update),
            created: Some(last_update),
            alerts: 1,
            alerts_visible_from: Some(feed.clock.now() + SignedDuration::from_mins(14)),
            ..IncidentSeed::default()
        });
        feed.poll().await;
        for _ in 0..18 {
            feed.advance(60);
            feed.poll().await;
        }
        let lines = feed.delivered().await;
        assert_eq!(lines.len(), 2, "{surface}");
        assert!(
            lines.iter().any(|line| line.json["incident"]["alerts"].as_array().is_some_and(|alerts| alerts.len() == 1))
        );
    }
}

#[tokio::test]
async fn alerts_that_are_filled_in_later_arrive_although_the_second_reading_is_cut_short() {
    for surface in SURFACES {
        for kind in [FaultKind::Throttle { retry_after: RetryAfter::Seconds(120) }, FaultKind::status(500)] {
            let feed = Feed::start_with(surface, &[("POLL_OVERLAP_SECONDS", "300")]).await;
            let start = feed.clock.now();
            for ago in [10, 20, 30] {
                let last_update = start - SignedDuration::from_secs(ago);
                feed.put_seed(IncidentSeed {
                    last_update: Some(last_update),
                    created: Some(last_update),
                    alerts: 1,
                    alerts_visible_from: Some(start + SignedDuration::from_secs(850)),
                    ..IncidentSeed::default()
                });
            }
            // The overlap has passed them when their alerts appear, and so the second reading alone finds these.
            for _ in 0..15 {
                feed.poll().await;
                feed.advance(60);
            }
            let one = format!("{}/", surface.incidents_path());
            feed.local.sim.fault(Fault::new(kind.clone()).path(&one).after(1).times(1));
            for _ in 0..24 {
                feed.poll().await;
                feed.advance(60);
            }
            let filled = feed.delivered().await;
            let filled = filled.iter().filter(|line| line.json["key"].as_str().unwrap().ends_with("~2")).count();
            assert_eq!(filled, 3, "{surface} {kind:?}: {:?}", feed.feed().await.rechecks);
        }
    }
}

#[tokio::test]
async fn a_stale_answer_is_not_delivered() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let id = feed.put(120);
        feed.poll().await;
        feed.advance(60);
        feed.update(&id, |incident| incident.status = "resolved".into());
        feed.poll().await;
        feed.local.sim.fault(sim::Fault::new(sim::FaultKind::Stale { versions: 1 }));
        feed.poll().await;
        feed.local.sim.clear_faults();
        feed.poll().await;
        assert_eq!(feed.delivered().await.len(), 2, "{surface}");
    }
}

#[tokio::test]
async fn what_is_older_than_the_feed_comes_by_backfill_alone() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let old: Vec<String> = (0..130).map(|number| feed.put((30 + number) * 24 * 3600)).collect();
        let new = feed.put(60);
        feed.poll().await;
        assert_eq!(
            feed.delivered().await.iter().map(super::feed::Line::told).collect::<Vec<_>>(),
            [(new, "created".into())]
        );
        for _ in 0..6 {
            feed.message(json!({"tenant_id": TENANT, "kind": "backfill", "job_id": "job-1"})).await;
            feed.advance(300);
        }
        let job = feed.registry.job(&tenant(), "job-1").await.unwrap().unwrap();
        assert_eq!(job.status, shared::registry::jobs::JobStatus::Done, "{surface}");
        assert_eq!(job.delivered, old.len() as u64);
        feed.assert_complete().await;
        let fewest = 130 / usize::try_from(surface.largest_page()).unwrap() + 1;
        assert!(feed.calls() <= fewest * 3 + 12, "{} calls on {surface}", feed.calls());
    }
}

#[tokio::test]
async fn a_backfill_that_the_budget_does_not_hold_goes_on_until_it_is_done() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let pages = 30;
        let count = pages * i64::from(surface.largest_page());
        for number in 0..count {
            let at = feed.clock.now() - SignedDuration::from_hours(48) - SignedDuration::from_mins(number * 20);
            feed.put_seed(IncidentSeed {
                last_update: Some(at),
                created: Some(at),
                alerts: 0,
                ..IncidentSeed::default()
            });
        }
        feed.poll().await;
        let message = json!({"tenant_id": TENANT, "kind": "backfill", "job_id": "job-1"}).to_string();
        let mut minutes = 0;
        let done = loop {
            // What goes on with it waits on the queue for a while; time here is moved by hand.
            feed.hand_over(std::slice::from_ref(&message)).await;
            let job = feed.registry.job(&tenant(), "job-1").await.unwrap().unwrap();
            if !job.status.is_open() {
                break job;
            }
            feed.advance(60);
            minutes += 1;
            assert!(minutes < 15, "{surface}: {job:?}");
        };
        assert_eq!((done.delivered, done.fraction()), (u64::try_from(count).unwrap(), 1.0), "{surface}");
        let calls = i64::try_from(feed.calls()).unwrap();
        assert!(calls <= pages * 2 + 30, "{calls} calls on {surface}");
    }
}

#[tokio::test]
async fn a_changed_surface_repeats_nothing_and_loses_nothing() {
    let feed = Feed::start(shared::microsoft::IncidentApi::Defender).await;
    let one = feed.put(60);
    feed.poll().await;
    feed.local.sim.grant(TENANT, crate::local::CLIENT_ID, &["SecurityIncident.Read.All"]);
    let change = |tenant: &mut shared::registry::tenants::Tenant| {
        tenant.api = shared::microsoft::IncidentApi::Graph;
        Ok(())
    };
    feed.registry.change_tenant(&tenant(), change).await.unwrap();
    feed.advance(60);
    let two = feed.put(5);
    feed.poll().await;
    feed.advance(60);
    feed.update(&one, |incident| incident.status = "resolved".into());
    feed.poll().await;
    let mut told: Vec<_> = feed.delivered().await.iter().map(super::feed::Line::told).collect();
    told.sort();
    assert_eq!(told, [(one.clone(), "closed".into()), (one, "created".into()), (two, "created".into())]);
}
