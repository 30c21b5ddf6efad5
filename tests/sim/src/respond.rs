//! The handling of a request: faults, then the host, then the record of the call.

use std::{collections::BTreeMap, time::Duration};

use jiff::SignedDuration;

use crate::{
    caller::claimed_tenant,
    clock::http_date,
    defender, entra,
    faults::{FaultKind, Host, RetryAfter},
    graph,
    http::{Request, Response, SlowBody, TransportFaults, Truncation, decode_pairs},
    world::{Call, NextLinkTweak, Tweaks, World},
};

/// Handles a request together with the faults that affect it, and records the call.
pub(crate) fn respond(world: &mut World, request: &Request) -> (Response, TransportFaults) {
    let tenant_id = match request.host {
        Host::Entra => entra::tenant_of(world, request),
        Host::Graph | Host::Defender => claimed_tenant(world, request),
    };
    let mut effects = FaultEffects::default();
    for kind in world.faults.before_handling(request, tenant_id.as_deref()) {
        effects.apply(world, request, kind);
    }
    let mut response = if let Some(replacement) = effects.replacement.take() {
        replacement
    } else {
        let response = match request.host {
            Host::Entra => entra::respond(world, request, &effects.tweaks),
            Host::Graph => graph::respond(world, request, &effects.tweaks),
            Host::Defender => defender::respond(world, request, &effects.tweaks),
        };
        for kind in world.faults.after_handling(request, tenant_id.as_deref(), &response.incident_ids) {
            effects.apply(world, request, kind);
        }
        effects.replacement.take().unwrap_or(response)
    };
    for Rewrite { status, headers } in effects.rewrites {
        response.status = status;
        for (name, value) in headers {
            response.set(&name, &value);
        }
    }
    let now = world.now().checked_add(effects.date_skew).unwrap_or_else(|_| world.now());
    let date = if effects.has_no_date { "unknown".to_owned() } else { http_date(now) };
    response.set("date", &date);
    world.calls.push(Call {
        at: world.now(),
        host: request.host,
        tenant_id,
        method: request.method.clone(),
        path: request.path.clone(),
        query: request.query.clone(),
        status: if effects.transport.reset { 0 } else { response.status },
        form: token_request_form(request),
    });
    (response, effects.transport)
}

/// The parameters of a token request; none of any other request.
fn token_request_form(request: &Request) -> BTreeMap<String, String> {
    let body = request.is_token_request().then(|| std::str::from_utf8(&request.body).ok()).flatten();
    body.and_then(|body| decode_pairs(body).ok()).unwrap_or_default().into_iter().collect()
}

/// Another status and further headers for a response whose body stays.
struct Rewrite {
    status: u16,
    headers: Vec<(String, String)>,
}

/// The combined effect of the faults that affect one request.
#[derive(Default)]
struct FaultEffects {
    tweaks: Tweaks,
    transport: TransportFaults,
    rewrites: Vec<Rewrite>,
    /// Added to the time of the `Date` header.
    date_skew: SignedDuration,
    has_no_date: bool,
    /// The response in place of the host's own.
    replacement: Option<Response>,
}

