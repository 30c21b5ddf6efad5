//! Microsoft fails in every way it can; nothing is lost, and nothing gets stuck.
//!
//! Long, because every kind of failure has its table here, and a reader looks for a kind in one place.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::json;
use shared::{
    http::Deadline,
    lambda::event::Invocation,
    microsoft::IncidentApi,
    registry::tenants::{Status, Verification},
    tenant::Reason,
};
use sim::{Fault, FaultKind, IncidentSeed, RetryAfter};

use super::harness::{APIS, SyncHarness, TENANT, grant, host, tenant};
use crate::{backends::lines_of, cases::Cases};

#[tokio::test]
async fn an_error_at_any_request_loses_nothing() {
    let kinds = [
        FaultKind::status(500),
        FaultKind::status(502),
        FaultKind::Reset,
        FaultKind::Cut,
        FaultKind::Truncate { at: None },
        FaultKind::status(401),
        FaultKind::Rewrite { status: 206, headers: vec![("Warning".into(), "199 - \"partial\"".into())] },
    ];
    let mut cases = Cases::default();
    for api in APIS {
        for kind in &kinds {
            for after in [0, 1] {
                let mut fault = Fault::new(kind.clone()).on(host(api));
                (fault.after, fault.times) = (after, Some(1));
                cases.add(format!("{api}, {kind:?} after {after} requests"), async move {
                    let sync = SyncHarness::start(api).await;
                    for number in 0..60 {
                        sync.put(number * 60);
                    }
                    sync.backends.sim.fault(fault);
                    for _ in 0..3 {
                        sync.poll().await;
                        sync.advance(60);
                    }
                    sync.assert_complete();
                });
            }
        }
    }
    cases.run().await;
}

#[tokio::test]
async fn bad_incident_is_quarantined_and_the_others_arrive() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let ids: Vec<String> = (0..20).map(|number| sync.put(60 + number * 40)).collect();
        sync.backends.sim.fault(Fault::poison(TENANT, &ids[7]));
        for _ in 0..3 {
            sync.poll().await;
            sync.advance(60);
        }
        let keys = sync.keys();
        assert_eq!(keys.len(), 19, "{api}: {:?}", sync.feed().await);
        assert_eq!(sync.feed().await.quarantined, 1);
        let quarantined = sync.backends.objects(&format!("quarantine/tenant_id={TENANT}/"));
        assert_eq!(quarantined.len(), 1);

        let later = sync.put(5);
        sync.poll().await;
        assert!(sync.delivered().iter().any(|line| line.id_and_change().0 == later), "the feed goes on past it");

        sync.backends.sim.clear_faults();
        for _ in 0..20 {
            sync.advance(60);
            sync.poll().await;
        }
        sync.assert_complete();
        assert_eq!(sync.feed().await.quarantined, 0, "{api}");
    }
}

#[tokio::test]
async fn unreadable_alerts_do_not_keep_their_incident_back() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    let ids: Vec<String> = (0..5).map(|number| sync.put(60 + number * 40)).collect();
    sync.backends.sim.fault(Fault::poison(TENANT, &ids[2]).with_expand());
    sync.poll().await;
    sync.advance(60);
    sync.poll().await;
    assert_eq!(sync.keys().len(), 5);
    assert_eq!(sync.feed().await.quarantined, 1);
    sync.backends.sim.clear_faults();
    sync.advance(400);
    sync.poll().await;
    let lines = sync.delivered();
    assert_eq!(lines.len(), 6, "with its alerts it is another version");
    assert_eq!(sync.feed().await.quarantined, 0);
}

#[tokio::test]
async fn lone_bad_incident_does_not_hold_the_feed_up() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let id = sync.put(600);
        sync.backends.sim.fault(Fault::poison(TENANT, &id));
        for _ in 0..12 {
            sync.poll().await;
            sync.advance(60);
        }
        assert_eq!(sync.feed().await.quarantined, 1, "{api}: {:?}", sync.feed().await);
        let later = sync.put(5);
        sync.poll().await;
        assert_eq!(
            sync.delivered().iter().map(super::harness::Line::id_and_change).collect::<Vec<_>>(),
            [(later, "created".into())]
        );
        assert!(sync.feed().await.covered_until.unwrap() > sync.clock.now() - SignedDuration::from_secs(30));
    }
}

