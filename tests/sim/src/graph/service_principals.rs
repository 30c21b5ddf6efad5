//! Graph's service principals in the caller's tenant.

use serde_json::{Value, json};

use super::{
    applications::{EqFilter, body, not_found, select_properties},
    error,
};
use crate::{
    caller::Caller,
    http::{Request, Response},
    store::{Resource, ServicePrincipal},
    world::World,
};

/// The service principal of a resource or an app in the caller's tenant.
pub(super) fn find(world: &World, caller: &Caller, app_id: &str) -> Option<Value> {
    let tenant = world.tenants.get(&caller.tenant_id)?;
    if let Some(resource) = Resource::ALL.into_iter().find(|resource| resource.app_id() == app_id) {
        let roles = resource.app_roles().iter().map(|role| {
            json!({"id": role.id, "value": role.value, "displayName": role.value, "description": role.value, "isEnabled": true,
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

pub(super) fn list(world: &World, request: &Request, caller: &Caller) -> Response {
    match EqFilter::parse(request, &["appId"]) {
        Some(EqFilter { value: app_id, .. }) => {
            let found: Vec<Value> =
                find(world, caller, &app_id).into_iter().map(|body| select_properties(request, body)).collect();
            Response::json(200, &json!({ "value": found }))
        }
        None => error(world, request, 400, "Request_UnsupportedQuery", "Unsupported or invalid query filter clause."),
    }
}

pub(super) fn create(world: &mut World, request: &Request, caller: &Caller) -> Response {
    let app_id = body(request).ok().and_then(|body| body.get("appId").and_then(Value::as_str).map(str::to_owned));
    let Some(app_id) = app_id.filter(|app_id| world.apps.contains_key(app_id)) else {
        return error(world, request, 400, "Request_BadRequest", "The appId does not name an application.");
    };
    if let Some(tenant) = world.tenants.get_mut(&caller.tenant_id) {
        tenant.principals.entry(app_id.clone()).or_insert_with(ServicePrincipal::default);
    }
    match find(world, caller, &app_id) {
        Some(body) => Response::json(201, &body),
        None => not_found(world, request, &app_id),
    }
}
