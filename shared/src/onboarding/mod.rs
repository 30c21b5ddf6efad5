//! Onboarding: from a consent to a tenant whose incidents are readable.
//!
//! A consent needs minutes to spread through Microsoft's directory, and proves nothing by itself. A tenant therefore stays
//! pending until a fresh app-only token for it carries a role that may read incidents, and one live read has succeeded.
//! The result page, the polls and the operator's resume each make the next try when it is due.

mod verification;

use jiff::Timestamp;

use crate::{
    clock::Clock,
    delivery::events::Events,
    entra::token_cache::Tokens,
    error::{Error, Result},
    http::Deadline,
    incident_api::client::Incidents,
    microsoft::{IncidentApi, IncidentApiSetting},
    registry::{
        Registry,
        attempts::ConsentRejection,
        invitations::{Invitation, InvitationStatus},
        tenants::{Status, Tenant, Verification},
    },
    tenant::{Reason, TenantId},
};

/// The onboarding of all tenants.
#[derive(Clone)]
pub struct Onboarding {
    setting: IncidentApiSetting,
    tokens: Tokens,
    incidents: Incidents,
    registry: Registry,
    events: Events,
    clock: Clock,
}

/// An admin consent that a signed-in person brought back from Microsoft.
#[derive(Clone, Debug)]
pub struct Consent {
    /// The identifier of the invitation that the person opened.
    pub invitation_id: String,
    /// The directory that the person signed in to and consented for.
    pub tenant_id: TenantId,
    /// The person who consented: the name in the directory, or the object id.
    pub person: String,
    /// The time at which the browser returned with the consent.
    pub at: Timestamp,
    /// True if the consent may bind the tenant without the operator, as in
    /// [`Stage::SignedIn`](crate::registry::attempts::Stage::SignedIn).
    pub trusted: bool,
}

/// The outcome of [`Onboarding::record`].
#[derive(Clone, Debug)]
pub enum Recorded {
    /// The consent is applied to this tenant, as it now is.
    Accepted(Box<Tenant>),
    /// The consent may not be applied. The tenant is unchanged.
    Refused(ConsentRejection),
}

impl Onboarding {
    /// The onboarding for the incident APIs of `setting`.
    pub fn new(
        setting: IncidentApiSetting,
        tokens: Tokens,
        incidents: Incidents,
        registry: Registry,
        events: Events,
        clock: Clock,
    ) -> Self {
        Self { setting, tokens, incidents, registry, events, clock }
    }

