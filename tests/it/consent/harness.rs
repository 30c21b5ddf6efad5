//! A deployment, a customer's directory, and browsers that walk between them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::{
    rand::{SecureRandom, SystemRandom},
    test::rand::FixedSliceRandom,
};
use consent_callback::{App, Config};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    config,
    http::Deadline,
    lambda::event::Invocation,
    registry::{
        Registry,
        invitations::{Invitation, InvitationToken},
        tenants::Tenant,
    },
    telemetry::JsonLines,
    tenant::TenantId,
};
use sim::{Decision, GLOBAL_ADMINISTRATOR, Sim, TenantSeed, User};
use tracing::{level_filters::LevelFilter, subscriber::DefaultGuard};
use tracing_subscriber::layer::SubscriberExt;

use crate::{
    backends::{Backends, CLIENT_ID, public_request},
    contract::assert_answer,
};

pub(crate) const BASE: &str = "https://partner.example.com";
pub(crate) const CONTOSO: &str = "11111111-2222-4333-8444-abcdefabcdef";
pub(crate) const FABRIKAM: &str = "22222222-2222-4333-8444-abcdefabcdef";
pub(crate) const ADMIN: &str = "admin@contoso.example";
pub(crate) const CLERK: &str = "clerk@contoso.example";
pub(crate) const READ: &str = "SecurityIncident.Read.All";

/// A deployment and its neighbours.
pub(crate) struct ConsentHarness {
    pub(crate) app: App,
    pub(crate) backends: Backends,
    pub(crate) sim: Sim,
    pub(crate) clock: Clock,
    pub(crate) registry: Registry,
    log: Arc<Mutex<Vec<u8>>>,
    _logging: DefaultGuard,
}

/// A response as a browser sees it.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u64,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) cookies: Vec<String>,
    pub(crate) body: String,
}

/// A browser: one cookie at most.
pub(crate) struct Browser<'a> {
    harness: &'a ConsentHarness,
    pub(crate) cookie: Option<String>,
}

fn tenant(tenant_id: &str, domain: &str) -> TenantSeed {
    let user = |name: &str, wids: &[&str]| User {
        name: format!("{name}@{domain}"),
        oid: String::new(),
        wids: wids.iter().map(|role| (*role).to_owned()).collect(),
    };
    TenantSeed {
        tenant_id: tenant_id.into(),
        domain: domain.into(),
        display_name: domain.into(),
        users: vec![user("admin", &[GLOBAL_ADMINISTRATOR]), user("clerk", &[])],
        ..TenantSeed::default()
    }
}

impl ConsentHarness {
    pub(crate) async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With further variables of the environment.
    pub(crate) async fn with(variables: &[(&str, &str)]) -> Self {
        // A time of day without a fraction, far from any real one: what reads another clock is found out.
        let start: Timestamp = "2031-05-05T08:00:00Z".parse().unwrap();
        let clock = Clock::by_hand(start);
        let backends = Backends::start(&clock).await;
        let sim = backends.sim.clone();
        sim.clock().freeze(start);
        sim.register_app(sim::App {
            client_id: CLIENT_ID.into(),
            display_name: "Partner".into(),
            home_tenant_id: "33333333-2222-4333-8444-abcdefabcdef".into(),
            client_secrets: sim.client_secrets(CLIENT_ID),
            redirect_uris: vec![format!("{BASE}/consent/callback")],
            requested_roles: vec![READ.into()],
            wids: true,
            ..sim::App::default()
        });
        sim.add_tenant(tenant(CONTOSO, "contoso.example"));
        sim.add_tenant(tenant(FABRIKAM, "fabrikam.example"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = JsonLines::new(LevelFilter::DEBUG, clock.clone(), log.clone());
        let logging = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines));
        let app = app(&backends, &backends.aws, &clock, variables);
        let registry = Registry::new(&backends.aws, backends.table.clone());
        Self { app, backends, sim, clock, registry, log, _logging: logging }
    }

    /// The same deployment where AWS does not answer: whatever asks it fails.
    pub(crate) fn without_aws(&self) -> App {
        let nowhere = self.backends.aws.to_builder().endpoint_url("http://127.0.0.1:9").build();
        app(&self.backends, &nowhere, &self.clock, &[])
    }

    /// The same deployment where whatever wants randomness panics.
    pub(crate) fn panicking(&self) -> App {
        let random = Arc::new(FixedSliceRandom { bytes: b"no secret has this length" });
        app_with(&self.backends, &self.backends.aws, &self.clock, &[], random)
    }

