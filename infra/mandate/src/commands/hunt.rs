//! One hunting query over the tenants.

use std::{
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use super::{Session, text};
use crate::{
    api::Api,
    args::Hunt,
    output::Rows,
    problem::Problem,
    text::{safe_json, shown},
};

/// The wait of one request for a hunt's progress. API Gateway allows less than 30 seconds.
const WAIT_SECONDS: &str = "5";

/// The least time between two requests for a hunt's progress.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// The largest query that is read from a file.
const MAX_QUERY_BYTES: u64 = 1 << 20;

/// Starts a hunt. The result is its table if every tenant has responded, else the hunt in progress.
pub async fn start(api: &Api, query: &str, tenants: &[String], timespan: Option<&str>) -> Result<Value, Problem> {
    let mut body = json!({"query": query});
    if !tenants.is_empty() {
        body["tenants"] = json!(tenants);
    }
    if let Some(timespan) = timespan {
        body["timespan"] = json!(timespan);
    }
    api.post(&["hunting"], Some(&body)).await
}

/// Reads the progress of a hunt, or its result. The API waits some seconds for the end.
pub async fn progress(api: &Api, hunt_id: &str) -> Result<Value, Problem> {
    api.get(&["hunting", hunt_id], &[("wait_seconds", WAIT_SECONDS)]).await
}

impl Session {
    pub(crate) async fn hunt(&self, args: &Hunt) -> Result<(), Problem> {
        let query = query_of(&args.query)?;
        let tenants: Vec<_> = args.tenant.iter().map(ToString::to_string).collect();
        let timespan = args.timespan.as_ref().map(crate::time::Span::iso);
        let bar = self.bar();
        bar.set_message("hunting");
        let mut hunt = start(&self.api, &query, &tenants, timespan).await?;
        if hunt["status"] == "running" {
            let hunt_id = text(&hunt, "hunt_id").to_owned();
            hunt = tokio::select! {
                ended = self.until_ended(&hunt_id, &bar) => ended?,
                _ = tokio::signal::ctrl_c() => {
                    bar.finish_and_clear();
                    self.api.delete(&["hunting", &hunt_id]).await?;
                    return Err(Problem::new("interrupted", format!("The hunt {hunt_id} is cancelled.")));
                }
            };
        }
        bar.finish_and_clear();
        self.show_hunt(&hunt, args.out.as_deref()).await
    }

    async fn until_ended(&self, hunt_id: &str, bar: &indicatif::ProgressBar) -> Result<Value, Problem> {
        loop {
            let hunt = progress(&self.api, hunt_id).await?;
            let count = |name: &str| hunt[name].as_u64().unwrap_or_default();
            let (done, total) = (count("tenants_done"), count("tenants_total"));
            bar.set_position(1000 * done / total.max(1));
            bar.set_message(format!("{done} of {total} tenants, {} rows", count("rows")));
            if hunt["status"] != "running" {
                return Ok(hunt);
            }
            // The API waits itself. Where it does not, it is not asked again at once.
            tokio::time::sleep(MIN_INTERVAL).await;
        }
    }

    async fn show_hunt(&self, hunt: &Value, out: Option<&Path>) -> Result<(), Problem> {
        let failures = hunt["failures"].as_array().map(Vec::as_slice).unwrap_or_default();
        for failure in failures {
            if self.out.is_json() && out.is_none() {
                self.out.object(&json!({"failure": failure}))?;
            }
            self.note_failure(failure);
        }
        if hunt["status"] == "cancelled" {
            return Err(Problem::new("hunt_cancelled", "The hunt was cancelled."));
        }
        let Some(rows) = hunt["results"].as_array() else {
            return Err(in_the_bucket(hunt));
        };
        if hunt["truncated"] == true {
            self.out.note("mandate: Microsoft cut the result off: ask for fewer rows or a shorter time.");
        }
        match out {
            Some(file) => {
                let columns = columns(hunt, rows);
                let written = if file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv")) {
                    csv(&columns, rows)
                } else {
                    rows.iter().flat_map(|row| [row.to_string(), "\n".to_owned()]).collect()
                };
                let saved = std::fs::File::create(file).and_then(|mut file| file.write_all(written.as_bytes()));
                saved.map_err(|error| Problem::new("file_not_written", format!("{}: {error}.", file.display())))?;
                self.out.note(format_args!("{} rows are in {}.", rows.len(), shown(&file.display().to_string())));
            }
            None if self.out.is_json() => rows.iter().try_for_each(|row| self.out.object(row))?,
            None => self.show_rows(hunt, rows).await?,
        }
        // A query that no tenant could run has failed, even though each failure was listed.
        match failures.first() {
            Some(failure) if rows.is_empty() && failures.len() == tenants_total(hunt, failures) => {
                let mut problem = Problem::new(text(failure, "code"), "The query ran in no tenant.");
                problem.reason = failure["reason"].as_str().map(str::to_owned);
                Err(problem)
            }
            _ => Ok(()),
        }
    }

    async fn show_rows(&self, hunt: &Value, rows: &[Value]) -> Result<(), Problem> {
        let customers = self.customers().await;
        let columns = columns(hunt, rows);
        let mut table = Rows::new(columns.iter().map(|name| if name == "tenant_id" { "CUSTOMER" } else { name }));
        for row in rows {
            let fields = columns.iter().map(|name| match (&row[name], name.as_str()) {
                (Value::String(tenant), "tenant_id") => customers.get(tenant).unwrap_or(tenant).into(),
                (value, _) => plain(value).into(),
            });
            table.push(fields.collect());
        }
        self.out.table(table)?;
        let noun = if rows.len() == 1 { "row" } else { "rows" };
        self.out.say(format_args!("{}{} {noun}", if rows.is_empty() { "" } else { "\n" }, rows.len()))
    }
}

