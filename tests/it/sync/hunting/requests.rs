//! Hunts as their callers see them.

use std::{collections::BTreeSet, time::Duration};

use aws_double::{AwsFault, FaultPosition};
use serde_json::{Value, json};
use shared::registry::tenants::Status;
use sim::{Fault, FaultKind};

use super::{GRAPH, HUNTING, HuntHarness, QUERY_PATH, TENANT, active, invocation, other, row};
use crate::backends::{CALLER, CLIENT_ID, lines_of, request};

fn devices(table: &Value) -> BTreeSet<(String, String)> {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let rows = table["results"].as_array().unwrap().iter();
    rows.map(|row| (text(row, "tenant_id"), text(row, "DeviceName"))).collect()
}

fn device(tenant: &str, device: &str) -> (String, String) {
    (tenant.to_owned(), device.to_owned())
}

#[tokio::test]
async fn small_hunt_is_one_table_in_one_request() {
    let hunts = HuntHarness::start().await;
    let (other, without) = (other(2), other(3));
    hunts.add_tenant(&other, "c").await;
    hunts.put_table(
        &other,
        &[("DeviceName", "String"), ("tenant_id", "String")],
        vec![json!({"DeviceName": "c", "tenant_id": "theirs"})],
    );
    hunts.sync.backends.customer(&without, "northwind.example", &[GRAPH.write_role()]);
    hunts.sync.registry.create_tenant(&active(without.parse().unwrap(), GRAPH)).await.unwrap();

    let (status, table) = hunts.hunt(&json!({"query": "DeviceInfo", "timespan": "P7D"})).await;
    assert_eq!((status, table["status"].as_str()), (200, Some("done")), "{table}");
    let names: Vec<&String> = table.as_object().unwrap().keys().collect();
    assert_eq!(names, ["failures", "hunt_id", "results", "schema", "status", "truncated"]);
    assert_eq!(devices(&table), BTreeSet::from([device(TENANT, "a"), device(TENANT, "b"), device(&other, "c")]));
    assert_eq!(table["schema"][0], json!({"name": "DeviceName", "type": "String"}));
    assert_eq!(table["failures"], json!([{"tenant_id": without, "code": "conflict", "reason": "role_missing"}]));
    assert_eq!(table["truncated"], false);

    // Unknown and malformed tenants are reported alike.
    let (unknown, malformed) = ("99999999-2222-4333-8444-000000000001", "CONTOSO");
    let tenants = json!([other, malformed, other, unknown]);
    let (status, table) = hunts.hunt(&json!({"query": "DeviceInfo", "tenants": tenants})).await;
    assert_eq!((status, devices(&table)), (200, BTreeSet::from([device(&other, "c")])), "{table}");
    let missing = |tenant: &str| json!({"tenant_id": tenant, "code": "not_found", "reason": null});
    assert_eq!(table["failures"], json!([missing(malformed), missing(unknown)]));
    assert_eq!(hunts.queries(&other), 2, "a tenant that is named twice is hunted in once");
    let (status, table) = hunts.hunt(&json!({"query": "DeviceInfo", "tenants": []})).await;
    assert_eq!((status, &table["results"]), (200, &json!([])));
}

#[tokio::test]
async fn wrong_requests_reach_nobody() {
    let hunts = HuntHarness::start().await;
    hunts.sync.backends.sim.clear_calls();
    for wrong in [
        json!(["DeviceInfo"]),
        json!({"query": " "}),
        json!({"query": 7}),
        json!({"tenants": []}),
        json!({"query": "DeviceInfo", "wait_seconds": 26}),
    ] {
        assert_eq!(hunts.hunt(&wrong).await.0, 400, "{wrong}");
    }
    let unknown = format!("/hunting/{}", other(9));
    for path in ["/hunting/x", "/hunting/9", &unknown, &unknown.to_ascii_uppercase().replace("/HUNTING", "/hunting")] {
        let (status, problem) = hunts.sync.call("GET", path, "", None).await;
        assert_eq!((status, problem["code"].as_str()), (404, Some("not_found")), "{path}");
        assert_eq!(hunts.cancel(path).await, 404, "{path}");
    }
    assert_eq!(hunts.sync.backends.sim.calls(), []);
}

