//! The start of a binary: it reads its environment alone, and ends before its first event if the configuration is not
//! complete.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use devstack::Quiet;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use super::harness::BINARIES;

const SECRET: &str = "canary value of a variable";

/// The variables that a binary requires.
fn required(binary: &str) -> &'static [&'static str] {
    match binary {
        "consent-callback" => &["APP_CREDENTIAL_SECRET_ID", "TABLE_NAME", "PARTNER_NAME"],
        "token-issuance" => &["APP_CREDENTIAL_SECRET_ID", "TABLE_NAME"],
        "incident-fetch" | "tenant-admin" => {
            &["APP_CREDENTIAL_SECRET_ID", "TABLE_NAME", "SYNC_QUEUE_URL", "INCIDENT_BUCKET"]
        }
        "incident-dispatch" => &["TABLE_NAME", "SYNC_QUEUE_URL"],
        "secret-rotation" => {
            &["APP_CREDENTIAL_SECRET_ID", "ROTATION_CREDENTIAL_SECRET_ID", "HOME_TENANT_ID", "TABLE_NAME"]
        }
        _ => panic!("{binary} is not deployed"),
    }
}

/// The variables that can be malformed.
fn formed(binary: &str) -> Vec<&'static str> {
    let mut names = vec!["LOG_LEVEL"];
    if binary != "incident-dispatch" {
        names.extend(["MICROSOFT_CLOUD", "ENTRA_AUTHORITY_HOST", "GRAPH_ENDPOINT", "DEFENDER_ENDPOINT"]);
        names.push("HOME_TENANT_ID");
    }
    if ["consent-callback", "incident-fetch", "token-issuance"].contains(&binary) {
        names.push("INCIDENT_API");
    }
    if ["consent-callback", "tenant-admin"].contains(&binary) {
        names.push("PUBLIC_BASE_URL");
    }
    if ["incident-fetch", "tenant-admin"].contains(&binary) {
        names.push("SWEEP_DAYS");
    }
    if ["incident-fetch", "tenant-admin", "token-issuance"].contains(&binary) {
        names.push("JWT_AUDIENCE");
    }
    if binary == "token-issuance" {
        names.push("DIRECT_TOKEN_INVOCATION");
    }
    if ["incident-dispatch", "incident-fetch"].contains(&binary) {
        names.extend(["POLL_INTERVAL_SECONDS", "POLL_MAX_INTERVAL_SECONDS"]);
    }
    if binary == "incident-fetch" {
        names.extend([
            "HUNT_QUEUE_URL",
            "POLL_OVERLAP_SECONDS",
            "FIRST_LOOKBACK_HOURS",
            "CONSENT_CHECK_SECONDS",
            "DELIVERY_FORMAT",
        ]);
    }
    names
}

