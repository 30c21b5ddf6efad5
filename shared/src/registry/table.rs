//! Reads and writes of items, whatever they hold: single items, conditional writes, queries.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::{
        put_item::builders::PutItemFluentBuilder, query::builders::QueryFluentBuilder,
        transact_write_items::TransactWriteItemsError, update_item::builders::UpdateItemFluentBuilder,
    },
    types::{
        AttributeValue, CancellationReason, KeysAndAttributes, TransactWriteItem, Update, builders::UpdateBuilder,
        error::TransactionCanceledException,
    },
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Serialize, de::DeserializeOwned};

use super::{carry_over::carry_over, later_release, tenant_pk};
use crate::{
    aws::{LazyClient, lazy_client},
    clock::pause_before_attempt,
    error::{Error, Result},
    tenant::TenantId,
};

/// The number of times that a change reads, changes and writes an item before it gives up against other writers.
const MAX_CHANGE_TRIES: u32 = 8;

/// The most keys that DynamoDB takes in one `BatchGetItem`.
/// <https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchGetItem.html>
const MAX_BATCH_KEYS: usize = 100;

/// The number of `BatchGetItem` calls at the same time.
const CONCURRENT_BATCHES: usize = 8;

/// The number of times in a row that `BatchGetItem` may return all keys unprocessed.
const MAX_UNPROCESSED_BATCHES: u32 = 5;

/// Attempts for a transaction that collides with another one.
const MAX_TRANSACTION_ATTEMPTS: u32 = 4;

/// The attribute with the number of the form in which an item is stored. A release that changes the meaning of what is stored
/// takes the next number. What it adds needs none: older releases keep it.
pub(super) const SCHEMA: &str = "schema";

/// The number of this release.
const SCHEMA_NUMBER: u32 = if later_release::IS_ON { later_release::SCHEMA_NUMBER } else { 1 };

/// The assignment of that number in an update. An item of a newer release keeps its number.
const ASSIGNMENT: &str =
    if later_release::IS_ON { later_release::ASSIGNMENTS } else { "#schema = if_not_exists(#schema, :schema)" };

/// The client of the table.
#[derive(Clone, Debug)]
pub struct Registry {
    client: LazyClient<Client>,
    table: String,
}

pub(super) type Item = HashMap<String, AttributeValue>;

/// The key of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ItemKey {
    pub(super) pk: String,
    pub(super) sk: String,
}

impl ItemKey {
    /// Returns the key of the item `sk` in a tenant's partition.
    pub(super) fn of_tenant(tenant: &TenantId, sk: &str) -> Self {
        Self { pk: tenant_pk(tenant), sk: sk.to_owned() }
    }

    fn of(item: &Item) -> Option<Self> {
        Some(Self { pk: string(item, "pk")?.to_owned(), sk: string(item, "sk")?.to_owned() })
    }

    fn into_item(self) -> Item {
        HashMap::from([("pk".into(), text(self.pk)), ("sk".into(), text(self.sk))])
    }
}

/// The outcome of a write with a condition.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The item was written.
    Done,
    /// The condition did not hold: another writer was faster, or the item is already in the wanted state. Nothing was
    /// written. Each function says what its condition is.
    Conflict,
}

/// An item with a `revision`. It is written only over the revision that was read.
pub(super) trait Versioned: Clone + PartialEq + DeserializeOwned {
    /// The noun for it in an error that a caller reads.
    const NAME: &'static str;

    /// Reads the stored form.
    fn read(item: Item) -> Result<Self> {
        from_item(item)
    }

    fn revision(&mut self) -> &mut u64;

    /// The stored form, with its keys.
    fn item(&self) -> Result<Item>;
}

impl Registry {
    /// A client of the table named `table`.
    pub fn new(config: &aws_config::SdkConfig, table: String) -> Self {
        Self { client: lazy_client(config, Client::new), table }
    }

    /// Reads one item with a consistent read.
    pub(super) async fn get<T: DeserializeOwned>(&self, pk: &str, sk: &str) -> Result<Option<T>> {
        self.get_item(pk, sk).await?.map(from_item).transpose()
    }

    pub(super) async fn get_item(&self, pk: &str, sk: &str) -> Result<Option<Item>> {
        let response = self
            .client
            .get_item()
            .table_name(&self.table)
            .key("pk", text(pk))
            .key("sk", text(sk))
            .consistent_read(true)
            .send()
            .await
            .map_err(|error| Error::aws("dynamodb:GetItem", &error))?;
        Ok(response.item)
    }

    /// Reads many items with consistent reads. Missing ones are left out.
    pub(super) async fn batch_get(&self, keys: Vec<ItemKey>) -> Result<Vec<Item>> {
        self.batch_get_attributes(keys, None).await
    }

    /// Reads some attributes of many items, or all of them, with consistent reads. Missing items are left out.
    pub(super) async fn batch_get_attributes(&self, keys: Vec<ItemKey>, attributes: Option<&str>) -> Result<Vec<Item>> {
        let batches: Vec<Vec<ItemKey>> = keys.chunks(MAX_BATCH_KEYS).map(<[_]>::to_vec).collect();
        let reads = batches.into_iter().map(|batch| self.read_batch(batch, attributes));
        let batches: Vec<Vec<Item>> = stream::iter(reads).buffered(CONCURRENT_BATCHES).try_collect().await?;
        Ok(batches.into_iter().flatten().collect())
    }

