//! Hunts: as a job, and on a server that only knows the table.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::api::{Api, CONTOSO, FABRIKAM, Received, problem};

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
    let sent = json!({"query": "DeviceInfo | take 1", "tenants": [CONTOSO], "timespan": "P7D", "wait_seconds": 0});
    assert_eq!(old.received()[0].body, sent);

    let new = Api::start(jobs()).await;
    let run = new.run(&arguments).await;
    assert_eq!(run.objects(), [failure, row]);
    assert!(run.stderr.starts_with("The hunt is h.\n"), "{}", run.stderr);
    let paths: Vec<_> =
        new.received().into_iter().map(|request| format!("{} {}", request.method, request.path)).collect();
    assert_eq!(paths, ["POST /hunting", "GET /hunting/h", "GET /hunting/h"]);
}

#[tokio::test]
async fn earlier_hunt_is_read_and_cancelled_by_its_id() {
    let api = Api::start(jobs()).await;
    let run = api.run(&["hunt", "--id", "h"]).await;
    assert_eq!((run.status, run.objects().len()), (Some(0), 2), "{run:?}");
    let sent = |api: &Api| -> Vec<String> {
        api.received().into_iter().map(|request| format!("{} {}", request.method, request.path)).collect()
    };
    assert_eq!(sent(&api), ["GET /hunting/h", "GET /hunting/h"], "no hunt is started");

    // The state after the request: a hunt that was over is not cancelled.
    for status in ["cancelled", "done"] {
        let api = Api::start(move |request| match request.method.as_str() {
            "DELETE" => (204, Value::Null),
            _ => (200, json!({"hunt_id": "h", "status": status, "failures": []})),
        })
        .await;
        let run = api.run(&["hunt", "--id", "h", "--cancel"]).await;
        assert_eq!(run.objects(), [json!({"hunt_id": "h", "status": status})]);
        assert_eq!(sent(&api), ["DELETE /hunting/h", "GET /hunting/h"]);
    }
    let unknown = Api::start(|_| problem(404, "not_found", "There is no such hunt.")).await;
    assert_eq!(unknown.run(&["hunt", "--id", "x"]).await.status, Some(1));
    for wrong in [&["hunt"][..], &["hunt", "DeviceInfo", "--id", "h"], &["hunt", "DeviceInfo", "--cancel"]] {
        assert_eq!(api.run(wrong).await.status, Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn interrupt_leaves_an_earlier_hunt_as_it_is() {
    let api = Api::start(|_| (200, json!({"hunt_id": "h", "status": "running"}))).await;
    let mut child = api.command(&["hunt", "--id", "h"]).spawn().unwrap();
    while api.received().is_empty() {
        assert_eq!(child.try_wait().unwrap(), None, "the program asks before it ends");
        tokio::task::yield_now().await;
    }
    interrupt(child.id().unwrap()).await;
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(1));
    assert!(api.received().iter().all(|request| request.method == "GET"));
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
    assert_eq!(api.received()[0].body, json!({"query": "DeviceInfo\n| take 1", "wait_seconds": 0}));
}

#[tokio::test]
async fn file_is_opened_before_the_hunt_and_kept_without_a_table() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let api = Api::start(|_| problem(400, "invalid_request", "The query is empty.")).await;
    let run = api.run(&["hunt", "x", "--out", folder.join("no/such/folder.csv").to_str().unwrap()]).await;
    assert!(run.status == Some(1) && run.stderr.contains("file_not_written"), "{run:?}");
    assert_eq!(api.received(), []);
    let file = folder.join("hunt-before.csv");
    std::fs::write(&file, "the rows of yesterday").unwrap();
    let run = api.run(&["hunt", "x", "--out", file.to_str().unwrap()]).await;
    assert!(run.status == Some(1) && run.stderr.contains("invalid_request"), "{run:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "the rows of yesterday");
    let api = Api::start(jobs()).await;
    assert_eq!(api.run(&["hunt", "x", "--out", file.to_str().unwrap()]).await.status, Some(0));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("tenant_id,DeviceName\r\n{CONTOSO},\"'=host-0\"\r\n"));
}

#[tokio::test]
async fn wait_for_a_hunt_or_a_job_outlives_failures_that_pass() {
    let hunts = jobs();
    let failures = AtomicUsize::new(0);
    let api = Api::start(move |request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", _) if failures.fetch_add(1, Ordering::SeqCst) == 0 => {
            problem(504, "upstream_unreachable", "Microsoft did not respond in time.")
        }
        ("GET", path) if path.ends_with("/sync/j") => {
            (200, json!({"job_id": "j", "kind": "sweep", "status": "done", "fraction": 1.0, "delivered": 3}))
        }
        _ => hunts(request),
    })
    .await;
    let run = api.run(&["hunt", "DeviceInfo"]).await;
    assert_eq!(run.objects().len(), 2);
    let note = "mandate: upstream_unreachable: Microsoft did not respond in time. It is tried again.";
    assert!(run.stderr.contains(note), "{}", run.stderr);

    let failures = AtomicUsize::new(0);
    let api = Api::start(move |_| match failures.fetch_add(1, Ordering::SeqCst) {
        0 => problem(503, "throttled", "The table is busy."),
        1 => (200, json!({"job_id": "j", "kind": "sweep", "status": "done", "fraction": 1.0, "delivered": 3})),
        _ => problem(404, "not_found", "There is no such job."),
    })
    .await;
    let run = api.run(&["job", CONTOSO, "j", "--follow"]).await;
    assert_eq!(run.objects().len(), 1, "{run:?}");
    // What does not pass ends the wait at once.
    assert_eq!(api.run(&["job", CONTOSO, "j", "--follow"]).await.status, Some(1));
    assert_eq!(api.received().len(), 3);
}

