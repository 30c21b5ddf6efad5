//! The lease of a tenant: the right to write its feed, which at most one worker has.
//!
//! A poll that finds nothing needs no lease. So a worker may begin with the feed as it was read, and its first write takes
//! the lease, on condition that nobody had one since.

use aws_sdk_dynamodb::{
    operation::update_item::builders::UpdateItemFluentBuilder,
    types::{AttributeValue, ReturnValue},
};
use jiff::{SignedDuration, Timestamp};

use super::{
    Registry, Write,
    budget::{UncommittedCalls, paid_attribute},
    carry_over::carry_over_value,
    feed::{self, Feed},
    later_release,
    table::{Item, ItemKey, Versioned, condition_held, from_item, number, string, text, to_item, update_if},
    tenants::{self, Tenant},
};
use crate::{
    error::{Error, Result},
    microsoft::IncidentApi,
    queue::SyncKind,
    tenant::TenantId,
};

/// The number of times that a commit is tried against other functions that take calls out of the same budget.
const MAX_COMMIT_TRIES: u32 = 6;

/// The attributes of a feed that a commit does not write: others write them, or they have conditions of their own.
const NOT_COMMITTED: [&str; 9] = [
    "open_jobs",
    "fence",
    "due_at",
    "graph_paid_until",
    "graph_throttled_until",
    "defender_paid_until",
    "defender_throttled_until",
    "hunting_paid_until",
    "hunting_throttled_until",
];

/// The attribute with the position of a pass.
const POSITION: &str = "pass_position";

/// The longest time for which the progress of a quiet tenant stays unwritten.
pub const QUIET_WRITE_INTERVAL: SignedDuration = SignedDuration::from_mins(5);

/// The condition that no worker has the lease at `:now`.
const LEASE_IS_FREE: &str = "(attribute_not_exists(lease_until) OR lease_until < :now)";

/// A worker's hold on the lease of its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// The feed was only read, when nobody had the lease. The first write takes the lease until `until`.
    NotTaken { until: Timestamp },
    /// The lease is stored.
    Taken,
    /// Another worker had the lease since.
    Lost,
}

/// The right to work on one tenant until a time, taken or still to be taken.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The tenant to work on.
    pub tenant: TenantId,
    /// The feed as the registry held it at the start of the work, with this worker's changes.
    pub feed: Feed,
    /// The feed as the registry held it when it was last read or written.
    stored: Feed,
    /// The attributes of `stored`, with those of newer releases.
    item: Item,
    hold: Hold,
    was_taken: bool,
    /// The time at which `throttled_until` was last read. Other functions write it, too.
    pub(crate) throttling_read_at: Timestamp,
    /// The API refused a token under this lease, and a fresh one took its place.
    pub(crate) token_was_replaced: bool,
    /// The number of calls taken out of budgets under this lease.
    pub calls: u32,
    uncommitted: Option<UncommittedCalls>,
    next_call_is_reserved: bool,
}

impl Lease {
    fn new(tenant: TenantId, item: Item, hold: Hold, now: Timestamp) -> Result<Self> {
        let feed: Feed = from_item(item.clone())?;
        Ok(Self {
            tenant,
            stored: feed.clone(),
            item,
            feed,
            hold,
            was_taken: hold == Hold::Taken,
            throttling_read_at: now,
            token_was_replaced: false,
            calls: 0,
            uncommitted: None,
            next_call_is_reserved: false,
        })
    }

    /// Makes the next call one of the reserve that the budget keeps for quiet polls. It is not written.
    pub fn reserve_next_call(&mut self) {
        self.next_call_is_reserved = true;
    }

    /// Returns true if another worker had the lease since this one began. Whatever it read may be old.
    pub fn is_lost(&self) -> bool {
        self.hold == Hold::Lost
    }

    /// Notes that another worker had the lease since. Nothing more is written under this one.
    pub fn lose(&mut self) {
        self.hold = Hold::Lost;
    }

