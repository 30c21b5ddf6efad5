//! Token requests behind the shared circuit breaker, with the credential version that Entra accepts.

mod evidence;

use std::sync::{
    Arc, PoisonError,
    atomic::{AtomicI64, Ordering},
};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;

use super::{
    access_token::AccessToken,
    credential::{AppCredential, CredentialKind},
    credential_cache::{CredentialCache, CredentialVersions},
    token_endpoint::{AuthorizationCode, Grant, Retry, TokenEndpoint, TokenFailure, TokenResponse},
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    http::{Deadline, HttpClient},
    microsoft::{IncidentApi, Microsoft},
    random::Random,
    registry::{
        Registry, Write,
        breaker::{BreakerDecision, BreakerKey},
    },
    telemetry::{self, Metric},
    tenant::TenantId,
    text::Secret,
};

/// The age at which a credential that the breaker stands for is read again. A repaired one is in use this soon.
const REJECTED_CREDENTIAL_MAX_AGE: SignedDuration = SignedDuration::from_mins(1);

/// The time for which a process takes a breaker for closed that it read as closed.
const CLOSED_BREAKER_TTL: SignedDuration = SignedDuration::from_secs(5);

/// The time between two notes of the probe tenant by one process.
const PROBE_TENANT_NOTE_INTERVAL: SignedDuration = SignedDuration::from_hours(1);

