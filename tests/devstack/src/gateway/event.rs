//! The Lambda event for an HTTP request, in payload format 2.0.
//!
//! <https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html>

use std::{collections::BTreeMap, net::SocketAddr};

use axum::http::{
    HeaderMap,
    header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, USER_AGENT},
    request::Parts,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use super::route::{Auth, RouteMatch};
use crate::{ACCOUNT_ID, ambient};

const API_ID: &str = "local";

/// The caller of a signed request, taken from the credential scope.
#[derive(Debug)]
pub(crate) struct Caller {
    access_key: String,
}

impl Caller {
    /// Returns the caller of a request with a Signature Version 4. The signature itself is not verified.
    pub(crate) fn from_signature(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let scope = value
            .strip_prefix("AWS4-HMAC-SHA256 ")?
            .split(',')
            .find_map(|part| part.trim().strip_prefix("Credential="))?;
        let access_key = scope.split('/').next().filter(|key| !key.is_empty())?.to_owned();
        Some(Self { access_key })
    }

    fn iam(&self) -> Value {
        json!({
            "accessKey": self.access_key,
            "accountId": ACCOUNT_ID,
            "callerId": format!("AROALOCAL:{}", self.access_key),
            "cognitoIdentity": null,
            "principalOrgId": null,
            "userArn": format!("arn:aws:sts::{ACCOUNT_ID}:assumed-role/Operator/{}", self.access_key),
            "userId": format!("AROALOCAL:{}", self.access_key),
        })
    }
}

/// Builds the event for a request. Empty members are omitted, as in API Gateway.
pub(crate) fn build(
    parts: &Parts,
    body: &[u8],
    matched: &RouteMatch<'_>,
    raw_path: &str,
    caller: Option<&Caller>,
    peer: SocketAddr,
) -> Value {
    let query = parts.uri.query().unwrap_or_default();
    let route_key = matched.route.key();
    let host = header_text(&parts.headers, &HOST);
    let now = ambient::now();
    let mut context = json!({
        "accountId": ACCOUNT_ID,
        "apiId": API_ID,
        "domainName": host,
        "domainPrefix": host.split(['.', ':']).next(),
        "http": {
            "method": parts.method.as_str(),
            "path": raw_path,
            "protocol": "HTTP/1.1",
            "sourceIp": peer.ip().to_string(),
            "userAgent": header_text(&parts.headers, &USER_AGENT),
        },
        "requestId": ambient::request_id().to_string(),
        "routeKey": route_key,
        "stage": "$default",
        "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string(),
        "timeEpoch": now.as_millisecond(),
    });
    if let (Auth::AwsIam, Some(caller)) = (matched.route.auth, caller) {
        context["authorizer"] = json!({ "iam": caller.iam() });
    }
    let mut event = Map::new();
    event.insert("version".into(), "2.0".into());
    event.insert("routeKey".into(), route_key.into());
    event.insert("rawPath".into(), raw_path.into());
    event.insert("rawQueryString".into(), query.into());
    let cookies = cookies(&parts.headers);
    if !cookies.is_empty() {
        event.insert("cookies".into(), cookies.into());
    }
    event.insert("headers".into(), json!(headers(&parts.headers, peer)));
    let parameters = join_by_name(url::form_urlencoded::parse(query.as_bytes()));
    if !parameters.is_empty() {
        event.insert("queryStringParameters".into(), json!(parameters));
    }
    if !matched.parameters.is_empty() {
        event.insert("pathParameters".into(), json!(matched.parameters));
    }
    event.insert("requestContext".into(), context);
    let plain = std::str::from_utf8(body).ok().filter(|_| is_text(&header_text(&parts.headers, &CONTENT_TYPE)));
    if !body.is_empty() {
        let body = plain.map_or_else(|| STANDARD.encode(body), str::to_owned);
        event.insert("body".into(), body.into());
    }
    event.insert("isBase64Encoded".into(), (!body.is_empty() && plain.is_none()).into());
    event.into()
}

/// Returns `true` if API Gateway passes a body of this content type on as text. A form is encoded as base64.
fn is_text(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let known = ["", "application/json", "application/javascript", "application/xml"];
    known.contains(&media_type.as_str())
        || media_type.starts_with("text/")
        || media_type.ends_with("+json")
        || media_type.ends_with("+xml")
}

fn header_text(headers: &HeaderMap, name: &axum::http::HeaderName) -> String {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}

fn cookies(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(COOKIE).into_iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let split =
        |value: std::borrow::Cow<'_, str>| value.split(';').map(|cookie| cookie.trim().to_owned()).collect::<Vec<_>>();
    values.flat_map(split).filter(|cookie| !cookie.is_empty()).collect()
}

fn headers(headers: &HeaderMap, peer: SocketAddr) -> BTreeMap<String, String> {
    let given = headers.iter().filter(|(name, _)| *name != COOKIE);
    let pairs = given.map(|(name, value)| (name.as_str().into(), String::from_utf8_lossy(value.as_bytes())));
    let mut joined = join_by_name(pairs);
    joined.entry("x-forwarded-for".into()).or_insert_with(|| peer.ip().to_string());
    joined.entry("x-forwarded-proto".into()).or_insert_with(|| "http".to_owned());
    joined
}

