//! Everything that the three hosts share, behind one lock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    clock::SimClock,
    entra::{flow::Flows, keys::Keys},
    faults::{Faults, Host, RetryAfter},
    store::{AppRecord, Incident, Resource, ServicePrincipal, Tenant},
};

/// A request that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    /// When, by the simulator's clock.
    pub at: Timestamp,
    /// On which host.
    pub host: Host,
    /// For which tenant, where that is known (by path on Entra, by token elsewhere).
    pub tenant_id: Option<String>,
    /// Method.
    pub method: String,
    /// Path as it was sent.
    pub path: String,
    /// Query as it was sent.
    pub query: String,
    /// Status of the answer; 0 for a reset connection.
    pub status: u16,
}

/// Where a list answer says how to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NextLink {
    /// Not at all: the caller has to use `$skip`.
    None,
    /// By `$skip`.
    #[default]
    Skip,
    /// By `$skiptoken`.
    Skiptoken,
}

/// Which incidents come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Last updated first.
    #[default]
    UpdatedDescending,
    /// Last updated last.
    UpdatedAscending,
    /// Created last first.
    CreatedDescending,
}

/// What Microsoft's documents leave open about one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListBehaviour {
    /// The largest `$top`; more is a 400.
    pub max_top: usize,
    /// Rows without `$top`.
    pub default_top: usize,
    /// The largest `$skip`; more is a 400.
    pub max_skip: Option<usize>,
    /// How a page says that there is more.
    pub next_link: NextLink,
    /// The next link stands before the rows.
    pub next_link_first: bool,
    /// Which rows come first.
    pub order: Order,
    /// Rows with the same time come in another order each time.
    pub shuffle_ties: bool,
    /// `$orderby` is understood (Graph).
    pub allow_orderby: bool,
}

impl Default for ListBehaviour {
    fn default() -> Self {
        Self {
            max_top: 50,
            default_top: 50,
            max_skip: Some(500),
            next_link: NextLink::Skip,
            next_link_first: false,
            order: Order::UpdatedDescending,
            shuffle_ties: false,
            allow_orderby: false,
        }
    }
}

/// What Microsoft's documents leave open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// Lists on Graph.
    pub graph: ListBehaviour,
    /// Lists on Defender.
    pub defender: ListBehaviour,
    /// A client assertion may be used once.
    pub refuse_assertion_replay: bool,
    /// A secret added through Graph works only after so many seconds.
    pub secret_propagation_seconds: i64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            graph: ListBehaviour::default(),
            defender: ListBehaviour {
                max_top: 100,
                default_top: 100,
                next_link: NextLink::None,
                ..ListBehaviour::default()
            },
            refuse_assertion_replay: true,
            secret_propagation_seconds: 0,
        }
    }
}

/// How many calls a tenant may make on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Calls in any 60 seconds.
    pub per_minute: Option<usize>,
    /// Calls in any 3600 seconds.
    pub per_hour: Option<usize>,
    /// How a refusal says when to come back; the number is computed.
    pub retry_after: RetryAfter,
}

impl Limits {
    /// Defender's documented limits.
    pub const DEFENDER: Self = Self { per_minute: Some(50), per_hour: Some(1500), retry_after: RetryAfter::Seconds(0) };
    /// Graph's documented limit for security resources.
    pub const GRAPH: Self = Self { per_minute: Some(150), per_hour: None, retry_after: RetryAfter::Seconds(0) };
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_minute: None, per_hour: None, retry_after: RetryAfter::Seconds(0) }
    }
}

/// What faults change about an answer that is still made.
#[derive(Debug, Default)]
pub(crate) struct Tweaks {
    pub(crate) next_link: Option<NextLinkTweak>,
    pub(crate) row_cap: Option<usize>,
    pub(crate) versions_behind: usize,
    pub(crate) tid: Option<String>,
    pub(crate) opaque_token: bool,
    pub(crate) expires_in_string: bool,
    pub(crate) expires_in: Option<i64>,
    pub(crate) missing_roles: bool,
    pub(crate) claims: Map<String, Value>,
    pub(crate) aadsts: Option<u32>,
}

#[derive(Debug)]
pub(crate) enum NextLinkTweak {
    Foreign(String),
    Loop,
}

/// Microsoft.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) clock: SimClock,
    pub(crate) urls: [String; 3],
    pub(crate) apps: BTreeMap<String, AppRecord>,
    pub(crate) tenants: BTreeMap<String, Tenant>,
    pub(crate) flows: Flows,
    pub(crate) keys: Keys,
    pub(crate) used_assertions: BTreeSet<String>,
    pub(crate) opaque_tokens: BTreeMap<String, Map<String, Value>>,
    pub(crate) faults: Faults,
    pub(crate) calls: Vec<Call>,
    pub(crate) behaviour: Behaviour,
    pub(crate) limits: BTreeMap<(Host, Option<String>), Limits>,
    pub(crate) recent_calls: BTreeMap<(Host, String), VecDeque<Timestamp>>,
    /// Counts answers, so that what varies does so the same in each run.
    pub(crate) responses_made: u64,
}

