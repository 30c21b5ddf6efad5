//! `incidents --follow`: each change as it comes.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use shared::clock::Clock;

use super::{
    Session,
    incidents::{PAGE, severity},
    is_passing, text,
};
use crate::{
    args::Incidents,
    incident::IncidentView,
    problem::Problem,
    text::shown,
    time::{Moment, local},
};

/// The time by which each look of `--follow` goes behind the last one: a change may be shown some minutes after its time
/// of last update.
const FOLLOW_OVERLAP: SignedDuration = SignedDuration::from_mins(15);

impl Session {
    /// Prints each change as it comes, until Ctrl-C ends the program.
    pub(super) async fn follow_incidents(&self, args: &Incidents) -> Result<(), Problem> {
        let clock = Clock::system();
        let start = args.since.unwrap_or_else(|| Moment::at(clock.now()));
        let mut follow = Follow::new(start.timestamp());
        let mut customers = self.customers().await;
        let mut failing = BTreeMap::new();
        loop {
            let now = clock.now();
            match self.look(args, &follow).await {
                Ok((incidents, failures)) => {
                    let unseen = follow.unseen(incidents, now);
                    if unseen.iter().any(|incident| !customers.contains_key(text(incident, "tenant_id"))) {
                        // A customer who came after the start.
                        customers = self.customers().await;
                    }
                    for incident in &unseen {
                        self.print_change(&customers, incident)?;
                    }
                    let now_failing: BTreeMap<_, _> = failures
                        .iter()
                        .map(|failure| (text(failure, "tenant_id").to_owned(), failure.clone()))
                        .collect();
                    for (_, failure) in
                        now_failing.iter().filter(|(tenant, failure)| failing.get(*tenant) != Some(*failure))
                    {
                        self.failure(&customers, failure)?;
                    }
                    failing = now_failing;
                }
                Err(problem) if is_passing(&problem) => {
                    self.note_retry(&problem);
                }
                Err(problem) => return Err(problem),
            }
            tokio::time::sleep(std::time::Duration::from_secs(args.interval)).await;
        }
    }

    /// Reads everything that may have changed since the look before.
    async fn look(&self, args: &Incidents, follow: &Follow) -> Result<(Vec<Value>, Vec<Value>), Problem> {
        let since = Moment::at(follow.from());
        let (mut incidents, mut failures, mut next) = (Vec::new(), Vec::new(), None::<String>);
        loop {
            let mut page = self.page(args, Some(since), PAGE, next.as_deref()).await?;
            for (member, all) in [("incidents", &mut incidents), ("failures", &mut failures)] {
                if let Value::Array(more) = page[member].take() {
                    all.extend(more);
                }
            }
            match page["next"].as_str() {
                Some(more) => next = Some(more.to_owned()),
                None => return Ok((incidents, failures)),
            }
        }
    }

    fn print_change(&self, customers: &BTreeMap<String, String>, incident: &Value) -> Result<(), Problem> {
        if self.out.is_json() {
            return self.out.object(incident);
        }
        let view = IncidentView::of(incident);
        let tenant = text(incident, "tenant_id");
        self.out.say(format_args!(
            "{}  {}  {}  {}  {}  {}",
            local(text(incident, "last_updated"), &self.out.zone),
            self.out.styled(&severity(&view.severity())),
            shown(&view.status()),
            shown(customers.get(tenant).map_or(tenant, String::as_str)),
            shown(text(incident, "incident_id")),
            shown(view.title()),
        ))
    }
}

/// The progress of `--follow`.
struct Follow {
    start: Timestamp,
    /// The start of the last look that read everything.
    last_look: Option<Timestamp>,
    /// The key of the last printed version of each incident, with its time of last update.
    printed: BTreeMap<(String, String), (String, Timestamp)>,
}

impl Follow {
    fn new(start: Timestamp) -> Self {
        Self { start, last_look: None, printed: BTreeMap::new() }
    }

