//! The token client and `token-issuance` against a token endpoint on loopback.
//!
//! Long, because the token endpoint at the top follows scripts that only these tests have.

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

use crate::backends::{lines_of, unique_request_id};

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

/// One deployment: its clock, its AWS, its Entra. Each [`TokenHarness::process`] is a function's process of its own.
struct TokenHarness {
    clock: Clock,
    aws: Aws,
    config: SdkConfig,
    entra: Entra,
}

impl TokenHarness {
    async fn start() -> Self {
        let clock = Clock::by_hand("2026-11-22T10:00:00Z".parse().unwrap());
        let now = clock.clone();
        let aws = Aws::start(move || now.now()).await.unwrap();
        let config = aws.config().await;
        let harness = Self { aws, config, entra: Entra::start(&clock).await, clock };
        harness.entra.know("secret-1");
        harness.set_secret(&secret("secret-1"));
        harness
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
    Deadline::within(Duration::from_secs(20), &shared::clock::Clock::system())
}

async fn ask(tokens: &Tokens, of: &str) -> Result<String, Error> {
    tokens.access_token(&tenant(of), IncidentApi::Graph, soon()).await.map(|token| token.expose().to_owned())
}

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
    assert_eq!((harness.entra.count(), seen.len()), (1, 1));
    assert_eq!(harness.aws_calls("GetSecretValue"), 1);
}

#[tokio::test]
async fn failure_is_shared_by_all_waiting_callers() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    harness.entra.script(A, refusal(7_000_229));
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let tokens = tokens.clone();
            tokio::spawn(async move { ask(&tokens, A).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), Err(Error::Refused(Reason::ConsentMissing)));
    }
    assert_eq!(harness.entra.count(), 1);
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
        let mut credential = secret("secret-1");
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
async fn token_is_cached_by_tenant_and_api_and_renewed_early() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let first = ask(&tokens, A).await.unwrap();
    assert_eq!(ask(&tokens, A).await.unwrap(), first);
    assert_ne!(ask(&tokens, B).await.unwrap(), first);
    let defender = tokens.access_token(&tenant(A), IncidentApi::Defender, soon()).await.unwrap();
    assert_ne!(defender.expose(), first);
    assert_eq!(defender.roles().unwrap(), ["Incident.Read.All"]);
    assert_eq!(harness.entra.count(), 3);
    // 3599 seconds less a tenth.
    harness.pass(3_200);
    assert_eq!(ask(&tokens, A).await.unwrap(), first);
    harness.pass(60);
    let second = ask(&tokens, A).await.unwrap();
    assert_ne!(second, first);
    assert_eq!(harness.entra.count(), 4);
}

#[tokio::test]
async fn token_that_cannot_be_renewed_is_used_until_it_expires() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let first = ask(&tokens, A).await.unwrap();
    harness.pass(3_300);
    for _ in 0..2 {
        harness.entra.script(A, Script::Answer(500, vec![], String::new()));
    }
    assert_eq!(ask(&tokens, A).await.unwrap(), first);
    let asked = harness.entra.count();
    assert_eq!(ask(&tokens, A).await.unwrap(), first, "and Entra is left alone for a while");
    assert_eq!(harness.entra.count(), asked);
    harness.pass(280);
    for _ in 0..2 {
        harness.entra.script(A, Script::Answer(500, vec![], String::new()));
    }
    let outcome = ask(&tokens, A).await;
    assert!(matches!(outcome, Err(Error::Upstream { status: 500, .. })), "{outcome:?}");
}

