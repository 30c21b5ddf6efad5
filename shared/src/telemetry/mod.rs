//! Logs as one flat JSON object a line on standard output, and metrics in CloudWatch's embedded format (EMF) among them.
//!
//! `lambda_runtime` has a subscriber of its own. It writes no timestamp, and Lambda then labels every line INFO.

mod metric;

use std::{
    cell::Cell,
    fmt,
    io::Write,
    panic,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Map, Value, json};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt, registry::LookupSpan};

pub use self::metric::Metric;
use self::metric::{DimensionSets, InvocationMetrics};
use crate::{
    clock::Clock,
    error::{Error, Result},
    tenant::TenantId,
};

/// The longest text of a field, in characters. A longer one is cut.
const MAX_FIELD_CHARS: usize = 2048;

/// The target of audit lines and of lines with metrics, which are written at any log level.
pub const RECORD: &str = "record";

/// The target of metrics that need no line of their own.
pub const METRICS: &str = "metrics";

/// The name of the span around each invocation. Its end writes the invocation's metrics.
pub(crate) const INVOCATION_SPAN: &str = "invocation";

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
    /// The number of the function's published version, or `$LATEST`.
    pub(crate) function_version: String,
}

thread_local! {
    /// The last line of this thread was written to the output.
    static LINE_WRITTEN: Cell<bool> = const { Cell::new(false) };
    /// The metrics of the line that this thread is about to write.
    static HANDED_OVER: Cell<Vec<Metric>> = const { Cell::new(Vec::new()) };
}

/// Starts logging to standard output for the whole process.
pub(crate) fn start(level: LevelFilter, dimensions: MetricDimensions) {
    let sink: Sink = Arc::new(Mutex::new(std::io::stdout()));
    let lines = JsonLines { is_cold: true.into(), ..JsonLines::new(level, Clock::system(), sink) };
    let lines = lines.with_dimensions(dimensions);
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
    /// The process has had no invocation yet.
    is_cold: AtomicBool,
}

impl JsonLines {
    /// A layer that writes lines up to `level` to `sink`.
    pub fn new(level: LevelFilter, clock: Clock, sink: Sink) -> Self {
        Self { level, clock, sink, dimensions: MetricDimensions::default(), is_cold: AtomicBool::new(false) }
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

impl JsonLines {
    /// Writes the metrics of an invocation behind the fields of `line`: one line, or more where a metric has more values
    /// than a line may hold.
    fn write_metrics(&self, line: &Map<String, Value>, mut metrics: InvocationMetrics) {
        let now = self.clock.now();
        while !metrics.series.is_empty() {
            let mut line = line.clone();
            line.append(&mut metrics.properties);
            line.extend(metrics.take_line(now));
            line.insert("TableName".into(), json!(self.dimensions.table_name));
            line.insert("FunctionName".into(), json!(self.dimensions.function_name));
            line.insert("FunctionVersion".into(), json!(self.dimensions.function_version));
            self.write(&line);
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        // These spans hold the ids that every line must have, at any log level.
        let names = is_ours(metadata.target()) || metadata.target() == RUNTIME_SPAN;
        if [RECORD, METRICS].contains(&metadata.target()) || (metadata.is_span() && names) {
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
            if attributes.metadata().name() == INVOCATION_SPAN {
                let mut metrics = InvocationMetrics::default();
                if self.is_cold.swap(false, Ordering::Relaxed) {
                    metrics.add(Metric::count("ColdStarts", 1).by(DimensionSets::Function));
                }
                span.extensions_mut().insert(metrics);
            }
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
        let metrics = HANDED_OVER.take();
        if !metrics.is_empty() {
            let mut spans = context.event_scope(event).into_iter().flatten();
            let invocation = spans.find(|span| span.extensions().get::<InvocationMetrics>().is_some());
            let Some(invocation) = invocation else {
                line.extend(fields.0);
                let mut all = InvocationMetrics::default();
                for metric in metrics {
                    all.add(metric);
                }
                return self.write_metrics(&line, all);
            };
            if let Some(all) = invocation.extensions_mut().get_mut::<InvocationMetrics>() {
                for metric in &metrics {
                    all.add(*metric);
                }
                if event.metadata().target() == METRICS && !fields.0.contains_key("tenant_id") {
                    fields.0.remove("message");
                    all.properties.extend(fields.0);
                    return;
                }
            }
            line.extend(metrics.iter().map(|metric| (metric.name.to_owned(), json!(metric.value))));
        }
        line.extend(fields.0);
        self.write(&line);
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(metrics) = span.extensions_mut().remove::<InvocationMetrics>() else { return };
        let mut line = Map::new();
        line.insert("timestamp".into(), json!(format!("{:.3}", self.clock.now())));
        line.insert("level".into(), json!("INFO"));
        line.insert("message".into(), json!("metrics"));
        if let Some(Fields(fields)) = span.extensions().get::<Fields>() {
            line.extend(fields.clone());
        }
        self.write_metrics(&line, metrics);
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

/// Writes metrics that need no line of their own: the line of their invocation has them. Those of a tenant have one, too, to
/// search by: as a dimension the tenant would be billed as a metric of its own.
pub fn metrics(tenant_id: Option<&TenantId>, values: &[Metric]) {
    line_with_metrics(values, || {
        let tenant_id = tenant_id.map(tracing::field::display);
        tracing::info!(target: METRICS, tenant_id, "metrics");
    });
}

/// Writes the line of `line` with these metrics as its fields, and hands them to the line of the invocation. A line with the
/// target [`METRICS`] and no tenant is not written: its fields are part of the invocation's line.
pub fn line_with_metrics(values: &[Metric], line: impl FnOnce()) {
    HANDED_OVER.set(values.to_vec());
    line();
    HANDED_OVER.take();
}

/// Counts a failure of our own that Lambda regards as a success: a response with 500, or a message that is returned to
/// the queue. It counts by function and by its version, so that a new release of the function can be rolled back.
pub fn internal_failure() {
    metrics(None, &[Metric::count("InternalFailure", 1).by(DimensionSets::FunctionVersion)]);
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
mod tests;
