//! Tenants: shown, renamed, moved to the other surface, paused and resumed.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use shared::{
    error::{Error, Result},
    http::Deadline,
    incident_api::client::CallBudget,
    lambda::event::HttpResponse,
    microsoft::{IncidentApi, IncidentApiSetting},
    onboarding::Onboarding,
    registry::{
        feed::{Feed, LastSweep},
        tenants::{Status, Tenant, Verification},
    },
    telemetry::RECORD,
    tenant::{Reason, TenantId},
};

use crate::{
    App, Call,
    input::{Body, bare, invalid, page},
};

/// The interface's Tenant.
#[derive(Serialize)]
struct Shown<'a> {
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
}

fn shown<'a>(tenant: &'a Tenant, feed: Option<&'a Feed>, now: Timestamp) -> Shown<'a> {
    let covered_until = feed.and_then(|feed| feed.covered_until);
    Shown {
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
    }
}

/// What `resume` finds to do.
enum Resumption {
    /// It runs already, or is being checked already.
    Nothing,
    /// The operator stopped it, and lets it run again.
    Restart,
    /// The operator lets an onboarding go on, or begin again that never came to its end.
    Onboard,
    /// Something at the customer stopped it: Microsoft is to be asked whether that is over.
    Check,
}

impl Resumption {
    fn of(tenant: &Tenant) -> Result<Self> {
        match (tenant.status, tenant.reason) {
            (Status::Offboarded, _) => Err(Error::TenantNotActive(tenant.reason)),
            (Status::Active, _) | (Status::Pending, None) => Ok(Self::Nothing),
            (Status::Pending, Some(_)) => Ok(Self::Onboard),
            (Status::Paused, _) if tenant.activated_at.is_none() => Ok(Self::Onboard),
            (Status::Paused, Some(Reason::Operator) | None) => Ok(Self::Restart),
            (Status::Paused, Some(_)) => Ok(Self::Check),
        }
    }

    fn apply(&self, tenant: &mut Tenant, now: Timestamp) {
        match self {
            Self::Nothing | Self::Check => {}
            Self::Restart => (tenant.status, tenant.reason) = (Status::Active, None),
            Self::Onboard => {
                (tenant.status, tenant.reason) = (Status::Pending, None);
                tenant.verification = Some(Verification::begin(now));
            }
        }
    }
}

impl App {
    /// A tenant whose data can be asked for.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::TenantNotActive`] for one that is offboarded.
    pub(crate) async fn onboarded(&self, tenant: &TenantId) -> Result<Tenant> {
        let tenant = self.clients.registry.known_tenant(tenant).await?;
        refuse_offboarded(&tenant)?;
        Ok(tenant)
    }

    /// Tells the log and the bus of a change. It is done then: that the bus does not hear of it is for us to mend, not
    /// a reason to tell the operator that it failed.
    pub(crate) async fn announce(&self, call: &Call<'_>, what: &'static str, before: &Tenant, after: &Tenant) {
        if before == after {
            return;
        }
        let reason = |tenant: &Tenant| tenant.reason.map(Reason::as_str);
        tracing::info!(target: RECORD, audit = true,
            actor = call.actor,
            from = before.status.as_str(),
            to = after.status.as_str(),
            reason = reason(after),
            customer = after.customer,
            api = after.api.as_str(),
            "{what}"
        );
        if let Err(error) = self.clients.events.tenant_status_changed(Some(before), after).await {
            tracing::error!(cause = %error, "the bus could not be told of a tenant's change");
        }
    }

    async fn answer_with(&self, tenant: &Tenant) -> Result<HttpResponse> {
        let feed = self.clients.registry.feed(&tenant.tenant_id).await?;
        Ok(HttpResponse::json(200, &shown(tenant, feed.as_ref(), self.clock.now())))
    }

    /// `GET /tenants`
    pub(crate) async fn list_tenants(&self, call: &Call<'_>) -> Result<HttpResponse> {
        let parameters = call.request.parameters(&["status", "limit", "next"])?;
        let (limit, next) = page(&parameters)?;
        let status = parameters.get("status").map(|text| status(text)).transpose()?;
        let page = self.clients.registry.tenants(status, limit, next).await?;
        let ids: Vec<TenantId> = page.items.iter().map(|tenant| tenant.tenant_id).collect();
        let feeds = self.clients.registry.feeds(&ids).await?;
        let now = self.clock.now();
        let tenants: Vec<Shown<'_>> =
            page.items.iter().map(|tenant| shown(tenant, feeds.get(&tenant.tenant_id), now)).collect();
        Ok(HttpResponse::json(200, &json!({"tenants": tenants, "next": page.next})))
    }

