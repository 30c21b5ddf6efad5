//! Tenants, invitations, leases, due times, delivered versions: the DynamoDB table.
//!
//! One table, keys `pk` and `sk`. All that belongs to a tenant lies under `TENANT#{tenant_id}`, so that offboarding is
//! one query. Two indexes: `due` (which tenants to poll, sharded) and `listing` (tenants and invitations in order).

pub mod attempts;
pub mod breaker;
pub mod budget;
pub mod feed;
pub mod invitations;
pub mod jobs;
pub mod quarantine;
pub mod tenants;
pub mod versions;

use std::collections::HashMap;

use aws_sdk_dynamodb::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::AttributeValue,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{Error, Result},
    tenant::TenantId,
};

/// The table, and how to speak to it.
#[derive(Clone, Debug)]
pub struct Registry {
    client: Client,
    table: String,
}

type Item = HashMap<String, AttributeValue>;

/// How often a change is begun anew because somebody else was faster.
const CHANGES: u32 = 8;

/// An item that is always written as a whole, and only over the one that was read.
trait Versioned: Clone + PartialEq + DeserializeOwned {
    /// What a caller reads that it is.
    const NAME: &'static str;

    /// Counts its writes.
    fn revision(&mut self) -> &mut u64;

    /// It with its keys.
    fn item(&self) -> Result<Item>;
}

/// A page of a listing and where the next one begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The things listed.
    pub items: Vec<T>,
    /// Hand this in for the next page; `None` at the end.
    pub next: Option<String>,
}

impl Registry {
    /// The table named `table`.
    pub fn new(config: &aws_config::SdkConfig, table: String) -> Self {
        Self { client: Client::new(config), table }
    }

    /// Reads one item, consistently.
    async fn get<T: DeserializeOwned>(&self, pk: &str, sk: &str) -> Result<Option<T>> {
        self.get_item(pk, sk).await?.map(from_item).transpose()
    }

    async fn get_item(&self, pk: &str, sk: &str) -> Result<Option<Item>> {
        let answer = self
            .client
            .get_item()
            .table_name(&self.table)
            .key("pk", text(pk))
            .key("sk", text(sk))
            .consistent_read(true)
            .send()
            .await
            .map_err(|error| Error::aws("dynamodb:GetItem", &error))?;
        Ok(answer.item)
    }

    /// Writes a whole item that carries a `revision`: on condition that it is still the one that was read (`previous`),
    /// or that there was none. `false` when somebody was faster.
    async fn put_revised(&self, item: Item, previous: Option<u64>) -> Result<bool> {
        let put = self.client.put_item().table_name(&self.table).set_item(Some(item));
        let put = match previous {
            Some(revision) => put
                .condition_expression("revision = :previous")
                .expression_attribute_values(":previous", number(revision)),
            None => put.condition_expression("attribute_not_exists(pk)"),
        };
        condition_held("dynamodb:PutItem", put.send().await)
    }

    /// Writes a new item that carries a `revision`.
    async fn create<T: Versioned>(&self, new: &T) -> Result<()> {
        let written = self.put_revised(new.item()?, None).await?;
        if written { Ok(()) } else { Err(changed_meanwhile::<T>()) }
    }

    /// Reads an item, changes it and writes it, again and again until nobody else wrote in between. Returns it before and
    /// after. `change` may refuse with an error; nothing is written then, nor when it changes nothing.
    async fn change<T: Versioned>(
        &self,
        pk: &str,
        sk: &str,
        mut change: impl FnMut(&mut T) -> Result<()>,
    ) -> Result<(T, T)> {
        for _ in 0..CHANGES {
            let mut before: T = self.get(pk, sk).await?.ok_or(Error::NotFound)?;
            let mut after = before.clone();
            change(&mut after)?;
            if after == before {
                return Ok((before, after));
            }
            let revision = *before.revision();
            *after.revision() = revision + 1;
            if self.put_revised(after.item()?, Some(revision)).await? {
                return Ok((before, after));
            }
        }
        Err(changed_meanwhile::<T>())
    }

