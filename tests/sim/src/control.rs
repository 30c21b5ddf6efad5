//! `/_sim/…` on the login host: the functions of [`Sim`](crate::Sim) over HTTP, for other processes. README.md lists
//! them.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{
    Decision,
    browser::PageWalk,
    entra::{self, keys::OldKey},
    faults::{Fault, Host},
    http::{Request, Response},
    serve::Shared,
    store::{App, AppRecord, HuntingTable, Incident, IncidentSeed, Resource, Tenant, TenantSeed},
    world::{Behaviour, Limits, World},
};

/// Status and message of a refused control request.
struct ControlError(u16, String);

type ControlResult = Result<Response, ControlError>;

fn invalid(error: impl Into<Box<dyn std::error::Error>>) -> ControlError {
    ControlError(400, error.into().to_string())
}

fn not_found(what: &str) -> ControlError {
    ControlError(404, format!("unknown {what}"))
}

fn parse_body<T: DeserializeOwned>(request: &Request) -> Result<T, ControlError> {
    serde_json::from_slice(&request.body).map_err(invalid)
}

fn no_content() -> Response {
    Response::empty(204)
}

fn ok(body: &Value) -> Response {
    Response::json(200, body)
}

fn created(body: &Value) -> Response {
    Response::json(201, body)
}

pub(crate) fn respond(shared: &Arc<Shared>, request: &Request) -> Response {
    let segments = request.segments();
    let outcome = match (request.method.as_str(), &segments[1..]) {
        ("POST", ["sign-in"]) => walk(shared, request, PageFlow::SignIn),
        ("POST", ["consent"]) => walk(shared, request, PageFlow::Consent),
        (method, rest) => respond_locked(&mut shared.world(), request, method, rest),
    };
    outcome.unwrap_or_else(|ControlError(status, message)| Response::json(status, &json!({ "error": message })))
}

fn respond_locked(world: &mut World, request: &Request, method: &str, rest: &[&str]) -> ControlResult {
    match (method, rest) {
        ("GET", []) => Ok(ok(&json!({
            "entra": world.url(Host::Entra), "graph": world.url(Host::Graph),
            "defender": world.url(Host::Defender), "now": world.now(),
            "apps": world.apps.values().map(|record| &record.app).collect::<Vec<_>>(),
            "tenants": world.tenants.values().map(|tenant| &tenant.seed).collect::<Vec<_>>(),
        }))),
        ("POST", ["seed"]) => {
            parse_body::<Seed>(request)?.plant(world);
            Ok(no_content())
        }
        ("POST", ["apps"]) => {
            let app: App = parse_body(request)?;
            let record = AppRecord::new(app, world.now());
            world.apps.insert(record.app.client_id.clone(), record);
            Ok(no_content())
        }
        ("POST", ["tenants"]) => {
            let seed: TenantSeed = parse_body(request)?;
            world.tenants.insert(seed.tenant_id.clone(), Tenant::new(seed));
            Ok(no_content())
        }
        ("POST", ["grants"]) => {
            parse_body::<Grant>(request)?.give(world);
            Ok(no_content())
        }
        ("POST", ["tokens"]) => {
            let wanted: TokenRequest = parse_body(request)?;
            let roles: Vec<&str> = wanted.roles.iter().map(String::as_str).collect();
            let token = entra::issue_app_token(world, &wanted.tenant_id, &wanted.client_id, &roles, wanted.resource);
            Ok(created(&json!({ "access_token": token })))
        }
        (_, ["tenants", tenant_id, rest @ ..]) => respond_for_tenant(world, request, method, tenant_id, rest),
        ("GET", ["faults"]) => Ok(ok(&json!(world.faults.0))),
        ("POST", ["faults"]) => {
            world.faults.0.push(parse_body::<Fault>(request)?);
            Ok(no_content())
        }
        ("DELETE", ["faults"]) => {
            world.faults.0.clear();
            Ok(no_content())
        }
        ("GET", ["calls"]) => Ok(ok(&json!(world.calls))),
        ("DELETE", ["calls"]) => {
            world.calls.clear();
            Ok(no_content())
        }
        ("GET", ["clock"]) => Ok(ok(&json!({ "now": world.now() }))),
        ("POST", ["clock"]) => {
            let change: ClockChange = parse_body(request)?;
            if let Some(at) = change.freeze {
                world.clock.freeze(at);
            }
            if change.thaw {
                world.clock.thaw();
            }
            world.clock.advance(SignedDuration::from_secs(change.advance_seconds));
            Ok(ok(&json!({ "now": world.now() })))
        }
        ("GET", ["behaviour"]) => Ok(ok(&json!(world.behaviour))),
        ("PATCH", ["behaviour"]) => {
            let mut document = json!(world.behaviour);
            merge(&mut document, parse_body(request)?);
            world.behaviour = serde_json::from_value::<Behaviour>(document).map_err(invalid)?;
            Ok(no_content())
        }
        ("POST", ["limits"]) => {
            let limit: Limit = parse_body(request)?;
            world.limits.insert((limit.host, limit.tenant_id), limit.limits);
            Ok(no_content())
        }
        ("POST", ["keys"]) => {
            let roll: KeyRoll = parse_body(request)?;
            let old_key = if roll.withdraw { OldKey::Withdraw } else { OldKey::KeepPublished };
            world.keys.roll(old_key).map_err(|error| ControlError(500, error.to_string()))?;
            Ok(no_content())
        }
        _ => Err(not_found("path or method")),
    }
}

