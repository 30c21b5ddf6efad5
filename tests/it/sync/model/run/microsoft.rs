//! What happens at Microsoft in a history: incidents appear and change, and requests fail.

use jiff::{SignedDuration, Timestamp};
use sim::{FaultKind, IncidentSeed};

use super::{
    super::history::{IncidentChange, Step},
    OVERLAP, Run,
};
use crate::sync::harness::start_of_test;

impl Run<'_> {
    pub(super) fn create(&mut self, step: &Step) {
        let now = self.microsoft_now();
        // The first instant of the feed, by our clock.
        let first = start_of_test() - SignedDuration::from_hours(24);
        match step {
            Step::Create { count, ago, nanos, apart, created_apart, alerts, alerts_in } => {
                for number in 0..i64::try_from(*count).unwrap() {
                    let last_update =
                        now - SignedDuration::from_secs(ago + number * apart) - SignedDuration::from_nanos(*nanos);
                    let last_update = last_update.max(first);
                    let created = last_update - SignedDuration::from_secs(number * created_apart);
                    let alerts_visible_from = alerts_in.map(|after| now + SignedDuration::from_secs(after));
                    let seed = IncidentSeed {
                        last_update: Some(last_update),
                        created: Some(created),
                        alerts: *alerts,
                        alerts_visible_from,
                        ..IncidentSeed::default()
                    };
                    self.created(seed);
                }
            }
            Step::CreateFirst => {
                self.created(IncidentSeed {
                    last_update: Some(first),
                    created: Some(first),
                    ..IncidentSeed::default()
                });
            }
            Step::CreateInFuture { count } => {
                for number in 0..i64::try_from(*count).unwrap() {
                    let last_update =
                        now + SignedDuration::from_hours(24 * 365) + SignedDuration::from_secs(number * 100);
                    let (last_update, created) = (Some(last_update), Some(now));
                    self.created(IncidentSeed { last_update, created, alerts: 0, ..IncidentSeed::default() });
                }
            }
            _ => {}
        }
    }

    pub(super) fn change(&mut self, step: &Step) {
        let (sim, id, now) = (self.harness.sim.clone(), self.id.clone(), self.microsoft_now());
        match step {
            Step::Update { pick, change } => {
                if let Some(incident) = self.pick(*pick) {
                    sim.update_incident(&id, &incident, |incident| change.change(incident, now));
                    self.note(&incident);
                }
            }
            Step::Silent { pick, change } => {
                if let Some(incident) = self.pick(*pick) {
                    sim.change_incident_silently(&id, &incident, |incident| change.change(incident, now));
                    self.note(&incident);
                    self.silent = true;
                    self.shown(sim.incident(&id, &incident).unwrap().last_update, now);
                }
            }
            Step::Merge { pick, into } => {
                if let Some((from, into)) = self.pick(*pick).zip(self.pick(*into))
                    && sim.incident(&id, &from).unwrap().redirect_incident_id.is_none()
                    && sim.merge_incident(&id, &from, &into)
                {
                    self.note(&from);
                    self.note(&into);
                }
            }
            Step::Move { pick, into } => {
                let pair = self.pick(*pick).zip(self.pick(*into)).filter(|(from, into)| from != into);
                if let Some((from, into)) = pair {
                    let mut alerts = Vec::new();
                    sim.update_incident(&id, &from, |incident| alerts.append(&mut incident.alerts));
                    sim.update_incident(&id, &into, |incident| incident.alerts.append(&mut alerts));
                    self.note(&from);
                    self.note(&into);
                }
            }
            Step::Hide { pick } => {
                if let Some(incident) = self.pick(*pick) {
                    sim.hide_incident(&id, &incident);
                }
            }
            _ => {}
        }
    }

    pub(super) fn fail(&mut self, step: &Step) {
        let (sim, id) = (self.harness.sim.clone(), self.id.clone());
        match step {
            Step::Microsoft(fault) => {
                let untrue = match &fault.kind {
                    FaultKind::SilentCap { .. } | FaultKind::Stale { .. } | FaultKind::IgnoredFilter => true,
                    FaultKind::DateSkew { seconds } => *seconds > 0,
                    _ => false,
                };
                if untrue {
                    self.for_sweeps = None;
                }
                sim.fault((**fault).clone());
            }
            Step::Poison { pick, expand } => {
                if let Some(incident) = self.pick(*pick) {
                    let mut fault = sim::Fault::poison(&id, &incident);
                    fault.expand = *expand;
                    sim.fault(fault);
                }
            }
            _ => {}
        }
    }

    fn created(&mut self, seed: IncidentSeed) {
        let (last_update, alerts_from) = (seed.last_update.unwrap(), seed.alerts_visible_from);
        let incident = self.harness.sim.put_incident(&self.id, seed);
        self.note(&incident);
        self.ids.push(incident);
        self.shown(last_update, self.microsoft_now());
        if let Some(from) = alerts_from {
            self.silent = true;
            self.shown(last_update, from);
        }
    }

    /// Something is shown from `at` on that was last updated at `last_update`.
    fn shown(&mut self, last_update: Timestamp, at: Timestamp) {
        let begun = self.covered_until().is_some() || at > self.microsoft_now();
        if begun && last_update < at - OVERLAP {
            self.for_sweeps = self.for_sweeps.map(|count| count + 1);
        }
    }

    /// An incident that was not updated in the future.
    fn pick(&self, pick: usize) -> Option<String> {
        let id = (!self.ids.is_empty()).then(|| self.ids[pick % self.ids.len()].clone())?;
        let incident = self.harness.sim.incident(&self.id, &id)?;
        (incident.last_update <= self.microsoft_now()).then_some(id)
    }

    /// Ends all faults, except for those of the history's world.
    pub(super) fn clear_faults(&self) {
        let (sim, world) = (&self.harness.sim, &self.history.world);
        sim.clear_faults();
        if world.has_no_date {
            sim.fault(sim::Fault::new(FaultKind::UnreadableDate));
        }
        if world.alerts_fail {
            sim.fault(sim::Fault::new(FaultKind::status(500)).on(sim::Host::Graph).with_expand());
        }
    }
}

impl IncidentChange {
    fn change(self, incident: &mut sim::Incident, now: Timestamp) {
        match self {
            Self::Status(_) if incident.redirect_incident_id.is_some() => {}
            Self::Status(status) => incident.status = status.into(),
            Self::Severity(severity) => incident.severity = severity.into(),
            Self::Alert => {
                incident.add_alert(now);
            }
            Self::Assign => incident.assigned_to = Some("ada@contoso.example".into()),
        }
    }
}
