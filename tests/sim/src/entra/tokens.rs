//! Access tokens and ID tokens: their claims, signature and check.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::{
    array,
    flow::AuthorizationCode,
    is_guid,
    keys::{Jwt, s256},
};
use crate::{
    clock::{guid, random_token},
    store::Resource,
    world::{Tweaks, World},
};

/// The clock skew that Entra's validation tolerates.
pub(super) const SKEW: SignedDuration = SignedDuration::from_mins(5);
/// The directory role in `wids` of every member of a tenant.
const DEFAULT_USER_ROLE: &str = "b79fbf4d-3ef9-4689-8143-76b194e85509";

/// An access token of an app, before faults change it.
pub(super) struct AppToken<'a> {
    pub(super) tenant_id: &'a str,
    pub(super) client_id: &'a str,
    /// Object ID of the app's service principal in the tenant.
    pub(super) oid: &'a str,
    pub(super) resource: Resource,
    pub(super) lifetime_seconds: i64,
}

impl AppToken<'_> {
    /// The claims that every access token has; the caller adds `appidacr` and `roles`.
    pub(super) fn claims(&self, now: Timestamp) -> Map<String, Value> {
        let issuer = format!("https://sts.windows.net/{}/", self.tenant_id);
        let iat = now.as_second();
        let claims = json!({
            "aud": self.resource.audience(), "iss": issuer, "iat": iat, "nbf": iat, "exp": iat + self.lifetime_seconds,
            "aio": random_token(), "appid": self.client_id, "idp": issuer, "idtyp": "app", "oid": self.oid,
            "rh": random_token(), "sub": self.oid, "tid": self.tenant_id, "uti": random_token(), "ver": "1.0",
        });
        match claims {
            Value::Object(claims) => claims,
            _ => Map::new(),
        }
    }
}

/// Issues an access token without a token request.
pub(crate) fn issue_app_token(
    world: &mut World,
    tenant_id: &str,
    client_id: &str,
    roles: &[&str],
    resource: Resource,
) -> String {
    let principal = world.tenants.get(tenant_id).and_then(|tenant| tenant.principals.get(client_id));
    let oid = principal.map_or_else(guid, |principal| principal.oid.clone());
    let token = AppToken { tenant_id, client_id, oid: &oid, resource, lifetime_seconds: 3600 };
    let mut claims = token.claims(world.now());
    claims.insert("appidacr".to_owned(), json!("1"));
    if !roles.is_empty() {
        claims.insert("roles".to_owned(), json!(roles));
    }
    sign_access_token(world, claims, &Tweaks::default())
}

/// Signs the claims of an access token, changed by faults.
pub(super) fn sign_access_token(world: &mut World, mut claims: Map<String, Value>, tweaks: &Tweaks) -> String {
    if let Some(tid) = &tweaks.tid {
        claims.insert("tid".to_owned(), json!(tid));
        claims.insert("iss".to_owned(), json!(format!("https://sts.windows.net/{tid}/")));
    }
    override_claims(&mut claims, &tweaks.claims);
    if tweaks.opaque_token {
        let token = format!("EwB{}", random_token());
        world.opaque_tokens.insert(token.clone(), claims);
        return token;
    }
    let key = world.keys.current();
    key.sign(&json!({"typ": "JWT", "alg": "RS256", "x5t": key.kid, "kid": key.kid}), &claims)
}

fn override_claims(claims: &mut Map<String, Value>, with: &Map<String, Value>) {
    for (name, value) in with {
        if value.is_null() {
            claims.remove(name);
        } else {
            claims.insert(name.clone(), value.clone());
        }
    }
}

/// Verifies an access token and returns its claims. The error is the message of a 401.
pub(crate) fn verify_access_token(world: &World, token: &str) -> Result<Map<String, Value>, &'static str> {
    let claims = if let Some(claims) = world.opaque_tokens.get(token) {
        claims.clone()
    } else {
        let jwt = Jwt::parse(token).ok_or("IDX14100: JWT is not well formed.")?;
        let key = jwt.header("kid").and_then(|kid| world.keys.find(kid)).ok_or("Signing key was not found.")?;
        if !key.has_signed(&jwt) {
            return Err("Signature is invalid.");
        }
        jwt.claims
    };
    let now = world.now().as_second();
    let time = |name: &str| claims.get(name).and_then(Value::as_i64);
    if time("exp").is_none_or(|exp| exp <= now) || time("nbf").is_some_and(|nbf| nbf > now + SKEW.as_secs()) {
        return Err("Access token has expired or is not yet valid.");
    }
    Ok(claims)
}

/// The ID token of a redeemed authorization code.
pub(super) fn id_token(world: &World, code: &AuthorizationCode, tweaks: &Tweaks) -> String {
    let AuthorizationCode { request, signed_in, .. } = code;
    let client_id = &request.client_id;
    let wids = world.apps.get(client_id).is_some_and(|record| record.app.wids);
    let tenant = world.tenants.get(&signed_in.tenant_id);
    let user = tenant.and_then(|tenant| tenant.user(&signed_in.oid)).cloned().unwrap_or_default();
    let domain = tenant.map_or("", |tenant| tenant.seed.domain.as_str());
    let tid = tweaks.tid.as_deref().unwrap_or(&signed_in.tenant_id);
    let upn = if user.name.contains('@') { user.name.clone() } else { format!("{}@{domain}", user.name) };
    let iat = world.now().as_second();
    let mut claims = Map::new();
    let mut put = |name: &str, value: Value| claims.insert(name.to_owned(), value);
    put("aud", json!(client_id));
    put("iss", json!(format!("https://login.microsoftonline.com/{tid}/v2.0")));
    put("iat", json!(iat));
    put("nbf", json!(iat));
    put("exp", json!(iat + tweaks.expires_in.unwrap_or(3600)));
    put("name", json!(user.name));
    if let Some(nonce) = &request.nonce {
        put("nonce", json!(nonce));
    }
    put("oid", json!(signed_in.oid));
    put("preferred_username", json!(upn));
    put("rh", json!(random_token()));
    put("sid", json!(guid()));
    put("sub", json!(s256(&format!("{client_id}{}", signed_in.oid))));
    put("tid", json!(tid));
    put("uti", json!(random_token()));
    put("ver", json!("2.0"));
    if wids {
        let mut roles = user.wids;
        roles.push(DEFAULT_USER_ROLE.to_owned());
        roles.retain(|role| is_guid(role));
        put("wids", array(&roles));
    }
    override_claims(&mut claims, &tweaks.claims);
    let key = world.keys.current();
    key.sign(&json!({"typ": "JWT", "alg": "RS256", "kid": key.kid}), &claims)
}
