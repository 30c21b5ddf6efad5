//! The interface to the letter, as a caller checks it who knows nothing else.
//!
//! Long, because the shapes of all routes, events and objects stand side by side, as in `functions/interface.md`.

use std::collections::BTreeSet;

use devstack::ApiResponse;
use serde_json::{Value, json};

use super::harness::{
    CONTOSO, FABRIKAM, NORTHWIND, StackHarness, UNKNOWN, has_members, is_tenant_id, is_time, refused,
};

/// Comes with every wrong value, and may not come back.
const ECHO: &str = "canary-of-the-caller";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_are_those_of_the_interface() {
    let harness = StackHarness::start("shapes", &[]).await;
    for customer in [CONTOSO, FABRIKAM, NORTHWIND] {
        harness.seed(&customer);
    }
    for number in 0..3 {
        harness.incident(&CONTOSO, &format!("Incident {number}"), 30 * 24 * 60 + number);
        harness.incident(&CONTOSO, &format!("Incident {number}"), 5 + number);
    }
    invitations(&harness).await;
    harness.onboard(&CONTOSO, None).await;
    gateway(&harness).await;
    wrong_requests(&harness).await;
    harness.delivered(3).await;
    jobs(&harness).await;
    tenants(&harness).await;
    status_events(&harness).await;
    harness.nothing_failed().await;
    harness.lines_are_whole().await;
    harness.end().await;
}

async fn invitations(harness: &StackHarness) {
    let body = json!({"customer": "Éèß Ltd", "expected_tenant": NORTHWIND.domain, "expires_in_hours": 1});
    let response = harness.call("POST", "/invitations", Some(body)).await;
    assert_eq!((response.status, response.header("content-type")), (201, "application/json"), "{}", response.body);
    let made = response.json();
    has_members(&made, &["invitation_id", "customer", "expected_tenant", "consent_url", "expires_at"]);
    assert_eq!((&made["customer"], &made["expected_tenant"]), (&json!("Éèß Ltd"), &json!(NORTHWIND.tenant_id)));
    let link = made["consent_url"].as_str().unwrap();
    let path = link.strip_prefix(harness.stack.api_url()).unwrap();
    let token = path.strip_prefix("/consent/").unwrap();
    assert!(token.len() >= 22 && !token.contains('/'), "{token}");
    assert!(is_time(&made["expires_at"]), "{made}");
    let hours = |value: &Value| {
        let expires: jiff::Timestamp = value.as_str().unwrap().parse().unwrap();
        expires.duration_since(harness.sim.clock().now()).as_secs_f64() / 3600.0
    };
    assert!((0.9..=1.0).contains(&hours(&made["expires_at"])), "{made}");
    let open = harness.invite(&FABRIKAM, None).await;
    assert_eq!(open["expected_tenant"], Value::Null);
    assert!((167.9..=168.0).contains(&hours(&open["expires_at"])), "{open}");
    harness.invite(&FABRIKAM, Some(FABRIKAM.tenant_id)).await;

    // Opening a link changes nothing.
    assert_eq!(harness.stack.public("GET", path, &[], "").await.unwrap().status, 200);
    let listed = all(harness, "/invitations?limit=1", "invitations").await;
    assert_eq!(listed.len(), 3, "{listed:?}");
    for one in &listed {
        has_members(one, &["invitation_id", "customer", "expected_tenant", "expires_at", "status"]);
        assert_eq!(one["status"], "open");
    }
    let id = made["invitation_id"].as_str().unwrap();
    for _ in 0..2 {
        let response = harness.call("DELETE", &format!("/invitations/{id}"), None).await;
        assert_eq!((response.status, response.body.as_str()), (204, ""));
    }
    let listed = all(harness, "/invitations", "invitations").await;
    let status = |id: &Value| listed.iter().find(|one| one["invitation_id"] == *id).unwrap()["status"].clone();
    assert_eq!(status(&made["invitation_id"]), "revoked");
    assert_eq!(status(&open["invitation_id"]), "open");
    let page = harness.stack.public("GET", path, &[], "").await.unwrap();
    assert_eq!(page.status, 410);
    assert!(!page.body.contains(token));
    let page = harness.stack.public("GET", &format!("/consent/{ECHO}"), &[], "").await.unwrap();
    assert_eq!(page.status, 404);
    for (name, value) in
        [("referrer-policy", "no-referrer"), ("x-content-type-options", "nosniff"), ("cache-control", "no-store")]
    {
        assert_eq!(page.header(name), value);
    }
    let policy = page.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
}

