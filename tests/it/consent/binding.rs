//! Who may bind a tenant: takeovers that must fail, and the rightful administrator who must not be shut out.
//!
//! Microsoft's side forges nothing here by itself: a person who has signed in can open the callback of the consent with
//! any text, and whether a token works depends on what others consented to.

use consent_callback::browser::BrowserSecret;
use serde_json::json;
use shared::{
    registry::{Write, attempts::Stage, tenants::Status},
    tenant::Reason,
};
use sim::{Decision, Fault, FaultKind, Host, Propagation};

use super::harness::{ADMIN, BASE, CLERK, CONTOSO, ConsentHarness, READ};
use crate::backends::CLIENT_ID;

/// The callback of a consent that nobody gave, for the attempt whose consent page is `consent_url`.
fn forged_return(consent_url: &str) -> String {
    let url = url::Url::parse(consent_url).unwrap();
    let (_, state) = url.query_pairs().find(|(name, _)| name == "state").unwrap();
    format!("/consent/callback?admin_consent=True&tenant={CONTOSO}&state={state}")
}

/// A member of Contoso without a directory role signs in and forges the return. Returns the browser.
async fn forge<'a>(harness: &'a ConsentHarness, link: &str) -> super::harness::Browser<'a> {
    let mut browser = harness.browser();
    let consent = browser.reach_consent(link, CONTOSO, CLERK).await;
    assert_eq!(browser.get(&forged_return(&consent)).await.location(), format!("{BASE}/consent/result"));
    browser
}

async fn assert_waits_for_operator(harness: &ConsentHarness, customer: &str) {
    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.reason), (Status::Pending, Some(Reason::Operator)));
    assert_eq!((tenant.customer.as_str(), tenant.role_proven), (customer, false));
    assert_eq!(tenant.consented_by.as_deref(), Some(CLERK));
    assert!(harness.registry.feed(&tenant.tenant_id).await.unwrap().is_none());
}

#[tokio::test]
async fn member_without_a_role_waits_whoever_consents_later() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Mallory", None).await;
    let mut browser = harness.browser();
    let consent = browser.reach_consent(&link, CONTOSO, CLERK).await;
    // An administrator consents in the portal, for whatever reason.
    harness.sim.grant(CONTOSO, CLIENT_ID, &[READ]);
    browser.get(&forged_return(&consent)).await.location();
    for _ in 0..3 {
        browser.get("/consent/result").await.says(200, "has to confirm");
        assert_waits_for_operator(&harness, "Mallory").await;
        harness.advance(3600);
    }
    assert_eq!(harness.token_requests(), 0, "nobody asks for a token of a tenant that waits for the operator");
    let lines = harness.audit();
    let recorded = lines.iter().find(|line| line["message"] == "consent recorded").unwrap();
    assert_eq!((&recorded["person"], &recorded["role_proven"]), (&json!(CLERK), &json!(false)));
    assert!(recorded["object_id"].as_str().is_some_and(|id| !id.is_empty()), "{recorded}");
}

#[tokio::test]
async fn refusal_at_sign_in_does_not_bind_a_tenant() {
    for aadsts in [53003, 7_000_112, 700_016, 65001, 7_000_229, 50001] {
        let harness = ConsentHarness::new().await;
        harness.sim.grant(CONTOSO, CLIENT_ID, &[READ]);
        let body = json!({"error": "unauthorized_client", "error_codes": [aadsts]}).to_string();
        let refusal = FaultKind::Status { status: 400, body: Some(body), headers: vec![] };
        harness.sim.fault(Fault::new(refusal).on(Host::Entra).path(&format!("/{CONTOSO}/oauth2/v2.0/token")).times(2));
        let link = harness.invite("Mallory", None).await;
        forge(&harness, &link).await.get("/consent/result").await.says(200, "has to confirm");
        assert_waits_for_operator(&harness, "Mallory").await;
    }
}