    /// `GET /tenants/{tenant_id}`: offboarded tenants, too, are shown.
    pub(crate) async fn show_tenant(&self, call: &Call<'_>, tenant: TenantId) -> Result<HttpResponse> {
        let tenant = self.clients.registry.known_tenant(&tenant).await?;
        call.request.parameters(&[])?;
        self.answer_with(&tenant).await
    }

    /// `PATCH /tenants/{tenant_id}`
    pub(crate) async fn change_tenant(&self, call: &Call<'_>, tenant: TenantId) -> Result<HttpResponse> {
        let known = self.clients.registry.known_tenant(&tenant).await?;
        call.request.parameters(&[])?;
        let body = Body::read(call.request, &["customer", "api"])?;
        let customer = body.customer()?;
        let wrong_api = || invalid("`api` must be graph or defender.");
        let api = body.text("api")?.map(|api| api.parse::<IncidentApi>().map_err(|_| wrong_api())).transpose()?;
        refuse_offboarded(&known)?;
        let roles = match api.filter(|api| *api != known.api) {
            Some(api) => self.roles_of(&tenant, api, call.invocation.deadline).await?,
            None => Vec::new(),
        };
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
        let (before, after) = self.clients.registry.change_tenant(&tenant, change).await?;
        self.announce(call, "tenant changed", &before, &after).await;
        self.answer_with(&after).await
    }

    /// The roles that Entra puts into a new token for `api`, which suffice to read there.
    async fn roles_of(&self, tenant: &TenantId, api: IncidentApi, deadline: Deadline) -> Result<Vec<String>> {
        let missing = || Error::Conflict {
            detail: format!("The customer has not consented to a role that reads incidents by {api}."),
            reason: Some(Reason::RoleMissing),
        };
        let looked = async {
            let token = self.clients.tokens.fresh_access_token(tenant, api, deadline).await?;
            let Some(roles) = token.roles() else {
                // A token that cannot be looked into is tried out instead.
                self.clients.incidents.of(*tenant, api, CallBudget::Table, deadline).probe(&token).await?;
                return Ok(Vec::new());
            };
            if api.readable_with(roles) { Ok(roles.to_vec()) } else { Err(missing()) }
        };
        match looked.await {
            // Another surface is in use, so these speak of this one.
            Err(Error::Refused(Reason::RoleMissing | Reason::ConsentMissing | Reason::ResourceAbsent)) => {
                Err(missing())
            }
            outcome => outcome,
        }
    }

    /// `POST /tenants/{tenant_id}/pause`
    pub(crate) async fn pause(&self, call: &Call<'_>, tenant: TenantId) -> Result<HttpResponse> {
        self.clients.registry.known_tenant(&tenant).await?;
        bare(call.request)?;
        let change = |tenant: &mut Tenant| {
            refuse_offboarded(tenant)?;
            (tenant.status, tenant.reason, tenant.verification) = (Status::Paused, Some(Reason::Operator), None);
            Ok(())
        };
        let (before, after) = self.clients.registry.change_tenant(&tenant, change).await?;
        self.clients.registry.stop_feed(&tenant).await?;
        self.announce(call, "tenant paused", &before, &after).await;
        self.answer_with(&after).await
    }

    /// `POST /tenants/{tenant_id}/resume`
    pub(crate) async fn resume(&self, call: &Call<'_>, tenant: TenantId) -> Result<HttpResponse> {
        let known = self.clients.registry.known_tenant(&tenant).await?;
        bare(call.request)?;
        let now = self.clock.now();
        if let Resumption::Check = Resumption::of(&known)? {
            let after = self.check(call, &known).await?;
            self.clients.registry.open_feed(&tenant, now).await?;
            return self.answer_with(&after).await;
        }
        let change = |tenant: &mut Tenant| {
            Resumption::of(tenant)?.apply(tenant, now);
            Ok(())
        };
        let (before, mut after) = self.clients.registry.change_tenant(&tenant, change).await?;
        // Also where nothing changed: an earlier call may have come only as far as that.
        self.clients.registry.open_feed(&tenant, now).await?;
        self.announce(call, "tenant resumed", &before, &after).await;
        if after.status == Status::Pending {
            after = self.onboarding_by(after.api).advance(&tenant, call.invocation.deadline).await?;
        }
        self.answer_with(&after).await
    }

    /// Which surfaces a deployment uses is not configured here, so only the one is tried that consent was asked for; the
    /// polls that follow try the others.
    fn onboarding_by(&self, api: IncidentApi) -> Onboarding {
        self.clients.onboarding(IncidentApiSetting::Only(api))
    }

