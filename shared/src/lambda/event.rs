//! The events that start a function, and its responses: HTTP API (payload format 2.0), SQS, direct calls.
//!
//! The envelopes of the gateway and of the queue are parsed leniently and by hand. A typed envelope would fail as a whole.
//! Here one malformed record fails alone, and a malformed request gets a problem document.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use tracing::Instrument;

use super::jwt;
use crate::{
    clock::Clock,
    config::JwtAudience,
    error::{Error, Result},
    http::Deadline,
    telemetry,
    tenant::TenantId,
};

/// The time between our deadline and Lambda's, in which the response travels.
const RESPONSE_RESERVE: Duration = Duration::from_millis(500);

/// One invocation, without its event.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// AWS's request id, for logs and problem documents.
    pub request_id: String,
    /// The end of all work. It is earlier than Lambda's own deadline, so that the response arrives in time.
    pub deadline: Deadline,
}

impl Invocation {
    /// An invocation by the runtime's headers: the request id, and the deadline in milliseconds since 1970.
    pub fn new(request_id: String, deadline_ms: u64, clock: &Clock) -> Self {
        let now = u64::try_from(clock.now().as_millisecond()).unwrap_or(0);
        let left = Duration::from_millis(deadline_ms.saturating_sub(now)).saturating_sub(RESPONSE_RESERVE);
        Self { request_id, deadline: Deadline::within(left, clock) }
    }

    /// Runs `work` in a span that adds `request_id` to its log lines. The future is boxed, as [`crate::lambda`] explains.
    pub fn in_request_span<'a, T>(&self, work: impl Future<Output = T> + Send + 'a) -> BoxFuture<'a, T> {
        let span = tracing::info_span!(telemetry::INVOCATION_SPAN, request_id = self.request_id);
        work.instrument(span).boxed()
    }
}

/// The failure of a direct call. Lambda reports `code` as the `errorType`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvocationError {
    /// The interface's code of the error.
    pub code: &'static str,
    /// The text for the caller ([`Error::detail`]).
    pub detail: String,
}

impl From<Error> for InvocationError {
    fn from(error: Error) -> Self {
        Self { code: error.code().0, detail: error.detail() }
    }
}

/// An event, by its sender.
pub enum Event {
    /// API Gateway passes a request.
    Http(HttpRequest),
    /// SQS passes a batch of messages.
    Queue(Vec<Message>),
    /// A schedule or a direct caller passes its input.
    Direct(Value),
}

/// A message of an SQS batch.
#[derive(Clone, Debug)]
pub struct Message {
    /// The id that the partial batch response names.
    pub message_id: String,
    /// The text, if it is one.
    pub body: Option<String>,
    /// The time at which SQS took it.
    pub sent_at: Option<Timestamp>,
}

/// A request to the HTTP API.
#[derive(Clone, Debug, Default)]
pub struct HttpRequest {
    /// The method in upper case.
    pub method: String,
    /// The key of the route that the gateway authorised, such as `GET /tenants/{tenant_id}`. Empty if the request's path
    /// is not this route filled in.
    pub route_key: String,
    /// The values of the route's parameters by their names.
    pub path_parameters: BTreeMap<String, String>,
    /// The decoded query parameters in their order. A name may occur twice.
    pub query: Vec<(String, String)>,
    /// The headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The cookies, each as `name=value`.
    pub cookies: Vec<String>,
    /// The body, decoded if the gateway sent it as base64.
    pub body: Vec<u8>,
    /// The host name of the gateway that took the request.
    pub domain_name: String,
    /// The caller by the gateway's IAM check, or by [`HttpRequest::with_jwt_caller`]. `None` on public routes and for
    /// forged events.
    pub caller: Option<Caller>,
    /// The claims that the gateway's JWT authoriser has checked, of a request without an IAM caller.
    pub jwt_claims: Option<Box<Map<String, Value>>>,
}

/// An identity that the gateway has checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The ARN of an IAM user or role session; else the issuer and the subject of a JWT.
    pub name: String,
}

