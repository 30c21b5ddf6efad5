//! Findings against the official schema of the OCSF release.

use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::Value;

const SCHEMA: &str = include_str!("../../shared/src/incident/ocsf/fixtures/incident_finding-1.8.0.schema.json");

/// Asserts that an event is a valid Incident Finding.
pub(crate) fn assert_valid(event: &Value) {
    static VALIDATOR: LazyLock<Validator> =
        LazyLock::new(|| jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap());
    let errors: Vec<String> =
        VALIDATOR.iter_errors(event).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}
