//! Microsoft fails in every way it can; nothing is lost, and nothing gets stuck.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::json;
use shared::{
    clock::Clock, http::Deadline, lambda::event::Invocation, microsoft::IncidentApi, registry::tenants::Status,
    tenant::Reason,
};
use sim::{Fault, FaultKind, RetryAfter};

use super::feed::{Feed, SURFACES, TENANT, grant, tenant};
use crate::local::lines_of;

fn on(surface: IncidentApi) -> sim::Host {
    match surface {
        IncidentApi::Graph => sim::Host::Graph,
        IncidentApi::Defender => sim::Host::Defender,
    }
}

#[tokio::test]
async fn f3_an_error_anywhere_loses_nothing_and_moves_no_cursor_too_far() {
    let kinds = [
        FaultKind::status(500),
        FaultKind::status(502),
        FaultKind::Reset,
        FaultKind::Cut,
        FaultKind::Truncate { at: None },
        FaultKind::status(401),
        FaultKind::Rewrite { status: 206, headers: vec![("Warning".into(), "199 - \"partial\"".into())] },
    ];
    for surface in SURFACES {
        for kind in &kinds {
            for after in [0, 1] {
                let feed = Feed::start(surface).await;
                for number in 0..60 {
                    feed.put(number * 60);
                }
                let mut fault = Fault::new(kind.clone()).on(on(surface));
                (fault.after, fault.times) = (after, Some(1));
                feed.local.sim.fault(fault);
                for _ in 0..3 {
                    feed.poll().await;
                    feed.advance(60);
                }
                feed.assert_complete().await;
            }
        }
    }
}

#[tokio::test]
async fn f4_a_poison_incident_is_set_aside_and_the_others_arrive_in_the_same_run() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let ids: Vec<String> = (0..20).map(|number| feed.put(60 + number * 40)).collect();
        feed.local.sim.fault(Fault::poison(TENANT, &ids[7]));
        feed.poll().await;
        feed.advance(60);
        feed.poll().await;
        let keys = feed.keys().await;
        assert_eq!(keys.len(), 19, "{surface}: {:?}", feed.feed().await);
        assert_eq!(feed.feed().await.quarantined, 1);
        let aside = feed.local.objects(&format!("quarantine/tenant_id={TENANT}/"));
        assert_eq!(aside.len(), 1);

        feed.advance(60);
        let later = feed.put(5);
        feed.poll().await;
        assert!(feed.delivered().await.iter().any(|line| line.told().0 == later), "the feed goes on past it");

        feed.local.sim.clear_faults();
        for _ in 0..20 {
            feed.advance(60);
            feed.poll().await;
        }
        feed.assert_complete().await;
        assert_eq!(feed.feed().await.quarantined, 0, "{surface}");
    }
}

#[tokio::test]
async fn f4_alerts_that_cannot_be_read_do_not_keep_their_incident_back() {
    let feed = Feed::start(IncidentApi::Graph).await;
    let ids: Vec<String> = (0..5).map(|number| feed.put(60 + number * 40)).collect();
    feed.local.sim.fault(Fault::poison(TENANT, &ids[2]).with_expand());
    feed.poll().await;
    feed.advance(60);
    feed.poll().await;
    assert_eq!(feed.keys().await.len(), 5);
    assert_eq!(feed.feed().await.quarantined, 1);
    feed.local.sim.clear_faults();
    feed.advance(400);
    feed.poll().await;
    let lines = feed.delivered().await;
    assert_eq!(lines.len(), 6, "with its alerts it is another version");
    assert_eq!(feed.feed().await.quarantined, 0);
}

#[tokio::test]
async fn a_poison_incident_that_is_alone_does_not_hold_the_feed_up() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let id = feed.put(600);
        feed.local.sim.fault(Fault::poison(TENANT, &id));
        for _ in 0..12 {
            feed.poll().await;
            feed.advance(60);
        }
        assert_eq!(feed.feed().await.quarantined, 1, "{surface}: {:?}", feed.feed().await);
        let later = feed.put(5);
        feed.poll().await;
        assert_eq!(
            feed.delivered().await.iter().map(super::feed::Line::told).collect::<Vec<_>>(),
            [(later, "created".into())]
        );
        assert!(feed.feed().await.covered_until.unwrap() > feed.clock.now() - SignedDuration::from_secs(30));
    }
}

