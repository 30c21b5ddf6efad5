//! Consent: the way of a customer's administrator from an invitation to a verified tenant.
//!
//! The invitation's page changes nothing. Its form starts an attempt and binds it to the browser with a cookie.
//! Microsoft first says who the administrator is, and then which permissions they granted. Each callback is compared
//! with the cookie before anything else. A refusal shows one of our own texts and never text from the request.

pub mod browser;
mod callback;
mod pages;
mod request;
mod tenant_page;
mod texts;

use serde_json::Value;
use shared::{
    clients::Clients,
    clock::Clock,
    config::{PublicBaseUrl, Variables},
    entra::{sign_in::SignIn, token_cache::Tokens},
    error::{Error, Result},
    lambda::{
        event::{Event, HttpResponse, Invocation, InvocationError},
        runtime::{Platform, catch_panic},
    },
    microsoft::{IncidentApiSetting, Microsoft},
    onboarding::Onboarding,
    random::Random,
    registry::Registry,
    telemetry,
};

use crate::{pages::Pages, request::ConsentRequest, texts::Message};

/// The function's configuration, from its environment variables.
#[derive(Clone, Debug)]
pub struct Config {
    microsoft: Microsoft,
    incident_api: IncidentApiSetting,
    table_name: String,
    event_bus_name: Option<String>,
    /// Without it the pages use the host of the request.
    public_base_url: Option<PublicBaseUrl>,
    partner_name: String,
}

impl Config {
    /// Reads the variables. After `None`, `variables` names what is missing.
    pub fn read(variables: &mut Variables<'_>) -> Option<Self> {
        let microsoft = variables.microsoft();
        let incident_api = variables.incident_api();
        let table_name = variables.required("TABLE_NAME");
        let event_bus_name = variables.optional("EVENT_BUS_NAME");
        let public_base_url = variables.public_base_url();
        let partner_name = variables.required("PARTNER_NAME");
        Some(Self {
            microsoft: microsoft?,
            incident_api,
            table_name: table_name?,
            event_bus_name,
            public_base_url,
            partner_name: partner_name?,
        })
    }
}

/// The function, which turns requests of the HTTP API into pages.
pub struct App {
    config: Config,
    registry: Registry,
    tokens: Tokens,
    sign_in: SignIn,
    onboarding: Onboarding,
    clock: Clock,
    random: Random,
}

impl App {
    /// Builds the function with its clients.
    pub fn new(config: Config, platform: &Platform) -> Self {
        let Platform { http, clock, random, .. } = platform.clone();
        let Microsoft { endpoints, cloud, .. } = &config.microsoft;
        let (table, bus) = (config.table_name.clone(), config.event_bus_name.clone());
        let clients = Clients::new(&config.microsoft, table, bus, platform);
        let onboarding = clients.onboarding(config.incident_api);
        let sign_in = SignIn::new(endpoints, *cloud, http, clock.clone());
        Self { config, registry: clients.registry, tokens: clients.tokens, sign_in, onboarding, clock, random }
    }

    /// Responds to one request of the HTTP API. A failed request is a response, too: a page that says what to do next.
    ///
    /// # Errors
    /// `invalid_request` for an event that is not an HTTP request.
    pub async fn handle(&self, event: Value, invocation: Invocation) -> Result<Value, InvocationError> {
        Box::pin(invocation.in_request_span(self.respond(event, &invocation))).await
    }

    async fn respond(&self, event: Value, invocation: &Invocation) -> Result<Value, InvocationError> {
        let Event::Http(http) = Event::parse(event) else {
            tracing::warn!("refused an event that is not an HTTP request");
            return Err(Error::InvalidRequest("This function accepts requests of the HTTP API only.".into()).into());
        };
        let accept_language = http.headers.get("accept-language").map(String::as_str);
        let api = self.config.incident_api.preferred();
        let pages = Pages::new(accept_language, &self.config.partner_name, api, &invocation.request_id)
            .ok_or_else(|| Error::Internal("no language has texts".into()))?;
        let started = self.clock.now();
        let request = ConsentRequest {
            app: self,
            http: &http,
            pages: &pages,
            base_url: PublicBaseUrl::or_domain(self.config.public_base_url.as_ref(), &http.domain_name),
            deadline: invocation.deadline,
            now: started,
        };
        let outcome = invocation.deadline.run(catch_panic(request.route())).await;
        let response = outcome.unwrap_or_else(|error| self.failure_page(&error, &pages));
        let duration_ms = self.clock.milliseconds_since(started);
        tracing::info!(method = http.method, status = response.status, duration_ms, "request served");
        Ok(response.into_value())
    }

    /// Logs `error` and returns the page for it. Its status is at least 500, because the visitor did nothing wrong.
    fn failure_page(&self, error: &Error, pages: &Pages<'_>) -> HttpResponse {
        let (code, status) = error.code();
        let status = status.max(500);
        if status == 500 {
            telemetry::internal_failure(self.clock.now());
        }
        tracing::error!(code, status, cause = %error, "page failed");
        pages.plain(status, Message::Failed)
    }
}
