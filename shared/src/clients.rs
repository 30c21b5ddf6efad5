//! The clients of AWS and Microsoft, wired to each other in one place.

use crate::{
    clock::Clock,
    delivery::events::Events,
    entra::token_cache::Tokens,
    incident_api::client::Incidents,
    lambda::runtime::Platform,
    microsoft::{IncidentApiSetting, Microsoft},
    onboarding::Onboarding,
    registry::Registry,
};

/// The clients of a function that works on tenants: the table, Entra, the incident APIs and the event bus.
#[derive(Clone)]
pub struct Clients {
    /// The client of the DynamoDB table.
    pub registry: Registry,
    /// The cache of the access tokens of all tenants.
    pub tokens: Tokens,
    /// The clients of the incident APIs of all tenants.
    pub incidents: Incidents,
    /// The sender of events. It sends none without a bus.
    pub events: Events,
    /// The clock that all of these clients use.
    pub clock: Clock,
}

impl Clients {
    /// The clients for one deployment. Without `event_bus_name` no events are sent.
    pub fn new(microsoft: &Microsoft, table_name: String, event_bus_name: Option<String>, platform: &Platform) -> Self {
        let Platform { aws, http, clock, random } = platform;
        let registry = Registry::new(aws, table_name);
        let tokens = Tokens::new(microsoft, http.clone(), aws, registry.clone(), clock.clone(), random.clone());
        let endpoints = microsoft.endpoints.clone();
        let incidents = Incidents::new(endpoints, http.clone(), tokens.clone(), registry.clone(), clock.clone());
        let events = Events::new(aws, event_bus_name);
        Self { registry, tokens, incidents, events, clock: clock.clone() }
    }

    /// The onboarding for the incident APIs of `setting`.
    pub fn onboarding(&self, setting: IncidentApiSetting) -> Onboarding {
        let Self { registry, tokens, incidents, events, clock } = self.clone();
        Onboarding::new(setting, tokens, incidents, registry, events, clock)
    }
}
