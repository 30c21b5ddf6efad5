//! The token endpoint: one request with one credential, and what its answer means.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::rand;
use aws_sdk_kms::{
    primitives::Blob,
    types::{MessageType, SigningAlgorithmSpec},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::Algorithm;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{
    aadsts::{self, TokenErrorAction},
    access_token::{AccessToken, TokenError},
    claims::Expected,
    credential::{AppCredential, CredentialKind},
};
use crate::{
    clock::Clock,
    error::{Call, Error, Result},
    http::{Deadline, Endpoint, HttpClient, Response, send},
    microsoft::{Cloud, IncidentApi, Microsoft},
    telemetry,
    tenant::TenantId,
    text::Secret,
};

/// How long one request may take; Microsoft names half a second to half a minute.
const ATTEMPT: Duration = Duration::from_secs(12);

/// A second try that has less time than this is not begun.
const LEAST: Duration = Duration::from_secs(1);

/// How long an assertion of ours is good.
const ASSERTION: SignedDuration = SignedDuration::from_mins(5);

/// How long AWS's word for us is good, in seconds.
const FEDERATED: i32 = 300;

/// The longest rest that an answer may ask for.
const LONGEST_REST: SignedDuration = SignedDuration::from_hours(24);

/// The token endpoint of one cloud. It keeps no tokens.
pub struct TokenEndpoint {
    cloud: Cloud,
    authority: Endpoint,
    outbound: HttpClient,
    kms: aws_sdk_kms::Client,
    sts: aws_sdk_sts::Client,
    clock: Clock,
    federated: Mutex<Option<Federated>>,
}

#[derive(Clone)]
struct Federated {
    token: Arc<Secret>,
    until: Timestamp,
}

/// What is asked of the token endpoint.
pub(super) enum Grant<'a> {
    /// An app-only token.
    ClientCredentials { tenant: &'a TenantId, api: IncidentApi },
    /// The tokens of a sign-in.
    AuthorizationCode { authority: &'a str, code: &'a Secret, redirect_uri: &'a str, code_verifier: &'a Secret },
}

impl<'a> Grant<'a> {
    fn authority(&self) -> String {
        match self {
            Self::ClientCredentials { tenant, .. } => tenant.to_string(),
            Self::AuthorizationCode { authority, .. } => (*authority).to_owned(),
        }
    }

    fn scope(&self, cloud: Cloud) -> String {
        match self {
            Self::ClientCredentials { api, .. } => format!("{}/.default", cloud.resource(*api)),
            Self::AuthorizationCode { .. } => "openid profile".to_owned(),
        }
    }

    fn parameters(&self) -> Vec<(&'a str, &'a str)> {
        match self {
            Self::ClientCredentials { .. } => vec![("grant_type", "client_credentials")],
            Self::AuthorizationCode { code, redirect_uri, code_verifier, .. } => vec![
                ("grant_type", "authorization_code"),
                ("code", code.expose()),
                ("redirect_uri", redirect_uri),
                ("code_verifier", code_verifier.expose()),
            ],
        }
    }
}

/// How many requests one question may cost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    Never,
    Once,
}

/// An answer with tokens, before they were looked at.
pub(super) struct TokenResponse {
    body: ReplyBody,
    asked_at: Timestamp,
}

impl TokenResponse {
    /// The ID token, which is not validated here.
    pub(super) fn into_id_token(self) -> Result<Secret> {
        self.body.id_token.ok_or(Error::Malformed { call: Call::RequestToken })
    }
}

#[derive(Deserialize)]
struct ReplyBody {
    token_type: Option<String>,
    #[serde(default, deserialize_with = "seconds")]
    expires_in: Option<SignedDuration>,
    #[serde(default, deserialize_with = "seconds")]
    refresh_in: Option<SignedDuration>,
    access_token: Option<Secret>,
    id_token: Option<Secret>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RefusalBody {
    error: String,
    error_codes: Vec<u64>,
    trace_id: Option<Uuid>,
    correlation_id: Option<Uuid>,
}

/// v2.0 sends numbers, v1.0 sends texts.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<SignedDuration>, D::Error> {
    let seconds = match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    Ok(seconds.and_then(|seconds| u32::try_from(seconds).ok()).map(|seconds| SignedDuration::from_secs(seconds.into())))
}

/// What one request led to, where it is not an answer.
enum AttemptError {
    /// No second try.
    Final(Error),
    /// A second try may succeed.
    Again(Error),
}