    /// Returns true if the lease was stored at some time.
    pub fn was_taken(&self) -> bool {
        self.was_taken
    }

    /// Returns true for work that wrote nothing and has nothing to write but how far it read.
    pub fn found_nothing(&self) -> bool {
        !self.was_taken && self.uncommitted.is_none() && self.feed.is_like_but_for_how_far_it_read(&self.stored)
    }

    /// Returns true if what was read need not be written yet.
    pub fn may_stay_unwritten(&self, now: Timestamp) -> bool {
        self.stored.last_success_at.is_some_and(|written_at| now < written_at + QUIET_WRITE_INTERVAL)
    }

    /// The attributes that this worker changed, with NULL for one to remove. What a newer release stored inside them stays,
    /// but for the position: a new one has nothing of the old.
    fn changed_attributes(&self) -> Result<Item> {
        let before = to_item(&self.stored)?;
        let mut changed = to_item(&self.feed)?;
        changed.retain(|name, value| !NOT_COMMITTED.contains(&name.as_str()) && before.get(name) != Some(value));
        for (name, value) in changed.iter_mut().filter(|(name, _)| *name != POSITION) {
            *value = carry_over_value(self.item.get(name), before.get(name), value.clone());
        }
        Ok(changed)
    }

    /// Takes one call out of the budget of an API. It is stored by the next commit.
    ///
    /// # Errors
    /// [`Error::Throttled`] when the budget is used up or Microsoft throttles.
    pub fn take_call(&mut self, api: IncidentApi, kind: SyncKind, now: Timestamp) -> Result<()> {
        let mut budget = self.feed.budget(api);
        let stored_paid_until = budget.paid_until;
        if std::mem::take(&mut self.next_call_is_reserved) {
            budget.require_no_throttling(now).map_err(|until| Error::Throttled { until })?;
            self.calls += 1;
            return Ok(());
        }
        let cost = budget.take(kind, now).map_err(|until| Error::Throttled { until })?;
        self.feed.set_paid_until(api, budget.paid_until);
        let none = UncommittedCalls { api, stored_paid_until, cost: SignedDuration::ZERO };
        self.uncommitted.get_or_insert(none).cost += cost;
        self.calls += 1;
        Ok(())
    }
}

