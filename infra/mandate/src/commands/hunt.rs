//! One hunting query over the tenants.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    path::Path,
    pin::pin,
    time::Duration,
};

use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::{Session, text};
use crate::{
    api::Api,
    args::Hunt,
    output::Rows,
    problem::Problem,
    text::{safe_json, shown, shown_lines},
};

/// The wait of one request for a hunt's progress. API Gateway allows less than 30 seconds.
const WAIT_SECONDS: &str = "5";

/// The least time between two requests for a hunt's progress.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// The largest query that is read from a file.
const MAX_QUERY_BYTES: u64 = 1 << 20;

/// The body of the request that starts a hunt.
pub(crate) fn request(query: &str, tenants: &[String], timespan: Option<&str>) -> Value {
    let mut body = json!({"query": query});
    if !tenants.is_empty() {
        body["tenants"] = json!(tenants);
    }
    if let Some(timespan) = timespan {
        body["timespan"] = json!(timespan);
    }
    body
}

/// Reads the progress of a hunt, or its result. The API waits some seconds for the end.
pub(crate) async fn progress(api: &Api, hunt_id: &str) -> Result<Value, Problem> {
    api.get(&["hunting", hunt_id], &[("wait_seconds", WAIT_SECONDS)]).await
}

impl Session {
    pub(crate) async fn hunt(&self, args: &Hunt) -> Result<(), Problem> {
        match &args.id {
            Some(hunt_id) if args.cancel => self.cancel_hunt(hunt_id).await,
            Some(hunt_id) => self.earlier_hunt(hunt_id, args).await,
            None => self.new_hunt(args).await,
        }
    }

    /// Waits for a hunt that was started before, and shows its table.
    async fn earlier_hunt(&self, hunt_id: &str, args: &Hunt) -> Result<(), Problem> {
        let out = args.out.as_deref().map(OutFile::open).transpose()?;
        let started = json!({"hunt_id": hunt_id, "status": "running"});
        self.finish_hunt(started, &Cell::new(true), out, &self.bar()).await
    }

    /// Cancels a hunt. One that was over before stays as it is.
    async fn cancel_hunt(&self, hunt_id: &str) -> Result<(), Problem> {
        let path = ["hunting", hunt_id];
        self.api.delete(&path).await?;
        let hunt = self.api.get(&path, &[("wait_seconds", "0")]).await?;
        if self.out.is_json() {
            return self.out.object(&json!({"hunt_id": hunt_id, "status": hunt["status"]}));
        }
        self.out.say(format_args!("The hunt {} is {}.", shown(hunt_id), shown(text(&hunt, "status"))))
    }

    async fn new_hunt(&self, args: &Hunt) -> Result<(), Problem> {
        let query = query_of(args.query.as_deref().unwrap_or_default())?;
        let tenants: Vec<_> = args.tenant.iter().map(ToString::to_string).collect();
        let mut body = request(&query, &tenants, args.timespan.as_ref().map(crate::time::Span::iso));
        // The id comes at once, so that Ctrl-C can cancel the hunt from the start.
        body["wait_seconds"] = json!(0);
        // Before the hunt costs something.
        let out = args.out.as_deref().map(OutFile::open).transpose()?;
        let bar = self.bar();
        bar.set_message("hunting");

        let mut interrupt = pin!(tokio::signal::ctrl_c());
        let mut starting = pin!(self.api.post(&["hunting"], Some(&body)));
        let (started, interrupted) = tokio::select! {
            // Ctrl-C is listened for before the request leaves.
            biased;
            // The hunt may have started, and only the response has its id.
            _ = &mut interrupt => (starting.await?, true),
            started = &mut starting => (started?, false),
        };
        if let Some(hunt_id) = started["hunt_id"].as_str() {
            bar.suspend(|| self.out.note(format_args!("The hunt is {}.", shown(hunt_id))));
        }
        let running = Cell::new(started["status"] == "running");
        if !interrupted {
            tokio::select! {
                outcome = self.finish_hunt(started.clone(), &running, out, &bar) => return outcome,
                _ = &mut interrupt => {}
            }
        }
        bar.finish_and_clear();
        let Some(hunt_id) = started["hunt_id"].as_str().filter(|_| running.get()) else {
            return Err(Problem::new("interrupted", "Ctrl-C ended the command. The hunt was done."));
        };
        self.api.delete(&["hunting", hunt_id]).await?;
        Err(Problem::new("interrupted", format!("The hunt {hunt_id} is cancelled.")))
    }

