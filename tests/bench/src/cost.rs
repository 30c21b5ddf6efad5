//! The bill of a month, computed from measured counts and list prices.
//!
//! Free tiers, discounts and savings plans are not subtracted. A month has 30 days.

use crate::{
    counts::{Counts, float},
    deployment::Deployment,
    measured::Measured,
    prices::Prices,
};

const DAY_SECONDS: f64 = 86_400.0;
const DAYS_OF_MONTH: f64 = 30.0;
const MONTH_SECONDS: f64 = DAY_SECONDS * DAYS_OF_MONTH;
const GIGABYTE: f64 = 1e9;

/// Metrics that a deployment without failures sends in every hour, by which CloudWatch bills them: twelve of the deployment
/// (`Due`, `Queued`, `Polled`, `Delivered`, `LagSeconds`, `SweepMissing`, `SweepAgeSeconds`, `TokenCacheHits`,
/// `TokenRequests`, `TokenFailures`, `TokensIssued`, `CredentialDaysLeft`) and the `ColdStarts` of two functions.
const METRICS: f64 = 14.0;
/// Seconds between two writes of a quiet tenant's progress, and the shortest stretched interval.
const QUIET_WRITE_SECONDS: f64 = 300.0;
/// Messages of one request to SQS, at most. Lambda receives and deletes a batch by several requests.
const MESSAGES_OF_A_REQUEST: f64 = 10.0;
/// Bytes of one request to Microsoft that leave AWS, with its headers and an access token of two kilobytes. An estimate.
const REQUEST_BYTES: f64 = 3_000.0;
/// Bytes that Lambda itself logs for one invocation: start, end and report as JSON. An estimate.
const PLATFORM_LOG_BYTES: f64 = 900.0;
/// Long polls that Lambda keeps open at an idle queue, and the duration of one.
/// <https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-scaling.html>
const POLLERS: f64 = 5.0;
const LONG_POLL_SECONDS: f64 = 20.0;
/// X-Ray's default sampling rule: one trace per second, and this share of all further requests.
const SAMPLED_SHARE: f64 = 0.05;
/// Seconds for which a process uses a token: an hour, less the margin before its end.
const TOKEN_SECONDS: f64 = 3_300.0;
/// Seconds for which a process keeps the app credential.
const CREDENTIAL_SECONDS: f64 = 300.0;
/// Duration of a call to AWS in AWS. An assumption that replaces the duration on the machine of the measurement.
const AWS_CALL_SECONDS: f64 = 0.01;

/// The number of tenants and their activity.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Number of active tenants.
    pub tenants: f64,
    /// The value of `POLL_INTERVAL_SECONDS`.
    pub interval: f64,
    /// The value of `POLL_MAX_INTERVAL_SECONDS`. Below `interval` it means `interval`.
    pub max_interval: f64,
    /// Versions that one tenant has to deliver in a day.
    pub changes_per_day: f64,
}

impl Load {
    /// Returns the number of polls of one tenant in a month.
    pub fn polls(&self) -> f64 {
        let (regular, stretched) = self.regular_and_stretched_polls();
        regular + stretched
    }

    /// Returns the number of polls of one tenant in a month at the shortest interval, and of those at longer ones.
    ///
    /// The time between two polls is a tenth of the time since the last change, where that is neither shorter than the
    /// shortest stretched interval nor longer than the longest one. Changes are assumed to be spread evenly.
    fn regular_and_stretched_polls(&self) -> (f64, f64) {
        let (min, max) = (self.interval, self.max_interval.max(self.interval));
        let between_changes = DAY_SECONDS / self.changes_per_day.max(1.0 / DAYS_OF_MONTH);
        if max <= min {
            return (MONTH_SECONDS / min, 0.0);
        }
        // After a change the interval is the shortest one, then it grows, then it is the longest one.
        let growth_starts = between_changes.min(10.0 * QUIET_WRITE_SECONDS.min(max).max(min));
        let growth_ends = between_changes.min(10.0 * max).max(growth_starts);
        let stretched = 10.0 * (growth_ends / growth_starts).ln() + (between_changes - growth_ends) / max;
        let periods = MONTH_SECONDS / between_changes;
        (periods * growth_starts / min, periods * stretched)
    }

