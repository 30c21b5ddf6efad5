//! The chain from the link to an active tenant, and each of its links broken.

use serde_json::{Value, json};
use shared::{
    registry::tenants::Status,
    tenant::{PERSONAL_ACCOUNTS, Reason},
};
use sim::{Decision, Fault, FaultKind, Host};

use super::world::{ADMIN, BASE, CLERK, CONTOSO, FABRIKAM, World};

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
async fn an_administrator_goes_from_the_link_to_an_active_tenant() {
    let world = World::new().await;
    let link = world.invite("Contoso", None).await;
    let mut browser = world.browser();

    let page = browser.get(&link).await;
    page.says(200, "asks to read your security incidents");
    assert!(page.cookies.is_empty() && page.body.contains("<form method=\"post\">"));

    let begun = browser.post(&link).await;
    let cookie = &begun.cookies[0];
    assert!(cookie.starts_with("__Host-mandate=") && cookie.ends_with("; Secure; HttpOnly; SameSite=Lax"), "{cookie}");
    assert!(cookie.contains("; Path=/; ") && !cookie.contains("Domain"));
    let authorize = begun.location();
    assert!(authorize.starts_with(&format!("{}/organizations/oauth2/v2.0/authorize?", world.sim.entra_url())));
    assert_eq!(query(authorize, "code_challenge_method"), "S256");
    assert_eq!(query(authorize, "redirect_uri"), format!("{BASE}/consent/callback"));
    let first_state = query(authorize, "state");

    let signed_in = world.sim.sign_in(authorize, CONTOSO, ADMIN).unwrap();
    let consent = browser.get(&signed_in).await.location().to_owned();
    assert!(consent.starts_with(&format!("{}/{CONTOSO}/v2.0/adminconsent?", world.sim.entra_url())));
    assert_ne!(query(&consent, "state"), first_state, "consent has a state of its own");

    let consented = world.sim.consent(&consent, CONTOSO, ADMIN, Decision::Accept).unwrap();
    assert_eq!(browser.get(&consented).await.location(), format!("{BASE}/consent/result"));
    let result = browser.get("/consent/result").await;
    result.says(200, "can read your incidents");
    assert!(result.body.contains("SecurityIncident.Read.All") && result.body.contains(ADMIN));

    let tenant = world.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.reason, tenant.customer.as_str()), (Status::Active, None, "Contoso"));
    assert_eq!(tenant.consented_by.as_deref(), Some(ADMIN));
    assert!(world.registry.feed(&tenant.tenant_id).await.unwrap().is_some());
    assert_eq!(world.changes().await.len(), 2, "to pending, to active");

    for repeated in [&signed_in, &consented] {
        assert_eq!(browser.get(repeated).await.location(), format!("{BASE}/consent/result"));
    }
    let again = browser.get(&link).await;
    again.says(410, "was used");
    assert_eq!(again.link(), format!("{BASE}/consent/result"));
    world.browser().get(&link).await.says(410, "was used");
    world.browser().post(&link).await.says(410, "was used");

    let logged = world.logged();
    let code = query(&signed_in, "code");
    let secret = browser.cookie.as_deref().unwrap().split_once('=').unwrap().1.to_owned();
    for hidden in
        [code.as_str(), &secret, &first_state, link.strip_prefix("/consent/").unwrap(), "canary-client-secret"]
    {
        assert!(!logged.contains(hidden), "{hidden} is in the log");
    }
}

#[tokio::test]
async fn another_browser_cannot_go_on_with_what_this_one_began() {
    let world = World::new().await;
    let link = world.invite("Contoso", None).await;
    let (mut browser, mut other) = (world.browser(), world.browser());
    let signed_in = browser.sign_in(&link, CONTOSO, ADMIN).await;
    other.get(&signed_in).await.says(400, "does not belong together");
    other.post(&link).await;
    other.get(&signed_in).await.says(400, "does not belong together");

    let consent = browser.get(&signed_in).await.location().to_owned();
    let consented = world.sim.consent(&consent, CONTOSO, ADMIN, Decision::Accept).unwrap();
    other.get(&consented).await.says(400, "does not belong together");
    assert!(world.tenant(CONTOSO).await.is_none());
}

