//! What a month costs, computed from measured counts and list prices.
//!
//! Nothing is subtracted for free tiers, discounts or savings plans. A month has 30 days.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::counts::{Counts, float};

const DAY: f64 = 86_400.0;
const DAYS: f64 = 30.0;
const MONTH: f64 = DAY * DAYS;
const GIGABYTE: f64 = 1e9;

/// What `scale` measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// When and where.
    pub conditions: Conditions,
    /// Of one poll that finds nothing.
    pub quiet_poll: Counts,
    /// Of one poll that delivers one version.
    pub delivering_poll: Counts,
    /// Of one poll in whose overlap a version lies that is delivered already.
    pub known_poll: Counts,
    /// Of a dispatch.
    pub dispatch: Dispatch,
    /// How late changes were.
    pub lag: Lag,
}

/// When and where something was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// The day.
    pub on: String,
    /// Of the machine that all of it shared.
    pub cores: usize,
    /// How the functions were built.
    pub build: String,
    /// On schedule.
    pub tenants: usize,
    /// Their poll interval.
    pub interval_seconds: u32,
}

/// One dispatch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dispatch {
    /// How many tenants were due.
    pub tenants: usize,
    /// With all of them due.
    pub counts: Counts,
    /// With none due.
    pub idle: Counts,
}

/// How late changes at healthy tenants were, in seconds from the change at Microsoft to the object in S3.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Tenants beside them that were answered 429 again and again.
    pub throttled: usize,
    /// Tenants beside them whose every list failed.
    pub broken: usize,
    /// Changes at healthy tenants.
    pub changes: usize,
    /// Of these, delivered at least once.
    pub delivered: usize,
    /// Of these, delivered more than once.
    pub repeated: usize,
    /// Tenants of which a change took longer than two intervals.
    pub late_tenants: usize,
    /// Half of the changes were faster.
    pub p50: f64,
    /// 99 of 100 changes were faster.
    pub p99: f64,
    /// The slowest.
    pub longest: f64,
    /// From a dispatch to the last poll that it led to: half of the ticks were faster.
    pub tick_p50: f64,
    /// The slowest of these.
    pub tick_longest: f64,
    /// What the functions called of AWS's stand-in.
    pub aws_calls_a_second: f64,
    /// How long it kept them waiting.
    pub aws_millis_a_call: f64,
}

/// A table of list prices.
#[derive(Clone, Debug, Deserialize)]
pub struct Prices {
    /// Where they hold.
    pub region: String,
    /// When they were looked up.
    pub on: String,
    /// By name.
    pub prices: BTreeMap<String, Price>,
}

/// One list price.
#[derive(Clone, Debug, Deserialize)]
pub struct Price {
    /// US dollars for `per` units.
    pub usd: f64,
    /// How many units that buys.
    pub per: f64,
    /// What is bought.
    pub unit: String,
    /// The page that says so.
    pub source: String,
    /// Where it was seen other than on AWS's own page, or not at all.
    #[serde(default)]
    pub unverified: Option<String>,
}

impl Prices {
    /// What so much costs.
    ///
    /// # Errors
    /// The name, where the table does not have it.
    pub fn of(&self, name: &str, amount: f64) -> Result<f64, String> {
        let price = self.prices.get(name).ok_or_else(|| format!("the table of prices has no {name}"))?;
        Ok(amount / price.per * price.usd)
    }
}

/// What a deployment has that its template says. A test compares the two.
#[derive(Clone, Copy, Debug)]
pub struct Deployment {
    /// Memory of `incident-fetch`, in megabytes.
    pub fetch_memory: f64,
    /// Memory of `incident-dispatch`, in megabytes.
    pub dispatch_memory: f64,
    /// Between two ticks of the schedule, in seconds.
    pub tick: f64,
    /// Batches of the queue that are worked on at a time, unless the operator says otherwise.
    pub maximum_concurrency: f64,
    /// `POLL_OVERLAP_SECONDS`.
    pub overlap: f64,
    /// Days that delivered objects are kept.
    pub retention_days: f64,
    /// CloudWatch alarms.
    pub alarms: f64,
}

/// What `infra/template.yaml` says.
pub const TEMPLATE: Deployment = Deployment {
    fetch_memory: 512.0,
    dispatch_memory: 256.0,
    tick: 60.0,
    maximum_concurrency: 10.0,
    overlap: 900.0,
    retention_days: 400.0,
    alarms: 34.0,
};

