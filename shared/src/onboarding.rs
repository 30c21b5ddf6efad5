//! From a consent that came back to a tenant that is known to work.
//!
//! A consent needs minutes to spread through Microsoft's directory, and says nothing by itself. So a tenant is pending
//! until a fresh app-only token for it carries a role that reads, and one live read has succeeded. Whoever asks how it
//! stands moves it on: the result page, the following polls, the operator's resume.

use jiff::{SignedDuration, Timestamp};

use crate::{
    clock::Clock,
    delivery::events::Events,
    entra::token_cache::Tokens,
    error::{Error, Result},
    http::Deadline,
    incident_api::client::{CallBudget, Incidents},
    microsoft::{IncidentApi, IncidentApiSetting},
    registry::{
        Registry,
        attempts::ConsentRejection,
        invitations::{Invitation, InvitationStatus},
        tenants::{Status, Tenant, Verification},
    },
    tenant::{Reason, TenantId},
};

/// Seconds from one try to the next; the last one again and again.
const SCHEDULE: [i64; 5] = [5, 10, 20, 30, 60];

/// How long a consent may need to spread before the reason counts.
const PATIENCE: SignedDuration = SignedDuration::from_mins(30);

/// Moves tenants from consent to use.
#[derive(Clone)]
pub struct Onboarding {
    choice: IncidentApiSetting,
    tokens: Tokens,
    incidents: Incidents,
    registry: Registry,
    events: Events,
    clock: Clock,
}

/// A consent that came back to the browser of a person who is known.
#[derive(Clone, Debug)]
pub struct Consent {
    /// The invitation that it came by.
    pub invitation_id: String,
    /// The tenant.
    pub tenant_id: TenantId,
    /// Who consented.
    pub person: String,
    /// When it came back.
    pub at: Timestamp,
    /// Whether the consent, or the person, is good for the tenant; else the operator has to decide.
    pub vouched_for: bool,
}

/// What came of writing a consent down.
#[derive(Clone, Debug)]
pub enum Recorded {
    /// The tenant, as it stands now.
    Accepted(Box<Tenant>),
    /// Nothing was changed.
    Refused(ConsentRejection),
}

/// What one try brought.
enum VerificationResult {
    Usable { api: IncidentApi, roles: Vec<String> },
    NotYet { reason: Reason, throttled_until: Option<Timestamp>, roles: Vec<String> },
}

impl Verification {
    /// A check that begins at `now`, with its first try due at once.
    pub fn begin(now: Timestamp) -> Self {
        Self { since: now, tries: 0, next_try_at: now }
    }
}

impl Onboarding {
    /// Onboarding over these neighbours.
    pub fn new(
        choice: IncidentApiSetting,
        tokens: Tokens,
        incidents: Incidents,
        registry: Registry,
        events: Events,
        clock: Clock,
    ) -> Self {
        Self { choice, tokens, incidents, registry, events, clock }
    }

