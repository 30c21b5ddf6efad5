//! The chain from the link to an active tenant, and each of its links broken.

use serde_json::{Value, json};
use shared::{
    microsoft::IncidentApi,
    registry::tenants::Status,
    tenant::{PERSONAL_ACCOUNTS, Reason},
};
use sim::{Decision, Fault, FaultKind, Host};

use super::harness::{ADMIN, BASE, CLERK, CONTOSO, ConsentHarness, FABRIKAM, request};

fn query(url: &str, name: &str) -> String {
    let url = url::Url::parse(url).unwrap();
    let found = url.query_pairs().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("{name} is not in {url}")).1.into_owned()
}

fn claims(claims: &Value) -> Fault {
    let claims = claims.as_object().unwrap().clone();
    Fault::new(FaultKind::Claims { claims }).on(Host::Entra).path("/organizations").times(1)
}

#[tokio::test]
async fn administrator_turns_the_link_into_an_active_tenant() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();

    let page = browser.get(&link).await;
    page.says(200, "asks to read your security incidents");
    assert!(page.cookies.is_empty() && page.body.contains("<form method=\"post\">"));
    crate::snapshots::assert_text("invitation-page", &page.text());

    let begun = browser.post(&link).await;
    let cookie = &begun.cookies[0];
    assert!(cookie.starts_with("__Host-mandate=") && cookie.ends_with("; Secure; HttpOnly; SameSite=Lax"), "{cookie}");
    assert!(cookie.contains("; Path=/; ") && !cookie.contains("Domain"));
    let authorize = begun.location();
    assert!(authorize.starts_with(&format!("{}/organizations/oauth2/v2.0/authorize?", harness.sim.entra_url())));
    assert_eq!(query(authorize, "code_challenge_method"), "S256");
    assert_eq!(query(authorize, "redirect_uri"), format!("{BASE}/consent/callback"));
    let first_state = query(authorize, "state");

    let signed_in = harness.sim.sign_in(authorize, CONTOSO, ADMIN).unwrap();
    let consent = browser.get(&signed_in).await.location().to_owned();
    assert!(consent.starts_with(&format!("{}/{CONTOSO}/v2.0/adminconsent?", harness.sim.entra_url())));
    assert_ne!(query(&consent, "state"), first_state, "consent has a state of its own");

    let consented = harness.sim.consent(&consent, CONTOSO, ADMIN, Decision::Accept).unwrap();
    assert_eq!(browser.get(&consented).await.location(), format!("{BASE}/consent/result"));
    let result = browser.get("/consent/result").await;
    result.says(200, "can read your incidents");
    assert!(result.body.contains("SecurityIncident.Read.All") && result.body.contains(ADMIN));
    crate::snapshots::assert_text("result-page", &result.text());

    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.reason, tenant.customer.as_str()), (Status::Active, None, "Contoso"));
    assert_eq!(tenant.consented_by.as_deref(), Some(ADMIN));
    assert!(harness.registry.feed(&tenant.tenant_id).await.unwrap().is_some());
    assert_eq!(harness.changes().len(), 2, "to pending, to active");

    for repeated in [&signed_in, &consented] {
        assert_eq!(browser.get(repeated).await.location(), format!("{BASE}/consent/result"));
    }
    let again = browser.get(&link).await;
    again.says(410, "was used");
    assert_eq!(again.link(), format!("{BASE}/consent/result"));
    harness.browser().get(&link).await.says(410, "was used");
    harness.browser().post(&link).await.says(410, "was used");

    let logged = harness.logged();
    let code = query(&signed_in, "code");
    let secret = browser.cookie.as_deref().unwrap().split_once('=').unwrap().1.to_owned();
    for hidden in
        [code.as_str(), &secret, &first_state, link.strip_prefix("/consent/").unwrap(), "canary-client-secret"]
    {
        assert!(!logged.contains(hidden), "{hidden} is in the log");
    }
}

const SIGN_IN: &str = "5b1c7d0e-0a0b-4c0d-8e0f-0123456789ef";
const SIGN_IN_SECRET: &str = "canary-secret-of-the-sign-in";