#[tokio::test]
async fn a_consent_state_is_worth_nothing_before_the_sign_in() {
    use consent_callback::browser::{BrowserSecret, Step};
    let world = World::new().await;
    let link = world.invite("Contoso", None).await;
    let mut browser = world.browser();
    browser.post(&link).await;
    // The browser's owner knows how states are made, and makes the second one.
    let secret: BrowserSecret = browser.cookie.as_deref().unwrap().split_once('=').unwrap().1.parse().unwrap();
    let state = secret.state(Step::Consent);
    let forged = format!("/consent/callback?admin_consent=True&tenant={CONTOSO}&state={state}");
    assert_eq!(browser.get(&forged).await.location(), format!("{BASE}/consent/result"));
    browser.get("/consent/result").await.says(200, "not finished");
    assert!(world.tenant(CONTOSO).await.is_none());
}

#[tokio::test]
async fn an_id_token_that_does_not_fit_ends_the_attempt() {
    let world = World::new().await;
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
        let link = world.invite("Contoso", None).await;
        let mut browser = world.browser();
        let signed_in = browser.sign_in(&link, CONTOSO, ADMIN).await;
        world.sim.fault(claims(&wrong));
        browser.get(&signed_in).await.says(status, title);
        browser.get("/consent/result").await.says(status, title);
        assert!(world.sim.faults().iter().all(|fault| fault.times == Some(0)), "the fault was met: {wrong}");
        world.browser().get(&link).await.says(200, "asks to read");
        world.sim.clear_faults();
    }
    assert!(world.tenant(CONTOSO).await.is_none());
}

#[tokio::test]
async fn a_code_works_once_and_only_with_its_own_verifier() {
    let world = World::new().await;
    let link = world.invite("Contoso", None).await;
    let (mut browser, mut other) = (world.browser(), world.browser());
    let stolen = query(&browser.sign_in(&link, CONTOSO, ADMIN).await, "code");
    let own = other.sign_in(&link, CONTOSO, CLERK).await;
    let injected = own.replace(&query(&own, "code"), &stolen);
    other.get(&injected).await.says(400, "could not be verified");
}

#[tokio::test]
async fn new_keys_are_found_and_unknown_ones_cost_one_request_a_minute() {
    let world = World::new().await;
    let link = world.invite("Contoso", None).await;
    let mut browser = world.browser();
    let key_requests = || world.sim.calls().iter().filter(|call| call.path.contains("/keys")).count();
    browser.reach_consent(&link, CONTOSO, ADMIN).await;
    assert_eq!(key_requests(), 1);
    browser.reach_consent(&link, CONTOSO, ADMIN).await;
    assert_eq!(key_requests(), 1, "kept");
    world.advance(61);
    world.sim.roll_keys(sim::OldKey::KeepPublished).unwrap();
    browser.reach_consent(&link, CONTOSO, ADMIN).await;
    assert_eq!(key_requests(), 2, "a new key is found");
    world.sim.roll_keys(sim::OldKey::KeepPublished).unwrap();
    for _ in 0..3 {
        let back = browser.sign_in(&link, CONTOSO, ADMIN).await;
        browser.get(&back).await.says(400, "could not be verified");
    }
    assert_eq!(key_requests(), 2, "at most once a minute");
    world.advance(61);
    browser.reach_consent(&link, CONTOSO, ADMIN).await;
    assert_eq!(key_requests(), 3);
}

