//! DynamoDB's capacity units, computed from requests and responses, because no local AWS reports them.
//!
//! A read costs one unit for each started 4 KB, or half a unit if it is eventually consistent. A write costs one unit for
//! each started 1 KB of the item before or after the write, whichever is larger. <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/read-write-operations.html>
//!
//! A changed key in an index costs two writes: one deletes the old entry, one adds the new entry.
//! <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/GSI.html>

use std::collections::HashMap;

use serde_json::{Map, Value};

const READ_UNIT: usize = 4096;
const WRITE_UNIT: usize = 1024;

/// The key attributes of the index `due`. It projects only keys, so that its entries are smaller than 1 KB.
const DUE_KEYS: [&str; 2] = ["due_at", "due_shard"];
/// The partition key of the index `listing`. It projects whole items.
const LISTING_KEY: &str = "listing";

/// The capacity units of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Units {
    /// Read request units; a half is possible.
    pub read: f64,
    /// Write request units, including those of the indexes.
    pub write: f64,
}

/// The result of a call to DynamoDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// DynamoDB carried out the call.
    Accepted,
    /// DynamoDB returned an error, such as a failed condition.
    Refused,
}

/// Computes capacity units. Stores the sizes of items, because the responses to most writes do not contain the item.
#[derive(Debug, Default)]
pub struct Capacity {
    sizes: HashMap<String, usize>,
}

impl Capacity {
    /// Returns the units of a call. A refused write costs the same as an accepted one, but nothing for the indexes.
    pub fn of(&mut self, operation: &str, request: &Value, response: &Value, outcome: Outcome) -> Units {
        match operation {
            "GetItem" => {
                let item = &response["Item"];
                self.store_size(item);
                read(units_of(size(item), READ_UNIT), is_consistent(request))
            }
            "BatchGetItem" => {
                let mut units = Units::default();
                for (table, items) in response["Responses"].as_object().into_iter().flatten() {
                    let requested = &request["RequestItems"][table];
                    let number = requested["Keys"].as_array().map_or(0, Vec::len);
                    let items = items.as_array().map(Vec::as_slice).unwrap_or_default();
                    // A key without an item costs as much as one with a small item.
                    let found: usize = items.iter().map(|item| units_of(size(item), READ_UNIT)).sum();
                    units.read += read(found + number.saturating_sub(items.len()), is_consistent(requested)).read;
                }
                units
            }
            "Query" => {
                let items = response["Items"].as_array().map(Vec::as_slice).unwrap_or_default();
                read(units_of(items.iter().map(size).sum(), READ_UNIT), is_consistent(request))
            }
            "PutItem" => {
                let item = &request["Item"];
                let before = self.known_size(item);
                let table = units_of(size(item).max(before), WRITE_UNIT);
                if outcome == Outcome::Refused {
                    return write(table);
                }
                self.store_size(item);
                let index = if item[LISTING_KEY].is_null() { 0 } else { units_of(size(item), WRITE_UNIT) };
                write(table + index)
            }
            "UpdateItem" => {
                let before = self.known_size(&request["Key"]);
                let returned = size(&response["Attributes"]);
                let after = if returned > 0 { returned } else { before.max(size(&request["Key"])) };
                let table = units_of(before.max(after), WRITE_UNIT);
                if outcome == Outcome::Refused {
                    return write(table);
                }
                self.store_size(&response["Attributes"]);
                write(table + due_entries(request["UpdateExpression"].as_str().unwrap_or_default()))
            }
            // Each write of a transaction costs twice.
            "TransactWriteItems" => {
                let items = request["TransactItems"].as_array().map(Vec::as_slice).unwrap_or_default();
                let units =
                    items.iter().map(|item| self.of("UpdateItem", &item["Update"], &Value::Null, outcome).write);
                Units { read: 0.0, write: 2.0 * units.sum::<f64>() }
            }
            "DeleteItem" => write(units_of(self.known_size(&request["Key"]), WRITE_UNIT)),
            _ => Units::default(),
        }
    }

    /// Returns the last known size of an item in bytes; 0 if it was never seen.
    fn known_size(&self, item: &Value) -> usize {
        self.sizes.get(&key_of(item)).copied().unwrap_or_default()
    }

    fn store_size(&mut self, item: &Value) {
        if !item["pk"].is_null() {
            self.sizes.insert(key_of(item), size(item));
        }
    }
}

/// Returns an identifier of an item, made of its two key attributes.
fn key_of(item: &Value) -> String {
    let text = |name: &str| item[name]["S"].as_str().unwrap_or_default();
    format!("{} {}", text("pk"), text("sk"))
}

/// Returns the number of writes to the index `due` that an update causes.
fn due_entries(expression: &str) -> usize {
    if !DUE_KEYS.iter().any(|key| expression.contains(key)) {
        0
    } else if expression.contains("REMOVE due_shard") {
        1
    } else {
        2
    }
}

fn is_consistent(request: &Value) -> bool {
    request["ConsistentRead"].as_bool().unwrap_or_default()
}

