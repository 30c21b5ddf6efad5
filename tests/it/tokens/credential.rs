//! The app credential in its four kinds, its rotation, and the circuit breaker.

use aws_double::{ISSUER, ROLE_ARN};
use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::KeyPair,
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};
use shared::{
    error::Error,
    lambda::event::Invocation,
    registry::breaker::{BreakerDecision, BreakerKey},
    tenant::Reason,
};
use sim::FederatedCredential;

use super::harness::{A, B, TokenHarness, ask, ask_many, refusal, secret, soon, tenant};
use crate::backends::{CLIENT_ID, CLIENT_SECRET, lines_of, unique_request_id};

#[tokio::test]
async fn rotation_under_load_fails_no_caller() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    ask(&tokens, A).await.unwrap();
    harness.know("secret-2");
    harness.forget_secret(CLIENT_SECRET);
    harness.set_secret(&secret("secret-2"));
    for outcome in ask_many(&harness, &tokens, 100).await {
        outcome.unwrap();
    }
    assert_eq!(harness.aws_calls("GetSecretValue"), 2, "read again once for all");
    let key = BreakerKey::new("version-2", None);
    let decision = harness.registry().breaker_decision(&key, None, None, harness.clock.now()).await;
    assert_eq!(decision, Ok(BreakerDecision::Allow));
}

#[tokio::test]
async fn previous_secret_serves_until_entra_accepts_the_new_one() {
    let harness = TokenHarness::start().await;
    harness.set_secret(&secret("secret-2"));
    let tokens = harness.process();
    for outcome in ask_many(&harness, &tokens, 100).await {
        outcome.unwrap();
    }
    let asked = harness.asked();
    ask(&tokens, A).await.unwrap();
    assert_eq!(harness.asked(), asked + 1, "the version that works is tried first");
    // After five minutes the new one gets its next chance.
    harness.know("secret-2");
    harness.pass(301);
    ask(&tokens, B).await.unwrap();
    assert_eq!(harness.last("client_secret"), "secret-2");
}

#[tokio::test]
async fn rejected_credential_allows_one_probe_a_minute() {
    let harness = TokenHarness::start().await;
    harness.set_secret(&secret("wrong"));
    harness.forget_secret(CLIENT_SECRET);
    let (one, other) = (harness.process(), harness.process());
    assert_eq!(ask(&one, A).await, Err(Error::CredentialRejected));
    let asked = harness.asked();
    assert_eq!(asked, 2, "the current version, then the one before");
    for _ in 0..5 {
        assert_eq!(ask(&one, B).await, Err(Error::CredentialRejected));
        assert_eq!(ask(&other, A).await, Err(Error::CredentialRejected));
    }
    assert_eq!(harness.asked(), asked);
    harness.pass(61);
    assert_eq!(ask(&one, B).await, Err(Error::CredentialRejected));
    assert_eq!(ask(&other, B).await, Err(Error::CredentialRejected));
    assert_eq!(harness.asked(), asked + 1);
    // The operator renews it: the next try closes the breaker for all.
    harness.set_secret(&secret("secret-3"));
    harness.know("secret-3");
    assert_eq!(ask(&one, B).await, Err(Error::CredentialRejected));
    harness.pass(61);
    ask(&other, B).await.unwrap();
    ask(&one, A).await.unwrap();
    assert_eq!(harness.asked(), asked + 3, "both have read the secret again");
}

#[tokio::test]
async fn each_rejected_probe_is_counted_once() {
    let harness = TokenHarness::start().await;
    harness.forget_secret(CLIENT_SECRET);
    let tokens = harness.process();
    lines_of("");
    let request_id = unique_request_id();
    for _ in 0..3 {
        let invocation = Invocation { request_id: request_id.clone(), deadline: soon() };
        let outcome = invocation.in_request_span(async { (ask(&tokens, A).await, ask(&tokens, B).await) }).await;
        assert_eq!(outcome, (Err(Error::CredentialRejected), Err(Error::CredentialRejected)));
        harness.pass(61);
    }
    let lines = lines_of(&request_id);
    let counted: Vec<_> = lines.iter().filter_map(|line| line["CredentialRejected"].as_f64()).collect();
    assert_eq!(counted, [1.0, 1.0, 1.0], "one a minute, however many ask");
}

