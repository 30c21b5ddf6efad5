//! Exit status, and what a person reads when something is wrong.

use serde_json::{Value, json};

use crate::api::{Api, CONTOSO, Run, problem, program};

#[tokio::test]
async fn exit_status_says_done_failed_or_usage() {
    let api = Api::of(vec![("GET", "/tenants".into(), json!({"tenants": [], "next": null}))]).await;
    assert_eq!(api.run(&["tenants"]).await.status, Some(0));
    assert_eq!(api.run(&["tenant", CONTOSO]).await.status, Some(1));
    for wrong in [
        &["tenant"][..],
        &["tenant", "contoso"],
        &["no-such-command"],
        &["offboard", CONTOSO],
        &["set", CONTOSO, "7"],
        &["change", CONTOSO],
        &["change", CONTOSO, "--incident-api", "auto"],
        &["incident", CONTOSO, "seven"],
        &["incidents", "--since", "yesterday"],
        &["register", "--name", "x", "--redirect-uri", "http://partner.example.com/consent/callback"],
    ] {
        let run = api.run(wrong).await;
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{wrong:?}: {run:?}");
    }
    let nowhere = Run::of(program(&["tenants"]).output().await.unwrap());
    assert_eq!(nowhere.status, Some(2));
    assert!(nowhere.stderr.contains("--stack NAME") && nowhere.stderr.contains("cargo dev"), "{}", nowhere.stderr);
    assert!(api.received().iter().all(|request| request.method == "GET"), "usage errors change nothing");
}

#[tokio::test]
async fn usage_error_is_an_object_with_json() {
    for (arguments, named) in [
        (&["--json", "tenant", "contoso"][..], "not a tenant id"),
        (&["no-such-command", "--json"], "unrecognized subcommand 'no-such-command'"),
        (&["set", "--json", CONTOSO, "7"], "--status"),
        (&["--json"], ""),
    ] {
        let run = Run::of(program(arguments).output().await.unwrap());
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{arguments:?}: {run:?}");
        let problem: Value = serde_json::from_str(&run.stderr).unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert_eq!((&problem["code"], run.stderr.lines().count()), (&json!("usage"), 1));
        assert!(detail.contains(named) && !detail.contains("Usage:") && !detail.starts_with("error"), "{problem}");
    }
    // Help and version are no problem.
    for asked in ["--help", "--version"] {
        let run = Run::of(program(&["--json", asked]).output().await.unwrap());
        assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""), "{run:?}");
        assert!(run.stdout.contains("mandate"), "{run:?}");
    }
}

#[tokio::test]
async fn problem_has_code_detail_and_what_to_do() {
    let api = Api::start(|request| match request.path.as_str() {
        "/tenants" => problem(503, "throttled", "Microsoft asks for a wait."),
        path if path.ends_with("/pause") => {
            let (status, mut body) = problem(409, "tenant_not_active", "The tenant is not active.");
            body["reason"] = json!("consent_missing");
            (status, body)
        }
        path if path.ends_with("/sync") => problem(409, "conflict", "Another worker was on the tenant."),
        path if path.ends_with("/resume") => (403, json!({"message": "Forbidden"})),
        _ => problem(404, "not_found", "There is no such thing."),
    })
    .await;
    let run = api.run(&["pause", CONTOSO]).await;
    assert_eq!((run.status, run.stdout.as_str()), (Some(1), ""));
    assert_eq!(
        run.stderr,
        "mandate: tenant_not_active: The tenant is not active.\n  reason: consent_missing\n  The customer withdrew the \
         consent, or never gave it: `mandate invite` the same customer again.\n"
    );
    let run = api.run(&["sweep", CONTOSO]).await;
    assert!(run.stderr.starts_with("mandate: conflict: Another worker was on the tenant.\n"), "{}", run.stderr);
    assert!(run.stderr.contains("`mandate tenant ID` shows what is there now"), "{}", run.stderr);
    let run = api.run(&["resume", CONTOSO]).await;
    assert!(
        run.stderr.contains(
            "forbidden: Forbidden. The caller was the operator of the local stack, the API http://127.0.0.1:"
        )
    );
    assert!(run.stderr.contains("execute-api:Invoke"), "{}", run.stderr);
    let run = api.run(&["--json", "tenants"]).await;
    let problem: Value = serde_json::from_str(&run.stderr).unwrap();
    assert_eq!((&problem["code"], &problem["status"]), (&json!("throttled"), &json!(503)));
    assert!(problem["detail"].is_string() && problem["advice"].is_string(), "{problem}");
}

