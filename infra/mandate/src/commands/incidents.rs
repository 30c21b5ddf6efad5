//! Incidents over all tenants or of one: list, follow, read, change.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use shared::{clock::Clock, incident::record::is_incident_id};

use super::{Session, all_pages, is_passing, text};
use crate::{
    args::{Changes, Incidents, OneIncident, Set},
    incident::IncidentView,
    output::{Field, Mood, Rows},
    problem::Problem,
    text::{shown, shown_lines},
    time::{Moment, local},
};

/// The time by which each look of `--follow` goes behind the last one: a change may be shown some minutes after its time of last update.
const FOLLOW_OVERLAP: SignedDuration = SignedDuration::from_mins(15);

/// The page size of a list. Larger pages save calls to Microsoft, smaller ones come sooner.
const PAGE: usize = 100;

impl Session {
    pub(crate) async fn incidents(&self, args: &Incidents) -> Result<(), Problem> {
        if args.follow {
            return self.follow_incidents(args).await;
        }
        let mut rows = self.incident_rows().await;
        let (mut printed, mut next, mut reported) = (0, None, BTreeSet::new());
        loop {
            let left = if args.limit == 0 { PAGE } else { (args.limit - printed).min(PAGE) };
            let mut page = self.page(args, args.since, left, next.as_deref()).await?;
            for incident in page["incidents"].as_array().into_iter().flatten() {
                rows.add(self, incident)?;
                printed += 1;
            }
            // Each page of the list may name the same tenants.
            let failures = page["failures"].as_array().into_iter().flatten();
            for failure in failures.filter(|failure| reported.insert(text(failure, "tenant_id").to_owned())) {
                self.failure(failure)?;
            }
            next = match page["next"].take() {
                Value::String(next) => Some(next),
                _ => None,
            };
            if next.is_none() || (args.limit != 0 && printed >= args.limit) {
                break;
            }
        }
        if self.out.is_json() {
            return Ok(());
        }
        if printed == 0 {
            return self.out.say("No incident was updated in this time. --since 7d looks further back.");
        }
        self.out.table(rows.rows)?;
        if next.is_some() {
            self.out.say(format_args!("\nThere are more: --limit {} or --limit 0 prints them.", printed * 2))?;
        }
        Ok(())
    }

    /// One page of the list that the options name.
    async fn page(
        &self,
        args: &Incidents,
        since: Option<Moment>,
        limit: usize,
        next: Option<&str>,
    ) -> Result<Value, Problem> {
        let tenant = args.tenant.map(|tenant| tenant.to_string());
        let path = match &tenant {
            Some(tenant) => vec!["tenants", tenant, "incidents"],
            None => vec!["incidents"],
        };
        let (limit, since) = (limit.to_string(), since.map(Moment::utc));
        let query = [
            ("limit", Some(limit.as_str())),
            ("from", since.as_deref()),
            ("severity", args.severity.map(crate::args::Severity::word)),
            ("status", args.status.map(crate::args::IncidentStatus::word)),
            ("assigned_to", args.assigned_to.as_deref()),
            ("next", next),
        ];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        self.api.get(&path, &query).await
    }

    /// Reports a tenant that could not be read. A program finds it as an object with the one member `failure`.
    pub(crate) fn failure(&self, failure: &Value) -> Result<(), Problem> {
        if self.out.is_json() {
            self.out.object(&json!({"failure": failure}))?;
        }
        self.note_failure(failure);
        Ok(())
    }

    /// Says on standard error that a tenant could not be read.
    pub(crate) fn note_failure(&self, failure: &Value) {
        let reason = failure["reason"].as_str().map(|reason| format!(", {}", shown(reason))).unwrap_or_default();
        let (tenant, code) = (shown(text(failure, "tenant_id")), shown(text(failure, "code")));
        self.out.note(format_args!("mandate: {tenant} is missing: {code}{reason}"));
    }

    /// The customers' names by tenant. A caller without the right to list tenants sees ids.
    pub(crate) async fn customers(&self) -> BTreeMap<String, String> {
        if self.out.is_json() {
            return BTreeMap::new();
        }
        let tenants = all_pages(&self.api, &["tenants"], &[], "tenants").await.unwrap_or_default();
        let names = tenants.iter().map(|tenant| (text(tenant, "tenant_id"), text(tenant, "customer")));
        names.map(|(tenant, customer)| (tenant.to_owned(), customer.to_owned())).collect()
    }

    async fn incident_rows(&self) -> IncidentRows {
        let header = ["UPDATED", "SEVERITY", "STATUS", "CUSTOMER", "INCIDENT", "TITLE"];
        IncidentRows { customers: self.customers().await, rows: Rows::new(header).unbroken(0).unbroken(4) }
    }

