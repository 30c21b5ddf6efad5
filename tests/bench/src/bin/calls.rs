//! `calls`: the calls of a poll and of a delivery, beside the bounds of the interface.

use std::{path::Path, process::ExitCode};

use bench::{
    binaries,
    counts::{Counts, float},
    fleet::tenant_ids,
    lambda::Function,
    report::{self, Figure},
    stand::{Stand, event_of, incident, poll_message},
};
use devstack::{Console, Failed, Progress as _};
use serde_json::json;
use shared::microsoft::IncidentApi;
use sim::IncidentSeed;

/// The number of quiet polls, all within five minutes.
const QUIET_POLLS: usize = 20;

/// The number of incidents of a stretch of time.
const STRETCH: usize = 250;

/// The most calls to AWS for one delivered batch: tenant and feed, versions, lease, tenant, object, event, versions, feed.
const DELIVERY_CALLS: f64 = 8.0;

#[tokio::main]
async fn main() -> ExitCode {
    report::run(measure).await
}

async fn measure(console: &mut Console) -> Result<bool, Failed> {
    let functions = binaries::functions(&["incident-fetch"], console).await?;
    let binary = &functions["incident-fetch"];
    let mut figures = Vec::new();
    for api in IncidentApi::ALL {
        console.step(api.as_str());
        quiet_and_delivery(binary, api, &mut figures).await?;
        let calls = stretch(binary, api).await?;
        let page = usize::try_from(api.largest_page()).unwrap_or(1);
        let most = float(STRETCH.div_ceil(page)) * 1.4 + 4.0;
        let name = format!("{api}: calls to Microsoft for {STRETCH} incidents, 1.4 times the fewest and 4");
        figures.push(Figure::of_amount(name, calls.get("microsoft:incidents"), most, ""));
    }
    Ok(report::print(console, "bound", &figures))
}

async fn poll(function: &mut Function, messages: &[serde_json::Value]) -> Result<(), Failed> {
    let invocation = function.invoke(&event_of(messages)).await?;
    if invocation.response == json!({"batchItemFailures": []}) {
        return Ok(());
    }
    Err(Failed(format!("a message failed: {}", invocation.response)))
}

async fn quiet_and_delivery(binary: &Path, api: IncidentApi, figures: &mut Vec<Figure>) -> Result<(), Failed> {
    let stand = Stand::start().await?;
    let tenant = tenant_ids(1)?[0];
    stand.onboard(tenant, api, (0..3).map(|number| incident(number, 7_200))).await?;
    let message = [poll_message(&tenant)];
    let mut function = Function::start(binary, &[], &stand.variables()).await?;
    // The first poll delivers; the second one writes how far it read.
    for _ in 0..2 {
        poll(&mut function, &message).await?;
    }
    let before = stand.calls();
    for _ in 0..QUIET_POLLS {
        poll(&mut function, &message).await?;
    }
    let quiet = stand.calls().since(&before);
    let polls = float(QUIET_POLLS);
    let name = |what: &str| format!("{api}: {what}");
    figures.push(Figure::of_amount(
        name("requests of a quiet poll"),
        quiet.get("microsoft:incidents") / polls,
        1.0,
        "",
    ));
    figures.push(Figure::of_amount(name("token requests of quiet polls"), quiet.get("microsoft:token"), 0.0, ""));
    let writes = quiet.calls("dynamodb writes");
    figures.push(Figure::of_amount(name("writes of quiet polls in five minutes"), writes, 1.0, ""));

    let seed: Vec<IncidentSeed> = (0..10).map(|number| incident(number, 5)).collect();
    for incident in seed {
        stand.sim.put_incident(&tenant.to_string(), incident);
    }
    let (before, delivered) = (stand.calls(), stand.delivered());
    poll(&mut function, &message).await?;
    if stand.delivered() != delivered + 10 {
        return Err(Failed("ten new incidents were not delivered by one poll".to_owned()));
    }
    let delivery = stand.calls().since(&before);
    let to_aws: f64 = ["dynamodb reads", "dynamodb writes", "s3", "events", "sqs", "other"]
        .iter()
        .map(|service| delivery.calls(service))
        .sum();
    figures.push(Figure::of_amount(name("calls to AWS for a delivered batch"), to_aws, DELIVERY_CALLS, ""));
    Ok(())
}

/// The calls that it takes to read a stretch of time.
async fn stretch(binary: &Path, api: IncidentApi) -> Result<Counts, Failed> {
    let stand = Stand::start().await?;
    let tenant = tenant_ids(1)?[0];
    let incidents = (0..STRETCH).map(|number| incident(number, 60 + i64::try_from(number).unwrap_or(0) * 40));
    stand.onboard(tenant, api, incidents).await?;
    let mut function = Function::start(binary, &[], &stand.variables()).await?;
    let mut messages = vec![poll_message(&tenant)];
    for _ in 0..20 {
        poll(&mut function, &messages).await?;
        if stand.delivered() == u64::try_from(STRETCH).unwrap_or(u64::MAX) {
            return Ok(stand.calls());
        }
        messages = stand.waiting();
    }
    Err(Failed(format!("{} incidents were delivered", stand.delivered())))
}