    /// Asks Microsoft whether what stopped a tenant is over.
    async fn check(&self, call: &Call<'_>, known: &Tenant) -> Result<Tenant> {
        let deadline = call.invocation.deadline;
        let looked = async {
            let token = self.clients.tokens.fresh_access_token(&known.tenant_id, known.api, deadline).await?;
            let mut client = self.clients.incidents.of(known.tenant_id, known.api, CallBudget::Table, deadline);
            client.probe(&token).await
        };
        let (status, reason) = match looked.await {
            Ok(()) => (Status::Active, None),
            Err(Error::Refused(reason)) => (Status::Paused, Some(reason)),
            Err(error) => return Err(error),
        };
        let change = |tenant: &mut Tenant| {
            // What somebody else decided meanwhile stands.
            if (tenant.status, tenant.reason) == (known.status, known.reason) {
                (tenant.status, tenant.reason) = (status, reason);
            }
            Ok(())
        };
        let (before, after) = self.clients.registry.change_tenant(&known.tenant_id, change).await?;
        self.announce(call, "tenant checked for resumption", &before, &after).await;
        Ok(after)
    }
}

fn refuse_offboarded(tenant: &Tenant) -> Result<()> {
    if tenant.status == Status::Offboarded { Err(Error::TenantNotActive(tenant.reason)) } else { Ok(()) }
}

fn status(text: &str) -> Result<Status> {
    [Status::Pending, Status::Active, Status::Paused, Status::Offboarded]
        .into_iter()
        .find(|status| status.as_str() == text)
        .ok_or_else(|| invalid("`status` must be pending, active, paused or offboarded."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(status: Status, reason: Option<Reason>) -> Tenant {
        Tenant {
            tenant_id: "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap(),
            customer: "Contoso".into(),
            status,
            reason,
            api: IncidentApi::Graph,
            roles: vec!["SecurityIncident.Read.All".into()],
            consented_at: Some("2026-11-22T08:00:00Z".parse().unwrap()),
            consented_by: Some("Ada".into()),
            activated_at: Some("2026-11-22T08:01:00Z".parse().unwrap()),
            offboarded_at: None,
            verification: None,
            revision: 3,
        }
    }

    #[test]
    fn a_tenant_has_the_fields_of_the_interface_in_their_order() {
        let now = "2026-11-22T10:00:00.9Z".parse().unwrap();
        let active = tenant(Status::Active, None);
        let feed: Feed = serde_json::from_value(json!({
            "covered_until": "2026-11-22T09:59:00.2Z", "last_success_at": "2026-11-22T09:59:05Z",
            "incidents_total": 7, "quarantined": 1,
            "last_sweep": {"at": "2026-11-22T03:00:00Z", "checked": 40, "missing": 2}
        }))
        .unwrap();
        assert_eq!(
            serde_json::to_string(&shown(&active, Some(&feed), now)).unwrap(),
            r#"{"tenant_id":"11111111-2222-4333-8444-abcdefabcdef","customer":"Contoso","status":"active","reason":null,"api":"graph","roles":["SecurityIncident.Read.All"],"consented_at":"2026-11-22T08:00:00Z","consented_by":"Ada","last_success_at":"2026-11-22T09:59:05Z","covered_until":"2026-11-22T09:59:00.2Z","lag_seconds":60,"incidents_total":7,"quarantined":1,"last_sweep":{"at":"2026-11-22T03:00:00Z","checked":40,"missing":2}}"#
        );
        let never = serde_json::to_value(shown(&active, None, now)).unwrap();
        assert_eq!(never["lag_seconds"], serde_json::Value::Null);
        assert_eq!(never["last_sweep"], serde_json::Value::Null);
        assert_eq!(never["incidents_total"], 0);
    }

    #[test]
    fn a_resumed_tenant_runs_or_is_checked_but_is_never_just_believed() {
        let now = "2026-11-22T10:00:00Z".parse().unwrap();
        let resumed = |mut tenant: Tenant| {
            Resumption::of(&tenant).unwrap().apply(&mut tenant, now);
            (tenant.status, tenant.reason)
        };
        let operator = Some(Reason::Operator);
        assert_eq!(resumed(tenant(Status::Active, None)), (Status::Active, None));
        assert_eq!(resumed(tenant(Status::Paused, operator)), (Status::Active, None));
        assert_eq!(resumed(tenant(Status::Pending, operator)), (Status::Pending, None));
        let never_active = Tenant { activated_at: None, ..tenant(Status::Paused, operator) };
        assert_eq!(resumed(never_active), (Status::Pending, None));
        let refused = tenant(Status::Paused, Some(Reason::ConsentMissing));
        assert_eq!(resumed(refused.clone()), (Status::Paused, Some(Reason::ConsentMissing)));
        assert!(matches!(Resumption::of(&refused), Ok(Resumption::Check)));
        assert!(matches!(Resumption::of(&tenant(Status::Offboarded, None)), Err(Error::TenantNotActive(None))));
    }

    #[test]
    fn only_the_four_words_are_a_status() {
        assert_eq!(status("paused").unwrap(), Status::Paused);
        for wrong in ["", "Paused", "gone"] {
            assert!(status(wrong).is_err(), "{wrong}");
        }
    }
}