    /// Waits for the end of a hunt and shows its table.
    async fn finish_hunt(
        &self,
        started: Value,
        running: &Cell<bool>,
        out: Option<OutFile<'_>>,
        bar: &ProgressBar,
    ) -> Result<(), Problem> {
        let mut hunt = started;
        if running.get() {
            let hunt_id = text(&hunt, "hunt_id").to_owned();
            hunt = self.until_ended(&hunt_id, bar).await?;
            running.set(false);
        }
        bar.finish_and_clear();
        self.show_hunt(&hunt, out).await
    }

    async fn until_ended(&self, hunt_id: &str, bar: &ProgressBar) -> Result<Value, Problem> {
        let (path, query) = (["hunting", hunt_id], [("wait_seconds", WAIT_SECONDS)]);
        loop {
            let hunt = self.get_patiently(&path, &query, bar).await?;
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

    async fn show_hunt(&self, hunt: &Value, out: Option<OutFile<'_>>) -> Result<(), Problem> {
        let failures = hunt["failures"].as_array().map(Vec::as_slice).unwrap_or_default();
        let customers = self.customers().await;
        for failure in failures {
            if self.out.is_json() && out.is_none() {
                self.out.object(&json!({"failure": failure}))?;
            }
            self.note_failure(&customers, failure);
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
                let name = shown(&file.path.display().to_string());
                file.write(&columns(hunt, rows), rows)?;
                self.out.note(format_args!("{} rows are in {name}.", rows.len()));
            }
            None if self.out.is_json() => rows.iter().try_for_each(|row| self.out.object(row))?,
            None => self.show_rows(hunt, rows, &customers)?,
        }
        // A query that no tenant could run has failed, even though each failure was listed.
        match failures.first() {
            Some(failure) if rows.is_empty() && failures.len() >= self.tenants_total(hunt, failures).await? => {
                let mut problem = Problem::new(text(failure, "code"), "The query ran in no tenant.");
                problem.reason = failure["reason"].as_str().map(str::to_owned);
                Err(problem)
            }
            _ => Ok(()),
        }
    }

    /// The number of tenants of the hunt. The response to its start does not have it, but the progress of the hunt does.
    async fn tenants_total(&self, hunt: &Value, failures: &[Value]) -> Result<usize, Problem> {
        let total = match (hunt["tenants_total"].as_u64(), hunt["hunt_id"].as_str()) {
            (None, Some(hunt_id)) => progress(&self.api, hunt_id).await?["tenants_total"].as_u64(),
            (total, _) => total,
        };
        Ok(total.and_then(|total| usize::try_from(total).ok()).unwrap_or(failures.len()))
    }

    fn show_rows(&self, hunt: &Value, rows: &[Value], customers: &BTreeMap<String, String>) -> Result<(), Problem> {
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

/// The file for the rows, open before the hunt starts. A hunt without a table leaves its content as it is.
struct OutFile<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> OutFile<'a> {
    fn open(path: &'a Path) -> Result<Self, Problem> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        Ok(Self { path, file: file.map_err(|error| not_written(path, &error))? })
    }

    /// Replaces the content by the rows: CSV for a name that ends in `.csv`, else NDJSON.
    fn write(mut self, columns: &[String], rows: &[Value]) -> Result<(), Problem> {
        let is_csv = self.path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        let text = match (is_csv, self.file.is_terminal()) {
            (true, false) => csv(columns, rows),
            // `/dev/tty`: what a spreadsheet may read as it is could move the cursor here.
            (true, true) => shown_lines(&csv(columns, rows)).join("\n") + "\n",
            (false, _) => rows.iter().flat_map(|row| [safe_json(row), "\n".to_owned()]).collect(),
        };
        let mut replace = || {
            // A pipe or a device has no length.
            if self.file.metadata()?.is_file() {
                self.file.set_len(0)?;
            }
            self.file.write_all(text.as_bytes())
        };
        replace().map_err(|error| not_written(self.path, &error))
    }
}

fn not_written(path: &Path, error: &io::Error) -> Problem {
    Problem::new("file_not_written", format!("{}: {error}.", path.display()))
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

/// The rows as CSV (RFC 4180), by the rules of the console's `csv.js`. A text that a spreadsheet would run as a formula
/// has an apostrophe before it. Spreadsheets in some languages end a cell at a semicolon, too.
fn csv(columns: &[String], rows: &[Value]) -> String {
    let quoted = |value: &Value| {
        let mut cell = without_controls(&plain(value));
        if value.is_string() && is_formula(&cell) {
            cell.insert(0, '\'');
        }
        let is_quoted = cell.contains([',', ';', '"', '\n', '\r', '\t'])
            || cell.starts_with(|first: char| first == '\'' || first.is_whitespace())
            || cell.ends_with(char::is_whitespace);
        if is_quoted { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
    };
    let line = |cells: Vec<String>| format!("{}\r\n", cells.join(","));
    let header = line(columns.iter().map(|name| quoted(&json!(name))).collect());
    let lines = rows.iter().map(|row| line(columns.iter().map(|name| quoted(&row[name])).collect()));
    std::iter::once(header).chain(lines).collect()
}

/// The text with its control characters written out, for a file that a person prints on a terminal. Tabs and line breaks
/// stay.
fn without_controls(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_break = matches!(character, '\n' | '\t') || (character == '\r' && characters.peek() == Some(&'\n'));
        if character.is_control() && !is_break {
            safe.extend(character.escape_unicode());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Returns true for a text that a spreadsheet takes for a formula, also behind white space and unseen characters, and in
/// its wide forms.
fn is_formula(text: &str) -> bool {
    let unseen = |letter: char| letter.is_whitespace() || is_format(letter);
    text.starts_with(['\t', '\r', '\n'])
        || text.trim_start_matches(unseen).starts_with(['=', '+', '-', '@', '|', '%', '＝', '＋', '－', '＠'])
}

/// Returns true for a character of Unicode's category Cf, which shows nothing of its own.
fn is_format(letter: char) -> bool {
    matches!(letter,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}' | '\u{8e2}'
        | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}'
        | '\u{2066}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
        | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}'
        | '\u{e0020}'..='\u{e007f}')
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
    fn csv_guards_against_formulas_in_disguise() {
        let cell = |text: &str| {
            let table = csv(&["A".to_owned()], &[json!({ "A": text })]);
            table.strip_prefix("A\r\n").unwrap().strip_suffix("\r\n").unwrap().to_owned()
        };
        for (text, expected) in [
            ("x;=WEBSERVICE(B2)", "\"x;=WEBSERVICE(B2)\""),
            ("x\t=1", "\"x\t=1\""),
            (" =1", "\"' =1\""),
            ("\u{a0}\u{200b}=1", "\"'\u{a0}\u{200b}=1\""),
            ("\u{feff}@a", "\"'\u{feff}@a\""),
            ("＝1", "\"'＝1\""),
            ("－1", "\"'－1\""),
            ("|cmd", "\"'|cmd\""),
            ("%0A", "\"'%0A\""),
            ("\nx", "\"'\nx\""),
            ("it's 5 - 3 = 2", "it's 5 - 3 = 2"),
            ("x ", "\"x \""),
            // What a terminal would obey, where a person prints the file.
            ("a\u{1b}[2J\u{7}\u{9b}2Jb\rc\u{7f}", "a\\u{1b}[2J\\u{7}\\u{9b}2Jb\\u{d}c\\u{7f}"),
            ("a\r\nb\n", "\"a\r\nb\n\""),
        ] {
            assert_eq!(cell(text), expected, "{text:?}");
        }
    }

    #[test]
    fn query_is_the_argument_or_a_file() {
        assert_eq!(query_of("DeviceInfo | take 5").unwrap(), "DeviceInfo | take 5");
        assert_eq!(query_of("@/no/such/file").unwrap_err().code, "usage");
    }
}
