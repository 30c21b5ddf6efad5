//! Issues access tokens for active tenants to callers that the gateway has authenticated. Each token leaves a line in the audit.

mod active_tenants;

use std::{str::FromStr, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::{
    clients::Clients,
    clock::Clock,
    config::{JwtAudience, Variables},
    entra::{access_token::AccessToken, token_cache::Tokens},
    error::{Error, Result},
    http::Deadline,
    lambda::{
        event::{Event, HttpRequest, HttpResponse, Invocation, InvocationError},
        route::json_route,
        runtime::{Platform, tenant_span},
    },
    microsoft::{IncidentApi, IncidentApiSetting, Microsoft, NotAnIncidentApi},
    registry::tenants::Tenant,
    telemetry::{self, Metric},
    tenant::{Reason, TenantId},
    text::from_json_object,
};
use tracing::{Instrument, Span};

use active_tenants::ActiveTenants;

/// The age up to which a cached token without a needed role is believed. The customer may have consented since.
const MAX_AGE_WITHOUT_ROLE: SignedDuration = SignedDuration::from_secs(30);

/// The configuration, from environment variables.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cloud, its hosts and the app credential.
    pub microsoft: Microsoft,
    /// The name of the DynamoDB table.
    pub table_name: String,
    /// The APIs that tokens are issued for.
    pub incident_api: IncidentApiSetting,
    /// The audience of JWT callers. Without it only IAM callers are admitted.
    pub jwt_audience: Option<JwtAudience>,
    /// Whether tokens are issued to callers that invoke the function directly, past the API.
    pub direct_invocation: DirectInvocation,
}

/// The setting `DIRECT_TOKEN_INVOCATION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectInvocation {
    /// Whoever may invoke the function gets tokens.
    Enabled,
    /// Tokens come from the HTTP API alone.
    Disabled,
}

/// The text is not a [`DirectInvocation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotADirectInvocation;

impl FromStr for DirectInvocation {
    type Err = NotADirectInvocation;

    fn from_str(text: &str) -> Result<Self, NotADirectInvocation> {
        match text {
            "enabled" => Ok(Self::Enabled),
            "disabled" => Ok(Self::Disabled),
            _ => Err(NotADirectInvocation),
        }
    }
}

impl Config {
    /// Reads the variables. After `None`, `variables` names what is missing.
    pub fn read(variables: &mut Variables<'_>) -> Option<Self> {
        let microsoft = variables.microsoft();
        let table_name = variables.required("TABLE_NAME");
        let incident_api = variables.incident_api();
        let jwt_audience = variables.jwt_audience();
        let rule = "must be enabled or disabled";
        let direct_invocation = variables.parsed("DIRECT_TOKEN_INVOCATION", DirectInvocation::Enabled, rule);
        Some(Self { microsoft: microsoft?, table_name: table_name?, incident_api, jwt_audience, direct_invocation })
    }
}

/// The function, with the clients that it keeps between invocations.
pub struct App {
    incident_api: IncidentApiSetting,
    jwt_audience: Option<JwtAudience>,
    direct_invocation: DirectInvocation,
    tenants: ActiveTenants,
    tokens: Tokens,
    clock: Clock,
}

/// The event of a direct call.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DirectBody {
    tenant_id: String,
    resource: Option<String>,
}

/// The body of a request.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestBody {
    resource: Option<String>,
}

#[derive(Serialize)]
struct TokenBody<'a> {
    token_type: &'static str,
    access_token: &'a str,
    expires_in: i64,
    expires_at: Timestamp,
    tenant_id: TenantId,
    resource: IncidentApi,
    /// Null for a token that cannot be decoded.
    roles: Option<&'a [String]>,
}

impl App {
    /// Builds the function's clients on `platform`.
    pub fn new(config: Config, platform: &Platform) -> Self {
        let Clients { registry, tokens, clock, .. } =
            Clients::new(&config.microsoft, config.table_name, None, platform);
        let Config { incident_api, jwt_audience, direct_invocation, .. } = config;
        let tenants = ActiveTenants::new(registry, clock.clone());
        Self { incident_api, jwt_audience, direct_invocation, tenants, tokens, clock }
    }

    /// Handles one event: a request of the HTTP API, or a direct call.
    ///
    /// # Errors
    /// The failure of a direct call. The failure of a request is a response.
    pub async fn handle(&self, event: Value, invocation: Invocation) -> Result<Value, InvocationError> {
        invocation
            .in_request_span(async {
                match Event::parse(event) {
                    Event::Http(request) => {
                        let request = request.with_jwt_caller(self.jwt_audience.as_ref());
                        let work = Box::pin(self.serve_request(&request, &invocation));
                        Ok(json_route(&invocation, &self.clock, &request, work).await.into_value())
                    }
                    Event::Direct(call) => {
                        let tenant = call.get("tenant_id").and_then(Value::as_str).and_then(|id| id.parse().ok());
                        let span = tenant.as_ref().map_or_else(Span::none, tenant_span);
                        self.serve_direct_call(call, &invocation).instrument(span).await
                    }
                    Event::Queue(_) => Err(Error::InvalidRequest("This function takes no messages.".into()).into()),
                }
            })
            .await
    }

