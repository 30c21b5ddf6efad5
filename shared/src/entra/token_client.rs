//! Token requests behind the shared circuit breaker, with the credential version that Entra accepts.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::{
    access_token::AccessToken,
    credential::AppCredential,
    credential_cache::{CredentialCache, CredentialVersions},
    token_endpoint::{AuthorizationCode, Grant, Retry, TokenEndpoint, TokenResponse},
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    http::{Deadline, HttpClient},
    microsoft::{IncidentApi, Microsoft},
    random::Random,
    registry::{Registry, Write, breaker::BreakerDecision},
    telemetry,
    tenant::TenantId,
    text::Secret,
};

/// Requests tokens. It caches none.
pub(super) struct TokenClient {
    endpoint: TokenEndpoint,
    credentials: CredentialCache,
    registry: Registry,
    clock: Clock,
    /// Held by the one request that searches for the credential version that Entra accepts.
    credential_probe_lock: Mutex<()>,
}

/// A successful response, and the credential version that Entra accepted.
struct Accepted {
    response: TokenResponse,
    credential: Arc<AppCredential>,
}

/// The result of a search among the credential versions.
enum Search {
    Found(Accepted),
    /// The search stopped at a version that need not be tried under the lock.
    Untried(Arc<AppCredential>),
}

impl TokenClient {
    pub(super) fn new(
        microsoft: &Microsoft,
        http: HttpClient,
        aws: &aws_config::SdkConfig,
        registry: Registry,
        clock: Clock,
        random: Random,
    ) -> Self {
        Self {
            endpoint: TokenEndpoint::new(microsoft, http, aws, clock.clone(), random),
            credentials: CredentialCache::new(aws, microsoft.app_credential_secret_id.clone(), clock.clone()),
            registry,
            clock,
            credential_probe_lock: Mutex::new(()),
        }
    }

    /// The cached versions of the app credential.
    pub(super) async fn credential(&self, deadline: Deadline) -> Result<Arc<CredentialVersions>> {
        self.credentials.versions(deadline).await
    }

    /// Requests an app-only token, unless Entra throttles this tenant and API. Throttling is stored for all functions.
    pub(super) async fn request_token(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        versions: &CredentialVersions,
        deadline: Deadline,
    ) -> Result<AccessToken> {
        if let Some(until) = self.registry.tokens_throttled_until(tenant, api, self.clock.now()).await? {
            return Err(Error::Throttled { until });
        }
        match self.exchange(&Grant::ClientCredentials { tenant, api }, versions, deadline).await {
            Ok(Accepted { response, credential }) => self.endpoint.validate(response, tenant, api, &credential),
            Err(Error::Throttled { until }) => {
                self.registry.set_tokens_throttled_until(tenant, api, until).await?;
                Err(Error::Throttled { until })
            }
            Err(error) => Err(error),
        }
    }

    /// Redeems an authorization code for its ID token, which is not validated here.
    pub(super) async fn redeem_code(&self, code: AuthorizationCode<'_>, deadline: Deadline) -> Result<Secret> {
        let versions = self.credential(deadline).await?;
        let accepted = self.exchange(&Grant::AuthorizationCode(code), &versions, deadline).await?;
        accepted.response.into_id_token()
    }

    /// Exchanges a grant for tokens, as the breaker allows.
    async fn exchange(&self, grant: &Grant<'_>, versions: &CredentialVersions, deadline: Deadline) -> Result<Accepted> {
        match self.registry.breaker_decision(self.clock.now()).await? {
            BreakerDecision::Reject => Err(Error::CredentialRejected),
            BreakerDecision::Probe => self.probe(grant, versions, deadline).await,
            BreakerDecision::Allow => {
                let preferred = versions.preferred();
                match self.exchange_with(&preferred, grant, Retry::Once, deadline).await {
                    Err(Error::CredentialRejected) => {
                        self.retry_with_other_versions(grant, versions, preferred, deadline).await
                    }
                    outcome => outcome,
                }
            }
        }
    }

    async fn exchange_with(
        &self,
        credential: &Arc<AppCredential>,
        grant: &Grant<'_>,
        retry: Retry,
        deadline: Deadline,
    ) -> Result<Accepted> {
        let response = self.endpoint.send_with_retry(grant, credential, retry, deadline).await?;
        Ok(Accepted { response, credential: credential.clone() })
    }

