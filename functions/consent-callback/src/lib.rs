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

/// The variable that names the secret with the credential of a registration for the sign-in alone.
const SIGN_IN_CREDENTIAL: &str = "SIGN_IN_CREDENTIAL_SECRET_ID";

/// The function's configuration, from its environment variables.
#[derive(Clone, Debug)]
pub struct Config {
    microsoft: Microsoft,
    /// The client id of the app, if the sign-in has a registration of its own. `microsoft` then has the credential of that
    /// registration, and `incident-fetch` verifies the tenants.
    app_client_id: Option<String>,
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
        let has_own_sign_in = variables.optional(SIGN_IN_CREDENTIAL).is_some();
        let (microsoft, app_client_id) = if has_own_sign_in {
            (variables.microsoft_with(SIGN_IN_CREDENTIAL), variables.required("APP_CLIENT_ID"))
        } else {
            (variables.microsoft(), None)
        };
        let incident_api = variables.incident_api();
        let table_name = variables.required("TABLE_NAME");
        let event_bus_name = variables.optional("EVENT_BUS_NAME");
        let public_base_url = variables.public_base_url();
        let partner_name = variables.required("PARTNER_NAME");
        Some(Self {
            microsoft: microsoft?,
            app_client_id,
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
        let response = outcome.unwrap_or_else(|error| Self::failure_page(&error, &pages));
        let duration_ms = self.clock.milliseconds_since(started);
        tracing::info!(method = http.method, status = response.status, duration_ms, "request served");
        Ok(response.into_value())
    }

    /// Logs `error` and returns the page for it. Its status is at least 500, because the visitor did nothing wrong.
    fn failure_page(error: &Error, pages: &Pages<'_>) -> HttpResponse {
        let (code, status) = error.code();
        let status = status.max(500);
        if status == 500 && !matches!(error, Error::CredentialUnusable { .. }) {
            telemetry::internal_failure();
        }
        tracing::error!(code, status, cause = %error, "page failed");
        pages.plain(status, Message::Failed)
    }
}

#[cfg(test)]
mod tests {
    use shared::config::load;

    use super::*;

    #[test]
    fn own_sign_in_needs_the_client_id_and_not_the_app_credential() {
        let with = |names: &'static [&'static str]| {
            let lookup = |name: &str| {
                (["TABLE_NAME", "PARTNER_NAME"].contains(&name) || names.contains(&name)).then(|| name.into())
            };
            load(&lookup, Config::read).map_err(|error| error.to_string())
        };
        let own = with(&[SIGN_IN_CREDENTIAL, "APP_CLIENT_ID"]).unwrap();
        assert_eq!(own.microsoft.app_credential_secret_id, SIGN_IN_CREDENTIAL);
        assert_eq!(own.app_client_id.as_deref(), Some("APP_CLIENT_ID"));
        let shared = with(&["APP_CREDENTIAL_SECRET_ID", "APP_CLIENT_ID"]).unwrap();
        assert_eq!(
            (shared.microsoft.app_credential_secret_id.as_str(), shared.app_client_id),
            ("APP_CREDENTIAL_SECRET_ID", None)
        );
        assert!(with(&[SIGN_IN_CREDENTIAL]).unwrap_err().contains("APP_CLIENT_ID is missing"));
        assert!(with(&["APP_CLIENT_ID"]).unwrap_err().contains("APP_CREDENTIAL_SECRET_ID is missing"));
    }
}
