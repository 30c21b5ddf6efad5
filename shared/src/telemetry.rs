//! Logs as one flat JSON object a line on standard output, and metrics in CloudWatch's embedded format (EMF) among them.
//!
//! `lambda_runtime` has a subscriber of its own. It writes no timestamp, and Lambda then labels every line INFO.

use std::{
    cell::Cell,
    fmt,
    io::Write,
    panic,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::{Map, Value, json};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt, registry::LookupSpan};

use crate::{
    clock::Clock,
    error::{Error, Result},
    tenant::TenantId,
};

/// The longest text of a field, in characters. A longer one is cut.
const MAX_FIELD_CHARS: usize = 2048;

/// The CloudWatch namespace of all metrics.
const NAMESPACE: &str = "Mandate";

/// The dimension of metrics about a whole deployment. A deployment has one table, whose name all its functions know. So
/// the metrics of two deployments in one account stay apart, and those of one deployment add up.
const DEPLOYMENT_DIMENSION: &str = "TableName";

/// The dimension of metrics about one function.
const FUNCTION_DIMENSION: &str = "FunctionName";

/// The target of audit lines and metrics, which are written at any log level.
pub const RECORD: &str = "record";

/// The runtime's span around each invocation. It holds the request's id before our own span is open.
const RUNTIME_SPAN: &str = "lambda_runtime::layers::trace";

/// The target by which the runtime repeats, always as an error, the response of a function or its panic.
const RUNTIME_PANIC_TARGET: &str = "lambda_runtime::layers::panic";

/// The output of all lines, shared by all threads.
type Sink = Arc<Mutex<dyn Write + Send>>;

/// The values of the dimensions of our metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct MetricDimensions {
    /// The name of the deployment's table.
    pub(crate) table_name: String,
    /// The name of the function in Lambda.
    pub(crate) function_name: String,
}

thread_local! {
    /// The last line of this thread was written to the output.
    static LINE_WRITTEN: Cell<bool> = const { Cell::new(false) };
}

/// Starts logging to standard output for the whole process.
pub(crate) fn start(level: LevelFilter, dimensions: MetricDimensions) {
    let sink: Sink = Arc::new(Mutex::new(std::io::stdout()));
    let lines = JsonLines::new(level, Clock::system(), sink).with_dimensions(dimensions);
    if tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines)).is_ok() {
        // The payload of a panic may hold anything. Its place in the source is enough to find the cause.
        panic::set_hook(Box::new(|info| {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            tracing::error!(place, "panicked");
        }));
    }
}

/// A `tracing` layer that writes events as JSON lines, with the fields of the spans around them.
pub struct JsonLines {
    level: LevelFilter,
    clock: Clock,
    sink: Sink,
    dimensions: MetricDimensions,
}

impl JsonLines {
    /// A layer that writes lines up to `level` to `sink`.
    pub fn new(level: LevelFilter, clock: Clock, sink: Sink) -> Self {
        Self { level, clock, sink, dimensions: MetricDimensions::default() }
    }

    /// The same layer, with these dimensions on metrics.
    fn with_dimensions(self, dimensions: MetricDimensions) -> Self {
        Self { dimensions, ..self }
    }

    fn write(&self, line: &Map<String, Value>) {
        let written = serde_json::to_vec(line).map_err(std::io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
            sink.write_all(&text).and_then(|()| sink.flush())
        });
        // A failed line cannot be logged. `write_audit` asks for the outcome.
        LINE_WRITTEN.set(written.is_ok());
    }
}

struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == EMF_FIELD {
            if let Ok(Value::Object(metrics)) = serde_json::from_str(value) {
                self.0.extend(metrics);
            }
            return;
        }
        let cut = value.char_indices().nth(MAX_FIELD_CHARS).map_or(value.len(), |(at, _)| at);
        self.0.insert(field.name().into(), json!(value[..cut]));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), json!(value));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        // These spans hold the ids that every line must have, at any log level.
        let names = is_ours(metadata.target()) || metadata.target() == RUNTIME_SPAN;
        if metadata.target() == RECORD || (metadata.is_span() && names) {
            return true;
        }
        if metadata.target() == RUNTIME_PANIC_TARGET {
            return false;
        }
        // Below a warning, lines of libraries may hold secrets.
        let most = if is_ours(metadata.target()) { self.level } else { self.level.min(LevelFilter::WARN) };
        *metadata.level() <= most
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut fields = Fields(Map::new());
        attributes.record(&mut fields);
        if attributes.metadata().target() == RUNTIME_SPAN {
            fields = Fields(fields.0.remove("requestId").map(|id| ("request_id".into(), id)).into_iter().collect());
        }
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = Map::new();
        line.insert("timestamp".into(), json!(format!("{:.3}", self.clock.now())));
        line.insert("level".into(), json!(level_name(*event.metadata().level())));
        line.insert("message".into(), Value::Null);
        for span in context.event_scope(event).into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            if let Some(Fields(fields)) = span.extensions().get::<Fields>() {
                line.extend(fields.clone());
            }
        }
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        line.extend(fields.0);
        if line.contains_key(EMF_HEADER) {
            line.insert(DEPLOYMENT_DIMENSION.into(), json!(self.dimensions.table_name));
            line.insert(FUNCTION_DIMENSION.into(), json!(self.dimensions.function_name));
        }
        self.write(&line);
    }
}

