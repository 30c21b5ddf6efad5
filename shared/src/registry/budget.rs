//! The budget of calls to a tenant's incident API: a rate that all functions share through the registry.

use jiff::{SignedDuration, Timestamp};

use super::{
    Registry, Write,
    feed::Feed,
    table::{text, update_if},
};
use crate::{
    error::{Error, Result},
    microsoft::IncidentApi,
    queue::SyncKind,
    tenant::TenantId,
};

/// The calls in a minute that quiet polls may make without being written: what two ticks queue, each of them twice. An
/// hour sees at most 122 of them. The rates below leave them free.
#[cfg(test)]
const RESERVED_CALLS_A_MINUTE: usize = 4;

/// The time for which a 429 halves Graph's rate.
const HALVED_AFTER_THROTTLING: SignedDuration = SignedDuration::from_hours(1);

/// The calls that share a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetOf {
    /// The calls to an incident API.
    Incidents(IncidentApi),
    /// Hunting queries. Microsoft counts them apart.
    Hunting,
}

impl BudgetOf {
    /// All budgets of a tenant.
    pub(super) const ALL: [Self; 3] =
        [Self::Incidents(IncidentApi::Graph), Self::Incidents(IncidentApi::Defender), Self::Hunting];
}

impl From<IncidentApi> for BudgetOf {
    fn from(api: IncidentApi) -> Self {
        Self::Incidents(api)
    }
}

/// A rate of calls. A minute sees at most `burst` calls and those that `call_interval` sustains.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// The time that one call uses up.
    call_interval: SignedDuration,
    /// The calls that may come at once.
    burst: i32,
}

impl Rate {
    const fn new(call_millis: i64, burst: i32) -> Self {
        Self { call_interval: SignedDuration::from_millis(call_millis), burst }
    }

    /// The calls of the burst that a kind of work leaves to the others. The less urgent kinds leave more.
    fn reserved_for_others(self, kind: SyncKind) -> i32 {
        match kind {
            // Hunting has a budget of its own.
            SyncKind::Poll | SyncKind::Hunt => 0,
            SyncKind::Sweep => self.burst / 3,
            SyncKind::Backfill => self.burst / 2,
        }
    }
}

/// 48 + 48 calls a minute of 100. Microsoft publishes 150 for Graph's neighbours and nothing for incidents.
const GRAPH: Rate = Rate::new(1_250, 48);

/// 22 + 24 calls a minute of 50.
const HALVED_GRAPH: Rate = Rate::new(2_500, 22);

/// 22 + 22 calls a minute of 50, and 22 + 1,333 an hour of 1,500. Defender documents both.
const DEFENDER: Rate = Rate::new(2_700, 22);

/// 25 + 20 calls a minute of 45.
const HUNTING: Rate = Rate::new(3_000, 25);

/// The number of times that [`Registry::take_call`] tries to write against other functions that take calls.
const MAX_TAKE_TRIES: u32 = 4;

/// The wait for a caller that found the budget contended.
const CONTENDED_BUDGET_DELAY: SignedDuration = SignedDuration::from_secs(1);

/// A budget of one tenant: a token bucket by the generic cell rate algorithm (GCRA), whose state is one time, and the time
/// until which Microsoft throttles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The calls that it is for.
    pub of: BudgetOf,
    /// The time at which all calls so far are paid for. GCRA calls it the theoretical arrival time.
    pub paid_until: Option<Timestamp>,
    /// The time before which Microsoft must not be called.
    pub throttled_until: Option<Timestamp>,
}

impl Budget {
    /// Takes one call out of the budget, and returns the time that it uses up.
    ///
    /// # Errors
    /// The time from which the call may be made, if it may not be made now.
    pub(super) fn take(&mut self, kind: SyncKind, now: Timestamp) -> Result<SignedDuration, Timestamp> {
        self.require_no_throttling(now)?;
        let rate = self.rate(now);
        let paid_until = self.paid_until.map_or(now, |paid| paid.max(now)) + rate.call_interval;
        let max_ahead = rate.call_interval * (rate.burst - rate.reserved_for_others(kind));
        let ahead = paid_until.duration_since(now);
        if ahead > max_ahead {
            return Err(now + (ahead - max_ahead));
        }
        self.paid_until = Some(paid_until);
        Ok(rate.call_interval)
    }

