//! Incidents over all tenants or of one, as a list.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Session, all_pages, text};
use crate::{
    args::{IncidentStatus, Incidents, Severity},
    incident::IncidentView,
    output::{Field, Mood, Rows},
    problem::Problem,
    text::shown,
    time::{Moment, local},
};

/// The page size of a list. Larger pages save calls to Microsoft, smaller ones come sooner.
pub(super) const PAGE: usize = 100;

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
                self.failure(&rows.customers, failure)?;
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
        self.out.say("\n`mandate incident TENANT ID` shows one; `mandate tenants` has the ids of the tenants.")?;
        if next.is_some() {
            self.out.say(format_args!("There are more: --limit {} or --limit 0 prints them.", printed * 2))?;
        }
        Ok(())
    }

    /// One page of the list that the options name.
    pub(super) async fn page(
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
            ("severity", args.severity.map(Severity::word)),
            ("status", args.status.map(IncidentStatus::word)),
            ("assigned_to", args.assigned_to.as_deref()),
            ("next", next),
        ];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        self.api.get(&path, &query).await
    }

    /// Reports a tenant that could not be read. A program finds it as an object with the one member `failure`.
    pub(super) fn failure(&self, customers: &BTreeMap<String, String>, failure: &Value) -> Result<(), Problem> {
        if self.out.is_json() {
            self.out.object(&json!({"failure": failure}))?;
        }
        self.note_failure(customers, failure);
        Ok(())
    }

    /// Says on standard error that a tenant could not be read.
    pub(super) fn note_failure(&self, customers: &BTreeMap<String, String>, failure: &Value) {
        let reason = failure["reason"].as_str().map(|reason| format!(", {}", shown(reason))).unwrap_or_default();
        let (tenant, code) = (text(failure, "tenant_id"), shown(text(failure, "code")));
        let named = customers
            .get(tenant)
            .map_or_else(|| shown(tenant), |customer| format!("{} ({})", shown(customer), shown(tenant)));
        self.out.note(format_args!("mandate: {named} is missing: {code}{reason}"));
    }

    /// The customers' names by tenant. A caller without the right to list tenants sees ids.
    pub(super) async fn customers(&self) -> BTreeMap<String, String> {
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
pub(super) fn severity(word: &str) -> Field {
    let mood = match word {
        "high" => Mood::Bad,
        "medium" => Mood::Doubtful,
        _ => Mood::Plain,
    };
    Field::new(word, mood)
}
