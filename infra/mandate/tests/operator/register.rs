//! `mandate register`, against the simulator.

use std::path::Path;

use serde_json::Value;
use sim::{App, Resource, Sim, SimOptions, TenantSeed};

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

/// Creates a registration and returns its client id.
async fn create(sim: &Sim, arguments: &[&str]) -> String {
    let (done, outcome, said) = run(sim, arguments).await;
    assert!(done, "{said}");
    outcome["client_id"].as_str().unwrap().to_owned()
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

    let all = [&all[..], &["--client-id", client_id.as_str().unwrap()]].concat();
    let (done, outcome, said) = run(&sim, &all).await;
    assert!(done, "{said}");
    assert_eq!((&outcome["client_id"], &outcome["changed"]), (&client_id, &serde_json::json!([])));
    assert_eq!(writes(&sim), 2);
    assert!(said.contains("has 1 federated credential, 1 owner."), "{said}");

    let (done, outcome, said) = run(&sim, &[&all[..], &["--with-write", "--with-hunting"]].concat()).await;
    assert!(done, "{said}");
    assert_eq!(outcome["changed"], serde_json::json!(["requiredResourceAccess"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_of_somebody_else_is_not_adopted() {
    let sim = sim().await;
    let client_id = "55555555-2222-4333-8444-abcdefabcdef";
    let app = |client_id: &str, secrets: &[&str]| App {
        client_id: client_id.into(),
        display_name: "Northwind SOC".into(),
        home_tenant_id: HOME.into(),
        client_secrets: secrets.iter().map(ToString::to_string).collect(),
        owners: vec!["somebody".into()],
        single_tenant: true,
        ..App::default()
    };
    sim.register_app(app(client_id, &["canary-one", "canary-two"]));
    let options = ["--redirect-uri", REDIRECT];
    for more in [&[][..], &["--dry-run"]] {
        let (done, _, said) = run(&sim, &[&options[..], more].concat()).await;
        assert!(!done && said.contains("registration:"), "{said}");
        assert!(said.contains(client_id) && said.contains("--client-id ID") && said.contains("owners"), "{said}");
    }
    assert_eq!(writes(&sim), 0);

    // With its client id it is the operator's decision, made with a look at who else can act as the app.
    let (done, outcome, said) = run(&sim, &[&options[..], &["--client-id", client_id]].concat()).await;
    assert!(done, "{said}");
    assert_eq!((&outcome["client_id"], writes(&sim)), (&serde_json::json!(client_id), 1));
    assert!(
        said.contains(&format!("{client_id} has 2 client secrets, 1 owner.")) && !said.contains("canary"),
        "{said}"
    );

    let other = "66666666-2222-4333-8444-abcdefabcdef";
    sim.register_app(app(other, &[]));
    let (done, _, said) = run(&sim, &options).await;
    assert!(!done && said.contains(client_id) && said.contains(other), "{said}");
    let (done, _, said) = run(&sim, &[&options[..], &["--client-id", HOME]].concat()).await;
    assert!(!done && said.contains("no registration"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_for_the_sign_in_has_no_permission() {
    let sim = sim().await;
    let options = ["--redirect-uri", REDIRECT, "--sign-in-only"];
    let (done, _, said) = run(&sim, &[&options[..], &["--dry-run"]].concat()).await;
    assert!(done && said.contains(r#""requiredResourceAccess":[]"#) && said.contains("DirectoryRole"), "{said}");
    let (done, outcome, said) = run(&sim, &options).await;
    assert!(done && outcome["changed"] == serde_json::json!(["created"]), "{said}");
    let again = [&options[..], &["--client-id", outcome["client_id"].as_str().unwrap()]].concat();
    let (done, outcome, said) = run(&sim, &again).await;
    assert!(done && outcome["changed"] == serde_json::json!([]), "{said}");
    let (done, _, said) = run(&sim, &[&options[..], &["--with-write"]].concat()).await;
    assert!(!done && said.contains("cannot be used with"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_gets_one_credential_also_in_a_second_run() {
    let sim = sim().await;
    let issuer = ["--redirect-uri", REDIRECT, "--federated-issuer", "https://x.tokens.sts.global.api.aws"];
    let first = [&issuer[..], &["--federated-subject", "arn:aws:iam::1:role/r"]].concat();
    let client_id = create(&sim, &first).await;
    assert_eq!(writes(&sim), 2);
    let more = ["--federated-subject", "arn:aws:iam::1:role/s", "--federated-subject", "arn:aws:iam::1:role/t"];
    let all = [&first[..], &more, &["--client-id", &client_id]].concat();
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
    let client_id = create(&sim, &["--redirect-uri", REDIRECT, "--with-write", "--with-hunting"]).await;
    let reading = ["--redirect-uri", REDIRECT, "--client-id", &client_id];
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
