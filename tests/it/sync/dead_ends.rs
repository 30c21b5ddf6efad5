//! Situations in which a sync could stand still, ask for ever or lose rows unseen. Calls are counted at Microsoft's side.
//!
//! Long, because each is a story of its own, and they are looked up by what the sync would do wrong.

use aws_double::{AwsFault, FaultPosition};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use shared::{microsoft::IncidentApi, registry::jobs::JobStatus};
use sim::{Fault, FaultKind, IncidentSeed, RetryAfter};

use super::harness::{APIS, SyncHarness, TENANT, host, tenant};

/// Incidents that share one second of last update and differ in time of creation: more than the budget of a minute holds.
fn crowd(sync: &SyncHarness, instant: Timestamp) -> usize {
    let count = 16 * i64::from(sync.api.largest_page());
    for number in 0..count {
        sync.put_seed(IncidentSeed {
            last_update: Some(instant),
            created: Some(instant - SignedDuration::from_secs(number)),
            alerts: 0,
            ..IncidentSeed::default()
        });
    }
    usize::try_from(count).unwrap()
}

/// Hands over one poll, and drops the messages that follow: each minute has one invocation.
async fn poll_once(sync: &SyncHarness) {
    sync.hand_over(&[json!({"tenant_id": TENANT, "kind": "poll"}).to_string()]).await;
    sync.backends.messages();
}

/// Polls once a minute until one succeeds. Panics after `most` polls.
async fn poll_until_success(sync: &SyncHarness, most: usize) {
    let before = sync.feed().await.last_success_at;
    for _ in 0..most {
        poll_once(sync).await;
        if sync.feed().await.last_success_at > before {
            return;
        }
        sync.advance(60);
    }
    panic!("no success in {most} polls on {}: {:?}", sync.api, sync.feed().await);
}

/// Works on the messages of a job once a minute, beside the polls. Returns the minutes until it has ended.
async fn run_job(sync: &SyncHarness, message: serde_json::Value, most: usize) -> usize {
    let mut waiting = vec![message];
    for minute in 0..most {
        for body in std::mem::take(&mut waiting) {
            sync.hand_over(&[body.to_string()]).await;
        }
        waiting = sync.backends.messages().into_iter().map(|(_, body)| body).collect();
        if sync.feed().await.open_jobs.is_empty() {
            return minute;
        }
        sync.advance(60);
        if waiting.is_empty() {
            waiting.push(json!({"tenant_id": TENANT, "kind": "poll"}));
        }
    }
    panic!("the job is open after {most} minutes on {}: {:?}", sync.api, sync.feed().await);
}

#[tokio::test]
async fn poll_that_begins_at_a_crowded_second_gets_past_it() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let count = crowd(&sync, sync.clock.now() - SignedDuration::from_hours(24));
        sync.put(60);
        poll_until_success(&sync, 6).await;
        sync.assert_complete();
        assert_eq!(sync.keys().len(), count + 1, "{api}");
        let calls = sync.calls();
        // What a list is too long to show is read again once it is split.
        assert!(calls <= 16 * 3, "{calls} calls on {api}");
    }
}

#[tokio::test]
async fn backfill_ends_in_spite_of_a_crowded_second() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let count = crowd(&sync, sync.clock.now() - SignedDuration::from_hours(240));
        sync.poll().await;
        let before = sync.calls();
        let message = json!({"tenant_id": TENANT, "kind": "backfill", "job_id": "job-1"});
        let minutes = run_job(&sync, message, 30).await;
        let job = sync.registry.job(&tenant(), "job-1").await.unwrap().unwrap();
        assert_eq!(job.status, JobStatus::Done, "{api}: {job:?}");
        assert_eq!(sync.keys().len(), count, "{api}");
        sync.assert_complete();
        // A poll goes before the job in each minute.
        let calls = sync.calls() - before - minutes;
        assert!(calls <= 16 * 3 + minutes, "{calls} calls in {minutes} minutes on {api}");
    }
}

