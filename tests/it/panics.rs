//! A panic over one record, in a binary with the profile of the deployed ones.

use std::{fs, path::Path, process::Stdio, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{Path as UrlPath, State},
    http::HeaderMap,
    response::IntoResponse,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    process::Command,
    sync::{Mutex, mpsc},
};

/// The settings of `[profile.release]` that cost time and have no part in what a panic does.
const CHEAPER: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_LTO", "false"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_STRIP", "false"),
];

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

#[test]
fn release_profile_unwinds() {
    let manifest = fs::read_to_string(workspace().join("Cargo.toml")).unwrap();
    let (_, profile) = manifest.split_once("\n[profile.release]\n").expect("the manifest has a release profile");
    let mut lines = profile.lines().take_while(|line| !line.starts_with('['));
    // cargo-lambda sets `abort` where the profile is silent.
    assert!(lines.any(|line| line == "panic = \"unwind\""));
}

/// The Runtime API for one process: hands out events, and takes the outcomes.
struct Runtime {
    events: Mutex<mpsc::Receiver<Value>>,
    outcomes: mpsc::Sender<(String, Value)>,
}

async fn next(State(runtime): State<&'static Runtime>) -> impl IntoResponse {
    let event = runtime.events.lock().await.recv().await.expect("the test outlives the process");
    let headers = [
        ("content-type", "application/json"),
        ("lambda-runtime-aws-request-id", "r-1"),
        ("lambda-runtime-deadline-ms", "4102444800000"),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:eu-central-1:123456789012:function:panics"),
    ];
    (headers, event.to_string())
}

async fn take(State(runtime): State<&'static Runtime>, UrlPath(kind): UrlPath<String>, _: HeaderMap, body: Bytes) {
    runtime.outcomes.send((kind, serde_json::from_slice(&body).unwrap())).await.unwrap();
}

/// Builds the program with the tool that SAM and `infra/release` build the functions with, but for what [`CHEAPER`] leaves
/// out. The tool decides what a panic does where the manifest is silent.
async fn build() -> std::path::PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("panics");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["lambda", "build", "--locked", "--release", "--package", "panics", "--bin", "panics"]);
    cargo.env("CARGO_TARGET_DIR", &target).envs(CHEAPER);
    let built = cargo.current_dir(workspace()).status().await.unwrap();
    assert!(built.success(), "cargo lambda builds it; requirements-deploy.txt has the tool, which must be on the PATH");
    target.join("lambda/panics/bootstrap")
}

#[tokio::test]
#[ignore = "long: builds all dependencies in the release profile"]
async fn panic_in_the_deployed_profile_fails_one_record() {
    let program = build().await;
    let (events, queue) = mpsc::channel(1);
    let (sender, mut outcomes) = mpsc::channel(1);
    let runtime: &'static Runtime = Box::leak(Box::new(Runtime { events: Mutex::new(queue), outcomes: sender }));
    let routes = Router::new()
        .route("/2018-06-01/runtime/invocation/next", get(next))
        .route("/2018-06-01/runtime/invocation/r-1/{kind}", post(take))
        .with_state(runtime);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move { axum::serve(listener, routes).await });
    let mut process = Command::new(program)
        .env_clear()
        .env("AWS_LAMBDA_RUNTIME_API", address)
        .envs([("AWS_REGION", "eu-central-1"), ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")])
        .envs([("AWS_LAMBDA_FUNCTION_NAME", "panics"), ("AWS_LAMBDA_FUNCTION_VERSION", "1")])
        .envs([("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"), ("AWS_LAMBDA_LOG_GROUP_NAME", "g")])
        .env("AWS_LAMBDA_LOG_STREAM_NAME", "s")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let record = |id: &str, body: &str| json!({"messageId": id, "body": body});
    let batch = json!({"Records": [record("a", "good"), record("b", "bad"), record("c", "good")]});
    let failed_one = ("response".to_owned(), json!({"batchItemFailures": [{"itemIdentifier": "b"}]}));
    for event in [batch.clone(), json!({}), batch] {
        let is_batch = event.get("Records").is_some();
        events.send(event).await.unwrap();
        let outcome = tokio::select! {
            outcome = outcomes.recv() => outcome.unwrap(),
            status = process.wait() => panic!("the process ended: {status:?}"),
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("no outcome"),
        };
        if is_batch {
            assert_eq!(outcome, failed_one);
        } else {
            assert_eq!((outcome.0.as_str(), &outcome.1["errorType"]), ("error", &json!("internal")));
        }
    }
    assert!(process.try_wait().unwrap().is_none(), "one process took all events");
    process.kill().await.unwrap();
    server.abort();
}
