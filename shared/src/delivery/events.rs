//! Events on EventBridge about delivered objects and about tenants. Events may repeat. They hold no incident.

use aws_sdk_eventbridge::{Client, types::PutEventsRequestEntry};
use serde_json::{Value, json};

use crate::{
    aws::{LazyClient, lazy_client},
    clock::pause_before_attempt,
    error::{Error, Result},
    registry::{
        Registry,
        tenants::{Status, StatusChange, Tenant},
    },
    telemetry::{self, Metric},
    tenant::{Reason, TenantId},
};

const SOURCE: &str = "partner.incidents";

/// Attempts for entries that EventBridge refuses inside a successful call.
const MAX_ATTEMPTS: u32 = 3;

/// The event bus. Without `EVENT_BUS_NAME` no event is sent.
#[derive(Clone, Debug)]
pub struct Events {
    bus: Option<Bus>,
}

#[derive(Clone, Debug)]
struct Bus {
    client: LazyClient<Client>,
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
    /// The bus named `bus`, if there is one.
    pub fn new(config: &aws_config::SdkConfig, bus: Option<String>) -> Self {
        Self { bus: bus.map(|name| Bus { client: lazy_client(config, Client::new), name }) }
    }

    /// Sends `Tenant Status Changed` for each change of a tenant that is not announced yet, then clears the marks. Every
    /// function that handles a tenant calls this, so that an event that could not be sent is sent by the next one.
    pub async fn announce_status(&self, registry: &Registry, tenant: &Tenant) -> Result<()> {
        let (tenant_id, changes) = (tenant.tenant_id, &tenant.unannounced);
        if changes.is_empty() {
            return Ok(());
        }
        let details = changes.iter().map(|StatusChange { customer, from, to, reason, .. }| {
            json!({"tenant_id": tenant_id, "customer": customer, "from": from, "to": to, "reason": reason})
        });
        self.put("Tenant Status Changed", details.collect()).await?;
        for change in changes {
            tracing::info!(
                %tenant_id,
                from = change.from.map(Status::as_str),
                to = change.to.as_str(),
                reason = change.reason.map(Reason::as_str),
                "tenant status changed"
            );
            if is_pause_by_microsoft(change) {
                telemetry::metrics(Some(&tenant_id), &[Metric::count("TenantPaused", 1)]);
            }
        }
        let clear = |stored: &mut Tenant| {
            stored.unannounced.retain(|change| !changes.contains(change));
            Ok(())
        };
        registry.change_tenant(&tenant_id, clear).await.map(drop)
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
        for attempt in 1..=MAX_ATTEMPTS {
            if attempt > 1 {
                pause_before_attempt(attempt).await;
            }
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
fn is_pause_by_microsoft(change: &StatusChange) -> bool {
    change.to == Status::Paused && change.from != Some(Status::Paused) && change.reason != Some(Reason::Operator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pause_by_microsoft_s_responses_is_counted() {
        let change = |from, to, reason| StatusChange { customer: "Contoso".into(), from, to, reason, revision: 0 };
        let (active, paused) = (Some(Status::Active), Some(Status::Paused));
        let missing = Some(Reason::ConsentMissing);
        assert!(is_pause_by_microsoft(&change(active, Status::Paused, missing)));
        assert!(is_pause_by_microsoft(&change(None, Status::Paused, missing)));
        assert!(!is_pause_by_microsoft(&change(paused, Status::Paused, missing)), "it was paused before");
        assert!(!is_pause_by_microsoft(&change(active, Status::Paused, Some(Reason::Operator))), "the operator knows");
        assert!(!is_pause_by_microsoft(&change(paused, Status::Active, None)));
    }
}
