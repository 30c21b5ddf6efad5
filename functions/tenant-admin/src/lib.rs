//! What an operator does: invitations, tenants, backfills and sweeps, pausing, offboarding.

mod input;
mod invitations;
mod jobs;
mod offboarding;
mod tenants;

use std::sync::Arc;

use aws_lc_rs::rand::SecureRandom;
use jiff::SignedDuration;
use serde_json::Value;
use shared::{
    clients::Clients,
    clock::Clock,
    config::{PublicBaseUrl, Variables},
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
};

/// The function's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The neighbours at Microsoft, and our credential there.
    pub microsoft: Microsoft,
    /// The DynamoDB table.
    pub table_name: String,
    /// The queue that jobs are put on.
    pub sync_queue_url: String,
    /// The bucket that keeps the receipts of offboarding.
    pub incident_bucket: String,
    /// The bus that hears of changes; none: nobody does.
    pub event_bus_name: Option<String>,
    /// Where consent links lead; none: to the host that the request came to.
    pub public_base_url: Option<PublicBaseUrl>,
    /// How far back a sweep looks that names no beginning.
    pub sweep: SignedDuration,
}

impl Config {
    /// Reads it; `None` has been noted as a fault.
    pub fn read(variables: &mut Variables<'_>) -> Option<Self> {
        let microsoft = variables.microsoft();
        let table_name = variables.required("TABLE_NAME");
        let sync_queue_url = variables.required("SYNC_QUEUE_URL");
        let incident_bucket = variables.required("INCIDENT_BUCKET");
        let event_bus_name = variables.optional("EVENT_BUS_NAME");
        let public_base_url = variables.public_base_url();
        let sweep = variables.sweep();
        Some(Self {
            microsoft: microsoft?,
            table_name: table_name?,
            sync_queue_url: sync_queue_url?,
            incident_bucket: incident_bucket?,
            event_bus_name,
            public_base_url,
            sweep,
        })
    }
}

/// The function: requests in, answers out.
pub struct App {
    config: Config,
    clients: Clients,
    queue: SyncQueue,
    bucket: Bucket,
    http: HttpClient,
    clock: Clock,
    random: Arc<dyn SecureRandom + Send + Sync>,
}

/// What a route knows of its request beside the path.
struct Call<'a> {
    request: &'a HttpRequest,
    invocation: &'a Invocation,
    /// Who asks: an IAM ARN.
    actor: &'a str,
}

impl App {
    /// Wires the function up.
    pub fn new(config: Config, platform: &Platform) -> Self {
        let Platform { aws, http, clock, random } = platform.clone();
        let (table, bus) = (config.table_name.clone(), config.event_bus_name.clone());
        let clients = Clients::new(&config.microsoft, table, bus, platform);
        let queue = SyncQueue::new(&aws, config.sync_queue_url.clone());
        let bucket = Bucket::new(&aws, config.incident_bucket.clone());
        Self { config, clients, queue, bucket, http, clock, random }
    }

    /// Answers one invocation.
    ///
    /// # Errors
    /// Whatever is not a request of the HTTP API is refused as a whole.
    pub async fn handle(&self, event: Value, invocation: Invocation) -> Result<Value, InvocationError> {
        invocation.in_request_span(self.answer(event, &invocation)).await
    }

    async fn answer(&self, event: Value, invocation: &Invocation) -> Result<Value, InvocationError> {
        let Event::Http(request) = Event::parse(event) else {
            tracing::warn!("an event that is no HTTP request was refused");
            return Err(Error::InvalidRequest("This function answers requests of the HTTP API only.".into()).into());
        };
        // Boxed, because the compiler's measuring of all routes in one future runs out of depth.
        let route = Box::pin(self.route(&request, invocation));
        let response = json_route(invocation, &self.clock, &request, route).await;
        Ok(response.into_value())
    }

    async fn route(&self, request: &HttpRequest, invocation: &Invocation) -> Result<HttpResponse> {
        let call = &Call { request, invocation, actor: &request.caller()?.user_arn };
        match (request.method.as_str(), request.segments().as_slice()) {
            ("POST", ["invitations"]) => self.invite(call).await,
            ("GET", ["invitations"]) => self.list_invitations(call).await,
            ("DELETE", ["invitations", invitation]) => self.revoke_invitation(call, invitation).await,
            ("GET", ["tenants"]) => self.list_tenants(call).await,
            ("GET", ["tenants", tenant]) => self.show_tenant(call, tenant.parse()?).await,
            ("PATCH", ["tenants", tenant]) => self.change_tenant(call, tenant.parse()?).await,
            ("DELETE", ["tenants", tenant]) => self.offboard(call, tenant.parse()?).await,
            ("POST", ["tenants", tenant, "sync"]) => self.start_job(call, tenant.parse()?).await,
            ("GET", ["tenants", tenant, "sync", job]) => self.show_job(call, tenant.parse()?, job).await,
            ("DELETE", ["tenants", tenant, "sync", job]) => self.cancel_job(call, tenant.parse()?, job).await,
            ("POST", ["tenants", tenant, "pause"]) => self.pause(call, tenant.parse()?).await,
            ("POST", ["tenants", tenant, "resume"]) => self.resume(call, tenant.parse()?).await,
            _ => Err(Error::NotFound),
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::config::load;

    use super::*;

    #[test]
    fn every_missing_variable_is_named_and_the_rest_has_defaults() {
        let nothing = load(&|_| None, Config::read).unwrap_err().to_string();
        for name in ["APP_CREDENTIAL_SECRET_ID", "TABLE_NAME", "SYNC_QUEUE_URL", "INCIDENT_BUCKET"] {
            assert!(nothing.contains(name), "{name} is not in: {nothing}");
        }
        let required = ["APP_CREDENTIAL_SECRET_ID", "TABLE_NAME", "SYNC_QUEUE_URL", "INCIDENT_BUCKET"];
        let config = load(&|name| required.contains(&name).then(|| "x".into()), Config::read).unwrap();
        assert_eq!((config.event_bus_name, config.public_base_url), (None, None));
    }
}
