//! `memory`: the most that `incident-fetch` holds while it delivers large incidents.

use std::{path::Path, process::ExitCode};

use bench::{
    binaries,
    counts::float,
    fleet::tenant_ids,
    lambda::Function,
    report::{self, Figure},
    stand::{Stand, event_of, incident, poll_message},
};
use devstack::{Console, Failed, Progress as _};
use serde_json::json;
use shared::microsoft::IncidentApi;
use sim::{Giant, IncidentSeed};

/// The number of large incidents.
const INCIDENTS: usize = 50;

/// The size of an alert: 400 of them make two megabytes.
const ALERT_BYTES: usize = 5 << 10;

/// The most memory, and the most that incidents with 400 alerts may need beyond those with 100, in MB.
const MOST_MB: (f64, f64) = (32.0, 8.0);

/// The tenants that the incidents belong to. Lambda passes at most 50 messages to one invocation.
#[derive(Clone, Copy)]
enum Tenants {
    One,
    OneForEach,
}

#[tokio::main]
async fn main() -> ExitCode {
    report::run(measure).await
}

async fn measure(console: &mut Console) -> Result<bool, Failed> {
    let functions = binaries::functions(&["incident-fetch"], console).await?;
    let binary = &functions["incident-fetch"];
    let mut figures = Vec::new();
    for (tenants, name) in
        [(Tenants::One, "one tenant"), (Tenants::OneForEach, "a tenant for each, in one batch of 50 messages")]
    {
        let small = peak(binary, tenants, 100, console).await?;
        let large = peak(binary, tenants, 400, console).await?;
        let name = |what: &str| format!("{what}, {INCIDENTS} incidents, {name}");
        figures.push(Figure::of_amount(name("peak with 400 alerts"), large, MOST_MB.0, "MB"));
        figures.push(Figure::of_amount(name("more than with 100 alerts"), (large - small).max(0.0), MOST_MB.1, "MB"));
    }
    Ok(report::print(console, "bound", &figures))
}

/// The most memory of a process that delivers all incidents, in MB.
async fn peak(binary: &Path, tenants: Tenants, alerts: usize, console: &mut Console) -> Result<f64, Failed> {
    console.step(&format!("{INCIDENTS} incidents with {alerts} alerts"));
    let stand = Stand::start().await?;
    let large = |number: usize| IncidentSeed {
        alerts: 0,
        giant: Some(Giant { alerts, bytes_each: ALERT_BYTES }),
        ..incident(number, 600 + i64::try_from(number).unwrap_or(0))
    };
    let (number, each) = match tenants {
        Tenants::One => (1, INCIDENTS),
        Tenants::OneForEach => (INCIDENTS, 1),
    };
    let tenants = tenant_ids(number)?;
    for (index, tenant) in tenants.iter().enumerate() {
        let incidents = (0..each).map(|incident| large(index * each + incident));
        stand.onboard(*tenant, IncidentApi::Defender, incidents).await?;
    }
    let mut function = Function::start(binary, &[], &stand.fetch_variables()).await?;
    let mut messages: Vec<_> = tenants.iter().map(poll_message).collect();
    for _ in 0..100 {
        let invocation = function.invoke(&event_of(&messages)).await?;
        if invocation.response != json!({"batchItemFailures": []}) {
            return Err(Failed(format!("a message failed: {}", invocation.response)));
        }
        if stand.delivered() == u64::try_from(INCIDENTS).unwrap_or(u64::MAX) {
            let kib = usize::try_from(function.peak_kib()?).unwrap_or(usize::MAX);
            return Ok(float(kib) * 1024.0 / 1e6);
        }
        messages = stand.waiting();
        if messages.is_empty() {
            messages = tenants.iter().map(poll_message).collect();
        }
    }
    Err(Failed(format!("{} incidents were delivered", stand.delivered())))
}
