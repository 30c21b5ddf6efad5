//! How a function's process begins, and how one invocation is framed.

use std::{process::ExitCode, time::Duration};

use aws_config::{BehaviorVersion, SdkConfig};
use tracing::{Instrument, level_filters::LevelFilter};

use crate::{
    clock::Clock,
    config::{self, Variables},
    error::Result,
    event::{HttpRequest, HttpResponse, Invocation},
    http::Deadline,
};

/// Kept back from the runtime's deadline for the answer to travel.
const ANSWER: Duration = Duration::from_millis(500);

/// Reads `LOG_LEVEL` and what `read` wants, and starts logging.
///
/// # Errors
/// The exit code to end with, after one line that names every faulty variable.
pub fn configure<T>(read: impl FnOnce(&mut Variables<'_>) -> Option<T>) -> std::result::Result<T, ExitCode> {
    let configured = config::from_environment(|variables| {
        let rule = "must be error, warn, info, debug or trace";
        let level = variables.parsed("LOG_LEVEL", LevelFilter::INFO, rule);
        Some((level, read(variables)?))
    });
    match configured {
        Ok((level, config)) => {
            crate::telemetry::start(level);
            Ok(config)
        }
        Err(error) => {
            crate::telemetry::start(LevelFilter::INFO);
            tracing::error!("{error}");
            Err(ExitCode::FAILURE)
        }
    }
}

/// The AWS SDK's configuration, from its own variables.
pub async fn aws() -> SdkConfig {
    aws_config::load_defaults(BehaviorVersion::latest()).await
}

impl Invocation {
    /// From what the runtime tells: the request id and the deadline in milliseconds since 1970.
    pub fn new(request_id: String, deadline_ms: u64, clock: &Clock) -> Self {
        let now = u64::try_from(clock.now().as_millisecond()).unwrap_or(0);
        let left = Duration::from_millis(deadline_ms.saturating_sub(now)).saturating_sub(ANSWER);
        Self { request_id, deadline: Deadline::within(left) }
    }

    /// Runs `work` in a span that gives its log lines the request's id.
    pub async fn frame<T>(&self, work: impl Future<Output = T>) -> T {
        let span = tracing::info_span!("invocation", request_id = self.request_id);
        // Boxed, because the compiler's measuring of a whole function in one future runs out of depth.
        Box::pin(work.instrument(span)).await
    }

    /// Runs the work of a JSON route: bounded by the deadline, refused without an IAM caller, its outcome logged, its
    /// failure told as a problem document.
    pub async fn json_route(
        &self,
        clock: &Clock,
        request: &HttpRequest,
        work: impl Future<Output = Result<HttpResponse>>,
    ) -> HttpResponse {
        let begun = clock.now();
        let outcome = match request.caller() {
            Ok(_) => self.deadline.run(Box::pin(work)).await,
            Err(error) => Err(error),
        };
        let duration_ms = clock.now().duration_since(begun).as_millis();
        let duration_ms = i64::try_from(duration_ms).unwrap_or(i64::MAX);
        match outcome {
            Ok(response) => {
                tracing::info!(method = request.method, status = response.status, duration_ms, "request answered");
                response
            }
            Err(error) => {
                let (code, status) = error.code();
                let reason = error.reason().map(crate::error::Reason::as_str);
                if status == 500 {
                    tracing::error!(method = request.method, status, code, reason, duration_ms, cause = %error, "request failed");
                } else {
                    tracing::warn!(method = request.method, status, code, reason, duration_ms, "request refused");
                }
                HttpResponse::problem(&error, self, clock.now())
            }
        }
    }
}
