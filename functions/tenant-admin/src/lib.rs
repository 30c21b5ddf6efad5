//! The operator's API: invitations, tenants, backfills and sweeps, pausing and offboarding.

mod input;
mod invitations;
mod jobs;
mod offboarding;
mod tenant_list;
mod tenants;

use jiff::SignedDuration;
use serde_json::Value;
use shared::{
    clients::Clients,
    clock::Clock,
    config::{JwtAudience, PublicBaseUrl, Variables},
    delivery::bucket::Bucket,
    error::{Error, Result},
    http::HttpClient,
    lambda::{
        event::{Event, HttpRequest, HttpResponse, Invocation, InvocationError},
        route::json_route,
        runtime::Platform,
    },
    microsoft::Microsoft,
    queue::SyncQueue,
    random::Random,
};

/// The function's configuration, from its environment variables.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cloud, the endpoints of Entra and the incident APIs, and the secret with our credential.
    pub microsoft: Microsoft,
    /// The name of the DynamoDB table.
    pub table_name: String,
    /// The URL of the SQS queue that jobs are sent to.
    pub sync_queue_url: String,
    /// The S3 bucket that stores the receipts of offboarding.
    pub incident_bucket: String,
    /// The EventBridge bus for changes of a tenant's status. Without it no events are sent.
    pub event_bus_name: Option<String>,
    /// The base of consent links. Without it they use the host of the request.
    pub public_base_url: Option<PublicBaseUrl>,
    /// The span of a sweep that is requested without `from`.
    pub sweep: SignedDuration,
    /// The audience of JWT callers. Without it only IAM callers are admitted.
    pub jwt_audience: Option<JwtAudience>,
}

impl Config {
    /// Reads the variables. After `None`, `variables` names what is missing.
    pub fn read(variables: &mut Variables<'_>) -> Option<Self> {
        let microsoft = variables.microsoft();
        let table_name = variables.required("TABLE_NAME");
        let sync_queue_url = variables.queue_url("SYNC_QUEUE_URL");
        let incident_bucket = variables.required("INCIDENT_BUCKET");
        let event_bus_name = variables.optional("EVENT_BUS_NAME");
        let public_base_url = variables.public_base_url();
        let sweep = variables.sweep();
        let jwt_audience = variables.jwt_audience();
        Some(Self {
            microsoft: microsoft?,
            table_name: table_name?,
            sync_queue_url: sync_queue_url?,
            incident_bucket: incident_bucket?,
            event_bus_name,
            public_base_url,
            sweep,
            jwt_audience,
        })
    }
}

/// The function, which turns requests of the HTTP API into responses.
pub struct App {
    config: Config,
    clients: Clients,
    queue: SyncQueue,
    bucket: Bucket,
    http: HttpClient,
    clock: Clock,
    random: Random,
}

/// One request, without the identifiers from its path.
struct AdminRequest<'a> {
    http: &'a HttpRequest,
    invocation: &'a Invocation,
    /// The caller's name in the audit.
    actor: &'a str,
}

impl App {
    /// Builds the function with its clients.
    pub fn new(config: Config, platform: &Platform) -> Self {
        let Platform { aws, http, clock, random } = platform.clone();
        let (table, bus) = (config.table_name.clone(), config.event_bus_name.clone());
        let clients = Clients::new(&config.microsoft, table, bus, platform);
        let queue = SyncQueue::new(&aws, config.sync_queue_url.clone());
        let bucket = Bucket::new(&aws, config.incident_bucket.clone());
        Self { config, clients, queue, bucket, http, clock, random }
    }

    /// Responds to one request of the HTTP API. A failed request is a response, too: a problem document.
    ///
    /// # Errors
    /// `invalid_request` for an event that is not an HTTP request.
    pub async fn handle(&self, event: Value, invocation: Invocation) -> Result<Value, InvocationError> {
        invocation.in_request_span(self.respond(event, &invocation)).await
    }

    async fn respond(&self, event: Value, invocation: &Invocation) -> Result<Value, InvocationError> {
        let Event::Http(request) = Event::parse(event) else {
            tracing::warn!("refused an event that is not an HTTP request");
            return Err(Error::InvalidRequest("This function accepts requests of the HTTP API only.".into()).into());
        };
        let request = request.with_jwt_caller(self.config.jwt_audience.as_ref());
        // Boxed: without it the compiler reaches its recursion limit on the layout of this future.
        let route = Box::pin(self.route(&request, invocation));
        let response = json_route(invocation, &self.clock, &request, route).await;
        Ok(response.into_value())
    }

    async fn route(&self, http: &HttpRequest, invocation: &Invocation) -> Result<HttpResponse> {
        let request = &AdminRequest { http, invocation, actor: &http.caller()?.name };
        let parameter = |name: &str| http.path_parameter(name);
        match http.route_key.as_str() {
            "POST /invitations" => self.invite(request).await,
            "GET /invitations" => self.list_invitations(request).await,
            "DELETE /invitations/{invitation_id}" => self.revoke_invitation(request, parameter("invitation_id")).await,
            "GET /tenants" => self.list_tenants(request).await,
            "GET /tenants/{tenant_id}" => self.show_tenant(request, http.tenant_id()?).await,
            "PATCH /tenants/{tenant_id}" => self.change_tenant(request, http.tenant_id()?).await,
            "DELETE /tenants/{tenant_id}" => self.offboard(request, http.tenant_id()?).await,
            "POST /tenants/{tenant_id}/sync" => self.start_job(request, http.tenant_id()?).await,
            "GET /tenants/{tenant_id}/sync/{job_id}" => {
                self.show_job(request, http.tenant_id()?, parameter("job_id")).await
            }
            "DELETE /tenants/{tenant_id}/sync/{job_id}" => {
                self.cancel_job(request, http.tenant_id()?, parameter("job_id")).await
            }
            "POST /tenants/{tenant_id}/pause" => self.pause(request, http.tenant_id()?).await,
            "POST /tenants/{tenant_id}/resume" => self.resume(request, http.tenant_id()?).await,
            _ => Err(Error::NotFound),
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::config::load;

    use super::*;

    #[test]
    fn missing_variables_are_named_and_the_rest_have_defaults() {
        let nothing = load(&|_| None, Config::read).unwrap_err().to_string();
        for name in ["APP_CREDENTIAL_SECRET_ID", "TABLE_NAME", "SYNC_QUEUE_URL", "INCIDENT_BUCKET"] {
            assert!(nothing.contains(name), "{name} is not in: {nothing}");
        }
        let required = ["APP_CREDENTIAL_SECRET_ID", "TABLE_NAME", "SYNC_QUEUE_URL", "INCIDENT_BUCKET"];
        let config = load(&|name| required.contains(&name).then(|| "https://x.example".into()), Config::read).unwrap();
        assert_eq!((config.event_bus_name, config.public_base_url), (None, None));
    }
}