    /// Whether an app-only token with roles is to be had for `tenant` already. A coming consent would then prove nothing
    /// about whoever brings it. Where Microsoft does not say, the careful answer is yes.
    ///
    /// # Errors
    /// [`Error::CredentialRejected`], [`Error::Internal`], [`Error::DeadlineExceeded`].
    pub async fn had_consent(&self, tenant: &TenantId, deadline: Deadline) -> Result<bool> {
        for api in self.choice.candidates() {
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

    /// Whether `invitation` may be used for a tenant that stands like this; the reason why not.
    pub fn may_use(
        invitation: &Invitation,
        tenant_id: &TenantId,
        tenant: Option<&Tenant>,
    ) -> std::result::Result<(), ConsentRejection> {
        if invitation.expected_tenant.is_some_and(|expected| expected != *tenant_id) {
            return Err(ConsentRejection::WrongTenant);
        }
        match tenant {
            Some(Tenant { status: Status::Offboarded, offboarded_at, .. }) => {
                // An invitation from before must not undo an offboarding.
                let newer = offboarded_at.is_none_or(|at| invitation.created_at > at);
                if newer { Ok(()) } else { Err(ConsentRejection::Closed) }
            }
            Some(tenant) if tenant.customer != invitation.customer => Err(ConsentRejection::OtherCustomer),
            Some(_) | None => Ok(()),
        }
    }

    /// Writes down what follows from a consent: the invitation is used up, the tenant is pending (or stays active). May be
    /// repeated for the same consent.
    pub async fn record(&self, consent: &Consent) -> Result<Recorded> {
        let Some(invitation) = self.registry.invitation(&consent.invitation_id).await? else {
            return Ok(Recorded::Refused(ConsentRejection::Closed));
        };
        let tenant = self.registry.tenant(&consent.tenant_id).await?;
        if let Err(ending) = allowed(&invitation, tenant.as_ref(), consent) {
            return Ok(Recorded::Refused(ending));
        }
        if !self.use_up(consent).await? {
            return Ok(Recorded::Refused(ConsentRejection::Closed));
        }
        if tenant.is_none() {
            let tenant = as_new(consent, &invitation, self.choice, 0);
            match self.registry.create_tenant(&tenant).await {
                Ok(()) => {
                    self.publish(None, &tenant).await?;
                    return Ok(Recorded::Accepted(Box::new(tenant)));
                }
                // Somebody was faster; what stands there now is looked at again.
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut refused = None;
        let changed = self.registry.change_tenant(&consent.tenant_id, |tenant| {
            refused = allowed(&invitation, Some(tenant), consent).err();
            if refused.is_none() {
                apply(tenant, consent, &invitation, self.choice);
            }
            Ok(())
        });
        let (before, after) = changed.await?;
        if let Some(ending) = refused {
            return Ok(Recorded::Refused(ending));
        }
        self.publish(Some(&before), &after).await?;
        Ok(Recorded::Accepted(Box::new(after)))
    }

    /// Reads the roles of an active tenant anew, after a consent that may have added some.
    pub async fn refresh_roles(&self, tenant: &Tenant, deadline: Deadline) -> Result<Tenant> {
        let mut roles = Vec::new();
        for api in self.apis(tenant) {
            if let Ok(token) = self.tokens.fresh_access_token(&tenant.tenant_id, api, deadline).await {
                let granted = token.roles().unwrap_or_default();
                warn_of_more(&tenant.tenant_id, granted);
                add(&mut roles, granted);
            }
        }
        let changed = self.registry.change_tenant(&tenant.tenant_id, |tenant| {
            if tenant.status == Status::Active {
                add(&mut tenant.roles, &roles);
            }
            Ok(())
        });
        changed.await.map(|(_, after)| after)
    }

    /// Uses the invitation up for this consent; `false` when it is not there for it (any more). Its expiry does not
    /// matter here: the attempt was begun in time.
    async fn use_up(&self, consent: &Consent) -> Result<bool> {
        let mut usable = false;
        let mark = |invitation: &mut Invitation| {
            usable = match invitation.status(consent.at) {
                InvitationStatus::Open | InvitationStatus::Expired => {
                    invitation.used_at = Some(consent.at);
                    invitation.used_by = Some(consent.tenant_id);
                    true
                }
                InvitationStatus::Used => {
                    (invitation.used_at, invitation.used_by) == (Some(consent.at), Some(consent.tenant_id))
                }
                InvitationStatus::Revoked => false,
            };
            Ok(())
        };
        self.registry.change_invitation(&consent.invitation_id, mark).await?;
        Ok(usable)
    }

    /// One try to move a pending tenant on, if its next try is due: a fresh token for each surface in question, its roles,
    /// one live read; then the tenant is active and its feed open. Else the next try is stored, whoever asks; after half
    /// an hour, or at once where only a person can help, the reason. Returns how the tenant stands then.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Internal`]. What Microsoft answers is no error here.
    pub async fn advance(&self, tenant_id: &TenantId, deadline: Deadline) -> Result<Tenant> {
        let now = self.clock.now();
        let mut ours = false;
        // The next try is stored before this one is made, so that two who ask at once are one try.
        let claim = |tenant: &mut Tenant| {
            let due = tenant.verification.as_mut().filter(|check| now >= check.next_try_at);
            ours = tenant.status == Status::Pending && due.is_some();
            if let Some(check) = due.filter(|_| ours) {
                check.tries += 1;
                check.next_try_at = after(now, delay(check.tries));
            }
            Ok(())
        };
        let (_, tenant) = self.registry.change_tenant(tenant_id, claim).await?;
        if !ours {
            return Ok(tenant);
        }
        match self.examine(&tenant, deadline).await {
            Ok(verdict) => self.conclude(&tenant, verdict).await,
            Err(Error::DeadlineExceeded) => Ok(tenant),
            Err(error) => Err(error),
        }
    }

    /// One try of a tenant that was paused by a reason before it ever was active: Microsoft may accept it by now, on either
    /// surface. Returns how the tenant stands then.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Internal`], [`Error::DeadlineExceeded`]. What Microsoft answers is no error here.
    pub async fn try_again(&self, tenant: &Tenant, deadline: Deadline) -> Result<Tenant> {
        let verdict = self.examine(tenant, deadline).await?;
        let now = self.clock.now();
        let changed = self.registry.change_tenant(&tenant.tenant_id, |tenant| {
            if tenant.status != Status::Paused || tenant.reason == Some(Reason::Operator) {
                return Ok(());
            }
            settle(tenant, &verdict, now);
            if let VerificationResult::NotYet { reason, .. } = &verdict {
                tenant.reason = Some(*reason);
            }
            Ok(())
        });
        let (before, after) = changed.await?;
        self.publish(Some(&before), &after).await?;
        Ok(after)
    }

    /// Asks for a token and a live read of each surface in question, until one works.
    async fn examine(&self, tenant: &Tenant, deadline: Deadline) -> Result<VerificationResult> {
        let mut roles = Vec::new();
        let mut refusal = None::<(bool, Reason, Option<Timestamp>)>;
        for api in self.apis(tenant) {
            let mut has_role = false;
            let outcome = self.examine_surface(&tenant.tenant_id, api, &mut roles, &mut has_role, deadline).await;
            let (reason, throttled_until) = match outcome {
                Ok(()) => return Ok(VerificationResult::Usable { api: api, roles }),
                Err(Error::Refused(reason)) => (reason, None),
                Err(Error::Throttled { until }) => (Reason::Throttled, Some(until)),
                Err(Error::CredentialRejected) => (Reason::CredentialRejected, None),
                Err(
                    Error::Upstream { .. }
                    | Error::Malformed { .. }
                    | Error::Partial { .. }
                    | Error::Unreachable { .. },
                ) => (Reason::Unavailable, None),
                Err(error) => return Err(error),
            };
            // The surface that came further tells more; else the preferred one.
            if refusal.is_none_or(|(had_role, ..)| has_role && !had_role) {
                refusal = Some((has_role, reason, throttled_until));
            }
        }
        let (_, reason, throttled_until) = refusal.unwrap_or((false, Reason::RoleMissing, None));
        Ok(VerificationResult::NotYet { reason, throttled_until, roles })
    }

    async fn examine_surface(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        roles: &mut Vec<String>,
        has_role: &mut bool,
        deadline: Deadline,
    ) -> Result<()> {
        let token = self.tokens.fresh_access_token(tenant, api, deadline).await?;
        // A token without an object is issued where there is no service principal: no proof of anything.
        if !token.has_object_id() {
            return Err(Error::Refused(Reason::ConsentMissing));
        }
        if let Some(granted) = token.roles() {
            warn_of_more(tenant, granted);
            add(roles, granted);
            if !api.readable_with(granted) {
                return Err(Error::Refused(Reason::RoleMissing));
            }
        }
        *has_role = true;
        self.incidents.of(*tenant, api, CallBudget::Table, deadline).probe(&token).await
    }

    /// The surfaces to try; the one that a known tenant uses already goes first.
    fn apis(&self, tenant: &Tenant) -> Vec<IncidentApi> {
        let mut apis = self.choice.candidates().to_vec();
        apis.sort_by_key(|api| tenant.activated_at.is_none() || *api != tenant.api);
        apis
    }

    async fn conclude(&self, claimed: &Tenant, verdict: VerificationResult) -> Result<Tenant> {
        let now = self.clock.now();
        let changed = self.registry.change_tenant(&claimed.tenant_id, |tenant| {
            // Somebody paused or offboarded it meanwhile, or another consent began anew.
            let same_check = tenant.verification.as_ref().map(|check| check.since)
                == claimed.verification.as_ref().map(|check| check.since);
            if tenant.status == Status::Pending && same_check {
                settle(tenant, &verdict, now);
            }
            Ok(())
        });
        let (before, after) = changed.await?;
        self.publish(Some(&before), &after).await?;
        Ok(after)
    }

    /// Opens the feed of a tenant that is to be polled, and tells of a change.
    async fn publish(&self, before: Option<&Tenant>, after: &Tenant) -> Result<()> {
        let waits_for_operator = after.reason == Some(Reason::Operator);
        // Also where nothing changed: a worker that died in between may have left the tenant without its feed.
        if after.status != Status::Offboarded && !waits_for_operator {
            self.registry.open_feed(&after.tenant_id, self.clock.now()).await?;
        }
        self.events.tenant_status_changed(before, after).await
    }
}

fn after(time: Timestamp, span: SignedDuration) -> Timestamp {
    time.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// The wait after this many tries.
fn delay(tries: u32) -> SignedDuration {
    let at = usize::try_from(tries).unwrap_or(usize::MAX).clamp(1, SCHEDULE.len()) - 1;
    SignedDuration::from_secs(SCHEDULE[at])
}

/// Whether only a person at the customer can change it, however long one waits.
fn is_final(reason: Reason) -> bool {
    match reason {
        Reason::DisabledByCustomer
        | Reason::ResourceAbsent
        | Reason::BlockedByPolicy
        | Reason::TenantNotFound
        | Reason::WrongCloud => true,
        Reason::ConsentMissing
        | Reason::RoleMissing
        | Reason::CredentialRejected
        | Reason::Throttled
        | Reason::Unavailable
        | Reason::Operator => false,
    }
}

/// A role that nobody here asks for makes a stolen credential worth more. It is the customer's to take back, and ours to
/// say so.
fn warn_of_more(tenant_id: &TenantId, granted: &[String]) {
    let more = beyond_expected(granted);
    if !more.is_empty() {
        let roles = more.join(" ");
        tracing::warn!(%tenant_id, roles, "the tenant granted roles that are not asked for");
    }
}

fn beyond_expected(granted: &[String]) -> Vec<&str> {
    // What the app registration may ask for (`infra/entra/register.py`).
    let asked_for = |role: &str| {
        IncidentApi::ALL.iter().any(|on| [on.read_role(), on.write_role(), on.hunting_role()].contains(&role))
    };
    granted.iter().map(String::as_str).filter(|role| !asked_for(role)).collect()
}

fn add(roles: &mut Vec<String>, more: &[String]) {
    for role in more {
        if !roles.contains(role) {
            roles.push(role.clone());
        }
    }
}

/// Whether this consent may change a tenant that stands like this; the reason why not.
fn allowed(
    invitation: &Invitation,
    tenant: Option<&Tenant>,
    consent: &Consent,
) -> std::result::Result<(), ConsentRejection> {
    Onboarding::may_use(invitation, &consent.tenant_id, tenant)?;
    // A consent that nobody vouches for must not bring back what was stopped.
    let paused = tenant.is_some_and(|tenant| tenant.status == Status::Paused);
    if paused && !consent.vouched_for { Err(ConsentRejection::NotVouchedFor) } else { Ok(()) }
}

fn as_new(consent: &Consent, invitation: &Invitation, choice: IncidentApiSetting, revision: u64) -> Tenant {
    Tenant {
        tenant_id: consent.tenant_id,
        customer: invitation.customer.clone(),
        status: Status::Pending,
        reason: (!consent.vouched_for).then_some(Reason::Operator),
        api: choice.preferred(),
        roles: Vec::new(),
        consented_at: Some(consent.at),
        consented_by: Some(consent.person.clone()),
        activated_at: None,
        offboarded_at: None,
        verification: consent.vouched_for.then(|| Verification::begin(consent.at)),
        revision,
    }
}

/// What a consent changes of a tenant that is there and may be changed.
fn apply(tenant: &mut Tenant, consent: &Consent, invitation: &Invitation, choice: IncidentApiSetting) {
    if tenant.status == Status::Offboarded {
        *tenant = as_new(consent, invitation, choice, tenant.revision);
        return;
    }
    // Told twice, or later than a newer one.
    let known = tenant.consented_at.is_some_and(|at| at >= consent.at);
    if known || !consent.vouched_for {
        return;
    }
    tenant.consented_at = Some(consent.at);
    tenant.consented_by = Some(consent.person.clone());
    if tenant.status != Status::Active {
        tenant.status = Status::Pending;
        tenant.reason = None;
        tenant.verification = Some(Verification::begin(consent.at));
    }
}

fn settle(tenant: &mut Tenant, verdict: &VerificationResult, now: Timestamp) {
    match verdict {
        VerificationResult::Usable { api, roles } => {
            tenant.status = Status::Active;
            tenant.reason = None;
            tenant.api = *api;
            tenant.roles.clone_from(roles);
            tenant.activated_at.get_or_insert(now);
            tenant.verification = None;
        }
        VerificationResult::NotYet { reason, throttled_until, roles } => {
            tenant.roles.clone_from(roles);
            let Some(check) = tenant.verification.as_mut() else { return };
            if let Some(throttled_until) = throttled_until {
                check.next_try_at = check.next_try_at.max(*throttled_until);
            }
            if is_final(*reason) || now.duration_since(check.since) >= PATIENCE {
                tenant.status = Status::Paused;
                tenant.reason = Some(*reason);
                tenant.verification = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roles_that_are_not_asked_for_are_warned_of() {
        for api in IncidentApi::ALL {
            assert!(beyond_expected(&[api.read_role().into(), api.write_role().into()]).is_empty());
        }
        let granted = ["ThreatHunting.Read.All", "Directory.ReadWrite.All", "AdvancedHunting.Read.All"];
        assert_eq!(beyond_expected(&granted.map(str::to_owned)), ["Directory.ReadWrite.All"]);
    }
}
