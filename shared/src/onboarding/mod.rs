//! Onboarding: from a consent to a tenant whose incidents are readable.
//!
//! A consent needs minutes to spread through Microsoft's directory, and proves nothing by itself. A tenant therefore stays
//! pending until a fresh app-only token for it carries a role that may read incidents, and one live read has succeeded.
//! The result page, the polls and the operator's resume each make the next try when it is due.

mod binding;
mod verification;

pub use binding::{Binding, may_bind};

use jiff::Timestamp;
use verification::MAX_CONSENT_PROPAGATION;

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
        attempts::{ConsentRejection, SignedIn},
        invitations::{Invitation, InvitationStatus},
        tenants::{Status, Tenant, Verification},
    },
    telemetry::RECORD,
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
    /// The person, who signed in to the directory that the consent is for.
    pub signed_in: SignedIn,
    /// The time at which the browser returned with the consent.
    pub at: Timestamp,
}

impl Consent {
    /// The effect on `tenant`. A consent that another customer's newer one has replaced is not applied again.
    fn binding(&self, invitation: &Invitation, tenant: Option<&Tenant>) -> Binding {
        match may_bind(invitation, &self.signed_in, tenant) {
            Binding::New if tenant.is_some_and(|tenant| self.is_replaced_in(tenant)) => {
                Binding::Refused(ConsentRejection::OtherCustomer)
            }
            binding => binding,
        }
    }

    /// True if a newer consent of another customer, which did not need the operator either, has made the record.
    fn is_replaced_in(&self, tenant: &Tenant) -> bool {
        !tenant.waits_for_operator() && tenant.consented_at.is_some_and(|at| at > self.at)
    }

    fn has_used(&self, invitation: &Invitation) -> bool {
        (invitation.used_at, invitation.used_by) == (Some(self.at), Some(self.signed_in.tenant_id))
    }

    fn is_applied_to(&self, tenant: &Tenant) -> bool {
        tenant.consented_at == Some(self.at)
    }

    fn is_repeated_or_older(&self, tenant: &Tenant) -> bool {
        tenant.consented_at.is_some_and(|at| at >= self.at)
    }

    fn new_tenant(&self, invitation: &Invitation, setting: IncidentApiSetting, waits_for_operator: bool) -> Tenant {
        let mut tenant = Tenant {
            reason: Some(Reason::Operator),
            consented_at: Some(self.at),
            consented_by: Some(self.signed_in.person().to_owned()),
            role_proven: self.signed_in.role_proven,
            bound_by: Some(self.invitation_id.clone()),
            ..Tenant::new(self.signed_in.tenant_id, invitation.customer.clone(), Status::Pending, setting.preferred())
        };
        if !waits_for_operator {
            tenant.start_verification(self.at);
        }
        tenant
    }

    /// Changes an existing `tenant` as `binding` says.
    fn apply(
        &self,
        binding: Binding,
        tenant: &mut Tenant,
        invitation: &Invitation,
        setting: IncidentApiSetting,
        now: Timestamp,
    ) {
        match binding {
            Binding::New | Binding::WaitsForOperator => {
                let mut new = self.new_tenant(invitation, setting, binding == Binding::WaitsForOperator);
                (new.revision, new.unannounced) = (tenant.revision, std::mem::take(&mut tenant.unannounced));
                if is_replaced(tenant, &new) {
                    // It is a new tenant of its customer.
                    new.mark_unannounced(None, now);
                } else {
                    new.history = std::mem::take(&mut tenant.history);
                }
                *tenant = new;
            }
            // An older consent still counts where the newer one only waits for the operator.
            Binding::Renewed if tenant.waits_for_operator() || !self.is_repeated_or_older(tenant) => {
                tenant.consented_at = Some(self.at);
                tenant.consented_by = Some(self.signed_in.person().to_owned());
                tenant.role_proven = self.signed_in.role_proven;
                if tenant.status == Status::Active {
                    tenant.verification = Some(Verification::new(self.at));
                } else {
                    tenant.start_verification(self.at);
                }
            }
            Binding::Renewed | Binding::Unchanged | Binding::Refused(_) => {}
        }
    }
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

