//! `runHuntingQuery` over seeded tables. A query is a table's name, then `| where`, `| project`, `| take` or `|
//! count`.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::{bad_request, error, forbidden, quota_exceeded};
use crate::{
    caller::Caller,
    http::{Request, Response},
    store::{HuntingColumn, HuntingTable},
    world::World,
};

const REQUIRED_ROLES: &[&str] = &["ThreatHunting.Read.All"];

/// The length of a cycle of the CPU quota.
const CPU_CYCLE_SECONDS: i64 = 15 * 60;

pub(crate) fn respond(world: &mut World, request: &Request, caller: &Caller) -> Response {
    if request.method != "POST" {
        return error(world, request, 405, "UnknownError", "The requested resource does not support this http method.");
    }
    if !caller.has_any(REQUIRED_ROLES) {
        return forbidden(world, request, caller, REQUIRED_ROLES);
    }
    if request.media_type() != "application/json" {
        return bad_request(
            world,
            request,
            "Write requests (excluding DELETE) must contain the Content-Type header declaration.",
        );
    }
    let content_type = request.header("content-type").unwrap_or_default().to_ascii_lowercase();
    if !request.body.is_ascii() && !content_type.contains("charset=utf-8") {
        // Microsoft's page asks for the charset where a query has other than plain letters.
        return bad_request(world, request, "Invalid query: it has characters of another encoding.");
    }
    let Some(Value::Object(body)) = request.json() else {
        return bad_request(world, request, "Unable to read JSON request payload.");
    };
    if let Some(name) = body.keys().find(|name| !["query", "timespan"].contains(&name.to_lowercase().as_str())) {
        return bad_request(
            world,
            request,
            &format!("The parameter '{name}' in the request payload is not a valid parameter."),
        );
    }
    let text = |name: &str| body.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let Some(query) = text("query").and_then(Value::as_str).filter(|query| !query.trim().is_empty()) else {
        return bad_request(world, request, "Invalid query: the query is empty.");
    };
    if text("timespan").is_some_and(|span| !span.as_str().is_some_and(is_timespan)) {
        return bad_request(world, request, "Invalid timespan: an ISO 8601 duration or interval is expected.");
    }
    if let Some(refused) = over_quota(world, request, &caller.tenant_id) {
        return refused;
    }
    let tables = world.tenants.get(&caller.tenant_id).map(|tenant| tenant.hunting.as_slice()).unwrap_or_default();
    match run_query(tables, query) {
        Ok(table) => result(world, request, &table),
        Err(message) => bad_request(world, request, &message),
    }
}

/// The response with a table, or the refusal of one that is too large.
fn result(world: &World, request: &Request, table: &HuntingTable) -> Response {
    let choices = world.behaviour.hunting;
    let names = if choices.capital_names { ["Name", "Type"] } else { ["name", "type"] };
    let column = |column: &HuntingColumn| json!({names[0]: column.name, names[1]: column.kind});
    let schema: Vec<Value> = table.columns.iter().map(column).collect();
    let body = json!({
        "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#microsoft.graph.security.huntingQueryResults",
        "schema": if choices.null_schema { Value::Null } else { schema.into() },
        "results": table.rows,
    });
    let body = body.to_string();
    if choices.max_result_bytes.is_some_and(|max| body.len() > max) {
        let message = "Query execution has exceeded the allowed result size. Optimize your query by limiting \
                       the number of results and try again.";
        return bad_request(world, request, message);
    }
    Response::new(200, "application/json; charset=utf-8", body)
}

/// Counts a query against the quotas of its tenant. Returns the 429 if it exceeds one.
fn over_quota(world: &mut World, request: &Request, tenant_id: &str) -> Option<Response> {
    let (now, choices) = (world.now(), world.behaviour.hunting);
    let recent = world.recent_queries.entry(tenant_id.to_owned()).or_default();
    let is_old = |at: &Timestamp| now.duration_since(*at) >= SignedDuration::from_secs(CPU_CYCLE_SECONDS);
    while recent.front().is_some_and(is_old) {
        recent.pop_front();
    }
    let in_a_minute = recent.iter().filter(|at| now.duration_since(**at) < SignedDuration::from_mins(1)).count();
    if choices.per_minute.is_some_and(|most| in_a_minute >= most) {
        return Some(quota_exceeded(in_a_minute, 60));
    }
    let cycle = now.as_second().div_euclid(CPU_CYCLE_SECONDS);
    let in_the_cycle = recent.iter().filter(|at| at.as_second().div_euclid(CPU_CYCLE_SECONDS) == cycle).count();
    if in_the_cycle * choices.cpu_percent >= 100 {
        let wait = (cycle + 1) * CPU_CYCLE_SECONDS - now.as_second();
        let refused = error(world, request, 429, "TooManyRequests", "The CPU quota of the tenant is used up.");
        return Some(refused.with("retry-after", &wait.to_string()));
    }
    recent.push_back(now);
    None
}

fn is_timespan(text: &str) -> bool {
    let duration = |part: &str| part.starts_with('P') && part.parse::<jiff::Span>().is_ok();
    text.split('/').all(|part| duration(part) || part.parse::<jiff::Timestamp>().is_ok())
}

