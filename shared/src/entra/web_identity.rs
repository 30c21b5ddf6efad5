//! The web identity token of the function's role, which AWS STS signs. Entra accepts it as a client assertion (workload
//! identity federation).

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;

use crate::{
    aws::{LazyClient, lazy_client},
    clock::Clock,
    error::{Error, Result},
    http::Deadline,
    text::Secret,
};

const CALL: &str = "sts:GetWebIdentityToken";

/// The lifetime that is requested for a web identity token.
const WEB_IDENTITY_TOKEN_SECONDS: i32 = 300;

/// The remaining lifetime below which a cached token is replaced.
const EXPIRY_MARGIN: SignedDuration = SignedDuration::from_secs(60);

/// The web identity tokens for one audience. One token serves all tenants until it expires.
pub(super) struct WebIdentity {
    sts: LazyClient<aws_sdk_sts::Client>,
    audience: &'static str,
    clock: Clock,
    cached: Mutex<Option<CachedToken>>,
}

struct CachedToken {
    token: Arc<Secret>,
    usable_until: Timestamp,
}

impl WebIdentity {
    pub(super) fn new(aws: &aws_config::SdkConfig, audience: &'static str, clock: Clock) -> Self {
        Self { sts: lazy_client(aws, aws_sdk_sts::Client::new), audience, clock, cached: Mutex::new(None) }
    }

    /// A token from the cache, or a new one from STS.
    pub(super) async fn token(&self, deadline: Deadline) -> Result<Arc<Secret>> {
        let mut cached = deadline.run(async { Ok(self.cached.lock().await) }).await?;
        let now = self.clock.now();
        if let Some(cached) = cached.as_ref().filter(|cached| now < cached.usable_until) {
            return Ok(cached.token.clone());
        }
        let request = self
            .sts
            .get_web_identity_token()
            .audience(self.audience)
            .signing_algorithm("RS256")
            .duration_seconds(WEB_IDENTITY_TOKEN_SECONDS)
            .send();
        let response = deadline.run(async { Ok(Box::pin(request).await) }).await?;
        let response = response.map_err(|error| Error::aws(CALL, &error))?;
        let token = response
            .web_identity_token
            .ok_or_else(|| Error::Internal(format!("{CALL}: the response has no token").into()))?;
        let latest = now + SignedDuration::from_secs(WEB_IDENTITY_TOKEN_SECONDS.into());
        let expires_at = response.expiration.and_then(|time| Timestamp::from_second(time.secs()).ok());
        let token = Arc::new(Secret::new(token));
        *cached = Some(CachedToken {
            token: token.clone(),
            usable_until: expires_at.unwrap_or(latest).min(latest) - EXPIRY_MARGIN,
        });
        Ok(token)
    }

    /// Drops the cached token, because Entra refused it.
    pub(super) async fn forget(&self) {
        *self.cached.lock().await = None;
    }
}