/// Groups values by name and joins those of one name with commas.
fn join_by_name<'a>(
    pairs: impl Iterator<Item = (std::borrow::Cow<'a, str>, std::borrow::Cow<'a, str>)>,
) -> BTreeMap<String, String> {
    let mut joined: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in pairs {
        joined
            .entry(name.into_owned())
            .and_modify(|values| {
                values.push(',');
                values.push_str(&value);
            })
            .or_insert_with(|| value.clone().into_owned());
    }
    joined
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::{
        super::route::{Route, Routes, raw_path},
        *,
    };

    fn event_of(request: axum::http::request::Builder, path: &str, auth: Auth, body: &[u8]) -> Value {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let route = Route { method: parts.method.to_string(), path: path.into(), function: "f".into(), auth };
        let routes = Routes::new(vec![route]);
        let matched = routes.find(parts.method.as_str(), parts.uri.path()).unwrap();
        let caller = Caller::from_signature(&parts.headers);
        let raw_path = raw_path(parts.uri.path()).unwrap();
        build(&parts, body, &matched, &raw_path, caller.as_ref(), "127.0.0.1:4711".parse().unwrap())
    }

    #[test]
    fn iam_request_has_the_documented_shape() {
        let request = Request::builder()
            .method("GET")
            .uri("/tenants/a%20b/incidents?status=active&status=new&from=2026-01-01T00%3A00%3A00Z")
            .header("Host", "localhost:8400")
            .header("User-Agent", "test")
            .header("X-Twice", "1")
            .header("X-Twice", "2")
            .header("Cookie", "a=1; b=2")
            .header("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDX/20260101/eu-central-1/execute-api/aws4_request, SignedHeaders=host, Signature=0");
        let mut event = event_of(request, "/tenants/{tenant_id}/incidents", Auth::AwsIam, b"");
        let context = event["requestContext"].take();
        assert_eq!(
            event,
            json!({
                "version": "2.0",
                "routeKey": "GET /tenants/{tenant_id}/incidents",
                "rawPath": "/tenants/a b/incidents",
                "rawQueryString": "status=active&status=new&from=2026-01-01T00%3A00%3A00Z",
                "cookies": ["a=1", "b=2"],
                "headers": {
                    "host": "localhost:8400",
                    "user-agent": "test",
                    "x-twice": "1,2",
                    "x-forwarded-for": "127.0.0.1",
                    "x-forwarded-proto": "http",
                    "authorization": "AWS4-HMAC-SHA256 Credential=AKIDX/20260101/eu-central-1/execute-api/aws4_request, SignedHeaders=host, Signature=0",
                },
                "queryStringParameters": { "status": "active,new", "from": "2026-01-01T00:00:00Z" },
                "pathParameters": { "tenant_id": "a b" },
                "requestContext": null,
                "isBase64Encoded": false,
            })
        );
        assert_eq!(context["authorizer"]["iam"]["accessKey"], "AKIDX");
        assert_eq!(context["authorizer"]["iam"]["accountId"], ACCOUNT_ID);
        assert_eq!(context["http"]["path"], "/tenants/a b/incidents");
        assert_eq!(context["http"]["sourceIp"], "127.0.0.1");
        assert_eq!(context["domainName"], "localhost:8400");
        assert_eq!(context["domainPrefix"], "localhost");
        assert_eq!(context["routeKey"], "GET /tenants/{tenant_id}/incidents");
        assert_eq!(context["stage"], "$default");
        assert!(context["timeEpoch"].as_i64().unwrap() > 1_700_000_000_000);
        assert!(context["time"].as_str().unwrap().ends_with(" +0000"));
        assert_eq!(context["requestId"].as_str().unwrap().len(), 36);
    }

    #[test]
    fn public_route_has_no_authorizer_even_if_signed() {
        let request = Request::builder().uri("/x").header("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDX/1");
        let event = event_of(request, "/x", Auth::None, b"");
        assert!(event["requestContext"].get("authorizer").is_none());
        for absent in ["body", "cookies", "queryStringParameters", "pathParameters"] {
            assert!(event.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn forms_and_bytes_are_base64_and_json_is_text() {
        let post = |content_type: &str, body: &[u8]| {
            let request = Request::builder().method("POST").uri("/x").header("Content-Type", content_type);
            let event = event_of(request, "/x", Auth::None, body);
            (event["body"].as_str().unwrap().to_owned(), event["isBase64Encoded"].as_bool().unwrap())
        };
        assert_eq!(post("application/x-www-form-urlencoded", b"a=1"), ("YT0x".to_owned(), true));
        assert_eq!(post("application/json; charset=utf-8", b"{}"), ("{}".to_owned(), false));
        assert_eq!(post("application/json", b"\xff"), ("/w==".to_owned(), true));
    }

    #[test]
    fn header_without_a_credential_has_no_caller() {
        for value in ["Bearer x", "AWS4-HMAC-SHA256 Signature=0", "AWS4-HMAC-SHA256 Credential=/x"] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            assert!(Caller::from_signature(&headers).is_none(), "{value}");
        }
    }
}
