//! `/_sim/…` on the login host: the handle's functions over HTTP, for other processes. README.md has the list.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{
    Decision,
    entra::{self, flow::SESSION},
    faults::{Fault, Host},
    http::{Request, Response, encode},
    respond::respond as respond_on_host,
    serve::Shared,
    store::{App, AppRecord, HuntingTable, Incident, IncidentSeed, Resource, Tenant, TenantSeed},
    world::{Behaviour, Limits, World},
};

/// Why a control request was refused.
struct Refused(u16, String);

type Outcome = Result<Response, Refused>;

fn invalid(error: impl Into<Box<dyn std::error::Error>>) -> Refused {
    Refused(400, error.into().to_string())
}

fn unknown(what: &str) -> Refused {
    Refused(404, format!("unknown {what}"))
}

fn read<T: DeserializeOwned>(request: &Request) -> Result<T, Refused> {
    serde_json::from_slice(&request.body).map_err(invalid)
}

fn done() -> Response {
    Response::empty(204)
}

fn shown(body: &Value) -> Response {
    Response::json(200, body)
}

fn made(body: &Value) -> Response {
    Response::json(201, body)
}

pub(crate) fn respond(shared: &Arc<Shared>, request: &Request) -> Response {
    let segments = request.segments();
    let outcome = match (request.method.as_str(), &segments[1..]) {
        ("POST", ["sign-in"]) => walk(shared, request, false),
        ("POST", ["consent"]) => walk(shared, request, true),
        (method, rest) => control(&mut shared.world(), request, method, rest),
    };
    outcome.unwrap_or_else(|Refused(status, message)| Response::json(status, &json!({ "error": message })))
}

fn control(world: &mut World, request: &Request, method: &str, rest: &[&str]) -> Outcome {
    match (method, rest) {
        ("GET", []) => Ok(shown(&json!({
            "entra": world.url(Host::Entra), "graph": world.url(Host::Graph),
            "defender": world.url(Host::Defender), "now": world.now(),
            "apps": world.apps.values().map(|record| &record.app).collect::<Vec<_>>(),
            "tenants": world.tenants.values().map(|tenant| &tenant.seed).collect::<Vec<_>>(),
        }))),
        ("POST", ["seed"]) => {
            read::<Seed>(request)?.plant(world);
            Ok(done())
        }
        ("POST", ["apps"]) => {
            let app: App = read(request)?;
            let record = AppRecord::new(app, world.now());
            world.apps.insert(record.app.client_id.clone(), record);
            Ok(done())
        }
        ("POST", ["tenants"]) => {
            let seed: TenantSeed = read(request)?;
            world.tenants.insert(seed.tenant_id.clone(), Tenant::new(seed));
            Ok(done())
        }
        ("POST", ["grants"]) => {
            read::<Grant>(request)?.give(world);
            Ok(done())
        }
        ("POST", ["tokens"]) => {
            let asked: TokenRequest = read(request)?;
            let roles: Vec<&str> = asked.roles.iter().map(String::as_str).collect();
            let token = entra::issue(world, &asked.tenant_id, &asked.client_id, &roles, asked.resource);
            Ok(made(&json!({ "access_token": token })))
        }
        (_, ["tenants", tenant_id, rest @ ..]) => tenant(world, request, method, tenant_id, rest),
        ("GET", ["faults"]) => Ok(shown(&json!(world.faults.0))),
        ("POST", ["faults"]) => {
            world.faults.0.push(read::<Fault>(request)?);
            Ok(done())
        }
        ("DELETE", ["faults"]) => {
            world.faults.0.clear();
            Ok(done())
        }
        ("GET", ["calls"]) => Ok(shown(&json!(world.calls))),
        ("DELETE", ["calls"]) => {
            world.calls.clear();
            Ok(done())
        }
        ("GET", ["clock"]) => Ok(shown(&json!({ "now": world.now() }))),
        ("POST", ["clock"]) => {
            let change: ClockChange = read(request)?;
            if let Some(at) = change.freeze {
                world.clock.freeze(at);
            }
            if change.thaw {
                world.clock.thaw();
            }
            world.clock.advance(SignedDuration::from_secs(change.advance_seconds));
            Ok(shown(&json!({ "now": world.now() })))
        }
        ("GET", ["behaviour"]) => Ok(shown(&json!(world.behaviour))),
        ("PATCH", ["behaviour"]) => {
            let mut document = json!(world.behaviour);
            merge(&mut document, read(request)?);
            world.behaviour = serde_json::from_value::<Behaviour>(document).map_err(invalid)?;
            Ok(done())
        }
        ("POST", ["limits"]) => {
            let limit: Limit = read(request)?;
            world.limits.insert((limit.host, limit.tenant_id), limit.limits);
            Ok(done())
        }
        ("POST", ["keys"]) => {
            let roll: Roll = read(request)?;
            world.keys.roll(roll.withdraw).map_err(|error| Refused(500, error.to_string()))?;
            Ok(done())
        }
        _ => Err(unknown("path or method")),
    }
}

