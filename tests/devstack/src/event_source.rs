//! The event source mapping between a queue and a function: batches, partial batch responses, limited concurrency.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    ACCOUNT_ID, REGION,
    aws::failed,
    error::{FunctionError, StackError},
    failures::Failures,
    pool::Pool,
};

/// The number of pollers with which Lambda starts on a standard queue.
const POLLERS: usize = 5;
/// The largest number of messages of one request to SQS.
const MESSAGES_OF_A_REQUEST: usize = 10;
/// The pause of a poller after an empty receive.
const EMPTY_QUEUE_PAUSE: Duration = Duration::from_millis(250);
/// The time until a failed message is delivered again. In AWS this is the queue's visibility timeout, six minutes, which
/// is too long to watch.
const REDELIVERY_SECONDS: i32 = 2;

/// An event source mapping as `deploy.py` reports it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct EventSourceConfig {
    /// The name of the function in AWS, not of its binary.
    pub(crate) function: String,
    pub(crate) queue_url: String,
    pub(crate) batch_size: i32,
    pub(crate) report_batch_item_failures: bool,
    pub(crate) max_concurrency: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct EventSource {
    config: EventSourceConfig,
    function: Arc<Pool>,
    sqs: aws_sdk_sqs::Client,
}

/// The result of delivering one batch. An empty queue gives an empty batch.
#[derive(Debug, Default)]
struct BatchResult {
    messages: usize,
    /// Receipt handles of the failed messages, which are still invisible.
    failed: Vec<String>,
    error: Option<FunctionError>,
}

impl EventSource {
    pub(crate) fn new(config: EventSourceConfig, function: Arc<Pool>, sqs: aws_sdk_sqs::Client) -> Arc<Self> {
        Arc::new(Self { config, function, sqs })
    }

    fn pollers(&self) -> usize {
        self.config.max_concurrency.unwrap_or(POLLERS).min(POLLERS)
    }

    /// Delivers until the future is dropped. Records failed invocations and redelivers failed messages.
    pub(crate) async fn run(self: Arc<Self>, failures: Arc<Failures>) {
        let mut pollers = JoinSet::new();
        for _ in 0..self.pollers() {
            let (source, failures) = (Arc::clone(&self), Arc::clone(&failures));
            pollers.spawn(async move {
                loop {
                    match source.deliver_one_batch().await {
                        Ok(batch) if batch.messages > 0 => {
                            if let Some(error) = &batch.error {
                                failures.record(&source.function.spec().binary, error);
                            }
                            // A receipt handle that has expired belongs to a message that is visible again anyway.
                            let _ = source.make_visible(&batch.failed, REDELIVERY_SECONDS).await;
                        }
                        Ok(_) | Err(_) => tokio::time::sleep(EMPTY_QUEUE_PAUSE).await,
                    }
                }
            });
        }
        while pollers.join_next().await.is_some() {}
    }

    /// Delivers all visible messages, and those that the function adds meanwhile, until no message is visible. Returns how
    /// many messages were delivered. A message that fails is delivered once and is visible again at the end.
    pub(crate) async fn drain(self: &Arc<Self>, failures: &Failures) -> Result<usize, StackError> {
        let mut pollers = JoinSet::new();
        for _ in 0..self.pollers() {
            let source = Arc::clone(self);
            pollers.spawn(async move {
                let mut batches = Vec::new();
                loop {
                    let batch = source.deliver_one_batch().await?;
                    if batch.messages == 0 {
                        return Ok::<_, StackError>(batches);
                    }
                    batches.push(batch);
                }
            });
        }
        let mut messages = 0;
        while let Some(joined) = pollers.join_next().await {
            for batch in joined.map_err(|error| failed("draining the queue", &error))?? {
                messages += batch.messages;
                self.finish(&batch, failures).await?;
            }
        }
        Ok(messages)
    }

    /// Records the batch's error and makes its failed messages visible at once.
    async fn finish(&self, batch: &BatchResult, failures: &Failures) -> Result<(), StackError> {
        if let Some(error) = &batch.error {
            failures.record(&self.function.spec().binary, error);
        }
        self.make_visible(&batch.failed, 0).await
    }

