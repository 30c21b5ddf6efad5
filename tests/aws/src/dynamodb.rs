//! DynamoDB: one table with the keys `pk` and `sk` and two indexes.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    Account, TABLE,
    expression::Terms,
    wire::{Refusal, Served, invalid, list, named, only, text},
};

/// An item: attribute names with values in DynamoDB's JSON.
pub type Item = Map<String, Value>;

type Key = (String, String);

/// The most items of a page. DynamoDB's pages are of 1 MB; a small page makes callers read on.
const MAX_PAGE: usize = 100;
/// The most keys of a batch, and the most writes of a transaction.
const MAX_BATCH: usize = 100;

/// A secondary index, as `infra/template.yaml` declares it.
struct Index {
    hash: &'static str,
    range: &'static str,
    range_type: &'static str,
    keys_only: bool,
}

const TABLE_KEYS: Index = Index { hash: "pk", range: "sk", range_type: "S", keys_only: false };
const DUE: Index = Index { hash: "due_shard", range: "due_at", range_type: "N", keys_only: true };
const LISTING: Index = Index { hash: "listing", range: "listed_at", range_type: "S", keys_only: false };

impl Index {
    /// The names that say where an item stands in the index.
    fn position(&self) -> BTreeSet<&'static str> {
        BTreeSet::from(["pk", "sk", self.hash, self.range])
    }

    fn holds(&self, item: &Item) -> bool {
        item.contains_key(self.hash) && item.contains_key(self.range)
    }

    fn compare(&self, one: &Item, other: &Item) -> Ordering {
        let number = |item: &Item| item[self.range]["N"].as_str().and_then(|number| number.parse::<i64>().ok());
        let text = |item: &Item, name: &str| item[name]["S"].as_str().map(str::to_owned);
        let range = match self.range_type {
            "N" => number(one).cmp(&number(other)),
            _ => text(one, self.range).cmp(&text(other, self.range)),
        };
        range
            .then_with(|| text(one, "pk").cmp(&text(other, "pk")))
            .then_with(|| text(one, "sk").cmp(&text(other, "sk")))
    }
}

/// The key of an item or of a request's `Key`.
fn key_of(item: &Value) -> Served<Key> {
    let part = |name: &str| match item[name]["S"].as_str() {
        Some(part) if !part.is_empty() => Ok(part.to_owned()),
        _ => Err(invalid(format!("{name} is not a key in {item}"))),
    };
    Ok((part("pk")?, part("sk")?))
}

fn exact_key(key: &Value) -> Served<Key> {
    only(key, &["pk", "sk"])?;
    key_of(key)
}

fn failed_condition() -> Refusal {
    Refusal::new("ConditionalCheckFailedException", "The conditional request failed")
}

impl Account {
    /// The items whose sort key begins with `prefix`, in the order of their keys.
    pub fn items(&self, prefix: &str) -> Vec<&Item> {
        self.items.iter().filter(|((_, sk), _)| sk.starts_with(prefix)).map(|(_, item)| item).collect()
    }

    /// An item, to be changed in place.
    pub fn item_mut(&mut self, pk: &str, sk: &str) -> Option<&mut Item> {
        self.items.get_mut(&(pk.to_owned(), sk.to_owned()))
    }

