//! Live lists whose responses do not show everything: the rules of the sync hold for them, too.

use std::{collections::BTreeSet, time::Duration};

use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::tenant::TenantId;
use sim::{Fault, FaultKind, IncidentSeed};

use super::harness::{APIS, SyncHarness, TENANT, active, host, invocation};
use crate::backends::request;

fn list() -> String {
    format!("/tenants/{TENANT}/incidents")
}

fn ids(page: &Value) -> BTreeSet<String> {
    page["incidents"].as_array().unwrap().iter().map(|row| row["incident_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn page_cap_without_a_link_hides_nothing_from_a_list() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let put: BTreeSet<String> = (0..10).map(|number| sync.put(60 + number * 60)).collect();
        sync.backends.sim.fault(Fault::new(FaultKind::SilentCap { rows: 3 }).on(host(api)));
        for path in [list(), "/incidents".into()] {
            let (status, page) = sync.call("GET", &path, "", None).await;
            assert_eq!((status, ids(&page), &page["next"]), (200, put.clone(), &Value::Null), "{path} on {api}");
        }
    }
}

#[tokio::test]
async fn link_to_nothing_is_looked_behind_in_few_calls() {
    let foreign = || FaultKind::ForeignNextLink { url: "https://attacker.example/v1.0/security/incidents".into() };
    for api in APIS {
        for kind in [foreign(), FaultKind::LoopingNextLink] {
            let sync = SyncHarness::start(api).await;
            let put: BTreeSet<String> = (0..10).map(|number| sync.put(60 + number * 60)).collect();
            sync.backends.sim.fault(Fault::new(kind.clone()).on(host(api)));
            let (status, page) = sync.call("GET", &list(), "", None).await;
            assert_eq!((status, ids(&page), &page["next"]), (200, put, &Value::Null), "{kind:?} on {api}: {page}");
            assert!(sync.calls() <= 5, "{} calls for {kind:?} on {api}", sync.calls());
        }
    }
}

#[tokio::test]
async fn end_that_polls_have_confirmed_costs_no_further_call() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        for number in 0..10 {
            sync.put(60 + number * 60);
        }
        sync.poll().await;
        let before = sync.calls();
        let (status, page) = sync.call("GET", &list(), "", None).await;
        assert_eq!((status, ids(&page).len(), sync.calls() - before), (200, 10, 1), "{api}");
    }
}

#[tokio::test]
async fn response_that_leaves_something_out_is_no_list() {
    for api in APIS {
        let partial = FaultKind::Rewrite { status: 206, headers: vec![("Warning".into(), "199 - \"partial\"".into())] };
        for (kind, times, expected) in
            [(partial.clone(), 1, 200), (partial, 2, 502), (FaultKind::IgnoredFilter, 100, 502)]
        {
            let sync = SyncHarness::start(api).await;
            sync.put(60);
            sync.put(48 * 3600);
            sync.backends.sim.fault(Fault::new(kind.clone()).on(host(api)).times(times));
            let (status, page) = sync.call("GET", &list(), "", None).await;
            assert_eq!(status, expected, "{kind:?} {times} times on {api}: {page}");
            sync.backends.sim.clear_faults();
            sync.backends.sim.fault(Fault::new(kind).on(host(api)).times(times));
            let (status, page) = sync.call("GET", "/incidents", "", None).await;
            let failures = usize::from(expected != 200);
            assert_eq!((status, page["failures"].as_array().unwrap().len()), (200, failures), "{page}");
        }
    }
}

#[tokio::test]
async fn list_over_100_tenants_names_the_broken_and_the_slow_one() {
    let sync = SyncHarness::start(APIS[0]).await;
    let (broken, slow) = (17, 55);
    let id = |number: u32| -> TenantId { format!("{number:08x}-2222-4333-8444-000000000001").parse().unwrap() };
    for number in 1..100 {
        let roles: &[&str] = if number == broken { &[] } else { &["SecurityIncident.Read.All"] };
        sync.backends.customer(&id(number).to_string(), &format!("t{number}.example"), roles);
        sync.registry.create_tenant(&active(id(number), APIS[0])).await.unwrap();
        for incident in 0..2 {
            let last_update = sync.clock.now() - SignedDuration::from_secs(i64::from(number * 2 + incident));
            let seed = IncidentSeed { last_update: Some(last_update), ..IncidentSeed::default() };
            sync.backends.sim.put_incident(&id(number).to_string(), seed);
        }
    }
    let hang = Fault::new(FaultKind::Hang { millis: 60_000 }).on(sim::Host::Graph).tenant(&id(slow).to_string());
    sync.backends.sim.fault(hang);
    let time = Duration::from_secs(8);
    let (mut seen, mut query, mut slow_calls) = (Vec::new(), "limit=100".to_owned(), Vec::new());
    loop {
        let in_time = shared::http::Deadline::within(time, &shared::clock::Clock::system());
        let response = sync.app.handle(request("GET", "/incidents", &query, None), invocation(time)).await.unwrap();
        assert!(!in_time.left().is_zero(), "the response comes in time");
        let page: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
        let mut failures = page["failures"].as_array().unwrap().clone();
        failures.sort_by_key(|failure| failure["tenant_id"].to_string());
        let entry = |number, code, reason: Value| json!({"tenant_id": id(number), "code": code, "reason": reason});
        let expected = [
            entry(broken, "tenant_not_active", json!("consent_missing")),
            entry(slow, "deadline_exceeded", Value::Null),
        ];
        assert_eq!(failures, expected, "on each page, also where they would not fail");
        let rows = page["incidents"].as_array().unwrap();
        seen.extend(rows.iter().map(|row| row["key"].as_str().unwrap().to_owned()));
        slow_calls.push(sync.backends.sim.count(sim::Host::Graph, &id(slow).to_string()));
        sync.backends.sim.clear_faults();
        let Some(next) = page["next"].as_str() else { break };
        query = format!("next={next}");
    }
    let distinct: BTreeSet<&String> = seen.iter().collect();
    assert_eq!((seen.len(), distinct.len()), (2 * 97, 2 * 97), "all of the others, each once");
    assert_eq!(slow_calls, [1, 1], "a tenant that has failed is not waited for again");
}