impl Event {
    /// Classifies an event by the members that only its sender writes.
    pub fn parse(event: Value) -> Self {
        if event.get("requestContext").is_some_and(|context| context.get("http").is_some()) {
            return Self::Http(HttpRequest::from_event(&event));
        }
        match event.get("Records").and_then(Value::as_array) {
            Some(records) => Self::Queue(records.iter().map(Message::from_record).collect()),
            None => Self::Direct(event),
        }
    }
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The members of an object that are texts.
fn texts<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (String, String)> + 'a {
    let members = value.get(key).and_then(Value::as_object).into_iter().flatten();
    members.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
}

/// The time of an attribute that SQS writes: a text of milliseconds since 1970.
fn sent_at(milliseconds: &Value) -> Option<Timestamp> {
    Timestamp::from_millisecond(milliseconds.as_str()?.parse().ok()?).ok()
}

/// Returns true if `path` is the route of `route_key` with `parameters` in their places.
///
/// An HTTP API decodes `rawPath` twice and cuts it at an encoded question mark, but decodes each parameter once. So
/// `rawPath` can be the path of another route than the one that was authorised.
fn is_filled_in(route_key: &str, parameters: &BTreeMap<String, String>, path: &str) -> bool {
    let Some((_, route)) = route_key.split_once(' ') else { return false };
    let filled_in = route.split('/').map(|segment| {
        let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        name.map_or(Some(segment), |name| parameters.get(name).map(String::as_str))
    });
    filled_in.eq(path.split('/').map(Some))
}

impl Message {
    fn from_record(record: &Value) -> Self {
        Self {
            message_id: text(record, "messageId"),
            body: record.get("body").and_then(Value::as_str).map(str::to_owned),
            sent_at: record.pointer("/attributes/SentTimestamp").and_then(sent_at),
        }
    }
}

impl HttpRequest {
    fn from_event(event: &Value) -> Self {
        let context = &event["requestContext"];
        let stage = text(context, "stage");
        let raw_path = text(event, "rawPath");
        let path = raw_path
            .strip_prefix(&format!("/{stage}"))
            .filter(|rest| rest.starts_with('/') && !stage.is_empty())
            .unwrap_or(&raw_path);
        let path_parameters = texts(event, "pathParameters").collect();
        let route_key = Some(text(event, "routeKey")).filter(|key| is_filled_in(key, &path_parameters, path));
        let headers = texts(event, "headers").map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        let cookies = event.get("cookies").and_then(Value::as_array).into_iter().flatten();
        let authorizer = &context["authorizer"];
        let user_arn = authorizer.get("iam").map(|iam| text(iam, "userArn")).filter(|arn| !arn.is_empty());
        let claims = if authorizer.get("iam").is_none() { authorizer.pointer("/jwt/claims") } else { None };
        let body = event.get("body").and_then(Value::as_str).unwrap_or_default();
        let encoded = event.get("isBase64Encoded").and_then(Value::as_bool).unwrap_or(false);
        let query = event.get("rawQueryString").and_then(Value::as_str).unwrap_or_default();
        Self {
            method: text(&context["http"], "method").to_ascii_uppercase(),
            route_key: route_key.unwrap_or_default(),
            path_parameters,
            query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            headers,
            cookies: cookies.filter_map(|cookie| cookie.as_str().map(str::to_owned)).collect(),
            // Malformed base64 counts as an empty body. A route that needs a body refuses it.
            body: if encoded { BASE64_STANDARD.decode(body).unwrap_or_default() } else { body.as_bytes().to_vec() },
            domain_name: text(context, "domainName"),
            caller: user_arn.map(|name| Caller { name }),
            jwt_claims: claims.and_then(Value::as_object).cloned().map(Box::new),
        }
    }