#[tokio::test]
async fn transient_token_failure_is_retried_once() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    harness.entra.script(A, Script::Answer(502, vec![], "<html>".into()));
    assert!(ask(&tokens, A).await.is_ok());
    harness.entra.script(B, Script::Answer(400, vec![], json!({"error": "x", "error_codes": [90_033]}).to_string()));
    assert!(ask(&tokens, B).await.is_ok());
    assert_eq!(harness.entra.count(), 4);
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
    assert_eq!(harness.entra.count(), 1);
    harness.pass(2);
    harness.entra.script(A, Script::Answer(503, vec![], String::new()));
    assert_eq!(confirmed().await.unwrap().expose(), first.expose(), "where Entra cannot be asked, the old one will do");
    harness.pass(61);
    harness.entra.script(A, refusal(7_000_229));
    assert_eq!(confirmed().await.unwrap_err(), Error::Refused(Reason::ConsentMissing));
    harness.entra.script(A, refusal(7_000_229));
    assert!(ask(&tokens, A).await.is_err(), "the old token was dropped");
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
    harness.entra.script(A, Script::Answer(429, vec![("retry-after", "300".into())], String::new()));
    let until = harness.clock.now() + SignedDuration::from_secs(300);
    assert_eq!(ask(&one, A).await, Err(Error::Throttled { until }));
    let asked = harness.entra.count();
    assert_eq!(ask(&one, A).await, Err(Error::Throttled { until }));
    assert_eq!(ask(&other, A).await, Err(Error::Throttled { until }));
    one.forget(&tenant(A));
    let fresh = one.fresh_access_token(&tenant(A), IncidentApi::Graph, soon()).await;
    assert_eq!(fresh.unwrap_err(), Error::Throttled { until });
    assert_eq!(harness.entra.count(), asked);
    assert!(ask(&one, B).await.is_ok());
    harness.pass(301);
    assert!(ask(&other, A).await.is_ok());
    // Without a time, a minute.
    harness.entra.script(B, Script::Answer(503, vec![], String::new()));
    let until = harness.clock.now() + SignedDuration::from_secs(60);
    let fresh = one.fresh_access_token(&tenant(B), IncidentApi::Graph, soon()).await;
    assert_eq!(fresh.unwrap_err(), Error::Throttled { until });
}

#[tokio::test]
async fn token_of_another_tenant_is_never_cached() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    for claims in [json!({"tid": B}), json!({"appid": B}), json!({"aud": "https://api.security.microsoft.com"})] {
        harness.entra.script(A, Script::Claims(claims));
        assert!(matches!(ask(&tokens, A).await, Err(Error::Malformed { .. })));
    }
    assert!(ask(&tokens, A).await.is_ok());
    assert_eq!(harness.entra.count(), 4);
}

#[tokio::test]
async fn opaque_token_with_a_lifetime_in_text_is_accepted() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let body = json!({"token_type": "bearer", "expires_in": "599", "access_token": "opaque"});
    harness.entra.script(A, Script::Opaque(body));
    let token = tokens.access_token(&tenant(A), IncidentApi::Graph, soon()).await.unwrap();
    assert_eq!((token.roles(), token.expose()), (None, "opaque"));
    assert_eq!(token.expires_at(), harness.clock.now() + SignedDuration::from_secs(599));
}

