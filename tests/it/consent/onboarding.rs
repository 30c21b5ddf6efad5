//! The results of a consent: pending, active, revived, refused.

use serde_json::{Value, json};
use shared::{registry::tenants::Status, tenant::Reason};
use sim::{Decision, Propagation};

use super::harness::{ADMIN, BASE, CLERK, CONTOSO, ConsentHarness, READ, id, request};
use crate::backends::CLIENT_ID;

fn spread(harness: &ConsentHarness, refused: u32, roleless: u32) {
    harness
        .sim
        .update_tenant(CONTOSO, |tenant| tenant.propagation = Propagation { refused, roleless, code: 7_000_229 });
}

#[tokio::test]
async fn slow_consent_is_retried_at_stored_times_only() {
    let harness = ConsentHarness::new().await;
    spread(&harness, 2, 2);
    let link = harness.invite("Contoso", Some(CONTOSO)).await;
    let mut browser = harness.browser();
    let page = browser.walk(&link, CONTOSO, ADMIN).await;
    page.says(200, "still spreading");
    let mut waits = vec![page.headers["refresh"].parse::<i64>().unwrap()];
    let mut waited = 0;
    let mut titles = vec![page.title().to_owned()];
    loop {
        let before = harness.token_requests();
        for _ in 0..3 {
            browser.get("/consent/result").await;
        }
        assert_eq!(harness.token_requests(), before, "nobody asks before the stored time");
        let wait = *waits.last().unwrap();
        harness.advance(wait);
        waited += wait;
        let page = browser.get("/consent/result").await;
        assert!(harness.token_requests() > before);
        if page.title().contains("can read your incidents") {
            break;
        }
        assert_eq!(page.status, 200);
        titles.push(page.title().to_owned());
        waits.push(page.headers["refresh"].parse().unwrap());
        assert!(waited < 1800, "{waits:?}");
    }
    assert_eq!(waits[..2], [6, 11]);
    let shown = |part: &str| titles.iter().filter(|title| title.contains(part)).count();
    assert_eq!((shown("still spreading"), shown("permission has not arrived")), (1, 1), "{titles:?}");
    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.verification), (Status::Active, None));
}

#[tokio::test]
async fn verification_fails_with_its_reason_after_half_an_hour() {
    let harness = ConsentHarness::new().await;
    spread(&harness, 0, 1000);
    let link = harness.invite("Contoso", Some(CONTOSO)).await;
    let mut browser = harness.browser();
    let mut page = browser.walk(&link, CONTOSO, ADMIN).await;
    let mut waits = Vec::new();
    while let Some(wait) = page.headers.get("refresh").map(|wait| wait.parse::<i64>().unwrap()) {
        waits.push(wait);
        harness.advance(wait);
        page = browser.get("/consent/result").await;
    }
    assert_eq!(waits[..6], [6, 11, 21, 31, 61, 61]);
    let total: i64 = waits.iter().sum();
    assert!((1800..1870).contains(&total), "{total}");
    page.says(200, "A permission is missing");
    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.reason), (Status::Paused, Some(Reason::RoleMissing)));
    let changes = harness.changes().into_iter().map(|(_, to, reason)| format!("{to} {reason}"));
    assert_eq!(
        changes.collect::<Vec<_>>(),
        [r#""pending" "consent_missing""#, r#""pending" "role_missing""#, r#""paused" "role_missing""#]
    );
}

#[tokio::test]
async fn permanent_refusals_are_shown_at_once() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", Some(CONTOSO)).await;
    let mut browser = harness.browser();
    let back = browser.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    harness.sim.disable_service_principal(CONTOSO, CLIENT_ID);
    browser.get(&back).await.location();
    browser.get("/consent/result").await.says(200, "switched off");
    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.reason), (Status::Paused, Some(Reason::DisabledByCustomer)));
}

