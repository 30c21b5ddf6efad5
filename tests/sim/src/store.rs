//! What Microsoft holds: tenants with their people, consents and incidents.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::{guid, to_ticks};

/// The tenant that all personal Microsoft accounts belong to.
pub const PERSONAL_ACCOUNTS: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";
/// Directory role template: may consent to anything.
pub const GLOBAL_ADMINISTRATOR: &str = "62e90394-69f5-4237-9190-012177145e10";
/// Directory role template: may consent to anything.
pub const PRIVILEGED_ROLE_ADMINISTRATOR: &str = "e8611ab8-c189-46e8-94e1-60213ab1f814";
/// Directory role template: may consent to application permissions of APIs other than Graph.
pub const APPLICATION_ADMINISTRATOR: &str = "9b895d92-2cd3-44c7-9d02-a6ac2d5ea5c3";
/// Directory role template: may consent to application permissions of APIs other than Graph.
pub const CLOUD_APPLICATION_ADMINISTRATOR: &str = "158c047a-c907-4556-b7ef-446551a6b5f7";

/// An API that issues app roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Microsoft Graph.
    Graph,
    /// Microsoft Threat Protection, the Defender XDR API.
    Defender,
}

impl Resource {
    /// Both, Graph first.
    pub const ALL: [Self; 2] = [Self::Graph, Self::Defender];

    /// Application ID of the API.
    pub fn app_id(self) -> &'static str {
        match self {
            Self::Graph => "00000003-0000-0000-c000-000000000000",
            Self::Defender => "8ee8fdad-f234-4243-8f3b-15c294843740",
        }
    }

    /// The audience that its tokens are for.
    pub fn audience(self) -> &'static str {
        match self {
            Self::Graph => "https://graph.microsoft.com",
            Self::Defender => "https://api.security.microsoft.com",
        }
    }

    /// Name in the directory.
    pub fn display_name(self) -> &'static str {
        match self {
            Self::Graph => "Microsoft Graph",
            Self::Defender => "Microsoft Threat Protection",
        }
    }

    /// The app roles that it publishes: id and value.
    pub fn app_roles(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Graph => &[
                ("45cc0394-e837-488b-a098-1918f48d186c", "SecurityIncident.Read.All"),
                ("34bf0e97-1971-4929-b999-9e2442d941d7", "SecurityIncident.ReadWrite.All"),
                ("472e4a4d-bb4a-4026-98d1-0b0d74cb74a5", "SecurityAlert.Read.All"),
                ("dd98c7f5-2d42-42d3-a0e4-633161547251", "ThreatHunting.Read.All"),
                ("18a4783c-866b-4cc7-a460-3d5e5662c884", "Application.ReadWrite.OwnedBy"),
                ("1bfefb4e-e0b5-418b-a88f-73c46d2cc8e9", "Application.ReadWrite.All"),
                ("06b708a9-e830-4db3-a914-8e69da51d44f", "AppRoleAssignment.ReadWrite.All"),
            ],
            Self::Defender => &[
                ("a9790345-4595-42e4-971a-ccdc79f19b7c", "Incident.Read.All"),
                ("8d90f441-09cf-4fdc-ab45-e874fa3a28e8", "Incident.ReadWrite.All"),
                ("7734e8e5-8dde-42fc-b5ae-6eafea078693", "AdvancedHunting.Read.All"),
                ("a7deff90-e2f5-4e4e-83a3-2c74e7002e28", "CustomDetections.ReadWrite.All"),
            ],
        }
    }

    /// The resource that publishes a role.
    pub fn of_role(role: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.app_roles().iter().any(|(_, value)| *value == role))
    }

    /// The resource named by a resource identifier (URI or application ID), with at most one slash at its end.
    pub(crate) fn of_identifier(identifier: &str) -> Option<Self> {
        let identifier = identifier.strip_suffix('/').unwrap_or(identifier);
        Self::ALL.into_iter().find(|resource| identifier == resource.audience() || identifier == resource.app_id())
    }

    /// Directory roles that may grant this resource's application permissions.
    pub(crate) fn consenting_roles(self) -> &'static [&'static str] {
        match self {
            Self::Graph => &[GLOBAL_ADMINISTRATOR, PRIVILEGED_ROLE_ADMINISTRATOR],
            Self::Defender => &[
                GLOBAL_ADMINISTRATOR,
                PRIVILEGED_ROLE_ADMINISTRATOR,
                APPLICATION_ADMINISTRATOR,
                CLOUD_APPLICATION_ADMINISTRATOR,
            ],
        }
    }
}

