//! The verification of a consent: tries until a tenant's incidents are readable, or a reason is final.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::{Onboarding, merge_roles, warn_of_unexpected_roles};
use crate::{
    entra::access_token::AccessToken,
    error::{Error, Result},
    http::Deadline,
    incident_api::client::CallBudget,
    microsoft::IncidentApi,
    registry::tenants::{Status, Tenant},
    tenant::{Reason, TenantId},
};

/// The delays after the first and the following tries, in seconds. The last one repeats.
const RETRY_DELAYS_SECONDS: [i64; 5] = [5, 10, 20, 30, 60];

/// The time that a consent may need to spread. A tenant that fails for longer is paused.
pub(super) const MAX_CONSENT_PROPAGATION: SignedDuration = SignedDuration::from_mins(30);

/// The outcome of one try to read a tenant.
enum VerificationResult {
    Usable { api: IncidentApi, roles: Vec<String> },
    NotYet { failure: VerificationFailure, roles: Vec<String> },
}

/// A failed try on one API.
#[derive(Clone, Copy)]
struct VerificationFailure {
    /// True if the token had a role that may read incidents, so that the read itself failed.
    had_role: bool,
    reason: Reason,
    throttled_until: Option<Timestamp>,
}

impl Onboarding {
    /// Makes one try to verify a pending tenant, if its next try is due. A tenant whose incidents are readable becomes
    /// active, and its feed is opened. Otherwise the next try is scheduled. After half an hour, or at once where only the
    /// customer can help, the tenant is paused with a reason. Returns the tenant as it then is.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Internal`]. Microsoft's errors become the tenant's reason.
    pub async fn advance(&self, tenant_id: &TenantId, deadline: Deadline) -> Result<Tenant> {
        let now = self.clock.now();
        let mut claimed = false;
        // The next try is scheduled before this one is made, so that two requests at the same time make one try.
        let claim = |tenant: &mut Tenant| {
            let due = tenant.verification.as_mut().filter(|verification| now >= verification.next_try_at);
            claimed = tenant.status == Status::Pending && due.is_some();
            if let Some(verification) = due.filter(|_| claimed) {
                verification.tries += 1;
                verification.next_try_at = now.checked_add(retry_delay(verification.tries)).unwrap_or(Timestamp::MAX);
            }
            Ok(())
        };
        let (_, tenant) = self.registry.change_tenant(tenant_id, now, claim).await?;
        if !claimed {
            return Ok(tenant);
        }
        match self.verify(&tenant, deadline).await {
            Ok(result) => self.finish_verification(&tenant, result).await,
            Err(Error::DeadlineExceeded) => Ok(tenant),
            Err(error) => Err(error),
        }
    }

    /// Makes one try to verify a tenant that was paused for a reason before it was ever active. Returns the tenant as it
    /// then is.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Internal`], [`Error::DeadlineExceeded`]. Microsoft's errors become the tenant's reason.
    pub async fn retry_paused(&self, tenant: &Tenant, deadline: Deadline) -> Result<Tenant> {
        let result = self.verify(tenant, deadline).await?;
        let now = self.clock.now();
        let changed = self.registry.change_tenant(&tenant.tenant_id, now, |tenant| {
            if tenant.status != Status::Paused || tenant.reason.is_some_and(Reason::outlasts_success) {
                return Ok(());
            }
            apply_result(tenant, &result, now);
            if let VerificationResult::NotYet { failure, .. } = &result {
                tenant.reason = Some(failure.reason);
            }
            Ok(())
        });
        let (_, after) = changed.await?;
        self.publish(&after).await?;
        Ok(after)
    }

    /// Requests a token for each candidate API and makes a live read, until one API works.
    async fn verify(&self, tenant: &Tenant, deadline: Deadline) -> Result<VerificationResult> {
        let mut roles = Vec::new();
        let mut furthest = None::<VerificationFailure>;
        for api in self.apis(tenant) {
            let token = self.token_with_role(&tenant.tenant_id, api, &mut roles, deadline).await;
            let had_role = token.is_ok();
            let outcome = match token {
                Ok(token) => self.incidents.of(tenant.tenant_id, api, CallBudget::Table, deadline).probe(&token).await,
                Err(error) => Err(error),
            };
            let (reason, throttled_until) = match outcome {
                Ok(()) => return Ok(VerificationResult::Usable { api, roles }),
                Err(Error::Refused(reason)) => (reason, None),
                Err(Error::Throttled { until }) => (Reason::Throttled, Some(until)),
                Err(Error::CredentialRejected | Error::CredentialUnusable { .. }) => (Reason::CredentialRejected, None),
                Err(
                    Error::Upstream { .. }
                    | Error::Malformed { .. }
                    | Error::FilterNotApplied { .. }
                    | Error::Partial { .. }
                    | Error::Unreachable { .. },
                ) => (Reason::Unavailable, None),
                Err(error) => return Err(error),
            };
            // The reason of the API that came further counts, else that of the preferred one.
            if furthest.is_none_or(|furthest| had_role && !furthest.had_role) {
                furthest = Some(VerificationFailure { had_role, reason, throttled_until });
            }
        }
        let no_candidate = VerificationFailure { had_role: false, reason: Reason::RoleMissing, throttled_until: None };
        Ok(VerificationResult::NotYet { failure: furthest.unwrap_or(no_candidate), roles })
    }