impl World {
    pub(crate) fn new(clock: SimClock, urls: [String; 3], keys: Keys) -> Self {
        Self {
            clock,
            urls,
            apps: BTreeMap::new(),
            tenants: BTreeMap::new(),
            flows: Flows::default(),
            keys,
            used_assertions: BTreeSet::new(),
            opaque_tokens: BTreeMap::new(),
            faults: Faults::default(),
            calls: Vec::new(),
            behaviour: Behaviour::default(),
            limits: BTreeMap::new(),
            recent_calls: BTreeMap::new(),
            responses_made: 0,
        }
    }

    pub(crate) fn url(&self, host: Host) -> &str {
        &self.urls[host as usize]
    }

    /// A number that differs from request to request without order, and is the same in each run.
    pub(crate) fn pseudo_random(&self) -> u64 {
        let number = u64::try_from(self.calls.len()).unwrap_or_default().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (number ^ (number >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 16
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The tenant of a path segment: a GUID or a verified domain, in any case.
    pub(crate) fn tenant_id(&self, segment: &str) -> Option<String> {
        let segment = segment.to_ascii_lowercase();
        if self.tenants.contains_key(&segment) {
            return Some(segment);
        }
        let by_domain = |tenant: &&Tenant| !segment.is_empty() && tenant.seed.domain.eq_ignore_ascii_case(&segment);
        self.tenants.values().find(by_domain).map(|tenant| tenant.seed.tenant_id.clone())
    }

    /// Gives an app roles in a tenant, as an administrator's consent does.
    pub(crate) fn grant(&mut self, tenant_id: &str, client_id: &str, roles: &BTreeSet<String>) {
        let Some(tenant) = self.tenants.get_mut(tenant_id) else { return };
        let principal = tenant.principals.entry(client_id.to_owned()).or_default();
        for role in roles {
            if let Some(resource) = Resource::of_role(role) {
                principal.roles.entry(resource).or_default().insert(role.clone());
            }
        }
    }

    /// A person's sign-in makes a service principal, without roles.
    pub(crate) fn ensure_service_principal(
        &mut self,
        tenant_id: &str,
        client_id: &str,
    ) -> Option<&mut ServicePrincipal> {
        Some(self.tenants.get_mut(tenant_id)?.principals.entry(client_id.to_owned()).or_default())
    }

    /// Merges one incident into another: redirected, and its alerts belong to the other.
    pub(crate) fn merge(&mut self, tenant_id: &str, from: u64, into: u64) -> bool {
        let now = self.now();
        let Some(tenant) = self.tenants.get_mut(tenant_id) else { return false };
        if from == into || !tenant.incidents.contains_key(&into) {
            return false;
        }
        let mut alerts = Vec::new();
        let redirected = tenant.update(from, now, |incident: &mut Incident| {
            "redirected".clone_into(&mut incident.status);
            incident.redirect_incident_id = Some(into);
            alerts.append(&mut incident.alerts);
        });
        redirected && tenant.update(into, now, |incident| incident.alerts.append(&mut alerts))
    }

    /// Counts a call against a tenant's limits; the seconds to wait if it is one too many, and how to say so.
    pub(crate) fn throttle(&mut self, host: Host, tenant_id: &str) -> Option<RetryAfter> {
        let now = self.now();
        let limits =
            *self.limits.get(&(host, Some(tenant_id.to_owned()))).or_else(|| self.limits.get(&(host, None)))?;
        let recent = self.recent_calls.entry((host, tenant_id.to_owned())).or_default();
        let age = |at: Timestamp| now.duration_since(at);
        while recent.front().is_some_and(|at| age(*at) >= SignedDuration::from_hours(1)) {
            recent.pop_front();
        }
        let mut wait = None;
        for (limit, seconds) in [(limits.per_minute, 60), (limits.per_hour, 3600)] {
            let Some(limit) = limit else { continue };
            let within = recent.iter().rev().take_while(|at| age(**at) < SignedDuration::from_secs(seconds)).count();
            if within >= limit {
                // The call that has to leave the window before another one fits.
                let leaves = recent.iter().rev().nth(limit.saturating_sub(1)).copied().unwrap_or(now);
                let left = SignedDuration::from_secs(seconds).saturating_sub(age(leaves));
                wait = wait.max(Some(u64::try_from(left.as_secs() + 1).unwrap_or(1)));
            }
        }
        recent.push_back(now);
        let wait = wait?;
        Some(match limits.retry_after {
            RetryAfter::Seconds(_) => RetryAfter::Seconds(wait),
            RetryAfter::Date(_) => RetryAfter::Date(wait),
            RetryAfter::Body(_) => RetryAfter::Body(wait),
            RetryAfter::Absent => RetryAfter::Absent,
        })
    }
}
