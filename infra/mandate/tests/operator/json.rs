//! The output for programs: one JSON object a line.

use serde_json::{Value, json};

use crate::api::{Api, CONTOSO, FABRIKAM, incident, program, tenant};

#[tokio::test]
async fn lists_are_the_objects_of_the_api_on_lines() {
    let good = tenant(CONTOSO, "Contoso", "active", None, 20);
    let bad = tenant(FABRIKAM, "Fabrikam", "paused", Some("role_missing"), 9000);
    let invitation = json!({"invitation_id": "i", "customer": "C", "expected_tenant": null, "expires_at": "2026-11-29T10:00:00Z", "status": "open"});
    let api = Api::start({
        let (good, bad, invitation) = (good.clone(), bad.clone(), invitation.clone());
        move |request| match (request.path.as_str(), request.query.contains("next=two")) {
            ("/tenants", false) => (200, json!({"tenants": [good], "next": "two"})),
            ("/tenants", true) => (200, json!({"tenants": [bad], "next": null})),
            ("/invitations", _) => (200, json!({"invitations": [invitation], "next": null})),
            ("/incidents", false) => (
                200,
                json!({
                    "incidents": [incident(CONTOSO, "1", "One")], "next": "two",
                    "failures": [{"tenant_id": FABRIKAM, "code": "throttled", "reason": null}],
                }),
            ),
            ("/incidents", true) => {
                let failures = json!([{"tenant_id": FABRIKAM, "code": "throttled", "reason": null}]);
                (200, json!({"incidents": [incident(CONTOSO, "2", "Two")], "failures": failures, "next": null}))
            }
            _ => (204, Value::Null),
        }
    })
    .await;
    assert_eq!(api.run(&["tenants"]).await.objects(), [bad, good]);
    assert_eq!(api.run(&["invitations"]).await.objects(), [invitation]);
    assert_eq!(api.run(&["revoke", "i"]).await.objects(), [json!({"invitation_id": "i", "status": "revoked"})]);
    let run = api.run(&["incidents", "--severity", "high", "--since", "2026-11-22", "--limit", "0"]).await;
    let failure = json!({"failure": {"tenant_id": FABRIKAM, "code": "throttled", "reason": null}});
    assert_eq!(run.objects(), [incident(CONTOSO, "1", "One"), failure, incident(CONTOSO, "2", "Two")]);
    assert_eq!(run.stderr, format!("mandate: {FABRIKAM} is missing: throttled\n"), "once, whatever page names it");
    let query = &api.received().iter().find(|request| request.path == "/incidents").unwrap().query.clone();
    assert_eq!(query, "limit=100&from=2026-11-22T00%3A00%3A00Z&severity=high");
}

#[tokio::test]
async fn single_objects_are_those_of_the_api() {
    let commands = [
        (&["invite", "Contoso", "--tenant", "contoso.com", "--hours", "24"][..], "POST", "/invitations".to_owned()),
        (&["tenant", CONTOSO], "GET", format!("/tenants/{CONTOSO}")),
        (&["pause", CONTOSO], "POST", format!("/tenants/{CONTOSO}/pause")),
        (&["resume", CONTOSO], "POST", format!("/tenants/{CONTOSO}/resume")),
        (
            &["change", CONTOSO, "--customer", "Contoso Ltd", "--incident-api", "graph"],
            "PATCH",
            format!("/tenants/{CONTOSO}"),
        ),
        (&["change", CONTOSO, "--incident-api", "defender"], "PATCH", format!("/tenants/{CONTOSO}")),
        (&["offboard", CONTOSO, "--yes"], "DELETE", format!("/tenants/{CONTOSO}")),
        (&["backfill", CONTOSO, "--from", "2026-11-01"], "POST", format!("/tenants/{CONTOSO}/sync")),
        (&["job", CONTOSO, "j/../k"], "GET", format!("/tenants/{CONTOSO}/sync/j%2F..%2Fk")),
        (&["incident", CONTOSO, "7"], "GET", format!("/tenants/{CONTOSO}/incidents/7")),
        (&["set", CONTOSO, "7", "--status", "resolved"], "PATCH", format!("/tenants/{CONTOSO}/incidents/7")),
    ];
    let api = Api::start(|request| (200, json!({"received": request.body, "status": "active"}))).await;
    for (arguments, method, path) in commands {
        let objects = api.run(arguments).await.objects();
        let request = api.received().pop().unwrap();
        assert_eq!((request.method.as_str(), &request.path), (method, &path));
        assert_eq!(objects, [json!({"received": request.body, "status": "active"})]);
    }
    let bodies: Vec<_> =
        api.received().into_iter().map(|request| request.body).filter(|body| !body.is_null()).collect();
    let expected = [
        json!({"customer": "Contoso", "expected_tenant": "contoso.com", "expires_in_hours": 24}),
        json!({"customer": "Contoso Ltd", "api": "graph"}),
        json!({"api": "defender"}),
        json!({"kind": "backfill", "from": "2026-11-01T00:00:00Z"}),
        json!({"status": "resolved"}),
    ];
    assert_eq!(bodies, expected);
}