/// An app registration, as its owner makes it in the home tenant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct App {
    /// Application (client) ID.
    pub client_id: String,
    /// Name that an administrator reads when consenting.
    pub display_name: String,
    /// Tenant that the registration lives in.
    pub home_tenant_id: String,
    /// Valid client secrets, for two years from registration.
    pub client_secrets: Vec<String>,
    /// Registered redirect URIs, compared exactly.
    pub redirect_uris: Vec<String>,
    /// Registered certificates, DER (base64 in JSON).
    #[serde(with = "base64_list")]
    pub certificates: Vec<Vec<u8>>,
    /// Federated identity credentials.
    pub federated_credentials: Vec<FederatedCredential>,
    /// App roles that the registration requests; the resource follows from the role's name.
    pub requested_roles: Vec<String>,
    /// The registration asks for `wids` in ID tokens (`groupMembershipClaims`: `DirectoryRole`).
    pub wids: bool,
    /// Only the home tenant may use it (`AzureADMyOrg`).
    pub single_tenant: bool,
    /// Personal Microsoft accounts may sign in at `common`.
    pub personal_accounts: bool,
    /// Client IDs of the apps that own this one, for `Application.ReadWrite.OwnedBy`.
    pub owners: Vec<String>,
}

/// Another identity provider whose tokens stand for the app.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FederatedCredential {
    /// `iss`, compared exactly.
    pub issuer: String,
    /// `sub`, compared exactly.
    pub subject: String,
    /// `aud`, compared exactly.
    pub audience: String,
    /// The issuer's JWKS; the simulator fetches nothing.
    pub jwks: Value,
}

/// One client secret of an app.
#[derive(Clone, Debug)]
pub(crate) struct Password {
    pub(crate) key_id: String,
    pub(crate) secret: String,
    pub(crate) display_name: Option<String>,
    pub(crate) start: Timestamp,
    pub(crate) end: Timestamp,
    /// A new secret is not known everywhere at once.
    pub(crate) known_from: Timestamp,
}

/// An app registration with what the directory adds.
#[derive(Clone, Debug)]
pub(crate) struct AppRecord {
    pub(crate) app: App,
    pub(crate) object_id: String,
    pub(crate) created: Timestamp,
    pub(crate) passwords: Vec<Password>,
    /// Fields set through Graph that mean nothing to the simulator.
    pub(crate) document: Map<String, Value>,
}

impl AppRecord {
    pub(crate) fn new(app: App, now: Timestamp) -> Self {
        let end = years_after(now, 2);
        let passwords = app
            .client_secrets
            .iter()
            .map(|secret| Password {
                key_id: guid(),
                secret: secret.clone(),
                display_name: None,
                start: now,
                end,
                known_from: now,
            })
            .collect();
        Self { app, object_id: guid(), created: now, passwords, document: Map::new() }
    }

    /// The roles of one resource that the registration requests.
    pub(crate) fn requested(&self, resource: Resource) -> BTreeSet<String> {
        self.app.requested_roles.iter().filter(|role| Resource::of_role(role) == Some(resource)).cloned().collect()
    }
}

pub(crate) fn years_after(at: Timestamp, years: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_hours(years * 8766)).unwrap_or(at)
}

/// A person in a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct User {
    /// User principal name or display name.
    pub name: String,
    /// Object ID; random if empty.
    pub oid: String,
    /// Template IDs of the directory roles that the person holds.
    pub wids: Vec<String>,
}

/// The shape of the callback after Cancel or an error at admin consent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallbackErrors {
    /// `admin_consent=True&error=consent_required&error_description=AADSTS65004…` (v2 page).
    #[default]
    ConsentRequired,
    /// `error=permission_denied&error_description=The admin canceled the request` (v1 page).
    PermissionDenied,
    /// `error=access_denied&error_subcode=cancel` (authorize endpoint).
    AccessDenied,
}

/// How long Entra needs after a consent until tokens are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Propagation {
    /// This many token requests are refused first.
    pub refused: u32,
    /// With this code: 7000229 or 700016.
    pub code: u32,
    /// Then this many tokens come without roles.
    pub roleless: u32,
}

impl Default for Propagation {
    fn default() -> Self {
        Self { refused: 0, code: 7_000_229, roleless: 0 }
    }
}

/// A customer's tenant as a test sets it up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantSeed {
    /// Lower-case GUID.
    pub tenant_id: String,
    /// A verified domain.
    pub domain: String,
    /// Name of the organisation.
    pub display_name: String,
    /// People who can sign in.
    pub users: Vec<User>,
    /// The tenant has a service principal of the Defender API.
    pub defender_licensed: bool,
    /// What consent given on the page needs to spread.
    pub propagation: Propagation,
    /// Shape of error callbacks at admin consent.
    pub callback_errors: CallbackErrors,
    /// A person's first sign-in to an app shows the permissions prompt.
    pub sign_in_prompt: bool,
    /// Lifetime of access tokens by the tenant's policy; otherwise 60 to 90 minutes.
    pub token_lifetime_seconds: Option<i64>,
}