#[tokio::test]
async fn an_invitation_that_names_a_tenant_is_for_no_other() {
    let world = World::new().await;
    let link = world.invite("Contoso", Some(CONTOSO)).await;
    let mut browser = world.browser();
    let authorize = browser.post(&link).await.location().to_owned();
    assert!(authorize.contains(&format!("/{CONTOSO}/oauth2/v2.0/authorize?")));
    let back = world.sim.sign_in(&authorize, CONTOSO, ADMIN).unwrap();
    let other = json!({"tid": FABRIKAM, "iss": format!("https://login.microsoftonline.com/{FABRIKAM}/v2.0")});
    let other = other.as_object().unwrap().clone();
    world.sim.fault(Fault::new(FaultKind::Claims { claims: other }).on(Host::Entra).times(1));
    browser.get(&back).await.says(403, "not the tenant that was invited");
    browser.get(&back).await.location();
    browser.get("/consent/result").await.says(403, "not the tenant that was invited");
    assert!(world.tenant(FABRIKAM).await.is_none());
    assert!(world.audit().iter().any(|line| line["ending"] == "wrong_tenant"));

    world.browser().walk(&link, CONTOSO, ADMIN).await.says(200, "can read your incidents");
}

#[tokio::test]
async fn the_tenant_of_the_callback_is_never_believed() {
    let world = World::new().await;
    world.sim.grant(FABRIKAM, crate::local::CLIENT_ID, &[super::world::READ]);
    let link = world.invite("Contoso", None).await;
    let mut browser = world.browser();
    let back = browser.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    browser.get(&back.replace(CONTOSO, FABRIKAM)).await.says(403, "not the tenant that was invited");
    assert!(world.tenant(FABRIKAM).await.is_none() && world.tenant(CONTOSO).await.is_none());
    assert!(world.invitation(&link).await.used_at.is_none());
    world.browser().walk(&link, CONTOSO, ADMIN).await.says(200, "can read your incidents");
}

#[tokio::test]
async fn declining_uses_nothing_up() {
    let world = World::new().await;
    let link = world.invite("Contoso", None).await;
    let mut browser = world.browser();
    let declined = browser.decide(&link, CONTOSO, ADMIN, Decision::Cancel).await;
    browser.get(&declined).await.says(403, "declined");
    let page = browser.get(&declined).await;
    page.says(403, "declined");
    browser.get("/consent/result").await.says(200, "One step is left");
    browser.get(&link).await.says(200, "asks to read");
    assert!(world.invitation(&link).await.used_at.is_none());
    let accepted = world.sim.consent(&page.link(), CONTOSO, ADMIN, Decision::Accept).unwrap();
    browser.get(&accepted).await.location();
    browser.get("/consent/result").await.says(200, "can read your incidents");
}

#[tokio::test]
async fn an_ordinary_user_cannot_bring_a_tenant_that_had_consented_before() {
    let world = World::new().await;
    world.sim.grant(CONTOSO, crate::local::CLIENT_ID, &[super::world::READ]);
    let link = world.invite("Mallory", None).await;
    let mut browser = world.browser();
    let consent = browser.reach_consent(&link, CONTOSO, CLERK).await;
    let state = query(&consent, "state");
    let forged = format!("/consent/callback?admin_consent=True&tenant={CONTOSO}&state={state}");
    browser.get(&forged).await.location();
    browser.get("/consent/result").await.says(200, "has to confirm");
    let tenant = world.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.reason), (Status::Pending, Some(Reason::Operator)));
    world.advance(3600);
    let page = browser.get("/consent/result").await;
    page.says(200, "has to confirm");
    assert_eq!(page.headers["refresh"], "60", "the operator may decide at any time");
    assert!(world.registry.feed(&tenant.tenant_id).await.unwrap().is_none());
}

#[tokio::test]
async fn who_may_consent_brings_a_tenant_that_had_consented_before() {
    let world = World::new().await;
    world.sim.grant(CONTOSO, crate::local::CLIENT_ID, &[super::world::READ]);
    world.onboard("Contoso").await;

    let world = World::new().await;
    world.sim.grant(CONTOSO, crate::local::CLIENT_ID, &[super::world::READ]);
    let link = world.invite("Contoso", Some(CONTOSO)).await;
    let mut browser = world.browser();
    let consent = browser.reach_consent(&link, CONTOSO, CLERK).await;
    let forged = format!("/consent/callback?admin_consent=True&tenant={CONTOSO}&state={}", query(&consent, "state"));
    browser.get(&forged).await.location();
    browser.get("/consent/result").await.says(200, "can read your incidents");
}
