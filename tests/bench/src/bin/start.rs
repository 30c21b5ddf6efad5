//! `start`: the time from the start of a process to its first request for an event, of the operator's program to its end
//! where it has nothing to wait for, and the sizes of the binaries.
//! `--sizes` prints the sizes alone.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use bench::{
    binaries::{self, FUNCTIONS},
    fleet::tenant_ids,
    lambda::Function,
    report::{self, Figure, percentile},
    stand::{Stand, incident, request},
};
use devstack::{Console, Failed};
use flate2::{Compression, write::DeflateEncoder};
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::{clock::Clock, microsoft::IncidentApi};
use sim::Host;
use tokio::process::Command;

/// The number of starts of each program.
const STARTS: usize = 40;

/// The number of new processes that a person's waits are measured with.
const COLD_STARTS: usize = 11;

/// The largest ratio of the worst start to the floor's.
const MOST: f64 = 1.5;

/// The longest run of the operator's program that waits for nothing, in ms.
const MOST_OPERATOR_MS: f64 = 30.0;

/// The largest binary, and the largest zip, in MB.
const MOST_MB: (f64, f64) = (16.0, 7.0);

#[tokio::main]
async fn main() -> ExitCode {
    report::run(measure).await
}

async fn measure(console: &mut Console) -> Result<bool, Failed> {
    let mut functions = binaries::functions(&FUNCTIONS, console).await?;
    if std::env::args().nth(1).as_deref() == Some("--sizes") {
        let mut figures = Vec::new();
        add_sizes(&functions, &mut figures)?;
        return Ok(report::print(console, "bound", &figures));
    }
    let floor = written_at_once(&binaries::of_bench("floor", console).await?)?;
    for path in functions.values_mut() {
        *path = written_at_once(path)?;
    }
    let stand = Stand::start().await?;
    let mut programs: BTreeMap<&str, (&PathBuf, Vec<Duration>)> = BTreeMap::from([("floor", (&floor, Vec::new()))]);
    for (name, path) in &functions {
        programs.insert(name, (path, Vec::new()));
    }
    // The programs take turns, so that whatever else the machine does, it does to all of them.
    for _ in 0..STARTS {
        for (path, times) in programs.values_mut() {
            times.push(Function::start(path, &[], &stand.variables()).await?.first_poll().await?);
        }
    }
    let medians: BTreeMap<&str, Duration> =
        programs.iter_mut().map(|(name, (_, times))| (*name, percentile(times, 50))).collect();
    let floor_median = medians["floor"];
    let mut figures: Vec<Figure> = FUNCTIONS
        .iter()
        .map(|name| Figure::of_times(format!("start of {name}"), medians[name], floor_median, MOST))
        .collect();
    let operator = &binaries::operator(console).await?;
    figures.push(operator_start(operator, &["--help"]).await?);
    figures.push(operator_start(operator, &["--api", "http://localhost:1", "tenants"]).await?);
    add_sizes(&functions, &mut figures)?;
    let hold = report::print(console, "floor or bound", &figures);
    console.line("");
    console.line(
        "| what a person waits for | start | secret | token | Microsoft | rest | first response | warm response |",
    );
    console.line("|---|---|---|---|---|---|---|---|");
    first_page(&functions, &stand, console).await?;
    live_read(&functions, &stand, console).await?;
    Ok(hold)
}

/// Copies a program as Lambda unpacks it, from its first byte to its last. Linux keeps a file in memory in the pieces in
/// which it was written. A linker writes small ones here and there, and such a program starts a tenth later.
fn written_at_once(program: &Path) -> Result<PathBuf, Failed> {
    let copy = program.with_added_extension("copy");
    std::fs::write(&copy, std::fs::read(program)?)?;
    std::fs::set_permissions(&copy, std::fs::metadata(program)?.permissions())?;
    Ok(copy)
}

/// The time of the operator's program with these arguments. None of them lets it wait for another program.
async fn operator_start(binary: &Path, arguments: &[&str]) -> Result<Figure, Failed> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let started = devstack::instant();
        Command::new(binary).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().await?;
        times.push(started.elapsed());
    }
    let median = percentile(&mut times, 50).as_secs_f64() * 1e3;
    Ok(Figure::of_amount(format!("mandate {}", arguments.join(" ")), median, MOST_OPERATOR_MS, "ms"))
}

