//! One dispatch of many due tenants, and two at the same time.

use std::{collections::BTreeMap, time::Duration};

use bench::{counts::float, fleet, measured::Dispatch};
use devstack::{Console, Failed, Progress as _};
use jiff::SignedDuration;
use serde_json::Value;
use shared::{clock::Clock, tenant::TenantId};

use crate::harness::ScaleHarness;

/// The time-out of one dispatch on a busy machine.
const DISPATCH_TIMEOUT: Duration = Duration::from_mins(5);

/// Dispatches `number` due tenants, then no tenant, then all of them by two dispatches at the same time.
///
/// # Errors
/// A tenant was not dispatched, or more often than there were dispatches.
pub(crate) async fn measure(harness: &ScaleHarness, number: usize, console: &mut Console) -> Result<Dispatch, Failed> {
    let tenants = fleet::tenant_ids(number)?;
    let registry = fleet::registry(&harness.stack);
    console.step(&format!("making {number} tenants due"));
    for tenant in &tenants {
        let known = registry.tenant(tenant).await.map_err(|error| Failed(error.to_string()))?;
        if known.is_none() {
            fleet::onboard(&registry, &[*tenant], Clock::system().now()).await?;
        }
    }

    console.step("dispatching them");
    fleet::make_due(&registry, &tenants, Clock::system().now()).await?;
    let (before, started) = (harness.counts().await, devstack::instant());
    let response = dispatch(harness).await?;
    let seconds = started.elapsed().as_secs_f64();
    let counts = harness.counts().await.since(&before);
    check_dispatched(harness, &tenants, 1, "one tick").await?;

    fleet::make_due(&registry, &tenants, Clock::system().now() + SignedDuration::from_hours(1)).await?;
    let before = harness.counts().await;
    dispatch(harness).await?;
    let idle = harness.counts().await.since(&before);

    console.step("dispatching them by two ticks at the same time");
    fleet::make_due(&registry, &tenants, Clock::system().now()).await?;
    let (one, other) = tokio::join!(dispatch(harness), dispatch(harness));
    let (one, other) = (queued(&one?), queued(&other?));
    check_dispatched(harness, &tenants, 2, "two ticks at the same time").await?;

    console.line("");
    console.line(&format!("a dispatch with {} tenants due, {} queued", response["due"], response["queued"]));
    console.line(&format!("    seconds                              {seconds:>10.1}"));
    for (name, amount) in counts.iter().filter(|(name, _)| !name.starts_with("fetch")) {
        let each = amount / float(number);
        console.line(&format!("    {name:<36} {amount:>10.1}   a tenant {each:>8.4}"));
    }
    console.line(&format!("two dispatches at the same time: {one} + {other} queued"));
    Ok(Dispatch { tenants: number, counts, idle })
}

/// Invokes the function as the schedule does, with a longer time-out, because the time is measured and not checked.
async fn dispatch(harness: &ScaleHarness) -> Result<Value, Failed> {
    let input = serde_json::json!({ "kind": "poll" });
    Ok(harness.stack.invoke_with_deadline("incident-dispatch", input, DISPATCH_TIMEOUT).await?)
}

fn queued(response: &Value) -> u64 {
    response["queued"].as_u64().unwrap_or_default()
}

/// Empties the queue and checks that it had a message for each tenant, at most `most`. `case` is for the error message.
async fn check_dispatched(harness: &ScaleHarness, tenants: &[TenantId], most: usize, case: &str) -> Result<(), Failed> {
    let sqs = aws_sdk_sqs::Client::new(harness.stack.aws().config());
    let queue = &harness.stack.resources().queue_url;
    let mut messages: BTreeMap<String, usize> = BTreeMap::new();
    loop {
        let receive = sqs.receive_message().queue_url(queue).max_number_of_messages(10);
        let received = receive.send().await.map_err(|error| Failed(format!("reading the queue: {error}")))?;
        let received = received.messages.unwrap_or_default();
        if received.is_empty() {
            break;
        }
        for message in received {
            let body: Value = serde_json::from_str(message.body().unwrap_or_default()).unwrap_or_default();
            *messages.entry(body["tenant_id"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
            let receipt = message.receipt_handle().unwrap_or_default();
            let delete = sqs.delete_message().queue_url(queue).receipt_handle(receipt);
            delete.send().await.map_err(|error| Failed(format!("emptying the queue: {error}")))?;
        }
    }
    let missing = tenants.iter().filter(|tenant| !messages.contains_key(&tenant.to_string())).count();
    let repeated = messages.values().filter(|number| **number > most).count();
    if missing > 0 || repeated > 0 || messages.len() != tenants.len() {
        return Err(Failed(format!("{case}: {missing} tenants were not dispatched, {repeated} too often")));
    }
    Ok(())
}