#[tokio::test]
async fn invitation_of_another_customer_changes_nothing() {
    let harness = ConsentHarness::new().await;
    harness.onboard("Contoso").await;
    let before = harness.tenant(CONTOSO).await.unwrap();
    harness.changes();
    let link = harness.invite("Mallory", None).await;
    let mut browser = harness.browser();
    let back = browser.sign_in(&link, CONTOSO, ADMIN).await;
    browser.get(&back).await.says(403, "another customer");
    assert_eq!(browser.get(&back).await.location(), format!("{BASE}/consent/result"));
    browser.get("/consent/result").await.says(403, "another customer");
    assert_eq!(harness.tenant(CONTOSO).await.unwrap(), before);
    assert!(harness.changes().is_empty());
    assert!(harness.invitation(&link).await.used_at.is_none());
    let lines = harness.audit();
    let ended = lines.iter().find(|line| line["ending"] == "other_customer").unwrap();
    assert_eq!(ended["tenant_id"], CONTOSO);
}

#[tokio::test]
async fn tenant_of_another_customer_is_not_taken_over() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Mallory", None).await;
    let mut browser = harness.browser();
    let consent = browser.reach_consent(&link, CONTOSO, ADMIN).await;
    harness.onboard("Contoso").await;
    let before = harness.tenant(CONTOSO).await.unwrap();
    let back = harness.sim.consent(&consent, CONTOSO, ADMIN, Decision::Accept).unwrap();
    browser.get(&back).await.says(403, "another customer");
    assert_eq!(harness.tenant(CONTOSO).await.unwrap(), before);
    assert!(harness.invitation(&link).await.used_at.is_none());
}

#[tokio::test]
async fn paused_tenant_returns_by_a_new_invitation_with_its_feed() {
    let harness = ConsentHarness::new().await;
    harness.onboard("Contoso").await;
    let activated_at = harness.tenant(CONTOSO).await.unwrap().activated_at;
    harness.sim.revoke(CONTOSO, CLIENT_ID);
    harness
        .change_tenant(CONTOSO, |tenant| {
            tenant.status = Status::Paused;
            tenant.reason = Some(Reason::ConsentMissing);
        })
        .await;
    harness.registry.stop_feed(&id(CONTOSO)).await.unwrap();
    harness.changes();
    harness.advance(3600);
    harness.onboard("Contoso").await;
    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.activated_at, tenant.reason), (activated_at, None));
    assert_eq!(tenant.consented_at, Some(harness.clock.now()));
    let changes = harness.changes();
    assert_eq!(changes.len(), 2, "{changes:?}");
}

#[tokio::test]
async fn ordinary_user_does_not_resume_a_paused_tenant() {
    let harness = ConsentHarness::new().await;
    harness.onboard("Contoso").await;
    harness
        .change_tenant(CONTOSO, |tenant| {
            tenant.status = Status::Paused;
            tenant.reason = Some(Reason::Operator);
        })
        .await;
    let before = harness.tenant(CONTOSO).await.unwrap();
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    let back = browser.sign_in(&link, CONTOSO, CLERK).await;
    browser.get(&back).await.says(403, "An administrator has to do this");
    assert_eq!(harness.tenant(CONTOSO).await.unwrap(), before);
    assert!(harness.invitation(&link).await.used_at.is_none());
}

#[tokio::test]
async fn repeated_consent_keeps_a_tenant_active_and_adds_roles() {
    let harness = ConsentHarness::new().await;
    harness.onboard("Contoso").await;
    harness.changes();
    harness.sim.grant(CONTOSO, CLIENT_ID, &["SecurityIncident.ReadWrite.All"]);
    harness.advance(60);
    harness.onboard("Contoso").await;
    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!(tenant.consented_at, Some(harness.clock.now()));
    assert!(
        tenant.roles.iter().any(|role| role == "SecurityIncident.ReadWrite.All")
            && tenant.roles.iter().any(|role| role == READ)
    );
    assert!(harness.changes().is_empty());
}

