//! Graph's app registrations, as far as registration scripts and the rotation of secrets need them.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::{
    application_json::{application_json, apply_properties, password_json_with_secret},
    bad_request, error, forbidden, service_principals,
};
use crate::{
    caller::Caller,
    clock::{guid, random_token},
    http::{Request, Response, decode, decode_pairs},
    store::{App, AppRecord, FederatedCredential, Password, years_after},
    update::nullable_property,
    world::World,
};

const MANAGE_ALL: &[&str] = &["Application.ReadWrite.All"];
const MANAGE_OWNED: &[&str] = &["Application.ReadWrite.OwnedBy", "Application.ReadWrite.All"];

pub(crate) fn respond(world: &mut World, request: &Request, caller: &Caller, first: &str, rest: &[&str]) -> Response {
    let Ok(first) = decode(&first.replace('+', "%2B")) else { return bad_request(world, request, "Bad request path.") };
    let (collection, key) = match first.split_once('(') {
        Some((collection, key)) => (collection, key.strip_suffix(')')),
        None => (first.as_str(), None),
    };
    if !caller.has_any(MANAGE_OWNED) {
        return forbidden(world, request, caller, MANAGE_OWNED);
    }
    let (key, rest) = match (key, rest) {
        (Some(key), rest) => (Some(Key::parse(key)), rest),
        (None, [id, rest @ ..]) => (Some(Some(Key::Object((*id).to_owned()))), rest),
        (None, []) => (None, rest),
    };
    match (collection, key, rest) {
        (_, Some(None), _) => bad_request(world, request, "Invalid key predicate."),
        ("applications", None, []) => match request.method.as_str() {
            "GET" => list(world, request, caller),
            "POST" => create(world, request, caller),
            _ => unsupported(world, request),
        },
        ("applications", Some(Some(key)), rest) => application(world, request, caller, &key, rest),
        ("servicePrincipals", None, []) if request.method == "POST" => {
            service_principals::create(world, request, caller)
        }
        ("servicePrincipals", None, []) if request.method == "GET" => service_principals::list(world, request, caller),
        ("servicePrincipals", Some(Some(Key::App(app_id))), []) if request.method == "GET" => {
            match service_principals::find(world, caller, &app_id) {
                Some(body) => Response::json(200, &select_properties(request, body)),
                None => not_found(world, request, &app_id),
            }
        }
        _ => error(world, request, 404, "ResourceNotFound", "Resource not found for the segment."),
    }
}

fn unsupported(world: &World, request: &Request) -> Response {
    error(world, request, 405, "Request_BadRequest", "Specified HTTP method is not allowed for the request target.")
}

pub(super) fn not_found(world: &World, request: &Request, key: &str) -> Response {
    let message =
        format!("Resource '{key}' does not exist or one of its queried reference-property objects are not present.");
    error(world, request, 404, "Request_ResourceNotFound", &message)
}

enum Key {
    Object(String),
    App(String),
}

impl Key {
    fn parse(predicate: &str) -> Option<Self> {
        let quoted = |value: &str| value.strip_prefix('\'')?.strip_suffix('\'').map(str::to_owned);
        match predicate.split_once('=') {
            Some(("appId", value)) => quoted(value).map(Self::App),
            Some(_) => None,
            None => quoted(predicate).map(Self::Object),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Object(id) | Self::App(id) => id,
        }
    }
}

/// The client ID of the registration that a key names, if it belongs to the caller's tenant.
fn owned_client_id(world: &World, caller: &Caller, key: &Key) -> Option<String> {
    let found = world.apps.values().find(|record| match key {
        Key::Object(id) => record.object_id == *id,
        Key::App(id) => record.app.client_id == *id,
    })?;
    (found.app.home_tenant_id == caller.tenant_id).then(|| found.app.client_id.clone())
}

