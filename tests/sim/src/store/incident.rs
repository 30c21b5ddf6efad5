//! Incidents and their alerts, from which both APIs make their records.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::truncate_to_100ns;

/// An incident as a test makes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IncidentSeed {
    /// Number; the next free one if not given.
    pub id: Option<u64>,
    /// Title.
    pub display_name: String,
    /// Graph's value, e.g. `active`.
    pub status: String,
    /// Graph's value, e.g. `medium`.
    pub severity: String,
    /// Graph's value, e.g. `unknown`.
    pub classification: String,
    /// Graph's value, e.g. `unknown`.
    pub determination: String,
    /// Whom it is assigned to.
    pub assigned_to: Option<String>,
    /// Now, if not given.
    pub created: Option<Timestamp>,
    /// The time of creation, if not given.
    pub last_update: Option<Timestamp>,
    /// How many ordinary alerts it has.
    pub alerts: usize,
    /// Custom tags.
    pub custom_tags: Vec<String>,
    /// Not shown before this time, although its times may lie before it (indexed late).
    pub visible_from: Option<Timestamp>,
    /// Its alerts are not shown before this time; the time of last update does not change then.
    pub alerts_visible_from: Option<Timestamp>,
    /// Further alerts that are generated while the answer is sent.
    pub giant: Option<Giant>,
    /// Fields that no document names, shown on both APIs.
    pub extra: Map<String, Value>,
}

impl Default for IncidentSeed {
    fn default() -> Self {
        Self {
            id: None,
            display_name: "Multi-stage incident involving Execution on one endpoint".to_owned(),
            status: "active".to_owned(),
            severity: "medium".to_owned(),
            classification: "unknown".to_owned(),
            determination: "unknown".to_owned(),
            assigned_to: None,
            created: None,
            last_update: None,
            alerts: 1,
            custom_tags: Vec::new(),
            visible_from: None,
            alerts_visible_from: None,
            giant: None,
            extra: Map::new(),
        }
    }
}

impl IncidentSeed {
    pub(super) fn into_incident(self, id: u64, now: Timestamp) -> Incident {
        let created = truncate_to_100ns(self.created.or(self.last_update).unwrap_or(now));
        let last_update = truncate_to_100ns(self.last_update.unwrap_or(created));
        Incident {
            id,
            display_name: self.display_name,
            description: None,
            status: self.status,
            severity: self.severity,
            classification: self.classification,
            determination: self.determination,
            assigned_to: self.assigned_to,
            created,
            last_update,
            redirect_incident_id: None,
            custom_tags: self.custom_tags,
            system_tags: Vec::new(),
            comments: Vec::new(),
            last_modified_by: None,
            resolving_comment: None,
            summary: None,
            priority_score: None,
            alerts: (0..self.alerts).map(|n| Alert::sample(id, n, created)).collect(),
            giant: self.giant,
            hidden: false,
            visible_from: self.visible_from,
            alerts_visible_from: self.alerts_visible_from,
            raw: None,
            extra: self.extra,
        }
    }
}

/// Alerts that are never stored, so that one incident can be larger than memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Giant {
    /// How many.
    pub alerts: usize,
    /// Length of each one's description.
    pub bytes_each: usize,
}

/// An incident. Enumerations hold Graph's values; Defender's are made from them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incident {
    /// The same number on both APIs.
    pub id: u64,
    /// Title.
    pub display_name: String,
    /// Description (Graph only).
    pub description: Option<String>,
    /// `active`, `inProgress`, `awaitingAction`, `resolved`, `redirected`, or anything.
    pub status: String,
    /// `unknown`, `informational`, `low`, `medium`, `high`, or anything.
    pub severity: String,
    /// `unknown`, `truePositive`, `falsePositive`, `informationalExpectedActivity`, or anything.
    pub classification: String,
    /// E.g. `multiStagedAttack`.
    pub determination: String,
    /// Whom it is assigned to.
    pub assigned_to: Option<String>,
    /// Time of creation, to 100 ns.
    pub created: Timestamp,
    /// Time of last update, to 100 ns.
    pub last_update: Timestamp,
    /// What it was merged into.
    pub redirect_incident_id: Option<u64>,
    /// Custom tags (`tags` on Defender).
    pub custom_tags: Vec<String>,
    /// System tags (Graph only).
    pub system_tags: Vec<String>,
    /// Comments, oldest first.
    pub comments: Vec<Comment>,
    /// Who changed it last (Graph only).
    pub last_modified_by: Option<String>,
    /// Comment of the resolution (Graph only).
    pub resolving_comment: Option<String>,
    /// Summary (Graph only).
    pub summary: Option<String>,
    /// 0 to 100 (Graph only).
    pub priority_score: Option<u8>,
    /// Its alerts.
    pub alerts: Vec<Alert>,
    /// Further alerts, generated while the answer is sent.
    pub giant: Option<Giant>,
    /// Never shown.
    pub hidden: bool,
    /// Not shown before.
    pub visible_from: Option<Timestamp>,
    /// Shown without alerts before.
    pub alerts_visible_from: Option<Timestamp>,
    /// Sent in place of the record, as it stands.
    pub raw: Option<String>,
    /// Fields that no document names.
    pub extra: Map<String, Value>,
}