#[tokio::test]
async fn search_that_reads_nothing_gives_up_after_few_requests() {
    // Graph is also asked for a list without alerts.
    for (api, most) in [(IncidentApi::Graph, 9), (IncidentApi::Defender, 8)] {
        let sync = SyncHarness::start(api).await;
        // The search cuts away windows without a row, again and again, before it reaches this one.
        let id = sync.put(3_000);
        sync.backends.sim.fault(Fault::poison(TENANT, &id));
        for poll in 0..7 {
            let before = sync.calls();
            sync.poll().await;
            let calls = sync.calls() - before;
            assert!(calls <= most, "{calls} requests in poll {poll} on {api}");
            assert_eq!(sync.feed().await.quarantined, 0, "poll {poll} on {api}");
            sync.advance(60);
        }
        sync.poll().await;
        assert_eq!(sync.feed().await.quarantined, 1, "{api}");
    }
}

#[tokio::test]
async fn outage_costs_few_requests_and_quarantines_nothing() {
    let mut cases = Cases::default();
    for api in APIS {
        for kind in [FaultKind::status(500), FaultKind::Reset, FaultKind::BadGateway] {
            cases.add(format!("{api}, {kind:?}"), async move {
                let sync = SyncHarness::start(api).await;
                for number in 0..20 {
                    sync.put(60 + number * 40);
                }
                sync.backends.sim.fault(Fault::new(kind).on(host(api)));
                sync.poll().await;
                assert!(sync.calls() <= 10, "{} calls", sync.calls());
                assert_eq!(sync.feed().await.quarantined, 0);
                sync.backends.sim.clear_faults();
                sync.advance(60);
                sync.poll().await;
                sync.assert_complete();
            });
        }
    }
    cases.run().await;
}

#[tokio::test]
async fn outage_after_a_transient_error_quarantines_nothing() {
    let mut cases = Cases::default();
    for api in APIS {
        for after in 2..7 {
            cases.add(format!("{api}, after {after} requests"), async move {
                let sync = SyncHarness::start(api).await;
                for number in 0..20 {
                    sync.put(60 + number * 40);
                }
                sync.backends.sim.fault(Fault::new(FaultKind::status(500)).on(host(api)).times(2));
                sync.backends.sim.fault(Fault::new(FaultKind::status(503)).on(host(api)).after(after));
                for _ in 0..3 {
                    let before = sync.calls();
                    sync.poll().await;
                    sync.advance(60);
                    let calls = sync.calls() - before;
                    assert!(calls <= 10 + after as usize, "{calls} calls");
                }
                assert_eq!(sync.feed().await.quarantined, 0);
                sync.backends.sim.clear_faults();
                sync.advance(900);
                sync.poll().await;
                sync.assert_complete();
            });
        }
    }
    cases.run().await;
}

#[tokio::test]
async fn bad_row_in_a_crowded_second_keeps_no_other_back() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let ids: Vec<String> = (0..45).map(|_| sync.put(300)).collect();
        sync.backends.sim.fault(Fault::poison(TENANT, &ids[40]));
        for _ in 0..12 {
            sync.poll().await;
            sync.advance(60);
        }
        assert_eq!(sync.keys().len(), 44, "{api}: {:?}", sync.feed().await);
        assert_eq!(sync.feed().await.quarantined, 1);
        sync.backends.sim.clear_faults();
        sync.advance(7 * 3600);
        sync.poll().await;
        sync.assert_complete();
        assert_eq!(sync.feed().await.quarantined, 0, "{api}");
    }
}

