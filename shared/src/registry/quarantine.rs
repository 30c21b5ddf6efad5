//! The quarantine of a tenant: records and spans that cannot be read, and the times of their retries.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Registry, Write,
    position::Position,
    table::{Item, put_if, query_all, text, to_item, with_schema},
    tenant_pk,
};
use crate::{
    error::{Error, Result},
    incident::span::Span,
    tenant::TenantId,
};

/// The delays before the first and the following retries. The last one repeats.
const RETRY_DELAYS: [SignedDuration; 5] = [
    SignedDuration::from_mins(5),
    SignedDuration::from_mins(15),
    SignedDuration::from_hours(1),
    SignedDuration::from_hours(6),
    SignedDuration::from_hours(24),
];

/// A record in quarantine, or a span of time whose records cannot be read one by one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuarantineEntry {
    /// The identifier of the entry, and the name of its object in the bucket.
    pub name: String,
    /// The reason for the quarantine.
    pub reason: String,
    /// The incident, if it is known.
    pub incident_id: Option<String>,
    /// The start of the span of last update that holds the record.
    pub from: Timestamp,
    /// The end of that span, not included.
    pub to: Timestamp,
    /// The number of failed retries.
    pub tries: u32,
    /// The time of the next retry.
    pub next_try_at: Timestamp,
    /// The position of an unfinished retry.
    #[serde(default)]
    pub pass_position: Option<Position>,
    /// True if every response that holds the span fails. Polls leave such a span out.
    pub blocks: bool,
}

impl QuarantineEntry {
    /// A new entry that blocks nothing. Its first retry is five minutes after `now`. A span without an end ends at `now`.
    pub fn new(name: String, reason: &str, incident_id: Option<String>, span: Span, now: Timestamp) -> Self {
        Self {
            name,
            reason: reason.into(),
            incident_id,
            from: span.from,
            to: span.to.unwrap_or(now),
            tries: 0,
            next_try_at: now + retry_delay(0),
            pass_position: None,
            blocks: false,
        }
    }

    /// The span of last update that holds the record.
    pub fn span(&self) -> Span {
        Span { from: self.from, to: Some(self.to) }
    }

    /// Notes how far a retry came for which time or budget ran out. One that came no further has failed.
    pub fn note_unfinished_retry(&mut self, position: Position, now: Timestamp) {
        if self.pass_position.as_ref() == Some(&position) {
            self.note_failed_retry(now);
        } else {
            self.next_try_at = now + retry_delay(0);
        }
        self.pass_position = Some(position);
    }

    /// Counts a failed retry and sets the time of the next one.
    pub fn note_failed_retry(&mut self, now: Timestamp) {
        self.tries += 1;
        self.next_try_at = now + retry_delay(self.tries);
    }
}

fn retry_delay(failed_retries: u32) -> SignedDuration {
    RETRY_DELAYS[(failed_retries as usize).min(RETRY_DELAYS.len() - 1)]
}

fn sort_key(name: &str) -> String {
    format!("QUARANTINE#{name}")
}

fn item(tenant: &TenantId, entry: &QuarantineEntry) -> Result<Item> {
    let mut item = to_item(entry)?;
    item.insert("pk".into(), text(tenant_pk(tenant)));
    item.insert("sk".into(), text(sort_key(&entry.name)));
    Ok(item)
}

impl Registry {
    /// Writes a new entry. [`Write::Conflict`]: an entry of that name exists.
    pub async fn quarantine(&self, tenant: &TenantId, entry: &QuarantineEntry) -> Result<Write> {
        put_if(self.put(item(tenant, entry)?).condition_expression("attribute_not_exists(pk)")).await
    }

    /// Writes an entry over the stored one. What a newer release stored beside it stays.
    pub async fn update_quarantine_entry(&self, tenant: &TenantId, entry: &QuarantineEntry) -> Result<()> {
        let mut update = self.update(tenant_pk(tenant), sort_key(&entry.name));
        let mut set = Vec::new();
        for (name, value) in to_item(entry)? {
            set.push(format!("#{name} = :{name}"));
            update = update
                .expression_attribute_names(format!("#{name}"), name.clone())
                .expression_attribute_values(format!(":{name}"), value);
        }
        let update = with_schema(update.update_expression(format!("SET {}", set.join(", "))));
        update.send().await.map(drop).map_err(|error| Error::aws("dynamodb:UpdateItem", &error))
    }

    /// Deletes an entry: its record is delivered, or no longer shown.
    pub async fn release_from_quarantine(&self, tenant: &TenantId, name: &str) -> Result<()> {
        self.delete(&tenant_pk(tenant), &sort_key(name)).await
    }

    /// Reads all entries of a tenant with consistent reads.
    pub async fn quarantine_entries(&self, tenant: &TenantId) -> Result<Vec<QuarantineEntry>> {
        let query = self
            .query()
            .key_condition_expression("pk = :pk AND begins_with(sk, :prefix)")
            .expression_attribute_values(":pk", text(tenant_pk(tenant)))
            .expression_attribute_values(":prefix", text(sort_key("")))
            .consistent_read(true);
        query_all(query).await
    }
}