/// A deployment whose sign-in has a registration of its own, and no right to the app credential.
async fn with_separate_sign_in() -> ConsentHarness {
    let variables = [
        ("APP_CREDENTIAL_SECRET_ID", ""),
        ("SIGN_IN_CREDENTIAL_SECRET_ID", "sign-in"),
        ("APP_CLIENT_ID", crate::backends::CLIENT_ID),
    ];
    let harness = ConsentHarness::with(&variables).await;
    harness.sim.register_app(sim::App {
        client_id: SIGN_IN.into(),
        client_secrets: vec![SIGN_IN_SECRET.into()],
        redirect_uris: vec![format!("{BASE}/consent/callback")],
        wids: true,
        ..sim::App::default()
    });
    let credential = json!({"client_id": SIGN_IN, "client_secret": SIGN_IN_SECRET});
    harness.backends.double.account().set_secret("sign-in", &credential);
    harness
}

#[tokio::test]
async fn refused_sign_in_credential_stops_no_polls() {
    let harness = with_separate_sign_in().await;
    harness.sim.grant(CONTOSO, crate::backends::CLIENT_ID, &[super::harness::READ]);
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    let back = browser.sign_in(&link, CONTOSO, ADMIN).await;
    harness.sim.remove_client_secret(SIGN_IN, SIGN_IN_SECRET);
    let failed = request(&harness.app, "GET", &back, browser.cookie.as_deref(), &[]).await;
    assert_eq!(failed.status, 500, "{failed:?}");
    let platform = crate::backends::platform(&harness.backends.aws, &harness.clock);
    let (microsoft, table) = (harness.backends.microsoft(), harness.backends.table.clone());
    let clients = shared::clients::Clients::new(&microsoft, table, None, &platform);
    let deadline = crate::backends::invocation("r-1").deadline;
    let token = clients.tokens.access_token(&super::harness::id(CONTOSO), IncidentApi::Graph, deadline).await;
    assert!(token.is_ok(), "the breaker of the app credential stays closed: {token:?}");
}

#[tokio::test]
async fn separate_sign_in_leaves_the_check_to_the_polls() {
    let harness = with_separate_sign_in().await;
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    let authorize = browser.post(&link).await.location().to_owned();
    assert_eq!(query(&authorize, "client_id"), SIGN_IN);
    let signed_in = harness.sim.sign_in(&authorize, CONTOSO, ADMIN).unwrap();
    let consent = browser.get(&signed_in).await.location().to_owned();
    assert_eq!(query(&consent, "client_id"), crate::backends::CLIENT_ID);
    let back = harness.sim.consent(&consent, CONTOSO, ADMIN, Decision::Accept).unwrap();
    browser.get(&back).await.location();
    for _ in 0..2 {
        let page = browser.get("/consent/result").await;
        assert!(page.headers.contains_key("refresh"), "the page of a pending tenant: {}", page.text());
        harness.advance(61);
    }
    assert_eq!(harness.token_requests(), 0, "no token is requested for the tenant");
    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.verification.map(|check| check.tries)), (Status::Pending, Some(0)));
    let feed = harness.registry.feed(&tenant.tenant_id).await.unwrap().unwrap();
    assert!(feed.due_at.is_some_and(|due| due <= harness.clock.now()), "the next poll verifies it");

    // A further consent for an active tenant leaves its roles to the polls, too.
    harness
        .change_tenant(CONTOSO, |tenant| {
            (tenant.status, tenant.reason, tenant.verification) = (Status::Active, None, None);
            tenant.activated_at = Some(harness.clock.now());
        })
        .await;
    let link = harness.invite("Contoso", None).await;
    harness.browser().walk(&link, CONTOSO, ADMIN).await.says(200, "can read your incidents");
    assert_eq!(harness.token_requests(), 0);
    assert!(harness.tenant(CONTOSO).await.unwrap().verification.is_some());
}

#[tokio::test]
async fn another_browser_cannot_continue_the_attempt() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let (mut browser, mut other) = (harness.browser(), harness.browser());
    let signed_in = browser.sign_in(&link, CONTOSO, ADMIN).await;
    other.get(&signed_in).await.says(400, "does not belong together");
    other.post(&link).await;
    other.get(&signed_in).await.says(400, "does not belong together");

    let consent = browser.get(&signed_in).await.location().to_owned();
    let consented = harness.sim.consent(&consent, CONTOSO, ADMIN, Decision::Accept).unwrap();
    other.get(&consented).await.says(400, "does not belong together");
    assert!(harness.tenant(CONTOSO).await.is_none());
}