fn is_ours(target: &str) -> bool {
    let root = target.split("::").next().unwrap_or(target);
    matches!(
        root,
        "shared"
            | "consent_callback"
            | "token_issuance"
            | "incident_fetch"
            | "incident_dispatch"
            | "tenant_admin"
            | "secret_rotation"
    )
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARN",
        Level::INFO => "INFO",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "TRACE",
    }
}

/// The field by which metrics pass through `tracing`.
const EMF_FIELD: &str = "embedded_metrics";

/// The member by which CloudWatch recognises metrics in a line.
const EMF_HEADER: &str = "_aws";

/// Metrics of the deployment in CloudWatch's embedded metric format, for the field `embedded_metrics` of a log line. Each
/// has a name, a CloudWatch unit and a value.
///
/// The tenant is a property to search by. As a dimension it would be billed as a metric of its own for each tenant.
pub fn emf(now: jiff::Timestamp, tenant_id: Option<&TenantId>, values: &[(&str, &str, f64)]) -> String {
    emf_by(DEPLOYMENT_DIMENSION, now, tenant_id, values)
}

fn emf_by(dimension: &str, now: jiff::Timestamp, tenant_id: Option<&TenantId>, values: &[(&str, &str, f64)]) -> String {
    let definitions: Vec<Value> = values.iter().map(|(name, unit, _)| json!({"Name": name, "Unit": unit})).collect();
    let mut line = Map::new();
    line.insert(
        EMF_HEADER.into(),
        json!({"Timestamp": now.as_millisecond(),
               "CloudWatchMetrics": [{"Namespace": NAMESPACE, "Dimensions": [[dimension]], "Metrics": definitions}]}),
    );
    if let Some(tenant) = tenant_id {
        line.insert("tenant_id".into(), json!(tenant));
    }
    for (name, _, value) in values {
        line.insert((*name).into(), json!(value));
    }
    Value::Object(line).to_string()
}

/// Writes metrics of the deployment on a line of their own, as [`emf`] has them.
pub fn metrics(now: jiff::Timestamp, tenant_id: Option<&TenantId>, values: &[(&str, &str, f64)]) {
    let embedded_metrics = emf(now, tenant_id, values);
    tracing::info!(target: RECORD, embedded_metrics, "metrics");
}

/// Counts a failure of our own that Lambda regards as a success: a response with 500, or a message that is returned to
/// the queue. It counts by function, so that a new release of the function can be rolled back.
pub fn internal_failure(now: jiff::Timestamp) {
    let embedded_metrics = emf_by(FUNCTION_DIMENSION, now, None, &[("InternalFailure", "Count", 1.0)]);
    tracing::info!(target: RECORD, embedded_metrics, "metrics");
}

