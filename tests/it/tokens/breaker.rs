//! Evidence about the credential: one tenant's refusal is its own, and what opens the breaker.

use serde_json::{Value, json};
use shared::{entra::token_cache::Tokens, error::Error, lambda::event::Invocation, microsoft::IncidentApi};

use super::harness::{A, B, TokenHarness, ask, error, numbered, refusal, response, soon, tenant};
use crate::{
    backends::{CLIENT_ID, CLIENT_SECRET, lines_of, unique_request_id},
    cases::Cases,
};

pub(super) const HOME: &str = "33333333-2222-4333-8444-abcdefabcdef";

/// A number that no table has.
pub(super) const UNKNOWN: u64 = 7_000_999;

impl TokenHarness {
    /// A new process that judges the credential at the home tenant.
    pub(super) fn process_with_home(&self) -> Tokens {
        self.process_with(|microsoft| microsoft.home_tenant = Some(tenant(HOME)))
    }
}

#[tokio::test]
async fn refusal_of_one_tenant_in_any_form_stops_no_other() {
    let forms: [(&str, u16, Value); 12] = [
        ("unknown number", 401, json!({"error": "invalid_client", "error_codes": [UNKNOWN]})),
        ("no number", 401, json!({"error": "invalid_client"})),
        ("number as text", 401, json!({"error": "invalid_client", "error_codes": [UNKNOWN.to_string()]})),
        ("number alone", 401, json!({"error": "invalid_client", "error_codes": UNKNOWN})),
        ("odd numbers", 401, json!({"error": "invalid_client", "error_codes": [null, {}, "x"]})),
        ("odd word", 401, json!({"error": {"code": "invalid_client"}, "error_codes": [UNKNOWN]})),
        ("refused request", 400, json!({"error": "invalid_request", "error_codes": [UNKNOWN]})),
        ("malformed request", 400, json!({"error": "invalid_request", "error_codes": [9_002_313]})),
        ("refused scope", 400, json!({"error": "invalid_scope", "error_codes": [70_011]})),
        ("refused grant of old", 400, json!({"error": "invalid_grant", "error_codes": [70_002, 54_005]})),
        ("refused grant", 400, json!({"error": "invalid_grant", "error_codes": [7_000_215]})),
        ("no body", 400, Value::Null),
    ];
    let mut cases = Cases::default();
    for (name, status, body) in forms {
        cases.add(name.into(), async move {
            let harness = TokenHarness::start().await;
            harness.always(A, error(status, &body));
            for _ in 0..3 {
                let own = ask(&harness.process(), A).await;
                assert!(matches!(own, Err(Error::Upstream { status: found, .. }) if found == status), "{own:?}");
                ask(&harness.process(), B).await.unwrap();
                harness.pass(61);
            }
            assert_eq!(harness.asked_for(A), 3, "the refusal is final, so it is not repeated");
        });
    }
    cases.run().await;
}

#[tokio::test]
async fn second_tenant_refused_alike_opens_the_breaker() {
    let harness = TokenHarness::start().await;
    harness.customer(HOME);
    for (of, number) in [(A, UNKNOWN), (B, UNKNOWN), (HOME, UNKNOWN + 1)] {
        harness.always(of, refusal(number));
    }
    let tokens = harness.process();
    let is_own = |outcome: &Result<String, Error>| matches!(outcome, Err(Error::Upstream { status: 401, .. }));
    // The same tenant again is no more evidence, and neither is another number.
    for of in [A, A, HOME] {
        let outcome = ask(&tokens, of).await;
        assert!(is_own(&outcome), "{of}: {outcome:?}");
    }
    harness.pass(601);
    for (of, own) in [(A, true), (B, false), (A, false), (HOME, false)] {
        let outcome = ask(&tokens, of).await;
        assert_eq!((is_own(&outcome), outcome == Err(Error::CredentialRejected)), (own, !own), "{of}: {outcome:?}");
    }
}

#[tokio::test]
async fn closed_breaker_is_read_once_in_5_seconds() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let reads = || harness.aws_calls("GetItem");
    // One read is for the time until which Entra throttles the tenant.
    for (seconds, breaker_reads) in [(0, 1), (4, 0), (1, 1)] {
        harness.pass(seconds);
        let before = reads();
        tokens.fresh_access_token(&tenant(A), IncidentApi::Graph, soon()).await.unwrap();
        assert_eq!(reads() - before, 1 + breaker_reads, "after {seconds} s more");
    }
    // A process that opens it knows so at once.
    harness.forget_secret(CLIENT_SECRET);
    assert_eq!(ask(&tokens, B).await, Err(Error::CredentialRejected));
    let asked = harness.asked();
    assert_eq!(ask(&tokens, B).await, Err(Error::CredentialRejected));
    assert_eq!(harness.asked(), asked);
}

