use serde_json::{Value, json};

use crate::{
    AlertCategories, EvidenceSet, HuntingColumn, HuntingTable, IncidentSeed, NextLink, Resource, SimOptions,
    testing::{CLIENT, CONTOSO, Response, Rig, rig},
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
async fn full_last_page_may_have_a_link_to_nothing() {
    let rig = rig().await;
    rig.put_incidents(100);
    rig.sim.configure(|behaviour| {
        behaviour.graph.next_link_to_nothing = true;
        behaviour.graph.page_size = Some(50);
    });
    let path = format!("{LIST}?$top=50");
    let mut sizes = Vec::new();
    let mut next = Some(path);
    while let Some(path) = next {
        let page = rig.get(&path).await;
        sizes.push(page.ids().len());
        next = page.json()["@odata.nextLink"].as_str().map(|link| link.replace(rig.sim.graph_url(), ""));
    }
    assert_eq!(sizes, [50, 50, 0]);
}

#[tokio::test]
async fn pages_have_the_size_of_the_servers_choice() {
    let rig = rig().await;
    rig.put_incidents(20);
    rig.sim.configure(|behaviour| behaviour.graph.page_size = Some(7));
    let first = rig.get(&format!("{LIST}?$top=50")).await;
    assert_eq!(first.ids().len(), 7);
    assert!(first.json()["@odata.nextLink"].is_string());
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

#[tokio::test]
async fn evidence_and_categories_are_switched_by_name() {
    let rig = rig().await;
    let seed = IncidentSeed {
        evidence: EvidenceSet::AllTypes,
        alert_categories: AlertCategories::Both,
        ..IncidentSeed::default()
    };
    let all = rig.sim.put_incident(CONTOSO, seed);
    let seed = IncidentSeed { alert_categories: AlertCategories::Categories, ..IncidentSeed::default() };
    let only_new = rig.sim.put_incident(CONTOSO, seed);
    let alert = async |path: String| rig.get(&path).await.json()["alerts"][0].clone();
    let graph = alert(format!("{LIST}/{all}?$expand=alerts")).await;
    let types: std::collections::BTreeSet<&str> = graph["evidence"]
        .as_array()
        .unwrap()
        .iter()
        .map(|evidence| evidence["@odata.type"].as_str().unwrap())
        .collect();
    assert_eq!(types.len(), 48, "{types:?}");
    assert!(graph["evidence"].as_array().unwrap().iter().all(|evidence| evidence["verdict"] == "suspicious"));
    let phases = json!(["InitialAccess", "Exfiltration"]);
    assert_eq!((&graph["category"], &graph["categories"]), (&json!("Execution"), &phases));
    let defender = alert(format!("/api/incidents/{all}")).await;
    assert_eq!(defender["entities"].as_array().unwrap().len(), 2 + 10);
    let new = alert(format!("{LIST}/{only_new}?$expand=alerts")).await;
    assert_eq!((&new["category"], &new["categories"]), (&Value::Null, &phases));
    let ordinary = rig.sim.put_incident(CONTOSO, IncidentSeed::default());
    assert_eq!(alert(format!("{LIST}/{ordinary}?$expand=alerts")).await.get("categories"), None);
}

/// A POST for Contoso with a token that has these roles.
async fn post(rig: &Rig, roles: &[&str], path: &str, body: Value) -> Response {
    let token = rig.sim.issue_token(CONTOSO, CLIENT, roles, Resource::Graph);
    let url = format!("{}/v1.0/security/{path}", rig.sim.graph_url());
    rig.send(rig.http.post(url).bearer_auth(token).json(&body)).await
}

const MANAGE: &[&str] = &["SecurityData.Manage.All"];

#[tokio::test]
async fn merge_by_api_leaves_the_oldest_incident() {
    let rig = rig().await;
    rig.put_incidents(3);
    let before = rig.sim.incident(CONTOSO, "1").unwrap().last_update;
    let body = json!({"incidentIds": ["3", "1", "2"], "incidentComment": "one campaign", "mergeReasons": "sameCampaign, sameActor"});
    for path in ["incidents/mergeIncidents", "incidents/microsoft.graph.security.mergeIncidents"] {
        let refused = post(&rig, &["SecurityIncident.ReadWrite.All"], path, body.clone()).await;
        assert_eq!(refused.status, 403);
    }
    for bad in [
        json!({"incidentIds": ["1"]}),
        json!({"incidentIds": ["1", "1"]}),
        json!({"incidentIds": ["1", "2"], "mergeReasons": "sameMood"}),
        json!({"incidentIds": "1"}),
    ] {
        assert_eq!(post(&rig, MANAGE, "incidents/mergeIncidents", bad.clone()).await.status, 400, "{bad}");
    }
    let unknown = json!({"incidentIds": ["1", "99"]});
    assert_eq!(post(&rig, MANAGE, "incidents/mergeIncidents", unknown).await.status, 404);
    let merged = post(&rig, MANAGE, "incidents/mergeIncidents", body.clone()).await;
    assert_eq!((merged.status, &merged.json()["targetIncidentId"]), (200, &json!("1")));
    let target = rig.sim.incident(CONTOSO, "1").unwrap();
    assert_eq!((target.alerts.len(), target.comments.len(), target.last_update > before), (3, 1, true));
    for id in ["2", "3"] {
        let incident = rig.sim.incident(CONTOSO, id).unwrap();
        assert_eq!(
            (incident.status.as_str(), incident.redirect_incident_id, incident.alerts.len()),
            ("redirected", Some(1), 0)
        );
    }
    assert_eq!(post(&rig, MANAGE, "incidents/mergeIncidents", body).await.status, 404, "they are merged already");
}

#[tokio::test]
async fn moved_alerts_change_two_incidents() {
    let rig = rig().await;
    rig.put_incidents(2);
    let times =
        |ids: &[&str]| ids.iter().map(|id| rig.sim.incident(CONTOSO, id).unwrap().last_update).collect::<Vec<_>>();
    let before = times(&["1", "2"]);
    let alert = rig.sim.incident(CONTOSO, "1").unwrap().alerts[0].id.clone();
    let path = "alerts_v2/moveAlerts";
    assert_eq!(post(&rig, MANAGE, path, json!({"alertIds": []})).await.status, 400);
    assert_eq!(post(&rig, MANAGE, path, json!({"alertIds": ["nobody"]})).await.status, 404);
    assert_eq!(post(&rig, MANAGE, path, json!({"alertIds": [alert], "incidentId": "99"})).await.status, 404);
    let body = json!({"alertIds": [alert], "incidentId": "2", "newCorrelationReasons": "sameAsset"});
    assert_eq!(post(&rig, MANAGE, path, body).await.json()["targetIncidentId"], "2");
    let after = times(&["1", "2"]);
    assert!(before[0] < after[0] && before[1] < after[1], "{before:?} {after:?}");
    let alerts = |id: &str| rig.sim.incident(CONTOSO, id).unwrap().alerts.len();
    assert_eq!((alerts("1"), alerts("2")), (0, 2));
    let created = post(&rig, MANAGE, path, json!({"alertIds": [alert], "incidentId": null})).await;
    assert_eq!((&created.json()["targetIncidentId"], alerts("2"), alerts("3")), (&json!("3"), 1, 1));
}
