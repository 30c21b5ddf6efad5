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

use super::world::{APP, CONTOSO, Customer, FABRIKAM, HOME, NORTHWIND, World, refused};

const CUSTOMERS: [Customer; 3] = [CONTOSO, FABRIKAM, NORTHWIND];
const CALLERS: usize = 6;
/// The alarm.
const REFUSED_FOR_ALL: &str = "Entra refuses the app credential";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_in_the_middle_of_a_load_of_token_requests_fail_none() {
    let world = start("rotation").await;
    // Nothing is kept for long, so that every process goes on asking Entra; and Entra needs a moment for a new secret.
    for customer in CUSTOMERS {
        world.sim.update_tenant(customer.tenant_id, |tenant| tenant.token_lifetime_seconds = Some(2));
    }
    world.sim.configure(|behaviour| behaviour.secret_propagation_seconds = 1);
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let caller = async |number: usize| {
        let mut turn = number;
        while !over.load(Ordering::Relaxed) {
            let reply = token(&world, &CUSTOMERS[turn % CUSTOMERS.len()]).await;
            assert_eq!(reply.status, 200, "{}", reply.body);
            answered.fetch_add(1, Ordering::Relaxed);
            turn += 1;
        }
    };
    let rotations = async {
        // So many answers later, every caller has asked for every customer.
        let load = async || {
            let begun = answered.load(Ordering::Relaxed);
            let enough = begun + CALLERS * CUSTOMERS.len();
            world
                .until("the callers go on".into(), async || {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    answered.load(Ordering::Relaxed) >= enough
                })
                .await;
        };
        load().await;
        let mut by_hand = world.sim.client_secrets(APP);
        assert_eq!(by_hand.len(), 1);
        let mut before = None;
        for round in 1..=4 {
            let current = world.rotate().await;
            load().await;
            // What was made by hand stays, the one before is still valid, and the one before that has gone.
            let rotated = before.replace(current.clone()).into_iter().chain([current]);
            assert_eq!(world.sim.client_secrets(APP), by_hand.iter().cloned().chain(rotated).collect::<Vec<_>>());
            if round == 2 {
                // As `infra/README.md` says; by now, every process has read it and keeps it.
                world.sim.remove_client_secret(APP, &by_hand.remove(0));
                load().await;
            }
        }
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(rotations, caller(0), caller(1), caller(2), caller(3), caller(4), caller(5));
    let asked: Vec<_> = CUSTOMERS.iter().flat_map(|customer| token_requests(&world, customer.tenant_id)).collect();
    let refused = asked.iter().filter(|call| call.status == 401).count();
    assert!(refused > 0 && asked.len() > 100, "{refused} of {}: too little was tried", asked.len());
    for bad in [REFUSED_FOR_ALL, "could not be renewed"] {
        assert_eq!(count_of(&world, bad).await, 0, "{bad}");
    }
    world.nothing_failed().await;
    world.lines_are_whole().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_secret_is_told_at_once_and_mended_without_a_restart() {
    let world = start("wrong-secret").await;
    let good = json!({"client_id": APP, "client_secret": world.sim.client_secrets(APP)[0]});
    let nonsense = |text: &str| json!({"client_id": APP, "client_secret": text});

    // One mistake is bridged by the version before.
    world.stack.put_secret(nonsense("nonsense")).await.unwrap();
    world.stack.kill("token-issuance");
    assert_eq!(token(&world, &CONTOSO).await.status, 200);

    world.stack.put_secret(nonsense("more nonsense")).await.unwrap();
    for binary in ["token-issuance", "incident-fetch"] {
        world.stack.kill(binary);
    }
    world.sim.clear_calls();
    is_rejected(&token(&world, &CONTOSO).await);
    assert_eq!(all_token_requests(&world), 2, "the current version, then the one before");
    all_are_rejected(&world).await;
    assert_eq!(all_token_requests(&world), 2);

    a_minute_passes(&world).await;
    all_are_rejected(&world).await;
    assert_eq!(all_token_requests(&world), 3, "one try a minute, of all functions together");

    world.stack.put_secret(good).await.unwrap();
    is_rejected(&token(&world, &CONTOSO).await);
    assert_eq!(all_token_requests(&world), 3);
    a_minute_passes(&world).await;
    for customer in CUSTOMERS {
        assert_eq!(token(&world, &customer).await.status, 200);
    }
    assert_eq!(count_of(&world, REFUSED_FOR_ALL).await, 1, "one alarm");
    world.incident(&CONTOSO, "After the outage", 5);
    world.delivered(1).await;
    world.nothing_failed().await;
    world.lines_are_whole().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_takes_the_secrets_place_without_a_restart() {
    let world = start("certificate").await;
    for customer in CUSTOMERS {
        world.sim.update_tenant(customer.tenant_id, |tenant| tenant.token_lifetime_seconds = Some(2));
    }
    assert_eq!(claims(&world, &CONTOSO).await["appidacr"], "1", "by a client secret");
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let certificate = sim::self_signed(&key, "Litware Security");
    let private_key: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let credential = json!({
        "client_id": APP,
        "certificate": pem("CERTIFICATE", &certificate),
        "private_key": pem("PRIVATE KEY", private_key.as_ref()),
    });
    world.stack.put_secret(credential).await.unwrap();
    // The registration has the certificate and no secret any more.
    world.sim.register_app(App {
        client_id: APP.to_owned(),
        home_tenant_id: HOME.to_owned(),
        certificates: vec![certificate],
        ..App::default()
    });
    for customer in CUSTOMERS {
        world
            .until(format!("{} has a token by certificate", customer.name), async || {
                claims(&world, &customer).await["appidacr"] == "2"
            })
            .await;
    }
    world.incident(&CONTOSO, "By certificate", 5);
    world.delivered(1).await;
    assert_eq!(count_of(&world, REFUSED_FOR_ALL).await, 0);
    world.nothing_failed().await;
    world.lines_are_whole().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_kms_and_then_awss_own_word_take_the_secrets_place_without_a_restart() {
    let aws = Aws::start(|| Clock::system().now()).await.unwrap();
    let elsewhere = [("AWS_ENDPOINT_URL_KMS", aws.endpoint()), ("AWS_ENDPOINT_URL_STS", aws.endpoint())];
    let world = start_with("kms-and-federation", &elsewhere).await;
    for customer in CUSTOMERS {
        world.sim.update_tenant(customer.tenant_id, |tenant| tenant.token_lifetime_seconds = Some(2));
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
        world.stack.put_secret(credential).await.unwrap();
        // The registration has this and nothing else any more.
        let app = App { client_id: APP.to_owned(), home_tenant_id: HOME.to_owned(), ..registered };
        world.sim.register_app(app);
        world.sim.clear_calls();
        for customer in CUSTOMERS {
            world
                .until(format!("{} has a token: {title}", customer.name), async || {
                    let asked = token_requests(&world, customer.tenant_id);
                    token(&world, &customer).await.status == 200 && asked.iter().any(|call| call.status == 200)
                })
                .await;
        }
        world.incident(&CONTOSO, title, 5);
        world.delivered(delivered).await;
        assert!(aws.account().calls(call) > 0, "{call} was not called");
    }
    assert_eq!(count_of(&world, REFUSED_FOR_ALL).await, 0);
    world.nothing_failed().await;
    world.lines_are_whole().await;
    world.end().await;
}

/// What an app registration stores about AWS's tokens.
fn federated_credential(aws: &Aws) -> FederatedCredential {
    FederatedCredential {
        issuer: ISSUER.into(),
        subject: ROLE_ARN.into(),
        audience: "api://AzureADTokenExchange".into(),
        jwks: aws.jwks().unwrap(),
    }
}

/// Three customers that are active.
async fn start(name: &str) -> World {
    start_with(name, &[]).await
}

/// The same, with these variables for all functions.
async fn start_with(name: &str, variables: &[(&str, &str)]) -> World {
    let world = World::start(name, variables).await;
    for customer in CUSTOMERS {
        world.seed(&customer);
        world.onboard(&customer, None).await;
    }
    world
}

impl World {
    /// A rotation; answers the secret that is current after it.
    async fn rotate(&self) -> String {
        self.stack.rotate().await.unwrap();
        let secrets = aws_sdk_secretsmanager::Client::new(self.stack.aws().config());
        let current = secrets.get_secret_value().secret_id(&self.stack.resources().secret).version_stage("AWSCURRENT");
        let current: Value = serde_json::from_str(current.send().await.unwrap().secret_string().unwrap()).unwrap();
        current["client_secret"].as_str().unwrap().to_owned()
    }
}

async fn token(world: &World, customer: &Customer) -> ApiResponse {
    world.call("POST", &format!("{}/token", customer.path()), None).await
}

async fn claims(world: &World, customer: &Customer) -> Value {
    let reply = world.expect(200, "POST", &format!("{}/token", customer.path()), None).await;
    let claims = reply["access_token"].as_str().unwrap().split('.').nth(1).unwrap().to_owned();
    serde_json::from_slice(&base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

fn is_rejected(reply: &ApiResponse) {
    let problem = refused("a token by a wrong secret", reply, "internal");
    assert_eq!(problem["reason"], "credential_rejected", "{problem}");
}

/// Token requests for every customer, several at once, and polls of all.
async fn all_are_rejected(world: &World) {
    let [contoso, fabrikam, northwind] = &CUSTOMERS;
    let replies = tokio::join!(
        token(world, contoso),
        token(world, fabrikam),
        token(world, northwind),
        token(world, fabrikam),
        token(world, contoso)
    );
    for reply in [replies.0, replies.1, replies.2, replies.3, replies.4] {
        is_rejected(&reply);
    }
    world.poll().await;
    for customer in &CUSTOMERS {
        is_rejected(&token(world, customer).await);
    }
}

/// The next try is due, as far as the registry knows.
async fn a_minute_passes(world: &World) {
    let update = aws_sdk_dynamodb::Client::new(world.stack.aws().config()).update_item();
    let update = update.table_name(&world.stack.resources().table);
    let key = [("pk", "CREDENTIAL"), ("sk", "BREAKER")];
    let update =
        key.into_iter().fold(update, |update, (name, value)| update.key(name, AttributeValue::S(value.into())));
    let update = update.update_expression("SET next_probe_at = next_probe_at - :minute");
    let update = update.expression_attribute_values(":minute", AttributeValue::N("60000".into()));
    update
        .condition_expression("#open = :true")
        .expression_attribute_names("#open", "open")
        .expression_attribute_values(":true", AttributeValue::Bool(true))
        .send()
        .await
        .unwrap();
}

fn token_requests(world: &World, tenant_id: &str) -> Vec<Call> {
    let calls = world.sim.calls().into_iter().filter(|call| call.host == Host::Entra && call.method == "POST");
    calls.filter(|call| call.path == format!("/{tenant_id}/oauth2/v2.0/token")).collect()
}

fn all_token_requests(world: &World) -> usize {
    CUSTOMERS.iter().map(|customer| token_requests(world, customer.tenant_id).len()).sum()
}

/// How many lines of all functions hold this.
async fn count_of(world: &World, what: &str) -> usize {
    world.printed().await.iter().filter(|(_, line)| line.contains(what)).count()
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
}
