//! The times before which Microsoft must not be called for a tenant, stored for all functions.
//!
//! The time for reads is an attribute of the tenant's feed. A tenant without a feed, and token requests, have items of
//! their own, which DynamoDB deletes when they no longer apply. They are in a partition of their own, so that they outlive
//! an offboarding, and so that a function which may store these times needs no right to change the tenant.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::{
    Registry, Write,
    budget::BudgetOf,
    table::{number, text, update_if, with_schema},
};
use crate::{error::Result, microsoft::IncidentApi, tenant::TenantId};

/// The time for which an item stays in the table after it no longer applies.
const EXPIRED_ITEM_TTL: SignedDuration = SignedDuration::from_hours(1);

/// The calls that an item throttles. Its sort key names them and the API.
#[derive(Clone, Copy, Debug)]
enum ThrottledCalls {
    /// Token requests to Entra.
    Tokens,
    /// Calls to an incident API for a tenant that has no feed.
    Reads,
    /// Hunting queries in a tenant that has no feed.
    Hunting,
}

impl From<BudgetOf> for (ThrottledCalls, IncidentApi) {
    fn from(of: BudgetOf) -> Self {
        match of {
            BudgetOf::Incidents(api) => (ThrottledCalls::Reads, api),
            BudgetOf::Hunting => (ThrottledCalls::Hunting, IncidentApi::Graph),
        }
    }
}

#[derive(Deserialize)]
struct Throttling {
    #[serde(with = "jiff::fmt::serde::timestamp::millisecond::required")]
    throttled_until: Timestamp,
}

impl ThrottledCalls {
    fn sort_key(self, api: IncidentApi) -> String {
        match self {
            Self::Tokens => format!("TOKENS#{api}"),
            Self::Reads => format!("READS#{api}"),
            Self::Hunting => format!("HUNTING#{api}"),
        }
    }
}

fn throttling_pk(tenant: &TenantId) -> String {
    format!("THROTTLING#{tenant}")
}

pub(super) fn throttled_attribute(of: BudgetOf) -> &'static str {
    match of {
        BudgetOf::Incidents(IncidentApi::Graph) => "graph_throttled_until",
        BudgetOf::Incidents(IncidentApi::Defender) => "defender_throttled_until",
        BudgetOf::Hunting => "hunting_throttled_until",
    }
}

impl Registry {
    /// Stores that no call of a tenant's budget may be made before `until`. A later stored time stays.
    pub async fn set_throttled_until(
        &self,
        tenant: &TenantId,
        of: impl Into<BudgetOf>,
        until: Timestamp,
    ) -> Result<()> {
        let of = of.into();
        let update = self
            .update_feed(tenant)
            .update_expression("SET #throttled_until = :until")
            .condition_expression(
                "attribute_exists(pk) AND (attribute_not_exists(#throttled_until) OR #throttled_until < :until)",
            )
            .expression_attribute_names("#throttled_until", throttled_attribute(of))
            // All texts have the same length, so that DynamoDB compares them in the order of time.
            .expression_attribute_values(":until", text(format!("{:.3}", until + SignedDuration::from_millis(1))));
        if update_if(update).await? == Write::Conflict && self.feed(tenant).await?.is_none() {
            let (calls, api) = of.into();
            self.set_calls_throttled_until(tenant, calls, api, until).await?;
        }
        Ok(())
    }

    /// The time before which no token may be requested for this tenant and API. `None` when one may be requested now.
    pub(crate) async fn tokens_throttled_until(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        self.calls_throttled_until(tenant, ThrottledCalls::Tokens, api, now).await
    }

    /// Stores that no token may be requested for this tenant and API before `until`. A later stored time stays.
    pub(crate) async fn set_tokens_throttled_until(
        &self,
        tenant: &TenantId,
        api: IncidentApi,
        until: Timestamp,
    ) -> Result<()> {
        self.set_calls_throttled_until(tenant, ThrottledCalls::Tokens, api, until).await
    }

    /// The time before which no call of the budget of a tenant without a feed may be made. `None` when it may be made now.
    pub(super) async fn calls_of_throttled_until(
        &self,
        tenant: &TenantId,
        of: BudgetOf,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let (calls, api) = of.into();
        self.calls_throttled_until(tenant, calls, api, now).await
    }

    /// Copies the times of a tenant's feed into items that stay when the feed is deleted.
    pub(super) async fn keep_throttling(&self, tenant: &TenantId) -> Result<()> {
        let Some(feed) = self.feed(tenant).await? else { return Ok(()) };
        for of in BudgetOf::ALL {
            if let Some(until) = feed.budget(of).throttled_until {
                let (calls, api) = of.into();
                self.set_calls_throttled_until(tenant, calls, api, until).await?;
            }
        }
        Ok(())
    }

    /// Copies the times that were stored while a tenant had no feed into its new feed.
    pub(super) async fn restore_throttling(&self, tenant: &TenantId, now: Timestamp) -> Result<()> {
        for of in BudgetOf::ALL {
            if let Some(until) = self.calls_of_throttled_until(tenant, of, now).await? {
                self.set_throttled_until(tenant, of, until).await?;
            }
        }
        Ok(())
    }

    async fn calls_throttled_until(
        &self,
        tenant: &TenantId,
        calls: ThrottledCalls,
        api: IncidentApi,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let stored: Option<Throttling> = self.get(&throttling_pk(tenant), &calls.sort_key(api)).await?;
        Ok(stored.map(|stored| stored.throttled_until).filter(|until| *until > now))
    }

    async fn set_calls_throttled_until(
        &self,
        tenant: &TenantId,
        calls: ThrottledCalls,
        api: IncidentApi,
        until: Timestamp,
    ) -> Result<()> {
        let update = self
            .update(throttling_pk(tenant), calls.sort_key(api))
            .update_expression("SET throttled_until = :until, expires_at = :expires")
            .condition_expression("attribute_not_exists(pk) OR throttled_until < :until")
            .expression_attribute_values(":until", number(until.as_millisecond()))
            .expression_attribute_values(":expires", number(until.as_second() + EXPIRED_ITEM_TTL.as_secs()));
        update_if(with_schema(update)).await.map(|_| ())
    }
}
