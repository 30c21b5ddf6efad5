//! Two requests for one consent: the browser's callback and its result page may come at once.

use aws_double::{AwsFault, FaultPosition};
use jiff::SignedDuration;
use shared::{
    clients::Clients,
    microsoft::IncidentApiSetting,
    onboarding::{Consent, Onboarding, Recorded},
    registry::{attempts::SignedIn, tenants::Status},
    tenant::Reason,
};

use super::harness::{ADMIN, CONTOSO, ConsentHarness, id};

/// The onboarding of a process that AWS knows by this name.
async fn process(harness: &ConsentHarness, name: &str) -> Onboarding {
    let backends = &harness.backends;
    let aws = backends.double.config_of(&aws_double::base_config().await, name, 1);
    let platform = crate::backends::platform(&aws, &harness.clock);
    let clients = Clients::new(&backends.microsoft(), backends.table.clone(), None, &platform);
    clients.onboarding(IncidentApiSetting::Auto)
}

#[tokio::test]
async fn refused_request_leaves_the_invitation_to_the_valid_one() {
    let harness = ConsentHarness::new().await;
    harness.onboard("Contoso").await;
    let link = harness.invite("Contoso", Some(CONTOSO)).await;
    harness.clock.advance(SignedDuration::from_secs(60));
    let signed_in =
        SignedIn { tenant_id: id(CONTOSO), object_id: "o".into(), name: Some(ADMIN.into()), role_proven: true };
    let invitation_id = harness.invitation(&link).await.invitation_id;
    let consent = Consent { invitation_id, signed_in, at: harness.clock.now() };
    let (one, other) = (process(&harness, "one").await, process(&harness, "other").await);

    // The first request has marked the invitation, when the operator pauses the tenant: it is refused.
    let double = &harness.backends.double;
    let hold = |at| (FaultPosition::Request(at), AwsFault::HeldBefore);
    double.account().plan("one", vec![hold(5), hold(7)]);
    let first = tokio::spawn({
        let consent = consent.clone();
        async move { one.record(&consent).await }
    });
    double.held().await;
    let paused_at = harness.clock.now();
    harness
        .change_tenant(CONTOSO, |tenant| {
            (tenant.status, tenant.reason) = (Status::Paused, Some(Reason::Operator));
            tenant.operator_paused_at = Some(paused_at);
        })
        .await;
    double.release();
    // It is about to release the invitation, when the operator resumes the tenant, and the second request counts.
    double.held().await;
    harness.change_tenant(CONTOSO, |tenant| (tenant.status, tenant.reason) = (Status::Active, None)).await;
    assert!(matches!(other.record(&consent).await.unwrap(), Recorded::Accepted(_)));
    double.release();
    assert!(matches!(first.await.unwrap().unwrap(), Recorded::Accepted(_)), "both say the same");
    let invitation = harness.invitation(&link).await;
    assert_eq!((invitation.used_at, invitation.used_by), (Some(consent.at), Some(id(CONTOSO))));
}