    fn rate(&self, now: Timestamp) -> Rate {
        let halved = self.throttled_until.is_some_and(|until| now < until + HALVED_AFTER_THROTTLING);
        match self.of {
            BudgetOf::Incidents(IncidentApi::Graph) if halved => HALVED_GRAPH,
            BudgetOf::Incidents(IncidentApi::Graph) => GRAPH,
            BudgetOf::Incidents(IncidentApi::Defender) => DEFENDER,
            BudgetOf::Hunting => HUNTING,
        }
    }

    /// # Errors
    /// The time before which Microsoft must not be called.
    pub(super) fn require_no_throttling(&self, now: Timestamp) -> Result<(), Timestamp> {
        self.throttled_until.filter(|throttled_until| *throttled_until > now).map_or(Ok(()), Err)
    }

    /// Adds calls that use up `cost` to a budget that others have meanwhile used up to `others_paid_until`. The result is
    /// exact for calls made at the same time, else a little too high.
    fn add_to(&mut self, others_paid_until: Option<Timestamp>, cost: SignedDuration) {
        self.paid_until = self.paid_until.max(others_paid_until.map(|paid| paid + cost));
    }
}

/// Calls that a worker took out of a budget and has not written yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct UncommittedCalls {
    pub(super) api: IncidentApi,
    /// `paid_until` as it is stored, before these calls.
    pub(super) stored_paid_until: Option<Timestamp>,
    /// The time that the calls use up.
    pub(super) cost: SignedDuration,
}

impl UncommittedCalls {
    /// Adds these calls to the budget that others have stored meanwhile.
    pub(super) fn rebase(&mut self, feed: &mut Feed, stored: &Feed) {
        let others_paid_until = stored.budget(self.api).paid_until;
        let mut budget = feed.budget(self.api);
        budget.add_to(others_paid_until, self.cost);
        feed.set_paid_until(self.api, budget.paid_until);
        self.stored_paid_until = others_paid_until;
    }
}

pub(super) fn paid_attribute(of: BudgetOf) -> &'static str {
    match of {
        BudgetOf::Incidents(IncidentApi::Graph) => "graph_paid_until",
        BudgetOf::Incidents(IncidentApi::Defender) => "defender_paid_until",
        BudgetOf::Hunting => "hunting_paid_until",
    }
}