/// The outcome of a request for a lease.
#[derive(Debug)]
pub enum Acquired {
    /// The caller has the lease.
    Lease(Box<Lease>),
    /// Another worker has the lease.
    Busy,
    /// The tenant has no feed: it was never active, or is offboarded.
    NoFeed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterCommit {
    KeepLease,
    ReleaseLease { due_at: Option<Timestamp> },
}

impl Registry {
    /// Reads a tenant and its feed in one consistent read. The lease is not taken yet: the first write takes it until
    /// `until`.
    pub async fn read_lease(
        &self,
        tenant: &TenantId,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<(Option<Tenant>, Acquired)> {
        let (mut profile, mut acquired) = (None, Acquired::NoFeed);
        let keys = [tenants::SORT_KEY, feed::SORT_KEY].map(|sk| ItemKey::of_tenant(tenant, sk));
        for item in self.batch_get(keys.into()).await? {
            if string(&item, "sk") == Some(tenants::SORT_KEY) {
                profile = Some(Tenant::read(item)?);
                continue;
            }
            let leased_until = item.get("lease_until").and_then(|until| until.as_n().ok()?.parse::<i64>().ok());
            acquired = if leased_until.is_some_and(|until| until >= now.as_millisecond()) {
                Acquired::Busy
            } else {
                Acquired::Lease(Box::new(Lease::new(*tenant, item, Hold::NotTaken { until }, now)?))
            };
        }
        Ok((profile, acquired))
    }

    /// Takes the lease of a tenant until `until`, if no other worker has it at `now`.
    pub async fn acquire_lease(&self, tenant: &TenantId, now: Timestamp, until: Timestamp) -> Result<Acquired> {
        let update = self
            .update_feed(tenant)
            .update_expression("SET lease_until = :until ADD fence :one")
            .condition_expression(format!("attribute_exists(pk) AND {LEASE_IS_FREE}"))
            .expression_attribute_values(":until", number(until.as_millisecond()))
            .expression_attribute_values(":now", number(now.as_millisecond()))
            .expression_attribute_values(":one", number(1));
        match update_and_read(update).await? {
            Some(item) => Ok(Acquired::Lease(Box::new(Lease::new(*tenant, item, Hold::Taken, now)?))),
            None if self.feed(tenant).await?.is_some() => Ok(Acquired::Busy),
            None => Ok(Acquired::NoFeed),
        }
    }

    /// Takes a lease that was only read, and leaves one that is taken. [`Write::Conflict`]: another worker had it since the
    /// feed was read.
    pub async fn take_lease(&self, lease: &mut Lease, now: Timestamp) -> Result<Write> {
        let Hold::NotTaken { until } = lease.hold else {
            return Ok(if lease.is_lost() { Write::Conflict } else { Write::Done });
        };
        let update = self
            .update_feed(&lease.tenant)
            .update_expression("SET lease_until = :until ADD fence :one")
            .condition_expression(format!("fence = :fence AND {LEASE_IS_FREE}"))
            .expression_attribute_values(":until", number(until.as_millisecond()))
            .expression_attribute_values(":now", number(now.as_millisecond()))
            .expression_attribute_values(":fence", number(lease.feed.fence))
            .expression_attribute_values(":one", number(1));
        let write = update_if(update).await?;
        if write == Write::Done {
            lease.feed.fence += 1;
            (lease.hold, lease.was_taken) = (Hold::Taken, true);
        } else {
            lease.hold = Hold::Lost;
        }
        Ok(write)
    }

    /// Writes a worker's changes to the feed, under its lease, which this write takes if it is not taken yet. Calls that
    /// others took out of the budget meanwhile stay paid, and `throttled_until` is read back. [`Write::Conflict`]: another
    /// worker had a lease since.
    pub async fn commit_feed(&self, lease: &mut Lease, now: Timestamp) -> Result<Write> {
        self.commit(lease, AfterCommit::KeepLease, now).await
    }

    /// Writes a worker's changes like [`Registry::commit_feed`], and releases the lease. A tenant that is in the `due`
    /// index is due again at `due_at`, if there is one.
    pub async fn release_lease(&self, lease: &mut Lease, due_at: Option<Timestamp>, now: Timestamp) -> Result<Write> {
        self.commit(lease, AfterCommit::ReleaseLease { due_at }, now).await
    }

    async fn commit(&self, lease: &mut Lease, then: AfterCommit, now: Timestamp) -> Result<Write> {
        if lease.is_lost() {
            return Ok(Write::Conflict);
        }
        for _ in 0..MAX_COMMIT_TRIES {
            if let Some(item) = update_and_read(self.feed_update(lease, then, now)?).await? {
                lease.uncommitted = None;
                lease.feed = from_item(item.clone())?;
                (lease.stored, lease.item) = (lease.feed.clone(), item);
                (lease.hold, lease.was_taken) = (Hold::Taken, true);
                return Ok(Write::Done);
            }
            // Either a newer lease exists, or a live read has taken a call out of the budget meanwhile.
            let stored = self.feed(&lease.tenant).await?.filter(|stored| stored.fence == lease.feed.fence);
            let (Some(stored), Some(uncommitted)) = (stored, &mut lease.uncommitted) else {
                lease.hold = Hold::Lost;
                return Ok(Write::Conflict);
            };
            uncommitted.rebase(&mut lease.feed, &stored);
        }
        Err(Error::Internal("a feed changed at each try to write it".into()))
    }

    fn feed_update(&self, lease: &Lease, then: AfterCommit, now: Timestamp) -> Result<UpdateItemFluentBuilder> {
        let mut attributes = lease.changed_attributes()?;
        let mut update =
            self.update_feed(&lease.tenant).expression_attribute_values(":fence", number(lease.feed.fence));
        let mut condition = "fence = :fence".to_owned();
        if let Some(UncommittedCalls { api, stored_paid_until, .. }) = lease.uncommitted {
            let paid = paid_attribute(api.into());
            match stored_paid_until {
                Some(stored) => {
                    condition = format!("{condition} AND {paid} = :stored");
                    update = update.expression_attribute_values(":stored", text(stored.to_string()));
                }
                None => condition = format!("{condition} AND attribute_not_exists({paid})"),
            }
            let paid_until = lease.feed.budget(api).paid_until.map(|paid_until| text(paid_until.to_string()));
            attributes.insert(paid.to_owned(), paid_until.unwrap_or(AttributeValue::Null(true)));
        }
        let mut clauses = Vec::new();
        if let Hold::NotTaken { until } = lease.hold {
            condition = format!("{condition} AND {LEASE_IS_FREE}");
            clauses.push("ADD fence :one".to_owned());
            update = update
                .expression_attribute_values(":now", number(now.as_millisecond()))
                .expression_attribute_values(":one", number(1));
            if then == AfterCommit::KeepLease {
                attributes.insert("lease_until".to_owned(), number(until.as_millisecond()));
            }
        }
        if let AfterCommit::ReleaseLease { due_at } = then {
            attributes.insert("lease_until".to_owned(), AttributeValue::Null(true));
            // A feed that was stopped has no due time.
            if let Some(due_at) = due_at.filter(|_| lease.feed.due_at.is_some()) {
                attributes.insert("due_at".to_owned(), number(due_at.as_millisecond()));
            }
        }
        let (mut set, mut remove) = (Vec::new(), Vec::new());
        for (name, value) in attributes {
            if value.is_null() {
                remove.push(name);
            } else {
                set.push(format!("{name} = :{name}"));
                update = update.expression_attribute_values(format!(":{name}"), value);
            }
        }
        if set.is_empty() && remove.is_empty() && clauses.is_empty() {
            // DynamoDB refuses an update without a clause, and the item is to be read back.
            set.push("fence = :fence".to_owned());
        }
        for (verb, names) in [("SET", set), ("REMOVE", remove)] {
            if !names.is_empty() {
                clauses.push(format!("{verb} {}", names.join(", ")));
            }
        }
        Ok(update.condition_expression(condition).update_expression(clauses.join(" ")))
    }
}

/// Sends an update that has a condition. Returns the item as written, or `None` if the condition did not hold.
pub(super) async fn update_and_read(update: UpdateItemFluentBuilder) -> Result<Option<Item>> {
    let mut item = None;
    let outcome = later_release::marked(update).return_values(ReturnValue::AllNew).send().await;
    match condition_held("dynamodb:UpdateItem", outcome.map(|response| item = response.attributes))? {
        Write::Done if item.is_none() => Err(Error::Internal("dynamodb:UpdateItem: no attributes returned".into())),
        Write::Done => Ok(item),
        Write::Conflict => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{budget::BudgetOf, throttling::throttled_attribute};

    #[test]
    fn attributes_written_alone_are_fields_of_the_feed() {
        let mut feed = Feed::default();
        feed.open_jobs.insert("job".to_owned());
        let fields = to_item(&feed).unwrap();
        let of_budgets = BudgetOf::ALL.into_iter().flat_map(|of| [paid_attribute(of), throttled_attribute(of)]);
        for name in of_budgets.chain(NOT_COMMITTED) {
            assert!(fields.contains_key(name), "{name}");
            assert!(NOT_COMMITTED.contains(&name), "{name}");
        }
        assert!(fields.contains_key(POSITION));
    }
}
