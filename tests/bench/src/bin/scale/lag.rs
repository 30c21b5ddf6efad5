//! The delay of changes at many tenants that are polled on schedule, while others are throttled or fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bench::{
    counts::float,
    fleet,
    measured::Lag,
    relay::WrittenObject,
    report::{self, Figure},
};
use devstack::{Console, Failed, Progress as _};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use shared::{clock::Clock, tenant::TenantId};
use sim::{Fault, FaultKind, Host, RetryAfter, Sim};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::{
    harness::{ScaleHarness, Triggers},
    options::Options,
};

/// Of so many tenants, one is throttled and one fails.
const TENANTS_PER_FAULT: usize = 100;
/// The `Retry-After` of a throttled tenant's responses.
const RETRY_AFTER_SECONDS: u64 = 30;
/// Poll intervals within which every healthy tenant must have its first poll.
const WARM_UP_INTERVALS: u32 = 6;
/// Poll intervals within which every change must be delivered.
const MAX_LAG_INTERVALS: u32 = 5;
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The longest lag, in poll intervals: of half of the changes, and of 99 in a hundred.
const MOST: (f64, f64) = (0.75, 2.0);

/// Measures the delay of changes.
///
/// # Errors
/// A change at a healthy tenant was not delivered, or a message is in the dead-letter queue.
pub(crate) async fn measure(options: &Options, console: &mut Console) -> Result<Lag, Failed> {
    let harness = ScaleHarness::start(Triggers::EverySeconds(options.interval), console).await?;
    let harness = &harness;
    let tenants = fleet::tenant_ids(options.tenants)?;
    let faulty = 2 * options.tenants.div_ceil(TENANTS_PER_FAULT).min(options.tenants / 4);
    let (faulty, healthy) = tenants.split_at(faulty);
    let (throttled, failing) = faulty.split_at(faulty.len() / 2);
    let max_lag = Duration::from_secs((options.interval * MAX_LAG_INTERVALS).into());
    console.step(&format!("onboarding {} tenants", tenants.len()));
    add_faults(harness.sim(), throttled, failing);
    fleet::onboard(harness.stand(), &tenants).await?;

    console.step("waiting for everyone's first poll");
    warm_up(harness, healthy, options.interval).await?;

    console.step(&format!("changing {} incidents a second for {} minutes", options.rate, options.minutes));
    let (earlier_objects, before, started) =
        (harness.relay().written_after(0).len(), harness.counts().await, Clock::system().now());
    let changes = change_incidents(harness, healthy, options).await;
    let (counts, ended) = (harness.counts().await.since(&before), Clock::system().now());

    console.step("waiting for the last of them");
    let deadline = devstack::instant() + max_lag;
    let mut lines = DeliveredLines::default();
    loop {
        lines.read(harness, earlier_objects)?;
        if changes.keys().all(|key| lines.times.contains_key(key)) || devstack::instant() > deadline {
            break;
        }
        sleep(CHECK_INTERVAL).await;
    }

    let delivered: Vec<f64> = changes
        .iter()
        .filter_map(|(key, at)| Some(lines.times.get(key)?.first()?.duration_since(*at).as_secs_f64()))
        .collect();
    let seconds = ended.duration_since(started).as_secs_f64();
    let of_dispatches = Some(harness.dispatch_times(&(started..ended))).filter(|times| !times.is_empty());
    let lag = Lag {
        throttled: throttled.len(),
        broken: failing.len(),
        changes: changes.len(),
        delivered: delivered.len(),
        repeated: lines.times.values().filter(|times| times.len() > 1).count(),
        late_tenants: late_tenants(&changes, &lines, options.interval),
        p50: percentile(&delivered, 50),
        p99: percentile(&delivered, 99),
        longest: percentile(&delivered, 100),
        tick_p50: of_dispatches.as_deref().map(|times| percentile(times, 50)),
        tick_longest: of_dispatches.as_deref().map(|times| percentile(times, 100)),
        longest_batch: harness.longest_batch(),
        aws_calls_a_second: counts.calls_to_aws() / seconds,
        aws_millis_a_call: 1000.0 * counts.get("aws.seconds") / counts.calls_to_aws().max(1.0),
    };
    harness.check_failures()?;
    if lag.delivered < lag.changes {
        return Err(Failed(format!(
            "{} of {} changes were not delivered within {} s",
            lag.changes - lag.delivered,
            lag.changes,
            max_lag.as_secs()
        )));
    }
    Ok(lag)
}

fn add_faults(sim: &Sim, throttled: &[TenantId], failing: &[TenantId]) {
    for tenant in throttled {
        let kind = FaultKind::Throttle { retry_after: RetryAfter::Seconds(RETRY_AFTER_SECONDS) };
        sim.fault(Fault::new(kind).on(Host::Graph).tenant(&tenant.to_string()));
    }
    for tenant in failing {
        sim.fault(Fault::new(FaultKind::status(500)).on(Host::Graph).tenant(&tenant.to_string()));
    }
}

/// Waits until every healthy tenant has an object in the bucket.
async fn warm_up(harness: &ScaleHarness, healthy: &[TenantId], interval: u32) -> Result<(), Failed> {
    let deadline = devstack::instant() + Duration::from_secs((interval * WARM_UP_INTERVALS).into());
    loop {
        let written = harness.relay().written_after(0);
        let served: BTreeSet<&str> = written.iter().filter_map(|written| tenant_of(&written.key)).collect();
        let waiting = healthy.iter().filter(|tenant| !served.contains(tenant.to_string().as_str())).count();
        if waiting == 0 {
            return Ok(());
        }
        if devstack::instant() > deadline {
            return Err(Failed(format!("{waiting} tenants had no poll within {WARM_UP_INTERVALS} intervals")));
        }
        sleep(CHECK_INTERVAL).await;
    }
}