#[tokio::test]
async fn rows_that_change_places_are_not_lost_beside_a_bad_one() {
    for api in APIS {
        for bad in [0, 25, 50] {
            let sync = SyncHarness::start(api).await;
            sync.backends.sim.configure(|behaviour| {
                (behaviour.graph.shuffle_ties, behaviour.defender.shuffle_ties) = (true, true);
            });
            let updated = sync.clock.now() - SignedDuration::from_secs(1_000);
            let seed = |number: u32| IncidentSeed {
                last_update: Some(updated),
                created: Some(updated - SignedDuration::from_secs(number.into())),
                ..IncidentSeed::default()
            };
            let ids: Vec<String> = (0..=api.largest_page()).map(|number| sync.put_seed(seed(number))).collect();
            sync.backends.sim.fault(Fault::poison(TENANT, &ids[bad]));
            for _ in 0..8 {
                sync.poll().await;
                sync.advance(60);
            }
            sync.backends.sim.clear_faults();
            for _ in 0..2 {
                sync.advance(7 * 3600);
                sync.poll().await;
            }
            sync.assert_complete();
            assert_eq!(sync.feed().await.quarantined, 0, "{api} {bad}");
        }
    }
}

#[tokio::test]
async fn foreign_row_is_quarantined_until_it_is_repaired() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        // The first window with it has more incidents than one response holds.
        for number in 0..180 {
            sync.put(7_200 + number * 300);
        }
        let foreign =
            serde_json::Map::from_iter([("tenantId".to_owned(), "22222222-2222-4333-8444-000000000009".into())]);
        let last_update = sync.clock.now() - SignedDuration::from_secs(20_010);
        let id = sync.put_seed(sim::IncidentSeed {
            last_update: Some(last_update),
            created: Some(last_update),
            extra: foreign,
            ..sim::IncidentSeed::default()
        });
        for _ in 0..10 {
            sync.poll().await;
            sync.advance(60);
        }
        assert_eq!(sync.keys().len(), 180, "{api}: {:?}", sync.feed().await);
        assert_eq!(sync.feed().await.quarantined, 1, "{api}");
        sync.backends.sim.change_incident_silently(TENANT, &id, |incident| incident.extra.clear());
        for _ in 0..3 {
            sync.advance(3_600);
            sync.poll().await;
        }
        sync.assert_complete();
        assert_eq!(sync.feed().await.quarantined, 0, "{api}");
    }
}

#[tokio::test]
async fn outage_of_all_records_quarantines_nothing() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        for number in 0..20 {
            let id = sync.put(60 + number * 40);
            sync.backends.sim.fault(Fault::poison(TENANT, &id));
        }
        for poll in 0..12 {
            let before = sync.calls();
            sync.poll().await;
            let calls = sync.calls() - before;
            assert!(calls <= 10, "{calls} calls in poll {poll} on {api}");
            assert_eq!(sync.feed().await.quarantined, 0, "poll {poll} on {api}");
            sync.advance(60);
        }
        sync.backends.sim.clear_faults();
        sync.poll().await;
        sync.assert_complete();
    }
}

#[tokio::test]
async fn no_request_is_sent_before_retry_after() {
    let named = [
        (RetryAfter::Seconds(90), 90),
        (RetryAfter::Date(90), 90),
        (RetryAfter::Body(90), 90),
        (RetryAfter::Absent, 60),
        (RetryAfter::Quota { calls: 45, seconds: 60 }, 60),
    ];
    let mut cases = Cases::default();
    for api in APIS {
        for (retry_after, seconds) in named {
            cases.add(format!("{api}, {retry_after:?}"), async move {
                let sync = SyncHarness::start(api).await;
                sync.put(60);
                let mut fault = Fault::new(FaultKind::Throttle { retry_after }).on(host(api));
                fault.times = Some(1);
                sync.backends.sim.fault(fault);
                sync.poll().await;
                let calls = sync.calls();
                sync.advance(seconds - 2);
                sync.poll().await;
                let (status, problem) = sync.call("GET", &format!("/tenants/{TENANT}/incidents"), "", None).await;
                assert_eq!((status, problem["code"].as_str()), (503, Some("throttled")));
                assert_eq!(
                    sync.another()
                        .handle(
                            crate::backends::request("GET", &format!("/tenants/{TENANT}/incidents"), "", None),
                            super::harness::invocation(std::time::Duration::from_secs(10)),
                        )
                        .await
                        .unwrap()["statusCode"],
                    503
                );
                assert_eq!(sync.calls(), calls, "{api}: nobody asked");
                assert_eq!(sync.tenant().await.status, Status::Active);
                sync.advance(4);
                sync.poll().await;
                sync.assert_complete();
            });
        }
    }
    cases.run().await;
}

