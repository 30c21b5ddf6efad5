//! Incidents and their alerts, from which both APIs make their records.

use std::sync::LazyLock;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::truncate_to_100ns;

/// The properties of a new incident.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IncidentSeed {
    /// Number of the incident; the next free one if not given.
    pub id: Option<u64>,
    /// Title (`displayName`, `incidentName` on Defender).
    pub display_name: String,
    /// Graph's value, e.g. `active`.
    pub status: String,
    /// Graph's value, e.g. `medium`.
    pub severity: String,
    /// Graph's value, e.g. `unknown`.
    pub classification: String,
    /// Graph's value, e.g. `unknown`.
    pub determination: String,
    /// Owner of the incident, if assigned.
    pub assigned_to: Option<String>,
    /// Time of creation; now if not given.
    pub created: Option<Timestamp>,
    /// Time of last update; the time of creation if not given.
    pub last_update: Option<Timestamp>,
    /// Number of ordinary alerts, which [`Alert::sample`] makes.
    pub alerts: usize,
    /// Evidence of the alerts.
    pub evidence: EvidenceSet,
    /// Members that name the kill-chain phases of the alerts.
    pub alert_categories: AlertCategories,
    /// Custom tags (`tags` on Defender).
    pub custom_tags: Vec<String>,
    /// Time before which neither API shows it. Its own times may be earlier (an incident that is indexed late).
    pub visible_from: Option<Timestamp>,
    /// Time before which its alerts are missing. Their appearance does not move the time of last update.
    pub alerts_visible_from: Option<Timestamp>,
    /// Further alerts that are generated while the response is sent.
    pub giant: Option<Giant>,
    /// Undocumented fields, shown on both APIs.
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
            evidence: EvidenceSet::Ordinary,
            alert_categories: AlertCategories::Category,
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
        let alert = |number| {
            let mut alert = Alert::sample(id, number, created);
            alert.evidence = self.evidence;
            self.alert_categories.apply(&mut alert);
            alert
        };
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
            alerts: (0..self.alerts).map(alert).collect(),
            giant: self.giant,
            hidden: false,
            visible_from: self.visible_from,
            alerts_visible_from: self.alerts_visible_from,
            raw: None,
            extra: self.extra,
        }
    }
}

/// The evidence of an alert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvidenceSet {
    /// The devices, users, files and mailboxes that the alert names.
    #[default]
    Ordinary,
    /// Also one piece of evidence of each type that the API has: 48 on Graph, 10 on Defender.
    AllTypes,
}

/// The members that name the kill-chain phases of an alert. Microsoft replaces `category` by `categories`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertCategories {
    /// `category` alone.
    #[default]
    Category,
    /// `category`, and `categories` with other phases beside it, as captures of 2026 have them.
    Both,
    /// `categories`, and a null as `category`.
    Categories,
}

impl AlertCategories {
    fn apply(self, alert: &mut Alert) {
        if self != Self::Category {
            alert.categories = vec!["InitialAccess".to_owned(), "Exfiltration".to_owned()];
        }
        if self == Self::Categories {
            alert.category = None;
        }
    }
}

/// Alerts that are generated and never stored, so that one incident can be larger than memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Giant {
    /// Number of generated alerts.
    pub alerts: usize,
    /// Length of each description in bytes.
    pub bytes_each: usize,
}

/// An incident. Enumerations hold Graph's values; Defender's are made from them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incident {
    /// The same number on both APIs.
    pub id: u64,
    /// Title (`displayName`, `incidentName` on Defender).
    pub display_name: String,
    /// Description, shown by Graph only.
    pub description: Option<String>,
    /// `active`, `inProgress`, `awaitingAction`, `resolved`, `redirected`, or anything.
    pub status: String,
    /// `unknown`, `informational`, `low`, `medium`, `high`, or anything.
    pub severity: String,
    /// `unknown`, `truePositive`, `falsePositive`, `informationalExpectedActivity`, or anything.
    pub classification: String,
    /// Graph's value, e.g. `multiStagedAttack`.
    pub determination: String,
    /// Owner of the incident, if assigned.
    pub assigned_to: Option<String>,
    /// Time of creation, to 100 ns.
    pub created: Timestamp,
    /// Time of last update, to 100 ns.
    pub last_update: Timestamp,
    /// Number of the incident that it was merged into.
    pub redirect_incident_id: Option<u64>,
    /// Custom tags (`tags` on Defender).
    pub custom_tags: Vec<String>,
    /// System tags (Graph only).
    pub system_tags: Vec<String>,
    /// Comments in the order of creation.
    pub comments: Vec<Comment>,
    /// Name of the last editor, shown by Graph only.
    pub last_modified_by: Option<String>,
    /// Comment of the resolution, shown by Graph only.
    pub resolving_comment: Option<String>,
    /// Summary, shown by Graph only.
    pub summary: Option<String>,
    /// Priority from 0 to 100, shown by Graph only.
    pub priority_score: Option<u8>,
    /// Stored alerts, without those of `giant`.
    pub alerts: Vec<Alert>,
    /// Further alerts that are generated while the response is sent.
    pub giant: Option<Giant>,
    /// Neither API shows the incident.
    pub hidden: bool,
    /// Time before which neither API shows it.
    pub visible_from: Option<Timestamp>,
    /// Time before which its alerts are missing.
    pub alerts_visible_from: Option<Timestamp>,
    /// Text that is sent in place of the record, JSON or not.
    pub raw: Option<String>,
    /// Undocumented fields, shown on both APIs.
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
    /// The comment's text.
    pub comment: String,
    /// Name of the author.
    pub created_by: String,
    /// Time of creation, to 100 ns.
    pub created: Timestamp,
}

