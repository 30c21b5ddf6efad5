//! The token client and `token-issuance` against a token endpoint on loopback.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_config::SdkConfig;
use aws_double::{Aws, TABLE};
use aws_lc_rs::signature::KeyPair;
use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::SignedDuration;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    entra::{token_cache::Tokens, token_endpoint::AuthorizationCode},
    error::Error,
    http::{Deadline, HttpClient},
    lambda::event::Invocation,
    microsoft::{Cloud, Endpoints, IncidentApi, IncidentApiSetting, Microsoft},
    registry::{Registry, tenants::Status},
    tenant::{Reason, TenantId},
    text::Secret,
};
use tracing::Instrument;

use crate::local::{lines_of, unique_request_id};

const CLIENT: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const A: &str = "11111111-2222-4333-8444-abcdefabcdef";
const B: &str = "22222222-2222-4333-8444-abcdefabcdef";

/// The token endpoint: takes the secrets that it knows, or does what was scripted for a tenant.
#[derive(Clone)]
struct Entra {
    book: Arc<Mutex<Book>>,
    url: String,
}

#[derive(Default)]
struct Book {
    secrets: BTreeSet<String>,
    scripts: BTreeMap<String, VecDeque<Script>>,
    requests: Vec<(String, BTreeMap<String, String>)>,
    clock: Clock,
    lifetime: i64,
}

#[derive(Clone)]
enum Script {
    /// HTTP status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// Claims that are not what was asked for.
    Claims(Value),
    /// A token that cannot be looked into.
    Opaque(Value),
    Hang,
}

fn refusal(code: u64) -> Script {
    Script::Answer(401, vec![], json!({"error": "invalid_client", "error_codes": [code]}).to_string())
}

impl Entra {
    async fn start(clock: &Clock) -> Self {
        let book = Book { clock: clock.clone(), lifetime: 3599, ..Book::default() };
        let book = Arc::new(Mutex::new(book));
        let router = Router::new().route("/{tenant}/oauth2/v2.0/token", post(token)).with_state(book.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { book, url }
    }

    fn know(&self, secret: &str) {
        self.book.lock().unwrap().secrets.insert(secret.into());
    }

    fn forget(&self, secret: &str) {
        self.book.lock().unwrap().secrets.remove(secret);
    }

    fn script(&self, tenant: &str, script: Script) {
        self.book.lock().unwrap().scripts.entry(tenant.into()).or_default().push_back(script);
    }

    fn count(&self) -> usize {
        self.book.lock().unwrap().requests.len()
    }

    fn last(&self, name: &str) -> String {
        self.book.lock().unwrap().requests.last().unwrap().1[name].clone()
    }
}

async fn token(State(book): State<Arc<Mutex<Book>>>, Path(tenant): Path<String>, body: String) -> Response {
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let (script, known, now, lifetime, number) = {
        let mut book = book.lock().unwrap();
        book.requests.push((tenant.clone(), form.clone()));
        let script = book.scripts.get_mut(&tenant).and_then(VecDeque::pop_front);
        let known = form.get("client_secret").is_none_or(|secret| book.secrets.contains(secret));
        (script, known, book.clock.now().as_second(), book.lifetime, book.requests.len())
    };
    let graph = form.get("scope").is_none_or(|scope| scope == "https://graph.microsoft.com/.default");
    let (audience, role) = if graph {
        ("https://graph.microsoft.com", "SecurityIncident.Read.All")
    } else {
        ("https://api.security.microsoft.com", "Incident.Read.All")
    };
    let mut claims = json!({"tid": tenant, "appid": CLIENT, "aud": audience, "roles": [role], "oid": "o", "idtyp": "app",
                            "iss": format!("https://sts.windows.net/{tenant}/"), "nbf": now, "exp": now + lifetime,
                            "uti": format!("uti-{number}")});
    match script {
        Some(Script::Answer(status, headers, body)) => {
            let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            return response;
        }
        Some(Script::Hang) => std::future::pending().await,
        Some(Script::Claims(other)) => {
            for (name, value) in other.as_object().unwrap() {
                claims[name] = value.clone();
            }
        }
        Some(Script::Opaque(body)) => return axum::Json(body).into_response(),
        None if !known => {
            let body = json!({"error": "invalid_client", "error_codes": [7_000_215]}).to_string();
            return (StatusCode::UNAUTHORIZED, body).into_response();
        }
        None => tokio::time::sleep(Duration::from_millis(30)).await,
    }
    let token = format!("e30.{}.signature", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
    axum::Json(
        json!({"token_type": "Bearer", "expires_in": lifetime, "access_token": token, "id_token": "an.id.token"}),
    )
    .into_response()
}

/// One deployment: its clock, its AWS, its Entra. Each [`World::process`] is a function's process of its own.
struct World {
    clock: Clock,
    aws: Aws,
    config: SdkConfig,
    entra: Entra,
}

impl World {
    async fn start() -> Self {
        let clock = Clock::by_hand("2026-11-22T10:00:00Z".parse().unwrap());
        let now = clock.clone();
        let aws = Aws::start(move || now.now()).await.unwrap();
        let config = aws.config().await;
        let world = Self { aws, config, entra: Entra::start(&clock).await, clock };
        world.entra.know("secret-1");
        world.set_secret(&secret("secret-1"));
        world
    }

    fn microsoft(&self) -> Microsoft {
        Microsoft {
            app_credential_secret_id: "app".into(),
            cloud: Cloud::Commercial,
            endpoints: Endpoints { authority: self.entra.url.parse().unwrap(), ..Cloud::Commercial.endpoints() },
        }
    }

    fn registry(&self) -> Registry {
        Registry::new(&self.config, TABLE.into())
    }

    fn process(&self) -> Tokens {
        let outbound = HttpClient::new().unwrap();
        let random = Arc::new(aws_lc_rs::rand::SystemRandom::new());
        Tokens::new(&self.microsoft(), outbound, &self.config, self.registry(), self.clock.clone(), random)
    }

    /// Gives the credential a new current value. The former one becomes the previous one.
    fn set_secret(&self, value: &Value) {
        self.aws.account().set_secret("app", value);
    }

    fn aws_calls(&self, operation: &str) -> usize {
        self.aws.account().calls(operation)
    }

    fn pass(&self, seconds: i64) {
        self.clock.advance(SignedDuration::from_secs(seconds));
    }
}

fn secret(value: &str) -> Value {
    json!({"client_id": CLIENT, "client_secret": value})
}

fn tenant(text: &str) -> TenantId {
    text.parse().unwrap()
}

fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(20), &Clock::system())
}