#[tokio::test]
async fn consent_state_is_refused_before_the_sign_in() {
    use consent_callback::browser::{BrowserSecret, Step};
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    browser.post(&link).await;
    // The browser's owner knows how states are made, and makes the second one.
    let secret: BrowserSecret = browser.cookie.as_deref().unwrap().split_once('=').unwrap().1.parse().unwrap();
    let state = secret.state(Step::Consent);
    let forged = format!("/consent/callback?admin_consent=True&tenant={CONTOSO}&state={state}");
    assert_eq!(browser.get(&forged).await.location(), format!("{BASE}/consent/result"));
    browser.get("/consent/result").await.says(200, "not finished");
    assert!(harness.tenant(CONTOSO).await.is_none());
}

#[tokio::test]
async fn id_token_with_wrong_claims_ends_the_attempt() {
    let harness = ConsentHarness::new().await;
    let issuer = |tenant: &dyn std::fmt::Display| format!("https://login.microsoftonline.com/{tenant}/v2.0");
    for (wrong, status, title) in [
        (json!({"nonce": "another"}), 400, "could not be verified"),
        (json!({"nonce": null}), 400, "could not be verified"),
        (json!({"aud": "another"}), 400, "could not be verified"),
        (json!({"tid": FABRIKAM}), 400, "could not be verified"),
        (json!({"iss": issuer(&FABRIKAM)}), 400, "could not be verified"),
        (json!({"exp": 1}), 400, "could not be verified"),
        (json!({"oid": null}), 400, "could not be verified"),
        (json!({"tid": PERSONAL_ACCOUNTS, "iss": issuer(&PERSONAL_ACCOUNTS)}), 403, "personal account"),
    ] {
        let link = harness.invite("Contoso", None).await;
        let mut browser = harness.browser();
        let signed_in = browser.sign_in(&link, CONTOSO, ADMIN).await;
        harness.sim.fault(claims(&wrong));
        browser.get(&signed_in).await.says(status, title);
        browser.get("/consent/result").await.says(status, title);
        assert!(harness.sim.faults().iter().all(|fault| fault.times == Some(0)), "the fault was met: {wrong}");
        harness.browser().get(&link).await.says(200, "asks to read");
        harness.sim.clear_faults();
    }
    assert!(harness.tenant(CONTOSO).await.is_none());
}

#[tokio::test]
async fn authorization_code_needs_its_own_verifier() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let (mut browser, mut other) = (harness.browser(), harness.browser());
    let stolen = query(&browser.sign_in(&link, CONTOSO, ADMIN).await, "code");
    let own = other.sign_in(&link, CONTOSO, CLERK).await;
    let injected = own.replace(&query(&own, "code"), &stolen);
    other.get(&injected).await.says(400, "could not be verified");
}

#[tokio::test]
async fn jwks_is_reloaded_for_unknown_keys_once_a_minute() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    let key_requests = || harness.sim.calls().iter().filter(|call| call.path.contains("/keys")).count();
    browser.reach_consent(&link, CONTOSO, ADMIN).await;
    assert_eq!(key_requests(), 1);
    browser.reach_consent(&link, CONTOSO, ADMIN).await;
    assert_eq!(key_requests(), 1, "kept");
    harness.advance(61);
    harness.sim.roll_keys(sim::OldKey::KeepPublished).unwrap();
    browser.reach_consent(&link, CONTOSO, ADMIN).await;
    assert_eq!(key_requests(), 2, "a new key is found");
    harness.sim.roll_keys(sim::OldKey::KeepPublished).unwrap();
    for _ in 0..3 {
        let back = browser.sign_in(&link, CONTOSO, ADMIN).await;
        browser.get(&back).await.says(400, "could not be verified");
    }
    assert_eq!(key_requests(), 2, "at most once a minute");
    harness.advance(61);
    browser.reach_consent(&link, CONTOSO, ADMIN).await;
    assert_eq!(key_requests(), 3);
}