fn tenant(world: &mut World, request: &Request, method: &str, tenant_id: &str, rest: &[&str]) -> Outcome {
    let now = world.now();
    let Some(tenant) = world.tenants.get_mut(tenant_id) else { return Err(unknown("tenant")) };
    let number = |id: &str| id.parse::<u64>().map_err(invalid);
    match (method, rest) {
        ("PATCH", []) => {
            let mut document = json!(tenant.seed);
            merge(&mut document, read(request)?);
            tenant.seed = serde_json::from_value(document).map_err(invalid)?;
            Ok(done())
        }
        ("DELETE", []) => {
            world.tenants.remove(tenant_id);
            Ok(done())
        }
        ("GET", ["grants"]) => {
            let grants = tenant.principals.iter().map(|(client_id, principal)| {
                let roles: Vec<&String> = principal.roles.values().flatten().collect();
                json!({"client_id": client_id, "enabled": principal.enabled, "roles": roles})
            });
            Ok(shown(&grants.collect()))
        }
        ("DELETE", ["grants", client_id]) => {
            tenant.principals.remove(*client_id);
            Ok(done())
        }
        ("POST", ["grants", client_id, action @ ("disable" | "enable")]) => {
            let principal = tenant.principals.get_mut(*client_id).ok_or_else(|| unknown("service principal"))?;
            principal.enabled = *action == "enable";
            Ok(done())
        }
        ("POST", ["hunting"]) => {
            let table: HuntingTable = read(request)?;
            tenant.hunting.retain(|known| known.name != table.name);
            tenant.hunting.push(table);
            Ok(done())
        }
        ("GET", ["incidents"]) => Ok(shown(&tenant.incidents.values().map(|stored| json!(stored.incident)).collect())),
        ("POST", ["incidents"]) => {
            let id = tenant.put(read::<IncidentSeed>(request)?, now);
            Ok(made(&json!({ "id": id.to_string() })))
        }
        ("GET", ["incidents", id]) => {
            let stored = tenant.incidents.get(&number(id)?).ok_or_else(|| unknown("incident"))?;
            Ok(shown(&json!(stored.incident)))
        }
        ("PATCH", ["incidents", id]) => {
            let id = number(id)?;
            let stored = tenant.incidents.get(&id).ok_or_else(|| unknown("incident"))?;
            let mut document = json!(stored.incident);
            merge(&mut document, read(request)?);
            let mut changed: Incident = serde_json::from_value(document).map_err(invalid)?;
            changed.id = id;
            let change = |incident: &mut Incident| *incident = changed;
            if request.decoded_query() == "silent=true" {
                tenant.change(id, change);
            } else {
                tenant.touch(id, now, change);
            }
            Ok(done())
        }
        ("POST", ["incidents", from, "merge"]) => {
            let Merge { into } = read(request)?;
            let (from, into) = (number(from)?, number(&into)?);
            if world.merge(tenant_id, from, into) { Ok(done()) } else { Err(unknown("incident")) }
        }
        _ => Err(unknown("path or method")),
    }
}

/// What a running simulator begins with: the body of `POST /_sim/seed` and the program's seed file.
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
                tenant.put(incident, now);
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
struct Roll {
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

fn walk(shared: &Shared, request: &Request, consent: bool) -> Outcome {
    let walk: Walk = read(request)?;
    let decision = if walk.cancel { Decision::Cancel } else { Decision::Accept };
    let decision = consent.then_some(decision);
    match browse(shared, &walk.url, &walk.tenant_id, &walk.user, decision) {
        Ok(location) => Ok(shown(&json!({ "location": location }))),
        Err(page) => Err(Refused(409, page)),
    }
}

/// JSON merge patch (RFC 7396), but `null` sets null: a field here is never absent.
fn merge(document: &mut Value, patch: Map<String, Value>) {
    for (name, value) in patch {
        match (document.get_mut(&name), value) {
            (Some(inner @ Value::Object(_)), Value::Object(value)) => merge(inner, value),
            (_, value) => document[name.as_str()] = value,
        }
    }
}

/// Clicks through the pages that a URL starts, as a person would, until they lead away from the login host.
pub(crate) fn browse(
    shared: &Shared,
    url: &str,
    tenant_id: &str,
    user: &str,
    decision: Option<Decision>,
) -> Result<String, String> {
    let path_and_query = url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
    let (path, query) = path_and_query.ok_or("not a URL")?.split_once('?').unwrap_or_default();
    let mut request = Request {
        host: Host::Entra,
        method: "GET".to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    };
    // Account, permissions prompt, consent: no walk is longer.
    for _ in 0..5 {
        let (response, _) = respond_on_host(&mut shared.world(), &request);
        if let Some(location) = response.header("location") {
            return Ok(location.to_owned());
        }
        let cookie = response.header("set-cookie").and_then(|cookie| cookie.split(';').next()).map(str::to_owned);
        let text: String = response
            .body
            .into_iter()
            .map(|piece| match piece {
                crate::http::BodyPart::Text(text) => text,
                crate::http::BodyPart::Generated { .. } => String::new(),
            })
            .collect();
        let Some(flow) = attribute(&text, "name=\"flow\" value=\"") else { return Err(text) };
        let consenting = text.contains("action=\"/consent\"");
        let button = if consenting {
            let accepts = decision == Some(Decision::Accept) && text.contains("id=\"accept\"");
            format!("decision={}", if accepts { "accept" } else { "cancel" })
        } else {
            let accept = if text.contains("name=\"accept\"") { "&accept=yes" } else { "" };
            format!("user={}{accept}", encode(&format!("{tenant_id}/{user}")))
        };
        "POST".clone_into(&mut request.method);
        request.path = if consenting { "/consent".to_owned() } else { "/login".to_owned() };
        request.query.clear();
        request.headers.insert("content-type", HeaderValue::from_static("application/x-www-form-urlencoded"));
        if let Some(value) = cookie.filter(|cookie| cookie.starts_with(SESSION)).and_then(|cookie| cookie.parse().ok())
        {
            request.headers.insert("cookie", value);
        }
        request.body = format!("flow={}&{button}", encode(flow)).into();
    }
    Err("the pages lead nowhere".to_owned())
}

fn attribute<'a>(html: &'a str, start: &str) -> Option<&'a str> {
    let rest = &html[html.find(start)? + start.len()..];
    rest.split('"').next()
}
