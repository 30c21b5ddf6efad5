//! The circuit breaker of the app credential: it keeps all functions from Entra while Entra refuses the credential.
//!
//! Each version of the credential has one item. A new version therefore starts with a closed breaker, and DynamoDB
//! deletes the items of old ones.

use std::collections::HashSet;

use aws_sdk_dynamodb::{operation::update_item::builders::UpdateItemFluentBuilder, types::AttributeValue};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::{
    Registry, Write,
    table::{number, text, update_if, with_schema},
    tenants::Status,
};
use crate::{
    error::{Error, Result},
    microsoft::IncidentApi,
    tenant::TenantId,
};

/// The time between two probes of all functions together while the breaker is open.
const PROBE_INTERVAL: SignedDuration = SignedDuration::from_secs(60);

/// The time for which a tenant that refuses us leaves a due probe to other tenants.
const REFUSING_TENANT_PROBE_DELAY: SignedDuration = SignedDuration::from_mins(5);

/// The time for which the two tenants that opened the breaker leave a due probe to others, once theirs was refused alike.
const OPENING_TENANT_PROBE_DELAY: SignedDuration = SignedDuration::from_secs(30);

/// The time within which two tenants must be refused alike.
const SUSPICION_TTL: SignedDuration = SignedDuration::from_mins(10);

/// The time for which a refusal that turned out not to be about the credential opens the breaker no more.
const DISPROOF_TTL: SignedDuration = SignedDuration::from_hours(24);

/// The time for which an item stays in the table after its last change.
const ITEM_TTL: SignedDuration = SignedDuration::from_hours(24 * 30);

/// The age at which the probe tenant is noted again.
const PROBE_TENANT_TTL: SignedDuration = SignedDuration::from_hours(1);

/// The number of times that evidence is read again after another function has written some.
const MAX_EVIDENCE_TRIES: u32 = 3;

const PK: &str = "CREDENTIAL";

/// The credential that a breaker stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerKey(String);

impl BreakerKey {
    /// The key of one version of the credential. `function` is the function whose role is the credential, if there is no
    /// secret: each role is accepted or refused on its own.
    pub fn new(credential_version: &str, function: Option<&str>) -> Self {
        let function = function.map(|function| format!("#{function}")).unwrap_or_default();
        Self(format!("BREAKER#{credential_version}{function}"))
    }
}

/// The breaker's decision about one token request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerDecision {
    /// The breaker is closed: Entra may be called.
    Allow,
    /// The breaker is open, and this caller makes the one request of this minute.
    Probe,
    /// The breaker is open, and another caller makes the request of this minute.
    Reject,
}

/// The state of a breaker.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Breaker {
    open: bool,
    #[serde(with = "jiff::fmt::serde::timestamp::millisecond::optional")]
    next_probe_at: Option<Timestamp>,
    /// The unknown refusal that opened the breaker.
    pub(crate) opened_by: Option<String>,
    /// The two tenants that were refused so.
    opening: HashSet<String>,
    /// The tenants whose probe was refused so since.
    refused_alike: HashSet<String>,
    /// The tenants that refused a probe by themselves since the breaker opened.
    refusing: HashSet<String>,
    /// The tenant whose request Entra refused last by an unknown refusal, that refusal, and the time.
    suspect_tenant: Option<TenantId>,
    suspect_refusal: Option<String>,
    #[serde(with = "jiff::fmt::serde::timestamp::millisecond::optional")]
    suspected_at: Option<Timestamp>,
    /// The refusal that opened the breaker before, although Entra accepted the credential elsewhere.
    disproved: Option<String>,
    #[serde(with = "jiff::fmt::serde::timestamp::millisecond::optional")]
    disproved_at: Option<Timestamp>,
    /// The home tenant gave no verdict when it was last asked.
    pub(crate) home_is_silent: bool,
}

impl Breaker {
    /// Returns true if `tenant` itself refused a probe since the breaker opened.
    pub(crate) fn is_refused_by(&self, tenant: &TenantId) -> bool {
        self.refusing.contains(&tenant.to_string())
    }

    /// Returns true if a further tenant showed that the refusal that opened the breaker is about the credential.
    fn is_confirmed(&self) -> bool {
        !self.refused_alike.is_subset(&self.opening)
    }

