//! The process of a function: start, events until Lambda ends it, panics.

use std::{panic::AssertUnwindSafe, process::ExitCode, str::FromStr, sync::Arc};

use aws_config::SdkConfig;
use aws_lc_rs::rand::SystemRandom;
use futures_util::FutureExt;
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde_json::Value;
use tracing::{Span, level_filters::LevelFilter};

use crate::{
    aws,
    clock::Clock,
    config::{self, Variables},
    error::Error,
    http::HttpClient,
    lambda::event::{Invocation, InvocationError},
    random::Random,
    telemetry::{self, MetricDimensions},
    tenant::TenantId,
};

/// The outside world of a function's process: AWS, the network, time and randomness. Tests pass their own.
#[derive(Clone)]
pub struct Platform {
    /// The AWS SDK's configuration.
    pub aws: SdkConfig,
    /// The client for all hosts but AWS's.
    pub http: HttpClient,
    /// The source of times and deadlines.
    pub clock: Clock,
    /// The source of randomness for identifiers, tokens and cookies.
    pub random: Random,
}

/// Runs a function's process. Reads the configuration, builds the function, and passes it each event until Lambda ends
/// the process.
///
/// If the configuration is wrong or the runtime API fails, it writes one log line and returns a failure.
pub async fn serve<C, F>(
    read: impl FnOnce(&mut Variables<'_>) -> Option<C>,
    build: impl FnOnce(C, &Platform) -> F,
    handle: impl AsyncFn(&F, Value, Invocation) -> std::result::Result<Value, InvocationError>,
) -> ExitCode {
    // The error is the exit code itself, because `main` would print a `Result` to standard error.
    // Its future is large. In a box, only the pages of it that are used cost a start time.
    Box::pin(run(read, build, handle)).await.err().unwrap_or(ExitCode::SUCCESS)
}

async fn run<C, F>(
    read: impl FnOnce(&mut Variables<'_>) -> Option<C>,
    build: impl FnOnce(C, &Platform) -> F,
    handle: impl AsyncFn(&F, Value, Invocation) -> std::result::Result<Value, InvocationError>,
) -> std::result::Result<(), ExitCode> {
    let config = configure(read)?;
    let clock = Clock::system();
    let aws = aws::config().await;
    let platform =
        Platform { aws, http: HttpClient::default(), clock: clock.clone(), random: Arc::new(SystemRandom::new()) };
    let (function, handle, clock) = (&build(config, &platform), &handle, &clock);
    let service = service_fn(async move |event: LambdaEvent<Value>| {
        let invocation = Invocation::new(event.context.request_id, event.context.deadline, clock);
        let outcome = catch_panic(handle(function, event.payload, invocation)).await;
        outcome.map_err(|error| Diagnostic { error_type: error.code.into(), error_message: error.detail })
    });
    lambda_runtime::run(service).await.map_err(fatal)
}

/// Reads `LOG_LEVEL` and the configuration of the function, and starts logging.
///
/// # Errors
/// The exit code, after one log line that names every faulty variable.
fn configure<T>(read: impl FnOnce(&mut Variables<'_>) -> Option<T>) -> std::result::Result<T, ExitCode> {
    let configured = config::from_environment(|variables| {
        let rule = "must be error, warn, info, debug or trace";
        let LogLevel(level) = variables.parsed("LOG_LEVEL", LogLevel(LevelFilter::INFO), rule);
        let mut name = |variable| variables.optional(variable).unwrap_or_default();
        let dimensions = MetricDimensions {
            table_name: name("TABLE_NAME"),
            function_name: name("AWS_LAMBDA_FUNCTION_NAME"),
            function_version: name("AWS_LAMBDA_FUNCTION_VERSION"),
        };
        Some((level, dimensions, read(variables)?))
    });
    match configured {
        Ok((level, dimensions, config)) => {
            telemetry::start(level, dimensions);
            Ok(config)
        }
        Err(error) => {
            telemetry::start(LevelFilter::INFO, MetricDimensions::default());
            Err(fatal(error))
        }
    }
}

/// Logs the reason why the process cannot start or continue.
fn fatal(error: impl std::fmt::Display) -> ExitCode {
    tracing::error!("{error}");
    ExitCode::FAILURE
}

/// The setting `LOG_LEVEL`. The parser of `tracing` would accept numbers and `off`, too.
struct LogLevel(LevelFilter);

struct NotALogLevel;

impl FromStr for LogLevel {
    type Err = NotALogLevel;

    fn from_str(text: &str) -> std::result::Result<Self, NotALogLevel> {
        match text {
            "error" => Ok(Self(LevelFilter::ERROR)),
            "warn" => Ok(Self(LevelFilter::WARN)),
            "info" => Ok(Self(LevelFilter::INFO)),
            "debug" => Ok(Self(LevelFilter::DEBUG)),
            "trace" => Ok(Self(LevelFilter::TRACE)),
            _ => Err(NotALogLevel),
        }
    }
}

/// The work of an invocation or a request, whose panic becomes the interface's `internal`. The text of a panic may hold
/// anything, so no caller reads it; the log has its place in the source.
///
/// # Errors
/// The error of the work, or [`Error::Internal`].
pub fn catch_panic<T, E: From<Error>>(
    work: impl Future<Output = std::result::Result<T, E>>,
) -> impl Future<Output = std::result::Result<T, E>> {
    let work = AssertUnwindSafe(Box::pin(work)).catch_unwind();
    work.map(|outcome| outcome.unwrap_or_else(|_| Err(Error::Internal("panicked".into()).into())))
}

/// A span that adds `tenant_id` to the log lines of work for a tenant.
pub fn tenant_span(tenant: &TenantId) -> Span {
    tracing::info_span!("tenant", tenant_id = %tenant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_becomes_internal_without_its_text() {
        let failure = catch_panic::<(), InvocationError>(async { panic!("a token") }).await.unwrap_err();
        assert_eq!(failure.code, "internal");
        assert!(!failure.detail.contains("a token"));
        assert_eq!(catch_panic(async { Ok::<_, InvocationError>(7) }).await, Ok(7));
    }
}