#[tokio::test]
async fn offboarded_tenant_returns_only_by_a_later_invitation() {
    let harness = ConsentHarness::new().await;
    harness.onboard("Contoso").await;
    let old = harness.invite("Contoso", None).await;
    harness.advance(60);
    let now = harness.clock.now();
    harness
        .change_tenant(CONTOSO, |tenant| {
            tenant.status = Status::Offboarded;
            tenant.offboarded_at = Some(now);
        })
        .await;
    let mut browser = harness.browser();
    let back = browser.sign_in(&old, CONTOSO, ADMIN).await;
    browser.get(&back).await.says(410, "no longer valid");
    assert_eq!(harness.tenant(CONTOSO).await.unwrap().status, Status::Offboarded);
    harness.changes();

    harness.advance(60);
    harness.onboard("Contoso & Sons").await;
    let tenant = harness.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.customer.as_str(), tenant.offboarded_at), ("Contoso & Sons", None));
    assert_eq!(tenant.activated_at, Some(harness.clock.now()));
    assert!(harness.changes().iter().any(|(from, to, _)| from == "offboarded" && to == "pending"));
    let history: Vec<_> = tenant.history.iter().map(|past| past.status).collect();
    let (pending, active) = (Status::Pending, Status::Active);
    assert_eq!(history, [pending, active, Status::Offboarded, pending, active]);
    assert_eq!(tenant.history.last().unwrap().at, harness.clock.now());
}

#[tokio::test]
async fn one_invitation_onboards_one_tenant() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let (mut first, mut second) = (harness.browser(), harness.browser());
    let back = first.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    let consent = second.reach_consent(&link, super::harness::FABRIKAM, "admin@fabrikam.example").await;
    first.get(&back).await.location();
    let late =
        harness.sim.consent(&consent, super::harness::FABRIKAM, "admin@fabrikam.example", Decision::Accept).unwrap();
    second.get(&late).await.says(410, "no longer valid");
    assert!(harness.tenant(super::harness::FABRIKAM).await.is_none());
}

#[tokio::test]
async fn revoked_invitation_ends_its_attempts() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    let back = browser.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    let now = harness.clock.now();
    let invitation_id = harness.invitation(&link).await.invitation_id;
    let revoke = |invitation: &mut shared::registry::invitations::Invitation| {
        invitation.revoke(now);
        Ok(())
    };
    harness.registry.change_invitation(&invitation_id, revoke).await.unwrap();
    browser.get(&link).await.says(410, "no longer valid");
    browser.get(&back).await.says(410, "no longer valid");
    assert!(harness.tenant(CONTOSO).await.is_none());
}

#[tokio::test]
async fn an_attempt_outlives_its_invitation_by_an_hour() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite_for("Contoso", Some(CONTOSO), 1).await;
    let (mut in_time, mut late) = (harness.browser(), harness.browser());
    let back = in_time.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    let too_late = late.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    harness.advance(2 * 3600 - 10);
    harness.browser().get(&link).await.says(410, "has expired");
    harness.browser().post(&link).await.says(410, "has expired");
    in_time.get(&back).await.location();
    in_time.get("/consent/result").await.says(200, "can read your incidents");
    harness.advance(20);
    late.get(&too_late).await.says(410, "has expired");
}

#[tokio::test]
async fn consent_is_announced_once_the_bus_is_back() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", Some(CONTOSO)).await;
    let mut browser = harness.browser();
    let back = browser.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    harness.backends.double.account().bus_is_down = true;
    request(&harness.app, "GET", &back, browser.cookie.as_deref(), &[]).await;
    assert!(harness.changes().is_empty());
    harness.backends.double.account().bus_is_down = false;
    harness.advance(60);
    browser.get("/consent/result").await.says(200, "can read your incidents");
    let changes = harness.changes();
    assert_eq!(changes[0], (Value::Null, json!("pending"), json!("consent_missing")));
    assert_eq!(changes.last(), Some(&(json!("pending"), json!("active"), Value::Null)));
}
