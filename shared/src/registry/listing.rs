//! Pages of the `listing` index.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::table::{Item, Registry, Versioned, string, text};
use crate::error::{Error, Result};

/// The longest `next` that is decoded. DynamoDB's keys are shorter.
const MAX_NEXT_LENGTH: usize = 2_000;

/// The attributes that a query on the `listing` index continues from.
const POSITION: [&str; 4] = ["pk", "sk", "listing", "listed_at"];

/// The order of a listing by `listed_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Ascending,
    Descending,
}

/// One page of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The items of this page, in the order of the listing.
    pub items: Vec<T>,
    /// The position of the next page, for the caller to send back. `None` on the last page.
    pub next: Option<String>,
}

impl Registry {
    /// Reads one page of at most `limit` items that `keep` accepts from the `listing` index.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a `next` that is not a position in this listing.
    pub(super) async fn list<T: Versioned>(
        &self,
        listing: &str,
        order: Order,
        limit: u32,
        next: Option<&str>,
        keep: impl Fn(&T) -> bool,
    ) -> Result<Page<T>> {
        let start = next.map(|next| decode_next(listing, next)).transpose()?;
        let mut stored = self
            .query()
            .index_name("listing")
            .key_condition_expression("listing = :listing")
            .expression_attribute_values(":listing", text(listing))
            .scan_index_forward(order == Order::Ascending)
            .limit(i32::try_from(limit.saturating_add(1)).unwrap_or(i32::MAX))
            .set_exclusive_start_key(start)
            .into_paginator()
            .items()
            .send();
        let mut items = Vec::new();
        let mut last = None;
        while let Some(item) = stored.next().await {
            let item = item.map_err(|error| Error::aws("dynamodb:Query", &error))?;
            let position = position_of(&item);
            let value = T::read(item)?;
            if !keep(&value) {
                continue;
            }
            if items.len() == limit as usize {
                return Ok(Page { items, next: last.as_ref().map(encode_next).transpose()? });
            }
            items.push(value);
            last = Some(position);
        }
        Ok(Page { items, next: None })
    }
}

fn position_of(item: &Item) -> HashMap<String, String> {
    POSITION.iter().filter_map(|name| Some(((*name).to_owned(), string(item, name)?.to_owned()))).collect()
}

fn encode_next(position: &HashMap<String, String>) -> Result<String> {
    let json =
        serde_json::to_vec(position).map_err(|error| Error::internal("a position could not be written", error))?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(json))
}

fn decode_next(listing: &str, next: &str) -> Result<Item> {
    let invalid = || Error::InvalidRequest("`next` is not one that this API gave.".into());
    if next.len() > MAX_NEXT_LENGTH {
        return Err(invalid());
    }
    let json = BASE64_URL_SAFE_NO_PAD.decode(next).map_err(|_| invalid())?;
    let position: HashMap<String, String> = serde_json::from_slice(&json).map_err(|_| invalid())?;
    let complete = position.len() == POSITION.len()
        && POSITION.iter().all(|name| position.get(*name).is_some_and(|value| !value.is_empty()));
    if !complete || position["listing"] != listing {
        return Err(invalid());
    }
    Ok(position.into_iter().map(|(name, value)| (name, AttributeValue::S(value))).collect())
}
