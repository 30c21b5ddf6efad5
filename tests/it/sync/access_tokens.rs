//! The access tokens of polls: few requests, and a withdrawn consent is noticed in time.

use serde_json::json;
use shared::{registry::tenants::Status, tenant::Reason};
use sim::{Fault, FaultKind, Host, IncidentSeed};

use super::harness::{APIS, SyncHarness, TENANT, host};
use crate::backends::CLIENT_ID;

fn token_requests(sync: &SyncHarness) -> usize {
    sync.backends.sim.count(Host::Entra, TENANT)
}

#[tokio::test]
async fn twenty_polls_in_a_row_cost_one_token_request() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.put(60);
        for _ in 0..20 {
            sync.poll().await;
            sync.advance(30);
        }
        assert_eq!(token_requests(&sync), 1, "{api}");
        sync.poll().await;
        assert_eq!(token_requests(&sync), 2, "{api}: the token is as old as the default of CONSENT_CHECK_SECONDS");
    }
}

#[tokio::test]
async fn withdrawn_consent_is_noticed_within_the_time_named() {
    for api in APIS {
        for (variables, seconds) in [(&[][..], 600), (&[("CONSENT_CHECK_SECONDS", "120")], 120)] {
            let sync = SyncHarness::start_with(api, variables).await;
            sync.poll().await;
            sync.backends.sim.revoke(TENANT, CLIENT_ID);
            // The API accepts the token that was issued before.
            for elapsed in (60..=seconds).step_by(60) {
                assert_eq!(sync.tenant().await.status, Status::Active, "{api} before {elapsed} s");
                // A tick may be a little early.
                sync.advance(if elapsed == seconds { 56 } else { 60 });
                sync.poll().await;
            }
            let tenant = sync.tenant().await;
            let paused = (Status::Paused, Some(Reason::ConsentMissing));
            assert_eq!((tenant.status, tenant.reason), paused, "{api} after {seconds} s");
            assert_eq!(token_requests(&sync), 2, "{api}");
        }
    }
}

#[tokio::test]
async fn refused_token_is_replaced_at_once() {
    for api in APIS {
        for status in [401, 403] {
            let sync = SyncHarness::start(api).await;
            sync.poll().await;
            let calls = sync.calls();
            sync.backends.sim.fault(Fault::new(FaultKind::status(status)).on(host(api)).times(1));
            sync.advance(60);
            sync.poll().await;
            assert_eq!(sync.tenant().await.status, Status::Active, "{api} {status}");
            assert_eq!((token_requests(&sync), sync.calls() - calls), (2, 2), "{api} {status}");
            sync.advance(60);
            sync.poll().await;
            assert_eq!(token_requests(&sync), 2, "{api} {status}: the fresh token is cached");
        }
    }
}

#[tokio::test]
async fn refusal_of_a_fresh_token_too_becomes_the_tenants_state() {
    type Withdrawal = fn(&SyncHarness);
    let withdrawals: [(Withdrawal, Reason, usize); 4] = [
        (|sync| sync.backends.sim.revoke(TENANT, CLIENT_ID), Reason::ConsentMissing, 1),
        (|sync| sync.backends.sim.disable_service_principal(TENANT, CLIENT_ID), Reason::DisabledByCustomer, 1),
        (|sync| sync.backends.sim.revoke_roles(TENANT, CLIENT_ID, &[sync.api.write_role()]), Reason::RoleMissing, 1),
        // The fresh token has the role, so the request is repeated.
        (|_| {}, Reason::ResourceAbsent, 2),
    ];
    for api in APIS {
        for (withdraw, reason, requests) in withdrawals {
            let sync = SyncHarness::start(api).await;
            sync.poll().await;
            withdraw(&sync);
            let calls = sync.calls();
            sync.backends.sim.fault(Fault::new(FaultKind::status(403)).on(host(api)));
            sync.advance(1);
            sync.poll().await;
            let tenant = sync.tenant().await;
            assert_eq!((tenant.status, tenant.reason), (Status::Paused, Some(reason)), "{api}");
            assert_eq!((token_requests(&sync), sync.calls() - calls), (2, requests), "{api} {reason}");
        }
    }
}

