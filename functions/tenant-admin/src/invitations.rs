//! Creating, listing and revoking invitations.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;
use shared::{
    config::PublicBaseUrl,
    entra::discovery::resolve_tenant,
    error::Result,
    lambda::event::HttpResponse,
    registry::invitations::{Invitation, InvitationStatus, InvitationToken},
    telemetry::RECORD,
    tenant::{PERSONAL_ACCOUNTS, TenantId},
};

use crate::{
    AdminRequest, App,
    input::{Body, PageRequest, expect_no_input, invalid},
};

#[derive(Serialize)]
struct InvitationCreated<'a> {
    invitation_id: &'a str,
    customer: &'a str,
    expected_tenant: Option<TenantId>,
    consent_url: String,
    expires_at: Timestamp,
}

#[derive(Serialize)]
struct InvitationSummary<'a> {
    invitation_id: &'a str,
    customer: &'a str,
    expected_tenant: Option<TenantId>,
    expires_at: Timestamp,
    status: InvitationStatus,
}

impl<'a> InvitationSummary<'a> {
    fn new(invitation: &'a Invitation, now: Timestamp) -> Self {
        Self {
            invitation_id: &invitation.invitation_id,
            customer: &invitation.customer,
            expected_tenant: invitation.expected_tenant,
            expires_at: invitation.expires_at,
            status: invitation.status(now),
        }
    }
}

impl App {
    /// `POST /invitations`: the only response that holds the link.
    pub(crate) async fn invite(&self, request: &AdminRequest<'_>) -> Result<HttpResponse> {
        request.http.parameters(&[])?;
        let body = Body::parse(request.http, &["customer", "expected_tenant", "expires_in_hours"])?.without_nulls();
        let customer = body.customer()?.ok_or_else(|| invalid("`customer` is missing."))?;
        let hours = body.integer("expires_in_hours", 1..=720)?.unwrap_or(168);
        let expected_tenant = match body.text("expected_tenant")? {
            Some(name) => Some(self.resolve_expected_tenant(request, name).await?),
            None => None,
        };
        let token = InvitationToken::generate(self.random.as_ref())?;
        let valid_for = SignedDuration::from_hours(hours.into());
        let invitation = Invitation::new(&token, customer, expected_tenant, self.clock.now(), valid_for);
        self.clients.registry.create_invitation(&invitation).await?;
        tracing::info!(target: RECORD, audit = true,
            actor = request.actor,
            invitation_id = invitation.invitation_id,
            customer = invitation.customer,
            expected_tenant = expected_tenant.map(tracing::field::display),
            expires_at = %invitation.expires_at,
            "invitation made"
        );
        let base = PublicBaseUrl::or_domain(self.config.public_base_url.as_ref(), &request.http.domain_name);
        let created = InvitationCreated {
            invitation_id: &invitation.invitation_id,
            customer: &invitation.customer,
            expected_tenant,
            consent_url: base.join(&format!("/consent/{}", token.expose())),
            expires_at: invitation.expires_at,
        };
        Ok(HttpResponse::json(201, &created))
    }

    async fn resolve_expected_tenant(&self, request: &AdminRequest<'_>, name: &str) -> Result<TenantId> {
        let tenant = if let Ok(tenant) = TenantId::from_guid(name) {
            Some(tenant)
        } else {
            let microsoft = &self.config.microsoft;
            resolve_tenant(&self.http, &microsoft.endpoints, microsoft.cloud, name, request.invocation.deadline).await?
        };
        match tenant {
            Some(PERSONAL_ACCOUNTS) => Err(invalid("`expected_tenant` is the directory of personal accounts.")),
            Some(tenant) => Ok(tenant),
            None => Err(invalid(
                "`expected_tenant` must be the GUID of a tenant, or a domain that Microsoft knows in this cloud.",
            )),
        }
    }

    /// `GET /invitations`: newest first.
    pub(crate) async fn list_invitations(&self, request: &AdminRequest<'_>) -> Result<HttpResponse> {
        let parameters = request.http.parameters(&["limit", "next"])?;
        let PageRequest { limit, next } = PageRequest::parse(&parameters)?;
        let page = self.clients.registry.invitations(limit, next).await?;
        let now = self.clock.now();
        let summaries = page.items.iter().map(|invitation| InvitationSummary::new(invitation, now)).collect::<Vec<_>>();
        Ok(HttpResponse::json(200, &json!({"invitations": summaries, "next": page.next})))
    }

    /// `DELETE /invitations/{invitation_id}`: succeeds for a used, revoked or expired invitation, too.
    pub(crate) async fn revoke_invitation(
        &self,
        request: &AdminRequest<'_>,
        invitation_id: &str,
    ) -> Result<HttpResponse> {
        let now = self.clock.now();
        let revoke = |invitation: &mut Invitation| {
            expect_no_input(request.http)?;
            invitation.revoke(now);
            Ok(())
        };
        let (before, after) = self.clients.registry.change_invitation(invitation_id, revoke).await?;
        if before != after {
            tracing::info!(target: RECORD, audit = true,
                actor = request.actor,
                invitation_id = after.invitation_id,
                customer = after.customer,
                "invitation revoked"
            );
        }
        Ok(HttpResponse::empty(204))
    }
}
