//! `infra/openapi.json` as a contract: what the handlers and the stack put out is validated against it.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex},
};

use jsonschema::{Draft, Registry, Resource, Validator};
use serde_json::{Map, Value, json};

const URI: &str = "urn:mandate:openapi";

/// The description, strict: an object has no member that the description does not name.
static API: LazyLock<Value> = LazyLock::new(|| {
    let mut api = serde_json::from_str(include_str!("../../infra/openapi.json")).unwrap();
    make_strict(&mut api);
    api
});

static REGISTRY: LazyLock<Registry<'static>> = LazyLock::new(|| {
    let resource = Resource::from_contents(API.clone());
    Registry::new().draft(Draft::Draft202012).add(URI, resource).unwrap().prepare().unwrap()
});

/// Clients must ignore unknown members, so the description itself allows them.
fn make_strict(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if members.contains_key("properties") && members.get("type") == Some(&json!("object")) {
                members.entry("additionalProperties").or_insert(json!(false));
            }
            members.values_mut().for_each(make_strict);
        }
        Value::Array(items) => items.iter_mut().for_each(make_strict),
        _ => {}
    }
}

/// Asserts that `instance` is valid where the description has a schema at this JSON pointer.
fn assert_at(pointer: &str, instance: &Value) {
    static VALIDATORS: LazyLock<Mutex<HashMap<String, &'static Validator>>> = LazyLock::new(Mutex::default);
    let validator = *VALIDATORS.lock().unwrap().entry(pointer.to_owned()).or_insert_with(|| {
        // A fragment of a URI has no braces.
        let fragment = pointer.replace('{', "%7B").replace('}', "%7D");
        let schema = json!({"$ref": format!("{URI}#{fragment}")});
        let options = jsonschema::options().with_draft(Draft::Draft202012).with_registry(&REGISTRY);
        Box::leak(Box::new(options.build(&schema).unwrap()))
    });
    let wrong: Vec<String> =
        validator.iter_errors(instance).map(|error| format!("{error} at {}", error.instance_path())).collect();
    assert!(wrong.is_empty(), "not as infra/openapi.json describes ({pointer}): {wrong:#?}\n{instance:#}");
}

/// Asserts that `instance` is a component of the description: a delivered line or the detail of an event.
pub(crate) fn assert_component(name: &str, instance: &Value) {
    assert_at(&format!("/components/schemas/{name}"), instance);
}

/// Asserts that a handler's response, in the gateway's form, is one that the description has for the route.
pub(crate) fn assert_answer(event: &Value, answer: &Value) {
    let Some(route) = event["routeKey"].as_str() else { return };
    let content_type = answer["headers"]["content-type"].as_str();
    let status = u16::try_from(answer["statusCode"].as_u64().unwrap()).unwrap();
    assert_response(route, status, content_type, answer["body"].as_str().unwrap_or_default());
}

/// Asserts that a response is one that the description has for the route, for instance `GET /tenants/{tenant_id}`.
/// A route that it does not have must be refused.
pub(crate) fn assert_response(route: &str, status: u16, content_type: Option<&str>, body: &str) {
    let (method, path) = route.split_once(' ').unwrap_or(("", route));
    let method = method.to_lowercase();
    let Some(operation) = API["paths"][path].get(&method) else {
        assert!(matches!(status, 403 | 404), "{route} is not described, but gave {status}: {body}");
        return;
    };
    let mut pointer = format!("/paths/{}/{method}/responses/{status}", path.replace('~', "~0").replace('/', "~1"));
    let mut response = operation["responses"].get(status.to_string());
    if let Some(common) = response.and_then(|response| response["$ref"].as_str()) {
        pointer = common.trim_start_matches('#').to_owned();
        response = API.pointer(&pointer);
    }
    let response = response.unwrap_or_else(|| panic!("{route} gave {status}, which is not described: {body}"));
    let Some(content) = response.get("content") else {
        assert!(body.is_empty(), "{route} gave {status} with a body that is not described: {body}");
        return;
    };
    let media_type = content_type.and_then(|text| text.split(';').next()).unwrap_or_default();
    let described = content.get(media_type);
    let described = described.unwrap_or_else(|| panic!("{route} gave {status} as {media_type}, not described: {body}"));
    if media_type == "text/html" {
        return;
    }
    let body: Value = serde_json::from_str(body).unwrap();
    assert_at(&format!("{pointer}/content/{}/schema", media_type.replace('/', "~1")), &body);
    if media_type == "application/problem+json" {
        let codes: Map<String, Value> = described["examples"].as_object().unwrap().clone();
        let code = body["code"].as_str().unwrap();
        assert!(codes.contains_key(code), "{route} gave {status} with {code}, which is not described");
        assert_eq!(body["status"], status);
    }
}

#[test]
fn each_example_is_valid() {
    let mut checked = 0;
    for (path, operations) in API["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                let Some(content) = response.get("content").and_then(Value::as_object) else { continue };
                for (media_type, described) in content {
                    let body = described["example"].to_string();
                    let route = format!("{} {path}", method.to_uppercase());
                    assert_response(&route, status.parse().unwrap(), Some(media_type), &body);
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 15);
    for (code, example) in API["components"]["examples"].as_object().unwrap() {
        assert_component("Problem", &example["value"]);
        assert_eq!(example["value"]["code"], code.as_str());
    }
    let examples = API["components"]["examples"].as_object().unwrap();
    let codes = API["components"]["schemas"]["Code"]["enum"].as_array().unwrap();
    assert!(codes.iter().all(|code| examples.contains_key(code.as_str().unwrap())) && codes.len() == examples.len());
}

#[test]
fn response_that_is_not_described_is_found() {
    let found = |status, body: &'static str| {
        std::panic::catch_unwind(|| assert_response("GET /invitations", status, Some("application/json"), body))
            .is_err()
    };
    assert!(!found(200, r#"{"invitations": [], "next": null}"#));
    assert!(found(200, r#"{"invitations": []}"#));
    assert!(found(200, r#"{"invitations": [], "next": null, "more": 1}"#));
    assert!(found(201, r#"{"invitations": [], "next": null}"#));
    assert!(found(200, r#"{"invitations": [{"invitation_id": "i"}], "next": null}"#));
}
