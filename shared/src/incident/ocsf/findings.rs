//! What is made of all alerts of an incident, one after the other.

use std::{cell::RefCell, collections::HashSet};

use serde::{
    Serialize, Serializer,
    ser::{Error as _, SerializeMap, SerializeSeq as _},
};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use super::{alert::finding_info, json::alert_value, observables::Observables};
use crate::{incident::record::Record, microsoft::IncidentApi};

/// What the event says of all alerts, gathered from one alert after the other. As values, the alerts of a large incident
/// would take ten times the memory of their text.
pub(super) struct Findings<'a> {
    record: &'a Record,
    api: IncidentApi,
    list: Vec<Box<RawValue>>,
    attacks: Vec<Value>,
    seen_attacks: HashSet<String>,
    first_seen: Option<i64>,
    last_seen: Option<i64>,
    /// The observables of the incident and of its alerts.
    pub(super) observables: Observables,
}

impl<'a> Findings<'a> {
    pub(super) fn new(record: &'a Record, api: IncidentApi) -> Self {
        Self {
            record,
            api,
            list: Vec::new(),
            attacks: Vec::new(),
            seen_attacks: HashSet::new(),
            first_seen: None,
            last_seen: None,
            observables: Observables::default(),
        }
    }

    /// Adds what an alert says, and returns the members of the alert that are not mapped.
    fn add_alert(&mut self, index: usize, alert: &RawValue) -> serde_json::Result<Value> {
        let mut alert = alert_value(alert);
        let Value::Object(members) = &mut alert else { return Ok(alert) };
        let finding = finding_info(members, self.api, || format!("{}#{index}", self.record.incident_id));
        members.retain(|_, value| !value.is_null());
        self.observables.add_evidence(&format!("unmapped.alerts[{index}]"), members);
        self.add(finding)?;
        Ok(alert)
    }

    /// Adds a finding. The incident that this one was merged into is a related event of each.
    fn add(&mut self, mut finding: Value) -> serde_json::Result<()> {
        for attack in finding["attacks"].as_array().into_iter().flatten() {
            if self.seen_attacks.insert(attack.to_string()) {
                self.attacks.push(attack.clone());
            }
        }
        let time_of = |name: &str| finding[name].as_i64();
        self.first_seen = time_of("first_seen_time").into_iter().chain(self.first_seen).min();
        self.last_seen = time_of("last_seen_time").max(self.last_seen);
        if let Some(target) = &self.record.merged_into {
            let desc = "The incident that this one was merged into.";
            finding["related_events"] = json!([{"uid": target, "type": "Incident", "desc": desc}]);
        }
        self.list.push(to_raw_value(&finding)?);
        Ok(())
    }

    /// Writes the members of the event that are about all alerts. An incident without alerts is its own only finding,
    /// `incident`.
    pub(super) fn write_to<M: SerializeMap<Error = serde_json::Error>>(
        mut self,
        event: &mut M,
        incident: impl FnOnce() -> Value,
    ) -> serde_json::Result<()> {
        if self.list.is_empty() {
            self.add(incident())?;
        }
        event.serialize_entry("finding_info_list", &self.list)?;
        if !self.attacks.is_empty() {
            event.serialize_entry("attacks", &self.attacks)?;
        }
        if let Some(time) = self.first_seen {
            event.serialize_entry("start_time", &time)?;
        }
        if let Some(time) = self.last_seen {
            event.serialize_entry("end_time", &time)?;
        }
        if let Some(observables) = self.observables.found() {
            event.serialize_entry("observables", observables)?;
        }
        Ok(())
    }
}

/// What is left of each alert once its finding is taken out, which happens while it is written.
pub(super) struct UnmappedAlerts<'a, 'record> {
    /// The alerts as they were sent.
    pub(super) sent: Vec<&'a RawValue>,
    /// Where their findings go.
    pub(super) findings: &'a RefCell<Findings<'record>>,
}

impl Serialize for UnmappedAlerts<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.sent.len()))?;
        for (index, alert) in self.sent.iter().enumerate() {
            let rest = self.findings.borrow_mut().add_alert(index, alert).map_err(S::Error::custom)?;
            list.serialize_element(&rest)?;
        }
        list.end()
    }
}
