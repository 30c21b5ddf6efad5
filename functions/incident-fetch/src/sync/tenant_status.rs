//! The status of a tenant before and after work on it: tried again while paused, paused when Microsoft refuses.

use shared::{
    error::Result,
    http::Deadline,
    registry::tenants::{Status, Tenant},
    tenant::{Reason, TenantId},
};

use super::{follow_up::PROBE_INTERVAL, tenant::TenantSync};

impl TenantSync {
    /// Returns the tenant if its incidents are to be read now. A pending or paused tenant is tried first.
    pub(super) async fn syncable_tenant(
        &self,
        tenant_id: &TenantId,
        stored: Option<Tenant>,
        deadline: Deadline,
    ) -> Result<Option<Tenant>> {
        let Some(tenant) = stored else {
            tracing::warn!(outcome = "unknown_tenant", "message dropped");
            return Ok(None);
        };
        self.context.events.announce_status(&self.context.registry, &tenant).await?;
        match (tenant.status, tenant.reason) {
            (Status::Active, _) if tenant.verification.is_some() => {
                self.onboarding.refresh_roles(&tenant, deadline).await.map(Some)
            }
            (Status::Active, _) => Ok(Some(tenant)),
            (Status::Pending, _) => {
                let tenant = self.onboarding.advance(tenant_id, deadline).await?;
                if tenant.status == Status::Active {
                    return Ok(Some(tenant));
                }
                if let Some(verification) = &tenant.verification {
                    self.context.registry.set_due(tenant_id, verification.next_try_at).await?;
                }
                tracing::info!(outcome = "pending", "tenant is not active yet");
                Ok(None)
            }
            // A newer release has stored it, and alone knows what to do.
            (Status::Unknown(_), _) | (Status::Paused, Some(Reason::Unknown(_))) => {
                let (status, reason) = (tenant.status.as_str(), tenant.reason.map(Reason::as_str));
                tracing::warn!(status, reason, outcome = "of_a_newer_release", "message dropped");
                Ok(None)
            }
            // The tenant was never active. Its readable API is not known yet.
            (Status::Paused, Some(reason)) if reason != Reason::Operator && tenant.activated_at.is_none() => {
                let tenant = self.onboarding.retry_paused(&tenant, deadline).await?;
                if tenant.status == Status::Active {
                    return Ok(Some(tenant));
                }
                self.context.registry.set_due(tenant_id, self.context.clock.now() + PROBE_INTERVAL).await?;
                tracing::info!(outcome = "refused", "tenant is not active yet");
                Ok(None)
            }
            // Microsoft gave the reason for the pause. Each poll probes whether it still holds.
            (Status::Paused, Some(reason)) if reason != Reason::Operator => Ok(Some(tenant)),
            (Status::Paused | Status::Offboarded, _) => {
                self.context.registry.stop_feed(tenant_id).await?;
                if self.context.registry.tenant(tenant_id).await?.is_some_and(|tenant| tenant.status == Status::Active)
                {
                    // Somebody resumed it at this moment. It must stay due.
                    self.context.registry.open_feed(tenant_id, self.context.clock.now()).await?;
                }
                tracing::info!(outcome = "not_active", "message dropped");
                Ok(None)
            }
        }
    }

    /// Pauses a tenant for a reason that Microsoft gave.
    pub(super) async fn pause_tenant(&self, tenant: &Tenant, reason: Reason) -> Result<()> {
        self.tokens.forget(&tenant.tenant_id);
        let change = |tenant: &mut Tenant| {
            // A pause by the operator and an offboarding stay, whatever Microsoft responds.
            let stays = tenant.reason.is_some_and(Reason::outlasts_success);
            if matches!(tenant.status, Status::Active | Status::Paused) && !stays {
                (tenant.status, tenant.reason) = (Status::Paused, Some(reason));
            }
            Ok(())
        };
        let (_, after) =
            self.context.registry.change_tenant(&tenant.tenant_id, self.context.clock.now(), change).await?;
        self.context.events.announce_status(&self.context.registry, &after).await
    }

    /// Makes a tenant active again, unless the operator paused it, and returns its status.
    pub(super) async fn resume_tenant(&self, tenant: &Tenant) -> Result<Status> {
        let now = self.context.clock.now();
        let change = |tenant: &mut Tenant| {
            if tenant.status == Status::Paused && !tenant.reason.is_some_and(Reason::outlasts_success) {
                (tenant.status, tenant.reason) = (Status::Active, None);
                tenant.activated_at.get_or_insert(now);
            }
            Ok(())
        };
        let (_, after) = self.context.registry.change_tenant(&tenant.tenant_id, now, change).await?;
        self.context.events.announce_status(&self.context.registry, &after).await?;
        Ok(after.status)
    }
}