/// A binary in Lambda's environment, with the runtime API at `runtime`.
async fn command(binary: &str, variables: &BTreeMap<&str, &str>, runtime: &TcpListener) -> Command {
    let mut command = Command::new(&devstack::build(&Quiet).await.unwrap()[binary]);
    command
        .env_clear()
        .envs(variables)
        .env("AWS_LAMBDA_RUNTIME_API", runtime.local_addr().unwrap().to_string())
        .envs([("AWS_REGION", "eu-central-1"), ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")])
        .envs([("AWS_LAMBDA_FUNCTION_NAME", "f"), ("AWS_LAMBDA_FUNCTION_VERSION", "1")])
        .envs([("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"), ("AWS_LAMBDA_LOG_GROUP_NAME", "g")])
        .env("AWS_LAMBDA_LOG_STREAM_NAME", "s")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Starts a binary, which has to end by itself; the one line that it prints.
async fn ends(binary: &str, variables: &BTreeMap<&str, &str>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let process = command(binary, variables, &listener).await.output();
    let output = tokio::select! {
        biased;
        asked = listener.accept() => panic!("{binary} asked for an event: {asked:?}"),
        output = tokio::time::timeout(Duration::from_secs(30), process) => output.expect(binary).unwrap(),
    };
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code().is_some_and(|code| code != 0), "{binary}: {} {printed}", output.status);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{binary}");
    assert_eq!(printed.lines().count(), 1, "{binary}: {printed}");
    let line: Value = serde_json::from_str(&printed).expect(&printed);
    assert!(line["timestamp"].is_string() && line["level"] == "ERROR", "{printed}");
    line["message"].as_str().expect(&printed).to_owned()
}

#[tokio::test]
async fn missing_variables_are_named_all_at_once() {
    for binary in BINARIES {
        // Empty and blank are as good as missing.
        let blank = required(binary).iter().zip(["", "  "].into_iter().cycle()).map(|(name, value)| (*name, value));
        for variables in [BTreeMap::new(), blank.collect()] {
            let printed = ends(binary, &variables).await;
            for name in required(binary) {
                assert_eq!(printed.matches(name).count(), 1, "{binary}: {name} is not named once: {printed}");
            }
        }
        // Each alone, the others being there.
        for missing in required(binary) {
            let others = required(binary).iter().filter(|name| *name != missing);
            let fill = |name: &&'static str| match *name {
                "HOME_TENANT_ID" => (*name, super::harness::HOME),
                "SYNC_QUEUE_URL" => (*name, "https://sqs.example/queue"),
                _ => (*name, SECRET),
            };
            let printed = ends(binary, &others.clone().map(fill).collect()).await;
            assert!(printed.contains(missing) && !printed.contains(SECRET), "{binary} without {missing}: {printed}");
            for name in others {
                assert!(!printed.contains(name), "{binary} without {missing} names {name}: {printed}");
            }
        }
    }
}

#[tokio::test]
async fn malformed_and_missing_variables_are_named_together() {
    for binary in BINARIES {
        let variables = formed(binary).into_iter().map(|name| (name, SECRET)).collect();
        let printed = ends(binary, &variables).await;
        for name in formed(binary).iter().chain(required(binary)) {
            assert!(printed.contains(name), "{binary}: {name} is not named: {printed}");
        }
        assert!(!printed.contains(SECRET), "{binary}: {printed}");
    }
}

#[tokio::test]
async fn each_variable_has_its_own_rule() {
    let wrong = [
        ("incident-fetch", "GRAPH_ENDPOINT", "http://graph.example.com"),
        ("incident-fetch", "DEFENDER_ENDPOINT", "https://defender.example.com/path"),
        ("incident-fetch", "ENTRA_AUTHORITY_HOST", "login.example.com"),
        ("incident-fetch", "INCIDENT_API", "Graph"),
        ("incident-fetch", "POLL_INTERVAL_SECONDS", "0"),
        ("incident-fetch", "POLL_INTERVAL_SECONDS", "1.5"),
        ("incident-fetch", "POLL_OVERLAP_SECONDS", "-1"),
        ("incident-fetch", "FIRST_LOOKBACK_HOURS", "a day"),
        ("incident-fetch", "SWEEP_DAYS", "0"),
        ("incident-fetch", "CONSENT_CHECK_SECONDS", "59"),
        ("incident-fetch", "DELIVERY_FORMAT", "parquet"),
        ("incident-dispatch", "POLL_MAX_INTERVAL_SECONDS", "59"),
        ("incident-dispatch", "LOG_LEVEL", "off"),
        ("incident-dispatch", "LOG_LEVEL", "3"),
        ("incident-dispatch", "SYNC_QUEUE_URL", "queue"),
        ("tenant-admin", "SYNC_QUEUE_URL", "sync"),
        ("incident-fetch", "HUNT_QUEUE_URL", "hunts"),
        ("token-issuance", "MICROSOFT_CLOUD", "china"),
        ("token-issuance", "JWT_AUDIENCE", "api://a api://b"),
        ("token-issuance", "DIRECT_TOKEN_INVOCATION", "false"),
        ("tenant-admin", "PUBLIC_BASE_URL", "http://partner.example.com"),
        ("consent-callback", "PUBLIC_BASE_URL", "https://partner.example.com/?x"),
        ("secret-rotation", "HOME_TENANT_ID", "11733A9E-0000-4000-8000-00000000000A"),
    ];
    for (binary, name, value) in wrong {
        let mut variables: BTreeMap<_, _> = required(binary).iter().map(|name| (*name, "https://x.example")).collect();
        variables.insert(name, value);
        if binary == "secret-rotation" && name != "HOME_TENANT_ID" {
            variables.insert("HOME_TENANT_ID", super::harness::HOME);
        }
        let printed = ends(binary, &variables).await;
        assert!(printed.contains(name), "{binary} with {name}={value}: {printed}");
        let shown = value.len() > 3 && printed.contains(value);
        assert!(!shown, "{binary} with {name}={value}: {printed}");
        for other in required(binary).iter().filter(|other| **other != name) {
            assert!(!printed.contains(other), "{binary} with {name}={value} names {other}: {printed}");
        }
    }
}

/// A folder with a pipe where the system's certificates and the files of the AWS SDK would be. A process that reads one of
/// them stops for good, because nobody writes into the pipe.
async fn pipes() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("start");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(folder.join("certificates")).unwrap();
    std::fs::create_dir_all(folder.join(".aws")).unwrap();
    for name in ["certificates/ca.pem", ".aws/config", ".aws/credentials"] {
        assert!(Command::new("mkfifo").arg(folder.join(name)).status().await.unwrap().success());
    }
    folder
}

