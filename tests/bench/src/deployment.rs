//! The values of `infra/template.yaml` that the bill depends on.

use std::time::Duration;

/// The size of a deployment. A test compares [`TEMPLATE`] with the template.
#[derive(Clone, Copy, Debug)]
pub struct Deployment {
    /// Memory of `incident-fetch`, in megabytes.
    pub fetch_memory: f64,
    /// Memory of `incident-dispatch`, in megabytes.
    pub dispatch_memory: f64,
    /// Seconds between two ticks of the schedule.
    pub tick: f64,
    /// The default of `FetchMaximumConcurrency`: batches of the queue that are processed at the same time.
    pub maximum_concurrency: u32,
    /// Messages of a batch of that queue, at most.
    pub batch: usize,
    /// The time for which a batch waits for more messages.
    pub batch_window: Duration,
    /// The default of `POLL_OVERLAP_SECONDS`.
    pub overlap: f64,
    /// Days for which delivered objects are kept.
    pub retention_days: f64,
    /// Number of metrics that CloudWatch alarms evaluate. Each is billed.
    pub alarms: f64,
}

/// The values of `infra/template.yaml` with its default parameters.
pub const TEMPLATE: Deployment = Deployment {
    fetch_memory: 512.0,
    dispatch_memory: 256.0,
    tick: 60.0,
    maximum_concurrency: 10,
    batch: 50,
    batch_window: Duration::from_secs(2),
    overlap: 900.0,
    retention_days: 400.0,
    alarms: 67.0,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::float;

    fn is_close(one: f64, other: f64) -> bool {
        (one - other).abs() <= 1e-6 * other.abs()
    }

    #[test]
    fn values_are_those_of_the_template() {
        let template = include_str!("../../../infra/template.yaml");
        let default_of = |parameter: &str| -> f64 {
            let (_, rest) = template.split_once(&format!("\n  {parameter}:\n")).unwrap();
            let (_, rest) = rest.split_once("Default: ").unwrap();
            rest.lines().next().unwrap().parse().unwrap()
        };
        assert!(is_close(TEMPLATE.maximum_concurrency.into(), default_of("FetchMaximumConcurrency")));
        assert!(template.contains(&format!("BatchSize: {}\n", TEMPLATE.batch)));
        let window = TEMPLATE.batch_window.as_secs();
        assert!(template.contains(&format!("MaximumBatchingWindowInSeconds: {window}\n")));
        assert!(is_close(TEMPLATE.overlap, default_of("PollOverlapSeconds")));
        assert!(is_close(TEMPLATE.retention_days, default_of("RetentionDays")));
        let resources = template.split("\n\n").filter(|resource| !resource.contains("\n    Condition: "));
        let created: String = resources.collect();
        let count = |text: &str| float(created.matches(text).count());
        let alarms_on_results = count("ReturnData: true");
        let alarms = count("Type: AWS::CloudWatch::Alarm") - alarms_on_results + count("MetricStat:");
        assert!(is_close(TEMPLATE.alarms, alarms), "{alarms}");
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
