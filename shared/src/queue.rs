//! The queue of sync jobs: what is put on it, and what is taken for one of its messages.

use aws_sdk_sqs::{Client, types::SendMessageBatchRequestEntry};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    tenant::TenantId,
    text::from_json_object,
};

/// How often messages are handed in again that SQS refused within an accepted call.
const TRIES: u32 = 4;

/// The longest delay that SQS knows.
const LONGEST_DELAY: i64 = 900;

/// What a message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncKind {
    /// Bring the feed up to date.
    Poll,
    /// Bring older incidents.
    Backfill,
    /// Compare what Microsoft shows with what was delivered.
    Sweep,
}

/// A message: which tenant, and what to do. All else is read from the registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyncMessage {
    /// The tenant.
    pub tenant_id: TenantId,
    /// What to do.
    pub kind: SyncKind,
    /// Time of last update where it begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// Time of last update where it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
    /// The job that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
}

impl SyncMessage {
    /// From a message's body; none for one that is not understood.
    pub fn parse(body: &str) -> Option<Self> {
        from_json_object(serde_json::from_str(body).ok()?)
    }

    /// A message without a span or a job.
    pub fn new(tenant_id: TenantId, kind: SyncKind) -> Self {
        Self { tenant_id, kind, from: None, to: None, job_id: None }
    }
}

/// The queue.
#[derive(Clone, Debug)]
pub struct SyncQueue {
    client: Client,
    url: String,
}

impl SyncQueue {
    /// The queue at `url`.
    pub fn new(config: &aws_config::SdkConfig, url: String) -> Self {
        Self { client: Client::new(config), url }
    }

    /// Puts one message on the queue, to be seen after `delay` (at most 15 minutes).
    pub async fn send(&self, message: &SyncMessage, delay: SignedDuration) -> Result<()> {
        let seconds = delay.as_secs().clamp(0, LONGEST_DELAY);
        self.client
            .send_message()
            .queue_url(&self.url)
            .message_body(body(message)?)
            // The group makes the queue fair between tenants.
            .message_group_id(message.tenant_id.to_string())
            .delay_seconds(i32::try_from(seconds).unwrap_or(0))
            .send()
            .await
            .map_err(|error| Error::aws("sqs:SendMessage", &error))?;
        Ok(())
    }

    /// Puts messages on the queue; what SQS refuses of a batch is handed in again. Tells how many were taken.
    pub async fn send_all(&self, messages: &[SyncMessage]) -> Result<usize> {
        let mut taken = 0;
        // Ten entries are the most of one call.
        for batch in messages.chunks(10) {
            let mut waiting: Vec<usize> = (0..batch.len()).collect();
            for attempt in 0..TRIES {
                if attempt > 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(100 << attempt)).await;
                }
                let mut entries = Vec::new();
                for index in &waiting {
                    let message = &batch[*index];
                    let entry = SendMessageBatchRequestEntry::builder()
                        .id(index.to_string())
                        .message_body(body(message)?)
                        .message_group_id(message.tenant_id.to_string())
                        .build()
                        .map_err(|_| Error::Internal("sqs:SendMessageBatch: an entry could not be built".into()))?;
                    entries.push(entry);
                }
                let outcome =
                    self.client.send_message_batch().queue_url(&self.url).set_entries(Some(entries)).send().await;
                match outcome {
                    Ok(answer) => {
                        let failed: Vec<usize> =
                            answer.failed.iter().filter_map(|entry| entry.id.parse().ok()).collect();
                        waiting.retain(|index| failed.contains(index));
                    }
                    Err(error) if attempt + 1 == TRIES => return Err(Error::aws("sqs:SendMessageBatch", &error)),
                    Err(_) => {}
                }
                if waiting.is_empty() {
                    break;
                }
            }
            taken += batch.len() - waiting.len();
        }
        Ok(taken)
    }
}

fn body(message: &SyncMessage) -> Result<String> {
    serde_json::to_string(message).map_err(|_| Error::Internal("a message could not be written".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_to_the_letter_of_the_interface() {
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
