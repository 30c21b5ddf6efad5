//! The directory's signing keys (JWKS, RFC 7517), read over the discovery document and cached.

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use url::Url;

use super::{
    discovery::{DiscoveryDocument, request_document},
    sign_in::ANY_ORGANISATION,
};
use crate::{
    clock::Clock,
    error::{Call, Result},
    http::{Deadline, Endpoint, HttpClient, send},
};

/// The age from which cached keys are read again.
const JWKS_MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

/// The least time between two requests for keys. An unknown key identifier causes no more requests than this allows.
const MIN_TIME_BETWEEN_READS: SignedDuration = SignedDuration::from_mins(1);

/// The path of the keys if the discovery document names none.
const DEFAULT_JWKS_PATH: &str = "/common/discovery/v2.0/keys";

/// The directory's signing keys, cached for [`JWKS_MAX_AGE`].
pub(super) struct Jwks {
    login_host: Endpoint,
    http: HttpClient,
    clock: Clock,
    cache: Mutex<CachedKeys>,
}

#[derive(Default)]
struct CachedKeys {
    keys: Vec<SigningKey>,
    read_at: Option<Timestamp>,
    requested_at: Option<Timestamp>,
}

/// One RSA public key of the directory.
#[derive(Clone, Deserialize)]
pub(super) struct SigningKey {
    pub(super) kid: String,
    pub(super) kty: String,
    #[serde(rename = "use")]
    pub(super) purpose: Option<String>,
    /// The modulus in base64url.
    pub(super) n: String,
    /// The exponent in base64url.
    pub(super) e: String,
    /// The issuer whose tokens this key signs; `{tenantid}` in it stands for any tenant. Microsoft's own member.
    pub(super) issuer: Option<String>,
}

#[derive(Deserialize)]
struct JwksDocument {
    keys: Vec<Value>,
}

impl Jwks {
    pub(super) fn new(login_host: Endpoint, http: HttpClient, clock: Clock) -> Self {
        Self { login_host, http, clock, cache: Mutex::default() }
    }

    /// The key with this identifier. Only one request for keys runs at a time; all who wait use its result.
    pub(super) async fn key(&self, kid: &str, deadline: Deadline) -> Result<Option<SigningKey>> {
        let mut cache = self.cache.lock().await;
        let now = self.clock.now();
        let within = |at: Option<Timestamp>, span| at.is_some_and(|at| now.duration_since(at) < span);
        let find = |keys: &[SigningKey]| keys.iter().find(|key| key.kid == kid).cloned();
        let found = find(&cache.keys);
        if found.is_some() && within(cache.read_at, JWKS_MAX_AGE) {
            return Ok(found);
        }
        if cache.read_at.is_some() && within(cache.requested_at, MIN_TIME_BETWEEN_READS) {
            return Ok(found);
        }
        cache.requested_at = Some(now);
        match self.read(deadline).await {
            Ok(keys) => {
                cache.keys = keys;
                cache.read_at = Some(now);
                Ok(find(&cache.keys))
            }
            // An old key is still usable: the directory signed what it verifies.
            Err(error) => found.map(Some).ok_or(error),
        }
    }

    async fn read(&self, deadline: Deadline) -> Result<Vec<SigningKey>> {
        let response = request_document(&self.http, &self.login_host, ANY_ORGANISATION, deadline).await?;
        if response.status() != StatusCode::OK {
            return Err(response.unexpected_status());
        }
        let jwks_uri = response.json::<DiscoveryDocument>().await?.jwks_uri.and_then(|uri| Url::parse(&uri).ok());
        // Only the path is used: the configured login host may be a relay, and keys come from no other host.
        let path = jwks_uri.as_ref().map_or(DEFAULT_JWKS_PATH, Url::path);
        let response = send(self.http.get(self.login_host.join(path)), Call::ReadKeys, deadline).await?;
        if response.status() != StatusCode::OK {
            return Err(response.unexpected_status());
        }
        let document = response.json::<JwksDocument>().await?;
        // A key of another type must not hide the others.
        let keys = document.keys.into_iter().filter_map(|key| serde_json::from_value::<SigningKey>(key).ok());
        Ok(keys
            .filter(|key| key.kty == "RSA" && key.purpose.as_deref().is_none_or(|purpose| purpose == "sig"))
            .collect())
    }
}
