//! One incident: read it, change it.

use serde_json::{Map, Value, json};
use shared::incident::record::is_incident_id;

use super::{Session, incidents::severity, text};
use crate::{
    args::{Changes, Classification, NewStatus, OneIncident, Set},
    incident::IncidentView,
    output::{Field, Rows},
    problem::Problem,
    text::shown_lines,
    time::local,
};

impl Session {
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
            ("Tags", if view.tags().is_empty() { "–".into() } else { Field::from(view.tags().join(", ")) }),
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
        let noun = if alerts.len() == 1 { "alert" } else { "alerts" };
        self.out.say(format_args!("\n{} {noun}", alerts.len()))?;
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
            ("status", self.status.map(NewStatus::word)),
            ("assigned_to", self.assigned_to.as_deref()),
            ("classification", self.classification.map(Classification::word)),
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
