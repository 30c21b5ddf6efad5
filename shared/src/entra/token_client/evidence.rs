//! Evidence about the app credential: whether a refusal is its tenant's own, and when Entra accepts the credential again.

use std::sync::Arc;

use super::{Accepted, TokenClient};
use crate::{
    entra::{
        credential::AppCredential,
        credential_cache::CredentialVersions,
        token_endpoint::{Grant, Retry, TokenFailure},
    },
    error::{Error, Result},
    http::Deadline,
    microsoft::IncidentApi,
    registry::{Write, breaker::BreakerKey},
    telemetry::{self, Metric},
    tenant::TenantId,
};

/// The home tenant's verdict about an unknown refusal.
enum HomeVerdict {
    /// Entra refuses the home tenant alike.
    RefusedAlike(TenantId),
    /// Entra accepts the credential there.
    Accepted,
    /// No home tenant is configured, or its response says nothing about the credential.
    None,
}

impl TokenClient {
    /// Returns the error that an unknown refusal of the client stands for: the tenant's own, or the credential's if Entra
    /// refuses the home tenant alike, or a second tenant where the home tenant gives no verdict. Authorization codes are no
    /// evidence: anybody may make one up.
    pub(super) async fn judge_client_refusal(
        &self,
        refusal: &str,
        own: Error,
        grant: &Grant<'_>,
        versions: &CredentialVersions,
        deadline: Deadline,
    ) -> Result<Error> {
        let Some(tenant) = grant.tenant() else { return Ok(own) };
        let key = self.breaker_key(&versions.current);
        let alike = match self.home_verdict(&key, tenant, refusal, &versions.preferred(), deadline).await? {
            HomeVerdict::RefusedAlike(home) => Some(home),
            HomeVerdict::Accepted => None,
            HomeVerdict::None => self.registry.note_client_refusal(&key, tenant, refusal, self.clock.now()).await?,
        };
        let Some(other) = alike else { return Ok(own) };
        self.open_breaker(&versions.current, Some((refusal, [*tenant, other]))).await?;
        Ok(Error::CredentialRejected)
    }

    /// Asks the home tenant, at most once a minute. In between its last verdict holds.
    async fn home_verdict(
        &self,
        key: &BreakerKey,
        tenant: &TenantId,
        refusal: &str,
        credential: &Arc<AppCredential>,
        deadline: Deadline,
    ) -> Result<HomeVerdict> {
        let Some(home) = &self.home_tenant else { return Ok(HomeVerdict::None) };
        if home == tenant {
            return Ok(HomeVerdict::RefusedAlike(*home));
        }
        if self.registry.claim_home_check(key, self.clock.now()).await? == Write::Conflict {
            let is_silent = self.registry.breaker(key).await?.home_is_silent;
            return Ok(if is_silent { HomeVerdict::None } else { HomeVerdict::Accepted });
        }
        let grant = Grant::ClientCredentials { tenant: home, api: IncidentApi::Graph };
        match self.exchange_with(credential, &grant, Retry::Never, deadline).await {
            Ok(_) => Ok(HomeVerdict::Accepted),
            Err(TokenFailure::Other(Error::CredentialRejected)) => Ok(HomeVerdict::RefusedAlike(*home)),
            Err(TokenFailure::ClientRefused { refusal: at_home, .. }) if at_home == refusal => {
                Ok(HomeVerdict::RefusedAlike(*home))
            }
            Err(_) => {
                self.registry.note_silent_home(key, self.clock.now()).await?;
                Ok(HomeVerdict::None)
            }
        }
    }

    /// Sends the one request that an open breaker allows, with the current credential, and closes the breaker if Entra
    /// accepts it. The request is for the home tenant, or else for a tenant that had a token not long ago, or else for the
    /// caller's own.
    pub(super) async fn probe(
        &self,
        key: &BreakerKey,
        grant: &Grant<'_>,
        versions: &CredentialVersions,
        deadline: Deadline,
    ) -> Result<Accepted> {
        let breaker = self.registry.breaker(key).await?;
        let target = match self.home_tenant {
            Some(home) if !breaker.is_refused_by(&home) => Some((home, IncidentApi::Graph)),
            _ => self.registry.probe_tenant(versions.current.client_id()).await?,
        };
        let probe = target.as_ref().map_or(*grant, |(tenant, api)| Grant::ClientCredentials { tenant, api: *api });
        let outcome = self.exchange_with(&versions.current, &probe, Retry::Never, deadline).await;
        match &outcome {
            Ok(_) => self.close_breaker(key, probe.tenant()).await,
            Err(TokenFailure::Other(Error::CredentialRejected)) => Self::count_rejection(),
            Err(TokenFailure::ClientRefused { refusal, .. }) if breaker.opened_by.as_ref() == Some(refusal) => {
                Self::count_rejection();
                if let Some(tenant) = probe.tenant() {
                    self.registry.note_probe_refused_alike(key, tenant).await?;
                }
            }
            Err(
                TokenFailure::ClientRefused { .. }
                | TokenFailure::Other(
                    Error::Refused(_) | Error::Throttled { .. } | Error::Upstream { status: 400..=499, .. },
                ),
            ) => {
                // The tenant's own refusal says nothing about the credential. The next probe goes to another one.
                if let Some(tenant) = probe.tenant() {
                    if self.home_tenant == Some(*tenant) {
                        tracing::error!(
                            "the home tenant shows nothing about the app credential; is HOME_TENANT_ID right, and has the \
                             app a service principal there?"
                        );
                    }
                    self.registry.forget_probe_tenant(versions.current.client_id(), tenant).await?;
                    self.registry.note_refused_probe(key, tenant).await?;
                }
            }
            Err(TokenFailure::Other(_)) => {}
        }
        match outcome {
            Ok(_) if target.is_some() => self.exchange_unguarded(grant, versions, deadline).await,
            Err(TokenFailure::Other(error)) if target.is_none() => Err(error),
            Ok(accepted) => Ok(accepted),
            Err(_) => Err(Error::CredentialRejected),
        }
    }

    /// Counts a refusal of the credential. Each probe counts, so that the alarm lasts as long as the outage.
    fn count_rejection() {
        telemetry::metrics(None, &[Metric::count("CredentialRejected", 1)]);
    }

    async fn close_breaker(&self, key: &BreakerKey, accepted: Option<&TenantId>) {
        let now = self.clock.now();
        match self.registry.close_breaker(key, accepted, now).await {
            Ok(Write::Done) => {
                tracing::info!("Entra accepts the app credential again");
                telemetry::metrics(None, &[Metric::count("CredentialRejected", 0)]);
            }
            Ok(Write::Conflict) => {}
            Err(error) => tracing::warn!(cause = %error, "the breaker could not be closed"),
        }
    }
}
