//! `cargo dev --live`: a credential of the operator's own, and a Microsoft that is not part of the stack.

use devstack::CLIENT_ID;
use serde_json::json;
use sim::{App, Sim, SimOptions};

use super::harness::{CONTOSO, StackHarness};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_stack_onboards_with_the_credential_it_was_given() {
    let sim = Sim::start(SimOptions::default()).await.unwrap();
    let credential = json!({"client_id": CLIENT_ID, "client_secret": "of-the-operator"});
    let harness = StackHarness::start_live("live", sim, credential).await;
    assert!(harness.stack.sim().is_none(), "the stack brings no Microsoft of its own");
    harness.sim.register_app(App {
        client_id: CLIENT_ID.into(),
        requested_roles: vec!["SecurityIncident.Read.All".into()],
        wids: true,
        client_secrets: vec!["of-the-operator".into()],
        // The line that `cargo dev --live` prints for the app registration.
        redirect_uris: vec![format!("{}/consent/callback", harness.stack.api_url())],
        ..App::default()
    });
    harness.seed(&CONTOSO);
    harness.incident(&CONTOSO, "Seen live", 5);
    harness.onboard(&CONTOSO, None).await;
    let lines = harness.delivered(1).await;
    assert_eq!(lines[0]["incident"]["displayName"], "Seen live");
    harness.nothing_failed().await;
    harness.end().await;
}
