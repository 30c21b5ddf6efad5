//! Which version of each incident was delivered last.
//!
//! One item holds 32 consecutive incident ids, an attribute each: incidents that arrive together have ids that lie
//! together, so few items are read and written for a page of them.

use std::collections::{BTreeMap, HashMap};

use super::{Item, Registry, tenant_pk, text};
use crate::{
    error::{Error, Result},
    incident::version::DeliveredVersion,
    tenant::TenantId,
};

const IDS_PER_ITEM: u128 = 32;

/// The neighbourhood of an incident id: the ids whose versions lie in one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionBlock(u128);

impl VersionBlock {
    /// Of an incident id, which is 1 to 20 digits.
    pub fn of(incident_id: &str) -> Result<Self> {
        let number: u128 =
            incident_id.parse().map_err(|_| Error::Internal("an incident id that is not a number".into()))?;
        Ok(Self(number / IDS_PER_ITEM))
    }

    fn sort_key(self) -> String {
        format!("VERSIONS#{}", self.0)
    }
}

fn attribute(incident_id: &str) -> String {
    format!("i{incident_id}")
}

impl Registry {
    /// What was delivered last of the incidents of a neighbourhood, by incident id.
    pub async fn delivered_versions(
        &self,
        tenant: &TenantId,
        block: VersionBlock,
    ) -> Result<HashMap<String, DeliveredVersion>> {
        let item: Option<Item> = self.get_item(&tenant_pk(tenant), &block.sort_key()).await?;
        let mut known = HashMap::new();
        for (name, value) in item.into_iter().flatten() {
            if let (Some(id), Ok(packed)) = (name.strip_prefix('i'), value.as_s()) {
                let version = packed.parse().map_err(|_| Error::Internal("a version that cannot be read".into()))?;
                known.insert(id.to_owned(), version);
            }
        }
        Ok(known)
    }

    /// Notes what was delivered.
    pub async fn record_versions(
        &self,
        tenant: &TenantId,
        delivered: &HashMap<String, DeliveredVersion>,
    ) -> Result<()> {
        let mut items: BTreeMap<VersionBlock, Vec<(&String, &DeliveredVersion)>> = BTreeMap::new();
        for (id, known) in delivered {
            items.entry(VersionBlock::of(id)?).or_default().push((id, known));
        }
        for (block, entries) in items {
            let mut update = self
                .client
                .update_item()
                .table_name(&self.table)
                .key("pk", text(tenant_pk(tenant)))
                .key("sk", text(block.sort_key()));
            let mut set = Vec::new();
            for (index, (id, known)) in entries.into_iter().enumerate() {
                set.push(format!("#i{index} = :i{index}"));
                update = update
                    .expression_attribute_names(format!("#i{index}"), attribute(id))
                    .expression_attribute_values(format!(":i{index}"), text(known.to_string()));
            }
            update
                .update_expression(format!("SET {}", set.join(", ")))
                .send()
                .await
                .map_err(|error| Error::aws("dynamodb:UpdateItem", &error))?;
        }
        Ok(())
    }
}
