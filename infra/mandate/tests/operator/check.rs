//! `mandate check`, against the simulator in its settings.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sim::{
    Behaviour, Fault, FaultKind, Host, HuntingBehaviour, HuntingColumn, HuntingTable, IncidentSeed, Limits,
    ListBehaviour, NextLink, Order, Resource, RetryAfter, Sim, SimOptions, TenantSeed,
};

use crate::api::{Api, CONTOSO, FABRIKAM, Run, problem, tenant};

const APP: &str = "5b1c7d0e-0a0b-4c0d-8e0f-0123456789ab";
const SECRET_TITLE: &str = "Adele's laptop";

/// A tenant with 120 incidents, a minute apart by last update, and in another order by creation.
async fn sim() -> Sim {
    let sim = Sim::start(SimOptions::default()).await.unwrap();
    for (tenant_id, domain) in [(CONTOSO, "contoso.example"), (FABRIKAM, "fabrikam.example")] {
        sim.add_tenant(TenantSeed { tenant_id: tenant_id.into(), domain: domain.into(), ..TenantSeed::default() });
    }
    let now = sim.clock().now();
    let ago = |minutes: i64| Some(now - SignedDuration::from_mins(minutes));
    for minutes in 0..120 {
        let (created, last_update) = (ago(200 + minutes * 7 % 120), ago(minutes));
        let display_name = SECRET_TITLE.into();
        sim.put_incident(CONTOSO, IncidentSeed { display_name, created, last_update, ..IncidentSeed::default() });
    }
    let column = HuntingColumn { name: "AlertId".into(), kind: "String".into() };
    let rows = vec![json!({"AlertId": "a"}).as_object().cloned().unwrap()];
    sim.put_hunting_table(CONTOSO, HuntingTable { name: "AlertInfo".into(), columns: vec![column], rows });
    sim
}

/// The findings by API and point.
type Findings = BTreeMap<String, Value>;

/// The response of the token route, with the roles of a consent to everything.
fn issued(sim: &Sim, tenant_id: &str, resource: Option<&str>) -> (u16, Value) {
    let (roles, resource) = match resource {
        Some("graph") => (["SecurityIncident.Read.All", "ThreatHunting.Read.All"], Resource::Graph),
        _ => (["Incident.Read.All", "AdvancedHunting.Read.All"], Resource::Defender),
    };
    (200, json!({"access_token": sim.issue_token(tenant_id, APP, &roles, resource)}))
}

/// An active tenant whose consent took two minutes.
fn consented() -> Value {
    let mut tenant = tenant(CONTOSO, "Contoso", "active", None, 5);
    tenant["consented_at"] = json!("2026-11-22T08:00:00Z");
    tenant["history"] = json!([
        {"at": "2026-11-22T08:02:00Z", "status": "active", "reason": null},
        {"at": "2026-11-22T08:00:00Z", "status": "pending", "reason": "role_missing"},
    ]);
    tenant
}

/// Runs the check with these tokens.
async fn check_with(
    sim: &Sim,
    tokens: impl Fn(Option<&str>) -> (u16, Value) + Send + Sync + 'static,
    more: &[&str],
) -> (Findings, Run) {
    let api = Api::start(move |request| match request.method.as_str() {
        "GET" if request.path == "/tenants" => (200, json!({"tenants": [consented()], "next": null})),
        "POST" => tokens(request.body["resource"].as_str()),
        _ => (200, consented()),
    })
    .await;
    let arguments = [&["check", "--graph", sim.graph_url(), "--defender", sim.defender_url()], more].concat();
    findings_of(api.run(&arguments).await)
}

async fn check(sim: &Sim, more: &[&str]) -> (Findings, Run) {
    let issuer = sim.clone();
    check_with(sim, move |resource| issued(&issuer, CONTOSO, resource), more).await
}

fn findings_of(run: Run) -> (Findings, Run) {
    for private in [CONTOSO, FABRIKAM, "Contoso", SECRET_TITLE, "adele", APP] {
        assert!(!run.stdout.contains(private), "{private} is in {}", run.stdout);
    }
    let findings = run.objects();
    let by_name = findings.into_iter().map(|finding| {
        (format!("{} {}", finding["api"].as_str().unwrap(), finding["point"].as_str().unwrap()), finding)
    });
    (by_name.collect(), run)
}

