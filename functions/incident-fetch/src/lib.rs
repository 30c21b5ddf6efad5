//! `incident-fetch`: delivers the incidents of tenants (from the queue), and reads and changes them live (from the HTTP
//! API).

mod all_tenants;
mod change;
mod hunting;
mod live;
mod messages;
mod sync;

use std::time::Duration;

use crate::sync::{Settings, SyncContext, tenant::TenantSync};
use jiff::SignedDuration;
use serde_json::Value;
use shared::{
    clients::Clients,
    clock::Clock,
    config::{JwtAudience, Variables},
    delivery::{
        bucket::{Bucket, Format},
        events::IncidentEvents,
    },
    error::{Error, Result},
    incident::record::is_incident_id,
    incident_api::client::Incidents,
    lambda::{
        event::{Event, HttpRequest, HttpResponse, Invocation, InvocationError},
        route::json_route,
        runtime::Platform,
    },
    microsoft::{IncidentApiSetting, Microsoft},
    queue::SyncQueue,
    random::Random,
    registry::Registry,
};

/// The time for one HTTP request. API Gateway waits for 30 seconds, however long the function itself may run.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(28_500);

/// The time by which a poll may start ahead of its schedule. A token that is so close to the age of
/// `CONSENT_CHECK_SECONDS` would be too old at the next poll.
const POLL_JITTER: SignedDuration = SignedDuration::from_secs(5);

/// The settings of the function, from its environment.
#[derive(Debug)]
pub struct Config {
    microsoft: Microsoft,
    incident_api: IncidentApiSetting,
    table_name: String,
    sync_queue_url: String,
    hunt_queue_url: Option<String>,
    incident_bucket: String,
    event_bus_name: Option<String>,
    format: Format,
    incident_events: IncidentEvents,
    poll_interval: SignedDuration,
    poll_max_interval: SignedDuration,
    overlap: SignedDuration,
    first_lookback: SignedDuration,
    consent_check: SignedDuration,
    sweep: SignedDuration,
    jwt_audience: Option<JwtAudience>,
}

impl Config {
    /// Reads the settings; `None` if a variable is missing or wrong, which `variables` reports.
    pub fn read(variables: &mut Variables<'_>) -> Option<Self> {
        let microsoft = variables.microsoft();
        let table_name = variables.required("TABLE_NAME");
        let sync_queue_url = variables.queue_url("SYNC_QUEUE_URL");
        let hunt_queue_url = variables.optional_queue_url("HUNT_QUEUE_URL");
        let incident_bucket = variables.required("INCIDENT_BUCKET");
        let event_bus_name = variables.optional("EVENT_BUS_NAME");
        let incident_api = variables.incident_api();
        let format = variables.parsed("DELIVERY_FORMAT", Format::Envelope, "must be envelope, ocsf or both");
        let incident_events = variables.parsed("INCIDENT_EVENTS", IncidentEvents::None, "must be none or summary");
        let poll_interval = variables.at_least("POLL_INTERVAL_SECONDS", 60, 1);
        let poll_max_interval = variables.at_least("POLL_MAX_INTERVAL_SECONDS", poll_interval, poll_interval);
        let overlap = variables.at_least("POLL_OVERLAP_SECONDS", 900, 0);
        let first_lookback = variables.at_least("FIRST_LOOKBACK_HOURS", 24, 0);
        let consent_check = variables.at_least("CONSENT_CHECK_SECONDS", 600, 60);
        let sweep = variables.sweep();
        let jwt_audience = variables.jwt_audience();
        let seconds = |seconds: u32| SignedDuration::from_secs(seconds.into());
        let hours = |hours: u32| SignedDuration::from_hours(hours.into());
        Some(Self {
            microsoft: microsoft?,
            incident_api,
            table_name: table_name?,
            sync_queue_url: sync_queue_url?,
            hunt_queue_url,
            incident_bucket: incident_bucket?,
            event_bus_name,
            format,
            incident_events,
            poll_interval: seconds(poll_interval),
            poll_max_interval: seconds(poll_max_interval),
            overlap: seconds(overlap),
            first_lookback: hours(first_lookback),
            consent_check: seconds(consent_check),
            sweep,
            jwt_audience,
        })
    }
}