#[tokio::test]
async fn rightful_administrator_replaces_a_forged_record() {
    for (expected_tenant, had_consent) in [(Some(CONTOSO), false), (Some(CONTOSO), true), (None, false), (None, true)] {
        let harness = ConsentHarness::new().await;
        if had_consent {
            harness.sim.grant(CONTOSO, CLIENT_ID, &[READ]);
        }
        let squat_link = harness.invite("Mallory", None).await;
        let mut mallory = forge(&harness, &squat_link).await;
        harness.changes();
        harness.advance(60);
        let link = harness.invite("Contoso", expected_tenant).await;
        harness.browser().walk(&link, CONTOSO, ADMIN).await.says(200, "can read your incidents");
        let tenant = harness.tenant(CONTOSO).await.unwrap();
        assert_eq!((tenant.status, tenant.customer.as_str()), (Status::Active, "Contoso"));
        assert!(tenant.role_proven && tenant.consented_by.as_deref() == Some(ADMIN));
        // Nothing of the other customer's record.
        assert!(tenant.history.iter().all(|past| past.at == harness.clock.now()), "{:?}", tenant.history);
        let changes = harness.changes();
        assert_eq!(changes[0], (json!(null), json!("pending"), json!("consent_missing")), "{changes:?}");
        let lines = harness.audit();
        let replaced = lines.iter().find(|line| !line["replaced_customer"].is_null()).unwrap();
        assert_eq!((&replaced["replaced_customer"], &replaced["customer"]), (&json!("Mallory"), &json!("Contoso")));
        // The squatter's attempt neither takes the tenant back nor shows whose it is.
        let page = mallory.get("/consent/result").await;
        page.says(403, "another customer");
        assert!(!page.body.contains("Contoso") && !page.body.contains(ADMIN), "{}", page.body);
        assert_eq!(harness.tenant(CONTOSO).await.unwrap(), tenant);
        let again = harness.invite("Mallory", None).await;
        let back = mallory.sign_in(&again, CONTOSO, CLERK).await;
        mallory.get(&back).await.says(403, "another customer");
    }
}

#[tokio::test]
async fn forged_return_does_not_win_a_race_for_a_named_tenant() {
    let harness = ConsentHarness::new().await;
    let (named, other) = (harness.invite("Contoso", Some(CONTOSO)).await, harness.invite("Mallory", None).await);
    let (mut administrator, mut member) = (harness.browser(), harness.browser());
    let member_consent = member.reach_consent(&other, CONTOSO, CLERK).await;
    let back = administrator.decide(&named, CONTOSO, ADMIN, Decision::Accept).await;
    // Consent is given, and the member is first at our callback.
    member.get(&forged_return(&member_consent)).await.location();
    member.get("/consent/result").await.says(200, "has to confirm");
    administrator.get(&back).await.location();
    administrator.get("/consent/result").await.says(200, "can read your incidents");
    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.customer.as_str()), (Status::Active, "Contoso"));
    member.get("/consent/result").await.says(403, "another customer");
    assert_eq!(harness.tenant(CONTOSO).await.unwrap(), tenant);
}

#[tokio::test]
async fn consent_that_counts_survives_a_later_one_that_waits() {
    let harness = ConsentHarness::new().await;
    let (first, second) = (harness.invite("Contoso", None).await, harness.invite("Contoso", None).await);
    let mut administrator = harness.browser();
    administrator.decide(&first, CONTOSO, ADMIN, Decision::Accept).await;
    // The function dies after it has noted the consent and before it applies it.
    let secret: BrowserSecret = administrator.cookie.as_deref().unwrap().split_once('=').unwrap().1.parse().unwrap();
    let mut attempt = harness.registry.attempt(&secret.attempt_id()).await.unwrap().unwrap();
    let Stage::SignedIn { signed_in } = attempt.stage.clone() else { panic!("{attempt:?}") };
    let stage = Stage::Consented { signed_in, at: harness.clock.now() };
    assert_eq!(harness.registry.advance_attempt(&mut attempt, stage).await.unwrap(), Write::Done);
    harness.advance(1);
    let _clerk = forge(&harness, &second).await;
    assert_waits_for_operator(&harness, "Contoso").await;
    administrator.get("/consent/result").await.says(200, "can read your incidents");
}

