//! Lists of incidents, as both APIs serve them from the one store: query options, pages, next links and records.

use std::{cmp::Ordering, collections::BTreeSet, fmt::Write as _, sync::Arc};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    faults::Host,
    http::{BodyPart, Request, Response, decode_pairs, encode},
    odata::{Field, Filter, Operand, count},
    store::{Alert, Incident},
    world::{ListBehaviour, NextLink, NextLinkTweak, Order, Tweaks, World},
};

/// The query options of a list.
#[derive(Debug)]
pub(crate) struct Listing {
    filter: Option<Filter>,
    top: usize,
    skip: usize,
    pub(crate) expand: bool,
    pub(crate) count: bool,
    ascending: Option<bool>,
}

/// Which options and fields a host knows.
pub(crate) struct Dialect {
    pub(crate) options: &'static [&'static str],
    pub(crate) fields: &'static [Field],
}

/// Parses a query; the error is text for a 400.
pub(crate) fn listing(query: &str, dialect: &Dialect, behaviour: &ListBehaviour) -> Result<Listing, String> {
    let mut listing =
        Listing { filter: None, top: behaviour.default_top, skip: 0, expand: false, count: false, ascending: None };
    let mut seen = BTreeSet::new();
    for (name, value) in decode_pairs(query)? {
        let known = dialect.options.contains(&name.as_str())
            || (name == "$orderby" && behaviour.allow_orderby)
            || (name == "$skiptoken" && behaviour.next_link == NextLink::Skiptoken);
        if !known {
            return Err(format!("The query parameter '{name}' is not supported."));
        }
        if !seen.insert(name.clone()) {
            return Err(format!(
                "Query option '{name}' was specified more than once, but it must be specified at most once."
            ));
        }
        match name.as_str() {
            "$filter" => listing.filter = Some(Filter::parse(&value, dialect.fields)?),
            "$top" => {
                listing.top = count("$top", &value)?;
                if listing.top > behaviour.max_top || listing.top == 0 {
                    return Err(format!(
                        "The limit of '{}' for Top query has been exceeded. The value from the incoming request is '{}'.",
                        behaviour.max_top, listing.top
                    ));
                }
            }
            "$skip" => {
                listing.skip = count("$skip", &value)?;
                if behaviour.max_skip.is_some_and(|most| listing.skip > most) {
                    return Err(format!("The limit for Skip query has been exceeded: '{}'.", listing.skip));
                }
            }
            "$skiptoken" => {
                let place = value.strip_prefix("sim-").and_then(|place| place.parse().ok());
                listing.skip = place.ok_or("The skip token is not valid.")?;
            }
            "$expand" if value == "alerts" => listing.expand = true,
            "$count" if value == "true" || value == "false" => listing.count = value == "true",
            "$orderby" => {
                let mut words = value.split_ascii_whitespace();
                if !matches!(words.next(), Some("lastUpdateDateTime" | "lastUpdateTime")) {
                    return Err(format!("The order '{value}' is not supported."));
                }
                listing.ascending = match words.next() {
                    None | Some("asc") => Some(true),
                    Some("desc") => Some(false),
                    Some(_) => return Err(format!("The order '{value}' is not supported.")),
                };
            }
            _ => return Err(format!("Invalid value '{value}' for {name} query option found.")),
        }
    }
    Ok(listing)
}

/// A page of incidents.
pub(crate) struct Page {
    pub(crate) rows: Vec<Incident>,
    pub(crate) total: usize,
    pub(crate) next_link: Option<String>,
}

/// Cuts the page that a request asks for.
pub(crate) fn page(
    world: &mut World,
    request: &Request,
    tenant_id: &str,
    listing: &Listing,
    operand: impl Fn(&Incident, &str) -> Operand,
    tweaks: &Tweaks,
) -> Page {
    let now = world.now();
    world.turn += 1;
    let turn = world.turn;
    let behaviour = behaviour(world, request.host);
    let Some(tenant) = world.tenants.get(tenant_id) else {
        return Page { rows: Vec::new(), total: 0, next_link: None };
    };
    let mut rows: Vec<&Incident> = tenant
        .incidents
        .values()
        .filter_map(|stored| stored.behind(tweaks.stale))
        .filter(|incident| incident.is_visible(now))
        .filter(|incident| {
            listing.filter.as_ref().is_none_or(|filter| filter.holds(&|field: &str| operand(incident, field)))
        })
        .collect();
    let tie = |incident: &Incident| {
        let shuffled = incident.id.wrapping_add(turn).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if behaviour.shuffle_ties { shuffled } else { u64::MAX - incident.id }
    };
    let order = match listing.ascending {
        Some(true) => Order::UpdatedAscending,
        Some(false) => Order::UpdatedDescending,
        None => behaviour.order,
    };
    rows.sort_by(|left, right| {
        let times = match order {
            Order::UpdatedDescending => right.last_update.cmp(&left.last_update),
            Order::UpdatedAscending => left.last_update.cmp(&right.last_update),
            Order::CreatedDescending => right.created.cmp(&left.created),
        };
        if times == Ordering::Equal { tie(left).cmp(&tie(right)) } else { times }
    });
    let total = rows.len();
    let most = tweaks.cap.unwrap_or(usize::MAX).min(listing.top);
    let rows: Vec<Incident> = rows.into_iter().skip(listing.skip).take(most).cloned().collect();
    let more = tweaks.cap.is_none() && listing.skip + rows.len() < total;
    let next_link = match &tweaks.next_link {
        Some(NextLinkTweak::Foreign(url)) => Some(url.clone()),
        Some(NextLinkTweak::Loop) => Some(link(world, request, &request.query)),
        None if more => next(world, request, &behaviour, listing.skip + rows.len()),
        None => None,
    };
    Page { rows, total, next_link }
}

