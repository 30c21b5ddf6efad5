//! The lease of a tenant: the right to write its feed, which at most one worker has.

use aws_sdk_dynamodb::{
    operation::update_item::builders::UpdateItemFluentBuilder,
    types::{AttributeValue, ReturnValue},
};
use jiff::Timestamp;

use super::{
    Registry, Write,
    budget::{UncommittedCalls, paid_attribute},
    feed::Feed,
    table::{Item, condition_held, from_item, number, text, to_item},
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
const NOT_COMMITTED: [&str; 7] = [
    "open_jobs",
    "fence",
    "due_at",
    "graph_paid_until",
    "graph_throttled_until",
    "defender_paid_until",
    "defender_throttled_until",
];

/// The right to work on one tenant until a time.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The tenant to work on.
    pub tenant: TenantId,
    /// The feed as the registry held it at the start of the lease, with this worker's changes.
    pub feed: Feed,
    /// The time at which `throttled_until` was last read. Other functions write it, too.
    pub(crate) throttling_read_at: Timestamp,
    /// The API refused a token under this lease, and a fresh one took its place.
    pub(crate) token_was_replaced: bool,
    /// The number of calls taken out of budgets under this lease.
    pub calls: u32,
    uncommitted: Option<UncommittedCalls>,
}

impl Lease {
    /// Takes one call out of the budget of an API. It is stored by the next commit.
    ///
    /// # Errors
    /// [`Error::Throttled`] when the budget is used up or Microsoft throttles.
    pub fn take_call(&mut self, api: IncidentApi, kind: SyncKind, now: Timestamp) -> Result<()> {
        let mut budget = self.feed.budget(api);
        let stored_paid_until = budget.paid_until;
        budget.take(kind, now).map_err(|until| Error::Throttled { until })?;
        self.feed.set_paid_until(api, budget.paid_until);
        self.uncommitted.get_or_insert(UncommittedCalls { api, stored_paid_until, calls: 0 }).calls += 1;
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
    ReleaseLease,
}

impl Registry {
    /// Takes the lease of a tenant until `until`, if no other worker has it at `now`.
    pub async fn acquire_lease(&self, tenant: &TenantId, now: Timestamp, until: Timestamp) -> Result<Acquired> {
        let update = self
            .update_feed(tenant)
            .update_expression("SET lease_until = :until ADD fence :one")
            .condition_expression("attribute_exists(pk) AND (attribute_not_exists(lease_until) OR lease_until < :now)")
            .expression_attribute_values(":until", number(until.as_millisecond()))
            .expression_attribute_values(":now", number(now.as_millisecond()))
            .expression_attribute_values(":one", number(1));
        match update_and_read(update).await? {
            Some(item) => {
                let (tenant, feed) = (*tenant, from_item(item)?);
                let lease = Lease {
                    tenant,
                    feed,
                    throttling_read_at: now,
                    token_was_replaced: false,
                    calls: 0,
                    uncommitted: None,
                };
                Ok(Acquired::Lease(Box::new(lease)))
            }
            None if self.feed(tenant).await?.is_some() => Ok(Acquired::Busy),
            None => Ok(Acquired::NoFeed),
        }
    }

    /// Writes a worker's changes to the feed. Calls that others took out of the budget meanwhile stay paid, and
    /// `throttled_until` is read back. [`Write::Conflict`]: a newer lease exists.
    pub async fn commit_feed(&self, lease: &mut Lease) -> Result<Write> {
        self.commit(lease, AfterCommit::KeepLease).await
    }

    /// Writes a worker's changes like [`Registry::commit_feed`], and releases the lease.
    pub async fn release_lease(&self, lease: &mut Lease) -> Result<Write> {
        self.commit(lease, AfterCommit::ReleaseLease).await
    }

    async fn commit(&self, lease: &mut Lease, then: AfterCommit) -> Result<Write> {
        for _ in 0..MAX_COMMIT_TRIES {
            if let Some(item) = update_and_read(self.feed_update(lease, then)?).await? {
                lease.uncommitted = None;
                lease.feed = from_item(item)?;
                return Ok(Write::Done);
            }
            // Either a newer lease exists, or a live read has taken a call out of the budget meanwhile.
            let Some(stored) = self.feed(&lease.tenant).await?.filter(|stored| stored.fence == lease.feed.fence) else {
                return Ok(Write::Conflict);
            };
            let Some(uncommitted) = &mut lease.uncommitted else { return Ok(Write::Conflict) };
            uncommitted.rebase(&mut lease.feed, &stored);
        }
        Err(Error::Internal("a feed changed at each try to write it".into()))
    }

    fn feed_update(&self, lease: &Lease, then: AfterCommit) -> Result<UpdateItemFluentBuilder> {
        let mut attributes = to_item(&lease.feed)?;
        attributes.retain(|name, _| !NOT_COMMITTED.contains(&name.as_str()));
        let mut update =
            self.update_feed(&lease.tenant).expression_attribute_values(":fence", number(lease.feed.fence));
        let mut condition = "fence = :fence".to_owned();
        if let Some(UncommittedCalls { api, stored_paid_until, .. }) = lease.uncommitted {
            let paid = paid_attribute(api);
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
        let (mut set, mut remove) = (Vec::new(), Vec::new());
        for (name, value) in attributes {
            if value.is_null() {
                remove.push(name);
            } else {
                set.push(format!("{name} = :{name}"));
                update = update.expression_attribute_values(format!(":{name}"), value);
            }
        }
        if then == AfterCommit::ReleaseLease {
            remove.push("lease_until".to_owned());
        }
        let mut expression = format!("SET {}", set.join(", "));
        if !remove.is_empty() {
            expression = format!("{expression} REMOVE {}", remove.join(", "));
        }
        Ok(update.condition_expression(condition).update_expression(expression))
    }
}

/// Sends an update that has a condition. Returns the item as written, or `None` if the condition did not hold.
async fn update_and_read(update: UpdateItemFluentBuilder) -> Result<Option<Item>> {
    let mut item = None;
    let outcome = update.return_values(ReturnValue::AllNew).send().await;
    match condition_held("dynamodb:UpdateItem", outcome.map(|response| item = response.attributes))? {
        Write::Done if item.is_none() => Err(Error::Internal("dynamodb:UpdateItem: no attributes returned".into())),
        Write::Done => Ok(item),
        Write::Conflict => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::throttling::throttled_attribute;

    #[test]
    fn attributes_written_alone_are_fields_of_the_feed() {
        let mut feed = Feed::default();
        feed.open_jobs.insert("job".to_owned());
        let fields = to_item(&feed).unwrap();
        let of_apis = IncidentApi::ALL.iter().flat_map(|api| [paid_attribute(*api), throttled_attribute(*api)]);
        for name in of_apis.chain(NOT_COMMITTED) {
            assert!(fields.contains_key(name), "{name}");
            assert!(NOT_COMMITTED.contains(&name), "{name}");
        }
    }
}
