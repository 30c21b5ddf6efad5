//! Hunts: one query over many tenants, and what each of them gave.
//!
//! A hunt has a partition of its own: the item of the hunt, and one item for each tenant that a worker has started on.
//! A worker claims its tenant before it sends the query, and writes with the claim's fencing token. So a tenant has one
//! result, however often its message is delivered.

use std::{fmt, str::FromStr};

use aws_sdk_dynamodb::types::AttributeValue;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Registry, Write,
    lease::update_and_read,
    table::{from_item, number, put_if, string, text, to_item, update_if, with_schema},
};
use crate::{
    error::{Error, Result},
    tenant::TenantId,
};

/// The most tenants of a hunt. Its item holds all their identifiers.
pub const MAX_HUNTED_TENANTS: usize = 5_000;

/// The time after which no worker starts on a tenant of a hunt, whatever the tenant waits for.
pub const HUNT_LIFETIME: SignedDuration = SignedDuration::from_hours(2);

/// The time for which a hunt stays in the table, as its objects in the bucket.
const HUNT_TTL: SignedDuration = SignedDuration::from_hours(30 * 24);

const SORT_KEY: &str = "HUNT";

/// The identifier of a hunt: a GUID in lower case with hyphens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HuntId(Uuid);

/// The text is not a canonical identifier of a hunt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAHuntId;

impl fmt::Display for NotAHuntId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a lower-case GUID")
    }
}

impl From<Uuid> for HuntId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl fmt::Display for HuntId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.hyphenated())
    }
}

impl FromStr for HuntId {
    type Err = NotAHuntId;

    fn from_str(text: &str) -> Result<Self, NotAHuntId> {
        Uuid::try_parse(text).map(Self).ok().filter(|id| id.to_string() == text).ok_or(NotAHuntId)
    }
}

impl TryFrom<String> for HuntId {
    type Error = NotAHuntId;

    fn try_from(text: String) -> Result<Self, NotAHuntId> {
        text.parse()
    }
}

impl From<HuntId> for String {
    fn from(id: HuntId) -> Self {
        id.to_string()
    }
}

/// One query over many tenants, as a caller asked for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hunt {
    /// The random identifier, by which callers and messages name the hunt.
    pub hunt_id: HuntId,
    /// The query in Kusto's language.
    pub query: String,
    /// The time span of the query, in one of Microsoft's forms.
    pub timespan: Option<String>,
    /// The caller who started it.
    pub caller: String,
    /// The tenants to run it in.
    pub tenants: Vec<TenantId>,
    /// The identifiers in the request that are none of a tenant.
    pub malformed: Vec<String>,
    /// The time at which it was started.
    pub created_at: Timestamp,
    /// The time after which no worker starts on a further tenant.
    pub ends_at: Timestamp,
    /// The time at which a caller cancelled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_at: Option<Timestamp>,
}

/// A tenant of a hunt that a worker has started on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HuntedTenant {
    /// The tenant that the query runs in.
    pub tenant_id: TenantId,
    /// The fencing token: it counts the claims, and a write with an older one fails.
    pub fence: u64,
    /// The time until which a worker has claimed the tenant. Millisecond resolution.
    #[serde(
        default,
        with = "jiff::fmt::serde::timestamp::millisecond::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub claimed_until: Option<Timestamp>,
    /// The number of failures so far that a repeat may cure.
    #[serde(default)]
    pub failures: u32,
    /// The last failure, and of a finished tenant its outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<HuntFailure>,
    /// The result, as it is or is about to be in the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<HuntedRows>,
    /// The time at which the tenant was finished with, for good or ill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// The failure of a hunt in one tenant, in the interface's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HuntFailure {
    /// The code of the error.
    pub code: String,
    /// The reason, where there is one.
    pub reason: Option<String>,
}

/// The result of one tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HuntedRows {
    /// The number of rows.
    pub rows: u64,
    /// The size of the rows as a part of a response, in bytes.
    pub bytes: u64,
    /// The columns of the rows, in Microsoft's order.
    pub schema: Vec<Column>,
    /// The name of the object with the rows. `None`: the query returned no row.
    pub object: Option<String>,
    /// The result has as many rows as Microsoft returns at most, so that some may be missing.
    #[serde(default)]
    pub is_cut: bool,
}

/// A column of a result, as Microsoft describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// The name of the member that holds its value in a row.
    pub name: String,
    /// Kusto's type, where it is known.
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

/// The outcome of a worker's request for a tenant of a hunt.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// The caller has the tenant.
    Claimed(Box<HuntedTenant>),
    /// Another worker has it until this time.
    Busy(Timestamp),
    /// A worker has finished with it.
    Finished,
}

fn hunt_pk(hunt_id: &HuntId) -> String {
    format!("HUNT#{hunt_id}")
}

fn tenant_sk(tenant: &TenantId) -> String {
    format!("TENANT#{tenant}")
}

fn expires_at(since: Timestamp) -> AttributeValue {
    number((since + HUNT_TTL).as_second())
}

impl Registry {
    /// Writes a new hunt.
    pub async fn create_hunt(&self, hunt: &Hunt) -> Result<()> {
        let mut item = to_item(hunt)?;
        item.insert("pk".into(), text(hunt_pk(&hunt.hunt_id)));
        item.insert("sk".into(), text(SORT_KEY));
        item.insert("expires_at".into(), expires_at(hunt.created_at));
        match put_if(self.put(item).condition_expression("attribute_not_exists(pk)")).await? {
            Write::Done => Ok(()),
            Write::Conflict => Err(Error::Internal("two hunts have one identifier".into())),
        }
    }

