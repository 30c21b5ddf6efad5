//! `incidents`: the processor time for an incident that is fetched, delivered and recorded, beside a plain function in
//! Python that only copies incidents to S3.

use std::{path::Path, process::ExitCode, time::Duration};

use bench::{
    binaries,
    counts::Counts,
    fleet::tenant_ids,
    lambda::Function,
    report::{self, Figure, percentile},
    stand::{Stand, event_of, incident, poll_message},
};
use devstack::{Console, Failed, Progress as _};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use shared::{clock::Clock, microsoft::IncidentApi, tenant::TenantId};

/// The number of tenants, and of the incidents of each.
const TENANTS: usize = 20;
const INCIDENTS: usize = 250;

/// The seconds between two incidents of a tenant. All of them lie within a quarter of an hour, so that hardly a run has
/// midnight among them: then each tenant gets two objects.
const APART: i64 = 4;

/// The number of rounds, in each of which both programs do the whole work.
const ROUNDS: usize = 15;

/// The largest ratio to the peer's time.
const MOST: f64 = 0.2;

#[tokio::main]
async fn main() -> ExitCode {
    report::run(measure).await
}

async fn measure(console: &mut Console) -> Result<bool, Failed> {
    let functions = binaries::functions(&["incident-fetch"], console).await?;
    let python = devstack::interpreter().await?;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    let mut calls = Counts::default();
    for round in 1..=ROUNDS {
        console.step(&format!("round {round} of {ROUNDS}"));
        let stand = Stand::start().await?;
        let tenants = tenant_ids(TENANTS)?;
        for tenant in &tenants {
            let incidents =
                (0..INCIDENTS).map(|number| incident(number, 60 + i64::try_from(number).unwrap_or(0) * APART));
            stand.onboard(*tenant, IncidentApi::Defender, incidents).await?;
        }
        let onboarding = stand.calls();
        ours.push(fetch(&functions["incident-fetch"], &stand, &tenants).await?);
        calls = stand.calls().since(&onboarding);
        peers.push(peer(&python, &stand, &tenants).await?);
    }
    console.line(&format!(
        "{} incidents with 2 to 4 alerts, {TENANTS} tenants, Defender. Calls of ours: {}.",
        TENANTS * INCIDENTS,
        calls.iter().map(|(name, number)| format!("{name} {number}")).collect::<Vec<_>>().join(", ")
    ));
    let figure = Figure::of_times(
        "processor time for each incident",
        percentile(&mut ours, 50),
        percentile(&mut peers, 50),
        MOST,
    );
    Ok(report::print(console, "peer", &[figure]))
}

fn each(time: Duration) -> Duration {
    time / u32::try_from(TENANTS * INCIDENTS).unwrap_or(u32::MAX)
}

/// Delivers all incidents, and returns the processor time for each.
async fn fetch(binary: &Path, stand: &Stand, tenants: &[TenantId]) -> Result<Duration, Failed> {
    let mut function = Function::start(binary, &[], &stand.fetch_variables()).await?;
    function.first_poll().await?;
    let before = function.cpu()?;
    let mut messages: Vec<_> = tenants.iter().map(poll_message).collect();
    for _ in 0..20 {
        let invocation = function.invoke(&event_of(&messages)).await?;
        if invocation.response != json!({"batchItemFailures": []}) {
            return Err(Failed(format!("a message failed: {}", invocation.response)));
        }
        if stand.delivered() == u64::try_from(TENANTS * INCIDENTS).unwrap_or(u64::MAX) {
            return Ok(each(function.cpu()?.saturating_sub(before)));
        }
        messages = stand.waiting();
        if messages.is_empty() {
            break;
        }
    }
    Err(Failed(format!("{} incidents were delivered", stand.delivered())))
}

/// Copies all incidents, and returns the processor time for each.
async fn peer(python: &Path, stand: &Stand, tenants: &[TenantId]) -> Result<Duration, Failed> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("peer/function.py");
    let mut function = Function::start(python, &[&program.to_string_lossy()], &stand.peer_variables()).await?;
    function.first_poll().await?;
    let before = function.cpu()?;
    let since: Timestamp = Clock::system().now() - SignedDuration::from_hours(24);
    // Microsoft's filters take at most seven digits of a second.
    let invocation = function.invoke(&json!({"tenants": tenants, "since": format!("{since:.0}")})).await?;
    if invocation.response != json!({"count": TENANTS * INCIDENTS}) {
        return Err(Failed(format!("the peer failed: {}", invocation.response)));
    }
    Ok(each(function.cpu()?.saturating_sub(before)))
}