async fn ask(tokens: &Tokens, of: &str) -> Result<String, Error> {
    tokens.access_token(&tenant(of), IncidentApi::Graph, soon()).await.map(|token| token.expose().to_owned())
}

#[tokio::test]
async fn five_hundred_cold_callers_cost_one_request() {
    let world = World::start().await;
    let tokens = world.process();
    let callers = (0..500).map(|_| {
        let tokens = tokens.clone();
        tokio::spawn(async move { ask(&tokens, A).await.unwrap() })
    });
    let mut seen = BTreeSet::new();
    for caller in callers.collect::<Vec<_>>() {
        seen.insert(caller.await.unwrap());
    }
    assert_eq!((world.entra.count(), seen.len()), (1, 1));
    assert_eq!(world.aws_calls("GetSecretValue"), 1);
}

#[tokio::test]
async fn a_failure_is_shared_by_those_who_waited_for_it() {
    let world = World::start().await;
    let tokens = world.process();
    world.entra.script(A, refusal(7_000_229));
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let tokens = tokens.clone();
            tokio::spawn(async move { ask(&tokens, A).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), Err(Error::Refused(Reason::ConsentMissing)));
    }
    assert_eq!(world.entra.count(), 1);
}

#[tokio::test]
async fn a_token_is_kept_for_its_tenant_and_surface_and_renewed_ahead() {
    let world = World::start().await;
    let tokens = world.process();
    let first = ask(&tokens, A).await.unwrap();
    assert_eq!(ask(&tokens, A).await.unwrap(), first);
    assert_ne!(ask(&tokens, B).await.unwrap(), first);
    let defender = tokens.access_token(&tenant(A), IncidentApi::Defender, soon()).await.unwrap();
    assert_ne!(defender.expose(), first);
    assert_eq!(defender.roles().unwrap(), ["Incident.Read.All"]);
    assert_eq!(world.entra.count(), 3);
    // 3599 seconds less a tenth.
    world.pass(3_200);
    assert_eq!(ask(&tokens, A).await.unwrap(), first);
    world.pass(60);
    let second = ask(&tokens, A).await.unwrap();
    assert_ne!(second, first);
    assert_eq!(world.entra.count(), 4);
}

