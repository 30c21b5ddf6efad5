//! The number of a tenant's open incidents by severity: of those that were delivered and are neither resolved nor
//! redirected since.
//!
//! The counts have an item of their own. It is written only in the transactions that record versions, so that nothing else
//! collides with these.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_dynamodb::types::{TransactWriteItem, builders::UpdateBuilder};
use serde::{Deserialize, Serialize};

use super::{
    Registry,
    table::{ItemKey, from_item, number, string, transacted_with_schema},
    tenant_of,
};
use crate::{
    error::{Error, Result},
    incident::record::Severity,
    tenant::TenantId,
};

pub(super) const SORT_KEY: &str = "OPEN";

/// The numbers of open incidents of one tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenIncidents {
    /// Incidents of severity informational.
    pub informational: u64,
    /// Incidents of low severity.
    pub low: u64,
    /// Incidents of medium severity.
    pub medium: u64,
    /// Incidents of high severity.
    pub high: u64,
}

/// The changes of the counts that a transaction makes, by the words of the severities. A count of a newer release changes
/// with its marks, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CountChanges(BTreeMap<&'static str, i64>);

impl CountChanges {
    /// Counts an incident that was open under one severity before, and is under another one now.
    pub(super) fn count(&mut self, before: Option<Severity>, now: Option<Severity>) {
        for (severity, change) in [(before, -1), (now, 1)] {
            if let Some(severity) = severity {
                *self.0.entry(severity.as_str()).or_default() += change;
            }
        }
    }

    /// The update of the counts in a transaction. `None`: nothing changes.
    pub(super) fn update(self, mut update: UpdateBuilder) -> Result<Option<TransactWriteItem>> {
        let mut parts = Vec::new();
        for (word, change) in self.0.into_iter().filter(|(_, change)| *change != 0) {
            parts.push(format!("#{word} :{word}"));
            update = update
                .expression_attribute_names(format!("#{word}"), word)
                .expression_attribute_values(format!(":{word}"), number(change));
        }
        if parts.is_empty() {
            return Ok(None);
        }
        let update = transacted_with_schema(update.update_expression(format!("ADD {}", parts.join(", "))));
        let update = update.build().map_err(|error| Error::internal("dynamodb:TransactWriteItems", error))?;
        Ok(Some(TransactWriteItem::builder().update(update).build()))
    }
}

impl Registry {
    /// Reads the numbers of open incidents of many tenants. Tenants that never had one are left out.
    pub async fn open_incidents(&self, tenants: &[TenantId]) -> Result<HashMap<TenantId, OpenIncidents>> {
        let keys = tenants.iter().map(|tenant| ItemKey::of_tenant(tenant, SORT_KEY)).collect();
        let mut counts = HashMap::new();
        for item in self.batch_get(keys).await? {
            if let Some(tenant) = string(&item, "pk").and_then(tenant_of) {
                counts.insert(tenant, from_item(item)?);
            }
        }
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_add_up_over_the_versions_of_a_transaction() {
        let mut changes = CountChanges::default();
        changes.count(None, Some(Severity::High));
        changes.count(Some(Severity::Low), Some(Severity::High));
        changes.count(Some(Severity::Low), Some(Severity::Low));
        changes.count(Some(Severity::High), None);
        changes.count(Some(Severity::Informational), Some(Severity::Medium));
        assert_eq!(changes, CountChanges([("high", 1), ("informational", -1), ("low", -1), ("medium", 1)].into()));
        assert!(CountChanges::default().update(UpdateBuilder::default()).unwrap().is_none());
    }
}