/// An alert. Enumerations hold Graph's values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// ID of the alert, e.g. `da0000000001-000000_1`.
    pub id: String,
    /// Title, shown on both APIs.
    pub title: String,
    /// Description, shown on both APIs.
    pub description: String,
    /// Kill-chain phase, e.g. `Execution`.
    pub category: Option<String>,
    /// Kill-chain phases. Without any the member is missing.
    #[serde(default)]
    pub categories: Vec<String>,
    /// `informational`, `low`, `medium`, `high`.
    pub severity: String,
    /// One of `new`, `inProgress`, `resolved`.
    pub status: String,
    /// Product that raised it, e.g. `microsoftDefenderForEndpoint`.
    pub service_source: String,
    /// Detection technology, e.g. `microsoftDefenderForEndpoint`.
    pub detection_source: String,
    /// State of the automated investigation, e.g. `unsupportedAlertType`.
    pub investigation_state: String,
    /// MITRE ATT&CK techniques, e.g. `T1546.003`.
    pub mitre_techniques: Vec<String>,
    /// Owner of the alert, if assigned.
    pub assigned_to: Option<String>,
    /// Graph's classification of the alert, if set.
    pub classification: Option<String>,
    /// Graph's determination of the alert, if set.
    pub determination: Option<String>,
    /// Time at which the alert was created.
    pub created: Timestamp,
    /// Time at which the alert was last updated.
    pub last_update: Timestamp,
    /// Time at which the alert was resolved, if it was.
    pub resolved: Option<Timestamp>,
    /// Time of the first activity behind the alert.
    pub first_activity: Timestamp,
    /// Time of the last activity behind the alert.
    pub last_activity: Timestamp,
    /// DNS names of devices.
    pub devices: Vec<String>,
    /// User principal names of involved accounts.
    pub users: Vec<String>,
    /// Names of involved files.
    pub files: Vec<String>,
    /// Addresses of involved mailboxes.
    pub mailboxes: Vec<String>,
    /// Evidence beside the devices, users, files and mailboxes.
    #[serde(default)]
    pub evidence: EvidenceSet,
}

/// One piece of evidence of each type, as each API writes it. The members are those of Microsoft's SDK.
#[derive(Deserialize)]
pub(crate) struct EvidenceSamples {
    /// The `evidence` of Graph, without the members that all types have.
    pub(crate) evidence: Vec<Value>,
    /// The `entities` of Defender.
    pub(crate) entities: Vec<Value>,
}

impl EvidenceSamples {
    /// The samples of `evidence.json`.
    #[expect(clippy::expect_used, reason = "the file is a part of this program, and a test reads it")]
    pub(crate) fn get() -> &'static Self {
        static SAMPLES: LazyLock<EvidenceSamples> = LazyLock::new(|| {
            serde_json::from_str(include_str!("evidence.json")).expect("evidence.json is well-formed")
        });
        &SAMPLES
    }
}

impl Alert {
    /// An ordinary alert, the same each time for the same arguments.
    pub fn sample(incident_id: u64, number: usize, at: Timestamp) -> Self {
        let earlier = at.checked_sub(SignedDuration::from_secs(70)).unwrap_or(at);
        Self {
            id: format!("da{incident_id:010}-{number:06}_1"),
            title: "Suspicious PowerShell command line\u{200b}".to_owned(),
            description: "A suspicious PowerShell activity was observed on the machine. – „Ünïcode“ ✓ 🛡".to_owned(),
            category: Some("Execution".to_owned()),
            categories: Vec::new(),
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
            evidence: EvidenceSet::Ordinary,
        }
    }
}
