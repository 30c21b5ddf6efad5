//! `mandate register`, against the simulator.

use std::path::Path;

use serde_json::Value;
use sim::{Resource, Sim, SimOptions, TenantSeed};

use crate::api::{Run, program};

const HOME: &str = "33333333-2222-4333-8444-abcdefabcdef";
const OPERATOR: &str = "44444444-2222-4333-8444-abcdefabcdef";
const REDIRECT: &str = "https://partner.example.com/consent/callback";

async fn run(sim: &Sim, arguments: &[&str]) -> (bool, Value, String) {
    let token = sim.issue_token(HOME, OPERATOR, &["Application.ReadWrite.All"], Resource::Graph);
    let file =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("token-{}", sim.graph_url().rsplit(':').next().unwrap()));
    std::fs::write(&file, &token).unwrap();
    let fixed =
        ["register", "--name", "Northwind SOC", "--graph", sim.graph_url(), "--token-file", file.to_str().unwrap()];
    let run = Run::of(program(&[&fixed[..], arguments].concat()).output().await.unwrap());
    assert!(!run.stdout.contains(&token) && !run.stderr.contains(&token));
    (run.status == Some(0), serde_json::from_str(&run.stdout).unwrap_or_default(), run.stderr)
}

async fn sim() -> Sim {
    let sim = Sim::start(SimOptions::default()).await.unwrap();
    sim.add_tenant(TenantSeed { tenant_id: HOME.into(), domain: "northwind.example".into(), ..TenantSeed::default() });
    sim
}

fn writes(sim: &Sim) -> usize {
    sim.calls().iter().filter(|call| call.method != "GET").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_sends_nothing_and_a_second_run_changes_nothing() {
    let sim = sim().await;
    let federated =
        ["--federated-issuer", "https://x.tokens.sts.global.api.aws", "--federated-subject", "arn:aws:iam::1:role/r"];
    let all: Vec<&str> = ["--redirect-uri", REDIRECT].into_iter().chain(federated).collect();
    let dry: Vec<&str> = all.iter().copied().chain(["--dry-run"]).collect();

    let (done, outcome, said) = run(&sim, &dry).await;
    assert!(done, "{said}");
    assert_eq!((outcome["client_id"].is_null(), &outcome["dry_run"], writes(&sim)), (true, &Value::Bool(true), 0));
    for shown in [
        "AzureADMultipleOrgs",
        "DirectoryRole",
        "servicePrincipalLockConfiguration",
        REDIRECT,
        "api://AzureADTokenExchange",
    ] {
        assert!(said.contains(shown), "{shown} is not in {said}");
    }

    let (done, outcome, said) = run(&sim, &all).await;
    assert!(done, "{said}");
    assert_eq!((outcome["changed"][0].as_str(), writes(&sim)), (Some("created"), 2));
    let client_id = outcome["client_id"].clone();

    let (done, outcome, said) = run(&sim, &all).await;
    assert!(done, "{said}");
    assert_eq!((&outcome["client_id"], &outcome["changed"]), (&client_id, &serde_json::json!([])));
    assert_eq!(writes(&sim), 2);

    let (done, outcome, said) = run(&sim, &[&all[..], &["--with-write", "--with-hunting"]].concat()).await;
    assert!(done, "{said}");
    assert_eq!(outcome["changed"], serde_json::json!(["requiredResourceAccess"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_for_the_sign_in_has_no_permission() {
    let sim = sim().await;
    let options = ["--redirect-uri", REDIRECT, "--sign-in-only"];
    let (done, _, said) = run(&sim, &[&options[..], &["--dry-run"]].concat()).await;
    assert!(done && said.contains(r#""requiredResourceAccess":[]"#) && said.contains("DirectoryRole"), "{said}");
    let (done, outcome, said) = run(&sim, &options).await;
    assert!(done && outcome["changed"] == serde_json::json!(["created"]), "{said}");
    let (done, outcome, said) = run(&sim, &options).await;
    assert!(done && outcome["changed"] == serde_json::json!([]), "{said}");
    let (done, _, said) = run(&sim, &[&options[..], &["--with-write"]].concat()).await;
    assert!(!done && said.contains("cannot be used with"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_gets_one_credential_also_in_a_second_run() {
    let sim = sim().await;
    let issuer = ["--redirect-uri", REDIRECT, "--federated-issuer", "https://x.tokens.sts.global.api.aws"];
    let first = [&issuer[..], &["--federated-subject", "arn:aws:iam::1:role/r"]].concat();
    assert!(run(&sim, &first).await.0);
    assert_eq!(writes(&sim), 2);
    let all =
        [&first[..], &["--federated-subject", "arn:aws:iam::1:role/s", "--federated-subject", "arn:aws:iam::1:role/t"]];
    let all = all.concat();
    let (done, outcome, said) = run(&sim, &all).await;
    assert!(done, "{said}");
    assert_eq!((&outcome["changed"], writes(&sim)), (&serde_json::json!(["federatedIdentityCredentials"]), 4));
    assert!(run(&sim, &all).await.0);
    assert_eq!(writes(&sim), 4);
    // Entra would take no second one for the same subject, and tokens with the old audience only.
    let (done, _, said) =
        run(&sim, &[&all[..], &["--federated-audience", "api://AzureADTokenExchangeUSGov"]].concat()).await;
    assert!(!done && said.contains("Remove it first"), "{said}");
    assert_eq!(writes(&sim), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn permissions_are_not_taken_away_unless_that_is_said() {
    let sim = sim().await;
    let reading = ["--redirect-uri", REDIRECT];
    let hunting = [&reading[..], &["--with-write", "--with-hunting"]].concat();
    assert!(run(&sim, &hunting).await.0);
    let sent = writes(&sim);
    let (done, _, said) = run(&sim, &reading).await;
    assert!(!done, "customers' consents would be worth less");
    assert!(said.contains("SecurityIncident.ReadWrite.All, ThreatHunting.Read.All"), "{said}");
    assert_eq!(writes(&sim), sent);
    let (done, outcome, said) = run(&sim, &[&reading[..], &["--remove-permissions"]].concat()).await;
    assert!(done, "{said}");
    assert_eq!((&outcome["changed"], writes(&sim)), (&serde_json::json!(["requiredResourceAccess"]), sent + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_options_are_refused_with_a_reason() {
    let sim = sim().await;
    for wrong in
        ["http://partner.example.com/consent/callback", "https://*.example.com/consent/callback", "https://h/x"]
    {
        let (done, _, said) = run(&sim, &["--redirect-uri", wrong]).await;
        assert!(!done && said.contains("/consent/callback"), "{said}");
    }
    sim.update_tenant(HOME, |tenant| tenant.defender_licensed = false);
    let (done, _, said) = run(&sim, &["--redirect-uri", REDIRECT, "--incident-api", "defender"]).await;
    assert!(!done && said.contains("no service principal of defender"), "{said}");
    assert_eq!(writes(&sim), 0);
}
