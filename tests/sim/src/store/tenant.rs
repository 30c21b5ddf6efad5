//! Customers' tenants: their people, service principals and incidents.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    incident::{Incident, IncidentSeed},
    resource::Resource,
};
use crate::clock::{guid, truncate_to_100ns};

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

/// The parameters of the callback after Cancel or an error at admin consent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallbackErrors {
    /// The v2 page's: `admin_consent=True&error=consent_required&error_description=AADSTS65004…`.
    #[default]
    ConsentRequired,
    /// The v1 page's: `error=permission_denied&error_description=The admin canceled the request`.
    PermissionDenied,
    /// The authorize endpoint's: `error=access_denied&error_subcode=cancel`.
    AccessDenied,
}

/// The token requests after a consent that fail or lack roles while the consent spreads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Propagation {
    /// Number of token requests that are refused first.
    pub refused: u32,
    /// AADSTS number of these refusals: 7000229 or 700016.
    pub code: u32,
    /// Number of tokens without roles after that.
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
    /// Tenant ID, a lower-case GUID.
    pub tenant_id: String,
    /// Verified domain, which names the tenant as its ID does.
    pub domain: String,
    /// Name of the organisation.
    pub display_name: String,
    /// People who can sign in.
    pub users: Vec<User>,
    /// The tenant has a service principal of the Defender API.
    pub defender_licensed: bool,
    /// Propagation of a consent that is given on the page.
    pub propagation: Propagation,
    /// Parameters of error callbacks at admin consent.
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

/// An app's service principal in a customer's tenant.
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

/// A column of a hunting table; in JSON a pair of name and type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(String, String)", into = "(String, String)")]
pub struct HuntingColumn {
    /// Name as in the query, e.g. `DeviceName`.
    pub name: String,
    /// Kusto's type as Graph writes it, e.g. `String`.
    pub kind: String,
}

impl From<(String, String)> for HuntingColumn {
    fn from((name, kind): (String, String)) -> Self {
        Self { name, kind }
    }
}

impl From<HuntingColumn> for (String, String) {
    fn from(column: HuntingColumn) -> Self {
        (column.name, column.kind)
    }
}

/// A table that hunting queries read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HuntingTable {
    /// Name as in the query, e.g. `DeviceInfo`.
    pub name: String,
    /// The columns, in the order of the schema.
    pub columns: Vec<HuntingColumn>,
    /// Rows, keyed by column.
    pub rows: Vec<Map<String, Value>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) seed: TenantSeed,
    pub(crate) principals: BTreeMap<String, ServicePrincipal>,
    pub(crate) incidents: BTreeMap<u64, StoredIncident>,
    pub(crate) hunting: Vec<HuntingTable>,
    next_incident: u64,
}

/// An incident with its earlier versions, the newest last.
#[derive(Clone, Debug)]
pub(crate) struct StoredIncident {
    pub(crate) incident: Incident,
    history: Vec<Incident>,
}

impl StoredIncident {
    /// The version this many versions back. `None` if the incident has fewer versions.
    pub(crate) fn version_back(&self, versions: usize) -> Option<&Incident> {
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

    pub(crate) fn put_incident(&mut self, seed: IncidentSeed, now: Timestamp) -> u64 {
        let id = seed.id.unwrap_or(self.next_incident);
        self.next_incident = self.next_incident.max(id.saturating_add(1));
        let incident = seed.into_incident(id, now);
        self.incidents.insert(id, StoredIncident { incident, history: Vec::new() });
        id
    }

    /// Changes an incident without moving its time of last update. The old version is kept, for stale responses.
    pub(crate) fn change_silently(&mut self, id: u64, change: impl FnOnce(&mut Incident)) -> bool {
        let Some(stored) = self.incidents.get_mut(&id) else { return false };
        let before = stored.incident.clone();
        change(&mut stored.incident);
        stored.incident.created = truncate_to_100ns(stored.incident.created);
        stored.incident.last_update = truncate_to_100ns(stored.incident.last_update);
        stored.history.push(before);
        true
    }

    /// Changes an incident. The time of last update moves to now, and past its old value, unless the change sets it.
    pub(crate) fn update(&mut self, id: u64, now: Timestamp, change: impl FnOnce(&mut Incident)) -> bool {
        self.change_silently(id, |incident| {
            let before = incident.last_update;
            change(incident);
            if incident.last_update == before {
                let tick = before.checked_add(SignedDuration::from_nanos(100)).unwrap_or(before);
                incident.last_update = truncate_to_100ns(now).max(tick);
            }
        })
    }
}
