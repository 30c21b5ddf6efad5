//! The token endpoint: client credentials and authorization codes.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::SignedDuration;
use serde_json::{Map, Value, json};

use super::{
    Aadsts, Authority, EndpointVersion, array,
    client_authentication::authenticate_client,
    consent::{no_such_resource, resource_of_scope},
    keys::s256,
    missing, no_store, parameters,
    tokens::{AppToken, id_token, sign_access_token},
    unknown_app,
};
use crate::{
    clock::{guid, random_token},
    http::{Request, Response, decode},
    store::{Propagation, Resource},
    world::{Tweaks, World},
};

const CODE_LIFETIME: SignedDuration = SignedDuration::from_mins(10);

pub(super) fn respond(
    world: &mut World,
    request: &Request,
    segment: &str,
    version: EndpointVersion,
    tweaks: &Tweaks,
) -> Response {
    let outcome = match tweaks.aadsts {
        Some(code) => Err(Aadsts::of_code(code)),
        None => redeem_grant(world, request, segment, version, tweaks),
    };
    match outcome {
        Ok(mut body) => {
            if version == EndpointVersion::V1 || tweaks.expires_in_string {
                for name in ["expires_in", "ext_expires_in", "refresh_in"] {
                    if let Some(value) = body.get_mut(name) {
                        *value = Value::String(value.to_string());
                    }
                }
            }
            no_store(Response::json(200, &Value::Object(body))).with("x-ms-request-id", &guid())
        }
        Err(error) => error.response(request, world.now()),
    }
}

/// The form parameters of a token request, including credentials from HTTP Basic.
pub(super) struct Form {
    values: BTreeMap<String, String>,
}

