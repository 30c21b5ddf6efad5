//! Graph's app registrations: what a registration script and a secret's rotation need.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    clock::{guid, opaque},
    graph::{bad, error, forbidden},
    http::{Request, Response, decode, decode_pairs},
    incidents::{Caller, nullable},
    store::{App, AppRecord, FederatedCredential, Password, Resource, ServicePrincipal, years_after},
    world::World,
};

const ALL: &[&str] = &["Application.ReadWrite.All"];
const OWNED: &[&str] = &["Application.ReadWrite.OwnedBy", "Application.ReadWrite.All"];

pub(crate) fn respond(world: &mut World, request: &Request, caller: &Caller, first: &str, rest: &[&str]) -> Response {
    let Ok(first) = decode(&first.replace('+', "%2B")) else { return bad(world, request, "Bad request path.") };
    let (collection, key) = match first.split_once('(') {
        Some((collection, key)) => (collection, key.strip_suffix(')')),
        None => (first.as_str(), None),
    };
    if !caller.has_any(OWNED) {
        return forbidden(world, request, caller, OWNED);
    }
    let (key, rest) = match (key, rest) {
        (Some(key), rest) => (Some(Key::parse(key)), rest),
        (None, [id, rest @ ..]) => (Some(Some(Key::Object((*id).to_owned()))), rest),
        (None, []) => (None, rest),
    };
    match (collection, key, rest) {
        (_, Some(None), _) => bad(world, request, "Invalid key predicate."),
        ("applications", None, []) => match request.method.as_str() {
            "GET" => list(world, request, caller),
            "POST" => create(world, request, caller),
            _ => unsupported(world, request),
        },
        ("applications", Some(Some(key)), rest) => application(world, request, caller, &key, rest),
        ("servicePrincipals", None, []) if request.method == "POST" => create_principal(world, request, caller),
        ("servicePrincipals", None, []) if request.method == "GET" => principals(world, request, caller),
        ("servicePrincipals", Some(Some(Key::App(app_id))), []) if request.method == "GET" => {
            match principal(world, caller, &app_id) {
                Some(body) => Response::json(200, &selected(request, body)),
                None => not_found(world, request, &app_id),
            }
        }
        _ => error(world, request, 404, "ResourceNotFound", "Resource not found for the segment."),
    }
}

fn unsupported(world: &World, request: &Request) -> Response {
    error(world, request, 405, "Request_BadRequest", "Specified HTTP method is not allowed for the request target.")
}

fn not_found(world: &World, request: &Request, key: &str) -> Response {
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

/// The client ID of the registration that a key names, if the caller's tenant holds it.
fn resolve(world: &World, caller: &Caller, key: &Key) -> Option<String> {
    let found = world.apps.values().find(|record| match key {
        Key::Object(id) => record.object_id == *id,
        Key::App(id) => record.app.client_id == *id,
    })?;
    (found.app.home_tenant_id == caller.tenant_id).then(|| found.app.client_id.clone())
}

fn application(world: &mut World, request: &Request, caller: &Caller, key: &Key, rest: &[&str]) -> Response {
    let Some(client_id) = resolve(world, caller, key) else { return not_found(world, request, key.text()) };
    if request.method != "GET" && !caller.has_any(ALL) {
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
            Some(record) => Response::json(200, &selected(request, document(record))),
            None => not_found(world, request, key.text()),
        },
        ("PATCH", []) => change(world, request, &client_id),
        ("DELETE", []) => {
            world.apps.remove(&client_id);
            Response::empty(204)
        }
        ("POST", ["addPassword" | "microsoft.graph.addPassword"]) => add_password(world, request, &client_id),
        ("POST", ["removePassword" | "microsoft.graph.removePassword"]) => remove_password(world, request, &client_id),
        ("GET", ["federatedIdentityCredentials"]) => {
            let known = world.apps.get(&client_id).map(federated).unwrap_or_default();
            Response::json(200, &json!({ "value": known }))
        }
        ("POST", ["federatedIdentityCredentials"]) => add_federated(world, request, &client_id),
        (_, []) => unsupported(world, request),
        _ => error(world, request, 404, "ResourceNotFound", "Resource not found for the segment."),
    }
}