#[tokio::test]
async fn sweep_of_a_crowded_second_ends_and_the_next_one_starts() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let count = crowd(&sync, sync.clock.now() - SignedDuration::from_secs(600));
        poll_until_success(&sync, 6).await;
        sync.advance(7_200);
        poll_until_success(&sync, 6).await;
        let sweep = |id: &str| json!({"tenant_id": TENANT, "kind": "sweep", "job_id": id});
        run_job(&sync, sweep("sweep-1"), 30).await;
        let first = sync.feed().await.last_sweep.unwrap();
        assert_eq!((first.missing, first.checked), (0, count as u64), "{api}");
        sync.advance(86_400);
        poll_until_success(&sync, 6).await;
        run_job(&sync, sweep("sweep-2"), 30).await;
        assert!(sync.feed().await.last_sweep.unwrap().at > first.at, "{api}");
    }
}

#[tokio::test]
async fn tenant_whose_alerts_always_fail_is_read_without_them() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    for number in 0..60 {
        sync.put(60 + number * 40);
    }
    sync.backends.sim.fault(Fault::new(FaultKind::status(500)).on(sim::Host::Graph).with_expand());
    let (before, mut put) = (sync.calls(), 60);
    for minute in 0..120 {
        if minute % 30 == 29 {
            sync.put(5);
            put += 1;
        }
        if sync.feed().await.due_at.is_none_or(|due| due <= sync.clock.now()) {
            sync.poll().await;
        }
        sync.advance(60);
    }
    let (delivered, calls) = (sync.keys().len(), sync.calls() - before);
    assert_eq!(delivered, put, "{calls} calls: {:?}", sync.feed().await);
    assert!(calls <= 400, "{calls} calls in two hours");
    let lag = sync.clock.now().duration_since(sync.feed().await.covered_until.unwrap());
    assert!(lag < SignedDuration::from_mins(20), "{lag}");
    // The alerts come once they are readable.
    sync.backends.sim.clear_faults();
    for _ in 0..40 {
        sync.advance(3_600);
        sync.poll().await;
    }
    assert_eq!(sync.feed().await.quarantined, 0);
    let with_alerts = sync.delivered().iter().filter(|line| line.json["incident"]["alerts"][0].is_object()).count();
    assert_eq!(with_alerts, put);
}

#[tokio::test]
async fn lasting_cap_without_a_next_link_hides_nothing() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let rows = api.largest_page() / 2;
        for number in 0..i64::from(rows) * 3 {
            sync.put(1_200 + number * 60);
        }
        sync.backends.sim.fault(Fault::new(FaultKind::SilentCap { rows: rows as usize }));
        for _ in 0..5 {
            sync.poll().await;
            sync.advance(60);
        }
        sync.assert_complete();
        assert!(sync.calls() <= 3 * 14 / 10 + 4 + 5, "{} calls on {api}", sync.calls());
        sync.advance(3_600);
        sync.poll().await;
        sync.message(json!({"tenant_id": TENANT, "kind": "sweep"})).await;
        let sweep = sync.feed().await.last_sweep.unwrap();
        assert_eq!((sweep.checked, sweep.missing), (u64::from(rows) * 3, 0), "{api}");
    }
}

#[tokio::test]
async fn cap_that_begins_later_hides_nothing_from_the_sweep() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let rows = api.largest_page() / 2;
        // Whole pages show first that nothing is cut.
        for number in 0..i64::from(api.largest_page()) * 2 {
            sync.put(20_000 + number * 60);
        }
        sync.poll().await;
        sync.advance(7_200);
        sync.backends.sim.fault(Fault::new(FaultKind::SilentCap { rows: rows as usize }));
        for number in 0..i64::from(rows) + 5 {
            sync.put(20 + number * 5);
        }
        poll_until_success(&sync, 3).await;
        sync.advance(7_200);
        poll_until_success(&sync, 3).await;
        run_job(&sync, json!({"tenant_id": TENANT, "kind": "sweep"}), 30).await;
        sync.assert_complete();
        // The cap that the sweep saw is known to the polls.
        sync.advance(3_600);
        for number in 0..i64::from(rows) + 5 {
            sync.put(20 + number * 5);
        }
        poll_until_success(&sync, 3).await;
        sync.assert_complete();
    }
}

