//! DynamoDB's capacity units, reckoned from the requests and answers that went over the wire: moto does not know them.
//!
//! Reads cost a unit for 4 KB begun, half if eventually consistent; writes a unit for 1 KB begun of the larger of the item
//! before and after. <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/read-write-operations.html>
//!
//! An index entry that gets another key costs two writes: the old one goes, a new one comes.
//! <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/GSI.html>

use std::collections::HashMap;

use serde_json::{Map, Value};

const READ_UNIT: usize = 4096;
const WRITE_UNIT: usize = 1024;

/// The keys of the index `due`, which holds nothing but keys; its entries never reach 1 KB.
const DUE_KEYS: [&str; 2] = ["due_at", "due_shard"];
/// The key of the index `listing`, which holds whole items.
const LISTING_KEY: &str = "listing";

/// What a call cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Units {
    /// Read request units.
    pub read: f64,
    /// Write request units, those of indexes included.
    pub write: f64,
}

/// Reckons, and remembers how large the items are that an answer did not show.
#[derive(Debug, Default)]
pub struct Capacity {
    sizes: HashMap<String, usize>,
}

impl Capacity {
    /// What a call cost. `succeeded` is false where DynamoDB refused it; a write whose condition fails costs what it would
    /// have cost, without the indexes.
    pub fn of(&mut self, operation: &str, request: &Value, answer: &Value, succeeded: bool) -> Units {
        match operation {
            "GetItem" => {
                let item = &answer["Item"];
                self.remember(item);
                read(rounded(size(item), READ_UNIT), is_consistent(request))
            }
            "BatchGetItem" => {
                let mut units = Units::default();
                for (table, items) in answer["Responses"].as_object().into_iter().flatten() {
                    let asked = &request["RequestItems"][table];
                    let number = asked["Keys"].as_array().map_or(0, Vec::len);
                    let items = items.as_array().map(Vec::as_slice).unwrap_or_default();
                    // A key without an item costs as much as a small one.
                    let found: usize = items.iter().map(|item| rounded(size(item), READ_UNIT)).sum();
                    units.read += read(found + number.saturating_sub(items.len()), is_consistent(asked)).read;
                }
                units
            }
            "Query" => {
                let items = answer["Items"].as_array().map(Vec::as_slice).unwrap_or_default();
                read(rounded(items.iter().map(size).sum(), READ_UNIT), is_consistent(request))
            }
            "PutItem" => {
                let item = &request["Item"];
                let before = self.known(item);
                let table = rounded(size(item).max(before), WRITE_UNIT);
                if !succeeded {
                    return write(table);
                }
                self.remember(item);
                let index = if item[LISTING_KEY].is_null() { 0 } else { rounded(size(item), WRITE_UNIT) };
                write(table + index)
            }
            "UpdateItem" => {
                let before = self.known(&request["Key"]);
                let shown = size(&answer["Attributes"]);
                let after = if shown > 0 { shown } else { before.max(size(&request["Key"])) };
                let table = rounded(before.max(after), WRITE_UNIT);
                if !succeeded {
                    return write(table);
                }
                self.remember(&answer["Attributes"]);
                write(table + due_entries(request["UpdateExpression"].as_str().unwrap_or_default()))
            }
            "DeleteItem" => write(rounded(self.known(&request["Key"]), WRITE_UNIT)),
            _ => Units::default(),
        }
    }

    fn known(&self, item: &Value) -> usize {
        self.sizes.get(&key_of(item)).copied().unwrap_or_default()
    }

    fn remember(&mut self, item: &Value) {
        if !item["pk"].is_null() {
            self.sizes.insert(key_of(item), size(item));
        }
    }
}

/// What names an item, of its keys or of the whole of it.
pub fn key_of(item: &Value) -> String {
    let text = |name: &str| item[name]["S"].as_str().unwrap_or_default();
    format!("{} {}", text("pk"), text("sk"))
}

/// How many entries of the index `due` an update writes.
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

/// Units begun; the least is one.
fn rounded(size: usize, unit: usize) -> usize {
    size.div_ceil(unit).max(1)
}

fn read(units: usize, consistent: bool) -> Units {
    let units = crate::counts::float(units);
    Units { read: if consistent { units } else { units / 2.0 }, write: 0.0 }
}

fn write(units: usize) -> Units {
    Units { read: 0.0, write: crate::counts::float(units) }
}

/// The size of an item in DynamoDB's JSON: names and values.
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
    fn an_item_is_as_large_as_its_names_and_values() {
        assert_eq!(size(&item(100)), 100);
        assert_eq!(size(&json!({"due_at": {"N": "1795387815123"}})), 6 + 8);
        assert_eq!(size(&json!({"a": {"NULL": true}, "b": {"BOOL": false}})), 4);
        assert_eq!(size(&json!({"l": {"L": [{"S": "ab"}]}, "m": {"M": {"k": {"S": "v"}}}})), 1 + 6 + 1 + 6);
        assert_eq!(size(&Value::Null), 0);
    }

    #[test]
    fn reads_cost_by_four_kilobytes_and_half_where_they_may_be_old() {
        let mut capacity = Capacity::default();
        let mut get = |bytes, consistent| {
            capacity.of("GetItem", &json!({"ConsistentRead": consistent}), &json!({"Item": item(bytes)}), true)
        };
        assert_eq!(get(4096, true), units(1.0, 0.0));
        assert_eq!(get(4097, true), units(2.0, 0.0));
        assert_eq!(get(4097, false), units(1.0, 0.0));
        assert_eq!(capacity.of("GetItem", &json!({"ConsistentRead": true}), &json!({}), true), units(1.0, 0.0));
        let page = json!({"Items": [item(3000), item(3000)]});
        assert_eq!(capacity.of("Query", &json!({}), &page, true), units(1.0, 0.0));
        let request = json!({"RequestItems": {"t": {"Keys": [1, 2, 3], "ConsistentRead": true}}});
        let answer = json!({"Responses": {"t": [item(3000), item(5000)]}});
        assert_eq!(capacity.of("BatchGetItem", &request, &answer, true), units(4.0, 0.0));
    }

    #[test]
    fn writes_cost_by_the_larger_item_and_by_the_index_entries_that_move() {
        let mut capacity = Capacity::default();
        let update =
            |expression: &str| json!({"Key": {"pk": {"S": "T"}, "sk": {"S": "F"}}, "UpdateExpression": expression});
        assert_eq!(capacity.of("UpdateItem", &update("SET x = :x"), &json!({}), true), units(0.0, 1.0));
        let shown = json!({"Attributes": item(1500)});
        assert_eq!(capacity.of("UpdateItem", &update("SET x = :x"), &shown, true), units(0.0, 2.0));
        assert_eq!(capacity.of("UpdateItem", &update("SET due_at = :next"), &json!({}), true), units(0.0, 4.0));
        assert_eq!(capacity.of("UpdateItem", &update("SET due_at = :next"), &json!({}), false), units(0.0, 2.0));
        assert_eq!(capacity.of("UpdateItem", &update("REMOVE due_shard, due_at"), &json!({}), true), units(0.0, 3.0));
        let mut listed = item(900);
        listed["listing"] = json!({"S": "tenants"});
        assert_eq!(capacity.of("PutItem", &json!({"Item": listed}), &json!({}), true), units(0.0, 3.0));
    }
}