#[tokio::test]
async fn throttling_ends_a_failure_search() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    for number in 0..5 {
        sync.put(60 + number * 40);
    }
    let wait = RetryAfter::Seconds(120);
    sync.backends.sim.fault(Fault::new(FaultKind::status(500)).on(sim::Host::Graph).with_expand());
    sync.backends
        .sim
        .fault(Fault::new(FaultKind::Throttle { retry_after: wait }).on(sim::Host::Graph).without_expand().after(1));
    sync.poll().await;
    let calls = sync.backends.sim.calls();
    let asked: Vec<u16> = calls.iter().filter(|call| call.path.contains("incidents")).map(|call| call.status).collect();
    assert_eq!(asked, [500, 500, 200, 429], "nothing after the 429");
}

#[tokio::test]
async fn throttling_outlasts_the_tenants_offboarding() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let wait = RetryAfter::Seconds(3_600);
        sync.backends.sim.fault(Fault::new(FaultKind::Throttle { retry_after: wait }).on(host(api)).times(1));
        sync.poll().await;
        sync.registry.purge_tenant(&tenant()).await.unwrap();
        sync.advance(60);
        let taken = sync.registry.take_call(&tenant(), api, sync.clock.now()).await;
        assert!(matches!(taken, Err(shared::error::Error::Throttled { .. })), "{api}: {taken:?}");
        sync.registry.open_feed(&tenant(), sync.clock.now()).await.unwrap();
        sync.poll().await;
        assert_eq!(sync.calls(), 1, "{api}");
        sync.advance(3_600);
        sync.poll().await;
        assert!(sync.calls() > 1, "{api}");
        // A 429 that comes while there is no feed holds, too.
        sync.registry.purge_tenant(&tenant()).await.unwrap();
        let until = sync.clock.now() + SignedDuration::from_secs(600);
        sync.registry.set_throttled_until(&tenant(), api, until).await.unwrap();
        assert!(sync.registry.take_call(&tenant(), api, sync.clock.now()).await.is_err());
        sync.advance(601);
        sync.registry.take_call(&tenant(), api, sync.clock.now()).await.unwrap();
    }
}

#[tokio::test]
async fn never_active_tenant_is_verified_on_both_incident_apis() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    sync.backends.sim.revoke_roles(TENANT, crate::backends::CLIENT_ID, &[IncidentApi::Graph.write_role()]);
    let never_active = |tenant: &mut shared::registry::tenants::Tenant| {
        (tenant.status, tenant.reason) = (Status::Paused, Some(Reason::RoleMissing));
        (tenant.activated_at, tenant.roles) = (None, Vec::new());
        Ok(())
    };
    sync.registry.change_tenant(&tenant(), sync.clock.now(), never_active).await.unwrap();
    sync.poll().await;
    assert_eq!((sync.tenant().await.status, sync.feed().await.started_at), (Status::Paused, None));
    sync.advance(2 * 24 * 3_600);
    let recent = sync.put(60);
    let role = IncidentApi::Defender.read_role();
    sync.backends.sim.grant(TENANT, crate::backends::CLIENT_ID, &[role]);
    sync.poll().await;
    let tenant = sync.tenant().await;
    assert_eq!(
        (tenant.status, tenant.api, tenant.roles),
        (Status::Active, IncidentApi::Defender, vec![role.to_owned()])
    );
    assert_eq!(tenant.activated_at, Some(sync.clock.now()));
    assert_eq!(sync.feed().await.started_at, Some(sync.clock.now() - SignedDuration::from_hours(24)));
    assert!(sync.delivered().iter().any(|line| line.id_and_change().0 == recent));
}

#[tokio::test]
async fn withdrawn_consent_pauses_and_new_consent_fills_the_gap() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.put(60);
        sync.poll().await;
        sync.backends.sim.revoke(TENANT, crate::backends::CLIENT_ID);
        sync.advance(600);
        sync.poll().await;
        let paused = sync.tenant().await;
        assert_eq!((paused.status, paused.reason), (Status::Paused, Some(Reason::ConsentMissing)), "{api}");
        sync.advance(7200);
        let missed = sync.put(3600);
        grant(&sync);
        sync.poll().await;
        assert_eq!(sync.tenant().await.status, Status::Active);
        assert!(sync.delivered().iter().any(|line| line.id_and_change().0 == missed));
        sync.assert_complete();
        let events: Vec<_> =
            sync.backends.events().into_iter().filter(|(kind, _)| kind == "Tenant Status Changed").collect();
        assert_eq!(events.len(), 2);
        assert_eq!(events[0].1["to"], "paused");
        assert_eq!(events[1].1["to"], "active");
    }
}

