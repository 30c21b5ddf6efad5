//! The token endpoint: one grant, one credential, at most two requests, and the meaning of the response.

use std::time::Duration;

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{
    aadsts::{self, ErrorBody, TokenErrorAction},
    access_token::{AccessToken, TokenError},
    claims::ExpectedAccessToken,
    client_assertion::ClientAssertions,
    credential::{AppCredential, CredentialKind},
};
use crate::{
    clock::Clock,
    error::{Call, Error, Result},
    http::{Deadline, Endpoint, HttpClient, Response, send},
    microsoft::{Cloud, IncidentApi, Microsoft},
    random::Random,
    telemetry::{self, Metric},
    tenant::TenantId,
    text::Secret,
};

/// The limit of one request. Microsoft names half a second to half a minute.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(12);

/// The time that must be left for a second request to start.
const MIN_TIME_FOR_RETRY: Duration = Duration::from_secs(1);

/// The shortest and the longest `Retry-After` that is believed.
const RETRY_AFTER_LIMITS: (SignedDuration, SignedDuration) =
    (SignedDuration::from_secs(1), SignedDuration::from_hours(24));

/// The token endpoint of one cloud. It caches no access tokens.
pub struct TokenEndpoint {
    cloud: Cloud,
    login_host: Endpoint,
    http: HttpClient,
    assertions: ClientAssertions,
    clock: Clock,
}

/// An authorization code and the parameters that its authorization request had.
#[derive(Clone, Copy)]
pub struct AuthorizationCode<'a> {
    /// `organizations` or a tenant.
    pub authority: &'a str,
    /// The code, which can be redeemed once.
    pub code: &'a Secret,
    /// The callback to which the code was sent.
    pub redirect_uri: &'a str,
    /// The PKCE verifier of the authorization request.
    pub code_verifier: &'a Secret,
}

/// The grant of a token request.
#[derive(Clone, Copy)]
pub(super) enum Grant<'a> {
    /// For an app-only token.
    ClientCredentials { tenant: &'a TenantId, api: IncidentApi },
    /// For the ID token of a sign-in.
    AuthorizationCode(AuthorizationCode<'a>),
}

impl<'a> Grant<'a> {
    fn authority(&self) -> String {
        match self {
            Self::ClientCredentials { tenant, .. } => tenant.to_string(),
            Self::AuthorizationCode(code) => code.authority.to_owned(),
        }
    }

    /// The tenant that an app-only token is for. A sign-in may be for any.
    pub(super) fn tenant(&self) -> Option<&'a TenantId> {
        match self {
            Self::ClientCredentials { tenant, .. } => Some(tenant),
            Self::AuthorizationCode(_) => None,
        }
    }

    fn scope(&self, cloud: Cloud) -> String {
        match self {
            Self::ClientCredentials { api, .. } => format!("{}/.default", cloud.resource(*api)),
            Self::AuthorizationCode(_) => "openid profile".to_owned(),
        }
    }

    fn parameters(&self) -> Vec<(&'a str, &'a str)> {
        match self {
            Self::ClientCredentials { .. } => vec![("grant_type", "client_credentials")],
            Self::AuthorizationCode(code) => vec![
                ("grant_type", "authorization_code"),
                ("code", code.code.expose()),
                ("redirect_uri", code.redirect_uri),
                ("code_verifier", code.code_verifier.expose()),
            ],
        }
    }
}

/// Permission to repeat a request that failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    Never,
    Once,
}

/// A successful response, whose tokens are not validated yet.
pub(super) struct TokenResponse {
    body: TokenBody,
    requested_at: Timestamp,
}

impl TokenResponse {
    /// The ID token, not validated.
    pub(super) fn into_id_token(self) -> Result<Secret> {
        self.body.id_token.ok_or(Error::Malformed { call: Call::RequestToken })
    }
}

#[derive(Deserialize)]
struct TokenBody {
    #[serde(default, deserialize_with = "text")]
    token_type: Option<String>,
    #[serde(default, deserialize_with = "seconds")]
    expires_in: Option<SignedDuration>,
    #[serde(default, deserialize_with = "seconds")]
    refresh_in: Option<SignedDuration>,
    #[serde(default, deserialize_with = "secret")]
    access_token: Option<Secret>,
    #[serde(default, deserialize_with = "secret")]
    id_token: Option<Secret>,
}

/// Parses a text. `None` for any other JSON type.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => Some(text),
        _ => None,
    })
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Secret>, D::Error> {
    Ok(text(deserializer)?.map(Secret::new))
}

