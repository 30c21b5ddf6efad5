//! The seven tools: what they take, and what they return.

use serde::Deserialize;
use serde_json::{Value, json};
use shared::{incident::record::is_incident_id, tenant::TenantId};

use super::{
    kql::leaves_tenant,
    outside::{self, NOTICE},
    schema::{self, arguments},
};
use crate::{
    advice,
    api::Api,
    commands::{hunt, tenants::worst_first, text},
    incident::IncidentView,
    problem::Problem,
    time::{Moment, Span},
};

/// The most items of one result, by default and at all.
pub(super) const DEFAULT_ITEMS: usize = 20;
pub(super) const MAX_ITEMS: usize = 50;

/// The most rows of a hunt in one result.
const MAX_ROWS: usize = 100;

/// The most characters of a query.
pub(super) const MAX_QUERY_CHARACTERS: usize = 20_000;

/// A tool: its name, what it does, its arguments, and the members that its result always has.
pub(super) struct ToolKind {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) description: &'static str,
    pub(super) input: fn() -> Value,
    pub(super) output: fn() -> Value,
}

/// Every tool that the server has. None changes anything, and none returns a token.
pub(super) const TOOLS: [ToolKind; 7] = [
    ToolKind {
        name: "list_tenants",
        title: "List tenants",
        description: "Lists the customers' tenants, the worst first: status, reason, lag, open incidents, and what to do.",
        input: || arguments(&[], &["status", "limit", "next"]),
        output: schema::tenant_list,
    },
    ToolKind {
        name: "get_tenant",
        title: "Get a tenant",
        description: "Returns one tenant: how far it was read, its roles, its last sweep, and what to do if it is not read.",
        input: || arguments(&["tenant_id"], &[]),
        output: schema::one_tenant,
    },
    ToolKind {
        name: "list_incidents",
        title: "List incidents",
        description: "Lists incidents over all active tenants, or of one, the latest update first. A tenant that cannot be read is \
                      in `failures`.",
        input: || arguments(&[], &["tenant_id", "severity", "incident_status", "since", "limit", "next"]),
        output: schema::incident_list,
    },
    ToolKind {
        name: "get_incident",
        title: "Get an incident",
        description: "Returns one incident with its alerts and their evidence.",
        input: || arguments(&["tenant_id", "incident_id"], &["limit", "next"]),
        output: schema::one_incident,
    },
    ToolKind {
        name: "start_hunt",
        title: "Start a hunt",
        description: "Runs one KQL query of advanced hunting over the tenants. Returns the table, or a hunt_id for get_hunt. A query \
                      that leaves the tenant (externaldata, adx, http_request and the like) is refused.",
        input: || arguments(&["query"], &["tenants", "timespan"]),
        output: schema::hunt,
    },
    ToolKind {
        name: "get_hunt",
        title: "Get a hunt",
        description: "Returns the progress of a hunt, and its rows once it is done. Waits a few seconds for the end.",
        input: || arguments(&["hunt_id"], &["limit", "next"]),
        output: schema::hunt,
    },
    ToolKind {
        name: "completeness",
        title: "Completeness",
        description: "Says for each tenant how far its incidents were read, and what the last sweep checked and found missing.",
        input: || arguments(&[], &["tenant_id", "limit", "next"]),
        output: schema::completeness,
    },
];

/// The arguments of any tool. Each tool's schema says which of them it takes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Arguments {
    tenant_id: Option<TenantId>,
    tenants: Option<Vec<TenantId>>,
    incident_id: Option<String>,
    hunt_id: Option<String>,
    status: Option<String>,
    severity: Option<String>,
    since: Option<String>,
    timespan: Option<String>,
    query: Option<String>,
    limit: Option<usize>,
    next: Option<String>,
}

impl Arguments {
    fn limit(&self, most: usize) -> usize {
        self.limit.unwrap_or(DEFAULT_ITEMS).clamp(1, most)
    }

    /// The position that a `next` of our own stands for.
    fn position(&self) -> Result<usize, Problem> {
        let Some(next) = &self.next else { return Ok(0) };
        next.parse().map_err(|_| Problem::new("invalid_request", "`next` is not one that this tool gave."))
    }

    fn tenant_id(&self) -> Result<String, Problem> {
        self.tenant_id.map(|tenant| tenant.to_string()).ok_or_else(|| missing("tenant_id"))
    }
}

fn missing(name: &str) -> Problem {
    Problem::new("invalid_request", format!("`{name}` is missing."))
}

