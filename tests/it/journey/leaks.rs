//! A whole life at the most talkative log level, with everything going wrong on the way; then all that anybody could read
//! is searched for what nobody may.
//!
//! Long, because it is one journey in order: what a step leaves behind is what the next one logs.

use std::collections::BTreeMap;

use devstack::ApiResponse;
use jiff::SignedDuration;
use serde_json::{Value, json};
use sim::{Decision, Fault, FaultKind, Host, RetryAfter};
use url::Url;

use super::harness::{APP, CONTOSO, Customer, FABRIKAM, NORTHWIND, StackHarness, refused};

const ROTATED: &str = "canary-rotated-client-secret";
const WRONG: [&str; 2] = ["canary-wrong-client-secret-1", "canary-wrong-client-secret-2"];
/// Sent by Microsoft in an error, or by anybody to the public routes.
const FOREIGN: &str = "canary-from-outside";

/// The secrets that nobody may read, by their kind.
#[derive(Default)]
struct Secrets(BTreeMap<String, &'static str>);

impl Secrets {
    fn keep(&mut self, what: &'static str, value: impl Into<String>) {
        let value = value.into();
        assert!(value.len() >= 16, "{what} is too short to be distinguished from other text: {value}");
        self.0.insert(value, what);
    }

    /// Searches a text in which none of them belongs.
    fn search(&self, place: &str, text: &str) {
        for (value, what) in &self.0 {
            assert!(!text.contains(value.as_str()), "{place} has {what}: {text}");
        }
        // Any token, whoever made it: header and claims in base64url.
        let mut tokens = text.match_indices("eyJ").map(|(at, _)| {
            let end = |c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c));
            text[at..].split(end).next().unwrap_or_default()
        });
        let token = tokens.find(|word| word.split('.').filter(|part| !part.is_empty()).count() >= 3);
        assert!(token.is_none(), "{place} has a token: {text}");
    }
}

/// A browser whose every redirect is looked at.
struct Visitor<'a> {
    harness: &'a StackHarness,
    secrets: &'a mut Secrets,
    cookie: String,
}

impl Visitor<'_> {
    /// A page or a redirect of ours. The page may have what is this browser's own, and nothing else.
    async fn go(&mut self, method: &str, target: &str) -> ApiResponse {
        let target = target.strip_prefix(self.harness.stack.api_url()).unwrap_or(target);
        let mut headers = vec![("content-type", "application/x-www-form-urlencoded"), ("accept-language", "de")];
        if !self.cookie.is_empty() {
            headers.push(("cookie", self.cookie.as_str()));
        }
        let response = self.harness.stack.public(method, target, &headers, "").await.unwrap();
        if let Some(cookie) = response.headers.get("set-cookie") {
            let cookie = cookie.to_str().unwrap();
            self.cookie = cookie.split(';').next().unwrap().to_owned();
            self.secrets.keep("a cookie", self.cookie.split_once('=').unwrap().1);
        }
        let location = response.header("location");
        if !location.is_empty() {
            self.learn(location);
        }
        response
    }

    /// The target of a redirect with its query.
    fn learn(&mut self, location: &str) {
        let Ok(url) = Url::parse(location) else { return };
        for (name, value) in url.query_pairs() {
            match name.as_ref() {
                "state" => self.secrets.keep("a state", value),
                "code" => self.secrets.keep("an authorization code", value),
                "nonce" => self.secrets.keep("a nonce", value),
                _ => {}
            }
        }
    }

    /// From the link to Microsoft's sign-in; where that is.
    async fn begin(&mut self, link: &str) -> String {
        let page = self.go("GET", link).await;
        assert_eq!(page.status, 200);
        let redirect = self.go("POST", link).await;
        assert_eq!(redirect.status, 303, "{}", redirect.body);
        // PKCE's secret half and the nonce lie in the table, and there alone.
        for item in items(self.harness).await {
            for (name, what) in [("code_verifier", "a PKCE verifier"), ("nonce", "a nonce")] {
                if let Some(value) = item.get(name).and_then(|value| value.as_s().ok()) {
                    self.secrets.keep(what, value.as_str());
                }
            }
        }
        redirect.header("location").to_owned()
    }

    fn sign_in(&mut self, url: &str, customer: &Customer) -> String {
        let back = self.harness.sim.sign_in(url, customer.tenant_id, customer.administrator).unwrap();
        self.learn(&back);
        back
    }

    fn consent(&mut self, url: &str, customer: &Customer, decision: Decision) -> String {
        self.harness.sim.consent(url, customer.tenant_id, customer.administrator, decision).unwrap()
    }

    /// All the way, without a detour.
    async fn onboard(&mut self, link: &str, customer: &Customer) {
        let sign_in = self.begin(link).await;
        let back = self.sign_in(&sign_in, customer);
        let consent = self.go("GET", &back).await.header("location").to_owned();
        let back = self.consent(&consent, customer, Decision::Accept);
        let result = self.go("GET", &back).await.header("location").to_owned();
        assert_eq!(self.go("GET", &result).await.status, 200);
    }
}

