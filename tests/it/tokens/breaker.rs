//! Evidence about the credential: one tenant's refusal is its own, and a repaired credential is soon in use.

use serde_json::{Value, json};
use shared::{entra::token_cache::Tokens, error::Error, registry::tenants::Status, tenant::Reason};

use super::harness::{A, B, TokenHarness, ask, error, numbered, refusal, secret, tenant};
use crate::{
    backends::{CLIENT_ID, CLIENT_SECRET, tenant_record},
    cases::Cases,
};

const HOME: &str = "33333333-2222-4333-8444-abcdefabcdef";

/// A number that no table has.
const UNKNOWN: u64 = 7_000_999;

impl TokenHarness {
    /// A new process that judges the credential at the home tenant.
    fn process_with_home(&self) -> Tokens {
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

/// The repair of a refused credential.
#[derive(Clone, Copy)]
enum Repair {
    AtEntra,
    NewSecret,
}

#[tokio::test]
async fn repaired_credential_is_in_use_within_two_minutes() {
    let mut cases = Cases::default();
    for (how, repair) in [("at Entra", Repair::AtEntra), ("by a new secret", Repair::NewSecret)] {
        for (probes, has_home, had_tokens) in
            [("home tenant", true, false), ("tenant that had a token", false, true), ("no tenant known", false, false)]
        {
            let name = format!("repaired {how}, {probes}");
            cases.add(name, repaired_credential_is_soon_in_use(repair, has_home, had_tokens));
        }
    }
    cases.run().await;
}

/// One tenant refuses us and asks first each time, beside healthy ones. Every process is new, as after a cold start, but
/// one, which holds the credential that was refused.
async fn repaired_credential_is_soon_in_use(repair: Repair, has_home: bool, had_tokens: bool) {
    let harness = TokenHarness::start().await;
    for other in [HOME, &numbered(1), &numbered(2)] {
        harness.customer(other);
    }
    let process = || if has_home { harness.process_with_home() } else { harness.process() };
    let refused = Err(Error::Refused(Reason::ConsentMissing));
    harness.sim().revoke(A, CLIENT_ID);
    let warm = process();
    if had_tokens {
        ask(&warm, B).await.unwrap();
        assert_eq!(ask(&warm, A).await, refused);
    }
    harness.forget_secret(CLIENT_SECRET);
    for round in 0..3 {
        let before = harness.asked();
        for of in [A, numbered(1).as_str(), B] {
            assert_eq!(ask(&process(), of).await, Err(Error::CredentialRejected));
        }
        assert_eq!(ask(&warm, &numbered(2)).await, Err(Error::CredentialRejected));
        assert!(round == 0 || harness.asked() == before + 1, "one request a minute");
        harness.pass(61);
    }
    // The probe of this minute has just been made.
    assert_eq!(ask(&process(), B).await, Err(Error::CredentialRejected));
    match repair {
        Repair::AtEntra => harness.know(CLIENT_SECRET),
        Repair::NewSecret => {
            harness.know("secret-2");
            harness.set_secret(&secret("secret-2"));
        }
    }
    for _ in 0..8 {
        harness.pass(15);
        let _ = ask(&process(), A).await;
        let _ = ask(&process(), B).await;
    }
    ask(&process(), B).await.unwrap();
    ask(&warm, &numbered(1)).await.unwrap();
    assert_eq!(ask(&process(), A).await, refused, "a tenant's own refusal stays its own");
}

#[tokio::test]
async fn wrong_home_tenant_does_not_keep_the_breaker_open() {
    let harness = TokenHarness::start().await;
    harness.forget_secret(CLIENT_SECRET);
    // No tenant has the identifier.
    assert_eq!(ask(&harness.process_with_home(), A).await, Err(Error::CredentialRejected));
    harness.know(CLIENT_SECRET);
    harness.pass(61);
    assert_eq!(ask(&harness.process_with_home(), A).await, Err(Error::CredentialRejected));
    harness.pass(61);
    ask(&harness.process_with_home(), A).await.unwrap();
}

#[tokio::test]
async fn paused_tenant_leaves_the_probe_to_others() {
    let harness = TokenHarness::start().await;
    let paused = tenant_record(tenant(A), Status::Paused, Some(Reason::ConsentMissing));
    harness.registry().create_tenant(&paused).await.unwrap();
    harness.forget_secret(CLIENT_SECRET);
    assert_eq!(ask(&harness.process(), B).await, Err(Error::CredentialRejected));
    harness.know(CLIENT_SECRET);
    harness.sim().revoke(A, CLIENT_ID);
    harness.pass(61);
    let asked = harness.asked();
    assert_eq!(ask(&harness.process(), A).await, Err(Error::CredentialRejected));
    assert_eq!(harness.asked(), asked);
    ask(&harness.process(), B).await.unwrap();
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
