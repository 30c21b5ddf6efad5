//! Invitations: made, listed, withdrawn.

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
    App, Call,
    input::{Body, bare, invalid, page},
};

#[derive(Serialize)]
struct Made<'a> {
    invitation_id: &'a str,
    customer: &'a str,
    expected_tenant: Option<TenantId>,
    consent_url: String,
    expires_at: Timestamp,
}

#[derive(Serialize)]
struct Listed<'a> {
    invitation_id: &'a str,
    customer: &'a str,
    expected_tenant: Option<TenantId>,
    expires_at: Timestamp,
    status: InvitationStatus,
}

impl App {
    /// `POST /invitations`
    pub(crate) async fn invite(&self, call: &Call<'_>) -> Result<HttpResponse> {
        call.request.parameters(&[])?;
        let body = Body::read(call.request, &["customer", "expected_tenant", "expires_in_hours"])?.without_nulls();
        let customer = body.customer()?.ok_or_else(|| invalid("`customer` is missing."))?;
        let hours = body.whole("expires_in_hours", 1, 720)?.unwrap_or(168);
        let expected_tenant = match body.text("expected_tenant")? {
            Some(name) => Some(self.tenant_named(call, name).await?),
            None => None,
        };
        let token = InvitationToken::generate(self.random.as_ref())?;
        let valid_for = SignedDuration::from_hours(hours.into());
        let invitation = Invitation::new(&token, customer, expected_tenant, self.clock.now(), valid_for);
        self.clients.registry.create_invitation(&invitation).await?;
        tracing::info!(target: RECORD, audit = true, actor = call.actor, invitation_id = invitation.invitation_id, customer = invitation.customer,
            expected_tenant = expected_tenant.map(tracing::field::display), expires_at = %invitation.expires_at,
            "invitation made"
        );
        let base = PublicBaseUrl::or_domain(self.config.public_base_url.as_ref(), &call.request.domain_name);
        let made = Made {
            invitation_id: &invitation.invitation_id,
            customer: &invitation.customer,
            expected_tenant,
            consent_url: base.join(&format!("/consent/{}", token.expose())),
            expires_at: invitation.expires_at,
        };
        Ok(HttpResponse::json(201, &made))
    }

    async fn tenant_named(&self, call: &Call<'_>, name: &str) -> Result<TenantId> {
        let tenant = if let Ok(tenant) = TenantId::from_guid(name) {
            Some(tenant)
        } else {
            let microsoft = &self.config.microsoft;
            resolve_tenant(&self.http, &microsoft.endpoints, microsoft.cloud, name, call.invocation.deadline).await?
        };
        match tenant {
            Some(PERSONAL_ACCOUNTS) => Err(invalid("`expected_tenant` is the directory of personal accounts.")),
            Some(tenant) => Ok(tenant),
            None => Err(invalid(
                "`expected_tenant` must be the GUID of a tenant, or a domain that Microsoft knows in this cloud.",
            )),
        }
    }

    /// `GET /invitations`
    pub(crate) async fn list_invitations(&self, call: &Call<'_>) -> Result<HttpResponse> {
        let parameters = call.request.parameters(&["limit", "next"])?;
        let (limit, next) = page(&parameters)?;
        let page = self.clients.registry.invitations(limit, next).await?;
        let now = self.clock.now();
        let listed: Vec<Listed<'_>> = page.items.iter().map(|invitation| listed(invitation, now)).collect();
        Ok(HttpResponse::json(200, &json!({"invitations": listed, "next": page.next})))
    }

    /// `DELETE /invitations/{invitation_id}`: afterwards nobody can use it, whether or not somebody could before.
    pub(crate) async fn revoke_invitation(&self, call: &Call<'_>, invitation_id: &str) -> Result<HttpResponse> {
        let now = self.clock.now();
        let revoke = |invitation: &mut Invitation| {
            bare(call.request)?;
            invitation.revoke(now);
            Ok(())
        };
        let (before, after) = self.clients.registry.change_invitation(invitation_id, revoke).await?;
        if before != after {
            tracing::info!(target: RECORD, audit = true,
                actor = call.actor,
                invitation_id = after.invitation_id,
                customer = after.customer,
                "invitation revoked"
            );
        }
        Ok(HttpResponse::empty(204))
    }
}

fn listed(invitation: &Invitation, now: Timestamp) -> Listed<'_> {
    Listed {
        invitation_id: &invitation.invitation_id,
        customer: &invitation.customer,
        expected_tenant: invitation.expected_tenant,
        expires_at: invitation.expires_at,
        status: invitation.status(now),
    }
}
