//! Metrics in CloudWatch's embedded format (EMF), collected for the one line that an invocation has for them.
//! <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

/// The CloudWatch namespace of all metrics.
const NAMESPACE: &str = "Mandate";

/// The most values of one metric in a line.
const MAX_VALUES_PER_LINE: usize = 100;

/// A value of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    pub(super) name: &'static str,
    unit: Unit,
    pub(super) value: f64,
    dimensions: DimensionSets,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// The values of one invocation add up.
    Count,
    /// Each value counts for percentiles.
    Seconds,
    /// Each value counts for itself.
    None,
}

impl Unit {
    /// CloudWatch's name of it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Count => "Count",
            Self::Seconds => "Seconds",
            Self::None => "None",
        }
    }
}

/// The dimensions that CloudWatch keeps a metric by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DimensionSets {
    /// By deployment, which has one table, whose name all its functions know. So the metrics of two deployments in one
    /// account stay apart, and those of one deployment add up.
    Deployment,
    /// By function.
    Function,
    /// By function, and by each version of it.
    FunctionVersion,
}

impl DimensionSets {
    const ALL: [Self; 3] = [Self::Deployment, Self::Function, Self::FunctionVersion];

    fn names(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Deployment => &[&["TableName"]],
            Self::Function => &[&["FunctionName"]],
            Self::FunctionVersion => &[&["FunctionName"], &["FunctionName", "FunctionVersion"]],
        }
    }
}

impl Metric {
    /// A count of something in the deployment.
    #[expect(clippy::cast_precision_loss, reason = "a metric")]
    pub fn count(name: &'static str, count: u64) -> Self {
        Self { name, unit: Unit::Count, value: count as f64, dimensions: DimensionSets::Deployment }
    }

    /// A time in whole seconds.
    #[expect(clippy::cast_precision_loss, reason = "a metric")]
    pub fn seconds(name: &'static str, time: SignedDuration) -> Self {
        Self { name, unit: Unit::Seconds, value: time.as_secs() as f64, dimensions: DimensionSets::Deployment }
    }

    /// The same metric, kept by other dimensions.
    pub(super) fn by(self, dimensions: DimensionSets) -> Self {
        Self { dimensions, ..self }
    }

    /// A value that does not add up.
    pub fn gauge(name: &'static str, value: f64) -> Self {
        Self { name, unit: Unit::None, value, dimensions: DimensionSets::Deployment }
    }
}

/// The metrics of one invocation.
#[derive(Debug, Default)]
pub(super) struct InvocationMetrics {
    pub(super) series: Vec<Series>,
    /// Further fields of the line.
    pub(super) properties: Map<String, Value>,
}

/// The values of one metric.
#[derive(Debug)]
pub(super) struct Series {
    name: &'static str,
    unit: Unit,
    dimensions: DimensionSets,
    values: Vec<f64>,
}

impl InvocationMetrics {
    pub(super) fn add(&mut self, metric: Metric) {
        let Metric { name, unit, value, dimensions } = metric;
        match self.series.iter_mut().find(|series| series.name == name) {
            Some(Series { values, .. }) if unit == Unit::Count => values.iter_mut().for_each(|sum| *sum += value),
            Some(series) => series.values.push(value),
            None => self.series.push(Series { name, unit, dimensions, values: vec![value] }),
        }
    }

    /// Takes the fields of one line: the values, and the member by which CloudWatch recognises them.
    pub(super) fn take_line(&mut self, now: Timestamp) -> Map<String, Value> {
        let mut line = Map::new();
        let mut directives = Vec::new();
        for dimensions in DimensionSets::ALL {
            let of_these = self.series.iter().filter(|series| series.dimensions == dimensions);
            let definitions: Vec<Value> =
                of_these.map(|series| json!({"Name": series.name, "Unit": series.unit.as_str()})).collect();
            if !definitions.is_empty() {
                directives
                    .push(json!({"Namespace": NAMESPACE, "Dimensions": dimensions.names(), "Metrics": definitions}));
            }
        }
        line.insert("_aws".into(), json!({"Timestamp": now.as_millisecond(), "CloudWatchMetrics": directives}));
        for series in &mut self.series {
            let rest = series.values.split_off(series.values.len().min(MAX_VALUES_PER_LINE));
            let values = std::mem::replace(&mut series.values, rest);
            line.insert(series.name.into(), if let [one] = values[..] { json!(one) } else { json!(values) });
        }
        self.series.retain(|series| !series.values.is_empty());
        line
    }
}
