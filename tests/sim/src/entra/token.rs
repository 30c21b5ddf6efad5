//! The token endpoint, and what the APIs make of the tokens.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::{
    Aadsts, Authority, array,
    consent::{no_such_resource, resource_of_scope},
    flow::Person,
    is_guid,
    keys::{Jwt, s256, thumbprints},
    missing, no_store, parameters, unknown_app,
};
use crate::{
    clock::{guid, opaque},
    http::{Request, Response, decode},
    store::{AppRecord, Propagation, Resource},
    world::{Tweaks, World},
};

const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const CODE_LIFETIME: SignedDuration = SignedDuration::from_mins(10);
/// What Entra's validation allows clocks to differ by.
const SKEW: SignedDuration = SignedDuration::from_mins(5);
/// Held by everybody who has no other directory role.
const DEFAULT_USER_ROLE: &str = "b79fbf4d-3ef9-4689-8143-76b194e85509";

pub(super) fn post(world: &mut World, request: &Request, segment: &str, v1: bool, tweaks: &Tweaks) -> Response {
    let outcome = match tweaks.aadsts {
        Some(code) => Err(Aadsts::of_code(code)),
        None => redeem(world, request, segment, v1, tweaks),
    };
    match outcome {
        Ok(mut body) => {
            if v1 || tweaks.expires_in_string {
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

/// Form parameters, with the credentials of HTTP Basic among them.
struct Form {
    values: BTreeMap<String, String>,
}

impl Form {
    fn read(request: &Request, v1: bool) -> Result<Self, Aadsts> {
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
        if values.contains_key("resource") && !v1 {
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

    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn need(&self, name: &str) -> Result<&str, Aadsts> {
        self.get(name).ok_or_else(|| missing(name))
    }
}

fn redeem(
    world: &mut World,
    request: &Request,
    segment: &str,
    v1: bool,
    tweaks: &Tweaks,
) -> Result<Map<String, Value>, Aadsts> {
    let form = Form::read(request, v1)?;
    let grant = form.need("grant_type")?;
    let client_id = form.need("client_id")?;
    let authority = Authority::parse(world, segment)?;
    match grant {
        "client_credentials" => client_credentials(world, &form, client_id, &authority, v1, tweaks),
        "authorization_code" if !v1 => authorization_code(world, &form, client_id, &authority, segment, tweaks),
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
    v1: bool,
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
    let asked = if v1 { form.need("resource")? } else { form.need("scope")? };
    let record = world.apps.get(client_id).ok_or_else(|| unknown_app(client_id, tid))?;
    let appidacr = authenticate(world, record, form, tid, authority)?;
    if record.app.single_tenant && record.app.home_tenant_id != *tid {
        return Err(unknown_app(client_id, tid));
    }
    let resource = if v1 {
        Resource::of_identifier(asked).ok_or_else(|| no_such_resource(asked, tid))?
    } else {
        resource_of_scope(asked)?
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
    world.turn += 1;
    // Microsoft spreads lifetimes between 60 and 90 minutes.
    let spread = 3600 + i64::try_from(world.turn * 397 % 1800).unwrap_or(0);
    let lifetime = tweaks.expires_in.or(policy).unwrap_or(spread);
    let now = world.now();
    let mut claims = access_claims(tid, client_id, resource, &principal.oid, now, lifetime);
    claims.insert("appidacr".to_owned(), json!(appidacr));
    claims.insert("app_displayname".to_owned(), json!(display_name));
    if !(roles.is_empty() || roleless || tweaks.missing_roles) {
        claims.insert("roles".to_owned(), array(&roles));
    }
    let token = issue_access_token(world, claims, tweaks);
    let mut body = Map::new();
    body.insert("token_type".to_owned(), json!("Bearer"));
    body.insert("expires_in".to_owned(), json!(lifetime - 1));
    body.insert("ext_expires_in".to_owned(), json!(lifetime - 1));
    if lifetime >= 7200 {
        body.insert("refresh_in".to_owned(), json!(lifetime / 2));
    }
    if v1 {
        body.insert("expires_on".to_owned(), json!((now.as_second() + lifetime).to_string()));
        body.insert("not_before".to_owned(), json!(now.as_second().to_string()));
        body.insert("resource".to_owned(), json!(asked));
    }
    body.insert("access_token".to_owned(), json!(token));
    Ok(body)
}

fn access_claims(
    tid: &str,
    client_id: &str,
    resource: Resource,
    oid: &str,
    now: Timestamp,
    lifetime: i64,
) -> Map<String, Value> {
    let issuer = format!("https://sts.windows.net/{tid}/");
    let iat = now.as_second();
    let claims = json!({
        "aud": resource.audience(), "iss": issuer, "iat": iat, "nbf": iat, "exp": iat + lifetime,
        "aio": opaque(), "appid": client_id, "idp": issuer, "idtyp": "app", "oid": oid, "rh": opaque(), "sub": oid,
        "tid": tid, "uti": opaque(), "ver": "1.0",
    });
    match claims {
        Value::Object(claims) => claims,
        _ => Map::new(),
    }
}

/// A token without the token endpoint.
pub(crate) fn issue(world: &mut World, tenant_id: &str, client_id: &str, roles: &[&str], resource: Resource) -> String {
    let principal = world.tenants.get(tenant_id).and_then(|tenant| tenant.principals.get(client_id));
    let oid = principal.map_or_else(guid, |principal| principal.oid.clone());
    let mut claims = access_claims(tenant_id, client_id, resource, &oid, world.now(), 3600);
    claims.insert("appidacr".to_owned(), json!("1"));
    if !roles.is_empty() {
        claims.insert("roles".to_owned(), json!(roles));
    }
    issue_access_token(world, claims, &Tweaks::default())
}

/// Signs access token claims, with what faults make of them.
fn issue_access_token(world: &mut World, mut claims: Map<String, Value>, tweaks: &Tweaks) -> String {
    if let Some(tid) = &tweaks.tid {
        claims.insert("tid".to_owned(), json!(tid));
        claims.insert("iss".to_owned(), json!(format!("https://sts.windows.net/{tid}/")));
    }
    replace(&mut claims, &tweaks.claims);
    if tweaks.opaque {
        let token = format!("EwB{}", opaque());
        world.opaque_tokens.insert(token.clone(), claims);
        return token;
    }
    let key = world.keys.current();
    key.sign(&json!({"typ": "JWT", "alg": "RS256", "x5t": key.kid, "kid": key.kid}), &claims)
}

fn replace(claims: &mut Map<String, Value>, with: &Map<String, Value>) {
    for (name, value) in with {
        if value.is_null() {
            claims.remove(name);
        } else {
            claims.insert(name.clone(), value.clone());
        }
    }
}

/// What an API learns from a bearer: its claims if Entra signed it, else why not.
pub(crate) fn verify_access_token(world: &World, token: &str) -> Result<Map<String, Value>, &'static str> {
    let claims = if let Some(claims) = world.opaque_tokens.get(token) {
        claims.clone()
    } else {
        let jwt = Jwt::parse(token).ok_or("IDX14100: JWT is not well formed.")?;
        let key = jwt.header("kid").and_then(|kid| world.keys.find(kid)).ok_or("Signing key was not found.")?;
        if !key.signed(&jwt) {
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

/// Checks the app's credential. `appidacr` of the token: 1 for a secret, 2 for an assertion.
fn authenticate(
    world: &World,
    record: &AppRecord,
    form: &Form,
    tenant: &str,
    authority: &Authority,
) -> Result<&'static str, Aadsts> {
    let refuse = |code, message: String| Err(Aadsts::new(401, "invalid_client", code, message));
    let client_id = &record.app.client_id;
    match (form.get("client_secret"), form.get("client_assertion")) {
        (Some(secret), None) => {
            let now = world.now();
            let found = record.passwords.iter().find(|known| known.secret == secret && known.known_from <= now);
            match found {
                Some(password) if password.end <= now => refuse(
                    7_000_222,
                    format!(
                        "The provided client secret keys for app '{client_id}' are expired. Visit the Azure portal to \
                         create new keys for your app: https://aka.ms/NewClientSecret, or consider using certificate \
                         credentials for added security: https://aka.ms/certCreds."
                    ),
                ),
                Some(_) => Ok("1"),
                None => refuse(
                    7_000_215,
                    format!(
                        "Invalid client secret provided. Ensure the secret being sent in the request is the client \
                         secret value, not the client secret ID, for a secret added to app '{client_id}'."
                    ),
                ),
            }
        }
        (None, Some(assertion)) => {
            if form.get("client_assertion_type") != Some(JWT_BEARER) {
                return Err(missing("client_assertion_type"));
            }
            client_assertion(world, record, assertion, tenant, authority)?;
            Ok("2")
        }
        (Some(_), Some(_)) => {
            Err(Aadsts::new(400, "invalid_request", 9_002_313, "Invalid request. More than one client credential."))
        }
        (None, None) => refuse(
            7_000_218,
            "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.".to_owned(),
        ),
    }
}

fn client_assertion(
    world: &World,
    record: &AppRecord,
    assertion: &str,
    tenant: &str,
    authority: &Authority,
) -> Result<(), Aadsts> {
    let refuse = |code, message: &str| Err(Aadsts::new(401, "invalid_client", code, message));
    let Some(jwt) = Jwt::parse(assertion) else {
        return refuse(50_027, "JWT token is invalid or malformed.");
    };
    let client_id = record.app.client_id.as_str();
    if jwt.claim("iss") != Some(client_id) && !record.app.federated_credentials.is_empty() {
        return federated(world, record, &jwt);
    }
    if !matches!(jwt.header("alg"), Some("PS256" | "RS256")) {
        return refuse(5_002_723, "Invalid JWT token. The algorithm of the client assertion is not supported.");
    }
    let (x5t, x5t_s256) = (jwt.header("x5t"), jwt.header("x5t#S256"));
    let certificate = record.app.certificates.iter().find(|der| {
        let (sha1, sha256) = thumbprints(der);
        match (x5t, x5t_s256) {
            (_, Some(print)) => print == sha256,
            (Some(print), None) => print == sha1,
            (None, None) => false,
        }
    });
    let Some(certificate) = certificate else {
        let print = x5t_s256.or(x5t).unwrap_or_default();
        return refuse(
            700_027,
            &format!(
                "The certificate with identifier used to sign the client assertion is not registered on application. \
                 [Reason - The key was not found. Thumbprint of key used by client: '{print}'.]"
            ),
        );
    };
    if !jwt.is_signed_by_certificate(certificate) {
        return refuse(700_027, "Client assertion failed signature validation.");
    }
    if jwt.claim("iss") != Some(client_id) || jwt.claim("sub") != Some(client_id) {
        return refuse(700_021, "Client assertion application identifier doesn't match 'client_id' parameter.");
    }
    let place = match authority {
        Authority::Tenant(tid) => tid.as_str(),
        Authority::Organizations => "organizations",
        Authority::Common => "common",
    };
    let audience = |place: &str| format!("https://login.microsoftonline.com/{place}/oauth2/v2.0/token");
    let aud = jwt.claim("aud");
    if aud != Some(&audience(place)) && aud != Some(&audience(tenant)) {
        return refuse(700_023, "Client assertion audience claim does not match Realm issuer.");
    }
    within_time(world, &jwt)?;
    if jwt.claim("jti").is_none() {
        return refuse(50_027, "JWT token is invalid or malformed: 'jti' is missing.");
    }
    if world.behaviour.refuse_assertion_replay && world.used_assertions.contains(assertion) {
        return refuse(50_013, "Assertion failed: it has been used before.");
    }
    Ok(())
}

fn within_time(world: &World, jwt: &Jwt<'_>) -> Result<(), Aadsts> {
    let now = world.now().as_second();
    let time = |name: &str| jwt.claims.get(name).and_then(Value::as_i64);
    let begun = time("nbf").or_else(|| time("iat")).is_none_or(|nbf| nbf <= now + SKEW.as_secs());
    if !begun || time("exp").is_none_or(|exp| exp + SKEW.as_secs() <= now) {
        return Err(Aadsts::new(
            401,
            "invalid_client",
            700_024,
            "Client assertion is not within its valid time range. Review the documentation at \
             https://docs.microsoft.com/azure/active-directory/develop/active-directory-certificate-credentials .",
        ));
    }
    Ok(())
}

/// Issuer, audience and subject are compared exactly, and Entra names the first that differs.
fn federated(world: &World, record: &AppRecord, jwt: &Jwt<'_>) -> Result<(), Aadsts> {
    let refuse = |code, what: &str, value: Option<&str>| {
        let message = format!(
            "No matching federated identity record found for presented assertion {what} '{}'. Please check your \
             federated identity credential Subject, Audience and Issuer against the presented assertion.",
            value.unwrap_or_default()
        );
        Err(Aadsts::new(401, "invalid_client", code, message))
    };
    let audience = match jwt.claims.get("aud") {
        Some(Value::String(aud)) => Some(aud.as_str()),
        Some(Value::Array(items)) if items.len() == 1 => items[0].as_str(),
        _ => None,
    };
    let known = &record.app.federated_credentials;
    let by_issuer = || known.iter().filter(|known| Some(known.issuer.as_str()) == jwt.claim("iss"));
    if by_issuer().next().is_none() {
        return refuse(700_211, "issuer", jwt.claim("iss"));
    }
    if !by_issuer().any(|known| Some(known.subject.as_str()) == jwt.claim("sub")) {
        return refuse(700_213, "subject", jwt.claim("sub"));
    }
    let Some(credential) = by_issuer()
        .find(|known| Some(known.subject.as_str()) == jwt.claim("sub") && Some(known.audience.as_str()) == audience)
    else {
        return refuse(700_212, "audience", audience);
    };
    if !jwt.is_signed_by_jwks(&credential.jwks) {
        let message = "Assertion failed signature validation.";
        return Err(Aadsts::new(401, "invalid_client", 50_013, message));
    }
    within_time(world, jwt)
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
    let code = form.need("code")?;
    let redirect_uri = form.need("redirect_uri")?;
    let record = world.apps.get(client_id).ok_or_else(|| unknown_app(client_id, segment))?;
    let Some(known) = world.flows.codes.get(code).cloned() else {
        return refuse("invalid_grant", 9_002_313, "Invalid request. Request is malformed or invalid.");
    };
    authenticate(world, record, form, &known.person.tenant_id, authority)?;
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
        Authority::Tenant(tid) => *tid == known.person.tenant_id,
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
    let wids = record.app.wids;
    if let Some(assertion) = form.get("client_assertion") {
        world.used_assertions.insert(assertion.to_owned());
    }
    if let Some(code) = world.flows.codes.get_mut(code) {
        code.redeemed = true;
    }
    let id_token = id_token(world, &known.person, client_id, known.request.nonce.as_deref(), wids, tweaks);
    let mut body = Map::new();
    body.insert("token_type".to_owned(), json!("Bearer"));
    body.insert("scope".to_owned(), json!(known.request.scope));
    body.insert("expires_in".to_owned(), json!(3599));
    body.insert("ext_expires_in".to_owned(), json!(3599));
    body.insert("access_token".to_owned(), json!(format!("EwB{}", opaque())));
    body.insert("id_token".to_owned(), json!(id_token));
    Ok(body)
}

fn id_token(
    world: &World,
    person: &Person,
    client_id: &str,
    nonce: Option<&str>,
    wids: bool,
    tweaks: &Tweaks,
) -> String {
    let tenant = world.tenants.get(&person.tenant_id);
    let user = tenant.and_then(|tenant| tenant.user(&person.oid)).cloned().unwrap_or_default();
    let domain = tenant.map_or("", |tenant| tenant.seed.domain.as_str());
    let tid = tweaks.tid.as_deref().unwrap_or(&person.tenant_id);
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
    if let Some(nonce) = nonce {
        put("nonce", json!(nonce));
    }
    put("oid", json!(person.oid));
    put("preferred_username", json!(upn));
    put("rh", json!(opaque()));
    put("sid", json!(guid()));
    put("sub", json!(s256(&format!("{client_id}{}", person.oid))));
    put("tid", json!(tid));
    put("uti", json!(opaque()));
    put("ver", json!("2.0"));
    if wids {
        let mut roles = user.wids;
        roles.push(DEFAULT_USER_ROLE.to_owned());
        roles.retain(|role| is_guid(role));
        put("wids", array(&roles));
    }
    replace(&mut claims, &tweaks.claims);
    let key = world.keys.current();
    key.sign(&json!({"typ": "JWT", "alg": "RS256", "kid": key.kid}), &claims)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use serde_json::{Value, json};

    use super::{JWT_BEARER, Jwt};
    use crate::{
        App, FederatedCredential, Propagation,
        entra::keys::Keys,
        testing::{CLIENT, CONTOSO, FABRIKAM, HOME, REDIRECT, Rig, SECRET, rig},
    };

    const SCOPE: &str = "https://graph.microsoft.com/.default";

    fn form<'a>() -> Vec<(&'a str, &'a str)> {
        vec![("grant_type", "client_credentials"), ("client_id", CLIENT), ("client_secret", SECRET), ("scope", SCOPE)]
    }

    fn with<'a>(name: &str, value: &'a str) -> Vec<(&'a str, &'a str)> {
        form().into_iter().map(|(known, old)| (known, if known == name { value } else { old })).collect()
    }

    fn without<'a>(name: &str) -> Vec<(&'a str, &'a str)> {
        form().into_iter().filter(|(known, _)| *known != name).collect()
    }

    async fn refused(rig: &Rig, place: &str, form: &[(&str, &str)], status: u16, error: &str, code: u32) {
        let response = rig.token(place, form).await;
        let body = response.json();
        assert_eq!((response.status, &body["error"], &body["error_codes"]), (status, &json!(error), &json!([code])));
        let description = body["error_description"].as_str().unwrap();
        assert!(description.starts_with(&format!("AADSTS{code}: ")), "{description}");
        assert!(description.contains("\r\nTrace ID: ") && description.contains("\r\nTimestamp: "), "{description}");
    }

    #[tokio::test]
    async fn a_token_carries_the_roles_of_its_resource() {
        let rig = rig().await;
        rig.sim.grant(CONTOSO, CLIENT, &["SecurityIncident.Read.All", "Incident.Read.All"]);
        let response = rig.token(CONTOSO, &form()).await;
        assert_eq!(response.header("cache-control"), "no-store, no-cache");
        let body = response.json();
        let lifetime = body["expires_in"].as_i64().unwrap();
        assert!((3599..5400).contains(&lifetime));
        let jwt = Jwt::parse(body["access_token"].as_str().unwrap()).unwrap();
        assert_eq!(jwt.claims["roles"], json!(["SecurityIncident.Read.All"]));
        assert_eq!(jwt.claim("aud"), Some("https://graph.microsoft.com"));
        assert_eq!(jwt.claim("iss"), Some(&*format!("https://sts.windows.net/{CONTOSO}/")));
        assert_eq!(
            (jwt.claim("tid"), jwt.claim("appid"), jwt.claim("ver")),
            (Some(CONTOSO), Some(CLIENT), Some("1.0"))
        );
        let by_domain = rig.token("contoso.example", &form()).await;
        assert_eq!(by_domain.status, 200);
    }

    #[tokio::test]
    async fn each_mistake_has_its_code() {
        let rig = rig().await;
        rig.sim.grant(CONTOSO, CLIENT, &["SecurityIncident.Read.All"]);
        let mut resource = form();
        resource.push(("resource", "https://graph.microsoft.com"));
        let mut unknown = form();
        unknown.push(("colour", "blue"));
        let mut twice = form();
        twice.push(("scope", SCOPE));
        let both = format!("{SCOPE} https://api.security.microsoft.com/.default");
        refused(&rig, CONTOSO, &resource, 400, "invalid_request", 901_002).await;
        refused(&rig, CONTOSO, &unknown, 400, "invalid_request", 9_002_313).await;
        refused(&rig, CONTOSO, &twice, 400, "invalid_request", 9_000_411).await;
        refused(&rig, CONTOSO, &without("grant_type"), 400, "invalid_request", 900_144).await;
        refused(&rig, CONTOSO, &without("scope"), 400, "invalid_request", 900_144).await;
        refused(&rig, CONTOSO, &without("client_secret"), 401, "invalid_client", 7_000_218).await;
        refused(&rig, CONTOSO, &with("client_secret", "s3cr~t "), 401, "invalid_client", 7_000_215).await;
        refused(&rig, CONTOSO, &with("grant_type", "password"), 400, "unsupported_grant_type", 70_003).await;
        refused(&rig, CONTOSO, &with("client_id", FABRIKAM), 400, "unauthorized_client", 700_016).await;
        refused(&rig, CONTOSO, &with("scope", "https://graph.microsoft.com"), 400, "invalid_scope", 1_002_012).await;
        refused(&rig, CONTOSO, &with("scope", &both), 400, "invalid_request", 700_022).await;
        refused(&rig, CONTOSO, &with("scope", "https://other.example/.default"), 400, "invalid_resource", 500_011)
            .await;
        refused(&rig, FABRIKAM, &form(), 401, "invalid_client", 7_000_229).await;
        refused(&rig, "common", &form(), 400, "invalid_request", 50_059).await;
        refused(&rig, "organizations", &form(), 400, "invalid_request", 50_059).await;
        refused(&rig, CLIENT, &form(), 400, "invalid_request", 90_002).await;
        refused(&rig, "nonsense", &form(), 400, "invalid_request", 900_023).await;
        rig.sim.disable_service_principal(CONTOSO, CLIENT);
        refused(&rig, CONTOSO, &form(), 400, "unauthorized_client", 7_000_112).await;
        rig.sim.expire_client_secret(CLIENT, SECRET);
        refused(&rig, CONTOSO, &form(), 401, "invalid_client", 7_000_222).await;
        let url = format!("{}/{CONTOSO}/oauth2/v2.0/token", rig.sim.entra_url());
        let json = rig.send(rig.http.post(url).json(&json!({"grant_type": "client_credentials"}))).await;
        assert_eq!(json.json()["error_codes"], json!([900_144]));
    }

    #[tokio::test]
    async fn basic_authentication_is_form_encoded_first() {
        let rig = rig().await;
        rig.sim.grant(CONTOSO, CLIENT, &["SecurityIncident.Read.All"]);
        let url = format!("{}/{CONTOSO}/oauth2/v2.0/token", rig.sim.entra_url());
        let form = [("grant_type", "client_credentials"), ("scope", SCOPE)];
        let encoded = crate::http::encode(SECRET);
        let right = rig.send(rig.http.post(&url).basic_auth(CLIENT, Some(encoded)).form(&form)).await;
        assert_eq!(right.status, 200, "{}", right.text);
        let raw = rig.send(rig.http.post(&url).basic_auth(CLIENT, Some(SECRET)).form(&form)).await;
        assert_ne!(raw.status, 200);
    }

    #[tokio::test]
    async fn consent_spreads_as_it_is_told_to() {
        let rig = rig().await;
        rig.sim.update_tenant(CONTOSO, |tenant| {
            tenant.propagation = Propagation { refused: 1, code: 700_016, roleless: 1 };
        });
        let url = format!(
            "{}/{CONTOSO}/v2.0/adminconsent?client_id={CLIENT}&redirect_uri={REDIRECT}&scope={SCOPE}&state=x",
            rig.sim.entra_url()
        );
        rig.sim.consent(&url, CONTOSO, "admin@contoso.example", crate::Decision::Accept).unwrap();
        refused(&rig, CONTOSO, &form(), 400, "unauthorized_client", 700_016).await;
        let roles = |response: crate::testing::Response| {
            Jwt::parse(response.json()["access_token"].as_str().unwrap()).unwrap().claims.get("roles").cloned()
        };
        assert_eq!(roles(rig.token(CONTOSO, &form()).await), None);
        assert_eq!(roles(rig.token(CONTOSO, &form()).await), Some(json!(["SecurityIncident.Read.All"])));
    }

    fn assertion(keys: &Keys, header: &Value, claims: &Value) -> String {
        keys.current().sign(header, claims.as_object().unwrap())
    }

    #[tokio::test]
    async fn client_assertions_are_checked_to_the_letter() {
        let rig = rig().await;
        let keys = Keys::new().unwrap();
        let (x5t, x5t_s256) = super::thumbprints(keys.current().certificate());
        rig.sim.register_app(App {
            client_id: CLIENT.into(),
            home_tenant_id: HOME.into(),
            certificates: vec![keys.current().certificate().to_vec()],
            ..App::default()
        });
        rig.sim.grant(CONTOSO, CLIENT, &["SecurityIncident.Read.All"]);
        let now = rig.sim.clock().now().as_second();
        let audience = format!("https://login.microsoftonline.com/{CONTOSO}/oauth2/v2.0/token");
        let header = json!({"alg": "RS256", "typ": "JWT", "x5t#S256": x5t_s256});
        let claims = json!({"aud": audience, "iss": CLIENT, "sub": CLIENT, "jti": "1", "nbf": now, "exp": now + 300});
        let changed = |name: &str, value: Value| {
            let mut claims = claims.clone();
            claims[name] = value;
            assertion(&keys, &header, &claims)
        };
        let form = |assertion: String| {
            let mut form = without("client_secret");
            form.push(("client_assertion_type", JWT_BEARER));
            form.push(("client_assertion", assertion.leak()));
            form
        };
        let good = form(assertion(&keys, &header, &claims));
        let response = rig.token(CONTOSO, &good).await;
        assert_eq!(response.status, 200, "{}", response.text);
        assert_eq!(Jwt::parse(response.json()["access_token"].as_str().unwrap()).unwrap().claim("appidacr"), Some("2"));
        refused(&rig, CONTOSO, &good, 401, "invalid_client", 50_013).await;
        let legacy = json!({"alg": "RS256", "typ": "JWT", "x5t": x5t});
        let mut fresh = claims.clone();
        fresh["jti"] = json!("2");
        assert_eq!(rig.token(CONTOSO, &form(assertion(&keys, &legacy, &fresh))).await.status, 200);
        for (bad, code) in [
            (changed("aud", json!("https://login.microsoftonline.com/common/oauth2/v2.0/token")), 700_023),
            (changed("sub", json!("x")), 700_021),
            (changed("exp", json!(now - 301)), 700_024),
            (changed("nbf", json!(now + 301)), 700_024),
            (assertion(&keys, &json!({"alg": "RS256", "x5t#S256": "x"}), &claims), 700_027),
            (assertion(&keys, &json!({"alg": "PS256", "x5t#S256": x5t_s256}), &claims), 700_027),
            (assertion(&keys, &json!({"alg": "none", "x5t#S256": x5t_s256}), &claims), 5_002_723),
            ("nonsense".to_owned(), 50_027),
        ] {
            refused(&rig, CONTOSO, &form(bad), 401, "invalid_client", code).await;
        }
    }

    #[tokio::test]
    async fn another_providers_token_stands_for_the_app() {
        let rig = rig().await;
        let keys = Keys::new().unwrap();
        rig.sim.register_app(App {
            client_id: CLIENT.into(),
            home_tenant_id: HOME.into(),
            federated_credentials: vec![FederatedCredential {
                issuer: "https://x.tokens.sts.global.api.aws".into(),
                subject: "arn:aws:iam::123456789012:role/Mandate".into(),
                audience: "api://AzureADTokenExchange".into(),
                jwks: keys.jwks(""),
            }],
            ..App::default()
        });
        rig.sim.grant(CONTOSO, CLIENT, &["SecurityIncident.Read.All"]);
        let exp = rig.sim.clock().now().checked_add(SignedDuration::from_mins(5)).unwrap().as_second();
        let token = |issuer: &str, subject: &str, audience: &str| {
            let header = json!({"alg": "RS256", "kid": keys.current().kid});
            let token = assertion(&keys, &header, &json!({"iss": issuer, "sub": subject, "aud": audience, "exp": exp}));
            let mut form = without("client_secret");
            form.push(("client_assertion_type", JWT_BEARER));
            form.push(("client_assertion", token.leak()));
            form
        };
        let (issuer, subject) = ("https://x.tokens.sts.global.api.aws", "arn:aws:iam::123456789012:role/Mandate");
        let audience = "api://AzureADTokenExchange";
        assert_eq!(rig.token(CONTOSO, &token(issuer, subject, audience)).await.status, 200);
        refused(&rig, CONTOSO, &token("https://y", subject, audience), 401, "invalid_client", 700_211).await;
        refused(&rig, CONTOSO, &token(issuer, subject, "x"), 401, "invalid_client", 700_212).await;
        refused(&rig, CONTOSO, &token(issuer, &subject.to_lowercase(), audience), 401, "invalid_client", 700_213).await;
    }
}