    pub(crate) fn dynamodb(&mut self, operation: &str, request: &Value) -> Served {
        match operation {
            "BatchGetItem" => return self.batch_get(request),
            "TransactWriteItems" => return self.transact(request),
            _ => {}
        }
        named(request, "TableName", TABLE)?;
        let terms = Terms::of(request)?;
        match operation {
            "GetItem" => {
                only(request, &["TableName", "Key", "ConsistentRead"])?;
                let key = exact_key(&request["Key"])?;
                let Some(item) = self.items.get(&key) else { return Ok(json!({})) };
                let mut item = item.clone();
                if self.defects.ignores_pause && key.1 == "PROFILE" {
                    item.insert("status".into(), json!({"S": "active"}));
                }
                Ok(json!({"Item": item}))
            }
            "PutItem" => {
                only(request, &["TableName", "Item", "ConditionExpression", NAMES, VALUES])?;
                let key = key_of(&request["Item"])?;
                self.condition(request, &terms, &key)?;
                self.write(key, request["Item"].as_object().cloned().unwrap_or_default())?;
                Ok(json!({}))
            }
            "UpdateItem" => {
                let known =
                    ["TableName", "Key", "ConditionExpression", "UpdateExpression", "ReturnValues", NAMES, VALUES];
                only(request, &known)?;
                let key = exact_key(&request["Key"])?;
                self.condition(request, &terms, &key)?;
                let new = || request["Key"].as_object().cloned().unwrap_or_default();
                let mut item = self.items.get(&key).cloned().unwrap_or_else(new);
                terms.apply(text(request, "UpdateExpression")?, &mut item)?;
                let item = self.write(key, item)?;
                match request["ReturnValues"].as_str() {
                    None | Some("NONE") => Ok(json!({})),
                    Some("ALL_NEW") => Ok(json!({"Attributes": item})),
                    Some(other) => Err(invalid(format!("the double does not return {other}"))),
                }
            }
            "DeleteItem" => {
                only(request, &["TableName", "Key", "ConditionExpression", NAMES, VALUES])?;
                let key = exact_key(&request["Key"])?;
                self.condition(request, &terms, &key)?;
                self.items.remove(&key);
                Ok(json!({}))
            }
            _ => self.query(request, &terms),
        }
    }

    /// Carries out all updates of a transaction or none. A request that is repeated with its token does nothing.
    fn transact(&mut self, request: &Value) -> Served {
        only(request, &["TransactItems", "ClientRequestToken"])?;
        let token = text(request, "ClientRequestToken")?.to_owned();
        let items = list(request, "TransactItems")?;
        let (mut codes, mut written) = (Vec::new(), BTreeMap::new());
        for item in items {
            only(item, &["Update"])?;
            let update = &item["Update"];
            only(update, &["TableName", "Key", "ConditionExpression", "UpdateExpression", NAMES, VALUES])?;
            named(update, "TableName", TABLE)?;
            let (terms, key) = (Terms::of(update)?, exact_key(&update["Key"])?);
            codes.push(if self.condition(update, &terms, &key).is_ok() { "None" } else { "ConditionalCheckFailed" });
            let new = || update["Key"].as_object().cloned().unwrap_or_default();
            let mut changed = self.items.get(&key).cloned().unwrap_or_else(new);
            terms.apply(text(update, "UpdateExpression")?, &mut changed)?;
            written.insert(key, changed);
        }
        if !(1..=MAX_BATCH).contains(&items.len()) || written.len() < items.len() {
            return Err(invalid(format!("a transaction of {} writes to {} items", items.len(), written.len())));
        }
        if !self.transactions.insert(token) {
            return Ok(json!({}));
        }
        if codes.contains(&"ConditionalCheckFailed") {
            return Err(Refusal::of_transaction(&codes));
        }
        for (key, item) in written {
            if self.defects.counts_apart && key.1 == "OPEN" {
                self.late_counts.insert(key, item);
            } else {
                self.write(key, item)?;
            }
        }
        Ok(json!({}))
    }

    fn condition(&self, request: &Value, terms: &Terms, key: &Key) -> Served<()> {
        let Some(condition) = request["ConditionExpression"].as_str() else { return Ok(()) };
        let is_ignored = self.defects.ignores_fence && condition.starts_with("fence = :fence")
            || self.defects.ignores_cancellation && key.1.starts_with("JOB#");
        if is_ignored || terms.hold(condition, self.items.get(key))? {
            return Ok(());
        }
        Err(failed_condition())
    }

