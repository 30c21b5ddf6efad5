//! A tenant's feed: how far its incidents are covered, who works on it, and when it is due.

use std::collections::{BTreeSet, HashMap};

use aws_sdk_dynamodb::{
    operation::update_item::builders::UpdateItemFluentBuilder,
    types::{AttributeValue, KeysAndAttributes, ReturnValue},
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Registry, budget::Budget, condition_held, from_item, number, tenant_pk, text};
use crate::{
    error::{Error, Result},
    microsoft::IncidentApi,
    queue::SyncKind,
    tenant::TenantId,
};

const FEED: &str = "FEED";

/// How often a write is tried while others take calls out of the same budget.
const BUDGET_TRIES: u32 = 6;

/// Over how many partitions of the `due` index the tenants are spread.
pub const DUE_SHARDS: u32 = 16;

/// How far a tenant's incidents are covered, and by what means.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Feed {
    /// Where the feed starts: nothing older is delivered but by backfill.
    pub started_at: Option<Timestamp>,
    /// Every version last updated before this time was delivered, as far as Microsoft showed it. Never moves back.
    pub covered_until: Option<Timestamp>,
    /// Where a poll goes on that did not fit into its invocation.
    pub resume_at: Option<Timestamp>,
    /// How many seconds of last update it then asks for at once.
    pub resume_width: Option<i64>,
    /// Up to which time of creation the second at `resume_at` was read, which is too full for one answer.
    pub resume_created: Option<Timestamp>,
    /// When the whole overlap was read last, where one answer does not hold it.
    pub overlap_read_at: Option<Timestamp>,
    /// When the poll began that read the whole overlap last: what arrives late since then may lie as far before it.
    pub overlap_begun_at: Option<Timestamp>,
    /// When a poll was completed last.
    pub last_success_at: Option<Timestamp>,
    /// When a poll found something new last.
    pub last_news_at: Option<Timestamp>,
    /// Different incidents delivered.
    pub incidents_total: u64,
    /// Records and spans that are set aside at present.
    pub quarantined: u64,
    /// What the last sweep found.
    pub last_sweep: Option<LastSweep>,
    /// Polls that failed in a row.
    pub failures: u32,
    /// Incidents that came without alerts, to be read once more.
    pub rechecks: Vec<Recheck>,
    /// When a job was worked on last.
    pub jobs_driven_at: Option<Timestamp>,
    /// Jobs that are not finished.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub open_jobs: BTreeSet<String>,
    /// Counts the leases; who holds an old number writes nothing.
    pub fence: u64,
    /// When the tenant is due, in milliseconds since 1970.
    pub due_at: Option<i64>,
    graph_paid_until: Option<Timestamp>,
    graph_throttled_until: Option<Timestamp>,
    defender_paid_until: Option<Timestamp>,
    defender_throttled_until: Option<Timestamp>,
}

/// What a sweep found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastSweep {
    /// When it ended.
    pub at: Timestamp,
    /// Versions compared with what was delivered.
    pub checked: u64,
    /// Versions that it had to deliver.
    pub missing: u64,
}

/// An incident that came without alerts: these may be added without a new time of last update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recheck {
    /// The incident.
    pub incident_id: String,
    /// When to read it again.
    pub at: Timestamp,
}

impl Feed {
    /// What is left of a surface's calls.
    pub fn budget(&self, api: IncidentApi) -> Budget {
        let (paid_until, throttled_until) = match api {
            IncidentApi::Graph => (self.graph_paid_until, self.graph_throttled_until),
            IncidentApi::Defender => (self.defender_paid_until, self.defender_throttled_until),
        };
        Budget { paid_until, throttled_until }
    }

    /// Notes a pause that Microsoft has asked for.
    pub fn set_throttled_until(&mut self, api: IncidentApi, until: Timestamp) {
        match api {
            IncidentApi::Graph => self.graph_throttled_until = self.graph_throttled_until.max(Some(until)),
            IncidentApi::Defender => self.defender_throttled_until = self.defender_throttled_until.max(Some(until)),
        }
    }

    fn set_paid_until(&mut self, api: IncidentApi, paid_until: Option<Timestamp>) {
        match api {
            IncidentApi::Graph => self.graph_paid_until = paid_until,
            IncidentApi::Defender => self.defender_paid_until = paid_until,
        }
    }
}

