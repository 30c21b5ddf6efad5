//! Every page and redirect leaves with the strictest headers, in the reader's language.

use serde_json::{Value, json};

use super::harness::{ADMIN, CONTOSO, ConsentHarness, Reply, request};
use crate::{
    backends::{invocation, public_request},
    snapshots,
};

fn is_strict(response: &Reply) {
    let policy = &response.headers["content-security-policy"];
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert!(policy.contains("base-uri 'none'") && !policy.contains("form-action") && !policy.contains("unsafe"));
    for (name, value) in
        [("referrer-policy", "no-referrer"), ("x-content-type-options", "nosniff"), ("cache-control", "no-store")]
    {
        assert_eq!(response.headers[name], value);
    }
    assert!(response.headers["strict-transport-security"].starts_with("max-age="));
    assert!(!response.body.contains("<script") && !response.body.contains("src="), "{}", response.body);
}

#[tokio::test]
async fn pages_and_redirects_have_strict_headers() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso <&>", None).await;
    let mut browser = harness.browser();
    let page = browser.get(&link).await;
    is_strict(&page);
    assert!(
        page.body.contains("Northwind &#60;SOC&#62;") && page.body.contains("Contoso &#60;&#38;&#62;"),
        "{}",
        page.body
    );
    is_strict(&browser.post(&link).await);
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/consent", 404),
        ("GET", "/consent/a/b", 404),
        ("POST", "/consent/callback", 404),
        ("POST", "/consent/result", 404),
        ("DELETE", "/consent/x", 404),
        ("HEAD", "/consent/callback", 404),
        ("GET", "/consent/callback", 400),
    ] {
        let response = browser.send(method, path, &[]).await;
        assert_eq!(response.status, status, "{method} {path}");
        is_strict(&response);
    }
}

#[tokio::test]
async fn path_that_is_not_the_authorised_route_is_the_404_page() {
    let harness = ConsentHarness::new().await;
    let path = &harness.invite("Contoso", None).await;
    let title = async |event| {
        let page = harness.app.handle(event, invocation("r-1")).await.unwrap();
        (page["statusCode"].as_u64().unwrap(), page["body"].as_str().unwrap().contains("There is no such page"))
    };
    for (route_key, raw_path) in [
        (json!("GET /consent/{invitation}"), "/consent/callback"),
        (json!("GET /consent/result"), path.as_str()),
        (json!("GET /consent/{invitation}"), &path.replace("consent", "CONSENT")),
        (Value::Null, path),
    ] {
        let mut event = public_request("GET", path, "");
        (event["routeKey"], event["rawPath"]) = (route_key, raw_path.into());
        assert_eq!(title(event.clone()).await, (404, true), "{event}");
    }
    assert_eq!(title(public_request("GET", path, "")).await, (200, false));
}

#[tokio::test]
async fn pages_speak_the_readers_language() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", Some(CONTOSO)).await;
    let german = [("accept-language", "de-CH,de;q=0.9,en;q=0.5")];
    let page = harness.browser().send("GET", &link, &german).await;
    page.says(200, "bittet um Einsicht");
    snapshots::assert_text("invitation-page-de", &page.text());
    assert!(page.body.contains("<html lang=\"de\">") && page.body.contains(CONTOSO));
    assert_eq!(page.headers["content-language"], "de");
}

#[tokio::test]
async fn defender_deployment_asks_for_its_own_permission() {
    let harness = ConsentHarness::with(&[("INCIDENT_API", "defender")]).await;
    let link = harness.invite("Contoso", None).await;
    let page = harness.browser().get(&link).await;
    assert!(
        page.body.contains("Incident.Read.All of Microsoft Defender")
            && page.body.contains("Cloud Application Administrator")
    );
}

#[tokio::test]
async fn panic_returns_an_error_page() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let page = request(&harness.panicking(), "POST", &link, None, &[]).await;
    is_strict(&page);
    assert_eq!((page.status, page.headers["content-type"].as_str()), (500, "text/html; charset=utf-8"));
    assert!(page.body.contains("r-1") && page.cookies.is_empty(), "{}", page.body);
    assert!(harness.logged().contains("panicked"));
}

#[tokio::test]
async fn log_lines_of_a_request_name_its_tenant() {
    let harness = ConsentHarness::new().await;
    harness.sim.update_tenant(CONTOSO, |tenant| tenant.propagation.refused = 5);
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    // The first try, and one by the page.
    browser.walk(&link, CONTOSO, ADMIN).await.says(200, "still spreading");
    harness.advance(60);
    browser.get("/consent/result").await.says(200, "still spreading");
    let logged = harness.logged();
    let lines = logged.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let refused: Vec<Value> = lines.filter(|line| line.get("aadsts").is_some()).collect();
    assert!(refused.len() >= 3, "{refused:#?}");
    assert!(refused.iter().all(|line| line["tenant_id"] == CONTOSO), "{refused:#?}");
}