/// Parses seconds: v2.0 sends a number, v1.0 a text. `None` for anything else.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<SignedDuration>, D::Error> {
    let seconds = match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    Ok(seconds.and_then(|seconds| u32::try_from(seconds).ok()).map(|seconds| SignedDuration::from_secs(seconds.into())))
}

/// The failure of a token request.
#[derive(Debug)]
pub(super) enum TokenFailure {
    /// Entra refuses the client by an unknown number: it may refuse our credential, or only this tenant.
    ClientRefused {
        /// The AADSTS number, or without one the OAuth `error`. Two refusals are alike if their texts are.
        refusal: String,
        /// The error as long as it counts as the tenant's own.
        error: Error,
    },
    /// Any other failure.
    Other(Error),
}

impl From<Error> for TokenFailure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<TokenFailure> for Error {
    fn from(failure: TokenFailure) -> Self {
        let (TokenFailure::ClientRefused { error, .. } | TokenFailure::Other(error)) = failure;
        error
    }
}

/// The failure of one request.
enum AttemptError {
    /// A second request would fail the same way.
    Final(TokenFailure),
    /// A second request may succeed.
    Retryable(Error),
}

impl TokenEndpoint {
    /// The token endpoint at the login host of `microsoft`. `random` gives client assertions their identifiers.
    pub fn new(
        microsoft: &Microsoft,
        http: HttpClient,
        aws: &aws_config::SdkConfig,
        clock: Clock,
        random: Random,
    ) -> Self {
        Self {
            cloud: microsoft.cloud,
            login_host: microsoft.endpoints.authority.clone(),
            http,
            assertions: ClientAssertions::new(microsoft.cloud, aws, clock.clone(), random),
            clock,
        }
    }

    /// Requests an app-only token of `tenant` for `api` with this one credential.
    ///
    /// # Errors
    /// [`Error::CredentialRejected`] when Entra refuses the credential; else the error that the response stands for.
    /// [`Error::Upstream`] with a 4xx status is a refusal that no known number explains.
    pub async fn app_token(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        credential: &AppCredential,
        deadline: Deadline,
    ) -> Result<AccessToken> {
        let grant = Grant::ClientCredentials { tenant, api };
        let response = self.send_with_retry(&grant, credential, Retry::Once, deadline).boxed().await?;
        self.validate(response, tenant, api, credential)
    }

    /// Validates the access token in a response for `tenant` and `api`.
    pub(super) fn validate(
        &self,
        response: TokenResponse,
        tenant: &TenantId,
        api: IncidentApi,
        credential: &AppCredential,
    ) -> Result<AccessToken> {
        let TokenResponse { body, requested_at } = response;
        let malformed = Error::Malformed { call: Call::RequestToken };
        let bearer = body.token_type.is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
        let (Some(value), Some(lifetime), true) = (body.access_token, body.expires_in, bearer) else {
            return Err(malformed);
        };
        let expected = ExpectedAccessToken { tenant, client_id: credential.client_id(), cloud: self.cloud, api };
        match AccessToken::validate(value, lifetime, body.refresh_in, &expected, requested_at) {
            Ok(token) => Ok(token),
            Err(TokenError::ClaimMismatch(mismatch)) => {
                let (tenant_id, resource) = (tenant.to_string(), api.as_str());
                tracing::error!(tenant_id, resource, ?mismatch, "discarded a token that does not match the request");
                telemetry::metrics(Some(tenant), &[Metric::count("ForeignToken", 1)]);
                Err(malformed)
            }
            Err(TokenError::Malformed) => Err(malformed),
        }
    }

    /// Sends a token request, and a second one if `retry` allows it, the failure is retryable and enough time is left.
    pub(super) async fn send_with_retry(
        &self,
        grant: &Grant<'_>,
        credential: &AppCredential,
        retry: Retry,
        deadline: Deadline,
    ) -> Result<TokenResponse, TokenFailure> {
        let mut outcome = Box::pin(self.attempt(grant, credential, deadline)).await;
        let delay = retry_delay(&grant.authority());
        let in_time = || deadline.left() >= delay + MIN_TIME_FOR_RETRY;
        if retry == Retry::Once && matches!(outcome, Err(AttemptError::Retryable(_))) && in_time() {
            tokio::time::sleep(delay).await;
            outcome = Box::pin(self.attempt(grant, credential, deadline)).await;
        }
        outcome.map_err(|failure| match failure {
            AttemptError::Final(failure) => failure,
            AttemptError::Retryable(Error::Unreachable { .. }) if deadline.left().is_zero() => {
                Error::DeadlineExceeded.into()
            }
            AttemptError::Retryable(error) => error.into(),
        })
    }