#[tokio::test]
async fn unreachable_api_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let free = listener.local_addr().unwrap();
    drop(listener);
    let address = format!("http://{free}");
    let run = Run::of(program(&["--api", &address, "tenants"]).output().await.unwrap());
    assert_eq!(run.status, Some(1));
    assert!(
        run.stderr.starts_with(&format!("mandate: unreachable: {address} cannot be reached. The cause: ")),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("refused"), "{}", run.stderr);

    // A server that does not speak TLS.
    let api = Api::of(Vec::new()).await;
    let address = api.url.replace("http://", "https://");
    let keys = [("AWS_REGION", "eu-central-1"), ("AWS_ACCESS_KEY_ID", "AKIDX"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let run = Run::of(program(&["--api", &address, "tenants"]).envs(keys).output().await.unwrap());
    assert_eq!(run.status, Some(1));
    assert!(run.stderr.contains("corrupt message") && run.stderr.contains("Check the network"), "{}", run.stderr);

    for wrong in ["http://partner.example.com", "https://partner.example.com/path", "ftp://localhost", "localhost:8400"]
    {
        let run = Run::of(program(&["--api", wrong, "tenants"]).output().await.unwrap());
        assert_eq!(run.status, Some(2), "{wrong}: {run:?}");
    }
}

#[tokio::test]
async fn stack_names_the_api_and_refusals_name_the_stack() {
    let api = Api::of(vec![("GET", "/tenants".into(), json!({"tenants": [], "next": null}))]).await;
    // CloudFormation and STS in one place.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let aws = format!("http://{}", listener.local_addr().unwrap());
    let address = api.url.clone();
    let router = axum::Router::new().fallback(async move |body: String| {
        let output = |key: &str, value: &str| format!("<member><OutputKey>{key}</OutputKey><OutputValue>{value}</OutputValue></member>");
        if body.contains("GetCallerIdentity") {
            let arn = "<Arn>arn:aws:iam::123456789012:user/olivia</Arn>";
            let result = format!("<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>{arn}</GetCallerIdentityResult></GetCallerIdentityResponse>");
            return (axum::http::StatusCode::OK, result);
        }
        if !body.contains("StackName=mandate-prod") {
            let error = "<ErrorResponse><Error><Code>ValidationError</Code><Message>Stack with id other does not exist</Message></Error></ErrorResponse>";
            return (axum::http::StatusCode::BAD_REQUEST, error.to_owned());
        }
        let outputs = format!("<Outputs>{}{}</Outputs>", output("TableName", "t"), output("ApiUrl", &address));
        (axum::http::StatusCode::OK, format!("<DescribeStacksResponse><Stacks><member>{outputs}</member></Stacks></DescribeStacksResponse>"))
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    let run = async |stack: &str| {
        let mut command = program(&["--stack", stack, "tenants"]);
        let keys = [
            ("AWS_ENDPOINT_URL", aws.as_str()),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "AKIDX"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
        ];
        Run::of(command.envs(keys).output().await.unwrap())
    };
    assert_eq!(run("mandate-prod").await.status, Some(0));
    let refused = run("other").await;
    assert_eq!(refused.status, Some(1));
    for named in
        ["Stack with id other does not exist", "arn:aws:iam::123456789012:user/olivia", "eu-central-1", "AWS_PROFILE"]
    {
        assert!(refused.stderr.contains(named), "{named} is not in {}", refused.stderr);
    }
}