    /// Writes an item, after a look at the attributes that indexes need.
    fn write(&mut self, key: Key, mut item: Item) -> Served<Item> {
        self.defects.act_out_write(&key.1, &mut item, self.now());
        for (name, kind) in [(DUE.hash, "S"), (DUE.range, "N"), (LISTING.hash, "S"), (LISTING.range, "S")] {
            if let Some(value) = item.get(name).filter(|value| !value[kind].is_string()) {
                return Err(invalid(format!("{name} is a key of an index and not {kind}: {value}")));
            }
        }
        let covered = |item: &Item| item.get("covered_until")?["S"].as_str()?.parse::<Timestamp>().ok();
        if (key.1 == "FEED" || key.1.starts_with("JOB#"))
            && let Some(before) = self.items.get(&key).and_then(covered)
            && covered(&item).is_none_or(|after| after < before)
        {
            self.regressions.push(format!("{}: covered_until moved back from {before} to {:?}", key.1, covered(&item)));
        }
        self.items.insert(key, item.clone());
        Ok(item)
    }

    fn query(&self, request: &Value, terms: &Terms) -> Served {
        let known = [
            "TableName",
            "IndexName",
            "KeyConditionExpression",
            "ProjectionExpression",
            "ConsistentRead",
            "ScanIndexForward",
            "Limit",
            "ExclusiveStartKey",
            NAMES,
            VALUES,
        ];
        only(request, &known)?;
        let index = match request["IndexName"].as_str() {
            None => TABLE_KEYS,
            Some("due") => DUE,
            Some("listing") => LISTING,
            Some(other) => return Err(invalid(format!("the table has no index {other}"))),
        };
        if index.hash != TABLE_KEYS.hash && request["ConsistentRead"] == true {
            return Err(invalid("an index cannot be read consistently"));
        }
        let condition = text(request, "KeyConditionExpression")?;
        if !condition.starts_with(&format!("{} = :", index.hash)) {
            return Err(invalid(format!("the condition does not name the partition: {condition}")));
        }
        let mut found = Vec::new();
        for item in self.items.values().filter(|item| index.holds(item)) {
            if terms.hold(condition, Some(item))? {
                found.push(item);
            }
        }
        found.sort_by(|one, other| index.compare(one, other));
        let is_forward = request["ScanIndexForward"].as_bool().unwrap_or(true);
        if !is_forward {
            found.reverse();
        }
        if let Some(start) = request["ExclusiveStartKey"].as_object() {
            if start.keys().map(String::as_str).collect::<BTreeSet<_>>() != index.position() {
                return Err(invalid("ExclusiveStartKey is not a position in this index"));
            }
            let order = if is_forward { Ordering::Greater } else { Ordering::Less };
            found.retain(|item| index.compare(item, start) == order);
        }
        let limit = request["Limit"].as_u64().map_or(MAX_PAGE, |limit| usize::try_from(limit).unwrap_or(MAX_PAGE));
        let page = &found[..found.len().min(limit).min(MAX_PAGE)];
        let kept = |names: &BTreeSet<&str>, item: &Item| -> Item {
            item.iter()
                .filter(|(name, _)| names.contains(name.as_str()))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        let projected: Option<BTreeSet<&str>> = match request["ProjectionExpression"].as_str() {
            Some(names) => Some(names.split(',').map(str::trim).collect()),
            None if index.keys_only => Some(index.position()),
            None => None,
        };
        let items: Vec<Item> = page
            .iter()
            .map(|item| projected.as_ref().map_or_else(|| (*item).clone(), |names| kept(names, item)))
            .collect();
        let mut result = json!({"Items": items, "Count": items.len(), "ScannedCount": items.len()});
        // DynamoDB names the last key whenever it stopped at a limit, even if nothing follows.
        if let Some(last) = page.last().filter(|_| page.len() == limit.min(MAX_PAGE)) {
            result["LastEvaluatedKey"] = Value::Object(kept(&index.position(), last));
        }
        Ok(result)
    }

    fn batch_get(&self, request: &Value) -> Served {
        only(request, &["RequestItems"])?;
        only(&request["RequestItems"], &[TABLE])?;
        let table = &request["RequestItems"][TABLE];
        only(table, &["Keys", "ConsistentRead", "ProjectionExpression"])?;
        let wanted = table["ProjectionExpression"].as_str().map(|names| names.split(", ").collect::<BTreeSet<_>>());
        let is_wanted = |name: &str| wanted.as_ref().is_none_or(|wanted| wanted.contains(name));
        let keys: Vec<Key> = list(table, "Keys")?.iter().map(exact_key).collect::<Served<_>>()?;
        let distinct: BTreeSet<&Key> = keys.iter().collect();
        if keys.is_empty() || keys.len() > MAX_BATCH || distinct.len() < keys.len() {
            return Err(invalid(format!("a batch of {} keys, {} of them distinct", keys.len(), distinct.len())));
        }
        let shown = |item: &Item| -> Item {
            item.iter().filter(|(name, _)| is_wanted(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        let items: Vec<Item> = keys.iter().filter_map(|key| self.items.get(key)).map(shown).collect();
        Ok(json!({"Responses": {TABLE: items}, "UnprocessedKeys": {}}))
    }
}

pub(crate) const NAMES: &str = "ExpressionAttributeNames";
pub(crate) const VALUES: &str = "ExpressionAttributeValues";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Defects;

    fn account() -> Account {
        let mut account = Account::new(|| Timestamp::UNIX_EPOCH, Defects::default());
        for number in 0..5 {
            let item = json!({"pk": {"S": format!("TENANT#{number}")}, "sk": {"S": "PROFILE"},
                              "listing": {"S": "tenants"}, "listed_at": {"S": format!("2026-01-0{}", 5 - number)}});
            account.call("PutItem", &json!({"TableName": TABLE, "Item": item}), false).unwrap();
        }
        account
    }

    #[test]
    fn pages_of_an_index_follow_its_order_in_both_directions() {
        let mut account = account();
        for (forward, expected) in [(true, ["4", "3", "2", "1", "0"]), (false, ["0", "1", "2", "3", "4"])] {
            let mut query = json!({"TableName": TABLE, "IndexName": "listing", "Limit": 2, "ScanIndexForward": forward,
                                   "KeyConditionExpression": "listing = :l",
                                   "ExpressionAttributeValues": {":l": {"S": "tenants"}}});
            let mut found = Vec::new();
            loop {
                let page = account.call("Query", &query, false).unwrap();
                let items = page["Items"].as_array().unwrap();
                found.extend(items.iter().map(|item| item["pk"]["S"].as_str().unwrap()[7..].to_owned()));
                if page["LastEvaluatedKey"].is_null() {
                    break;
                }
                query["ExclusiveStartKey"] = page["LastEvaluatedKey"].clone();
            }
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn requests_that_dynamodb_refuses_are_refused() {
        let mut account = account();
        let key = |pk: &str| json!({"pk": {"S": pk}, "sk": {"S": "x"}});
        let batch = |keys: Vec<Value>| json!({"RequestItems": {TABLE: {"Keys": keys}}});
        for (operation, request) in [
            ("GetItem", json!({"TableName": "another", "Key": key("a")})),
            ("GetItem", json!({"TableName": TABLE, "Key": key("")})),
            ("GetItem", json!({"TableName": TABLE, "Key": key("a"), "AttributesToGet": ["pk"]})),
            (
                "PutItem",
                json!({"TableName": TABLE, "Item": {"pk": {"S": "a"}, "sk": {"S": "x"}, "due_at": {"S": "1"}}}),
            ),
            ("Query", json!({"TableName": TABLE, "IndexName": "none", "KeyConditionExpression": "pk = pk"})),
            ("BatchGetItem", batch(vec![])),
            ("BatchGetItem", batch(vec![key("a"), key("a")])),
            ("BatchGetItem", batch((0..101).map(|number| key(&number.to_string())).collect())),
            ("Scan", json!({"TableName": TABLE})),
        ] {
            assert!(account.call(operation, &request, false).is_err(), "{operation} {request}");
        }
        let condition = json!({"TableName": TABLE, "Item": key("a"), "ConditionExpression": "attribute_exists(pk)"});
        assert_eq!(account.call("PutItem", &condition, false), Err(failed_condition()));
    }
}