fn application(world: &mut World, request: &Request, caller: &Caller, key: &Key, rest: &[&str]) -> Response {
    let Some(client_id) = owned_client_id(world, caller, key) else { return not_found(world, request, key.text()) };
    if request.method != "GET" && !caller.has_any(MANAGE_ALL) {
        // https://learn.microsoft.com/graph/permissions-reference#applicationreadwriteownedby
        let owned = world.apps.get(&client_id).is_some_and(|record| record.app.owners.contains(&caller.client_id));
        if !owned {
            return error(
                world,
                request,
                403,
                "Authorization_RequestDenied",
                "Insufficient privileges to complete the operation.",
            );
        }
    }
    match (request.method.as_str(), rest) {
        ("GET", []) => match world.apps.get(&client_id) {
            Some(record) => Response::json(200, &select_properties(request, application_json(record))),
            None => not_found(world, request, key.text()),
        },
        ("PATCH", []) => update(world, request, &client_id),
        ("DELETE", []) => {
            world.apps.remove(&client_id);
            Response::empty(204)
        }
        ("POST", ["addPassword" | "microsoft.graph.addPassword"]) => add_password(world, request, &client_id),
        ("POST", ["removePassword" | "microsoft.graph.removePassword"]) => remove_password(world, request, &client_id),
        ("GET", ["federatedIdentityCredentials"]) => {
            let known = world.apps.get(&client_id).map(federated_credentials).unwrap_or_default();
            Response::json(200, &json!({ "value": known }))
        }
        ("GET", ["owners"]) => {
            let owners = world.apps.get(&client_id).map(|record| record.app.owners.clone()).unwrap_or_default();
            let owner = |id: &String| json!({"@odata.type": "#microsoft.graph.servicePrincipal", "id": id});
            Response::json(200, &json!({"value": owners.iter().map(owner).collect::<Vec<_>>()}))
        }
        ("POST", ["federatedIdentityCredentials"]) => add_federated_credential(world, request, &client_id),
        (_, []) => unsupported(world, request),
        _ => error(world, request, 404, "ResourceNotFound", "Resource not found for the segment."),
    }
}

/// Removes the properties that `$select` does not name.
pub(super) fn select_properties(request: &Request, body: Value) -> Value {
    let pairs = decode_pairs(&request.query).unwrap_or_default();
    let Some((_, select)) = pairs.iter().find(|(name, _)| name == "$select") else { return body };
    let wanted: Vec<&str> = select.split(',').map(str::trim).collect();
    match body {
        Value::Object(mut body) => {
            body.retain(|name, _| wanted.contains(&name.as_str()) || name.starts_with("@odata"));
            Value::Object(body)
        }
        other => other,
    }
}

/// `$filter` with `property eq 'value'`, the only filter that registration scripts need.
pub(super) struct EqFilter {
    property: String,
    pub(super) value: String,
}

impl EqFilter {
    pub(super) fn parse(request: &Request, properties: &[&str]) -> Option<Self> {
        let pairs = decode_pairs(&request.query).ok()?;
        let (_, filter) = pairs.into_iter().find(|(name, _)| name == "$filter")?;
        let (name, value) = filter.split_once(" eq ")?;
        let value = value.trim().strip_prefix('\'')?.strip_suffix('\'')?.replace("''", "'");
        properties.contains(&name).then(|| Self { property: name.to_owned(), value })
    }
}

fn list(world: &World, request: &Request, caller: &Caller) -> Response {
    let wanted = EqFilter::parse(request, &["appId", "displayName"]);
    if wanted.is_none() && request.decoded_query().contains("$filter") {
        return error(world, request, 400, "Request_UnsupportedQuery", "Unsupported or invalid query filter clause.");
    }
    let found = world.apps.values().filter(|record| record.app.home_tenant_id == caller.tenant_id).filter(|record| {
        wanted.as_ref().is_none_or(|filter| {
            filter.value == if filter.property == "appId" { &*record.app.client_id } else { &*record.app.display_name }
        })
    });
    Response::json(
        200,
        &json!({ "value": found.map(|record| select_properties(request, application_json(record))).collect::<Vec<_>>() }),
    )
}

pub(super) fn body(request: &Request) -> Result<Map<String, Value>, String> {
    if request.media_type() != "application/json" {
        return Err("Write requests (excluding DELETE) must contain the Content-Type header declaration.".to_owned());
    }
    match request.json() {
        Some(Value::Object(body)) => Ok(body),
        _ => Err("Unable to read JSON request payload.".to_owned()),
    }
}

fn create(world: &mut World, request: &Request, caller: &Caller) -> Response {
    let body = match body(request) {
        Ok(body) if body.contains_key("displayName") => body,
        Ok(_) => {
            return bad_request(
                world,
                request,
                "A value is required for property 'displayName' of resource 'Application'.",
            );
        }
        Err(message) => return bad_request(world, request, &message),
    };
    let app = App {
        client_id: guid(),
        home_tenant_id: caller.tenant_id.clone(),
        owners: vec![caller.client_id.clone()],
        single_tenant: true,
        ..App::default()
    };
    let mut record = AppRecord::new(app, world.now());
    if let Err(message) = apply_properties(&mut record, body) {
        return error(world, request, 400, "Request_BadRequest", &message);
    }
    let response = Response::json(201, &application_json(&record));
    world.apps.insert(record.app.client_id.clone(), record);
    response
}

