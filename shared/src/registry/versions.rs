//! The last delivered version of each incident.
//!
//! One item holds 32 consecutive incident ids, with an attribute for each. Incidents that arrive together have ids that
//! are close, so that one page of them takes few items.

use std::collections::{BTreeMap, HashMap};

use super::{Registry, table::text, tenant_pk};
use crate::{
    error::{Error, Result},
    incident::version::DeliveredVersion,
    tenant::TenantId,
};

const IDS_PER_ITEM: u128 = 32;

/// A block of 32 consecutive incident ids, whose versions are in one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionBlock(u128);

impl VersionBlock {
    /// The block of an incident id.
    ///
    /// # Errors
    /// [`Error::Internal`] for an id that is not a number.
    pub fn of(incident_id: &str) -> Result<Self> {
        let number: u128 =
            incident_id.parse().map_err(|error| Error::internal("an incident id that is not a number", error))?;
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
    /// Reads the delivered versions of a block, by incident id. Incidents that were never delivered are left out.
    pub async fn delivered_versions(
        &self,
        tenant: &TenantId,
        block: VersionBlock,
    ) -> Result<HashMap<String, DeliveredVersion>> {
        let item = self.get_item(&tenant_pk(tenant), &block.sort_key()).await?;
        let mut versions = HashMap::new();
        for (name, value) in item.into_iter().flatten() {
            if let (Some(id), Ok(packed)) = (name.strip_prefix('i'), value.as_s()) {
                let version = packed.parse().map_err(|_| Error::Internal("a version that cannot be read".into()))?;
                versions.insert(id.to_owned(), version);
            }
        }
        Ok(versions)
    }

    /// Writes the versions of delivered incidents, by incident id.
    pub async fn record_versions(
        &self,
        tenant: &TenantId,
        delivered: &HashMap<String, DeliveredVersion>,
    ) -> Result<()> {
        let mut items: BTreeMap<VersionBlock, Vec<(&String, &DeliveredVersion)>> = BTreeMap::new();
        for (id, version) in delivered {
            items.entry(VersionBlock::of(id)?).or_default().push((id, version));
        }
        for (block, entries) in items {
            let mut update = self.update(tenant_pk(tenant), block.sort_key());
            let mut set = Vec::new();
            for (index, (id, version)) in entries.into_iter().enumerate() {
                set.push(format!("#i{index} = :i{index}"));
                update = update
                    .expression_attribute_names(format!("#i{index}"), attribute(id))
                    .expression_attribute_values(format!(":i{index}"), text(version.to_string()));
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
