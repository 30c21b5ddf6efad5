//! What a newer release has stored, carried over by one that does not read it.

use aws_sdk_dynamodb::types::AttributeValue;

use super::table::Item;

/// The item to store in place of `stored`: with what changed between `before` and `after`, which are all that this release
/// reads and writes of it. Attributes of a newer release stay, and so do words of it that did not change.
pub(super) fn carry_over(mut stored: Item, before: &Item, after: Item) -> Item {
    stored.retain(|name, _| !before.contains_key(name) || after.contains_key(name));
    for (name, value) in after {
        let read = before.get(&name);
        if read != Some(&value) {
            let carried = carry_over_value(stored.get(&name), read, value);
            stored.insert(name, carried);
        }
    }
    stored
}

/// As [`carry_over`], for one changed value.
pub(super) fn carry_over_value(
    stored: Option<&AttributeValue>,
    before: Option<&AttributeValue>,
    after: AttributeValue,
) -> AttributeValue {
    use AttributeValue::{L, M};
    match (stored, before, after) {
        (Some(M(stored)), Some(M(before)), M(after)) => M(carry_over(stored.clone(), before, after)),
        (Some(L(stored)), Some(L(before)), L(after)) => L(after
            .into_iter()
            .map(|value| {
                let unchanged = before.iter().position(|read| *read == value);
                unchanged.and_then(|at| stored.get(at).cloned()).unwrap_or(value)
            })
            .collect()),
        (_, _, after) => after,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::registry::table::to_item;

    fn item(value: &Value) -> Item {
        to_item(value).unwrap()
    }

    #[test]
    fn what_this_release_does_not_read_is_carried_over() {
        let stored = json!({
            "status": "suspended", "later": {"a": [1]}, "gone": 1, "plain": 1,
            "inner": {"at": 1, "later": "x"},
            "list": [{"to": "active", "later": 1}, {"to": "suspended", "later": 2}],
        });
        let before = json!({
            "status": "unknown", "gone": 1, "plain": 1, "inner": {"at": 1}, "absent": null,
            "list": [{"to": "active"}, {"to": "unknown"}],
        });
        let after = json!({
            "status": "unknown", "plain": 2, "inner": {"at": 2}, "absent": null,
            "list": [{"to": "unknown"}, {"to": "paused"}],
        });
        let expected = json!({
            "status": "suspended", "later": {"a": [1]}, "plain": 2,
            "inner": {"at": 2, "later": "x"},
            "list": [{"to": "suspended", "later": 2}, {"to": "paused"}],
        });
        assert_eq!(carry_over(item(&stored), &item(&before), item(&after)), item(&expected));
        assert_eq!(carry_over(item(&stored), &item(&before), item(&before)), item(&stored), "nothing changed");
    }
}