    /// Applies a consent by the rule of [`may_bind`]: its invitation becomes used, and its tenant pending, unless it is
    /// active already. Repeating the call for the same consent has no further effect.
    pub async fn record(&self, consent: &Consent) -> Result<Recorded> {
        let now = self.clock.now();
        let Some(invitation) = self.registry.invitation(&consent.invitation_id).await? else {
            return Ok(Recorded::Refused(ConsentRejection::Closed));
        };
        let tenant_id = consent.signed_in.tenant_id;
        let tenant = self.registry.tenant(&tenant_id).await?;
        let mut binding = consent.binding(&invitation, tenant.as_ref());
        if let Binding::Refused(rejection) = binding {
            return Ok(Recorded::Refused(rejection));
        }
        if let Err(rejection) = self.use_invitation(consent).await? {
            return Ok(Recorded::Refused(rejection));
        }
        if tenant.is_none() {
            let mut tenant = consent.new_tenant(&invitation, self.setting, binding == Binding::WaitsForOperator);
            tenant.mark_unannounced(None, now);
            match self.registry.create_tenant(&tenant).await {
                Ok(()) => {
                    self.publish(&tenant).await?;
                    return Ok(Recorded::Accepted(Box::new(tenant)));
                }
                // Another request has created the tenant meanwhile, and the rule is applied again below.
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let changed = self.registry.change_tenant(&tenant_id, now, |tenant| {
            binding = consent.binding(&invitation, Some(tenant));
            consent.apply(binding, tenant, &invitation, self.setting, now);
            Ok(())
        });
        let (before, after) = changed.await?;
        if let Binding::Refused(rejection) = binding {
            self.release_invitation(consent).await?;
            // Another request may have applied this consent meanwhile. It used the invitation, so nobody else may.
            if let Some(tenant) = self.registry.tenant(&tenant_id).await?.filter(|tenant| consent.is_applied_to(tenant))
            {
                self.keep_invitation_used(consent).await?;
                return Ok(Recorded::Accepted(Box::new(tenant)));
            }
            return Ok(Recorded::Refused(rejection));
        }
        // Another request may have refused this consent meanwhile, and released the invitation.
        self.keep_invitation_used(consent).await?;
        if is_replaced(&before, &after) {
            tracing::warn!(target: RECORD, audit = true,
                tenant_id = %tenant_id,
                invitation_id = consent.invitation_id,
                replaced_customer = before.customer,
                customer = after.customer,
                "record of a tenant that was never active replaced"
            );
        }
        self.publish(&after).await?;
        Ok(Recorded::Accepted(Box::new(after)))
    }

    /// Adds the roles of fresh tokens to an active tenant, after a consent that may have added some. The verification that
    /// the consent started ends with it.
    pub async fn refresh_roles(&self, tenant: &Tenant, deadline: Deadline) -> Result<Tenant> {
        let (mut roles, mut is_complete) = (Vec::new(), true);
        for api in self.apis(tenant) {
            match self.tokens.fresh_access_token(&tenant.tenant_id, api, deadline).await {
                Ok(token) => {
                    let granted = token.roles().unwrap_or_default();
                    warn_of_unexpected_roles(&tenant.tenant_id, granted);
                    merge_roles(&mut roles, granted);
                }
                Err(Error::Refused(_)) => {}
                // The next poll asks again, for as long as a consent may need to spread.
                Err(_) => is_complete = false,
            }
        }
        let now = self.clock.now();
        let changed = self.registry.change_tenant(&tenant.tenant_id, now, |tenant| {
            if tenant.status == Status::Active {
                merge_roles(&mut tenant.roles, &roles);
                let is_open = |verification: &Verification| {
                    !is_complete && now.duration_since(verification.since) < MAX_CONSENT_PROPAGATION
                };
                tenant.verification = tenant.verification.take().filter(is_open);
            }
            Ok(())
        });
        changed.await.map(|(_, after)| after)
    }

    /// Makes the invitation usable again, because the consent that it was marked for is refused.
    async fn release_invitation(&self, consent: &Consent) -> Result<()> {
        let release = |invitation: &mut Invitation| {
            if consent.has_used(invitation) {
                (invitation.used_at, invitation.used_by) = (None, None);
            }
            Ok(())
        };
        self.registry.change_invitation(&consent.invitation_id, release).await.map(drop)
    }

    /// Marks the invitation of a consent that was applied as used, where it no longer is.
    async fn keep_invitation_used(&self, consent: &Consent) -> Result<()> {
        if self.use_invitation(consent).await?.is_err() {
            tracing::warn!(target: RECORD, audit = true,
                tenant_id = %consent.signed_in.tenant_id,
                invitation_id = consent.invitation_id,
                "two consents used one invitation at once"
            );
        }
        Ok(())
    }

    /// Marks the invitation as used by this consent. The inner error: another consent has used it, or it is revoked. Its
    /// expiry does not matter here, because the attempt started in time.
    async fn use_invitation(&self, consent: &Consent) -> Result<Result<(), ConsentRejection>> {
        let mut outcome = Err(ConsentRejection::Closed);
        let mark = |invitation: &mut Invitation| {
            outcome = match invitation.status(consent.at) {
                InvitationStatus::Open | InvitationStatus::Expired => {
                    invitation.used_at = Some(consent.at);
                    invitation.used_by = Some(consent.signed_in.tenant_id);
                    Ok(())
                }
                InvitationStatus::Used if consent.has_used(invitation) => Ok(()),
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

    /// Opens the feed of a tenant that may be polled, and announces changes of its status.
    async fn publish(&self, after: &Tenant) -> Result<()> {
        let is_ours = matches!(after.status, Status::Pending | Status::Active | Status::Paused);
        // An unchanged tenant, too: a worker that died before this step leaves a tenant without a feed.
        if is_ours && !after.reason.is_some_and(Reason::outlasts_success) {
            self.registry.open_feed(&after.tenant_id, self.clock.now()).await?;
        }
        self.events.announce_status(&self.registry, after).await
    }
}

/// Returns true if a consent has taken a record that was never active from another customer.
fn is_replaced(before: &Tenant, after: &Tenant) -> bool {
    before.customer != after.customer && before.status != Status::Offboarded
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
    // The roles that the app registration requests (`mandate register`).
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
