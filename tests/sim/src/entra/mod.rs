//! The login host: discovery, sign-in, admin consent and tokens.

mod aadsts;
mod authorize;
mod client_authentication;
mod consent;
mod discovery;
pub(crate) mod flow;
pub(crate) mod keys;
mod page;
mod token_endpoint;
mod tokens;

use serde_json::Value;

use crate::{
    http::{Request, Response},
    world::{Tweaks, World},
};

pub(crate) use aadsts::Aadsts;
pub(crate) use tokens::{issue_app_token, verify_access_token};

use aadsts::{missing, stamp, unknown_app};

fn no_store(response: Response) -> Response {
    response.with("cache-control", "no-store, no-cache").with("pragma", "no-cache").with("expires", "-1")
}

/// The generation of a login endpoint, from its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndpointVersion {
    V1,
    V2,
}

/// The authority in a path: one tenant, or `organizations` or `common` for many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Authority {
    Organizations,
    Common,
    Tenant(String),
}

impl Authority {
    pub(crate) fn parse(world: &World, segment: &str) -> Result<Self, Aadsts> {
        match segment {
            "organizations" => Ok(Self::Organizations),
            "common" => Ok(Self::Common),
            other => match world.tenant_id(other) {
                Some(tenant_id) => Ok(Self::Tenant(tenant_id)),
                None if is_guid(other) || other.contains('.') => Err(Aadsts::new(
                    400,
                    "invalid_request",
                    90_002,
                    format!(
                        "Tenant '{other}' not found. Check to make sure you have the correct tenant ID and are signing \
                         into the correct cloud. Check with your subscription administrator, this may happen if there \
                         are no active subscriptions for the tenant."
                    ),
                )),
                None => Err(Aadsts::new(
                    400,
                    "invalid_request",
                    900_023,
                    format!(
                        "Specified tenant identifier '{other}' is neither a valid DNS name, nor a valid external domain."
                    ),
                )),
            },
        }
    }
}

pub(crate) fn is_guid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

/// The tenant of a request, by its path.
pub(crate) fn tenant_of(world: &World, request: &Request) -> Option<String> {
    world.tenant_id(request.segments().first()?)
}

/// Handles a request to the login host, by path and method.
pub(crate) fn respond(world: &mut World, request: &Request, tweaks: &Tweaks) -> Response {
    let segments = request.segments();
    match (request.method.as_str(), segments.as_slice()) {
        ("GET", [segment, "v2.0", ".well-known", "openid-configuration"]) => discovery::configuration(world, segment),
        ("GET", [segment, ".well-known", "openid-configuration"]) => discovery::configuration_v1(world, segment),
        ("GET", [_, "discovery", "v2.0", "keys"]) => discovery::keys(world, EndpointVersion::V2),
        ("GET", [_, "discovery", "keys"]) => discovery::keys(world, EndpointVersion::V1),
        ("GET", [segment, "oauth2", "v2.0", "authorize"]) => authorize::start(world, request, segment),
        ("GET", [segment, "v2.0", "adminconsent"]) => consent::start(world, request, segment, EndpointVersion::V2),
        ("GET", [segment, "adminconsent"]) => consent::start(world, request, segment, EndpointVersion::V1),
        ("POST", ["login"]) => authorize::submit(world, request, tweaks),
        ("POST", ["consent"]) => consent::submit(world, request, tweaks),
        ("POST", [segment, "oauth2", "v2.0", "token"]) => {
            token_endpoint::respond(world, request, segment, EndpointVersion::V2, tweaks)
        }
        ("POST", [segment, "oauth2", "token"]) => {
            token_endpoint::respond(world, request, segment, EndpointVersion::V1, tweaks)
        }
        ("GET", [_, "oauth2", .., "token"]) => Aadsts::new(
            400,
            "invalid_request",
            900_561,
            "The endpoint only accepts POST requests. Received a GET request.",
        )
        .response(request, world.now()),
        ("GET", ["favicon.ico"]) => Response::empty(204),
        _ => page::error(404, &Aadsts::new(404, "invalid_request", 90_014, "There is nothing here."), world.now()),
    }
}

/// Parses the parameters of a form or query. Duplicate names and bad encodings are refused.
fn parameters(text: &str) -> Result<std::collections::BTreeMap<String, String>, Aadsts> {
    let malformed =
        || Aadsts::new(400, "invalid_request", 9_002_313, "Invalid request. Request is malformed or invalid.");
    let mut parameters = std::collections::BTreeMap::new();
    for (name, value) in crate::http::decode_pairs(text).map_err(|_| malformed())? {
        if parameters.insert(name.clone(), value).is_some() {
            return Err(Aadsts::new(
                400,
                "invalid_request",
                9_000_411,
                format!("The request is not properly formatted. The parameter '{name}' is duplicated."),
            ));
        }
    }
    Ok(parameters)
}

/// `redirect_uri` with parameters added to its query.
fn with_query(redirect_uri: &str, pairs: &[(&str, String)]) -> String {
    let query: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{name}={}", crate::http::encode(value))).collect();
    let separator = if redirect_uri.contains('?') { '&' } else { '?' };
    format!("{redirect_uri}{separator}{}", query.join("&"))
}

/// A JSON array of the strings of a set.
fn array<'a>(items: impl IntoIterator<Item = &'a String>) -> Value {
    Value::Array(items.into_iter().map(|item| Value::String(item.clone())).collect())
}
