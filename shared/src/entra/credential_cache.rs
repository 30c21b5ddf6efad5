//! The app credential's versions in Secrets Manager, cached.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueError;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::OnceCell;

use super::credential::{AppCredential, Expiry};
use crate::{
    aws::{LazyClient, lazy_client},
    clock::Clock,
    error::{Error, Result},
    http::Deadline,
    telemetry::{self, Metric},
    text::Secret,
};

const CREDENTIAL_TTL: SignedDuration = SignedDuration::from_mins(5);

/// The time for which an expired credential stays in use when it cannot be read again.
const STALE_CREDENTIAL_TTL: SignedDuration = SignedDuration::from_secs(30);

/// The time for which an unusable secret is not read again. A filled one is in use this soon.
const UNUSABLE_CREDENTIAL_TTL: SignedDuration = SignedDuration::from_secs(10);

const SECRETS_MANAGER_TIMEOUT: Duration = Duration::from_secs(5);

const CURRENT: &str = "AWSCURRENT";
const PREVIOUS: &str = "AWSPREVIOUS";

/// The versions of the app credential as of one read. The previous version is read when it is needed.
pub(super) struct CredentialVersions {
    pub(super) current: Arc<AppCredential>,
    previous: OnceCell<Option<Arc<AppCredential>>>,
    /// True once Entra rejected the current version and accepted the previous one: the rotation has not spread yet.
    previous_works: AtomicBool,
    /// The number of this read in the process, from 1.
    generation: u64,
}

impl CredentialVersions {
    /// The version that Entra is more likely to accept.
    pub(super) fn preferred(&self) -> Arc<AppCredential> {
        match self.previous.get() {
            Some(Some(previous)) if self.previous_works.load(Ordering::Relaxed) => previous.clone(),
            _ => self.current.clone(),
        }
    }

    pub(super) fn note_that_previous_works(&self) {
        self.previous_works.store(true, Ordering::Relaxed);
    }
}

/// Reads the app credential from Secrets Manager and caches it for [`CREDENTIAL_TTL`], or longer while Secrets Manager
/// fails.
pub(super) struct CredentialCache {
    client: LazyClient<aws_sdk_secretsmanager::Client>,
    secret_id: String,
    clock: Clock,
    cached: Mutex<Option<Cached>>,
    /// The error of the last read, and its time, if the secret was unusable and there was nothing cached.
    unusable: Mutex<Option<(Error, Timestamp)>>,
    read_lock: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Cached {
    versions: Arc<CredentialVersions>,
    read_at: Timestamp,
    expires_at: Timestamp,
}

impl CredentialCache {
    pub(super) fn new(aws: &aws_config::SdkConfig, secret_id: String, clock: Clock) -> Self {
        Self {
            client: lazy_client(aws, aws_sdk_secretsmanager::Client::new),
            secret_id,
            clock,
            cached: Mutex::new(None),
            unusable: Mutex::new(None),
            read_lock: tokio::sync::Mutex::new(()),
        }
    }

    /// The cached versions. Reads them if they have expired; an expired version is returned while another caller reads.
    pub(super) async fn versions(&self, deadline: Deadline) -> Result<Arc<CredentialVersions>> {
        if let Some(versions) = self.unexpired() {
            return Ok(versions);
        }
        let _lock = match (self.read_lock.try_lock(), self.cached()) {
            (Ok(lock), _) => lock,
            (Err(_), Some(cached)) => return Ok(cached.versions),
            (Err(_), None) => deadline.run(async { Ok(self.read_lock.lock().await) }).await?,
        };
        match self.unexpired() {
            Some(versions) => Ok(versions),
            None => self.read(deadline).await,
        }
    }

    /// Versions of a later read than `rejected`, after Entra rejected one of those. Reads the secret if no other caller
    /// has done so since.
    pub(super) async fn newer_than(
        &self,
        rejected: &CredentialVersions,
        deadline: Deadline,
    ) -> Result<Arc<CredentialVersions>> {
        let _lock = deadline.run(async { Ok(self.read_lock.lock().await) }).await?;
        match self.cached() {
            Some(cached) if cached.versions.generation > rejected.generation => Ok(cached.versions),
            _ => self.read(deadline).await,
        }
    }

    /// The version before the current one, if there is one of the same application and it can be read.
    pub(super) async fn previous_of(
        &self,
        versions: &CredentialVersions,
        deadline: Deadline,
    ) -> Option<Arc<AppCredential>> {
        let previous = versions.previous.get_or_try_init(|| async {
            let previous = self.read_stage(PREVIOUS, deadline).await?.transpose().map_err(|problem| {
                Error::Internal(format!("the previous version of the app credential is not usable: {problem}").into())
            })?;
            // Tenants consent to one application. Another one has other consents.
            let of_same_app = previous.filter(|previous| previous.client_id() == versions.current.client_id());
            Ok::<_, Error>(of_same_app.map(Arc::new))
        });
        match previous.await {
            Ok(previous) => previous.clone(),
            Err(error) => {
                tracing::warn!(cause = %error, "the previous version of the app credential could not be read");
                None
            }
        }
    }