#[tokio::test]
async fn invitation_for_one_tenant_serves_no_other() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", Some(CONTOSO)).await;
    let mut browser = harness.browser();
    let authorize = browser.post(&link).await.location().to_owned();
    assert!(authorize.contains(&format!("/{CONTOSO}/oauth2/v2.0/authorize?")));
    let back = harness.sim.sign_in(&authorize, CONTOSO, ADMIN).unwrap();
    let other = json!({"tid": FABRIKAM, "iss": format!("https://login.microsoftonline.com/{FABRIKAM}/v2.0")});
    let other = other.as_object().unwrap().clone();
    harness.sim.fault(Fault::new(FaultKind::Claims { claims: other }).on(Host::Entra).times(1));
    browser.get(&back).await.says(403, "not the tenant that was invited");
    browser.get(&back).await.location();
    browser.get("/consent/result").await.says(403, "not the tenant that was invited");
    assert!(harness.tenant(FABRIKAM).await.is_none());
    assert!(harness.audit().iter().any(|line| line["ending"] == "wrong_tenant"));

    harness.browser().walk(&link, CONTOSO, ADMIN).await.says(200, "can read your incidents");
}

#[tokio::test]
async fn tenant_parameter_of_the_callback_is_not_trusted() {
    let harness = ConsentHarness::new().await;
    harness.sim.grant(FABRIKAM, crate::backends::CLIENT_ID, &[super::harness::READ]);
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    let back = browser.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    browser.get(&back.replace(CONTOSO, FABRIKAM)).await.says(403, "not the tenant that was invited");
    assert!(harness.tenant(FABRIKAM).await.is_none() && harness.tenant(CONTOSO).await.is_none());
    assert!(harness.invitation(&link).await.used_at.is_none());
    harness.browser().walk(&link, CONTOSO, ADMIN).await.says(200, "can read your incidents");
}

#[tokio::test]
async fn declined_consent_can_be_repeated() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    let declined = browser.decide(&link, CONTOSO, ADMIN, Decision::Cancel).await;
    browser.get(&declined).await.says(403, "declined");
    let page = browser.get(&declined).await;
    page.says(403, "declined");
    browser.get("/consent/result").await.says(200, "One step is left");
    browser.get(&link).await.says(200, "asks to read");
    assert!(harness.invitation(&link).await.used_at.is_none());
    let accepted = harness.sim.consent(&page.link(), CONTOSO, ADMIN, Decision::Accept).unwrap();
    browser.get(&accepted).await.location();
    browser.get("/consent/result").await.says(200, "can read your incidents");
}

#[tokio::test]
async fn ordinary_user_cannot_onboard_a_tenant_with_old_consent() {
    let harness = ConsentHarness::new().await;
    harness.sim.grant(CONTOSO, crate::backends::CLIENT_ID, &[super::harness::READ]);
    let link = harness.invite("Mallory", None).await;
    let mut browser = harness.browser();
    let consent = browser.reach_consent(&link, CONTOSO, CLERK).await;
    let state = query(&consent, "state");
    let forged = format!("/consent/callback?admin_consent=True&tenant={CONTOSO}&state={state}");
    browser.get(&forged).await.location();
    browser.get("/consent/result").await.says(200, "has to confirm");
    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.reason), (Status::Pending, Some(Reason::Operator)));
    harness.advance(3600);
    let page = browser.get("/consent/result").await;
    page.says(200, "has to confirm");
    assert_eq!(page.headers["refresh"], "60", "the operator may decide at any time");
    assert!(harness.registry.feed(&tenant.tenant_id).await.unwrap().is_none());
}

#[tokio::test]
async fn administrator_onboards_a_tenant_with_old_consent() {
    let harness = ConsentHarness::new().await;
    harness.sim.grant(CONTOSO, crate::backends::CLIENT_ID, &[super::harness::READ]);
    harness.onboard("Contoso").await;

    let harness = ConsentHarness::new().await;
    harness.sim.grant(CONTOSO, crate::backends::CLIENT_ID, &[super::harness::READ]);
    let link = harness.invite("Contoso", Some(CONTOSO)).await;
    let mut browser = harness.browser();
    let consent = browser.reach_consent(&link, CONTOSO, CLERK).await;
    let forged = format!("/consent/callback?admin_consent=True&tenant={CONTOSO}&state={}", query(&consent, "state"));
    browser.get(&forged).await.location();
    browser.get("/consent/result").await.says(200, "can read your incidents");
}
