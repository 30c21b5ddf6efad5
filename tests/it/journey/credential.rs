//! The app's credential: replaced under load, refused and mended, and of another kind, without a restart.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aws_double::{Aws, ISSUER, ROLE_ARN};
use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use aws_sdk_dynamodb::types::AttributeValue;
use base64::prelude::{BASE64_STANDARD, Engine};
use devstack::ApiResponse;
use serde_json::{Value, json};
use shared::clock::Clock;
use sim::{App, Call, FederatedCredential, Host};

use super::harness::{APP, CONTOSO, Customer, FABRIKAM, HOME, NORTHWIND, StackHarness, refused};

const CUSTOMERS: [Customer; 3] = [CONTOSO, FABRIKAM, NORTHWIND];
const CALLERS: usize = 6;
/// The message that raises the alarm.
const REFUSED_FOR_ALL: &str = "Entra refuses the app credential";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_under_load_fail_no_token_request() {
    let harness = start("rotation").await;
    // Nothing is kept for long, so that every process goes on asking Entra; and Entra needs a moment for a new secret.
    for customer in CUSTOMERS {
        harness.sim.update_tenant(customer.tenant_id, |tenant| tenant.token_lifetime_seconds = Some(2));
    }
    harness.sim.configure(|behaviour| behaviour.secret_propagation_seconds = 1);
    let (over, responded) = (AtomicBool::new(false), AtomicUsize::new(0));
    let caller = async |number: usize| {
        let mut turn = number;
        while !over.load(Ordering::Relaxed) {
            let response = token(&harness, &CUSTOMERS[turn % CUSTOMERS.len()]).await;
            assert_eq!(response.status, 200, "{}", response.body);
            responded.fetch_add(1, Ordering::Relaxed);
            turn += 1;
        }
    };
    let rotations = async {
        // So many responses later, every caller has asked for every customer.
        let load = async || {
            let begun = responded.load(Ordering::Relaxed);
            let enough = begun + CALLERS * CUSTOMERS.len();
            harness
                .until("the callers go on".into(), async || {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    responded.load(Ordering::Relaxed) >= enough
                })
                .await;
        };
        load().await;
        let mut by_hand = harness.sim.client_secrets(APP);
        assert_eq!(by_hand.len(), 1);
        let mut before = None;
        for round in 1..=4 {
            let current = harness.rotate().await;
            load().await;
            // What was made by hand stays, the one before is still valid, and the one before that has gone.
            let rotated = before.replace(current.clone()).into_iter().chain([current]);
            assert_eq!(harness.sim.client_secrets(APP), by_hand.iter().cloned().chain(rotated).collect::<Vec<_>>());
            if round == 2 {
                // As `infra/README.md` says; by now, every process has read it and keeps it.
                harness.sim.remove_client_secret(APP, &by_hand.remove(0));
                load().await;
            }
        }
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(rotations, caller(0), caller(1), caller(2), caller(3), caller(4), caller(5));
    let asked: Vec<_> = CUSTOMERS.iter().flat_map(|customer| token_requests(&harness, customer.tenant_id)).collect();
    let refused = asked.iter().filter(|call| call.status == 401).count();
    assert!(refused > 0 && asked.len() > 100, "{refused} of {}: too little was tried", asked.len());
    for bad in [REFUSED_FOR_ALL, "could not be renewed"] {
        assert_eq!(count_of(&harness, bad).await, 0, "{bad}");
    }
    harness.nothing_failed().await;
    harness.lines_are_whole().await;
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_secret_raises_the_alarm_and_is_mended_at_runtime() {
    let harness = start("wrong-secret").await;
    let good = json!({"client_id": APP, "client_secret": harness.sim.client_secrets(APP)[0]});
    let nonsense = |text: &str| json!({"client_id": APP, "client_secret": text});

    // One mistake is bridged by the version before.
    harness.stack.put_secret(nonsense("nonsense")).await.unwrap();
    harness.stack.kill("token-issuance");
    assert_eq!(token(&harness, &CONTOSO).await.status, 200);

    harness.stack.put_secret(nonsense("more nonsense")).await.unwrap();
    for binary in ["token-issuance", "incident-fetch"] {
        harness.stack.kill(binary);
    }
    harness.sim.clear_calls();
    let clock = shared::clock::Clock::system();
    let begun = clock.now();
    is_rejected(&token(&harness, &CONTOSO).await);
    assert_eq!(all_token_requests(&harness), 2, "the current version, then the one before");
    all_are_rejected(&harness).await;
    // On a busy machine a minute passes by itself.
    let minutes = || usize::try_from(clock.now().duration_since(begun).as_mins()).unwrap();
    let after_first = all_token_requests(&harness);
    assert!(after_first <= 2 + 2 * minutes(), "{after_first} requests");

    a_minute_passes(&harness).await;
    all_are_rejected(&harness).await;
    let in_all = all_token_requests(&harness);
    assert!(in_all > after_first, "one try a minute");
    assert!(in_all <= 3 + 2 * minutes(), "{in_all} requests: one try a minute, of all functions together");

    // Each process reads the secret again once a minute meanwhile. The new version starts with a closed breaker.
    harness.stack.put_secret(good).await.unwrap();
    for customer in CUSTOMERS {
        let has_token = async || token(&harness, &customer).await.status == 200;
        harness.until(format!("{} has a token again", customer.name), has_token).await;
    }
    assert_eq!(count_of(&harness, REFUSED_FOR_ALL).await, 1, "one alarm");
    harness.incident(&CONTOSO, "After the outage", 5);
    harness.delivered(1).await;
    harness.nothing_failed().await;
    harness.lines_are_whole().await;
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_replaces_the_secret_without_a_restart() {
    let harness = start("certificate").await;
    for customer in CUSTOMERS {
        harness.sim.update_tenant(customer.tenant_id, |tenant| tenant.token_lifetime_seconds = Some(2));
    }
    assert_eq!(claims(&harness, &CONTOSO).await["appidacr"], "1", "by a client secret");
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let certificate = sim::self_signed(&key, "Litware Security");
    let private_key: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let credential = json!({
        "client_id": APP,
        "certificate": pem("CERTIFICATE", &certificate),
        "private_key": pem("PRIVATE KEY", private_key.as_ref()),
    });
    harness.stack.put_secret(credential).await.unwrap();
    // The registration has the certificate and no secret any more.
    harness.sim.register_app(App {
        client_id: APP.to_owned(),
        home_tenant_id: HOME.to_owned(),
        certificates: vec![certificate],
        ..App::default()
    });
    for customer in CUSTOMERS {
        harness
            .until(format!("{} has a token by certificate", customer.name), async || {
                claims(&harness, &customer).await["appidacr"] == "2"
            })
            .await;
    }
    harness.incident(&CONTOSO, "By certificate", 5);
    harness.delivered(1).await;
    assert_eq!(count_of(&harness, REFUSED_FOR_ALL).await, 0);
    harness.nothing_failed().await;
    harness.lines_are_whole().await;
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kms_key_and_federation_replace_the_secret_at_runtime() {
    let aws = Aws::start(|| Clock::system().now()).await.unwrap();
    let elsewhere = [("AWS_ENDPOINT_URL_KMS", aws.endpoint()), ("AWS_ENDPOINT_URL_STS", aws.endpoint())];
    let harness = start_with("kms-and-federation", &elsewhere).await;
    for customer in CUSTOMERS {
        harness.sim.update_tenant(customer.tenant_id, |tenant| tenant.token_lifetime_seconds = Some(2));
    }
    let certificate = sim::self_signed(aws.kms_key().unwrap(), "Litware Security");
    let in_kms = json!({
        "client_id": APP,
        "certificate": pem("CERTIFICATE", &certificate),
        "kms_key_id": "alias/mandate",
    });
    let by_key = App { certificates: vec![certificate], ..App::default() };
    let by_word = App { federated_credentials: vec![federated_credential(&aws)], ..App::default() };
    let kinds = [
        (in_kms, by_key, "Sign", "By a key in KMS"),
        (json!({"client_id": APP, "federated": true}), by_word, "GetWebIdentityToken", "By AWS's own word"),
    ];
    for (delivered, (credential, registered, call, title)) in (1..).zip(kinds) {
        assert_eq!(aws.account().calls(call), 0);
        harness.stack.put_secret(credential).await.unwrap();
        // The registration has this and nothing else any more.
        let app = App { client_id: APP.to_owned(), home_tenant_id: HOME.to_owned(), ..registered };
        harness.sim.register_app(app);
        harness.sim.clear_calls();
        for customer in CUSTOMERS {
            harness
                .until(format!("{} has a token: {title}", customer.name), async || {
                    let asked = token_requests(&harness, customer.tenant_id);
                    token(&harness, &customer).await.status == 200 && asked.iter().any(|call| call.status == 200)
                })
                .await;
        }
        harness.incident(&CONTOSO, title, 5);
        harness.delivered(delivered).await;
        assert!(aws.account().calls(call) > 0, "{call} was not called");
    }
    assert_eq!(count_of(&harness, REFUSED_FOR_ALL).await, 0);
    harness.nothing_failed().await;
    harness.lines_are_whole().await;
    harness.end().await;
}

/// The trust of an app registration in AWS's tokens.
fn federated_credential(aws: &Aws) -> FederatedCredential {
    FederatedCredential {
        issuer: ISSUER.into(),
        subject: ROLE_ARN.into(),
        audience: "api://AzureADTokenExchange".into(),
        jwks: aws.jwks().unwrap(),
    }
}

/// Three customers that are active.
async fn start(name: &str) -> StackHarness {
    start_with(name, &[]).await
}

/// The same, with these variables for all functions.
async fn start_with(name: &str, variables: &[(&str, &str)]) -> StackHarness {
    let harness = StackHarness::start(name, variables).await;
    for customer in CUSTOMERS {
        harness.seed(&customer);
        harness.onboard(&customer, None).await;
    }
    harness
}

impl StackHarness {
    /// Rotates, and returns the secret that is current afterwards.
    async fn rotate(&self) -> String {
        self.stack.rotate().await.unwrap();
        let secrets = aws_sdk_secretsmanager::Client::new(self.stack.aws().config());
        let current = secrets.get_secret_value().secret_id(&self.stack.resources().secret).version_stage("AWSCURRENT");
        let current: Value = serde_json::from_str(current.send().await.unwrap().secret_string().unwrap()).unwrap();
        current["client_secret"].as_str().unwrap().to_owned()
    }
}

async fn token(harness: &StackHarness, customer: &Customer) -> ApiResponse {
    harness.call("POST", &format!("{}/token", customer.path()), None).await
}

async fn claims(harness: &StackHarness, customer: &Customer) -> Value {
    let response = harness.expect(200, "POST", &format!("{}/token", customer.path()), None).await;
    let claims = response["access_token"].as_str().unwrap().split('.').nth(1).unwrap().to_owned();
    serde_json::from_slice(&base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

fn is_rejected(response: &ApiResponse) {
    let problem = refused("a token by a wrong secret", response, "internal");
    assert_eq!(problem["reason"], "credential_rejected", "{problem}");
}

/// Token requests for every customer, several at once, and polls of all.
async fn all_are_rejected(harness: &StackHarness) {
    let [contoso, fabrikam, northwind] = &CUSTOMERS;
    let responses = tokio::join!(
        token(harness, contoso),
        token(harness, fabrikam),
        token(harness, northwind),
        token(harness, fabrikam),
        token(harness, contoso)
    );
    for response in [responses.0, responses.1, responses.2, responses.3, responses.4] {
        is_rejected(&response);
    }
    harness.poll().await;
    for customer in &CUSTOMERS {
        is_rejected(&token(harness, customer).await);
    }
}

/// The next try is due, as far as the registry knows.
async fn a_minute_passes(harness: &StackHarness) {
    let client = aws_sdk_dynamodb::Client::new(harness.stack.aws().config());
    let table = &harness.stack.resources().table;
    let breakers = client
        .query()
        .table_name(table)
        .key_condition_expression("pk = :pk AND begins_with(sk, :prefix)")
        .filter_expression("#open = :true")
        .expression_attribute_names("#open", "open")
        .expression_attribute_values(":pk", AttributeValue::S("CREDENTIAL".into()))
        .expression_attribute_values(":prefix", AttributeValue::S("BREAKER#".into()))
        .expression_attribute_values(":true", AttributeValue::Bool(true));
    let open = breakers.send().await.unwrap().items.unwrap_or_default();
    assert!(!open.is_empty(), "no breaker is open");
    for breaker in open {
        let update = client.update_item().table_name(table);
        let update = ["pk", "sk"].into_iter().fold(update, |update, name| update.key(name, breaker[name].clone()));
        let update = update.update_expression("SET next_probe_at = next_probe_at - :minute");
        update.expression_attribute_values(":minute", AttributeValue::N("60000".into())).send().await.unwrap();
    }
}

fn token_requests(harness: &StackHarness, tenant_id: &str) -> Vec<Call> {
    let calls = harness.sim.calls().into_iter().filter(|call| call.host == Host::Entra && call.method == "POST");
    calls.filter(|call| call.path == format!("/{tenant_id}/oauth2/v2.0/token")).collect()
}

/// The number of token requests for the customers' tenants and for the home tenant, which probes are for.
fn all_token_requests(harness: &StackHarness) -> usize {
    let tenants = CUSTOMERS.iter().map(|customer| customer.tenant_id).chain([HOME]);
    tenants.map(|tenant_id| token_requests(harness, tenant_id).len()).sum()
}

/// The number of log lines of all functions that contain a text.
async fn count_of(harness: &StackHarness, what: &str) -> usize {
    harness.printed().await.iter().filter(|(_, line)| line.contains(what)).count()
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
}