impl Registry {
    /// Takes one call out of a tenant's budget at once, for a person who waits. A tenant without a feed has no budget.
    ///
    /// # Errors
    /// [`Error::Throttled`] when the budget is used up or Microsoft throttles.
    pub async fn take_call(&self, tenant: &TenantId, of: impl Into<BudgetOf>, now: Timestamp) -> Result<()> {
        let of = of.into();
        for _ in 0..MAX_TAKE_TRIES {
            let Some(feed) = self.feed(tenant).await? else {
                let throttled_until = self.calls_of_throttled_until(tenant, of, now).await?;
                return throttled_until.map_or(Ok(()), |until| Err(Error::Throttled { until }));
            };
            let mut budget = feed.budget(of);
            let stored = budget.paid_until;
            budget.take(SyncKind::Poll, now).map_err(|until| Error::Throttled { until })?;
            let Some(paid_until) = budget.paid_until else { return Ok(()) };
            let update = self
                .update_feed(tenant)
                .update_expression("SET #paid = :paid")
                .expression_attribute_names("#paid", paid_attribute(of))
                .expression_attribute_values(":paid", text(paid_until.to_string()));
            let update = match stored {
                Some(stored) => update
                    .condition_expression("attribute_exists(pk) AND #paid = :stored")
                    .expression_attribute_values(":stored", text(stored.to_string())),
                None => update.condition_expression("attribute_exists(pk) AND attribute_not_exists(#paid)"),
            };
            if update_if(update).await? == Write::Done {
                return Ok(());
            }
        }
        Err(Error::Throttled { until: now + CONTENDED_BUDGET_DELAY })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_700_000_000_000 + millis).unwrap()
    }

    fn budget(of: impl Into<BudgetOf>) -> Budget {
        Budget { of: of.into(), paid_until: None, throttled_until: None }
    }

    #[test]
    fn no_call_is_taken_while_microsoft_throttles() {
        for of in BudgetOf::ALL {
            let mut budget = Budget { throttled_until: Some(at(60_000)), ..budget(of) };
            assert_eq!(budget.take(SyncKind::Poll, at(59_999)), Err(at(60_000)));
            assert!(budget.take(SyncKind::Poll, at(60_000)).is_ok());
        }
    }

    #[test]
    fn calls_taken_at_once_by_two_are_paid_by_both() {
        let (mut one, mut other) = (budget(IncidentApi::Graph), budget(IncidentApi::Graph));
        let mut together = budget(IncidentApi::Graph);
        let mut cost = SignedDuration::ZERO;
        for number in 0..6 {
            let taker = if number < 2 { &mut one } else { &mut other };
            let interval = taker.take(SyncKind::Poll, at(0)).unwrap();
            cost += if number < 2 { interval } else { SignedDuration::ZERO };
            together.take(SyncKind::Poll, at(0)).unwrap();
        }
        one.add_to(other.paid_until, cost);
        assert_eq!(one, together);
        // Calls that were paid long ago cost nothing now.
        let mut later = Budget { paid_until: Some(at(900_000)), ..budget(IncidentApi::Graph) };
        later.add_to(other.paid_until, cost);
        assert_eq!(later.paid_until, Some(at(900_000)));
    }

    #[test]
    fn backfill_leaves_room_for_polls() {
        for (api, room) in [(IncidentApi::Graph, 24), (IncidentApi::Defender, 11)] {
            let mut budget = budget(api);
            let mut taken = 0;
            while budget.take(SyncKind::Backfill, at(0)).is_ok() {
                taken += 1;
            }
            assert_eq!(taken, room);
            assert!(budget.take(SyncKind::Poll, at(0)).is_ok());
        }
    }

    #[test]
    fn a_429_halves_the_rate_of_graph_for_an_hour() {
        let calls = |budget: Budget, start: i64| {
            let mut budget = budget;
            (0..60_000).step_by(100).filter(|wait| budget.take(SyncKind::Poll, at(start + wait)).is_ok()).count()
        };
        let throttled = Budget { throttled_until: Some(at(0)), ..budget(IncidentApi::Graph) };
        assert_eq!(calls(throttled, 0), 45);
        assert_eq!(calls(throttled, 3_540_000), 45);
        assert_eq!(calls(throttled, 3_600_000), 95);
    }

    /// The most calls in any span of so many milliseconds.
    fn most_within(calls: &[i64], span: i64) -> usize {
        let from = |first: usize| calls[first..].partition_point(|call| *call < calls[first] + span);
        (0..calls.len()).map(from).max().unwrap_or(0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn all_workers_together_stay_within_the_limits(
            waits in proptest::collection::vec(0_i64..4_000, 1..4_000),
            delays in proptest::collection::vec(0_i64..60_000, 300),
            throttled_at in 0_i64..4_000_000,
        ) {
            let limits = [(IncidentApi::Graph, 100, usize::MAX), (IncidentApi::Defender, 50, 1_500)];
            for (api, minute, hour) in limits {
                let mut budget = budget(api);
                let (mut now, mut calls, mut quiet) = (0, Vec::new(), Vec::new());
                for wait in &waits {
                    now += wait;
                    if now >= throttled_at {
                        budget.throttled_until = Some(at(throttled_at));
                    }
                    match budget.take(SyncKind::Poll, at(now)) {
                        Ok(_) => calls.push(now),
                        Err(until) => prop_assert!(until > at(now)),
                    }
                }
                // Each tick queues two polls, and each of them is taken within an interval.
                for (number, delay) in delays.iter().enumerate() {
                    quiet.push(i64::try_from(number / 2).unwrap() * 60_000 + delay);
                }
                quiet.sort_unstable();
                prop_assert!(most_within(&quiet, 60_000) <= RESERVED_CALLS_A_MINUTE);
                calls.extend(quiet);
                calls.sort_unstable();
                prop_assert!(most_within(&calls, 60_000) <= minute);
                prop_assert!(most_within(&calls, 3_600_000) <= hour);
                if api == IncidentApi::Graph {
                    let halved = throttled_at..throttled_at + 3_600_000;
                    calls.retain(|call| halved.contains(call));
                    prop_assert!(most_within(&calls, 60_000) <= minute / 2);
                }
            }
        }
    }
}
