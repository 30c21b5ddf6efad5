//! How often a tenant's surface may be asked: a rate that all functions share through the registry.

use jiff::{SignedDuration, Timestamp};

use crate::queue::SyncKind;

/// What one call costs. Twenty-four calls a minute, 1,440 an hour, are sustained.
const CALL_INTERVAL: SignedDuration = SignedDuration::from_millis(2500);

/// Calls that may come at once. With the sustained rate no minute sees more than 26 + 24 = 50 calls and no hour more
/// than 26 + 1,440 = 1,466: the documented 50 and 1,500, wherever Microsoft lets its minute begin.
const BURST: i32 = 26;

/// Calls of the burst that a kind of work leaves to the others: the more patient kinds leave more.
fn reserved_for_others(kind: SyncKind) -> i32 {
    match kind {
        SyncKind::Poll => 0,
        SyncKind::Sweep => 8,
        SyncKind::Backfill => 13,
    }
}

/// What is left for one surface of a tenant: a generic cell rate algorithm, which needs one timestamp, and the pause that
/// Microsoft has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// When the calls so far are paid for.
    pub paid_until: Option<Timestamp>,
    /// No call before this time.
    pub throttled_until: Option<Timestamp>,
}

impl Budget {
    /// Takes one call out of the budget.
    ///
    /// # Errors
    /// The time from which the call may be made, when it may not be made now.
    pub fn take(&mut self, kind: SyncKind, now: Timestamp) -> Result<(), Timestamp> {
        if let Some(throttled_until) = self.throttled_until.filter(|throttled_until| *throttled_until > now) {
            return Err(throttled_until);
        }
        let paid_until = self.paid_until.map_or(now, |paid| paid.max(now)) + CALL_INTERVAL;
        let most = CALL_INTERVAL * (BURST - reserved_for_others(kind));
        let ahead = paid_until.duration_since(now);
        if ahead > most {
            return Err(now + (ahead - most));
        }
        self.paid_until = Some(paid_until);
        Ok(())
    }

    /// Pays for `calls` on top of what others have paid up to `theirs` meanwhile. Where they were made at the same time
    /// that is what all of them cost together, else a little more.
    pub fn add_to(&mut self, theirs: Option<Timestamp>, calls: u32) {
        let calls = i32::try_from(calls).unwrap_or(BURST);
        self.paid_until = self.paid_until.max(theirs.map(|theirs| theirs + CALL_INTERVAL * calls));
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
    fn a_pause_is_kept_to_the_end() {
        let mut budget = Budget { paid_until: None, throttled_until: Some(at(60_000)) };
        assert_eq!(budget.take(SyncKind::Poll, at(59_999)), Err(at(60_000)));
        assert_eq!(budget.take(SyncKind::Poll, at(60_000)), Ok(()));
    }

    #[test]
    fn what_two_take_at_once_is_paid_by_both() {
        let (mut one, mut other) = (Budget::default(), Budget::default());
        let mut together = Budget::default();
        for number in 0..6 {
            let taker = if number < 2 { &mut one } else { &mut other };
            taker.take(SyncKind::Poll, at(0)).unwrap();
            together.take(SyncKind::Poll, at(0)).unwrap();
        }
        one.add_to(other.paid_until, 2);
        assert_eq!(one, together);
        // What was paid long ago costs nothing now.
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
        fn no_minute_sees_more_than_50_calls_and_no_hour_more_than_1500(waits in proptest::collection::vec(0_i64..5_000, 1..4_000)) {
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
            for (first, begun) in calls.iter().enumerate() {
                let within = |span: i64| calls[first..].iter().take_while(|call| **call < begun + span).count();
                prop_assert!(within(60_000) <= 50 && within(3_600_000) <= 1_500);
            }
        }
    }
}
