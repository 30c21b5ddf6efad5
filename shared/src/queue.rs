//! The queue of sync work (SQS) and its messages.

use aws_sdk_sqs::{Client, types::SendMessageBatchRequestEntry};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    aws::{LazyClient, lazy_client},
    clock::pause_before_attempt,
    error::{Error, Result},
    tenant::TenantId,
    text::from_json_object,
};

/// Attempts for messages that SQS refuses inside a successful call.
const MAX_ATTEMPTS: u32 = 4;

/// The longest delay of a message, by SQS.
const MAX_DELAY_SECONDS: i64 = 900;

/// The work that a message starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncKind {
    /// Brings the feed up to date.
    Poll,
    /// Delivers incidents from before the feed.
    Backfill,
    /// Compares the list of Microsoft with the delivered versions, and delivers the gaps.
    Sweep,
}

/// A message. The worker reads everything else from the registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyncMessage {
    /// The tenant to work on.
    pub tenant_id: TenantId,
    /// The work to start.
    pub kind: SyncKind,
    /// The first time of last update in the span of the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// The first time of last update after the span of the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
    /// The job that the message continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
}

impl SyncMessage {
    /// Parses the body of a message. `None`: it is not such a message.
    pub fn parse(body: &str) -> Option<Self> {
        from_json_object(serde_json::from_str(body).ok()?)
    }

    /// A message without a span or a job.
    pub fn new(tenant_id: TenantId, kind: SyncKind) -> Self {
        Self { tenant_id, kind, from: None, to: None, job_id: None }
    }
}

/// The client of the queue, with its URL.
#[derive(Clone, Debug)]
pub struct SyncQueue {
    client: LazyClient<Client>,
    url: String,
}

impl SyncQueue {
    /// A client of the queue at `url`.
    pub fn new(config: &aws_config::SdkConfig, url: String) -> Self {
        Self { client: lazy_client(config, Client::new), url }
    }

    /// Sends one message, to be delivered after `delay`, at most 15 minutes.
    pub async fn send(&self, message: &SyncMessage, delay: SignedDuration) -> Result<()> {
        let seconds = delay.as_secs().clamp(0, MAX_DELAY_SECONDS);
        self.client
            .send_message()
            .queue_url(&self.url)
            .message_body(body(message)?)
            // SQS serves the groups fairly, so one tenant does not delay the others.
            .message_group_id(message.tenant_id.to_string())
            .delay_seconds(i32::try_from(seconds).unwrap_or(0))
            .send()
            .await
            .map_err(|error| Error::aws("sqs:SendMessage", &error))?;
        Ok(())
    }

    /// Sends messages, and those that SQS refuses again. Returns the number of accepted messages.
    pub async fn send_all(&self, messages: &[SyncMessage]) -> Result<usize> {
        let mut accepted = 0;
        // A call takes at most ten entries.
        for batch in messages.chunks(10) {
            let mut waiting: Vec<usize> = (0..batch.len()).collect();
            for attempt in 0..MAX_ATTEMPTS {
                if attempt > 0 {
                    pause_before_attempt(attempt + 1).await;
                }
                let mut entries = Vec::new();
                for index in &waiting {
                    let message = &batch[*index];
                    let entry = SendMessageBatchRequestEntry::builder()
                        .id(index.to_string())
                        .message_body(body(message)?)
                        .message_group_id(message.tenant_id.to_string())
                        .build()
                        .map_err(|error| Error::internal("sqs:SendMessageBatch: an entry could not be built", error))?;
                    entries.push(entry);
                }
                let outcome =
                    self.client.send_message_batch().queue_url(&self.url).set_entries(Some(entries)).send().await;
                match outcome {
                    Ok(response) => {
                        let failed: Vec<usize> =
                            response.failed.iter().filter_map(|entry| entry.id.parse().ok()).collect();
                        waiting.retain(|index| failed.contains(index));
                    }
                    Err(error) if attempt + 1 == MAX_ATTEMPTS => {
                        return Err(Error::aws("sqs:SendMessageBatch", &error));
                    }
                    Err(_) => {}
                }
                if waiting.is_empty() {
                    break;
                }
            }
            accepted += batch.len() - waiting.len();
        }
        Ok(accepted)
    }
}

fn body(message: &SyncMessage) -> Result<String> {
    serde_json::to_string(message).map_err(|error| Error::internal("a message could not be serialised", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_parsed_as_the_interface_has_them() {
        let tenant = "11111111-2222-4333-8444-abcdefabcdef";
        let poll = SyncMessage::parse(&format!(r#"{{"tenant_id":"{tenant}","kind":"poll"}}"#)).unwrap();
        assert_eq!(poll, SyncMessage::new(tenant.parse().unwrap(), SyncKind::Poll));
        let text = r#"{"tenant_id":"T","kind":"backfill","from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z","job_id":"j"}"#;
        let text = text.replace("\"T\"", &format!("\"{tenant}\""));
        let backfill = SyncMessage::parse(&text).unwrap();
        assert_eq!(serde_json::to_string(&backfill).unwrap(), text);
        for wrong in [
            r#"{"tenant_id":"common","kind":"poll"}"#,
            r#"{"tenant_id":"T","kind":"other"}"#,
            r#"{"kind":"poll"}"#,
            r#"["T","poll"]"#,
            "7",
            "null",
        ] {
            assert_eq!(SyncMessage::parse(&wrong.replace("\"T\"", &format!("\"{tenant}\""))), None, "{wrong}");
        }
    }
}