    /// Reads one page of a query on the `listing` index.
    async fn list<T: DeserializeOwned>(
        &self,
        listing: &str,
        newest_first: bool,
        limit: u32,
        next: Option<&str>,
        keep: impl Fn(&T) -> bool,
    ) -> Result<Page<T>> {
        let mut start = next.map(|next| decode_next(listing, next)).transpose()?;
        let mut items = Vec::new();
        loop {
            let answer = self
                .client
                .query()
                .table_name(&self.table)
                .index_name("listing")
                .key_condition_expression("listing = :listing")
                .expression_attribute_values(":listing", text(listing))
                .scan_index_forward(!newest_first)
                .limit(i32::try_from(limit.saturating_add(1)).unwrap_or(i32::MAX))
                .set_exclusive_start_key(start.take())
                .send()
                .await
                .map_err(|error| Error::aws("dynamodb:Query", &error))?;
            for item in answer.items.unwrap_or_default() {
                let position = position_of(&item);
                let value: T = from_item(item)?;
                if !keep(&value) {
                    continue;
                }
                items.push((value, position));
                if items.len() > limit as usize {
                    items.pop();
                    let next = items.last().map(|(_, position)| encode_next(position)).transpose()?;
                    return Ok(Page { items: items.into_iter().map(|(value, _)| value).collect(), next });
                }
            }
            start = answer.last_evaluated_key;
            if start.is_none() {
                return Ok(Page { items: items.into_iter().map(|(value, _)| value).collect(), next: None });
            }
        }
    }
}

/// No position that was given out is as long; DynamoDB refuses keys of over a thousand bytes.
const LONGEST_NEXT: usize = 1_000;

/// The keys that a query on `listing` goes on from.
const POSITION: [&str; 4] = ["pk", "sk", "listing", "listed_at"];

fn position_of(item: &Item) -> HashMap<String, String> {
    POSITION.iter().filter_map(|name| Some(((*name).to_owned(), item.get(*name)?.as_s().ok()?.clone()))).collect()
}

fn encode_next(position: &HashMap<String, String>) -> Result<String> {
    let json = serde_json::to_vec(position).map_err(|_| Error::Internal("a position could not be written".into()))?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(json))
}

fn decode_next(listing: &str, next: &str) -> Result<Item> {
    let invalid = || Error::InvalidRequest("`next` is not one that this API gave.".into());
    if next.len() > LONGEST_NEXT {
        return Err(invalid());
    }
    let json = BASE64_URL_SAFE_NO_PAD.decode(next).map_err(|_| invalid())?;
    let position: HashMap<String, String> = serde_json::from_slice(&json).map_err(|_| invalid())?;
    let whole = position.len() == POSITION.len()
        && POSITION.iter().all(|name| position.get(*name).is_some_and(|value| !value.is_empty()));
    if !whole || position["listing"] != listing {
        return Err(invalid());
    }
    Ok(position.into_iter().map(|(name, value)| (name, AttributeValue::S(value))).collect())
}

fn changed_meanwhile<T: Versioned>() -> Error {
    let detail = format!("The {} was changed at the same moment. Read it again, then repeat.", T::NAME);
    Error::Conflict { detail, reason: None }
}

fn tenant_pk(tenant: &TenantId) -> String {
    format!("TENANT#{tenant}")
}

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

#[expect(clippy::needless_pass_by_value, reason = "numbers are copied")]
fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn to_item(value: &impl Serialize) -> Result<Item> {
    serde_dynamo::to_item(value).map_err(|error| Error::internal("an item could not be written as attributes", error))
}

fn from_item<T: DeserializeOwned>(item: Item) -> Result<T> {
    let kind = item.get("sk").and_then(|sk| sk.as_s().ok()).cloned().unwrap_or_default();
    serde_dynamo::from_item(item)
        .map_err(|error| Error::internal(format!("an item of kind {kind} could not be read"), error))
}

/// `Ok(true)` when the write took place, `Ok(false)` when its condition did not hold.
fn condition_held<T, E, R>(call: &str, outcome: std::result::Result<T, SdkError<E, R>>) -> Result<bool>
where
    E: ProvideErrorMetadata,
{
    match outcome {
        Ok(_) => Ok(true),
        Err(SdkError::ServiceError(error)) if error.err().code() == Some("ConditionalCheckFailedException") => {
            Ok(false)
        }
        Err(error) => Err(Error::aws(call, &error)),
    }
}
