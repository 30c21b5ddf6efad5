//! Microsoft Graph v1.0: incidents, hunting and app registrations.

mod application_json;
mod applications;
mod correlation;
pub(crate) mod hunting;
mod incident_json;
mod incidents;
mod service_principals;
#[cfg(test)]
mod tests;

use serde_json::json;

use crate::{
    caller::Caller,
    clock::{guid, http_date},
    faults::{Host, RetryAfter},
    http::{Request, Response},
    store::Resource,
    world::{Tweaks, World},
};

/// A response with Graph's error body.
pub(crate) fn error(world: &World, request: &Request, status: u16, code: &str, message: &str) -> Response {
    let id = guid();
    let client_id = request.header("client-request-id").map_or_else(|| id.clone(), str::to_owned);
    let body = json!({"error": {"code": code, "message": message, "innerError": {
        "date": world.now().strftime("%Y-%m-%dT%H:%M:%S").to_string(),
        "request-id": id,
        "client-request-id": client_id,
    }}});
    let response = Response::json(status, &body);
    match status {
        401 => response.with(
            "www-authenticate",
            "Bearer realm=\"\", authorization_uri=\"https://login.microsoftonline.com/common/oauth2/authorize\", \
             client_id=\"00000003-0000-0000-c000-000000000000\"",
        ),
        _ => response,
    }
}

pub(crate) fn bad_request(world: &World, request: &Request, message: &str) -> Response {
    error(world, request, 400, "BadRequest", message)
}

pub(crate) fn forbidden(world: &World, request: &Request, caller: &Caller, required_roles: &[&str]) -> Response {
    let message = format!(
        "Missing application roles. API application roles({}), application roles({}).",
        required_roles.join(","),
        caller.roles.join(",")
    );
    error(world, request, 403, "Forbidden", &message)
}

/// A 429 with the wait in one of five forms.
pub(crate) fn throttled(world: &World, request: &Request, retry_after: RetryAfter) -> Response {
    let message = match retry_after {
        RetryAfter::Quota { calls, seconds } => return quota_exceeded(calls, seconds),
        RetryAfter::Body(seconds) => format!("Too many requests. Please retry after {seconds} seconds."),
        _ => "Too Many Requests".to_owned(),
    };
    retry_header(error(world, request, 429, "TooManyRequests", &message), world, retry_after)
}

/// The 429 that was captured of both APIs' family.
pub(crate) fn quota_exceeded(calls: usize, seconds: u64) -> Response {
    let span = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let message = format!("API calls quota exceeded! maximum allowed {calls} per {span}");
    Response::json(429, &json!({"error": {"code": "429", "message": message, "target": guid()}}))
}

/// Sets the `Retry-After` header if the wait belongs there.
pub(crate) fn retry_header(response: Response, world: &World, retry_after: RetryAfter) -> Response {
    match retry_after {
        RetryAfter::Seconds(seconds) => response.with("retry-after", &seconds.to_string()),
        RetryAfter::Date(seconds) => {
            let wait = jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(0));
            let at = world.now().checked_add(wait).unwrap_or_else(|_| world.now());
            response.with("retry-after", &http_date(at))
        }
        RetryAfter::Body(_) | RetryAfter::Absent | RetryAfter::Quota { .. } => response,
    }
}

/// Handles a request to Graph: token, then throttling, then routes.
pub(crate) fn respond(world: &mut World, request: &Request, tweaks: &Tweaks) -> Response {
    let caller = match Caller::authenticate(world, request, Resource::Graph) {
        Ok(caller) => caller,
        Err(message) => return error(world, request, 401, "InvalidAuthenticationToken", message),
    };
    if let Some(retry_after) = world.throttle(Host::Graph, &caller.tenant_id) {
        return throttled(world, request, retry_after);
    }
    let response = match (request.method.as_str(), request.segments().as_slice()) {
        (_, ["v1.0", "security", "runHuntingQuery"]) => hunting::respond(world, request, &caller),
        ("POST", ["v1.0", "security", "incidents", "mergeIncidents" | "microsoft.graph.security.mergeIncidents"]) => {
            correlation::merge_incidents(world, request, &caller)
        }
        ("POST", ["v1.0", "security", "alerts_v2", "moveAlerts" | "microsoft.graph.security.moveAlerts"]) => {
            correlation::move_alerts(world, request, &caller)
        }
        (method, ["v1.0", "security", "incidents", rest @ ..]) => {
            incidents::respond(world, request, &caller, method, rest, tweaks)
        }
        (_, ["v1.0", first, rest @ ..]) => applications::respond(world, request, &caller, first, rest),
        _ => error(world, request, 404, "ResourceNotFound", "Resource not found for the segment."),
    };
    response.with("request-id", &guid()).with("odata-version", "4.0")
}