#[tokio::test]
async fn hunt_that_outlasts_the_wait_reports_its_progress() {
    let hunts = HuntHarness::start().await;
    let other = other(2);
    hunts.add_tenant(&other, "c").await;
    let hunt = hunts.begin(json!({"query": "DeviceInfo | take 1"})).await;
    let progress = hunts.read(&hunt).await;
    assert_eq!(
        (&progress["status"], &progress["tenants_total"], &progress["tenants_done"]),
        (&json!("running"), &json!(2), &json!(0))
    );
    assert_eq!(
        (progress.get("results"), &progress["objects"], &progress["truncated"]),
        (None, &json!([]), &json!(false))
    );

    let messages: Vec<Value> = hunts.sync.backends.messages().into_iter().map(|(_, body)| body).collect();
    let hunt_id = hunt.rsplit('/').next().unwrap();
    assert_eq!(messages[0], json!({"tenant_id": other, "kind": "hunt", "job_id": hunt_id}));
    hunts.sync.hand_over(&[messages[1].to_string()]).await;
    let progress = hunts.read(&hunt).await;
    let object = format!("hunts/hunt_id={hunt_id}/tenant_id={TENANT}/rows.ndjson.gz");
    assert_eq!(
        (&progress["tenants_done"], &progress["rows"], &progress["objects"]),
        (&json!(1), &json!(1), &json!([object]))
    );
    assert_eq!(hunts.rows_of(&object), [json!({"tenant_id": TENANT, "DeviceName": "a"})]);

    // A caller who waits sees the end as soon as it comes.
    let wait = hunts.sync.call("GET", &hunt, "wait_seconds=20", None);
    let delivery = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        hunts.sync.hand_over(&[messages[0].to_string()]).await
    };
    let ((status, progress), _) = tokio::join!(wait, delivery);
    assert_eq!((status, &progress["status"], &progress["tenants_done"]), (200, &json!("done"), &json!(2)));
    assert_eq!(devices(&progress), BTreeSet::from([device(TENANT, "a"), device(&other, "c")]));
    assert_eq!(hunts.cancel(&hunt).await, 204);
    assert_eq!(hunts.read(&hunt).await["status"], "done", "what is over stays as it is");
}

#[tokio::test]
async fn cancelled_hunt_begins_with_no_further_tenant() {
    let hunts = HuntHarness::start().await;
    let other = other(2);
    hunts.add_tenant(&other, "c").await;
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    let messages: Vec<Value> = hunts.sync.backends.messages().into_iter().map(|(_, body)| body).collect();
    hunts.sync.hand_over(&[messages[1].to_string()]).await;
    assert_eq!(hunts.cancel(&hunt).await, 204);
    hunts.sync.hand_over(&[messages[0].to_string()]).await;
    assert_eq!((hunts.queries(TENANT), hunts.queries(&other)), (1, 0));
    let progress = hunts.read(&hunt).await;
    assert_eq!((&progress["status"], &progress["tenants_done"]), (&json!("cancelled"), &json!(1)));
    assert_eq!(devices(&progress), BTreeSet::from([device(TENANT, "a"), device(TENANT, "b")]));
    assert_eq!(hunts.cancel(&hunt).await, 204, "asked again");
}

#[tokio::test]
async fn table_that_fits_no_response_is_in_the_bucket() {
    let hunts = HuntHarness::start().await;
    // Within a response's own JSON, its text would be 6.4 MB.
    hunts.put_table(TENANT, &[("DeviceName", "String")], vec![row(&"\"".repeat(16_000)); 100]);
    let (status, begun) = hunts.hunt(&json!({"query": "DeviceInfo"})).await;
    assert_eq!(status, 202, "{begun}");
    let progress = hunts.read(&format!("/hunting/{}", begun["hunt_id"].as_str().unwrap())).await;
    assert_eq!((&progress["status"], &progress["rows"]), (&json!("done"), &json!(100)));
    assert_eq!((progress.get("results"), &progress["truncated"]), (None, &json!(true)));
    assert_eq!(hunts.rows_of(progress["objects"][0].as_str().unwrap()).len(), 100);
}

