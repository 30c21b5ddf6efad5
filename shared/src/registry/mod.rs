//! The DynamoDB table: tenants, invitations, consent attempts, feeds with their leases and budgets, delivered versions.
//!
//! One table, keys `pk` and `sk`. All items of a tenant have `pk` `TENANT#{tenant_id}`, so that offboarding is one query.
//! Only its throttling times have `THROTTLING#{tenant_id}`.
//! Two indexes: `due` (the tenants to poll, in shards) and `listing` (tenants and invitations in order).

pub mod attempts;
pub mod breaker;
pub mod budget;
mod carry_over;
pub mod due;
pub mod feed;
pub mod hunts;
pub mod invitations;
pub mod jobs;
mod later_release;
pub mod lease;
mod listing;
pub mod open_incidents;
pub mod position;
pub mod quarantine;
pub mod ranking;
mod table;
pub mod tenants;
mod throttling;
pub mod versions;

pub use listing::Page;
pub use table::{Registry, Write};

use crate::tenant::TenantId;

fn tenant_pk(tenant: &TenantId) -> String {
    format!("TENANT#{tenant}")
}

fn tenant_of(pk: &str) -> Option<TenantId> {
    pk.strip_prefix("TENANT#")?.parse().ok()
}
