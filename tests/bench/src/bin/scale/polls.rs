//! What one poll calls.

use std::time::Duration;

use bench::{
    cost::Measured,
    counts::{Counts, float},
    fleet,
};
use devstack::{Console, Failed, Progress as _};
use shared::{clock::Clock, entra::TenantId};

use crate::setting::Setting;

/// A poll has its token confirmed if that is older than 25 seconds, as it always is at the deployed interval.
const BETWEEN_POLLS: Duration = Duration::from_secs(26);

/// Polls a sample of tenants four times: for their first incidents, in vain, after a change of one incident each, and
/// while that still lies in the overlap.
pub(crate) async fn measure(
    setting: &Setting,
    sample: usize,
    measured: &mut Measured,
    console: &mut Console,
) -> Result<(), Failed> {
    let tenants = fleet::tenant_ids(sample)?;
    let registry = fleet::registry(&setting.stack);
    console.step(&format!("counting the calls of one poll, at {sample} tenants"));
    for tenant in &tenants {
        fleet::seed(&setting.sim, tenant);
    }
    fleet::onboard(&registry, &tenants, Clock::system().now()).await?;
    round(setting, &tenants, false).await?;

    measured.quiet_poll = round(setting, &tenants, true).await?;
    for tenant in &tenants {
        setting.sim.put_incident(&tenant.to_string(), fleet::incident(None));
    }
    measured.delivering_poll = round(setting, &tenants, true).await?;
    measured.known_poll = round(setting, &tenants, true).await?;
    setting.check().await?;
    let objects = setting.relay.written_after(0).len();
    // One with the first incidents, one with the change; the day may have changed between the first ones.
    if objects < 2 * sample {
        return Err(Failed(format!("{objects} objects were delivered at {sample} tenants instead of two each")));
    }
    for (name, counts) in [
        ("quiet", &measured.quiet_poll),
        ("delivering one change", &measured.delivering_poll),
        ("meeting a known change", &measured.known_poll),
    ] {
        tell(name, counts, console);
    }
    Ok(())
}

/// One poll of each tenant; what it called, on average.
async fn round(setting: &Setting, tenants: &[TenantId], is_later: bool) -> Result<Counts, Failed> {
    if is_later {
        tokio::time::sleep(BETWEEN_POLLS).await;
    }
    let registry = fleet::registry(&setting.stack);
    fleet::make_due(&registry, tenants, Clock::system().now()).await?;
    setting.stack.tick("poll").await?;
    let before = setting.counts().await;
    // A message may come twice, as in SQS; the second finds the tenant busy.
    let messages = setting.stack.drain_queue().await?;
    if messages < tenants.len() {
        return Err(Failed(format!("{messages} messages were delivered for {} tenants", tenants.len())));
    }
    Ok(setting.counts().await.since(&before).per(tenants.len()))
}

fn tell(name: &str, counts: &Counts, console: &mut Console) {
    console.line("");
    console.line(&format!("a poll, {name}"));
    for (name, amount) in counts.iter() {
        console.line(&format!("    {name:<36} {amount:>10.3}"));
    }
    let batch = 1.0 / counts.get("fetch.invocations").max(1.0 / float(usize::MAX));
    console.line(&format!("    {:<36} {batch:>10.1}", "polls of one invocation"));
}
