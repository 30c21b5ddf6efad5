//! The last delivered version of each incident, and the number of open incidents.
//!
//! One item holds 32 consecutive incident ids, with attributes for each. Incidents that arrive together have ids that
//! are close, so that one page of them takes few items. An id that is not a number is in the item of its hash.
//!
//! A mark beside a version says under which severity the open incidents count it. A mark and the count change in one
//! transaction, so the counts are the number of marks at any time, whoever writes and whatever fails.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Write as _},
};

use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_dynamodb::{
    operation::update_item::builders::UpdateItemFluentBuilder,
    types::{AttributeValue, TransactWriteItem, builders::UpdateBuilder},
};
use futures_util::{TryStreamExt, stream};

use super::{
    Registry, Write, later_release,
    open_incidents::{self, CountChanges},
    table::{Item, ItemKey, string, text, transacted_with_schema, with_schema},
    tenant_pk,
};
use crate::{
    error::{Error, Result},
    incident::{record::Severity, version::DeliveredVersion},
    tenant::TenantId,
    text::{UnknownWord, format_with_capacity, hex},
};

const IDS_PER_ITEM: u128 = 32;

/// The number of items that are written at the same time.
const CONCURRENT_WRITES: usize = 16;

/// The number of version blocks in one transaction. DynamoDB takes 100 items, of which one has the counts.
/// <https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html>
const MAX_TRANSACTION_BLOCKS: usize = 99;

/// The most digits of an incident's id that is written into an expression as it is.
const MAX_PLAIN_DIGITS: usize = 20;

/// The length of the placeholder of the last version of a block.
const LONGEST_PLACEHOLDER: usize = ":v31".len();

/// The most blocks that are read together with one that is needed.
const MAX_BLOCKS_AHEAD: u128 = 8;

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

    /// The block that is so many blocks away. Blocks of names have no order.
    fn neighbour(self, distance: u128, upwards: bool) -> Option<Self> {
        let Self::Numbers(block) = self else { return None };
        let block = if upwards { block.checked_add(distance) } else { block.checked_sub(distance) };
        block.map(Self::Numbers)
    }

    /// The blocks to read for an incident of this one: the block itself, and twice as many behind it as were read before it
    /// in a row. A long list goes through its blocks in order, and takes a fraction of the calls. One within a block reads
    /// no other.
    pub fn with_next_blocks(self, was_read: impl Fn(&Self) -> bool) -> Vec<Self> {
        let in_a_row = |upwards: bool| {
            let before = (1..=MAX_BLOCKS_AHEAD / 2).map_while(|distance| self.neighbour(distance, !upwards));
            before.take_while(|block| was_read(block)).count()
        };
        let (up, down) = (in_a_row(true), in_a_row(false));
        let ahead = (1..=2 * up.max(down) as u128).map_while(|distance| self.neighbour(distance, up >= down));
        std::iter::once(self).chain(ahead.filter(|block| !was_read(block))).collect()
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

impl NewVersion {
    /// Returns true if the incident counts as open under another severity than before, or no more, or only now.
    fn changes_a_count(&self) -> bool {
        self.version.open != self.open_before
    }
}

/// Versions to be recorded in one block, by incident id.
type NewVersions<'a> = Vec<(&'a String, &'a NewVersion)>;

/// The attribute of a version in its packed form, which all releases read.
const VERSION_PREFIX: char = 'i';

/// The attribute of what the packed form leaves out ([`DeliveredVersion::notes`]). Few versions have one.
const NOTES_PREFIX: char = 'n';

/// The attribute of the severity under which an incident counts as open. Others have none.
const OPEN_PREFIX: char = 'o';

/// An update of one version block.
#[derive(Default)]
struct BlockUpdate {
    set: Clauses,
    remove: Clauses,
    conditions: Clauses,
    names: HashMap<String, String>,
    values: HashMap<String, AttributeValue>,
    /// The severities that `values` has.
    severities: Vec<Severity>,
}

/// The placeholder of a severity in an expression. It may have what a severity's word has: letters, digits and underscores.
#[derive(Clone, Copy)]
struct SeverityPlaceholder(Severity);

impl fmt::Display for SeverityPlaceholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(":is_")?;
        f.write_str(self.0.as_str())
    }
}

/// Clauses of an expression, which it is made of one after the other: a block has some hundred.
#[derive(Default)]
struct Clauses(String);

impl Clauses {
    fn add(&mut self, separator: &str, clause: fmt::Arguments<'_>) {
        if !self.0.is_empty() {
            self.0.push_str(separator);
        }
        // A String takes everything.
        let _ = self.0.write_fmt(clause);
    }
}

