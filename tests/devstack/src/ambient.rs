//! The only places that read the machine's time, randomness and environment, and that create an HTTP client.

use std::{sync::Once, time::Duration};

use tokio::time::Instant;

#[expect(clippy::disallowed_methods, reason = "the stack takes the place of AWS, whose clock is the real one")]
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// The current instant, from which a duration or a limit is measured.
#[expect(clippy::disallowed_methods, reason = "durations are measured for people, and limits are the machine's")]
pub fn instant() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the stack reads the variables that configure cargo")]
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[expect(clippy::disallowed_methods, reason = "request ids are random, as in Lambda")]
pub(crate) fn request_id() -> uuid::Uuid {
    uuid::Uuid::new_v4()
}

/// Creates a client for loopback: it follows no redirect, uses no proxy and waits one minute for a response.
#[expect(clippy::disallowed_methods, reason = "the caller's side of our HTTP API; no deployed code uses it")]
pub fn http_client() -> Result<reqwest::Client, reqwest::Error> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Another part of the process may have installed a provider already. Either one works.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(Duration::from_mins(1))
        .build()
}