#[tokio::test]
async fn retry_over_a_wide_span_ends_and_leaves_room_for_others() {
    let api = IncidentApi::Graph;
    let sync = SyncHarness::start(api).await;
    let count = i64::from(api.largest_page()) * 36;
    let seed = |seconds_ago: i64| {
        let at = sync.clock.now() - SignedDuration::from_secs(seconds_ago);
        IncidentSeed { last_update: Some(at), created: Some(at), alerts: 1, ..IncidentSeed::default() }
    };
    for number in 0..count {
        sync.put_seed(seed(100 + number * (86_000 / count)));
    }
    let foreign = "22222222-2222-4333-8444-000000000009";
    let extra = serde_json::Map::from_iter([("tenantId".to_owned(), foreign.into())]);
    let bad = sync.put_seed(IncidentSeed { extra, ..seed(50) });
    let throttle = FaultKind::Throttle { retry_after: RetryAfter::Seconds(30) };
    sync.backends.sim.fault(Fault::new(throttle).on(host(api)).after(1).times(1));
    poll_once(&sync).await;
    assert_eq!(sync.feed().await.quarantined, 1);
    sync.backends.sim.change_incident_silently(TENANT, &bad, |incident| incident.extra.clear());
    let mut waiting = Vec::new();
    let mut calls = Vec::new();
    for minute in 0..40 {
        sync.advance(60);
        let before = sync.calls();
        poll_once(&sync).await;
        if minute == 15 {
            waiting.push(json!({"tenant_id": TENANT, "kind": "sweep"}));
        }
        for body in std::mem::take(&mut waiting) {
            sync.hand_over(&[body.to_string()]).await;
        }
        waiting = sync.backends.messages().into_iter().map(|(_, body)| body).collect();
        calls.push(sync.calls() - before);
    }
    assert_eq!(sync.feed().await.quarantined, 0, "{:?}", sync.registry.quarantine_entries(&tenant()).await.unwrap());
    assert!(sync.feed().await.last_sweep.is_some(), "calls by minute: {calls:?}");
    assert!(calls[35..].iter().all(|calls| *calls <= 2), "calls by minute: {calls:?}");
    sync.assert_complete();
}

#[tokio::test]
async fn rows_of_the_future_hold_nothing_up() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let future = sync.clock.now() + SignedDuration::from_hours(24 * 365);
        for number in 0..(i64::from(api.largest_page()) + 5) {
            sync.put_seed(IncidentSeed {
                last_update: Some(future + SignedDuration::from_secs(number * 100)),
                created: Some(sync.clock.now()),
                ..IncidentSeed::default()
            });
        }
        sync.put(60);
        poll_until_success(&sync, 5).await;
        for _ in 0..10 {
            sync.advance(60);
            poll_until_success(&sync, 2).await;
        }
        let (late, before) = (sync.put(600), sync.calls());
        for _ in 0..10 {
            sync.advance(60);
            poll_until_success(&sync, 2).await;
        }
        assert!(sync.calls() - before <= 10 * 6, "{} calls of ten polls on {api}", sync.calls() - before);
        assert!(sync.delivered().iter().any(|line| line.id_and_change().0 == late), "{api}");
        run_job(&sync, json!({"tenant_id": TENANT, "kind": "sweep"}), 10).await;
        sync.assert_complete();
    }
}

/// Pages that are cut without saying so, and rows that change places, so that no list up to the present can be read.
#[tokio::test]
async fn unordered_rows_of_the_future_cost_a_poll_few_calls() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.backends.sim.configure(|behaviour| {
            let list = if api == IncidentApi::Graph { &mut behaviour.graph } else { &mut behaviour.defender };
            (list.page_size, list.next_link) = (Some(7), sim::NextLink::None);
            (list.order, list.shuffle_ties) = (sim::Order::CreatedDescending, true);
        });
        let future = sync.clock.now() + SignedDuration::from_hours(24 * 365);
        for number in 0..105 {
            sync.put_seed(IncidentSeed {
                last_update: Some(future + SignedDuration::from_secs(number * 100)),
                created: Some(sync.clock.now()),
                ..IncidentSeed::default()
            });
        }
        // Not a whole second, so that the present is never the beginning of one.
        sync.clock.advance(SignedDuration::from_millis(750));
        poll_until_success(&sync, 5).await;
        let before = sync.calls();
        for _ in 0..10 {
            sync.advance(60);
            sync.put(600);
            poll_once(&sync).await;
        }
        assert!(sync.calls() - before <= 10 * 6, "{} calls of ten polls on {api}", sync.calls() - before);
        run_job(&sync, json!({"tenant_id": TENANT, "kind": "sweep"}), 30).await;
        sync.assert_complete();
    }
}