#[tokio::test]
async fn only_active_tenants_report_lag_and_a_pause_counts_once() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    let poll = async || {
        let lines_before = lines_of(&sync.backends.request_id).len();
        let body = json!({"tenant_id": TENANT, "kind": "poll"}).to_string();
        let event = json!({"Records": [{"messageId": "m", "body": body, "eventSource": "aws:sqs"}]});
        let deadline = Deadline::within(Duration::from_secs(30), &shared::clock::Clock::system());
        let invocation = Invocation { request_id: sync.backends.request_id.clone(), deadline };
        sync.app.handle(event, invocation).await.unwrap();
        let lines = lines_of(&sync.backends.request_id).split_off(lines_before);
        let metric = |name: &str| lines.iter().find_map(|line| line[name].as_f64());
        (metric("LagSeconds"), metric("TenantPaused"), metric("Polled"))
    };
    let (_, paused, polled) = poll().await;
    assert_eq!((paused, polled), (None, Some(1.0)));
    sync.backends.sim.revoke(TENANT, crate::backends::CLIENT_ID);
    sync.advance(7200);
    assert_eq!(poll().await, (None, Some(1.0), Some(0.0)), "paused");
    sync.advance(7200);
    assert_eq!(poll().await, (None, None, Some(1.0)), "paused still, as Microsoft says");
    grant(&sync);
    let (lag, paused, _) = poll().await;
    assert!(lag.is_some_and(|lag| lag < 60.0) && paused.is_none(), "{lag:?}");
    sync.backends.sim.fault(Fault::new(FaultKind::status(500)).on(host(sync.api)));
    sync.advance(7200);
    let (lag, paused, polled) = poll().await;
    assert!(lag.is_some_and(|lag| lag >= 7200.0) && paused.is_none(), "active, and not read: {lag:?}");
    assert_eq!(polled, Some(0.0));
}

#[tokio::test]
async fn poll_after_a_further_consent_reads_the_new_roles() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let now = sync.clock.now();
        let consent = |tenant: &mut shared::registry::tenants::Tenant| {
            tenant.verification = Some(Verification::new(now));
            Ok(())
        };
        sync.registry.change_tenant(&tenant(), sync.clock.now(), consent).await.unwrap();
        sync.backends.sim.grant(TENANT, crate::backends::CLIENT_ID, &[api.write_role(), api.hunting_role()]);
        sync.poll().await;
        let found = sync.tenant().await;
        assert!(found.roles.contains(&api.hunting_role().to_owned()), "{:?}", found.roles);
        assert_eq!((found.status, found.verification), (Status::Active, None));
    }
}

#[tokio::test]
async fn withdrawn_roles_pause_a_tenant_as_role_missing() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.poll().await;
        sync.backends.sim.revoke_roles(TENANT, crate::backends::CLIENT_ID, &[api.write_role()]);
        sync.advance(600);
        sync.poll().await;
        assert_eq!(sync.tenant().await.reason, Some(Reason::RoleMissing), "{api}");
    }
}