/// The right to work on one tenant until a time; at most one worker has it.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The tenant.
    pub tenant: TenantId,
    /// The feed as it was when the lease was taken, and then as this worker wrote it.
    pub feed: Feed,
    /// The time at which `throttled_until` was last read. Other functions write it, too.
    pub(crate) throttling_read_at: Timestamp,
    /// The number of calls taken out of budgets under this lease.
    pub calls: u32,
    /// What was taken out of a budget and is not written yet.
    taken: Option<UncommittedCalls>,
}

/// Calls taken out of a surface's budget.
#[derive(Clone, Copy, Debug)]
struct UncommittedCalls {
    api: IncidentApi,
    /// What the registry held before.
    before: Option<Timestamp>,
    calls: u32,
}

impl Lease {
    /// Takes one call out of a surface's budget, which is written with the feed.
    ///
    /// # Errors
    /// [`Error::Throttled`] when the budget or a pause forbids it.
    pub fn take_call(&mut self, api: IncidentApi, kind: SyncKind, now: Timestamp) -> Result<()> {
        let mut budget = self.feed.budget(api);
        let before = budget.paid_until;
        budget.take(kind, now).map_err(|until| Error::Throttled { until })?;
        self.feed.set_paid_until(api, budget.paid_until);
        self.taken.get_or_insert(UncommittedCalls { api, before, calls: 0 }).calls += 1;
        self.calls += 1;
        Ok(())
    }
}

/// What came of asking for a lease.
#[derive(Debug)]
pub enum Acquired {
    /// It is ours.
    Lease(Box<Lease>),
    /// Another worker has it.
    Busy,
    /// The tenant has no feed: it was never active, or is offboarded.
    NoFeed,
}

/// A tenant that is due.
#[derive(Clone, Debug, PartialEq)]
pub struct Due {
    /// The tenant.
    pub tenant: TenantId,
    /// Since when, in milliseconds since 1970.
    pub due_at: i64,
}

fn shard_of(tenant: &TenantId) -> String {
    // The identifiers are random; their first digit spreads them evenly over 16 shards.
    tenant.to_string().chars().take(1).collect()
}

fn paid_attribute(api: IncidentApi) -> &'static str {
    match api {
        IncidentApi::Graph => "graph_paid_until",
        IncidentApi::Defender => "defender_paid_until",
    }
}

fn pause_attribute(api: IncidentApi) -> &'static str {
    match api {
        IncidentApi::Graph => "graph_not_before",
        IncidentApi::Defender => "defender_not_before",
    }
}

impl Registry {
    /// Makes a tenant due at once. Creates its feed where there is none, and keeps one that is there: its start, its cursor.
    pub async fn open_feed(&self, tenant: &TenantId, now: Timestamp) -> Result<()> {
        self.update_feed(tenant)
            .update_expression("SET due_shard = :shard, due_at = :now, fence = if_not_exists(fence, :zero)")
            .expression_attribute_values(":shard", text(shard_of(tenant)))
            .expression_attribute_values(":now", number(now.as_millisecond()))
            .expression_attribute_values(":zero", number(0))
            .send()
            .await
            .map_err(|error| Error::aws("dynamodb:UpdateItem", &error))?;
        for api in IncidentApi::ALL {
            if let Some(until) = self.reads_throttled_until(tenant, api, now).await? {
                self.set_throttled_until(tenant, api, until).await?;
            }
        }
        Ok(())
    }

    /// Keeps what Microsoft asked for when a tenant's feed goes: its pauses outlast it.
    pub(super) async fn keep_throttling(&self, tenant: &TenantId) -> Result<()> {
        let Some(feed) = self.feed(tenant).await? else { return Ok(()) };
        for api in IncidentApi::ALL {
            if let Some(until) = feed.budget(api).throttled_until {
                self.set_reads_throttled_until(tenant, api, until).await?;
            }
        }
        Ok(())
    }

    /// Takes a tenant out of what is due; its cursor stays.
    pub async fn stop_feed(&self, tenant: &TenantId) -> Result<()> {
        let outcome = self
            .update_feed(tenant)
            .update_expression("REMOVE due_shard, due_at")
            .condition_expression("attribute_exists(pk)")
            .send()
            .await;
        condition_held("dynamodb:UpdateItem", outcome).map(|_| ())
    }

