//! Reading and changing incidents while somebody waits.
//!
//! Long, because every route of the live API has its cases here.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::tenant::TenantId;
use sim::{Fault, FaultKind, Giant, IncidentSeed, RetryAfter};

use super::harness::{APIS, SyncHarness, TENANT, host, invocation};
use crate::backends::{lines_of, request};

#[tokio::test]
async fn lists_are_newest_first_and_page_without_gap_or_repeat() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        for number in 0..130 {
            sync.put(number * 61);
        }
        let path = format!("/tenants/{TENANT}/incidents");
        let (mut seen, mut query) = (Vec::new(), "limit=40".to_owned());
        loop {
            let (status, page) = sync.call("GET", &path, &query, None).await;
            assert_eq!(status, 200, "{page}");
            let rows = page["incidents"].as_array().unwrap().clone();
            assert!(rows.len() <= 40);
            seen.extend(rows.into_iter().map(|row| (row["last_updated"].as_str().unwrap().to_owned(), row)));
            match page["next"].as_str() {
                Some(next) => query = format!("next={next}"),
                None => break,
            }
            sync.advance(20);
        }
        assert_eq!(seen.len(), 130, "{api}");
        assert!(seen.windows(2).all(|pair| pair[0].0 > pair[1].0));
        assert_eq!(seen[0].1["change"], json!(null));
        assert_eq!(seen[0].1["schema"], "incident/1");
        assert!(seen[0].1["incident"]["alerts"].is_array());
    }
}

#[tokio::test]
async fn filters_hold_on_both_incident_apis() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let seed = |status: &str, severity: &str, assigned_to: Option<&str>| IncidentSeed {
            status: status.into(),
            severity: severity.into(),
            assigned_to: assigned_to.map(Into::into),
            ..IncidentSeed::default()
        };
        let one = sync.put_seed(seed("inProgress", "high", Some("o'neil@contoso.example")));
        let two = sync.put_seed(seed("active", "low", None));
        let three = sync.put_seed(seed("resolved", "high", None));
        let path = format!("/tenants/{TENANT}/incidents");
        for (query, expected) in [
            ("status=in_progress", vec![&one]),
            ("status=active", vec![&two]),
            ("severity=high", vec![&one, &three]),
            ("assigned_to=o%27neil%40contoso.example", vec![&one]),
            ("severity=high&status=resolved", vec![&three]),
            ("status=redirected", vec![]),
        ] {
            let (status, page) = sync.call("GET", &path, query, None).await;
            assert_eq!(status, 200, "{page}");
            let mut ids: Vec<&str> =
                page["incidents"].as_array().unwrap().iter().map(|row| row["incident_id"].as_str().unwrap()).collect();
            ids.sort_unstable();
            let mut expected: Vec<&str> = expected.into_iter().map(String::as_str).collect();
            expected.sort_unstable();
            assert_eq!(ids, expected, "{query} on {api}");
        }
    }
}

#[tokio::test]
async fn one_incident_is_read_and_changed() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let id = sync.put(60);
        let path = format!("/tenants/{TENANT}/incidents/{id}");
        let (status, incident) = sync.call("GET", &path, "", None).await;
        assert_eq!((status, incident["incident_id"].as_str()), (200, Some(id.as_str())));
        let body = json!({"status": "resolved", "classification": "true_positive", "determination": "malware",
                          "assigned_to": "ada@partner.example", "tags": ["seen"], "comment": "done"});
        let (status, changed) = sync.call("PATCH", &path, "", Some(&body.to_string())).await;
        assert_eq!(status, 200, "{changed}");
        let now = sync.backends.sim.incident(TENANT, &id).unwrap();
        assert_eq!((now.status.as_str(), now.determination.as_str()), ("resolved", "malware"));
        assert_eq!(
            (now.assigned_to.as_deref(), now.custom_tags),
            (Some("ada@partner.example"), vec!["seen".to_owned()])
        );
        assert_eq!(now.comments.len(), 1);
        let (status, _) = sync.call("PATCH", &path, "", Some(r#"{"assigned_to": null}"#)).await;
        assert_eq!(status, 200);
        assert_eq!(sync.backends.sim.incident(TENANT, &id).unwrap().assigned_to.filter(|name| !name.is_empty()), None);
        let (status, _) = sync.call("GET", &path, "format=ocsf", None).await;
        assert_eq!(status, 200);
    }
}