    /// The request with the caller of its JWT, if the claims hold this audience and the scope of the route. Without an
    /// audience only IAM callers are admitted.
    #[must_use]
    pub fn with_jwt_caller(self, audience: Option<&JwtAudience>) -> Self {
        let (Some(audience), Some(claims), None) = (audience, &self.jwt_claims, &self.caller) else { return self };
        let caller = jwt::caller(audience, &self.route_key, claims);
        Self { caller, ..self }
    }

    /// The value of a path parameter, or an empty text if the route has no such parameter.
    pub fn path_parameter(&self, name: &str) -> &str {
        self.path_parameters.get(name).map_or("", String::as_str)
    }

    /// The tenant of the path, or [`Error::NotFound`].
    pub fn tenant_id(&self) -> Result<TenantId> {
        Ok(self.path_parameter("tenant_id").parse()?)
    }

    /// The caller, or [`Error::UnauthorizedCaller`].
    pub fn caller(&self) -> Result<&Caller> {
        self.caller.as_ref().ok_or(Error::UnauthorizedCaller)
    }

    /// The value of the first cookie with this name.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies.iter().find_map(|cookie| cookie.trim().strip_prefix(name)?.strip_prefix('='))
    }

    /// The query parameters by name. Refuses a name that is not in `known`, and a name that occurs twice.
    pub fn parameters(&self, known: &[&'static str]) -> Result<BTreeMap<&'static str, &str>> {
        let mut parameters = BTreeMap::new();
        for (name, value) in &self.query {
            let Some(name) = known.iter().find(|known| *known == name) else {
                return Err(Error::InvalidRequest(format!(
                    "A query parameter is unknown here. Known are: {}.",
                    known.join(", ")
                )));
            };
            if parameters.insert(*name, value.as_str()).is_some() {
                return Err(Error::InvalidRequest(format!("The query parameter {name} came twice.")));
            }
        }
        Ok(parameters)
    }

    /// Parses the body as a JSON object. `shape` names the expected members for the caller.
    pub fn json<T: DeserializeOwned>(&self, shape: &str) -> Result<T> {
        let object = self.body.trim_ascii_start().starts_with(b"{");
        let body = if object { serde_json::from_slice(&self.body).ok() } else { None };
        body.ok_or_else(|| Error::InvalidRequest(format!("The body must be a JSON object with {shape}.")))
    }
}

/// A response to the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpResponse {
    /// The HTTP status code.
    pub status: u16,
    /// The headers, with names in lower case.
    pub headers: BTreeMap<&'static str, String>,
    /// The values of `Set-Cookie` headers.
    pub cookies: Vec<String>,
    /// The text of the body.
    pub body: String,
}

impl HttpResponse {
    /// A response without a body.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: BTreeMap::new(), cookies: Vec::new(), body: String::new() }
    }

    /// A JSON response with `cache-control: no-store`.
    pub fn json(status: u16, body: &impl Serialize) -> Self {
        let body = serde_json::to_string(body).unwrap_or_default();
        let mut response = Self { body, ..Self::empty(status) };
        response.headers.insert("content-type", "application/json".into());
        response.headers.insert("cache-control", "no-store".into());
        response
    }

    /// The problem document of an error.
    pub fn problem(error: &Error, invocation: &Invocation, now: Timestamp) -> Self {
        let mut response = Self::json(error.code().1, &error.problem(&invocation.request_id));
        response.headers.insert("content-type", "application/problem+json".into());
        if let Some(seconds) = error.retry_after(now) {
            response.headers.insert("retry-after", seconds.to_string());
        }
        response
    }

    /// The response in the gateway's payload format 2.0.
    pub fn into_value(self) -> Value {
        let headers: Map<String, Value> =
            self.headers.into_iter().map(|(name, value)| (name.into(), json!(value))).collect();
        let mut value =
            json!({"statusCode": self.status, "headers": headers, "body": self.body, "isBase64Encoded": false});
        if !self.cookies.is_empty() {
            value["cookies"] = json!(self.cookies);
        }
        value
    }
}

#[cfg(test)]
mod tests;
