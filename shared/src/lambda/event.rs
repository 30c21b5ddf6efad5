//! What starts a function and what it answers: HTTP API requests (payload format 2.0), queue messages, direct calls.
//!
//! The gateway's and the queue's envelopes are read leniently and by hand: one malformed record must fail alone, and a
//! malformed request must get a problem document, where a typed envelope would fail as a whole.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{
    error::{Error, Result},
    http::Deadline,
};

/// One invocation: what the runtime tells beside the event.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// AWS's request id, which logs and problem documents name.
    pub request_id: String,
    /// When the answer must be there; a moment earlier than the runtime's own deadline.
    pub deadline: Deadline,
}

/// A failed direct call: becomes a Lambda error whose `errorType` is the interface's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvocationError {
    /// The interface's code.
    pub code: &'static str,
    /// What a caller may read.
    pub detail: String,
}

impl From<Error> for InvocationError {
    fn from(error: Error) -> Self {
        Self { code: error.code().0, detail: error.detail() }
    }
}

/// Which kind of caller an event comes from.
pub enum Event {
    /// API Gateway.
    Http(HttpRequest),
    /// SQS: a batch of messages.
    Queue(Vec<Message>),
    /// Anything else: a schedule's input or a direct call.
    Direct(Value),
}

/// A queue message as it arrived.
#[derive(Clone, Debug)]
pub struct Message {
    /// What names it in the batch's answer.
    pub message_id: String,
    /// Its text.
    pub body: Option<String>,
}

/// A request to the HTTP API.
#[derive(Clone, Debug, Default)]
pub struct HttpRequest {
    /// Upper-case method.
    pub method: String,
    /// Path without a stage.
    pub path: String,
    /// Query parameters in their order, decoded; a name may come twice.
    pub query: Vec<(String, String)>,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Cookies, each `name=value`.
    pub cookies: Vec<String>,
    /// Decoded body.
    pub body: Vec<u8>,
    /// The host that the request came to.
    pub domain_name: String,
    /// Who API Gateway identified by IAM; `None` on public routes and for forged events.
    pub caller: Option<Caller>,
}

/// An IAM identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The ARN of the user or role session.
    pub user_arn: String,
}

impl Event {
    /// Tells the kinds apart by their own marks, never by trying one after the other.
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

impl Message {
    fn from_record(record: &Value) -> Self {
        Self {
            message_id: text(record, "messageId"),
            body: record.get("body").and_then(Value::as_str).map(str::to_owned),
        }
    }
}

impl HttpRequest {
    fn from_event(event: &Value) -> Self {
        let context = &event["requestContext"];
        let stage = text(context, "stage");
        let raw_path = event.get("rawPath").or_else(|| context["http"].get("path")).and_then(Value::as_str);
        let path = raw_path.unwrap_or_default();
        let path = path
            .strip_prefix(&format!("/{stage}"))
            .filter(|rest| rest.starts_with('/') && !stage.is_empty())
            .unwrap_or(path);
        let headers = event
            .get("headers")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.to_ascii_lowercase(), value.as_str()?.to_owned())))
            .collect();
        let cookies = event.get("cookies").and_then(Value::as_array).into_iter().flatten();
        let user_arn = context.pointer("/authorizer/iam").map(|iam| text(iam, "userArn")).filter(|arn| !arn.is_empty());
        let body = event.get("body").and_then(Value::as_str).unwrap_or_default();
        let encoded = event.get("isBase64Encoded").and_then(Value::as_bool).unwrap_or(false);
        let query = event.get("rawQueryString").and_then(Value::as_str).unwrap_or_default();
        Self {
            method: text(&context["http"], "method").to_ascii_uppercase(),
            path: path.to_owned(),
            query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            headers,
            cookies: cookies.filter_map(|cookie| cookie.as_str().map(str::to_owned)).collect(),
            // A body that is not what its flag says is no body; what needs one refuses it.
            body: if encoded { BASE64_STANDARD.decode(body).unwrap_or_default() } else { body.as_bytes().to_vec() },
            domain_name: text(context, "domainName"),
            caller: user_arn.map(|user_arn| Caller { user_arn }),
        }
    }

    /// The path's segments, as they came. Identifiers need no escaping, so what is escaped is no identifier of ours.
    pub fn segments(&self) -> Vec<&str> {
        self.path.strip_prefix('/').unwrap_or(&self.path).split('/').collect()
    }

    /// The IAM caller, or the refusal of a JSON route without one.
    pub fn caller(&self) -> Result<&Caller> {
        self.caller.as_ref().ok_or(Error::UnauthorizedCaller)
    }

    /// The value of a cookie.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies.iter().find_map(|cookie| cookie.trim().strip_prefix(name)?.strip_prefix('='))
    }

    /// The query parameters by name, each of `known` at most once and no others.
    pub fn parameters(&self, known: &[&'static str]) -> Result<BTreeMap<&'static str, &str>> {
        let mut parameters = BTreeMap::new();
        for (name, value) in &self.query {
            let Some(name) = known.iter().find(|known| *known == name) else {
                return Err(Error::InvalidRequest(format!(
                    "A query parameter is not known here. Known are: {}.",
                    known.join(", ")
                )));
            };
            if parameters.insert(*name, value.as_str()).is_some() {
                return Err(Error::InvalidRequest(format!("The query parameter {name} came twice.")));
            }
        }
        Ok(parameters)
    }

    /// The body as a JSON object of a known shape. `shape` says in words what is expected.
    pub fn json<T: DeserializeOwned>(&self, shape: &str) -> Result<T> {
        let object = self.body.trim_ascii_start().starts_with(b"{");
        let body = if object { serde_json::from_slice(&self.body).ok() } else { None };
        body.ok_or_else(|| Error::InvalidRequest(format!("The body must be a JSON object with {shape}.")))
    }
}

/// How many things a page of a list is to hold: 50 where `text` is none.
pub fn page_limit(text: Option<&str>) -> Result<u32> {
    let Some(text) = text else { return Ok(50) };
    let number = text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let wrong = || Error::InvalidRequest("`limit` must be a whole number from 1 to 100.".into());
    number.filter(|number| (1..=100).contains(number)).ok_or_else(wrong)
}

/// What goes back to the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpResponse {
    /// HTTP status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: BTreeMap<&'static str, String>,
    /// `Set-Cookie` values.
    pub cookies: Vec<String>,
    /// Body text.
    pub body: String,
}