/// Returns the tenant id in the key of an object with incidents.
fn tenant_of(key: &str) -> Option<&str> {
    key.strip_prefix("incidents/tenant_id=")?.split('/').next()
}

/// The time of each change, by the key that the line of this version will have.
type Changes = BTreeMap<String, Timestamp>;

/// Changes incidents at random tenants: first the existing ones of a tenant, one after the other, then new ones. No
/// incident is changed twice, because a version that is replaced before the next poll is never seen.
async fn change_incidents(harness: &ScaleHarness, tenants: &[TenantId], options: &Options) -> Changes {
    let sim = harness.sim();
    let number = options.minutes * 60 * options.rate;
    let mut ticks = interval(Duration::from_secs(1) / options.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut changes, mut turns, mut random) = (Changes::new(), BTreeMap::<TenantId, u64>::new(), 1_u64);
    for _ in 0..number {
        ticks.tick().await;
        // A linear congruential generator gives the same tenants in each run.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let Ok(index) = usize::try_from(random >> 33) else { continue };
        let tenant = tenants[index % tenants.len()];
        let turn = turns.entry(tenant).or_default();
        *turn += 1;
        let (tenant_id, mut id) = (tenant.to_string(), turn.to_string());
        let now = sim.clock().now();
        let is_known = sim.update_incident(&tenant_id, &id, |incident| {
            incident.add_alert(now);
        });
        if !is_known {
            id = sim.put_incident(&tenant_id, fleet::incident(None));
        }
        if let Some(incident) = sim.incident(&tenant_id, &id) {
            changes.insert(format!("{tenant_id}/{id}/{}", incident.last_update), now);
        }
    }
    changes
}

/// The lines of the objects that were written since the changes started.
#[derive(Default)]
struct DeliveredLines {
    objects: usize,
    /// The times of the objects that contain a line, by the line's key.
    times: BTreeMap<String, Vec<Timestamp>>,
}

impl DeliveredLines {
    fn read(&mut self, harness: &ScaleHarness, earlier_objects: usize) -> Result<(), Failed> {
        for WrittenObject { key, at } in harness.relay().written_after(earlier_objects + self.objects) {
            self.objects += 1;
            for line in harness.stand().lines(&key)? {
                self.times.entry(text(&line["key"]).to_owned()).or_default().push(at);
            }
        }
        Ok(())
    }
}

/// Returns the number of tenants with a change that took longer than two intervals.
fn late_tenants(changes: &Changes, lines: &DeliveredLines, interval: u32) -> usize {
    let max_lag = SignedDuration::from_secs((2 * interval).into());
    let is_late = |key: &str, at: &Timestamp| {
        lines.times.get(key).and_then(|times| times.first()).is_none_or(|time| time.duration_since(*at) > max_lag)
    };
    let late = changes.iter().filter(|(key, at)| is_late(key, at));
    late.filter_map(|(key, _)| key.split('/').next()).collect::<BTreeSet<_>>().len()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Returns a percentile by the nearest-rank method; 0 without values.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// Prints the delay of changes. Returns true if it is not longer than it may be.
pub(crate) fn print(lag: &Lag, options: &Options, console: &mut Console) -> bool {
    let row = |name: &str, value: String| format!("{name:<44} {value}");
    let of_dispatches = match (lag.tick_p50, lag.tick_longest) {
        (Some(p50), Some(longest)) => format!("p50 {p50:.1} s, longest {longest:.1} s"),
        _ => "not measured: there were no two dispatches".to_owned(),
    };
    console.line("");
    for line in [
        row("tenants", format!("{}, {} of them throttled, {} failing", options.tenants, lag.throttled, lag.broken)),
        row("poll interval", format!("{} s", options.interval)),
        row("changes at healthy tenants", format!("{}, {} a second", lag.changes, options.rate)),
        row("delivered", format!("{}, {} of them more than once", lag.delivered, lag.repeated)),
        row("longest lag", format!("{:.1} s", lag.longest)),
        row("tenants served later than two intervals", lag.late_tenants.to_string()),
        row("from a dispatch to its last poll", of_dispatches),
        row("longest invocation of incident-fetch", format!("{:.1} s", lag.longest_batch)),
        row("calls to AWS", format!("{:.0} a second, {:.1} ms each", lag.aws_calls_a_second, lag.aws_millis_a_call)),
    ] {
        console.line(&line);
    }
    console.line("");
    let interval = f64::from(options.interval);
    let figures = [
        Figure::of_amount("lag, change at Microsoft to object in S3, p50", lag.p50, MOST.0 * interval, "s"),
        Figure::of_amount("p99", lag.p99, MOST.1 * interval, "s"),
        Figure::of_amount("changes delivered more than once", float(lag.repeated), 0.0, ""),
    ];
    report::print(console, "bound", &figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).rev().map(float).collect();
        let found = [50, 99, 100].map(|percent| percentile(&values, percent).to_bits());
        assert_eq!(found, [100.0_f64, 198.0, 200.0].map(f64::to_bits));
        assert_eq!(percentile(&[], 99).to_bits(), 0.0_f64.to_bits());
    }

    #[test]
    fn object_key_contains_the_tenant_id() {
        assert_eq!(tenant_of("incidents/tenant_id=a-b/date=2026-11-22/x.ndjson.gz"), Some("a-b"));
        assert_eq!(tenant_of("quarantine/tenant_id=a-b/x.json"), None);
    }
}