    /// The cached versions if they were read at most `age` ago. Otherwise the secret is read again.
    pub(super) async fn no_older_than(
        &self,
        age: SignedDuration,
        deadline: Deadline,
    ) -> Result<Arc<CredentialVersions>> {
        let _lock = deadline.run(async { Ok(self.read_lock.lock().await) }).await?;
        match self.cached() {
            Some(cached) if self.clock.now().duration_since(cached.read_at) < age => Ok(cached.versions),
            _ => self.read(deadline).await,
        }
    }

    fn cached(&self) -> Option<Cached> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn unexpired(&self) -> Option<Arc<CredentialVersions>> {
        self.cached().filter(|cached| self.clock.now() < cached.expires_at).map(|cached| cached.versions)
    }

    fn cache(&self, versions: &Arc<CredentialVersions>, ttl: SignedDuration) {
        let now = self.clock.now();
        let cached = Cached { versions: versions.clone(), read_at: now, expires_at: now + ttl };
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some(cached);
    }

    async fn read(&self, deadline: Deadline) -> Result<Arc<CredentialVersions>> {
        let cached = self.cached().map(|cached| cached.versions);
        if let (Some(error), None) = (self.recently_unusable(), &cached) {
            return Err(error);
        }
        let current = self.read_current(deadline).await;
        match (current, cached) {
            (Ok(current), cached) => {
                self.report_expiry(current.expiry());
                let versions = Arc::new(CredentialVersions {
                    current: Arc::new(current),
                    previous: OnceCell::new(),
                    previous_works: AtomicBool::new(false),
                    generation: cached.map_or(0, |cached| cached.generation) + 1,
                });
                self.cache(&versions, CREDENTIAL_TTL);
                Ok(versions)
            }
            (Err(error), Some(cached)) => {
                tracing::error!(cause = %error, "the app credential could not be read again; the cached one stays in use");
                self.cache(&cached, STALE_CREDENTIAL_TTL);
                Ok(cached)
            }
            (Err(error), None) => {
                if matches!(error, Error::CredentialUnusable { .. }) {
                    tracing::error!(cause = %error, "the app credential is not usable; no tenant can be read");
                    let unusable = Some((error.clone(), self.clock.now()));
                    *self.unusable.lock().unwrap_or_else(PoisonError::into_inner) = unusable;
                }
                Err(error)
            }
        }
    }

    /// The current version. A secret that has none, or one that cannot be used, is counted: only the operator fills it.
    async fn read_current(&self, deadline: Deadline) -> Result<AppCredential> {
        let current = match self.read_stage(CURRENT, deadline).await {
            Ok(Some(stored)) => stored.map_err(|problem| format!("holds no usable credential: {problem}")),
            Ok(None) => Err("does not exist or has no value yet".to_owned()),
            Err(error) => return Err(error),
        };
        current.map_err(|problem| {
            telemetry::metrics(None, &[Metric::count("CredentialUnusable", 1)]);
            Error::CredentialUnusable { secret_id: self.secret_id.clone(), problem }
        })
    }

    fn recently_unusable(&self) -> Option<Error> {
        let unusable = self.unusable.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = self.clock.now();
        unusable.filter(|(_, read_at)| now.duration_since(*read_at) < UNUSABLE_CREDENTIAL_TTL).map(|(error, _)| error)
    }

    /// Reports the days that the current credential is still valid. The metric costs no call, and no further function
    /// needs the right to read the credential, because it is written wherever the credential is read.
    fn report_expiry(&self, expiry: Expiry) {
        match expiry {
            Expiry::At(end) => {
                let days = end.duration_since(self.clock.now()).as_secs_f64() / 86_400.0;
                telemetry::metrics(None, &[Metric::gauge("CredentialDaysLeft", days)]);
            }
            Expiry::Malformed => {
                tracing::error!(
                    "expires_at of the app credential is not an RFC 3339 time, so no alarm precedes its end"
                );
            }
            Expiry::Unknown => {}
        }
    }

    /// The version at a stage of the secret, or what is wrong with it. `None` if there is no such version or secret.
    async fn read_stage(
        &self,
        stage: &str,
        deadline: Deadline,
    ) -> Result<Option<std::result::Result<AppCredential, &'static str>>> {
        let request = Box::pin(self.client.get_secret_value().secret_id(&self.secret_id).version_stage(stage).send());
        let response = match deadline.at_most(SECRETS_MANAGER_TIMEOUT).run(async { Ok(request.await) }).await? {
            Ok(response) => response,
            Err(error)
                if error.as_service_error().is_some_and(GetSecretValueError::is_resource_not_found_exception) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(Error::aws("secretsmanager:GetSecretValue", &error)),
        };
        let version = response.version_id.unwrap_or_default();
        let json = Secret::new(response.secret_string.unwrap_or_default());
        Ok(Some(AppCredential::parse(&json, version)))
    }
}
