//! App registrations as Graph writes and accepts them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use crate::store::{AppRecord, Password, Resource};

pub(super) fn application_json(record: &AppRecord) -> Value {
    let app = &record.app;
    let access: Vec<Value> = Resource::ALL
        .into_iter()
        .filter_map(|resource| {
            let roles = record.requested_roles(resource);
            let ids = resource.app_roles().iter().filter(|role| roles.contains(role.value));
            let ids: Vec<Value> = ids.map(|role| json!({"id": role.id, "type": "Role"})).collect();
            (!ids.is_empty()).then(|| json!({"resourceAppId": resource.app_id(), "resourceAccess": ids}))
        })
        .collect();
    let mut body = record.other_properties.clone();
    let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
    put("@odata.context", json!("https://graph.microsoft.com/v1.0/$metadata#applications/$entity"));
    put("id", json!(record.object_id));
    put("appId", json!(app.client_id));
    put("displayName", json!(app.display_name));
    put("createdDateTime", json!(record.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()));
    put("signInAudience", json!(if app.single_tenant { "AzureADMyOrg" } else { "AzureADMultipleOrgs" }));
    put("groupMembershipClaims", if app.wids { json!("DirectoryRole") } else { Value::Null });
    put("requiredResourceAccess", Value::Array(access));
    put("passwordCredentials", record.passwords.iter().map(password_json).collect());
    let web = record.other_properties.get("web").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut web = Value::Object(web);
    web["redirectUris"] = json!(app.redirect_uris);
    put("web", web);
    Value::Object(body)
}

pub(super) fn password_json(password: &Password) -> Value {
    json!({
        "customKeyIdentifier": null, "displayName": password.display_name, "keyId": password.key_id,
        "hint": password.secret.chars().take(3).collect::<String>(),
        "secretText": null,
        "startDateTime": password.start.to_string(), "endDateTime": password.end.to_string(),
    })
}

/// The only response that shows the secret: the one to `addPassword`.
pub(super) fn password_json_with_secret(password: &Password) -> Value {
    let mut body = password_json(password);
    body["secretText"] = json!(password.secret);
    body
}

/// Applies the properties of a body to a registration. Documented properties without a meaning here are kept as they
/// are.
pub(super) fn apply_properties(record: &mut AppRecord, body: Map<String, Value>) -> Result<(), String> {
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
                record.app.requested_roles = requested_roles(&value).ok_or_else(|| invalid(&name))?;
            }
            "web" => {
                if let Some(uris) = value.get("redirectUris") {
                    let uris = uris.as_array().ok_or_else(|| invalid(&name))?;
                    record.app.redirect_uris = uris.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                }
                record.other_properties.insert(name, value);
            }
            "keyCredentials" => {
                record.app.certificates = certificates(&value).ok_or_else(|| invalid(&name))?;
                record.other_properties.insert(name, value);
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
                record.other_properties.insert(name, value);
            }
            other if other.starts_with("@odata") => {}
            other => {
                return Err(format!("Invalid property '{other}'."));
            }
        }
    }
    Ok(())
}

fn requested_roles(value: &Value) -> Option<Vec<String>> {
    let mut roles = Vec::new();
    for resource in value.as_array()? {
        let app_id = resource.get("resourceAppId")?.as_str()?;
        let known = Resource::ALL.into_iter().find(|known| known.app_id() == app_id)?;
        for access in resource.get("resourceAccess")?.as_array()? {
            let id = access.get("id")?.as_str()?;
            if access.get("type")?.as_str()? == "Role" {
                roles.push(known.app_roles().iter().find(|role| role.id == id)?.value.to_owned());
            }
        }
    }
    Some(roles)
}

fn certificates(value: &Value) -> Option<Vec<Vec<u8>>> {
    value.as_array()?.iter().map(|item| STANDARD.decode(item.get("key")?.as_str()?).ok()).collect()
}