fn is(findings: &Findings, name: &str, verdict: &str, found: &str) {
    let finding = findings.get(name).unwrap_or_else(|| panic!("{name} is not in {findings:#?}"));
    let shown = finding["found"].as_str().unwrap();
    assert_eq!(finding["verdict"], verdict, "{finding}");
    assert!(shown.contains(found), "{found} is not in {finding}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_simulator_is_as_the_code_expects() {
    let sim = sim().await;
    let (findings, _) = check(&sim, &[]).await;
    is(&findings, "graph largest page", "as_expected", "50: 50 rows, 51: 400");
    is(&findings, "defender largest page", "as_expected", "100: 100 rows, 101: 400");
    for api in ["graph", "defender"] {
        is(&findings, &format!("{api} two-sided filter"), "as_expected", "9 rows, 0 outside");
        is(&findings, &format!("{api} order of a list"), "seen", "last update, descending");
        is(&findings, &format!("{api} $orderby"), "seen", "400");
        is(&findings, &format!("{api} determinations"), "seen", "");
        is(&findings, &format!("{api} headers on limits"), "seen", "none");
        is(&findings, &format!("{api} 429"), "not_tried", "--provoke-throttling");
        is(&findings, &format!("{api} access token"), "as_expected", "tid the tenant, aud https://");
    }
    is(&findings, "graph next link", "seen", "$skip; 3 rows on 3 pages, 0 of them empty");
    is(&findings, "defender next link", "seen", "none; 1 rows on 1 pages");
    is(&findings, "graph hunting's columns", "as_expected", "schema, results; a column has name, type");
    is(&findings, "defender hunting's columns", "as_expected", "Schema, Results; a column has Name, Type");
    is(&findings, "both one id on both APIs", "as_expected", "5 of 5");
    is(&findings, "– from consent to active", "as_expected", "active after 2m 0s");
}

/// Changes lists of either API.
type ListChange = fn(&mut ListBehaviour);
/// Changes hunting on Graph.
type HuntingChange = fn(&mut HuntingBehaviour);
/// A point with its verdict and a part of what was found.
type Expected = (&'static str, &'static str, &'static str);

/// Each field of [`ListBehaviour`] with the finding that it changes, on Graph and on Defender. On Defender there are no
/// next links unless the case sets them.
const LISTS: [(ListChange, Expected, Expected); 17] = [
    (
        |list| list.max_top = 1000,
        ("largest page", "differs", "1000: 120 rows"),
        ("largest page", "differs", "1000: 120 rows"),
    ),
    (|list| list.max_top = 30, ("largest page", "differs", "50: 400"), ("largest page", "differs", "50: 400")),
    (|list| list.max_top = 30, ("order of a list", "not_tried", "400"), ("determinations", "not_tried", "400")),
    (
        |list| list.default_top = 10,
        ("largest page", "as_expected", "no $top: 10 rows"),
        ("largest page", "as_expected", "no $top: 10 rows"),
    ),
    (
        |list| list.page_size = Some(30),
        ("largest page", "differs", "50: 30 rows and a next link"),
        ("largest page", "differs", "further rows without a next link"),
    ),
    (
        |list| list.max_skip = Some(1),
        ("next link", "differs", "$skip, then 400"),
        ("next link", "seen", "none; 1 rows"),
    ),
    (
        |list| list.next_link = NextLink::Skiptoken,
        ("next link", "seen", "$skiptoken; 3 rows on 3 pages"),
        ("next link", "seen", "$skiptoken; 3 rows on 3 pages"),
    ),
    (
        |list| list.next_link = NextLink::None,
        ("next link", "seen", "none; 1 rows on 1 pages"),
        ("next link", "seen", "none; 1 rows on 1 pages"),
    ),
    (
        |list| list.empty_pages = 1,
        ("next link", "seen", "3 rows on 6 pages, 3 of them empty with a link"),
        ("next link", "seen", "1 rows on 2 pages, 1 of them empty with a link"),
    ),
    (
        |list| (list.next_link_to_nothing, list.next_link) = (true, NextLink::Skip),
        ("next link", "seen", "3 rows on 4 pages, 0 of them empty with a link; the last page has no row"),
        ("next link", "seen", "3 rows on 4 pages, 0 of them empty with a link; the last page has no row"),
    ),
    (
        |list| list.next_link_first = true,
        ("next link", "seen", "$skip; 3 rows on 3 pages"),
        ("next link", "seen", "none; 1 rows on 1 pages"),
    ),
    (
        |list| list.order = Order::UpdatedAscending,
        ("order of a list", "seen", "last update, ascending"),
        ("order of a list", "seen", "last update, ascending"),
    ),
    (
        |list| list.order = Order::CreatedDescending,
        ("order of a list", "seen", "creation, descending"),
        ("order of a list", "seen", "creation, descending"),
    ),
    (
        |list| list.order = Order::Shuffled,
        ("order of a list", "seen", "neither by last update nor by creation"),
        ("two-sided filter", "as_expected", "0 outside"),
    ),
    (
        |list| list.shuffle_ties = true,
        ("order of a list", "seen", "last update, descending"),
        ("order of a list", "seen", "last update, descending"),
    ),
    (
        |list| list.allow_orderby = true,
        ("$orderby", "seen", "last update, ascending"),
        ("$orderby", "seen", "last update, ascending"),
    ),
    (
        |list| (list.allow_orderby, list.order) = (true, Order::UpdatedAscending),
        ("order of a list", "seen", "last update, ascending"),
        ("$orderby", "seen", "last update, ascending"),
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_choice_of_lists_is_found() {
    // A new choice of the simulator needs a line in the tables.
    let Behaviour { graph: _, defender: _, hunting: _, refuse_assertion_replay: _, secret_propagation_seconds: _ } =
        Behaviour::default();
    let ListBehaviour {
        max_top: _,
        default_top: _,
        page_size: _,
        max_skip: _,
        next_link: _,
        empty_pages: _,
        next_link_to_nothing: _,
        next_link_first: _,
        order: _,
        shuffle_ties: _,
        allow_orderby: _,
    } = ListBehaviour::default();
    for (change, on_graph, on_defender) in LISTS {
        let sim = sim().await;
        sim.configure(|behaviour| {
            change(&mut behaviour.graph);
            change(&mut behaviour.defender);
        });
        let (findings, _) = check(&sim, &[]).await;
        for (api, (point, verdict, found)) in [("graph", on_graph), ("defender", on_defender)] {
            is(&findings, &format!("{api} {point}"), verdict, found);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_choice_of_hunting_is_found() {
    let HuntingBehaviour { max_result_bytes: _, per_minute: _, cpu_percent: _, capital_names: _, null_schema: _ } =
        HuntingBehaviour::default();
    let choices: [(HuntingChange, &str, &str); 5] = [
        (|hunting| hunting.max_result_bytes = Some(10), "differs", "400"),
        (|hunting| hunting.per_minute = Some(0), "not_tried", "429 429, no Retry-After"),
        // The quota is used up by the query before it.
        (|hunting| hunting.cpu_percent = 100, "as_expected", "a column has name, type"),
        (|hunting| hunting.capital_names = true, "as_expected", "a column has Name, Type"),
        (|hunting| hunting.null_schema = true, "differs", "schema, results; no column"),
    ];
    for (change, verdict, found) in choices {
        let sim = sim().await;
        sim.configure(|behaviour| change(&mut behaviour.hunting));
        let (findings, _) = check(&sim, &[]).await;
        is(&findings, "graph hunting's columns", verdict, found);
        is(&findings, "defender hunting's columns", "as_expected", "Schema, Results");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_lists_are_found_and_failures_are_not_findings() {
    let status = FaultKind::status;
    let throttle = |retry_after| FaultKind::Throttle { retry_after };
    let foreign = || FaultKind::ForeignNextLink { url: "https://contoso.example/next".into() };
    let cap = || FaultKind::SilentCap { rows: 30 };
    let empty = ("next link", "seen", "1 of them empty with a link");
    let cases: [(FaultKind, Option<u32>, Expected); 21] = [
        (foreign(), None, ("next link", "differs", "to another host")),
        (FaultKind::LoopingNextLink, None, ("next link", "differs", "to a page that was there before")),
        (FaultKind::EmptyPage, None, empty),
        (cap(), None, ("largest page", "differs", "further rows without a next link")),
        (FaultKind::IgnoredFilter, None, ("two-sided filter", "differs", "outside")),
        // A failure of the first request alone, and one that lasts.
        (status(503), Some(1), ("largest page", "not_tried", "503")),
        (status(503), Some(1), ("two-sided filter", "as_expected", "0 outside")),
        (status(503), None, ("two-sided filter", "not_tried", "503")),
        (status(503), None, ("order of a list", "not_tried", "503")),
        (status(503), None, ("$orderby", "not_tried", "503")),
        (status(503), None, ("next link", "not_tried", "503")),
        (status(503), None, ("hunting's columns", "not_tried", "503")),
        (status(503), None, ("determinations", "not_tried", "503")),
        (status(503), None, ("headers on limits", "not_tried", "503")),
        (FaultKind::BadGateway, Some(1), ("largest page", "not_tried", "502")),
        (FaultKind::Truncate { at: None }, None, ("determinations", "not_tried", "no JSON object")),
        // A short wait is waited.
        (throttle(RetryAfter::Seconds(1)), Some(1), ("largest page", "as_expected", "")),
        (throttle(RetryAfter::Date(1)), Some(1), ("largest page", "as_expected", "")),
        (
            throttle(RetryAfter::Seconds(600)),
            None,
            ("largest page", "not_tried", "429 TooManyRequests, Retry-After 600 s"),
        ),
        (throttle(RetryAfter::Body(1)), None, ("two-sided filter", "not_tried", "429 TooManyRequests, no Retry-After")),
        (throttle(RetryAfter::Absent), None, ("hunting's columns", "not_tried", "429 TooManyRequests, no Retry-After")),
    ];
    for (kind, times, (point, verdict, found)) in cases {
        let sim = sim().await;
        for host in [Host::Graph, Host::Defender] {
            sim.fault(Fault { times, ..Fault::new(kind.clone()).on(host) });
        }
        let (findings, _) = check(&sim, &[]).await;
        for api in ["graph", "defender"] {
            is(&findings, &format!("{api} {point}"), verdict, found);
        }
        if verdict == "not_tried" && times.is_none() && matches!(kind, FaultKind::Status { .. }) {
            is(&findings, "both one id on both APIs", "not_tried", "503");
        }
    }
    // A skip token that has expired; without next links there is none.
    let sim = sim().await;
    sim.fault(Fault::new(FaultKind::ExpiredSkiptoken));
    let (findings, _) = check(&sim, &[]).await;
    is(&findings, "graph next link", "differs", "$skip, then 400");
    is(&findings, "defender next link", "seen", "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn form_of_a_429_is_seen_on_request() {
    let sim = sim().await;
    sim.set_limits(Host::Defender, Some(CONTOSO), Limits { per_minute: Some(40), ..Limits::DEFENDER });
    let (findings, _) = check(&sim, &["--provoke-throttling"]).await;
    is(&findings, "graph 429", "seen", "none in 120 requests");
    is(&findings, "defender 429", "seen", "429 TooManyRequests, Retry-After");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_api_is_enough() {
    let sim = sim().await;
    let issuer = sim.clone();
    let graph_alone = move |resource: Option<&str>| match resource {
        Some("graph") => issued(&issuer, CONTOSO, resource),
        _ => problem(409, "conflict", "The consent does not cover this API."),
    };
    let (findings, _) = check_with(&sim, graph_alone, &[]).await;
    is(&findings, "graph largest page", "as_expected", "50: 50 rows");
    is(&findings, "defender access token", "not_tried", "no token: conflict");
    is(&findings, "both one id on both APIs", "not_tried", "one API");
}

#[tokio::test(flavor = "multi_thread")]
async fn token_of_another_tenant_differs_and_an_opaque_one_is_seen() {
    let sim = sim().await;
    let issuer = sim.clone();
    let tokens = move |resource: Option<&str>| match resource {
        Some("graph") => issued(&issuer, FABRIKAM, resource),
        _ => (200, json!({"access_token": "EwBgA8l6BAAUkj"})),
    };
    let (findings, _) = check_with(&sim, tokens, &[]).await;
    is(&findings, "graph access token", "differs", "tid another tenant");
    is(&findings, "defender access token", "seen", "it cannot be read");
    is(&findings, "defender largest page", "not_tried", "401");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_that_does_not_respond_leaves_the_other_one() {
    let sim = sim().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let issuer = sim.clone();
    let api = Api::start(move |request| match request.method.as_str() {
        "POST" => issued(&issuer, CONTOSO, request.body["resource"].as_str()),
        _ => (200, consented()),
    })
    .await;
    let arguments = ["check", "--tenant", CONTOSO, "--graph", sim.graph_url(), "--defender", &closed];
    let (findings, _) = findings_of(api.run(&arguments).await);
    is(&findings, "graph largest page", "as_expected", "50: 50 rows");
    is(&findings, "defender access token", "as_expected", "aud https://");
    is(&findings, "defender all further points", "not_tried", "does not respond");
    is(&findings, "both one id on both APIs", "not_tried", "does not respond");
}

/// As `cargo dev --live` is. The audience names no cloud, so that nothing leaves this machine.
#[tokio::test(flavor = "multi_thread")]
async fn local_stack_without_a_simulator_has_hosts_by_the_token() {
    let claims = BASE64_URL_SAFE_NO_PAD.encode(r#"{"aud": "https://graph.example"}"#);
    let token = json!({"access_token": format!("e30.{claims}.c2ln")});
    let held = |api: &Api, offset: u16| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        let port = url::Url::parse(&api.url).unwrap().port().unwrap().saturating_add(offset);
        socket.bind((std::net::Ipv4Addr::LOCALHOST, port).into()).is_ok().then_some(socket)
    };
    // A port that is bound and has no listener refuses connections, and nobody else can take it.
    let (api, _simulators) = loop {
        let token = token.clone();
        let response = move |method: &str| if method == "POST" { token.clone() } else { consented() };
        let api = Api::start(move |request| (200, response(&request.method))).await;
        if let (Some(graph), Some(defender)) = (held(&api, 2), held(&api, 3)) {
            break (api, [graph, defender]);
        }
    };
    let (findings, _) = findings_of(api.run(&["check", "--tenant", CONTOSO]).await);
    for api in ["graph", "defender"] {
        is(&findings, &format!("{api} all further points"), "not_tried", "the token does not name its cloud");
    }
}

/// The first two looks at the tenant show `first`, and further ones an active tenant.
async fn check_pending(sim: &Sim, first: Value) -> (Findings, usize) {
    let (issuer, looks) = (sim.clone(), AtomicUsize::new(0));
    let api = Api::start(move |request| match request.method.as_str() {
        "POST" => issued(&issuer, CONTOSO, request.body["resource"].as_str()),
        _ if looks.fetch_add(1, Ordering::SeqCst) < 2 => (200, first.clone()),
        _ => (200, consented()),
    })
    .await;
    let arguments = ["check", "--tenant", CONTOSO, "--graph", sim.graph_url(), "--defender", sim.defender_url()];
    let (findings, _) = findings_of(api.run(&arguments).await);
    let looks = api.received().into_iter().filter(|request| request.method == "GET").count();
    (findings, looks)
}

#[tokio::test(flavor = "multi_thread")]
async fn consent_is_waited_for_unless_it_waits_for_the_operator() {
    let sim = sim().await;
    let (findings, looks) = check_pending(&sim, tenant(CONTOSO, "Contoso", "pending", Some("role_missing"), 5)).await;
    is(&findings, "– from consent to active", "as_expected", "active after 2m 0s");
    assert_eq!(looks, 4, "pending twice, then active, then the history");

    let started: Timestamp = sim.clock().now();
    let (findings, looks) = check_pending(&sim, tenant(CONTOSO, "Contoso", "pending", Some("operator"), 5)).await;
    is(&findings, "– from consent to active", "not_tried", "it waits for the operator: `mandate resume`");
    assert_eq!(looks, 2, "the tenant, then its history");
    assert!(sim.clock().now().duration_since(started) < SignedDuration::from_secs(60));
}
