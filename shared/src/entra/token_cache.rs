//! App-only access tokens for customers' tenants: cached, renewed before they expire, requested once for all who wait.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};

use super::{access_token::AccessToken, token_client::TokenClient, token_endpoint::AuthorizationCode};
use crate::{
    clock::Clock,
    error::{Error, Result},
    http::{Deadline, HttpClient},
    microsoft::{IncidentApi, Microsoft},
    random::Random,
    registry::Registry,
    telemetry::{self, Metric},
    tenant::TenantId,
    text::Secret,
};

/// The most tokens that are cached. A token has some kilobytes.
const MAX_CACHED_TOKENS: usize = 2_000;

/// The time for which the renewal of a usable token may delay its callers.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The wait after a renewal that failed. The old token stays in use meanwhile.
const RENEWAL_RETRY_DELAY: SignedDuration = SignedDuration::from_secs(30);

// The futures of these calls are boxed as `dyn`: they hold the AWS SDK's, and the compiler runs out of depth in callers
// that nest them further.

/// The access tokens of all tenants, shared by all users of one process.
///
/// Errors of all calls are [`Error::Refused`] (by the tenant), [`Error::CredentialRejected`] (ours),
/// [`Error::Throttled`], [`Error::Upstream`], [`Error::Malformed`], [`Error::Unreachable`], [`Error::DeadlineExceeded`]
/// and [`Error::Internal`].
#[derive(Clone)]
pub struct Tokens {
    cache: Arc<Cache>,
}

struct Cache {
    client: TokenClient,
    clock: Clock,
    slots: Mutex<HashMap<(TenantId, IncidentApi), Arc<Slot>>>,
}

/// The cached token of one tenant, one incident API and one version of the credential.
struct Slot {
    credential_version: String,
    state: Mutex<State>,
    request_lock: tokio::sync::Mutex<()>,
}

#[derive(Clone, Default)]
struct State {
    token: Option<Arc<AccessToken>>,
    /// No renewal of a usable token starts before this time.
    no_renewal_before: Option<Timestamp>,
    /// The number of requests that have started, which is the number of the latest one.
    started: u64,
    /// The latest request that finished for all who wait: its number and its outcome.
    finished: Option<(u64, Result<Arc<AccessToken>>)>,
}

/// The age that a token may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Freshness {
    Cached,
    YoungerThan(SignedDuration),
    Fresh,
}

impl Freshness {
    fn accepts(self, token: &AccessToken, now: Timestamp) -> bool {
        match self {
            Self::Cached => true,
            Self::YoungerThan(age) => token.is_younger_than(age, now),
            Self::Fresh => false,
        }
    }
}

impl Tokens {
    /// An empty cache. Tokens come from the login host of `microsoft`, for the app credential in its secret.
    pub fn new(
        microsoft: &Microsoft,
        http: HttpClient,
        aws: &aws_config::SdkConfig,
        registry: Registry,
        clock: Clock,
        random: Random,
    ) -> Self {
        let client = TokenClient::new(microsoft, http, aws, registry, clock.clone(), random);
        Self { cache: Arc::new(Cache { client, clock, slots: Mutex::new(HashMap::new()) }) }
    }

    /// A token from the cache, or a new one. A token that expires soon is renewed; if that fails, it is used while it
    /// lasts.
    pub async fn access_token(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        deadline: Deadline,
    ) -> Result<Arc<AccessToken>> {
        self.cache.get_or_request(tenant, api, Freshness::Cached, deadline).boxed().await
    }

    /// A token that Entra issued after this call started. It replaces the cached one.
    pub async fn fresh_access_token(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        deadline: Deadline,
    ) -> Result<Arc<AccessToken>> {
        self.cache.get_or_request(tenant, api, Freshness::Fresh, deadline).boxed().await
    }

    /// A token that Entra issued less than `age` ago. A token outlives the consent that it rests on, so this call detects a
    /// withdrawn consent before the token expires. If Entra refuses the tenant, whether or not the reason is known, the older
    /// token is dropped and the refusal returned. If Entra cannot be reached, throttles or refuses the app credential, the
    /// older token is used while it lasts.
    pub async fn access_token_no_older_than(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        age: SignedDuration,
        deadline: Deadline,
    ) -> Result<Arc<AccessToken>> {
        self.cache.get_or_request(tenant, api, Freshness::YoungerThan(age), deadline).boxed().await
    }

    /// Drops the cached tokens of a tenant: after a refusal by an API, a change of roles, an offboarding.
    pub fn forget(&self, tenant: &TenantId) {
        self.cache.slots().retain(|(cached, _), _| cached != tenant);
    }

    /// The client id of the app, from the app credential.
    pub async fn client_id(&self, deadline: Deadline) -> Result<String> {
        Ok(self.cache.client.credential(deadline).await?.current.client_id().to_owned())
    }

    /// Redeems the authorization code of a sign-in for its ID token, which is not validated here.
    ///
    /// # Errors
    /// [`Error::Upstream`] with status 400 for a code that was used before, is too old or was not issued to us.
    pub async fn redeem_code(&self, code: AuthorizationCode<'_>, deadline: Deadline) -> Result<Secret> {
        self.cache.client.redeem_code(code, deadline).boxed().await
    }
}