#[tokio::test]
async fn requests_that_come_together_read_the_breaker_once() {
    let harness = TokenHarness::start().await;
    harness.customer(HOME);
    let tokens = harness.process();
    let before = harness.aws_calls("GetItem");
    let (a, b, home) = tokio::join!(ask(&tokens, A), ask(&tokens, B), ask(&tokens, HOME));
    assert!(a.is_ok() && b.is_ok() && home.is_ok(), "{a:?} {b:?} {home:?}");
    // One read for each is for the time until which Entra throttles the tenant.
    assert_eq!(harness.aws_calls("GetItem") - before, 3 + 1);
}

#[tokio::test]
async fn refusal_that_was_no_evidence_opens_the_breaker_once() {
    let harness = TokenHarness::start().await;
    harness.customer(HOME);
    let tokens = harness.process();
    ask(&tokens, HOME).await.unwrap();
    harness.always(A, refusal(UNKNOWN));
    harness.always(B, refusal(UNKNOWN));
    assert!(ask(&tokens, A).await.is_err());
    assert_eq!(ask(&tokens, B).await, Err(Error::CredentialRejected));
    harness.pass(61);
    // The probe goes to the tenant that had a token, although another one asks.
    let asked = harness.asked_for(HOME);
    assert!(matches!(ask(&tokens, A).await, Err(Error::Upstream { .. })));
    assert_eq!(harness.asked_for(HOME), asked + 1);
    for of in [A, B, A, B] {
        let outcome = ask(&tokens, of).await;
        assert!(matches!(outcome, Err(Error::Upstream { .. })), "{of}: {outcome:?}");
    }
    ask(&harness.process(), HOME).await.unwrap();
}

#[tokio::test]
async fn two_refused_tenants_do_not_take_every_probe() {
    let harness = TokenHarness::start().await;
    harness.customer(HOME);
    harness.always(A, refusal(UNKNOWN));
    harness.always(B, refusal(UNKNOWN));
    // No tenant is known that had a token.
    assert!(ask(&harness.process(), A).await.is_err());
    assert_eq!(ask(&harness.process(), B).await, Err(Error::CredentialRejected));
    for _ in 0..2 {
        harness.pass(61);
        for of in [A, B, HOME] {
            assert_eq!(ask(&harness.process(), of).await, Err(Error::CredentialRejected));
        }
    }
    harness.pass(61);
    for of in [A, B] {
        assert_eq!(ask(&harness.process(), of).await, Err(Error::CredentialRejected));
    }
    ask(&harness.process(), HOME).await.unwrap();
    for of in [A, B] {
        assert!(matches!(ask(&harness.process(), of).await, Err(Error::Upstream { .. })));
    }
}

#[tokio::test]
async fn second_outage_of_a_day_opens_the_breaker_again() {
    let mut cases = Cases::default();
    for (name, tenants) in [("two tenants", vec![A, B]), ("three tenants", vec![A, B, HOME])] {
        cases.add(name.into(), async move {
            let harness = TokenHarness::start().await;
            harness.customer(HOME);
            for outage in 0..2 {
                for of in &tenants {
                    harness.always(of, refusal(UNKNOWN));
                }
                assert!(ask(&harness.process(), A).await.is_err());
                assert_eq!(ask(&harness.process(), B).await, Err(Error::CredentialRejected), "outage {outage}");
                for _ in 0..4 {
                    harness.pass(61);
                    for of in &tenants {
                        assert_eq!(ask(&harness.process(), of).await, Err(Error::CredentialRejected));
                    }
                }
                harness.sim().clear_faults();
                harness.pass(91);
                ask(&harness.process(), A).await.unwrap();
                harness.pass(3_600);
            }
        });
    }
    cases.run().await;
}

