//! A simulator with one app and two tenants, and a client that follows no redirects.

use jiff::Timestamp;
use serde_json::Value;

use crate::{App, GLOBAL_ADMINISTRATOR, IncidentSeed, Resource, Sim, SimOptions, TenantSeed, User};

pub(crate) const HOME: &str = "00000000-0000-4000-8000-000000000001";
pub(crate) const CONTOSO: &str = "11111111-1111-4111-8111-111111111111";
pub(crate) const FABRIKAM: &str = "22222222-2222-4222-8222-222222222222";
pub(crate) const CLIENT: &str = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa";
pub(crate) const SECRET: &str = "s3cr~t+/=&";
pub(crate) const REDIRECT: &str = "https://partner.example.com/consent/callback";

/// A started simulator and a client for it.
pub(crate) struct Rig {
    pub(crate) sim: Sim,
    pub(crate) http: reqwest::Client,
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Response {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The ids of a page of either API.
    pub(crate) fn ids(&self) -> Vec<u64> {
        assert_eq!(self.status, 200, "{}", self.text);
        let rows = self.json()["value"].as_array().unwrap().clone();
        rows.iter()
            .map(|row| row["incidentId"].as_u64().unwrap_or_else(|| row["id"].as_str().unwrap().parse().unwrap()))
            .collect()
    }
}

#[expect(clippy::disallowed_methods, reason = "these tests call the simulator as any client does")]
fn client() -> reqwest::Client {
    // Another test of the process may have installed it already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap()
}

pub(crate) async fn rig() -> Rig {
    let sim = Sim::start(SimOptions::default()).await.unwrap();
    sim.register_app(App {
        client_id: CLIENT.into(),
        display_name: "Partner <b>".into(),
        home_tenant_id: HOME.into(),
        client_secrets: vec![SECRET.into()],
        redirect_uris: vec![REDIRECT.into()],
        requested_roles: vec!["SecurityIncident.Read.All".into(), "Incident.Read.All".into()],
        wids: true,
        ..App::default()
    });
    for (tenant_id, domain) in [(CONTOSO, "contoso.example"), (FABRIKAM, "fabrikam.example"), (HOME, "partner.example")]
    {
        sim.add_tenant(TenantSeed {
            tenant_id: tenant_id.into(),
            domain: domain.into(),
            display_name: domain.into(),
            users: vec![
                User { name: format!("admin@{domain}"), wids: vec![GLOBAL_ADMINISTRATOR.into()], ..User::default() },
                User { name: format!("user@{domain}"), ..User::default() },
            ],
            ..TenantSeed::default()
        });
    }
    Rig { sim, http: client() }
}

impl Rig {
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Response {
        let received = request.send().await.unwrap();
        let (status, headers) = (received.status().as_u16(), received.headers().clone());
        Response { status, headers, text: received.text().await.unwrap() }
    }

    /// Sends a form to the token endpoint of an authority.
    pub(crate) async fn token(&self, authority: &str, form: &[(&str, &str)]) -> Response {
        let url = format!("{}/{authority}/oauth2/v2.0/token", self.sim.entra_url());
        self.send(self.http.post(url).form(form)).await
    }

    /// Sends a request for Contoso with a token that has every role.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Response {
        let (base, resource) = if path.starts_with("/api") {
            (self.sim.defender_url(), Resource::Defender)
        } else {
            (self.sim.graph_url(), Resource::Graph)
        };
        let roles: Vec<&str> = resource.app_roles().iter().map(|role| role.value).collect();
        let token = self.sim.issue_token(CONTOSO, CLIENT, &roles, resource);
        let mut request = self.http.request(method.parse().unwrap(), format!("{base}{path}")).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.send(request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.call("GET", path, None).await
    }

    /// Adds incidents 1 to n to Contoso, one second apart, the last one newest.
    pub(crate) fn put_incidents(&self, n: i64) {
        for second in 0..n {
            let at: Timestamp = Timestamp::from_second(1_790_000_000 + second).unwrap();
            self.sim.put_incident(CONTOSO, IncidentSeed { created: Some(at), ..IncidentSeed::default() });
        }
    }
}
