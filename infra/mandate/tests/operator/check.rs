//! `mandate check`, against the simulator in its settings.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sim::{
    Host, HuntingColumn, HuntingTable, IncidentSeed, Limits, NextLink, Order, Resource, Sim, SimOptions, TenantSeed,
};

use crate::api::{Api, CONTOSO, Run, problem, tenant};

const APP: &str = "5b1c7d0e-0a0b-4c0d-8e0f-0123456789ab";
const SECRET_TITLE: &str = "Adele's laptop";

async fn sim() -> Sim {
    let sim = Sim::start(SimOptions::default()).await.unwrap();
    sim.add_tenant(TenantSeed { tenant_id: CONTOSO.into(), domain: "contoso.example".into(), ..TenantSeed::default() });
    for minutes in 0..60 {
        let created = sim.clock().now() - jiff::SignedDuration::from_mins(minutes);
        let seed =
            IncidentSeed { display_name: SECRET_TITLE.into(), created: Some(created), ..IncidentSeed::default() };
        sim.put_incident(CONTOSO, seed);
    }
    let column = HuntingColumn { name: "AlertId".into(), kind: "String".into() };
    let rows = vec![json!({"AlertId": "a"}).as_object().cloned().unwrap()];
    sim.put_hunting_table(CONTOSO, HuntingTable { name: "AlertInfo".into(), columns: vec![column], rows });
    sim
}

/// Runs the check; the findings by API and point.
async fn check(sim: &Sim, both: bool, more: &[&str]) -> (BTreeMap<String, Value>, Run) {
    check_at(sim, both, sim.defender_url(), more).await
}

/// The same with another address of Defender's API.
async fn check_at(sim: &Sim, both: bool, defender: &str, more: &[&str]) -> (BTreeMap<String, Value>, Run) {
    let issuer = sim.clone();
    let api = Api::start(move |request| match (request.method.as_str(), request.body["resource"].as_str()) {
        ("GET", _) if request.path == "/tenants" => {
            (200, json!({"tenants": [tenant(CONTOSO, "Contoso", "active", None, 5)], "next": null}))
        }
        ("POST", Some("graph")) => {
            let roles = ["SecurityIncident.Read.All", "ThreatHunting.Read.All"];
            (200, json!({"access_token": issuer.issue_token(CONTOSO, APP, &roles, Resource::Graph)}))
        }
        ("POST", Some("defender")) if both => {
            (200, json!({"access_token": issuer.issue_token(CONTOSO, APP, &["Incident.Read.All"], Resource::Defender)}))
        }
        ("POST", _) => problem(409, "conflict", "The consent does not cover this API."),
        _ => (200, tenant(CONTOSO, "Contoso", "active", None, 5)),
    })
    .await;
    let arguments = ["check", "--graph", sim.graph_url(), "--defender", defender];
    let run = api.run(&[&arguments[..], more].concat()).await;
    for private in [CONTOSO, "Contoso", SECRET_TITLE, "adele", APP] {
        assert!(!run.stdout.contains(private), "{private} is in {}", run.stdout);
    }
    let findings = run.objects();
    let by_name = findings.into_iter().map(|finding| {
        (format!("{} {}", finding["api"].as_str().unwrap(), finding["point"].as_str().unwrap()), finding)
    });
    (by_name.collect(), run)
}

fn is(findings: &BTreeMap<String, Value>, name: &str, verdict: &str, found: &str) {
    let finding = findings.get(name).unwrap_or_else(|| panic!("{name} is not in {findings:#?}"));
    let shown = finding["found"].as_str().unwrap();
    assert_eq!(finding["verdict"], verdict, "{finding}");
    assert!(shown.contains(found), "{found} is not in {finding}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_simulator_is_as_the_code_expects() {
    let sim = sim().await;
    let (findings, _) = check(&sim, true, &[]).await;
    is(&findings, "graph largest page", "as_expected", "50: 50 rows, 51: 400");
    is(&findings, "defender largest page", "as_expected", "100: 60 rows, 101: 400");
    for api in ["graph", "defender"] {
        is(&findings, &format!("{api} two-sided filter"), "as_expected", " 0 outside");
        is(&findings, &format!("{api} $orderby"), "seen", "400");
        is(&findings, &format!("{api} headers on limits"), "seen", "none");
        is(&findings, &format!("{api} 429"), "not_tried", "--provoke-throttling");
        is(&findings, &format!("{api} access token"), "as_expected", "aud https://");
    }
    is(&findings, "graph next link", "seen", "$skip; 6 pages");
    is(&findings, "defender next link", "seen", "none; 1 pages");
    is(&findings, "graph hunting's columns", "as_expected", "schema, results");
    is(&findings, "both one id on both APIs", "as_expected", "occur in both");
    is(&findings, "– from consent to active", "not_tried", "pending");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_settings_of_microsoft_are_seen() {
    let sim = sim().await;
    sim.configure(|behaviour| {
        behaviour.graph.max_top = 1000;
        behaviour.graph.order = Order::UpdatedDescending;
        behaviour.graph.allow_orderby = true;
        behaviour.graph.next_link = NextLink::Skiptoken;
        behaviour.graph.empty_pages = 1;
    });
    sim.set_limits(Host::Defender, Some(CONTOSO), Limits { per_minute: Some(40), ..Limits::DEFENDER });
    let (findings, _) = check(&sim, true, &["--provoke-throttling"]).await;
    is(&findings, "graph largest page", "differs", "1000: 60 rows");
    is(&findings, "graph order of a list", "seen", "last update, descending");
    is(&findings, "graph $orderby", "seen", "last update, ascending");
    is(&findings, "graph next link", "seen", "$skiptoken; 6 pages of 1 row, 3 of them empty");
    is(&findings, "graph 429", "seen", "none in 120 requests");
    is(&findings, "defender 429", "seen", "429 TooManyRequests, Retry-After");
}

#[tokio::test(flavor = "multi_thread")]
async fn ignored_filter_differs_and_one_api_is_enough() {
    let sim = sim().await;
    sim.fault(sim::Fault::new(sim::FaultKind::IgnoredFilter).on(Host::Graph));
    let (findings, _) = check(&sim, false, &[]).await;
    let finding = &findings["graph two-sided filter"];
    assert_eq!(finding["verdict"], "differs", "{finding}");
    is(&findings, "defender access token", "not_tried", "no token: conflict");
    is(&findings, "both one id on both APIs", "not_tried", "one API");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_that_does_not_respond_leaves_the_other_one() {
    let sim = sim().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (findings, _) = check_at(&sim, true, &closed, &[]).await;
    is(&findings, "graph largest page", "as_expected", "50: 50 rows");
    is(&findings, "defender access token", "as_expected", "aud https://");
    is(&findings, "defender all further points", "not_tried", "does not respond");
    is(&findings, "both one id on both APIs", "not_tried", "does not respond");
}
