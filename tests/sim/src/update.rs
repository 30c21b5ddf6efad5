//! The body of an update, checked property by property.

use serde_json::{Map, Value};

use crate::{caller::Caller, http::Request, world::World};

/// Parses the body of an update: a JSON object with known properties only. The error is the message of a 400.
pub(crate) fn parse_update(request: &Request, known: &[&str]) -> Result<Map<String, Value>, String> {
    if request.media_type() != "application/json" {
        return Err("Write requests (excluding DELETE) must contain the Content-Type header declaration.".to_owned());
    }
    let Some(Value::Object(body)) = request.json() else {
        return Err("Unable to read JSON request payload. Please ensure Content-Type header is set and payload is of valid JSON format.".to_owned());
    };
    if let Some(name) = body.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(format!(
            "The property '{name}' does not exist on type 'microsoft.graph.security.incident' or cannot be changed."
        ));
    }
    if body.is_empty() {
        return Err("The request has no property to change.".to_owned());
    }
    Ok(body)
}

/// A string property of an update. If `values` is not empty, it lists the allowed ones.
pub(crate) fn string_property(
    body: &Map<String, Value>,
    name: &str,
    values: &[&str],
) -> Result<Option<String>, String> {
    match body.get(name) {
        None => Ok(None),
        Some(Value::String(value)) if values.is_empty() || values.contains(&value.as_str()) => Ok(Some(value.clone())),
        Some(other) => Err(format!("Invalid value {other} for '{name}'.")),
    }
}

/// The effect of an update on a property that may be null.
pub(crate) enum PropertyChange {
    Keep,
    Clear,
    Set(String),
}

impl PropertyChange {
    /// Applies the change to a field.
    pub(crate) fn apply(self, field: &mut Option<String>) {
        match self {
            Self::Keep => {}
            Self::Clear => *field = None,
            Self::Set(value) => *field = Some(value),
        }
    }

    /// Turns an empty string into [`PropertyChange::Clear`].
    pub(crate) fn empty_clears(self) -> Self {
        match self {
            Self::Set(value) if value.is_empty() => Self::Clear,
            other => other,
        }
    }
}

/// A string property of an update that may be null.
pub(crate) fn nullable_property(body: &Map<String, Value>, name: &str) -> Result<PropertyChange, String> {
    match body.get(name) {
        None => Ok(PropertyChange::Keep),
        Some(Value::Null) => Ok(PropertyChange::Clear),
        Some(Value::String(value)) => Ok(PropertyChange::Set(value.clone())),
        Some(other) => Err(format!("Invalid value {other} for '{name}'.")),
    }
}

/// A property of an update that is a list of strings.
pub(crate) fn string_list(body: &Map<String, Value>, name: &str) -> Result<Option<Vec<String>>, String> {
    let Some(value) = body.get(name) else { return Ok(None) };
    let invalid = || format!("Invalid value {value} for '{name}'.");
    let items = value.as_array().ok_or_else(invalid)?;
    items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(invalid)).collect::<Result<_, _>>().map(Some)
}

/// Sets a field if there is a value for it.
pub(crate) fn set_if_some<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// The name under which Microsoft records an app's changes.
pub(crate) fn editor_name(world: &World, caller: &Caller) -> String {
    let name = world.apps.get(&caller.client_id).map_or(caller.client_id.as_str(), |record| &record.app.display_name);
    format!("API-App:{name}")
}
