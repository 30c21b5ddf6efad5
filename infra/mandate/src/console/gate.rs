//! The rules that every request must pass, in this order: host, origin, session, key, and the form of a change.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Console, entry, pass::Exchange, routes};
use crate::problem::Problem;

/// The header with the page's key. A page of another origin cannot send it: the browser asks first, and is refused.
pub(super) const KEY_HEADER: HeaderName = HeaderName::from_static("x-mandate-console");

/// The request by which the page gets its key. It is the only one that needs none.
pub(super) const KEY_PATH: &str = "/session/key";

const API_PREFIX: &str = "/api/";

/// The page loads nothing but its own files and speaks to this server only. No text can become markup or a script, even by
/// an error of the page's own scripts (`trusted-types`).
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
     trusted-types 'none'";

const SECURITY_HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Ends the service workers and the storage that a program left in the browser which had this port before.
const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");
const STORAGE: &str = "\"storage\"";

/// Adds the headers that every response has.
pub(super) async fn with_security_headers(mut response: Response) -> Response {
    for (name, value) in SECURITY_HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Lets a request through to the routes, or responds to it.
pub(super) async fn admit(State(console): State<Arc<Console>>, request: Request, next: Next) -> Response {
    match console.check(request.method(), request.uri(), request.headers()) {
        Ok(None) => next.run(request).await,
        Ok(Some(response)) => response,
        Err(problem) if ["/", console.page.as_str()].contains(&request.uri().path()) => {
            (status_of(&problem), problem.detail).into_response()
        }
        Err(problem) => routes::refuse(&problem),
    }
}

fn status_of(problem: &Problem) -> StatusCode {
    problem.status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::FORBIDDEN)
}

fn refusal(status: u16, code: &str, detail: &str) -> Problem {
    Problem { status: Some(status), ..Problem::new(code, detail) }
}

impl Console {
    /// Checks a request by all rules. A response ends it: the redirect that follows the token.
    fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Option<Response>, Problem> {
        let host = self.check_host(uri, headers)?;
        let token = token_in(uri).filter(|_| uri.path() == "/");
        // The page that leads the browser here is a file, which is another site. The token shows that it is ours.
        let from_file = token.is_some() && is_visit_from_elsewhere(method, headers);
        if !from_file {
            check_origin(host, headers)?;
        }
        if method == Method::GET && !self.is_own_name(host) && is_visit_of_known_browser(headers) {
            return Ok(Some(self.to_own_name(uri)));
        }
        if let Some(token) = token {
            check_destination(headers)?;
            return self.exchange_token(method, &token, from_file || self.is_own_name(host)).map(Some);
        }
        if !self.pass.has_session(headers) {
            return Err(refusal(
                401,
                "no_session",
                "This browser has no session. Start `mandate console` again and open the address that it prints.",
            ));
        }
        let is_key = |value: &HeaderValue| self.pass.is_key(value.as_bytes());
        if uri.path().starts_with(API_PREFIX) && !headers.get(&KEY_HEADER).is_some_and(is_key) {
            return Err(refusal(401, "unknown_key", "The request does not come from the page of this console."));
        }
        check_form(method, headers)?;
        Ok(None)
    }

