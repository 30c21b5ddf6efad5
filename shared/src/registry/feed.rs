//! A tenant's feed: how far its incidents are delivered, and what the next poll has to do.

use std::collections::{BTreeSet, HashMap};

use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Registry,
    budget::{Budget, BudgetOf},
    due::shard_of,
    position::{PageSizes, Position},
    table::{Item, ItemKey, from_item, number, string, text, update_if, with_schema},
    tenant_of, tenant_pk,
};
use crate::{
    error::{Error, Result},
    microsoft::IncidentApi,
    tenant::TenantId,
};

pub(super) const SORT_KEY: &str = "FEED";

/// The state of a tenant's feed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Feed {
    /// The start of the feed. Only a backfill delivers older incidents.
    pub started_at: Option<Timestamp>,
    /// The cursor: every version last updated before this time was delivered, as far as Microsoft showed it. It never
    /// moves back.
    pub covered_until: Option<Timestamp>,
    /// The position at which an unfinished poll continues.
    pub pass_position: Option<Position>,
    /// The start of the last poll that read the whole overlap. `None` while one response holds the overlap, so that every
    /// poll reads it.
    pub overlap_read_at: Option<Timestamp>,
    /// The start of the last poll that read the whole overlap, also where one response holds it. Versions that appear late
    /// since then may have a time of last update that is earlier by as much as the overlap.
    pub overlap_started_at: Option<Timestamp>,
    /// The time until which windows are read without alerts, because Graph lists them only so.
    pub without_alerts_until: Option<Timestamp>,
    /// The end of the last complete poll.
    pub last_success_at: Option<Timestamp>,
    /// The time at which a new version was last delivered.
    pub last_news_at: Option<Timestamp>,
    /// The number of different incidents that were delivered.
    pub incidents_total: u64,
    /// The number of records and spans that are in quarantine now.
    pub quarantined: u64,
    /// The result of the last complete sweep.
    pub last_sweep: Option<LastSweep>,
    /// The number of polls that failed in a row.
    pub failures: u32,
    /// The incidents that were delivered without alerts, to be read once more.
    pub rechecks: Vec<Recheck>,
    /// The last poll left no call for the retries and the jobs that come after it. The next work begins with them.
    pub passed_over: bool,
    /// The list of what is dated from the present on was too long for the last polls. They read up to the present first.
    pub has_long_future: bool,
    /// The time at which a worker last started to work on a job.
    pub jobs_driven_at: Option<Timestamp>,
    /// The identifiers of jobs that are not finished.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub open_jobs: BTreeSet<String>,
    /// The fencing token: it counts the leases, and a write with an older one fails.
    pub fence: u64,
    /// The time from which dispatch may queue a poll. Millisecond resolution; `None` while the feed is stopped.
    #[serde(with = "jiff::fmt::serde::timestamp::millisecond::optional")]
    pub due_at: Option<Timestamp>,
    graph_pages: PageSizes,
    defender_pages: PageSizes,
    graph_paid_until: Option<Timestamp>,
    graph_throttled_until: Option<Timestamp>,
    defender_paid_until: Option<Timestamp>,
    defender_throttled_until: Option<Timestamp>,
    hunting_paid_until: Option<Timestamp>,
    hunting_throttled_until: Option<Timestamp>,
}

/// The result of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastSweep {
    /// The end of the sweep.
    pub at: Timestamp,
    /// The number of versions that were compared with the delivered ones.
    pub checked: u64,
    /// The number of versions that had not been delivered before.
    pub missing: u64,
}

/// An incident that was delivered without alerts. Microsoft may add them without a new time of last update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recheck {
    /// The incident's identifier at its API.
    pub incident_id: String,
    /// The time at which to read it again.
    pub at: Timestamp,
}

impl Feed {
    /// The budget of some calls.
    pub fn budget(&self, of: impl Into<BudgetOf>) -> Budget {
        let of = of.into();
        let (paid_until, throttled_until) = match of {
            BudgetOf::Incidents(IncidentApi::Graph) => (self.graph_paid_until, self.graph_throttled_until),
            BudgetOf::Incidents(IncidentApi::Defender) => (self.defender_paid_until, self.defender_throttled_until),
            BudgetOf::Hunting => (self.hunting_paid_until, self.hunting_throttled_until),
        };
        Budget { of, paid_until, throttled_until }
    }