    async fn read_batch(&self, mut keys: Vec<ItemKey>, attributes: Option<&str>) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        let mut unprocessed_batches = 0;
        while !keys.is_empty() {
            let requested = keys.len();
            let mut request = KeysAndAttributes::builder()
                .consistent_read(true)
                .set_projection_expression(attributes.map(str::to_owned));
            for key in keys.drain(..) {
                request = request.keys(key.into_item());
            }
            let request = request.build().map_err(|error| Error::internal("dynamodb:BatchGetItem", error))?;
            let response = self
                .client
                .batch_get_item()
                .request_items(&self.table, request)
                .send()
                .await
                .map_err(|error| Error::aws("dynamodb:BatchGetItem", &error))?;
            items.extend(response.responses.unwrap_or_default().into_values().flatten());
            let unprocessed = response.unprocessed_keys.unwrap_or_default().into_values().flat_map(|keys| keys.keys);
            keys.extend(unprocessed.filter_map(|key| ItemKey::of(&key)));
            if keys.len() == requested {
                unprocessed_batches += 1;
                if unprocessed_batches > MAX_UNPROCESSED_BATCHES {
                    return Err(Error::Internal("dynamodb:BatchGetItem: keys stay unprocessed".into()));
                }
                tokio::time::sleep(Duration::from_millis(50 << unprocessed_batches)).await;
            }
        }
        Ok(items)
    }

    pub(super) fn query(&self) -> QueryFluentBuilder {
        self.client.query().table_name(&self.table)
    }

    /// A put of a whole item, to which the caller adds its condition.
    pub(super) fn put(&self, mut item: Item) -> PutItemFluentBuilder {
        if later_release::IS_ON {
            later_release::add_to(&mut item);
        }
        item.entry(SCHEMA.into()).or_insert_with(|| number(SCHEMA_NUMBER));
        self.client.put_item().table_name(&self.table).set_item(Some(item))
    }

    /// An update of one item, to which the caller adds its expressions.
    pub(super) fn update(&self, pk: impl Into<String>, sk: impl Into<String>) -> UpdateItemFluentBuilder {
        self.client.update_item().table_name(&self.table).key("pk", text(pk)).key("sk", text(sk))
    }

    /// An update of one item within a transaction, to which the caller adds its expressions.
    pub(super) fn transacted(&self, pk: impl Into<String>, sk: impl Into<String>) -> UpdateBuilder {
        Update::builder().table_name(&self.table).key("pk", text(pk)).key("sk", text(sk))
    }

    /// Carries a transaction out: all of its writes or none. A transaction that collides with another one is tried again,
    /// with `items` made anew, as a request takes them with it. [`Write::Conflict`]: one of its conditions does not hold.
    pub(super) async fn transact(&self, items: impl Fn() -> Result<Vec<TransactWriteItem>>) -> Result<Write> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let request = self.client.transact_write_items().set_transact_items(Some(items()?));
            let Err(error) = request.send().await else { return Ok(Write::Done) };
            let cancellation = match error.as_service_error() {
                Some(TransactWriteItemsError::TransactionCanceledException(canceled)) => cancellation(canceled),
                _ => Cancellation::Other,
            };
            match cancellation {
                Cancellation::Condition => return Ok(Write::Conflict),
                Cancellation::Passing if attempts < MAX_TRANSACTION_ATTEMPTS => {
                    pause_before_attempt(attempts + 1).await;
                }
                Cancellation::Passing | Cancellation::Other => {
                    return Err(Error::aws("dynamodb:TransactWriteItems", &error));
                }
            }
        }
    }

    pub(super) async fn delete(&self, pk: &str, sk: &str) -> Result<()> {
        let delete = self.client.delete_item().table_name(&self.table).key("pk", text(pk)).key("sk", text(sk));
        delete.send().await.map(drop).map_err(|error| Error::aws("dynamodb:DeleteItem", &error))
    }

    /// Writes a whole item, with all that a newer release stored in it, on condition that the stored one has the revision `previous`, or with `None` that there is no
    /// stored one.
    pub(super) async fn put_revision(&self, item: Item, previous: Option<u64>) -> Result<Write> {
        let put = self.put(item);
        put_if(match previous {
            Some(revision) => put
                .condition_expression("revision = :previous")
                .expression_attribute_values(":previous", number(revision)),
            None => put.condition_expression("attribute_not_exists(pk)"),
        })
        .await
    }

    /// Writes a new item.
    ///
    /// # Errors
    /// [`Error::Conflict`] when an item with its key exists.
    pub(super) async fn create<T: Versioned>(&self, new: &T) -> Result<()> {
        match self.put_revision(new.item()?, None).await? {
            Write::Done => Ok(()),
            Write::Conflict => Err(changed_meanwhile::<T>()),
        }
    }

    /// Reads an item, changes it and writes it, again if another writer came in between. Returns the item before and
    /// after. Nothing is written if `change` fails or changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a missing item, [`Error::Conflict`] when other writers were faster eight times, and the
    /// errors of `change`.
    pub(super) async fn change<T: Versioned>(
        &self,
        pk: &str,
        sk: &str,
        mut change: impl FnMut(&mut T) -> Result<()>,
    ) -> Result<(T, T)> {
        for _ in 0..MAX_CHANGE_TRIES {
            let stored = self.get_item(pk, sk).await?.ok_or(Error::NotFound)?;
            let mut before = T::read(stored.clone())?;
            let mut after = before.clone();
            change(&mut after)?;
            if after == before {
                return Ok((before, after));
            }
            let revision = *before.revision();
            *after.revision() = revision + 1;
            let item = carry_over(stored, &before.item()?, after.item()?);
            if self.put_revision(item, Some(revision)).await? == Write::Done {
                return Ok((before, after));
            }
        }
        Err(changed_meanwhile::<T>())
    }
}