impl Cache {
    async fn get_or_request(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        freshness: Freshness,
        deadline: Deadline,
    ) -> Result<Arc<AccessToken>> {
        let versions = self.client.credential(deadline).await?;
        let slot = self.slot(tenant, api, versions.current.version());
        let now = self.clock.now();
        let arrival = slot.state().clone();
        let usable = arrival.token.clone().filter(|token| freshness != Freshness::Fresh && token.is_usable(now));
        if let Some(token) = &usable
            && (freshness.accepts(token, now) && token.is_fresh(now) || arrival.delays_renewal(now))
        {
            telemetry::metrics(None, &[Metric::count("TokenCacheHits", 1)]);
            return Ok(token.clone());
        }
        let _lock = match (slot.request_lock.try_lock(), usable.clone()) {
            (Ok(lock), _) => lock,
            (Err(_), Some(token)) => return Ok(token),
            (Err(_), None) => deadline.run(async { Ok(slot.request_lock.lock().await) }).await?,
        };
        if let Some(outcome) = slot.outcome_since(&arrival, freshness) {
            return outcome;
        }
        let number = slot.start_request();
        let allowed = if usable.is_some() { deadline.at_most(RENEWAL_TIMEOUT) } else { deadline };
        let outcome = self.client.request_token(tenant, api, &versions, allowed).await.map(Arc::new);
        match (outcome, usable) {
            (Err(error), Some(token)) if serves_after(&error, freshness.accepts(&token, now)) => {
                slot.delay_renewal(&error, now);
                let tenant_id = tenant.to_string();
                tracing::warn!(tenant_id, cause = %error, "a token could not be renewed; the old one stays in use");
                Ok(token)
            }
            (outcome, _) => {
                slot.finish_request(number, &outcome);
                outcome
            }
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<(TenantId, IncidentApi), Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot for a token. A slot of another credential version is replaced. A full cache drops expired tokens, or else
    /// the one that expires first.
    fn slot(&self, tenant: &TenantId, api: IncidentApi, credential_version: &str) -> Arc<Slot> {
        let key = (*tenant, api);
        let mut slots = self.slots();
        if let Some(slot) = slots.get(&key).filter(|slot| slot.credential_version == credential_version) {
            return slot.clone();
        }
        if slots.len() >= MAX_CACHED_TOKENS {
            let now = self.clock.now();
            slots.retain(|_, slot| slot.is_in_use() || slot.expires_at().is_some_and(|end| now < end));
        }
        if slots.len() >= MAX_CACHED_TOKENS {
            let idle = slots.iter().filter(|(_, slot)| !slot.is_in_use());
            if let Some(first_to_expire) = idle.min_by_key(|(_, slot)| slot.expires_at()).map(|(key, _)| *key) {
                slots.remove(&first_to_expire);
            }
        }
        let slot = Arc::new(Slot {
            credential_version: credential_version.to_owned(),
            state: Mutex::new(State::default()),
            request_lock: tokio::sync::Mutex::new(()),
        });
        slots.insert(key, slot.clone());
        slot
    }
}

/// Returns true if a token stays in use although its renewal failed. Entra's refusal of the tenant ends it, one that
/// nothing explains only once the token is too old for its caller.
fn serves_after(error: &Error, is_young_enough: bool) -> bool {
    match error {
        Error::Refused(_) => false,
        Error::Upstream { status: 400..=499, .. } => is_young_enough,
        _ => true,
    }
}

impl State {
    fn delays_renewal(&self, now: Timestamp) -> bool {
        self.no_renewal_before.is_some_and(|time| now < time)
    }
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request and returns its number.
    fn start_request(&self) -> u64 {
        let mut state = self.state();
        state.started += 1;
        state.started
    }

    /// Stores the outcome of a request for all who wait.
    fn finish_request(&self, number: u64, outcome: &Result<Arc<AccessToken>>) {
        let mut state = self.state();
        match outcome {
            Ok(token) => state.token = Some(token.clone()),
            Err(error) if !serves_after(error, false) => state.token = None,
            Err(_) => {}
        }
        // `DeadlineExceeded` belongs to this caller only. Every other error is shared: a second request would fail the
        // same way.
        if !matches!(outcome, Err(Error::DeadlineExceeded)) {
            state.finished = Some((number, outcome.clone()));
        }
    }

    fn delay_renewal(&self, error: &Error, now: Timestamp) {
        self.state().no_renewal_before = Some(match error {
            Error::Throttled { until } => *until,
            _ => now + RENEWAL_RETRY_DELAY,
        });
    }

    /// The outcome of another request that finished since `arrival`. For a fresh token, it must also have started since.
    fn outcome_since(&self, arrival: &State, freshness: Freshness) -> Option<Result<Arc<AccessToken>>> {
        let (number, outcome) = self.state().finished.clone()?;
        let since = match freshness {
            Freshness::Fresh => arrival.started,
            Freshness::Cached | Freshness::YoungerThan(_) => arrival.finished.as_ref().map_or(0, |(number, _)| *number),
        };
        (number > since).then_some(outcome)
    }

    fn is_in_use(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
    }

    fn expires_at(&self) -> Option<Timestamp> {
        self.state().token.as_ref().map(|token| token.expires_at())
    }
}
