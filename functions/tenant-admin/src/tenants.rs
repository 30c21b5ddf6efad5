//! Reading one tenant, and changing its name, their API and whether they are polled.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use shared::{
    error::{Error, Result},
    http::Deadline,
    incident_api::client::CallBudget,
    lambda::event::HttpResponse,
    microsoft::{IncidentApi, IncidentApiSetting},
    onboarding::Onboarding,
    queue::{SyncKind, SyncMessage},
    registry::{
        feed::{Feed, LastSweep},
        open_incidents::OpenIncidents,
        tenants::{PastStatus, Status, Tenant},
    },
    telemetry::RECORD,
    tenant::{Reason, TenantId},
};

use crate::{
    AdminRequest, App,
    input::{Body, expect_no_input, invalid},
};

/// The delay after which `incident-fetch` sends an event that could not be sent.
const ANNOUNCE_AGAIN_AFTER: SignedDuration = SignedDuration::from_mins(1);

/// The Tenant of `functions/interface.md`, in its order of members.
#[derive(Serialize)]
pub(crate) struct TenantView<'a> {
    tenant_id: TenantId,
    customer: &'a str,
    status: Status,
    reason: Option<Reason>,
    api: IncidentApi,
    roles: &'a [String],
    consented_at: Option<Timestamp>,
    consented_by: Option<&'a str>,
    last_success_at: Option<Timestamp>,
    covered_until: Option<Timestamp>,
    lag_seconds: Option<i64>,
    incidents_total: u64,
    quarantined: u64,
    last_sweep: Option<&'a LastSweep>,
    open_incidents: OpenIncidents,
    /// Only while the tenant is pending, when the operator may have to decide on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    role_proven: Option<bool>,
    /// The last states, the present one first. Only where the request wants them.
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Vec<&'a PastStatus>>,
}

impl<'a> TenantView<'a> {
    pub(crate) fn new(
        tenant: &'a Tenant,
        feed: Option<&'a Feed>,
        open_incidents: OpenIncidents,
        now: Timestamp,
    ) -> Self {
        let covered_until = feed.and_then(|feed| feed.covered_until);
        Self {
            tenant_id: tenant.tenant_id,
            customer: &tenant.customer,
            status: tenant.status,
            reason: tenant.reason,
            api: tenant.api,
            roles: &tenant.roles,
            consented_at: tenant.consented_at,
            consented_by: tenant.consented_by.as_deref(),
            last_success_at: feed.and_then(|feed| feed.last_success_at),
            covered_until,
            lag_seconds: covered_until.map(|covered_until| now.duration_since(covered_until).as_secs()),
            incidents_total: feed.map_or(0, |feed| feed.incidents_total),
            quarantined: feed.map_or(0, |feed| feed.quarantined),
            last_sweep: feed.and_then(|feed| feed.last_sweep.as_ref()),
            open_incidents,
            role_proven: (tenant.status == Status::Pending).then_some(tenant.role_proven),
            history: None,
        }
    }
}

/// The action that `resume` takes, by how the tenant stands.
enum Resumption {
    /// The tenant is active, or its onboarding is in progress.
    Nothing,
    /// The operator paused the tenant. It becomes active without a check.
    Restart,
    /// The operator confirms an onboarding, or restarts one that never reached its end.
    Onboard,
    /// A response of Microsoft paused the tenant. A token and one live read decide whether the reason is gone.
    Verify,
}

impl Resumption {
    fn of(tenant: &Tenant) -> Result<Self> {
        match (tenant.status, tenant.reason) {
            (Status::Offboarded | Status::Unknown(_), _) => Err(Error::TenantNotActive(tenant.reason)),
            (Status::Pending, Some(Reason::Operator)) => Ok(Self::Onboard),
            (Status::Active | Status::Pending, _) => Ok(Self::Nothing),
            (Status::Paused, _) if tenant.activated_at.is_none() => Ok(Self::Onboard),
            (Status::Paused, Some(Reason::Operator) | None) => Ok(Self::Restart),
            (Status::Paused, Some(_)) => Ok(Self::Verify),
        }
    }

    fn apply(&self, tenant: &mut Tenant, now: Timestamp) {
        match self {
            Self::Nothing | Self::Verify => {}
            Self::Restart => (tenant.status, tenant.reason) = (Status::Active, None),
            Self::Onboard => tenant.start_verification(now),
        }
    }
}