    /// Returns true if the refusal that opened the breaker speaks only of the tenants that opened it, as Entra now accepts
    /// the credential for `accepted`. A tenant that was refused so before shows only that the outage is over.
    fn is_disproved_by(&self, accepted: Option<&TenantId>) -> bool {
        let was_refused = accepted.is_some_and(|tenant| self.opening.contains(&tenant.to_string()));
        !self.is_confirmed() && !was_refused
    }
}

#[derive(Deserialize)]
struct ProbeTenant {
    tenant_id: Option<TenantId>,
    api: Option<String>,
}

impl Registry {
    /// Decides whether Entra may be called now for `tenant`. While the breaker is open, one caller a minute gets
    /// [`BreakerDecision::Probe`]. A tenant that refused a probe, or that is paused, leaves probes to others for some
    /// minutes, unless `home` is probed, whoever asks.
    pub async fn breaker_decision(
        &self,
        key: &BreakerKey,
        tenant: Option<&TenantId>,
        home: Option<&TenantId>,
        now: Timestamp,
    ) -> Result<BreakerDecision> {
        let breaker = self.breaker(key).await?;
        if !breaker.open {
            return Ok(BreakerDecision::Allow);
        }
        let is_due = |delay| breaker.next_probe_at.is_none_or(|next| next + delay <= now);
        if !is_due(SignedDuration::ZERO) {
            return Ok(BreakerDecision::Reject);
        }
        let probes_home = home.is_some_and(|home| !breaker.is_refused_by(home));
        if let Some(tenant) = tenant.filter(|_| !probes_home) {
            let repeats = !breaker.is_confirmed() && breaker.refused_alike.contains(&tenant.to_string());
            if repeats && !is_due(OPENING_TENANT_PROBE_DELAY)
                || !is_due(REFUSING_TENANT_PROBE_DELAY)
                    && (breaker.is_refused_by(tenant) || self.is_paused(tenant).await?)
            {
                return Ok(BreakerDecision::Reject);
            }
        }
        let claim = self
            .update_breaker(key, now)
            .update_expression("SET next_probe_at = :next, expires_at = :expires")
            .condition_expression("#open = :true AND next_probe_at <= :now")
            .expression_attribute_names("#open", "open")
            .expression_attribute_values(":true", AttributeValue::Bool(true))
            .expression_attribute_values(":next", next_probe_after(now))
            .expression_attribute_values(":now", number(now.as_millisecond()));
        Ok(match update_if(claim).await? {
            Write::Done => BreakerDecision::Probe,
            Write::Conflict => BreakerDecision::Reject,
        })
    }

    /// The state of a breaker.
    pub(crate) async fn breaker(&self, key: &BreakerKey) -> Result<Breaker> {
        Ok(self.get(PK, &key.0).await?.unwrap_or_default())
    }

    /// Opens the breaker because Entra refused the credential: by a known number, or these two tenants by an unknown
    /// refusal. [`Write::Conflict`]: it is open already.
    pub(crate) async fn open_breaker(
        &self,
        key: &BreakerKey,
        unknown: Option<(&str, [TenantId; 2])>,
        now: Timestamp,
    ) -> Result<Write> {
        let mut set = "SET #open = :true, opened_at = :opened, next_probe_at = :next, expires_at = :expires".to_owned();
        let mut open = self
            .update_breaker(key, now)
            .condition_expression("attribute_not_exists(#open) OR #open = :false")
            .expression_attribute_names("#open", "open")
            .expression_attribute_values(":true", AttributeValue::Bool(true))
            .expression_attribute_values(":false", AttributeValue::Bool(false))
            .expression_attribute_values(":opened", text(now.to_string()))
            .expression_attribute_values(":next", next_probe_after(now));
        if let Some((refusal, tenants)) = unknown {
            set.push_str(", opened_by = :refusal, opening = :tenants");
            let tenants = HashSet::from(tenants).iter().map(TenantId::to_string).collect();
            open = open
                .expression_attribute_values(":refusal", text(refusal))
                .expression_attribute_values(":tenants", AttributeValue::Ss(tenants));
        }
        update_if(with_schema(open.update_expression(set))).await
    }