/// The number of tenants of the hunt. A server that does not say it lists failures only.
fn tenants_total(hunt: &Value, failures: &[Value]) -> usize {
    hunt["tenants_total"].as_u64().and_then(|total| usize::try_from(total).ok()).unwrap_or(failures.len())
}

/// The problem of a table that does not fit into a response.
fn in_the_bucket(hunt: &Value) -> Problem {
    let hunt_id = shown(text(hunt, "hunt_id"));
    let objects = hunt["objects"].as_array().map_or(0, Vec::len);
    Problem::new(
        "too_large_for_response",
        format!("The table of the hunt {hunt_id} ({} rows) does not fit into a response. It lies in {objects} objects of the bucket.", hunt["rows"]),
    )
    .advise(format!("aws s3 cp --recursive s3://BUCKET/hunts/hunt_id={hunt_id}/ . (the output IncidentBucketName of the stack), or ask for fewer rows."))
}

/// The text of the query: the argument itself, or the file behind an @.
fn query_of(argument: &str) -> Result<String, Problem> {
    let Some(file) = argument.strip_prefix('@') else { return Ok(argument.to_owned()) };
    let mut query = String::new();
    let read = if file == "-" {
        std::io::stdin().take(MAX_QUERY_BYTES).read_to_string(&mut query)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_QUERY_BYTES).read_to_string(&mut query))
    };
    read.map_err(|error| Problem::new("usage", format!("{file}: {error}.")))?;
    Ok(query)
}

/// The columns of the table: the tenant, then Microsoft's, then what only rows have.
fn columns(hunt: &Value, rows: &[Value]) -> Vec<String> {
    let mut columns = vec!["tenant_id".to_owned()];
    let named = hunt["schema"].as_array().into_iter().flatten().filter_map(|column| column["name"].as_str());
    let sent = rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys().map(String::as_str));
    for name in named.chain(sent) {
        if columns.iter().all(|known| known != name) {
            columns.push(name.to_owned());
        }
    }
    columns
}

/// A value as a cell shows it: text as it is, null as nothing, everything else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => safe_json(other),
    }
}

/// The rows as CSV (RFC 4180). A text that a spreadsheet would run as a formula has an apostrophe before it.
fn csv(columns: &[String], rows: &[Value]) -> String {
    let quoted = |value: &Value| {
        let mut cell = plain(value);
        if value.is_string() && cell.starts_with(['=', '+', '-', '@', '\t', '\r']) {
            cell.insert(0, '\'');
        }
        if cell.contains([',', '"', '\n', '\r', '\'']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
    };
    let line = |cells: Vec<String>| format!("{}\r\n", cells.join(","));
    let header = line(columns.iter().map(|name| quoted(&json!(name))).collect());
    let lines = rows.iter().map(|row| line(columns.iter().map(|name| quoted(&row[name])).collect()));
    std::iter::once(header).chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_is_quoted_and_runs_no_formula() {
        let rows = [
            json!({"tenant_id": "t", "A": "=cmd|'/c calc'!A0", "B": -5, "C": "a \"b\",\nc", "D": null, "E": [1, "x"]}),
        ];
        let hunt = json!({"schema": [{"name": "B", "type": "Int32"}, {"name": "A", "type": "String"}]});
        let columns = columns(&hunt, &rows);
        assert_eq!(columns, ["tenant_id", "B", "A", "C", "D", "E"]);
        assert_eq!(
            csv(&columns, &rows),
            "tenant_id,B,A,C,D,E\r\nt,-5,\"'=cmd|'/c calc'!A0\",\"a \"\"b\"\",\nc\",,\"[1,\"\"x\"\"]\"\r\n"
        );
    }

    #[test]
    fn query_is_the_argument_or_a_file() {
        assert_eq!(query_of("DeviceInfo | take 5").unwrap(), "DeviceInfo | take 5");
        assert_eq!(query_of("@/no/such/file").unwrap_err().code, "usage");
    }
}
