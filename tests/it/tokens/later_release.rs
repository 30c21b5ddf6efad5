//! Items of the credential and of throttling that a newer release has stored.

use sim::{FaultKind, RetryAfter};

use super::harness::{A, B, TokenHarness, ask, numbered, refusal};
use crate::{
    backends::CLIENT_SECRET,
    later_release::{assert_kept, upgrade},
};

#[tokio::test]
async fn items_of_the_credential_keep_what_a_newer_release_added() {
    let harness = TokenHarness::start().await;
    let tokens = harness.process();
    ask(&tokens, A).await.unwrap();
    let refused = |of: &str| harness.script(of, refusal(7_777_777));
    harness.script(B, FaultKind::Throttle { retry_after: RetryAfter::Seconds(7) });
    ask(&tokens, B).await.unwrap_err();
    harness.customer(&numbered(3));
    refused(&numbered(3));
    ask(&tokens, &numbered(3)).await.unwrap_err();
    let upgraded = upgrade(&harness.backends.double);
    assert!(upgraded >= 3, "a breaker, a probe tenant, a throttling");
    harness.forget_secret(CLIENT_SECRET);
    harness.pass(3_700);
    ask(&harness.process(), A).await.unwrap_err();
    harness.know(CLIENT_SECRET);
    for _ in 0..6 {
        harness.pass(61);
        let _ = ask(&harness.process(), A).await;
    }
    ask(&harness.process(), A).await.unwrap();
    harness.script(B, FaultKind::Throttle { retry_after: RetryAfter::Seconds(9) });
    ask(&harness.process(), B).await.unwrap_err();
    assert_kept(&harness.backends.double, upgraded);
}
