//! OpenID Connect discovery documents and JWKS.

use serde_json::json;

use super::{Aadsts, Authority, EndpointVersion, stamp};
use crate::{clock::guid, faults::Host, http::Response, world::World};

/// Issuer template of v2 tokens.
const ISSUER_V2: &str = "https://login.microsoftonline.com/{tenantid}/v2.0";
const ISSUER_V1: &str = "https://sts.windows.net/{tenantid}/";

fn cached(response: Response) -> Response {
    response.with("cache-control", "max-age=86400, private").with("access-control-allow-origin", "*")
}

pub(super) fn keys(world: &World, version: EndpointVersion) -> Response {
    let issuer = match version {
        EndpointVersion::V1 => ISSUER_V1,
        EndpointVersion::V2 => ISSUER_V2,
    };
    cached(Response::json(200, &world.keys.jwks(issuer)))
}

/// The v2 discovery document. Its endpoints are the simulator's; its issuer is always Microsoft's.
pub(super) fn configuration(world: &World, segment: &str) -> Response {
    let (path_segment, issuer) = match Authority::parse(world, segment) {
        Ok(Authority::Tenant(tid)) => (tid.clone(), ISSUER_V2.replace("{tenantid}", &tid)),
        Ok(Authority::Organizations | Authority::Common) => (segment.to_owned(), ISSUER_V2.to_owned()),
        Err(error) => return error_response(world, &error),
    };
    let base = format!("{}/{path_segment}", world.url(Host::Entra));
    cached(Response::json(
        200,
        &json!({
            "token_endpoint": format!("{base}/oauth2/v2.0/token"),
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
            "jwks_uri": format!("{base}/discovery/v2.0/keys"),
            "response_modes_supported": ["query", "fragment", "form_post"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
            "issuer": issuer,
            "request_uri_parameter_supported": false,
            "userinfo_endpoint": "https://graph.microsoft.com/oidc/userinfo",
            "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
            "claims_supported": ["sub", "iss", "cloud_instance_name", "aud", "exp", "iat", "auth_time", "acr", "nonce",
                "preferred_username", "name", "tid", "ver", "at_hash", "c_hash", "email"],
            "tenant_region_scope": if path_segment == segment && issuer == ISSUER_V2 { None } else { Some("EU") },
            "cloud_instance_name": "microsoftonline.com",
            "cloud_graph_host_name": "graph.windows.net",
            "msgraph_host": "graph.microsoft.com",
            "rbac_url": "https://pas.windows.net",
        }),
    ))
}

pub(super) fn configuration_v1(world: &World, segment: &str) -> Response {
    let (path_segment, issuer) = match Authority::parse(world, segment) {
        Ok(Authority::Tenant(tid)) => (tid.clone(), ISSUER_V1.replace("{tenantid}", &tid)),
        Ok(Authority::Organizations | Authority::Common) => (segment.to_owned(), ISSUER_V1.to_owned()),
        Err(error) => return error_response(world, &error),
    };
    let base = format!("{}/{path_segment}", world.url(Host::Entra));
    cached(Response::json(
        200,
        &json!({
            "token_endpoint": format!("{base}/oauth2/token"),
            "jwks_uri": format!("{}/common/discovery/keys", world.url(Host::Entra)),
            "issuer": issuer,
            "id_token_signing_alg_values_supported": ["RS256"],
            "cloud_instance_name": "microsoftonline.com",
            "msgraph_host": "graph.microsoft.com",
        }),
    ))
}

/// An error in the shape that the token endpoint uses.
fn error_response(world: &World, error: &Aadsts) -> Response {
    let now = world.now();
    let (trace, correlation) = (guid(), guid());
    Response::json(
        error.status,
        &json!({
            "error": "invalid_tenant",
            "error_description": error.description(&trace, &correlation, now),
            "error_codes": [error.code],
            "timestamp": stamp(now),
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": format!("https://login.microsoftonline.com/error?code={}", error.code),
        }),
    )
}