#[tokio::test]
async fn rotation_under_load_fails_no_caller() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    ask(&tokens, A).await.unwrap();
    harness.entra.know("secret-2");
    harness.entra.forget("secret-1");
    harness.set_secret(&secret("secret-2"));
    let callers: Vec<_> = (0..100)
        .map(|number| {
            let tokens = tokens.clone();
            tokio::spawn(async move { ask(&tokens, &format!("{number:08}-2222-4333-8444-abcdefabcdef")).await })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(harness.aws_calls("GetSecretValue"), 2, "read again once for all");
    assert_eq!(
        harness.registry().breaker_decision(harness.clock.now()).await,
        Ok(shared::registry::breaker::BreakerDecision::Allow)
    );
}

#[tokio::test]
async fn previous_secret_serves_until_entra_accepts_the_new_one() {
    let harness = TokenHarness::start().await;
    harness.set_secret(&secret("secret-2"));
    let tokens = harness.process();
    let callers: Vec<_> = (0..100)
        .map(|number| {
            let tokens = tokens.clone();
            tokio::spawn(async move { ask(&tokens, &format!("{number:08}-2222-4333-8444-abcdefabcdef")).await })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    let asked = harness.entra.count();
    ask(&tokens, A).await.unwrap();
    assert_eq!(harness.entra.count(), asked + 1, "the version that works is tried first");
    // After five minutes the new one gets its next chance.
    harness.entra.know("secret-2");
    harness.pass(301);
    ask(&tokens, B).await.unwrap();
    assert_eq!(harness.entra.last("client_secret"), "secret-2");
}

#[tokio::test]
async fn rejected_credential_allows_one_probe_a_minute() {
    let harness = TokenHarness::start().await;
    harness.set_secret(&secret("wrong"));
    harness.entra.forget("secret-1");
    let (one, other) = (harness.process(), harness.process());
    assert_eq!(ask(&one, A).await, Err(Error::CredentialRejected));
    let asked = harness.entra.count();
    assert_eq!(asked, 2, "the current version, then the one before");
    for _ in 0..5 {
        assert_eq!(ask(&one, B).await, Err(Error::CredentialRejected));
        assert_eq!(ask(&other, A).await, Err(Error::CredentialRejected));
    }
    assert_eq!(harness.entra.count(), asked);
    harness.pass(61);
    assert_eq!(ask(&one, B).await, Err(Error::CredentialRejected));
    assert_eq!(ask(&other, B).await, Err(Error::CredentialRejected));
    assert_eq!(harness.entra.count(), asked + 1);
    // The operator renews it: the next try closes the breaker for all.
    harness.set_secret(&secret("secret-3"));
    harness.entra.know("secret-3");
    assert_eq!(ask(&one, B).await, Err(Error::CredentialRejected));
    harness.pass(61);
    ask(&other, B).await.unwrap();
    ask(&one, A).await.unwrap();
    assert_eq!(harness.entra.count(), asked + 4, "`one` still held the secret that was refused");
}

#[tokio::test]
async fn each_rejected_probe_is_counted_once() {
    let harness = TokenHarness::start().await;
    harness.entra.forget("secret-1");
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
    harness.entra.forget("secret-1");
    let tokens = harness.process();
    lines_of("");
    let invocation = Invocation { request_id: "many-callers".into(), deadline: soon() };
    let outcomes = invocation.in_request_span(futures(&tokens, 50)).await;
    let others: Vec<_> = outcomes.iter().filter(|outcome| **outcome != Err(Error::CredentialRejected)).collect();
    assert!(others.is_empty(), "{others:?}");
    let asked = harness.entra.count();
    assert!((1..=50).contains(&asked), "those that were on their way, and none a second time: {asked}");
    assert_eq!(ask(&tokens, A).await, Err(Error::CredentialRejected));
    assert_eq!(harness.entra.count(), asked, "none after");
    let alarms = lines_of("many-callers").into_iter().filter(|line| line["level"] == "ERROR").count();
    assert_eq!(alarms, 1);
}

#[tokio::test]
async fn refusal_of_one_tenant_leaves_the_credential_alone() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    harness.entra.script(A, refusal(7_000_229));
    assert_eq!(ask(&tokens, A).await, Err(Error::Refused(Reason::ConsentMissing)));
    assert_eq!((harness.entra.count(), harness.aws_calls("GetSecretValue")), (1, 1));
    assert!(ask(&tokens, B).await.is_ok());
}

#[tokio::test]
async fn cached_credential_outlasts_a_secrets_manager_outage() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    ask(&tokens, A).await.unwrap();
    harness.aws.account().deny_secrets(true);
    harness.pass(301);
    ask(&tokens, B).await.unwrap();
    let cold = ask(&harness.process(), B).await;
    assert!(matches!(cold, Err(Error::Internal(_))), "{cold:?}");
    // A secret of no kind does not take the place of one that works.
    harness.aws.account().deny_secrets(false);
    harness.set_secret(&json!({"client_id": CLIENT}));
    harness.pass(31);
    tokens.forget(&tenant(B));
    ask(&tokens, B).await.unwrap();
}

#[tokio::test]
async fn client_assertion_is_signed_by_the_key_in_kms() {
    let harness = TokenHarness::start().await;
    let certificate = "-----BEGIN CERTIFICATE-----\nAQIDBA==\n-----END CERTIFICATE-----\n";
    let credential = json!({"client_id": CLIENT, "certificate": certificate, "kms_key_id": "alias/mandate"});
    harness.set_secret(&credential);
    ask(&harness.process(), A).await.unwrap();
    assert_eq!(harness.entra.last("client_assertion_type"), "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
    let mut validation = Validation::new(Algorithm::PS256);
    validation.set_audience(&[format!("https://login.microsoftonline.com/{A}/oauth2/v2.0/token")]);
    // The assertion was made at the clock's time, which stands still.
    validation.validate_exp = false;
    let key = DecodingKey::from_rsa_der(harness.aws.kms_key().unwrap().public_key().as_ref());
    let assertion = harness.entra.last("client_assertion");
    let decoded = jsonwebtoken::decode::<Value>(&assertion, &key, &validation).unwrap();
    assert_eq!(decoded.claims["iss"], CLIENT);
    assert_eq!(decoded.header.x5t_s256.as_deref(), Some("n2SnR-G5fxMfq7a0Rylsm28CAeefs8U1bmx36JtqgGo"));
}

#[tokio::test]
async fn web_identity_token_serves_all_tenants_until_it_expires() {
    let harness = TokenHarness::start().await;
    harness.set_secret(&json!({"client_id": CLIENT, "federated": true}));
    let tokens = harness.process();
    ask(&tokens, A).await.unwrap();
    let first = harness.entra.last("client_assertion");
    ask(&tokens, B).await.unwrap();
    assert_eq!(harness.entra.last("client_assertion"), first);
    harness.pass(241);
    tokens.forget(&tenant(A));
    ask(&tokens, A).await.unwrap();
    assert_ne!(harness.entra.last("client_assertion"), first);
    // Entra reports that the assertion came too late. A new one is made at once.
    tokens.forget(&tenant(A));
    harness.entra.script(A, refusal(700_024));
    ask(&tokens, A).await.unwrap();
    assert_eq!(harness.aws_calls("GetWebIdentityToken"), 3);
}

#[tokio::test]
async fn hanging_token_endpoint_costs_only_the_deadline() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    harness.entra.script(A, Script::Hang);
    let enough = shared::http::Deadline::within(Duration::from_secs(3), &shared::clock::Clock::system());
    let outcome = tokens
        .access_token(
            &tenant(A),
            IncidentApi::Graph,
            Deadline::within(Duration::from_secs(2), &shared::clock::Clock::system()),
        )
        .await;
    assert_eq!(outcome.unwrap_err(), Error::DeadlineExceeded);
    assert!(!enough.left().is_zero());
    assert!(ask(&tokens, A).await.is_ok());
}

#[tokio::test]
async fn authorization_code_is_redeemed_at_its_authority() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    let (code, verifier) = (Secret::new("code".into()), Secret::new("verifier".into()));
    let code = AuthorizationCode {
        authority: "organizations",
        code: &code,
        redirect_uri: "https://x/consent/callback",
        code_verifier: &verifier,
    };
    let redeem = || tokens.redeem_code(code, soon());
    assert_eq!(redeem().await.unwrap().expose(), "an.id.token");
    let (authority, form) = harness.entra.book.lock().unwrap().requests[0].clone();
    assert_eq!(authority, "organizations");
    assert_eq!((form["code"].as_str(), form["code_verifier"].as_str()), ("code", "verifier"));
    assert_eq!(tokens.client_id(soon()).await.unwrap(), CLIENT);
    let body = json!({"error": "invalid_grant", "error_codes": [54_005]}).to_string();
    harness.entra.script("organizations", Script::Answer(400, vec![], body));
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
    use crate::backends::{CALLER, public_request, request, tenant_record};

    struct IssuanceHarness {
        harness: TokenHarness,
        app: App,
        request_id: String,
    }

    async fn deployment() -> IssuanceHarness {
        let harness = TokenHarness::start().await;
        let config =
            Config { microsoft: harness.microsoft(), table_name: TABLE.into(), incident_api: IncidentApiSetting::Auto };
        let app = App::new(config, &crate::backends::platform(&harness.config, &harness.clock));
        for (id, status, reason) in
            [(A, Status::Active, None), (B, Status::Paused, Some(Reason::Operator)), (GONE, Status::Offboarded, None)]
        {
            let tenant = tenant_record(tenant(id), status, reason);
            harness.registry().create_tenant(&tenant).await.unwrap();
        }
        let request_id = unique_request_id();
        IssuanceHarness { harness, app, request_id }
    }

    const GONE: &str = "33333333-2222-4333-8444-abcdefabcdef";

    impl IssuanceHarness {
        fn invocation(&self) -> Invocation {
            let in_20_s = self.harness.clock.now().as_millisecond() + 20_000;
            Invocation::new(self.request_id.clone(), u64::try_from(in_20_s).unwrap(), &self.harness.clock)
        }

        async fn post(&self, path: &str, body: &str) -> (u16, Value, Value) {
            self.http(request("POST", path, "", Some(body))).await
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
    async fn http_and_direct_calls_return_the_same_token_and_are_audited() {
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
    async fn no_token_is_returned_if_the_audit_line_is_lost() {
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
        let full = JsonLines::new(LevelFilter::INFO, deployment.harness.clock.clone(), Arc::new(Mutex::new(Full)));
        let logging = tracing::subscriber::set_default(tracing_subscriber::registry().with(full));
        let (status, problem, _) = deployment.post(&format!("/tenants/{A}/token"), "").await;
        assert_eq!((status, problem["code"].as_str()), (500, Some("internal")));
        assert!(!problem.to_string().contains("access_token"));
        assert_eq!(deployment.direct(json!({"tenant_id": A})).await, Err("internal"));
        drop(logging);
        assert_eq!(deployment.post(&format!("/tenants/{A}/token"), "").await.0, 200);
    }

    #[tokio::test]
    async fn invalid_token_requests_cost_no_call_to_entra() {
        let deployment = deployment().await;
        let path = |segment: &str| format!("/tenants/{segment}/token");
        let upper = A.to_uppercase();
        let unknown = "44444444-2222-4333-8444-abcdefabcdef";
        let encoded = A.replace('-', "%252d");
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
        let (status, problem, _) = deployment.http(public_request("POST", &path(A), "")).await;
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
        assert_eq!(deployment.harness.entra.count(), 0);
    }

    #[tokio::test]
    async fn token_errors_are_the_documented_problems() {
        let snapshot = |name: &str, problem: &Value| {
            crate::snapshots::assert_json(&format!("problem-{name}"), problem, &["/instance"]);
        };
        let deployment = deployment().await;
        lines_of("");
        let entra = &deployment.harness.entra;
        let path = format!("/tenants/{A}/token");
        entra.script(A, refusal(7_000_112));
        let (status, problem, _) = deployment.post(&path, "").await;
        assert_eq!(status, 409);
        snapshot("disabled-by-customer", &problem);
        entra.script(A, Script::Answer(429, vec![("retry-after", "7".into())], String::new()));
        let (status, problem, headers) = deployment.post(&path, "").await;
        assert_eq!((status, headers["retry-after"].as_str()), (503, Some("7")));
        snapshot("throttled", &problem);
        assert_eq!(deployment.direct(json!({"tenant_id": A})).await, Err("throttled"));
        let stored = (format!("THROTTLING#{A}"), "TOKENS#graph");
        let account = &deployment.harness.aws;
        assert!(account.account().item_mut(&stored.0, stored.1).is_some(), "in a partition that it may write");
        deployment.harness.pass(8);
        entra.script(A, Script::Claims(json!({"roles": []})));
        let (status, problem, _) = deployment.post(&path, r#"{"resource": "defender"}"#).await;
        assert_eq!(status, 409);
        snapshot("role-missing", &problem);
        entra.forget("secret-1");
        let (status, problem, _) = deployment.post(&path, "").await;
        assert_eq!(status, 500);
        snapshot("credential-rejected", &problem);
        let asked = entra.count();
        assert_eq!(deployment.direct(json!({"tenant_id": A})).await, Err("internal"));
        assert_eq!(entra.count(), asked);
        let lines = lines_of(&deployment.request_id);
        let failures = lines.iter().filter(|line| line["InternalFailure"] == 1.0).count();
        assert_eq!(failures, 2, "what is Microsoft's or the caller's doing is no failure of ours");
    }
}
