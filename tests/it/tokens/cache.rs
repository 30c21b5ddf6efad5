//! The cache of access tokens, and the redemption of authorization codes.

use std::{collections::BTreeSet, time::Duration};

use jiff::SignedDuration;
use serde_json::json;
use shared::{
    clock::Clock,
    entra::{token_cache::Tokens, token_endpoint::AuthorizationCode},
    error::Error,
    http::Deadline,
    microsoft::IncidentApi,
    tenant::Reason,
    text::Secret,
};
use sim::{FaultKind, RetryAfter};

use super::harness::{A, B, TokenHarness, ask, claims, error, refusal, response, soon, tenant};
use crate::backends::CLIENT_ID;

#[tokio::test]
async fn concurrent_cold_callers_cost_one_token_request() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let callers = (0..500).map(|_| {
        let tokens = tokens.clone();
        tokio::spawn(async move { ask(&tokens, A).await.unwrap() })
    });
    let mut seen = BTreeSet::new();
    for caller in callers.collect::<Vec<_>>() {
        seen.insert(caller.await.unwrap());
    }
    assert_eq!((harness.asked(), seen.len()), (1, 1));
    assert_eq!(harness.aws_calls("GetSecretValue"), 1);
}

#[tokio::test]
async fn failure_is_shared_by_all_waiting_callers() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    harness.script(A, refusal(7_000_229));
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let tokens = tokens.clone();
            tokio::spawn(async move { ask(&tokens, A).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), Err(Error::Refused(Reason::ConsentMissing)));
    }
    assert_eq!(harness.asked(), 1);
}

#[tokio::test]
async fn token_is_cached_by_tenant_and_api_and_renewed_early() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let first = ask(&tokens, A).await.unwrap();
    assert_eq!(ask(&tokens, A).await.unwrap(), first);
    assert_ne!(ask(&tokens, B).await.unwrap(), first);
    let defender = tokens.access_token(&tenant(A), IncidentApi::Defender, soon()).await.unwrap();
    assert_ne!(defender.expose(), first);
    assert_eq!(defender.roles().unwrap(), ["Incident.Read.All"]);
    assert_eq!(harness.asked(), 3);
    // 3599 seconds less a tenth.
    harness.pass(3_200);
    assert_eq!(ask(&tokens, A).await.unwrap(), first);
    harness.pass(60);
    let second = ask(&tokens, A).await.unwrap();
    assert_ne!(second, first);
    assert_eq!(harness.asked(), 4);
}

#[tokio::test]
async fn token_that_cannot_be_renewed_is_used_until_it_expires() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let first = ask(&tokens, A).await.unwrap();
    harness.pass(3_300);
    for _ in 0..2 {
        harness.script(A, response(500, ""));
    }
    assert_eq!(ask(&tokens, A).await.unwrap(), first);
    let asked = harness.asked();
    assert_eq!(ask(&tokens, A).await.unwrap(), first, "and Entra is left alone for a while");
    assert_eq!(harness.asked(), asked);
    harness.pass(280);
    for _ in 0..2 {
        harness.script(A, response(500, ""));
    }
    let outcome = ask(&tokens, A).await;
    assert!(matches!(outcome, Err(Error::Upstream { status: 500, .. })), "{outcome:?}");
}

#[tokio::test]
async fn transient_token_failure_is_retried_once() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    harness.script(A, FaultKind::BadGateway);
    assert!(ask(&tokens, A).await.is_ok());
    harness.script(B, error(400, &json!({"error": "x", "error_codes": [90_033]})));
    assert!(ask(&tokens, B).await.is_ok());
    assert_eq!(harness.asked(), 4);
}

#[tokio::test]
async fn confirmed_tokens_notice_a_withdrawn_consent() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let age = SignedDuration::from_secs(20);
    let confirmed = || async { tokens.access_token_no_older_than(&tenant(A), IncidentApi::Graph, age, soon()).await };
    let first = confirmed().await.unwrap();
    harness.pass(19);
    assert_eq!(confirmed().await.unwrap().expose(), first.expose());
    assert_eq!(harness.asked(), 1);
    harness.pass(2);
    harness.script(A, response(503, ""));
    assert_eq!(confirmed().await.unwrap().expose(), first.expose(), "where Entra cannot be asked, the old one will do");
    harness.pass(61);
    harness.script(A, refusal(7_000_229));
    assert_eq!(confirmed().await.unwrap_err(), Error::Refused(Reason::ConsentMissing));
    harness.script(A, refusal(7_000_229));
    assert!(ask(&tokens, A).await.is_err(), "the old token was dropped");
}

#[tokio::test]
async fn unexplained_refusal_ends_a_token_that_is_too_old() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let age = SignedDuration::from_mins(10);
    let confirmed = || async { tokens.access_token_no_older_than(&tenant(A), IncidentApi::Graph, age, soon()).await };
    let refused = |outcome: &Result<_, Error>| matches!(outcome, Err(Error::Upstream { status: 400..=401, .. }));
    let refusals = [
        error(401, &json!({"error": "invalid_client", "error_codes": [7_000_999]})),
        error(400, &json!({"error": "invalid_grant", "error_codes": [5_399_999]})),
    ];
    for refusal in refusals {
        let first = confirmed().await.unwrap();
        harness.pass(601);
        for (kind, name) in [(FaultKind::Reset, "unreachable"), (response(500, ""), "failing")] {
            harness.script(A, kind.clone());
            harness.script(A, kind);
            assert_eq!(confirmed().await.unwrap().expose(), first.expose(), "Entra is {name}");
            harness.pass(31);
        }
        harness.script(A, refusal);
        assert!(refused(&confirmed().await.map(drop)));
        assert_ne!(ask(&tokens, A).await.unwrap(), first.expose(), "the old token was dropped");
    }
    // A token near its end is young enough for a caller who names no age.
    let first = ask(&tokens, A).await.unwrap();
    harness.pass(3_300);
    harness.script(A, refusal(7_000_999));
    assert_eq!(ask(&tokens, A).await.unwrap(), first);
}

