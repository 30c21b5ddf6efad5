//! The app's credential at the token endpoint: secret, certificate or federated token.

use serde_json::Value;

use super::{
    Aadsts, Authority,
    keys::{Jwt, Thumbprints},
    missing,
    token_endpoint::Form,
    tokens::SKEW,
};
use crate::{store::AppRecord, world::World};

pub(super) const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Checks the app's credential. Returns the token's `appidacr`: 1 for a secret, 2 for an assertion.
pub(super) fn authenticate_client(
    world: &World,
    record: &AppRecord,
    form: &Form,
    tenant_id: &str,
    authority: &Authority,
) -> Result<&'static str, Aadsts> {
    let refuse = |code, message: String| Err(Aadsts::new(401, "invalid_client", code, message));
    let client_id = &record.app.client_id;
    match (form.get("client_secret"), form.get("client_assertion")) {
        (Some(secret), None) => {
            let now = world.now();
            let found = record.passwords.iter().find(|known| known.secret == secret && known.usable_from <= now);
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
            check_client_assertion(world, record, assertion, &accepted_audiences(tenant_id, authority))?;
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

/// The token endpoints that a client assertion may name: the one of the request's path and the tenant's own.
fn accepted_audiences(tenant_id: &str, authority: &Authority) -> [String; 2] {
    let path_segment = match authority {
        Authority::Tenant(tid) => tid.as_str(),
        Authority::Organizations => "organizations",
        Authority::Common => "common",
    };
    [path_segment, tenant_id].map(|segment| format!("https://login.microsoftonline.com/{segment}/oauth2/v2.0/token"))
}

fn check_client_assertion(
    world: &World,
    record: &AppRecord,
    assertion: &str,
    audiences: &[String],
) -> Result<(), Aadsts> {
    let refuse = |code, message: &str| Err(Aadsts::new(401, "invalid_client", code, message));
    let Some(jwt) = Jwt::parse(assertion) else {
        return refuse(50_027, "JWT token is invalid or malformed.");
    };
    let client_id = record.app.client_id.as_str();
    if jwt.claim("iss") != Some(client_id) && !record.app.federated_credentials.is_empty() {
        return check_federated_token(world, record, &jwt);
    }
    if !matches!(jwt.header("alg"), Some("PS256" | "RS256")) {
        return refuse(5_002_723, "Invalid JWT token. The algorithm of the client assertion is not supported.");
    }
    let (x5t, x5t_s256) = (jwt.header("x5t"), jwt.header("x5t#S256"));
    let certificate = record.app.certificates.iter().find(|der| {
        let thumbprints = Thumbprints::of(der);
        match (x5t, x5t_s256) {
            (_, Some(thumbprint)) => thumbprint == thumbprints.sha256,
            (Some(thumbprint), None) => thumbprint == thumbprints.sha1,
            (None, None) => false,
        }
    });
    let Some(certificate) = certificate else {
        let thumbprint = x5t_s256.or(x5t).unwrap_or_default();
        return refuse(
            700_027,
            &format!(
                "The certificate with identifier used to sign the client assertion is not registered on application. \
                 [Reason - The key was not found. Thumbprint of key used by client: '{thumbprint}'.]"
            ),
        );
    };
    if !jwt.is_signed_by_certificate(certificate) {
        return refuse(700_027, "Client assertion failed signature validation.");
    }
    if jwt.claim("iss") != Some(client_id) || jwt.claim("sub") != Some(client_id) {
        return refuse(700_021, "Client assertion application identifier doesn't match 'client_id' parameter.");
    }
    if !jwt.claim("aud").is_some_and(|aud| audiences.iter().any(|accepted| accepted == aud)) {
        return refuse(700_023, "Client assertion audience claim does not match Realm issuer.");
    }
    check_validity_period(world, &jwt)?;
    if jwt.claim("jti").is_none() {
        return refuse(50_027, "JWT token is invalid or malformed: 'jti' is missing.");
    }
    if world.behaviour.refuse_assertion_replay && world.used_assertions.contains(assertion) {
        return refuse(50_013, "Assertion failed: it has been used before.");
    }
    Ok(())
}

fn check_validity_period(world: &World, jwt: &Jwt<'_>) -> Result<(), Aadsts> {
    let now = world.now().as_second();
    let time = |name: &str| jwt.claims.get(name).and_then(Value::as_i64);
    let started = time("nbf").or_else(|| time("iat")).is_none_or(|nbf| nbf <= now + SKEW.as_secs());
    if !started || time("exp").is_none_or(|exp| exp + SKEW.as_secs() <= now) {
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

/// Checks a federated token. Issuer, subject and audience are compared exactly, and the error names the first that
/// differs.
fn check_federated_token(world: &World, record: &AppRecord, jwt: &Jwt<'_>) -> Result<(), Aadsts> {
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
    check_validity_period(world, jwt)
}
