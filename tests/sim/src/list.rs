//! Lists of incidents, as both APIs serve them from the one store: query options, pages, next links and records.

use std::{cmp::Ordering, collections::BTreeSet, fmt::Write as _, sync::Arc};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    faults::Host,
    http::{BodyPart, Request, Response, decode_pairs, encode},
    odata::{Field, FieldValue, Filter, parse_count},
    store::{Alert, Giant, Incident},
    world::{ListBehaviour, NextLink, NextLinkTweak, Order, Tweaks, World},
};

/// The query options of a list.
#[derive(Debug)]
pub(crate) struct ListQuery {
    filter: Option<Filter>,
    top: usize,
    skip: usize,
    /// The pages without rows that are still to come before the next page with rows.
    empty_pages: usize,
    pub(crate) alerts: Alerts,
    count: bool,
    /// The order of `$orderby`; otherwise the API's own.
    order: Option<Order>,
}

/// `$expand=alerts`, or its absence. Defender's records always have alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alerts {
    Included,
    Omitted,
}

/// The query options and filter fields that an API accepts.
pub(crate) struct QuerySyntax {
    pub(crate) options: &'static [&'static str],
    pub(crate) fields: &'static [Field],
}

impl ListQuery {
    /// Parses a query; the error is the message of a 400.
    pub(crate) fn parse(query: &str, syntax: &QuerySyntax, behaviour: &ListBehaviour) -> Result<Self, String> {
        let mut list_query = Self {
            filter: None,
            top: behaviour.default_top,
            skip: 0,
            empty_pages: behaviour.empty_pages,
            alerts: Alerts::Omitted,
            count: false,
            order: None,
        };
        let mut seen = BTreeSet::new();
        for (name, value) in decode_pairs(query)? {
            let known = syntax.options.contains(&name.as_str())
                || (name == "$orderby" && behaviour.allow_orderby)
                || (name == "$skiptoken" && (behaviour.next_link == NextLink::Skiptoken || behaviour.empty_pages > 0));
            if !known {
                return Err(format!("The query parameter '{name}' is not supported."));
            }
            if !seen.insert(name.clone()) {
                return Err(format!(
                    "Query option '{name}' was specified more than once, but it must be specified at most once."
                ));
            }
            match name.as_str() {
                "$filter" => list_query.filter = Some(Filter::parse(&value, syntax.fields)?),
                "$top" => {
                    list_query.top = parse_count("$top", &value)?;
                    if list_query.top > behaviour.max_top || list_query.top == 0 {
                        return Err(format!(
                            "The limit of '{}' for Top query has been exceeded. The value from the incoming request is '{}'.",
                            behaviour.max_top, list_query.top
                        ));
                    }
                }
                "$skip" => {
                    list_query.skip = parse_count("$skip", &value)?;
                    if behaviour.max_skip.is_some_and(|max_skip| list_query.skip > max_skip) {
                        return Err(format!("The limit for Skip query has been exceeded: '{}'.", list_query.skip));
                    }
                }
                "$skiptoken" => {
                    let (skip, empty_pages) = parse_skip_token(&value).ok_or("The skip token is not valid.")?;
                    list_query.skip = skip;
                    list_query.empty_pages = empty_pages.unwrap_or(behaviour.empty_pages);
                }
                "$expand" if value == "alerts" => list_query.alerts = Alerts::Included,
                "$count" if value == "true" || value == "false" => list_query.count = value == "true",
                "$orderby" => {
                    let mut words = value.split_ascii_whitespace();
                    if !matches!(words.next(), Some("lastUpdateDateTime" | "lastUpdateTime")) {
                        return Err(format!("The order '{value}' is not supported."));
                    }
                    list_query.order = match words.next() {
                        None | Some("asc") => Some(Order::UpdatedAscending),
                        Some("desc") => Some(Order::UpdatedDescending),
                        Some(_) => return Err(format!("The order '{value}' is not supported.")),
                    };
                }
                _ => return Err(format!("Invalid value '{value}' for {name} query option found.")),
            }
        }
        Ok(list_query)
    }
}

