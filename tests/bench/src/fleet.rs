//! Many tenants at once: in the simulator, and in the table, written by the registry's own functions.

use devstack::{CLIENT_ID, Failed, Stack};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use shared::{
    error::Error,
    microsoft::IncidentApi,
    registry::{
        Registry,
        tenants::{Status, Tenant},
    },
    tenant::TenantId,
};
use sim::{IncidentSeed, Sim, TenantSeed};

/// Concurrent writes to the local AWS. More of them would only wait for each other.
const CONCURRENT_WRITES: usize = 8;
/// Ages of the incidents that a tenant has from the start: older than any overlap, but within `FIRST_LOOKBACK_HOURS`.
const INCIDENT_AGES_MINUTES: [i64; 2] = [120, 180];

/// Returns `number` tenant ids that are spread evenly over the shards of the index `due`, as random ids are.
pub fn tenant_ids(number: usize) -> Result<Vec<TenantId>, Failed> {
    let id = |n: usize| format!("{:x}{n:07x}-5ca1-4e00-8000-{n:012x}", n % 16);
    let parsed = (1..=number).map(|n| id(n).parse().map_err(|_| Failed(format!("{} is not a tenant id", id(n)))));
    parsed.collect()
}

/// Opens the registry of a stack without the relay, so that its calls are not counted.
pub fn registry(stack: &Stack) -> Registry {
    Registry::new(stack.aws().config(), stack.resources().table.clone())
}

/// Creates a tenant in the simulator, with a granted consent and a few old incidents.
pub fn seed(sim: &Sim, tenant: &TenantId) {
    let tenant_id = tenant.to_string();
    sim.add_tenant(TenantSeed {
        domain: format!("{tenant_id}.example"),
        display_name: format!("Customer {tenant_id}"),
        tenant_id: tenant_id.clone(),
        ..TenantSeed::default()
    });
    sim.grant(&tenant_id, CLIENT_ID, &[IncidentApi::Graph.read_role()]);
    let now = sim.clock().now();
    for minutes in INCIDENT_AGES_MINUTES {
        sim.put_incident(&tenant_id, incident(Some(now - SignedDuration::from_mins(minutes))));
    }
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

/// Writes tenants as they are after onboarding: active and due.
pub async fn onboard(registry: &Registry, tenants: &[TenantId], now: Timestamp) -> Result<(), Failed> {
    let work = tenants.iter().map(|tenant| async move {
        registry.create_tenant(&profile(*tenant, now)).await?;
        registry.open_feed(tenant, now).await
    });
    let done = stream::iter(work).buffer_unordered(CONCURRENT_WRITES).try_collect().await;
    done.map_err(|error: Error| Failed(error.to_string()))
}

/// Makes tenants due, whatever the time of their next dispatch is.
pub async fn make_due(registry: &Registry, tenants: &[TenantId], now: Timestamp) -> Result<(), Failed> {
    let work = tenants.iter().map(|tenant| registry.open_feed(tenant, now));
    let done = stream::iter(work).buffer_unordered(CONCURRENT_WRITES).try_collect().await;
    done.map_err(|error: Error| Failed(error.to_string()))
}

fn profile(tenant_id: TenantId, now: Timestamp) -> Tenant {
    Tenant {
        roles: vec![IncidentApi::Graph.read_role().to_owned()],
        consented_at: Some(now),
        consented_by: Some(format!("admin@{tenant_id}.example")),
        activated_at: Some(now),
        ..Tenant::new(tenant_id, format!("Customer {tenant_id}"), Status::Active, IncidentApi::Graph)
    }
}