/// Rows of the future in no order take three calls of a poll and more, and Microsoft permits no more in a minute, or less.
#[tokio::test]
async fn retries_and_jobs_have_a_turn_where_polls_need_all_calls() {
    let in_fixed_order = (IncidentApi::Graph, sim::Order::Shuffled, 57, 100, 3);
    let in_changing_order = (IncidentApi::Defender, sim::Order::UpdatedDescending, 230, 0, 2);
    for (api, order, rows, apart, per_minute) in [in_fixed_order, in_changing_order] {
        let sync = SyncHarness::start(api).await;
        sync.backends.sim.configure(|behaviour| {
            let of_api = if api == IncidentApi::Graph { &mut behaviour.graph } else { &mut behaviour.defender };
            (of_api.order, of_api.shuffle_ties) = (order, true);
        });
        let now = sync.clock.now();
        let put = |last_update, alerts| {
            let (last_update, created) = (Some(last_update), Some(now));
            sync.put_seed(IncidentSeed { last_update, created, alerts, ..IncidentSeed::default() });
        };
        let future = now + SignedDuration::from_hours(24 * 365);
        (0..rows).for_each(|number| put(future + SignedDuration::from_secs(number * apart), 1));
        put(now, 0);
        poll_until_success(&sync, 5).await;
        assert_eq!(sync.feed().await.rechecks.len(), 1, "{api}");
        let limits = sim::Limits { per_minute: Some(per_minute), ..sim::Limits::default() };
        sync.backends.sim.set_limits(host(api), Some(TENANT), limits);
        sync.hand_over(&[json!({"tenant_id": TENANT, "kind": "sweep"}).to_string()]).await;
        let mut longest_lag = SignedDuration::ZERO;
        for _ in 0..60 {
            sync.advance(61);
            let mut bodies = vec![json!({"tenant_id": TENANT, "kind": "poll"}).to_string()];
            bodies.extend(sync.backends.messages().into_iter().map(|(_, body)| body.to_string()));
            for body in bodies {
                sync.hand_over(&[body]).await;
            }
            let covered = sync.feed().await.covered_until.unwrap();
            longest_lag = longest_lag.max(sync.clock.now().duration_since(covered));
        }
        let feed = sync.feed().await;
        assert!(feed.rechecks.is_empty(), "{api}: {:?}", feed.rechecks);
        assert!(feed.open_jobs.is_empty() && feed.last_sweep.is_some(), "{api}: {:?}", feed.open_jobs);
        let success = feed.last_success_at.unwrap();
        assert!(
            sync.clock.now() < success + SignedDuration::from_mins(6),
            "{api}: no poll ends, the last one at {success}"
        );
        assert!(longest_lag <= SignedDuration::from_mins(6), "{api}: {longest_lag}");
        sync.assert_complete();
    }
}

#[tokio::test]
async fn sweep_of_the_future_leaves_the_present_to_polls() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.put(3_600);
        poll_once(&sync).await;
        sync.advance(10);
        let fresh = sync.put(5);
        // A span that ends before the overlap is read to its very end.
        let to = sync.clock.now() - SignedDuration::from_mins(30);
        sync.hand_over(&[json!({"tenant_id": TENANT, "kind": "sweep", "to": to}).to_string()]).await;
        let sweep = sync.feed().await.last_sweep.unwrap();
        assert_eq!((sweep.checked, sweep.missing), (1, 0), "{api}");
        assert!(sync.delivered().iter().all(|line| line.id_and_change().0 != fresh), "{api}");
    }
}

#[tokio::test]
async fn ignored_filter_is_a_failure_that_costs_few_calls() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        for number in 0..(i64::from(api.largest_page()) + 30) {
            sync.put(60 + number * 500);
        }
        sync.backends.sim.fault(Fault::new(FaultKind::IgnoredFilter).on(host(api)));
        let mut polls = 0;
        for _ in 0..60 {
            if sync.feed().await.due_at.is_none_or(|due| due <= sync.clock.now()) {
                poll_once(&sync).await;
                polls += 1;
            }
            sync.advance(60);
        }
        let feed = sync.feed().await;
        assert!(feed.failures > 0 && feed.quarantined == 0, "{api}: {feed:?}");
        assert!(sync.calls() <= polls * 10, "{} calls in {polls} polls on {api}", sync.calls());
        assert!(polls <= 20, "{polls} polls in an hour on {api}");
        sync.backends.sim.clear_faults();
        for _ in 0..5 {
            sync.advance(3_600);
            sync.poll().await;
        }
        sync.assert_complete();
    }
}