#[tokio::test]
async fn hunt_that_ran_nowhere_or_is_too_large_has_failed() {
    // The response to the start has no number of tenants, as in the interface.
    let empty = |hunt_id: &str| {
        let failures = json!([{"tenant_id": CONTOSO, "code": "invalid_request", "reason": "query_invalid"}]);
        json!({"hunt_id": hunt_id, "status": "done", "schema": [], "results": [], "failures": failures, "truncated": false})
    };
    let api = Api::start(move |request| {
        let progress = |total: u64| (200, json!({"status": "done", "tenants_total": total, "tenants_done": total}));
        match (request.path.as_str(), request.body["query"].as_str()) {
            ("/hunting/one-of-one", _) => progress(1),
            ("/hunting/one-of-three", _) => progress(3),
            (_, Some("nowhere")) => (200, empty("one-of-one")),
            (_, Some("elsewhere")) => (200, empty("one-of-three")),
            _ => (200, json!({"hunt_id": "h", "status": "done", "failures": [], "objects": ["a"], "rows": 9})),
        }
    })
    .await;
    let run = api.run(&["hunt", "nowhere"]).await;
    assert_eq!(run.status, Some(1));
    assert!(run.stderr.contains("invalid_request") && run.stderr.contains("query_invalid"), "{}", run.stderr);
    assert!(run.stderr.contains("Microsoft refuses the query"), "{}", run.stderr);
    let run = api.run(&["hunt", "elsewhere"]).await;
    assert_eq!(run.objects().len(), 1, "two tenants responded, without rows: {run:?}");
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

#[tokio::test(flavor = "multi_thread")]
async fn interrupt_before_the_id_is_known_cancels_the_hunt() {
    let (arrived, interrupted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let api = Api::start({
        let (arrived, interrupted) = (Arc::clone(&arrived), Arc::clone(&interrupted));
        move |request| {
            match request.method.as_str() {
                "POST" => {}
                "GET" => return (200, json!({"hunt_id": "h", "status": "running"})),
                _ => return (204, Value::Null),
            }
            arrived.store(true, Ordering::SeqCst);
            // Another thread goes on with what else the runtime has to do.
            tokio::task::block_in_place(|| {
                while !interrupted.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            (202, json!({"hunt_id": "h", "status": "running"}))
        }
    })
    .await;
    let child = api.command(&["hunt", "DeviceInfo"]).spawn().unwrap();
    while !arrived.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    interrupt(child.id().unwrap()).await;
    interrupted.store(true, Ordering::SeqCst);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let cancelled = |request: &Received| request.method == "DELETE" && request.path == "/hunting/h";
    assert!(api.received().iter().any(cancelled));
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