#[tokio::test]
async fn unknown_and_forbidden_resources_return_problem_documents() {
    let sync = SyncHarness::start(APIS[0]).await;
    let id = sync.put(60);
    let other = "22222222-2222-4333-8444-000000000001";
    for (method, path, query, status, code) in [
        ("GET", format!("/tenants/{TENANT}/incidents/999999"), "", 404, "not_found"),
        ("GET", format!("/tenants/{TENANT}/incidents/abc"), "", 404, "not_found"),
        ("GET", format!("/tenants/{other}/incidents"), "", 404, "not_found"),
        ("GET", "/tenants/common/incidents".into(), "", 404, "not_found"),
        ("GET", format!("/tenants/{}/incidents", TENANT.to_uppercase()), "limit=1", 200, ""),
        ("GET", format!("/tenants/{TENANT}/incidents"), "limit=0", 400, "invalid_request"),
        ("PATCH", format!("/tenants/{TENANT}/incidents/{id}"), "", 400, "invalid_request"),
        ("DELETE", format!("/tenants/{TENANT}/incidents/{id}"), "", 404, "not_found"),
    ] {
        // A tenant in another letter case is another path, and no tenant. This one has no letters.
        let (responded, body) = sync.call(method, &path, query, Some("{}")).await;
        assert_eq!(responded, status, "{method} {path}: {body}");
        if !code.is_empty() {
            assert_eq!(body["code"], code);
        }
    }
    let mut unsigned = crate::backends::request("GET", &format!("/tenants/{TENANT}/incidents"), "", None);
    unsigned["requestContext"]["authorizer"].take();
    let response =
        sync.app.handle(unsigned, super::harness::invocation(std::time::Duration::from_secs(5))).await.unwrap();
    assert_eq!(response["statusCode"], 403);
    assert!(response["body"].as_str().unwrap().contains("unauthorized_caller"));
}

