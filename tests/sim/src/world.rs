//! Everything that the three hosts share, behind one lock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    clock::SimClock,
    entra::{flow::Flows, keys::Keys},
    faults::{Faults, Host, RetryAfter},
    store::{AppRecord, Incident, IncidentSeed, Resource, ServicePrincipal, Tenant},
};

/// A recorded request to one of the hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    /// Time of the response, by the simulator's clock.
    pub at: Timestamp,
    /// The host that received it.
    pub host: Host,
    /// The tenant, where it is known: by the path on Entra, by the token elsewhere.
    pub tenant_id: Option<String>,
    /// HTTP method, upper case.
    pub method: String,
    /// The path as sent, not decoded.
    pub path: String,
    /// The query as sent, not decoded, without `?`.
    pub query: String,
    /// Status of the response; 0 for a reset connection.
    pub status: u16,
    /// The parameters of a token request. They hold secrets, so the JSON of a call leaves them out.
    #[serde(skip)]
    pub form: BTreeMap<String, String>,
}

/// The kind of next link in a page that is not the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NextLink {
    /// There is no next link: the caller has to use `$skip`.
    None,
    /// A link with the next `$skip`.
    #[default]
    Skip,
    /// A link with an opaque `$skiptoken`.
    Skiptoken,
}

/// The order of the incidents in a list without `$orderby`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// By time of last update, newest first.
    #[default]
    UpdatedDescending,
    /// By time of last update, oldest first.
    UpdatedAscending,
    /// By time of creation, newest first.
    CreatedDescending,
    /// A fixed order that has nothing to do with times.
    Shuffled,
}

/// The choices that Microsoft's documents leave open for the lists of one API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "the independent choices of a list each")]
pub struct ListBehaviour {
    /// The largest `$top`; a larger one is refused with 400.
    pub max_top: usize,
    /// Rows of a page without `$top`.
    pub default_top: usize,
    /// The most rows of a page, whatever `$top` says; the rest follows by next links.
    pub page_size: Option<usize>,
    /// The largest `$skip`; a larger one is refused with 400.
    pub max_skip: Option<usize>,
    /// The next link of a page that is not the last.
    pub next_link: NextLink,
    /// The number of pages without rows, each with a next link, before a page with rows.
    pub empty_pages: usize,
    /// A full page that is the last one has a next link, too. It leads to a page without rows.
    pub next_link_to_nothing: bool,
    /// The next link stands before the rows.
    pub next_link_first: bool,
    /// The order without `$orderby`.
    pub order: Order,
    /// Rows with the same time change their order from response to response.
    pub shuffle_ties: bool,
    /// `$orderby` by time of last update is accepted.
    pub allow_orderby: bool,
}

impl Default for ListBehaviour {
    fn default() -> Self {
        Self {
            max_top: 50,
            default_top: 50,
            page_size: None,
            max_skip: Some(500),
            next_link: NextLink::Skip,
            empty_pages: 0,
            next_link_to_nothing: false,
            next_link_first: false,
            order: Order::UpdatedDescending,
            shuffle_ties: false,
            allow_orderby: false,
        }
    }
}

/// The limits and forms of hunting queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HuntingBehaviour {
    /// The largest result, as bytes of the response; a larger one is refused with 400.
    pub max_result_bytes: Option<usize>,
    /// Queries of a tenant in any 60 seconds; further ones get a 429 without a wait.
    pub per_minute: Option<usize>,
    /// The percentage of a tenant's CPU allocation that each query uses up. Once it is used up, queries get a 429 until
    /// the next cycle of 15 minutes.
    pub cpu_percent: usize,
    /// The members of the schema are `Name` and `Type`.
    pub capital_names: bool,
    /// The schema is null.
    pub null_schema: bool,
}

impl Default for HuntingBehaviour {
    fn default() -> Self {
        Self {
            max_result_bytes: Some(50_000_000),
            per_minute: Some(45),
            cpu_percent: 0,
            capital_names: false,
            null_schema: false,
        }
    }
}

/// The choices that Microsoft's documents leave open. The defaults are the strict reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// Lists of Graph's incidents.
    pub graph: ListBehaviour,
    /// Lists of Defender's incidents.
    pub defender: ListBehaviour,
    /// Hunting queries.
    pub hunting: HuntingBehaviour,
    /// A client assertion that was used before is refused.
    pub refuse_assertion_replay: bool,
    /// Seconds until a secret added through Graph is accepted.
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
            hunting: HuntingBehaviour::default(),
            refuse_assertion_replay: true,
            secret_propagation_seconds: 0,
        }
    }
}

/// The number of calls that a tenant may make to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Calls in any 60 seconds.
    pub per_minute: Option<usize>,
    /// Calls in any 3600 seconds.
    pub per_hour: Option<usize>,
    /// The form of the wait in a 429; its numbers are computed.
    pub retry_after: RetryAfter,
}

impl Limits {
    /// Defender's documented limits: 50 calls a minute and 1,500 an hour.
    pub const DEFENDER: Self = Self { per_minute: Some(50), per_hour: Some(1500), retry_after: RetryAfter::Seconds(0) };
    /// Graph's documented limit for its other security resources: 150 calls a minute.
    pub const GRAPH: Self = Self { per_minute: Some(150), per_hour: None, retry_after: RetryAfter::Seconds(0) };
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_minute: None, per_hour: None, retry_after: RetryAfter::Seconds(0) }
    }
}