impl FaultEffects {
    fn apply(&mut self, world: &World, request: &Request, kind: FaultKind) {
        match kind {
            FaultKind::Status { status, body, headers } => {
                let mut response = match body {
                    Some(body) => Response::new(status, content_type_of(&body), body),
                    None => error_response(world, request, status),
                };
                for (name, value) in headers {
                    response.set(&name, &value);
                }
                self.replacement = Some(response);
            }
            FaultKind::Throttle { retry_after } => self.replacement = Some(throttled(world, request, retry_after)),
            FaultKind::BadGateway => {
                let body =
                    "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>\r\n";
                self.replacement = Some(Response::new(502, "text/html", body));
            }
            FaultKind::Reset => {
                self.transport.reset = true;
                self.replacement = Some(Response::empty(500));
            }
            FaultKind::ExpiredSkiptoken => {
                self.replacement = Some(match request.host {
                    Host::Defender => defender::error(400, "ODataError", "The skip token has expired."),
                    _ => graph::bad_request(
                        world,
                        request,
                        "Skip token is expired. Please restart the request from the first page.",
                    ),
                });
            }
            FaultKind::Hang { millis } => self.transport.delay += Duration::from_millis(millis),
            FaultKind::Latency { least_millis, most_millis } => {
                let spread = most_millis.saturating_sub(least_millis).saturating_add(1);
                let millis = least_millis.saturating_add(world.pseudo_random() % spread);
                self.transport.delay += Duration::from_millis(millis);
            }
            FaultKind::Truncate { at } => {
                self.transport.truncate = Some(at.map_or(Truncation::Half, Truncation::Bytes));
            }
            FaultKind::Cut => self.transport.cut = true,
            FaultKind::SlowBody { chunk, millis } => {
                self.transport.slow_body = Some(SlowBody { chunk_bytes: chunk, pause: Duration::from_millis(millis) });
            }
            FaultKind::Rewrite { status, headers } => self.rewrites.push(Rewrite { status, headers }),
            FaultKind::DateSkew { seconds } => {
                self.date_skew = self.date_skew.saturating_add(SignedDuration::from_secs(seconds));
            }
            FaultKind::UnreadableDate => self.has_no_date = true,
            FaultKind::ForeignNextLink { url } => self.tweaks.next_link = Some(NextLinkTweak::Foreign(url)),
            FaultKind::EmptyPage => self.tweaks.next_link = Some(NextLinkTweak::EmptyPage),
            FaultKind::LoopingNextLink => self.tweaks.next_link = Some(NextLinkTweak::Loop),
            FaultKind::SilentCap { rows } => self.tweaks.row_cap = Some(rows),
            FaultKind::IgnoredFilter => self.tweaks.ignores_filter = true,
            FaultKind::Stale { versions } => self.tweaks.versions_behind = versions,
            FaultKind::WrongTid { tid } => self.tweaks.tid = Some(tid),
            FaultKind::OpaqueToken => self.tweaks.opaque_token = true,
            FaultKind::ExpiresInString => self.tweaks.expires_in_string = true,
            FaultKind::ExpiresIn { seconds } => self.tweaks.expires_in = Some(seconds),
            FaultKind::MissingRoles => self.tweaks.missing_roles = true,
            FaultKind::Claims { claims } => self.tweaks.claims = claims,
            FaultKind::Aadsts { code } => self.tweaks.aadsts = Some(code),
        }
    }
}

fn content_type_of(body: &str) -> &'static str {
    if body.starts_with('{') { "application/json; charset=utf-8" } else { "text/html; charset=utf-8" }
}

/// An error response with the host's own error body.
fn error_response(world: &World, request: &Request, status: u16) -> Response {
    let (graph_code, defender_code) = match status {
        400 => ("BadRequest", "BadRequest"),
        401 => ("InvalidAuthenticationToken", "Unauthorized"),
        403 => ("Forbidden", "Forbidden"),
        404 => ("NotFound", "ResourceNotFound"),
        429 => ("TooManyRequests", "TooManyRequests"),
        503 => ("ServiceUnavailable", "ServiceUnavailable"),
        504 => ("GatewayTimeout", "GatewayTimeout"),
        _ => ("InternalServerError", "InternalServerError"),
    };
    let message = "The request could not be completed.";
    match request.host {
        Host::Entra => {
            let error = if status >= 500 { "temporarily_unavailable" } else { "invalid_request" };
            entra::Aadsts::new(status, error, 90_033, "A transient error has occurred. Please try again.")
                .response(request, world.now())
        }
        Host::Graph => graph::error(world, request, status, graph_code, message),
        Host::Defender => defender::error(status, defender_code, message),
    }
}

fn throttled(world: &World, request: &Request, retry_after: RetryAfter) -> Response {
    match request.host {
        Host::Entra => {
            let text = match retry_after {
                RetryAfter::Body(seconds) => {
                    format!("The request was throttled. Please retry after {seconds} seconds.")
                }
                _ => "The request was throttled.".to_owned(),
            };
            let mut response =
                entra::Aadsts::new(429, "temporarily_unavailable", 90_055, text).response(request, world.now());
            response.headers.retain(|(name, _)| name != "retry-after");
            graph::retry_header(response, world, retry_after)
        }
        Host::Graph => graph::throttled(world, request, retry_after),
        Host::Defender => defender::throttled(world, retry_after),
    }
}

#[cfg(test)]
mod tests;