/// Metrics that the functions publish: eight of the deployment, and one for each of four functions.
const METRICS: f64 = 12.0;
/// What Lambda itself writes to the log for one invocation, in bytes: start, end and report as JSON. Not measured.
const PLATFORM_LOG: f64 = 900.0;
/// Long polls that Lambda keeps open at an idle queue, and how long each lasts.
/// <https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-scaling.html>
const POLLERS: f64 = 5.0;
const LONG_POLL: f64 = 20.0;
/// X-Ray's default rule: one trace a second, and five in a hundred of what is more.
const TRACED: f64 = 0.05;
/// How long a call to AWS takes in AWS, in seconds. Assumed: it takes the place of moto's time, which is much longer.
const AWS_LATENCY: f64 = 0.01;
/// The partitions of the index of what is due, and what one takes in a second.
const DUE_PARTITIONS: f64 = 16.0;
const PARTITION_WRITES: f64 = 1000.0;
/// Writes of that index for one tenant that is claimed.
const DUE_WRITES: f64 = 2.0;

/// How many tenants, and how lively.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Onboarded and active.
    pub tenants: f64,
    /// `POLL_INTERVAL_SECONDS`.
    pub interval: f64,
    /// `POLL_MAX_INTERVAL_SECONDS`; what is below `interval` is the same as `interval`.
    pub max_interval: f64,
    /// Versions to deliver of one tenant in a day.
    pub changes_per_day: f64,
}

impl Load {
    /// Polls of one tenant in a month.
    ///
    /// The pause between polls is a tenth of the time since the last news, within the two intervals; news come evenly.
    pub fn polls(&self) -> f64 {
        let (least, most) = (self.interval, self.max_interval.max(self.interval));
        let between = DAY / self.changes_per_day.max(1.0 / DAYS);
        let lively = between.min(10.0 * least);
        let slowing = between.min(10.0 * most).max(lively);
        let polls = lively / least + 10.0 * (slowing / lively).ln() + (between - slowing) / most;
        MONTH / between * polls
    }

    /// The share of polls in whose overlap something lies that was delivered, if changes come by chance.
    fn share_known(&self, overlap: f64) -> f64 {
        1.0 - (-self.changes_per_day / DAY * overlap).exp()
    }
}

/// One line of the bill.
#[derive(Clone, Debug)]
pub struct Line {
    /// What is paid for.
    pub name: &'static str,
    /// How much of it.
    pub amount: f64,
    /// In what unit.
    pub unit: &'static str,
    /// US dollars.
    pub usd: f64,
}

/// A month.
#[derive(Clone, Debug)]
pub struct Bill {
    /// What it was computed for.
    pub load: Load,
    /// What is paid for.
    pub lines: Vec<Line>,
    /// Calls to Microsoft, for which nothing is paid.
    pub microsoft_calls: f64,
    /// Batches at work at a time, on average while everyone is polled each interval.
    pub concurrency: f64,
    /// The least that a dispatch of all takes, in seconds: what the index of what is due lets pass.
    pub dispatch_floor: f64,
}

impl Bill {
    /// US dollars.
    pub fn total(&self) -> f64 {
        self.lines.iter().map(|line| line.usd).sum()
    }
}

