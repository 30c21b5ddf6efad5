//! What was set aside of a tenant, and when it is tried again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Registry, condition_held, from_item, tenant_pk, text, to_item};
use crate::{
    error::{Error, Result},
    incident::span::Span,
    tenant::TenantId,
};

/// One thing that was set aside: a record, or a span of time whose records cannot be had one by one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuarantineEntry {
    /// Names it, and the object in the bucket.
    pub name: String,
    /// Why.
    pub reason: String,
    /// The incident, where it is known.
    pub incident_id: Option<String>,
    /// The span of last update in which it was met.
    pub from: Timestamp,
    /// Where that span ends.
    pub to: Timestamp,
    /// How often it was tried again.
    pub tries: u32,
    /// When it is tried next.
    pub next_try_at: Timestamp,
    /// Whether no answer that holds the span can be read: polls then leave it out.
    pub blocks: bool,
}

/// The growing pauses between tries.
const PAUSES: [Duration; 5] = [
    Duration::from_mins(5),
    Duration::from_mins(15),
    Duration::from_hours(1),
    Duration::from_hours(6),
    Duration::from_hours(24),
];

impl QuarantineEntry {
    /// Something to set aside for the first time.
    pub fn new(
        name: String,
        reason: &str,
        incident_id: Option<String>,
        span: (Timestamp, Timestamp),
        now: Timestamp,
    ) -> Self {
        let (from, to) = span;
        let mut fresh =
            Self { name, reason: reason.into(), incident_id, from, to, tries: 0, next_try_at: now, blocks: false };
        fresh.next_try_at = now + fresh.pause();
        fresh
    }

    /// The span in which it was met.
    pub fn span(&self) -> Span {
        Span { from: self.from, to: Some(self.to) }
    }

    /// Notes that it was tried in vain.
    pub fn note_failed_retry(&mut self, now: Timestamp) {
        self.tries += 1;
        self.next_try_at = now + self.pause();
    }

    fn pause(&self) -> SignedDuration {
        let index = (self.tries as usize).min(PAUSES.len() - 1);
        SignedDuration::try_from(PAUSES[index]).unwrap_or(SignedDuration::from_hours(24))
    }
}

fn sort_key(name: &str) -> String {
    format!("QUARANTINE#{name}")
}

impl Registry {
    /// Notes something new that was set aside; `false` when it is noted already.
    pub async fn quarantine(&self, tenant: &TenantId, what: &QuarantineEntry) -> Result<bool> {
        let put = self.put_quarantine_entry(tenant, what)?.condition_expression("attribute_not_exists(pk)");
        condition_held("dynamodb:PutItem", put.send().await)
    }

    /// Writes how something stands that was set aside before.
    pub async fn update_quarantine_entry(&self, tenant: &TenantId, what: &QuarantineEntry) -> Result<()> {
        self.put_quarantine_entry(tenant, what)?
            .send()
            .await
            .map_err(|error| Error::aws("dynamodb:PutItem", &error))?;
        Ok(())
    }

    /// Forgets something that was set aside.
    pub async fn release_from_quarantine(&self, tenant: &TenantId, name: &str) -> Result<()> {
        self.client
            .delete_item()
            .table_name(&self.table)
            .key("pk", text(tenant_pk(tenant)))
            .key("sk", text(sort_key(name)))
            .send()
            .await
            .map_err(|error| Error::aws("dynamodb:DeleteItem", &error))?;
        Ok(())
    }

    /// All that is set aside of a tenant.
    pub async fn quarantine_entries(&self, tenant: &TenantId) -> Result<Vec<QuarantineEntry>> {
        let mut all = Vec::new();
        let mut start = None;
        loop {
            let answer = self
                .client
                .query()
                .table_name(&self.table)
                .key_condition_expression("pk = :pk AND begins_with(sk, :prefix)")
                .expression_attribute_values(":pk", text(tenant_pk(tenant)))
                .expression_attribute_values(":prefix", text(sort_key("")))
                .consistent_read(true)
                .set_exclusive_start_key(start)
                .send()
                .await
                .map_err(|error| Error::aws("dynamodb:Query", &error))?;
            for item in answer.items.unwrap_or_default() {
                all.push(from_item(item)?);
            }
            start = answer.last_evaluated_key;
            if start.is_none() {
                return Ok(all);
            }
        }
    }

    fn put_quarantine_entry(
        &self,
        tenant: &TenantId,
        what: &QuarantineEntry,
    ) -> Result<aws_sdk_dynamodb::operation::put_item::builders::PutItemFluentBuilder> {
        let mut item = to_item(what)?;
        item.insert("pk".into(), text(tenant_pk(tenant)));
        item.insert("sk".into(), text(sort_key(&what.name)));
        Ok(self.client.put_item().table_name(&self.table).set_item(Some(item)))
    }
}
