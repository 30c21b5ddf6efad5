//! Hunts: as a job, and on a server that only knows the table.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::api::{Api, CONTOSO, FABRIKAM, Received};

fn table() -> Value {
    json!({
        "schema": [{"name": "DeviceName", "type": "String"}],
        "results": [{"tenant_id": CONTOSO, "DeviceName": "=host-0"}],
        "failures": [{"tenant_id": FABRIKAM, "code": "conflict", "reason": "role_missing"}],
    })
}

/// A server whose hunt is done at the second look.
fn jobs() -> impl Fn(&Received) -> (u16, Value) {
    let looks = AtomicUsize::new(0);
    move |request| match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/hunting") => (202, json!({"hunt_id": "h", "status": "running"})),
        ("GET", "/hunting/h") if looks.fetch_add(1, Ordering::SeqCst) == 0 => {
            (200, json!({"hunt_id": "h", "status": "running", "tenants_total": 2, "tenants_done": 1, "rows": 1}))
        }
        ("GET", "/hunting/h") => {
            let mut done = table();
            for (name, value) in
                [("hunt_id", json!("h")), ("status", json!("done")), ("rows", json!(1)), ("tenants_total", json!(2))]
            {
                done[name] = value;
            }
            (200, done)
        }
        _ => (204, Value::Null),
    }
}

#[tokio::test]
async fn hunt_prints_rows_from_a_job_and_from_a_table() {
    let row = json!({"tenant_id": CONTOSO, "DeviceName": "=host-0"});
    let failure = json!({"failure": {"tenant_id": FABRIKAM, "code": "conflict", "reason": "role_missing"}});
    let old = Api::of(vec![("POST", "/hunting".into(), table())]).await;
    let arguments = ["hunt", "DeviceInfo | take 1", "--tenant", CONTOSO, "--timespan", "7d"];
    assert_eq!(old.run(&arguments).await.objects(), [failure.clone(), row.clone()]);
    let sent = json!({"query": "DeviceInfo | take 1", "tenants": [CONTOSO], "timespan": "P7D"});
    assert_eq!(old.received()[0].body, sent);

    let new = Api::start(jobs()).await;
    assert_eq!(new.run(&arguments).await.objects(), [failure, row]);
    let paths: Vec<_> =
        new.received().into_iter().map(|request| format!("{} {}", request.method, request.path)).collect();
    assert_eq!(paths, ["POST /hunting", "GET /hunting/h", "GET /hunting/h"]);
}

#[tokio::test]
async fn hunt_writes_csv_and_ndjson() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let query = folder.join("hunt.kql");
    std::fs::write(&query, "DeviceInfo\n| take 1").unwrap();
    let api = Api::start(jobs()).await;
    for (name, expected) in [
        ("hunt.csv", format!("tenant_id,DeviceName\r\n{CONTOSO},\"'=host-0\"\r\n")),
        ("hunt.ndjson", format!("{}\n", json!({"tenant_id": CONTOSO, "DeviceName": "=host-0"}))),
    ] {
        let file = folder.join(name);
        let run = api.run(&["hunt", &format!("@{}", query.display()), "--out", file.to_str().unwrap()]).await;
        assert_eq!((run.status, run.stdout.as_str()), (Some(0), ""), "{run:?}");
        assert_eq!(std::fs::read_to_string(file).unwrap(), expected);
    }
    assert_eq!(api.received()[0].body, json!({"query": "DeviceInfo\n| take 1"}));
}

#[tokio::test]
async fn hunt_that_ran_nowhere_or_is_too_large_has_failed() {
    let api = Api::start(|request| match request.body["query"].as_str() {
        Some("nowhere") => {
            let failures = json!([{"tenant_id": CONTOSO, "code": "invalid_request", "reason": "query_invalid"}]);
            (200, json!({"hunt_id": "h", "status": "done", "schema": [], "results": [], "failures": failures, "tenants_total": 1}))
        }
        _ => (200, json!({"hunt_id": "h", "status": "done", "failures": [], "objects": ["a"], "rows": 9, "tenants_total": 1})),
    })
    .await;
    let run = api.run(&["hunt", "nowhere"]).await;
    assert_eq!(run.status, Some(1));
    assert!(run.stderr.contains("invalid_request") && run.stderr.contains("query_invalid"), "{}", run.stderr);
    let run = api.run(&["hunt", "large"]).await;
    assert_eq!(run.status, Some(1));
    assert!(run.stderr.contains("hunts/hunt_id=h/"), "{}", run.stderr);
}

#[tokio::test]
async fn interrupt_cancels_the_hunt() {
    let api = Api::start(|request| match request.method.as_str() {
        "POST" => (202, json!({"hunt_id": "h", "status": "running"})),
        "GET" => (200, json!({"hunt_id": "h", "status": "running", "tenants_total": 2, "tenants_done": 0, "rows": 0})),
        _ => (204, Value::Null),
    })
    .await;
    let child = api.command(&["hunt", "DeviceInfo"]).spawn().unwrap();
    while !api.received().iter().any(|request| request.method == "GET") {
        tokio::task::yield_now().await;
    }
    interrupt(child.id().unwrap()).await;
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(api.received().iter().any(|request| request.method == "DELETE" && request.path == "/hunting/h"));
}

#[tokio::test]
async fn interrupt_ends_what_follows() {
    let api = Api::start(|_| (200, json!({"incidents": [], "failures": [], "tenants": [], "next": null}))).await;
    let child = api.command(&["incidents", "--follow"]).spawn().unwrap();
    while api.received().is_empty() {
        tokio::task::yield_now().await;
    }
    interrupt(child.id().unwrap()).await;
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), output.stdout, output.stderr), (Some(0), Vec::new(), Vec::new()));
}

pub(crate) async fn interrupt(process: u32) {
    let sent = tokio::process::Command::new("sh").args(["-c", &format!("kill -INT {process}")]).status().await.unwrap();
    assert!(sent.success());
}