    /// Returns the share of polls whose overlap contains a delivered version, for changes at random times.
    fn share_with_delivered_version(&self, overlap: f64) -> f64 {
        1.0 - (-self.changes_per_day / DAY_SECONDS * overlap).exp()
    }
}

/// One line of the bill.
#[derive(Clone, Debug)]
pub struct Line {
    /// The service and the kind of use, such as "SQS requests".
    pub name: &'static str,
    /// The amount of use in `unit`.
    pub amount: f64,
    /// The unit of `amount`, such as "million"; empty for a plain number.
    pub unit: &'static str,
    /// The price of this amount in US dollars.
    pub usd: f64,
}

/// The bill of a month.
#[derive(Clone, Debug)]
pub struct Bill {
    /// The load that the bill is computed for.
    pub load: Load,
    /// One line for each kind of use.
    pub lines: Vec<Line>,
    /// Calls to Microsoft, which cost nothing.
    pub microsoft_calls: f64,
    /// The mean number of batches that are processed at the same time, with every tenant polled in each interval.
    pub concurrency: f64,
}

impl Bill {
    /// Returns the lines that cost most, the dearest first.
    pub fn dearest(&self, number: usize) -> Vec<&Line> {
        let mut lines: Vec<&Line> = self.lines.iter().collect();
        lines.sort_by(|one, other| other.usd.total_cmp(&one.usd));
        lines.truncate(number);
        lines
    }

    /// Returns the sum of all lines in US dollars.
    pub fn total(&self) -> f64 {
        self.lines.iter().map(|line| line.usd).sum()
    }
}