/// Writes an audit line that must exist before the caller continues.
///
/// # Errors
/// [`Error::Internal`] if `line` wrote no line to the output.
pub fn write_audit(line: impl FnOnce()) -> Result<()> {
    LINE_WRITTEN.set(false);
    line();
    if LINE_WRITTEN.get() { Ok(()) } else { Err(Error::Internal("an audit line could not be written".into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(level: LevelFilter, work: impl FnOnce()) -> Vec<Value> {
        let buffer = Arc::new(Mutex::new(Vec::<u8>::new()));
        let clock = Clock::by_hand("2026-11-22T10:00:00.123Z".parse().unwrap());
        let dimensions =
            MetricDimensions { table_name: "mandate-prod-table".into(), function_name: "mandate-prod-fetch".into() };
        let layer = JsonLines::new(level, clock, buffer.clone()).with_dimensions(dimensions);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        let text = String::from_utf8(buffer.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn line_is_flat_and_has_the_fields_of_its_spans() {
        let lines = lines(LevelFilter::INFO, || {
            let _request = tracing::info_span!("invocation", request_id = "r-1").entered();
            let _tenant = tracing::info_span!("tenant", tenant_id = "t-1").entered();
            tracing::warn!(audit = true, delivered = 3_u64, "a\r\nb");
            tracing::debug!("not shown");
        });
        assert_eq!(
            lines,
            [
                json!({"timestamp": "2026-11-22T10:00:00.123Z", "level": "WARN", "message": "a\r\nb", "request_id": "r-1",
                    "tenant_id": "t-1", "audit": true, "delivered": 3})
            ]
        );
    }

    #[test]
    fn metrics_are_embedded_with_the_tenant_as_a_property() {
        let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let lines = lines(LevelFilter::INFO, || {
            let _request = tracing::info_span!("invocation", request_id = "r-1").entered();
            metrics("2026-11-22T10:00:00Z".parse().unwrap(), Some(&tenant), &[("Delivered", "Count", 2.0)]);
        });
        assert_eq!(lines[0]["Delivered"], 2.0);
        assert_eq!(lines[0]["tenant_id"], tenant.to_string());
        assert_eq!(lines[0]["_aws"]["CloudWatchMetrics"][0]["Namespace"], "Mandate");
        assert_eq!(lines[0]["request_id"], "r-1");
    }

    #[test]
    fn metrics_count_by_deployment_and_failures_by_function() {
        let now = "2026-11-22T10:00:00Z".parse().unwrap();
        let lines = lines(LevelFilter::ERROR, || {
            metrics(now, None, &[("Delivered", "Count", 2.0)]);
            internal_failure(now);
        });
        let dimensions = |line: &Value| line["_aws"]["CloudWatchMetrics"][0]["Dimensions"].clone();
        assert_eq!(dimensions(&lines[0]), json!([["TableName"]]));
        assert_eq!(lines[0]["TableName"], "mandate-prod-table");
        assert_eq!(dimensions(&lines[1]), json!([["FunctionName"]]));
        assert_eq!(
            (&lines[1]["FunctionName"], &lines[1]["InternalFailure"]),
            (&json!("mandate-prod-fetch"), &json!(1.0))
        );
    }

    #[test]
    fn audit_line_that_is_not_written_is_an_error() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let issued = || write_audit(|| tracing::info!(target: RECORD, audit = true, "issued"));
        lines(LevelFilter::ERROR, || assert_eq!(issued(), Ok(())));
        let full = JsonLines::new(LevelFilter::TRACE, Clock::system(), Arc::new(Mutex::new(Full)));
        let outcome = tracing::subscriber::with_default(tracing_subscriber::registry().with(full), issued);
        assert!(matches!(outcome, Err(Error::Internal(_))));
        let unwritten = tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::new(), issued);
        assert!(unwritten.is_err(), "a line without a subscriber");
    }

    #[test]
    fn audit_and_metrics_are_written_at_any_level() {
        let lines = lines(LevelFilter::ERROR, || {
            metrics("2026-11-22T10:00:00Z".parse().unwrap(), None, &[("Delivered", "Count", 2.0)]);
            tracing::info!(target: RECORD, audit = true, "issued");
            tracing::info!("not shown");
        });
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["audit"], true);
    }

    #[test]
    fn runtime_lines_name_the_request_and_repeat_nothing() {
        let lines = lines(LevelFilter::TRACE, || {
            let _invoke =
                tracing::info_span!(target: RUNTIME_SPAN, "invoke", requestId = "r-1", xrayTraceId = "x").entered();
            tracing::error!(target: "lambda_runtime::layers::api_response", "not read");
            tracing::error!(target: RUNTIME_PANIC_TARGET, "Diagnostic");
        });
        assert_eq!(
            lines,
            [
                json!({"timestamp": "2026-11-22T10:00:00.123Z", "level": "ERROR", "message": "not read", "request_id": "r-1"})
            ]
        );
    }

    #[test]
    fn libraries_are_quiet_below_a_warning_at_any_level() {
        let lines = lines(LevelFilter::TRACE, || {
            tracing::trace!(target: "aws_smithy_runtime", "body");
            tracing::warn!(target: "hyper", "shown");
            tracing::trace!("ours");
        });
        let messages: Vec<_> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
        assert_eq!(messages, ["shown", "ours"]);
    }
}
