//! Events that no function was made for: each is refused in the interface's words, and no process dies of one.

use devstack::FunctionError;
use serde_json::{Value, json};

use super::harness::{BINARIES, StackHarness, UNKNOWN, is_problem, status_of};
use crate::backends::request;

/// Events that are neither a request, nor messages, nor a known call.
fn nonsense() -> Vec<Value> {
    let mut deep = json!("deep");
    for _ in 0..100 {
        deep = json!([deep]);
    }
    vec![
        json!(null),
        json!(true),
        json!(5),
        json!(-1.5e300),
        json!(""),
        json!("x".repeat(100_000)),
        json!([]),
        json!([{"Records": []}]),
        json!({}),
        json!({"": {}}),
        json!({"Records": 7}),
        json!({"Records": null}),
        json!({"Records": {}}),
        json!({"requestContext": null}),
        json!({"requestContext": 7}),
        json!({"requestContext": []}),
        json!({"requestContext": {}}),
        json!({"kind": "nightly"}),
        json!({"kind": "hunt"}),
        json!({"kind": 7}),
        json!({"kind": ["poll"]}),
        json!({"tenant_id": 7}),
        json!({"tenant_id": null}),
        json!({"tenant_id": {}, "resource": []}),
        json!({"tenant_id": UNKNOWN, "resource": 7}),
        json!({"tenant_id": UNKNOWN, "unknown": true}),
        json!({"Step": "createSecret"}),
        json!({"Step": "dropSecret", "SecretId": "x", "ClientRequestToken": "y"}),
        json!({"Step": 1, "SecretId": 2, "ClientRequestToken": 3}),
        json!({"httpMethod": "GET", "path": "/tenants", "requestContext": {"stage": "v1"}}),
        json!({"a": deep}),
    ]
}

/// Requests that are hardly any.
fn requests() -> Vec<Value> {
    vec![
        json!({"requestContext": {"http": {}}}),
        json!({"requestContext": {"http": null}}),
        json!({"requestContext": {"http": 7}}),
        json!({"requestContext": {"http": []}, "rawPath": 7, "rawQueryString": {}, "headers": [], "cookies": "a=b"}),
        json!({"requestContext": {"http": {"method": 7, "path": []}}, "headers": {"a": 7}, "cookies": [7, null]}),
        json!({"requestContext": {"http": {"method": "GET", "path": "/tenants"}}, "rawPath": "/tenants"}),
        json!({"requestContext": {"http": {"method": "GET"}}, "rawPath": "/", "routeKey": 7, "pathParameters": ["a"]}),
        json!({"requestContext": {"http": {"method": "GET"}}, "rawPath": "/consent/x",
               "routeKey": "GET /consent/{invitation}", "pathParameters": {"invitation": 7}}),
        json!({"requestContext": {"http": {"method": "GET"}, "authorizer": 7}, "rawPath": "/incidents"}),
        json!({"requestContext": {"http": {"method": "GET"}, "authorizer": {"jwt": {}}}, "rawPath": "/invitations"}),
        json!({"requestContext": {"http": {"method": "POST"}}, "rawPath": format!("/tenants/{UNKNOWN}/token")}),
        json!({"requestContext": {"http": {"method": "GET"}, "stage": 7, "domainName": 7}, "body": 7,
               "isBase64Encoded": "yes"}),
    ]
}

fn signed(method: &str, path: &str, body: &Value, encoded: bool) -> Value {
    let mut event = request(method, path, "", None);
    event["body"] = body.clone();
    event["isBase64Encoded"] = encoded.into();
    event
}

fn is_of_the_interface(case: &str, error: &FunctionError) {
    assert!(status_of(&error.error_type) >= 400, "{case}: {error}");
    assert!(!error.error_message.is_empty(), "{case}");
}