#[tokio::test]
async fn a_token_that_cannot_be_renewed_is_used_while_it_lives() {
    let world = World::start().await;
    let tokens = world.process();
    let first = ask(&tokens, A).await.unwrap();
    world.pass(3_300);
    for _ in 0..2 {
        world.entra.script(A, Script::Answer(500, vec![], String::new()));
    }
    assert_eq!(ask(&tokens, A).await.unwrap(), first);
    let asked = world.entra.count();
    assert_eq!(ask(&tokens, A).await.unwrap(), first, "and Entra is left alone for a while");
    assert_eq!(world.entra.count(), asked);
    world.pass(280);
    for _ in 0..2 {
        world.entra.script(A, Script::Answer(500, vec![], String::new()));
    }
    let outcome = ask(&tokens, A).await;
    assert!(matches!(outcome, Err(Error::Upstream { status: 500, .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_failure_of_microsofts_is_tried_once_more() {
    let world = World::start().await;
    let tokens = world.process();
    world.entra.script(A, Script::Answer(502, vec![], "<html>".into()));
    assert!(ask(&tokens, A).await.is_ok());
    world.entra.script(B, Script::Answer(400, vec![], json!({"error": "x", "error_codes": [90_033]}).to_string()));
    assert!(ask(&tokens, B).await.is_ok());
    assert_eq!(world.entra.count(), 4);
}

#[tokio::test]
async fn a_withdrawn_consent_is_noticed_by_whoever_asks_for_a_confirmed_token() {
    let world = World::start().await;
    let tokens = world.process();
    let age = SignedDuration::from_secs(20);
    let confirmed = || async { tokens.access_token_no_older_than(&tenant(A), IncidentApi::Graph, age, soon()).await };
    let first = confirmed().await.unwrap();
    world.pass(19);
    assert_eq!(confirmed().await.unwrap().expose(), first.expose());
    assert_eq!(world.entra.count(), 1);
    world.pass(2);
    world.entra.script(A, Script::Answer(503, vec![], String::new()));
    assert_eq!(confirmed().await.unwrap().expose(), first.expose(), "where Entra cannot be asked, the old one will do");
    world.pass(61);
    world.entra.script(A, refusal(7_000_229));
    assert_eq!(confirmed().await.unwrap_err(), Error::Refused(Reason::ConsentMissing));
    world.entra.script(A, refusal(7_000_229));
    assert!(ask(&tokens, A).await.is_err(), "the old token was dropped");
}

#[tokio::test]
async fn a_fresh_token_takes_the_place_of_the_old_and_a_forgotten_one_is_gone() {
    let world = World::start().await;
    let tokens = world.process();
    let first = ask(&tokens, A).await.unwrap();
    let fresh = tokens.fresh_access_token(&tenant(A), IncidentApi::Graph, soon()).await.unwrap();
    assert_ne!(fresh.expose(), first);
    assert_eq!(ask(&tokens, A).await.unwrap(), fresh.expose());
    tokens.forget(&tenant(A));
    assert_ne!(ask(&tokens, A).await.unwrap(), fresh.expose());
}

#[tokio::test]
async fn a_throttled_tenant_rests_in_all_functions_and_no_other_does() {
    let world = World::start().await;
    let (one, other) = (world.process(), world.process());
    world.entra.script(A, Script::Answer(429, vec![("retry-after", "300".into())], String::new()));
    let until = world.clock.now() + SignedDuration::from_secs(300);
    assert_eq!(ask(&one, A).await, Err(Error::Throttled { until }));
    let asked = world.entra.count();
    assert_eq!(ask(&one, A).await, Err(Error::Throttled { until }));
    assert_eq!(ask(&other, A).await, Err(Error::Throttled { until }));
    one.forget(&tenant(A));
    let fresh = one.fresh_access_token(&tenant(A), IncidentApi::Graph, soon()).await;
    assert_eq!(fresh.unwrap_err(), Error::Throttled { until });
    assert_eq!(world.entra.count(), asked);
    assert!(ask(&one, B).await.is_ok());
    world.pass(301);
    assert!(ask(&other, A).await.is_ok());
    // Without a time, a minute.
    world.entra.script(B, Script::Answer(503, vec![], String::new()));
    let until = world.clock.now() + SignedDuration::from_secs(60);
    let fresh = one.fresh_access_token(&tenant(B), IncidentApi::Graph, soon()).await;
    assert_eq!(fresh.unwrap_err(), Error::Throttled { until });
}

#[tokio::test]
async fn a_token_of_another_tenant_is_thrown_away_and_never_kept() {
    let world = World::start().await;
    let tokens = world.process();
    for claims in [json!({"tid": B}), json!({"appid": B}), json!({"aud": "https://api.security.microsoft.com"})] {
        world.entra.script(A, Script::Claims(claims));
        assert!(matches!(ask(&tokens, A).await, Err(Error::Malformed { .. })));
    }
    assert!(ask(&tokens, A).await.is_ok());
    assert_eq!(world.entra.count(), 4);
}

#[tokio::test]
async fn an_opaque_token_with_a_lifetime_in_text_is_taken() {
    let world = World::start().await;
    let tokens = world.process();
    let body = json!({"token_type": "bearer", "expires_in": "599", "access_token": "opaque"});
    world.entra.script(A, Script::Opaque(body));
    let token = tokens.access_token(&tenant(A), IncidentApi::Graph, soon()).await.unwrap();
    assert_eq!((token.roles(), token.expose()), (None, "opaque"));
    assert_eq!(token.expires_at(), world.clock.now() + SignedDuration::from_secs(599));
}

#[tokio::test]
async fn a_rotation_under_load_fails_nobody() {
    let world = World::start().await;
    let tokens = world.process();
    ask(&tokens, A).await.unwrap();
    world.entra.know("secret-2");
    world.entra.forget("secret-1");
    world.set_secret(&secret("secret-2"));
    let callers: Vec<_> = (0..100)
        .map(|number| {
            let tokens = tokens.clone();
            tokio::spawn(async move { ask(&tokens, &format!("{number:08}-2222-4333-8444-abcdefabcdef")).await })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(world.aws_calls("GetSecretValue"), 2, "read again once for all");
    assert_eq!(
        world.registry().breaker_decision(world.clock.now()).await,
        Ok(shared::registry::breaker::BreakerDecision::Allow)
    );
}

#[tokio::test]
async fn a_secret_that_entra_does_not_know_yet_is_bridged_by_the_one_before() {
    let world = World::start().await;
    world.set_secret(&secret("secret-2"));
    let tokens = world.process();
    let callers: Vec<_> = (0..100)
        .map(|number| {
            let tokens = tokens.clone();
            tokio::spawn(async move { ask(&tokens, &format!("{number:08}-2222-4333-8444-abcdefabcdef")).await })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    let asked = world.entra.count();
    ask(&tokens, A).await.unwrap();
    assert_eq!(world.entra.count(), asked + 1, "the version that works is tried first");
    // After five minutes the new one gets its next chance.
    world.entra.know("secret-2");
    world.pass(301);
    ask(&tokens, B).await.unwrap();
    assert_eq!(world.entra.last("client_secret"), "secret-2");
}

#[tokio::test]
async fn a_refused_credential_stops_all_functions_but_for_one_try_a_minute() {
    let world = World::start().await;
    world.set_secret(&secret("wrong"));
    world.entra.forget("secret-1");
    let (one, other) = (world.process(), world.process());
    assert_eq!(ask(&one, A).await, Err(Error::CredentialRejected));
    let asked = world.entra.count();
    assert_eq!(asked, 2, "the current version, then the one before");
    for _ in 0..5 {
        assert_eq!(ask(&one, B).await, Err(Error::CredentialRejected));
        assert_eq!(ask(&other, A).await, Err(Error::CredentialRejected));
    }
    assert_eq!(world.entra.count(), asked);
    world.pass(61);
    assert_eq!(ask(&one, B).await, Err(Error::CredentialRejected));
    assert_eq!(ask(&other, B).await, Err(Error::CredentialRejected));
    assert_eq!(world.entra.count(), asked + 1);
    // The operator renews it: the next try closes the breaker for all.
    world.set_secret(&secret("secret-3"));
    world.entra.know("secret-3");
    assert_eq!(ask(&one, B).await, Err(Error::CredentialRejected));
    world.pass(61);
    ask(&other, B).await.unwrap();
    ask(&one, A).await.unwrap();
    assert_eq!(world.entra.count(), asked + 4, "`one` still held the secret that was refused");
}

#[tokio::test]
async fn each_refused_try_is_counted_so_that_the_alarm_lasts() {
    let world = World::start().await;
    world.entra.forget("secret-1");
    let tokens = world.process();
    lines_of("");
    let request_id = unique_request_id();
    for _ in 0..3 {
        let invocation = Invocation { request_id: request_id.clone(), deadline: soon() };
        let outcome = invocation.in_request_span(async { (ask(&tokens, A).await, ask(&tokens, B).await) }).await;
        assert_eq!(outcome, (Err(Error::CredentialRejected), Err(Error::CredentialRejected)));
        world.pass(61);
    }
    let lines = lines_of(&request_id);
    let counted: Vec<_> = lines.iter().filter_map(|line| line["CredentialRejected"].as_f64()).collect();
    assert_eq!(counted, [1.0, 1.0, 1.0], "one a minute, however many ask");
}

#[tokio::test]
async fn many_callers_find_out_together_that_the_credential_is_refused() {
    let world = World::start().await;
    world.entra.forget("secret-1");
    let tokens = world.process();
    lines_of("");
    let invocation = Invocation { request_id: "many-callers".into(), deadline: soon() };
    let outcomes = invocation.in_request_span(futures(&tokens, 50)).await;
    let others: Vec<_> = outcomes.iter().filter(|outcome| **outcome != Err(Error::CredentialRejected)).collect();
    assert!(others.is_empty(), "{others:?}");
    let asked = world.entra.count();
    assert!((1..=50).contains(&asked), "those that were on their way, and none a second time: {asked}");
    assert_eq!(ask(&tokens, A).await, Err(Error::CredentialRejected));
    assert_eq!(world.entra.count(), asked, "none after");
    let alarms = lines_of("many-callers").into_iter().filter(|line| line["level"] == "ERROR").count();
    assert_eq!(alarms, 1);
}

#[tokio::test]
async fn a_refusal_of_the_tenants_own_does_not_touch_the_credential() {
    let world = World::start().await;
    let tokens = world.process();
    world.entra.script(A, refusal(7_000_229));
    assert_eq!(ask(&tokens, A).await, Err(Error::Refused(Reason::ConsentMissing)));
    assert_eq!((world.entra.count(), world.aws_calls("GetSecretValue")), (1, 1));
    assert!(ask(&tokens, B).await.is_ok());
}

#[tokio::test]
async fn secrets_manager_may_be_down_while_a_value_is_kept() {
    let world = World::start().await;
    let tokens = world.process();
    ask(&tokens, A).await.unwrap();
    world.aws.account().deny_secrets(true);
    world.pass(301);
    ask(&tokens, B).await.unwrap();
    let cold = ask(&world.process(), B).await;
    assert!(matches!(cold, Err(Error::Internal(_))), "{cold:?}");
    // A secret of no kind does not take the place of one that works.
    world.aws.account().deny_secrets(false);
    world.set_secret(&json!({"client_id": CLIENT}));
    world.pass(31);
    tokens.forget(&tenant(B));
    ask(&tokens, B).await.unwrap();
}

#[tokio::test]
async fn a_key_in_kms_signs_what_its_public_key_verifies() {
    let world = World::start().await;
    let certificate = "-----BEGIN CERTIFICATE-----\nAQIDBA==\n-----END CERTIFICATE-----\n";
    let credential = json!({"client_id": CLIENT, "certificate": certificate, "kms_key_id": "alias/mandate"});
    world.set_secret(&credential);
    ask(&world.process(), A).await.unwrap();
    assert_eq!(world.entra.last("client_assertion_type"), "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
    let mut validation = Validation::new(Algorithm::PS256);
    validation.set_audience(&[format!("https://login.microsoftonline.com/{A}/oauth2/v2.0/token")]);
    // The assertion was made at the clock's time, which stands still.
    validation.validate_exp = false;
    let key = DecodingKey::from_rsa_der(world.aws.kms_key().unwrap().public_key().as_ref());
    let assertion = world.entra.last("client_assertion");
    let decoded = jsonwebtoken::decode::<Value>(&assertion, &key, &validation).unwrap();
    assert_eq!(decoded.claims["iss"], CLIENT);
    assert_eq!(decoded.header.x5t_s256.as_deref(), Some("n2SnR-G5fxMfq7a0Rylsm28CAeefs8U1bmx36JtqgGo"));
}

#[tokio::test]
async fn one_word_of_awss_serves_all_tenants_while_it_lives() {
    let world = World::start().await;
    world.set_secret(&json!({"client_id": CLIENT, "federated": true}));
    let tokens = world.process();
    ask(&tokens, A).await.unwrap();
    let first = world.entra.last("client_assertion");
    ask(&tokens, B).await.unwrap();
    assert_eq!(world.entra.last("client_assertion"), first);
    world.pass(241);
    tokens.forget(&tenant(A));
    ask(&tokens, A).await.unwrap();
    assert_ne!(world.entra.last("client_assertion"), first);
    // One that came too late is made anew at once.
    tokens.forget(&tenant(A));
    world.entra.script(A, refusal(700_024));
    ask(&tokens, A).await.unwrap();
    assert_eq!(world.aws_calls("GetWebIdentityToken"), 3);
}

#[tokio::test]
async fn an_endpoint_that_hangs_costs_no_more_than_the_deadline() {
    let world = World::start().await;
    let tokens = world.process();
    world.entra.script(A, Script::Hang);
    let enough = Deadline::within(Duration::from_secs(3), &Clock::system());
    let outcome = tokens
        .access_token(&tenant(A), IncidentApi::Graph, Deadline::within(Duration::from_secs(2), &Clock::system()))
        .await;
    assert_eq!(outcome.unwrap_err(), Error::DeadlineExceeded);
    assert!(!enough.left().is_zero());
    assert!(ask(&tokens, A).await.is_ok());
}

#[tokio::test]
async fn a_code_is_redeemed_where_the_sign_in_was() {
    let world = World::start().await;
    let tokens = world.process();
    let (code, verifier) = (Secret::new("code".into()), Secret::new("verifier".into()));
    let code = AuthorizationCode {
        authority: "organizations",
        code: &code,
        redirect_uri: "https://x/consent/callback",
        code_verifier: &verifier,
    };
    let redeem = || tokens.redeem_code(code, soon());
    assert_eq!(redeem().await.unwrap().expose(), "an.id.token");
    let (authority, form) = world.entra.book.lock().unwrap().requests[0].clone();
    assert_eq!(authority, "organizations");
    assert_eq!((form["code"].as_str(), form["code_verifier"].as_str()), ("code", "verifier"));
    assert_eq!(tokens.client_id(soon()).await.unwrap(), CLIENT);
    let body = json!({"error": "invalid_grant", "error_codes": [54_005]}).to_string();
    world.entra.script("organizations", Script::Answer(400, vec![], body));
    assert!(matches!(redeem().await, Err(Error::Upstream { status: 400, .. })));
}

async fn futures(tokens: &Tokens, count: usize) -> Vec<Result<String, Error>> {
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..count {
        let tokens = tokens.clone();
        let caller = async move { ask(&tokens, &format!("{number:08}-2222-4333-8444-abcdefabcdef")).await };
        callers.spawn(caller.in_current_span());
    }
    callers.join_all().await
}

mod issuance {
    use std::io::Write;

    use shared::telemetry::JsonLines;
    use token_issuance::{App, Config};
    use tracing::level_filters::LevelFilter;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::local::customer_s_tenant;

    struct Deployment {
        world: World,
        app: App,
        request_id: String,
    }

    async fn deployment() -> Deployment {
        let world = World::start().await;
        let config =
            Config { microsoft: world.microsoft(), table_name: TABLE.into(), incident_api: IncidentApiSetting::Auto };
        let app = App::new(config, &crate::local::platform(&world.config, &world.clock));
        for (id, status, reason) in
            [(A, Status::Active, None), (B, Status::Paused, Some(Reason::Operator)), (GONE, Status::Offboarded, None)]
        {
            let tenant = customer_s_tenant(tenant(id), status, reason);
            world.registry().create_tenant(&tenant).await.unwrap();
        }
        let request_id = unique_request_id();
        Deployment { world, app, request_id }
    }

    const GONE: &str = "33333333-2222-4333-8444-abcdefabcdef";
    const CALLER: &str = "arn:aws:sts::123456789012:assumed-role/Soc/anna";

    impl Deployment {
        fn invocation(&self) -> Invocation {
            let in_20_s = self.world.clock.now().as_millisecond() + 20_000;
            Invocation::new(self.request_id.clone(), u64::try_from(in_20_s).unwrap(), &self.world.clock)
        }

        async fn post(&self, path: &str, body: &str) -> (u16, Value, Value) {
            let event = json!({
                "version": "2.0", "rawPath": path, "body": body, "isBase64Encoded": false,
                "requestContext": {"http": {"method": "POST", "path": path}, "stage": "$default",
                                   "authorizer": {"iam": {"userArn": CALLER}}},
            });
            self.http(event).await
        }

        async fn http(&self, event: Value) -> (u16, Value, Value) {
            let answer = self.app.handle(event, self.invocation()).await.unwrap();
            let body = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
            (answer["statusCode"].as_u64().unwrap().try_into().unwrap(), body, answer["headers"].clone())
        }

        async fn direct(&self, call: Value) -> Result<Value, &'static str> {
            self.app.handle(call, self.invocation()).await.map_err(|failure| failure.code)
        }
    }

    #[tokio::test]
    async fn both_ways_give_the_same_object_and_an_audit_line_without_the_token() {
        let deployment = deployment().await;
        lines_of("");
        let (status, body, headers) = deployment.post(&format!("/tenants/{A}/token"), "").await;
        assert_eq!(status, 200);
        assert_eq!(
            (headers["cache-control"].as_str(), headers["content-type"].as_str()),
            (Some("no-store"), Some("application/json"))
        );
        let token = body["access_token"].as_str().unwrap();
        assert_eq!(
            body,
            json!({"token_type": "Bearer", "access_token": token, "expires_in": 3599, "expires_at": "2026-11-22T10:59:59Z",
                   "tenant_id": A, "resource": "graph", "roles": ["SecurityIncident.Read.All"]})
        );
        assert_eq!(deployment.direct(json!({"tenant_id": A})).await.unwrap(), body);
        let defender = deployment.direct(json!({"tenant_id": A, "resource": "defender"})).await.unwrap();
        assert_eq!(defender["resource"], "defender");
        let lines = lines_of(&deployment.request_id);
        let audit: Vec<Value> = lines.iter().filter(|line| line["audit"] == true).cloned().collect();
        assert_eq!(audit.len(), 3);
        assert_eq!(
            audit[0],
            json!({"timestamp": audit[0]["timestamp"], "level": "INFO", "message": "access token issued", "audit": true,
                   "request_id": deployment.request_id, "caller": CALLER, "tenant_id": A, "resource": "graph",
                   "roles": "SecurityIncident.Read.All", "expires_at": "2026-11-22T10:59:59Z",
                   "token_id_sha256": "a4c37a913d5d857d160ca7249d7e69adc0516d3ca58d74f04c6ad6234ea9ce45"})
        );
        assert_eq!(audit[1]["caller"], "direct");
        assert_eq!(audit[2]["resource"], "defender");
        for hidden in [token, defender["access_token"].as_str().unwrap(), "secret-1"] {
            assert!(lines.iter().all(|line| !line.to_string().contains(hidden)));
        }
    }

    #[tokio::test]
    async fn no_token_is_handed_out_when_the_line_of_the_audit_is_lost() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let deployment = deployment().await;
        lines_of("");
        let full = JsonLines::new(LevelFilter::INFO, deployment.world.clock.clone(), Arc::new(Mutex::new(Full)));
        let logging = tracing::subscriber::set_default(tracing_subscriber::registry().with(full));
        let (status, problem, _) = deployment.post(&format!("/tenants/{A}/token"), "").await;
        assert_eq!((status, problem["code"].as_str()), (500, Some("internal")));
        assert!(!problem.to_string().contains("access_token"));
        assert_eq!(deployment.direct(json!({"tenant_id": A})).await, Err("internal"));
        drop(logging);
        assert_eq!(deployment.post(&format!("/tenants/{A}/token"), "").await.0, 200);
    }

    #[tokio::test]
    async fn strangers_of_every_shape_get_nothing_and_cost_no_call_outside() {
        let deployment = deployment().await;
        let path = |segment: &str| format!("/tenants/{segment}/token");
        let upper = A.to_uppercase();
        let unknown = "44444444-2222-4333-8444-abcdefabcdef";
        let encoded = A.replace('-', "%2d");
        for segment in [unknown, &upper, &encoded, "common", "organizations", "contoso.example", "", "..", "{x}"] {
            let (status, body, _) = deployment.post(&path(segment), "").await;
            assert_eq!((status, body["code"].as_str()), (404, Some("not_found")), "{segment}");
        }
        let table = [
            (path(A), r#"{"resource": "mail"}"#, 400, "invalid_request"),
            (path(A), r#"{"resource": "Graph"}"#, 400, "invalid_request"),
            (path(A), r#"{"scope": "x"}"#, 400, "invalid_request"),
            (path(A), "[", 400, "invalid_request"),
            (path(A), r#"["graph"]"#, 400, "invalid_request"),
            (path(unknown), r#"{"resource": "mail"}"#, 404, "not_found"),
            (path("common"), "[", 404, "not_found"),
            (path(B), "[", 409, "tenant_not_active"),
            (path(B), "", 409, "tenant_not_active"),
            (path(GONE), "", 409, "tenant_not_active"),
            (format!("/tenants/{A}"), "", 404, "not_found"),
            (format!("/tenants/{A}/token/"), "", 404, "not_found"),
        ];
        for (path, body, status, code) in table {
            let (found, problem, headers) = deployment.post(&path, body).await;
            assert_eq!((found, problem["code"].as_str()), (status, Some(code)), "{path} {body}");
            assert_eq!(headers["content-type"], "application/problem+json");
        }
        let (_, problem, _) = deployment.post(&path(B), "").await;
        assert_eq!(problem["reason"], "operator");
        let forged = json!({"rawPath": path(A), "requestContext": {"http": {"method": "POST"}, "authorizer": {}}});
        let (status, problem, _) = deployment.http(forged).await;
        assert_eq!((status, problem["code"].as_str()), (403, Some("unauthorized_caller")));
        for (call, code) in [
            (json!({"tenant_id": unknown}), "not_found"),
            (json!({"tenant_id": upper}), "not_found"),
            (json!({"tenant_id": B}), "tenant_not_active"),
            (json!({"tenant_id": unknown, "resource": "x"}), "not_found"),
            (json!([A]), "invalid_request"),
            (json!([A, "graph"]), "invalid_request"),
            (json!({"tenant_id": A, "resource": "x"}), "invalid_request"),
            (json!({"tenant_id": A, "scope": "x"}), "invalid_request"),
            (json!({"tenant_id": 7}), "invalid_request"),
            (json!({}), "invalid_request"),
            (json!("x"), "invalid_request"),
            (json!({"Records": []}), "invalid_request"),
        ] {
            assert_eq!(deployment.direct(call.clone()).await, Err(code), "{call}");
        }
        let refused = lines_of(&deployment.request_id).into_iter().filter(|line| line["message"] == "call refused");
        assert!(refused.into_iter().any(|line| line["tenant_id"] == B), "a direct call's lines name the tenant");
        assert_eq!(deployment.world.entra.count(), 0);
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_as_the_interface_says() {
        let deployment = deployment().await;
        lines_of("");
        let entra = &deployment.world.entra;
        let path = format!("/tenants/{A}/token");
        entra.script(A, refusal(7_000_112));
        let (status, problem, _) = deployment.post(&path, "").await;
        assert_eq!((status, problem["reason"].as_str()), (409, Some("disabled_by_customer")));
        entra.script(A, Script::Answer(429, vec![("retry-after", "7".into())], String::new()));
        let (status, problem, headers) = deployment.post(&path, "").await;
        assert_eq!(
            (status, problem["code"].as_str(), headers["retry-after"].as_str()),
            (503, Some("throttled"), Some("7"))
        );
        assert_eq!(deployment.direct(json!({"tenant_id": A})).await, Err("throttled"));
        deployment.world.pass(8);
        entra.script(A, Script::Claims(json!({"roles": []})));
        let (status, problem, _) = deployment.post(&path, r#"{"resource": "defender"}"#).await;
        assert_eq!((status, problem["code"].as_str()), (409, Some("conflict")));
        assert_eq!(problem["reason"], "role_missing");
        entra.forget("secret-1");
        let (status, problem, _) = deployment.post(&path, "").await;
        assert_eq!((status, problem["code"].as_str()), (500, Some("internal")));
        assert_eq!(problem["reason"], "credential_rejected");
        let asked = entra.count();
        assert_eq!(deployment.direct(json!({"tenant_id": A})).await, Err("internal"));
        assert_eq!(entra.count(), asked);
        let lines = lines_of(&deployment.request_id);
        let failures = lines.iter().filter(|line| line["InternalFailure"] == 1.0).count();
        assert_eq!(failures, 2, "what is Microsoft's or the caller's doing is no failure of ours");
    }
}