#[tokio::test]
async fn next_links_are_not_followed_and_sweeps_find_silent_caps() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        for number in 0..30 {
            sync.put(1200 + number * 60);
        }
        let foreign = FaultKind::ForeignNextLink { url: "https://attacker.example/v1.0/security/incidents".into() };
        let mut fault = Fault::new(foreign).on(host(api));
        fault.times = Some(2);
        sync.backends.sim.fault(fault);
        sync.poll().await;
        sync.poll().await;
        sync.assert_complete();

        let sync = SyncHarness::start(api).await;
        for number in 0..30 {
            sync.put(1200 + number * 60);
        }
        let mut cap = Fault::new(FaultKind::SilentCap { rows: 10 }).on(host(api));
        cap.times = Some(1);
        sync.backends.sim.fault(cap.clone());
        sync.poll().await;
        // The API was not seen to give ten rows before.
        sync.assert_complete();

        let sync = SyncHarness::start(api).await;
        for number in 0..30 {
            sync.put(1200 + number * 60);
        }
        sync.poll().await;
        sync.advance(7200);
        for number in 0..30 {
            sync.put(1200 + number * 60);
        }
        sync.backends.sim.fault(cap);
        sync.poll().await;
        sync.advance(3600);
        sync.poll().await;
        sync.message(serde_json::json!({"tenant_id": TENANT, "kind": "sweep"})).await;
        sync.assert_complete();
        assert_eq!(sync.feed().await.last_sweep.unwrap().missing, 20, "{api}");
    }
}

/// Status 206. `Stale` leaves out the incidents that did not change since they were made.
#[tokio::test]
async fn what_partial_responses_leave_out_arrives_once_they_are_whole() {
    let partial = FaultKind::Rewrite { status: 206, headers: vec![("Warning".into(), "199 - \"partial\"".into())] };
    let mut cases = Cases::default();
    for api in APIS {
        let faults = [partial.clone(), FaultKind::Stale { versions: 1 }].map(|kind| Fault::new(kind).on(host(api)));
        cases.add(api.to_string(), async move {
            let sync = SyncHarness::start(api).await;
            sync.put(3_000);
            sync.poll().await;
            for fault in faults {
                sync.backends.sim.fault(fault);
            }
            sync.advance(60);
            sync.put(30);
            sync.poll().await;
            assert_eq!((sync.delivered().len(), sync.feed().await.quarantined), (1, 1));
            let covered = sync.feed().await.covered_until.unwrap();
            assert!(covered > sync.clock.now() - SignedDuration::from_secs(90), "covered until {covered}");
            // Longer than a sweep looks back.
            for _ in 0..4 * 24 {
                sync.advance(3_600);
                sync.poll().await;
            }
            assert_eq!((sync.delivered().len(), sync.feed().await.quarantined), (1, 1));
            sync.backends.sim.clear_faults();
            for _ in 0..25 {
                sync.advance(3_600);
                sync.poll().await;
            }
            sync.assert_complete();
            assert_eq!(sync.feed().await.quarantined, 0);
        });
    }
    cases.run().await;
}

#[tokio::test]
async fn lasting_oddities_of_responses_hold_nothing_up() {
    let foreign = FaultKind::ForeignNextLink { url: "https://attacker.example/v1.0/security/incidents".into() };
    let partial = FaultKind::Rewrite { status: 206, headers: vec![("Warning".into(), "199 - \"partial\"".into())] };
    let mut cases = Cases::default();
    for api in APIS {
        for kind in [&foreign, &FaultKind::LoopingNextLink, &FaultKind::EmptyPage, &partial] {
            let fault = Fault::new(kind.clone()).on(host(api));
            // A response that says it leaves something out is asked for again.
            let quarantined = u64::from(*kind == partial);
            cases.add(format!("{api}, {kind:?}"), async move {
                let sync = SyncHarness::start(api).await;
                for number in 0..30 {
                    sync.put(60 + number * 60);
                }
                sync.backends.sim.fault(fault);
                for _ in 0..3 {
                    sync.poll().await;
                    sync.advance(60);
                }
                sync.assert_complete();
                let covered = sync.feed().await.covered_until.unwrap();
                assert!(covered > sync.clock.now() - SignedDuration::from_secs(90), "covered until {covered}");
                assert_eq!(sync.feed().await.quarantined, quarantined);
            });
        }
    }
    cases.run().await;
}

#[tokio::test]
async fn wrong_date_header_does_not_move_the_cursor_too_far() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.backends.sim.fault(Fault::new(FaultKind::DateSkew { seconds: -3600 }));
        sync.poll().await;
        let covered = sync.feed().await.covered_until.unwrap();
        assert!(covered <= sync.clock.now() - SignedDuration::from_secs(3600));
        let id = sync.put(1800);
        sync.poll().await;
        assert!(sync.delivered().iter().any(|line| line.id_and_change().0 == id));
    }
}