impl HttpResponse {
    /// A response without a body.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: BTreeMap::new(), cookies: Vec::new(), body: String::new() }
    }

    /// A JSON response that no cache keeps.
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

    /// The gateway's form of it (payload format 2.0).
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::damaged;

    fn http(event: Value) -> HttpRequest {
        match Event::parse(event) {
            Event::Http(request) => request,
            _ => panic!("not recognised as HTTP"),
        }
    }

    #[test]
    fn a_request_is_read_from_the_gateway_s_event() {
        let request = http(json!({
            "version": "2.0", "rawPath": "/tenants/x", "rawQueryString": "a=1&a=2&b=x%20y",
            "headers": {"Content-Type": "text/plain"}, "cookies": ["__Host-mandate=abc", "other=1"],
            "requestContext": {"http": {"method": "get", "path": "/tenants/x"}, "domainName": "h.example.com", "stage": "$default",
                               "authorizer": {"iam": {"userArn": "arn:aws:iam::1:user/u"}}},
            "body": "aGk=", "isBase64Encoded": true
        }));
        assert_eq!((request.method.as_str(), request.segments()), ("GET", vec!["tenants", "x"]));
        assert_eq!(request.body, b"hi");
        assert_eq!(request.cookie("__Host-mandate"), Some("abc"));
        assert_eq!(request.caller().unwrap().user_arn, "arn:aws:iam::1:user/u");
        assert_eq!(request.headers["content-type"], "text/plain");
        assert!(request.parameters(&["a", "b"]).is_err(), "a parameter that comes twice is refused");
    }

    #[test]
    fn an_array_is_no_object() {
        #[derive(Debug, PartialEq, serde::Deserialize)]
        struct Named {
            name: Option<String>,
        }
        let read = |body: &str| {
            HttpRequest { body: body.into(), ..HttpRequest::default() }.json::<Named>("at most a `name`").ok()
        };
        assert_eq!(read(r#"{"name": "x"}"#), Some(Named { name: Some("x".into()) }));
        for body in [r#"["x"]"#, "[]", "[null]", "null", "7", "", r#"{"name": 7}"#] {
            assert_eq!(read(body), None, "{body}");
        }
    }

    #[test]
    fn a_named_stage_is_not_part_of_the_path() {
        let event = |stage: &str| json!({"rawPath": "/prod/tenants", "requestContext": {"stage": stage, "http": {"method": "GET"}}});
        assert_eq!(http(event("prod")).path, "/tenants");
        assert_eq!(http(event("$default")).path, "/prod/tenants");
        assert_eq!(http(event("pro")).path, "/prod/tenants");
    }

    #[test]
    fn a_record_without_a_text_body_stays_a_message_of_its_own() {
        let Event::Queue(messages) =
            Event::parse(json!({"Records": [{"messageId": "1", "body": 5}, {"messageId": "2", "body": "{}"}, 7]}))
        else {
            panic!("not recognised as a queue's batch")
        };
        assert_eq!(messages.len(), 3);
        assert_eq!((messages[0].body.as_deref(), messages[1].body.as_deref()), (None, Some("{}")));
    }

    proptest! {
        #[test]
        fn damaged_events_are_recognised_as_something(
            event in damaged(r#"{"requestContext":{"http":{"method":"POST","path":"/x"},"stage":"$default","requestId":"r","authorizer":{"iam":{"userArn":"arn"}}},"rawPath":"/tenants/%C3%BC/token","rawQueryString":"a=1&b=%20","headers":{"Cookie":"a=b"},"cookies":["__Host-a=b"],"body":"eyJhIjoxfQ==","isBase64Encoded":true,"Records":[{"messageId":"m","body":"{}"}]}"#),
        ) {
            let Ok(event) = serde_json::from_slice::<Value>(&event) else { return Ok(()) };
            if let Event::Http(request) = Event::parse(event) {
                let _ = (request.segments().len(), request.caller().is_ok(), request.cookie("__Host-a").is_some());
                let _ = (request.parameters(&["a", "b"]).is_ok(), request.json::<BTreeMap<String, u32>>("x").is_ok());
            }
        }
    }
}
