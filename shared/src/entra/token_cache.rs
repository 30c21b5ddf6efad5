//! App-only access tokens for customers' tenants: kept, renewed ahead of their end, asked for once whoever wants them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};

use super::{
    access_token::AccessToken,
    credential::{AppCredential, CredentialCache, CredentialVersions},
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

/// The most tokens that are kept; one is some kilobytes.
const MOST_KEPT: usize = 2_000;

/// How long renewing a token that still lives may hold its users up.
const RENEWAL: Duration = Duration::from_secs(5);

/// How long a token that could not be renewed is used before the next try.
const QUIET: SignedDuration = SignedDuration::from_secs(30);

// The futures of these calls are boxed as `dyn`: they hold the AWS SDK's, and the compiler runs out of depth in whoever
// nests them further.

/// The token client that all functions share.
///
/// Errors of all calls are [`Error::Refused`] (the tenant), [`Error::CredentialRejected`] (ours), [`Error::Throttled`],
/// [`Error::Upstream`], [`Error::Unreachable`], [`Error::DeadlineExceeded`] and [`Error::Internal`].
#[derive(Clone)]
pub struct Tokens {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: TokenEndpoint,
    custody: CredentialCache,
    registry: Registry,
    clock: Clock,
    slots: Mutex<HashMap<(TenantId, IncidentApi), Arc<Slot>>>,
    /// Held by the one request that finds out which version of the credential Entra takes.
    finding_out: tokio::sync::Mutex<()>,
}

/// The place of one token: of one tenant, one surface, one version of the credential.
struct Slot {
    version: String,
    state: Mutex<State>,
    flight: tokio::sync::Mutex<()>,
}

#[derive(Clone, Default)]
struct State {
    token: Option<Arc<AccessToken>>,
    /// No renewal ahead before this time.
    quiet_until: Option<Timestamp>,
    /// Requests begun so far; also the number of the last one.
    begun: u64,
    /// The last request that came to an end for all who waited, and what it led to.
    ended: Option<(u64, Result<Arc<AccessToken>>)>,
}

/// How good a token has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Freshness {
    Cached,
    YoungerThan(SignedDuration),
    Fresh,
}

