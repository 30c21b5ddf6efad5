//! App-only access tokens for customers' tenants.

use std::sync::Arc;

use http::HeaderValue;
use jiff::Timestamp;

use super::{TenantId, secret::Secret};
use crate::{
    clock::Clock,
    config::Microsoft,
    error::{Error, Result},
    http::{Deadline, Outbound},
    incidents::Surface,
    registry::Registry,
};

/// The token client that all functions share.
#[derive(Clone)]
pub struct Tokens {
    inner: Arc<Inner>,
}

struct Inner {
    _parts: (Microsoft, Outbound, Registry, Clock),
}

/// An app-only access token of one tenant for one surface, as checked as it can be.
#[derive(Debug)]
pub struct AccessToken {
    value: Secret,
    authorization: HeaderValue,
    roles: Option<Vec<String>>,
    has_object_id: bool,
    expires_at: Timestamp,
}

impl Tokens {
    /// Speaks to the login host of `microsoft` with the credential that its secret holds.
    pub fn new(
        microsoft: &Microsoft,
        outbound: Outbound,
        aws: &aws_config::SdkConfig,
        registry: Registry,
        clock: Clock,
    ) -> Self {
        let _ = aws;
        Self { inner: Arc::new(Inner { _parts: (microsoft.clone(), outbound, registry, clock) }) }
    }

    /// A token from the cache, or a fresh one where there is none that lives.
    pub async fn access_token(
        &self,
        tenant: &TenantId,
        surface: Surface,
        deadline: Deadline,
    ) -> Result<Arc<AccessToken>> {
        let _ = (tenant, surface, deadline, &self.inner);
        Err(Error::CredentialRejected)
    }

    /// A token that Entra issued after this call began. It takes the place of the cached one.
    pub async fn fresh_access_token(
        &self,
        tenant: &TenantId,
        surface: Surface,
        deadline: Deadline,
    ) -> Result<Arc<AccessToken>> {
        self.access_token(tenant, surface, deadline).await
    }

    /// A token that Entra issued at most `age` ago. Where Entra cannot be asked, an older one that lives will do; where
    /// Entra refuses, that is the answer, and the older one is dropped.
    pub async fn confirmed_access_token(
        &self,
        tenant: &TenantId,
        surface: Surface,
        age: jiff::SignedDuration,
        deadline: Deadline,
    ) -> Result<Arc<AccessToken>> {
        let _ = age;
        self.access_token(tenant, surface, deadline).await
    }

    /// Drops what is cached of a tenant.
    pub async fn forget(&self, tenant: &TenantId) {
        let _ = (tenant, &self.inner);
    }

    /// The application's id, from the credential.
    pub async fn client_id(&self, deadline: Deadline) -> Result<String> {
        let _ = (deadline, &self.inner);
        Err(Error::CredentialRejected)
    }

    /// Redeems the authorization code of a sign-in for its ID token, which is not validated here.
    pub async fn redeem_code(
        &self,
        authority: &str,
        code: &Secret,
        redirect_uri: &str,
        code_verifier: &Secret,
        deadline: Deadline,
    ) -> Result<Secret> {
        let _ = (authority, code, redirect_uri, code_verifier, deadline, &self.inner);
        Err(Error::CredentialRejected)
    }
}

impl AccessToken {
    /// The value of the `Authorization` header, marked as sensitive.
    pub fn authorization(&self) -> HeaderValue {
        self.authorization.clone()
    }

    /// The app roles in it; `None` for a token that cannot be looked into.
    pub fn roles(&self) -> Option<&[String]> {
        self.roles.as_deref()
    }

    /// When it ends.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The token itself, for whoever it is handed out to.
    pub fn expose(&self) -> &str {
        self.value.expose()
    }

    /// Whether it names a service principal in the tenant (`oid`). One that does not is no proof of consent. A token that
    /// cannot be looked into counts as having one.
    pub fn has_object_id(&self) -> bool {
        self.has_object_id
    }
}
