use serde_json::{Value, json};

use crate::{
    HuntingColumn, HuntingTable, IncidentSeed, NextLink, Resource, SimOptions,
    testing::{CLIENT, CONTOSO, rig},
};

const LIST: &str = "/v1.0/security/incidents";

#[tokio::test]
async fn pages_are_newest_first_and_linked() {
    let rig = rig().await;
    rig.put_incidents(120);
    for link in [NextLink::Skip, NextLink::Skiptoken] {
        rig.sim.configure(|behaviour| behaviour.graph.next_link = link);
        let mut path = format!("{LIST}?$top=50&$expand=alerts&$filter=createdDateTime+gt+2000-01-01T00:00:00Z");
        let mut seen = Vec::new();
        loop {
            let page = rig.get(&path).await;
            seen.extend(page.ids());
            let body = page.json();
            assert!(body["value"][0]["alerts"].is_array());
            let Some(next) = body["@odata.nextLink"].as_str() else { break };
            path = next.strip_prefix(rig.sim.graph_url()).unwrap().to_owned();
        }
        assert_eq!(seen, (1..=120).rev().collect::<Vec<u64>>());
    }
}

#[tokio::test]
async fn undocumented_query_options_are_refused() {
    let rig = rig().await;
    for query in [
        "$top=51",
        "$top=0",
        "$top=x",
        "$skip=501",
        "$orderby=lastUpdateDateTime%20asc",
        "$select=id",
        "$expand=comments",
        "$filter=displayName%20eq%20'x'",
        "$filter=lastUpdateDateTime%20ge%202026-11-22T00:00:00+00:00",
        "$top=1&$top=1",
        "colour=blue",
        "$filter=%zz",
    ] {
        let response = rig.get(&format!("{LIST}?{query}")).await;
        assert_eq!((response.status, response.json()["error"]["code"].as_str()), (400, Some("BadRequest")), "{query}");
    }
}

#[tokio::test]
async fn alerts_need_expand_and_new_enum_members_need_prefer() {
    let rig = rig().await;
    let seed = IncidentSeed { status: "awaitingAction".into(), ..IncidentSeed::default() };
    let id = rig.sim.put_incident(CONTOSO, seed);
    let plain = rig.get(&format!("{LIST}/{id}")).await.json();
    assert_eq!((plain.get("alerts"), &plain["status"]), (None, &json!("unknownFutureValue")));
    let full = rig.get(&format!("{LIST}/{id}?$expand=alerts")).await.json();
    assert_eq!(full["alerts"][0]["evidence"][0]["@odata.type"], "#microsoft.graph.security.deviceEvidence");
    let token = rig.sim.issue_token(CONTOSO, CLIENT, &["SecurityIncident.Read.All"], Resource::Graph);
    let request = rig.http.get(format!("{}{LIST}?$count=true", rig.sim.graph_url())).bearer_auth(token);
    let preferred = rig.send(request.header("prefer", "include-unknown-enum-members")).await.json();
    assert_eq!((&preferred["@odata.count"], &preferred["value"][0]["status"]), (&json!(1), &json!("awaitingAction")));
}

#[tokio::test]
async fn missing_roles_and_invalid_tokens_are_refused() {
    let rig = rig().await;
    let url = format!("{}{LIST}", rig.sim.graph_url());
    let none = rig.send(rig.http.get(&url)).await;
    assert_eq!((none.status, none.json()["error"]["code"].as_str()), (401, Some("InvalidAuthenticationToken")));
    let try_token = async |token: String| rig.send(rig.http.get(&url).bearer_auth(token)).await.status;
    let roles = &["SecurityIncident.Read.All"];
    assert_eq!(try_token(rig.sim.issue_token(CONTOSO, CLIENT, &[], Resource::Graph)).await, 403);
    assert_eq!(try_token(rig.sim.issue_token(CONTOSO, CLIENT, roles, Resource::Defender)).await, 401);
    assert_eq!(try_token(rig.sim.issue_token(CONTOSO, CLIENT, roles, Resource::Graph)).await, 200);
    let stranger = crate::Sim::start(SimOptions::default()).await.unwrap();
    stranger.roll_keys(crate::OldKey::Withdraw).unwrap();
    assert_eq!(try_token(stranger.issue_token(CONTOSO, CLIENT, roles, Resource::Graph)).await, 401);
    let old = rig.sim.issue_token(CONTOSO, CLIENT, roles, Resource::Graph);
    rig.sim.clock().advance(jiff::SignedDuration::from_hours(1));
    assert_eq!(try_token(old).await, 401);
}

#[tokio::test]
async fn updates_accept_only_documented_properties_and_values() {
    let rig = rig().await;
    rig.put_incidents(1);
    let path = format!("{LIST}/1");
    let before = rig.get(&path).await.json();
    for bad in [json!({}), json!({"status": "Active"}), json!({"tags": []}), json!({"customTags": [1]}), json!([])] {
        assert_eq!(rig.call("PATCH", &path, Some(bad.clone())).await.status, 400, "{bad}");
    }
    let change =
        json!({"status": "resolved", "assignedTo": "a@b", "classification": "truePositive", "customTags": ["x"]});
    let after = rig.call("PATCH", &path, Some(change)).await.json();
    assert_eq!((&after["status"], &after["customTags"]), (&json!("resolved"), &json!(["x"])));
    assert_ne!(after["lastUpdateDateTime"], before["lastUpdateDateTime"]);
    assert_eq!(rig.call("PATCH", &path, Some(json!({"assignedTo": null}))).await.json()["assignedTo"], Value::Null);
    let comment = rig.call("POST", &format!("{path}/comments"), Some(json!({"comment": "hello"}))).await;
    assert_eq!(comment.json()["value"][0]["comment"], "hello");
    assert_eq!(rig.get("/api/incidents/1").await.json()["comments"][0]["comment"], "hello");
    assert_eq!(rig.call("PATCH", &format!("{LIST}/99"), Some(json!({"status": "resolved"}))).await.status, 404);
}

#[tokio::test]
async fn hunting_responses_have_lower_case_members() {
    let rig = rig().await;
    rig.sim.put_hunting_table(
        CONTOSO,
        HuntingTable {
            name: "DeviceInfo".into(),
            columns: vec![HuntingColumn { name: "DeviceName".into(), kind: "String".into() }],
            rows: vec![json!({"DeviceName": "a"}).as_object().unwrap().clone()],
        },
    );
    let run = async |body: Value| rig.call("POST", "/v1.0/security/runHuntingQuery", Some(body)).await;
    let body = run(json!({"Query": "DeviceInfo | take 5", "Timespan": "P7D"})).await.json();
    assert_eq!(body["results"], json!([{"DeviceName": "a"}]));
    assert_eq!(body["schema"], json!([{"name": "DeviceName", "type": "String"}]));
    assert_eq!(run(json!({"Query": "Nothing"})).await.status, 400);
    assert_eq!(run(json!({"Query": "DeviceInfo", "Top": 1})).await.status, 400);
}