/// Changes that faults make while a host handles a request.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "the independent changes of a fault each")]
pub(crate) struct Tweaks {
    pub(crate) next_link: Option<NextLinkTweak>,
    pub(crate) row_cap: Option<usize>,
    pub(crate) ignores_filter: bool,
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
    EmptyPage,
}

/// The state of Microsoft's services.
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
    /// The times of the hunting queries of each tenant in the last quarter of an hour.
    pub(crate) recent_queries: BTreeMap<String, VecDeque<Timestamp>>,
    /// Number of lists and tokens served. Varying values are made from it, so that each run varies in the same way.
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
            recent_queries: BTreeMap::new(),
            responses_made: 0,
        }
    }

    pub(crate) fn url(&self, host: Host) -> &str {
        &self.urls[host as usize]
    }

    /// A number that varies irregularly from request to request, in the same way in each run.
    pub(crate) fn pseudo_random(&self) -> u64 {
        let number = u64::try_from(self.calls.len()).unwrap_or_default().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (number ^ (number >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 16
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The tenant of a path segment: a GUID or a verified domain, in upper or lower case.
    pub(crate) fn tenant_id(&self, segment: &str) -> Option<String> {
        let segment = segment.to_ascii_lowercase();
        if self.tenants.contains_key(&segment) {
            return Some(segment);
        }
        let by_domain = |tenant: &&Tenant| !segment.is_empty() && tenant.seed.domain.eq_ignore_ascii_case(&segment);
        self.tenants.values().find(by_domain).map(|tenant| tenant.seed.tenant_id.clone())
    }

    /// Grants an app roles in a tenant, as an administrator's consent does.
    pub(crate) fn grant(&mut self, tenant_id: &str, client_id: &str, roles: &BTreeSet<String>) {
        let Some(tenant) = self.tenants.get_mut(tenant_id) else { return };
        let principal = tenant.principals.entry(client_id.to_owned()).or_default();
        for role in roles {
            if let Some(resource) = Resource::of_role(role) {
                principal.roles.entry(resource).or_default().insert(role.clone());
            }
        }
    }

    /// The app's service principal in a tenant. A missing one is created without roles, as by a person's sign-in.
    pub(crate) fn ensure_service_principal(
        &mut self,
        tenant_id: &str,
        client_id: &str,
    ) -> Option<&mut ServicePrincipal> {
        Some(self.tenants.get_mut(tenant_id)?.principals.entry(client_id.to_owned()).or_default())
    }

    /// Merges one incident into another: it becomes `redirected`, and its alerts move to the other.
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

    /// Moves alerts to an incident, or to a new one, which takes its title from the incident of the first alert. The
    /// incidents that lose alerts and the one that gets them are updated. Returns the target. `None`: an alert or the
    /// target is unknown.
    pub(crate) fn move_alerts(&mut self, tenant_id: &str, alert_ids: &[String], into: Option<u64>) -> Option<u64> {
        let now = self.now();
        let tenant = self.tenants.get_mut(tenant_id)?;
        let holder_of = |id: &String| {
            let holds = |incident: &Incident| incident.alerts.iter().any(|alert| alert.id == *id);
            tenant.incidents.values().map(|stored| &stored.incident).find(|incident| holds(incident))
        };
        let holders: Vec<&Incident> = alert_ids.iter().map(holder_of).collect::<Option<_>>()?;
        let display_name = holders.first()?.display_name.clone();
        let mut sources: Vec<u64> = holders.iter().map(|incident| incident.id).collect();
        sources.sort_unstable();
        sources.dedup();
        let target = match into {
            Some(id) => id,
            None => tenant.put_incident(IncidentSeed { display_name, alerts: 0, ..IncidentSeed::default() }, now),
        };
        if tenant.incidents.get(&target)?.incident.status == "redirected" {
            return None;
        }
        let mut moved = Vec::new();
        for source in sources.into_iter().filter(|source| *source != target) {
            tenant.update(source, now, |incident| {
                moved.extend(incident.alerts.extract_if(.., |alert| alert_ids.contains(&alert.id)));
            });
        }
        tenant.update(target, now, |incident| incident.alerts.append(&mut moved));
        Some(target)
    }

    /// Counts a call against a tenant's limits. Returns the wait for the 429 if it exceeds one.
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
                // Another call fits as soon as this one has left the window.
                let leaves = recent.iter().rev().nth(limit.saturating_sub(1)).copied().unwrap_or(now);
                let left = SignedDuration::from_secs(seconds).saturating_sub(age(leaves));
                wait = wait.max(Some((u64::try_from(left.as_secs() + 1).unwrap_or(1), limit, seconds.unsigned_abs())));
            }
        }
        recent.push_back(now);
        let (wait, calls, seconds) = wait?;
        Some(match limits.retry_after {
            RetryAfter::Seconds(_) => RetryAfter::Seconds(wait),
            RetryAfter::Date(_) => RetryAfter::Date(wait),
            RetryAfter::Body(_) => RetryAfter::Body(wait),
            RetryAfter::Absent => RetryAfter::Absent,
            RetryAfter::Quota { .. } => RetryAfter::Quota { calls, seconds },
        })
    }
}
