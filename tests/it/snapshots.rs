//! Snapshots: files under `tests/it/snapshots` with what came out. `INSTA_UPDATE=always cargo test -p it` writes them
//! again; `git diff` then shows the changes.

use serde_json::Value;

/// Compares a text with the snapshot of this name.
pub(crate) fn assert_text(name: &str, text: &str) {
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_snapshot!(name, text);
    });
}

/// Compares a JSON value with the snapshot of this name, without the members at these pointers, which vary.
pub(crate) fn assert_json(name: &str, json: &Value, varying: &[&str]) {
    let mut json = json.clone();
    for pointer in varying {
        *json.pointer_mut(pointer).unwrap() = "[varies]".into();
    }
    assert_text(name, &serde_json::to_string_pretty(&json).unwrap());
}
