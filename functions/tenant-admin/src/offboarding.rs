//! Offboarding: ending a tenant's data flow, purging its state, and the receipt of both.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use shared::{
    error::{Error, Result},
    lambda::event::HttpResponse,
    microsoft::Cloud,
    registry::tenants::{Status, Tenant},
    telemetry::RECORD,
    tenant::{Reason, TenantId},
};

use crate::{AdminRequest, App, input::expect_no_input};

#[derive(Serialize)]
struct Receipt {
    tenant_id: TenantId,
    purged: BTreeMap<String, u64>,
    removal_url: String,
    access_ended: bool,
    checked_at: Timestamp,
}

impl App {
    /// `DELETE /tenants/{tenant_id}`: a repeated call also purges later writes and checks the access again.
    pub(crate) async fn offboard(&self, request: &AdminRequest<'_>, tenant: TenantId) -> Result<HttpResponse> {
        self.clients.registry.known_tenant(&tenant).await?;
        expect_no_input(request.http)?;
        // The status comes first: every other function reads it before it acts.
        let now = self.clock.now();
        let end = |tenant: &mut Tenant| {
            set_offboarded(tenant, now);
            Ok(())
        };
        let (before, after) = self.clients.registry.change_tenant(&tenant, now, end).await?;
        let first_time = before.status != Status::Offboarded;
        self.publish_change(request, "tenant offboarded", &before, &after).await;
        let revoked = self.clients.registry.revoke_open_invitations_of(&tenant, now).await?;
        for invitation_id in revoked {
            tracing::info!(target: RECORD, audit = true, actor = request.actor, invitation_id, "invitation revoked");
        }
        self.clients.registry.stop_feed(&tenant).await?;
        let mut purged = self.clients.registry.purge_tenant(&tenant).await?;
        let access_ended = match self.access_ended(request, &after).await {
            // The first call is about our own state, which is gone. A repeated call is about the access.
            Err(error) if first_time => {
                tracing::warn!(cause = %error, "end of access could not be checked");
                false
            }
            outcome => outcome?,
        };
        // A worker that read the status before may have written meanwhile. A version that stayed would not be delivered
        // again to a tenant that returns.
        for (kind, items) in self.clients.registry.purge_tenant(&tenant).await? {
            *purged.entry(kind).or_insert(0) += items;
        }
        let client_id = self.clients.tokens.client_id(request.invocation.deadline).await?;
        let receipt = Receipt {
            tenant_id: tenant,
            purged,
            removal_url: removal_url(self.config.microsoft.cloud, &tenant, &client_id),
            access_ended,
            checked_at: self.clock.now(),
        };
        self.store_receipt(&receipt).await;
        tracing::info!(target: RECORD, audit = true,
            actor = request.actor,
            access_ended,
            items_purged = receipt.purged.values().sum::<u64>(),
            "tenant's state purged"
        );
        Ok(HttpResponse::json(200, &receipt))
    }

    /// Returns true if Entra refuses a new token because our application is no longer admitted. A token that Entra
    /// issues is dropped at once.
    async fn access_ended(&self, request: &AdminRequest<'_>, tenant: &Tenant) -> Result<bool> {
        self.clients.tokens.forget(&tenant.tenant_id);
        let outcome =
            self.clients.tokens.fresh_access_token(&tenant.tenant_id, tenant.api, request.invocation.deadline).await;
        self.clients.tokens.forget(&tenant.tenant_id);
        match outcome.map(drop) {
            Ok(()) => Ok(false),
            Err(Error::Refused(reason)) => Ok(ends_access(reason)),
            Err(error) => Err(error),
        }
    }

    /// Stores the receipt in the bucket of the delivered incidents. A failure is only logged, because the response has
    /// the receipt, too.
    async fn store_receipt(&self, receipt: &Receipt) {
        let outcome = self.bucket.keep_receipt(&receipt.tenant_id, receipt.checked_at, receipt).await;
        if let Err(error) = outcome {
            tracing::error!(cause = %error, "receipt could not be stored");
        }
    }
}

fn set_offboarded(tenant: &mut Tenant, now: Timestamp) {
    if tenant.status == Status::Offboarded {
        return;
    }
    (tenant.status, tenant.reason) = (Status::Offboarded, None);
    (tenant.verification, tenant.activated_at) = (None, None);
    tenant.offboarded_at = Some(now);
    tenant.roles.clear();
}

/// Returns true for a reason that means that the tenant no longer admits our application.
fn ends_access(reason: Reason) -> bool {
    match reason {
        Reason::ConsentMissing | Reason::DisabledByCustomer | Reason::TenantNotFound => true,
        Reason::RoleMissing
        | Reason::ResourceAbsent
        | Reason::BlockedByPolicy
        | Reason::TenantInactive
        | Reason::WrongCloud
        | Reason::CredentialRejected
        | Reason::Throttled
        | Reason::Unavailable
        | Reason::Operator
        | Reason::Unknown(_) => false,
    }
}

/// The URL of our enterprise application in the customer's own directory.
fn removal_url(cloud: Cloud, tenant: &TenantId, client_id: &str) -> String {
    let portal = cloud.portal();
    format!("{portal}/{tenant}/#view/Microsoft_AAD_IAM/ManagedAppMenuBlade/~/Overview/appId/{client_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removal_url_names_the_customers_cloud_and_directory() {
        let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let url = removal_url(Cloud::GccHigh, &tenant, "app-1");
        assert!(url.starts_with("https://entra.microsoft.us/11111111-2222-4333-8444-abcdefabcdef/#view/"));
        assert!(url.ends_with("/appId/app-1"));
    }
}
