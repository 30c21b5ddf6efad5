//! What follows from a consent: pending, active, revived, refused.

use shared::{registry::tenants::Status, tenant::Reason};
use sim::{Decision, Propagation};

use super::world::{ADMIN, BASE, CLERK, CONTOSO, READ, World, id};
use crate::local::CLIENT_ID;

fn spread(world: &World, refused: u32, roleless: u32) {
    world.sim.update_tenant(CONTOSO, |tenant| tenant.propagation = Propagation { refused, roleless, code: 7_000_229 });
}

#[tokio::test]
async fn a_consent_that_spreads_slowly_is_tried_at_stored_times_whoever_reloads() {
    let world = World::new().await;
    spread(&world, 2, 2);
    let link = world.invite("Contoso", Some(CONTOSO)).await;
    let mut browser = world.browser();
    let page = browser.walk(&link, CONTOSO, ADMIN).await;
    page.says(200, "still spreading");
    let mut waits = vec![page.headers["refresh"].parse::<i64>().unwrap()];
    let mut waited = 0;
    loop {
        let before = world.token_requests();
        for _ in 0..3 {
            browser.get("/consent/result").await;
        }
        assert_eq!(world.token_requests(), before, "nobody asks before the stored time");
        let wait = *waits.last().unwrap();
        world.advance(wait);
        waited += wait;
        let page = browser.get("/consent/result").await;
        assert!(world.token_requests() > before);
        if page.title().contains("can read your incidents") {
            break;
        }
        page.says(200, "still spreading");
        waits.push(page.headers["refresh"].parse().unwrap());
        assert!(waited < 1800, "{waits:?}");
    }
    assert_eq!(waits[..2], [6, 11]);
    let tenant = world.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.verification), (Status::Active, None));
}

#[tokio::test]
async fn after_half_an_hour_the_reason_counts() {
    let world = World::new().await;
    spread(&world, 0, 1000);
    let link = world.invite("Contoso", Some(CONTOSO)).await;
    let mut browser = world.browser();
    let mut page = browser.walk(&link, CONTOSO, ADMIN).await;
    let mut waits = Vec::new();
    while let Some(wait) = page.headers.get("refresh").map(|wait| wait.parse::<i64>().unwrap()) {
        waits.push(wait);
        world.advance(wait);
        page = browser.get("/consent/result").await;
    }
    assert_eq!(waits[..6], [6, 11, 21, 31, 61, 61]);
    let total: i64 = waits.iter().sum();
    assert!((1800..1870).contains(&total), "{total}");
    page.says(200, "A permission is missing");
    let tenant = world.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.reason), (Status::Paused, Some(Reason::RoleMissing)));
    assert_eq!(world.changes().await.len(), 2, "to pending, to paused");
}

#[tokio::test]
async fn what_only_a_person_can_change_is_said_at_once() {
    let world = World::new().await;
    let link = world.invite("Contoso", Some(CONTOSO)).await;
    let mut browser = world.browser();
    let back = browser.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    world.sim.disable_service_principal(CONTOSO, CLIENT_ID);
    browser.get(&back).await.location();
    browser.get("/consent/result").await.says(200, "switched off");
    let tenant = world.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.status, tenant.reason), (Status::Paused, Some(Reason::DisabledByCustomer)));
}

#[tokio::test]
async fn another_customer_s_invitation_changes_nothing() {
    let world = World::new().await;
    world.onboard("Contoso").await;
    let before = world.tenant(CONTOSO).await.unwrap();
    world.changes().await;
    let link = world.invite("Mallory", None).await;
    let mut browser = world.browser();
    let back = browser.sign_in(&link, CONTOSO, ADMIN).await;
    browser.get(&back).await.says(403, "another customer");
    assert_eq!(browser.get(&back).await.location(), format!("{BASE}/consent/result"));
    browser.get("/consent/result").await.says(403, "another customer");
    assert_eq!(world.tenant(CONTOSO).await.unwrap(), before);
    assert!(world.changes().await.is_empty());
    assert!(world.invitation(&link).await.used_at.is_none());
    let lines = world.audit();
    let ended = lines.iter().find(|line| line["ending"] == "other_customer").unwrap();
    assert_eq!(ended["tenant_id"], CONTOSO);
}

#[tokio::test]
async fn a_tenant_that_another_customer_got_meanwhile_is_not_taken_over() {
    let world = World::new().await;
    let link = world.invite("Mallory", None).await;
    let mut browser = world.browser();
    let consent = browser.reach_consent(&link, CONTOSO, ADMIN).await;
    world.onboard("Contoso").await;
    let before = world.tenant(CONTOSO).await.unwrap();
    let back = world.sim.consent(&consent, CONTOSO, ADMIN, Decision::Accept).unwrap();
    browser.get(&back).await.says(403, "another customer");
    assert_eq!(world.tenant(CONTOSO).await.unwrap(), before);
    assert!(world.invitation(&link).await.used_at.is_none());
}