#[tokio::test]
async fn a_search_that_reads_nothing_gives_up_after_few_requests() {
    // Graph is also asked for a list without alerts.
    for (surface, most) in [(IncidentApi::Graph, 9), (IncidentApi::Defender, 8)] {
        let feed = Feed::start(surface).await;
        // The search cuts away windows without a row, again and again, before it reaches this one.
        let id = feed.put(3_000);
        feed.local.sim.fault(Fault::poison(TENANT, &id));
        for poll in 0..6 {
            let before = feed.calls();
            feed.poll().await;
            let calls = feed.calls() - before;
            assert!(calls <= most, "{calls} requests in poll {poll} on {surface}");
            assert_eq!(feed.feed().await.quarantined, 0, "poll {poll} on {surface}");
            feed.advance(60);
        }
        feed.poll().await;
        assert_eq!(feed.feed().await.quarantined, 1, "{surface}");
    }
}

#[tokio::test]
async fn an_outage_costs_few_requests_and_sets_nothing_aside() {
    for surface in SURFACES {
        for kind in [FaultKind::status(500), FaultKind::Reset, FaultKind::BadGateway] {
            let feed = Feed::start(surface).await;
            for number in 0..20 {
                feed.put(60 + number * 40);
            }
            feed.local.sim.fault(Fault::new(kind).on(on(surface)));
            feed.poll().await;
            assert!(feed.calls() <= 10, "{} calls on {surface}", feed.calls());
            assert_eq!(feed.feed().await.quarantined, 0);
            feed.local.sim.clear_faults();
            feed.advance(60);
            feed.poll().await;
            feed.assert_complete().await;
        }
    }
}

#[tokio::test]
async fn an_outage_that_begins_after_a_hiccup_sets_nothing_aside() {
    for surface in SURFACES {
        for after in 2..7 {
            let feed = Feed::start(surface).await;
            for number in 0..20 {
                feed.put(60 + number * 40);
            }
            feed.local.sim.fault(Fault::new(FaultKind::status(500)).on(on(surface)).times(2));
            feed.local.sim.fault(Fault::new(FaultKind::status(503)).on(on(surface)).after(after));
            for _ in 0..3 {
                let before = feed.calls();
                feed.poll().await;
                feed.advance(60);
                let calls = feed.calls() - before;
                assert!(calls <= 10 + after as usize, "{calls} calls on {surface}, after {after}");
            }
            assert_eq!(feed.feed().await.quarantined, 0, "{surface}, after {after}");
            feed.local.sim.clear_faults();
            feed.advance(900);
            feed.poll().await;
            feed.assert_complete().await;
        }
    }
}

#[tokio::test]
async fn a_poison_row_in_a_crowded_second_keeps_none_of_the_others_back() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let ids: Vec<String> = (0..45).map(|_| feed.put(300)).collect();
        feed.local.sim.fault(Fault::poison(TENANT, &ids[40]));
        for _ in 0..12 {
            feed.poll().await;
            feed.advance(60);
        }
        assert_eq!(feed.keys().await.len(), 44, "{surface}: {:?}", feed.feed().await);
        assert_eq!(feed.feed().await.quarantined, 1);
        feed.local.sim.clear_faults();
        feed.advance(7 * 3600);
        feed.poll().await;
        feed.assert_complete().await;
        assert_eq!(feed.feed().await.quarantined, 0, "{surface}");
    }
}