pub(crate) fn run_query(tables: &[HuntingTable], query: &str) -> Result<HuntingTable, String> {
    let mut steps = query.split('|').map(str::trim);
    let name = steps.next().unwrap_or_default();
    let found = tables.iter().find(|table| table.name == name);
    let mut table = found.cloned().ok_or_else(|| {
        format!("Failed to resolve table or column expression named '{name}'. Fix semantic errors in your query.")
    })?;
    for step in steps {
        let (operator, rest) = step.split_once(char::is_whitespace).unwrap_or((step, ""));
        match operator {
            "take" | "limit" => {
                let most = rest.trim().parse().map_err(|_| syntax(step))?;
                table.rows.truncate(most);
            }
            "count" => {
                let mut row = Map::new();
                row.insert("Count".to_owned(), json!(table.rows.len()));
                table.columns = vec![HuntingColumn { name: "Count".to_owned(), kind: "Int64".to_owned() }];
                table.rows = vec![row];
            }
            "project" => {
                let wanted: Vec<&str> = rest.split(',').map(str::trim).collect();
                let column = |name: &&str| table.columns.iter().find(|column| column.name == *name).cloned();
                let columns: Option<Vec<_>> = wanted.iter().map(column).collect();
                table.columns = columns.ok_or_else(|| syntax(step))?;
                for row in &mut table.rows {
                    row.retain(|name, _| wanted.contains(&name.as_str()));
                }
            }
            "where" => {
                let (name, value) = rest.split_once("==").ok_or_else(|| syntax(step))?;
                let name = name.trim();
                if !table.columns.iter().any(|column| column.name == name) {
                    return Err(syntax(step));
                }
                let value = value.trim();
                let quoted = value.strip_prefix(['"', '\'']).and_then(|value| value.strip_suffix(['"', '\'']));
                let wanted = match quoted {
                    Some(text) => Value::from(text),
                    None => serde_json::from_str(value).map_err(|_| syntax(step))?,
                };
                table.rows.retain(|row| row.get(name) == Some(&wanted));
            }
            _ => return Err(syntax(step)),
        }
    }
    Ok(table)
}

fn syntax(step: &str) -> String {
    format!("Syntax error at '{step}'. Fix syntax errors in your query.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        HuntingBehaviour,
        testing::{CONTOSO, rig},
    };

    fn tables() -> Vec<HuntingTable> {
        let column = |name: &str, kind: &str| HuntingColumn { name: name.into(), kind: kind.into() };
        let row = |name: &str, n: u32| json!({"DeviceName": name, "Events": n}).as_object().unwrap().clone();
        vec![HuntingTable {
            name: "DeviceInfo".into(),
            columns: vec![column("DeviceName", "String"), column("Events", "Int64")],
            rows: vec![row("a", 1), row("b", 2), row("c", 2)],
        }]
    }

    #[test]
    fn query_steps_filter_and_shape_a_table() {
        let table = run_query(&tables(), "DeviceInfo | where Events == 2 | project DeviceName | take 1").unwrap();
        assert_eq!(table.rows, [json!({"DeviceName": "b"}).as_object().unwrap().clone()]);
        assert_eq!(run_query(&tables(), "DeviceInfo | count").unwrap().rows[0]["Count"], 3);
        assert!(run_query(&tables(), "Nothing").is_err());
        assert!(run_query(&tables(), "DeviceInfo | drop").is_err());
    }

    #[tokio::test]
    async fn quotas_answer_with_the_bodies_of_microsoft() {
        let rig = rig().await;
        rig.sim.put_hunting_table(CONTOSO, tables().remove(0));
        rig.sim.clock().freeze("2026-11-22T10:05:00Z".parse().unwrap());
        let hunt =
            async |query: &str| rig.call("POST", "/v1.0/security/runHuntingQuery", Some(json!({"Query": query}))).await;
        let outcome = |response: &crate::testing::Response| {
            (response.status, response.json()["error"]["message"].as_str().unwrap_or_default().to_owned())
        };
        let limit = |change: fn(&mut HuntingBehaviour)| rig.sim.configure(|choices| change(&mut choices.hunting));
        assert_eq!(hunt("DeviceInfo").await.json()["schema"][0], json!({"name": "DeviceName", "type": "String"}));
        limit(|hunting| hunting.capital_names = true);
        assert_eq!(hunt("DeviceInfo").await.json()["schema"][0], json!({"Name": "DeviceName", "Type": "String"}));
        limit(|hunting| hunting.null_schema = true);
        assert_eq!(hunt("DeviceInfo").await.json()["schema"], Value::Null);
        limit(|hunting| hunting.max_result_bytes = Some(100));
        let (status, message) = outcome(&hunt("DeviceInfo").await);
        assert!(status == 400 && message.contains("allowed result size"), "{message}");
        limit(|hunting| hunting.per_minute = Some(4));
        let expected = "API calls quota exceeded! maximum allowed 4 per 00:01:00";
        assert_eq!(outcome(&hunt("DeviceInfo").await), (429, expected.to_owned()));
        limit(|hunting| (hunting.per_minute, hunting.cpu_percent) = (None, 25));
        let refused = hunt("DeviceInfo").await;
        assert_eq!((refused.status, refused.header("retry-after")), (429, "600"));
        rig.sim.clock().freeze("2026-11-22T10:15:00Z".parse().unwrap());
        assert_eq!(hunt("DeviceInfo").await.status, 400);
        limit(|hunting| hunting.max_result_bytes = None);
        let (status, message) = outcome(&hunt("Übersicht").await);
        assert!(status == 400 && message.contains("encoding"), "the charset is missing: {message}");
    }

    #[test]
    fn timespan_is_a_duration_or_an_interval() {
        assert!(is_timespan("P7D"));
        assert!(is_timespan("2026-01-01T00:00:00Z/2026-01-02T00:00:00Z"));
        assert!(!is_timespan("7 d ago"));
    }
}