#[tokio::test]
async fn a_paused_tenant_comes_back_by_a_new_invitation_and_keeps_its_feed() {
    let world = World::new().await;
    world.onboard("Contoso").await;
    let activated_at = world.tenant(CONTOSO).await.unwrap().activated_at;
    world.sim.revoke(CONTOSO, CLIENT_ID);
    world
        .change_tenant(CONTOSO, |tenant| {
            tenant.status = Status::Paused;
            tenant.reason = Some(Reason::ConsentMissing);
        })
        .await;
    world.registry.stop_feed(&id(CONTOSO)).await.unwrap();
    world.changes().await;
    world.advance(3600);
    world.onboard("Contoso").await;
    let tenant = world.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.activated_at, tenant.reason), (activated_at, None));
    assert_eq!(tenant.consented_at, Some(world.clock.now()));
    let changes = world.changes().await;
    assert_eq!(changes.len(), 2, "{changes:?}");
}

#[tokio::test]
async fn an_ordinary_user_does_not_bring_a_paused_tenant_back() {
    let world = World::new().await;
    world.onboard("Contoso").await;
    world
        .change_tenant(CONTOSO, |tenant| {
            tenant.status = Status::Paused;
            tenant.reason = Some(Reason::Operator);
        })
        .await;
    let before = world.tenant(CONTOSO).await.unwrap();
    let link = world.invite("Contoso", None).await;
    let mut browser = world.browser();
    let consent = browser.reach_consent(&link, CONTOSO, CLERK).await;
    let (_, state) = consent.split_once("state=").unwrap();
    let forged = format!("/consent/callback?admin_consent=True&tenant={CONTOSO}&state={state}");
    browser.get(&forged).await.says(403, "An administrator has to do this");
    assert_eq!(world.tenant(CONTOSO).await.unwrap(), before);
    assert!(world.invitation(&link).await.used_at.is_none());
}

#[tokio::test]
async fn an_active_tenant_stays_active_when_it_consents_again_and_gains_roles() {
    let world = World::new().await;
    world.onboard("Contoso").await;
    world.changes().await;
    world.sim.grant(CONTOSO, CLIENT_ID, &["SecurityIncident.ReadWrite.All"]);
    world.advance(60);
    world.onboard("Contoso").await;
    let tenant = world.tenant(CONTOSO).await.unwrap();
    assert_eq!(tenant.consented_at, Some(world.clock.now()));
    assert!(
        tenant.roles.iter().any(|role| role == "SecurityIncident.ReadWrite.All")
            && tenant.roles.iter().any(|role| role == READ)
    );
    assert!(world.changes().await.is_empty());
}

#[tokio::test]
async fn an_offboarded_tenant_comes_back_only_by_an_invitation_made_after_it() {
    let world = World::new().await;
    world.onboard("Contoso").await;
    let old = world.invite("Contoso", None).await;
    world.advance(60);
    let now = world.clock.now();
    world
        .change_tenant(CONTOSO, |tenant| {
            tenant.status = Status::Offboarded;
            tenant.offboarded_at = Some(now);
        })
        .await;
    let mut browser = world.browser();
    let back = browser.sign_in(&old, CONTOSO, ADMIN).await;
    browser.get(&back).await.says(410, "no longer valid");
    assert_eq!(world.tenant(CONTOSO).await.unwrap().status, Status::Offboarded);
    world.changes().await;

    world.advance(60);
    world.onboard("Contoso & Sons").await;
    let tenant = world.tenant(CONTOSO).await.unwrap();
    assert_eq!((tenant.customer.as_str(), tenant.offboarded_at), ("Contoso & Sons", None));
    assert_eq!(tenant.activated_at, Some(world.clock.now()));
    assert!(world.changes().await.iter().any(|(from, to, _)| from == "offboarded" && to == "pending"));
}

#[tokio::test]
async fn one_invitation_brings_one_tenant() {
    let world = World::new().await;
    let link = world.invite("Contoso", None).await;
    let (mut first, mut second) = (world.browser(), world.browser());
    let back = first.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    let consent = second.reach_consent(&link, super::world::FABRIKAM, "admin@fabrikam.example").await;
    first.get(&back).await.location();
    let late = world.sim.consent(&consent, super::world::FABRIKAM, "admin@fabrikam.example", Decision::Accept).unwrap();
    second.get(&late).await.says(410, "no longer valid");
    assert!(world.tenant(super::world::FABRIKAM).await.is_none());
}

#[tokio::test]
async fn a_revoked_invitation_ends_what_was_begun_with_it() {
    let world = World::new().await;
    let link = world.invite("Contoso", None).await;
    let mut browser = world.browser();
    let back = browser.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    let now = world.clock.now();
    let invitation_id = world.invitation(&link).await.invitation_id;
    let revoke = |invitation: &mut shared::registry::invitations::Invitation| {
        invitation.revoke(now);
        Ok(())
    };
    world.registry.change_invitation(&invitation_id, revoke).await.unwrap();
    browser.get(&link).await.says(410, "no longer valid");
    browser.get(&back).await.says(410, "no longer valid");
    assert!(world.tenant(CONTOSO).await.is_none());
}

#[tokio::test]
async fn an_attempt_outlives_its_invitation_by_an_hour() {
    let world = World::new().await;
    let link = world.invite_for("Contoso", Some(CONTOSO), 1).await;
    let (mut in_time, mut late) = (world.browser(), world.browser());
    let back = in_time.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    let too_late = late.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    world.advance(2 * 3600 - 10);
    world.browser().get(&link).await.says(410, "has expired");
    world.browser().post(&link).await.says(410, "has expired");
    in_time.get(&back).await.location();
    in_time.get("/consent/result").await.says(200, "can read your incidents");
    world.advance(20);
    late.get(&too_late).await.says(410, "has expired");
}