/// Starts a binary that can read no file of [`pipes`], with AWS at `aws`. Returns its first connection to the runtime API.
async fn starts(binary: &str, pipes: &Path, aws: &TcpListener) -> (Child, TcpStream) {
    let runtime = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut variables: BTreeMap<_, _> = required(binary).iter().map(|name| (*name, "https://x.example")).collect();
    variables.insert("HOME_TENANT_ID", super::harness::HOME);
    let mut command = command(binary, &variables, &runtime).await;
    command
        .env("AWS_ENDPOINT_URL", format!("http://{}", aws.local_addr().unwrap()))
        .env("HOME", pipes)
        .env("SSL_CERT_FILE", pipes.join("certificates/ca.pem"))
        .env("SSL_CERT_DIR", pipes.join("certificates"));
    let mut process = command.stdout(Stdio::inherit()).spawn().unwrap();
    let polled = tokio::time::timeout(Duration::from_secs(30), runtime.accept());
    let connection = tokio::select! {
        biased;
        status = process.wait() => panic!("{binary} ended: {status:?}"),
        polled = polled => polled.unwrap_or_else(|_| panic!("{binary} reads a file of the system")).unwrap().0,
    };
    (process, connection)
}

/// The head of the next request on a connection.
async fn head(connection: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(connection.read_u8().await.unwrap());
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn start_and_first_call_to_aws_read_no_file_of_the_system() {
    let pipes = pipes().await;
    let aws = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for binary in BINARIES {
        let (_process, mut runtime) = starts(binary, &pipes, &aws).await;
        let first = head(&mut runtime).await;
        assert!(first.starts_with("GET /2018-06-01/runtime/invocation/next "), "{binary}: {first}");
        if binary != "incident-dispatch" {
            continue;
        }
        let event = r#"{"kind": "poll"}"#;
        let response = format!(
            "HTTP/1.1 200 OK\r\nlambda-runtime-aws-request-id: r\r\nlambda-runtime-deadline-ms: 4102444800000\r\n\
             lambda-runtime-invoked-function-arn: arn\r\ncontent-length: {}\r\n\r\n{event}",
            event.len()
        );
        runtime.write_all(response.as_bytes()).await.unwrap();
        let called = tokio::time::timeout(Duration::from_secs(30), aws.accept()).await;
        let mut connection = called.expect("the first call to AWS reads a file of the system").unwrap().0;
        let call = head(&mut connection).await;
        assert!(call.contains("x-amz-target: DynamoDB_20120810.Query"), "{call}");
    }
}