    /// The time from which the next look reads: an overlap before the last look that succeeded.
    fn from(&self) -> Timestamp {
        self.last_look.map_or(self.start, |at| self.start.max(at - FOLLOW_OVERLAP))
    }

    /// The versions that were not printed yet, the oldest first. They count as printed from now on. `now` is the start of
    /// the look that read the incidents.
    fn unseen(&mut self, incidents: Vec<Value>, now: Timestamp) -> Vec<Value> {
        let mut unseen = Vec::new();
        for incident in incidents {
            let name = (text(&incident, "tenant_id").to_owned(), text(&incident, "incident_id").to_owned());
            let key = text(&incident, "key").to_owned();
            let updated = text(&incident, "last_updated").parse().unwrap_or(now);
            let printed = self.printed.get(&name);
            if printed.is_none_or(|(printed, at)| *printed != key && updated >= *at) {
                self.printed.insert(name, (key, updated));
                unseen.push(incident);
            }
        }
        self.last_look = Some(now);
        // No later look reads what lies further back. A second more, because requests carry whole seconds.
        let bound = self.from() - SignedDuration::from_secs(1);
        self.printed.retain(|_, (_, at)| *at >= bound);
        unseen.sort_by(|one, other| text(one, "last_updated").cmp(text(other, "last_updated")));
        unseen
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn incident(id: &str, updated: &str) -> Value {
        json!({"tenant_id": "t", "incident_id": id, "last_updated": updated, "key": format!("t/{id}/{updated}")})
    }

    #[test]
    fn follow_prints_each_version_once_and_in_order() {
        let now = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut follow = Follow::new(now("2026-11-22T10:00:00Z"));
        assert_eq!(follow.from(), follow.start);
        let first = vec![incident("2", "2026-11-22T10:02:00Z"), incident("1", "2026-11-22T10:01:00Z")];
        let ids = |found: Vec<Value>| found.iter().map(|one| text(one, "key").to_owned()).collect::<Vec<_>>();
        let at = now("2026-11-22T10:03:00Z");
        assert_eq!(ids(follow.unseen(first.clone(), at)), ["t/1/2026-11-22T10:01:00Z", "t/2/2026-11-22T10:02:00Z"]);
        assert_eq!(ids(follow.unseen(first, at)), [""; 0]);
        let second = vec![incident("1", "2026-11-22T10:04:00Z"), incident("2", "2026-11-22T10:02:00Z")];
        assert_eq!(ids(follow.unseen(second, at)), ["t/1/2026-11-22T10:04:00Z"]);
        // A stale read is no change.
        assert_eq!(ids(follow.unseen(vec![incident("1", "2026-11-22T10:01:00Z")], at)), [""; 0]);
        assert_eq!(follow.from(), follow.start);
        follow.unseen(Vec::new(), now("2026-11-22T12:00:00Z"));
        assert!(follow.printed.is_empty());
    }

    #[test]
    fn follow_reads_one_overlap_again_also_where_nothing_changes() {
        let now = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut follow = Follow::new(now("2026-11-22T10:00:00Z"));
        follow.unseen(Vec::new(), now("2026-11-22T10:05:00Z"));
        assert_eq!(follow.from(), now("2026-11-22T10:00:00Z"));
        follow.unseen(Vec::new(), now("2026-11-22T12:00:00Z"));
        assert_eq!(follow.from(), now("2026-11-22T11:45:00Z"));
        // An hour of looks that fail is read by the next one that succeeds.
        let at_noon = incident("1", "2026-11-22T12:01:00Z");
        assert_eq!(follow.unseen(vec![at_noon], now("2026-11-22T13:00:00Z")).len(), 1);
        assert_eq!(follow.from(), now("2026-11-22T12:45:00Z"));
        // The last overlap is read again and not printed again.
        let recent = incident("2", "2026-11-22T12:50:00Z");
        assert_eq!(follow.unseen(vec![recent.clone()], now("2026-11-22T13:01:00Z")).len(), 1);
        assert_eq!(follow.unseen(vec![recent], now("2026-11-22T13:04:59Z")).len(), 0);
    }
}