/// Keeps what `$select` asks for.
fn selected(request: &Request, body: Value) -> Value {
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

/// `name eq 'value'`, the only filter that registration scripts need.
fn equals(request: &Request, names: &[&str]) -> Option<(String, String)> {
    let pairs = decode_pairs(&request.query).ok()?;
    let (_, filter) = pairs.into_iter().find(|(name, _)| name == "$filter")?;
    let (name, value) = filter.split_once(" eq ")?;
    let value = value.trim().strip_prefix('\'')?.strip_suffix('\'')?.replace("''", "'");
    names.contains(&name).then(|| (name.to_owned(), value))
}

fn list(world: &World, request: &Request, caller: &Caller) -> Response {
    let wanted = equals(request, &["appId", "displayName"]);
    if wanted.is_none() && request.decoded_query().contains("$filter") {
        return error(world, request, 400, "Request_UnsupportedQuery", "Unsupported or invalid query filter clause.");
    }
    let found = world.apps.values().filter(|record| record.app.home_tenant_id == caller.tenant_id).filter(|record| {
        wanted.as_ref().is_none_or(|(name, value)| {
            *value == if name == "appId" { &*record.app.client_id } else { &*record.app.display_name }
        })
    });
    Response::json(
        200,
        &json!({ "value": found.map(|record| selected(request, document(record))).collect::<Vec<_>>() }),
    )
}

fn document(record: &AppRecord) -> Value {
    let app = &record.app;
    let access: Vec<Value> = Resource::ALL
        .into_iter()
        .filter_map(|resource| {
            let roles = record.requested(resource);
            let ids = resource.app_roles().iter().filter(|(_, value)| roles.contains(*value));
            let ids: Vec<Value> = ids.map(|(id, _)| json!({"id": id, "type": "Role"})).collect();
            (!ids.is_empty()).then(|| json!({"resourceAppId": resource.app_id(), "resourceAccess": ids}))
        })
        .collect();
    let mut body = record.document.clone();
    let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
    put("@odata.context", json!("https://graph.microsoft.com/v1.0/$metadata#applications/$entity"));
    put("id", json!(record.object_id));
    put("appId", json!(app.client_id));
    put("displayName", json!(app.display_name));
    put("createdDateTime", json!(record.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()));
    put("signInAudience", json!(if app.single_tenant { "AzureADMyOrg" } else { "AzureADMultipleOrgs" }));
    put("groupMembershipClaims", if app.wids { json!("DirectoryRole") } else { Value::Null });
    put("requiredResourceAccess", Value::Array(access));
    put("passwordCredentials", record.passwords.iter().map(|password| password_json(password, false)).collect());
    let web = record.document.get("web").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut web = Value::Object(web);
    web["redirectUris"] = json!(app.redirect_uris);
    put("web", web);
    Value::Object(body)
}

fn password_json(password: &Password, with_secret: bool) -> Value {
    json!({
        "customKeyIdentifier": null, "displayName": password.display_name, "keyId": password.key_id,
        "hint": password.secret.chars().take(3).collect::<String>(),
        "secretText": with_secret.then_some(&password.secret),
        "startDateTime": password.start.to_string(), "endDateTime": password.end.to_string(),
    })
}

fn body(request: &Request) -> Result<Map<String, Value>, String> {
    if request.media_type() != "application/json" {
        return Err("Write requests (excluding DELETE) must contain the Content-Type header declaration.".to_owned());
    }
    match request.json() {
        Some(Value::Object(body)) => Ok(body),
        _ => Err("Unable to read JSON request payload.".to_owned()),
    }
}

/// Takes the fields of a registration out of a body; what means nothing to the simulator is kept as it is.
fn apply(record: &mut AppRecord, body: Map<String, Value>) -> Result<(), String> {
    let invalid = |name: &str| format!("Invalid value specified for property '{name}' of resource 'Application'.");
    for (name, value) in body {
        match name.as_str() {
            "displayName" => {
                let text = value.as_str().filter(|text| !text.is_empty() && text.len() <= 256);
                text.ok_or_else(|| invalid(&name))?.clone_into(&mut record.app.display_name);
            }
            "signInAudience" => match value.as_str() {
                Some("AzureADMyOrg") => record.app.single_tenant = true,
                Some("AzureADMultipleOrgs") => record.app.single_tenant = false,
                Some("AzureADandPersonalMicrosoftAccount") => {
                    record.app.single_tenant = false;
                    record.app.personal_accounts = true;
                }
                _ => return Err(invalid(&name)),
            },
            "groupMembershipClaims" => {
                record.app.wids = matches!(value.as_str(), Some("DirectoryRole" | "All"));
            }
            "requiredResourceAccess" => {
                record.app.requested_roles = requested(&value).ok_or_else(|| invalid(&name))?;
            }
            "web" => {
                if let Some(uris) = value.get("redirectUris") {
                    let uris = uris.as_array().ok_or_else(|| invalid(&name))?;
                    record.app.redirect_uris = uris.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                }
                record.document.insert(name, value);
            }
            "keyCredentials" => {
                record.app.certificates = certificates(&value).ok_or_else(|| invalid(&name))?;
                record.document.insert(name, value);
            }
            "id" | "appId" | "createdDateTime" | "passwordCredentials" => {
                return Err(format!("Property '{name}' is read-only and cannot be set."));
            }
            "optionalClaims"
            | "servicePrincipalLockConfiguration"
            | "description"
            | "notes"
            | "tags"
            | "info"
            | "api"
            | "spa"
            | "publicClient"
            | "identifierUris"
            | "isFallbackPublicClient"
            | "serviceManagementReference"
            | "appRoles"
            | "parentalControlSettings"
            | "requestSignatureVerification" => {
                record.document.insert(name, value);
            }
            other if other.starts_with("@odata") => {}
            other => {
                return Err(format!("Invalid property '{other}'."));
            }
        }
    }
    Ok(())
}

fn requested(value: &Value) -> Option<Vec<String>> {
    let mut roles = Vec::new();
    for resource in value.as_array()? {
        let app_id = resource.get("resourceAppId")?.as_str()?;
        let known = Resource::ALL.into_iter().find(|known| known.app_id() == app_id)?;
        for access in resource.get("resourceAccess")?.as_array()? {
            let id = access.get("id")?.as_str()?;
            if access.get("type")?.as_str()? == "Role" {
                roles.push(known.app_roles().iter().find(|(role, _)| *role == id)?.1.to_owned());
            }
        }
    }
    Some(roles)
}

fn certificates(value: &Value) -> Option<Vec<Vec<u8>>> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    value.as_array()?.iter().map(|item| STANDARD.decode(item.get("key")?.as_str()?).ok()).collect()
}

