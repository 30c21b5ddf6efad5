//! Logs: one flat JSON object a line on standard output; metrics in CloudWatch's embedded format on the same stream.
//!
//! `lambda_runtime`'s own subscriber writes no timestamp, and Lambda then labels every line INFO; hence this one.

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

/// The longest text of a field; longer ones are cut.
const LONGEST: usize = 2048;

/// CloudWatch namespace of all metrics.
const NAMESPACE: &str = "Mandate";

/// The dimension of what is true of a whole deployment. Each has one table of its own, and all its functions know the
/// name; so the metrics of two deployments in one account stay apart, and those of one come together.
const DEPLOYMENT: &str = "TableName";

/// The dimension of what is true of one function.
const FUNCTION: &str = "FunctionName";

/// The target of events that are records, not remarks: audit and metrics. They are written at any level.
pub const RECORD: &str = "record";

/// The runtime's span around each invocation, which holds the request's id where ours is not open yet.
const RUNTIME_SPAN: &str = "lambda_runtime::layers::trace";

/// Where the runtime says once more, and always as an error, what a function answered or where it panicked.
const RUNTIME_REPEATS: &str = "lambda_runtime::layers::panic";

/// Where lines go.
pub type Sink = Arc<Mutex<dyn Write + Send>>;

/// Whose metrics these are: the values of their dimensions.
#[derive(Clone, Debug, Default)]
pub struct MetricDimensions {
    /// The deployment's table.
    pub table_name: String,
    /// The function, as Lambda calls it.
    pub function_name: String,
}

thread_local! {
    /// Whether the last line of this thread went out.
    static WRITTEN: Cell<bool> = const { Cell::new(false) };
}

/// Starts logging to standard output for the whole process.
pub fn start(level: LevelFilter, origin: MetricDimensions) {
    let sink: Sink = Arc::new(Mutex::new(std::io::stdout()));
    let lines = JsonLines::new(level, Clock::system(), sink).of(origin);
    if tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines)).is_ok() {
        // The payload of a panic may hold anything; its place is enough to find the cause.
        panic::set_hook(Box::new(|info| {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            tracing::error!(place, "panicked");
        }));
    }
}

/// A layer that writes events as JSON lines, with the fields of the spans around them.
pub struct JsonLines {
    level: LevelFilter,
    clock: Clock,
    sink: Sink,
    origin: MetricDimensions,
}

impl JsonLines {
    /// Lines up to `level` into `sink`.
    pub fn new(level: LevelFilter, clock: Clock, sink: Sink) -> Self {
        Self { level, clock, sink, origin: MetricDimensions::default() }
    }

    /// The same, with metrics that are `origin`'s.
    #[must_use]
    pub fn of(self, origin: MetricDimensions) -> Self {
        Self { origin, ..self }
    }

    fn write(&self, line: &Map<String, Value>) {
        let written = serde_json::to_vec(line).map_err(std::io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
            sink.write_all(&text).and_then(|()| sink.flush())
        });
        // When standard output is gone, only those can be told who ask: see `write_audit`.
        WRITTEN.set(written.is_ok());
    }
}

struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == EMBEDDED {
            if let Ok(Value::Object(metrics)) = serde_json::from_str(value) {
                self.0.extend(metrics);
            }
            return;
        }
        let cut = value.char_indices().nth(LONGEST).map_or(value.len(), |(at, _)| at);
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
        // These spans hold what every line must name, whatever its level.
        let names = is_ours(metadata.target()) || metadata.target() == RUNTIME_SPAN;
        if metadata.target() == RECORD || (metadata.is_span() && names) {
            return true;
        }
        if metadata.target() == RUNTIME_REPEATS {
            return false;
        }
        // What libraries say below a warning is theirs to say, and may hold what nobody should read.
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
        if line.contains_key(EMBEDDED_HEADER) {
            line.insert(DEPLOYMENT.into(), json!(self.origin.table_name));
            line.insert(FUNCTION.into(), json!(self.origin.function_name));
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

/// The field that carries metrics through `tracing`.
const EMBEDDED: &str = "embedded_metrics";

/// What a line has that holds metrics.
const EMBEDDED_HEADER: &str = "_aws";

/// Metrics of the deployment in CloudWatch's embedded metric format (each name with its CloudWatch unit and value), for a
/// log line's field `embedded_metrics`. The tenant is a property to search by, not a dimension: a dimension would be
/// billed as a metric of its own for each tenant.
pub fn emf(now: jiff::Timestamp, tenant_id: Option<&TenantId>, values: &[(&str, &str, f64)]) -> String {
    embedded_by(DEPLOYMENT, now, tenant_id, values)
}

fn embedded_by(
    dimension: &str,
    now: jiff::Timestamp,
    tenant_id: Option<&TenantId>,
    values: &[(&str, &str, f64)],
) -> String {
    let definitions: Vec<Value> = values.iter().map(|(name, unit, _)| json!({"Name": name, "Unit": unit})).collect();
    let mut line = Map::new();
    line.insert(
        EMBEDDED_HEADER.into(),
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

/// Writes metrics on a line of their own; see [`emf`].
pub fn metrics(now: jiff::Timestamp, tenant_id: Option<&TenantId>, values: &[(&str, &str, f64)]) {
    let embedded_metrics = emf(now, tenant_id, values);
    tracing::info!(target: RECORD, embedded_metrics, "metrics");
}

/// Counts a failure of our own that Lambda takes for a success: an answer with 500, a message that is handed back. By
/// function, so that the deployment that brought it can be rolled back.
pub fn internal_failure(now: jiff::Timestamp) {
    let embedded_metrics = embedded_by(FUNCTION, now, None, &[("InternalFailure", "Count", 1.0)]);
    tracing::info!(target: RECORD, embedded_metrics, "metrics");
}

/// Writes a line of the audit without which something must not be done.
///
/// # Errors
/// [`Error::Internal`] when `line` wrote none that went out.
pub fn write_audit(line: impl FnOnce()) -> Result<()> {
    WRITTEN.set(false);
    line();
    if WRITTEN.get() { Ok(()) } else { Err(Error::Internal("a line of the audit could not be written".into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(level: LevelFilter, work: impl FnOnce()) -> Vec<Value> {
        let buffer = Arc::new(Mutex::new(Vec::<u8>::new()));
        let clock = Clock::by_hand("2026-11-22T10:00:00.123Z".parse().unwrap());
        let origin =
            MetricDimensions { table_name: "mandate-prod-table".into(), function_name: "mandate-prod-fetch".into() };
        let layer = JsonLines::new(level, clock, buffer.clone()).of(origin);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        let text = String::from_utf8(buffer.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_is_flat_and_has_the_fields_of_its_spans() {
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
    fn metrics_are_the_deployment_s_and_failures_the_function_s() {
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
    fn a_line_of_the_audit_that_does_not_go_out_is_an_error() {
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
        let nobody = tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::new(), issued);
        assert!(nobody.is_err(), "a line that nobody writes");
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
    fn a_line_of_the_runtime_names_the_request_and_repeats_nothing() {
        let lines = lines(LevelFilter::TRACE, || {
            let _invoke =
                tracing::info_span!(target: RUNTIME_SPAN, "invoke", requestId = "r-1", xrayTraceId = "x").entered();
            tracing::error!(target: "lambda_runtime::layers::api_response", "not read");
            tracing::error!(target: RUNTIME_REPEATS, "Diagnostic");
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