    /// Closes the breaker because Entra accepted the credential for a tenant. An unknown refusal that had opened it, and
    /// that no further tenant met, opens it no more for a day. [`Write::Conflict`]: it is closed already.
    pub(crate) async fn close_breaker(
        &self,
        key: &BreakerKey,
        accepted: Option<&TenantId>,
        now: Timestamp,
    ) -> Result<Write> {
        let breaker = self.breaker(key).await?;
        let is_disproved = breaker.is_disproved_by(accepted);
        let mut set = "SET #open = :false, expires_at = :expires".to_owned();
        let mut close = self
            .update_breaker(key, now)
            .condition_expression("#open = :true")
            .expression_attribute_names("#open", "open")
            .expression_attribute_values(":true", AttributeValue::Bool(true))
            .expression_attribute_values(":false", AttributeValue::Bool(false));
        if let Some(refusal) = breaker.opened_by.filter(|_| is_disproved) {
            set.push_str(", disproved = :refusal, disproved_at = :now");
            close = close
                .expression_attribute_values(":refusal", text(refusal))
                .expression_attribute_values(":now", number(now.as_millisecond()));
        }
        set.push_str(
            " REMOVE opened_by, opening, refused_alike, refusing, suspect_tenant, suspect_refusal, suspected_at",
        );
        update_if(close.update_expression(set)).await
    }

    /// Succeeds while the breaker is closed.
    ///
    /// # Errors
    /// [`Error::CredentialRejected`] while it is open.
    pub(crate) async fn require_closed_breaker(&self, key: &BreakerKey) -> Result<()> {
        if self.breaker(key).await?.open { Err(Error::CredentialRejected) } else { Ok(()) }
    }