    /// A tenant's feed.
    pub async fn feed(&self, tenant: &TenantId) -> Result<Option<Feed>> {
        self.get(&tenant_pk(tenant), FEED).await
    }

    /// The feeds of many tenants.
    pub async fn feeds(&self, tenants: &[TenantId]) -> Result<HashMap<TenantId, Feed>> {
        let keys = tenants.iter().map(|tenant| (tenant_pk(tenant), FEED.to_owned())).collect();
        let items = self.batch_get(keys).await?;
        let mut feeds = HashMap::new();
        for item in items {
            let tenant = item.get("pk").and_then(|pk| pk.as_s().ok()?.strip_prefix("TENANT#")?.parse().ok());
            if let Some(tenant) = tenant {
                feeds.insert(tenant, from_item(item)?);
            }
        }
        Ok(feeds)
    }

    /// Reads many items by their keys, however many they are.
    pub(super) async fn batch_get(&self, mut keys: Vec<(String, String)>) -> Result<Vec<super::Item>> {
        let mut items = Vec::new();
        let mut unanswered = 0;
        while !keys.is_empty() {
            // A hundred are the most of one call.
            let now = keys.split_off(keys.len().saturating_sub(100));
            let mut request = KeysAndAttributes::builder().consistent_read(true);
            for (pk, sk) in now {
                request = request.keys(HashMap::from([("pk".into(), text(pk)), ("sk".into(), text(sk))]));
            }
            let request = request.build().map_err(|_| Error::Internal("dynamodb:BatchGetItem: no keys".into()))?;
            let answer = self
                .client
                .batch_get_item()
                .request_items(&self.table, request)
                .send()
                .await
                .map_err(|error| Error::aws("dynamodb:BatchGetItem", &error))?;
            let found = answer.responses.unwrap_or_default().into_values().flatten();
            items.extend(found);
            let rest = answer.unprocessed_keys.unwrap_or_default().into_values().flat_map(|rest| rest.keys);
            let before = keys.len();
            keys.extend(
                rest.filter_map(|key| Some((key.get("pk")?.as_s().ok()?.clone(), key.get("sk")?.as_s().ok()?.clone()))),
            );
            if keys.len() > before {
                unanswered += 1;
                if unanswered > 5 {
                    return Err(Error::Internal("dynamodb:BatchGetItem: keys stay unanswered".into()));
                }
                tokio::time::sleep(std::time::Duration::from_millis(50 << unanswered)).await;
            }
        }
        Ok(items)
    }

    /// Takes the lease of a tenant until `until`, if nobody has it at `now`.
    pub async fn acquire_lease(&self, tenant: &TenantId, now: Timestamp, until: Timestamp) -> Result<Acquired> {
        let outcome = self
            .update_feed(tenant)
            .update_expression("SET lease_until = :until ADD fence :one")
            .condition_expression("attribute_exists(pk) AND (attribute_not_exists(lease_until) OR lease_until < :now)")
            .expression_attribute_values(":until", number(until.as_millisecond()))
            .expression_attribute_values(":now", number(now.as_millisecond()))
            .expression_attribute_values(":one", number(1))
            .return_values(ReturnValue::AllNew)
            .send()
            .await;
        let mut item = None;
        let acquired = condition_held("dynamodb:UpdateItem", outcome.map(|answer| item = answer.attributes))?;
        match item {
            Some(item) if acquired => {
                let (tenant, feed) = (*tenant, from_item(item)?);
                Ok(Acquired::Lease(Box::new(Lease { tenant, feed, throttling_read_at: now, calls: 0, taken: None })))
            }
            _ if self.feed(tenant).await?.is_some() => Ok(Acquired::Busy),
            _ => Ok(Acquired::NoFeed),
        }
    }

    /// Writes what a worker has changed of a feed, on condition that its lease is still the newest. `false`: it is not,
    /// and nothing was written. What others took out of the budget meanwhile is paid, too; pauses are read back.
    pub async fn commit_feed(&self, lease: &mut Lease) -> Result<bool> {
        self.write_feed(lease, false).await
    }

    /// [`Registry::commit_feed`], and gives the lease back.
    pub async fn release_lease(&self, lease: &mut Lease) -> Result<bool> {
        self.write_feed(lease, true).await
    }

