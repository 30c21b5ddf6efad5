//! The caller of an API, from the access token of its request.

use serde_json::{Map, Value};

use crate::{
    entra::{keys::Jwt, verify_access_token},
    http::Request,
    store::Resource,
    world::World,
};

/// The app that sent a request, from its verified access token.
pub(crate) struct Caller {
    pub(crate) tenant_id: String,
    pub(crate) client_id: String,
    pub(crate) roles: Vec<String>,
}

impl Caller {
    /// Verifies the access token of a request. The error is the message of a 401.
    pub(crate) fn authenticate(world: &World, request: &Request, resource: Resource) -> Result<Self, &'static str> {
        let token = request.bearer().filter(|token| !token.is_empty()).ok_or("Access token is empty.")?;
        let claims = verify_access_token(world, token)?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        if Resource::of_identifier(&text("aud")) != Some(resource) {
            return Err("Access token validation failure. Invalid audience.");
        }
        let tenant_id = text("tid");
        if !world.tenants.contains_key(&tenant_id) {
            return Err("Access token validation failure. Invalid tenant.");
        }
        let roles = claims.get("roles").and_then(Value::as_array);
        let roles = roles.map(|roles| roles.iter().filter_map(Value::as_str).map(str::to_owned).collect());
        Ok(Self { tenant_id, client_id: text("appid"), roles: roles.unwrap_or_default() })
    }

    pub(crate) fn has_any(&self, roles: &[&str]) -> bool {
        self.roles.iter().any(|role| roles.contains(&role.as_str()))
    }
}

/// The tenant in an access token that is not verified. Faults and the record of calls need no more.
pub(crate) fn claimed_tenant(world: &World, request: &Request) -> Option<String> {
    let token = request.bearer()?;
    let tid = |claims: &Map<String, Value>| claims.get("tid").and_then(Value::as_str).map(str::to_owned);
    match world.opaque_tokens.get(token) {
        Some(claims) => tid(claims),
        None => tid(&Jwt::parse(token)?.claims),
    }
}