/// The gateway's own responses.
async fn gateway(harness: &StackHarness) {
    for (method, path) in [("GET", "/"), ("GET", "/nope"), ("PUT", "/tenants"), ("GET", "/hunting")] {
        assert_eq!(harness.call(method, path, None).await.status, 404, "{method} {path}");
    }
    let unsigned = [
        ("POST", "/invitations".to_owned()),
        ("GET", "/invitations".to_owned()),
        ("DELETE", format!("/invitations/{UNKNOWN}")),
        ("GET", "/tenants".to_owned()),
        ("GET", CONTOSO.path()),
        ("PATCH", CONTOSO.path()),
        ("DELETE", CONTOSO.path()),
        ("POST", format!("{}/sync", CONTOSO.path())),
        ("GET", format!("{}/sync/{UNKNOWN}", CONTOSO.path())),
        ("DELETE", format!("{}/sync/{UNKNOWN}", CONTOSO.path())),
        ("POST", format!("{}/pause", CONTOSO.path())),
        ("POST", format!("{}/resume", CONTOSO.path())),
        ("POST", format!("{}/token", CONTOSO.path())),
        ("GET", format!("{}/incidents", CONTOSO.path())),
        ("GET", format!("{}/incidents/1", CONTOSO.path())),
        ("PATCH", format!("{}/incidents/1", CONTOSO.path())),
        ("GET", "/incidents".to_owned()),
        ("POST", "/hunting".to_owned()),
        ("GET", format!("/hunting/{UNKNOWN}")),
        ("DELETE", format!("/hunting/{UNKNOWN}")),
    ];
    for (method, path) in unsigned {
        let response = harness.stack.public(method, &path, &[], "").await.unwrap();
        assert_eq!(response.status, 403, "{method} {path}");
    }
    assert_eq!(harness.expect(200, "GET", &CONTOSO.path(), None).await["status"], "active");
}

/// No JSON object, each in its own way.
const NO_OBJECT: [&str; 8] = ["", "{", "[]", "null", "7", "\"x\"", "{\"customer\": \"x\"} {}", "\u{feff}{}"];

/// A method, a path, a body, and the code that they are refused with.
#[derive(Default)]
struct Wrong(Vec<(&'static str, String, String, &'static str)>);

impl Wrong {
    fn add(&mut self, method: &'static str, paths: &[String], bodies: &[&str], code: &'static str) {
        for path in paths {
            self.0.extend(bodies.iter().map(|body| (method, path.clone(), (*body).to_owned(), code)));
        }
    }
}