/// What a month costs.
///
/// # Errors
/// The name of a price that the table does not have.
pub fn month(load: Load, measured: &Measured, prices: &Prices, deployment: &Deployment) -> Result<Bill, String> {
    let ticks = MONTH / deployment.tick;
    let changes = load.tenants * load.changes_per_day * DAYS;
    let polls = (load.tenants * load.polls()).max(changes);
    let known = (polls - changes) * load.share_known(deployment.overlap);
    let dispatched = measured.dispatch.counts.since(&measured.dispatch.idle).per(measured.dispatch.tenants);
    let counts = Counts::default()
        .plus(&measured.delivering_poll, changes)
        .plus(&measured.known_poll, known)
        .plus(&measured.quiet_poll, polls - changes - known)
        .plus(&dispatched, polls)
        .plus(&measured.dispatch.idle, ticks);

    let batches = counts.get("fetch.invocations");
    let invocations = batches + ticks;
    let fetch_seconds = changes * seconds_of(&measured.delivering_poll)
        + known * seconds_of(&measured.known_poll)
        + (polls - changes - known) * seconds_of(&measured.quiet_poll);
    let gigabyte_seconds = (fetch_seconds * deployment.fetch_memory
        + counts.get("dispatch.seconds") * deployment.dispatch_memory)
        / 1024.0;
    let idle_receives = POLLERS * MONTH / LONG_POLL;
    // The event source receives and deletes each batch with one request.
    let queue_requests = counts.calls("sqs") + 2.0 * batches + idle_receives;
    let log_bytes = counts.get("fetch.log_bytes") + counts.get("dispatch.log_bytes") + invocations * PLATFORM_LOG;
    let traces = invocations.min(MONTH + TRACED * invocations);
    let stored = changes / DAYS * deployment.retention_days * stored_by_a_change(measured);

    let mut lines = Vec::new();
    let mut line = |name, price: &str, amount: f64, unit, shown: f64| {
        prices.of(price, amount).map(|usd| lines.push(Line { name, amount: amount / shown, unit, usd }))
    };
    let million = 1e6;
    line("Lambda invocations", "lambda_request", invocations, "million", million)?;
    line("Lambda time", "lambda_gigabyte_second", gigabyte_seconds, "million GB-s", million)?;
    line("DynamoDB reads", "dynamodb_read_unit", counts.get("dynamodb.read_units"), "million RRU", million)?;
    line("DynamoDB writes", "dynamodb_write_unit", counts.get("dynamodb.write_units"), "million WRU", million)?;
    line("SQS requests", "sqs_request", queue_requests, "million", million)?;
    line("SQS, fair queue", "sqs_fair_queue_request", counts.calls("sqs"), "million", million)?;
    line("S3 writes", "s3_put", counts.get("s3:PUT"), "million", million)?;
    line("S3 storage, when full", "s3_gigabyte_month", stored / GIGABYTE, "GB", 1.0)?;
    line("EventBridge events", "eventbridge_event", counts.get("events.entries"), "million", million)?;
    line("CloudWatch logs", "logs_gigabyte", log_bytes / GIGABYTE, "GB", 1.0)?;
    line("X-Ray traces, at most", "xray_trace", traces, "million", million)?;
    line("Secrets Manager calls", "secret_request", counts.calls("secretsmanager"), "million", million)?;
    line("KMS calls by the functions", "kms_request", counts.calls("kms"), "million", million)?;
    line("alarms", "alarm", deployment.alarms, "", 1.0)?;
    line("metrics", "metric", METRICS, "", 1.0)?;
    line("dashboard", "dashboard", 1.0, "", 1.0)?;
    line("KMS key", "kms_key", 1.0, "", 1.0)?;
    line("secret", "secret", 1.0, "", 1.0)?;

    let seconds_a_poll = seconds_of(&measured.quiet_poll);
    Ok(Bill {
        load,
        lines,
        microsoft_calls: counts.calls("microsoft"),
        concurrency: load.tenants / load.interval * seconds_a_poll,
        dispatch_floor: load.tenants / DUE_PARTITIONS * DUE_WRITES / PARTITION_WRITES,
    })
}

/// Lambda's time for one poll: what was measured, without the time that moto kept it waiting and with that of AWS instead.
///
/// The polls of a batch run side by side, and the calls of a poll one after the other, so that a batch waits for moto as
/// long as one of its polls.
fn seconds_of(poll: &Counts) -> f64 {
    let waiting = poll.get("aws.seconds") - AWS_LATENCY * poll.calls_to_aws();
    (poll.get("fetch.seconds") - waiting * poll.get("fetch.invocations")).max(0.0)
}

fn stored_by_a_change(measured: &Measured) -> f64 {
    measured.delivering_poll.get("s3.bytes")
}

