//! The last delivered version of each incident, and the number of open incidents.
//!
//! One item holds 32 consecutive incident ids, with attributes for each. Incidents that arrive together have ids that
//! are close, so that one page of them takes few items. An id that is not a number is in the item of its hash.
//!
//! A mark beside a version says under which severity the open incidents count it. A mark and the count change in one
//! transaction, so the counts are the number of marks at any time, whoever writes and whatever fails.

use std::collections::{BTreeMap, HashMap};

use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_dynamodb::{
    operation::update_item::builders::UpdateItemFluentBuilder,
    types::{AttributeValue, TransactWriteItem, builders::UpdateBuilder},
};
use futures_util::{TryStreamExt, stream};

use super::{
    Registry, Write, later_release,
    open_incidents::{self, CountChanges},
    table::{Item, string, text, transacted_with_schema, with_schema},
    tenant_pk,
};
use crate::{
    error::{Error, Result},
    incident::{record::Severity, version::DeliveredVersion},
    tenant::TenantId,
    text::{UnknownWord, hex},
};

const IDS_PER_ITEM: u128 = 32;

/// The number of items that are written at the same time.
const CONCURRENT_WRITES: usize = 16;

/// The number of version blocks in one transaction. DynamoDB takes 100 items, of which one has the counts.
/// <https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html>
const MAX_TRANSACTION_BLOCKS: usize = 99;

/// Incident ids whose versions are in one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VersionBlock {
    /// 32 consecutive numbers.
    Numbers(u128),
    /// Ids that are not numbers, with the same first 16 bits of their hash.
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

/// A version to be recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct NewVersion {
    /// The version, which is the last delivered one from then on.
    pub version: DeliveredVersion,
    /// The severity under which the registry counts the incident as open before.
    pub open_before: Option<Severity>,
}

/// The attribute of a version in its packed form, which all releases read.
const VERSION_PREFIX: char = 'i';

/// The attribute of what the packed form leaves out ([`DeliveredVersion::notes`]). Few versions have one.
const NOTES_PREFIX: char = 'n';

/// The attribute of the severity under which an incident counts as open. Others have none.
const OPEN_PREFIX: char = 'o';

/// An update of one version block.
#[derive(Default)]
struct BlockUpdate {
    set: Vec<String>,
    remove: Vec<String>,
    conditions: Vec<String>,
    names: HashMap<String, String>,
    values: HashMap<String, AttributeValue>,
}

impl BlockUpdate {
    /// Writes the version of an incident. Its mark of an open incident is written only if it changes, on condition that it
    /// is as it was before.
    fn add(&mut self, id: &str, NewVersion { version, open_before }: &NewVersion) {
        let index = self.set.len();
        self.set.push(format!("#i{index} = :i{index}"));
        self.name('i', index, VERSION_PREFIX, id);
        self.value('i', index, later_release::packed(version.to_string()));
        self.name('n', index, NOTES_PREFIX, id);
        match version.notes() {
            Some(notes) => {
                self.set.push(format!("#n{index} = :n{index}"));
                self.value('n', index, notes);
            }
            None => self.remove.push(format!("#n{index}")),
        }
        if version.open == *open_before {
            return;
        }
        self.name('o', index, OPEN_PREFIX, id);
        match version.open {
            Some(severity) => {
                self.set.push(format!("#o{index} = :o{index}"));
                self.value('o', index, severity.as_str().to_owned());
            }
            None => self.remove.push(format!("#o{index}")),
        }
        match open_before {
            Some(severity) => {
                self.conditions.push(format!("#o{index} = :b{index}"));
                self.value('b', index, severity.as_str().to_owned());
            }
            None => self.conditions.push(format!("attribute_not_exists(#o{index})")),
        }
    }

    fn name(&mut self, term: char, index: usize, prefix: char, id: &str) {
        self.names.insert(format!("#{term}{index}"), format!("{prefix}{id}"));
    }

    fn value(&mut self, term: char, index: usize, value: String) {
        self.values.insert(format!(":{term}{index}"), text(value));
    }