fn create(world: &mut World, request: &Request, caller: &Caller) -> Response {
    let body = match body(request) {
        Ok(body) if body.contains_key("displayName") => body,
        Ok(_) => {
            return bad(world, request, "A value is required for property 'displayName' of resource 'Application'.");
        }
        Err(message) => return bad(world, request, &message),
    };
    let app = App {
        client_id: guid(),
        home_tenant_id: caller.tenant_id.clone(),
        owners: vec![caller.client_id.clone()],
        single_tenant: true,
        ..App::default()
    };
    let mut record = AppRecord::new(app, world.now());
    if let Err(message) = apply(&mut record, body) {
        return error(world, request, 400, "Request_BadRequest", &message);
    }
    let response = Response::json(201, &document(&record));
    world.apps.insert(record.app.client_id.clone(), record);
    response
}

fn change(world: &mut World, request: &Request, client_id: &str) -> Response {
    let outcome = body(request).and_then(|body| {
        let mut changed = world.apps.get(client_id).cloned().ok_or("Resource does not exist.")?;
        apply(&mut changed, body)?;
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
    let wait = jiff::SignedDuration::from_secs(world.behaviour.secret_propagation_seconds);
    let password = body(request).and_then(|body| {
        if let Some(name) = body.keys().find(|name| *name != "passwordCredential") {
            return Err(format!("The parameter '{name}' in the request payload is not a valid parameter."));
        }
        let asked = body.get("passwordCredential").and_then(Value::as_object).cloned().unwrap_or_default();
        let moment = |name: &str| match asked.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let parsed = value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
                parsed.map(Some).ok_or_else(|| format!("Cannot convert the literal {value} to 'Edm.DateTimeOffset'."))
            }
        };
        let start = moment("startDateTime")?.unwrap_or(now);
        let end = moment("endDateTime")?.unwrap_or_else(|| years_after(start, 2));
        if end <= start {
            return Err("Credential lifetime is invalid: its end is not after its start.".to_owned());
        }
        let mut display_name = None;
        nullable(&asked, "displayName")?.apply(&mut display_name);
        Ok(Password {
            key_id: guid(),
            secret: format!("{}~{}", &opaque()[..3], &opaque()[..36]),
            display_name,
            start,
            end,
            known_from: now.checked_add(wait).unwrap_or(now),
        })
    });
    match password {
        Ok(password) => {
            let mut body = password_json(&password, true);
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
        let place = passwords.iter().position(|password| password.key_id == key_id)?;
        Some(passwords.remove(place))
    });
    match removed {
        Some(_) => Response::empty(204),
        None => error(world, request, 400, "Request_BadRequest", "No password credential found with keyId."),
    }
}