async fn items(
    harness: &StackHarness,
) -> Vec<std::collections::HashMap<String, aws_sdk_dynamodb::types::AttributeValue>> {
    let client = aws_sdk_dynamodb::Client::new(harness.stack.aws().config());
    let scan = client.scan().table_name(&harness.stack.resources().table).into_paginator().items().send();
    scan.collect::<Result<Vec<_>, _>>().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_written_anywhere() {
    let harness = StackHarness::start("leaks", &[("LOG_LEVEL", "trace")]).await;
    let mut secrets = Secrets::default();
    for value in harness.sim.client_secrets(APP) {
        secrets.keep("the client secret", value);
    }
    let mut shown = Vec::new();
    set_up(&harness, &mut secrets).await;
    junk(&harness, &mut secrets, &mut shown).await;
    onboarding(&harness, &mut secrets, &mut shown).await;
    feed(&harness, &mut secrets, &mut shown).await;
    entra_in_trouble(&harness, &mut secrets, &mut shown).await;
    rotation(&harness, &mut secrets, &mut shown).await;
    credential(&harness, &mut secrets, &mut shown).await;
    let response = harness.call("DELETE", &FABRIKAM.path(), None).await;
    shown.push(("offboarding".to_owned(), response.body));
    search(&harness, &secrets, &shown).await;
    harness.lines_are_whole().await;
    harness.end().await;
}

async fn set_up(harness: &StackHarness, secrets: &mut Secrets) {
    for customer in [CONTOSO, FABRIKAM, NORTHWIND] {
        harness.seed(&customer);
        harness.incident(&customer, "An incident", 5);
    }
    let vault = aws_sdk_secretsmanager::Client::new(harness.stack.aws().config());
    let rotator = vault.get_secret_value().secret_id("mandate-rotation").send().await.unwrap();
    let rotator: Value = serde_json::from_str(rotator.secret_string().unwrap()).unwrap();
    secrets.keep("the rotation's client secret", rotator["client_secret"].as_str().unwrap());
    for wrong in WRONG {
        secrets.keep("a wrong client secret", wrong);
    }
    secrets.keep("a rotated client secret", ROTATED);
    secrets.keep("text from outside", FOREIGN);
}

/// Requests that strangers send to the public routes, and mistakes of an operator.
async fn junk(harness: &StackHarness, secrets: &mut Secrets, shown: &mut Vec<(String, String)>) {
    let jwt = harness.sim.issue_token(CONTOSO.tenant_id, APP, &["SecurityIncident.Read.All"], sim::Resource::Graph);
    let cookie = format!("__Host-mandate={FOREIGN}");
    let pages = [
        format!("/consent/{FOREIGN}"),
        format!("/consent/{jwt}"),
        format!("/consent/callback?code={FOREIGN}&state={FOREIGN}"),
        format!("/consent/callback?code={jwt}&state={jwt}"),
        format!("/consent/callback?error={FOREIGN}&error_description={FOREIGN}&state={FOREIGN}"),
        format!("/consent/callback?tenant={FOREIGN}&admin_consent=True&state={FOREIGN}"),
        "/consent/callback".to_owned(),
        format!("/consent/result?x={FOREIGN}"),
    ];
    for path in pages {
        for headers in [&[][..], &[("cookie", cookie.as_str()), ("user-agent", FOREIGN), ("referer", FOREIGN)]] {
            let response = harness.stack.public("GET", &path, headers, "").await.unwrap();
            assert!((400..500).contains(&response.status), "{path}: {}", response.status);
            shown.push((path.split(['?', '/']).nth(2).unwrap_or_default().to_owned(), response.body));
        }
    }
    let response = harness.stack.public("POST", &format!("/consent/{FOREIGN}"), &[], jwt.clone()).await.unwrap();
    shown.push(("a form".to_owned(), response.body));
    for (method, path, body) in [
        ("POST", "/invitations".to_owned(), jwt.clone()),
        ("POST", "/invitations".to_owned(), json!({"customer": "x", "expected_tenant": FOREIGN}).to_string()),
        ("GET", format!("/tenants/{FOREIGN}"), String::new()),
        ("GET", format!("/invitations?next={jwt}"), String::new()),
        ("PATCH", format!("{}/incidents/1", CONTOSO.path()), jwt.clone()),
        ("POST", format!("{}/token", CONTOSO.path()), jwt.clone()),
    ] {
        let response = harness.call_with(method, &path, &body).await;
        assert!((400..500).contains(&response.status), "{path}: {}", response.body);
        shown.push((path, response.body));
    }
    for binary in super::harness::BINARIES {
        for event in [json!({"tenant_id": jwt}), json!({"Records": [{"messageId": "m", "body": FOREIGN}]}), json!(jwt)]
        {
            match harness.stack.invoke(binary, event).await {
                Ok(response) => shown.push((binary.to_owned(), response.to_string())),
                Err(error) => shown.push((binary.to_owned(), error.to_string())),
            }
        }
    }
    secrets.keep("somebody's token", jwt);
}

async fn onboarding(harness: &StackHarness, secrets: &mut Secrets, shown: &mut Vec<(String, String)>) {
    let mut links = Vec::new();
    for customer in [CONTOSO, FABRIKAM, NORTHWIND] {
        let invitation = harness.invite(&customer, None).await;
        let link = invitation["consent_url"].as_str().unwrap().to_owned();
        secrets.keep("an invitation's token", link.rsplit('/').next().unwrap());
        links.push(link);
    }
    // A code that Microsoft never gave, with the right state.
    let mut visitor = Visitor { harness, secrets, cookie: String::new() };
    let sign_in = visitor.begin(&links[0]).await;
    let state = Url::parse(&sign_in).unwrap();
    let state = state.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
    let page = visitor.go("GET", &format!("/consent/callback?code={FOREIGN}&state={state}")).await;
    assert!(page.status >= 400, "{}", page.status);
    shown.push(("a false code".to_owned(), page.body));
    // Another browser with this one's address.
    let mut visitor = Visitor { harness, secrets, cookie: String::new() };
    let sign_in = visitor.begin(&links[0]).await;
    let back = visitor.sign_in(&sign_in, &CONTOSO);
    let mut stranger = Visitor { harness, secrets: visitor.secrets, cookie: String::new() };
    let page = stranger.go("GET", &back).await;
    assert_eq!(page.status, 400);
    shown.push(("another's return".to_owned(), page.body));
    // Declined, and then accepted in the same browser; each return comes twice.
    let mut visitor = Visitor { harness, secrets, cookie: String::new() };
    let sign_in = visitor.begin(&links[0]).await;
    let back = visitor.sign_in(&sign_in, &CONTOSO);
    let consent = visitor.go("GET", &back).await.header("location").to_owned();
    assert_eq!(visitor.go("GET", &back).await.status, 303, "repeated");
    let declined = visitor.consent(&consent, &CONTOSO, Decision::Cancel);
    assert_eq!(visitor.go("GET", &declined).await.status, 403);
    let accepted = visitor.consent(&consent, &CONTOSO, Decision::Accept);
    assert_eq!(visitor.go("GET", &accepted).await.status, 303);
    assert_eq!(visitor.go("GET", &accepted).await.status, 303, "repeated");
    assert_eq!(visitor.go("GET", "/consent/result").await.status, 200);
    // Signed in to another tenant than the consent's; then a sign-in to which Microsoft responds badly.
    let mut visitor = Visitor { harness, secrets, cookie: String::new() };
    let sign_in = visitor.begin(&links[1]).await;
    let back = visitor.sign_in(&sign_in, &FABRIKAM);
    let consent = visitor.go("GET", &back).await.header("location").to_owned();
    let other = visitor.consent(&consent, &FABRIKAM, Decision::Accept).replace(FABRIKAM.tenant_id, CONTOSO.tenant_id);
    let page = visitor.go("GET", &other).await;
    assert_eq!(page.status, 403);
    shown.push(("another tenant".to_owned(), page.body));
    let body = json!({"error": "server_error", "error_description": format!("AADSTS90033: {FOREIGN}")}).to_string();
    let broken = FaultKind::Status { status: 500, body: Some(body), headers: Vec::new() };
    let mut visitor = Visitor { harness, secrets, cookie: String::new() };
    let sign_in = visitor.begin(&links[1]).await;
    let back = visitor.sign_in(&sign_in, &FABRIKAM);
    harness.sim.fault(Fault::new(broken).on(Host::Entra).method("POST"));
    let page = visitor.go("GET", &back).await;
    assert!(page.status >= 400, "{}", page.status);
    shown.push(("a broken sign-in".to_owned(), page.body));
    harness.sim.clear_faults();
    for (link, customer) in links[1..].iter().zip([FABRIKAM, NORTHWIND]) {
        Visitor { harness, secrets, cookie: String::new() }.onboard(link, &customer).await;
    }
    for customer in [CONTOSO, FABRIKAM, NORTHWIND] {
        harness
            .until(format!("{} is active", customer.name), async || {
                harness.poll().await;
                harness.expect(200, "GET", &customer.path(), None).await["status"] == "active"
            })
            .await;
    }
    // A used link, and one that is withdrawn.
    let page = Visitor { harness, secrets, cookie: String::new() }.go("GET", &links[0]).await;
    assert_eq!(page.status, 410);
    shown.push(("a used link".to_owned(), page.body));
    shown.push(("the list".to_owned(), harness.call("GET", "/invitations", None).await.body));
    shown.push(("the tenants".to_owned(), harness.call("GET", "/tenants", None).await.body));
}

async fn token(harness: &StackHarness, customer: &Customer, resource: &str) -> ApiResponse {
    harness.call("POST", &format!("{}/token", customer.path()), Some(json!({"resource": resource}))).await
}

async fn feed(harness: &StackHarness, secrets: &mut Secrets, shown: &mut Vec<(String, String)>) {
    harness.delivered(3).await;
    for customer in [CONTOSO, FABRIKAM, NORTHWIND] {
        let response = token(harness, &customer, "graph").await;
        assert_eq!(response.status, 200, "{}", response.body);
        secrets.keep("an access token", response.json()["access_token"].as_str().unwrap());
        let path = format!("{}/incidents", customer.path());
        shown.push((path.clone(), harness.call("GET", &path, None).await.body));
        let change = json!({"status": "in_progress", "comment": "looked at"});
        shown.push(("a change".to_owned(), harness.call("PATCH", &format!("{path}/1"), Some(change)).await.body));
    }
    // Microsoft says no, at length, in its own words and in everybody else's.
    let body = json!({"error": {"code": "UnknownError", "message": FOREIGN}}).to_string();
    for kind in [
        FaultKind::Status { status: 500, body: Some(body.clone()), headers: vec![("x-echo".into(), FOREIGN.into())] },
        FaultKind::Status { status: 403, body: Some(body.clone()), headers: Vec::new() },
        FaultKind::Status { status: 401, body: Some(body), headers: Vec::new() },
        FaultKind::BadGateway,
        FaultKind::Reset,
        FaultKind::Cut,
    ] {
        harness.sim.fault(Fault::new(kind).on(Host::Graph));
        harness.poll().await;
        let response = harness.call("GET", &format!("{}/incidents/1", NORTHWIND.path()), None).await;
        assert!(response.status >= 400, "{}", response.body);
        shown.push(("an error of Graph".to_owned(), response.body));
        harness.sim.clear_faults();
    }
    for customer in [CONTOSO, FABRIKAM, NORTHWIND] {
        let resumed = harness.expect(200, "POST", &format!("{}/resume", customer.path()), None).await;
        assert_eq!(resumed["status"], "active", "{resumed}");
    }
}

async fn entra_in_trouble(harness: &StackHarness, secrets: &mut Secrets, shown: &mut Vec<(String, String)>) {
    let fresh = async |customer: &Customer| {
        harness.stack.kill("token-issuance");
        let response = token(harness, customer, "graph").await;
        let direct = harness.stack.invoke("token-issuance", json!({"tenant_id": customer.tenant_id})).await;
        (response, direct.map_or_else(|error| error.to_string(), |response| response.to_string()))
    };
    let throttled = FaultKind::Throttle { retry_after: RetryAfter::Seconds(2) };
    let described =
        json!({"error": "invalid_grant", "error_codes": [50_000], "error_description": FOREIGN}).to_string();
    let faults = [
        (throttled, "throttled"),
        (FaultKind::WrongTid { tid: NORTHWIND.tenant_id.to_owned() }, "upstream_error"),
        (FaultKind::Status { status: 400, body: Some(described), headers: Vec::new() }, ""),
        (FaultKind::Status { status: 200, body: Some(format!("{{\"{FOREIGN}\":")), headers: Vec::new() }, ""),
        (FaultKind::Aadsts { code: 7_000_112 }, "tenant_not_active"),
    ];
    for (kind, code) in faults {
        let named = format!("{kind:?}");
        harness.sim.fault(Fault::new(kind).on(Host::Entra).tenant(CONTOSO.tenant_id));
        let (response, direct) = fresh(&CONTOSO).await;
        assert!(response.status >= 400, "{named}: {}", response.body);
        if code.is_empty() {
            refused(&named, &response, response.json()["code"].as_str().unwrap_or_default());
        } else {
            refused(&named, &response, code);
        }
        assert_eq!(code == "throttled", !response.header("retry-after").is_empty(), "{named}");
        shown.extend([(named.clone(), response.body), (named, direct)]);
        harness.sim.clear_faults();
        // What was said to hold this tenant is over.
        harness
            .until("Entra is asked again".to_owned(), async || {
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                let response = fresh(&CONTOSO).await.0;
                if let Some(token) = response.json()["access_token"].as_str() {
                    secrets.keep("an access token", token);
                }
                response.status == 200
            })
            .await;
    }
}

/// The secret is replaced as Secrets Manager has it done, after steps that nobody should have asked for.
async fn rotation(harness: &StackHarness, secrets: &mut Secrets, shown: &mut Vec<(String, String)>) {
    const VERSION: &str = "7d9f0b52-0000-4000-8000-0123456789ab";
    const STEPS: [&str; 4] = ["createSecret", "setSecret", "testSecret", "finishSecret"];
    let secret = &harness.stack.resources().secret;
    let step = async |step: &str, secret: &str, version: &str| {
        let event = json!({"Step": step, "SecretId": secret, "ClientRequestToken": version});
        harness.stack.invoke("secret-rotation", event).await
    };
    for name in STEPS {
        for (secret, version) in [(FOREIGN, VERSION), (secret.as_str(), FOREIGN), ("mandate-rotation", VERSION)] {
            let error = step(name, secret, version).await.unwrap_err();
            shown.push((name.to_owned(), error.to_string()));
        }
    }
    let before = harness.sim.client_secrets(APP);
    harness.stack.rotate().await.unwrap();
    let added: Vec<_> = harness.sim.client_secrets(APP).into_iter().filter(|secret| !before.contains(secret)).collect();
    assert_eq!(added.len(), 1);
    secrets.keep("a client secret that Microsoft made", added[0].as_str());
    for customer in [CONTOSO, FABRIKAM] {
        harness.stack.kill("token-issuance");
        let response = token(harness, &customer, "graph").await;
        assert_eq!(response.status, 200, "{}", response.body);
        secrets.keep("an access token", response.json()["access_token"].as_str().unwrap());
    }
}

/// The app credential is renewed, then wrong once, then wrong for good.
async fn credential(harness: &StackHarness, secrets: &mut Secrets, shown: &mut Vec<(String, String)>) {
    let put = async |secret: &str| {
        harness.stack.put_secret(json!({"client_id": APP, "client_secret": secret})).await.unwrap();
    };
    let now = harness.sim.clock().now();
    harness.sim.add_client_secret(
        APP,
        ROTATED,
        now - SignedDuration::from_hours(1),
        now + SignedDuration::from_hours(9),
    );
    put(ROTATED).await;
    for old in harness.sim.client_secrets(APP).iter().filter(|secret| *secret != ROTATED) {
        harness.sim.remove_client_secret(APP, old);
    }
    for (secret, expected) in [(None, 200), (Some(WRONG[0]), 200), (Some(WRONG[1]), 500)] {
        if let Some(secret) = secret {
            put(secret).await;
        }
        for binary in super::harness::BINARIES {
            harness.stack.kill(binary);
        }
        let response = token(harness, &NORTHWIND, "graph").await;
        assert_eq!(response.status, expected, "{secret:?}: {}", response.body);
        if expected == 200 {
            secrets.keep("an access token", response.json()["access_token"].as_str().unwrap());
        } else {
            assert_eq!(refused("a wrong credential", &response, "internal")["reason"], "credential_rejected");
            shown.push(("a wrong credential".to_owned(), response.body));
        }
        harness.poll().await;
        let response = harness.call("GET", "/incidents", None).await;
        shown.push(("the fleet".to_owned(), response.body));
    }
    for broken in [json!({"client_id": APP, "client_secret": WRONG[0], "federated": true}), json!(WRONG[1])] {
        harness.stack.put_secret(broken).await.unwrap();
        for binary in super::harness::BINARIES {
            harness.stack.kill(binary);
        }
        let response = token(harness, &NORTHWIND, "graph").await;
        refused("an unusable credential", &response, "internal");
        shown.push(("an unusable credential".to_owned(), response.body));
        harness.poll().await;
    }
}

async fn search(harness: &StackHarness, secrets: &Secrets, shown: &[(String, String)]) {
    let kinds: std::collections::BTreeSet<_> = secrets.0.values().copied().collect();
    for kind in [
        "the client secret",
        "an access token",
        "an authorization code",
        "a state",
        "an invitation's token",
        "a cookie",
        "a PKCE verifier",
        "a nonce",
        "a client secret that Microsoft made",
    ] {
        assert!(kinds.contains(kind), "the journey had no {kind}");
    }
    let printed = harness.printed().await;
    assert!(printed.len() > 100, "{} lines", printed.len());
    for (binary, line) in &printed {
        secrets.search(binary, line);
    }
    for key in harness.stack.objects("").await.unwrap() {
        secrets.search("an object's name", &key);
        secrets.search(&key, &harness.stack.object_text(&key).await.unwrap());
    }
    let events = harness.stack.events().await.unwrap();
    assert!(events.len() > 5);
    for event in events {
        secrets.search("an event", &event.to_string());
    }
    for letter in harness.stack.dead_letters().await.unwrap() {
        secrets.search("a dead letter", &letter);
    }
    for failure in harness.stack.take_failures() {
        secrets.search("a failure", &failure);
    }
    for (place, text) in shown {
        secrets.search(place, text);
    }
    // The table keeps the verifier and the nonce of an attempt, and of all the rest at most a hash.
    let kept = ["a PKCE verifier", "a nonce"];
    let others = secrets.0.iter().filter(|(_, what)| !kept.contains(what));
    let others = Secrets(others.map(|(value, what)| (value.clone(), *what)).collect());
    for item in items(harness).await {
        others.search("the table", &format!("{item:?}"));
    }
}

#[test]
fn leak_search_finds_planted_secrets() {
    let mut secrets = Secrets::default();
    secrets.keep("a cookie", "0123456789abcdef");
    let finds = |text: &str| std::panic::catch_unwind(|| Secrets(secrets.0.clone()).search("x", text)).is_err();
    assert!(
        finds("x0123456789abcdefx")
            && finds("Bearer eyJhbGciOiJSUzI1NiJ9.eyJ0aWQiOiJ4In0.c2ln")
            && finds("a=eyJh.e30.x")
    );
    assert!(
        !finds("0123456789abcde") && !finds("{\"next\":\"eyJmcm9tIjoi\"}") && !finds(Value::Null.to_string().as_str())
    );
}
