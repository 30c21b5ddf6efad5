//! What an operator sees: metrics, Microsoft's request ids, and a secret that nobody has filled yet.

use std::time::Duration;

use serde_json::{Value, json};
use shared::{lambda::event::Invocation, registry::tenants::Status};
use sim::{Fault, FaultKind, Host, RetryAfter};

use super::harness::{APIS, SyncHarness, TENANT, fetch, host, invocation};
use crate::backends::{CLIENT_SECRET, SECRET, lines_of, request, unique_request_id};

fn poll() -> Value {
    json!({"tenant_id": TENANT, "kind": "poll"})
}

/// Hands messages over in one invocation; its response and its log lines.
async fn hand_over(sync: &SyncHarness, bodies: &[Value]) -> (Value, Vec<Value>) {
    lines_of("");
    let record = |(at, body): (usize, &Value)| json!({"messageId": format!("m-{at}"), "body": body.to_string()});
    let records: Vec<Value> = bodies.iter().enumerate().map(record).collect();
    let request_id = unique_request_id();
    let invocation = Invocation { request_id: request_id.clone(), ..invocation(Duration::from_secs(30)) };
    let response = sync.app.handle(json!({"Records": records}), invocation).await.unwrap();
    (response, lines_of(&request_id))
}

/// The one line of an invocation that CloudWatch reads.
fn metrics(lines: &[Value]) -> &Value {
    let embedded: Vec<&Value> = lines.iter().filter(|line| line.get("_aws").is_some()).collect();
    assert_eq!(embedded.len(), 1, "{lines:#?}");
    embedded[0]
}

#[tokio::test]
async fn polls_that_microsoft_responds_to_are_counted() {
    let sync = SyncHarness::start(APIS[0]).await;
    sync.put(60);
    let (_, lines) = hand_over(&sync, &[poll()]).await;
    let counted = |lines: &[Value], name: &str| metrics(lines)[name].as_f64();
    assert_eq!((counted(&lines, "Polled"), counted(&lines, "Delivered")), (Some(1.0), Some(1.0)));
    let of_tenant = lines.iter().find(|line| line["message"] == "tenant worked on").unwrap();
    assert_eq!((&of_tenant["tenant_id"], &of_tenant["Delivered"]), (&json!(TENANT), &json!(1.0)));
    assert!(of_tenant.get("_aws").is_none(), "the values count once");
    sync.advance(60);
    let (_, lines) = hand_over(&sync, &[poll()]).await;
    assert_eq!((counted(&lines, "Polled"), counted(&lines, "Delivered")), (Some(1.0), Some(0.0)), "{lines:#?}");

    sync.advance(60);
    sync.backends.sim.fault(Fault::new(FaultKind::Throttle { retry_after: RetryAfter::Seconds(30) }).on(Host::Graph));
    let (_, lines) = hand_over(&sync, &[poll()]).await;
    assert_eq!((counted(&lines, "Polled"), counted(&lines, "Throttled")), (Some(0.0), Some(1.0)));
    sync.backends.sim.clear_faults();
    sync.advance(60);
    let down = FaultKind::Status { status: 500, body: None, headers: vec![] };
    sync.backends.sim.fault(Fault::new(down).on(Host::Graph));
    let (_, lines) = hand_over(&sync, &[poll()]).await;
    assert_eq!(counted(&lines, "Polled"), Some(0.0));
}