/// The function with all its clients.
#[derive(Clone)]
pub struct App {
    sync: TenantSync,
    bucket: Bucket,
    hunt_queue: SyncQueue,
    random: Random,
    registry: Registry,
    incidents: Incidents,
    clock: Clock,
    jwt_audience: Option<JwtAudience>,
}

impl App {
    /// Creates the clients of the function.
    pub fn new(config: Config, platform: &Platform) -> Self {
        let aws = &platform.aws;
        let clients = Clients::new(&config.microsoft, config.table_name, config.event_bus_name, platform);
        let bucket = Bucket::new(aws, config.incident_bucket);
        let hunt_queue = config.hunt_queue_url.unwrap_or_else(|| config.sync_queue_url.clone());
        let context = SyncContext {
            incidents: clients.incidents.clone(),
            registry: clients.registry.clone(),
            bucket: bucket.clone(),
            events: clients.events.clone(),
            clock: clients.clock.clone(),
            settings: Settings {
                poll_interval: config.poll_interval,
                overlap: config.overlap,
                first_lookback: config.first_lookback,
                max_token_age: config.consent_check - POLL_JITTER,
                format: config.format,
                incident_events: config.incident_events,
            },
        };
        let sync = TenantSync {
            context,
            onboarding: clients.onboarding(config.incident_api),
            tokens: clients.tokens.clone(),
            queue: SyncQueue::new(aws, config.sync_queue_url),
            poll_max_interval: config.poll_max_interval,
            sweep: config.sweep,
        };
        Self {
            sync,
            bucket,
            hunt_queue: SyncQueue::new(aws, hunt_queue),
            random: platform.random.clone(),
            registry: clients.registry,
            incidents: clients.incidents,
            clock: clients.clock,
            jwt_audience: config.jwt_audience,
        }
    }

    /// Handles one invocation and returns its response.
    ///
    /// # Errors
    /// Refuses an event that is neither a batch of queue messages nor a request of the HTTP API.
    pub async fn handle(&self, event: Value, mut invocation: Invocation) -> Result<Value, InvocationError> {
        match Event::parse(event) {
            Event::Queue(messages) => {
                Ok(invocation.in_request_span(self.process_messages(messages, invocation.deadline)).await)
            }
            Event::Http(request) => {
                invocation.deadline = invocation.deadline.at_most(REQUEST_TIMEOUT);
                let request = request.with_jwt_caller(self.jwt_audience.as_ref());
                let work = Box::pin(self.route(&request, &invocation));
                let response = json_route(&invocation, &self.clock, &request, work);
                Ok(invocation.in_request_span(response).await.into_value())
            }
            Event::Direct(_) => {
                let refused = async { tracing::warn!("an event that is neither messages nor a request was refused") };
                invocation.in_request_span(refused).await;
                let what = "This function takes messages of the queue and requests of the HTTP API.";
                Err(Error::InvalidRequest(what.into()).into())
            }
        }
    }

    async fn route(&self, request: &HttpRequest, invocation: &Invocation) -> Result<HttpResponse> {
        let deadline = invocation.deadline;
        let incident = || incident_id(request.path_parameter("incident_id"));
        match request.route_key.as_str() {
            "GET /incidents" => self.list_all_incidents(request, deadline).await,
            "POST /hunting" => self.start_hunt(request, deadline).await,
            "GET /hunting/{hunt_id}" => self.read_hunt(request, deadline).await,
            "DELETE /hunting/{hunt_id}" => self.cancel_hunt(request).await,
            "GET /tenants/{tenant_id}/incidents" => self.list_incidents(request.tenant_id()?, request, deadline).await,
            "GET /tenants/{tenant_id}/incidents/{incident_id}" => {
                self.get_incident(request.tenant_id()?, incident()?, request, deadline).await
            }
            "PATCH /tenants/{tenant_id}/incidents/{incident_id}" => {
                self.change(request.tenant_id()?, incident()?, request, deadline).await
            }
            _ => Err(Error::NotFound),
        }
    }
}

/// Parses the identifier of an incident. Leading zeros are refused, because Microsoft would accept them as another name of
/// the same incident.
fn incident_id(text: &str) -> Result<&str> {
    let canonical = is_incident_id(text) && (text == "0" || !text.starts_with('0'));
    if canonical { Ok(text) } else { Err(Error::NotFound) }
}