/// How many tenants a concurrency serves within the interval.
pub fn served(concurrency: f64, interval: f64, measured: &Measured) -> f64 {
    concurrency * interval / seconds_of(&measured.quiet_poll).max(1.0 / float(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_close(one: f64, other: f64) -> bool {
        (one - other).abs() <= 1e-6 * other.abs().max(1e-9)
    }

    fn load(max_interval: f64, changes_per_day: f64) -> Load {
        Load { tenants: 100.0, interval: 60.0, max_interval, changes_per_day }
    }

    fn counts(amounts: &[(&str, f64)]) -> Counts {
        let mut counts = Counts::default();
        for (name, amount) in amounts {
            counts.add(*name, *amount);
        }
        counts
    }

    fn prices() -> Prices {
        serde_json::from_str(include_str!("../prices.json")).unwrap()
    }

    #[test]
    fn a_tenant_is_polled_each_interval_unless_it_may_be_left_alone() {
        assert!(is_close(load(0.0, 10.0).polls(), 43_200.0));
        assert!(is_close(load(60.0, 0.0).polls(), 43_200.0));
        // Two hours between news: 10 polls in the first 600 s, then ever fewer up to 300 s apart, then every 300 s.
        let polls = 10.0 + 10.0 * 5.0_f64.ln() + 4200.0 / 300.0;
        assert!(is_close(load(300.0, 12.0).polls(), 30.0 * 12.0 * polls));
        // So lively that it never slows down.
        assert!(is_close(load(300.0, 200.0).polls(), 43_200.0));
    }

    #[test]
    fn a_bill_adds_up_what_each_kind_of_poll_calls() {
        let measured = Measured {
            quiet_poll: counts(&[("dynamodb.write_units", 2.0), ("fetch.invocations", 0.1), ("fetch.seconds", 0.1)]),
            known_poll: counts(&[("dynamodb.write_units", 2.0), ("fetch.invocations", 0.1), ("fetch.seconds", 0.1)]),
            delivering_poll: counts(&[
                ("dynamodb.write_units", 5.0),
                ("fetch.invocations", 0.1),
                ("fetch.seconds", 0.1),
                ("s3:PUT", 1.0),
                ("s3.bytes", 2000.0),
            ]),
            dispatch: Dispatch {
                tenants: 10,
                counts: counts(&[("dynamodb.write_units", 30.0), ("dynamodb.read_units", 18.0)]),
                idle: counts(&[("dynamodb.read_units", 8.0)]),
            },
            ..Measured::default()
        };
        let bill = month(load(0.0, 10.0), &measured, &prices(), &TEMPLATE).unwrap();
        let amount = |name: &str| bill.lines.iter().find(|line| line.name == name).unwrap().amount;
        let (polls, changes) = (4_320_000.0, 30_000.0);
        assert!(is_close(amount("DynamoDB writes"), (polls * (2.0 + 3.0) + changes * 3.0) / 1e6));
        assert!(is_close(amount("DynamoDB reads"), (polls + 43_200.0 * 8.0) / 1e6));
        assert!(is_close(amount("Lambda invocations"), (polls * 0.1 + 43_200.0) / 1e6));
        // Ten milliseconds for the call to S3, shared by ten polls.
        assert!(is_close(amount("Lambda time"), (polls * 0.1 + changes * 0.1 * 0.01) * 0.5 / 1e6));
        assert!(is_close(amount("S3 writes"), 0.03));
        assert!(is_close(amount("S3 storage, when full"), 1000.0 * 400.0 * 2000.0 / 1e9));
        assert!(is_close(bill.concurrency, 100.0 / 60.0 * 0.1));
        assert!(is_close(served(10.0, 60.0, &measured), 6000.0));
        let sum: f64 = bill.lines.iter().map(|line| line.usd).sum();
        assert!(is_close(bill.total(), sum) && sum > 0.0);
    }

    #[test]
    fn lambda_is_not_billed_for_the_time_of_the_stand_in() {
        let poll = counts(&[
            ("aws.seconds", 1.5),
            ("dynamodb:GetItem", 5.0),
            ("fetch.invocations", 0.1),
            ("fetch.seconds", 0.25),
        ]);
        assert!(is_close(seconds_of(&poll), 0.25 - 0.1 * (1.5 - 0.05)));
    }

    #[test]
    fn a_price_is_for_so_many() {
        let prices = prices();
        assert!(is_close(prices.of("dynamodb_write_unit", 2e6).unwrap(), 1.25));
        assert!(prices.of("gold", 1.0).is_err());
        for (name, price) in &prices.prices {
            assert!(price.usd > 0.0 && price.per > 0.0 && price.source.starts_with("https://"), "{name}");
        }
    }

    #[test]
    fn the_template_says_the_same() {
        let template = include_str!("../../../infra/template.yaml");
        let default_of = |parameter: &str| -> f64 {
            let (_, rest) = template.split_once(&format!("\n  {parameter}:\n")).unwrap();
            let (_, rest) = rest.split_once("Default: ").unwrap();
            rest.lines().next().unwrap().parse().unwrap()
        };
        assert!(is_close(TEMPLATE.maximum_concurrency, default_of("FetchMaximumConcurrency")));
        assert!(is_close(TEMPLATE.overlap, default_of("PollOverlapSeconds")));
        assert!(is_close(TEMPLATE.retention_days, default_of("RetentionDays")));
        assert!(is_close(TEMPLATE.alarms, float(template.matches("Type: AWS::CloudWatch::Alarm").count())));
        let memory_of = |function: &str, otherwise: f64| -> f64 {
            let (_, rest) = template.split_once(&format!("\n  {function}:\n")).unwrap();
            let (properties, _) = rest.split_once("\n  #").unwrap();
            let own = properties.split_once("MemorySize: ").map(|(_, rest)| rest.lines().next().unwrap());
            own.map_or(otherwise, |own| own.parse().unwrap())
        };
        let (_, globals) = template.split_once("\nGlobals:\n").unwrap();
        let (_, globals) = globals.split_once("MemorySize: ").unwrap();
        let global: f64 = globals.lines().next().unwrap().parse().unwrap();
        assert!(is_close(TEMPLATE.fetch_memory, memory_of("IncidentFetch", global)));
        assert!(is_close(TEMPLATE.dispatch_memory, memory_of("IncidentDispatch", global)));
        assert!(template.contains("rate(1 minute)"));
    }
}