#[tokio::test]
async fn fresh_token_replaces_the_cached_one() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let first = ask(&tokens, A).await.unwrap();
    let fresh = tokens.fresh_access_token(&tenant(A), IncidentApi::Graph, soon()).await.unwrap();
    assert_ne!(fresh.expose(), first);
    assert_eq!(ask(&tokens, A).await.unwrap(), fresh.expose());
    tokens.forget(&tenant(A));
    assert_ne!(ask(&tokens, A).await.unwrap(), fresh.expose());
}

#[tokio::test]
async fn token_throttling_of_a_tenant_holds_in_all_processes() {
    let harness = TokenHarness::start().await;
    let (one, other) = (harness.process(), harness.process());
    harness.script(A, FaultKind::Throttle { retry_after: RetryAfter::Seconds(300) });
    let until = harness.clock.now() + SignedDuration::from_secs(300);
    assert_eq!(ask(&one, A).await, Err(Error::Throttled { until }));
    let asked = harness.asked();
    assert_eq!(ask(&one, A).await, Err(Error::Throttled { until }));
    assert_eq!(ask(&other, A).await, Err(Error::Throttled { until }));
    one.forget(&tenant(A));
    let fresh = one.fresh_access_token(&tenant(A), IncidentApi::Graph, soon()).await;
    assert_eq!(fresh.unwrap_err(), Error::Throttled { until });
    assert_eq!(harness.asked(), asked);
    assert!(ask(&one, B).await.is_ok());
    harness.pass(301);
    assert!(ask(&other, A).await.is_ok());
    // Without a time, a minute.
    harness.script(B, response(503, ""));
    let until = harness.clock.now() + SignedDuration::from_secs(60);
    let fresh = one.fresh_access_token(&tenant(B), IncidentApi::Graph, soon()).await;
    assert_eq!(fresh.unwrap_err(), Error::Throttled { until });
}

#[tokio::test]
async fn token_of_another_tenant_is_never_cached() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let table = [
        ("tenant", json!({"tid": B})),
        ("application", json!({"appid": B})),
        ("audience", json!({"aud": "https://api.security.microsoft.com"})),
    ];
    for (name, other) in table {
        harness.script(A, claims(other));
        let outcome = ask(&tokens, A).await;
        assert!(matches!(outcome, Err(Error::Malformed { .. })), "another {name}: {outcome:?}");
    }
    assert!(ask(&tokens, A).await.is_ok());
    assert_eq!(harness.asked(), 4);
}

#[tokio::test]
async fn opaque_token_with_a_lifetime_in_text_is_accepted() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let body = json!({"token_type": "bearer", "expires_in": "599", "access_token": "opaque"});
    harness.script(A, error(200, &body));
    let token = tokens.access_token(&tenant(A), IncidentApi::Graph, soon()).await.unwrap();
    assert_eq!((token.roles(), token.expose()), (None, "opaque"));
    assert_eq!(token.expires_at(), harness.clock.now() + SignedDuration::from_secs(599));
}

#[tokio::test]
async fn hanging_token_endpoint_costs_only_the_deadline() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    harness.script(A, FaultKind::Hang { millis: 60_000 });
    let enough = Deadline::within(Duration::from_secs(3), &Clock::system());
    let deadline = Deadline::within(Duration::from_secs(2), &Clock::system());
    let outcome = tokens.access_token(&tenant(A), IncidentApi::Graph, deadline).await;
    assert_eq!(outcome.unwrap_err(), Error::DeadlineExceeded);
    assert!(!enough.left().is_zero());
    assert!(ask(&tokens, A).await.is_ok());
}

/// Redeems an authorization code.
pub(super) async fn redeem(tokens: &Tokens) -> Result<Secret, Error> {
    let (code, verifier) = (Secret::new("code".into()), Secret::new("verifier".into()));
    let code = AuthorizationCode {
        authority: "organizations",
        code: &code,
        redirect_uri: "https://x/consent/callback",
        code_verifier: &verifier,
    };
    tokens.redeem_code(code, soon()).await
}

#[tokio::test]
async fn authorization_code_is_redeemed_at_its_authority() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    harness.script("organizations", error(200, &json!({"token_type": "Bearer", "id_token": "an.id.token"})));
    assert_eq!(redeem(&tokens).await.unwrap().expose(), "an.id.token");
    assert_eq!(harness.sim().calls()[0].path, "/organizations/oauth2/v2.0/token");
    assert_eq!((harness.last("code"), harness.last("code_verifier")), ("code".into(), "verifier".into()));
    assert_eq!(tokens.client_id(soon()).await.unwrap(), CLIENT_ID);
    harness.script("organizations", error(400, &json!({"error": "invalid_grant", "error_codes": [54_005]})));
    assert!(matches!(redeem(&tokens).await, Err(Error::Upstream { status: 400, .. })));
}