    /// Returns true if this feed differs from `other` at most in how far and when it was read.
    pub(super) fn is_like_but_for_how_far_it_read(&self, other: &Self) -> bool {
        let mut feed = self.clone();
        feed.covered_until = other.covered_until;
        feed.last_success_at = other.last_success_at;
        feed.overlap_started_at = other.overlap_started_at;
        feed == *other
    }

    /// The sizes of pages that one API has shown.
    pub fn page_sizes(&mut self, api: IncidentApi) -> &mut PageSizes {
        match api {
            IncidentApi::Graph => &mut self.graph_pages,
            IncidentApi::Defender => &mut self.defender_pages,
        }
    }

    /// Sets the time before which Microsoft must not be called, unless a later one is set.
    pub(crate) fn set_throttled_until(&mut self, api: IncidentApi, until: Timestamp) {
        match api {
            IncidentApi::Graph => self.graph_throttled_until = self.graph_throttled_until.max(Some(until)),
            IncidentApi::Defender => self.defender_throttled_until = self.defender_throttled_until.max(Some(until)),
        }
    }

    pub(super) fn set_paid_until(&mut self, api: IncidentApi, paid_until: Option<Timestamp>) {
        match api {
            IncidentApi::Graph => self.graph_paid_until = paid_until,
            IncidentApi::Defender => self.defender_paid_until = paid_until,
        }
    }
}

impl Registry {
    /// Makes a tenant due at once. Creates its feed if there is none, and keeps the start and the cursor of one that exists.
    pub async fn open_feed(&self, tenant: &TenantId, now: Timestamp) -> Result<()> {
        let update = self
            .update_feed(tenant)
            .update_expression("SET due_shard = :shard, due_at = :now, fence = if_not_exists(fence, :zero)")
            .expression_attribute_values(":shard", text(shard_of(tenant)))
            .expression_attribute_values(":now", number(now.as_millisecond()))
            .expression_attribute_values(":zero", number(0));
        with_schema(update).send().await.map_err(|error| Error::aws("dynamodb:UpdateItem", &error))?;
        self.restore_throttling(tenant, now).await
    }

    /// Removes a tenant from the `due` index. Its cursor stays.
    pub async fn stop_feed(&self, tenant: &TenantId) -> Result<()> {
        let update = self
            .update_feed(tenant)
            .update_expression("REMOVE due_shard, due_at")
            .condition_expression("attribute_exists(pk)");
        update_if(update).await.map(|_| ())
    }

    /// Reads a tenant's feed with a consistent read. `None`: the tenant was never active, or is offboarded.
    pub async fn feed(&self, tenant: &TenantId) -> Result<Option<Feed>> {
        self.get(&tenant_pk(tenant), SORT_KEY).await
    }

    /// Reads the feeds of many tenants. Tenants without a feed are left out.
    pub async fn feeds(&self, tenants: &[TenantId]) -> Result<HashMap<TenantId, Feed>> {
        let keys = tenants.iter().map(|tenant| ItemKey::of_tenant(tenant, SORT_KEY)).collect();
        let mut feeds = HashMap::new();
        for item in self.batch_get(keys).await? {
            if let Some(tenant) = string(&item, "pk").and_then(tenant_of) {
                feeds.insert(tenant, from_item(item)?);
            }
        }
        Ok(feeds)
    }

    /// Reads the cursors of many feeds. Tenants without one are left out.
    pub async fn cursors(&self, tenants: &[TenantId]) -> Result<HashMap<TenantId, Timestamp>> {
        let keys = tenants.iter().map(|tenant| ItemKey::of_tenant(tenant, SORT_KEY)).collect();
        let items = self.batch_get_attributes(keys, Some("pk, covered_until")).await?;
        let cursor = |item: &Item| {
            Some((tenant_of(string(item, "pk")?)?, string(item, "covered_until")?.parse::<Timestamp>().ok()?))
        };
        Ok(items.iter().filter_map(cursor).collect())
    }

    pub(super) fn update_feed(&self, tenant: &TenantId) -> UpdateItemFluentBuilder {
        self.update(tenant_pk(tenant), SORT_KEY)
    }
}