impl TokenEndpoint {
    /// Speaks to the login host of `microsoft`.
    pub fn new(microsoft: &Microsoft, outbound: HttpClient, aws: &aws_config::SdkConfig, clock: Clock) -> Self {
        Self {
            cloud: microsoft.cloud,
            authority: microsoft.endpoints.authority.clone(),
            outbound,
            kms: aws_sdk_kms::Client::new(aws),
            sts: aws_sdk_sts::Client::new(aws),
            clock,
            federated: Mutex::new(None),
        }
    }

    /// An app-only token of `tenant` for `api`, asked for with this one credential.
    ///
    /// # Errors
    /// [`Error::CredentialRejected`] when Entra does not take it; else as the answer is to be read.
    pub async fn app_token(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        credential: &AppCredential,
        deadline: Deadline,
    ) -> Result<AccessToken> {
        let grant = Grant::ClientCredentials { tenant, api };
        let reply = self.ask(&grant, credential, Retry::Once, deadline).boxed().await?;
        self.validate(reply, tenant, api, credential)
    }

    /// Looks at the token that came for `tenant` and `api`.
    pub(super) fn validate(
        &self,
        reply: TokenResponse,
        tenant: &TenantId,
        api: IncidentApi,
        credential: &AppCredential,
    ) -> Result<AccessToken> {
        let TokenResponse { body, asked_at } = reply;
        let malformed = Error::Malformed { call: Call::RequestToken };
        let bearer = body.token_type.is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
        let (Some(value), Some(lifetime), true) = (body.access_token, body.expires_in, bearer) else {
            return Err(malformed);
        };
        let expected = Expected { tenant, client_id: credential.client_id(), cloud: self.cloud, api };
        match AccessToken::validate(value, lifetime, body.refresh_in, &expected, asked_at) {
            Ok(token) => Ok(token),
            Err(TokenError::ClaimMismatch(mismatch)) => {
                let (tenant_id, resource) = (tenant.to_string(), api.as_str());
                tracing::error!(
                    tenant_id,
                    resource,
                    ?mismatch,
                    "a token that is not what was asked for was thrown away"
                );
                telemetry::metrics(self.clock.now(), Some(tenant), &[("ForeignToken", "Count", 1.0)]);
                Err(malformed)
            }
            Err(TokenError::Malformed) => Err(malformed),
        }
    }

    /// One request, and one more where that is allowed, may help and there is time.
    pub(super) async fn ask(
        &self,
        grant: &Grant<'_>,
        credential: &AppCredential,
        tries: Retry,
        deadline: Deadline,
    ) -> Result<TokenResponse> {
        let error = match self.attempt(grant, credential, deadline).await {
            Ok(reply) => return Ok(reply),
            Err(AttemptError::Final(error)) => error,
            Err(AttemptError::Again(error)) => {
                let pause = pause_of(&grant.authority());
                if tries == Retry::Never || deadline.left() < pause + LEAST {
                    error
                } else {
                    tokio::time::sleep(pause).await;
                    match self.attempt(grant, credential, deadline).await {
                        Ok(reply) => return Ok(reply),
                        Err(AttemptError::Final(error) | AttemptError::Again(error)) => error,
                    }
                }
            }
        };
        match error {
            Error::Unreachable { .. } if deadline.left().is_zero() => Err(Error::DeadlineExceeded),
            error => Err(error),
        }
    }

    async fn attempt(
        &self,
        grant: &Grant<'_>,
        credential: &AppCredential,
        deadline: Deadline,
    ) -> Result<TokenResponse, AttemptError> {
        let deadline = deadline.at_most(ATTEMPT);
        let (authority, scope) = (grant.authority(), grant.scope(self.cloud));
        let asked_at = self.clock.now();
        let assertion = self.assertion(&authority, credential, deadline).await.map_err(AttemptError::Final)?;
        let mut form = grant.parameters();
        form.push(("scope", &scope));
        form.push(("client_id", credential.client_id()));
        match (&assertion, credential.kind()) {
            (Some(assertion), _) => {
                form.push(("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"));
                form.push(("client_assertion", assertion.expose()));
            }
            (None, CredentialKind::ClientSecret(secret)) => form.push(("client_secret", secret.expose())),
            (None, CredentialKind::Certificate { .. } | CredentialKind::Kms { .. } | CredentialKind::Federated) => {}
        }
        let url = self.authority.join(&format!("/{authority}/oauth2/v2.0/token"));
        let answer = send(self.outbound.post(url).form(&form), Call::RequestToken, deadline)
            .await
            .map_err(AttemptError::Again)?;
        if answer.status() == http::StatusCode::OK {
            return match answer.json().await {
                Ok(body) => Ok(TokenResponse { body, asked_at }),
                Err(error @ Error::Unreachable { .. }) => Err(AttemptError::Again(error)),
                Err(error) => Err(AttemptError::Final(error)),
            };
        }
        Err(self.setback(&authority, answer).await)
    }

