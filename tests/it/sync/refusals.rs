//! A refusal by Entra or the incident API ends in a state of its tenant: no failed message, and no other tenant.

use serde_json::{Value, json};
use shared::{microsoft::IncidentApi, registry::tenants::Status, tenant::Reason};
use sim::{Fault, FaultKind, Host, IncidentSeed};

use super::harness::{SyncHarness, TENANT, active};
use crate::cases::Cases;

const OTHER: &str = "22222222-2222-4333-8444-000000000002";

/// A token request of [`TENANT`] is refused from now on.
fn refuse(sync: &SyncHarness, status: u16, body: &Value) {
    let kind = FaultKind::Status { status, body: Some(body.to_string()), headers: vec![] };
    sync.backends.sim.fault(Fault::new(kind).on(Host::Entra).tenant(TENANT));
}

fn token_requests(sync: &SyncHarness) -> usize {
    sync.backends.sim.count(Host::Entra, TENANT)
}

/// Lets minutes go by, with a poll whenever one is due.
async fn minutes(sync: &SyncHarness, count: u32) {
    for _ in 0..count {
        sync.advance(60);
        if sync.feed().await.due_at.is_none_or(|due_at| due_at <= sync.clock.now()) {
            sync.poll().await;
        }
    }
}

#[tokio::test]
async fn unexplained_refusal_pauses_within_hours_and_ends_by_itself() {
    let mut cases = Cases::default();
    for (name, status, body) in [
        ("unknown invalid_grant", 400, json!({"error": "invalid_grant", "error_codes": [5_399_999]})),
        ("unknown invalid_client", 401, json!({"error": "invalid_client", "error_codes": [7_000_999]})),
        ("unknown invalid_request", 400, json!({"error": "invalid_request", "error_codes": [1]})),
        ("unknown invalid_scope", 400, json!({"error": "invalid_scope"})),
        ("nothing to read", 404, Value::Null),
    ] {
        cases.add(format!("{name}, cold process"), unexplained_refusal_pauses(status, body.clone(), false));
        cases.add(format!("{name}, warm process"), unexplained_refusal_pauses(status, body, true));
    }
    cases.run().await;
}

async fn unexplained_refusal_pauses(status: u16, body: Value, warm: bool) {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    if warm {
        // The token serves until it has the default age of CONSENT_CHECK_SECONDS.
        sync.poll().await;
        refuse(&sync, status, &body);
        minutes(&sync, 9).await;
        assert_eq!((token_requests(&sync), sync.feed().await.failures), (1, 0));
        minutes(&sync, 1).await;
        assert_eq!((token_requests(&sync), sync.feed().await.failures), (2, 1));
    } else {
        refuse(&sync, status, &body);
        sync.poll().await;
        assert_eq!((token_requests(&sync), sync.feed().await.failures), (1, 1));
    }
    assert_eq!(sync.tenant().await.status, Status::Active);
    minutes(&sync, 75).await;
    let tenant = sync.tenant().await;
    assert_eq!((tenant.status, tenant.reason), (Status::Paused, Some(Reason::Unavailable)));
    let asked = token_requests(&sync);
    assert!(asked <= 8, "less and less often: {asked}");
    minutes(&sync, 240).await;
    assert!(token_requests(&sync) <= asked + 4, "at most once an hour");
    let incident = sync.put(60);
    sync.backends.sim.clear_faults();
    minutes(&sync, 61).await;
    assert_eq!((sync.tenant().await.status, sync.tenant().await.reason), (Status::Active, None));
    assert!(sync.delivered().iter().any(|line| line.id_and_change().0 == incident));
}

#[tokio::test]
async fn known_number_names_the_reason_whatever_the_word() {
    let mut cases = Cases::default();
    for (code, reason) in [
        (5_000_225, Reason::TenantInactive),
        (500_014, Reason::ResourceAbsent),
        (65_005, Reason::ResourceAbsent),
        (50_001, Reason::ResourceAbsent),
        (53_011, Reason::BlockedByPolicy),
        (530_084, Reason::BlockedByPolicy),
    ] {
        for word in ["invalid_grant", "interaction_required", "invalid_client", "access_denied", "x"] {
            cases.add(format!("{code} with {word}"), async move {
                let sync = SyncHarness::start(IncidentApi::Graph).await;
                refuse(&sync, 400, &json!({"error": word, "error_codes": [code]}));
                sync.poll().await;
                let tenant = sync.tenant().await;
                assert_eq!((tenant.status, tenant.reason), (Status::Paused, Some(reason)));
            });
        }
    }
    cases.run().await;
}

/// Any number that no table has, with any word, in any JSON type.
#[tokio::test]
async fn no_refusal_fails_a_message_or_touches_another_tenant() {
    let sync = SyncHarness::start(IncidentApi::Graph).await;
    sync.backends.customer(OTHER, "fabrikam.example", &[IncidentApi::Graph.write_role()]);
    sync.registry.create_tenant(&active(OTHER.parse().unwrap(), IncidentApi::Graph)).await.unwrap();
    sync.registry.open_feed(&OTHER.parse().unwrap(), sync.clock.now()).await.unwrap();
    let words = [
        json!("invalid_client"),
        json!("invalid_grant"),
        json!("invalid_request"),
        json!("invalid_scope"),
        json!("unauthorized_client"),
        json!("unheard_of"),
        json!(7),
        json!({}),
        Value::Null,
    ];
    let numbers = |number: u64| [json!([number]), json!([number.to_string()]), json!(number), json!({"n": number})];
    let mut bodies = Vec::new();
    for word in &words {
        for codes in [7_000_999, u64::MAX].into_iter().flat_map(numbers).chain([Value::Null]) {
            bodies.push(json!({"error": word, "error_codes": codes}));
        }
    }
    // Numbers of the table that speak of a tenant or of Microsoft, and numbers beside those that speak of the app.
    for code in [700_016, 500_011, 90_002, 90_033, 7_000_214, 7_000_216, 700_026, 70_003] {
        bodies.push(json!({"error": "invalid_client", "error_codes": [code]}));
    }
    bodies.extend([json!([]), json!("refused"), json!({"error_description": {"AADSTS": 1}})]);
    for (status, body) in [400, 401, 403].into_iter().cycle().zip(bodies) {
        refuse(&sync, status, &body);
        sync.advance(600);
        let incident = sync.backends.sim.put_incident(OTHER, IncidentSeed::default());
        // A new process, which has no token.
        let messages = [TENANT, OTHER].map(|tenant| json!({"tenant_id": tenant, "kind": "poll"}).to_string());
        let outcome = super::harness::hand_over(&sync.another(), &messages, std::time::Duration::from_secs(30)).await;
        assert_eq!(outcome, json!({"batchItemFailures": []}), "{body}");
        let other = sync
            .delivered()
            .into_iter()
            .any(|line| line.json["tenant_id"] == OTHER && line.json["incident_id"] == incident.as_str());
        assert!(other, "{body}");
        sync.backends.sim.clear_faults();
    }
}
