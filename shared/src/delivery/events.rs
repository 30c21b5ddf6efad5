//! Events on EventBridge about delivered objects and about tenants. Events may repeat. They hold no incident.

use aws_sdk_eventbridge::{Client, types::PutEventsRequestEntry};
use serde_json::{Value, json};

use crate::{
    clock::Clock,
    error::{Error, Result},
    registry::tenants::{Status, Tenant},
    telemetry,
    tenant::{Reason, TenantId},
};

const SOURCE: &str = "partner.incidents";

/// Attempts for entries that EventBridge refuses inside a successful call.
const MAX_ATTEMPTS: u32 = 3;

/// The event bus. Without `EVENT_BUS_NAME` no event is sent.
#[derive(Clone, Debug)]
pub struct Events {
    bus: Option<Bus>,
    clock: Clock,
}

#[derive(Clone, Debug)]
struct Bus {
    client: Client,
    name: String,
}

/// An object in the bucket with delivered versions.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveredObject {
    /// Name of the bucket that holds the object.
    pub bucket: String,
    /// Key of the object inside the bucket.
    pub object: String,
    /// Number of versions in the object.
    pub count: usize,
    /// The earliest time of last update in it, in RFC 3339.
    pub from: String,
    /// The latest time of last update in it, in RFC 3339.
    pub to: String,
}

impl Events {
    /// The bus named `bus`, if there is one. Without a bus no client is made: a function that sends no events starts
    /// without one.
    pub fn new(config: &aws_config::SdkConfig, bus: Option<String>, clock: Clock) -> Self {
        Self { bus: bus.map(|name| Bus { client: Client::new(config), name }), clock }
    }

    /// Sends `Tenant Status Changed`, unless status and reason are as before.
    pub async fn tenant_status_changed(&self, before: Option<&Tenant>, after: &Tenant) -> Result<()> {
        if before.is_some_and(|before| (before.status, before.reason) == (after.status, after.reason)) {
            return Ok(());
        }
        let from = before.map(|before| before.status.as_str());
        let (to, reason) = (after.status.as_str(), after.reason);
        tracing::info!(
            tenant_id = %after.tenant_id, from, to, reason = reason.map(Reason::as_str),
            "tenant status changed"
        );
        if has_become_paused(before, after) {
            telemetry::metrics(self.clock.now(), Some(&after.tenant_id), &[("TenantPaused", "Count", 1.0)]);
        }
        let detail = json!({"tenant_id": after.tenant_id, "customer": after.customer,
                            "from": before.map(|before| before.status), "to": after.status, "reason": reason});
        self.put("Tenant Status Changed", vec![detail]).await
    }

    /// Sends `Incidents Delivered`, one event for each object.
    pub async fn incidents_delivered(&self, tenant: &TenantId, objects: &[DeliveredObject]) -> Result<()> {
        let details = objects.iter().map(|object| {
            json!({"tenant_id": tenant, "bucket": object.bucket, "object": object.object, "count": object.count,
                   "from": object.from, "to": object.to})
        });
        self.put("Incidents Delivered", details.collect()).await
    }

    async fn put(&self, detail_type: &str, details: Vec<Value>) -> Result<()> {
        let Some(Bus { client, name }) = &self.bus else { return Ok(()) };
        let mut waiting = details
            .into_iter()
            .map(|detail| {
                PutEventsRequestEntry::builder()
                    .event_bus_name(name)
                    .source(SOURCE)
                    .detail_type(detail_type)
                    .detail(detail.to_string())
                    .build()
            })
            .collect::<Vec<_>>();
        for _ in 0..MAX_ATTEMPTS {
            let mut refused = Vec::new();
            // A call takes at most ten entries.
            for entries in waiting.chunks(10) {
                let response = client
                    .put_events()
                    .set_entries(Some(entries.to_vec()))
                    .send()
                    .await
                    .map_err(|error| Error::aws("events:PutEvents", &error))?;
                let results = response.entries.unwrap_or_default();
                let failed = |index: usize| results.get(index).is_none_or(|result| result.error_code.is_some());
                refused.extend(
                    entries.iter().enumerate().filter(|(index, _)| failed(*index)).map(|(_, entry)| entry.clone()),
                );
            }
            if refused.is_empty() {
                return Ok(());
            }
            waiting = refused;
        }
        Err(Error::Internal(format!("events:PutEvents: {} entries were refused", waiting.len()).into()))
    }
}

/// Returns whether the tenant was paused, and not by an operator.
fn has_become_paused(before: Option<&Tenant>, after: &Tenant) -> bool {
    let was_paused = before.is_some_and(|before| before.status == Status::Paused);
    after.status == Status::Paused && !was_paused && after.reason != Some(Reason::Operator)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::microsoft::IncidentApi;

    #[test]
    fn only_a_pause_by_microsoft_s_responses_is_counted() {
        let tenant_id: TenantId = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let tenant =
            |status, reason| Tenant { reason, ..Tenant::new(tenant_id, "Contoso".into(), status, IncidentApi::Graph) };
        let (active, missing) = (tenant(Status::Active, None), tenant(Status::Paused, Some(Reason::ConsentMissing)));
        let (disabled, operator) =
            (tenant(Status::Paused, Some(Reason::DisabledByCustomer)), tenant(Status::Paused, Some(Reason::Operator)));
        assert!(has_become_paused(Some(&active), &missing));
        assert!(has_become_paused(None, &missing));
        assert!(!has_become_paused(Some(&missing), &disabled), "it was paused before");
        assert!(!has_become_paused(Some(&active), &operator), "the operator knows");
        assert!(!has_become_paused(Some(&missing), &active));
    }
}
