//! The interface's promises, compared with what was delivered. The oracle parses records itself, without the product's
//! code.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use flate2::read::GzDecoder;
use jiff::Timestamp;
use serde_json::Value;

use super::{
    history::{Profile, Step},
    run::{Outcome, Version},
};

struct Line<'a> {
    object: &'a str,
    key: String,
    change: String,
    incident: String,
    severity: String,
    version: Version,
}

impl<'a> Line<'a> {
    fn read(object: &'a str, json: &Value) -> Self {
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        let record = &json["incident"];
        let either = |one: &str, other: &str| record.get(one).or(record.get(other)).cloned().unwrap_or_default();
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let alert = |alert: &Value| alert.get("id").or(alert.get("alertId")).unwrap().as_str().unwrap().to_owned();
        let version = Version {
            last_update: plain(&either("lastUpdateDateTime", "lastUpdateTime")).parse().unwrap(),
            status: record["status"].as_str().unwrap().to_ascii_lowercase(),
            redirect: plain(&either("redirectIncidentId", "redirectIncidentId")).parse().ok(),
            alerts: record["alerts"].as_array().into_iter().flatten().map(alert).collect(),
        };
        let incident = plain(&either("id", "incidentId"));
        let severity = record["severity"].as_str().unwrap().to_ascii_lowercase();
        assert_eq!(text("incident_id"), incident);
        assert_eq!(text("last_updated").parse::<Timestamp>().unwrap(), version.last_update);
        Self { object, key: text("key"), change: text("change"), incident, severity, version }
    }
}

/// Returns all that is wrong with an outcome.
pub(super) fn judge(outcome: &Outcome) -> Vec<String> {
    let mut wrong = outcome.wrong.clone();
    let lines = lines(outcome, &mut wrong);
    versions_existed(outcome, &lines, &mut wrong);
    if !outcome.is_offboarded {
        present_versions_came(outcome, &lines, &mut wrong);
        open_incidents_are_counted(outcome, &lines, &mut wrong);
    }
    keys_are_right(outcome, &lines, &mut wrong);
    incident_events_are_right(outcome, &lines, &mut wrong);
    if outcome.history.profile == Profile::Calm {
        all_is_told_once(outcome, &lines, &mut wrong);
        changes_are_called_right(&lines, &mut wrong);
    }
    if !wrong.is_empty() {
        wrong.push(format!("acted out: {:#?}", outcome.acted_faults));
    }
    wrong
}

/// The incidents of which some version was delivered.
pub(super) fn delivered_incidents(objects: &[aws_double::Object]) -> BTreeSet<String> {
    let mut incidents = BTreeSet::new();
    for object in objects.iter().filter(|object| object.key.starts_with("incidents/")) {
        let mut text = String::new();
        GzDecoder::new(&object.body[..]).read_to_string(&mut text).unwrap();
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["incident_id"].as_str().unwrap().to_owned();
        incidents.extend(text.lines().map(id));
    }
    incidents
}

fn lines<'a>(outcome: &'a Outcome, wrong: &mut Vec<String>) -> Vec<Line<'a>> {
    let mut lines = Vec::new();
    let ours = format!("/tenant_id={}/", outcome.tenant);
    for (object, body) in &outcome.objects {
        if object.starts_with(&format!("quarantine{ours}")) {
            if outcome.history.profile != Profile::Wild {
                wrong.push(format!("{object} was quarantined: {}", String::from_utf8_lossy(body)));
            }
            continue;
        }
        if !object.starts_with(&format!("incidents{ours}date=")) {
            wrong.push(format!("{object} does not belong here"));
            continue;
        }
        let mut text = String::new();
        GzDecoder::new(body.as_slice()).read_to_string(&mut text).unwrap();
        for line in text.lines() {
            let json: Value = serde_json::from_str(line).unwrap();
            let line = Line::read(object, &json);
            if !object.contains(&format!("/date={}/", line.version.last_update.strftime("%Y-%m-%d"))) {
                wrong.push(format!("{} lies under another day: {object}", line.key));
            }
            lines.push(line);
        }
    }
    lines
}

/// Returns `true` if records were delivered without their alerts because these could not be read.
fn alerts_were_unreadable(outcome: &Outcome) -> bool {
    outcome.objects.iter().any(|(object, _)| object.starts_with("quarantine/"))
}