impl Default for TenantSeed {
    fn default() -> Self {
        Self {
            tenant_id: String::new(),
            domain: String::new(),
            display_name: String::new(),
            users: Vec::new(),
            defender_licensed: true,
            propagation: Propagation::default(),
            callback_errors: CallbackErrors::default(),
            sign_in_prompt: false,
            token_lifetime_seconds: None,
        }
    }
}

/// The local half of an app in a customer's tenant.
#[derive(Clone, Debug)]
pub(crate) struct ServicePrincipal {
    pub(crate) oid: String,
    pub(crate) enabled: bool,
    pub(crate) roles: BTreeMap<Resource, BTreeSet<String>>,
    pub(crate) propagation: Propagation,
    pub(crate) prompted: BTreeSet<String>,
}

impl Default for ServicePrincipal {
    fn default() -> Self {
        Self {
            oid: guid(),
            enabled: true,
            roles: BTreeMap::new(),
            propagation: Propagation::default(),
            prompted: BTreeSet::new(),
        }
    }
}

/// A table that hunting queries read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HuntingTable {
    /// Name as in the query, e.g. `DeviceInfo`.
    pub name: String,
    /// Column name and type, in order.
    pub columns: Vec<(String, String)>,
    /// Rows, keyed by column.
    pub rows: Vec<Map<String, Value>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) seed: TenantSeed,
    pub(crate) principals: BTreeMap<String, ServicePrincipal>,
    pub(crate) incidents: BTreeMap<u64, Stored>,
    pub(crate) hunting: Vec<HuntingTable>,
    next_incident: u64,
}

/// An incident with its earlier versions, newest last.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) incident: Incident,
    history: Vec<Incident>,
}

impl Stored {
    /// What an answer shows that is this many versions behind; nothing if the incident is younger than that.
    pub(crate) fn behind(&self, versions: usize) -> Option<&Incident> {
        match versions {
            0 => Some(&self.incident),
            n if n <= self.history.len() => Some(&self.history[self.history.len() - n]),
            _ => None,
        }
    }
}

impl Tenant {
    pub(crate) fn new(mut seed: TenantSeed) -> Self {
        for user in &mut seed.users {
            if user.oid.is_empty() {
                user.oid = guid();
            }
        }
        Self { seed, principals: BTreeMap::new(), incidents: BTreeMap::new(), hunting: Vec::new(), next_incident: 1 }
    }

    pub(crate) fn user(&self, key: &str) -> Option<&User> {
        self.seed.users.iter().find(|user| user.oid == key || user.name == key)
    }

    pub(crate) fn has_resource(&self, resource: Resource) -> bool {
        resource == Resource::Graph || self.seed.defender_licensed
    }

    pub(crate) fn put(&mut self, seed: IncidentSeed, now: Timestamp) -> u64 {
        let id = seed.id.unwrap_or(self.next_incident);
        self.next_incident = self.next_incident.max(id.saturating_add(1));
        let incident = seed.into_incident(id, now);
        self.incidents.insert(id, Stored { incident, history: Vec::new() });
        id
    }

    /// Keeps the version before, for stale answers.
    pub(crate) fn change(&mut self, id: u64, change: impl FnOnce(&mut Incident)) -> bool {
        let Some(stored) = self.incidents.get_mut(&id) else { return false };
        let before = stored.incident.clone();
        change(&mut stored.incident);
        stored.incident.created = to_ticks(stored.incident.created);
        stored.incident.last_update = to_ticks(stored.incident.last_update);
        stored.history.push(before);
        true
    }

    /// Like [`Tenant::change`], and the time of last update moves on unless the change has set it.
    pub(crate) fn touch(&mut self, id: u64, now: Timestamp, change: impl FnOnce(&mut Incident)) -> bool {
        self.change(id, |incident| {
            let before = incident.last_update;
            change(incident);
            if incident.last_update == before {
                let tick = before.checked_add(SignedDuration::from_nanos(100)).unwrap_or(before);
                incident.last_update = to_ticks(now).max(tick);
            }
        })
    }
}

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
    fn into_incident(self, id: u64, now: Timestamp) -> Incident {
        let created = to_ticks(self.created.or(self.last_update).unwrap_or(now));
        let last_update = to_ticks(self.last_update.unwrap_or(created));
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
    /// Truncation of each one's description.
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

mod base64_list {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(items: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(items.iter().map(|item| STANDARD.encode(item)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let items = Vec::<String>::deserialize(deserializer)?;
        items.iter().map(|item| STANDARD.decode(item).map_err(D::Error::custom)).collect()
    }
}