    /// Lets time go by for us and for Microsoft.
    pub(crate) fn advance(&self, seconds: i64) {
        let by = SignedDuration::from_secs(seconds);
        self.clock.advance(by);
        self.sim.clock().advance(by);
    }

    /// Makes an invitation; the path of its link.
    pub(crate) async fn invite(&self, customer: &str, expected_tenant: Option<&str>) -> String {
        self.invite_for(customer, expected_tenant, 168).await
    }

    pub(crate) async fn invite_for(&self, customer: &str, expected_tenant: Option<&str>, hours: i64) -> String {
        let token = InvitationToken::generate(&SystemRandom::new()).unwrap();
        let expected = expected_tenant.map(|tenant| tenant.parse().unwrap());
        let valid_for = SignedDuration::from_hours(hours);
        let invitation = Invitation::new(&token, customer.into(), expected, self.clock.now(), valid_for);
        self.registry.create_invitation(&invitation).await.unwrap();
        format!("/consent/{}", token.expose())
    }

    pub(crate) async fn invitation(&self, link: &str) -> Invitation {
        let token: InvitationToken = link.strip_prefix("/consent/").unwrap().parse().unwrap();
        self.registry.invitation(&token.invitation_id()).await.unwrap().unwrap()
    }

    pub(crate) async fn tenant(&self, tenant: &str) -> Option<Tenant> {
        self.registry.tenant(&id(tenant)).await.unwrap()
    }

    pub(crate) async fn change_tenant(&self, tenant: &str, mut change: impl FnMut(&mut Tenant)) {
        let tenant = id(tenant);
        let changed = self.registry.change_tenant(&tenant, self.clock.now(), |tenant| {
            change(tenant);
            Ok(())
        });
        let (_, after) = changed.await.unwrap();
        // As if it had been announced.
        self.registry.clear_announced(&tenant, &after.unannounced).await.unwrap();
    }

    pub(crate) fn browser(&self) -> Browser<'_> {
        Browser { harness: self, cookie: None }
    }

    /// Onboards Contoso by its administrator, for a customer.
    pub(crate) async fn onboard(&self, customer: &str) {
        let link = self.invite(customer, None).await;
        let mut browser = self.browser();
        browser.walk(&link, CONTOSO, ADMIN).await;
        assert_eq!(self.tenant(CONTOSO).await.unwrap().status.as_str(), "active");
    }

    /// `from` and `to` of each change of status since it was last asked.
    pub(crate) fn changes(&self) -> Vec<(Value, Value, Value)> {
        let events = self.backends.events();
        let changes = events.iter().filter(|(kind, _)| kind == "Tenant Status Changed");
        changes.map(|(_, detail)| (detail["from"].clone(), detail["to"].clone(), detail["reason"].clone())).collect()
    }

    /// The lines of the audit so far.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let lines = self.logged();
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["audit"] == true).collect()
    }

    /// All that was logged.
    pub(crate) fn logged(&self) -> String {
        String::from_utf8(self.log.lock().unwrap().clone()).unwrap()
    }

    /// The number of token requests for Contoso.
    pub(crate) fn token_requests(&self) -> usize {
        self.sim.calls().iter().filter(|call| call.path == format!("/{CONTOSO}/oauth2/v2.0/token")).count()
    }
}

pub(crate) fn id(tenant: &str) -> TenantId {
    tenant.parse().unwrap()
}

fn app(backends: &Backends, aws: &aws_config::SdkConfig, clock: &Clock, variables: &[(&str, &str)]) -> App {
    app_with(backends, aws, clock, variables, Arc::new(SystemRandom::new()))
}

fn app_with(
    backends: &Backends,
    aws: &aws_config::SdkConfig,
    clock: &Clock,
    variables: &[(&str, &str)],
    random: Arc<dyn SecureRandom + Send + Sync>,
) -> App {
    let microsoft = backends.microsoft();
    let lookup = |name: &str| {
        let given = variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        given.or_else(|| match name {
            "APP_CREDENTIAL_SECRET_ID" => Some(microsoft.app_credential_secret_id.clone()),
            "TABLE_NAME" => Some(backends.table.clone()),
            "EVENT_BUS_NAME" => Some(backends.bus.clone()),
            "PUBLIC_BASE_URL" => Some(BASE.into()),
            "PARTNER_NAME" => Some("Northwind <SOC>".into()),
            "ENTRA_AUTHORITY_HOST" => Some(backends.sim.entra_url().into()),
            "GRAPH_ENDPOINT" => Some(backends.sim.graph_url().into()),
            "DEFENDER_ENDPOINT" => Some(backends.sim.defender_url().into()),
            _ => None,
        })
    };
    let read = config::load(&lookup, Config::read).unwrap();
    App::new(read, &shared::lambda::runtime::Platform { random, ..crate::backends::platform(aws, clock) })
}

