//! The only places where the stack takes what the machine gives: the time, randomness, the environment, and HTTP.

use std::sync::Once;
use std::time::Duration;

use tokio::time::Instant;

#[expect(clippy::disallowed_methods, reason = "the stack stands for AWS, whose clock is the real one")]
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// The instant from which a duration or a limit is measured.
#[expect(clippy::disallowed_methods, reason = "durations are measured for people, and limits are the machine's")]
pub fn instant() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the stack's own tools are configured as cargo's are")]
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[expect(clippy::disallowed_methods, reason = "request ids are random, as the Lambda service makes them")]
pub(crate) fn request_id() -> uuid::Uuid {
    uuid::Uuid::new_v4()
}

/// A client that follows no redirect and uses no proxy: it speaks to loopback only.
#[expect(clippy::disallowed_methods, reason = "the caller's side of our HTTP API; nothing of ours goes out by it")]
pub fn http_client() -> Result<reqwest::Client, reqwest::Error> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Another part of the process may have installed one; either will do.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(Duration::from_mins(1))
        .build()
}