    async fn deliver_one_batch(&self) -> Result<BatchResult, StackError> {
        let messages = self.receive_batch().await?;
        if messages.is_empty() {
            return Ok(BatchResult::default());
        }
        let response = self.function.invoke(&self.event(&messages)).await;
        let ids: Vec<_> = messages.iter().map(|message| message.message_id().unwrap_or_default()).collect();
        let failing = if self.config.report_batch_item_failures {
            failed_items(&ids, &response)
        } else {
            failed_batch(&ids, &response)
        };
        let (mut failed_receipts, mut done) = (Vec::new(), Vec::new());
        for (index, message) in messages.iter().enumerate() {
            let receipt = message.receipt_handle().unwrap_or_default();
            if failing.contains(&index) {
                failed_receipts.push(receipt.to_owned());
            } else {
                let entry = DeleteMessageBatchRequestEntry::builder().id(index.to_string()).receipt_handle(receipt);
                done.push(entry.build().map_err(|error| failed("deleting messages", &error))?);
            }
        }
        for done in done.chunks(MESSAGES_OF_A_REQUEST) {
            let delete = self.sqs.delete_message_batch().queue_url(&self.config.queue_url);
            let delete = delete.set_entries(Some(done.to_vec()));
            delete.send().await.map_err(|error| failed("deleting messages", &error))?;
        }
        Ok(BatchResult { messages: messages.len(), failed: failed_receipts, error: response.err() })
    }

    /// Receives up to a batch of messages, as many as are there.
    async fn receive_batch(&self) -> Result<Vec<Message>, StackError> {
        let size = usize::try_from(self.config.batch_size).unwrap_or(1).max(1);
        let mut messages = Vec::new();
        while messages.len() < size {
            let wanted = (size - messages.len()).min(MESSAGES_OF_A_REQUEST);
            let received = self
                .sqs
                .receive_message()
                .queue_url(&self.config.queue_url)
                .max_number_of_messages(i32::try_from(wanted).unwrap_or(1))
                .message_system_attribute_names(MessageSystemAttributeName::All)
                .message_attribute_names("All")
                .send()
                .await
                .map_err(|error| failed("receiving from the queue", &error))?;
            let received = received.messages.unwrap_or_default();
            if received.is_empty() {
                break;
            }
            messages.extend(received);
        }
        Ok(messages)
    }

    async fn make_visible(&self, receipts: &[String], after_seconds: i32) -> Result<(), StackError> {
        for receipt in receipts {
            self.sqs
                .change_message_visibility()
                .queue_url(&self.config.queue_url)
                .receipt_handle(receipt)
                .visibility_timeout(after_seconds)
                .send()
                .await
                .map_err(|error| failed("making a message visible again", &error))?;
        }
        Ok(())
    }

    fn event(&self, messages: &[Message]) -> Value {
        let queue = self.config.queue_url.rsplit('/').next().unwrap_or_default();
        let arn = format!("arn:aws:sqs:{REGION}:{ACCOUNT_ID}:{queue}");
        json!({ "Records": messages.iter().map(|message| record(message, &arn)).collect::<Vec<_>>() })
    }
}

fn record(message: &Message, queue_arn: &str) -> Value {
    let attributes: BTreeMap<_, _> =
        message.attributes().into_iter().flatten().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    json!({
        "messageId": message.message_id(),
        "receiptHandle": message.receipt_handle(),
        "body": message.body(),
        "attributes": attributes,
        "messageAttributes": {},
        "md5OfBody": message.md5_of_body(),
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn,
        "awsRegion": REGION,
    })
}

/// Returns the indexes of the failed messages where the mapping does not report batch item failures: an error fails the
/// whole batch.
fn failed_batch(ids: &[&str], response: &Result<Value, FunctionError>) -> Vec<usize> {
    if response.is_err() { (0..ids.len()).collect() } else { Vec::new() }
}