impl App {
    /// The tenant, in any status but offboarded.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::TenantNotActive`] for an offboarded tenant.
    pub(crate) async fn onboarded(&self, tenant: &TenantId) -> Result<Tenant> {
        let tenant = self.clients.registry.known_tenant(tenant).await?;
        refuse_offboarded(&tenant)?;
        Ok(tenant)
    }

    /// Writes a change to the audit log and announces it on the event bus. A failed event is only logged: the change is
    /// stored, so the caller's request has succeeded. A message to `incident-fetch` repeats the event later.
    pub(crate) async fn publish_change(
        &self,
        request: &AdminRequest<'_>,
        message: &'static str,
        before: &Tenant,
        after: &Tenant,
    ) {
        if before != after {
            Self::audit_change(request, message, before, after);
        }
        let Err(error) = self.clients.events.announce_status(&self.clients.registry, after).await else { return };
        tracing::error!(cause = %error, "event for a tenant's change could not be sent");
        let message = SyncMessage::new(after.tenant_id, SyncKind::Poll);
        if let Err(error) = self.queue.send(&message, ANNOUNCE_AGAIN_AFTER).await {
            tracing::error!(cause = %error, "message for a tenant's change could not be sent");
        }
    }

    fn audit_change(request: &AdminRequest<'_>, message: &'static str, before: &Tenant, after: &Tenant) {
        let reason = |tenant: &Tenant| tenant.reason.map(Reason::as_str);
        tracing::info!(target: RECORD, audit = true,
            actor = request.actor,
            from = before.status.as_str(),
            to = after.status.as_str(),
            reason = reason(after),
            customer = after.customer,
            api = after.api.as_str(),
            "{message}"
        );
    }

    async fn respond_with(&self, tenant: &Tenant) -> Result<HttpResponse> {
        self.respond_with_history(tenant, None).await
    }

    async fn respond_with_history(&self, tenant: &Tenant, history: Option<Vec<&PastStatus>>) -> Result<HttpResponse> {
        let registry = &self.clients.registry;
        let feed = registry.feed(&tenant.tenant_id).await?;
        let open = registry.open_incidents(&[tenant.tenant_id]).await?.remove(&tenant.tenant_id).unwrap_or_default();
        let view = TenantView::new(tenant, feed.as_ref(), open, self.clock.now());
        Ok(HttpResponse::json(200, &TenantView { history, ..view }))
    }

    /// `GET /tenants/{tenant_id}`: one tenant in any status, offboarded too, and its last states with `history=true`.
    pub(crate) async fn show_tenant(&self, request: &AdminRequest<'_>, tenant: TenantId) -> Result<HttpResponse> {
        let tenant = self.clients.registry.known_tenant(&tenant).await?;
        let parameters = request.http.parameters(&["history"])?;
        let with_history = match parameters.get("history").copied() {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(invalid("`history` must be true or false.")),
        };
        self.respond_with_history(&tenant, with_history.then(|| tenant.history.iter().rev().collect())).await
    }

    /// `PATCH /tenants/{tenant_id}`: changes the customer's name or the API, if the tenant's consent covers it.
    pub(crate) async fn change_tenant(&self, request: &AdminRequest<'_>, tenant: TenantId) -> Result<HttpResponse> {
        let known = self.clients.registry.known_tenant(&tenant).await?;
        request.http.parameters(&[])?;
        let body = Body::parse(request.http, &["customer", "api"])?;
        let customer = body.customer()?;
        let wrong_api = || invalid("`api` must be graph or defender.");
        let api = body.text("api")?.map(|api| api.parse::<IncidentApi>().map_err(|_| wrong_api())).transpose()?;
        refuse_offboarded(&known)?;
        let roles = match api.filter(|api| *api != known.api) {
            Some(api) => self.verified_roles(&tenant, api, request.invocation.deadline).await?,
            None => Vec::new(),
        };
        let now = self.clock.now();
        let change = |tenant: &mut Tenant| {
            refuse_offboarded(tenant)?;
            if let Some(customer) = &customer {
                tenant.customer.clone_from(customer);
            }
            if let Some(api) = api {
                tenant.api = api;
            }
            for role in &roles {
                if !tenant.roles.contains(role) {
                    tenant.roles.push(role.clone());
                }
            }
            Ok(())
        };
        let (before, after) = self.clients.registry.change_tenant(&tenant, now, change).await?;
        self.publish_change(request, "tenant changed", &before, &after).await;
        self.respond_with(&after).await
    }