#[tokio::test]
async fn lasting_401_costs_one_fresh_token_a_poll_and_pauses() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.put(60);
        sync.poll().await;
        sync.backends.sim.fault(Fault::new(FaultKind::status(401)).on(host(api)));
        let calls = sync.calls();
        sync.advance(60);
        sync.poll().await;
        assert_eq!((token_requests(&sync), sync.calls() - calls), (2, 2), "{api}: no search for what fails");
        assert_eq!((sync.tenant().await.status, sync.feed().await.failures), (Status::Active, 1), "{api}");
        let mut polls = 1;
        for _ in 0..75 {
            sync.advance(60);
            if sync.feed().await.due_at.is_none_or(|due_at| due_at <= sync.clock.now()) {
                let (tokens, before) = (token_requests(&sync), sync.calls());
                sync.poll().await;
                polls += 1;
                assert_eq!(token_requests(&sync) - tokens, 1, "{api}");
                // A token that the poll had to renew anyway is not replaced once more.
                assert!((1..=2).contains(&(sync.calls() - before)), "{api}");
            }
        }
        let tenant = sync.tenant().await;
        assert_eq!((tenant.status, tenant.reason), (Status::Paused, Some(Reason::Unavailable)), "{api}");
        assert!(polls <= 8, "{api}: less and less often: {polls}");
        sync.backends.sim.clear_faults();
        sync.advance(3_600);
        sync.poll().await;
        assert_eq!(sync.tenant().await.status, Status::Active, "{api}");
    }
}

#[tokio::test]
async fn a_401_for_a_token_just_requested_costs_no_second_one() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.backends.sim.fault(Fault::new(FaultKind::status(401)).on(host(api)));
        sync.poll().await;
        assert_eq!((token_requests(&sync), sync.calls()), (1, 1), "{api}");
        assert_eq!(sync.feed().await.failures, 1, "{api}");
    }
}

#[tokio::test]
async fn incidents_refused_by_401_cost_one_fresh_token_a_poll() {
    for (api, path) in APIS.into_iter().zip(["/v1.0/security/incidents/", "/api/incidents/"]) {
        let sync = SyncHarness::start(api).await;
        for _ in 0..3 {
            sync.put_seed(IncidentSeed { alerts: 0, ..IncidentSeed::default() });
        }
        sync.poll().await;
        // Each is read once more after a quarter of an hour, because it had no alerts.
        sync.advance(800);
        sync.poll().await;
        sync.backends.sim.fault(Fault::new(FaultKind::status(401)).on(host(api)).path(path));
        sync.advance(150);
        let (tokens, calls) = (token_requests(&sync), sync.calls());
        sync.poll().await;
        assert!(sync.calls() - calls > 3, "{api}: several incidents are read: {}", sync.calls() - calls);
        assert_eq!(token_requests(&sync) - tokens, 1, "{api}");
        assert_eq!(sync.tenant().await.status, Status::Active, "{api}");
    }
}

#[tokio::test]
async fn tenant_without_the_service_is_paused_as_resource_absent() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.poll().await;
        sync.backends.sim.update_tenant(TENANT, |tenant| tenant.defender_licensed = false);
        sync.advance(1);
        sync.poll().await;
        assert_eq!(sync.tenant().await.reason, Some(Reason::ResourceAbsent), "{api}");
        sync.backends.sim.update_tenant(TENANT, |tenant| tenant.defender_licensed = true);
        sync.advance(900);
        sync.poll().await;
        assert_eq!(sync.tenant().await.status, Status::Active, "{api}");
    }
}

#[tokio::test]
async fn refused_token_is_dropped_while_entra_is_down() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        sync.poll().await;
        sync.backends.sim.fault(Fault::new(FaultKind::status(401)).on(host(api)).times(1));
        sync.backends.sim.fault(Fault::new(FaultKind::status(500)).on(Host::Entra));
        sync.advance(1);
        sync.poll().await;
        assert_eq!(sync.tenant().await.status, Status::Active, "{api}");
        sync.backends.sim.clear_faults();
        let before = token_requests(&sync);
        sync.advance(60);
        sync.poll().await;
        assert_eq!(token_requests(&sync) - before, 1, "{api}");
    }
}

#[tokio::test]
async fn change_needs_the_writing_role_and_notices_a_new_one() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let id = sync.put(60);
        let (path, body) = (format!("/tenants/{TENANT}/incidents/{id}"), json!({"status": "resolved"}).to_string());
        sync.backends.sim.revoke_roles(TENANT, CLIENT_ID, &[api.write_role()]);
        sync.backends.sim.grant(TENANT, CLIENT_ID, &[api.read_role()]);
        sync.poll().await;
        let (status, problem) = sync.call("PATCH", &path, "", Some(&body)).await;
        let refused = (409, Some("conflict"), Some("role_missing"));
        assert_eq!((status, problem["code"].as_str(), problem["reason"].as_str()), refused, "{api} {problem}");
        assert_eq!(sync.tenant().await.status, Status::Active, "{api}");
        sync.backends.sim.grant(TENANT, CLIENT_ID, &[api.write_role()]);
        let (status, incident) = sync.call("PATCH", &path, "", Some(&body)).await;
        assert_eq!(status, 200, "{api} {incident}");
    }
}