#[tokio::test]
async fn a_row_that_is_no_record_is_set_aside_until_it_is_one() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        // More than one answer holds lie in the window in which it is met first.
        for number in 0..180 {
            feed.put(7_200 + number * 300);
        }
        let member = match surface {
            IncidentApi::Graph => "lastUpdateDateTime",
            IncidentApi::Defender => "lastUpdateTime",
        };
        let nonsense = serde_json::Map::from_iter([(member.to_owned(), "yesterday".into())]);
        let last_update = feed.clock.now() - SignedDuration::from_secs(20_010);
        let id = feed.put_seed(sim::IncidentSeed {
            last_update: Some(last_update),
            created: Some(last_update),
            extra: nonsense,
            ..sim::IncidentSeed::default()
        });
        for _ in 0..10 {
            feed.poll().await;
            feed.advance(60);
        }
        assert_eq!(feed.keys().await.len(), 180, "{surface}: {:?}", feed.feed().await);
        assert_eq!(feed.feed().await.quarantined, 1, "{surface}");
        feed.local.sim.change_incident_silently(TENANT, &id, |incident| incident.extra.clear());
        for _ in 0..3 {
            feed.advance(3_600);
            feed.poll().await;
        }
        feed.assert_complete().await;
        assert_eq!(feed.feed().await.quarantined, 0, "{surface}");
    }
}

#[tokio::test]
async fn an_outage_of_data_alone_is_an_outage_too() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        for number in 0..20 {
            let id = feed.put(60 + number * 40);
            feed.local.sim.fault(Fault::poison(TENANT, &id));
        }
        for poll in 0..12 {
            let before = feed.calls();
            feed.poll().await;
            let calls = feed.calls() - before;
            assert!(calls <= 10, "{calls} calls in poll {poll} on {surface}");
            assert_eq!(feed.feed().await.quarantined, 0, "poll {poll} on {surface}");
            feed.advance(60);
        }
        feed.local.sim.clear_faults();
        feed.poll().await;
        feed.assert_complete().await;
    }
}

#[tokio::test]
async fn f6_after_a_429_nobody_asks_before_the_time_named() {
    let named = [
        (RetryAfter::Seconds(90), 90),
        (RetryAfter::Date(90), 90),
        (RetryAfter::Body(90), 90),
        (RetryAfter::Absent, 60),
    ];
    for surface in SURFACES {
        for (retry_after, seconds) in named {
            let feed = Feed::start(surface).await;
            feed.put(60);
            let mut fault = Fault::new(FaultKind::Throttle { retry_after }).on(on(surface));
            fault.times = Some(1);
            feed.local.sim.fault(fault);
            feed.poll().await;
            let calls = feed.calls();
            feed.advance(seconds - 2);
            feed.poll().await;
            let (status, problem) = feed.call("GET", &format!("/tenants/{TENANT}/incidents"), "", None).await;
            assert_eq!((status, problem["code"].as_str()), (503, Some("throttled")));
            assert_eq!(
                feed.another()
                    .handle(
                        crate::local::request("GET", &format!("/tenants/{TENANT}/incidents"), "", None),
                        super::feed::invocation(std::time::Duration::from_secs(10)),
                    )
                    .await
                    .unwrap()["statusCode"],
                503
            );
            assert_eq!(feed.calls(), calls, "{surface}: nobody asked");
            assert_eq!(feed.tenant().await.status, Status::Active);
            feed.advance(4);
            feed.poll().await;
            feed.assert_complete().await;
        }
    }
}

#[tokio::test]
async fn a_429_in_the_middle_of_a_search_ends_it() {
    let feed = Feed::start(IncidentApi::Graph).await;
    for number in 0..5 {
        feed.put(60 + number * 40);
    }
    let wait = RetryAfter::Seconds(120);
    feed.local.sim.fault(Fault::new(FaultKind::status(500)).on(sim::Host::Graph).with_expand());
    feed.local
        .sim
        .fault(Fault::new(FaultKind::Throttle { retry_after: wait }).on(sim::Host::Graph).without_expand().after(1));
    feed.poll().await;
    let calls = feed.local.sim.calls();
    let asked: Vec<u16> = calls.iter().filter(|call| call.path.contains("incidents")).map(|call| call.status).collect();
    assert_eq!(asked, [500, 500, 200, 429], "nothing after the 429");
}

