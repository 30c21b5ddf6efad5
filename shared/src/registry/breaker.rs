//! What keeps all functions together from asking Entra: the breaker of the app credential, and the rest that a throttled
//! tenant is given.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::{Registry, condition_held, number, tenant_pk, text};
use crate::{
    error::{Error, Result},
    microsoft::IncidentApi,
    tenant::TenantId,
};

/// How often Entra is asked while the breaker is open, by all functions together.
const PROBE_EVERY: SignedDuration = SignedDuration::from_secs(60);

/// Whether Entra may be asked with the app credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerDecision {
    /// The credential is in good standing.
    Allow,
    /// The credential is refused, and this caller makes the one try of this minute.
    Probe,
    /// The credential is refused, and somebody else makes the try.
    Reject,
}

#[derive(Deserialize)]
struct Breaker {
    open: bool,
    next_probe_at: i64,
}

#[derive(Deserialize)]
struct Rest {
    until: i64,
}

const PK: &str = "CREDENTIAL";
const SK: &str = "BREAKER";

/// What a tenant is given a rest from; in its partition the surface follows.
#[derive(Clone, Copy, Debug)]
enum RestFrom {
    /// From being asked for tokens.
    Tokens,
    /// From being read, where there is no feed that would know.
    Reads,
}

impl RestFrom {
    const ALL: [Self; 2] = [Self::Tokens, Self::Reads];

    fn kind(self) -> &'static str {
        match self {
            Self::Tokens => "TOKEN_REST",
            Self::Reads => "SURFACE_REST",
        }
    }
}

/// Whether this sort key is that of a rest.
pub(super) fn is_rest(sk: &str) -> bool {
    RestFrom::ALL.iter().any(|from| sk.split('#').next() == Some(from.kind()))
}

impl Registry {
    /// Whether Entra may be asked now. While the breaker is open, one caller in a minute gets [`BreakerDecision::Probe`].
    pub async fn breaker_decision(&self, now: Timestamp) -> Result<BreakerDecision> {
        let breaker: Option<Breaker> = self.get(PK, SK).await?;
        match breaker {
            None | Some(Breaker { open: false, .. }) => Ok(BreakerDecision::Allow),
            Some(breaker) if breaker.next_probe_at > now.as_millisecond() => Ok(BreakerDecision::Reject),
            Some(_) => {
                let claim = self
                    .client
                    .update_item()
                    .table_name(&self.table)
                    .key("pk", text(PK))
                    .key("sk", text(SK))
                    .update_expression("SET next_probe_at = :next")
                    .condition_expression("#open = :true AND next_probe_at <= :now")
                    .expression_attribute_names("#open", "open")
                    .expression_attribute_values(":next", number((now + PROBE_EVERY).as_millisecond()))
                    .expression_attribute_values(":now", number(now.as_millisecond()))
                    .expression_attribute_values(":true", boolean(true))
                    .send()
                    .await;
                let claimed = condition_held("dynamodb:UpdateItem", claim)?;
                Ok(if claimed { BreakerDecision::Probe } else { BreakerDecision::Reject })
            }
        }
    }

    /// Opens the breaker: the credential was refused. `true` for the one caller that found it closed.
    pub async fn open_breaker(&self, now: Timestamp) -> Result<bool> {
        let opened = self
            .client
            .update_item()
            .table_name(&self.table)
            .key("pk", text(PK))
            .key("sk", text(SK))
            .update_expression("SET #open = :true, opened_at = :opened, next_probe_at = :next")
            .condition_expression("attribute_not_exists(pk) OR #open = :false")
            .expression_attribute_names("#open", "open")
            .expression_attribute_values(":true", boolean(true))
            .expression_attribute_values(":false", boolean(false))
            .expression_attribute_values(":opened", text(now.to_string()))
            .expression_attribute_values(":next", number((now + PROBE_EVERY).as_millisecond()))
            .send()
            .await;
        condition_held("dynamodb:UpdateItem", opened)
    }

    /// Closes the breaker: the credential was accepted. `true` for the one caller that found it open.
    pub async fn close_breaker(&self) -> Result<bool> {
        let closed = self
            .client
            .update_item()
            .table_name(&self.table)
            .key("pk", text(PK))
            .key("sk", text(SK))
            .update_expression("SET #open = :false")
            .condition_expression("#open = :true")
            .expression_attribute_names("#open", "open")
            .expression_attribute_values(":true", boolean(true))
            .expression_attribute_values(":false", boolean(false))
            .send()
            .await;
        condition_held("dynamodb:UpdateItem", closed)
    }

    /// Until when no token may be asked for, for this tenant and surface; `None` when one may.
    pub async fn tokens_throttled_until(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        self.rest(tenant, RestFrom::Tokens, api, now).await
    }

    /// Keeps all functions from asking for this tenant's tokens until then. A longer rest that is there stays.
    pub async fn set_tokens_throttled_until(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        until: Timestamp,
    ) -> Result<()> {
        self.give_rest(tenant, RestFrom::Tokens, api, until).await
    }

    /// Until when a tenant without a feed must not be read; `None` when it may.
    pub(super) async fn reads_throttled_until(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        self.rest(tenant, RestFrom::Reads, api, now).await
    }

    /// Keeps all functions from reading a tenant without a feed until then. A longer rest that is there stays.
    pub(super) async fn set_reads_throttled_until(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        until: Timestamp,
    ) -> Result<()> {
        self.give_rest(tenant, RestFrom::Reads, api, until).await
    }

    async fn rest(
        &self,
        tenant: &TenantId,
        from: RestFrom,
        api: IncidentApi,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let rest: Option<Rest> = self.get(&tenant_pk(tenant), &rest_sk(from, api)).await?;
        let until = rest.and_then(|rest| Timestamp::from_millisecond(rest.until).ok());
        Ok(until.filter(|until| *until > now))
    }

    async fn give_rest(&self, tenant: &TenantId, from: RestFrom, api: IncidentApi, until: Timestamp) -> Result<()> {
        let written = self
            .client
            .update_item()
            .table_name(&self.table)
            .key("pk", text(tenant_pk(tenant)))
            .key("sk", text(rest_sk(from, api)))
            .update_expression("SET #until = :until, expires_at = :expires")
            .condition_expression("attribute_not_exists(pk) OR #until < :until")
            .expression_attribute_names("#until", "until")
            .expression_attribute_values(":until", number(until.as_millisecond()))
            .expression_attribute_values(":expires", number(until.as_second() + 3600))
            .send()
            .await;
        condition_held("dynamodb:UpdateItem", written).map(|_| ())
    }

    /// The app's credential is refused at present.
    ///
    /// # Errors
    /// [`Error::CredentialRejected`] then.
    pub(crate) async fn require_closed_breaker(&self) -> Result<()> {
        let breaker: Option<Breaker> = self.get(PK, SK).await?;
        if breaker.is_some_and(|breaker| breaker.open) { Err(Error::CredentialRejected) } else { Ok(()) }
    }
}

fn rest_sk(from: RestFrom, api: IncidentApi) -> String {
    format!("{}#{api}", from.kind())
}

fn boolean(value: bool) -> aws_sdk_dynamodb::types::AttributeValue {
    aws_sdk_dynamodb::types::AttributeValue::Bool(value)
}