/// The rows to leave out and the pages without rows still to come, if the token names them.
fn parse_skip_token(token: &str) -> Option<(usize, Option<usize>)> {
    let position = token.strip_prefix("sim-")?;
    match position.split_once('.') {
        Some((skip, empty_pages)) => Some((skip.parse().ok()?, Some(empty_pages.parse().ok()?))),
        None => Some((position.parse().ok()?, None)),
    }
}

/// One page of a list.
#[derive(Default)]
pub(crate) struct Page {
    rows: Vec<Incident>,
    /// Matching incidents on all pages, if `$count=true` asked for the number.
    count: Option<usize>,
    next_link: Option<String>,
    next_link_first: bool,
}

/// Selects the page of incidents that a request queries.
pub(crate) fn select_page(
    world: &mut World,
    request: &Request,
    tenant_id: &str,
    list_query: &ListQuery,
    field_value: impl Fn(&Incident, &str) -> FieldValue,
    tweaks: &Tweaks,
) -> Page {
    let now = world.now();
    world.responses_made += 1;
    let nth_response = world.responses_made;
    let behaviour = if request.host == Host::Defender { world.behaviour.defender } else { world.behaviour.graph };
    let Some(tenant) = world.tenants.get(tenant_id) else {
        return Page::default();
    };
    let mut rows: Vec<&Incident> = tenant
        .incidents
        .values()
        .filter_map(|stored| stored.version_back(tweaks.versions_behind))
        .filter(|incident| incident.is_visible(now))
        .filter(|incident| {
            tweaks.ignores_filter
                || list_query
                    .filter
                    .as_ref()
                    .is_none_or(|filter| filter.matches(&|field: &str| field_value(incident, field)))
        })
        .collect();
    let tie = |incident: &Incident| {
        let shuffled = incident.id.wrapping_add(nth_response).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if behaviour.shuffle_ties { shuffled } else { u64::MAX - incident.id }
    };
    let order = list_query.order.unwrap_or(behaviour.order);
    rows.sort_by(|left, right| {
        let times = match order {
            Order::UpdatedDescending => right.last_update.cmp(&left.last_update),
            Order::UpdatedAscending => left.last_update.cmp(&right.last_update),
            Order::CreatedDescending => right.created.cmp(&left.created),
            Order::Shuffled => shuffled(left.id).cmp(&shuffled(right.id)),
        };
        if times == Ordering::Equal { tie(left).cmp(&tie(right)) } else { times }
    });
    let total = rows.len();
    let is_empty = matches!(tweaks.next_link, Some(NextLinkTweak::EmptyPage)) && !request.query.contains("skip");
    let page_size = tweaks.row_cap.or(behaviour.page_size).unwrap_or(usize::MAX).min(list_query.top);
    let page_size = if is_empty || list_query.empty_pages > 0 { 0 } else { page_size };
    let rows: Vec<Incident> = rows.into_iter().skip(list_query.skip).take(page_size).cloned().collect();
    let has_more = tweaks.row_cap.is_none() && list_query.skip + rows.len() < total;
    let leads_to_nothing = behaviour.next_link_to_nothing && !rows.is_empty() && rows.len() == page_size;
    let next_link = match &tweaks.next_link {
        _ if list_query.empty_pages > 0 => Some(link_with(
            world,
            request,
            "$skiptoken",
            &format!("sim-{}.{}", list_query.skip, list_query.empty_pages - 1),
        )),
        Some(NextLinkTweak::Foreign(url)) => Some(url.clone()),
        Some(NextLinkTweak::Loop) => Some(absolute_url(world, request, &request.query)),
        Some(NextLinkTweak::EmptyPage) if is_empty => {
            self::next_link(world, request, &ListBehaviour { next_link: NextLink::Skip, ..behaviour }, 0)
        }
        None | Some(NextLinkTweak::EmptyPage) if has_more || leads_to_nothing => {
            self::next_link(world, request, &behaviour, list_query.skip + rows.len())
        }
        None | Some(NextLinkTweak::EmptyPage) => None,
    };
    Page { rows, count: list_query.count.then_some(total), next_link, next_link_first: behaviour.next_link_first }
}

