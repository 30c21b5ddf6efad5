//! How a function's process begins, and how one invocation is framed.

use std::{panic::AssertUnwindSafe, process::ExitCode, str::FromStr, sync::Arc, time::Duration};

use aws_config::{BehaviorVersion, SdkConfig};
use aws_lc_rs::rand::SystemRandom;
use futures_util::{FutureExt, future::BoxFuture};
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde_json::Value;
use tracing::{Instrument, Span, level_filters::LevelFilter};

use crate::{
    clock::Clock,
    config::{self, Variables},
    error::{Error, Result},
    http::{Deadline, HttpClient},
    lambda::event::{HttpRequest, HttpResponse, Invocation, InvocationError},
    random::Random,
    telemetry::{self, MetricDimensions},
    tenant::TenantId,
};

/// Kept back from the runtime's deadline for the answer to travel.
const RESPONSE_RESERVE: Duration = Duration::from_millis(500);

/// What a function's process has from outside: AWS, the network, time and randomness. Tests hand in their own.
#[derive(Clone)]
pub struct Platform {
    /// The AWS SDK's configuration.
    pub aws: SdkConfig,
    /// The client for all hosts that are not AWS's.
    pub http: HttpClient,
    /// The source of time.
    pub clock: Clock,
    /// The source of randomness for identifiers, tokens and cookies.
    pub random: Random,
}

