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

/// The time that one call uses up. It sustains 24 calls a minute and 1,440 an hour.
const CALL_INTERVAL: SignedDuration = SignedDuration::from_millis(2500);

/// The calls that may come at once. With the sustained rate no minute sees more than 26 + 24 = 50 calls and no hour more
/// than 26 + 1,440 = 1,466. Defender documents 50 and 1,500, and any minute may be the one that Microsoft counts.
const BURST_CALLS: i32 = 26;

/// The number of times that [`Registry::take_call`] tries to write against other functions that take calls.
const MAX_TAKE_TRIES: u32 = 4;

/// The wait for a caller that found the budget contended.
const CONTENDED_BUDGET_DELAY: SignedDuration = SignedDuration::from_secs(1);

/// The calls of the burst that a kind of work leaves to the others. The less urgent kinds leave more.
fn reserved_for_others(kind: SyncKind) -> i32 {
    match kind {
        SyncKind::Poll => 0,
        SyncKind::Sweep => 8,
        SyncKind::Backfill => 13,
    }
}

/// The budget of one tenant and API: a token bucket by the generic cell rate algorithm (GCRA), whose state is one time,
/// and the time until which Microsoft throttles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// The time at which all calls so far are paid for. GCRA calls it the theoretical arrival time.
    pub paid_until: Option<Timestamp>,
    /// The time before which Microsoft must not be called.
    pub throttled_until: Option<Timestamp>,
}

impl Budget {
    /// Takes one call out of the budget.
    ///
    /// # Errors
    /// The time from which the call may be made, if it may not be made now.
    pub(super) fn take(&mut self, kind: SyncKind, now: Timestamp) -> Result<(), Timestamp> {
        self.require_no_throttling(now)?;
        let paid_until = self.paid_until.map_or(now, |paid| paid.max(now)) + CALL_INTERVAL;
        let max_ahead = CALL_INTERVAL * (BURST_CALLS - reserved_for_others(kind));
        let ahead = paid_until.duration_since(now);
        if ahead > max_ahead {
            return Err(now + (ahead - max_ahead));
        }
        self.paid_until = Some(paid_until);
        Ok(())
    }

    /// # Errors
    /// The time before which Microsoft must not be called.
    pub(super) fn require_no_throttling(&self, now: Timestamp) -> Result<(), Timestamp> {
        self.throttled_until.filter(|throttled_until| *throttled_until > now).map_or(Ok(()), Err)
    }

    /// Adds `calls` to a budget that others have meanwhile used up to `others_paid_until`. The result is exact for calls
    /// made at the same time, else a little too high.
    fn add_to(&mut self, others_paid_until: Option<Timestamp>, calls: u32) {
        let calls = i32::try_from(calls).unwrap_or(BURST_CALLS);
        self.paid_until = self.paid_until.max(others_paid_until.map(|paid| paid + CALL_INTERVAL * calls));
    }
}

/// Calls that a worker took out of a budget and has not written yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct UncommittedCalls {
    pub(super) api: IncidentApi,
    /// `paid_until` as it is stored, before these calls.
    pub(super) stored_paid_until: Option<Timestamp>,
    pub(super) calls: u32,
}

impl UncommittedCalls {
    /// Adds these calls to the budget that others have stored meanwhile.
    pub(super) fn rebase(&mut self, feed: &mut Feed, stored: &Feed) {
        let others_paid_until = stored.budget(self.api).paid_until;
        let mut budget = feed.budget(self.api);
        budget.add_to(others_paid_until, self.calls);
        feed.set_paid_until(self.api, budget.paid_until);
        self.stored_paid_until = others_paid_until;
    }
}

pub(super) fn paid_attribute(api: IncidentApi) -> &'static str {
    match api {
        IncidentApi::Graph => "graph_paid_until",
        IncidentApi::Defender => "defender_paid_until",
    }
}

impl Registry {
    /// Takes one call out of a tenant's budget at once, for a person who waits. A tenant without a feed has no budget.
    ///
    /// # Errors
    /// [`Error::Throttled`] when the budget is used up or Microsoft throttles.
    pub async fn take_call(&self, tenant: &TenantId, api: IncidentApi, now: Timestamp) -> Result<()> {
        for _ in 0..MAX_TAKE_TRIES {
            let Some(feed) = self.feed(tenant).await? else {
                let throttled_until = self.reads_throttled_until(tenant, api, now).await?;
                return throttled_until.map_or(Ok(()), |until| Err(Error::Throttled { until }));
            };
            let mut budget = feed.budget(api);
            let stored = budget.paid_until;
            budget.take(SyncKind::Poll, now).map_err(|until| Error::Throttled { until })?;
            let Some(paid_until) = budget.paid_until else { return Ok(()) };
            let update = self
                .update_feed(tenant)
                .update_expression("SET #paid = :paid")
                .expression_attribute_names("#paid", paid_attribute(api))
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

    #[test]
    fn no_call_is_taken_while_microsoft_throttles() {
        let mut budget = Budget { paid_until: None, throttled_until: Some(at(60_000)) };
        assert_eq!(budget.take(SyncKind::Poll, at(59_999)), Err(at(60_000)));
        assert_eq!(budget.take(SyncKind::Poll, at(60_000)), Ok(()));
    }

    #[test]
    fn calls_taken_at_once_by_two_are_paid_by_both() {
        let (mut one, mut other) = (Budget::default(), Budget::default());
        let mut together = Budget::default();
        for number in 0..6 {
            let taker = if number < 2 { &mut one } else { &mut other };
            taker.take(SyncKind::Poll, at(0)).unwrap();
            together.take(SyncKind::Poll, at(0)).unwrap();
        }
        one.add_to(other.paid_until, 2);
        assert_eq!(one, together);
        // Calls that were paid long ago cost nothing now.
        let mut later = Budget { paid_until: Some(at(900_000)), throttled_until: None };
        later.add_to(other.paid_until, 2);
        assert_eq!(later.paid_until, Some(at(900_000)));
    }

    #[test]
    fn backfill_leaves_room_for_polls() {
        let mut budget = Budget::default();
        let mut taken = 0;
        while budget.take(SyncKind::Backfill, at(0)).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, 13);
        assert_eq!(budget.take(SyncKind::Poll, at(0)), Ok(()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn minute_and_hour_stay_within_documented_limits(waits in proptest::collection::vec(0_i64..5_000, 1..4_000)) {
            let mut budget = Budget::default();
            let mut now = 0;
            let mut calls = Vec::new();
            for wait in waits {
                now += wait;
                match budget.take(SyncKind::Poll, at(now)) {
                    Ok(()) => calls.push(now),
                    Err(until) => prop_assert!(until > at(now)),
                }
            }
            for (first, start) in calls.iter().enumerate() {
                let within = |span: i64| calls[first..].iter().take_while(|call| **call < start + span).count();
                prop_assert!(within(60_000) <= 50 && within(3_600_000) <= 1_500);
            }
        }
    }
}
