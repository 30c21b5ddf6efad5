//! The part of the API that the page may reach.

use serde_json::json;

use super::{Calls, INVITATION, TENANT, changes, start, start_before};
use crate::console::{Mode, listen};

#[tokio::test]
async fn changes_are_refused_without_write() {
    let stage = start(Mode::ReadOnly).await;
    let browser = stage.enter().await;
    for (method, target, body) in changes() {
        let response = stage.send(&browser, method, &target, Some(&body)).await;
        assert_eq!((response.status, response.code().as_str()), (403, "read_only"), "{method} {target}");
    }
    assert_eq!(stage.calls(), []);
    let session = stage.send(&browser, "GET", "/api/session", None).await.json();
    assert_eq!(session["write"], json!(false));
}

#[tokio::test]
async fn changes_reach_the_api_with_write() {
    let stage = start(Mode::Write).await;
    let browser = stage.enter().await;
    for (method, target, body) in changes() {
        let response = stage.send(&browser, method, &target, Some(&body)).await;
        assert_eq!(response.status, 200, "{method} {target}: {}", response.body);
        let (sent, path, body) = stage.calls().pop().unwrap();
        assert_eq!((sent.as_str(), path.as_str()), (method, target.strip_prefix("/api").unwrap()));
        // The customer's name is for the console, but for an invitation, which has it.
        assert_eq!(body.contains("Contoso"), path == "/invitations", "{body}");
        assert_eq!(body.contains("sweep"), path.ends_with("/sync"), "{body}");
    }
}

#[tokio::test]
async fn change_needs_the_customer_that_was_confirmed() {
    let stage = start(Mode::Write).await;
    let browser = stage.enter().await;
    for (method, target, _) in changes().into_iter().filter(|(_, target, _)| target != "/api/invitations") {
        for (body, code) in [
            (json!({"customer": "Northwind"}), "customer_changed"),
            (json!({"customer": 1}), "invalid_request"),
            (json!({}), "invalid_request"),
            (json!([]), "invalid_request"),
        ] {
            assert_eq!(
                stage.send(&browser, method, &target, Some(&body)).await.code(),
                code,
                "{method} {target} {body}"
            );
        }
        let calls = stage.calls();
        assert!(calls.iter().all(|(method, ..)| method == "GET"), "{calls:?}");
    }
    let unknown = format!("/api/invitations/{TENANT}");
    assert_eq!(
        stage.send(&browser, "DELETE", &unknown, Some(&json!({"customer": "Contoso"}))).await.code(),
        "not_found"
    );
}

#[tokio::test]
async fn routes_are_a_fixed_list() {
    let stage = start(Mode::Write).await;
    let browser = stage.enter().await;
    let body = json!({"customer": "Contoso"});
    let token = format!("/api/tenants/{TENANT}/token");
    for (method, target) in [
        ("POST", token.as_str()),
        ("GET", &token),
        ("POST", "/api/tenants"),
        ("PATCH", &format!("/api/tenants/{TENANT}")),
        ("PATCH", &format!("/api/tenants/{TENANT}/incidents/1")),
        ("POST", &format!("/api/tenants/{TENANT}/sync/../token")),
        ("POST", &format!("/api/tenants/{TENANT}%2ftoken/pause")),
        ("POST", "/api/tenants/x%2f..%2f..%2finvitations/pause"),
        ("POST", "/api/tenants/../pause"),
        ("GET", "/api/tenants/%2e%2e"),
        ("GET", "/api/consent/x"),
        ("GET", "/api//tenants"),
        ("GET", "/api/"),
        ("GET", "/api/tenants?token=x"),
        ("GET", "/assets/app.js"),
        ("PUT", "/"),
        ("OPTIONS", "/api/tenants"),
        ("TRACE", "/api/tenants"),
    ] {
        let response = stage.send(&browser, method, target, Some(&body)).await;
        assert!((400..500).contains(&response.status), "{method} {target}: {}", response.status);
    }
    assert_eq!(stage.calls(), []);
}

#[tokio::test]
async fn link_of_an_invitation_is_only_in_its_making() {
    let stage = start(Mode::Write).await;
    let browser = stage.enter().await;
    let list = stage.send(&browser, "GET", "/api/invitations", None).await;
    assert!(list.body.contains(INVITATION) && !list.body.contains("consent"), "{}", list.body);
    let made = stage.send(&browser, "POST", "/api/invitations", Some(&json!({"customer": "Contoso"}))).await;
    assert_eq!(made.json()["consent_url"], json!("https://p/consent/x"));
}

#[tokio::test]
async fn hunt_needs_no_write_and_its_own_can_be_cancelled() {
    let stage = start(Mode::ReadOnly).await;
    let browser = stage.enter().await;
    let started = stage.send(&browser, "POST", "/api/hunting", Some(&json!({"query": "DeviceInfo"}))).await;
    assert_eq!(started.json()["hunt_id"], json!("hunt-1"));
    assert_eq!(stage.send(&browser, "DELETE", "/api/hunting/hunt-2", Some(&json!({}))).await.code(), "read_only");
    assert_eq!(stage.send(&browser, "DELETE", "/api/hunting/hunt-1", Some(&json!({}))).await.status, 200);
    let paths: Vec<_> = stage.calls().into_iter().map(|(method, path, _)| (method, path)).collect();
    assert_eq!(paths, [("POST", "/hunting"), ("DELETE", "/hunting/hunt-1")].map(|(m, p)| (m.into(), p.into())));
}

#[tokio::test]
async fn query_of_a_list_reaches_the_api_as_it_was() {
    let stage = start(Mode::ReadOnly).await;
    let browser = stage.enter().await;
    let target = "/api/incidents?severity=high&from=2026-11-28T10%3A00%3A00Z&next=a%26b%3Dc";
    assert_eq!(stage.send(&browser, "GET", target, None).await.status, 200);
    assert_eq!(stage.calls()[0].1, target.strip_prefix("/api").unwrap());
}

#[tokio::test]
async fn problems_of_the_api_reach_the_page() {
    let stage = start(Mode::ReadOnly).await;
    let browser = stage.enter().await;
    let response = stage.send(&browser, "GET", "/api/tenants/unknown", None).await;
    assert_eq!((response.status, response.code().as_str()), (404, "not_found"));
    assert_eq!(response.header("content-type"), Some("application/problem+json"));

    let free = listen(0).await.unwrap().1;
    let stage = start_before(free, Mode::ReadOnly, Calls::default()).await;
    let browser = stage.enter().await;
    let response = stage.send(&browser, "GET", "/api/tenants", None).await;
    assert_eq!((response.status, response.code().as_str()), (502, "unreachable"));
}