    /// Reads a hunt with a consistent read.
    pub async fn hunt(&self, hunt_id: &HuntId) -> Result<Option<Hunt>> {
        self.get(&hunt_pk(hunt_id), SORT_KEY).await
    }

    /// Reads a hunt and the tenants that workers have started on, with consistent reads.
    pub async fn hunt_with_tenants(&self, hunt_id: &HuntId) -> Result<Option<(Hunt, Vec<HuntedTenant>)>> {
        let query = self
            .query()
            .key_condition_expression("pk = :pk")
            .expression_attribute_values(":pk", text(hunt_pk(hunt_id)))
            .consistent_read(true);
        let mut stored = query.into_paginator().items().send();
        let (mut hunt, mut tenants) = (None, Vec::new());
        while let Some(item) = stored.next().await {
            let item = item.map_err(|error| Error::aws("dynamodb:Query", &error))?;
            if string(&item, "sk") == Some(SORT_KEY) {
                hunt = Some(from_item(item)?);
            } else {
                tenants.push(from_item(item)?);
            }
        }
        Ok(hunt.map(|hunt| (hunt, tenants)))
    }

    /// Cancels a hunt. One that was cancelled before stays as it is.
    pub async fn cancel_hunt(&self, hunt_id: &HuntId, now: Timestamp) -> Result<()> {
        let update = self
            .update(hunt_pk(hunt_id), SORT_KEY)
            .update_expression("SET cancelled_at = :now")
            .condition_expression("attribute_exists(pk) AND attribute_not_exists(cancelled_at)")
            .expression_attribute_values(":now", text(now.to_string()));
        update_if(update).await.map(|_| ())
    }

    /// Claims a tenant of a hunt until `until`, unless a worker has it or has finished with it.
    pub async fn claim_hunted_tenant(
        &self,
        hunt: &Hunt,
        tenant: &TenantId,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Claim> {
        let (pk, sk) = (hunt_pk(&hunt.hunt_id), tenant_sk(tenant));
        let update = self
            .update(&pk, &sk)
            .update_expression("SET tenant_id = :tenant, claimed_until = :until, expires_at = :expires ADD fence :one")
            .condition_expression(
                "attribute_not_exists(finished_at) AND (attribute_not_exists(claimed_until) OR claimed_until < :now)",
            )
            .expression_attribute_values(":tenant", text(tenant.to_string()))
            .expression_attribute_values(":until", number(until.as_millisecond()))
            .expression_attribute_values(":now", number(now.as_millisecond()))
            .expression_attribute_values(":expires", expires_at(hunt.created_at))
            .expression_attribute_values(":one", number(1));
        if let Some(item) = update_and_read(with_schema(update)).await? {
            return Ok(Claim::Claimed(Box::new(from_item(item)?)));
        }
        let stored: Option<HuntedTenant> = self.get(&pk, &sk).await?;
        let open = stored.filter(|stored| stored.finished_at.is_none());
        Ok(open.map_or(Claim::Finished, |stored| Claim::Busy(stored.claimed_until.unwrap_or(now))))
    }

    /// Writes what a worker knows of its tenant. [`Write::Conflict`]: another worker has claimed the tenant since.
    pub async fn commit_hunted_tenant(&self, hunt: &Hunt, tenant: &HuntedTenant) -> Result<Write> {
        let mut attributes = to_item(tenant)?;
        let (mut set, mut remove) = (Vec::new(), Vec::new());
        let mut update = self.update(hunt_pk(&hunt.hunt_id), tenant_sk(&tenant.tenant_id));
        // One by one, so that attributes of a newer release stay.
        for name in ["claimed_until", "failures", "failure", "result", "finished_at"] {
            update = update.expression_attribute_names(format!("#{name}"), name);
            match attributes.remove(name) {
                Some(value) => {
                    set.push(format!("#{name} = :{name}"));
                    update = update.expression_attribute_values(format!(":{name}"), value);
                }
                None => remove.push(format!("#{name}")),
            }
        }
        let removed = if remove.is_empty() { String::new() } else { format!(" REMOVE {}", remove.join(", ")) };
        let update = update
            .update_expression(format!("SET {}{removed}", set.join(", ")))
            .condition_expression("fence = :fence AND attribute_not_exists(#finished_at)")
            .expression_attribute_values(":fence", number(tenant.fence));
        update_if(update).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_is_a_hunt() {
        let canonical = "11111111-2222-4333-8444-abcdefabcdef";
        assert_eq!(canonical.parse::<HuntId>().unwrap().to_string(), canonical);
        for other in ["11111111-2222-4333-8444-ABCDEFABCDEF", "11111111222243338444abcdefabcdef", "x", ""] {
            assert_eq!(other.parse::<HuntId>(), Err(NotAHuntId), "{other}");
        }
    }

    #[test]
    fn absent_facts_are_absent_attributes() {
        let tenant_id = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let open = HuntedTenant {
            tenant_id,
            fence: 1,
            claimed_until: None,
            failures: 0,
            failure: None,
            result: None,
            finished_at: None,
        };
        let item = to_item(&open).unwrap();
        let names: Vec<&String> = item.keys().collect();
        assert!(!item.contains_key("finished_at") && !item.contains_key("claimed_until"), "{names:?}");
        assert_eq!(from_item::<HuntedTenant>(item).unwrap(), open);
    }
}