#[tokio::test]
async fn schemas_of_all_tenants_become_their_union() {
    let hunts = HuntHarness::start().await;
    let other = other(2);
    hunts.add_tenant(&other, "c").await;
    hunts.put_table(
        &other,
        &[("Events", "Int64"), ("DeviceName", "String")],
        vec![json!({"Events": 7, "DeviceName": "c"})],
    );
    let schema = async || hunts.hunt(&json!({"query": "DeviceInfo"})).await.1["schema"].clone();
    let column = |name: &str, kind: Option<&str>| json!({"name": name, "type": kind});
    let union = json!([column("Events", Some("Int64")), column("DeviceName", Some("String"))]);
    assert_eq!(schema().await, union);
    hunts.sync.backends.sim.configure(|choices| choices.hunting.capital_names = true);
    assert_eq!(schema().await, union);
    // Without a description, the columns are those of the rows.
    hunts.sync.backends.sim.configure(|choices| choices.hunting.null_schema = true);
    assert_eq!(schema().await, json!([column("DeviceName", None), column("Events", None)]));
}

#[tokio::test]
async fn failure_of_a_query_names_its_reason() {
    let hunts = HuntHarness::start().await;
    let failure = async |query: &str| hunts.hunt(&json!({"query": query})).await.1["failures"][0].clone();
    let expected = |reason: &str| json!({"tenant_id": TENANT, "code": "invalid_request", "reason": reason});
    assert_eq!(failure("Nothing").await, expected("query_invalid"));
    for (message, reason) in [
        ("Query execution has exceeded the allowed limits. The query execution was preempted.", "result_too_large"),
        ("The query exceeded the timeout period.", "query_timeout"),
        ("", "query_invalid"),
    ] {
        let body = json!({"error": {"code": "BadRequest", "message": message}}).to_string();
        let kind = FaultKind::Status { status: 400, body: Some(body), headers: Vec::new() };
        hunts.sync.backends.sim.fault(Fault { times: Some(1), ..Fault::new(kind).path(QUERY_PATH) });
        assert_eq!(failure("DeviceInfo").await, expected(reason), "{message}");
    }
    hunts.sync.backends.sim.configure(|choices| choices.hunting.max_result_bytes = Some(10));
    assert_eq!(failure("DeviceInfo").await, expected("result_too_large"));
    assert_eq!(hunts.queries(TENANT), 5, "no repeat cures any of them");
}

#[tokio::test]
async fn query_with_letters_beyond_ascii_is_understood() {
    let hunts = HuntHarness::start().await;
    hunts.put_table(TENANT, &[("DeviceName", "String")], vec![row("Übung"), row("b")]);
    let (_, table) = hunts.hunt(&json!({"query": "DeviceInfo | where DeviceName == \"Übung\""})).await;
    assert_eq!(devices(&table), BTreeSet::from([device(TENANT, "Übung")]), "{table}");
}

#[tokio::test]
async fn tenant_that_leaves_in_the_middle_fails_alone() {
    let hunts = HuntHarness::start().await;
    let other = other(2);
    hunts.add_tenant(&other, "c").await;
    let hunt = hunts.begin(json!({"query": "DeviceInfo"})).await;
    let offboard = |tenant: &mut shared::registry::tenants::Tenant| {
        tenant.status = Status::Offboarded;
        Ok(())
    };
    hunts.sync.registry.change_tenant(&other.parse().unwrap(), hunts.sync.clock.now(), offboard).await.unwrap();
    hunts.deliver().await;
    let progress = hunts.read(&hunt).await;
    assert_eq!((&progress["status"], devices(&progress).len()), (&json!("done"), 2));
    assert_eq!(progress["failures"], json!([{"tenant_id": other, "code": "tenant_not_active", "reason": null}]));
    assert_eq!(hunts.queries(&other), 0);
}

