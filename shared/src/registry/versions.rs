//! The last delivered version of each incident.
//!
//! One item holds 32 consecutive incident ids, with an attribute for each. Incidents that arrive together have ids that
//! are close, so that one page of them takes few items. An id that is no number is in the item of its hash.

use std::collections::{BTreeMap, HashMap};

use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use futures_util::{TryStreamExt, stream};

use super::{
    Registry,
    table::{string, text, with_schema},
    tenant_pk,
};
use crate::{
    error::{Error, Result},
    incident::version::DeliveredVersion,
    tenant::TenantId,
    text::hex,
};

const IDS_PER_ITEM: u128 = 32;

/// The number of items that are written at the same time.
const CONCURRENT_WRITES: usize = 16;

/// Incident ids whose versions are in one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VersionBlock {
    /// 32 consecutive numbers.
    Numbers(u128),
    /// Ids that are no numbers, with the same first 16 bits of their hash.
    Names([u8; 2]),
}

impl VersionBlock {
    /// The block of an incident id.
    pub fn of(incident_id: &str) -> Self {
        if let Ok(number) = incident_id.parse::<u128>() {
            return Self::Numbers(number / IDS_PER_ITEM);
        }
        let hash = digest(&SHA256, incident_id.as_bytes());
        let mut first = [0; 2];
        first.copy_from_slice(&hash.as_ref()[..2]);
        Self::Names(first)
    }

    fn sort_key(self) -> String {
        match self {
            Self::Numbers(block) => format!("VERSIONS#{block}"),
            Self::Names(hash) => format!("VERSIONS#x{}", hex(&hash)),
        }
    }
}

/// The attribute of a version in its packed form, which all releases read.
const VERSION_PREFIX: char = 'i';

/// The attribute of what the packed form leaves out ([`DeliveredVersion::notes`]). Few versions have one.
const NOTES_PREFIX: char = 'n';

impl Registry {
    /// Reads the delivered versions of a block, by incident id. Incidents that were never delivered are left out.
    pub async fn delivered_versions(
        &self,
        tenant: &TenantId,
        block: VersionBlock,
    ) -> Result<HashMap<String, DeliveredVersion>> {
        let item = self.get_item(&tenant_pk(tenant), &block.sort_key()).await?;
        let mut versions = HashMap::new();
        let item = item.unwrap_or_default();
        for (name, value) in &item {
            if let (Some(id), Ok(packed)) = (name.strip_prefix(VERSION_PREFIX), value.as_s()) {
                let version: DeliveredVersion =
                    packed.parse().map_err(|_| Error::Internal("a version that cannot be read".into()))?;
                let version = match string(&item, &format!("{NOTES_PREFIX}{id}")) {
                    Some(notes) => version.with_notes(notes),
                    None => version,
                };
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
            items.entry(VersionBlock::of(id)).or_default().push((id, version));
        }
        let updates = items.into_iter().map(|(block, entries)| {
            let mut update = self.update(tenant_pk(tenant), block.sort_key());
            let (mut set, mut remove) = (Vec::new(), Vec::new());
            for (index, (id, version)) in entries.into_iter().enumerate() {
                set.push(format!("#i{index} = :i{index}"));
                update = update
                    .expression_attribute_names(format!("#i{index}"), format!("{VERSION_PREFIX}{id}"))
                    .expression_attribute_values(format!(":i{index}"), text(version.to_string()))
                    .expression_attribute_names(format!("#n{index}"), format!("{NOTES_PREFIX}{id}"));
                if let Some(notes) = version.notes() {
                    set.push(format!("#n{index} = :n{index}"));
                    update = update.expression_attribute_values(format!(":n{index}"), text(notes));
                } else {
                    remove.push(format!("#n{index}"));
                }
            }
            let remove = if remove.is_empty() { String::new() } else { format!(" REMOVE {}", remove.join(", ")) };
            Ok(with_schema(update.update_expression(format!("SET {}{remove}", set.join(", ")))))
        });
        let send = |update: UpdateItemFluentBuilder| async {
            update.send().await.map(drop).map_err(|error| Error::aws("dynamodb:UpdateItem", &error))
        };
        stream::iter(updates).try_for_each_concurrent(CONCURRENT_WRITES, send).await
    }

    /// Writes the notes of a delivered version, or removes them. The version itself stays as another worker may have
    /// written it; then these notes count for nothing.
    pub async fn record_version_notes(
        &self,
        tenant: &TenantId,
        incident_id: &str,
        version: &DeliveredVersion,
    ) -> Result<()> {
        let update = self
            .update(tenant_pk(tenant), VersionBlock::of(incident_id).sort_key())
            .expression_attribute_names("#notes", format!("{NOTES_PREFIX}{incident_id}"));
        let update = match version.notes() {
            Some(notes) => {
                update.update_expression("SET #notes = :notes").expression_attribute_values(":notes", text(notes))
            }
            None => update.update_expression("REMOVE #notes"),
        };
        with_schema(update).send().await.map(drop).map_err(|error| Error::aws("dynamodb:UpdateItem", &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_incident_id_has_a_block() {
        let sort_key = |id: &str| VersionBlock::of(id).sort_key();
        assert_eq!(
            (sort_key("63"), sort_key("0032"), sort_key("64")),
            ("VERSIONS#1".into(), "VERSIONS#1".into(), "VERSIONS#2".into())
        );
        let guid = "6f1b8a3e-09c4-4d0e-9a57-5b7e2f6f6a10";
        assert_eq!(sort_key(guid), sort_key(guid));
        assert_ne!(sort_key(guid), sort_key("6f1b8a3e-09c4-4d0e-9a57-5b7e2f6f6a11"));
        assert_eq!(sort_key(guid).len(), "VERSIONS#x0123".len());
        assert_eq!(sort_key(&"9".repeat(64)).len(), "VERSIONS#x0123".len(), "more digits than a number holds");
    }
}
