//! Forged requests cost no call and reveal nothing.

use super::harness::{ADMIN, CONTOSO, ConsentHarness, request};

#[tokio::test]
async fn forged_callbacks_are_refused_without_any_call() {
    let harness = ConsentHarness::new().await;
    let deaf = harness.without_aws();
    let cookie = format!("__Host-mandate={}", "A".repeat(43));
    let state = "B".repeat(43);
    for (cookie, query) in [
        (None, format!("code=c&state={state}")),
        (Some(cookie.as_str()), format!("code=c&state={state}")),
        (Some(&cookie), "code=c".into()),
        (Some(&cookie), String::new()),
        (Some(&cookie), format!("admin_consent=True&tenant={CONTOSO}&state={state}")),
        (Some(&cookie), format!("admin_consent=True&tenant={CONTOSO}&state={state}&error=access_denied")),
        (Some(&cookie), format!("code=c&state={state}&state={state}")),
        (Some("__Host-mandate=<script>"), format!("code=c&state={state}")),
        (Some("mandate=x"), format!("code=c&state={state}")),
    ] {
        let response = request(&deaf, "GET", &format!("/consent/callback?{query}"), cookie, &[]).await;
        response.says(400, "does not belong together");
    }
    request(&deaf, "GET", "/consent/result", None, &[]).await.says(400, "does not belong together");
    request(&deaf, "GET", "/consent/abc", None, &[]).await.says(404, "no such invitation");
    request(&deaf, "POST", "/consent/abc", None, &[]).await.says(404, "no such invitation");
    let cross_site = [("sec-fetch-site", "cross-site")];
    request(&deaf, "POST", &format!("/consent/{}", "A".repeat(64)), None, &cross_site).await.says(403, "another site");
    assert!(harness.sim.calls().is_empty());
}

#[tokio::test]
async fn unknown_cookie_and_state_are_refused() {
    use consent_callback::browser::{BrowserSecret, Step};
    let harness = ConsentHarness::new().await;
    let secret: BrowserSecret = "A".repeat(43).parse().unwrap();
    let cookie = format!("__Host-mandate={}", secret.expose());
    let url = format!("/consent/callback?code=c&state={}", secret.state(Step::SignIn));
    request(&harness.app, "GET", &url, Some(&cookie), &[]).await.says(400, "does not belong together");
    request(&harness.app, "GET", "/consent/result", Some(&cookie), &[]).await.says(400, "does not belong together");
    assert!(harness.sim.calls().is_empty());
}

#[tokio::test]
async fn text_from_outside_is_never_shown_or_logged() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    let back = browser.sign_in(&link, CONTOSO, ADMIN).await;
    let state = back.split(['?', '&']).find(|part| part.starts_with("state=")).unwrap();
    for payload in
        ["%3Cscript%3Ealert(1)%3C/script%3E", "%0d%0aset-cookie:x=canary", "AADSTS65004canary", "javascript:canary"]
    {
        for query in [
            format!("error={payload}&error_description={payload}&{state}"),
            format!("error=access_denied&error_description={payload}&error_uri={payload}&{state}"),
            format!("error=access_denied&error_subcode={payload}&tenant={payload}&scope={payload}&{state}"),
            format!("admin_consent={payload}&tenant={payload}&{state}"),
            format!("code={payload}&state={payload}&next={payload}"),
        ] {
            let response = browser.get(&format!("/consent/callback?{query}")).await;
            assert!(response.status >= 400, "{response:?}");
            let shown = format!("{:?} {}", response.headers, response.body).to_lowercase();
            assert!(!shown.contains("canary") && !shown.contains("<script") && !shown.contains("alert("), "{shown}");
        }
    }
    assert!(!harness.logged().contains("canary") && !harness.logged().contains("alert(1)"));
    // None of it used the sign-in up.
    browser.get(&back).await.location();
}