fn respond_for_tenant(
    world: &mut World,
    request: &Request,
    method: &str,
    tenant_id: &str,
    rest: &[&str],
) -> ControlResult {
    let now = world.now();
    let Some(tenant) = world.tenants.get_mut(tenant_id) else { return Err(not_found("tenant")) };
    let number = |id: &str| id.parse::<u64>().map_err(invalid);
    match (method, rest) {
        ("PATCH", []) => {
            let mut document = json!(tenant.seed);
            merge(&mut document, parse_body(request)?);
            tenant.seed = serde_json::from_value(document).map_err(invalid)?;
            Ok(no_content())
        }
        ("DELETE", []) => {
            world.tenants.remove(tenant_id);
            Ok(no_content())
        }
        ("GET", ["grants"]) => {
            let grants = tenant.principals.iter().map(|(client_id, principal)| {
                let roles: Vec<&String> = principal.roles.values().flatten().collect();
                json!({"client_id": client_id, "enabled": principal.enabled, "roles": roles})
            });
            Ok(ok(&grants.collect()))
        }
        ("DELETE", ["grants", client_id]) => {
            tenant.principals.remove(*client_id);
            Ok(no_content())
        }
        ("POST", ["grants", client_id, action @ ("disable" | "enable")]) => {
            let principal = tenant.principals.get_mut(*client_id).ok_or_else(|| not_found("service principal"))?;
            principal.enabled = *action == "enable";
            Ok(no_content())
        }
        ("POST", ["hunting"]) => {
            let table: HuntingTable = parse_body(request)?;
            tenant.hunting.retain(|known| known.name != table.name);
            tenant.hunting.push(table);
            Ok(no_content())
        }
        ("GET", ["incidents"]) => Ok(ok(&tenant.incidents.values().map(|stored| json!(stored.incident)).collect())),
        ("POST", ["incidents"]) => {
            let id = tenant.put_incident(parse_body::<IncidentSeed>(request)?, now);
            Ok(created(&json!({ "id": id.to_string() })))
        }
        ("GET", ["incidents", id]) => {
            let stored = tenant.incidents.get(&number(id)?).ok_or_else(|| not_found("incident"))?;
            Ok(ok(&json!(stored.incident)))
        }
        ("PATCH", ["incidents", id]) => {
            let id = number(id)?;
            let stored = tenant.incidents.get(&id).ok_or_else(|| not_found("incident"))?;
            let mut document = json!(stored.incident);
            merge(&mut document, parse_body(request)?);
            let mut changed: Incident = serde_json::from_value(document).map_err(invalid)?;
            changed.id = id;
            let change = |incident: &mut Incident| *incident = changed;
            if request.decoded_query() == "silent=true" {
                tenant.change_silently(id, change);
            } else {
                tenant.update(id, now, change);
            }
            Ok(no_content())
        }
        ("POST", ["incidents", from, "merge"]) => {
            let Merge { into } = parse_body(request)?;
            let (from, into) = (number(from)?, number(&into)?);
            if world.merge(tenant_id, from, into) { Ok(no_content()) } else { Err(not_found("incident")) }
        }
        _ => Err(not_found("path or method")),
    }
}

/// Apps, tenants, grants and incidents to start with: the body of `POST /_sim/seed` and the program's seed file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Seed {
    apps: Vec<App>,
    tenants: Vec<TenantSeed>,
    grants: Vec<Grant>,
    incidents: Vec<SeededIncident>,
}

impl Seed {
    pub(crate) fn plant(self, world: &mut World) {
        let now = world.now();
        for app in self.apps {
            world.apps.insert(app.client_id.clone(), AppRecord::new(app, now));
        }
        for seed in self.tenants {
            world.tenants.insert(seed.tenant_id.clone(), Tenant::new(seed));
        }
        for grant in self.grants {
            grant.give(world);
        }
        for SeededIncident { tenant_id, incident } in self.incidents {
            if let Some(tenant) = world.tenants.get_mut(&tenant_id) {
                tenant.put_incident(incident, now);
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeededIncident {
    tenant_id: String,
    incident: IncidentSeed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    tenant_id: String,
    client_id: String,
    roles: Vec<String>,
}

impl Grant {
    fn give(self, world: &mut World) {
        world.grant(&self.tenant_id, &self.client_id, &self.roles.into_iter().collect());
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenRequest {
    tenant_id: String,
    client_id: String,
    roles: Vec<String>,
    resource: Resource,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ClockChange {
    advance_seconds: i64,
    freeze: Option<Timestamp>,
    thaw: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    host: Host,
    #[serde(default)]
    tenant_id: Option<String>,
    limits: Limits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct KeyRoll {
    withdraw: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Merge {
    into: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Walk {
    url: String,
    tenant_id: String,
    user: String,
    #[serde(default)]
    cancel: bool,
}

#[derive(Clone, Copy)]
enum PageFlow {
    SignIn,
    Consent,
}

fn walk(shared: &Shared, request: &Request, flow: PageFlow) -> ControlResult {
    let walk: Walk = parse_body(request)?;
    let decision = match flow {
        PageFlow::SignIn => None,
        PageFlow::Consent if walk.cancel => Some(Decision::Cancel),
        PageFlow::Consent => Some(Decision::Accept),
    };
    let walk = PageWalk { url: &walk.url, tenant_id: &walk.tenant_id, user: &walk.user, decision };
    match walk.complete(shared) {
        Ok(location) => Ok(ok(&json!({ "location": location }))),
        Err(page) => Err(ControlError(409, page)),
    }
}

/// Applies a JSON merge patch (RFC 7396), except that `null` sets null: no field of the control API is ever absent.
fn merge(document: &mut Value, patch: Map<String, Value>) {
    for (name, value) in patch {
        match (document.get_mut(&name), value) {
            (Some(inner @ Value::Object(_)), Value::Object(value)) => merge(inner, value),
            (_, value) => document[name.as_str()] = value,
        }
    }
}
