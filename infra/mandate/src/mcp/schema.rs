//! The JSON Schemas of the tools, made of the types of `infra/openapi.json`.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::tools::{DEFAULT_ITEMS, MAX_ITEMS, MAX_QUERY_CHARACTERS};

static COMPONENTS: LazyLock<Value> = LazyLock::new(|| {
    let description: Value = serde_json::from_str(include_str!("../../../openapi.json")).unwrap_or_default();
    description["components"].clone()
});

/// A type of the API, with the types that it refers to in their places.
fn of_type(name: &str) -> Value {
    resolved(&COMPONENTS["schemas"][name])
}

/// The type of a parameter of the API.
fn of_parameter(name: &str) -> Value {
    resolved(&COMPONENTS["parameters"][name]["schema"])
}

/// A member of a type of the API.
fn member(type_name: &str, name: &str) -> Value {
    resolved(&COMPONENTS["schemas"][type_name]["properties"][name])
}

fn resolved(schema: &Value) -> Value {
    match schema {
        Value::Object(members) => {
            let mut whole = match members.get("$ref").and_then(Value::as_str) {
                Some(target) => match resolved(target_of(target)) {
                    Value::Object(target) => target,
                    _ => Map::new(),
                },
                None => Map::new(),
            };
            // What stands beside a reference, as a description, is about this place.
            for (name, value) in members.iter().filter(|(name, _)| !["$ref", "examples"].contains(&name.as_str())) {
                whole.insert(name.clone(), resolved(value));
            }
            Value::Object(whole)
        }
        Value::Array(items) => items.iter().map(resolved).collect(),
        plain => plain.clone(),
    }
}

/// The type that a reference names.
fn target_of(reference: &str) -> &'static Value {
    static NONE: Value = Value::Null;
    let pointer = reference.strip_prefix("#/components").unwrap_or_default();
    COMPONENTS.pointer(pointer).unwrap_or(&NONE)
}

fn described(mut schema: Value, description: &str) -> Value {
    schema["description"] = json!(description);
    schema
}