/// Runs a function's process: reads its configuration, builds the function, and hands it each event until Lambda ends the
/// process.
///
/// The exit code is a failure, after one line in the log, when the configuration is wrong or the runtime API fails.
pub async fn serve<C, F>(
    read: impl FnOnce(&mut Variables<'_>) -> Option<C>,
    build: impl FnOnce(C, &Platform) -> F,
    handle: impl AsyncFn(&F, Value, Invocation) -> std::result::Result<Value, InvocationError>,
) -> ExitCode {
    // The error is the exit code itself: a `Result` would be printed to standard error on its way out of `main`.
    run(read, build, handle).await.err().unwrap_or(ExitCode::SUCCESS)
}

async fn run<C, F>(
    read: impl FnOnce(&mut Variables<'_>) -> Option<C>,
    build: impl FnOnce(C, &Platform) -> F,
    handle: impl AsyncFn(&F, Value, Invocation) -> std::result::Result<Value, InvocationError>,
) -> std::result::Result<(), ExitCode> {
    let config = configure(read)?;
    let clock = Clock::system();
    let aws = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let http = HttpClient::new().map_err(fatal)?;
    let platform = Platform { aws, http, clock: clock.clone(), random: Arc::new(SystemRandom::new()) };
    let (function, handle, clock) = (&build(config, &platform), &handle, &clock);
    let service = service_fn(async move |event: LambdaEvent<Value>| {
        let invocation = Invocation::new(event.context.request_id, event.context.deadline, clock);
        let outcome = guarded(handle(function, event.payload, invocation)).await;
        outcome.map_err(|error| Diagnostic { error_type: error.code.into(), error_message: error.detail })
    });
    lambda_runtime::run(service).await.map_err(fatal)
}

/// Reads `LOG_LEVEL` and what `read` wants, and starts logging.
///
/// # Errors
/// The exit code to end with, after one line that names every faulty variable.
fn configure<T>(read: impl FnOnce(&mut Variables<'_>) -> Option<T>) -> std::result::Result<T, ExitCode> {
    let configured = config::from_environment(|variables| {
        let rule = "must be error, warn, info, debug or trace";
        let LogLevel(level) = variables.parsed("LOG_LEVEL", LogLevel(LevelFilter::INFO), rule);
        let mut name = |variable| variables.optional(variable).unwrap_or_default();
        let origin =
            MetricDimensions { table_name: name("TABLE_NAME"), function_name: name("AWS_LAMBDA_FUNCTION_NAME") };
        Some((level, origin, read(variables)?))
    });
    match configured {
        Ok((level, origin, config)) => {
            telemetry::start(level, origin);
            Ok(config)
        }
        Err(error) => {
            telemetry::start(LevelFilter::INFO, MetricDimensions::default());
            Err(fatal(error))
        }
    }
}

/// Says why the process cannot start or go on.
fn fatal(error: impl std::fmt::Display) -> ExitCode {
    tracing::error!("{error}");
    ExitCode::FAILURE
}

/// `LOG_LEVEL`: `tracing` itself would take numbers and `off`, too.
struct LogLevel(LevelFilter);

impl FromStr for LogLevel {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        match text {
            "error" => Ok(Self(LevelFilter::ERROR)),
            "warn" => Ok(Self(LevelFilter::WARN)),
            "info" => Ok(Self(LevelFilter::INFO)),
            "debug" => Ok(Self(LevelFilter::DEBUG)),
            "trace" => Ok(Self(LevelFilter::TRACE)),
            _ => Err(()),
        }
    }
}

/// A handler whose panic is the interface's `internal`. The runtime would hand the panic's own text to the caller, and
/// that may hold anything; the log has its place.
///
/// # Errors
/// The handler's own, or `internal`.
async fn guarded<T>(
    handler: impl Future<Output = std::result::Result<T, InvocationError>>,
) -> std::result::Result<T, InvocationError> {
    let outcome = AssertUnwindSafe(Box::pin(handler)).catch_unwind().await;
    outcome.unwrap_or_else(|_| Err(panicked().into()))
}

/// The work of one request, whose panic is an error like any other: whoever asked gets the answer of their route.
///
/// # Errors
/// The work's own, or [`Error::Internal`].
pub async fn caught<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let outcome = AssertUnwindSafe(work).catch_unwind().await;
    outcome.unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> Error {
    Error::Internal("panicked".into())
}

/// The span that gives the lines of work for a tenant its id.
pub fn tenant_span(tenant: &TenantId) -> Span {
    tracing::info_span!("tenant", tenant_id = %tenant)
}

impl Invocation {
    /// From what the runtime tells: the request id and the deadline in milliseconds since 1970.
    pub fn new(request_id: String, deadline_ms: u64, clock: &Clock) -> Self {
        let now = u64::try_from(clock.now().as_millisecond()).unwrap_or(0);
        let left = Duration::from_millis(deadline_ms.saturating_sub(now)).saturating_sub(RESPONSE_RESERVE);
        Self { request_id, deadline: Deadline::within(left) }
    }

    /// Runs `work` in a span that gives its log lines the request's id.
    ///
    /// Boxed as `dyn` and no `async fn`, whose future would hold `work`: the compiler's measuring of a whole function in
    /// one future runs out of depth.
    pub fn in_request_span<'a, T>(&self, work: impl Future<Output = T> + Send + 'a) -> BoxFuture<'a, T> {
        let span = tracing::info_span!("invocation", request_id = self.request_id);
        work.instrument(span).boxed()
    }

    /// Runs the work of a JSON route: bounded by the deadline, refused without an IAM caller, its outcome logged, its
    /// failure told as a problem document. The lines name the tenant of the path.
    pub async fn json_route(
        &self,
        clock: &Clock,
        request: &HttpRequest,
        work: impl Future<Output = Result<HttpResponse>>,
    ) -> HttpResponse {
        let tenant = match request.segments().as_slice() {
            ["tenants", tenant, ..] => tenant.parse::<TenantId>().ok(),
            _ => None,
        };
        let span = tenant.as_ref().map_or_else(Span::none, tenant_span);
        self.answer(clock, request, work).instrument(span).await
    }

    async fn answer(
        &self,
        clock: &Clock,
        request: &HttpRequest,
        work: impl Future<Output = Result<HttpResponse>>,
    ) -> HttpResponse {
        let begun = clock.now();
        let outcome = match request.caller() {
            Ok(_) => self.deadline.run(caught(Box::pin(work))).await,
            Err(error) => Err(error),
        };
        let duration_ms = clock.milliseconds_since(begun);
        match outcome {
            Ok(response) => {
                tracing::info!(method = request.method, status = response.status, duration_ms, "request answered");
                response
            }
            Err(error) => {
                let (code, status) = error.code();
                let reason = error.reason().map(crate::tenant::Reason::as_str);
                if status == 500 {
                    telemetry::internal_failure(clock.now());
                    tracing::error!(method = request.method, status, code, reason, duration_ms, cause = %error, "request failed");
                } else {
                    tracing::warn!(method = request.method, status, code, reason, duration_ms, "request refused");
                }
                HttpResponse::problem(&error, self, clock.now())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lambda::event::Caller;

    #[tokio::test]
    async fn a_panic_is_told_as_internal_and_without_its_text() {
        let failure = guarded::<()>(async { panic!("a token") }).await.unwrap_err();
        assert_eq!(failure.code, "internal");
        assert!(!failure.detail.contains("a token"));
        assert_eq!(guarded(async { Ok(7) }).await, Ok(7));
    }

    #[tokio::test]
    async fn a_panic_on_a_json_route_is_a_problem_document() {
        let caller = Caller { user_arn: "arn:aws:iam::1:user/u".into() };
        let request = HttpRequest { caller: Some(caller), ..HttpRequest::default() };
        let invocation = Invocation { request_id: "r-1".into(), deadline: Deadline::within(Duration::from_secs(5)) };
        let answer = invocation.json_route(&Clock::system(), &request, async { panic!("a token") }).await;
        assert_eq!((answer.status, answer.headers["content-type"].as_str()), (500, "application/problem+json"));
        assert!(answer.body.contains(r#""instance":"r-1""#) && answer.body.contains(r#""code":"internal""#));
        assert!(!answer.body.contains("a token"));
    }
}