/// Returns the indexes of the failed messages according to a partial batch response.
///
/// The whole batch fails after an error, and after a response that names an unknown or an empty id. An empty response
/// fails no message. <https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html>
fn failed_items(ids: &[&str], response: &Result<Value, FunctionError>) -> Vec<usize> {
    let all = || (0..ids.len()).collect();
    let Ok(response) = response else {
        return all();
    };
    let failures = match response.get("batchItemFailures") {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Array(failures)) => failures,
        Some(_) => return all(),
    };
    let index_of = |failure: &Value| {
        let id = failure.get("itemIdentifier")?.as_str()?;
        ids.iter().position(|known| *known == id)
    };
    failures.iter().map(index_of).collect::<Option<Vec<_>>>().unwrap_or_else(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{aws::Aws, testing::TestFunction};

    fn failed_of_three(response: Value) -> Vec<usize> {
        failed_items(&["a", "b", "c"], &Ok(response))
    }

    #[test]
    fn partial_batch_response_fails_the_messages_it_names() {
        assert_eq!(failed_of_three(json!({ "batchItemFailures": [{ "itemIdentifier": "b" }] })), [1]);
        assert_eq!(failed_of_three(json!({ "batchItemFailures": [] })), [0; 0]);
        assert_eq!(failed_of_three(json!({ "batchItemFailures": null })), [0; 0]);
        assert_eq!(failed_of_three(json!(null)), [0; 0]);
    }

    #[test]
    fn unusable_response_fails_the_whole_batch() {
        for id in [json!("x"), json!(""), json!(null)] {
            let response = json!({ "batchItemFailures": [{ "itemIdentifier": "a" }, { "itemIdentifier": id }] });
            assert_eq!(failed_of_three(response), [0, 1, 2], "{id}");
        }
        assert_eq!(failed_of_three(json!({ "batchItemFailures": [{}] })), [0, 1, 2]);
        assert_eq!(failed_of_three(json!({ "batchItemFailures": "a" })), [0, 1, 2]);
    }

    #[test]
    fn error_fails_the_whole_batch() {
        let error = Err(FunctionError::new("internal", "x"));
        assert_eq!(failed_items(&["a", "b"], &error), [0, 1]);
        assert_eq!(failed_batch(&["a", "b"], &error), [0, 1]);
        assert_eq!(failed_batch(&["a"], &Ok(json!({ "batchItemFailures": [{ "itemIdentifier": "a" }] }))), [0; 0]);
    }

    #[tokio::test]
    async fn failing_message_is_redelivered_until_it_is_a_dead_letter() {
        let python = crate::python::interpreter().await.unwrap();
        let function = TestFunction::new(&[]).await;
        let mut aws = Aws::start(&python, &function.logs.directory().join("aws.log")).await.unwrap();
        let parameters = BTreeMap::from([("PartnerName".to_owned(), "Litware".to_owned())]);
        let deployment = aws.deploy(&python, &parameters).await.unwrap();
        aws.tap_event_bus(&deployment.resources.event_bus).await.unwrap();
        let config = deployment.event_sources[0].clone();
        assert_eq!(config.queue_url, deployment.resources.queue_url);
        let source = EventSource::new(config, Arc::clone(&function.pool), aws.sqs().clone());
        let failures = Failures::default();
        for body in ["good", "bad", "good"] {
            let send = aws.sqs().send_message().queue_url(&deployment.resources.queue_url).message_body(body);
            send.message_group_id("tenant").send().await.unwrap();
        }
        assert_eq!(source.drain(&failures).await.unwrap(), 3);
        let mut deliveries = 1;
        while source.drain(&failures).await.unwrap() == 1 {
            deliveries += 1;
            assert!(deliveries < 20, "the queue has no dead-letter queue");
        }
        assert_eq!(aws.message_bodies(&deployment.resources.dead_letter_queue_url).await.unwrap(), ["bad"]);
        assert_eq!(aws.message_bodies(&deployment.resources.dead_letter_queue_url).await.unwrap(), ["bad"]);
        assert!(failures.take().is_empty());

        let events = aws_sdk_eventbridge::Client::new(aws.config());
        let entry = aws_sdk_eventbridge::types::PutEventsRequestEntry::builder()
            .event_bus_name(&deployment.resources.event_bus)
            .source("partner.incidents")
            .detail_type("Incidents Delivered")
            .detail(r#"{"count":1}"#);
        events.put_events().entries(entry.build()).send().await.unwrap();
        let events = aws.new_events().await.unwrap();
        assert_eq!((events.len(), &events[0]["detail"]["count"]), (1, &json!(1)));
        assert_eq!(events[0]["detail-type"], "Incidents Delivered");
        aws.stop().await;
    }
}