#[tokio::test]
async fn home_is_probed_as_long_as_it_is_refused_alike() {
    let harness = TokenHarness::start().await;
    harness.customer(HOME);
    for of in [A, B, HOME] {
        harness.always(of, refusal(UNKNOWN));
    }
    lines_of("");
    let request_id = unique_request_id();
    for minute in 1..=4 {
        let invocation = Invocation { request_id: request_id.clone(), deadline: soon() };
        let (warm, cold) = (harness.process_with_home(), harness.process_with_home());
        let outcome = invocation.in_request_span(async { (ask(&warm, A).await, ask(&cold, B).await) }).await;
        assert_eq!(outcome, (Err(Error::CredentialRejected), Err(Error::CredentialRejected)));
        assert_eq!(harness.asked_for(HOME), minute);
        harness.pass(61);
    }
    let lines = lines_of(&request_id);
    let counted: Vec<_> = lines.iter().filter_map(|line| line["CredentialRejected"].as_f64()).collect();
    assert_eq!(counted, [1.0; 4], "the alarm lasts as long as the outage");
    harness.sim().clear_faults();
    ask(&harness.process_with_home(), A).await.unwrap();
}

#[tokio::test]
async fn home_tenant_judges_an_unknown_refusal() {
    let harness = TokenHarness::start().await;
    harness.customer(HOME);
    harness.always(A, refusal(UNKNOWN));
    harness.always(B, refusal(UNKNOWN));
    let tokens = harness.process_with_home();
    for of in [A, B, A, B] {
        let outcome = ask(&tokens, of).await;
        assert!(matches!(outcome, Err(Error::Upstream { .. })), "{of}: {outcome:?}");
    }
    assert_eq!(harness.asked_for(HOME), 1, "the home tenant is asked once a minute");
    harness.pass(61);
    harness.always(HOME, refusal(UNKNOWN));
    assert_eq!(ask(&tokens, A).await, Err(Error::CredentialRejected));
    assert_eq!(ask(&harness.process_with_home(), numbered(1).as_str()).await, Err(Error::CredentialRejected));
}

#[tokio::test]
async fn breaker_of_one_role_stops_no_other_role() {
    let harness = TokenHarness::start().await;
    harness.set_secret(&json!({"client_id": CLIENT_ID, "federated": true}));
    let process = |function: &str| harness.process_with(|microsoft| microsoft.function_name = Some(function.into()));
    let token = error(200, &json!({"token_type": "Bearer", "expires_in": 3599, "access_token": "opaque"}));
    harness.always(B, token);
    // No federated credential of the registration has this role.
    harness.always(A, refusal(700_213));
    assert_eq!(ask(&process("tenant-admin"), A).await, Err(Error::CredentialRejected));
    assert_eq!(ask(&process("tenant-admin"), B).await, Err(Error::CredentialRejected));
    ask(&process("incident-fetch"), B).await.unwrap();
}

#[tokio::test]
async fn second_tenant_is_evidence_where_home_gives_no_verdict() {
    let refusals = [
        ("no service principal", Some(refusal(7_000_229))),
        ("no such tenant", None),
        ("another number", Some(refusal(UNKNOWN + 1))),
        ("failing", Some(response(500, ""))),
        ("throttled", Some(response(429, ""))),
        ("unreachable", Some(sim::FaultKind::Reset)),
    ];
    let mut cases = Cases::default();
    for (name, refused) in refusals {
        cases.add(name.into(), async move {
            let harness = TokenHarness::start().await;
            if let Some(refused) = refused {
                harness.customer(HOME);
                harness.always(HOME, refused);
            }
            harness.customer(&numbered(1));
            for of in [A, B] {
                harness.always(of, refusal(UNKNOWN));
            }
            let tokens = harness.process_with_home();
            for of in [A, A] {
                let own = ask(&tokens, of).await;
                assert!(matches!(own, Err(Error::Upstream { status: 401, .. })), "{own:?}");
            }
            assert_eq!(ask(&tokens, B).await, Err(Error::CredentialRejected));
            let asked_for_others = harness.asked() - harness.asked_for(A) - harness.asked_for(B);
            assert_eq!(asked_for_others, 1, "the home tenant is asked once a minute");
        });
    }
    cases.run().await;
}

#[tokio::test]
async fn made_up_codes_are_no_evidence() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    ask(&tokens, A).await.unwrap();
    for body in [
        json!({"error": "invalid_client", "error_codes": [UNKNOWN]}),
        json!({"error": "invalid_grant", "error_codes": [70_002, 54_005]}),
        json!({"error": "invalid_request", "error_codes": [9_002_313]}),
    ] {
        for _ in 0..2 {
            harness.script("organizations", error(400, &body));
            let outcome = super::cache::redeem(&tokens).await;
            assert!(matches!(outcome, Err(Error::Upstream { status: 400, .. })), "{body}: {outcome:?}");
        }
    }
    ask(&harness.process(), B).await.unwrap();
}