/// Computes the bill of a month.
///
/// # Errors
/// The table of prices lacks a price.
pub fn month(load: Load, measured: &Measured, prices: &Prices, deployment: &Deployment) -> Result<Bill, String> {
    let ticks = MONTH_SECONDS / deployment.tick;
    let changes = load.tenants * load.changes_per_day * DAYS_OF_MONTH;
    let polls = (load.tenants * load.polls()).max(changes);
    let stretched = load.tenants * load.regular_and_stretched_polls().1;
    // A quiet tenant's progress is written once in a while. A poll that delivers writes it in any case.
    let written = (polls - stretched - changes).max(0.0) * (load.interval / QUIET_WRITE_SECONDS).min(1.0);
    let overlapping = (polls - changes) * load.share_with_delivered_version(deployment.overlap);
    // Each process has tokens of its own. A tenant's polls are spread over as many processes as one tick needs.
    let processes = f64::from(deployment.maximum_concurrency)
        .min((load.tenants * measured.quiet_poll.get("fetch.invocations")).ceil().max(1.0));
    let tokens = polls.min(load.tenants * processes * MONTH_SECONDS / TOKEN_SECONDS);
    let dispatched = measured.dispatch.counts.since(&measured.dispatch.idle).per(measured.dispatch.tenants);
    let counts = Counts::default()
        .plus(&measured.delivering_poll, changes)
        .plus(&measured.known_poll, overlapping)
        .plus(&measured.quiet_poll, polls - changes - overlapping)
        .plus(&measured.new_process_poll.since(&measured.quiet_poll), tokens)
        .plus(&measured.written_poll.since(&measured.quiet_poll), written)
        .plus(&measured.stretched_poll.since(&measured.quiet_poll), stretched)
        .plus(&dispatched, polls)
        .plus(&measured.dispatch.idle, ticks);

    let batches = counts.get("fetch.invocations");
    let invocations = batches + ticks;
    let fetch_seconds = changes * seconds_of(&measured.delivering_poll)
        + overlapping * seconds_of(&measured.known_poll)
        + (polls - changes - overlapping) * seconds_of(&measured.quiet_poll);
    let gigabyte_seconds = (fetch_seconds * deployment.fetch_memory
        + counts.get("dispatch.seconds") * deployment.dispatch_memory)
        / 1024.0;
    let idle_receives = POLLERS * MONTH_SECONDS / LONG_POLL_SECONDS;
    let queue_requests = counts.calls("sqs") + 2.0 * (polls / MESSAGES_OF_A_REQUEST).max(batches) + idle_receives;
    let log_bytes = counts.get("fetch.log_bytes") + counts.get("dispatch.log_bytes") + invocations * PLATFORM_LOG_BYTES;
    let traces = invocations.min(MONTH_SECONDS + SAMPLED_SHARE * invocations);
    let secret_requests = counts.calls("secretsmanager").max(processes * MONTH_SECONDS / CREDENTIAL_SECONDS);
    let stored = changes / DAYS_OF_MONTH * deployment.retention_days * measured.delivering_poll.get("s3.bytes");

    let mut lines = Vec::new();
    let mut line = |name, price: &str, amount: f64, unit, unit_size: f64| {
        prices.of(price, amount).map(|usd| lines.push(Line { name, amount: amount / unit_size, unit, usd }))
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
    line("traffic to Microsoft", "egress_gigabyte", counts.calls("microsoft") * REQUEST_BYTES / GIGABYTE, "GB", 1.0)?;
    line("X-Ray traces, at most", "xray_trace", traces, "million", million)?;
    line("Secrets Manager calls", "secret_request", secret_requests, "million", million)?;
    line("KMS calls by the functions", "kms_request", counts.calls("kms"), "million", million)?;
    line("alarms", "alarm", deployment.alarms, "", 1.0)?;
    line("metrics", "metric", METRICS, "", 1.0)?;
    line("dashboard", "dashboard", 1.0, "", 1.0)?;
    line("KMS key", "kms_key", 1.0, "", 1.0)?;
    line("secret", "secret", 1.0, "", 1.0)?;

    Ok(Bill {
        load,
        lines,
        microsoft_calls: counts.calls("microsoft"),
        concurrency: load.tenants / load.interval * seconds_of(&measured.quiet_poll),
    })
}

/// Returns Lambda's time for one poll: the measured time, with the duration of calls in AWS in place of the measured one.
///
/// The polls of a batch run in parallel, and the calls of a poll in sequence. So a batch waits for AWS as long as one of
/// its polls.
fn seconds_of(poll: &Counts) -> f64 {
    let excess = poll.get("aws.seconds") - AWS_CALL_SECONDS * poll.calls_to_aws();
    (poll.get("fetch.seconds") - excess * poll.get("fetch.invocations")).max(0.0)
}

/// Returns the number of tenants that a concurrency can poll within an interval in seconds.
pub fn tenants_served(concurrency: f64, interval: f64, measured: &Measured) -> f64 {
    concurrency * interval / seconds_of(&measured.quiet_poll).max(1.0 / float(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{deployment::TEMPLATE, measured::Dispatch};

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
    fn quiet_tenant_is_polled_less_often_up_to_the_maximum() {
        assert!(is_close(load(0.0, 10.0).polls(), 43_200.0));
        assert!(is_close(load(60.0, 0.0).polls(), 43_200.0));
        // Two hours between changes: 50 polls in the first 3,000 s, then one every 300 s.
        assert!(is_close(load(300.0, 12.0).polls(), 30.0 * 12.0 * (50.0 + 4200.0 / 300.0)));
        // With 600 s at most there are fewer and fewer in between.
        let polls = 50.0 + 10.0 * 2.0_f64.ln() + 1200.0 / 600.0;
        assert!(is_close(load(600.0, 12.0).polls(), 30.0 * 12.0 * polls));
        // Changes so often that the interval never grows.
        assert!(is_close(load(300.0, 200.0).polls(), 43_200.0));
    }

    #[test]
    fn bill_adds_up_the_calls_of_each_kind_of_poll() {
        let measured = Measured {
            quiet_poll: counts(&[("fetch.invocations", 0.1), ("fetch.seconds", 0.1), ("microsoft:incidents", 1.0)]),
            new_process_poll: counts(&[
                ("dynamodb.read_units", 1.0),
                ("fetch.invocations", 0.1),
                ("fetch.seconds", 0.1),
                ("microsoft:incidents", 1.0),
                ("microsoft:token", 1.0),
            ]),
            written_poll: counts(&[
                ("dynamodb.write_units", 1.0),
                ("fetch.invocations", 0.1),
                ("fetch.seconds", 0.1),
                ("microsoft:incidents", 1.0),
            ]),
            stretched_poll: counts(&[
                ("dynamodb.write_units", 3.0),
                ("fetch.invocations", 0.1),
                ("fetch.seconds", 0.1),
                ("microsoft:incidents", 1.0),
            ]),
            known_poll: counts(&[("fetch.invocations", 0.1), ("fetch.seconds", 0.1), ("microsoft:incidents", 1.0)]),
            delivering_poll: counts(&[
                ("dynamodb.write_units", 5.0),
                ("fetch.invocations", 0.1),
                ("fetch.seconds", 0.1),
                ("s3:PUT", 1.0),
                ("s3.bytes", 2000.0),
                ("microsoft:incidents", 1.0),
            ]),
            dispatch: Dispatch {
                tenants: 10,
                counts: counts(&[("sqs:SendMessageBatch", 1.0), ("dynamodb.read_units", 18.0)]),
                idle: counts(&[("dynamodb.read_units", 8.0)]),
            },
            ..Measured::default()
        };
        let bill = month(load(0.0, 10.0), &measured, &prices(), &TEMPLATE).unwrap();
        let amount = |name: &str| bill.lines.iter().find(|line| line.name == name).unwrap().amount;
        let (polls, changes) = (4_320_000.0, 30_000.0);
        // A tick has ten batches, which ten processes take. Each asks for a token of each tenant every 55 minutes.
        let tokens = 10.0 * 100.0 * MONTH_SECONDS / 3_300.0;
        // One quiet poll in five writes.
        assert!(is_close(amount("DynamoDB writes"), ((polls - changes) * 0.2 + changes * 5.0) / 1e6));
        assert!(is_close(amount("traffic to Microsoft"), (polls + tokens) * 3_000.0 / 1e9));
        assert!(is_close(amount("DynamoDB reads"), (polls + tokens + 43_200.0 * 8.0) / 1e6));
        assert!(is_close(amount("Lambda invocations"), (polls * 0.1 + 43_200.0) / 1e6));
        // Ten milliseconds for the call to S3, shared by ten polls.
        assert!(is_close(amount("Lambda time"), (polls * 0.1 + changes * 0.1 * 0.01) * 0.5 / 1e6));
        assert!(is_close(amount("S3 writes"), 0.03));
        assert!(is_close(amount("S3 storage, when full"), 1000.0 * 400.0 * 2000.0 / 1e9));
        assert!(is_close(bill.concurrency, 100.0 / 60.0 * 0.1));
        assert!(is_close(tenants_served(10.0, 60.0, &measured), 6000.0));
        let dearest: Vec<f64> = bill.dearest(3).iter().map(|line| line.usd).collect();
        assert!(dearest.len() == 3 && dearest.is_sorted_by(|one, other| one >= other));
        let stretched = month(load(900.0, 0.0), &measured, &prices(), &TEMPLATE).unwrap();
        let amount = |name: &str| stretched.lines.iter().find(|line| line.name == name).unwrap().amount;
        // A month without a change: one regular poll a minute for 3,000 s, then all are stretched.
        let polls = load(900.0, 0.0).polls();
        assert!(polls < 43_200.0 / 14.0);
        assert!(is_close(amount("DynamoDB writes"), 100.0 * ((polls - 50.0) * 3.0 + 50.0 * 0.2) / 1e6));
        let sum: f64 = bill.lines.iter().map(|line| line.usd).sum();
        assert!(is_close(bill.total(), sum) && sum > 0.0);
    }

    #[test]
    fn lambda_time_has_the_duration_of_calls_in_aws() {
        let poll = counts(&[
            ("aws.seconds", 1.5),
            ("dynamodb:GetItem", 5.0),
            ("fetch.invocations", 0.1),
            ("fetch.seconds", 0.25),
        ]);
        assert!(is_close(seconds_of(&poll), 0.25 - 0.1 * (1.5 - 0.05)));
    }
}