#[tokio::test]
async fn list_of_all_tenants_names_those_that_fail() {
    let sync = SyncHarness::start(APIS[0]).await;
    let other: shared::tenant::TenantId = "22222222-2222-4333-8444-000000000001".parse().unwrap();
    sync.backends.customer(&other.to_string(), "fabrikam.example", &["Incident.Read.All"]);
    sync.registry.create_tenant(&super::harness::active(other, APIS[1])).await.unwrap();
    let broken: shared::tenant::TenantId = "33333333-2222-4333-8444-000000000001".parse().unwrap();
    sync.backends.customer(&broken.to_string(), "northwind.example", &[]);
    sync.registry.create_tenant(&super::harness::active(broken, APIS[0])).await.unwrap();
    for number in 0..5 {
        sync.put(number * 60);
        let last_update = sync.clock.now() - jiff::SignedDuration::from_secs(number * 60 + 30);
        sync.backends.sim.put_incident(
            &other.to_string(),
            IncidentSeed { last_update: Some(last_update), ..IncidentSeed::default() },
        );
    }
    let (mut seen, mut query) = (Vec::new(), "limit=4".to_owned());
    loop {
        let (status, page) = sync.call("GET", "/incidents", &query, None).await;
        assert_eq!(status, 200, "{page}");
        assert_eq!(
            page["failures"],
            json!([{"tenant_id": broken, "code": "tenant_not_active", "reason": "consent_missing"}])
        );
        seen.extend(
            page["incidents"].as_array().unwrap().iter().map(|row| row["last_updated"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => query = format!("next={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 10);
    assert!(seen.windows(2).all(|pair| pair[0] > pair[1]), "{seen:?}");
}

/// Lambda's limit for a response in bytes. Beyond it the gateway responds 502.
const LAMBDA: usize = 6_291_556;

fn list() -> String {
    format!("/tenants/{TENANT}/incidents")
}

fn ids(page: &Value) -> Vec<&str> {
    page["incidents"].as_array().unwrap().iter().map(|row| row["incident_id"].as_str().unwrap()).collect()
}

/// All pages of a list, a minute apart, each of which Lambda would let through.
async fn pages(sync: &SyncHarness, path: &str, query: &str) -> Vec<Value> {
    let (mut pages, mut query) = (Vec::new(), query.to_owned());
    while pages.len() < 40 {
        let asked = sync.app.handle(request("GET", path, &query, None), invocation(Duration::from_secs(29)));
        let response = asked.await.unwrap();
        assert!(response.to_string().len() <= LAMBDA, "{} bytes", response.to_string().len());
        assert_eq!(response["statusCode"], 200, "{}", response["body"]);
        let page: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
        let next = page["next"].as_str().map(|next| format!("next={next}"));
        pages.push(page);
        match next {
            Some(next) => query = next,
            None => return pages,
        }
        sync.advance(60);
    }
    panic!("the list does not end");
}

fn noted(text: &str, times: usize) -> IncidentSeed {
    let extra = json!({"note": text.repeat(times)});
    IncidentSeed { extra: extra.as_object().unwrap().clone(), ..IncidentSeed::default() }
}

#[tokio::test]
async fn oversized_incident_is_listed_without_its_alerts() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let old = sync.put(180);
        let at = |seconds| Some(sync.clock.now() - SignedDuration::from_secs(seconds));
        let giant = Some(Giant { alerts: 1_500, bytes_each: 4_000 });
        let giant = sync.put_seed(IncidentSeed { giant, last_update: at(120), ..IncidentSeed::default() });
        // Nothing can be left out of this one.
        let never = sync.put_seed(IncidentSeed { last_update: at(90), ..noted("x", 5_600_000) });
        let new = sync.put(60);
        for (path, query) in [(list(), "limit=1"), ("/incidents".into(), ""), (list(), "format=ocsf")] {
            let pages = pages(&sync, &path, query).await;
            let rows: Vec<&Value> = pages.iter().flat_map(|page| page["incidents"].as_array().unwrap()).collect();
            let uid = |row: &&Value| row["incident_id"].as_str().or(row["metadata"]["uid"].as_str()).map(str::to_owned);
            let shown: Vec<String> = rows.iter().filter_map(uid).collect();
            assert_eq!(shown.len(), 3, "{query} of {path} on {api}");
            for (shown, put) in shown.iter().zip([&new, &giant, &old]) {
                assert!(shown == put || shown.contains(&format!("/{put}/")), "{shown} is not {put}");
            }
            if query != "format=ocsf" {
                let shown = &rows[1]["incident"];
                assert!(shown.get("alerts").is_none() && shown.get("status").is_some());
            }
        }
        let (status, one) = sync.call("GET", &format!("{}/{giant}", list()), "", None).await;
        assert_eq!((status, one["incident_id"].as_str()), (200, Some(giant.as_str())), "{one}");
        assert!(one["incident"].get("alerts").is_none());
        let (status, problem) = sync.call("GET", &format!("{}/{never}", list()), "", None).await;
        assert_eq!((status, problem["code"].as_str()), (409, Some("conflict")));
    }
}

#[tokio::test]
async fn page_size_counts_the_escaped_length_of_the_response() {
    let sync = SyncHarness::start(APIS[0]).await;
    let mut put = Vec::new();
    for seconds in [60, 120] {
        let last_update = Some(sync.clock.now() - SignedDuration::from_secs(seconds));
        // Each quote is two bytes of JSON, and four in the text that Lambda hands over.
        put.push(sync.put_seed(IncidentSeed { last_update, ..noted("\"", 900_000) }));
    }
    let pages = pages(&sync, &list(), "").await;
    assert_eq!(pages.iter().flat_map(ids).collect::<Vec<_>>(), put);
}

#[tokio::test]
async fn reading_of_an_endless_incident_stops_at_the_limit() {
    let sync = SyncHarness::start(APIS[0]).await;
    let giant = Some(Giant { alerts: 10_000, bytes_each: 4_000 });
    let id = sync.put_seed(IncidentSeed { giant, ..IncidentSeed::default() });
    let (status, problem) = sync.call("GET", &format!("{}/{id}", list()), "", None).await;
    assert_eq!((status, problem["code"].as_str()), (502, Some("upstream_error")), "{problem}");
}

#[tokio::test]
async fn client_side_filter_returns_pages_bit_by_bit() {
    let sync = SyncHarness::start(APIS[0]).await;
    let wanted = sync.put_seed(IncidentSeed {
        status: "awaitingAction".into(),
        last_update: Some(sync.clock.now() - SignedDuration::from_secs(80_000)),
        ..IncidentSeed::default()
    });
    for number in 0..1_300 {
        sync.put(number * 61);
    }
    for path in [list(), "/incidents".to_owned()] {
        let pages = pages(&sync, &path, "status=awaiting_action").await;
        assert!(pages.len() > 1, "one page does not test this");
        assert_eq!(pages.iter().flat_map(ids).collect::<Vec<_>>(), [&wanted], "{path}");
        sync.advance(120);
    }
}

#[tokio::test]
async fn list_returns_what_it_found_when_budget_or_time_runs_out() {
    let sync = SyncHarness::start(APIS[0]).await;
    for number in 0..130 {
        sync.put(number * 61);
    }
    let throttle = FaultKind::Throttle { retry_after: RetryAfter::Seconds(30) };
    for (kind, time, code) in [
        (throttle, Duration::from_secs(20), "throttled"),
        (FaultKind::Hang { millis: 60_000 }, Duration::from_secs(4), "deadline_exceeded"),
    ] {
        sync.backends.sim.fault(Fault::new(kind).on(sim::Host::Graph).after(2));
        let enough = shared::http::Deadline::within(time, &shared::clock::Clock::system());
        let asked = sync.app.handle(request("GET", &list(), "limit=100", None), invocation(time));
        let response = asked.await.unwrap();
        assert_eq!(response["statusCode"], 200, "{}", response["body"]);
        let page: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
        assert!((30..100).contains(&ids(&page).len()), "{}", ids(&page).len());
        assert!(!enough.left().is_zero());
        let query = format!("next={}", page["next"].as_str().unwrap());
        let asked = sync.app.handle(request("GET", &list(), &query, None), invocation(time));
        let response = asked.await.unwrap();
        assert!(response["body"].as_str().unwrap().contains(code), "{}", response["body"]);
        sync.backends.sim.clear_faults();
        sync.advance(120);
        let rest = pages(&sync, &list(), &query).await;
        let all: Vec<&str> = ids(&page).into_iter().chain(rest.iter().flat_map(ids)).collect();
        let distinct: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!((all.len(), distinct.len()), (130, 130), "after {code}");
    }
}

#[tokio::test]
async fn list_goes_past_a_second_with_too_many_incidents() {
    let sync = SyncHarness::start(APIS[0]).await;
    for _ in 0..600 {
        sync.put(120);
    }
    let (new, old) = (sync.put(60), sync.put(180));
    let pages = pages(&sync, &list(), "limit=100").await;
    let listed: Vec<&str> = pages.iter().flat_map(ids).collect();
    assert_eq!((listed[0], *listed.last().unwrap()), (new.as_str(), old.as_str()));
    assert_eq!(listed.len(), 552, "the first 550 of the second");
}

#[tokio::test]
async fn page_without_rows_does_not_end_a_list() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let put: BTreeSet<String> = (0..5).map(|number| sync.put(60 + number * 60)).collect();
        sync.backends.sim.fault(Fault::new(FaultKind::EmptyPage).on(host(api)));
        let listed = pages(&sync, &list(), "limit=2").await;
        let listed: BTreeSet<String> = listed.iter().flat_map(ids).map(str::to_owned).collect();
        assert_eq!(listed, put, "{api}");
    }
}

#[tokio::test]
async fn arbitrary_query_values_never_panic_a_list() {
    let sync = SyncHarness::start(APIS[0]).await;
    let id = sync.put(60);
    for query in ["to=9999-12-30T22:00:00.5Z", "to=9999-12-30T22:00:00Z", "from=0000-01-01T00:00:00Z"] {
        let (status, page) = sync.call("GET", &list(), query, None).await;
        assert_eq!((status, ids(&page)), (200, vec![id.as_str()]), "{query}");
    }
    sync.put(120);
    let (_, page) = sync.call("GET", &list(), "limit=1", None).await;
    let next = BASE64_URL_SAFE_NO_PAD.decode(page["next"].as_str().unwrap()).unwrap();
    let next: Value = serde_json::from_slice(&next).unwrap();
    for (pointer, value, status) in [
        ("/after/newest_first", json!("9999-12-30T22:00:00.999999999Z"), 200),
        ("/from", json!("-009999-01-02T01:59:59Z"), 400),
        ("/to", json!("2000-01-01T00:00:00Z"), 400),
        ("/status", json!("' or 1 eq 1"), 400),
        ("/severity", json!("severe"), 400),
        ("/limit", json!(101), 400),
        ("/expires", json!(null), 410),
    ] {
        let mut tampered = next.clone();
        *tampered.pointer_mut(pointer).unwrap() = value;
        let query = format!("next={}", BASE64_URL_SAFE_NO_PAD.encode(tampered.to_string()));
        let (responded, body) = sync.call("GET", &list(), &query, None).await;
        assert_eq!(responded, status, "{pointer}: {body}");
        sync.advance(5);
    }
}

#[tokio::test]
async fn limits_of_time_and_budget_are_problem_documents() {
    let sync = SyncHarness::start(APIS[0]).await;
    sync.put(60);
    sync.put(120);
    let (_, page) = sync.call("GET", &list(), "limit=1", None).await;
    let query = format!("next={}", page["next"].as_str().unwrap());
    sync.advance(3_601);
    let (status, problem) = sync.call("GET", &list(), &query, None).await;
    assert_eq!((status, problem["code"].as_str()), (410, Some("gone")));
    sync.backends.sim.fault(Fault::new(FaultKind::Hang { millis: 10_000 }).on(sim::Host::Graph));
    let asked = sync.app.handle(request("GET", &list(), "", None), invocation(Duration::from_millis(2_500)));
    let response = asked.await.unwrap();
    assert_eq!(response["statusCode"], 504);
    assert!(response["body"].as_str().unwrap().contains("deadline_exceeded"), "{}", response["body"]);
}

#[tokio::test]
async fn lists_are_available_as_ocsf() {
    for api in APIS {
        let sync = SyncHarness::start(api).await;
        let id = sync.put(60);
        let (status, page) = sync.call("GET", &list(), "format=ocsf", None).await;
        let event = &page["incidents"][0];
        assert_eq!((status, event["class_uid"].as_u64()), (200, Some(2005)), "{page}");
        let last_updated = sync.backends.sim.incident(TENANT, &id).unwrap().last_update;
        assert_eq!(event["metadata"]["uid"], format!("{TENANT}/{id}/{last_updated}"));
        assert_eq!(event["time"], last_updated.as_millisecond());
        crate::ocsf::assert_valid(event);
        crate::snapshots::assert_json(&format!("ocsf-finding-{api}"), event, &[]);
    }
}

#[tokio::test]
async fn incident_ids_have_one_spelling() {
    let sync = SyncHarness::start(APIS[0]).await;
    let id = sync.put(60);
    for written in [format!("0{id}"), format!("00{id}"), "00".to_owned(), "0".to_owned()] {
        for (method, body) in [("GET", None), ("PATCH", Some(r#"{"status": "active"}"#))] {
            let (status, problem) = sync.call(method, &format!("{}/{written}", list()), "", body).await;
            assert_eq!((status, problem["code"].as_str()), (404, Some("not_found")), "{method} {written}");
        }
    }
}

#[tokio::test]
async fn problem_status_depends_on_who_failed() {
    let sync = SyncHarness::start(APIS[0]).await;
    let id = sync.put(60);
    let one = format!("{}/{id}", list());
    let change = r#"{"status": "active"}"#;
    // What the token endpoint refuses is not the caller's.
    sync.backends.sim.fault(Fault::new(FaultKind::status(400)).on(sim::Host::Entra));
    let (status, problem) = sync.call("PATCH", &one, "", Some(change)).await;
    assert_eq!((status, problem["code"].as_str()), (502, Some("upstream_error")), "{problem}");
    sync.backends.sim.clear_faults();
    let (status, _) = sync.call("PATCH", &one, "", Some(r#"{"determination": "nothing_known"}"#)).await;
    assert_eq!(status, 400);
    // Nor is an API that is not there an incident that is not there.
    sync.backends.sim.fault(Fault::new(FaultKind::status(404)).on(sim::Host::Graph));
    let (status, problem) = sync.call("GET", &list(), "", None).await;
    assert_eq!((status, problem["code"].as_str()), (502, Some("upstream_error")), "{problem}");
    for (method, body) in [("GET", None), ("PATCH", Some(change)), ("PATCH", Some(r#"{"comment": "c"}"#))] {
        let (status, _) = sync.call(method, &one, "", body).await;
        assert_eq!(status, 404, "{method} {body:?}");
    }
}

#[tokio::test]
async fn fleet_page_and_log_name_a_throttled_tenant() {
    let sync = SyncHarness::start(APIS[0]).await;
    let held: TenantId = "22222222-2222-4333-8444-000000000001".parse().unwrap();
    sync.backends.customer(&held.to_string(), "fabrikam.example", &["Incident.Read.All"]);
    sync.registry.create_tenant(&super::harness::active(held, APIS[1])).await.unwrap();
    let id = sync.put(60);
    let throttle = FaultKind::Throttle { retry_after: RetryAfter::Seconds(30) };
    sync.backends.sim.fault(Fault::new(throttle).on(sim::Host::Defender));
    let mut invocation = invocation(Duration::from_secs(20));
    invocation.request_id.clone_from(&sync.backends.request_id);
    let response = sync.app.handle(request("GET", "/incidents", "", None), invocation).await.unwrap();
    let page: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
    assert_eq!(ids(&page), [&id]);
    assert_eq!(page["failures"], json!([{"tenant_id": held, "code": "throttled", "reason": null}]));
    let lines = lines_of(&sync.backends.request_id);
    let named = lines.iter().filter(|line| line["tenant_id"] == held.to_string());
    assert!(named.into_iter().any(|line| line["code"] == "throttled"), "{lines:#?}");
}
