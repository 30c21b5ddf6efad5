//! The queue (SQS) and the event bus (EventBridge).

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    Account, BUS, QUEUE_URL,
    wire::{Refusal, Served, invalid, list, named, only, text},
};

/// The time that a message stays hidden after it was received, and the number of times that it is: as in the template.
const VISIBILITY: SignedDuration = SignedDuration::from_secs(360);
const MAX_RECEIVES: u32 = 5;

/// The most entries of a batch, of SQS and of EventBridge.
const MAX_ENTRIES: usize = 10;

/// The size that the entries of one call of EventBridge do not reach.
const MAX_ENTRIES_BYTES: usize = 256 << 10;

/// The longest delay of a message.
const MAX_DELAY_SECONDS: i64 = 900;

/// A message on the queue.
#[derive(Clone, Debug)]
pub struct QueuedMessage {
    /// The id that SQS gave the message.
    pub id: String,
    /// The body as it was sent.
    pub body: String,
    /// The message group, empty without one.
    pub group: String,
    visible_at: Timestamp,
    receives: u32,
}

/// An event on the bus.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The name under which the sender publishes.
    pub source: String,
    /// The kind of event.
    pub detail_type: String,
    /// The event's own content.
    pub detail: Value,
}

impl Account {
    /// Receives up to `most` visible messages and hides them for the queue's visibility time-out. A message that was
    /// received too often is dropped and counted, as if it had moved to the dead-letter queue.
    pub fn receive(&mut self, most: usize) -> Vec<QueuedMessage> {
        let now = self.now();
        let before = self.queue.len();
        self.queue.retain(|message| message.receives < MAX_RECEIVES || message.visible_at > now);
        self.dead_letters += before - self.queue.len();
        let mut received = Vec::new();
        for message in self.queue.iter_mut().filter(|message| message.visible_at <= now).take(most) {
            message.visible_at = now + VISIBILITY;
            message.receives += 1;
            received.push(message.clone());
        }
        received
    }

    /// Removes a message from the queue.
    pub fn delete_message(&mut self, id: &str) {
        self.queue.retain(|message| message.id != id);
    }

    /// Returns `true` if no message is on the queue, visible or hidden.
    pub fn is_queue_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Puts a message on the queue.
    pub fn enqueue(&mut self, group: &str, body: &str, delay: SignedDuration) {
        self.messages += 1;
        let (id, visible_at) = (format!("m-{}", self.messages), self.now() + delay);
        let (group, body) = (group.to_owned(), body.to_owned());
        self.queue.push(QueuedMessage { id, body, group, visible_at, receives: 0 });
    }

    fn accept(&mut self, entry: &Value) -> Served {
        let delay = entry["DelaySeconds"].as_i64().unwrap_or(0);
        if !(0..=MAX_DELAY_SECONDS).contains(&delay) {
            return Err(invalid(format!("DelaySeconds is {delay}")));
        }
        let group = entry["MessageGroupId"].as_str().unwrap_or_default();
        self.enqueue(group, text(entry, "MessageBody")?, SignedDuration::from_secs(delay));
        Ok(json!({"MessageId": format!("m-{}", self.messages), "MD5OfMessageBody": ""}))
    }

    pub(crate) fn send_message(&mut self, request: &Value) -> Served {
        only(request, &["QueueUrl", "MessageBody", "DelaySeconds", "MessageGroupId"])?;
        named(request, "QueueUrl", QUEUE_URL)?;
        self.accept(request)
    }

    pub(crate) fn send_message_batch(&mut self, request: &Value, is_partial: bool) -> Served {
        only(request, &["QueueUrl", "Entries"])?;
        named(request, "QueueUrl", QUEUE_URL)?;
        let entries = entries(request)?;
        let (mut accepted, mut failed) = (Vec::new(), Vec::new());
        for (index, entry) in entries.iter().enumerate() {
            only(entry, &["Id", "MessageBody", "DelaySeconds", "MessageGroupId"])?;
            let id = text(entry, "Id")?;
            if entries[..index].iter().any(|other| other["Id"] == entry["Id"]) {
                return Err(invalid(format!("two entries have the id {id}")));
            }
            if is_partial && index == 0 {
                failed.push(json!({"Id": id, "SenderFault": false, "Code": "InternalError"}));
                continue;
            }
            let mut result = self.accept(entry)?;
            result["Id"] = json!(id);
            accepted.push(result);
        }
        Ok(json!({"Successful": accepted, "Failed": failed}))
    }

    pub(crate) fn put_events(&mut self, request: &Value, is_partial: bool) -> Served {
        only(request, &["Entries"])?;
        if self.bus_is_down {
            return Err(Refusal::new("InternalException", "the bus is down"));
        }
        let (mut results, mut bytes, mut failed) = (Vec::new(), 0, 0);
        for entry in entries(request)? {
            only(entry, &["Source", "DetailType", "Detail", "EventBusName"])?;
            named(entry, "EventBusName", BUS)?;
            for member in ["Source", "DetailType", "Detail"] {
                bytes += text(entry, member)?.len();
            }
        }
        if bytes >= MAX_ENTRIES_BYTES {
            return Err(invalid(format!("entries of {bytes} bytes")));
        }
        for (index, entry) in entries(request)?.iter().enumerate() {
            let (source, detail_type) = (text(entry, "Source")?.to_owned(), text(entry, "DetailType")?.to_owned());
            if is_partial && index == 0 || self.refused_detail_type.as_ref() == Some(&detail_type) {
                let is_of_incident = detail_type == "Incident Changed";
                if self.defects.ignores_refused_events || is_of_incident && self.defects.skips_refused_incident_events {
                    results.push(json!({"EventId": "e"}));
                } else {
                    failed += 1;
                    results.push(json!({"ErrorCode": "InternalFailure", "ErrorMessage": "refused"}));
                }
                continue;
            }
            let detail = serde_json::from_str(text(entry, "Detail")?).map_err(|_| invalid("Detail is not JSON"))?;
            self.events.push(Event { source, detail_type, detail });
            results.push(json!({"EventId": "e"}));
        }
        Ok(json!({"FailedEntryCount": failed, "Entries": results}))
    }
}

fn entries(request: &Value) -> Served<&Vec<Value>> {
    let entries = list(request, "Entries")?;
    if (1..=MAX_ENTRIES).contains(&entries.len()) {
        return Ok(entries);
    }
    Err(invalid(format!("a batch of {} entries", entries.len())))
}