impl Tokens {
    /// Speaks to the login host of `microsoft` with the credential that its secret holds.
    pub fn new(
        microsoft: &Microsoft,
        http: HttpClient,
        aws: &aws_config::SdkConfig,
        registry: Registry,
        clock: Clock,
        random: Random,
    ) -> Self {
        let inner = Inner {
            endpoint: TokenEndpoint::new(microsoft, http, aws, clock.clone(), random),
            custody: CredentialCache::new(aws, microsoft.app_credential_secret_id.clone(), clock.clone()),
            registry,
            clock,
            slots: Mutex::new(HashMap::new()),
            finding_out: tokio::sync::Mutex::new(()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A token from the cache, or a new one where there is none. One that nears its end is renewed; where that fails it
    /// is used while it lives.
    pub async fn access_token(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        deadline: Deadline,
    ) -> Result<Arc<AccessToken>> {
        self.inner.get_or_request(tenant, api, Freshness::Cached, deadline).boxed().await
    }

    /// A token that Entra issued after this call began. It takes the place of the cached one.
    pub async fn fresh_access_token(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        deadline: Deadline,
    ) -> Result<Arc<AccessToken>> {
        self.inner.get_or_request(tenant, api, Freshness::Fresh, deadline).boxed().await
    }

    /// A token that Entra issued at most `age` ago. A token that was issued outlives the consent that it rests on; this is
    /// how a withdrawn consent is noticed before the token's end. Where Entra refuses, the older token is dropped and the
    /// refusal returned; where Entra cannot be asked, the older token will do while it lives.
    pub async fn access_token_no_older_than(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        age: SignedDuration,
        deadline: Deadline,
    ) -> Result<Arc<AccessToken>> {
        self.inner.get_or_request(tenant, api, Freshness::YoungerThan(age), deadline).boxed().await
    }

    /// Drops what is cached of a tenant: after a refusal by an API, a change of roles, an offboarding.
    pub fn forget(&self, tenant: &TenantId) {
        self.inner.slots().retain(|(kept, _), _| kept != tenant);
    }

    /// The application's id, from the credential.
    pub async fn client_id(&self, deadline: Deadline) -> Result<String> {
        Ok(self.inner.custody.loaded(deadline).await?.current.client_id().to_owned())
    }

    /// Redeems the authorization code of a sign-in at `authority` (`organizations` or a tenant) for its ID token, which is
    /// not validated here.
    ///
    /// # Errors
    /// [`Error::Upstream`] with status 400 for a code that is used, too old or not ours.
    pub async fn redeem_code(&self, code: AuthorizationCode<'_>, deadline: Deadline) -> Result<Secret> {
        let loaded = self.inner.custody.loaded(deadline).await?;
        let grant = Grant::AuthorizationCode(code);
        self.inner.ask(&grant, loaded, deadline).boxed().await?.0.into_id_token()
    }
}

impl Inner {
    async fn get_or_request(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        want: Freshness,
        deadline: Deadline,
    ) -> Result<Arc<AccessToken>> {
        let loaded = self.custody.loaded(deadline).await?;
        let slot = self.slot(tenant, api, loaded.current.version());
        let now = self.clock.now();
        let arrival = slot.state().clone();
        let kept = arrival.token.clone().filter(|token| want != Freshness::Fresh && token.is_usable(now));
        if let Some(token) = &kept {
            let good = match want {
                Freshness::Cached => true,
                Freshness::YoungerThan(age) => token.is_younger_than(age, now),
                Freshness::Fresh => false,
            };
            if good && token.is_fresh(now) || arrival.quiet_until.is_some_and(|until| now < until) {
                return Ok(token.clone());
            }
        }
        let _flight = match (slot.flight.try_lock(), kept.clone()) {
            (Ok(flight), _) => flight,
            (Err(_), Some(token)) => return Ok(token),
            (Err(_), None) => deadline.run(async { Ok(slot.flight.lock().await) }).await?,
        };
        if let Some(outcome) = slot.outcome_since(&arrival, want) {
            return outcome;
        }
        let number = slot.begin();
        let allowed = if kept.is_some() { deadline.at_most(RENEWAL) } else { deadline };
        let outcome = self.fetch(tenant, api, loaded, allowed).await.map(Arc::new);
        let mut state = slot.state();
        match (&outcome, kept) {
            (Ok(token), _) => state.token = Some(token.clone()),
            (Err(Error::Refused(_)), _) => state.token = None,
            (Err(error), Some(token)) => {
                let quiet_until = match error {
                    Error::Throttled { until } => *until,
                    _ => now + QUIET,
                };
                state.quiet_until = Some(quiet_until);
                let tenant_id = tenant.to_string();
                tracing::warn!(tenant_id, cause = %error, "a token could not be renewed; the old one stays in use");
                return Ok(token);
            }
            (Err(_), None) => {}
        }
        // Out of time is this caller's own failure; all others is what a second request would meet, too.
        if !matches!(outcome, Err(Error::DeadlineExceeded)) {
            state.ended = Some((number, outcome.clone()));
        }
        outcome
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<(TenantId, IncidentApi), Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, tenant: &TenantId, api: IncidentApi, version: &str) -> Arc<Slot> {
        let key = (*tenant, api);
        let mut slots = self.slots();
        if let Some(slot) = slots.get(&key).filter(|slot| slot.version == version) {
            return slot.clone();
        }
        if slots.len() >= MOST_KEPT {
            let now = self.clock.now();
            slots.retain(|_, slot| slot.is_in_use() || slot.ends_at().is_some_and(|end| now < end));
        }
        if slots.len() >= MOST_KEPT {
            let idle = slots.iter().filter(|(_, slot)| !slot.is_in_use());
            if let Some(first_to_end) = idle.min_by_key(|(_, slot)| slot.ends_at()).map(|(key, _)| *key) {
                slots.remove(&first_to_end);
            }
        }
        let slot = Arc::new(Slot {
            version: version.to_owned(),
            state: Mutex::new(State::default()),
            flight: tokio::sync::Mutex::new(()),
        });
        slots.insert(key, slot.clone());
        slot
    }

    async fn fetch(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        loaded: Arc<CredentialVersions>,
        deadline: Deadline,
    ) -> Result<AccessToken> {
        if let Some(until) = self.registry.tokens_throttled_until(tenant, api, self.clock.now()).await? {
            return Err(Error::Throttled { until });
        }
        match self.ask(&Grant::ClientCredentials { tenant, api }, loaded, deadline).await {
            Ok((reply, credential)) => self.endpoint.validate(reply, tenant, api, &credential),
            Err(Error::Throttled { until }) => {
                self.registry.set_tokens_throttled_until(tenant, api, until).await?;
                Err(Error::Throttled { until })
            }
            Err(error) => Err(error),
        }
    }

    /// Asks with the credential that Entra takes, if there is one.
    async fn ask(
        &self,
        grant: &Grant<'_>,
        loaded: Arc<CredentialVersions>,
        deadline: Deadline,
    ) -> Result<(TokenResponse, Arc<AppCredential>)> {
        match self.registry.breaker_decision(self.clock.now()).await? {
            BreakerDecision::Reject => Err(Error::CredentialRejected),
            BreakerDecision::Probe => {
                let credential = self.custody.reloaded(&loaded, deadline).await?.current.clone();
                let asked = self.endpoint.send_with_retry(grant, &credential, Retry::Never, deadline).await;
                if matches!(asked, Err(Error::CredentialRejected)) {
                    // Each minute anew, so that the alarm lasts as long as the outage.
                    telemetry::metrics(self.clock.now(), None, &[("CredentialRejected", "Count", 1.0)]);
                }
                let reply = asked?;
                match self.registry.close_breaker().await {
                    Ok(Write::Done) => {
                        tracing::info!("Entra takes the app credential again");
                        telemetry::metrics(self.clock.now(), None, &[("CredentialRejected", "Count", 0.0)]);
                    }
                    Ok(Write::Conflict) => {}
                    Err(error) => tracing::warn!(cause = %error, "the breaker could not be closed"),
                }
                Ok((reply, credential))
            }
            BreakerDecision::Allow => {
                let preferred = loaded.preferred();
                match self.endpoint.send_with_retry(grant, &preferred, Retry::Once, deadline).await {
                    Err(Error::CredentialRejected) => {
                        self.retry_with_other_versions(grant, loaded, preferred, deadline).await
                    }
                    outcome => outcome.map(|reply| (reply, preferred)),
                }
            }
        }
    }

    /// Entra refused one version. Tries what the secret holds now, then the version before, and at last opens the breaker.
    /// One request finds out for all others of this process.
    async fn retry_with_other_versions(
        &self,
        grant: &Grant<'_>,
        loaded: Arc<CredentialVersions>,
        refused: Arc<AppCredential>,
        deadline: Deadline,
    ) -> Result<(TokenResponse, Arc<AppCredential>)> {
        let mut refused = vec![refused];
        let is_new = |credential: &Arc<AppCredential>, refused: &[Arc<AppCredential>]| {
            refused.iter().all(|other| other.version() != credential.version())
        };
        let found_out = deadline.run(async { Ok(self.finding_out.lock().await) }).await?;
        self.registry.require_closed_breaker().await?;
        let loaded = self.custody.reloaded(&loaded, deadline).await?;
        let preferred = loaded.preferred();
        let mut finding_out = Some(found_out);
        if is_new(&preferred, &refused) {
            // Either a new version, or one that another request found to work: no reason to stand in line.
            finding_out = None;
            match self.endpoint.send_with_retry(grant, &preferred, Retry::Once, deadline).await {
                Err(Error::CredentialRejected) => refused.push(preferred),
                outcome => return outcome.map(|reply| (reply, preferred)),
            }
        }
        if finding_out.is_none() {
            finding_out = Some(deadline.run(async { Ok(self.finding_out.lock().await) }).await?);
            self.registry.require_closed_breaker().await?;
        }
        let previous = self.custody.previous(&loaded, deadline).await;
        for credential in [Some(loaded.current.clone()), previous.clone()].into_iter().flatten() {
            if !is_new(&credential, &refused) {
                continue;
            }
            match self.endpoint.send_with_retry(grant, &credential, Retry::Once, deadline).await {
                Err(Error::CredentialRejected) => refused.push(credential),
                Ok(reply) => {
                    if previous.as_ref().is_some_and(|previous| previous.version() == credential.version()) {
                        loaded.note_that_previous_works();
                        tracing::warn!(
                            "Entra takes only the previous version of the app credential, which stays in use"
                        );
                    }
                    return Ok((reply, credential));
                }
                Err(error) => return Err(error),
            }
        }
        let now = self.clock.now();
        if self.registry.open_breaker(now).await? == Write::Done {
            tracing::error!(
                client_id = loaded.current.client_id(),
                "Entra refuses the app credential; no tenant can be read until it is renewed"
            );
            telemetry::metrics(now, None, &[("CredentialRejected", "Count", 1.0)]);
        }
        drop(finding_out);
        Err(Error::CredentialRejected)
    }
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> u64 {
        let mut state = self.state();
        state.begun += 1;
        state.begun
    }

    /// What another request led to since `arrival`; for a fresh token it must also have begun since then.
    fn outcome_since(&self, arrival: &State, want: Freshness) -> Option<Result<Arc<AccessToken>>> {
        let (number, outcome) = self.state().ended.clone()?;
        let since = match want {
            Freshness::Fresh => arrival.begun,
            Freshness::Cached | Freshness::YoungerThan(_) => arrival.ended.as_ref().map_or(0, |(number, _)| *number),
        };
        (number > since).then_some(outcome)
    }

    fn is_in_use(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
    }

    fn ends_at(&self) -> Option<Timestamp> {
        self.state().token.as_ref().map(|token| token.expires_at())
    }
}