fn federated(record: &AppRecord) -> Vec<Value> {
    let credentials = record.app.federated_credentials.iter();
    credentials
        .map(|known| json!({"issuer": known.issuer, "subject": known.subject, "audiences": [known.audience]}))
        .collect()
}

fn add_federated(world: &mut World, request: &Request, client_id: &str) -> Response {
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

/// A service principal in the caller's tenant: a resource's, or an app's.
fn principal(world: &World, caller: &Caller, app_id: &str) -> Option<Value> {
    let tenant = world.tenants.get(&caller.tenant_id)?;
    if let Some(resource) = Resource::ALL.into_iter().find(|resource| resource.app_id() == app_id) {
        let roles = resource.app_roles().iter().map(|(id, value)| {
            json!({"id": id, "value": value, "displayName": value, "description": value, "isEnabled": true,
                "allowedMemberTypes": ["Application"], "origin": "Application"})
        });
        return tenant.has_resource(resource).then(|| {
            json!({"id": resource.app_id(), "appId": resource.app_id(), "displayName": resource.display_name(),
                "servicePrincipalType": "Application", "appRoles": roles.collect::<Vec<_>>()})
        });
    }
    let found = tenant.principals.get(app_id)?;
    let name = world.apps.get(app_id).map(|record| record.app.display_name.clone());
    Some(
        json!({"id": found.oid, "appId": app_id, "displayName": name, "accountEnabled": found.enabled, "appRoles": []}),
    )
}

fn principals(world: &World, request: &Request, caller: &Caller) -> Response {
    match equals(request, &["appId"]) {
        Some((_, app_id)) => {
            let found: Vec<Value> =
                principal(world, caller, &app_id).into_iter().map(|body| selected(request, body)).collect();
            Response::json(200, &json!({ "value": found }))
        }
        None => error(world, request, 400, "Request_UnsupportedQuery", "Unsupported or invalid query filter clause."),
    }
}

fn create_principal(world: &mut World, request: &Request, caller: &Caller) -> Response {
    let app_id = body(request).ok().and_then(|body| body.get("appId").and_then(Value::as_str).map(str::to_owned));
    let Some(app_id) = app_id.filter(|app_id| world.apps.contains_key(app_id)) else {
        return error(world, request, 400, "Request_BadRequest", "The appId does not name an application.");
    };
    if let Some(tenant) = world.tenants.get_mut(&caller.tenant_id) {
        tenant.principals.entry(app_id.clone()).or_insert_with(ServicePrincipal::default);
    }
    match principal(world, caller, &app_id) {
        Some(body) => Response::json(201, &body),
        None => not_found(world, request, &app_id),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        App, Resource,
        testing::{CLIENT, CONTOSO, HOME, Response, Rig, rig},
    };

    const ROTATOR: &str = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb";

    async fn call(rig: &Rig, role: &str, method: &str, path: &str, body: Option<Value>) -> Response {
        let token = rig.sim.issue_token(HOME, ROTATOR, &[role], Resource::Graph);
        let url = format!("{}/v1.0{path}", rig.sim.graph_url());
        let request = rig.http.request(method.parse().unwrap(), url).bearer_auth(token);
        rig.send(match body {
            Some(body) => request.json(&body),
            None => request,
        })
        .await
    }

    #[tokio::test]
    async fn a_secret_is_added_used_and_removed() {
        let rig = rig().await;
        let owned = "Application.ReadWrite.OwnedBy";
        let path = format!("/applications(appId='{CLIENT}')");
        let add = json!({"passwordCredential": {"displayName": "next"}});
        let stranger = call(&rig, owned, "POST", &format!("{path}/addPassword"), Some(add.clone())).await;
        assert_eq!(
            (stranger.status, stranger.json()["error"]["code"].as_str()),
            (403, Some("Authorization_RequestDenied"))
        );
        rig.sim.register_app(App {
            client_id: CLIENT.into(),
            home_tenant_id: HOME.into(),
            owners: vec![ROTATOR.into()],
            ..App::default()
        });
        rig.sim.grant(CONTOSO, CLIENT, &["SecurityIncident.Read.All"]);
        let added = call(&rig, owned, "POST", &format!("{path}/addPassword"), Some(add)).await.json();
        let secret = added["secretText"].as_str().unwrap();
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", CLIENT),
            ("client_secret", secret),
            ("scope", "https://graph.microsoft.com/.default"),
        ];
        assert_eq!(rig.token(CONTOSO, &form).await.status, 200);
        let listed = call(&rig, owned, "GET", &format!("{path}?$select=id,passwordCredentials"), None).await.json();
        assert_eq!(listed["passwordCredentials"][0]["secretText"], Value::Null);
        let remove = json!({"keyId": added["keyId"]});
        let removed = call(&rig, owned, "POST", &format!("{path}/removePassword"), Some(remove.clone())).await;
        assert_eq!(removed.status, 204);
        assert_eq!(rig.token(CONTOSO, &form).await.status, 401);
        assert_eq!(call(&rig, owned, "POST", &format!("{path}/removePassword"), Some(remove)).await.status, 400);
    }

    #[tokio::test]
    async fn a_registration_is_made_and_changed() {
        let rig = rig().await;
        let all = "Application.ReadWrite.All";
        let graph = Resource::Graph.app_id();
        let roles =
            call(&rig, all, "GET", &format!("/servicePrincipals(appId='{graph}')?$select=appRoles"), None).await;
        let role = roles.json()["appRoles"].as_array().unwrap()[0]["id"].clone();
        let made = call(
            &rig,
            all,
            "POST",
            "/applications",
            Some(json!({
                "displayName": "Mandate", "signInAudience": "AzureADMultipleOrgs",
                "web": {"redirectUris": ["https://x.example/consent/callback"]},
                "requiredResourceAccess": [{"resourceAppId": graph, "resourceAccess": [{"id": role, "type": "Role"}]}],
            })),
        )
        .await;
        assert_eq!(made.status, 201, "{}", made.text);
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let patch =
            json!({"groupMembershipClaims": "DirectoryRole", "servicePrincipalLockConfiguration": {"isEnabled": true}});
        assert_eq!(call(&rig, all, "PATCH", &format!("/applications/{id}"), Some(patch)).await.status, 204);
        let filter = "/applications?$filter=displayName%20eq%20'Mandate'";
        let found = call(&rig, all, "GET", filter, None).await.json()["value"][0].clone();
        assert_eq!((&found["id"], &found["groupMembershipClaims"]), (&json!(id), &json!("DirectoryRole")));
        assert_eq!(found["requiredResourceAccess"][0]["resourceAccess"][0]["id"], role);
        assert_eq!(found["servicePrincipalLockConfiguration"]["isEnabled"], true);
        let unknown = call(&rig, all, "POST", "/applications", Some(json!({"displayName": "x", "colour": 1}))).await;
        assert_eq!(unknown.status, 400);
    }
}
