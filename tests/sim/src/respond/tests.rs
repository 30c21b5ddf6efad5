use serde_json::{Value, json};

use crate::{
    Fault, FaultKind, Giant, Host, IncidentSeed, RetryAfter,
    testing::{CONTOSO, FABRIKAM, rig},
};

const LIST: &str = "/v1.0/security/incidents?$expand=alerts";

#[tokio::test]
async fn fault_affects_matching_requests_a_limited_number_of_times() {
    let rig = rig().await;
    rig.sim.fault(Fault::new(FaultKind::status(503)).on(Host::Graph).tenant(FABRIKAM));
    rig.sim.fault(Fault::new(FaultKind::BadGateway).on(Host::Graph).tenant(CONTOSO).after(1).times(1));
    let status = async || rig.get(LIST).await.status;
    assert_eq!((status().await, status().await, status().await), (200, 502, 200));
    rig.sim.fault(Fault::new(FaultKind::Throttle { retry_after: RetryAfter::Seconds(7) }).times(1));
    assert_eq!(rig.get(LIST).await.header("retry-after"), "7");
    assert_eq!(rig.sim.faults().len(), 1);
    assert_eq!(rig.sim.calls().iter().map(|call| call.status).collect::<Vec<_>>(), [200, 502, 200, 429]);
}

#[tokio::test]
async fn poisoned_incident_fails_every_response_that_contains_it() {
    let rig = rig().await;
    rig.put_incidents(3);
    rig.sim.fault(Fault::poison(CONTOSO, "2").with_expand());
    assert_eq!(rig.get(LIST).await.status, 500);
    assert_eq!(rig.get("/v1.0/security/incidents").await.status, 200);
    assert_eq!(rig.get("/v1.0/security/incidents?$expand=alerts&$top=1").await.ids(), [3]);
    assert_eq!(rig.get("/v1.0/security/incidents/2?$expand=alerts").await.status, 500);
    assert_eq!(rig.get("/v1.0/security/incidents/2").await.status, 200);
}

#[tokio::test]
async fn responses_break_off_as_the_transport_fault_says() {
    let rig = rig().await;
    rig.put_incidents(3);
    rig.sim.fault(Fault::new(FaultKind::Truncate { at: None }).times(1));
    let truncated = rig.get(LIST).await;
    assert!(truncated.status == 200 && serde_json::from_str::<Value>(&truncated.text).is_err());
    let token = rig.sim.issue_token(CONTOSO, "x", &["SecurityIncident.Read.All"], crate::Resource::Graph);
    let request = || rig.http.get(format!("{}{LIST}", rig.sim.graph_url())).bearer_auth(&token);
    rig.sim.fault(Fault::new(FaultKind::Reset).times(1));
    let reset = request().send().await.unwrap_err();
    assert!(format!("{reset:?}").contains("ConnectionReset"), "{reset:?}");
    assert_eq!(rig.sim.calls().last().unwrap().status, 0);
    rig.sim.fault(Fault::new(FaultKind::Cut).times(1));
    assert!(request().send().await.unwrap().bytes().await.is_err());
    rig.sim.fault(Fault::new(FaultKind::SlowBody { chunk: 1024, millis: 1 }).times(1));
    assert_eq!(request().send().await.unwrap().json::<Value>().await.unwrap()["value"].as_array().unwrap().len(), 3);
    rig.sim.fault(Fault::new(FaultKind::Hang { millis: 60_000 }).times(1));
    let late = tokio::time::timeout(std::time::Duration::from_millis(100), request().send()).await;
    assert!(late.is_err());
}

#[tokio::test]
async fn latency_fault_delays_every_response() {
    let rig = rig().await;
    rig.sim.fault(Fault::new(FaultKind::Latency { least_millis: 20, most_millis: 60 }));
    rig.sim.fault(Fault::new(FaultKind::status(503)).times(1));
    let mut took = Vec::new();
    for status in [503, 200, 200, 200] {
        let began = crate::clock::real_time();
        assert_eq!(rig.get(LIST).await.status, status);
        took.push(crate::clock::real_time().duration_since(began));
    }
    assert!(took.iter().all(|took| took.as_millis() >= 20), "{took:?}");
}

#[tokio::test]
async fn list_faults_change_rows_links_and_versions() {
    let rig = rig().await;
    rig.put_incidents(3);
    rig.sim.fault(Fault::new(FaultKind::SilentCap { rows: 1 }).times(1));
    let capped = rig.get(LIST).await;
    assert_eq!((capped.ids(), capped.json().get("@odata.nextLink")), (vec![3], None));
    rig.sim.fault(Fault::new(FaultKind::ForeignNextLink { url: "https://evil.example/x".into() }).times(1));
    assert_eq!(rig.get(LIST).await.json()["@odata.nextLink"], "https://evil.example/x");
    rig.sim.fault(Fault::new(FaultKind::LoopingNextLink).times(1));
    let looping = rig.get(LIST).await.json()["@odata.nextLink"].as_str().unwrap().to_owned();
    assert!(looping.ends_with(LIST), "{looping}");
    rig.sim.update_incident(CONTOSO, "1", |incident| incident.status = "resolved".into());
    rig.sim.fault(Fault::new(FaultKind::Stale { versions: 1 }).times(1));
    let stale = rig.get(LIST).await;
    assert_eq!((stale.ids(), &stale.json()["value"][0]["status"]), (vec![1], &json!("active")));
    assert_eq!(rig.get(LIST).await.ids(), [1, 3, 2]);
}

#[tokio::test]
async fn giant_incident_is_generated_while_it_is_sent() {
    let rig = rig().await;
    for alerts in [0, 2] {
        let giant = Some(Giant { alerts: 500, bytes_each: 2000 });
        rig.sim.put_incident(CONTOSO, IncidentSeed { alerts, giant, ..IncidentSeed::default() });
    }
    let body = rig.get(LIST).await.json();
    assert_eq!(body["value"][0]["alerts"].as_array().unwrap().len(), 502);
    assert_eq!(body["value"][1]["alerts"].as_array().unwrap().len(), 500);
    assert_eq!(rig.get("/api/incidents/1").await.json()["alerts"].as_array().unwrap().len(), 500);
}

#[tokio::test]
async fn incidents_appear_late_change_silently_and_merge() {
    let rig = rig().await;
    rig.put_incidents(3);
    let now = rig.sim.clock().now();
    rig.sim.clock().freeze(now);
    let later = now.checked_add(jiff::SignedDuration::from_mins(15)).unwrap();
    rig.sim.set_visible_from(CONTOSO, "1", later);
    rig.sim.change_incident_silently(CONTOSO, "2", |incident| {
        incident.add_alert(now);
    });
    assert_eq!(rig.get(LIST).await.ids(), [3, 2]);
    assert_eq!(rig.get(LIST).await.json()["value"][1]["alerts"].as_array().unwrap().len(), 2);
    rig.sim.clock().freeze(later);
    assert_eq!(rig.get(LIST).await.ids(), [3, 2, 1]);
    assert!(rig.sim.merge_incident(CONTOSO, "1", "2"));
    let merged = rig.get("/v1.0/security/incidents/1?$expand=alerts").await.json();
    assert_eq!((&merged["status"], &merged["redirectIncidentId"]), (&json!("redirected"), &json!("2")));
    assert_eq!(merged["alerts"], json!([]));
}
