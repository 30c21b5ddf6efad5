//! Many tenants at once: in the simulator, and in the table, written by the registry's own functions.

use devstack::Failed;
use jiff::{SignedDuration, Timestamp};
use shared::{error::Error, microsoft::IncidentApi, registry::Registry, tenant::TenantId};
use sim::IncidentSeed;

use crate::stand::Stand;

/// Ages of the incidents that a tenant has from the start: older than any overlap, but within `FIRST_LOOKBACK_HOURS`.
const INCIDENT_AGES_MINUTES: [i64; 2] = [120, 180];

/// Returns `number` tenant ids that are spread evenly over the shards of the index `due`, as random ids are.
pub fn tenant_ids(number: usize) -> Result<Vec<TenantId>, Failed> {
    let id = |n: usize| format!("{:x}{n:07x}-5ca1-4e00-8000-{n:012x}", n % 16);
    let parsed = (1..=number).map(|n| id(n).parse().map_err(|_| Failed(format!("{} is not a tenant id", id(n)))));
    parsed.collect()
}

/// Onboards tenants that are active and due, each with a few old incidents.
pub async fn onboard(stand: &Stand, tenants: &[TenantId]) -> Result<(), Failed> {
    let now = stand.sim.clock().now();
    for tenant in tenants {
        let incidents = INCIDENT_AGES_MINUTES.map(|minutes| incident(Some(now - SignedDuration::from_mins(minutes))));
        stand.onboard(*tenant, IncidentApi::Graph, incidents.into_iter()).await?;
    }
    Ok(())
}

/// Returns an incident with two alerts; without a time, it is created now.
pub fn incident(created: Option<Timestamp>) -> IncidentSeed {
    IncidentSeed {
        display_name: "Multi-stage incident involving initial access and lateral movement".to_owned(),
        severity: "high".to_owned(),
        alerts: 2,
        created,
        ..IncidentSeed::default()
    }
}

/// Makes tenants due, whatever the time of their next dispatch is.
pub async fn make_due(registry: &Registry, tenants: &[TenantId], now: Timestamp) -> Result<(), Failed> {
    for tenant in tenants {
        registry.open_feed(tenant, now).await.map_err(|error: Error| Failed(error.to_string()))?;
    }
    Ok(())
}
