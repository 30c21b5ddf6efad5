//! Many customers at once: in the simulator, and in the table as the registry itself writes them.

use devstack::{CLIENT_ID, Failed, Stack};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use shared::{
    entra::TenantId,
    error::Error,
    incidents::Surface,
    registry::{
        Registry,
        tenants::{Status, Tenant},
    },
};
use sim::{IncidentSeed, Sim, TenantSeed};

/// Writes to the local AWS at a time; more would only wait for each other.
const AT_ONCE: usize = 8;
/// How old the incidents are that a tenant has from the start: older than any overlap, within the first look back.
const AGES: [i64; 2] = [120, 180];

/// The identifiers of so many tenants, spread over the shards of what is due as random ones are.
pub fn tenant_ids(number: usize) -> Result<Vec<TenantId>, Failed> {
    let id = |n: usize| format!("{:x}{n:07x}-5ca1-4e00-8000-{n:012x}", n % 16);
    let parsed = (1..=number).map(|n| id(n).parse().map_err(|_| Failed(format!("{} is no tenant id", id(n)))));
    parsed.collect()
}

/// The table of a stack, spoken to without the relay: what is done here is not counted.
pub fn registry(stack: &Stack) -> Registry {
    Registry::new(stack.aws().config(), stack.resources().table.clone())
}

/// Puts a customer into the simulator, consented, with a few old incidents.
pub fn seed(sim: &Sim, tenant: &TenantId) {
    let tenant_id = tenant.to_string();
    sim.add_tenant(TenantSeed {
        domain: format!("{tenant_id}.example"),
        display_name: format!("Customer {tenant_id}"),
        tenant_id: tenant_id.clone(),
        ..TenantSeed::default()
    });
    sim.grant(&tenant_id, CLIENT_ID, &[Surface::Graph.read_role()]);
    let now = sim.clock().now();
    for minutes in AGES {
        sim.put_incident(&tenant_id, incident(Some(now - SignedDuration::from_mins(minutes))));
    }
}

/// An incident with two alerts.
pub fn incident(created: Option<Timestamp>) -> IncidentSeed {
    IncidentSeed {
        display_name: "Multi-stage incident involving initial access and lateral movement".to_owned(),
        severity: "high".to_owned(),
        alerts: 2,
        created,
        ..IncidentSeed::default()
    }
}

/// Writes tenants as active, as an onboarding leaves them, and makes them due.
pub async fn onboard(registry: &Registry, tenants: &[TenantId], now: Timestamp) -> Result<(), Failed> {
    let work = tenants.iter().map(|tenant| async move {
        registry.create_tenant(&profile(*tenant, now)).await?;
        registry.open_feed(tenant, now).await
    });
    let done = stream::iter(work).buffer_unordered(AT_ONCE).try_collect().await;
    done.map_err(|error: Error| Failed(error.to_string()))
}

/// Makes tenants due, whatever their last dispatch said.
pub async fn make_due(registry: &Registry, tenants: &[TenantId], now: Timestamp) -> Result<(), Failed> {
    let work = tenants.iter().map(|tenant| registry.open_feed(tenant, now));
    let done = stream::iter(work).buffer_unordered(AT_ONCE).try_collect().await;
    done.map_err(|error: Error| Failed(error.to_string()))
}

fn profile(tenant_id: TenantId, now: Timestamp) -> Tenant {
    Tenant {
        tenant_id,
        customer: format!("Customer {tenant_id}"),
        status: Status::Active,
        reason: None,
        api: Surface::Graph,
        roles: vec![Surface::Graph.read_role().to_owned()],
        consented_at: Some(now),
        consented_by: Some(format!("admin@{tenant_id}.example")),
        activated_at: Some(now),
        offboarded_at: None,
        verification: None,
        revision: 0,
    }
}