#[tokio::test]
async fn refusals_are_logged_with_microsofts_request_id() {
    for (api, header, sent, shown) in [
        (APIS[0], "request-id", "6f1b8a3e-09c4-4d0e-9a57-5b7e2f6f6a10", true),
        (APIS[1], "x-ms-request-id", "|00-0af7651916cd43dd.1_", true),
        (APIS[1], "x-ms-request-id", "<script>alert(1)</script>", false),
        (APIS[0], "request-id", &"a".repeat(300), false),
    ] {
        let sync = SyncHarness::start(api).await;
        let headers = vec![(header.to_owned(), sent.to_owned())];
        sync.backends.sim.fault(Fault::new(FaultKind::Status { status: 418, body: None, headers }).on(host(api)));
        let (_, lines) = hand_over(&sync, &[poll()]).await;
        let line = lines.iter().find(|line| line["status"] == 418).expect("the refusal is logged");
        assert_eq!((&line["tenant_id"], &line["api"]), (&json!(TENANT), &json!(api.as_str())));
        let id = line.get("microsoft_request_id").and_then(Value::as_str);
        assert_eq!(id, shown.then_some(sent), "{api} {header}");
    }
}

#[tokio::test]
async fn messages_wait_for_a_secret_that_is_not_filled() {
    let sync = SyncHarness::start(APIS[0]).await;
    sync.put(60);
    sync.backends.double.account().set_secret(SECRET, &json!({"client_id": "x"}));
    let backfill = json!({"tenant_id": TENANT, "kind": "backfill", "job_id": "j"});
    for _ in 0..3 {
        let (response, lines) = hand_over(&sync, &[poll(), backfill.clone()]).await;
        assert_eq!(response, json!({"batchItemFailures": []}), "no dead letters");
        assert!(metrics(&lines).get("InternalFailure").is_none(), "one alarm: {lines:#?}");
        sync.advance(61);
    }
    let event = request("GET", &format!("/tenants/{TENANT}/incidents"), "", None);
    let request_id = unique_request_id();
    let live = Invocation { request_id: request_id.clone(), ..invocation(Duration::from_secs(20)) };
    let response = sync.app.handle(event, live).await.unwrap();
    let problem: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
    assert_eq!((&problem["code"], &problem["status"]), (&json!("internal"), &json!(500)));
    assert!(problem["detail"].as_str().unwrap().contains("no usable value"), "{problem}");
    assert!(metrics(&lines_of(&request_id)).get("InternalFailure").is_none());
    assert_eq!(sync.tenant().await.status, Status::Active, "the tenant is not to blame");

    let filled = json!({"client_id": crate::backends::CLIENT_ID, "client_secret": CLIENT_SECRET});
    sync.backends.double.account().set_secret(SECRET, &filled);
    sync.advance(1_800);
    sync.poll().await;
    // The job's message came back by itself.
    for (_, body) in sync.backends.messages() {
        sync.message(body).await;
    }
    sync.assert_complete();
    let job = sync.registry.job(&super::harness::tenant(), "j").await.unwrap().unwrap();
    assert_eq!(job.status.as_str(), "done");
}

#[tokio::test]
async fn jwt_callers_read_with_one_scope_and_change_with_another() {
    let sync = SyncHarness::start(APIS[0]).await;
    let id = sync.put(60);
    let app = fetch(&sync.backends, &sync.clock, &[("JWT_AUDIENCE", "api://mandate")]);
    let call = async |app: &incident_fetch::App, method: &str, path: String, scope: &str| {
        let mut event = request(method, &path, "", Some(r#"{"status": "resolved"}"#));
        let claims = json!({"iss": "https://login.example", "aud": "api://mandate", "sub": "s", "scp": scope});
        event["requestContext"]["authorizer"] = json!({"jwt": {"claims": claims}});
        app.handle(event, invocation(Duration::from_secs(20))).await.unwrap()["statusCode"].as_u64().unwrap()
    };
    let incident = || format!("/tenants/{TENANT}/incidents/{id}");
    assert_eq!(call(&app, "GET", incident(), "openid mandate.read").await, 200);
    assert_eq!(call(&app, "PATCH", incident(), "mandate.read").await, 403);
    assert_eq!(call(&app, "PATCH", incident(), "mandate.operate").await, 200);
    assert_eq!(call(&app, "GET", incident(), "mandate.operate").await, 403);
    assert_eq!(call(&sync.app, "GET", incident(), "mandate.read").await, 403, "no audience is configured");
}
