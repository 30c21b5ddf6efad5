//! The `due` index: the tenants to poll, by the time at which they are due.

use jiff::Timestamp;

use super::{
    Registry,
    table::{Item, number, string, text, update_if},
    tenant_of,
};
use crate::{
    error::{Error, Result},
    tenant::TenantId,
};

/// The number of partitions that the tenants of the `due` index are spread over.
pub const DUE_SHARDS: u32 = 16;

/// A tenant that is due.
#[derive(Clone, Debug, PartialEq)]
pub struct Due {
    /// The tenant to poll.
    pub tenant: TenantId,
    /// The stored due time. Millisecond resolution.
    pub due_at: Timestamp,
}

/// A page of a shard's due tenants.
#[derive(Debug)]
pub struct DuePage {
    /// The tenants of this page, the longest due first.
    pub tenants: Vec<Due>,
    /// The position of the next page. `None` on the last page.
    pub next: Option<DuePosition>,
}

/// The position of a page in a shard, for [`Registry::due`].
#[derive(Debug)]
pub struct DuePosition(Item);

impl Due {
    /// The turn of the tenant among `of` turns, by a hash of its identifier: always the same, and evenly spread.
    pub fn turn(&self, of: u64) -> u64 {
        // FNV-1a.
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = self.tenant.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, step);
        (hash ^ (hash >> 32)) % of.max(1)
    }

    fn from_index(item: &Item) -> Option<Self> {
        let due_at = item.get("due_at")?.as_n().ok()?.parse().ok()?;
        Some(Self { tenant: tenant_of(string(item, "pk")?)?, due_at: Timestamp::from_millisecond(due_at).ok()? })
    }
}

impl Registry {
    /// Returns a page of the tenants of `shard` that are due at `until`, or with `None` of all its tenants.
    pub async fn due(&self, shard: u32, until: Option<Timestamp>, start: Option<DuePosition>) -> Result<DuePage> {
        let until = until.map_or(i64::MAX, Timestamp::as_millisecond);
        let response = self
            .query()
            .index_name("due")
            .key_condition_expression("due_shard = :shard AND due_at <= :until")
            .expression_attribute_values(":shard", text(format!("{shard:x}")))
            .expression_attribute_values(":until", number(until))
            .set_exclusive_start_key(start.map(|DuePosition(key)| key))
            .send()
            .await
            .map_err(|error| Error::aws("dynamodb:Query", &error))?;
        let tenants = response.items.unwrap_or_default().iter().filter_map(Due::from_index).collect();
        Ok(DuePage { tenants, next: response.last_evaluated_key.map(DuePosition) })
    }

    /// Moves the due time of a tenant. Does nothing for a tenant that is not in the `due` index.
    pub async fn set_due(&self, tenant: &TenantId, due_at: Timestamp) -> Result<()> {
        let update = self
            .update_feed(tenant)
            .update_expression("SET due_at = :due")
            .condition_expression("attribute_exists(due_shard)")
            .expression_attribute_values(":due", number(due_at.as_millisecond()));
        update_if(update).await.map(|_| ())
    }
}

/// The shard of a tenant: the first digit of its identifier, which is random.
pub(super) fn shard_of(tenant: &TenantId) -> String {
    tenant.to_string().chars().take(1).collect()
}