#[tokio::test]
async fn followed_job_prints_each_progress_once() {
    let api = Api::start({
        let polls = std::sync::atomic::AtomicUsize::new(0);
        move |request| {
            if request.method == "POST" {
                return (202, json!({"job_id": "j"}));
            }
            let done = polls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 0;
            let (status, fraction) = if done { ("failed", 0.5) } else { ("running", 0.5) };
            (200, json!({"job_id": "j", "kind": "sweep", "status": status, "fraction": fraction, "delivered": 3}))
        }
    })
    .await;
    let run = api.run(&["sweep", CONTOSO, "--follow"]).await;
    assert_eq!(run.status, Some(1), "a job that failed is a failure");
    assert!(run.stderr.contains("job_failed"), "{}", run.stderr);
    let states: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(states.iter().map(|state| state["status"].as_str().unwrap()).collect::<Vec<_>>(), ["running", "failed"]);
}

#[tokio::test]
async fn claims_are_printed_without_the_token() {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let payload = BASE64_URL_SAFE_NO_PAD.encode(r#"{"aud":"https://graph.microsoft.com","exp":1795341600}"#);
    let token = format!("e30.{payload}.canary-signature");
    let issued = json!({"token_type": "Bearer", "access_token": token, "expires_in": 3600, "resource": "graph"});
    let api = Api::of(vec![("POST", format!("/tenants/{CONTOSO}/token"), issued.clone())]).await;
    let run = api.run(&["token", CONTOSO, "--claims", "--resource", "graph"]).await;
    assert_eq!(run.objects(), [json!({"aud": "https://graph.microsoft.com", "exp": 1_795_341_600})]);
    assert!(!run.stdout.contains(&payload) && !run.stderr.contains("canary"), "{run:?}");
    assert_eq!(api.received()[0].body, json!({"resource": "graph"}));
    assert_eq!(api.run(&["token", CONTOSO]).await.objects(), [issued]);
}

#[tokio::test]
async fn closed_pipe_ends_the_program_quietly() {
    let many: Vec<_> = (0..100).map(|number| incident(CONTOSO, &number.to_string(), &"x".repeat(2000))).collect();
    let api =
        Api::of(vec![("GET", "/incidents".into(), json!({"incidents": many, "failures": [], "next": null}))]).await;
    let mut child = api.command(&["incidents"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[tokio::test]
async fn shells_get_completions_and_a_manual_page() {
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let output = program(&["completions", shell]).output().await.unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && script.contains("offboard") && script.contains("remove-permissions"),
            "{shell}"
        );
    }
    let output = program(&["man"]).output().await.unwrap();
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && page.contains(".TH mandate 1") && page.contains("MANDATE BACKFILL"), "{page}");
}
