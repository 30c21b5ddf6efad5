//! Many tenants on schedule, some throttled and some broken, while incidents change: how late everyone else's arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bench::cost::Lag;
use bench::fleet;
use bench::relay::Written;
use devstack::Failed;
use devstack::{Console, Progress as _};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use shared::clock::Clock;
use shared::http::Deadline;
use shared::tenant::TenantId;
use sim::{Fault, FaultKind, RetryAfter, Sim, Surface};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::options::Options;
use crate::setting::Setting;

/// One tenant in so many is throttled, and another one broken.
const ONE_IN: usize = 100;
/// What a throttled tenant's answers ask for, in seconds.
const RETRY_AFTER: u64 = 30;
/// Intervals within which every healthy tenant must have been polled for the first time.
const WARM_UP: u32 = 6;
/// Intervals within which a change must have been delivered, at the latest.
const PATIENCE: u32 = 5;
const LOOK: Duration = Duration::from_secs(1);

/// Measures, prints, and judges what was promised.
///
/// # Errors
/// When a change at a healthy tenant is not delivered, or a message becomes a dead letter.
pub(crate) async fn measure(setting: &Setting, options: &Options, console: &mut Console) -> Result<Lag, Failed> {
    let tenants = fleet::tenant_ids(options.tenants)?;
    let (ill, healthy) = tenants.split_at(2 * options.tenants.div_ceil(ONE_IN).min(options.tenants / 4));
    let (throttled, broken) = ill.split_at(ill.len() / 2);
    let patience = Duration::from_secs((options.interval * PATIENCE).into());
    console.step(&format!("onboarding {} tenants", tenants.len()));
    for tenant in &tenants {
        fleet::seed(&setting.sim, tenant);
    }
    make_ill(&setting.sim, throttled, broken);
    fleet::onboard(&fleet::registry(&setting.stack), &tenants, Clock::system().now()).await?;

    console.step("waiting for everyone's first poll");
    warm_up(setting, healthy, options.interval).await?;

    console.step(&format!("changing {} incidents a second for {} minutes", options.rate, options.minutes));
    let (known, before, began) = (setting.relay.written_after(0).len(), setting.counts().await, Clock::system().now());
    let changes = change(setting, healthy, options).await;
    let (counts, ended) = (setting.counts().await.since(&before), Clock::system().now());

    console.step("waiting for the last of them");
    let deadline = Deadline::within(patience, &Clock::system());
    let mut lines = Lines::default();
    loop {
        lines.read(setting, known).await?;
        if changes.keys().all(|key| lines.seen.contains_key(key)) || deadline.left().is_zero() {
            break;
        }
        sleep(LOOK).await;
    }

    let delivered: Vec<f64> = changes
        .iter()
        .filter_map(|(key, at)| Some(lines.seen.get(key)?.first()?.duration_since(*at).as_secs_f64()))
        .collect();
    let seconds = ended.duration_since(began).as_secs_f64();
    let lag = Lag {
        throttled: throttled.len(),
        broken: broken.len(),
        changes: changes.len(),
        delivered: delivered.len(),
        repeated: lines.seen.values().filter(|times| times.len() > 1).count(),
        late_tenants: late_tenants(&changes, &lines, options.interval),
        p50: percentile(&delivered, 50),
        p99: percentile(&delivered, 99),
        longest: percentile(&delivered, 100),
        tick_p50: 0.0,
        tick_longest: 0.0,
        aws_calls_a_second: counts.calls_to_aws() / seconds,
        aws_millis_a_call: 1000.0 * counts.get("aws.seconds") / counts.calls_to_aws().max(1.0),
    };
    let lag = with_ticks(lag, setting, began, ended).await;
    tell(&lag, setting, options, console);
    setting.check().await?;
    if lag.delivered < lag.changes {
        return Err(Failed(format!(
            "{} of {} changes were not delivered within {} s",
            lag.changes - lag.delivered,
            lag.changes,
            patience.as_secs()
        )));
    }
    Ok(lag)
}

fn make_ill(sim: &Sim, throttled: &[TenantId], broken: &[TenantId]) {
    for tenant in throttled {
        let kind = FaultKind::Throttle { retry_after: RetryAfter::Seconds(RETRY_AFTER) };
        sim.fault(Fault::new(kind).on(Surface::Graph).tenant(&tenant.to_string()));
    }
    for tenant in broken {
        sim.fault(Fault::new(FaultKind::status(500)).on(Surface::Graph).tenant(&tenant.to_string()));
    }
}

/// Waits until every healthy tenant has its first objects.
async fn warm_up(setting: &Setting, healthy: &[TenantId], interval: u32) -> Result<(), Failed> {
    let patience = Duration::from_secs((interval * WARM_UP).into());
    let deadline = Deadline::within(patience, &Clock::system());
    loop {
        let written = setting.relay.written_after(0);
        let served: BTreeSet<&str> = written.iter().filter_map(|written| tenant_of(&written.key)).collect();
        let waiting = healthy.iter().filter(|tenant| !served.contains(tenant.to_string().as_str())).count();
        if waiting == 0 {
            return Ok(());
        }
        if deadline.left().is_zero() {
            return Err(Failed(format!("{waiting} tenants had no poll within {WARM_UP} intervals")));
        }
        sleep(LOOK).await;
    }
}

/// The tenant of an object's key.
fn tenant_of(key: &str) -> Option<&str> {
    key.strip_prefix("incidents/tenant_id=")?.split('/').next()
}

