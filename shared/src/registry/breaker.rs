//! The circuit breaker of the app credential: it keeps all functions from Entra while Entra refuses the credential.

use aws_sdk_dynamodb::{operation::update_item::builders::UpdateItemFluentBuilder, types::AttributeValue};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::{
    Registry, Write,
    table::{number, text, update_if},
};
use crate::error::{Error, Result};

/// The time between two probes of all functions together while the breaker is open.
const PROBE_INTERVAL: SignedDuration = SignedDuration::from_secs(60);

const PK: &str = "CREDENTIAL";
const SK: &str = "BREAKER";

/// The breaker's decision about one token request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerDecision {
    /// The breaker is closed: Entra may be called.
    Allow,
    /// The breaker is open, and this caller makes the one request of this minute.
    Probe,
    /// The breaker is open, and another caller makes the request of this minute.
    Reject,
}

#[derive(Deserialize)]
struct Breaker {
    open: bool,
    #[serde(with = "jiff::fmt::serde::timestamp::millisecond::required")]
    next_probe_at: Timestamp,
}

impl Registry {
    /// Decides whether Entra may be called now. While the breaker is open, one caller a minute gets
    /// [`BreakerDecision::Probe`].
    pub async fn breaker_decision(&self, now: Timestamp) -> Result<BreakerDecision> {
        let breaker: Option<Breaker> = self.get(PK, SK).await?;
        match breaker {
            None | Some(Breaker { open: false, .. }) => Ok(BreakerDecision::Allow),
            Some(breaker) if breaker.next_probe_at > now => Ok(BreakerDecision::Reject),
            Some(_) => {
                let claim = self
                    .update_breaker()
                    .update_expression("SET next_probe_at = :next")
                    .condition_expression("#open = :true AND next_probe_at <= :now")
                    .expression_attribute_values(":next", next_probe_after(now))
                    .expression_attribute_values(":now", number(now.as_millisecond()));
                Ok(match update_if(claim).await? {
                    Write::Done => BreakerDecision::Probe,
                    Write::Conflict => BreakerDecision::Reject,
                })
            }
        }
    }

    /// Opens the breaker because Entra refused the credential. [`Write::Conflict`]: it is open already.
    pub(crate) async fn open_breaker(&self, now: Timestamp) -> Result<Write> {
        let open = self
            .update_breaker()
            .update_expression("SET #open = :true, opened_at = :opened, next_probe_at = :next")
            .condition_expression("attribute_not_exists(pk) OR #open = :false")
            .expression_attribute_values(":false", AttributeValue::Bool(false))
            .expression_attribute_values(":opened", text(now.to_string()))
            .expression_attribute_values(":next", next_probe_after(now));
        update_if(open).await
    }

    /// Closes the breaker because Entra accepted the credential. [`Write::Conflict`]: it is closed already.
    pub(crate) async fn close_breaker(&self) -> Result<Write> {
        let close = self
            .update_breaker()
            .update_expression("SET #open = :false")
            .condition_expression("#open = :true")
            .expression_attribute_values(":false", AttributeValue::Bool(false));
        update_if(close).await
    }

    /// Succeeds while the breaker is closed.
    ///
    /// # Errors
    /// [`Error::CredentialRejected`] while it is open.
    pub(crate) async fn require_closed_breaker(&self) -> Result<()> {
        let breaker: Option<Breaker> = self.get(PK, SK).await?;
        if breaker.is_some_and(|breaker| breaker.open) { Err(Error::CredentialRejected) } else { Ok(()) }
    }

    fn update_breaker(&self) -> UpdateItemFluentBuilder {
        self.update(PK, SK)
            .expression_attribute_names("#open", "open")
            .expression_attribute_values(":true", AttributeValue::Bool(true))
    }
}

fn next_probe_after(now: Timestamp) -> AttributeValue {
    number((now + PROBE_INTERVAL).as_millisecond())
}