    /// Returns true if Entra issues an app-only token with roles for `tenant` already, or if Microsoft's response leaves it
    /// open. A later consent then proves nothing about the person who brings it.
    ///
    /// # Errors
    /// [`Error::CredentialRejected`], [`Error::Internal`], [`Error::DeadlineExceeded`].
    pub async fn had_consent(&self, tenant: &TenantId, deadline: Deadline) -> Result<bool> {
        for api in self.setting.candidates() {
            match self.tokens.fresh_access_token(tenant, *api, deadline).await {
                Ok(token) if token.roles().is_some_and(<[String]>::is_empty) || !token.has_object_id() => {}
                Ok(_)
                | Err(
                    Error::Throttled { .. }
                    | Error::Upstream { .. }
                    | Error::Malformed { .. }
                    | Error::Partial { .. }
                    | Error::Unreachable { .. },
                ) => {
                    return Ok(true);
                }
                Err(Error::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Applies a consent: its invitation becomes used, and its tenant pending, unless it is active already. Repeating the
    /// call for the same consent has no further effect.
    pub async fn record(&self, consent: &Consent) -> Result<Recorded> {
        let Some(invitation) = self.registry.invitation(&consent.invitation_id).await? else {
            return Ok(Recorded::Refused(ConsentRejection::Closed));
        };
        let tenant = self.registry.tenant(&consent.tenant_id).await?;
        if let Err(rejection) = check_consent(&invitation, tenant.as_ref(), consent) {
            return Ok(Recorded::Refused(rejection));
        }
        if let Err(rejection) = self.use_invitation(consent).await? {
            return Ok(Recorded::Refused(rejection));
        }
        if tenant.is_none() {
            let tenant = pending_tenant(consent, &invitation, self.setting, 0);
            match self.registry.create_tenant(&tenant).await {
                Ok(()) => {
                    self.publish(None, &tenant).await?;
                    return Ok(Recorded::Accepted(Box::new(tenant)));
                }
                // Another request has created the tenant meanwhile, and it is checked again below.
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut rejection = None;
        let changed = self.registry.change_tenant(&consent.tenant_id, |tenant| {
            rejection = check_consent(&invitation, Some(tenant), consent).err();
            if rejection.is_none() {
                apply_consent(tenant, consent, &invitation, self.setting);
            }
            Ok(())
        });
        let (before, after) = changed.await?;
        if let Some(rejection) = rejection {
            return Ok(Recorded::Refused(rejection));
        }
        self.publish(Some(&before), &after).await?;
        Ok(Recorded::Accepted(Box::new(after)))
    }

    /// Adds the roles of fresh tokens to an active tenant, after a consent that may have added some.
    pub async fn refresh_roles(&self, tenant: &Tenant, deadline: Deadline) -> Result<Tenant> {
        let mut roles = Vec::new();
        for api in self.apis(tenant) {
            if let Ok(token) = self.tokens.fresh_access_token(&tenant.tenant_id, api, deadline).await {
                let granted = token.roles().unwrap_or_default();
                warn_of_unexpected_roles(&tenant.tenant_id, granted);
                merge_roles(&mut roles, granted);
            }
        }
        let changed = self.registry.change_tenant(&tenant.tenant_id, |tenant| {
            if tenant.status == Status::Active {
                merge_roles(&mut tenant.roles, &roles);
            }
            Ok(())
        });
        changed.await.map(|(_, after)| after)
    }

    /// Marks the invitation as used by this consent. The inner error: another consent has used it, or it is revoked. Its
    /// expiry does not matter here, because the attempt started in time.
    async fn use_invitation(&self, consent: &Consent) -> Result<Result<(), ConsentRejection>> {
        let mut outcome = Err(ConsentRejection::Closed);
        let mark = |invitation: &mut Invitation| {
            outcome = match invitation.status(consent.at) {
                InvitationStatus::Open | InvitationStatus::Expired => {
                    invitation.used_at = Some(consent.at);
                    invitation.used_by = Some(consent.tenant_id);
                    Ok(())
                }
                InvitationStatus::Used
                    if (invitation.used_at, invitation.used_by) == (Some(consent.at), Some(consent.tenant_id)) =>
                {
                    Ok(())
                }
                InvitationStatus::Used | InvitationStatus::Revoked => Err(ConsentRejection::Closed),
            };
            Ok(())
        };
        self.registry.change_invitation(&consent.invitation_id, mark).await?;
        Ok(outcome)
    }

    /// The candidate APIs in the order of tries. A tenant that was active starts with its own.
    fn apis(&self, tenant: &Tenant) -> Vec<IncidentApi> {
        let mut apis = self.setting.candidates().to_vec();
        apis.sort_by_key(|api| tenant.activated_at.is_none() || *api != tenant.api);
        apis
    }

    /// Opens the feed of a tenant that may be polled, and sends an event if the status has changed.
    async fn publish(&self, before: Option<&Tenant>, after: &Tenant) -> Result<()> {
        let waits_for_operator = after.reason == Some(Reason::Operator);
        // An unchanged tenant, too: a worker that died before this step leaves a tenant without a feed.
        if after.status != Status::Offboarded && !waits_for_operator {
            self.registry.open_feed(&after.tenant_id, self.clock.now()).await?;
        }
        self.events.tenant_status_changed(before, after).await
    }
}

/// Logs roles that this deployment does not request. They make a stolen credential more valuable, and only the customer
/// can remove them.
fn warn_of_unexpected_roles(tenant_id: &TenantId, granted: &[String]) {
    let unexpected = unexpected_roles(granted);
    if !unexpected.is_empty() {
        let roles = unexpected.join(" ");
        tracing::warn!(%tenant_id, roles, "the tenant granted roles that are not asked for");
    }
}

fn unexpected_roles(granted: &[String]) -> Vec<&str> {
    // The roles that the app registration requests (`infra/entra/register.py`).
    let is_requested = |role: &str| {
        IncidentApi::ALL.iter().any(|api| [api.read_role(), api.write_role(), api.hunting_role()].contains(&role))
    };
    granted.iter().map(String::as_str).filter(|role| !is_requested(role)).collect()
}

fn merge_roles(roles: &mut Vec<String>, more: &[String]) {
    for role in more {
        if !roles.contains(role) {
            roles.push(role.clone());
        }
    }
}

/// Checks that `consent` may change `tenant`.
fn check_consent(invitation: &Invitation, tenant: Option<&Tenant>, consent: &Consent) -> Result<(), ConsentRejection> {
    invitation.may_be_used_for(&consent.tenant_id, tenant)?;
    // Only a trusted consent may make a paused tenant pending again.
    let paused = tenant.is_some_and(|tenant| tenant.status == Status::Paused);
    if paused && !consent.trusted { Err(ConsentRejection::NotTrusted) } else { Ok(()) }
}

fn pending_tenant(consent: &Consent, invitation: &Invitation, setting: IncidentApiSetting, revision: u64) -> Tenant {
    Tenant {
        tenant_id: consent.tenant_id,
        customer: invitation.customer.clone(),
        status: Status::Pending,
        reason: (!consent.trusted).then_some(Reason::Operator),
        api: setting.preferred(),
        roles: Vec::new(),
        consented_at: Some(consent.at),
        consented_by: Some(consent.person.clone()),
        activated_at: None,
        offboarded_at: None,
        verification: consent.trusted.then(|| Verification::new(consent.at)),
        revision,
    }
}

/// Applies a consent to a tenant that exists and that it may change.
fn apply_consent(tenant: &mut Tenant, consent: &Consent, invitation: &Invitation, setting: IncidentApiSetting) {
    if tenant.status == Status::Offboarded {
        *tenant = pending_tenant(consent, invitation, setting, tenant.revision);
        return;
    }
    let is_repeated_or_older = tenant.consented_at.is_some_and(|at| at >= consent.at);
    if is_repeated_or_older || !consent.trusted {
        return;
    }
    tenant.consented_at = Some(consent.at);
    tenant.consented_by = Some(consent.person.clone());
    if tenant.status != Status::Active {
        tenant.status = Status::Pending;
        tenant.reason = None;
        tenant.verification = Some(Verification::new(consent.at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warns_about_unrequested_roles() {
        for api in IncidentApi::ALL {
            assert!(unexpected_roles(&[api.read_role().into(), api.write_role().into()]).is_empty());
        }
        let granted = ["ThreatHunting.Read.All", "Directory.ReadWrite.All", "AdvancedHunting.Read.All"];
        assert_eq!(unexpected_roles(&granted.map(str::to_owned)), ["Directory.ReadWrite.All"]);
    }
}