    /// Returns the host that the request names, if it is this server. A name that an attacker's DNS points to loopback is
    /// refused here.
    fn check_host<'r>(&self, uri: &Uri, headers: &'r HeaderMap) -> Result<&'r str, Problem> {
        let refused = || refusal(403, "foreign_host", "The request names another host.");
        let mut hosts = headers.get_all(header::HOST).into_iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(refused()) };
        let host = host.to_str().map_err(|_| refused())?;
        let named_in_target = uri.authority().map(axum::http::uri::Authority::as_str);
        let ours = ["127.0.0.1", "localhost", "[::1]", &self.name].map(|name| format!("{name}:{}", self.port));
        let is_ours = |host: &str| ours.iter().any(|ours| ours.eq_ignore_ascii_case(host));
        if is_ours(host) && named_in_target.is_none_or(is_ours) { Ok(host) } else { Err(refused()) }
    }

    /// Returns true for the name that is new with this start.
    fn is_own_name(&self, host: &str) -> bool {
        host.rsplit_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case(&self.name))
    }

    /// Leads a browser to the same path under the name that is new with this start. What a program left at this port, and
    /// what it can read there, belongs to another origin.
    fn to_own_name(&self, uri: &Uri) -> Response {
        let path = uri.path_and_query().map_or("/", axum::http::uri::PathAndQuery::as_str);
        let address = format!("http://{}:{}{path}", self.name, self.port);
        (StatusCode::SEE_OTHER, [(header::LOCATION, address)]).into_response()
    }

    /// Responds to the address that was printed: the token goes out of the address, and the session into a cookie.
    /// `by_page` is for a visit that another site began.
    fn exchange_token(&self, method: &Method, token: &str, by_page: bool) -> Result<Response, Problem> {
        if method != Method::GET {
            return Err(refusal(405, "not_found", "The address is opened with GET."));
        }
        match self.pass.exchange(token) {
            Exchange::Admitted(cookie) => {
                if let Some(folder) = &self.entry_folder {
                    entry::remove(folder);
                }
                let cookie = (header::SET_COOKIE, cookie);
                let cleared = (CLEAR_SITE_DATA, STORAGE.to_owned());
                if by_page {
                    // A browser sends a strict cookie after no redirect that another site began. This page is no redirect.
                    let html = (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned());
                    return Ok(([html, cookie, cleared], entry::html(&self.page)).into_response());
                }
                let page = (header::LOCATION, self.page.clone());
                Ok((StatusCode::SEE_OTHER, [page, cookie, cleared]).into_response())
            }
            Exchange::UsedBefore => Err(refusal(
                403,
                "token_used",
                "This address was used before. If that was not you, end the console with Ctrl-C. Start it again for a new address.",
            )),
            Exchange::Wrong => Err(refusal(403, "token_unknown", "This address is not of this console.")),
        }
    }
}

/// The value of the parameter `token`.
fn token_in(uri: &Uri) -> Option<String> {
    let query = uri.query()?.as_bytes();
    url::form_urlencoded::parse(query).find(|(name, _)| name == "token").map(|(_, value)| value.into_owned())
}

/// Returns true for a window of a browser that knows that every name below `localhost` is this machine. Others look such
/// a name up, and stay where they are.
fn is_visit_of_known_browser(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    headers.get("sec-fetch-dest").is_some_and(|destination| destination == "document")
        && ["Chrome/", "Firefox/"].iter().any(|engine| agent.contains(engine))
}

/// Returns true for a visit that begins elsewhere and opens the page by itself, not in a frame and not by a form.
fn is_visit_from_elsewhere(method: &Method, headers: &HeaderMap) -> bool {
    let is = |name: &str, expected: &str| {
        let mut values = headers.get_all(name).into_iter();
        values.next().is_some_and(|value| value == expected) && values.next().is_none()
    };
    method == Method::GET
        && is("sec-fetch-site", "cross-site")
        && is("sec-fetch-mode", "navigate")
        && is("sec-fetch-dest", "document")
        && !headers.contains_key(header::ORIGIN)
}

/// Refuses a script that presents the token, such as a service worker that saw the visit. A browser says where a response
/// goes, and a script cannot change that.
fn check_destination(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.get_all("sec-fetch-dest").into_iter().any(|destination| destination != "document") {
        return Err(refusal(403, "foreign_origin", "The address is for a window of a browser."));
    }
    Ok(())
}

/// Refuses a request that another site's page made, by what browsers say of it. A person who types an address, and a
/// program that is no browser, say nothing or `none`.
fn check_origin(host: &str, headers: &HeaderMap) -> Result<(), Problem> {
    let ours = format!("http://{host}");
    let foreign = headers.get_all(header::ORIGIN).into_iter().any(|origin| origin.as_bytes() != ours.as_bytes());
    let sites = headers.get_all("sec-fetch-site");
    let cross_site = sites.into_iter().any(|site| site != "same-origin" && site != "none");
    if foreign || cross_site {
        return Err(refusal(403, "foreign_origin", "The request comes from another site."));
    }
    Ok(())
}

/// Refuses a change that an HTML form could have sent.
fn check_form(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let is_json = |value: &HeaderValue| {
        let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
    };
    if method.is_safe() || headers.get(header::CONTENT_TYPE).is_some_and(is_json) {
        return Ok(());
    }
    Err(refusal(415, "invalid_request", "A change must have a body of JSON."))
}