    fn expression(&self) -> String {
        let remove = if self.remove.is_empty() { String::new() } else { format!(" REMOVE {}", self.remove.join(", ")) };
        format!("SET {}{remove}", self.set.join(", "))
    }

    /// The update alone, for a block without a changed mark.
    fn alone(self, update: UpdateItemFluentBuilder) -> UpdateItemFluentBuilder {
        with_schema(
            update
                .update_expression(self.expression())
                .set_expression_attribute_names(Some(self.names))
                .set_expression_attribute_values(Some(self.values)),
        )
    }

    /// The update as a part of a transaction.
    fn in_transaction(self, update: UpdateBuilder) -> Result<TransactWriteItem> {
        let update = update
            .update_expression(self.expression())
            .condition_expression(self.conditions.join(" AND "))
            .set_expression_attribute_names(Some(self.names))
            .set_expression_attribute_values(Some(self.values));
        let update = transacted_with_schema(update).build();
        let update = update.map_err(|error| Error::internal("dynamodb:TransactWriteItems", error))?;
        Ok(TransactWriteItem::builder().update(update).build())
    }
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
        let item = item.unwrap_or_default();
        for (name, value) in &item {
            if let (Some(id), Ok(packed)) = (name.strip_prefix(VERSION_PREFIX), value.as_s()) {
                let version: DeliveredVersion =
                    packed.parse().map_err(|_| Error::Internal("a version that cannot be read".into()))?;
                let mut version = match string(&item, &format!("{NOTES_PREFIX}{id}")) {
                    Some(notes) => version.with_notes(notes),
                    None => version,
                };
                version.open = open_mark(&item, id);
                versions.insert(id.to_owned(), version);
            }
        }
        Ok(versions)
    }

    /// Writes the versions of delivered incidents, by incident id, and counts those that are open. [`Write::Conflict`]:
    /// another worker recorded versions of these incidents since they were read.
    pub async fn record_versions(&self, tenant: &TenantId, delivered: &HashMap<String, NewVersion>) -> Result<Write> {
        let mut blocks: BTreeMap<VersionBlock, (BlockUpdate, CountChanges)> = BTreeMap::new();
        for (id, new) in delivered {
            let (update, counts) = blocks.entry(VersionBlock::of(id)).or_default();
            update.add(id, new);
            counts.count(new.open_before, new.version.open);
        }
        let (mut counted, alone): (Vec<_>, Vec<_>) =
            blocks.into_iter().partition(|(_, (update, _))| !update.conditions.is_empty());
        let send = |(block, (update, _)): (VersionBlock, (BlockUpdate, CountChanges))| async move {
            let update = update.alone(self.update(tenant_pk(tenant), block.sort_key()));
            update.send().await.map(drop).map_err(|error| Error::aws("dynamodb:UpdateItem", &error))
        };
        stream::iter(alone.into_iter().map(Ok)).try_for_each_concurrent(CONCURRENT_WRITES, send).await?;
        while !counted.is_empty() {
            let blocks = counted.split_off(counted.len().saturating_sub(MAX_TRANSACTION_BLOCKS));
            let (mut items, mut counts) = (Vec::new(), CountChanges::default());
            for (block, (update, of_block)) in blocks {
                items.push(update.in_transaction(self.transacted(tenant_pk(tenant), block.sort_key()))?);
                counts.add(&of_block);
            }
            items.extend(counts.update(self.transacted(tenant_pk(tenant), open_incidents::SORT_KEY))?);
            if self.transact(items).await? == Write::Conflict {
                return Ok(Write::Conflict);
            }
        }
        Ok(Write::Done)
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

/// The severity under which an incident of a block counts as open.
fn open_mark(block: &Item, incident_id: &str) -> Option<Severity> {
    let word = string(block, &format!("{OPEN_PREFIX}{incident_id}"))?;
    Some(Severity::of(word).unwrap_or_else(|| Severity::Unknown(UnknownWord::of(word))))
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