    async fn attempt(
        &self,
        grant: &Grant<'_>,
        credential: &AppCredential,
        deadline: Deadline,
    ) -> Result<TokenResponse, AttemptError> {
        let deadline = deadline.at_most(ATTEMPT_TIMEOUT);
        let (authority, scope) = (grant.authority(), grant.scope(self.cloud));
        let requested_at = self.clock.now();
        let assertion = self.assertions.assertion(&authority, credential, deadline).await;
        let assertion = assertion.map_err(|error| AttemptError::Final(error.into()))?;
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
        let url = self.login_host.join(&format!("/{authority}/oauth2/v2.0/token"));
        let request = self.http.post(url).form(&form);
        let response = send(request, Call::RequestToken, deadline).await.map_err(AttemptError::Retryable)?;
        if response.status() == http::StatusCode::OK {
            return match response.json().await {
                Ok(body) => Ok(TokenResponse { body, requested_at }),
                Err(error @ Error::Unreachable { .. }) => Err(AttemptError::Retryable(error)),
                Err(error) => Err(AttemptError::Final(error.into())),
            };
        }
        Err(self.attempt_error(grant, response).await)
    }

    async fn attempt_error(&self, grant: &Grant<'_>, response: Response) -> AttemptError {
        let (authority, now) = (grant.authority(), self.clock.now());
        let (status, retry_after) = (response.status().as_u16(), response.retry_after(now));
        let unexpected_status = response.unexpected_status();
        let body = ErrorBody::read(&response.bytes().await.unwrap_or_default());
        let action = aadsts::classify(status, &body.error, &body.codes);
        tracing::warn!(
            authority,
            status,
            aadsts = body.codes.first(),
            trace_id = body.trace_id.map(|id| id.to_string()),
            correlation_id = body.correlation_id.map(|id| id.to_string()),
            ?action,
            "Entra refused a token request"
        );
        // A visitor brings the authorization code, and may have made it up. Only a refusal of our credential is ours.
        let is_about_the_code = matches!(grant, Grant::AuthorizationCode(_)) && (400..500).contains(&status);
        match action {
            TokenErrorAction::Refused(reason) => AttemptError::Final(Error::Refused(reason).into()),
            TokenErrorAction::CredentialRejected => AttemptError::Final(Error::CredentialRejected.into()),
            TokenErrorAction::AssertionRejected => {
                self.assertions.forget().await;
                AttemptError::Retryable(Error::CredentialRejected)
            }
            TokenErrorAction::Throttled(default) => {
                let (shortest, longest) = RETRY_AFTER_LIMITS;
                let wait = retry_after.unwrap_or(default).clamp(shortest, longest);
                telemetry::metrics(None, &[Metric::count("Throttled", 1)]);
                AttemptError::Final(Error::Throttled { until: now + wait }.into())
            }
            _ if is_about_the_code => AttemptError::Final(unexpected_status.into()),
            TokenErrorAction::Transient => AttemptError::Retryable(unexpected_status),
            TokenErrorAction::ClientRefused => {
                let refusal = body.codes.first().map_or(body.error, |code| format!("AADSTS{code}"));
                AttemptError::Final(TokenFailure::ClientRefused { refusal, error: unexpected_status })
            }
            TokenErrorAction::Unexplained => AttemptError::Final(unexpected_status.into()),
        }
    }
}

/// The wait before a second request. It differs by authority, which spreads the requests of many tenants without
/// randomness.
fn retry_delay(authority: &str) -> Duration {
    let spread = authority.bytes().fold(0_u64, |sum, byte| (sum * 31 + u64::from(byte)) % 700);
    Duration::from_millis(300 + spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_parsed_from_numbers_and_texts() {
        let parse = |text: &str| serde_json::from_str::<TokenBody>(text).unwrap().expires_in.map(|time| time.as_secs());
        assert_eq!(parse(r#"{"expires_in": 3599}"#), Some(3599));
        assert_eq!(parse(r#"{"expires_in": "3599"}"#), Some(3599));
        assert_eq!(parse(r#"{"expires_in": -1}"#), None);
        assert_eq!(parse(r#"{"expires_in": "soon", "access_token": "x"}"#), None);
        assert_eq!(parse("{}"), None);
        assert_eq!(parse(r#"{"expires_in": 7, "token_type": 1, "access_token": [], "id_token": {}}"#), Some(7));
    }
}