/// Every JSON route with what it does not take.
fn wrong_lists_and_invitations(wrong: &mut Wrong) {
    let tenant = CONTOSO.path();
    let echo = format!("{{\"{ECHO}\": 1}}");
    wrong.add("POST", &["/invitations".into()], &NO_OBJECT, "invalid_request");
    let invitations = [
        "{}",
        echo.as_str(),
        r#"{"customer": 7}"#,
        r#"{"customer": ""}"#,
        r#"{"customer": "x", "expires_in_hours": 0}"#,
        r#"{"customer": "x", "expires_in_hours": 721}"#,
        r#"{"customer": "x", "expires_in_hours": "24"}"#,
        r#"{"customer": "x", "expires_in_hours": 1.5}"#,
        r#"{"customer": "x", "expected_tenant": 7}"#,
        r#"{"customer": "x", "expected_tenant": ""}"#,
        r#"{"customer": "x", "expected_tenant": "../common"}"#,
        r#"{"customer": "x", "unknown": 1}"#,
    ];
    wrong.add("POST", &["/invitations".into()], &invitations, "invalid_request");
    wrong.add(
        "POST",
        &["/invitations".into()],
        &[&format!("{{\"customer\": \"{}\"}}", "x".repeat(121))],
        "invalid_request",
    );
    let pages = ["limit=0", "limit=101", "limit=-1", "limit=x", "limit=", "limit=1&limit=2", "next=nonsense"];
    for list in ["/invitations", "/tenants", "/incidents", &format!("{tenant}/incidents")] {
        let paths: Vec<_> = pages.iter().map(|query| format!("{list}?{query}")).collect();
        wrong.add("GET", &paths, &[""], "invalid_request");
        wrong.add("GET", &[format!("{list}?{ECHO}=1")], &[""], "invalid_request");
    }
    wrong.add("GET", &["/tenants?status=gone".into(), "/tenants?status=".into()], &[""], "invalid_request");
    wrong.add("DELETE", &[format!("/invitations/{UNKNOWN}"), format!("/invitations/{ECHO}")], &[""], "not_found");
}