    /// Notes that Entra refused the client for `tenant` by an unknown `refusal`. Returns another tenant that it refused
    /// alike before, so that the credential may be the cause.
    pub(crate) async fn note_client_refusal(
        &self,
        key: &BreakerKey,
        tenant: &TenantId,
        refusal: &str,
        now: Timestamp,
    ) -> Result<Option<TenantId>> {
        for _ in 0..MAX_EVIDENCE_TRIES {
            let breaker = self.breaker(key).await?;
            let within = |at: Option<Timestamp>, ttl| at.is_some_and(|at| now < at + ttl);
            if breaker.disproved.as_deref() == Some(refusal) && within(breaker.disproved_at, DISPROOF_TTL) {
                return Ok(None);
            }
            if breaker.suspect_refusal.as_deref() == Some(refusal) && within(breaker.suspected_at, SUSPICION_TTL) {
                return Ok(breaker.suspect_tenant.filter(|suspect| suspect != tenant));
            }
            let note = self
                .update_breaker(key, now)
                .update_expression(
                    "SET suspect_tenant = :tenant, suspect_refusal = :refusal, suspected_at = :now, expires_at = :expires",
                )
                .expression_attribute_values(":tenant", text(tenant.to_string()))
                .expression_attribute_values(":refusal", text(refusal))
                .expression_attribute_values(":now", number(now.as_millisecond()));
            let note = match breaker.suspected_at {
                Some(at) => note
                    .condition_expression("suspected_at = :read")
                    .expression_attribute_values(":read", number(at.as_millisecond())),
                None => note.condition_expression("attribute_not_exists(suspected_at)"),
            };
            if update_if(with_schema(note)).await? == Write::Done {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Claims the one check of the home tenant that is made in a minute while the breaker is closed.
    pub(crate) async fn claim_home_check(&self, key: &BreakerKey, now: Timestamp) -> Result<Write> {
        let claim = self
            .update_breaker(key, now)
            .update_expression("SET next_home_check_at = :next, home_is_silent = :false, expires_at = :expires")
            .condition_expression("attribute_not_exists(next_home_check_at) OR next_home_check_at <= :now")
            .expression_attribute_values(":false", AttributeValue::Bool(false))
            .expression_attribute_values(":next", next_probe_after(now))
            .expression_attribute_values(":now", number(now.as_millisecond()));
        update_if(with_schema(claim)).await
    }

    /// Notes that the check of the home tenant gave no verdict.
    pub(crate) async fn note_silent_home(&self, key: &BreakerKey, now: Timestamp) -> Result<()> {
        let note = self
            .update_breaker(key, now)
            .update_expression("SET home_is_silent = :true, expires_at = :expires")
            .condition_expression("attribute_exists(pk)")
            .expression_attribute_values(":true", AttributeValue::Bool(true));
        update_if(note).await.map(drop)
    }

    /// Notes that `tenant` itself refused a probe.
    pub(crate) async fn note_refused_probe(&self, key: &BreakerKey, tenant: &TenantId) -> Result<()> {
        self.note_probe(key, "ADD refusing :tenant", tenant).await
    }

    /// Notes that Entra refused a probe for `tenant` by the unknown refusal that opened the breaker.
    pub(crate) async fn note_probe_refused_alike(&self, key: &BreakerKey, tenant: &TenantId) -> Result<()> {
        self.note_probe(key, "ADD refused_alike :tenant", tenant).await
    }

    async fn note_probe(&self, key: &BreakerKey, add: &str, tenant: &TenantId) -> Result<()> {
        let note = self
            .update(PK, &key.0)
            .update_expression(add)
            .condition_expression("#open = :true")
            .expression_attribute_names("#open", "open")
            .expression_attribute_values(":true", AttributeValue::Bool(true))
            .expression_attribute_values(":tenant", AttributeValue::Ss(vec![tenant.to_string()]));
        update_if(note).await.map(drop)
    }

    async fn is_paused(&self, tenant: &TenantId) -> Result<bool> {
        Ok(self.tenant(tenant).await?.is_some_and(|tenant| tenant.status == Status::Paused))
    }

    /// A tenant and API for which Entra issued a token to this app not long ago.
    pub(crate) async fn probe_tenant(&self, client_id: &str) -> Result<Option<(TenantId, IncidentApi)>> {
        let stored: Option<ProbeTenant> = self.get(PK, &probe_tenant_sk(client_id)).await?;
        Ok(stored.and_then(|stored| Some((stored.tenant_id?, stored.api?.parse().ok()?))))
    }

    /// Notes that Entra issued a token for `tenant` to this app, unless a tenant was noted within the last hour.
    pub(crate) async fn note_probe_tenant(
        &self,
        client_id: &str,
        tenant: &TenantId,
        api: IncidentApi,
        now: Timestamp,
    ) -> Result<()> {
        let note = self
            .update(PK, probe_tenant_sk(client_id))
            .update_expression("SET tenant_id = :tenant, api = :api, noted_at = :now")
            .condition_expression("attribute_not_exists(tenant_id) OR noted_at < :old")
            .expression_attribute_values(":tenant", text(tenant.to_string()))
            .expression_attribute_values(":api", text(api.as_str()))
            .expression_attribute_values(":now", number(now.as_millisecond()))
            .expression_attribute_values(":old", number((now - PROBE_TENANT_TTL).as_millisecond()));
        update_if(with_schema(note)).await.map(drop)
    }

    /// Forgets the probe tenant if it is `tenant`, which Entra refuses.
    pub(crate) async fn forget_probe_tenant(&self, client_id: &str, tenant: &TenantId) -> Result<()> {
        let forget = self
            .update(PK, probe_tenant_sk(client_id))
            .update_expression("REMOVE tenant_id")
            .condition_expression("tenant_id = :tenant")
            .expression_attribute_values(":tenant", text(tenant.to_string()));
        update_if(forget).await.map(drop)
    }

    fn update_breaker(&self, key: &BreakerKey, now: Timestamp) -> UpdateItemFluentBuilder {
        let expires_at = number((now + ITEM_TTL).as_second());
        self.update(PK, &key.0).expression_attribute_values(":expires", expires_at)
    }
}

/// Tenants consent to one app. Another one, such as that of the sign-in, has a probe tenant of its own.
fn probe_tenant_sk(client_id: &str) -> String {
    format!("PROBE_TENANT#{client_id}")
}

fn next_probe_after(now: Timestamp) -> AttributeValue {
    number((now + PROBE_INTERVAL).as_millisecond())
}