/// Returns the number of started units, at least one.
fn units_of(size: usize, unit: usize) -> usize {
    size.div_ceil(unit).max(1)
}

fn read(units: usize, consistent: bool) -> Units {
    let units = crate::counts::float(units);
    Units { read: if consistent { units } else { units / 2.0 }, write: 0.0 }
}

fn write(units: usize) -> Units {
    Units { read: 0.0, write: crate::counts::float(units) }
}

/// Returns the size in bytes of an item in DynamoDB's JSON: its names and values.
/// <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html>
pub fn size(item: &Value) -> usize {
    item.as_object().map_or(0, size_of_members)
}

fn size_of_members(members: &Map<String, Value>) -> usize {
    members.iter().map(|(name, value)| name.len() + size_of_value(value)).sum()
}

fn size_of_value(value: &Value) -> usize {
    let Some((kind, value)) = value.as_object().and_then(|typed| typed.iter().next()) else { return 0 };
    match (kind.as_str(), value) {
        ("S", Value::String(text)) => text.len(),
        ("N", Value::String(digits)) => digits.trim_matches('0').len().div_ceil(2) + 1,
        ("SS" | "NS", Value::Array(members)) => members.iter().filter_map(Value::as_str).map(str::len).sum(),
        ("L", Value::Array(members)) => 3 + members.iter().map(|member| 1 + size_of_value(member)).sum::<usize>(),
        ("M", Value::Object(members)) => 3 + members.len() + size_of_members(members),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn units(read: f64, write: f64) -> Units {
        Units { read, write }
    }

    fn item(bytes: usize) -> Value {
        json!({"pk": {"S": "T"}, "sk": {"S": "F"}, "x": {"S": "x".repeat(bytes - 7)}})
    }

    #[test]
    fn item_size_is_that_of_names_and_values() {
        assert_eq!(size(&item(100)), 100);
        assert_eq!(size(&json!({"due_at": {"N": "1795387815123"}})), 6 + 8);
        assert_eq!(size(&json!({"a": {"NULL": true}, "b": {"BOOL": false}})), 4);
        assert_eq!(size(&json!({"l": {"L": [{"S": "ab"}]}, "m": {"M": {"k": {"S": "v"}}}})), 1 + 6 + 1 + 6);
        assert_eq!(size(&Value::Null), 0);
    }

    #[test]
    fn reads_cost_per_4_kb_and_half_if_eventually_consistent() {
        let mut capacity = Capacity::default();
        let mut get = |bytes, consistent| {
            capacity.of(
                "GetItem",
                &json!({"ConsistentRead": consistent}),
                &json!({"Item": item(bytes)}),
                Outcome::Accepted,
            )
        };
        assert_eq!(get(4096, true), units(1.0, 0.0));
        assert_eq!(get(4097, true), units(2.0, 0.0));
        assert_eq!(get(4097, false), units(1.0, 0.0));
        assert_eq!(
            capacity.of("GetItem", &json!({"ConsistentRead": true}), &json!({}), Outcome::Accepted),
            units(1.0, 0.0)
        );
        let page = json!({"Items": [item(3000), item(3000)]});
        assert_eq!(capacity.of("Query", &json!({}), &page, Outcome::Accepted), units(1.0, 0.0));
        let request = json!({"RequestItems": {"t": {"Keys": [1, 2, 3], "ConsistentRead": true}}});
        let response = json!({"Responses": {"t": [item(3000), item(5000)]}});
        assert_eq!(capacity.of("BatchGetItem", &request, &response, Outcome::Accepted), units(4.0, 0.0));
    }

    #[test]
    fn writes_cost_by_the_larger_item_and_the_index_entries() {
        let mut capacity = Capacity::default();
        let update =
            |expression: &str| json!({"Key": {"pk": {"S": "T"}, "sk": {"S": "F"}}, "UpdateExpression": expression});
        assert_eq!(capacity.of("UpdateItem", &update("SET x = :x"), &json!({}), Outcome::Accepted), units(0.0, 1.0));
        let shown = json!({"Attributes": item(1500)});
        assert_eq!(capacity.of("UpdateItem", &update("SET x = :x"), &shown, Outcome::Accepted), units(0.0, 2.0));
        assert_eq!(
            capacity.of("UpdateItem", &update("SET due_at = :next"), &json!({}), Outcome::Accepted),
            units(0.0, 4.0)
        );
        assert_eq!(
            capacity.of("UpdateItem", &update("SET due_at = :next"), &json!({}), Outcome::Refused),
            units(0.0, 2.0)
        );
        assert_eq!(
            capacity.of("UpdateItem", &update("REMOVE due_shard, due_at"), &json!({}), Outcome::Accepted),
            units(0.0, 3.0)
        );
        let mut listed = item(900);
        listed["listing"] = json!({"S": "tenants"});
        assert_eq!(capacity.of("PutItem", &json!({"Item": listed}), &json!({}), Outcome::Accepted), units(0.0, 3.0));
    }
}