fn update(world: &mut World, request: &Request, client_id: &str) -> Response {
    let outcome = body(request).and_then(|body| {
        let mut changed = world.apps.get(client_id).cloned().ok_or("Resource does not exist.")?;
        apply_properties(&mut changed, body)?;
        Ok(changed)
    });
    match outcome {
        Ok(changed) => {
            world.apps.insert(client_id.to_owned(), changed);
            Response::empty(204)
        }
        Err(message) => error(world, request, 400, "Request_BadRequest", &message),
    }
}

fn add_password(world: &mut World, request: &Request, client_id: &str) -> Response {
    let now = world.now();
    let wait = SignedDuration::from_secs(world.behaviour.secret_propagation_seconds);
    let password = body(request).and_then(|body| {
        if let Some(name) = body.keys().find(|name| *name != "passwordCredential") {
            return Err(format!("The parameter '{name}' in the request payload is not a valid parameter."));
        }
        let wanted = body.get("passwordCredential").and_then(Value::as_object).cloned().unwrap_or_default();
        let time = |name: &str| match wanted.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let parsed = value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
                parsed.map(Some).ok_or_else(|| format!("Cannot convert the literal {value} to 'Edm.DateTimeOffset'."))
            }
        };
        let start = time("startDateTime")?.unwrap_or(now);
        let end = time("endDateTime")?.unwrap_or_else(|| years_after(start, 2));
        if end <= start {
            return Err("Credential lifetime is invalid: its end is not after its start.".to_owned());
        }
        let mut display_name = None;
        nullable_property(&wanted, "displayName")?.apply(&mut display_name);
        Ok(Password {
            key_id: guid(),
            secret: format!("{}~{}", &random_token()[..3], &random_token()[..36]),
            display_name,
            start,
            end,
            usable_from: now.checked_add(wait).unwrap_or(now),
        })
    });
    match password {
        Ok(password) => {
            let mut body = password_json_with_secret(&password);
            body["@odata.context"] =
                json!("https://graph.microsoft.com/v1.0/$metadata#microsoft.graph.passwordCredential");
            if let Some(record) = world.apps.get_mut(client_id) {
                record.passwords.push(password);
            }
            Response::json(200, &body)
        }
        Err(message) => error(world, request, 400, "Request_BadRequest", &message),
    }
}

fn remove_password(world: &mut World, request: &Request, client_id: &str) -> Response {
    let key_id = body(request).ok().and_then(|body| body.get("keyId").and_then(Value::as_str).map(str::to_owned));
    let removed = key_id.and_then(|key_id| {
        let passwords = &mut world.apps.get_mut(client_id)?.passwords;
        let position = passwords.iter().position(|password| password.key_id == key_id)?;
        Some(passwords.remove(position))
    });
    match removed {
        Some(_) => Response::empty(204),
        None => error(world, request, 400, "Request_BadRequest", "No password credential found with keyId."),
    }
}

fn federated_credentials(record: &AppRecord) -> Vec<Value> {
    let credentials = record.app.federated_credentials.iter();
    credentials
        .map(|known| json!({"issuer": known.issuer, "subject": known.subject, "audiences": [known.audience]}))
        .collect()
}

fn add_federated_credential(world: &mut World, request: &Request, client_id: &str) -> Response {
    let parsed = body(request).ok().and_then(|body| {
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
        let audiences = body.get("audiences")?.as_array()?;
        let [audience] = audiences.as_slice() else { return None };
        text("name").filter(|name| (3..=120).contains(&name.len()))?;
        Some(FederatedCredential {
            issuer: text("issuer")?,
            subject: text("subject")?,
            audience: audience.as_str()?.to_owned(),
            jwks: Value::Null,
        })
    });
    let Some(credential) = parsed else {
        return error(world, request, 400, "Request_BadRequest", "Invalid federated identity credential.");
    };
    let Some(record) = world.apps.get_mut(client_id) else { return Response::empty(404) };
    let known = &mut record.app.federated_credentials;
    if known.len() >= 20 || known.iter().any(|old| old.issuer == credential.issuer && old.subject == credential.subject)
    {
        return error(
            world,
            request,
            409,
            "Request_MultipleObjectsWithSameKeyValue",
            "The credential exists, or there are too many.",
        );
    }
    let body = json!({"id": guid(), "issuer": credential.issuer, "subject": credential.subject, "audiences": [credential.audience]});
    known.push(credential);
    Response::json(201, &body)
}

#[cfg(test)]
mod tests;