fn wrong_tenants(wrong: &mut Wrong) {
    let strangers = [
        format!("/tenants/{UNKNOWN}"),
        CONTOSO.path().to_uppercase().replace("/TENANTS", "/tenants"),
        format!("/tenants/{}", CONTOSO.domain),
        format!("/tenants/{ECHO}"),
        format!("/tenants/{{{}}}", CONTOSO.tenant_id),
    ];
    for stranger in &strangers {
        let path = |rest: &str| format!("{stranger}{rest}");
        wrong.add(
            "GET",
            &[path(""), path("/incidents"), path("/incidents/1"), path("/incidents?limit=0")],
            &[""],
            "not_found",
        );
        wrong.add("GET", &[path(&format!("/sync/{UNKNOWN}"))], &[""], "not_found");
        wrong.add("DELETE", &[path(""), path(&format!("/sync/{UNKNOWN}"))], &[""], "not_found");
        wrong.add("POST", &[path("/pause"), path("/resume"), path("/token")], &[""], "not_found");
        wrong.add("PATCH", &[path(""), path("/incidents/1")], &["{}", "["], "not_found");
        wrong.add("POST", &[path("/sync")], &[r#"{"kind": "backfill"}"#, "["], "not_found");
    }
}

fn wrong_changes_and_jobs(wrong: &mut Wrong) {
    let tenant = CONTOSO.path();
    let echo = format!("{{\"{ECHO}\": 1}}");
    wrong.add("PATCH", std::slice::from_ref(&tenant), &NO_OBJECT, "invalid_request");
    let tenants = [r#"{"customer": null}"#, r#"{"customer": 7}"#, r#"{"api": "Graph"}"#, r#"{"api": 7}"#, &echo];
    wrong.add("PATCH", std::slice::from_ref(&tenant), &tenants, "invalid_request");
    wrong.add("GET", &[format!("{tenant}?x=1")], &[""], "invalid_request");
    for action in ["pause", "resume"] {
        wrong.add("POST", &[format!("{tenant}/{action}")], &["[]", "{\"x\": 1}", "x"], "invalid_request");
    }
    wrong.add("DELETE", std::slice::from_ref(&tenant), &["{\"x\": 1}"], "invalid_request");
    wrong.add("POST", &[format!("{tenant}/sync")], &NO_OBJECT, "invalid_request");
    let jobs = [
        "{}",
        r#"{"kind": "poll"}"#,
        r#"{"kind": 7}"#,
        r#"{"kind": "backfill", "from": "yesterday"}"#,
        r#"{"kind": "backfill", "from": 7}"#,
        r#"{"kind": "backfill", "from": "2020-01-01T00:00:00Z"}"#,
        r#"{"kind": "sweep", "to": "2999-01-01T00:00:00Z"}"#,
        r#"{"kind": "sweep", "unknown": 1}"#,
    ];
    wrong.add("POST", &[format!("{tenant}/sync")], &jobs, "invalid_request");
    wrong.add("GET", &[format!("{tenant}/sync/{UNKNOWN}"), format!("{tenant}/sync/{ECHO}")], &[""], "not_found");
    wrong.add("DELETE", &[format!("{tenant}/sync/{UNKNOWN}"), format!("{tenant}/sync/{ECHO}")], &[""], "not_found");
}

fn wrong_tokens_and_incidents(wrong: &mut Wrong) {
    let tenant = CONTOSO.path();
    let echo = format!("{{\"{ECHO}\": 1}}");
    wrong.add("POST", &[format!("{tenant}/token")], &NO_OBJECT[1..], "invalid_request");
    let tokens = [r#"{"resource": "Graph"}"#, r#"{"resource": 7}"#, r#"{"resource": ""}"#, &echo];
    wrong.add("POST", &[format!("{tenant}/token")], &tokens, "invalid_request");

    let incidents = format!("{tenant}/incidents");
    let lists = ["from=yesterday", "to=7", "status=Active", "severity=critical", "format=xml", "status=", "from="];
    for list in [&incidents, "/incidents"] {
        let paths: Vec<_> = lists.iter().map(|query| format!("{list}?{query}")).collect();
        wrong.add("GET", &paths, &[""], "invalid_request");
        let reversed = "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z";
        wrong.add("GET", &[format!("{list}?{reversed}")], &[""], "invalid_request");
    }
    for id in ["x", "1x", "-1", "0x1", "123456789012345678901", ECHO] {
        wrong.add("GET", &[format!("{incidents}/{id}")], &[""], "not_found");
        wrong.add("PATCH", &[format!("{incidents}/{id}")], &[r#"{"status": "active"}"#], "not_found");
    }
    wrong.add("GET", &[format!("{incidents}/1?format=xml"), format!("{incidents}/1?x=1")], &[""], "invalid_request");
    wrong.add("PATCH", &[format!("{incidents}/1")], &NO_OBJECT, "invalid_request");
    wrong.add("PATCH", &[format!("{incidents}/1?format=ocsf")], &[r#"{"status": "active"}"#], "invalid_request");
    let changes = [
        "{}",
        echo.as_str(),
        r#"{"status": "redirected"}"#,
        r#"{"status": "awaiting_action"}"#,
        r#"{"status": "Active"}"#,
        r#"{"status": null}"#,
        r#"{"status": 7}"#,
        r#"{"assigned_to": 7}"#,
        r#"{"classification": "TruePositive"}"#,
        r#"{"determination": "Malware"}"#,
        r#"{"tags": "x"}"#,
        r#"{"tags": [7]}"#,
        r#"{"comment": 7}"#,
        r#"{"status": "active", "severity": "high"}"#,
    ];
    wrong.add("PATCH", &[format!("{incidents}/1")], &changes, "invalid_request");
    wrong.add("POST", &["/hunting".into()], &NO_OBJECT, "invalid_request");
    let hunts = [
        "{}",
        echo.as_str(),
        r#"{"query": 7}"#,
        r#"{"query": ""}"#,
        r#"{"query": "DeviceInfo", "tenants": "x"}"#,
        r#"{"query": "DeviceInfo", "tenants": [7]}"#,
        r#"{"query": "DeviceInfo", "timespan": 7}"#,
        r#"{"query": "DeviceInfo", "unknown": 7}"#,
        r#"{"query": "DeviceInfo", "wait_seconds": 26}"#,
        r#"{"query": "DeviceInfo", "wait_seconds": "1"}"#,
    ];
    wrong.add("POST", &["/hunting".into()], &hunts, "invalid_request");
    let unknown = format!("/hunting/{UNKNOWN}");
    for hunt in ["/hunting/x", "/hunting/1", &unknown] {
        wrong.add("GET", &[hunt.into()], &[""], "not_found");
        wrong.add("DELETE", &[hunt.into()], &[""], "not_found");
    }
    wrong.add("GET", &[format!("{unknown}?wait_seconds=x"), format!("{unknown}?x=1")], &[""], "invalid_request");
}

async fn wrong_requests(harness: &StackHarness) {
    harness.sim.clear_calls();
    let mut wrong = Wrong::default();
    wrong_lists_and_invitations(&mut wrong);
    wrong_tenants(&mut wrong);
    wrong_changes_and_jobs(&mut wrong);
    wrong_tokens_and_incidents(&mut wrong);
    let mut instances = BTreeSet::new();
    for (method, path, body, code) in &wrong.0 {
        let case = format!("{method} {path} {body:.80}");
        let response = harness.call_with(method, path, body).await;
        let problem = checked(&case, &response, code);
        assert!(instances.insert(problem["instance"].as_str().unwrap().to_owned()), "{case}: an instance of before");
    }
    // All of that was refused before anybody outside was asked.
    let calls = harness.sim.calls();
    assert!(calls.is_empty(), "{calls:?}");
    // The log knows each by its instance, with the tenant where the path named one.
    let printed = harness.printed().await;
    let lines: Vec<Value> = printed.iter().map(|(_, line)| serde_json::from_str(line).unwrap()).collect();
    for instance in &instances {
        let about = lines.iter().filter(|line| line["request_id"] == instance.as_str());
        assert!(about.count() > 0, "no line of {instance}");
    }
    let response = harness.call("GET", &format!("{}/incidents?limit=0", CONTOSO.path()), None).await;
    let instance = checked("the last", &response, "invalid_request")["instance"].clone();
    let printed = harness.stack.logs("incident-fetch").await;
    let line = printed.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = line.into_iter().find(|line| line["request_id"] == instance).unwrap();
    assert_eq!(line["tenant_id"], CONTOSO.tenant_id, "{line}");

    // This number is one that there could be.
    let response = harness.call("GET", &format!("{}/incidents/424242", CONTOSO.path()), None).await;
    checked("an unknown incident", &response, "not_found");
    let response =
        harness.call("POST", "/invitations", Some(json!({"customer": "x", "expected_tenant": "nobody.example"}))).await;
    checked("an unknown domain", &response, "invalid_request");
}

fn checked(case: &str, response: &ApiResponse, code: &str) -> Value {
    let problem = refused(case, response, code);
    assert!(!response.body.contains(ECHO), "{case}: {}", response.body);
    assert!(problem["detail"].as_str().is_some_and(|text| !text.contains(UNKNOWN)), "{case}: {}", response.body);
    assert_eq!(problem["instance"].as_str().unwrap().len(), 36, "{case}: {}", response.body);
    problem
}

async fn jobs(harness: &StackHarness) {
    const PROGRESS: [&str; 8] = ["job_id", "kind", "status", "from", "to", "covered_until", "delivered", "fraction"];
    let path = format!("{}/sync", CONTOSO.path());
    let response = harness.call("POST", &path, Some(json!({"kind": "backfill"}))).await;
    assert_eq!(response.status, 202, "{}", response.body);
    has_members(&response.json(), &["job_id"]);
    let job = format!("{path}/{}", response.json()["job_id"].as_str().unwrap());
    let progress = harness.expect(200, "GET", &job, None).await;
    has_members(&progress, &PROGRESS);
    assert_eq!((&progress["kind"], &progress["status"]), (&json!("backfill"), &json!("queued")));
    assert_eq!(progress["fraction"].as_f64(), Some(0.0));
    assert!(is_time(&progress["from"]) && is_time(&progress["to"]), "{progress}");
    let times = |name: &str| progress[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!(times("to").duration_since(times("from")).as_hours(), 180 * 24);
    harness
        .until("the backfill is done".to_owned(), async || {
            harness.poll().await;
            harness.expect(200, "GET", &job, None).await["status"] == "done"
        })
        .await;
    let progress = harness.expect(200, "GET", &job, None).await;
    has_members(&progress, &PROGRESS);
    assert_eq!((progress["fraction"].as_f64(), &progress["delivered"]), (Some(1.0), &json!(3)), "{progress}");
    // One that is done stays so.
    assert_eq!(harness.expect(200, "DELETE", &job, None).await["status"], "done");
    assert_eq!(harness.stack.delivered().await.unwrap().len(), 6);

    let from = (harness.sim.clock().now() - jiff::SignedDuration::from_hours(48)).to_string();
    let response = harness.expect(202, "POST", &path, Some(json!({"kind": "sweep", "from": from}))).await;
    let job = format!("{path}/{}", response["job_id"].as_str().unwrap());
    let cancelled = harness.expect(200, "DELETE", &job, None).await;
    has_members(&cancelled, &PROGRESS);
    assert_eq!((&cancelled["status"], &cancelled["kind"]), (&json!("cancelled"), &json!("sweep")));
    harness.poll().await;
    assert_eq!(harness.expect(200, "GET", &job, None).await["status"], "cancelled");

    let swept = harness.stack.tick("sweep").await.unwrap();
    assert_eq!(swept, json!({"due": 1, "queued": 1}));
    harness
        .until("the sweep is reported".to_owned(), async || {
            harness.stack.drain_queue().await.unwrap();
            !harness.expect(200, "GET", &CONTOSO.path(), None).await["last_sweep"].is_null()
        })
        .await;
    assert_eq!(harness.stack.delivered().await.unwrap().len(), 6);
}

async fn tenants(harness: &StackHarness) {
    let tenant = harness.expect(200, "GET", &CONTOSO.path(), None).await;
    is_tenant(&tenant);
    assert_eq!((&tenant["tenant_id"], &tenant["customer"]), (&json!(CONTOSO.tenant_id), &json!(CONTOSO.name)));
    assert_eq!((&tenant["status"], &tenant["reason"]), (&json!("active"), &Value::Null));
    assert_eq!((&tenant["api"], &tenant["incidents_total"]), (&json!("graph"), &json!(6)));
    has_members(&tenant["last_sweep"], &["at", "checked", "missing"]);
    assert_eq!(tenant["last_sweep"]["missing"], 0);
    assert!(is_time(&tenant["last_sweep"]["at"]) && tenant["last_sweep"]["checked"].is_u64(), "{tenant}");
    for name in ["consented_at", "last_success_at", "covered_until"] {
        assert!(is_time(&tenant[name]), "{name}: {tenant}");
    }
    let lag = tenant["lag_seconds"].as_i64().unwrap();
    assert!((0..120).contains(&lag), "{lag}");
    let listed = all(harness, "/tenants?limit=1&status=active", "tenants").await;
    assert_eq!(listed.len(), 1);
    listed.iter().for_each(is_tenant);
    assert_eq!(all(harness, "/tenants?status=paused", "tenants").await, [Value::Null; 0]);

    let renamed = harness.expect(200, "PATCH", &CONTOSO.path(), Some(json!({"customer": "Contoso Ltd"}))).await;
    is_tenant(&renamed);
    assert_eq!(renamed["customer"], "Contoso Ltd");
    let response = harness.call("PATCH", &CONTOSO.path(), Some(json!({"api": "defender"}))).await;
    assert_eq!(refused("an api without roles", &response, "conflict")["reason"], "role_missing");

    let paused = harness.expect(200, "POST", &format!("{}/pause", CONTOSO.path()), None).await;
    is_tenant(&paused);
    assert_eq!((&paused["status"], &paused["reason"]), (&json!("paused"), &json!("operator")));
    // A warm process takes a tenant for active for up to 30 seconds.
    harness.stack.kill("token-issuance");
    for (method, path) in [("POST", "/token"), ("GET", "/incidents"), ("GET", "/incidents/1")] {
        let response = harness.call(method, &format!("{}{path}", CONTOSO.path()), None).await;
        let problem = refused("a paused tenant", &response, "tenant_not_active");
        assert_eq!(problem["reason"], "operator");
    }
    assert_eq!(harness.poll().await, json!({"due": 0, "queued": 0}));
    let resumed = harness.expect(200, "POST", &format!("{}/resume", CONTOSO.path()), None).await;
    is_tenant(&resumed);
    assert_eq!((&resumed["status"], &resumed["reason"]), (&json!("active"), &Value::Null));
    let token = harness.call("POST", &format!("{}/token", CONTOSO.path()), Some(json!({"resource": "graph"}))).await;
    assert_eq!((token.status, token.header("cache-control")), (200, "no-store"), "{}", token.body);
    // A list's `next` belongs to that list.
    let page = harness.expect(200, "GET", &format!("{}/incidents?limit=1", CONTOSO.path()), None).await;
    let next = page["next"].as_str().unwrap();
    let response = harness.call("GET", &format!("/incidents?next={next}"), None).await;
    checked("a `next` of another list", &response, "invalid_request");
}

/// Each change of status came to the bus once, in order.
async fn status_events(harness: &StackHarness) {
    let events = harness.stack.events().await.unwrap();
    let changes = events.iter().filter(|event| event["detail-type"] == "Tenant Status Changed");
    let mut reported = Vec::new();
    for event in changes {
        let detail = &event["detail"];
        has_members(detail, &["tenant_id", "customer", "from", "to", "reason"]);
        assert_eq!(detail["tenant_id"], CONTOSO.tenant_id);
        reported.push((detail["from"].clone(), detail["to"].clone(), detail["reason"].clone()));
    }
    let change = |from: &str, to: &str, reason: Value| (json!(from), json!(to), reason);
    let last = &reported[reported.len().saturating_sub(3)..];
    let expected = [
        change("pending", "active", Value::Null),
        change("active", "paused", json!("operator")),
        change("paused", "active", Value::Null),
    ];
    assert_eq!(last, expected, "{reported:?}");
}

fn is_tenant(tenant: &Value) {
    let names = [
        "tenant_id",
        "customer",
        "status",
        "reason",
        "api",
        "roles",
        "consented_at",
        "consented_by",
        "last_success_at",
        "covered_until",
        "lag_seconds",
        "incidents_total",
        "quarantined",
        "last_sweep",
        "open_incidents",
    ];
    has_members(tenant, &names);
    assert!(is_tenant_id(tenant["tenant_id"].as_str().unwrap()));
    assert!(tenant["roles"].as_array().unwrap().iter().all(Value::is_string), "{tenant}");
    assert!(tenant["incidents_total"].is_u64() && tenant["quarantined"].is_u64(), "{tenant}");
    assert!(tenant["consented_by"].is_string() && tenant["customer"].is_string(), "{tenant}");
}

/// Every item of a list, page by page, none twice.
async fn all(harness: &StackHarness, path: &str, name: &str) -> Vec<Value> {
    let (mut items, mut next) = (Vec::new(), String::new());
    loop {
        let page = harness.expect(200, "GET", &format!("{path}{next}"), None).await;
        has_members(&page, &[name, "next"]);
        items.extend(page[name].as_array().unwrap().iter().cloned());
        let Some(more) = page["next"].as_str() else { break };
        next = format!("{}next={more}", if path.contains('?') { "&" } else { "?" });
    }
    let distinct: BTreeSet<_> = items.iter().map(Value::to_string).collect();
    assert_eq!(distinct.len(), items.len());
    items
}