    async fn write_feed(&self, lease: &mut Lease, release: bool) -> Result<bool> {
        for _ in 0..BUDGET_TRIES {
            let outcome = self.put_feed(lease, release)?.send().await;
            let mut item = None;
            let outcome = outcome.map(|answer| item = answer.attributes);
            if condition_held("dynamodb:UpdateItem", outcome)? {
                lease.taken = None;
                if let Some(item) = item {
                    lease.feed = from_item(item)?;
                }
                return Ok(true);
            }
            // Either the lease has passed to another, or somebody who waits for an answer has taken a call meanwhile.
            let Some(now) = self.feed(&lease.tenant).await?.filter(|now| now.fence == lease.feed.fence) else {
                return Ok(false);
            };
            let Some(taken) = &mut lease.taken else { return Ok(false) };
            let theirs = now.budget(taken.api).paid_until;
            let mut budget = lease.feed.budget(taken.api);
            budget.add_to(theirs, taken.calls);
            taken.before = theirs;
            lease.feed.set_paid_until(taken.api, budget.paid_until);
        }
        Err(Error::Internal("a feed changed at each try to write it".into()))
    }

    fn put_feed(&self, lease: &Lease, release: bool) -> Result<UpdateItemFluentBuilder> {
        let feed = &lease.feed;
        let time = |value: Option<Timestamp>| value.map(|value| text(value.to_string()));
        let mut fields: Vec<(&str, Option<AttributeValue>)> = vec![
            ("started_at", time(feed.started_at)),
            ("covered_until", time(feed.covered_until)),
            ("resume_at", time(feed.resume_at)),
            ("resume_created", time(feed.resume_created)),
            ("overlap_read_at", time(feed.overlap_read_at)),
            ("overlap_begun_at", time(feed.overlap_begun_at)),
            ("last_success_at", time(feed.last_success_at)),
            ("last_news_at", time(feed.last_news_at)),
            ("jobs_driven_at", time(feed.jobs_driven_at)),
            ("resume_width", feed.resume_width.map(number)),
            ("incidents_total", Some(number(feed.incidents_total))),
            ("quarantined", Some(number(feed.quarantined))),
            ("failures", Some(number(feed.failures))),
            ("last_sweep", feed.last_sweep.as_ref().map(attribute_value).transpose()?),
            ("rechecks", Some(attribute_value(&feed.rechecks)?)),
        ];
        let mut update = self
            .update_feed(&lease.tenant)
            .expression_attribute_values(":fence", number(feed.fence))
            .return_values(ReturnValue::AllNew);
        let mut condition = "fence = :fence".to_owned();
        if let Some(UncommittedCalls { api, before, .. }) = lease.taken {
            let paid = paid_attribute(api);
            match before {
                Some(before) => {
                    condition = format!("{condition} AND {paid} = :before");
                    update = update.expression_attribute_values(":before", text(before.to_string()));
                }
                None => condition = format!("{condition} AND attribute_not_exists({paid})"),
            }
            fields.push((paid, time(feed.budget(api).paid_until)));
        }
        let (mut set, mut remove) = (Vec::new(), Vec::new());
        for (name, value) in fields {
            if let Some(value) = value {
                set.push(format!("{name} = :{name}"));
                update = update.expression_attribute_values(format!(":{name}"), value);
            } else {
                remove.push(name);
            }
        }
        if release {
            remove.push("lease_until");
        }
        let mut expression = format!("SET {}", set.join(", "));
        if !remove.is_empty() {
            expression = format!("{expression} REMOVE {}", remove.join(", "));
        }
        Ok(update.condition_expression(condition).update_expression(expression))
    }

    /// Notes that a surface must not be asked before `until`. A later time that is noted already stays.
    pub async fn set_throttled_until(&self, tenant: &TenantId, api: IncidentApi, until: Timestamp) -> Result<()> {
        let outcome = self
            .update_feed(tenant)
            .update_expression("SET #not_before = :until")
            .condition_expression(
                "attribute_exists(pk) AND (attribute_not_exists(#not_before) OR #not_before < :until)",
            )
            .expression_attribute_names("#not_before", pause_attribute(api))
            // One width for all, so that DynamoDB compares them in the order of time.
            .expression_attribute_values(":until", text(format!("{:.3}", until + SignedDuration::from_millis(1))))
            .send()
            .await;
        if !condition_held("dynamodb:UpdateItem", outcome)? && self.feed(tenant).await?.is_none() {
            self.set_reads_throttled_until(tenant, api, until).await?;
        }
        Ok(())
    }

