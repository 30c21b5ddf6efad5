//! The calls of one poll.

use bench::{
    counts::{Counts, float},
    fleet,
    measured::Measured,
};
use devstack::{Console, Failed, Progress as _};
use jiff::SignedDuration;
use shared::{
    clock::Clock,
    registry::{
        Registry, Write,
        lease::{Acquired, QUIET_WRITE_INTERVAL},
    },
    tenant::TenantId,
};

use crate::harness::ScaleHarness;

/// Polls a sample of tenants seven times: for their first incidents, without a change by a new process and by the same one,
/// without a change when the progress is to be written and after a long quiet, after one new incident each, and while this
/// incident is still within the overlap.
pub(crate) async fn measure(
    harness: &ScaleHarness,
    sample: usize,
    measured: &mut Measured,
    console: &mut Console,
) -> Result<(), Failed> {
    let tenants = fleet::tenant_ids(sample)?;
    console.step(&format!("counting the calls of one poll, at {sample} tenants"));
    fleet::onboard(harness.stand(), &tenants).await?;
    poll_each(harness, &tenants).await?;

    let registry = harness.stand().registry();
    harness.restart().await?;
    measured.new_process_poll = poll_each(harness, &tenants).await?;
    measured.quiet_poll = poll_each(harness, &tenants).await?;
    put_back(registry, &tenants, SignedDuration::ZERO).await?;
    measured.written_poll = poll_each(harness, &tenants).await?;
    put_back(registry, &tenants, SignedDuration::from_hours(2)).await?;
    measured.stretched_poll = poll_each(harness, &tenants).await?;
    for tenant in &tenants {
        harness.sim().put_incident(&tenant.to_string(), fleet::incident(None));
    }
    measured.delivering_poll = poll_each(harness, &tenants).await?;
    measured.known_poll = poll_each(harness, &tenants).await?;
    harness.check_failures()?;
    let objects = harness.relay().written_after(0).len();
    // One object has the first incidents and one the new incident. Two days of first incidents make one more.
    if objects < 2 * sample {
        return Err(Failed(format!("{objects} objects were delivered at {sample} tenants instead of two each")));
    }
    for (name, counts) in [
        ("quiet, by a new process", &measured.new_process_poll),
        ("quiet", &measured.quiet_poll),
        ("quiet, with its progress written", &measured.written_poll),
        ("quiet, with a stretched interval", &measured.stretched_poll),
        ("delivering one change", &measured.delivering_poll),
        ("with a delivered version in the overlap", &measured.known_poll),
    ] {
        print(name, counts, console);
    }
    Ok(())
}

/// Puts the last success of feeds back by more than the time for which a quiet poll writes nothing, and their last news by
/// `quiet`.
async fn put_back(registry: &Registry, tenants: &[TenantId], quiet: SignedDuration) -> Result<(), Failed> {
    let failed = |error: shared::error::Error| Failed(error.to_string());
    for tenant in tenants {
        let now = Clock::system().now();
        let acquired = registry.acquire_lease(tenant, now, now).await.map_err(failed)?;
        let Acquired::Lease(mut lease) = acquired else { return Err(Failed(format!("{tenant} is at work"))) };
        lease.feed.last_success_at = Some(now - QUIET_WRITE_INTERVAL);
        lease.feed.last_news_at = Some(now - quiet);
        if registry.release_lease(&mut lease, None, now).await.map_err(failed)? == Write::Conflict {
            return Err(Failed(format!("{tenant} is at work")));
        }
    }
    Ok(())
}

/// Polls each tenant once and returns the mean counts of one poll.
async fn poll_each(harness: &ScaleHarness, tenants: &[TenantId]) -> Result<Counts, Failed> {
    fleet::make_due(harness.stand().registry(), tenants, Clock::system().now()).await?;
    harness.tick(0).await?;
    let before = harness.counts().await;
    // A message may be delivered twice, as in SQS. The second delivery finds the tenant's lease taken.
    let messages = harness.drain().await?;
    if messages < tenants.len() {
        return Err(Failed(format!("{messages} messages were delivered for {} tenants", tenants.len())));
    }
    Ok(harness.counts().await.since(&before).per(tenants.len()))
}

fn print(name: &str, counts: &Counts, console: &mut Console) {
    console.line("");
    console.line(&format!("a poll, {name}"));
    for (name, amount) in counts.iter() {
        console.line(&format!("    {name:<36} {amount:>10.3}"));
    }
    let batch = 1.0 / counts.get("fetch.invocations").max(1.0 / float(usize::MAX));
    console.line(&format!("    {:<36} {batch:>10.1}", "polls of one invocation"));
}
