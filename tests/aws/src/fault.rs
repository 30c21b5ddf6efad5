//! Failures of AWS, planned for single requests of a caller, and callers that die.
//!
//! A caller is named by its credentials. A caller that was killed goes on in its process, but none of its requests takes
//! effect any more.

use jiff::Timestamp;
use serde_json::json;

use crate::{Account, Aws, Item, Object};

/// A failure of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AwsFault {
    /// Nothing was done, and the response cannot be read.
    LostBefore,
    /// All was done, and the response cannot be read.
    LostAfter,
    /// Status 500; nothing was done.
    FailedBefore,
    /// Status 500, although all was done.
    FailedAfter,
    /// AWS throttles the request.
    Throttled,
    /// S3 refuses a write because of another one of the same key (409).
    Conflict,
    /// AWS accepts the next batch from this position on and refuses its first entry.
    Partial,
    /// The caller dies just before the request.
    KilledBefore,
    /// The caller dies just after the request.
    KilledAfter,
    /// The request waits before it takes effect, until [`Aws::release`].
    HeldBefore,
    /// The response waits, until [`Aws::release`].
    HeldAfter,
}

/// The request that a fault meets, counted from the caller's last plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultPosition {
    /// The n-th request, from 1.
    Request(u32),
    /// The n-th request after the first object; 0 is the object itself.
    Delivery(u32),
}

/// Defects of the code under test, acted out by the account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent defects, planted one at a time")]
pub struct Defects {
    /// Conditions that begin with `fence = :fence` always hold.
    pub ignores_fence: bool,
    /// An object is in the bucket only once its caller has written everything else.
    pub writes_objects_last: bool,
    /// The position of a pass is not stored with its cursor.
    pub forgets_position: bool,
    /// A cursor is stored as if everything up to now had been read.
    pub covers_past_reading: bool,
    /// The time before which Microsoft must not be asked is not stored.
    pub forgets_throttling: bool,
    /// The calls that were made are not stored.
    pub forgets_calls: bool,
    /// Entries that the bus refuses count as accepted.
    pub ignores_refused_events: bool,
    /// Entries of `Incident Changed` that the bus refuses count as accepted.
    pub skips_refused_incident_events: bool,
    /// The counts of open incidents are written after the versions, by a caller that is still alive then.
    pub counts_apart: bool,
    /// Each tenant is read as active.
    pub ignores_pause: bool,
    /// Conditions on jobs always hold.
    pub ignores_cancellation: bool,
}

impl Defects {
    /// Changes an item as a defective writer would have written it.
    pub(crate) fn act_out_write(self, sort_key: &str, item: &mut Item, now: Timestamp) {
        let is_paged = |item: &Item| item.get("pass_position").is_some_and(|position| position["M"].is_object());
        if self.covers_past_reading && sort_key == "FEED" && is_paged(item) {
            item.insert("covered_until".into(), json!({"S": now.to_string()}));
            item.remove("pass_position");
        }
        if self.forgets_position {
            item.remove("pass_position");
        }
        if self.forgets_calls {
            item.retain(|name, _| !name.ends_with("_paid_until"));
        }
        if self.forgets_throttling {
            item.retain(|name, _| !name.ends_with("_throttled_until"));
        }
    }
}

#[derive(Default)]
pub(crate) struct Caller {
    requests: u32,
    since_object: Option<u32>,
    plan: Vec<(FaultPosition, AwsFault)>,
    is_dead: bool,
    pub(crate) late_objects: Vec<Object>,
}

impl Account {
    /// Plans faults for a caller, from its next request on.
    pub fn plan(&mut self, caller: &str, plan: Vec<(FaultPosition, AwsFault)>) {
        let caller = self.callers.entry(caller.to_owned()).or_default();
        (caller.requests, caller.since_object, caller.plan) = (0, None, plan);
    }

    /// Ends a caller's invocation and drops the rest of its plan. Returns `false` if the caller was killed.
    pub fn end_invocation(&mut self, caller: &str) -> bool {
        let caller = self.callers.entry(caller.to_owned()).or_default();
        caller.plan.clear();
        let late = std::mem::take(&mut caller.late_objects);
        let is_alive = !caller.is_dead;
        let counts = std::mem::take(&mut self.late_counts);
        if is_alive {
            self.objects.extend(late);
            self.items.extend(counts);
        }
        is_alive
    }

    pub(crate) fn is_dead(&self, caller: &str) -> bool {
        self.callers.get(caller).is_some_and(|caller| caller.is_dead)
    }

    /// Counts a request, and takes the fault that meets it from the plan.
    pub(crate) fn fault(&mut self, name: &str, operation: &str) -> Option<AwsFault> {
        let caller = self.callers.entry(name.to_owned()).or_default();
        caller.requests += 1;
        caller.since_object = match caller.since_object {
            None => (operation == "PutObject").then_some(0),
            Some(since) => Some(since + 1),
        };
        let (now, since) = (caller.requests, caller.since_object);
        let is_batch = matches!(operation, "PutEvents" | "SendMessageBatch");
        let due = caller.plan.iter().position(|(position, fault)| match (fault, position) {
            (AwsFault::Partial, FaultPosition::Request(at)) => is_batch && now >= *at,
            (AwsFault::Partial, FaultPosition::Delivery(at)) => is_batch && since.is_some_and(|since| since >= *at),
            (_, FaultPosition::Request(at)) => *at == now,
            (_, FaultPosition::Delivery(at)) => Some(*at) == since,
        })?;
        let (_, fault) = caller.plan.remove(due);
        caller.is_dead |= matches!(fault, AwsFault::KilledBefore | AwsFault::KilledAfter);
        self.acted_faults.push(format!("{name}, request {now}, {operation}: {fault:?}"));
        Some(fault)
    }
}

impl Aws {
    /// Waits until a request is held.
    pub async fn held(&self) {
        self.shared.held.notified().await;
    }

    /// Lets the held request go on.
    pub fn release(&self) {
        self.shared.released.notify_one();
    }

    pub(crate) async fn hold(&self) {
        self.shared.held.notify_one();
        self.shared.released.notified().await;
    }
}