impl Incident {
    pub(crate) fn is_visible(&self, now: Timestamp) -> bool {
        !self.hidden && self.visible_from.is_none_or(|from| from <= now)
    }

    pub(crate) fn shows_alerts(&self, now: Timestamp) -> bool {
        self.alerts_visible_from.is_none_or(|from| from <= now)
    }

    /// Appends an ordinary alert and returns its id.
    pub fn add_alert(&mut self, at: Timestamp) -> String {
        let alert = Alert::sample(self.id, self.alerts.len(), at);
        let id = alert.id.clone();
        self.alerts.push(alert);
        id
    }
}

/// A comment on an incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comment {
    /// Text.
    pub comment: String,
    /// Who wrote it.
    pub created_by: String,
    /// When.
    pub created: Timestamp,
}

/// An alert. Enumerations hold Graph's values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// Alert ID.
    pub id: String,
    /// Title.
    pub title: String,
    /// Description.
    pub description: String,
    /// Kill-chain name.
    pub category: String,
    /// `informational`, `low`, `medium`, `high`.
    pub severity: String,
    /// `new`, `inProgress`, `resolved`.
    pub status: String,
    /// E.g. `microsoftDefenderForEndpoint`.
    pub service_source: String,
    /// E.g. `microsoftDefenderForEndpoint`.
    pub detection_source: String,
    /// E.g. `unsupportedAlertType`.
    pub investigation_state: String,
    /// E.g. `T1546.003`.
    pub mitre_techniques: Vec<String>,
    /// Whom it is assigned to.
    pub assigned_to: Option<String>,
    /// Classification, where set.
    pub classification: Option<String>,
    /// Determination, where set.
    pub determination: Option<String>,
    /// Time of creation.
    pub created: Timestamp,
    /// Time of last update.
    pub last_update: Timestamp,
    /// Time of resolution.
    pub resolved: Option<Timestamp>,
    /// First activity.
    pub first_activity: Timestamp,
    /// Last activity.
    pub last_activity: Timestamp,
    /// DNS names of devices.
    pub devices: Vec<String>,
    /// User principal names.
    pub users: Vec<String>,
    /// File names.
    pub files: Vec<String>,
    /// Mailbox addresses.
    pub mailboxes: Vec<String>,
}

impl Alert {
    /// An ordinary alert, the same each time for the same arguments.
    pub fn sample(incident_id: u64, number: usize, at: Timestamp) -> Self {
        let earlier = at.checked_sub(SignedDuration::from_secs(70)).unwrap_or(at);
        Self {
            id: format!("da{incident_id:010}-{number:06}_1"),
            title: "Suspicious PowerShell command line\u{200b}".to_owned(),
            description: "A suspicious PowerShell activity was observed on the machine. – „Ünïcode“ ✓ 🛡".to_owned(),
            category: "Execution".to_owned(),
            severity: "medium".to_owned(),
            status: "new".to_owned(),
            service_source: "microsoftDefenderForEndpoint".to_owned(),
            detection_source: "microsoftDefenderForEndpoint".to_owned(),
            investigation_state: "unsupportedAlertType".to_owned(),
            mitre_techniques: vec!["T1059.001".to_owned(), "T1546.003".to_owned()],
            assigned_to: None,
            classification: None,
            determination: None,
            created: at,
            last_update: at,
            resolved: None,
            first_activity: earlier,
            last_activity: earlier,
            devices: vec![format!("host-{number}.corp.contoso.example")],
            users: vec!["adele@contoso.example".to_owned()],
            files: vec!["sample.ps1".to_owned()],
            mailboxes: Vec::new(),
        }
    }
}