#[tokio::test]
async fn f6_a_pause_outlasts_the_tenant_s_offboarding() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let wait = RetryAfter::Seconds(3_600);
        feed.local.sim.fault(Fault::new(FaultKind::Throttle { retry_after: wait }).on(on(surface)).times(1));
        feed.poll().await;
        feed.registry.purge_tenant(&tenant()).await.unwrap();
        feed.advance(60);
        let taken = feed.registry.take_call(&tenant(), surface, feed.clock.now()).await;
        assert!(matches!(taken, Err(shared::error::Error::Throttled { .. })), "{surface}: {taken:?}");
        feed.registry.open_feed(&tenant(), feed.clock.now()).await.unwrap();
        feed.poll().await;
        assert_eq!(feed.calls(), 1, "{surface}");
        feed.advance(3_600);
        feed.poll().await;
        assert!(feed.calls() > 1, "{surface}");
        // A 429 that comes while there is no feed holds, too.
        feed.registry.purge_tenant(&tenant()).await.unwrap();
        let until = feed.clock.now() + SignedDuration::from_secs(600);
        feed.registry.set_throttled_until(&tenant(), surface, until).await.unwrap();
        assert!(feed.registry.take_call(&tenant(), surface, feed.clock.now()).await.is_err());
        feed.advance(601);
        feed.registry.take_call(&tenant(), surface, feed.clock.now()).await.unwrap();
    }
}

#[tokio::test]
async fn a_tenant_paused_before_it_was_ever_active_is_examined_on_both_surfaces() {
    let feed = Feed::start(IncidentApi::Graph).await;
    feed.local.sim.revoke_roles(TENANT, crate::local::CLIENT_ID, &[IncidentApi::Graph.write_role()]);
    let never_active = |tenant: &mut shared::registry::tenants::Tenant| {
        (tenant.status, tenant.reason) = (Status::Paused, Some(Reason::RoleMissing));
        (tenant.activated_at, tenant.roles) = (None, Vec::new());
        Ok(())
    };
    feed.registry.change_tenant(&tenant(), never_active).await.unwrap();
    feed.poll().await;
    assert_eq!((feed.tenant().await.status, feed.feed().await.started_at), (Status::Paused, None));
    feed.advance(2 * 24 * 3_600);
    let recent = feed.put(60);
    let role = IncidentApi::Defender.read_role();
    feed.local.sim.grant(TENANT, crate::local::CLIENT_ID, &[role]);
    feed.poll().await;
    let tenant = feed.tenant().await;
    assert_eq!(
        (tenant.status, tenant.api, tenant.roles),
        (Status::Active, IncidentApi::Defender, vec![role.to_owned()])
    );
    assert_eq!(tenant.activated_at, Some(feed.clock.now()));
    assert_eq!(feed.feed().await.started_at, Some(feed.clock.now() - SignedDuration::from_hours(24)));
    assert!(feed.delivered().await.iter().any(|line| line.told().0 == recent));
}

#[tokio::test]
async fn f12_withdrawn_consent_pauses_and_its_return_fills_the_gap() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        feed.put(60);
        feed.poll().await;
        feed.local.sim.revoke(TENANT, crate::local::CLIENT_ID);
        feed.advance(30);
        feed.poll().await;
        let paused = feed.tenant().await;
        assert_eq!((paused.status, paused.reason), (Status::Paused, Some(Reason::ConsentMissing)), "{surface}");
        feed.advance(7200);
        let missed = feed.put(3600);
        grant(&feed);
        feed.poll().await;
        assert_eq!(feed.tenant().await.status, Status::Active);
        assert!(feed.delivered().await.iter().any(|line| line.told().0 == missed));
        feed.assert_complete().await;
        let told: Vec<_> =
            feed.local.events().into_iter().filter(|(kind, _)| kind == "Tenant Status Changed").collect();
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].1["to"], "paused");
        assert_eq!(told[1].1["to"], "active");
    }
}