impl Form {
    fn parse(request: &Request, version: EndpointVersion) -> Result<Self, Aadsts> {
        const KNOWN: &[&str] = &[
            "grant_type",
            "client_id",
            "client_secret",
            "client_assertion_type",
            "client_assertion",
            "scope",
            "code",
            "redirect_uri",
            "code_verifier",
            "client_info",
            "claims",
            "resource",
            "x-client-sku",
            "x-client-ver",
        ];
        if request.media_type() != "application/x-www-form-urlencoded" {
            return Err(missing("grant_type"));
        }
        let malformed =
            || Aadsts::new(400, "invalid_request", 9_002_313, "Invalid request. Request is malformed or invalid.");
        if !request.query.is_empty() {
            return Err(malformed());
        }
        let body = std::str::from_utf8(&request.body).map_err(|_| malformed())?;
        let mut values = parameters(body)?;
        if values.contains_key("resource") && version == EndpointVersion::V2 {
            let message = "The 'resource' request parameter is not supported.";
            return Err(Aadsts::new(400, "invalid_request", 901_002, message));
        }
        if values.keys().any(|name| !KNOWN.contains(&name.as_str())) {
            return Err(malformed());
        }
        if let Some(header) = request.header("authorization") {
            let basic = header.strip_prefix("Basic ").and_then(|value| STANDARD.decode(value).ok());
            let basic = basic.and_then(|value| String::from_utf8(value).ok()).ok_or_else(malformed)?;
            let (id, secret) = basic.split_once(':').ok_or_else(malformed)?;
            let (id, secret) = (decode(id).map_err(|_| malformed())?, decode(secret).map_err(|_| malformed())?);
            if values.contains_key("client_secret") || values.get("client_id").is_some_and(|other| *other != id) {
                return Err(malformed());
            }
            values.insert("client_id".to_owned(), id);
            values.insert("client_secret".to_owned(), secret);
        }
        Ok(Self { values })
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn required(&self, name: &str) -> Result<&str, Aadsts> {
        self.get(name).ok_or_else(|| missing(name))
    }
}

fn redeem_grant(
    world: &mut World,
    request: &Request,
    segment: &str,
    version: EndpointVersion,
    tweaks: &Tweaks,
) -> Result<Map<String, Value>, Aadsts> {
    let form = Form::parse(request, version)?;
    let grant = form.required("grant_type")?;
    let client_id = form.required("client_id")?;
    let authority = Authority::parse(world, segment)?;
    match grant {
        "client_credentials" => client_credentials(world, &form, client_id, &authority, version, tweaks),
        "authorization_code" if version == EndpointVersion::V2 => {
            authorization_code(world, &form, client_id, &authority, segment, tweaks)
        }
        other => Err(Aadsts::new(
            400,
            "unsupported_grant_type",
            70_003,
            format!("The app requested an unsupported grant type '{other}'."),
        )),
    }
}

fn client_credentials(
    world: &mut World,
    form: &Form,
    client_id: &str,
    authority: &Authority,
    version: EndpointVersion,
    tweaks: &Tweaks,
) -> Result<Map<String, Value>, Aadsts> {
    let Authority::Tenant(tid) = authority else {
        return Err(Aadsts::new(
            400,
            "invalid_request",
            50_059,
            "No tenant-identifying information found in either the request or implied by any provided credentials.",
        ));
    };
    if let Some(name) = ["code", "redirect_uri", "code_verifier"].into_iter().find(|name| form.get(name).is_some()) {
        let message = format!("Invalid request. The parameter '{name}' does not belong to the grant.");
        return Err(Aadsts::new(400, "invalid_request", 9_002_313, message));
    }
    let wanted = match version {
        EndpointVersion::V1 => form.required("resource")?,
        EndpointVersion::V2 => form.required("scope")?,
    };
    let record = world.apps.get(client_id).ok_or_else(|| unknown_app(client_id, tid))?;
    let appidacr = authenticate_client(world, record, form, tid, authority)?;
    if record.app.single_tenant && record.app.home_tenant_id != *tid {
        return Err(unknown_app(client_id, tid));
    }
    let resource = match version {
        EndpointVersion::V1 => Resource::of_identifier(wanted).ok_or_else(|| no_such_resource(wanted, tid))?,
        EndpointVersion::V2 => resource_of_scope(wanted)?,
    };
    let display_name = record.app.display_name.clone();
    if let Some(assertion) = form.get("client_assertion") {
        world.used_assertions.insert(assertion.to_owned());
    }
    let Some(principal) = world.tenants.get_mut(tid).and_then(|tenant| tenant.principals.get_mut(client_id)) else {
        return Err(Aadsts::new(
            401,
            "invalid_client",
            7_000_229,
            format!(
                "The client application {client_id} is missing service principal in the tenant {tid}. See instructions \
                 here: https://go.microsoft.com/fwlink/?linkid=2225119"
            ),
        ));
    };
    let mut roleless = false;
    let Propagation { refused, code, roleless: left } = &mut principal.propagation;
    if *refused > 0 {
        *refused -= 1;
        return Err(if *code == 700_016 { unknown_app(client_id, tid) } else { Aadsts::of_code(*code) });
    } else if *left > 0 {
        *left -= 1;
        roleless = true;
    }
    if !principal.enabled {
        let message = format!("Application '{client_id}'({display_name}) is disabled.");
        return Err(Aadsts::new(400, "unauthorized_client", 7_000_112, message));
    }
    let tenant = &world.tenants[tid];
    if !tenant.has_resource(resource) {
        return Err(no_such_resource(resource.audience(), tid));
    }
    let principal = &tenant.principals[client_id];
    let roles = principal.roles.get(&resource).cloned().unwrap_or_default();
    let policy = tenant.seed.token_lifetime_seconds;
    world.responses_made += 1;
    // Microsoft varies lifetimes between 60 and 90 minutes.
    let spread = 3600 + i64::try_from(world.responses_made * 397 % 1800).unwrap_or(0);
    let lifetime = tweaks.expires_in.or(policy).unwrap_or(spread);
    let now = world.now();
    let token = AppToken { tenant_id: tid, client_id, oid: &principal.oid, resource, lifetime_seconds: lifetime };
    let mut claims = token.claims(now);
    claims.insert("appidacr".to_owned(), json!(appidacr));
    claims.insert("app_displayname".to_owned(), json!(display_name));
    if !(roles.is_empty() || roleless || tweaks.missing_roles) {
        claims.insert("roles".to_owned(), array(&roles));
    }
    let token = sign_access_token(world, claims, tweaks);
    let mut body = Map::new();
    body.insert("token_type".to_owned(), json!("Bearer"));
    body.insert("expires_in".to_owned(), json!(lifetime - 1));
    body.insert("ext_expires_in".to_owned(), json!(lifetime - 1));
    if lifetime >= 7200 {
        body.insert("refresh_in".to_owned(), json!(lifetime / 2));
    }
    if version == EndpointVersion::V1 {
        body.insert("expires_on".to_owned(), json!((now.as_second() + lifetime).to_string()));
        body.insert("not_before".to_owned(), json!(now.as_second().to_string()));
        body.insert("resource".to_owned(), json!(wanted));
    }
    body.insert("access_token".to_owned(), json!(token));
    Ok(body)
}

fn authorization_code(
    world: &mut World,
    form: &Form,
    client_id: &str,
    authority: &Authority,
    segment: &str,
    tweaks: &Tweaks,
) -> Result<Map<String, Value>, Aadsts> {
    let refuse = |error: &'static str, code, message: &str| Err(Aadsts::new(400, error, code, message));
    let code = form.required("code")?;
    let redirect_uri = form.required("redirect_uri")?;
    let record = world.apps.get(client_id).ok_or_else(|| unknown_app(client_id, segment))?;
    let Some(known) = world.flows.codes.get(code).cloned() else {
        return refuse("invalid_grant", 9_002_313, "Invalid request. Request is malformed or invalid.");
    };
    authenticate_client(world, record, form, &known.signed_in.tenant_id, authority)?;
    if known.request.client_id != client_id {
        return refuse("invalid_grant", 700_003, "The code was issued to another application.");
    }
    if known.redeemed {
        let message = "OAuth2 Authorization code was already redeemed, please retry with a new valid code or use an \
                       existing refresh token.";
        return refuse("invalid_grant", 54_005, message);
    }
    let now = world.now();
    if now.duration_since(known.issued) > CODE_LIFETIME {
        let message = "The provided authorization code or refresh token has expired due to inactivity. Send a new \
                       interactive authorization request for this user and resource.";
        return refuse("invalid_grant", 70_008, message);
    }
    let fits = match authority {
        Authority::Tenant(tid) => *tid == known.signed_in.tenant_id,
        other => *other == known.request.authority,
    };
    if !fits {
        let message = "Provided Authorization Code is intended to use against other tenant, thus rejected.";
        return refuse("invalid_grant", 700_005, message);
    }
    if known.request.redirect_uri != redirect_uri {
        let message = format!(
            "The reply address '{redirect_uri}' does not match the reply address '{}' provided when requesting \
             Authorization code.",
            known.request.redirect_uri
        );
        return refuse("invalid_client", 500_112, &message);
    }
    match (&known.request.code_challenge, form.get("code_verifier")) {
        (None, None) => {}
        (Some(challenge), Some(verifier)) if (43..=128).contains(&verifier.len()) && s256(verifier) == *challenge => {}
        (Some(_), None) => {
            let message = "The Code_Verifier does not match the code_challenge supplied in the authorization request \
                           for PKCE.";
            return refuse("invalid_grant", 50_148, message);
        }
        _ => {
            let message = "The Code_Verifier does not match the code_challenge supplied in the authorization request.";
            return refuse("invalid_grant", 501_481, message);
        }
    }
    if let Some(assertion) = form.get("client_assertion") {
        world.used_assertions.insert(assertion.to_owned());
    }
    if let Some(code) = world.flows.codes.get_mut(code) {
        code.redeemed = true;
    }
    let id_token = id_token(world, &known, tweaks);
    let mut body = Map::new();
    body.insert("token_type".to_owned(), json!("Bearer"));
    body.insert("scope".to_owned(), json!(known.request.scope));
    body.insert("expires_in".to_owned(), json!(3599));
    body.insert("ext_expires_in".to_owned(), json!(3599));
    body.insert("access_token".to_owned(), json!(format!("EwB{}", random_token())));
    body.insert("id_token".to_owned(), json!(id_token));
    Ok(body)
}

#[cfg(test)]
mod tests;