    /// Sends the one request that an open breaker allows, with the current credential. Success closes the breaker.
    async fn probe(&self, grant: &Grant<'_>, versions: &CredentialVersions, deadline: Deadline) -> Result<Accepted> {
        let current = self.credentials.newer_than(versions, deadline).await?.current.clone();
        let outcome = self.exchange_with(&current, grant, Retry::Never, deadline).await;
        if matches!(outcome, Err(Error::CredentialRejected)) {
            // Each probe counts, so that the alarm lasts as long as the outage.
            telemetry::metrics(self.clock.now(), None, &[("CredentialRejected", "Count", 1.0)]);
        }
        let accepted = outcome?;
        match self.registry.close_breaker().await {
            Ok(Write::Done) => {
                tracing::info!("Entra accepts the app credential again");
                telemetry::metrics(self.clock.now(), None, &[("CredentialRejected", "Count", 0.0)]);
            }
            Ok(Write::Conflict) => {}
            Err(error) => tracing::warn!(cause = %error, "the breaker could not be closed"),
        }
        Ok(accepted)
    }

    /// Tries the other versions of the credential after Entra rejected one: the current version as the secret has it now,
    /// then the previous one. If Entra rejects them all, it opens the breaker.
    ///
    /// `versions` are those that the rejected version came from.
    async fn retry_with_other_versions(
        &self,
        grant: &Grant<'_>,
        versions: &CredentialVersions,
        rejected: Arc<AppCredential>,
        deadline: Deadline,
    ) -> Result<Accepted> {
        let mut rejected = vec![rejected];
        loop {
            match self.search_versions(grant, versions, &rejected, deadline).await? {
                Search::Found(accepted) => return Ok(accepted),
                Search::Untried(credential) => {
                    match self.exchange_with(&credential, grant, Retry::Once, deadline).await {
                        Err(Error::CredentialRejected) => rejected.push(credential),
                        outcome => return outcome,
                    }
                }
            }
        }
    }

    /// One step of [`Self::retry_with_other_versions`] under the lock: in one process, a single request searches for all.
    async fn search_versions(
        &self,
        grant: &Grant<'_>,
        versions: &CredentialVersions,
        rejected: &[Arc<AppCredential>],
        deadline: Deadline,
    ) -> Result<Search> {
        let _lock = deadline.run(async { Ok(self.credential_probe_lock.lock().await) }).await?;
        self.registry.require_closed_breaker().await?;
        let versions = self.credentials.newer_than(versions, deadline).await?;
        let is_untried = |credential: &&Arc<AppCredential>| {
            rejected.iter().all(|rejected| rejected.version() != credential.version())
        };
        let preferred = versions.preferred();
        if is_untried(&&preferred) {
            // A new version, or one that another request found to be accepted: requests with it may run side by side.
            return Ok(Search::Untried(preferred));
        }
        let previous = self.credentials.previous_of(&versions, deadline).await;
        let previous = previous.filter(|previous| previous.version() != versions.current.version());
        for credential in [Some(&versions.current), previous.as_ref()].into_iter().flatten().filter(is_untried) {
            match self.exchange_with(credential, grant, Retry::Once, deadline).await {
                Err(Error::CredentialRejected) => {}
                Ok(accepted) => {
                    if previous.as_ref().is_some_and(|previous| previous.version() == credential.version()) {
                        versions.note_that_previous_works();
                        tracing::warn!(
                            "Entra accepts only the previous version of the app credential, which stays in use"
                        );
                    }
                    return Ok(Search::Found(accepted));
                }
                Err(error) => return Err(error),
            }
        }
        self.open_breaker(&versions.current).await?;
        Err(Error::CredentialRejected)
    }

    async fn open_breaker(&self, current: &AppCredential) -> Result<()> {
        let now = self.clock.now();
        if self.registry.open_breaker(now).await? == Write::Done {
            tracing::error!(
                client_id = current.client_id(),
                "Entra refuses the app credential; no tenant can be read until it is renewed"
            );
            telemetry::metrics(now, None, &[("CredentialRejected", "Count", 1.0)]);
        }
        Ok(())
    }
}