/// Cuts a list to the page at `position`, and returns the `next`.
fn page<T>(items: Vec<T>, position: usize, limit: usize) -> (Vec<T>, Option<String>) {
    let total = items.len();
    let end = position.saturating_add(limit);
    let items = items.into_iter().skip(position).take(limit).collect();
    (items, (end < total).then(|| end.to_string()))
}

/// Calls a tool by its name.
pub(super) async fn call(api: &Api, name: &str, args: &Arguments) -> Result<Value, Problem> {
    match name {
        "list_tenants" => list_tenants(api, args).await,
        "get_tenant" => {
            let tenant = api.get(&["tenants", &args.tenant_id()?], &[]).await?;
            Ok(json!({"tenant": tenant_view(&tenant), "next": null, "notice": NOTICE}))
        }
        "list_incidents" => list_incidents(api, args).await,
        "get_incident" => get_incident(api, args).await,
        "start_hunt" => start_hunt(api, args).await,
        "get_hunt" => {
            let hunt = hunt::progress(api, args.hunt_id.as_deref().ok_or_else(|| missing("hunt_id"))?).await?;
            hunt_view(&hunt, args)
        }
        _ => completeness(api, args).await,
    }
}

async fn list_tenants(api: &Api, args: &Arguments) -> Result<Value, Problem> {
    let tenants = worst_first(api, args.status.as_deref()).await?;
    let (tenants, next) = page(tenants, args.position()?, args.limit(MAX_ITEMS));
    let tenants: Vec<_> = tenants.iter().map(tenant_view).collect();
    Ok(json!({"tenants": tenants, "next": next, "notice": NOTICE}))
}

/// A Tenant with its texts from outside marked: the operator wrote the customer's name, and a directory the person's.
fn tenant_view(tenant: &Value) -> Value {
    let mut view = tenant.clone();
    view["what_to_do"] = json!(advice::for_tenant(tenant));
    if let Some(view) = view.as_object_mut() {
        let by = view.remove("consented_by").and_then(|name| Some(outside::outside_text(name.as_str()?)));
        let customer = view.remove("customer").and_then(|name| Some(outside::outside_text(name.as_str()?)));
        view.insert("outside".to_owned(), json!({"customer": customer, "consented_by": by}));
    }
    view
}

async fn list_incidents(api: &Api, args: &Arguments) -> Result<Value, Problem> {
    let since = args.since.as_deref().map(str::parse::<Moment>).transpose();
    let since =
        since.map_err(|error| Problem::new("invalid_request", format!("`since` is {error}.")))?.map(Moment::utc);
    let tenant = args.tenant_id.map(|tenant| tenant.to_string());
    let path = tenant.as_ref().map_or_else(|| vec!["incidents"], |tenant| vec!["tenants", tenant, "incidents"]);
    let limit = args.limit(MAX_ITEMS).to_string();
    let query = [
        ("limit", Some(limit.as_str())),
        ("from", since.as_deref()),
        ("severity", args.severity.as_deref()),
        ("status", args.status.as_deref()),
        ("next", args.next.as_deref()),
    ];
    let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let page = api.get(&path, &query).await?;
    let incidents: Vec<_> = page["incidents"].as_array().into_iter().flatten().map(outside::incident).collect();
    let failures = page["failures"].as_array().cloned().unwrap_or_default();
    Ok(json!({"incidents": incidents, "failures": failures, "next": page["next"], "notice": NOTICE}))
}

async fn get_incident(api: &Api, args: &Arguments) -> Result<Value, Problem> {
    let incident_id =
        args.incident_id.as_deref().filter(|id| is_incident_id(id)).ok_or_else(|| missing("incident_id"))?;
    let envelope = api.get(&["tenants", &args.tenant_id()?, "incidents", incident_id], &[]).await?;
    let mut incident = outside::incident(&envelope);
    let alerts = IncidentView::of(&envelope).alerts().unwrap_or_default();
    let (alerts, next) = page(alerts, args.position()?, args.limit(MAX_ITEMS));
    let alerts: Vec<_> = alerts.iter().map(outside::alert).collect();
    if let (Some(outside), Value::Object(texts)) = (incident["outside"].as_object_mut(), outside::texts(&envelope)) {
        outside.extend(texts);
    }
    Ok(json!({"incident": incident, "alerts": alerts, "next": next, "notice": NOTICE}))
}

