//! `token`: a warm request for a token, beside a function that returns its event.

use std::process::ExitCode;

use bench::{
    binaries,
    fleet::tenant_ids,
    lambda::Function,
    report::{self, Figure, percentile},
    stand::{Stand, request},
};
use devstack::{Console, Failed};
use shared::microsoft::IncidentApi;

/// The number of measured requests of each program.
const REQUESTS: usize = 3_000;

/// The largest ratios to the floor's median and 99th percentile.
const MOST: (f64, f64) = (2.0, 3.0);

#[tokio::main]
async fn main() -> ExitCode {
    report::run(measure).await
}

async fn measure(console: &mut Console) -> Result<bool, Failed> {
    let functions = binaries::functions(&["token-issuance"], console).await?;
    let floor = binaries::of_bench("floor", console).await?;
    let stand = Stand::start().await?;
    let tenant = tenant_ids(1)?[0];
    stand.onboard(tenant, IncidentApi::Graph, std::iter::empty()).await?;
    let mut ours = Function::start(&functions["token-issuance"], &[], &stand.variables()).await?;
    let mut floor = Function::start(&floor, &[], &[]).await?;
    let event = request("POST /tenants/{tenant_id}/token", &[("tenant_id", &tenant.to_string())], None);
    let cold = ours.invoke(&event).await?;
    if cold.response["statusCode"] != 200 {
        return Err(Failed(format!("no token: {}", cold.response)));
    }
    floor.invoke(&event).await?;
    let (mut our_times, mut floor_times) = (Vec::new(), Vec::new());
    let (mut calls, mut repeats) = (0, 0);
    for _ in 0..REQUESTS {
        let before = stand.calls();
        our_times.push(ours.invoke(&event).await?.duration);
        if stand.calls() == before {
            repeats += 1;
        } else {
            calls += 1;
        }
        floor_times.push(floor.invoke(&event).await?.duration);
    }
    let mut figure = |name: &str, percent, most| {
        let (ours, floor) = (percentile(&mut our_times, percent), percentile(&mut floor_times, percent));
        Figure::of_times(name, ours, floor, most)
    };
    let figures =
        [figure("warm token request, median", 50, MOST.0), figure("warm token request, 99th percentile", 99, MOST.1)];
    console.line(&format!(
        "{repeats} of {REQUESTS} requests made no call; {calls} read the tenant again after 30 s. The first one took {}.",
        report::shown(cold.duration)
    ));
    Ok(report::print(console, "floor", &figures))
}
