//! Items that a newer release has stored, and this one changes: what the newer one added stays.
//!
//! A canary runs both releases on one table, and a rollback goes back to the older one. The tests are in the folders of the
//! flows that change the items.

use serde_json::{Value, json};

pub(crate) type Items = serde_json::Map<String, Value>;

/// What the newer release stores beside everything else, and its number.
pub(crate) fn later() -> Value {
    json!({"M": {"since": {"S": "2027"}, "parts": {"L": [{"N": "1"}]}}})
}

/// Makes all items those of a newer release, also inside what they nest.
pub(crate) fn upgrade(double: &aws_double::Aws) -> usize {
    let mut account = double.account();
    let keys: Vec<(String, String)> = account.items("").into_iter().map(key).collect();
    for (pk, sk) in &keys {
        let item = account.item_mut(pk, sk).unwrap();
        for nested in ["verification", "stage", "last_sweep"] {
            if let Some(inner) = item.get_mut(nested).and_then(|value| value.get_mut("M")) {
                inner["later"] = later();
            }
        }
        item.insert("later".into(), later());
        item.insert("schema".into(), json!({"N": "2"}));
    }
    keys.len()
}

pub(crate) fn key(item: &Items) -> (String, String) {
    let part = |name: &str| item[name]["S"].as_str().unwrap().to_owned();
    (part("pk"), part("sk"))
}

pub(crate) fn item(double: &aws_double::Aws, pk: &str, sk: &str) -> Items {
    double.account().item_mut(pk, sk).unwrap_or_else(|| panic!("{pk} {sk}")).clone()
}

/// Every item has a number, and those that were upgraded still have all of the newer release.
pub(crate) fn assert_kept(double: &aws_double::Aws, upgraded: usize) {
    let account = double.account();
    let items = account.items("");
    let numbers = |number: &str| items.iter().filter(|item| item["schema"] == json!({"N": number})).count();
    let bare: Vec<_> = items.iter().filter(|item| !item.contains_key("schema")).map(|item| key(item)).collect();
    assert!(bare.is_empty(), "without a number: {bare:?}");
    assert_eq!(numbers("2"), upgraded, "{items:#?}");
    for item in items.iter().filter(|item| item["schema"] == json!({"N": "2"})) {
        assert_eq!(item["later"], later(), "{:?}", key(item));
    }
}
