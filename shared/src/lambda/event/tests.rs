use proptest::prelude::*;

use super::*;
use crate::testing::damaged;

fn http(event: Value) -> HttpRequest {
    match Event::parse(event) {
        Event::Http(request) => request,
        _ => panic!("not parsed as HTTP"),
    }
}

#[test]
fn parses_a_request_of_the_gateway() {
    let request = http(json!({
        "version": "2.0", "routeKey": "GET /tenants/{tenant_id}", "rawPath": "/tenants/x",
        "pathParameters": {"tenant_id": "x"}, "rawQueryString": "a=1&a=2&b=x%20y",
        "headers": {"Content-Type": "text/plain"}, "cookies": ["__Host-mandate=abc", "other=1"],
        "requestContext": {"http": {"method": "get", "path": "/tenants/x"}, "domainName": "h.example.com", "stage": "$default",
                           "authorizer": {"iam": {"userArn": "arn:aws:iam::1:user/u"}}},
        "body": "aGk=", "isBase64Encoded": true
    }));
    assert_eq!((request.method.as_str(), request.route_key.as_str()), ("GET", "GET /tenants/{tenant_id}"));
    assert_eq!(request.path_parameter("tenant_id"), "x");
    assert_eq!(request.path_parameter("job_id"), "");
    assert_eq!(request.body, b"hi");
    assert_eq!(request.cookie("__Host-mandate"), Some("abc"));
    assert_eq!(request.caller().unwrap().name, "arn:aws:iam::1:user/u");
    assert_eq!(request.headers["content-type"], "text/plain");
    assert!(request.parameters(&["a", "b"]).is_err(), "a parameter that comes twice is refused");
}

#[test]
fn body_must_be_a_json_object() {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Named {
        name: Option<String>,
    }
    let read =
        |body: &str| HttpRequest { body: body.into(), ..HttpRequest::default() }.json::<Named>("at most a `name`").ok();
    assert_eq!(read(r#"{"name": "x"}"#), Some(Named { name: Some("x".into()) }));
    for body in [r#"["x"]"#, "[]", "[null]", "null", "7", "", r#"{"name": 7}"#] {
        assert_eq!(read(body), None, "{body}");
    }
}

#[test]
fn named_stage_is_not_part_of_the_path() {
    let route = |stage: &str| {
        let context = json!({"stage": stage, "http": {"method": "GET"}});
        http(json!({"routeKey": "GET /tenants", "rawPath": "/prod/tenants", "requestContext": context})).route_key
    };
    assert_eq!(route("prod"), "GET /tenants");
    for stage in ["$default", "pro", ""] {
        assert_eq!(route(stage), "", "{stage}");
    }
}

#[test]
fn raw_path_must_be_the_authorised_route_filled_in() {
    let job = "DELETE /tenants/{tenant_id}/sync/{job_id}";
    let is_routed = |key: Value, parameters: Value, path: &str| {
        let context = json!({"http": {"method": "DELETE"}, "stage": "$default"});
        let event = json!({"routeKey": key, "pathParameters": parameters, "rawPath": path, "requestContext": context});
        !http(event).route_key.is_empty()
    };
    let both = || json!({"tenant_id": "a", "job_id": "b"});
    assert!(is_routed(json!(job), both(), "/tenants/a/sync/b"));
    assert!(is_routed(json!("GET /tenants"), Value::Null, "/tenants"));
    for (key, parameters, path) in [
        (json!(job), json!({"tenant_id": "a", "job_id": "?"}), "/tenants/a/sync/"),
        (json!(job), json!({"tenant_id": "a?", "job_id": "b"}), "/tenants/a"),
        (json!(job), json!({"tenant_id": "a%2Fb", "job_id": "c"}), "/tenants/a/b/sync/c"),
        (json!(job), json!({"tenant_id": "a/b", "job_id": "c"}), "/tenants/a/b/sync/c"),
        (json!(job), json!({"tenant_id": "a%20", "job_id": "b"}), "/tenants/a /sync/b"),
        (json!(job), both(), "/tenants/a"),
        (json!(job), both(), "/tenants/A/sync/b"),
        (json!(job), both(), "/Tenants/a/sync/b"),
        (json!(job), both(), "/tenants/a/sync/b/"),
        (json!(job), both(), "/prod/tenants/a/sync/b"),
        (json!(job), json!({"tenant_id": "a"}), "/tenants/a/sync/{job_id}"),
        (json!(job), Value::Null, "/tenants/a/sync/b"),
        (Value::Null, both(), "/tenants/a/sync/b"),
        (json!("$default"), both(), "/tenants/a/sync/b"),
        (json!(7), both(), "/tenants/a/sync/b"),
    ] {
        assert!(!is_routed(key.clone(), parameters.clone(), path), "{key} {parameters} {path}");
    }
}

#[test]
fn record_without_a_text_body_stays_a_message() {
    let Event::Queue(messages) =
        Event::parse(json!({"Records": [{"messageId": "1", "body": 5}, {"messageId": "2", "body": "{}"}, 7]}))
    else {
        panic!("not parsed as a batch of SQS")
    };
    assert_eq!(messages.len(), 3);
    assert_eq!((messages[0].body.as_deref(), messages[1].body.as_deref()), (None, Some("{}")));
}

proptest! {
    #[test]
    fn damaged_events_are_parsed_as_something(
        event in damaged(r#"{"requestContext":{"http":{"method":"POST","path":"/x"},"stage":"$default","requestId":"r","authorizer":{"iam":{"userArn":"arn"}}},"routeKey":"POST /tenants/{tenant_id}/token","pathParameters":{"tenant_id":"%C3%BC"},"rawPath":"/tenants/%C3%BC/token","rawQueryString":"a=1&b=%20","headers":{"Cookie":"a=b"},"cookies":["__Host-a=b"],"body":"eyJhIjoxfQ==","isBase64Encoded":true,"Records":[{"messageId":"m","body":"{}"}]}"#),
    ) {
        let Ok(event) = serde_json::from_slice::<Value>(&event) else { return Ok(()) };
        if let Event::Http(request) = Event::parse(event) {
            let _ = (request.tenant_id().is_ok(), request.caller().is_ok(), request.cookie("__Host-a").is_some());
            let _ = (request.parameters(&["a", "b"]).is_ok(), request.json::<BTreeMap<String, u32>>("x").is_ok());
        }
    }
}