#[tokio::test]
async fn audit_knows_who_hunted_where_and_not_the_text() {
    let hunts = HuntHarness::start().await;
    let id = hunts.sync.backends.request_id.clone();
    let of_this_test = || {
        let mut invocation = invocation(Duration::from_secs(29));
        invocation.request_id.clone_from(&id);
        invocation
    };
    let body = json!({"query": "DeviceInfo | where DeviceName == \"a secret\"", "wait_seconds": 0}).to_string();
    hunts.sync.app.handle(request("POST", "/hunting", "", Some(&body)), of_this_test()).await.unwrap();
    let (_, message) = hunts.sync.backends.messages().remove(0);
    let records = json!({"Records": [{"messageId": "m", "body": message.to_string()}]});
    hunts.sync.app.handle(records, of_this_test()).await.unwrap();
    let lines = lines_of(&id);
    let audit: Vec<&Value> = lines.iter().filter(|line| line["audit"] == true).collect();
    let named: Vec<&str> = audit.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(named, ["hunt started", "tenant hunted"], "{audit:#?}");
    assert!(audit.iter().all(|line| line["caller"] == CALLER && line["hunt_id"] == message["job_id"]), "{audit:#?}");
    assert_eq!((&audit[1]["tenant_id"], &audit[1]["rows"]), (&json!(TENANT), &json!(0)));
    assert_eq!(audit[0]["query_sha256"].as_str().unwrap().len(), 64);
    assert!(lines.iter().all(|line| !line.to_string().contains("a secret")), "{lines:#?}");
}

#[tokio::test]
async fn hunt_not_queued_in_time_is_cancelled_and_audited() {
    let hunts = HuntHarness::start().await;
    let id = hunts.sync.backends.request_id.clone();
    let mut short = invocation(Duration::from_secs(5));
    short.request_id.clone_from(&id);
    let body = json!({"query": "DeviceInfo", "wait_seconds": 0}).to_string();
    // The requests before are those for the active tenants and for the hunt.
    let held = (FaultPosition::Request(3), AwsFault::HeldBefore);
    hunts.sync.backends.double.account().plan("it", vec![held]);
    let response = hunts.sync.app.handle(request("POST", "/hunting", "", Some(&body)), short).await.unwrap();
    assert_eq!(response["statusCode"], 504, "{response}");
    let lines = lines_of(&id);
    let audit: Vec<&Value> = lines.iter().filter(|line| line["audit"] == true).collect();
    let [started] = audit[..] else { panic!("{audit:#?}") };
    assert_eq!(started["message"], "hunt started");
    let progress = hunts.read(&format!("/hunting/{}", started["hunt_id"].as_str().unwrap())).await;
    assert_eq!(progress["status"], "cancelled", "{progress}");
}

#[tokio::test]
async fn refused_token_fails_the_tenant_alone() {
    let hunts = HuntHarness::start().await;
    let other = other(2);
    hunts.add_tenant(&other, "c").await;
    hunts.sync.backends.sim.revoke(&other, CLIENT_ID);
    let (status, table) = hunts.hunt(&json!({"query": "DeviceInfo"})).await;
    assert_eq!((status, devices(&table).len()), (200, 2), "{table}");
    let failure = json!({"tenant_id": other, "code": "tenant_not_active", "reason": "consent_missing"});
    assert_eq!(table["failures"], json!([failure]));
    hunts.sync.backends.sim.grant(&other, CLIENT_ID, &[HUNTING, GRAPH.write_role()]);
    assert_eq!(hunts.sync.registry.tenant(&other.parse().unwrap()).await.unwrap().unwrap().status, Status::Active);
}
