//! Tenants, invitations and attempts that a newer release has stored.

use serde_json::json;
use shared::registry::{attempts::Stage, invitations::Invitation, tenants::Status};
use sim::Decision;

use super::harness::{ADMIN, CONTOSO, ConsentHarness};
use crate::later_release::{assert_kept, item, key, later, upgrade};

#[tokio::test]
async fn tenant_keeps_words_and_attributes_of_a_newer_release() {
    let harness = ConsentHarness::new().await;
    harness.onboard("Contoso").await;
    let upgraded = upgrade(&harness.backends.double);
    let pk = format!("TENANT#{CONTOSO}");
    let store = |name: &str, word: &str| {
        harness.backends.double.account().item_mut(&pk, "PROFILE").unwrap().insert(name.into(), json!({"S": word}));
    };
    for (name, word) in [("status", "suspended"), ("reason", "licence_expired"), ("api", "xdr")] {
        store(name, word);
    }
    let read = harness.tenant(CONTOSO).await.unwrap();
    assert!(matches!(read.status, Status::Unknown(_)), "{:?}", read.status);
    assert_eq!(read.reason.unwrap().as_str(), "licence_expired");
    harness.change_tenant(CONTOSO, |tenant| tenant.customer = "Contoso Ltd".into()).await;
    let stored = item(&harness.backends.double, &pk, "PROFILE");
    let words = ["status", "reason", "api", "customer"].map(|name| stored[name]["S"].as_str().unwrap().to_owned());
    assert_eq!(words, ["suspended", "licence_expired", "xdr", "Contoso Ltd"]);
    // A change of one word leaves the others.
    store("status", "paused");
    store("api", "graph");
    harness.change_tenant(CONTOSO, |tenant| tenant.status = Status::Active).await;
    let stored = item(&harness.backends.double, &pk, "PROFILE");
    assert_eq!((&stored["status"], &stored["reason"]), (&json!({"S": "active"}), &json!({"S": "licence_expired"})));
    assert_kept(&harness.backends.double, upgraded);
}

#[tokio::test]
async fn invitation_and_attempt_keep_what_a_newer_release_added() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    let back = browser.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    let upgraded = upgrade(&harness.backends.double);
    let result = browser.get(&back).await.location().to_owned();
    browser.get(&result).await.says(200, "can read your incidents");
    assert_kept(&harness.backends.double, upgraded);
    let invitation = harness.invitation(&link).await;
    assert!(invitation.used_at.is_some());
    let account = harness.backends.double.account();
    let attempt = account.items("ATTEMPT")[0].clone();
    assert_eq!(attempt["stage"]["M"]["name"], json!({"S": "settled"}));
    assert_eq!(attempt["stage"]["M"]["later"], later(), "inside of it, too");
}

#[tokio::test]
async fn attempt_in_a_stage_of_a_newer_release_is_left_to_it() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", None).await;
    let mut browser = harness.browser();
    let back = browser.decide(&link, CONTOSO, ADMIN, Decision::Accept).await;
    let (pk, sk) = key(harness.backends.double.account().items("ATTEMPT")[0]);
    let stage = json!({"M": {"name": {"S": "reviewed"}, "by": {"S": "x"}}});
    harness.backends.double.account().item_mut(&pk, &sk).unwrap().insert("stage".into(), stage.clone());
    let result = browser.get(&back).await.location().to_owned();
    assert_eq!(browser.get(&result).await.status, 200);
    assert_eq!(item(&harness.backends.double, &pk, &sk)["stage"], stage);
    let attempt_id = pk.strip_prefix("ATTEMPT#").unwrap();
    let attempt = harness.registry.attempt(attempt_id).await.unwrap().unwrap();
    assert_eq!(attempt.stage, Stage::Unknown);
    let ended = json!({"M": {"name": {"S": "ended"}, "rejection": {"S": "sanctioned"}}});
    harness.backends.double.account().item_mut(&pk, &sk).unwrap().insert("stage".into(), ended);
    assert_eq!(browser.get(&result).await.status, 403);
}

#[tokio::test]
async fn revocation_keeps_what_a_newer_release_added() {
    let harness = ConsentHarness::new().await;
    let link = harness.invite("Contoso", Some(CONTOSO)).await;
    let upgraded = upgrade(&harness.backends.double);
    let id = harness.invitation(&link).await.invitation_id;
    let now = harness.clock.now();
    let revoke = |invitation: &mut Invitation| {
        invitation.revoke(now);
        Ok(())
    };
    harness.registry.change_invitation(&id, revoke).await.unwrap();
    assert!(harness.invitation(&link).await.revoked_at.is_some());
    assert_kept(&harness.backends.double, upgraded);
}