pub(crate) fn behaviour(world: &World, host: Host) -> ListBehaviour {
    if host == Host::Defender { world.behaviour.defender } else { world.behaviour.graph }
}

fn link(world: &World, request: &Request, query: &str) -> String {
    let separator = if query.is_empty() { "" } else { "?" };
    format!("{}{}{separator}{query}", world.url(request.host), request.path)
}

fn next(world: &World, request: &Request, behaviour: &ListBehaviour, place: usize) -> Option<String> {
    let (name, value) = match behaviour.next_link {
        NextLink::None => return None,
        NextLink::Skip => ("$skip", place.to_string()),
        NextLink::Skiptoken => ("$skiptoken", format!("sim-{place}")),
    };
    let pairs = decode_pairs(&request.query).unwrap_or_default();
    let mut query: Vec<String> = pairs
        .into_iter()
        .filter(|(name, _)| name != "$skip" && name != "$skiptoken")
        .map(|(name, value)| format!("{name}={}", encode(&value)))
        .collect();
    query.push(format!("{name}={value}"));
    Some(link(world, request, &query.join("&")))
}

/// One record as text, its generated alerts as a piece of their own. The text ends with the array of alerts.
pub(crate) fn record(
    text: String,
    incident: &Incident,
    alert: fn(&Alert, u64) -> Value,
    with_alerts: bool,
) -> Vec<BodyPart> {
    if let Some(raw) = &incident.raw {
        return vec![BodyPart::Text(raw.clone())];
    }
    let Some(giant) = incident.giant.filter(|giant| giant.alerts > 0 && with_alerts) else {
        return vec![BodyPart::Text(text)];
    };
    let Some(start) = text.strip_suffix("]}") else { return vec![BodyPart::Text(text)] };
    let (id, at, first) = (incident.id, incident.last_update, incident.alerts.len());
    let make = move |n: usize| {
        let mut made = Alert::sample(id, first + n, at);
        made.description = "x".repeat(giant.bytes_each);
        let comma = if first + n == 0 { "" } else { "," };
        format!("{comma}{}", alert(&made, id))
    };
    let generated = BodyPart::Generated { count: giant.alerts, make: Arc::new(make) };
    vec![BodyPart::Text(start.to_owned()), generated, BodyPart::Text("]}".to_owned())]
}

/// An OData collection.
pub(crate) fn collection(
    context: &str,
    page: &Page,
    count: bool,
    link_first: bool,
    row: impl Fn(&Incident) -> Vec<BodyPart>,
) -> Response {
    let mut start = format!("{{\"@odata.context\":{}", Value::from(context));
    if count {
        let _ = write!(start, ",\"@odata.count\":{}", page.total);
    }
    let link = page.next_link.as_ref().map(|link| format!(",\"@odata.nextLink\":{}", Value::from(link.as_str())));
    let link = link.unwrap_or_default();
    if link_first {
        start.push_str(&link);
    }
    start.push_str(",\"value\":[");
    let mut body = vec![BodyPart::Text(start)];
    for (place, incident) in page.rows.iter().enumerate() {
        if place > 0 {
            body.push(BodyPart::Text(",".to_owned()));
        }
        body.extend(row(incident));
    }
    body.push(BodyPart::Text(if link_first { "]}".to_owned() } else { format!("]{link}}}") }));
    let mut response = Response::new(200, "application/json", String::new());
    response.body = body;
    response.incidents = page.rows.iter().map(|incident| incident.id).collect();
    response
}

/// An incident that a single read may show.
pub(crate) fn find(world: &World, tenant_id: &str, id: &str, stale: usize) -> Option<Incident> {
    let plain = !id.is_empty() && id.bytes().all(|digit| digit.is_ascii_digit());
    let id: u64 = plain.then(|| id.parse().ok()).flatten()?;
    let stored = world.tenants.get(tenant_id)?.incidents.get(&id)?;
    stored.behind(stale).filter(|incident| incident.is_visible(world.now())).cloned()
}

/// A time as .NET writes it: no more digits of fraction than it has.
pub(crate) fn time(at: Timestamp) -> Value {
    Value::String(at.to_string())
}
