//! The meaning of an unsuccessful response of an incident API.

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use crate::{
    error::{Call, Error, QueryFailure},
    http::{MAX_RETRY_AFTER, Response},
    tenant::Reason,
    text::if_readable,
};

/// The wait after a 429 that names none.
const DEFAULT_THROTTLING: SignedDuration = SignedDuration::from_secs(60);

/// The shortest wait after a response that asks for one.
const MIN_THROTTLING: SignedDuration = SignedDuration::from_secs(1);

/// The meaning of a response by its status.
pub(super) enum ResponseClass {
    /// A success whose body is still to be read.
    Success(Response),
    /// A wait that Microsoft asks for.
    Throttled { until: Timestamp },
    /// A failure that no wait cures.
    Failed(Error),
}

/// Classifies a response by its status, and by its error body where the status alone is not enough.
pub(super) async fn classify_response(response: Response, now: Timestamp) -> ResponseClass {
    let throttled =
        |wait: SignedDuration| ResponseClass::Throttled { until: now + wait.clamp(MIN_THROTTLING, MAX_RETRY_AFTER) };
    let unexpected_status = response.unexpected_status();
    match response.status() {
        status if status.is_success() => ResponseClass::Success(response),
        // The client compares the token's roles itself. With them, the tenant has nothing that the API could serve.
        StatusCode::FORBIDDEN => ResponseClass::Failed(Error::Refused(Reason::ResourceAbsent)),
        StatusCode::TOO_MANY_REQUESTS => match response.retry_after(now) {
            Some(wait) => throttled(wait),
            None => throttled(wait_in_body(response).await.unwrap_or(DEFAULT_THROTTLING)),
        },
        StatusCode::SERVICE_UNAVAILABLE => match response.retry_after(now) {
            Some(wait) => throttled(wait),
            None => ResponseClass::Failed(unexpected_status),
        },
        // The length of a query has a limit of its own.
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE if is_of_a_query(&unexpected_status) => {
            let message = error_detail(response).await.and_then(|detail| detail.message);
            ResponseClass::Failed(Error::QueryFailed(QueryFailure::of(&message.unwrap_or_default())))
        }
        _ => ResponseClass::Failed(unexpected_status),
    }
}

fn is_of_a_query(error: &Error) -> bool {
    matches!(error, Error::Upstream { call: Call::Hunt, .. })
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    #[serde(default, deserialize_with = "if_readable")]
    message: Option<String>,
}

async fn error_detail(response: Response) -> Option<ErrorDetail> {
    response.json::<ErrorBody>().await.ok().map(|body| body.error)
}

async fn wait_in_body(response: Response) -> Option<SignedDuration> {
    seconds_in(&error_detail(response).await?.message?).map(SignedDuration::from_secs)
}

/// The number before the word "second" or "minute" in an error's text. Some 429 responses name their wait only there.
fn seconds_in(message: &str) -> Option<i64> {
    let words: Vec<&str> =
        message.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.windows(2).find_map(|pair| {
        let unit = pair[1].to_ascii_lowercase();
        let number: i64 = pair[0].parse::<u32>().ok()?.into();
        match unit.as_str() {
            _ if unit.starts_with("second") || unit == "s" || unit == "sec" => Some(number),
            _ if unit.starts_with("minute") || unit == "min" => Some(number * 60),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::from_json_object;

    #[test]
    fn odd_member_of_an_error_costs_only_itself() {
        for (body, message) in [
            (r#"{"error":{"code":429,"message":"wait","innerError":null,"details":[null]},"error2":7}"#, Some("wait")),
            (r#"{"error":{"code":"a","code":"b","message":"w","message":"wait"}}"#, Some("wait")),
            (r#"{"error":{"message":null}}"#, None),
            (r#"{"error":{"message":["wait"]}}"#, None),
        ] {
            let body: ErrorBody = from_json_object(serde_json::from_str(body).unwrap()).unwrap();
            assert_eq!(body.error.message.as_deref(), message);
        }
    }

    #[test]
    fn finds_the_wait_in_an_error_message() {
        assert_eq!(seconds_in("Rate limit is exceeded. Try again in 42 seconds."), Some(42));
        assert_eq!(seconds_in("You can resume in 2 minutes"), Some(120));
        assert_eq!(seconds_in("Maximum of 50 calls per minute exceeded"), None);
        assert_eq!(seconds_in(""), None);
    }
}