#[tokio::test]
async fn pages_of_one_row_are_read_in_few_calls() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.backends.sim.configure(|behaviour| {
            for list in [&mut behaviour.graph, &mut behaviour.defender] {
                (list.page_size, list.next_link) = (Some(1), sim::NextLink::Skip);
            }
        });
        // Older than twice the overlap, which the poll after a pass of several works reads.
        for number in 0..40 {
            sync.put(2_000 + number * 300);
        }
        poll_until_success(&sync, 20).await;
        sync.assert_complete();
        assert!(sync.calls() <= 40 * 3 + 10, "{} calls on {api}", sync.calls());
        sync.advance(3_600);
        let before = sync.calls();
        poll_until_success(&sync, 2).await;
        assert!(sync.calls() - before <= 3, "{} calls of a poll without news on {api}", sync.calls() - before);
    }
}

#[tokio::test]
async fn page_ended_by_size_leaves_other_pages_whole() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let page = usize::try_from(api.largest_page()).unwrap();
        for number in 0..i64::try_from(page).unwrap() * 4 {
            sync.put(1_000 + number * 20);
        }
        let size = |size: Option<usize>| {
            sync.backends.sim.configure(|behaviour| {
                for list in [&mut behaviour.graph, &mut behaviour.defender] {
                    (list.page_size, list.next_link) = (size, sim::NextLink::Skip);
                }
            });
        };
        // The first page holds one large incident and a link.
        size(Some(1));
        let throttle = FaultKind::Throttle { retry_after: RetryAfter::Seconds(30) };
        sync.backends.sim.fault(Fault::new(throttle).on(host(api)).after(1).times(1));
        poll_once(&sync).await;
        size(None);
        sync.advance(60);
        let before = sync.calls();
        poll_until_success(&sync, 3).await;
        sync.assert_complete();
        assert!(sync.calls() - before <= 4 * 14 / 10 + 4, "{} calls on {api}", sync.calls() - before);
    }
}

#[tokio::test]
async fn quarantined_second_is_left_out_by_polls() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let bad = sync.put(300);
        for number in 0..5 {
            sync.put(100 + number * 100);
        }
        sync.backends.sim.fault(Fault::poison(TENANT, &bad));
        for _ in 0..12 {
            poll_once(&sync).await;
            sync.advance(60);
        }
        assert_eq!(sync.feed().await.quarantined, 1, "{api}");
        let before = sync.calls();
        for _ in 0..5 {
            poll_once(&sync).await;
            sync.advance(60);
        }
        assert!(sync.calls() - before <= 5 * 4, "{} calls of five polls on {api}", sync.calls() - before);
    }
}

#[tokio::test]
async fn shorter_wait_does_not_replace_a_longer_one() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let until = |seconds: i64| sync.clock.now() + SignedDuration::from_secs(seconds);
        for seconds in [600, 60] {
            sync.registry.set_throttled_until(&tenant(), api, until(seconds)).await.unwrap();
        }
        let throttled_until = sync.feed().await.budget(api).throttled_until.unwrap();
        assert!(throttled_until >= until(600), "{throttled_until} on {api}");
    }
}

#[tokio::test]
async fn worker_hears_of_a_wait_that_another_function_met() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        for number in 0..i64::from(api.largest_page()) * 4 {
            sync.put(60 + number * 5);
        }
        let aws = sync.backends.double.clone();
        aws.account().plan("it", vec![(FaultPosition::Delivery(0), AwsFault::HeldBefore)]);
        let mut polling = std::pin::pin!(poll_once(&sync));
        tokio::select! {
            () = &mut polling => panic!("nothing was delivered"),
            () = aws.held() => {}
        }
        let until = sync.clock.now() + SignedDuration::from_secs(120);
        sync.registry.set_throttled_until(&tenant(), api, until).await.unwrap();
        sync.advance(3);
        let before = sync.calls();
        aws.release();
        polling.await;
        assert_eq!(sync.calls(), before, "{api}");
    }
}
