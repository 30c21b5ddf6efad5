//! The job: three customers come in, their incidents go out, and one of them leaves.

use std::collections::{BTreeMap, BTreeSet};

use devstack::{SignIn, StackOptions};
use serde_json::{Value, json};
use sim::{HuntingColumn, HuntingTable};

use super::harness::{
    APP, CONTOSO, Customer, FABRIKAM, NORTHWIND, StackHarness, has_members, is_tenant_id, is_time, refused,
};
use crate::contract::assert_component;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn onboards_three_tenants_and_offboards_one() {
    whole_job(StackHarness::start("job", &[]).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn separate_sign_in_does_the_whole_job() {
    let options = StackOptions { sign_in: SignIn::OwnRegistration, ..StackOptions::default() };
    let harness = StackHarness::start_with("job-separate-sign-in", &[], options).await;
    whole_job(harness).await;
}

async fn whole_job(harness: StackHarness) {
    come_in(&harness).await;
    let before = first_delivery(&harness).await;
    changes_are_reported(&harness, &before).await;
    tokens(&harness).await;
    live(&harness).await;
    hunted(&harness).await;
    announced(&harness).await;
    leave(&harness).await;
    harness.nothing_failed().await;
    harness.lines_are_whole().await;
    harness.end().await;
}

/// Two by Graph, one by Defender; one link names its tenant by domain, one by GUID, one not at all.
async fn come_in(harness: &StackHarness) {
    for (customer, count) in [(CONTOSO, 4), (FABRIKAM, 3), (NORTHWIND, 0)] {
        harness.seed(&customer);
        for number in 0..count {
            harness.incident(&customer, &format!("Incident {number} of {}", customer.name), 20 + 47 * number);
        }
    }
    harness.sim.grant(NORTHWIND.tenant_id, APP, &["Incident.ReadWrite.All"]);
    harness.onboard(&CONTOSO, None).await;
    harness.onboard(&FABRIKAM, Some(FABRIKAM.domain)).await;
    harness.onboard(&NORTHWIND, Some(NORTHWIND.tenant_id)).await;
    let tenant = harness.expect(200, "PATCH", &NORTHWIND.path(), Some(json!({"api": "defender"}))).await;
    assert_eq!((&tenant["api"], &tenant["status"]), (&json!("defender"), &json!("active")));
    // Not earlier: the poll that activates a tenant delivers, too, and this one was active on Graph.
    for number in 0..3 {
        harness.incident(&NORTHWIND, &format!("Incident {number} of {}", NORTHWIND.name), 1 + number);
    }
}

async fn first_delivery(harness: &StackHarness) -> BTreeSet<String> {
    let lines = harness.delivered(10).await;
    for line in &lines {
        is_line(line);
        assert_eq!(line["change"], "created", "{line}");
        let api = if line["tenant_id"] == NORTHWIND.tenant_id { "defender" } else { "graph" };
        assert_eq!(line["api"], api);
        assert_eq!(line["incident"]["alerts"].as_array().unwrap().len(), 2, "{line}");
    }
    for (customer, count) in [(CONTOSO, 4), (FABRIKAM, 3), (NORTHWIND, 3)] {
        let ids: BTreeSet<_> = of(&lines, &customer).map(|line| line["incident_id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), count, "{}", customer.name);
        let tenant = harness.expect(200, "GET", &customer.path(), None).await;
        assert_eq!(tenant["incidents_total"], count, "{tenant}");
        assert_eq!(tenant["quarantined"], 0, "{tenant}");
    }
    keys(&lines)
}

async fn changes_are_reported(harness: &StackHarness, before: &BTreeSet<String>) {
    for customer in [CONTOSO, FABRIKAM, NORTHWIND] {
        let id = customer.tenant_id;
        assert!(harness.sim.update_incident(id, "1", |incident| "resolved".clone_into(&mut incident.status)));
        assert!(harness.sim.merge_incident(id, "3", "2"));
    }
    // One closes each, one is merged into another each, which thereby gets alerts.
    let lines = harness.delivered(10 + 9).await;
    let reported = changes(&lines, before);
    for customer in [CONTOSO, FABRIKAM, NORTHWIND] {
        let name = |id: &str, change: &str| (customer.tenant_id.to_owned(), id.to_owned(), change.to_owned());
        for (id, change) in [("1", "closed"), ("2", "updated"), ("3", "merged")] {
            assert!(reported.contains(&name(id, change)), "{} {id} {change}: {reported:?}", customer.name);
        }
    }
    let before = keys(&lines);
    let reopen = |incident: &mut sim::Incident| "active".clone_into(&mut incident.status);
    assert!(harness.sim.update_incident(CONTOSO.tenant_id, "1", reopen));
    assert!(harness.sim.update_incident(NORTHWIND.tenant_id, "1", reopen));
    let new = harness.incident(&CONTOSO, "A new one", 0);
    // The same time of last update, but another set of alerts.
    let now = harness.sim.clock().now();
    assert!(harness.sim.change_incident_silently(FABRIKAM.tenant_id, "2", |incident| {
        incident.add_alert(now);
    }));
    let lines = harness.delivered(19 + 4).await;
    lines.iter().for_each(is_line);
    let reported = changes(&lines, &before);
    let expected = [
        (CONTOSO, "1", "reopened"),
        (NORTHWIND, "1", "reopened"),
        (CONTOSO, new.as_str(), "created"),
        (FABRIKAM, "2", "updated"),
    ];
    let expected: BTreeSet<_> =
        expected.map(|(customer, id, change)| (customer.tenant_id.to_owned(), id.to_owned(), change.to_owned())).into();
    assert_eq!(reported, expected);
    let second = keys(&lines).into_iter().filter(|key| key.ends_with("~2")).collect::<Vec<_>>();
    assert_eq!(second.len(), 1, "{second:?}");
    assert!(second[0].starts_with(&format!("{}/2/", FABRIKAM.tenant_id)), "{second:?}");
}

async fn tokens(harness: &StackHarness) {
    for (customer, api) in [(CONTOSO, "graph"), (FABRIKAM, "graph"), (NORTHWIND, "defender")] {
        let path = format!("{}/token", customer.path());
        let response = harness.call("POST", &path, None).await;
        assert_eq!((response.status, response.header("cache-control")), (200, "no-store"), "{}", response.body);
        assert_eq!(response.header("content-type"), "application/json");
        let token = response.json();
        let direct = harness.stack.invoke("token-issuance", json!({"tenant_id": customer.tenant_id})).await.unwrap();
        for token in [&token, &direct] {
            has_members(
                token,
                &["token_type", "access_token", "expires_in", "expires_at", "tenant_id", "resource", "roles"],
            );
            assert_eq!((&token["token_type"], &token["resource"]), (&json!("Bearer"), &json!(api)));
            assert_eq!(token["tenant_id"], customer.tenant_id);
            assert!(is_time(&token["expires_at"]) && token["roles"].is_array());
            assert!(token["expires_in"].as_i64().is_some_and(|seconds| (1..=86_400).contains(&seconds)));
        }
        for name in ["access_token", "expires_at", "roles"] {
            assert_eq!(token[name], direct[name], "{name}");
        }
        let other = if api == "graph" { "defender" } else { "graph" };
        let response = harness.call("POST", &path, Some(json!({"resource": other}))).await;
        if customer.tenant_id == NORTHWIND.tenant_id {
            assert_eq!((response.status, &response.json()["resource"]), (200, &json!(other)), "{}", response.body);
        }
    }
}

/// One query in two tenants, of which one lacks the table.
async fn hunted(harness: &StackHarness) {
    harness.sim.grant(CONTOSO.tenant_id, APP, &["ThreatHunting.Read.All"]);
    let column = HuntingColumn { name: "DeviceName".into(), kind: "String".into() };
    let rows = ["a", "b"].map(|device| json!({"DeviceName": device}).as_object().unwrap().clone()).to_vec();
    let table = HuntingTable { name: "DeviceInfo".into(), columns: vec![column], rows };
    harness.sim.put_hunting_table(CONTOSO.tenant_id, table);
    let tenants = [CONTOSO.tenant_id, NORTHWIND.tenant_id];
    let body = json!({"query": "DeviceInfo", "tenants": tenants, "wait_seconds": 25});
    let response = harness.while_messages_are_delivered(harness.call("POST", "/hunting", Some(body))).await;
    assert_eq!(response.status, 200, "{}", response.body);
    let table = response.json();
    has_members(&table, &["hunt_id", "status", "schema", "results", "failures", "truncated"]);
    let row = |device: &str| json!({"tenant_id": CONTOSO.tenant_id, "DeviceName": device});
    assert_eq!(table["results"], json!([row("a"), row("b")]));
    let failure = json!({"tenant_id": NORTHWIND.tenant_id, "code": "invalid_request", "reason": "query_invalid"});
    assert_eq!(table["failures"], json!([failure]));
    let path = format!("/hunting/{}", table["hunt_id"].as_str().unwrap());
    let progress = harness.expect(200, "GET", &format!("{path}?wait_seconds=1"), None).await;
    assert_eq!((&progress["status"], &progress["results"]), (&json!("done"), &table["results"]));
    assert_eq!(progress["objects"], json!(harness.stack.objects("hunts/").await.unwrap()));
    assert_eq!(harness.call("DELETE", &path, None).await.status, 204);
    let unknown = format!("/hunting/{}", CONTOSO.tenant_id);
    refused(&unknown, &harness.call("GET", &unknown, None).await, "not_found");
}

async fn live(harness: &StackHarness) {
    let mut count = 0;
    for (customer, incidents) in [(CONTOSO, 5), (FABRIKAM, 3), (NORTHWIND, 3)] {
        let path = format!("{}/incidents", customer.path());
        let page = harness.expect(200, "GET", &path, None).await;
        has_members(&page, &["incidents", "next"]);
        let listed = page["incidents"].as_array().unwrap();
        assert_eq!((listed.len(), &page["next"]), (incidents, &Value::Null), "{}", customer.name);
        let times: Vec<_> = listed.iter().map(|incident| time(&incident["last_updated"])).collect();
        assert!(times.is_sorted_by(|a, b| a >= b), "newest first: {times:?}");
        for incident in listed {
            assert_component("Incident", incident);
            assert_eq!((&incident["change"], &incident["tenant_id"]), (&Value::Null, &json!(customer.tenant_id)));
        }
        // Page by page, the same.
        let (mut paged, mut next) = (Vec::new(), String::new());
        loop {
            let page = harness.expect(200, "GET", &format!("{path}?limit=2{next}"), None).await;
            paged.extend(page["incidents"].as_array().unwrap().iter().map(|incident| incident["key"].clone()));
            let Some(more) = page["next"].as_str() else { break };
            next = format!("&next={more}");
        }
        assert_eq!(paged, listed.iter().map(|incident| incident["key"].clone()).collect::<Vec<_>>());
        // A version that was delivered is shown under the same key.
        let delivered = keys(&harness.stack.delivered().await.unwrap());
        assert!(paged.iter().all(|key| delivered.contains(key.as_str().unwrap())), "{paged:?}");

        let one = harness.expect(200, "GET", &format!("{path}/1"), None).await;
        assert_component("Incident", &one);
        let finding = harness.expect(200, "GET", &format!("{path}/1?format=ocsf"), None).await;
        crate::ocsf::assert_valid(&finding);
        count += incidents;
    }
    let fleet = harness.expect(200, "GET", "/incidents?limit=100", None).await;
    has_members(&fleet, &["incidents", "failures", "next"]);
    assert_eq!((fleet["incidents"].as_array().unwrap().len(), &fleet["failures"]), (count, &json!([])));

    let before = keys(&harness.stack.delivered().await.unwrap());
    let change = json!({"status": "resolved", "classification": "true_positive", "determination": "malware",
                        "assigned_to": "ada@partner.example", "tags": ["seen"], "comment": "looked at"});
    for (customer, tags) in [(CONTOSO, "customTags"), (NORTHWIND, "tags")] {
        let path = format!("{}/incidents/2", customer.path());
        let changed = harness.expect(200, "PATCH", &path, Some(change.clone())).await;
        assert_component("Incident", &changed);
        let record = &changed["incident"];
        assert_eq!(record["status"].as_str().unwrap().to_lowercase(), "resolved", "{record}");
        assert_eq!((&record["assignedTo"], &record[tags]), (&json!("ada@partner.example"), &json!(["seen"])));
        let cleared = harness.expect(200, "PATCH", &path, Some(json!({"assigned_to": null}))).await;
        assert!(cleared["incident"]["assignedTo"].as_str().is_none_or(str::is_empty), "{cleared}");
    }
    // What was changed here comes by the feed, too.
    let lines = harness.delivered(before.len() + 2).await;
    let reported = changes(&lines, &before);
    assert!(reported.iter().all(|(_, id, change)| (id.as_str(), change.as_str()) == ("2", "closed")), "{reported:?}");
}

/// Every version lies in an object that an event names, and the event says how many and of when.
async fn announced(harness: &StackHarness) {
    let lines = harness.stack.delivered().await.unwrap();
    let events = harness.stack.events().await.unwrap();
    let mut named: BTreeMap<String, (u64, String, String)> = BTreeMap::new();
    let mut active = BTreeSet::new();
    for event in &events {
        assert_eq!(event["source"], "partner.incidents", "{event}");
        let detail = &event["detail"];
        let text = |name: &str| detail[name].as_str().unwrap_or_default().to_owned();
        assert!(is_tenant_id(&text("tenant_id")), "{event}");
        match event["detail-type"].as_str().unwrap() {
            "Incidents Delivered" => {
                has_members(detail, &["tenant_id", "bucket", "object", "count", "from", "to"]);
                assert_eq!(text("bucket"), harness.stack.resources().bucket);
                assert!(is_time(&detail["from"]) && is_time(&detail["to"]), "{event}");
                named.insert(text("object"), (detail["count"].as_u64().unwrap(), text("from"), text("to")));
            }
            "Tenant Status Changed" => {
                has_members(detail, &["tenant_id", "customer", "from", "to", "reason"]);
                if detail["to"] == "active" {
                    active.insert(text("tenant_id"));
                }
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(active, [CONTOSO, FABRIKAM, NORTHWIND].map(|customer| customer.tenant_id.to_owned()).into());
    let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
    for line in &lines {
        let object = line["object"].as_str().unwrap();
        let (_, from, to) = named.get(object).expect(object);
        let [from, at, to] = [&json!(from), &line["last_updated"], &json!(to)].map(time);
        assert!(from <= at && at <= to, "{line} is not from {from} to {to}");
        *counted.entry(object).or_default() += 1;
    }
    for (object, (count, _, _)) in &named {
        assert_eq!(counted.get(object.as_str()), Some(count), "{object}");
    }
}

async fn leave(harness: &StackHarness) {
    let path = FABRIKAM.path();
    let delivered = harness.stack.delivered().await.unwrap().len();
    let receipt = harness.expect(200, "DELETE", &path, None).await;
    has_members(&receipt, &["tenant_id", "purged", "removal_url", "access_ended", "checked_at"]);
    assert_eq!((&receipt["tenant_id"], &receipt["access_ended"]), (&json!(FABRIKAM.tenant_id), &json!(false)));
    assert!(receipt["purged"].as_object().unwrap().values().all(Value::is_u64), "{receipt}");
    assert!(receipt["removal_url"].as_str().unwrap().contains(FABRIKAM.tenant_id), "{receipt}");
    assert!(is_time(&receipt["checked_at"]));

    let refusals = [
        ("POST", format!("{path}/token"), None),
        ("GET", format!("{path}/incidents"), None),
        ("GET", format!("{path}/incidents/1"), None),
        ("PATCH", format!("{path}/incidents/1"), Some(json!({"status": "active"}))),
        ("PATCH", path.clone(), Some(json!({"customer": "Another"}))),
        ("POST", format!("{path}/sync"), Some(json!({"kind": "backfill"}))),
        ("POST", format!("{path}/pause"), None),
        ("POST", format!("{path}/resume"), None),
    ];
    // A warm process takes a tenant for active for up to 30 seconds.
    harness.stack.kill("token-issuance");
    for (method, path, body) in refusals {
        let response = harness.call(method, &path, body).await;
        refused(&format!("{method} {path}"), &response, "tenant_not_active");
    }
    let direct = harness.stack.invoke("token-issuance", json!({"tenant_id": FABRIKAM.tenant_id})).await.unwrap_err();
    assert_eq!(direct.error_type, "tenant_not_active");
    assert_eq!(harness.expect(200, "GET", &path, None).await["status"], "offboarded");

    // Its incidents go on; nobody hears of them, whatever comes by the queue.
    harness.incident(&FABRIKAM, "After the end", 0);
    assert!(harness.sim.update_incident(FABRIKAM.tenant_id, "2", |incident| incident.severity = "low".to_owned()));
    harness.sim.clear_calls();
    for kind in ["poll", "sweep", "backfill"] {
        let body = json!({"tenant_id": FABRIKAM.tenant_id, "kind": kind}).to_string();
        let event = json!({"Records": [{"messageId": "m-1", "body": body}]});
        let response = harness.stack.invoke("incident-fetch", event).await.unwrap();
        assert_eq!(response, json!({"batchItemFailures": []}), "{kind}");
    }
    harness.poll().await;
    harness.stack.tick("sweep").await.unwrap();
    harness.stack.drain_queue().await.unwrap();
    let lines = harness.stack.delivered().await.unwrap();
    assert_eq!(lines.len(), delivered);
    let calls = harness.sim.calls();
    assert!(calls.iter().all(|call| call.tenant_id.as_deref() != Some(FABRIKAM.tenant_id)), "{calls:?}");
    let fleet = harness.expect(200, "GET", "/incidents", None).await;
    let mut reported = fleet["incidents"].as_array().unwrap().iter().chain(fleet["failures"].as_array().unwrap());
    assert!(reported.all(|one| one["tenant_id"] != FABRIKAM.tenant_id), "{fleet}");

    harness.sim.revoke(FABRIKAM.tenant_id, APP);
    let receipt = harness.expect(200, "DELETE", &path, None).await;
    assert_eq!(receipt["access_ended"], true);
}

/// A line of section 6 of the interface, where the interface puts it.
fn is_line(line: &Value) {
    let mut delivered = line.clone();
    delivered.as_object_mut().unwrap().remove("object");
    assert_component("Incident", &delivered);
    let text = |name: &str| line[name].as_str().unwrap_or_default();
    assert!(["created", "updated", "merged", "reopened", "closed"].contains(&text("change")), "{line}");
    let key = format!("{}/{}/{}", text("tenant_id"), text("incident_id"), text("last_updated"));
    let rest = text("key").strip_prefix(&key).unwrap();
    assert!(rest.is_empty() || rest.strip_prefix('~').is_some_and(|n| n.parse::<u32>().is_ok_and(|n| n > 1)), "{rest}");
    assert!(is_time(&line["last_updated"]) && is_time(&line["fetched_at"]), "{line}");
    let record = &line["incident"];
    let (sent, id) = match text("api") {
        "graph" => (&record["lastUpdateDateTime"], &record["id"]),
        _ => (&record["lastUpdateTime"], &record["incidentId"]),
    };
    assert_eq!(time(sent), time(&line["last_updated"]), "{line}");
    assert!(!text("last_updated").contains('.') || !text("last_updated").ends_with("0Z"), "{line}");
    assert_eq!(id.to_string().trim_matches('"'), text("incident_id"));
    assert!(record["alerts"].is_array(), "{line}");
    let day = text("last_updated").get(..10).unwrap();
    let folder = format!("incidents/tenant_id={}/date={day}/", text("tenant_id"));
    let name = text("object").strip_prefix(&folder).unwrap();
    assert!(name.ends_with(".ndjson.gz") && !name.contains('/'), "{name}");
}

fn time(value: &Value) -> jiff::Timestamp {
    value.as_str().unwrap_or_default().parse().unwrap()
}

fn of<'a>(lines: &'a [Value], customer: &Customer) -> impl Iterator<Item = &'a Value> {
    let id = customer.tenant_id;
    lines.iter().filter(move |line| line["tenant_id"] == id)
}

/// The keys, of which each comes once.
fn keys(lines: &[Value]) -> BTreeSet<String> {
    let keys: BTreeSet<_> = lines.iter().map(|line| line["key"].as_str().unwrap().to_owned()).collect();
    assert_eq!(keys.len(), lines.len(), "a version was delivered twice");
    keys
}

/// The lines delivered since the last call: tenant, incident, change.
fn changes(lines: &[Value], before: &BTreeSet<String>) -> BTreeSet<(String, String, String)> {
    let new = lines.iter().filter(|line| !before.contains(line["key"].as_str().unwrap()));
    let text = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    new.map(|line| (text(line, "tenant_id"), text(line, "incident_id"), text(line, "change"))).collect()
}