/// The name of an incident's attribute in an expression.
enum AttributeName<'a> {
    /// The attribute itself.
    Plain(char, &'a str),
    Placeholder(String),
}

impl fmt::Display for AttributeName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(prefix, id) => {
                f.write_char(*prefix)?;
                f.write_str(id)
            }
            Self::Placeholder(name) => f.write_str(name),
        }
    }
}

impl BlockUpdate {
    /// The update that writes these versions.
    fn of(versions: &[(&String, &NewVersion)]) -> Self {
        let mut update = Self::default();
        for (id, new) in versions {
            update.add(id, new);
        }
        update
    }

    /// Writes the version of an incident. Its mark of an open incident is written only if it changes, on condition that it
    /// is as it was before.
    fn add(&mut self, id: &str, new: &NewVersion) {
        let NewVersion { version, open_before } = new;
        let (name, packed) = (self.name(VERSION_PREFIX, id), later_release::packed(version.packed()));
        let value = self.value(packed);
        self.set.add(", ", format_args!("{name} = {value}"));
        let name = self.name(NOTES_PREFIX, id);
        match version.notes() {
            Some(notes) => {
                let value = self.value(notes);
                self.set.add(", ", format_args!("{name} = {value}"));
            }
            None => self.remove.add(", ", format_args!("{name}")),
        }
        if !new.changes_a_count() {
            return;
        }
        let mark = self.name(OPEN_PREFIX, id);
        match version.open {
            Some(severity) => {
                let value = self.severity(severity);
                self.set.add(", ", format_args!("{mark} = {value}"));
            }
            None => self.remove.add(", ", format_args!("{mark}")),
        }
        match open_before {
            Some(severity) => {
                let value = self.severity(*severity);
                self.conditions.add(" AND ", format_args!("{mark} = {value}"));
            }
            None => self.conditions.add(" AND ", format_args!("attribute_not_exists({mark})")),
        }
    }