    /// Verifies that the tenant's incidents can be read through `api`, and returns the roles of a new token for it. A
    /// token that cannot be decoded has no roles here.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the consent of the tenant does not cover `api`.
    async fn verified_roles(&self, tenant: &TenantId, api: IncidentApi, deadline: Deadline) -> Result<Vec<String>> {
        let missing = || Error::Conflict {
            detail: format!("The customer has not consented to a role that reads incidents through {api}."),
            reason: Some(Reason::RoleMissing),
        };
        let verification = async {
            let token = self.clients.tokens.fresh_access_token(tenant, api, deadline).await?;
            let Some(roles) = token.roles() else {
                // One live read shows what a token that cannot be decoded is good for.
                self.clients.incidents.of(*tenant, api, CallBudget::Table, deadline).probe(&token).await?;
                return Ok(Vec::new());
            };
            if api.readable_with(roles) { Ok(roles.to_vec()) } else { Err(missing()) }
        };
        match verification.await {
            // The tenant works with its other API, so these reasons are about `api` only.
            Err(Error::Refused(Reason::RoleMissing | Reason::ConsentMissing | Reason::ResourceAbsent)) => {
                Err(missing())
            }
            outcome => outcome,
        }
    }

    /// `POST /tenants/{tenant_id}/pause`: ends polling until `resume`.
    pub(crate) async fn pause(&self, request: &AdminRequest<'_>, tenant: TenantId) -> Result<HttpResponse> {
        self.clients.registry.known_tenant(&tenant).await?;
        expect_no_input(request.http)?;
        let now = self.clock.now();
        let change = |tenant: &mut Tenant| {
            refuse_offboarded(tenant)?;
            if !tenant.is_paused_by_operator() {
                (tenant.status, tenant.reason) = (Status::Paused, Some(Reason::Operator));
                tenant.verification = None;
                tenant.operator_paused_at = Some(now);
            }
            Ok(())
        };
        let (before, after) = self.clients.registry.change_tenant(&tenant, now, change).await?;
        self.clients.registry.stop_feed(&tenant).await?;
        self.publish_change(request, "tenant paused", &before, &after).await;
        self.respond_with(&after).await
    }

    /// `POST /tenants/{tenant_id}/resume`: takes the action of [`Resumption`].
    pub(crate) async fn resume(&self, request: &AdminRequest<'_>, tenant: TenantId) -> Result<HttpResponse> {
        let known = self.clients.registry.known_tenant(&tenant).await?;
        expect_no_input(request.http)?;
        let now = self.clock.now();
        if let Resumption::Verify = Resumption::of(&known)? {
            let after = self.verify_and_resume(request, &known).await?;
            self.clients.registry.open_feed(&tenant, now).await?;
            return self.respond_with(&after).await;
        }
        let change = |tenant: &mut Tenant| {
            Resumption::of(tenant)?.apply(tenant, now);
            Ok(())
        };
        let (before, mut after) = self.clients.registry.change_tenant(&tenant, now, change).await?;
        // Also without a change: an earlier call may have ended between the two writes.
        self.clients.registry.open_feed(&tenant, now).await?;
        self.publish_change(request, "tenant resumed", &before, &after).await;
        if after.status == Status::Pending {
            after = self.onboarding_with(after.api).advance(&tenant, request.invocation.deadline).await?;
        }
        self.respond_with(&after).await
    }

    /// Onboarding that tries only `api`. This function does not know `INCIDENT_API`; the next polls try the other API.
    fn onboarding_with(&self, api: IncidentApi) -> Onboarding {
        self.clients.onboarding(IncidentApiSetting::Only(api))
    }

    /// Requests a token and one live read, and stores the result: active, or paused with the present reason.
    async fn verify_and_resume(&self, request: &AdminRequest<'_>, known: &Tenant) -> Result<Tenant> {
        let deadline = request.invocation.deadline;
        let verification = async {
            let token = self.clients.tokens.fresh_access_token(&known.tenant_id, known.api, deadline).await?;
            let mut client = self.clients.incidents.of(known.tenant_id, known.api, CallBudget::Table, deadline);
            client.probe(&token).await
        };
        let (status, reason) = match verification.await {
            Ok(()) => (Status::Active, None),
            Err(Error::Refused(reason)) => (Status::Paused, Some(reason)),
            Err(error) => return Err(error),
        };
        let change = |tenant: &mut Tenant| {
            // A change that others made meanwhile takes precedence.
            if (tenant.status, tenant.reason) == (known.status, known.reason) {
                (tenant.status, tenant.reason) = (status, reason);
            }
            Ok(())
        };
        let (before, after) = self.clients.registry.change_tenant(&known.tenant_id, self.clock.now(), change).await?;
        self.publish_change(request, "tenant checked for resumption", &before, &after).await;
        Ok(after)
    }
}