/// Hands an app a request as API Gateway does. The response must be one that the description has for the route.
pub(crate) async fn request(
    app: &App,
    method: &str,
    url: &str,
    cookie: Option<&str>,
    headers: &[(&str, &str)],
) -> Reply {
    let path_and_query = url.strip_prefix(BASE).unwrap_or(url);
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    let headers: BTreeMap<_, _> = headers.iter().copied().collect();
    let mut event = public_request(method, path, query);
    event["headers"] = json!(headers);
    if let Some(cookie) = cookie {
        event["cookies"] = json!([cookie]);
    }
    let deadline = Deadline::within(Duration::from_secs(20), &Clock::system());
    let answer = app.handle(event.clone(), Invocation { request_id: "r-1".into(), deadline }).await.unwrap();
    assert_answer(&event, &answer);
    Reply {
        status: answer["statusCode"].as_u64().unwrap(),
        headers: serde_json::from_value(answer["headers"].clone()).unwrap(),
        cookies: serde_json::from_value(answer.get("cookies").cloned().unwrap_or(json!([]))).unwrap(),
        body: answer["body"].as_str().unwrap().to_owned(),
    }
}

impl Reply {
    pub(crate) fn location(&self) -> &str {
        assert_eq!(self.status, 303, "{self:?}");
        &self.headers["location"]
    }

    pub(crate) fn title(&self) -> &str {
        self.body.split_once("<h1>").and_then(|(_, rest)| rest.split_once("</h1>")).map_or("", |(title, _)| title)
    }

    pub(crate) fn says(&self, status: u64, title: &str) {
        assert_eq!((self.status, self.title().contains(title)), (status, true), "{title}: {self:?}");
    }

    /// The text of the page, a line for each element.
    pub(crate) fn text(&self) -> String {
        let (_, body) = self.body.split_once("<body").unwrap();
        let texts = body.split('<').filter_map(|part| part.split_once('>')).map(|(_, text)| text.trim());
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
    }

    /// The URL behind the page's button.
    pub(crate) fn link(&self) -> String {
        let (_, rest) = self.body.split_once("class=\"button\" href=\"").unwrap();
        rest.split_once('"').unwrap().0.replace("&#38;", "&").replace("&amp;", "&")
    }
}

impl Browser<'_> {
    pub(crate) async fn get(&mut self, url: &str) -> Reply {
        self.send("GET", url, &[]).await
    }

    pub(crate) async fn post(&mut self, url: &str) -> Reply {
        self.send("POST", url, &[("sec-fetch-site", "same-origin")]).await
    }

    pub(crate) async fn send(&mut self, method: &str, url: &str, headers: &[(&str, &str)]) -> Reply {
        let reply = request(&self.harness.app, method, url, self.cookie.as_deref(), headers).await;
        assert!(reply.status < 500, "{}", self.harness.logged());
        if let Some(cookie) = reply.cookies.first() {
            self.cookie = cookie.split(';').next().map(str::to_owned);
        }
        reply
    }

    /// Presses the form's button and signs in at Microsoft: the URL that the browser is sent back to.
    pub(crate) async fn sign_in(&mut self, link: &str, tenant: &str, user: &str) -> String {
        let authorize = self.post(link).await.location().to_owned();
        self.harness.sim.sign_in(&authorize, tenant, user).unwrap()
    }

    /// Signs in and follows back: the URL of the consent page.
    pub(crate) async fn reach_consent(&mut self, link: &str, tenant: &str, user: &str) -> String {
        let back = self.sign_in(link, tenant, user).await;
        self.get(&back).await.location().to_owned()
    }

    /// All the way to our callback after consent, as the person decides.
    pub(crate) async fn decide(&mut self, link: &str, tenant: &str, user: &str, decision: Decision) -> String {
        let consent = self.reach_consent(link, tenant, user).await;
        self.harness.sim.consent(&consent, tenant, user, decision).unwrap()
    }

    /// All the way to the result.
    pub(crate) async fn walk(&mut self, link: &str, tenant: &str, user: &str) -> Reply {
        let back = self.decide(link, tenant, user, Decision::Accept).await;
        let result = self.get(&back).await.location().to_owned();
        self.get(&result).await
    }
}
