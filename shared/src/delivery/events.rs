//! Events on `EventBridge` about delivered objects, delivered versions and tenants. Events may repeat. They hold no more of
//! an incident than its summary.

use std::str::FromStr;

use aws_sdk_eventbridge::{Client, types::PutEventsRequestEntry};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    aws::{LazyClient, lazy_client},
    clock::pause_before_attempt,
    error::{Error, Result},
    incident::summary::IncidentSummary,
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

/// The maximum number of entries in one call.
const MAX_ENTRIES: usize = 10;

/// The total size of the entries of one call stays below this.
/// <https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-putevent-size.html>
const MAX_REQUEST_BYTES: usize = 256 << 10;

/// The events about single versions: the setting `INCIDENT_EVENTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncidentEvents {
    /// No event about a single version.
    None,
    /// One `Incident Changed` for each version.
    Summary,
}

/// The text is not a value of [`IncidentEvents`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotIncidentEvents;

impl FromStr for IncidentEvents {
    type Err = NotIncidentEvents;

    fn from_str(text: &str) -> Result<Self, NotIncidentEvents> {
        match text {
            "none" => Ok(Self::None),
            "summary" => Ok(Self::Summary),
            _ => Err(NotIncidentEvents),
        }
    }
}

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

/// A delivered version, as `Incident Changed` describes it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IncidentChanged {
    /// The members that describe the version, at the top of the event.
    #[serde(flatten)]
    pub summary: IncidentSummary,
    /// Name of the bucket that holds the object.
    pub bucket: String,
    /// Key of the object that holds the version.
    pub object: String,
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
        registry.clear_announced(&tenant_id, changes).await
    }

    /// Sends `Incidents Delivered`, one event for each object.
    pub async fn incidents_delivered(&self, tenant: &TenantId, objects: &[DeliveredObject]) -> Result<()> {
        let details = objects.iter().map(|object| {
            json!({"tenant_id": tenant, "bucket": object.bucket, "object": object.object, "count": object.count,
                   "from": object.from, "to": object.to})
        });
        self.put("Incidents Delivered", details.collect()).await
    }

    /// Sends `Incident Changed`, one event for each version.
    pub async fn incidents_changed(&self, tenant: &Tenant, changed: &[IncidentChanged]) -> Result<()> {
        #[derive(Serialize)]
        struct Detail<'a> {
            tenant_id: TenantId,
            customer: &'a str,
            #[serde(flatten)]
            changed: &'a IncidentChanged,
        }

        let details = changed.iter().map(|changed| {
            let detail = Detail { tenant_id: tenant.tenant_id, customer: &tenant.customer, changed };
            serde_json::to_value(detail).map_err(|error| Error::internal("an event could not be serialised", error))
        });
        self.put("Incident Changed", details.collect::<Result<_>>()?).await
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
            for entries in requests(&waiting) {
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

/// Divides entries into as few requests as the limits allow, in their order.
fn requests(mut entries: &[PutEventsRequestEntry]) -> impl Iterator<Item = &[PutEventsRequestEntry]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = entries.iter().take(MAX_ENTRIES).take_while(|entry| {
            bytes += size_of_entry(entry);
            bytes < MAX_REQUEST_BYTES
        });
        // An entry that is too large alone is for EventBridge to refuse.
        let (request, rest) = entries.split_at_checked(fitting.count().max(1))?;
        entries = rest;
        Some(request)
    })
}

/// The size of an entry as `EventBridge` counts it: the bytes of its source, its detail-type and its detail in UTF-8.
fn size_of_entry(entry: &PutEventsRequestEntry) -> usize {
    [entry.source(), entry.detail_type(), entry.detail()].into_iter().flatten().map(str::len).sum()
}

/// Returns whether the tenant was paused, and not by an operator.
fn is_pause_by_microsoft(change: &StatusChange) -> bool {
    change.to == Status::Paused && change.from != Some(Status::Paused) && change.reason != Some(Reason::Operator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_at_most_ten_entries_and_256_kb() {
        let entry = |bytes: usize| PutEventsRequestEntry::builder().detail("x".repeat(bytes)).build();
        let sizes = |entries: &[usize]| -> Vec<usize> {
            let entries: Vec<_> = entries.iter().map(|bytes| entry(*bytes)).collect();
            requests(&entries).map(<[_]>::len).collect()
        };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[1; 25]), [10, 10, 5]);
        assert_eq!(sizes(&[100 << 10; 5]), [2, 2, 1]);
        assert_eq!(sizes(&[128 << 10; 2]), [1, 1], "exactly 256 KB is too much");
        assert_eq!(sizes(&[1, 300 << 10, 1]), [1, 1, 1]);
        let whole = PutEventsRequestEntry::builder().source("ü").detail_type("b").detail("c").event_bus_name("bus");
        assert_eq!(size_of_entry(&whole.build()), 4, "the bus does not count");
    }

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
