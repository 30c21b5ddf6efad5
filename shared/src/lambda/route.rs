//! JSON routes: the parts that they share.

use tracing::{Instrument, Span};

use crate::{
    clock::Clock,
    error::{Error, Result},
    lambda::{
        event::{HttpRequest, HttpResponse, Invocation},
        runtime::{catch_panic, tenant_span},
    },
    telemetry,
    tenant::Reason,
};

/// The size of a page where the caller names none.
const DEFAULT_LIMIT: u32 = 50;

/// The largest page that a caller may request.
const MAX_LIMIT: u32 = 100;

/// Runs the work of a JSON route until the deadline and logs its outcome. An error or a panic becomes a problem document.
/// Without a caller the work does not start. The log lines name the tenant of the path.
pub async fn json_route(
    invocation: &Invocation,
    clock: &Clock,
    request: &HttpRequest,
    work: impl Future<Output = Result<HttpResponse>>,
) -> HttpResponse {
    let tenant = request.tenant_id().ok();
    let span = tenant.as_ref().map_or_else(Span::none, tenant_span);
    let work = async {
        let started = clock.now();
        let outcome = match request.caller() {
            Ok(_) => invocation.deadline.run(catch_panic(work)).await,
            Err(error) => Err(error),
        };
        let duration_ms = clock.milliseconds_since(started);
        log_outcome(request, outcome.as_ref(), duration_ms);
        outcome.unwrap_or_else(|error| HttpResponse::problem(&error, invocation, clock.now()))
    };
    work.instrument(span).await
}

fn log_outcome(request: &HttpRequest, outcome: Result<&HttpResponse, &Error>, duration_ms: i64) {
    let method = &request.method;
    match outcome {
        Ok(response) => tracing::info!(method, status = response.status, duration_ms, "request served"),
        Err(error) => {
            let (code, status) = error.code();
            let reason = error.reason().map(Reason::as_str);
            if error.is_internal_failure() {
                telemetry::internal_failure();
            }
            if status == 500 {
                tracing::error!(method, status, code, reason, duration_ms, cause = %error, "request failed");
            } else {
                tracing::warn!(method, status, code, reason, duration_ms, "request refused");
            }
        }
    }
}

/// Parses the query parameter `limit`: the size of a page, from 1 to 100. Without one it is 50.
pub fn page_limit(text: Option<&str>) -> Result<u32> {
    let Some(text) = text else { return Ok(DEFAULT_LIMIT) };
    let number = text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let wrong = || Error::InvalidRequest("`limit` must be a whole number from 1 to 100.".into());
    number.filter(|number| (1..=MAX_LIMIT).contains(number)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{http::Deadline, lambda::event::Caller};

    #[tokio::test]
    async fn panic_on_a_json_route_is_a_problem_document() {
        let caller = Caller { name: "arn:aws:iam::1:user/u".into() };
        let request = HttpRequest { caller: Some(caller), ..HttpRequest::default() };
        let deadline = Deadline::within(Duration::from_secs(5), &Clock::system());
        let invocation = Invocation { request_id: "r-1".into(), deadline };
        let response = json_route(&invocation, &Clock::system(), &request, async { panic!("a token") }).await;
        assert_eq!((response.status, response.headers["content-type"].as_str()), (500, "application/problem+json"));
        assert!(response.body.contains(r#""instance":"r-1""#) && response.body.contains(r#""code":"internal""#));
        assert!(!response.body.contains("a token"));
    }
}