/// The reason for which DynamoDB did not carry a transaction out.
enum Cancellation {
    /// A condition does not hold.
    Condition,
    /// Another transaction, or too much traffic, was in the way.
    Passing,
    /// Anything else.
    Other,
}

fn cancellation(canceled: &TransactionCanceledException) -> Cancellation {
    let has = |codes: &[&str]| {
        let mut reasons = canceled.cancellation_reasons().iter().filter_map(CancellationReason::code);
        reasons.any(|code| codes.contains(&code))
    };
    if has(&["ConditionalCheckFailed"]) {
        Cancellation::Condition
    } else if has(&["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"]) {
        Cancellation::Passing
    } else {
        Cancellation::Other
    }
}

/// Runs a query to its last page.
pub(super) async fn query_all<T: DeserializeOwned>(query: QueryFluentBuilder) -> Result<Vec<T>> {
    let mut stored = query.into_paginator().items().send();
    let mut all = Vec::new();
    while let Some(item) = stored.next().await {
        all.push(from_item(item.map_err(|error| Error::aws("dynamodb:Query", &error))?)?);
    }
    Ok(all)
}

/// Sends an update that has a condition.
pub(super) async fn update_if(update: UpdateItemFluentBuilder) -> Result<Write> {
    condition_held("dynamodb:UpdateItem", later_release::marked(update).send().await)
}

/// Sends a put that has a condition.
pub(super) async fn put_if(put: PutItemFluentBuilder) -> Result<Write> {
    condition_held("dynamodb:PutItem", put.send().await)
}

pub(super) fn condition_held<T, E, R>(call: &str, outcome: std::result::Result<T, SdkError<E, R>>) -> Result<Write>
where
    E: ProvideErrorMetadata,
{
    match outcome {
        Ok(_) => Ok(Write::Done),
        Err(SdkError::ServiceError(error)) if error.err().code() == Some("ConditionalCheckFailedException") => {
            Ok(Write::Conflict)
        }
        Err(error) => Err(Error::aws(call, &error)),
    }
}

/// Adds the number of the stored form to an update that may create its item.
pub(super) fn with_schema(update: UpdateItemFluentBuilder) -> UpdateItemFluentBuilder {
    let expression = update.get_update_expression().clone().unwrap_or_default();
    update
        .update_expression(assigning_schema(&expression))
        .expression_attribute_names("#schema", SCHEMA)
        .expression_attribute_values(":schema", number(SCHEMA_NUMBER))
}

/// [`with_schema`] for an update within a transaction.
pub(super) fn transacted_with_schema(update: UpdateBuilder) -> UpdateBuilder {
    let expression = update.get_update_expression().clone().unwrap_or_default();
    update
        .update_expression(assigning_schema(&expression))
        .expression_attribute_names("#schema", SCHEMA)
        .expression_attribute_values(":schema", number(SCHEMA_NUMBER))
}

fn assigning_schema(expression: &str) -> String {
    match expression.split_once("SET ") {
        Some((before, assignments)) => format!("{before}SET {ASSIGNMENT}, {assignments}"),
        None => format!("SET {ASSIGNMENT} {expression}"),
    }
}

fn changed_meanwhile<T: Versioned>() -> Error {
    let detail = format!("The {} was changed at the same moment. Read it again, then repeat.", T::NAME);
    Error::Conflict { detail, reason: None }
}

pub(super) fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

#[expect(clippy::needless_pass_by_value, reason = "numbers are copied")]
pub(super) fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// A text attribute of an item.
pub(super) fn string<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

pub(super) fn to_item(value: &impl Serialize) -> Result<Item> {
    serde_dynamo::to_item(value).map_err(|error| Error::internal("an item could not be written as attributes", error))
}

pub(super) fn from_item<T: DeserializeOwned>(item: Item) -> Result<T> {
    let kind = string(&item, "sk").unwrap_or_default().to_owned();
    serde_dynamo::from_item(item)
        .map_err(|error| Error::internal(format!("an item of kind {kind} could not be read"), error))
}