    /// The name of an incident's attribute in an expression: the attribute itself where DynamoDB allows that, which makes
    /// requests shorter, or else a placeholder. An expression has at most 4 KB.
    /// <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Expressions.ExpressionAttributeNames.html>
    fn name<'a>(&mut self, prefix: char, id: &'a str) -> AttributeName<'a> {
        if id.len() <= MAX_PLAIN_DIGITS && id.bytes().all(|byte| byte.is_ascii_digit()) {
            return AttributeName::Plain(prefix, id);
        }
        let placeholder = format!("#{prefix}{}", self.names.len());
        self.names.insert(placeholder.clone(), format!("{prefix}{id}"));
        AttributeName::Placeholder(placeholder)
    }

    fn value(&mut self, value: String) -> String {
        let placeholder = format_with_capacity(LONGEST_PLACEHOLDER, format_args!(":v{}", self.values.len()));
        self.values.insert(placeholder.clone(), text(value));
        placeholder
    }

    /// The value of a severity, which all marks of an update share.
    fn severity(&mut self, severity: Severity) -> SeverityPlaceholder {
        if !self.severities.contains(&severity) {
            self.severities.push(severity);
            self.values.insert(SeverityPlaceholder(severity).to_string(), text(severity.as_str()));
        }
        SeverityPlaceholder(severity)
    }

    fn expression(&self) -> String {
        let (set, remove) = (&self.set.0, &self.remove.0);
        if remove.is_empty() { format!("SET {set}") } else { format!("SET {set} REMOVE {remove}") }
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
            .condition_expression(self.conditions.0)
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
        versions_in(&item.unwrap_or_default())
    }

    /// Reads the delivered versions of several blocks with one call, in the order of the blocks.
    pub async fn delivered_versions_of(
        &self,
        tenant: &TenantId,
        blocks: &[VersionBlock],
    ) -> Result<Vec<HashMap<String, DeliveredVersion>>> {
        if let [block] = blocks {
            return Ok(vec![self.delivered_versions(tenant, *block).await?]);
        }
        let keys: Vec<ItemKey> = blocks.iter().map(|block| ItemKey::of_tenant(tenant, &block.sort_key())).collect();
        let items = self.batch_get(keys.clone()).await?;
        let of_key = |key: &ItemKey| items.iter().find(|item| string(item, "sk") == Some(&key.sk));
        keys.iter().map(|key| of_key(key).map_or_else(|| Ok(HashMap::new()), versions_in)).collect()
    }

    /// Writes the versions of delivered incidents, by incident id, and counts those that are open. [`Write::Conflict`]:
    /// another worker recorded versions of these incidents since they were read.
    pub async fn record_versions(&self, tenant: &TenantId, delivered: &HashMap<String, NewVersion>) -> Result<Write> {
        let mut blocks: BTreeMap<VersionBlock, NewVersions<'_>> = BTreeMap::new();
        for (id, new) in delivered {
            blocks.entry(VersionBlock::of(id)).or_default().push((id, new));
        }
        let changes_a_count = |versions: &NewVersions<'_>| versions.iter().any(|(_, new)| new.changes_a_count());
        let (counted, alone): (Vec<_>, Vec<_>) =
            blocks.into_iter().partition(|(_, versions)| changes_a_count(versions));
        let send = |(block, update): (VersionBlock, BlockUpdate)| async move {
            let update = update.alone(self.update(tenant_pk(tenant), block.sort_key()));
            update.send().await.map(drop).map_err(|error| Error::aws("dynamodb:UpdateItem", &error))
        };
        let alone = alone.into_iter().map(|(block, versions)| Ok((block, BlockUpdate::of(&versions))));
        stream::iter(alone).try_for_each_concurrent(CONCURRENT_WRITES, send).await?;
        for blocks in counted.chunks(MAX_TRANSACTION_BLOCKS) {
            let items = || {
                let (mut items, mut counts) = (Vec::new(), CountChanges::default());
                for (block, versions) in blocks {
                    let update = self.transacted(tenant_pk(tenant), block.sort_key());
                    items.push(BlockUpdate::of(versions).in_transaction(update)?);
                    for (_, new) in versions {
                        counts.count(new.open_before, new.version.open);
                    }
                }
                items.extend(counts.update(self.transacted(tenant_pk(tenant), open_incidents::SORT_KEY))?);
                Ok(items)
            };
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

/// The versions in the item of a block.
fn versions_in(item: &Item) -> Result<HashMap<String, DeliveredVersion>> {
    let mut versions = HashMap::new();
    for (name, value) in item {
        if let (Some(id), Ok(packed)) = (name.strip_prefix(VERSION_PREFIX), value.as_s()) {
            let version: DeliveredVersion =
                packed.parse().map_err(|_| Error::Internal("a version that cannot be read".into()))?;
            let mut version = match string(item, &format!("{NOTES_PREFIX}{id}")) {
                Some(notes) => version.with_notes(notes),
                None => version,
            };
            version.open = open_mark(item, id);
            versions.insert(id.to_owned(), version);
        }
    }
    Ok(versions)
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
    fn twice_as_many_blocks_are_read_ahead_as_were_read_in_a_row() {
        let ahead = |read: &[u128], next: u128| -> Vec<u128> {
            let was_read = |block: &VersionBlock| read.iter().any(|read| VersionBlock::Numbers(*read) == *block);
            let blocks = VersionBlock::Numbers(next).with_next_blocks(was_read);
            blocks.into_iter().map(|block| if let VersionBlock::Numbers(block) = block { block } else { 0 }).collect()
        };
        assert_eq!(ahead(&[], 7), [7]);
        assert_eq!(ahead(&[5], 7), [7]);
        assert_eq!(ahead(&[6], 7), [7, 8, 9]);
        assert_eq!(ahead(&[8, 9], 7), [7, 6, 5, 4, 3]);
        assert_eq!(ahead(&[0, 1, 2, 3, 4, 5, 6], 7), [7, 8, 9, 10, 11, 12, 13, 14, 15], "not more than eight");
        assert_eq!(ahead(&[5, 6, 9], 7), [7, 8, 10, 11], "one ahead was read before");
        assert_eq!(ahead(&[3, 4], 2), [2, 1, 0]);
        assert_eq!(ahead(&[2, 3, 4], 1), [1, 0], "no block lies below the first one");
        let names = VersionBlock::of("6f1b8a3e-09c4-4d0e-9a57-5b7e2f6f6a10");
        assert_eq!(names.with_next_blocks(|_| true), [names]);
    }

    #[test]
    fn expressions_for_a_full_block_are_as_short_as_dynamodb_demands() {
        let version: DeliveredVersion = "2026-01-01T00:00:00.1234567Z oga 0123456789abcdef 1 c".parse().unwrap();
        let version =
            DeliveredVersion { open: Some(Severity::High), older_since: Some(version.last_updated), ..version };
        for id in [u128::from(u64::MAX) / 32, 10_u128.pow(37) / 32] {
            let mut update = BlockUpdate::default();
            for id in id * 32..(id + 1) * 32 {
                let new = NewVersion { version: version.clone(), open_before: Some(Severity::Low) };
                update.add(&id.to_string(), &new);
            }
            let longest = update.expression().len().max(update.conditions.0.len());
            assert!(longest < 4_000, "{longest} bytes, and some for the schema");
        }
    }

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