#[tokio::test]
async fn second_administrator_at_once_does_not_change_the_customer() {
    let harness = ConsentHarness::new().await;
    let (first, second) = (harness.invite("Contoso", None).await, harness.invite("Fabrikam", None).await);
    let (mut one, mut two) = (harness.browser(), harness.browser());
    let one_back = one.decide(&first, CONTOSO, ADMIN, Decision::Accept).await;
    let two_back = two.decide(&second, CONTOSO, ADMIN, Decision::Accept).await;
    let (early, late) = tokio::join!(one.get(&one_back), two.get(&two_back));
    let statuses = [early.status, late.status];
    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!(tenant.status, Status::Active);
    let bound: Vec<_> = ["Contoso", "Fabrikam"].into_iter().filter(|name| *name == tenant.customer).collect();
    assert_eq!(bound.len(), 1, "{statuses:?}");
    for browser in [&mut one, &mut two] {
        browser.get("/consent/result").await;
    }
    assert_eq!(harness.tenant(CONTOSO).await.unwrap().customer, tenant.customer);
}

#[tokio::test]
async fn older_invitation_does_not_undo_the_operator_s_pause() {
    for user in [CLERK, ADMIN] {
        let harness = ConsentHarness::new().await;
        harness.onboard("Contoso").await;
        let link = harness.invite("Contoso", Some(CONTOSO)).await;
        let mut browser = harness.browser();
        let consent = browser.reach_consent(&link, CONTOSO, user).await;
        harness.advance(60);
        let now = harness.clock.now();
        harness
            .change_tenant(CONTOSO, |tenant| {
                (tenant.status, tenant.reason) = (Status::Paused, Some(Reason::Operator));
                tenant.operator_paused_at = Some(now);
            })
            .await;
        let paused = harness.tenant(CONTOSO).await.unwrap();
        browser.get(&forged_return(&consent)).await.says(410, "no longer valid");
        assert_eq!(harness.tenant(CONTOSO).await.unwrap(), paused);
        assert!(harness.invitation(&link).await.used_at.is_none());

        harness.advance(60);
        harness.onboard("Contoso").await;
    }
}

#[tokio::test]
async fn stale_replica_delays_the_tenant_and_nothing_else() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    harness.sim.update_tenant(CONTOSO, |tenant| {
        tenant.propagation = Propagation { refused: 2, roleless: 1, code: 700_016 };
    });
    let mut page = browser.walk(&link, CONTOSO, ADMIN).await;
    let mut reasons = Vec::new();
    while page.headers.contains_key("refresh") {
        let tenant = harness.tenant(CONTOSO).await.unwrap();
        assert_eq!((tenant.status, tenant.customer.as_str()), (Status::Pending, "Contoso"));
        reasons.push(tenant.reason.unwrap());
        harness.advance(page.headers["refresh"].parse().unwrap());
        page = browser.get("/consent/result").await;
        assert!(reasons.len() < 10, "{reasons:?}");
    }
    page.says(200, "can read your incidents");
    assert!(reasons.contains(&Reason::ConsentMissing), "{reasons:?}");
    assert!(reasons.iter().all(|reason| matches!(reason, Reason::ConsentMissing | Reason::RoleMissing)), "{reasons:?}");
}

#[tokio::test]
async fn consent_in_the_portal_counts_for_the_named_tenant() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", Some(CONTOSO)).await;
    let mut browser = forge(&harness, &link).await;
    browser.get("/consent/result").await.says(200, "permission has not arrived");
    // The sign-in has made a service principal, which has no role yet.
    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.reason), (Status::Pending, Some(Reason::RoleMissing)));
    harness.sim.grant(CONTOSO, CLIENT_ID, &[READ]);
    harness.advance(60);
    browser.get("/consent/result").await.says(200, "can read your incidents");
}