    /// Requests a token for one API, of which a role may read incidents. Adds its roles to `roles`.
    ///
    /// # Errors
    /// [`Error::Refused`] for a token that proves no consent or has no such role, and the errors of the token request.
    async fn token_with_role(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        roles: &mut Vec<String>,
        deadline: Deadline,
    ) -> Result<Arc<AccessToken>> {
        let token = self.tokens.fresh_access_token(tenant, api, deadline).await?;
        // Entra issues a token without an object id where no service principal exists. It proves nothing.
        if !token.has_object_id() {
            return Err(Error::Refused(Reason::ConsentMissing));
        }
        if let Some(granted) = token.roles() {
            warn_of_unexpected_roles(tenant, granted);
            merge_roles(roles, granted);
            if !api.readable_with(granted) {
                return Err(Error::Refused(Reason::RoleMissing));
            }
        }
        Ok(token)
    }

    async fn finish_verification(&self, claimed: &Tenant, result: VerificationResult) -> Result<Tenant> {
        let now = self.clock.now();
        let changed = self.registry.change_tenant(&claimed.tenant_id, now, |tenant| {
            // The tenant may have been paused or offboarded meanwhile, or another consent has started a new verification.
            let started = |tenant: &Tenant| tenant.verification.as_ref().map(|verification| verification.since);
            let same_verification = started(tenant) == started(claimed) && tenant.customer == claimed.customer;
            if tenant.status == Status::Pending && same_verification {
                apply_result(tenant, &result, now);
            }
            Ok(())
        });
        let (_, after) = changed.await?;
        self.publish(&after).await?;
        Ok(after)
    }
}

fn retry_delay(tries: u32) -> SignedDuration {
    let at = usize::try_from(tries).unwrap_or(usize::MAX).clamp(1, RETRY_DELAYS_SECONDS.len()) - 1;
    SignedDuration::from_secs(RETRY_DELAYS_SECONDS[at])
}

/// Returns true for a reason that only the customer can change, however long one waits.
fn is_final(reason: Reason) -> bool {
    match reason {
        Reason::DisabledByCustomer
        | Reason::BlockedByPolicy
        | Reason::TenantNotFound
        | Reason::TenantInactive
        | Reason::WrongCloud => true,
        // A new resource and a new role need time to spread, and an API forbids calls for some minutes after a consent.
        Reason::ConsentMissing
        | Reason::RoleMissing
        | Reason::ResourceAbsent
        | Reason::CredentialRejected
        | Reason::Throttled
        | Reason::Unavailable
        | Reason::Operator
        | Reason::Unknown(_) => false,
    }
}

fn apply_result(tenant: &mut Tenant, result: &VerificationResult, now: Timestamp) {
    match result {
        VerificationResult::Usable { api, roles } => {
            tenant.status = Status::Active;
            tenant.reason = None;
            tenant.api = *api;
            tenant.roles.clone_from(roles);
            tenant.activated_at.get_or_insert(now);
            tenant.verification = None;
        }
        VerificationResult::NotYet { failure: VerificationFailure { reason, throttled_until, .. }, roles } => {
            tenant.roles.clone_from(roles);
            let Some(verification) = tenant.verification.as_mut() else { return };
            if let Some(throttled_until) = throttled_until {
                verification.next_try_at = verification.next_try_at.max(*throttled_until);
            }
            tenant.reason = Some(*reason);
            if is_final(*reason) || now.duration_since(verification.since) >= MAX_CONSENT_PROPAGATION {
                tenant.status = Status::Paused;
                tenant.verification = None;
            } else if matches!(reason, Reason::Throttled | Reason::CredentialRejected) {
                // The wait is not the customer's to end.
                tenant.reason = Some(Reason::Unavailable);
            }
        }
    }
}