#[tokio::test]
async fn concurrent_callers_share_a_credential_rejection() {
    let harness = TokenHarness::start().await;
    harness.forget_secret(CLIENT_SECRET);
    let tokens = harness.process();
    lines_of("");
    let invocation = Invocation { request_id: "many-callers".into(), deadline: soon() };
    let outcomes = invocation.in_request_span(ask_many(&harness, &tokens, 50)).await;
    let others: Vec<_> = outcomes.iter().filter(|outcome| **outcome != Err(Error::CredentialRejected)).collect();
    assert!(others.is_empty(), "{others:?}");
    let asked = harness.asked();
    assert!((1..=50).contains(&asked), "those that were on their way, and none a second time: {asked}");
    assert_eq!(ask(&tokens, A).await, Err(Error::CredentialRejected));
    assert_eq!(harness.asked(), asked, "none after");
    let alarms = lines_of("many-callers").into_iter().filter(|line| line["level"] == "ERROR").count();
    assert_eq!(alarms, 1);
}

#[tokio::test]
async fn refusal_of_one_tenant_leaves_the_credential_alone() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    harness.script(A, refusal(7_000_229));
    assert_eq!(ask(&tokens, A).await, Err(Error::Refused(Reason::ConsentMissing)));
    assert_eq!((harness.asked(), harness.aws_calls("GetSecretValue")), (1, 1));
    assert!(ask(&tokens, B).await.is_ok());
}

#[tokio::test]
async fn cached_credential_outlasts_a_secrets_manager_outage() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    ask(&tokens, A).await.unwrap();
    harness.backends.double.account().deny_secrets(true);
    harness.pass(301);
    ask(&tokens, B).await.unwrap();
    let cold = ask(&harness.process(), B).await;
    assert!(matches!(cold, Err(Error::Internal(_))), "{cold:?}");
    // A secret of no kind does not take the place of one that works.
    harness.backends.double.account().deny_secrets(false);
    harness.set_secret(&json!({"client_id": CLIENT_ID}));
    harness.pass(31);
    tokens.forget(&tenant(B));
    ask(&tokens, B).await.unwrap();
}

#[tokio::test]
async fn client_assertion_is_signed_by_the_key_in_kms() {
    let harness = TokenHarness::start().await;
    let key = harness.backends.double.kms_key().unwrap();
    let certificate = sim::self_signed(key, "Northwind");
    let thumbprint = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, &certificate));
    let pem =
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64_STANDARD.encode(&certificate));
    harness.register(sim::App { certificates: vec![certificate], ..sim::App::default() });
    harness.set_secret(&json!({"client_id": CLIENT_ID, "certificate": pem, "kms_key_id": "alias/mandate"}));
    ask(&harness.process(), A).await.unwrap();
    assert_eq!(harness.last("client_assertion_type"), "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
    let mut validation = Validation::new(Algorithm::PS256);
    validation.set_audience(&[format!("https://login.microsoftonline.com/{A}/oauth2/v2.0/token")]);
    // The assertion was made at the clock's time, which stands still.
    validation.validate_exp = false;
    let key = DecodingKey::from_rsa_der(key.public_key().as_ref());
    let assertion = harness.last("client_assertion");
    let decoded = jsonwebtoken::decode::<Value>(&assertion, &key, &validation).unwrap();
    assert_eq!(decoded.claims["iss"], CLIENT_ID);
    assert_eq!(decoded.header.x5t_s256, Some(thumbprint));
}

