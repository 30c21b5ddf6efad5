//! Offboarding: the end of a tenant here, and the proof of it.

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

use crate::{App, Call, input::bare};

#[derive(Serialize)]
struct Receipt {
    tenant_id: TenantId,
    purged: BTreeMap<String, u64>,
    removal_url: String,
    access_ended: bool,
    checked_at: Timestamp,
}

impl App {
    /// `DELETE /tenants/{tenant_id}`: asked again, it purges what may have been written meanwhile, and checks anew.
    pub(crate) async fn offboard(&self, call: &Call<'_>, tenant: TenantId) -> Result<HttpResponse> {
        self.clients.registry.known_tenant(&tenant).await?;
        bare(call.request)?;
        // The status comes first: every other function reads it before it acts.
        let now = self.clock.now();
        let end = |tenant: &mut Tenant| {
            end(tenant, now);
            Ok(())
        };
        let (before, after) = self.clients.registry.change_tenant(&tenant, end).await?;
        let first_time = before.status != Status::Offboarded;
        self.announce(call, "tenant offboarded", &before, &after).await;
        let revoked = self.clients.registry.revoke_open_invitations_of(&tenant, now).await?;
        for invitation_id in revoked {
            tracing::info!(target: RECORD, audit = true, actor = call.actor, invitation_id, "invitation revoked");
        }
        self.clients.registry.stop_feed(&tenant).await?;
        let purged = self.clients.registry.purge_tenant(&tenant).await?;
        let access_ended = match self.access_ended(call, &after).await {
            // What counts at first is that everything here is gone; whoever asks again wants to know.
            Err(error) if first_time => {
                tracing::warn!(cause = %error, "whether access has ended could not be told");
                false
            }
            outcome => outcome?,
        };
        let client_id = self.clients.tokens.client_id(call.invocation.deadline).await?;
        let receipt = Receipt {
            tenant_id: tenant,
            purged,
            removal_url: removal_url(self.config.microsoft.cloud, &tenant, &client_id),
            access_ended,
            checked_at: self.clock.now(),
        };
        self.keep(&receipt).await;
        tracing::info!(target: RECORD, audit = true,
            actor = call.actor,
            access_ended,
            items_purged = receipt.purged.values().sum::<u64>(),
            "tenant's state purged"
        );
        Ok(HttpResponse::json(200, &receipt))
    }

    /// Whether Entra refuses us a new token for want of consent. A token that came is thrown away at once.
    async fn access_ended(&self, call: &Call<'_>, tenant: &Tenant) -> Result<bool> {
        self.clients.tokens.forget(&tenant.tenant_id);
        let asked =
            self.clients.tokens.fresh_access_token(&tenant.tenant_id, tenant.api, call.invocation.deadline).await;
        self.clients.tokens.forget(&tenant.tenant_id);
        match asked.map(drop) {
            Ok(()) => Ok(false),
            Err(Error::Refused(reason)) => Ok(ends_access(reason)),
            Err(error) => Err(error),
        }
    }

    /// Keeps the receipt beside what was delivered. It is an answer first, so that failing here fails nothing.
    async fn keep(&self, receipt: &Receipt) {
        let kept = self.bucket.keep_receipt(&receipt.tenant_id, receipt.checked_at, receipt).await;
        if let Err(error) = kept {
            tracing::error!(cause = %error, "the receipt could not be kept");
        }
    }
}

fn end(tenant: &mut Tenant, now: Timestamp) {
    if tenant.status == Status::Offboarded {
        return;
    }
    (tenant.status, tenant.reason) = (Status::Offboarded, None);
    (tenant.verification, tenant.activated_at) = (None, None);
    tenant.offboarded_at = Some(now);
    tenant.roles.clear();
}

/// Whether a refusal says that we are no longer let in at all, not only that something else stands in the way.
fn ends_access(reason: Reason) -> bool {
    match reason {
        Reason::ConsentMissing | Reason::DisabledByCustomer | Reason::TenantNotFound => true,
        Reason::RoleMissing
        | Reason::ResourceAbsent
        | Reason::BlockedByPolicy
        | Reason::WrongCloud
        | Reason::CredentialRejected
        | Reason::Throttled
        | Reason::Unavailable
        | Reason::Operator => false,
    }
}

/// The page of our enterprise application in the customer's own directory.
fn removal_url(cloud: Cloud, tenant: &TenantId, client_id: &str) -> String {
    let portal = cloud.portal();
    format!("{portal}/{tenant}/#view/Microsoft_AAD_IAM/ManagedAppMenuBlade/~/Overview/appId/{client_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_customer_is_sent_to_their_own_directory_of_their_own_cloud() {
        let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let url = removal_url(Cloud::GccHigh, &tenant, "app-1");
        assert!(url.starts_with("https://entra.microsoft.us/11111111-2222-4333-8444-abcdefabcdef/#view/"));
        assert!(url.ends_with("/appId/app-1"));
    }
}