/// A number that puts identifiers into an order of no meaning.
fn shuffled(id: u64) -> u64 {
    let mixed = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

fn absolute_url(world: &World, request: &Request, query: &str) -> String {
    let separator = if query.is_empty() { "" } else { "?" };
    format!("{}{}{separator}{query}", world.url(request.host), request.path)
}

fn next_link(world: &World, request: &Request, behaviour: &ListBehaviour, position: usize) -> Option<String> {
    let (name, value) = match behaviour.next_link {
        NextLink::None => return None,
        NextLink::Skip => ("$skip", position.to_string()),
        NextLink::Skiptoken => ("$skiptoken", format!("sim-{position}")),
    };
    Some(link_with(world, request, name, &value))
}

/// The URL of the request with another place in the list.
fn link_with(world: &World, request: &Request, name: &str, value: &str) -> String {
    let pairs = decode_pairs(&request.query).unwrap_or_default();
    let mut query: Vec<String> = pairs
        .into_iter()
        .filter(|(name, _)| name != "$skip" && name != "$skiptoken")
        .map(|(name, value)| format!("{name}={}", encode(&value)))
        .collect();
    query.push(format!("{name}={value}"));
    absolute_url(world, request, &query.join("&"))
}

/// The JSON of one record with generated alerts added. `text` has to end with the array of alerts for that.
pub(crate) fn record_parts(
    text: String,
    incident: &Incident,
    giant: Option<Giant>,
    alert_json: fn(&Alert, u64) -> Value,
) -> Vec<BodyPart> {
    if let Some(raw) = &incident.raw {
        return vec![BodyPart::Text(raw.clone())];
    }
    let Some(giant) = giant.filter(|giant| giant.alerts > 0) else {
        return vec![BodyPart::Text(text)];
    };
    let Some(start) = text.strip_suffix("]}") else { return vec![BodyPart::Text(text)] };
    let (id, at, first) = (incident.id, incident.last_update, incident.alerts.len());
    let make = move |n: usize| {
        let mut made = Alert::sample(id, first + n, at);
        made.description = "x".repeat(giant.bytes_each);
        let comma = if first + n == 0 { "" } else { "," };
        format!("{comma}{}", alert_json(&made, id))
    };
    let generated = BodyPart::Generated { count: giant.alerts, make: Arc::new(make) };
    vec![BodyPart::Text(start.to_owned()), generated, BodyPart::Text("]}".to_owned())]
}

/// The response with an OData collection: a page as JSON.
pub(crate) fn collection(context: &str, page: &Page, record: impl Fn(&Incident) -> Vec<BodyPart>) -> Response {
    let mut start = format!("{{\"@odata.context\":{}", Value::from(context));
    if let Some(count) = page.count {
        let _ = write!(start, ",\"@odata.count\":{count}");
    }
    let link = page.next_link.as_ref().map(|link| format!(",\"@odata.nextLink\":{}", Value::from(link.as_str())));
    let link = link.unwrap_or_default();
    if page.next_link_first {
        start.push_str(&link);
    }
    start.push_str(",\"value\":[");
    let mut body = vec![BodyPart::Text(start)];
    for (position, incident) in page.rows.iter().enumerate() {
        if position > 0 {
            body.push(BodyPart::Text(",".to_owned()));
        }
        body.extend(record(incident));
    }
    body.push(BodyPart::Text(if page.next_link_first { "]}".to_owned() } else { format!("]{link}}}") }));
    let mut response = Response::new(200, "application/json", String::new());
    response.body = body;
    response.incident_ids = page.rows.iter().map(|incident| incident.id).collect();
    response
}

/// Finds the incident of a single read, unless it is hidden.
pub(crate) fn find_incident(world: &World, tenant_id: &str, id: &str, versions_behind: usize) -> Option<Incident> {
    let plain = !id.is_empty() && id.bytes().all(|digit| digit.is_ascii_digit());
    let id: u64 = plain.then(|| id.parse().ok()).flatten()?;
    let stored = world.tenants.get(tenant_id)?.incidents.get(&id)?;
    stored.version_back(versions_behind).filter(|incident| incident.is_visible(world.now())).cloned()
}

/// A time as .NET writes it, without trailing zeros in the fraction.
pub(crate) fn json_time(at: Timestamp) -> Value {
    Value::String(at.to_string())
}
