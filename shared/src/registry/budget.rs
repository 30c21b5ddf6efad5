//! How often a tenant's surface may be asked: a rate that all functions share through the registry.

use jiff::{SignedDuration, Timestamp};

/// What one call costs. Twenty-four calls a minute, 1,440 an hour, are sustained.
const COST: SignedDuration = SignedDuration::from_millis(2500);

/// Calls that may come at once. With the sustained rate no minute sees more than 26 + 24 = 50 calls and no hour more
/// than 26 + 1,440 = 1,466: the documented 50 and 1,500, wherever Microsoft lets its minute begin.
const BURST: i32 = 26;

/// What a call is for; the more patient kinds leave room for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A poll, or a person who waits for an answer.
    Poll,
    /// The daily comparison.
    Sweep,
    /// Older incidents.
    Backfill,
}

impl Purpose {
    /// How many calls of the burst this kind leaves untouched.
    fn leaves(self) -> i32 {
        match self {
            Self::Poll => 0,
            Self::Sweep => 8,
            Self::Backfill => 13,
        }
    }
}

/// What is left for one surface of a tenant: a generic cell rate algorithm, which needs one timestamp, and the pause that
/// Microsoft has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// When the calls so far are paid for.
    pub paid_until: Option<Timestamp>,
    /// No call before this time.
    pub not_before: Option<Timestamp>,
}

impl Budget {
    /// Takes one call out of the budget.
    ///
    /// # Errors
    /// The time from which the call may be made, when it may not be made now.
    pub fn take(&mut self, purpose: Purpose, now: Timestamp) -> Result<(), Timestamp> {
        if let Some(not_before) = self.not_before.filter(|not_before| *not_before > now) {
            return Err(not_before);
        }
        let paid_until = self.paid_until.map_or(now, |paid| paid.max(now)) + COST;
        let most = COST * (BURST - purpose.leaves());
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
        self.paid_until = self.paid_until.max(theirs.map(|theirs| theirs + COST * calls));
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
        let mut budget = Budget { paid_until: None, not_before: Some(at(60_000)) };
        assert_eq!(budget.take(Purpose::Poll, at(59_999)), Err(at(60_000)));
        assert_eq!(budget.take(Purpose::Poll, at(60_000)), Ok(()));
    }

    #[test]
    fn what_two_take_at_once_is_paid_by_both() {
        let (mut one, mut other) = (Budget::default(), Budget::default());
        let mut together = Budget::default();
        for number in 0..6 {
            let taker = if number < 2 { &mut one } else { &mut other };
            taker.take(Purpose::Poll, at(0)).unwrap();
            together.take(Purpose::Poll, at(0)).unwrap();
        }
        one.add_to(other.paid_until, 2);
        assert_eq!(one, together);
        // What was paid long ago costs nothing now.
        let mut later = Budget { paid_until: Some(at(900_000)), not_before: None };
        later.add_to(other.paid_until, 2);
        assert_eq!(later.paid_until, Some(at(900_000)));
    }

    #[test]
    fn backfill_leaves_room_for_polls() {
        let mut budget = Budget::default();
        let mut taken = 0;
        while budget.take(Purpose::Backfill, at(0)).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, 13);
        assert_eq!(budget.take(Purpose::Poll, at(0)), Ok(()));
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
                match budget.take(Purpose::Poll, at(now)) {
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