    /// Takes one call of a person who waits out of a tenant's budget.
    ///
    /// # Errors
    /// [`Error::Throttled`] when the budget or a pause forbids it.
    pub async fn take_call(&self, tenant: &TenantId, api: IncidentApi, now: Timestamp) -> Result<()> {
        for _ in 0..4 {
            let Some(feed) = self.feed(tenant).await? else {
                let rest = self.reads_throttled_until(tenant, api, now).await?;
                return rest.map_or(Ok(()), |until| Err(Error::Throttled { until }));
            };
            let mut budget = feed.budget(api);
            let before = budget.paid_until;
            budget.take(SyncKind::Poll, now).map_err(|until| Error::Throttled { until })?;
            let Some(paid_until) = budget.paid_until else { return Ok(()) };
            let update = self
                .update_feed(tenant)
                .update_expression("SET #paid = :paid")
                .expression_attribute_names("#paid", paid_attribute(api))
                .expression_attribute_values(":paid", text(paid_until.to_string()));
            let update = match before {
                Some(before) => update
                    .condition_expression("attribute_exists(pk) AND #paid = :before")
                    .expression_attribute_values(":before", text(before.to_string())),
                None => update.condition_expression("attribute_exists(pk) AND attribute_not_exists(#paid)"),
            };
            if condition_held("dynamodb:UpdateItem", update.send().await)? {
                return Ok(());
            }
        }
        Err(Error::Throttled { until: now + SignedDuration::from_secs(1) })
    }

    /// Moves the time at which a tenant is due, if it is in what is due at all.
    pub async fn set_due(&self, tenant: &TenantId, due_at: Timestamp) -> Result<()> {
        let outcome = self
            .update_feed(tenant)
            .update_expression("SET due_at = :due")
            .condition_expression("attribute_exists(due_shard)")
            .expression_attribute_values(":due", number(due_at.as_millisecond()))
            .send()
            .await;
        condition_held("dynamodb:UpdateItem", outcome).map(|_| ())
    }

    /// Moves the time at which a tenant is due from `due.due_at` to `next`; `false` when somebody else did so before.
    pub async fn claim_due(&self, due: &Due, next: Timestamp) -> Result<bool> {
        let outcome = self
            .update_feed(&due.tenant)
            .update_expression("SET due_at = :next")
            .condition_expression("due_at = :seen")
            .expression_attribute_values(":next", number(next.as_millisecond()))
            .expression_attribute_values(":seen", number(due.due_at))
            .send()
            .await;
        condition_held("dynamodb:UpdateItem", outcome)
    }

    /// The tenants of one shard that are due at `until`, or all of the shard's, a page at a time: `next` is handed back in.
    pub async fn due(
        &self,
        shard: u32,
        until: Option<Timestamp>,
        next: Option<HashMap<String, AttributeValue>>,
    ) -> Result<(Vec<Due>, Option<HashMap<String, AttributeValue>>)> {
        let until = until.map_or(i64::MAX, Timestamp::as_millisecond);
        let answer = self
            .client
            .query()
            .table_name(&self.table)
            .index_name("due")
            .key_condition_expression("due_shard = :shard AND due_at <= :until")
            .expression_attribute_values(":shard", text(format!("{shard:x}")))
            .expression_attribute_values(":until", number(until))
            .set_exclusive_start_key(next)
            .send()
            .await
            .map_err(|error| Error::aws("dynamodb:Query", &error))?;
        let due = answer.items.unwrap_or_default().into_iter().filter_map(|item| {
            Some(Due {
                tenant: item.get("pk")?.as_s().ok()?.strip_prefix("TENANT#")?.parse().ok()?,
                due_at: item.get("due_at")?.as_n().ok()?.parse().ok()?,
            })
        });
        Ok((due.collect(), answer.last_evaluated_key))
    }

    pub(super) fn update_feed(&self, tenant: &TenantId) -> UpdateItemFluentBuilder {
        self.client.update_item().table_name(&self.table).key("pk", text(tenant_pk(tenant))).key("sk", text(FEED))
    }
}

fn attribute_value(value: &impl Serialize) -> Result<AttributeValue> {
    serde_dynamo::to_attribute_value(value)
        .map_err(|_| Error::Internal("a value could not be written as an attribute".into()))
}