fn refuse_offboarded(tenant: &Tenant) -> Result<()> {
    if tenant.status == Status::Offboarded { Err(Error::TenantNotActive(tenant.reason)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tenant(status: Status, reason: Option<Reason>) -> Tenant {
        let tenant_id = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        Tenant {
            reason,
            roles: vec!["SecurityIncident.Read.All".into()],
            consented_at: Some("2026-11-22T08:00:00Z".parse().unwrap()),
            consented_by: Some("Ada".into()),
            role_proven: true,
            activated_at: Some("2026-11-22T08:01:00Z".parse().unwrap()),
            ..Tenant::new(tenant_id, "Contoso".into(), status, IncidentApi::Graph)
        }
    }

    #[test]
    fn tenant_has_the_members_of_the_interface_in_order() {
        let now = "2026-11-22T10:00:00.9Z".parse().unwrap();
        let active = tenant(Status::Active, None);
        let feed: Feed = serde_json::from_value(json!({
            "covered_until": "2026-11-22T09:59:00.2Z", "last_success_at": "2026-11-22T09:59:05Z",
            "incidents_total": 7, "quarantined": 1,
            "last_sweep": {"at": "2026-11-22T03:00:00Z", "checked": 40, "missing": 2}
        }))
        .unwrap();
        let open = OpenIncidents { informational: 0, low: 1, medium: 2, high: 3 };
        assert_eq!(
            serde_json::to_string(&TenantView::new(&active, Some(&feed), open, now)).unwrap(),
            concat!(
                r#"{"tenant_id":"11111111-2222-4333-8444-abcdefabcdef","customer":"Contoso","#,
                r#""status":"active","reason":null,"api":"graph","roles":["SecurityIncident.Read.All"],"#,
                r#""consented_at":"2026-11-22T08:00:00Z","consented_by":"Ada","#,
                r#""last_success_at":"2026-11-22T09:59:05Z","covered_until":"2026-11-22T09:59:00.2Z","#,
                r#""lag_seconds":60,"incidents_total":7,"quarantined":1,"#,
                r#""last_sweep":{"at":"2026-11-22T03:00:00Z","checked":40,"missing":2},"#,
                r#""open_incidents":{"informational":0,"low":1,"medium":2,"high":3}}"#
            )
        );
        let pending = tenant(Status::Pending, Some(Reason::Operator));
        let pending = serde_json::to_value(TenantView::new(&pending, None, open, now)).unwrap();
        assert_eq!(pending["role_proven"], serde_json::Value::Bool(true));
        let never = serde_json::to_value(TenantView::new(&active, None, open, now)).unwrap();
        assert_eq!(never["lag_seconds"], serde_json::Value::Null);
        assert_eq!(never["last_sweep"], serde_json::Value::Null);
        assert_eq!(never["incidents_total"], 0);
    }

    #[test]
    fn resume_restarts_or_verifies_a_paused_tenant() {
        let now = "2026-11-22T10:00:00Z".parse().unwrap();
        let resumed = |mut tenant: Tenant| {
            Resumption::of(&tenant).unwrap().apply(&mut tenant, now);
            (tenant.status, tenant.reason)
        };
        let operator = Some(Reason::Operator);
        assert_eq!(resumed(tenant(Status::Active, None)), (Status::Active, None));
        assert_eq!(resumed(tenant(Status::Paused, operator)), (Status::Active, None));
        assert_eq!(resumed(tenant(Status::Pending, operator)), (Status::Pending, Some(Reason::ConsentMissing)));
        let never_active = Tenant { activated_at: None, ..tenant(Status::Paused, operator) };
        assert_eq!(resumed(never_active), (Status::Pending, Some(Reason::ConsentMissing)));
        let refused = tenant(Status::Paused, Some(Reason::ConsentMissing));
        assert_eq!(resumed(refused.clone()), (Status::Paused, Some(Reason::ConsentMissing)));
        assert!(matches!(Resumption::of(&refused), Ok(Resumption::Verify)));
        assert!(matches!(Resumption::of(&tenant(Status::Offboarded, None)), Err(Error::TenantNotActive(None))));
    }
}