    async fn setback(&self, authority: &str, answer: Response) -> AttemptError {
        let now = self.clock.now();
        let (status, asked_rest) = (answer.status().as_u16(), answer.retry_after(now));
        let unexpected_status = answer.unexpected_status();
        let body: RefusalBody =
            answer.bytes().await.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
        let verdict = aadsts::classify(status, &body.error, &body.error_codes);
        tracing::warn!(
            authority,
            status,
            aadsts = body.error_codes.first(),
            trace_id = body.trace_id.map(|id| id.to_string()),
            correlation_id = body.correlation_id.map(|id| id.to_string()),
            ?verdict,
            "Entra refused a token request"
        );
        match verdict {
            TokenErrorAction::Refused(reason) => AttemptError::Final(Error::Refused(reason)),
            TokenErrorAction::Credential => AttemptError::Final(Error::CredentialRejected),
            TokenErrorAction::Assertion => {
                *self.federated.lock().await = None;
                AttemptError::Again(Error::CredentialRejected)
            }
            TokenErrorAction::Throttled(rest) => {
                let rest = asked_rest.unwrap_or(rest).clamp(SignedDuration::from_secs(1), LONGEST_REST);
                AttemptError::Final(Error::Throttled { until: now + rest })
            }
            TokenErrorAction::Transient => AttemptError::Again(unexpected_status),
            TokenErrorAction::Fault => {
                let code = body.error_codes.first().map_or_else(String::new, |code| format!(" (AADSTS{code})"));
                AttemptError::Final(Error::Internal(
                    format!("Entra finds the token request itself at fault{code}").into(),
                ))
            }
            TokenErrorAction::Unknown => AttemptError::Final(unexpected_status),
        }
    }

    /// What proves who the app is at the token endpoint of `authority`, for the kinds that sign.
    async fn assertion(
        &self,
        authority: &str,
        credential: &AppCredential,
        deadline: Deadline,
    ) -> Result<Option<Secret>> {
        match credential.kind() {
            CredentialKind::ClientSecret(_) => Ok(None),
            CredentialKind::Certificate { thumbprint, key } => {
                let input = self.signing_input(authority, credential.client_id(), thumbprint)?;
                let signature = jsonwebtoken::crypto::sign(input.as_bytes(), key, Algorithm::PS256)
                    .map_err(|_| Error::Internal("an assertion could not be signed".into()))?;
                Ok(Some(Secret::new(format!("{input}.{signature}"))))
            }
            CredentialKind::Kms { thumbprint, key_id } => {
                let input = self.signing_input(authority, credential.client_id(), thumbprint)?;
                let request = self
                    .kms
                    .sign()
                    .key_id(key_id)
                    .message(Blob::new(input.as_bytes()))
                    .message_type(MessageType::Raw)
                    .signing_algorithm(SigningAlgorithmSpec::RsassaPssSha256)
                    .send();
                let answer = deadline.run(async { Ok(Box::pin(request).await) }).await?;
                let signature = answer.map_err(|error| Error::aws("kms:Sign", &error))?.signature;
                let signature = signature.ok_or_else(|| Error::Internal("kms:Sign: no signature came".into()))?;
                let signature = BASE64_URL_SAFE_NO_PAD.encode(signature);
                Ok(Some(Secret::new(format!("{input}.{signature}"))))
            }
            CredentialKind::Federated => {
                let token = self.federated_token(deadline).await?;
                Ok(Some(Secret::new(token.expose().to_owned())))
            }
        }
    }

    fn signing_input(&self, authority: &str, client_id: &str, thumbprint: &str) -> Result<String> {
        let mut random = [0; 16];
        rand::fill(&mut random).map_err(|_| Error::Internal("there is no randomness".into()))?;
        let jti = uuid::Builder::from_random_bytes(random).into_uuid();
        Ok(signing_input(&self.cloud.token_endpoint(authority), client_id, thumbprint, jti, self.clock.now()))
    }