async fn start_hunt(api: &Api, args: &Arguments) -> Result<Value, Problem> {
    let query = args.query.as_deref().ok_or_else(|| missing("query"))?;
    if query.chars().count() > MAX_QUERY_CHARACTERS {
        return Err(Problem::new(
            "invalid_request",
            format!("`query` has more than {MAX_QUERY_CHARACTERS} characters."),
        ));
    }
    if let Some(what) = leaves_tenant(query) {
        return Err(Problem::new(
            "query_leaves_tenant",
            format!("The query contains {what}, which can leave the tenant."),
        )
        .advise("Hunt with the tables of the tenant alone, and write the word differently where it is only text."));
    }
    let timespan = args.timespan.as_deref().map(str::parse::<Span>).transpose();
    let timespan = timespan.map_err(|error| Problem::new("invalid_request", format!("`timespan` is {error}.")))?;
    let tenants: Vec<_> = args.tenants.iter().flatten().map(ToString::to_string).collect();
    let body = hunt::request(query, &tenants, timespan.as_ref().map(Span::iso));
    let hunt = api.post(&["hunting"], Some(&body)).await?;
    hunt_view(&hunt, args)
}

fn hunt_view(hunt: &Value, args: &Arguments) -> Result<Value, Problem> {
    let all = hunt["results"].as_array();
    let rows: Vec<_> = all.into_iter().flatten().collect();
    let total = hunt["rows"].as_u64().or_else(|| u64::try_from(all?.len()).ok());
    let limit = args.limit.map_or(MAX_ROWS, |limit| limit.clamp(1, MAX_ROWS));
    let (rows, next) = page(rows, args.position()?, limit);
    let failures = hunt["failures"].as_array().cloned().unwrap_or_default();
    // A server whose hunts are not jobs yet responds with the table alone, and has no second page.
    let next = next.filter(|_| hunt["hunt_id"].is_string());
    Ok(json!({
        "hunt_id": hunt["hunt_id"],
        "status": hunt["status"].as_str().unwrap_or("done"),
        "tenants_total": hunt["tenants_total"],
        "tenants_done": hunt["tenants_done"],
        "rows_total": total,
        "rows": rows.into_iter().map(outside::row).collect::<Vec<_>>(),
        "truncated": hunt["truncated"],
        "too_large": all.is_none() && hunt["status"] == "done",
        "failures": failures,
        "next": next,
        "notice": NOTICE,
    }))
}

async fn completeness(api: &Api, args: &Arguments) -> Result<Value, Problem> {
    let tenants = match args.tenant_id {
        Some(tenant) => vec![api.get(&["tenants", &tenant.to_string()], &[]).await?],
        None => worst_first(api, None).await?,
    };
    let (tenants, next) = page(tenants, args.position()?, args.limit(MAX_ITEMS));
    let tenants: Vec<_> = tenants
        .iter()
        .map(|tenant| {
            let missing = tenant["last_sweep"]["missing"].as_u64();
            let quarantined = tenant["quarantined"].as_u64().unwrap_or_default();
            let meaning = match (text(tenant, "status"), missing, quarantined) {
                ("active", _, quarantined) if quarantined > 0 => "some records cannot be read, and are tried again",
                ("active", Some(0), _) => "complete at the last sweep",
                ("active", Some(_), _) => "the last sweep delivered what polling had missed",
                ("active", None, _) => "no sweep has checked it yet",
                _ => "not read at present",
            };
            json!({
                "tenant_id": tenant["tenant_id"], "status": tenant["status"], "reason": tenant["reason"],
                "covered_until": tenant["covered_until"], "lag_seconds": tenant["lag_seconds"],
                "delivered": tenant["incidents_total"], "quarantined": quarantined, "last_sweep": tenant["last_sweep"],
                "meaning": meaning, "what_to_do": advice::for_tenant(tenant),
                "outside": {"customer": outside::outside_text(text(tenant, "customer"))},
            })
        })
        .collect();
    Ok(json!({"tenants": tenants, "next": next, "notice": NOTICE}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_end_with_a_null_next() {
        assert_eq!(page(vec![1, 2, 3], 0, 2), (vec![1, 2], Some("2".to_owned())));
        assert_eq!(page(vec![1, 2, 3], 2, 2), (vec![3], None));
        assert_eq!(page(vec![1, 2, 3], usize::MAX, 2), (Vec::<i32>::new(), None));
    }

    #[test]
    fn tools_are_seven_and_take_only_what_they_name() {
        assert_eq!(TOOLS.len(), 7);
        for tool in &TOOLS {
            let schema = (tool.input)();
            assert_eq!(schema["additionalProperties"], false, "{}", tool.name);
            assert!((tool.output)()["required"].as_array().unwrap().contains(&json!("notice")), "{}", tool.name);
            assert!(!tool.name.contains("token"));
        }
        assert!(serde_json::from_value::<Arguments>(json!({"access_token": "x"})).is_err());
    }
}