    async fn serve_request(&self, request: &HttpRequest, invocation: &Invocation) -> Result<HttpResponse> {
        let caller = request.caller()?;
        if request.route_key != "POST /tenants/{tenant_id}/token" {
            return Err(Error::NotFound);
        }
        let tenant = self.tenants.get(&request.tenant_id()?).await?;
        request.parameters(&[])?;
        let body = if request.body.is_empty() {
            RequestBody::default()
        } else {
            request.json(r#"at most "resource": "graph" or "defender""#)?
        };
        let token = self.issue(&tenant, body.resource.as_deref(), &caller.name, invocation.deadline).await?;
        Ok(HttpResponse::json(200, &token))
    }

    async fn serve_direct_call(&self, call: Value, invocation: &Invocation) -> Result<Value, InvocationError> {
        let outcome = invocation.deadline.run(self.issue_for_call(call, invocation.deadline)).await;
        outcome.map_err(|error| {
            if error.is_internal_failure() {
                telemetry::internal_failure();
            }
            tracing::warn!(code = error.code().0, reason = error.reason().map(Reason::as_str), cause = %error, "call refused");
            InvocationError::from(error)
        })
    }

    async fn issue_for_call(&self, call: Value, deadline: Deadline) -> Result<Value> {
        if self.direct_invocation == DirectInvocation::Disabled {
            return Err(Error::UnauthorizedCaller);
        }
        let call: DirectBody = from_json_object(call).ok_or_else(|| {
            Error::InvalidRequest(r#"The call must be {"tenant_id", "resource"?}, and nothing else."#.into())
        })?;
        let tenant = self.tenants.get(&call.tenant_id.parse()?).await?;
        self.issue(&tenant, call.resource.as_deref(), "direct", deadline).await
    }

    async fn issue(&self, tenant: &Tenant, resource: Option<&str>, caller: &str, deadline: Deadline) -> Result<Value> {
        let requested = resource.map(str::parse::<IncidentApi>).transpose();
        let requested = requested
            .map_err(|NotAnIncidentApi| Error::InvalidRequest(r#"`resource` must be "graph" or "defender"."#.into()))?;
        let tenant_id = tenant.tenant_id;
        let api = requested.unwrap_or(tenant.api);
        if api != tenant.api && !self.incident_api.candidates().contains(&api) {
            return Err(Error::InvalidRequest("This deployment does not use that `resource`.".into()));
        }
        let token = self.usable_token(tenant, api, deadline).await?;
        let now = self.clock.now();
        let body = TokenBody {
            token_type: "Bearer",
            access_token: token.expose(),
            expires_in: token.expires_at().duration_since(now).as_secs(),
            expires_at: whole_second(token.expires_at()),
            tenant_id,
            resource: api,
            roles: token.roles(),
        };
        telemetry::write_audit(|| {
            tracing::info!(
                target: telemetry::RECORD,
                audit = true,
                caller,
                tenant_id = %tenant_id,
                resource = api.as_str(),
                roles = token.roles().map(|roles| roles.join(" ")),
                expires_at = %body.expires_at,
                token_id_sha256 = token.id_hash(),
                "access token issued"
            );
        })?;
        telemetry::metrics(None, &[Metric::count("TokensIssued", 1)]);
        Ok(json!(body))
    }

    /// A token with an app role that reads incidents.
    ///
    /// # Errors
    /// [`Error::Refused`] if the tenant has no such role, and [`Error::Conflict`] if only its other API has one.
    async fn usable_token(&self, tenant: &Tenant, api: IncidentApi, deadline: Deadline) -> Result<Arc<AccessToken>> {
        let usable = |token: &AccessToken| token.roles().is_none_or(|roles| api.readable_with(roles));
        let token = self.tokens.access_token(&tenant.tenant_id, api, deadline).await?;
        if usable(&token) {
            return Ok(token);
        }
        let token =
            self.tokens.access_token_no_older_than(&tenant.tenant_id, api, MAX_AGE_WITHOUT_ROLE, deadline).await?;
        if usable(&token) {
            return Ok(token);
        }
        if api == tenant.api {
            return Err(Error::Refused(Reason::RoleMissing));
        }
        let detail = format!("The tenant has not consented to a role of {api}. Its `api` is {}.", tenant.api);
        Err(Error::Conflict { detail, reason: Some(Reason::RoleMissing) })
    }
}

fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