    /// AWS's word for the function's role: one for all tenants, as long as it lives.
    async fn federated_token(&self, deadline: Deadline) -> Result<Arc<Secret>> {
        const CALL: &str = "sts:GetWebIdentityToken";
        let mut kept = deadline.run(async { Ok(self.federated.lock().await) }).await?;
        let now = self.clock.now();
        if let Some(federated) = kept.as_ref().filter(|federated| now < federated.until) {
            return Ok(federated.token.clone());
        }
        let request = self
            .sts
            .get_web_identity_token()
            .audience(self.cloud.federation_audience())
            .signing_algorithm("RS256")
            .duration_seconds(FEDERATED)
            .send();
        let answer = deadline.run(async { Ok(Box::pin(request).await) }).await?;
        let answer = answer.map_err(|error| Error::aws(CALL, &error))?;
        let token =
            answer.web_identity_token.ok_or_else(|| Error::Internal(format!("{CALL}: no token came").into()))?;
        let lifetime = SignedDuration::from_secs(FEDERATED.into());
        let expires = answer.expiration.and_then(|time| Timestamp::from_second(time.secs()).ok());
        let until = expires.unwrap_or(now + lifetime).min(now + lifetime) - SignedDuration::from_secs(60);
        let token = Arc::new(Secret::new(token));
        *kept = Some(Federated { token: token.clone(), until });
        Ok(token)
    }
}

/// Spreads the second tries of many tenants, without randomness.
fn pause_of(authority: &str) -> Duration {
    let spread = authority.bytes().fold(0_u64, |sum, byte| (sum * 31 + u64::from(byte)) % 700);
    Duration::from_millis(300 + spread)
}

/// Header and claims of an assertion, ready to be signed. See "Microsoft identity platform application authentication
/// certificate credentials".
fn signing_input(audience: &str, client_id: &str, thumbprint: &str, jti: Uuid, now: Timestamp) -> String {
    let header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint});
    let now = now.as_second();
    let claims = json!({"aud": audience, "iss": client_id, "sub": client_id, "jti": jti, "nbf": now, "iat": now,
                        "exp": now + ASSERTION.as_secs()});
    let encoded = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", encoded(header), encoded(claims))
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;
    use crate::entra::credential::tests::{CERTIFICATE, credential, key_pair};

    fn endpoint() -> TokenEndpoint {
        let microsoft = Microsoft {
            app_credential_secret_id: "s".into(),
            cloud: Cloud::Commercial,
            endpoints: crate::microsoft::Endpoints {
                authority: "http://127.0.0.1:1".parse().unwrap(),
                ..Cloud::Commercial.endpoints()
            },
        };
        let aws = aws_config::SdkConfig::builder().behavior_version(aws_config::BehaviorVersion::latest()).build();
        TokenEndpoint::new(&microsoft, HttpClient::new().unwrap(), &aws, Clock::system())
    }

    #[tokio::test]
    async fn an_assertion_is_ps256_over_the_real_token_endpoint_and_verifies_with_the_public_key() {
        let (private_key, public_key) = key_pair();
        let json = json!({"client_id": "app", "certificate": CERTIFICATE, "private_key": private_key});
        let (endpoint, credential) = (endpoint(), credential(&json).unwrap());
        let deadline = Deadline::within(Duration::from_secs(5), &Clock::system());
        let mut ids = Vec::new();
        for authority in ["organizations", "11111111-2222-4333-8444-abcdefabcdef"] {
            let assertion = endpoint.assertion(authority, &credential, deadline).await.unwrap().unwrap();
            let mut validation = Validation::new(Algorithm::PS256);
            validation.set_audience(&[format!("https://login.microsoftonline.com/{authority}/oauth2/v2.0/token")]);
            validation.set_issuer(&["app"]);
            validation.validate_nbf = true;
            let key = DecodingKey::from_rsa_der(&public_key);
            let decoded = jsonwebtoken::decode::<Value>(assertion.expose(), &key, &validation).unwrap();
            assert_eq!(decoded.header.x5t_s256.as_deref(), Some("n2SnR-G5fxMfq7a0Rylsm28CAeefs8U1bmx36JtqgGo"));
            assert_eq!(decoded.claims["sub"], "app");
            assert_eq!(decoded.claims["exp"].as_i64().unwrap() - decoded.claims["nbf"].as_i64().unwrap(), 300);
            ids.push(decoded.claims["jti"].as_str().unwrap().parse::<Uuid>().unwrap());
        }
        assert_ne!(ids[0], ids[1], "each assertion has an identifier of its own");
    }

    #[test]
    fn lifetimes_come_as_numbers_or_as_texts() {
        let read = |text: &str| serde_json::from_str::<ReplyBody>(text).unwrap().expires_in.map(|time| time.as_secs());
        assert_eq!(read(r#"{"expires_in": 3599}"#), Some(3599));
        assert_eq!(read(r#"{"expires_in": "3599"}"#), Some(3599));
        assert_eq!(read(r#"{"expires_in": -1}"#), None);
        assert_eq!(read(r#"{"expires_in": "soon", "access_token": "x"}"#), None);
        assert_eq!(read("{}"), None);
    }
}