    /// Prints each change as it comes, until Ctrl-C ends the program.
    async fn follow_incidents(&self, args: &Incidents) -> Result<(), Problem> {
        let clock = Clock::system();
        let start = args.since.unwrap_or_else(|| Moment::at(clock.now()));
        let mut follow = Follow::new(start.timestamp());
        let customers = self.customers().await;
        let mut failing = BTreeMap::new();
        loop {
            let now = clock.now();
            match self.look(args, &follow).await {
                Ok((incidents, failures)) => {
                    for incident in follow.unseen(incidents, now) {
                        self.print_change(&customers, &incident)?;
                    }
                    let now_failing: BTreeMap<_, _> = failures
                        .iter()
                        .map(|failure| (text(failure, "tenant_id").to_owned(), failure.clone()))
                        .collect();
                    for (_, failure) in
                        now_failing.iter().filter(|(tenant, failure)| failing.get(*tenant) != Some(*failure))
                    {
                        self.failure(failure)?;
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

    pub(crate) async fn incident(&self, args: &OneIncident) -> Result<(), Problem> {
        let incident = self.api.get(&args.path()?.each_ref().map(String::as_str), &[]).await?;
        self.show_incident(&incident)
    }

    pub(crate) async fn set(&self, args: &Set) -> Result<(), Problem> {
        let path = args.incident.path()?;
        let incident = self.api.patch(&path.each_ref().map(String::as_str), &args.changes.body()).await?;
        self.show_incident(&incident)
    }

    fn show_incident(&self, incident: &Value) -> Result<(), Problem> {
        if self.out.is_json() {
            return self.out.object(incident);
        }
        let view = IncidentView::of(incident);
        let zone = &self.out.zone;
        let mut pairs = vec![
            ("Title", Field::from(view.title())),
            ("Severity", severity(&view.severity())),
            ("Status", Field::from(view.status())),
            ("Incident", Field::from(format!("{} of {}", text(incident, "incident_id"), text(incident, "tenant_id")))),
            ("Updated", Field::from(local(text(incident, "last_updated"), zone))),
            ("Created", Field::from(local(view.created().unwrap_or("–"), zone))),
            ("Assigned to", Field::from(view.assigned_to().unwrap_or("–"))),
            ("Judgement", Field::from(format!("{}, {}", view.classification(), view.determination()))),
            ("Tags", Field::from(view.tags().join(", "))),
            ("Portal", Field::from(view.url().unwrap_or("–"))),
        ];
        pairs.extend(view.comments().map(|comment| {
            ("Comment", Field::from(format!("{} {}: {}", local(comment.at, zone), comment.by, comment.text)))
        }));
        self.out.pairs(pairs)?;
        if let Some(description) = view.description() {
            self.out.say("")?;
            shown_lines(description).into_iter().try_for_each(|line| self.out.say(line))?;
        }
        let Some(alerts) = view.alerts() else {
            return self.out.say("\nThe incident is too large to show its alerts here. The portal has them.");
        };
        self.out.say(format_args!("\n{} alerts", alerts.len()))?;
        let mut rows = Rows::new(["FIRST SEEN", "SEVERITY", "STATUS", "SOURCE", "ALERT", "EVIDENCE"]);
        for alert in alerts {
            let evidence: Vec<_> = alert.evidence().into_iter().map(|(kind, name)| format!("{kind} {name}")).collect();
            rows.push(vec![
                local(alert.first_activity().unwrap_or("–"), zone).into(),
                severity(&alert.severity()),
                alert.status().into(),
                alert.source().into(),
                alert.title().into(),
                evidence.join(", ").into(),
            ]);
        }
        self.out.table(rows)
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

/// A list of incidents in the making.
struct IncidentRows {
    customers: BTreeMap<String, String>,
    rows: Rows,
}

impl IncidentRows {
    /// Prints the incident for programs, and keeps it as a row for people.
    fn add(&mut self, session: &Session, incident: &Value) -> Result<(), Problem> {
        if session.out.is_json() {
            return session.out.object(incident);
        }
        let view = IncidentView::of(incident);
        let tenant = text(incident, "tenant_id");
        self.rows.push(vec![
            local(text(incident, "last_updated"), &session.out.zone).into(),
            severity(&view.severity()),
            view.status().into(),
            self.customers.get(tenant).map_or(tenant, String::as_str).into(),
            text(incident, "incident_id").into(),
            view.title().into(),
        ]);
        Ok(())
    }
}

/// A severity in its colour.
fn severity(word: &str) -> Field {
    let mood = match word {
        "high" => Mood::Bad,
        "medium" => Mood::Doubtful,
        _ => Mood::Plain,
    };
    Field::new(word, mood)
}

impl OneIncident {
    /// The segments of the incident's route.
    fn path(&self) -> Result<[String; 4], Problem> {
        if !is_incident_id(&self.incident_id) {
            return Err(Problem::new("usage", "An incident's number has 1 to 20 digits.")
                .advise("`mandate incidents` lists them: mandate incident TENANT ID"));
        }
        Ok(["tenants".to_owned(), self.one.tenant_id.to_string(), "incidents".to_owned(), self.incident_id.clone()])
    }
}

impl Changes {
    /// The body of the request. A member that is absent stays as it is.
    fn body(&self) -> Value {
        let mut body = Map::new();
        let texts = [
            ("status", self.status.map(crate::args::NewStatus::word)),
            ("assigned_to", self.assigned_to.as_deref()),
            ("classification", self.classification.map(crate::args::Classification::word)),
            ("determination", self.determination.as_deref()),
            ("comment", self.comment.as_deref()),
        ];
        body.extend(texts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))));
        if self.unassign {
            body.insert("assigned_to".to_owned(), Value::Null);
        }
        if self.no_tags || !self.tags.is_empty() {
            body.insert("tags".to_owned(), json!(self.tags));
        }
        Value::Object(body)
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn changes_hold_only_what_was_said() {
        use clap::Parser;
        let body = |line: &str| {
            let id = "11111111-2222-4333-8444-555555555555";
            let cli = crate::args::Cli::try_parse_from(["mandate", "set", id, "7"].into_iter().chain(line.split(' ')))
                .unwrap();
            let crate::args::Command::Set(set) = cli.command else { panic!("{line}") };
            set.changes.body()
        };
        assert_eq!(body("--status resolved --comment done"), json!({"status": "resolved", "comment": "done"}));
        assert_eq!(body("--unassign --no-tags"), json!({"assigned_to": null, "tags": []}));
        assert_eq!(body("--tag a --tag b --assigned-to me@x"), json!({"tags": ["a", "b"], "assigned_to": "me@x"}));
    }
}