/// When which version came to be, by the key that its line will have.
type Changes = BTreeMap<String, Timestamp>;

/// Changes incidents here and there: at each tenant first those that it has, one after the other, then new ones. None is
/// changed twice, since a version that is replaced before a poll is not seen.
async fn change(setting: &Setting, tenants: &[TenantId], options: &Options) -> Changes {
    let sim = &setting.sim;
    let number = options.minutes * 60 * options.rate;
    let mut ticks = interval(Duration::from_secs(1) / options.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut changes, mut turns, mut random) = (Changes::new(), BTreeMap::<TenantId, u64>::new(), 1_u64);
    for _ in 0..number {
        ticks.tick().await;
        // A linear congruential generator: the same tenants in each run.
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

/// The lines of the objects that were written since the changes began.
#[derive(Default)]
struct Lines {
    objects: usize,
    /// When the objects came in which a line lies, by its key.
    seen: BTreeMap<String, Vec<Timestamp>>,
}

impl Lines {
    async fn read(&mut self, setting: &Setting, known: usize) -> Result<(), Failed> {
        for Written { key, at } in setting.relay.written_after(known + self.objects) {
            self.objects += 1;
            for line in setting.stack.lines_of(&key).await? {
                self.seen.entry(text(&line["key"]).to_owned()).or_default().push(at);
            }
        }
        Ok(())
    }
}

/// Tenants of which a change took longer than two intervals.
fn late_tenants(changes: &Changes, lines: &Lines, interval: u32) -> usize {
    let most = SignedDuration::from_secs((2 * interval).into());
    let is_late = |key: &str, at: &Timestamp| {
        lines.seen.get(key).and_then(|times| times.first()).is_none_or(|seen| seen.duration_since(*at) > most)
    };
    let late = changes.iter().filter(|(key, at)| is_late(key, at));
    late.filter_map(|(key, _)| key.split('/').next()).collect::<BTreeSet<_>>().len()
}

/// From each dispatch to the last tenant that was worked on before the next.
async fn with_ticks(lag: Lag, setting: &Setting, began: Timestamp, ended: Timestamp) -> Lag {
    let dispatches = times(&setting.stack.logs("incident-dispatch").await, "tenants dispatched");
    let polls = times(&setting.stack.logs("incident-fetch").await, "tenant worked on");
    let within = |at: &Timestamp| (began..ended).contains(at);
    let mut took = Vec::new();
    for pair in dispatches.windows(2).filter(|pair| pair.iter().all(within)) {
        let of_tick = polls.iter().filter(|poll| (pair[0]..pair[1]).contains(*poll));
        took.extend(of_tick.max().map(|last| last.duration_since(pair[0]).as_secs_f64()));
    }
    Lag { tick_p50: percentile(&took, 50), tick_longest: percentile(&took, 100), ..lag }
}

/// The times of the log lines with a message.
fn times(lines: &[String], message: &str) -> Vec<Timestamp> {
    let with_message = lines.iter().filter(|line| line.contains(message));
    let parsed = with_message.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter_map(|line| text(&line["timestamp"]).parse().ok()).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The value below which so many in a hundred lie (nearest rank).
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

fn tell(lag: &Lag, setting: &Setting, options: &Options, console: &mut Console) {
    let usage = setting.stack.usage("incident-fetch");
    let row = |name: &str, value: String| format!("{name:<44} {value}");
    console.line("");
    for line in [
        row("tenants", format!("{}, {} of them throttled, {} broken", options.tenants, lag.throttled, lag.broken)),
        row("poll interval", format!("{} s", options.interval)),
        row("changes at healthy tenants", format!("{}, {} a second", lag.changes, options.rate)),
        row("delivered", format!("{}, {} of them more than once", lag.delivered, lag.repeated)),
        row("lag, change at Microsoft to object in S3", format!("p50 {:.1} s", lag.p50)),
        row("", format!("p99 {:.1} s", lag.p99)),
        row("", format!("longest {:.1} s", lag.longest)),
        row("tenants served later than two intervals", lag.late_tenants.to_string()),
        row(
            "from a dispatch to its last poll",
            format!("p50 {:.1} s, longest {:.1} s", lag.tick_p50, lag.tick_longest),
        ),
        row("longest invocation of incident-fetch", format!("{:.1} s", usage.longest.as_secs_f64())),
        row(
            "the functions' calls to the local AWS",
            format!("{:.0} a second, {:.1} ms each", lag.aws_calls_a_second, lag.aws_millis_a_call),
        ),
    ] {
        console.line(&line);
    }
    if lag.tick_longest > f64::from(options.interval) * 0.9 {
        console.line(&format!(
            "{} tenants hardly fit into {} s on this machine: give a longer --interval, or read the lag as this machine's.",
            options.tenants, options.interval
        ));
    }
}

#[cfg(test)]
mod tests {
    use bench::counts::float;

    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_met() {
        let values: Vec<f64> = (1..=200).rev().map(float).collect();
        let met = [50, 99, 100].map(|percent| percentile(&values, percent).to_bits());
        assert_eq!(met, [100.0_f64, 198.0, 200.0].map(f64::to_bits));
        assert_eq!(percentile(&[], 99).to_bits(), 0.0_f64.to_bits());
    }

    #[test]
    fn an_object_names_its_tenant() {
        assert_eq!(tenant_of("incidents/tenant_id=a-b/date=2026-11-22/x.ndjson.gz"), Some("a-b"));
        assert_eq!(tenant_of("quarantine/tenant_id=a-b/x.json"), None);
    }
}
