//! One dispatch of many due tenants, and two at the same time.

use std::collections::BTreeMap;

use bench::{counts::float, fleet, measured::Dispatch};
use devstack::{Console, Failed, Progress as _};
use jiff::SignedDuration;
use serde_json::Value;
use shared::{clock::Clock, tenant::TenantId};

use crate::harness::ScaleHarness;

/// Dispatches `number` due tenants, then no tenant, then all of them by two dispatches at the same time.
///
/// # Errors
/// A tenant was not dispatched, or more often than there were dispatches.
pub(crate) async fn measure(harness: &ScaleHarness, number: usize, console: &mut Console) -> Result<Dispatch, Failed> {
    let tenants = fleet::tenant_ids(number)?;
    let registry = harness.stand().registry();
    console.step(&format!("making {number} tenants due"));
    for tenant in &tenants {
        let known = registry.tenant(tenant).await.map_err(|error| Failed(error.to_string()))?;
        if known.is_none() {
            fleet::onboard(harness.stand(), &[*tenant]).await?;
        }
    }

    console.step("dispatching them");
    fleet::make_due(registry, &tenants, Clock::system().now()).await?;
    let (before, started) = (harness.counts().await, devstack::instant());
    let response = harness.tick(0).await?;
    let seconds = started.elapsed().as_secs_f64();
    let counts = harness.counts().await.since(&before);
    check_dispatched(harness, &tenants, 1, "one tick")?;

    fleet::make_due(registry, &tenants, Clock::system().now() + SignedDuration::from_hours(1)).await?;
    let before = harness.counts().await;
    harness.tick(0).await?;
    let idle = harness.counts().await.since(&before);

    console.step("dispatching them by two ticks at the same time");
    fleet::make_due(registry, &tenants, Clock::system().now()).await?;
    let (one, other) = tokio::join!(harness.tick(0), harness.tick(1));
    let (one, other) = (queued(&one?), queued(&other?));
    check_dispatched(harness, &tenants, 2, "two ticks at the same time")?;

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

fn queued(response: &Value) -> u64 {
    response["queued"].as_u64().unwrap_or_default()
}

/// Empties the queue and checks that it had a message for each tenant, at most `most`. `case` is for the error message.
fn check_dispatched(harness: &ScaleHarness, tenants: &[TenantId], most: usize, case: &str) -> Result<(), Failed> {
    let mut messages: BTreeMap<String, usize> = BTreeMap::new();
    for message in harness.stand().waiting() {
        *messages.entry(message["tenant_id"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let missing = tenants.iter().filter(|tenant| !messages.contains_key(&tenant.to_string())).count();
    let repeated = messages.values().filter(|number| **number > most).count();
    if missing > 0 || repeated > 0 || messages.len() != tenants.len() {
        return Err(Failed(format!("{case}: {missing} tenants were not dispatched, {repeated} too often")));
    }
    Ok(())
}
