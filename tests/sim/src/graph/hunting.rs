//! `runHuntingQuery` over seeded tables. A query is a table's name, then `| where`, `| project`, `| take` or `|
//! count`.

use serde_json::{Map, Value, json};

use super::{bad_request, error, forbidden};
use crate::{
    caller::Caller,
    http::{Request, Response},
    store::{HuntingColumn, HuntingTable},
    world::World,
};

const REQUIRED_ROLES: &[&str] = &["ThreatHunting.Read.All"];

pub(crate) fn respond(world: &World, request: &Request, caller: &Caller) -> Response {
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
    let tables = world.tenants.get(&caller.tenant_id).map(|tenant| tenant.hunting.as_slice()).unwrap_or_default();
    match run_query(tables, query) {
        Ok(table) => {
            let schema: Vec<Value> =
                table.columns.iter().map(|column| json!({"name": column.name, "type": column.kind})).collect();
            let body = json!({
                "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#microsoft.graph.security.huntingQueryResults",
                "schema": schema,
                "results": table.rows,
            });
            Response::json(200, &body)
        }
        Err(message) => bad_request(world, request, &message),
    }
}

fn is_timespan(text: &str) -> bool {
    let duration = |part: &str| part.starts_with('P') && part.parse::<jiff::Span>().is_ok();
    text.split('/').all(|part| duration(part) || part.parse::<jiff::Timestamp>().is_ok())
}

fn run_query(tables: &[HuntingTable], query: &str) -> Result<HuntingTable, String> {
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

    #[test]
    fn timespan_is_a_duration_or_an_interval() {
        assert!(is_timespan("P7D"));
        assert!(is_timespan("2026-01-01T00:00:00Z/2026-01-02T00:00:00Z"));
        assert!(!is_timespan("7 d ago"));
    }
}