/// Requests tokens. It caches none.
pub(super) struct TokenClient {
    endpoint: TokenEndpoint,
    credentials: CredentialCache,
    registry: Registry,
    clock: Clock,
    /// Held by the one request that searches for the credential version that Entra accepts.
    credential_probe_lock: Mutex<()>,
    home_tenant: Option<TenantId>,
    function_name: Option<String>,
    /// Held by the one request that reads the breaker, for all that wait for it.
    breaker_lock: Mutex<()>,
    /// The breaker that this process read as closed last, and the time until which it counts as closed.
    closed_breaker: std::sync::Mutex<Option<(BreakerKey, Timestamp)>>,
    /// The second at which this process noted the probe tenant last.
    probe_tenant_noted_at: AtomicI64,
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
            home_tenant: microsoft.home_tenant,
            function_name: microsoft.function_name.clone(),
            breaker_lock: Mutex::new(()),
            closed_breaker: std::sync::Mutex::new(None),
            probe_tenant_noted_at: AtomicI64::new(i64::MIN),
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
        let outcome = self.exchange(&Grant::ClientCredentials { tenant, api }, versions, deadline).await;
        let failed = u64::from(outcome.is_err());
        telemetry::metrics(None, &[Metric::count("TokenRequests", 1), Metric::count("TokenFailures", failed)]);
        self.update_probe_tenant(versions.current.client_id(), tenant, api, &outcome).await;
        match outcome {
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

    /// Exchanges a grant for tokens, as the breaker of the current version allows. Another version of the credential has
    /// another breaker, so the secret is read again while the breaker is open.
    async fn exchange(&self, grant: &Grant<'_>, versions: &CredentialVersions, deadline: Deadline) -> Result<Accepted> {
        let key = self.breaker_key(&versions.current);
        let newer = match self.breaker_decision(&key, grant.tenant(), deadline).await? {
            BreakerDecision::Allow => return self.exchange_unguarded(grant, versions, deadline).await,
            BreakerDecision::Reject => self.credentials.no_older_than(REJECTED_CREDENTIAL_MAX_AGE, deadline).await?,
            BreakerDecision::Probe => {
                let newer = self.credentials.newer_than(versions, deadline).await?;
                if newer.current.version() == versions.current.version() {
                    return self.probe(&key, grant, &newer, deadline).await;
                }
                newer
            }
        };
        if newer.current.version() == versions.current.version() {
            return Err(Error::CredentialRejected);
        }
        Box::pin(self.exchange(grant, &newer, deadline)).await
    }

    /// The breaker's decision, without a read while the breaker counts as closed. Requests that come together read it once.
    async fn breaker_decision(
        &self,
        key: &BreakerKey,
        tenant: Option<&TenantId>,
        deadline: Deadline,
    ) -> Result<BreakerDecision> {
        if self.counts_as_closed(key) {
            return Ok(BreakerDecision::Allow);
        }
        let _lock = deadline.run(async { Ok(self.breaker_lock.lock().await) }).await?;
        if self.counts_as_closed(key) {
            return Ok(BreakerDecision::Allow);
        }
        let now = self.clock.now();
        let decision = self.registry.breaker_decision(key, tenant, self.home_tenant.as_ref(), now).await?;
        let until = now + CLOSED_BREAKER_TTL;
        *self.closed_breaker() = (decision == BreakerDecision::Allow).then(|| (key.clone(), until));
        Ok(decision)
    }

    fn counts_as_closed(&self, key: &BreakerKey) -> bool {
        let now = self.clock.now();
        self.closed_breaker().as_ref().is_some_and(|(closed, until)| closed == key && now < *until)
    }

    fn closed_breaker(&self) -> std::sync::MutexGuard<'_, Option<(BreakerKey, Timestamp)>> {
        self.closed_breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange_unguarded(
        &self,
        grant: &Grant<'_>,
        versions: &CredentialVersions,
        deadline: Deadline,
    ) -> Result<Accepted> {
        let preferred = versions.preferred();
        match self.exchange_with(&preferred, grant, Retry::Once, deadline).await {
            Err(TokenFailure::Other(Error::CredentialRejected)) => {
                self.retry_with_other_versions(grant, versions, preferred, deadline).await
            }
            Err(TokenFailure::ClientRefused { refusal, error }) => {
                Err(self.judge_client_refusal(&refusal, error, grant, versions, deadline).await?)
            }
            outcome => Ok(outcome?),
        }
    }

    async fn exchange_with(
        &self,
        credential: &Arc<AppCredential>,
        grant: &Grant<'_>,
        retry: Retry,
        deadline: Deadline,
    ) -> Result<Accepted, TokenFailure> {
        let response = self.endpoint.send_with_retry(grant, credential, retry, deadline).await?;
        Ok(Accepted { response, credential: credential.clone() })
    }

    /// The breaker's key: each version of the credential has its own, and without a secret each function's role has.
    fn breaker_key(&self, credential: &AppCredential) -> BreakerKey {
        let function = match credential.kind() {
            CredentialKind::Federated => self.function_name.as_deref(),
            CredentialKind::ClientSecret(_) | CredentialKind::Certificate { .. } | CredentialKind::Kms { .. } => None,
        };
        BreakerKey::new(credential.version(), function)
    }

    /// Keeps a tenant that Entra accepts, as the one that a probe goes to where no home tenant shows anything.
    async fn update_probe_tenant(
        &self,
        client_id: &str,
        tenant: &TenantId,
        api: IncidentApi,
        outcome: &Result<Accepted>,
    ) {
        let now = self.clock.now();
        let updated = match outcome {
            Ok(_) => {
                let second = now.as_second();
                let noted_at = self.probe_tenant_noted_at.swap(second, Ordering::Relaxed);
                if noted_at.saturating_add(PROBE_TENANT_NOTE_INTERVAL.as_secs()) > second {
                    self.probe_tenant_noted_at.store(noted_at, Ordering::Relaxed);
                    return;
                }
                self.registry.note_probe_tenant(client_id, tenant, api, now).await
            }
            Err(Error::Refused(_) | Error::Upstream { status: 400..=499, .. }) => {
                self.registry.forget_probe_tenant(client_id, tenant).await
            }
            Err(_) => return,
        };
        if let Err(error) = updated {
            tracing::warn!(cause = %error, "the tenant for probes could not be stored");
        }
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
                        Err(TokenFailure::Other(Error::CredentialRejected)) => rejected.push(credential),
                        outcome => return Ok(outcome?),
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
        self.registry.require_closed_breaker(&self.breaker_key(&versions.current)).await?;
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
                Err(TokenFailure::Other(Error::CredentialRejected)) => {}
                Ok(accepted) => {
                    if previous.as_ref().is_some_and(|previous| previous.version() == credential.version()) {
                        versions.note_that_previous_works();
                        tracing::warn!(
                            "Entra accepts only the previous version of the app credential, which stays in use"
                        );
                    }
                    return Ok(Search::Found(accepted));
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        self.open_breaker(&versions.current, None).await?;
        Err(Error::CredentialRejected)
    }

    async fn open_breaker(&self, credential: &AppCredential, unknown: Option<(&str, [TenantId; 2])>) -> Result<()> {
        let (key, now) = (self.breaker_key(credential), self.clock.now());
        *self.closed_breaker() = None;
        if self.registry.open_breaker(&key, unknown, now).await? == Write::Done {
            tracing::error!(
                client_id = credential.client_id(),
                unknown_refusal = unknown.map(|(refusal, _)| refusal),
                "Entra refuses the app credential; no tenant can be read until it is renewed"
            );
            telemetry::metrics(None, &[Metric::count("CredentialRejected", 1)]);
        }
        Ok(())
    }
}