/// Prints the waits for the page of an invitation.
async fn first_page(functions: &BTreeMap<String, PathBuf>, stand: &Stand, console: &mut Console) -> Result<(), Failed> {
    let mut admin = Function::start(&functions["tenant-admin"], &[], &stand.variables()).await?;
    let invited = admin.invoke(&request("POST /invitations", &[], Some(&json!({"customer": "Contoso"})))).await?;
    let body: Value = serde_json::from_str(invited.response["body"].as_str().unwrap_or_default())
        .map_err(|error| Failed(format!("no invitation: {error}")))?;
    let link = body["consent_url"].as_str().and_then(|url| url.rsplit_once('/')).map_or("", |(_, link)| link);
    let event = request("GET /consent/{invitation}", &[("invitation", link)], None);
    waits("the page of an invitation", &functions["consent-callback"], &event, stand, console).await
}

/// Prints the waits for a live list of incidents.
async fn live_read(functions: &BTreeMap<String, PathBuf>, stand: &Stand, console: &mut Console) -> Result<(), Failed> {
    let tenant = tenant_ids(1)?[0];
    stand.onboard(tenant, IncidentApi::Graph, (0..20).map(|number| incident(number, 600))).await?;
    let event = request("GET /tenants/{tenant_id}/incidents", &[("tenant_id", &tenant.to_string())], None);
    waits("a live list of 20 incidents", &functions["incident-fetch"], &event, stand, console).await
}

/// Prints the medians of the waits for a new process, for the parts of its first response and for its second response. A part
/// lasts from the end of the one before, so the reads of the table belong to the part that they are made for.
async fn waits(name: &str, binary: &Path, event: &Value, stand: &Stand, console: &mut Console) -> Result<(), Failed> {
    let mut all: [Vec<Duration>; 7] = Default::default();
    for _ in 0..COLD_STARTS {
        let mut function = Function::start(binary, &[], &stand.variables()).await?;
        let process = function.first_poll().await?;
        let asked = Clock::system().now();
        let first = function.invoke(event).await?;
        if first.response["statusCode"] != 200 {
            return Err(Failed(format!("{name} failed: {}", first.response)));
        }
        let mut done = Duration::ZERO;
        let mut part_until = |end: Option<Timestamp>| {
            let end = end.and_then(|end| Duration::try_from(end.duration_since(asked)).ok());
            let part = end.map_or(Duration::ZERO, |end| end.saturating_sub(done));
            done += part;
            part
        };
        let calls = stand.sim.calls();
        let last_call = |to_entra: bool| calls.iter().rfind(|call| (call.host == Host::Entra) == to_entra);
        let secret = part_until(stand.aws.account().called_at("GetSecretValue"));
        let token = part_until(last_call(true).map(|call| call.at));
        let microsoft = part_until(last_call(false).map(|call| call.at));
        let rest = first.duration.saturating_sub(done);
        let warm = function.invoke(event).await?.duration;
        for (times, time) in all.iter_mut().zip([process, secret, token, microsoft, rest, first.duration, warm]) {
            times.push(time);
        }
    }
    let medians = all.map(|mut times| percentile(&mut times, 50));
    let shown = medians.map(|time| if time.is_zero() { "none".to_owned() } else { report::shown(time) });
    console.line(&format!("| {name} | {} |", shown.join(" | ")));
    Ok(())
}

fn add_sizes(functions: &BTreeMap<String, PathBuf>, figures: &mut Vec<Figure>) -> Result<(), Failed> {
    for name in FUNCTIONS {
        let path = functions.get(name).ok_or_else(|| Failed(format!("cargo built no {name}")))?;
        let (binary, zip) = sizes(path)?;
        figures.push(Figure::of_amount(format!("binary of {name}"), binary, MOST_MB.0, "MB"));
        figures.push(Figure::of_amount(format!("zip of {name}"), zip, MOST_MB.1, "MB"));
    }
    Ok(())
}

/// The sizes of a binary and of its zip, in MB.
fn sizes(path: &Path) -> Result<(f64, f64), Failed> {
    let binary = std::fs::read(path)?;
    let mut zip = DeflateEncoder::new(Vec::new(), Compression::default());
    zip.write_all(&binary)?;
    let megabytes = |bytes: usize| bench::counts::float(bytes) / 1e6;
    Ok((megabytes(binary.len()), megabytes(zip.finish()?.len())))
}