fn or_null(schema: &Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

fn object(properties: &Value) -> Value {
    let required: Vec<_> = properties.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    json!({"type": "object", "properties": properties, "required": required})
}

fn list(items: &Value) -> Value {
    json!({"type": "array", "items": items})
}

/// The type of a tool's arguments.
pub(super) fn arguments(required: &[&str], optional: &[&str]) -> Value {
    let properties: Map<_, _> = required
        .iter()
        .chain(optional)
        .map(|name| match *name {
            "incident_status" => ("status".to_owned(), argument(name)),
            name => (name.to_owned(), argument(name)),
        })
        .collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

fn argument(name: &str) -> Value {
    match name {
        "tenant_id" => described(of_type("TenantId"), "The tenant, as list_tenants names it."),
        "tenants" => described(list(&of_type("TenantId")), "Default: all active ones."),
        "incident_id" => of_parameter("IncidentIdInPath"),
        "hunt_id" => described(of_parameter("HuntIdInPath"), "As start_hunt returned it."),
        "status" => of_parameter("TenantStatus"),
        "incident_status" => of_parameter("IncidentStatus"),
        "severity" => of_parameter("Severity"),
        "since" => json!({"type": "string", "description": "7d (ago) or 2026-11-22T10:00:00Z. Default: 24h."}),
        "timespan" => {
            json!({"type": "string", "description": "How far back: 7d, 12h or P7D. Default: Microsoft's 30 days."})
        }
        "query" => {
            let mut query = described(member("HuntRequest", "query"), "KQL.");
            query["maxLength"] = json!(MAX_QUERY_CHARACTERS);
            query
        }
        "limit" => json!({"type": "integer", "minimum": 1, "maximum": MAX_ITEMS, "default": DEFAULT_ITEMS}),
        _ => json!({"type": "string", "description": "The `next` of the result before."}),
    }
}

/// The type of a tool's result with these members.
fn result(mut members: Value) -> Value {
    members["next"] = json!({"type": ["string", "null"], "description": "Null: there is no more."});
    members["notice"] = json!({"type": "string"});
    object(&members)
}

/// A Tenant whose texts from outside are in `outside`.
fn tenant() -> Value {
    let mut tenant = of_type("Tenant");
    let moved = ["customer", "consented_by"];
    if let Some(properties) = tenant["properties"].as_object_mut() {
        properties.retain(|name, _| !moved.contains(&name.as_str()));
    }
    if let Some(required) = tenant["required"].as_array_mut() {
        required.retain(|name| name.as_str().is_some_and(|name| !moved.contains(&name)));
    }
    tenant["properties"]["what_to_do"] = json!({"type": ["string", "null"]});
    tenant["properties"]["outside"] =
        object(&json!({"customer": {"type": ["string", "null"]}, "consented_by": {"type": ["string", "null"]}}));
    tenant
}

fn incident() -> Value {
    let word = json!({"type": ["string", "null"]});
    object(&json!({
        "tenant_id": of_type("TenantId"),
        "incident_id": member("Incident", "incident_id"),
        "last_updated": member("Incident", "last_updated"),
        "severity": word,
        "status": word,
        "classification": word,
        "determination": word,
        "alerts": {"type": ["integer", "null"], "minimum": 0},
        "outside": {"type": "object", "required": ["title", "assigned_to", "tags", "url"]},
    }))
}

pub(super) fn tenant_list() -> Value {
    result(json!({"tenants": list(&tenant())}))
}

pub(super) fn one_tenant() -> Value {
    result(json!({"tenant": tenant()}))
}

pub(super) fn incident_list() -> Value {
    result(json!({"incidents": list(&incident()), "failures": list(&of_type("Failure"))}))
}

pub(super) fn one_incident() -> Value {
    let word = json!({"type": ["string", "null"]});
    let outside = json!({"type": "object", "required": ["title", "first_activity", "evidence"]});
    let alert = object(&json!({"severity": word, "status": word, "source": word, "outside": outside}));
    result(json!({"incident": incident(), "alerts": list(&alert)}))
}

pub(super) fn hunt() -> Value {
    let row = object(&json!({"tenant_id": of_type("TenantId"), "outside": {"type": "object"}}));
    let number = |name: &str| or_null(&member("Hunt", name));
    result(json!({
        "hunt_id": or_null(&member("Hunt", "hunt_id")),
        "status": member("Hunt", "status"),
        "tenants_total": number("tenants_total"),
        "tenants_done": number("tenants_done"),
        "rows_total": number("rows"),
        "rows": list(&row),
        "truncated": or_null(&member("Hunt", "truncated")),
        "too_large": {"type": "boolean", "description": "The table is only in the bucket."},
        "failures": list(&of_type("Failure")),
    }))
}

pub(super) fn completeness() -> Value {
    let of_tenant = |name: &str| member("Tenant", name);
    let tenant = object(&json!({
        "tenant_id": of_tenant("tenant_id"),
        "status": of_tenant("status"),
        "reason": of_tenant("reason"),
        "covered_until": of_tenant("covered_until"),
        "lag_seconds": of_tenant("lag_seconds"),
        "delivered": of_tenant("incidents_total"),
        "quarantined": of_tenant("quarantined"),
        "last_sweep": of_tenant("last_sweep"),
        "meaning": {"type": "string"},
        "what_to_do": {"type": ["string", "null"]},
        "outside": object(&json!({"customer": {"type": "string"}})),
    }));
    result(json!({"tenants": list(&tenant)}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_the_api_are_complete_and_refer_to_nothing() {
        let all = [tenant_list(), one_tenant(), incident_list(), one_incident(), hunt(), completeness()];
        for schema in &all {
            let text = schema.to_string();
            assert!(!text.contains("$ref") && !text.contains(":null"), "{text}");
        }
        let tenant = &all[1]["properties"]["tenant"];
        assert_eq!(tenant["properties"]["status"]["enum"][1], "active");
        assert_eq!(tenant["properties"]["open_incidents"]["properties"]["high"]["type"], "integer");
        assert_eq!(tenant["properties"].get("customer"), None);
        let reason = &tenant["properties"]["reason"]["anyOf"][0]["enum"];
        assert!(reason.as_array().unwrap().contains(&json!("role_missing")), "{reason}");
        assert_eq!(
            arguments(&["tenant_id"], &[])["properties"]["tenant_id"]["pattern"],
            of_type("TenantId")["pattern"]
        );
    }
}