#[tokio::test]
async fn only_a_tenant_that_is_active_is_said_to_lag_and_only_the_pause_is_counted() {
    let feed = Feed::start(IncidentApi::Graph).await;
    let poll = async || {
        let told = lines_of(&feed.local.request_id).len();
        let body = json!({"tenant_id": TENANT, "kind": "poll"}).to_string();
        let event = json!({"Records": [{"messageId": "m", "body": body, "eventSource": "aws:sqs"}]});
        let deadline = Deadline::within(Duration::from_secs(30), &Clock::system());
        let invocation = Invocation { request_id: feed.local.request_id.clone(), deadline };
        feed.app.handle(event, invocation).await.unwrap();
        let lines = lines_of(&feed.local.request_id).split_off(told);
        let metric = |name: &str| lines.iter().find_map(|line| line[name].as_f64());
        (metric("LagSeconds"), metric("TenantPaused"))
    };
    assert_eq!(poll().await.1, None);
    feed.local.sim.revoke(TENANT, crate::local::CLIENT_ID);
    feed.advance(7200);
    assert_eq!(poll().await, (None, Some(1.0)), "paused");
    feed.advance(7200);
    assert_eq!(poll().await, (None, None), "paused still");
    grant(&feed);
    let (lag, paused) = poll().await;
    assert!(lag.is_some_and(|lag| lag < 60.0) && paused.is_none(), "{lag:?}");
    feed.local.sim.fault(Fault::new(FaultKind::status(500)).on(on(feed.surface)));
    feed.advance(7200);
    let (lag, paused) = poll().await;
    assert!(lag.is_some_and(|lag| lag >= 7200.0) && paused.is_none(), "active, and not read: {lag:?}");
}

#[tokio::test]
async fn roles_that_were_taken_away_pause_with_their_own_reason() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        feed.poll().await;
        feed.local.sim.revoke_roles(TENANT, crate::local::CLIENT_ID, &[surface.write_role()]);
        feed.advance(30);
        feed.poll().await;
        assert_eq!(feed.tenant().await.reason, Some(Reason::RoleMissing), "{surface}");
    }
}

#[tokio::test]
async fn f5_next_links_are_never_followed_and_silent_caps_are_found_by_the_sweep() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        for number in 0..30 {
            feed.put(1200 + number * 60);
        }
        let foreign = FaultKind::ForeignNextLink { url: "https://attacker.example/v1.0/security/incidents".into() };
        let mut fault = Fault::new(foreign).on(on(surface));
        fault.times = Some(2);
        feed.local.sim.fault(fault);
        feed.poll().await;
        feed.poll().await;
        feed.assert_complete().await;

        let feed = Feed::start(surface).await;
        for number in 0..30 {
            feed.put(1200 + number * 60);
        }
        let mut cap = Fault::new(FaultKind::SilentCap { rows: 10 }).on(on(surface));
        cap.times = Some(1);
        feed.local.sim.fault(cap);
        feed.poll().await;
        feed.advance(3600);
        feed.poll().await;
        feed.message(serde_json::json!({"tenant_id": TENANT, "kind": "sweep"})).await;
        feed.assert_complete().await;
        assert_eq!(feed.feed().await.last_sweep.unwrap().missing, 20, "{surface}");
    }
}

#[tokio::test]
async fn answers_that_are_always_odd_hold_nothing_up() {
    let foreign = FaultKind::ForeignNextLink { url: "https://attacker.example/v1.0/security/incidents".into() };
    let partial = FaultKind::Rewrite { status: 206, headers: vec![("Warning".into(), "199 - \"partial\"".into())] };
    for surface in SURFACES {
        for kind in [&foreign, &FaultKind::LoopingNextLink, &partial] {
            let feed = Feed::start(surface).await;
            for number in 0..30 {
                feed.put(60 + number * 60);
            }
            feed.local.sim.fault(Fault::new(kind.clone()).on(on(surface)));
            for _ in 0..3 {
                feed.poll().await;
                feed.advance(60);
            }
            feed.assert_complete().await;
            let covered = feed.feed().await.covered_until.unwrap();
            assert!(covered > feed.clock.now() - SignedDuration::from_secs(90), "{surface} {kind:?}: {covered}");
            assert_eq!(feed.feed().await.quarantined, 0, "{surface} {kind:?}");
        }
    }
}

#[tokio::test]
async fn a_wrong_date_moves_the_cursor_no_further_than_was_read() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        feed.local.sim.fault(Fault::new(FaultKind::DateSkew { seconds: -3600 }));
        feed.poll().await;
        let covered = feed.feed().await.covered_until.unwrap();
        assert!(covered <= feed.clock.now() - SignedDuration::from_secs(3600));
        let id = feed.put(1800);
        feed.poll().await;
        assert!(feed.delivered().await.iter().any(|line| line.told().0 == id));
    }
}