fn versions_existed(outcome: &Outcome, lines: &[Line<'_>], wrong: &mut Vec<String>) {
    for line in lines {
        let known = outcome.ledger.get(&line.incident).map(Vec::as_slice).unwrap_or_default();
        let bare = line.version.alerts.is_empty() && alerts_were_unreadable(outcome);
        let existed = known.iter().any(|version| {
            *version == line.version || bare && Version { alerts: BTreeSet::new(), ..version.clone() } == line.version
        });
        if !existed {
            wrong.push(format!("{} never existed: {:?}; there were {known:?}", line.key, line.version));
        }
    }
}

fn present_versions_came(outcome: &Outcome, lines: &[Line<'_>], wrong: &mut Vec<String>) {
    let named: BTreeSet<&str> = outcome
        .events
        .iter()
        .filter(|(kind, _)| kind == "Incidents Delivered")
        .map(|(_, detail)| detail["object"].as_str().unwrap())
        .collect();
    for (incident, version) in &outcome.present {
        let came: Vec<&Line<'_>> = lines
            .iter()
            .filter(|line| line.incident == *incident)
            .filter(|line| {
                // The two surfaces need not agree on alerts, and so a silent change among them may pass unseen there.
                let lenient = outcome.switched && outcome.silent && line.version.last_update == version.last_update;
                line.version == *version || lenient
            })
            .collect();
        if came.is_empty() {
            let told: Vec<_> =
                lines.iter().filter(|line| line.incident == *incident).map(|line| &line.version).collect();
            wrong.push(format!("incident {incident} was not delivered as it is: {version:?}; told were {told:?}"));
        } else if !came.iter().any(|line| named.contains(line.object)) {
            wrong.push(format!("no event names an object with {incident} as it is"));
        } else if outcome.history.has_incident_events()
            && !came.iter().any(|line| incident_events(outcome).any(|event| is_of(event, line)))
        {
            wrong.push(format!("no event shows {incident} as it is"));
        }
    }
}

/// The counts are those of the marks, and each incident that Microsoft shows is marked as its version was delivered.
fn open_incidents_are_counted(outcome: &Outcome, lines: &[Line<'_>], wrong: &mut Vec<String>) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for severity in outcome.open_marks.values() {
        *counts.entry(severity.clone()).or_default() += 1;
    }
    if counts != outcome.open_counts {
        wrong.push(format!("{:?} open incidents are counted as {:?}", counts, outcome.open_counts));
    }
    for (incident, version) in &outcome.present {
        let came = lines.iter().rev().find(|line| line.incident == *incident && line.version == *version);
        let Some(line) = came else { continue };
        let is_open = version.redirect.is_none() && !matches!(version.status.as_str(), "resolved" | "redirected");
        let expected = Some(&line.severity)
            .filter(|severity| is_open && ["informational", "low", "medium", "high"].contains(&severity.as_str()));
        if outcome.open_marks.get(incident) != expected {
            wrong.push(format!("{incident} counts as {:?}, not {expected:?}", outcome.open_marks.get(incident)));
        }
    }
}

/// The details of the events about single versions.
fn incident_events(outcome: &Outcome) -> impl Iterator<Item = &Value> {
    outcome.events.iter().filter(|(kind, _)| kind == "Incident Changed").map(|(_, detail)| detail)
}

fn is_of(event: &Value, line: &Line<'_>) -> bool {
    event["key"] == line.key && event["object"] == line.object
}

/// Each event shows a version that its object holds, as that version is.
fn incident_events_are_right(outcome: &Outcome, lines: &[Line<'_>], wrong: &mut Vec<String>) {
    for event in incident_events(outcome) {
        let Some(line) = lines.iter().find(|line| is_of(event, line)) else {
            wrong.push(format!("no object holds the version of {event}"));
            continue;
        };
        let word = |text: &str| text.replace("inprogress", "in_progress").replace("awaitingaction", "awaiting_action");
        let version = &line.version;
        let is_right = event["incident_id"] == line.incident
            && event["change"] == line.change
            && event["status"] == word(&version.status)
            && event["merged_into"].as_str() == version.redirect.map(|id| id.to_string()).as_deref()
            && event["alerts"].as_u64().is_none_or(|alerts| alerts == version.alerts.len() as u64)
            && event["last_updated"] == version.last_update.to_string();
        if !is_right {
            wrong.push(format!("{event} is not {version:?}"));
        }
    }
}

fn keys_are_right(outcome: &Outcome, lines: &[Line<'_>], wrong: &mut Vec<String>) {
    let mut keys: BTreeMap<(&str, &Version), BTreeSet<&str>> = BTreeMap::new();
    let mut versions: BTreeMap<&str, BTreeSet<&Version>> = BTreeMap::new();
    for line in lines {
        let base = format!("{}/{}/{}", outcome.tenant, line.incident, line.version.last_update);
        let ordinal = line.key.strip_prefix(&base);
        let ordinal = ordinal
            .and_then(|rest| if rest.is_empty() { Some(1) } else { rest.strip_prefix('~')?.parse::<u32>().ok() });
        if ordinal.is_none() {
            wrong
                .push(format!("the key {} is not that of {} at {}", line.key, line.incident, line.version.last_update));
        }
        keys.entry((&line.incident, &line.version)).or_default().insert(&line.key);
        versions.entry(&line.key).or_default().insert(&line.version);
    }
    // An incident that changed under its old time and then changed back is another version again.
    let to_and_fro = outcome.silent || alerts_were_unreadable(outcome);
    for ((incident, version), keys) in keys {
        if keys.len() > 1 && !to_and_fro {
            wrong.push(format!("a version of {incident} has several keys, {keys:?}: {version:?}"));
        }
    }
    for (key, versions) in versions {
        if versions.len() > 1 && outcome.history.profile == Profile::Calm {
            wrong.push(format!("{key} is the key of several versions: {versions:?}"));
        }
    }
}

fn all_is_told_once(outcome: &Outcome, lines: &[Line<'_>], wrong: &mut Vec<String>) {
    let mut keys: BTreeMap<&str, usize> = BTreeMap::new();
    for line in lines {
        *keys.entry(&line.key).or_default() += 1;
    }
    for (key, count) in keys.into_iter().filter(|(_, count)| *count > 1) {
        wrong.push(format!("{key} was delivered {count} times"));
    }
    let named: Vec<&str> = outcome
        .events
        .iter()
        .filter(|(kind, _)| kind == "Incidents Delivered")
        .map(|(_, detail)| detail["object"].as_str().unwrap())
        .collect();
    for (object, _) in &outcome.objects {
        if named.iter().filter(|name| *name == object).count() != 1 {
            wrong.push(format!("{object} is not named by one event"));
        }
    }
    let of_status = outcome.events.iter().filter(|(kind, _)| kind == "Tenant Status Changed").count();
    let of_incidents = incident_events(outcome).count();
    let expected = if outcome.history.has_incident_events() { lines.len() } else { 0 };
    if of_incidents != expected {
        wrong.push(format!("{of_incidents} events for {expected} versions"));
    }
    if outcome.objects.len() != named.len() || outcome.events.len() != named.len() + of_status + of_incidents {
        wrong.push(format!("{} objects and {} events", outcome.objects.len(), outcome.events.len()));
    }
    let hides = outcome.history.steps.iter().any(|step| matches!(step, Step::Hide { .. }));
    if !hides && outcome.present.len() != outcome.ledger.len() {
        wrong.push("an incident was lost by the test itself".into());
    }
}

fn changes_are_called_right(lines: &[Line<'_>], wrong: &mut Vec<String>) {
    let mut before: BTreeMap<&str, &Version> = BTreeMap::new();
    for line in lines {
        let now = &line.version;
        let is = |version: &Version, status: &str| version.status == status;
        let expected = match before.insert(&line.incident, now) {
            None => "created",
            Some(then) if is(now, "redirected") && !is(then, "redirected") => "merged",
            Some(then) if is(now, "resolved") && !is(then, "resolved") => "closed",
            Some(then) if is(then, "resolved") && !is(now, "resolved") => "reopened",
            Some(_) => "updated",
        };
        if line.change != expected {
            wrong.push(format!("{} is called {}, not {expected}", line.key, line.change));
        }
    }
}
