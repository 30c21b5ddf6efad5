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

/// The most memory, and the most that incidents with 400 alerts may need beyond those with 100, in MB.
const MOST_MB: (f64, f64) = (32.0, 8.0);

/// The alerts of the largest incident, which make 32.8 MB of the 32 MiB (33.6 MB) that are accepted.
const MOST_ALERTS: usize = 19_000;

/// The most memory with the largest incident, in MB.
const MOST_MB_LARGEST: f64 = 80.0;

/// What a process delivers.
#[derive(Clone, Copy)]
struct Load {
    /// Lambda passes at most 50 messages to one invocation.
    tenants: usize,
    incidents_each: usize,
    alerts: Giant,
    format: &'static str,
}

#[tokio::main]
async fn main() -> ExitCode {
    report::run(measure).await
}

impl Load {
    fn incidents(self) -> usize {
        self.tenants * self.incidents_each
    }
}

async fn measure(console: &mut Console) -> Result<bool, Failed> {
    let functions = binaries::functions(&["incident-fetch"], console).await?;
    let binary = &functions["incident-fetch"];
    let mut figures = Vec::new();
    for (tenants, name) in [(1, "one tenant"), (INCIDENTS, "a tenant for each, in one batch of 50 messages")] {
        let load = |alerts| Load {
            tenants,
            incidents_each: INCIDENTS / tenants,
            alerts: Giant { alerts, bytes_each: 5 << 10 },
            format: "envelope",
        };
        let small = peak(binary, load(100), console).await?;
        let large = peak(binary, load(400), console).await?;
        let name = |what: &str| format!("{what}, {INCIDENTS} incidents, {name}");
        figures.push(Figure::of_amount(name("peak with 400 alerts"), large, MOST_MB.0, "MB"));
        figures.push(Figure::of_amount(name("more than with 100 alerts"), (large - small).max(0.0), MOST_MB.1, "MB"));
    }
    for format in ["envelope", "ocsf", "both"] {
        let load = Load { tenants: 1, incidents_each: 1, alerts: Giant { alerts: MOST_ALERTS, bytes_each: 0 }, format };
        let largest = peak(binary, load, console).await?;
        let name = format!("peak with the largest incident, as {format}");
        figures.push(Figure::of_amount(name, largest, MOST_MB_LARGEST, "MB"));
    }
    Ok(report::print(console, "bound", &figures))
}

/// The most memory of a process that delivers all incidents, in MB.
async fn peak(binary: &Path, load: Load, console: &mut Console) -> Result<f64, Failed> {
    let (incidents, alerts, format) = (load.incidents(), load.alerts.alerts, load.format);
    console.step(&format!("incidents: {incidents}, alerts of each: {alerts}, format: {format}"));
    let stand = Stand::start().await?;
    let large = |number: usize| IncidentSeed {
        alerts: 0,
        giant: Some(load.alerts),
        ..incident(number, 600 + i64::try_from(number).unwrap_or(0))
    };
    let tenants = tenant_ids(load.tenants)?;
    for (index, tenant) in tenants.iter().enumerate() {
        let incidents = (0..load.incidents_each).map(|incident| large(index * load.incidents_each + incident));
        stand.onboard(*tenant, IncidentApi::Defender, incidents).await?;
    }
    let mut variables = stand.fetch_variables();
    variables.push(("DELIVERY_FORMAT", format.to_owned()));
    let mut function = Function::start(binary, &[], &variables).await?;
    let mut messages: Vec<_> = tenants.iter().map(poll_message).collect();
    for _ in 0..100 {
        let invocation = function.invoke(&event_of(&messages)).await?;
        if invocation.response != json!({"batchItemFailures": []}) {
            return Err(Failed(format!("a message failed: {}", invocation.response)));
        }
        // With both formats, each incident is in two objects.
        if usize::try_from(stand.delivered()).unwrap_or(0) >= incidents {
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