#[tokio::test]
async fn web_identity_token_serves_all_tenants_until_it_expires() {
    let harness = TokenHarness::start().await;
    let trust = FederatedCredential {
        issuer: ISSUER.into(),
        subject: ROLE_ARN.into(),
        audience: "api://AzureADTokenExchange".into(),
        jwks: harness.backends.double.jwks().unwrap(),
    };
    harness.register(sim::App { federated_credentials: vec![trust], ..sim::App::default() });
    harness.set_secret(&json!({"client_id": CLIENT_ID, "federated": true}));
    let tokens = harness.process();
    ask(&tokens, A).await.unwrap();
    let first = harness.last("client_assertion");
    ask(&tokens, B).await.unwrap();
    assert_eq!(harness.last("client_assertion"), first);
    harness.pass(241);
    tokens.forget(&tenant(A));
    ask(&tokens, A).await.unwrap();
    assert_ne!(harness.last("client_assertion"), first);
    // Entra reports that the assertion came too late. A new one is made at once.
    tokens.forget(&tenant(A));
    harness.script(A, refusal(700_024));
    ask(&tokens, A).await.unwrap();
    assert_eq!(harness.aws_calls("GetWebIdentityToken"), 3);
}

#[tokio::test]
async fn days_until_the_credential_ends_are_a_metric() {
    let harness = TokenHarness::start().await;
    lines_of("");
    for (expires_at, days) in [
        (json!("2026-12-02T22:00:00Z"), Some(10.5)),
        (json!("2026-11-21T10:00:00+00:00"), Some(-1.0)),
        (json!("2027-05-01"), None),
        (json!(1_800_000_000), None),
        (Value::Null, None),
    ] {
        let mut credential = secret(CLIENT_SECRET);
        credential["expires_at"] = expires_at.clone();
        harness.set_secret(&credential);
        let request_id = unique_request_id();
        let invocation = Invocation { request_id: request_id.clone(), deadline: soon() };
        let tokens = harness.process();
        invocation.in_request_span(async { ask(&tokens, A).await }).await.unwrap();
        let lines = lines_of(&request_id);
        let left: Vec<_> = lines.iter().filter_map(|line| line["CredentialDaysLeft"].as_f64()).collect();
        assert_eq!(left, Vec::from_iter(days), "{expires_at}");
        let is_malformed = days.is_none() && !expires_at.is_null();
        assert_eq!(lines.iter().any(|line| line["level"] == "ERROR"), is_malformed, "{expires_at}");
    }
}

#[tokio::test]
async fn unusable_secret_is_named_with_the_command_until_it_is_filled() {
    lines_of("");
    let harness = TokenHarness::start().await;
    let process =
        |name: &'static str| harness.process_with(|microsoft| microsoft.app_credential_secret_id = name.into());
    let double = &harness.backends.double;
    double.account().stage_secret("announced", "AWSCURRENT", "version-without-a-value");
    for (name, value, words) in [
        ("absent", None, "does not exist or has no value yet"),
        ("announced", None, "does not exist or has no value yet"),
        ("odd", Some(json!("canary")), "holds no usable credential"),
        ("without-kind", Some(json!({"client_id": "canary"})), "holds no usable credential"),
    ] {
        if let Some(value) = value {
            double.account().set_secret(name, &value);
        }
        let tokens = process(name);
        let request_id = unique_request_id();
        let reads = harness.aws_calls("GetSecretValue");
        for _ in 0..3 {
            let invocation = Invocation { request_id: request_id.clone(), deadline: soon() };
            let outcome = invocation.in_request_span(async { ask(&tokens, A).await }).await;
            assert!(matches!(outcome, Err(Error::CredentialUnusable { .. })), "{name}: {outcome:?}");
        }
        assert_eq!(harness.aws_calls("GetSecretValue"), reads + 1, "{name}: it is not read again at once");
        let lines = lines_of(&request_id);
        let counted: Vec<_> = lines.iter().filter_map(|line| line["CredentialUnusable"].as_f64()).collect();
        assert_eq!(counted, [1.0], "{name}");
        let causes: Vec<_> = lines.iter().filter_map(|line| line["cause"].as_str()).collect();
        let command =
            format!("aws secretsmanager put-secret-value --secret-id {name} --secret-string file://credential.json");
        assert_eq!(causes.len(), 1, "{name}: {lines:?}");
        assert!(causes[0].contains(words) && causes[0].contains(&command), "{name}: {}", causes[0]);
        assert!(!causes[0].contains("canary"), "{name}");
        double.account().set_secret(name, &secret(CLIENT_SECRET));
        harness.pass(11);
        ask(&tokens, A).await.unwrap();
    }
}