/// Asserts that a response to a request is a problem document, or a page.
fn is_refusal(case: &str, binary: &str, response: &Value, codes: &[&str]) {
    let status = response["statusCode"].as_u64().expect(case);
    let (content_type, body) = (response["headers"]["content-type"].as_str(), response["body"].as_str());
    let (content_type, body) = (content_type.expect(case), body.expect(case));
    if binary == "consent-callback" {
        assert!([400, 404].contains(&status) && content_type.starts_with("text/html"), "{case}: {status}");
        for (name, value) in [("referrer-policy", "no-referrer"), ("x-content-type-options", "nosniff")] {
            assert_eq!(response["headers"][name], value, "{case}");
        }
    } else {
        let problem: Value = serde_json::from_str(body).expect(case);
        let code = problem["code"].as_str().expect(case);
        assert!(codes.contains(&code), "{case}: {body}");
        is_problem(case, status, content_type, body, code);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_ends_a_process() {
    let harness = StackHarness::start("events", &[]).await;
    for binary in BINARIES {
        for event in nonsense() {
            let case = format!("{binary}: {:.120}", event.to_string());
            let error = harness.stack.invoke(binary, event).await.expect_err(&case);
            assert_eq!(error.error_type, "invalid_request", "{case}: {error}");
        }
        for event in requests() {
            let case = format!("{binary}: {event}");
            match harness.stack.invoke(binary, event).await {
                Ok(response) => {
                    assert!(!["incident-dispatch", "secret-rotation"].contains(&binary), "{case}: {response}");
                    is_refusal(&case, binary, &response, &["unauthorized_caller"]);
                }
                Err(error) => {
                    assert!(["incident-dispatch", "secret-rotation"].contains(&binary), "{case}: {error}");
                    is_of_the_interface(&case, &error);
                }
            }
        }
    }
    messages(&harness).await;
    signed_requests(&harness).await;
    // Deeper than a parser goes: refused before any function sees it, and still no end of the process.
    let mut deep = json!(1);
    for _ in 0..1000 {
        deep = json!([deep]);
    }
    for binary in BINARIES {
        let error = harness.stack.invoke(binary, deep.clone()).await.unwrap_err();
        assert!(!error.error_type.starts_with("Runtime.") && !error.is_timeout(), "{binary}: {error}");
    }
    harness.lines_are_whole().await;
    harness.end().await;
}

/// A message that is not understood fails alone; the others of its batch do not.
async fn messages(harness: &StackHarness) {
    let good = json!({"tenant_id": UNKNOWN, "kind": "poll"}).to_string();
    let bodies = [
        json!(null),
        json!(7),
        json!(""),
        json!("poll"),
        json!("null"),
        json!("[]"),
        json!("{}"),
        json!(json!({"tenant_id": UNKNOWN}).to_string()),
        json!(json!({"tenant_id": "contoso.example", "kind": "poll"}).to_string()),
        json!(json!({"tenant_id": UNKNOWN.replace('9', "A"), "kind": "poll"}).to_string()),
        json!(json!({"tenant_id": UNKNOWN, "kind": "nightly"}).to_string()),
        json!(json!({"tenant_id": UNKNOWN, "kind": "backfill", "from": "yesterday"}).to_string()),
        json!(json!({"tenant_id": UNKNOWN, "kind": "sweep", "to": 7}).to_string()),
        json!(format!("{good} trailing")),
    ];
    let mut records = vec![json!({"messageId": "good-1", "body": good})];
    let mut bad = Vec::new();
    for (index, body) in bodies.iter().enumerate() {
        let id = format!("bad-{index}");
        records.push(json!({"messageId": id, "body": body}));
        bad.push(json!({"itemIdentifier": id}));
    }
    records.push(json!({"messageId": "good-2", "body": good}));
    let response = harness.stack.invoke("incident-fetch", json!({"Records": records})).await.unwrap();
    assert_eq!(response, json!({"batchItemFailures": bad}));
    let response = harness.stack.invoke("incident-fetch", json!({"Records": []})).await.unwrap();
    assert_eq!(response, json!({"batchItemFailures": []}));
    // What has no name cannot fail alone: the whole batch comes back.
    for record in [json!(7), json!(null), json!({}), json!({"messageId": 7, "body": good})] {
        let response = harness.stack.invoke("incident-fetch", json!({"Records": [record]})).await;
        let whole = response.as_ref().is_ok_and(|response| response["batchItemFailures"][0]["itemIdentifier"] == "");
        assert!(whole || response.is_err() || record["messageId"] == 7, "{record}: {response:?}");
    }
    for binary in BINARIES.iter().filter(|binary| **binary != "incident-fetch") {
        let event = json!({"Records": [{"messageId": "m", "body": good}]});
        let error = harness.stack.invoke(binary, event).await.unwrap_err();
        assert_eq!(error.error_type, "invalid_request", "{binary}");
    }
    // By the queue itself, it ends in the dead-letter queue and nowhere else.
    let queue = aws_sdk_sqs::Client::new(harness.stack.aws().config());
    let url = &harness.stack.resources().queue_url;
    queue.send_message().queue_url(url).message_body("not understood").message_group_id("g").send().await.unwrap();
    harness
        .until("the message is a dead letter".to_owned(), async || {
            harness.stack.drain_queue().await.unwrap();
            harness.stack.dead_letters().await.unwrap() == ["not understood"]
        })
        .await;
    assert_eq!(harness.stack.take_failures(), [""; 0]);
}

/// Routes that reach a function and are none of its own, and bodies that are not what they say.
async fn signed_requests(harness: &StackHarness) {
    let json_functions = ["token-issuance", "incident-fetch", "tenant-admin"];
    let paths = [
        "",
        "/",
        "//",
        "/nope",
        "/tenants/",
        "/Tenants",
        "/tenants//token",
        "/consent/x",
        "/tenants/%2e%2e",
        "/invitations/",
        "/invitations/x/y",
        "/incidents/1",
        "/hunting/x",
        "/tenants/\u{0}",
        "/é",
    ];
    for binary in json_functions {
        for path in paths {
            for method in ["GET", "PUT", "DELETE", "", "🦀"] {
                let event = signed(method, path, &Value::Null, false);
                let response = harness.stack.invoke(binary, event).await.unwrap();
                is_refusal(&format!("{binary}: {method} {path}"), binary, &response, &["not_found"]);
            }
        }
    }
    let bodies = [
        (json!("not base64!"), true),
        (json!("bm90IGpzb24="), true),
        (json!("/w=="), true),
        (json!("{"), false),
        (json!("[]"), false),
        (json!("null"), false),
        (json!("\u{0}"), false),
    ];
    let targets = [
        ("tenant-admin", "POST", "/invitations".to_owned(), &["invalid_request"][..]),
        ("tenant-admin", "PATCH", format!("/tenants/{UNKNOWN}"), &["not_found"]),
        ("incident-fetch", "POST", "/hunting".to_owned(), &["invalid_request"]),
        ("incident-fetch", "PATCH", format!("/tenants/{UNKNOWN}/incidents/1"), &["not_found"]),
        // A body that is not base64 reads as none, and a token may be requested without a body.
        ("token-issuance", "POST", format!("/tenants/{UNKNOWN}/token"), &["invalid_request", "not_found"]),
    ];
    for (binary, method, path, codes) in targets {
        for (body, encoded) in &bodies {
            let response = harness.stack.invoke(binary, signed(method, &path, body, *encoded)).await.unwrap();
            is_refusal(&format!("{method} {path} {body}"), binary, &response, codes);
        }
    }
}
