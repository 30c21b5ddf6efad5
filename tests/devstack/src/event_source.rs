//! The event source mapping between a queue and a function: batches, partial batch responses, a limit on concurrency.

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

/// Lambda starts with five pollers on a standard queue.
const POLLERS: usize = 5;
/// What one receive can bring.
const RECEIVE_LIMIT: i32 = 10;
const IDLE: Duration = Duration::from_millis(250);
/// Deployed, a failed message comes back after the queue's visibility timeout; who watches should not wait so long.
const RETRY_AFTER_SECONDS: i32 = 2;

/// As the template declares it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Declared {
    /// The function's name.
    pub(crate) function: String,
    pub(crate) queue_url: String,
    pub(crate) batch_size: i32,
    pub(crate) report_batch_item_failures: bool,
    pub(crate) max_concurrency: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct EventSource {
    declared: Declared,
    function: Arc<Pool>,
    sqs: aws_sdk_sqs::Client,
}

/// What became of one batch.
#[derive(Debug, Default)]
struct Delivered {
    messages: usize,
    /// Receipts of what is to come back.
    returned: Vec<String>,
    error: Option<FunctionError>,
}

impl EventSource {
    pub(crate) fn new(declared: Declared, function: Arc<Pool>, sqs: aws_sdk_sqs::Client) -> Arc<Self> {
        Arc::new(Self { declared, function, sqs })
    }

    fn pollers(&self) -> usize {
        self.declared.max_concurrency.unwrap_or(POLLERS).min(POLLERS)
    }

    /// Delivers until it is dropped. What fails is told and comes back.
    pub(crate) async fn pump(self: Arc<Self>, failures: Arc<Failures>) {
        let mut pollers = JoinSet::new();
        for _ in 0..self.pollers() {
            let (source, failures) = (Arc::clone(&self), Arc::clone(&failures));
            pollers.spawn(async move {
                loop {
                    match source.deliver_one_batch().await {
                        Ok(delivered) if delivered.messages > 0 => {
                            if let Some(error) = &delivered.error {
                                failures.tell(&source.function.spec().binary, error);
                            }
                            // A receipt that is no longer good belongs to a message that comes back by itself.
                            let _ = source.give_back(&delivered.returned, RETRY_AFTER_SECONDS).await;
                        }
                        Ok(_) | Err(_) => tokio::time::sleep(IDLE).await,
                    }
                }
            });
        }
        while pollers.join_next().await.is_some() {}
    }

    /// Delivers what is visible, with what the function adds meanwhile, until the queue is empty. What fails is
    /// delivered once and is visible again at the end.
    pub(crate) async fn drain(self: &Arc<Self>, failures: &Failures) -> Result<usize, StackError> {
        let mut pollers = JoinSet::new();
        for _ in 0..self.pollers() {
            let source = Arc::clone(self);
            pollers.spawn(async move {
                let mut all = Vec::new();
                loop {
                    let delivered = source.deliver_one_batch().await?;
                    if delivered.messages == 0 {
                        return Ok::<_, StackError>(all);
                    }
                    all.push(delivered);
                }
            });
        }
        let mut messages = 0;
        while let Some(joined) = pollers.join_next().await {
            for delivered in joined.map_err(|error| failed("draining the queue", &error))?? {
                messages += delivered.messages;
                self.settle(&delivered, failures).await?;
            }
        }
        Ok(messages)
    }

    /// Delivers one batch, if there is one; answers how many messages were in it.
    pub(crate) async fn deliver(&self, failures: &Failures) -> Result<usize, StackError> {
        let delivered = self.deliver_one_batch().await?;
        self.settle(&delivered, failures).await?;
        Ok(delivered.messages)
    }

    async fn settle(&self, delivered: &Delivered, failures: &Failures) -> Result<(), StackError> {
        if let Some(error) = &delivered.error {
            failures.tell(&self.function.spec().binary, error);
        }
        self.give_back(&delivered.returned, 0).await
    }

    async fn deliver_one_batch(&self) -> Result<Delivered, StackError> {
        let received = self
            .sqs
            .receive_message()
            .queue_url(&self.declared.queue_url)
            .max_number_of_messages(self.declared.batch_size.clamp(1, RECEIVE_LIMIT))
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All")
            .send()
            .await
            .map_err(|error| failed("receiving from the queue", &error))?;
        let messages = received.messages.unwrap_or_default();
        if messages.is_empty() {
            return Ok(Delivered::default());
        }
        let answer = self.function.invoke(&self.event(&messages)).await;
        let ids: Vec<_> = messages.iter().map(|message| message.message_id().unwrap_or_default()).collect();
        let failing = failing(&ids, &answer, self.declared.report_batch_item_failures);
        let (mut returned, mut done) = (Vec::new(), Vec::new());
        for (index, message) in messages.iter().enumerate() {
            let receipt = message.receipt_handle().unwrap_or_default();
            if failing.contains(&index) {
                returned.push(receipt.to_owned());
            } else {
                let entry = DeleteMessageBatchRequestEntry::builder().id(index.to_string()).receipt_handle(receipt);
                done.push(entry.build().map_err(|error| failed("deleting messages", &error))?);
            }
        }
        if !done.is_empty() {
            let delete = self.sqs.delete_message_batch().queue_url(&self.declared.queue_url).set_entries(Some(done));
            delete.send().await.map_err(|error| failed("deleting messages", &error))?;
        }
        Ok(Delivered { messages: messages.len(), returned, error: answer.err() })
    }

    async fn give_back(&self, receipts: &[String], after_seconds: i32) -> Result<(), StackError> {
        for receipt in receipts {
            self.sqs
                .change_message_visibility()
                .queue_url(&self.declared.queue_url)
                .receipt_handle(receipt)
                .visibility_timeout(after_seconds)
                .send()
                .await
                .map_err(|error| failed("making a message visible again", &error))?;
        }
        Ok(())
    }

    fn event(&self, messages: &[Message]) -> Value {
        let queue = self.declared.queue_url.rsplit('/').next().unwrap_or_default();
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

/// Which messages of a batch are to come back.
///
/// All of them after an error, and after a partial batch response that names an unknown or an empty id; none where the
/// response is empty. <https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html>
fn failing(ids: &[&str], answer: &Result<Value, FunctionError>, reports_item_failures: bool) -> Vec<usize> {
    let all = || (0..ids.len()).collect();
    let Ok(answer) = answer else {
        return all();
    };
    if !reports_item_failures {
        return Vec::new();
    }
    let failures = match answer.get("batchItemFailures") {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Array(failures)) => failures,
        Some(_) => return all(),
    };
    let named = |failure: &Value| {
        let id = failure.get("itemIdentifier")?.as_str()?;
        ids.iter().position(|known| *known == id)
    };
    failures.iter().map(named).collect::<Option<Vec<_>>>().unwrap_or_else(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{aws::Aws, pool::test_function::Function};

    fn after(answer: Value) -> Vec<usize> {
        failing(&["a", "b", "c"], &Ok(answer), true)
    }

    #[test]
    fn a_partial_batch_response_returns_what_it_names() {
        assert_eq!(after(json!({ "batchItemFailures": [{ "itemIdentifier": "b" }] })), [1]);
        assert_eq!(after(json!({ "batchItemFailures": [] })), [0; 0]);
        assert_eq!(after(json!({ "batchItemFailures": null })), [0; 0]);
        assert_eq!(after(json!(null)), [0; 0]);
    }

    #[test]
    fn an_unusable_response_returns_the_whole_batch() {
        for id in [json!("x"), json!(""), json!(null)] {
            let answer = json!({ "batchItemFailures": [{ "itemIdentifier": "a" }, { "itemIdentifier": id }] });
            assert_eq!(after(answer), [0, 1, 2], "{id}");
        }
        assert_eq!(after(json!({ "batchItemFailures": [{}] })), [0, 1, 2]);
        assert_eq!(after(json!({ "batchItemFailures": "a" })), [0, 1, 2]);
    }

    #[test]
    fn an_error_returns_the_whole_batch() {
        let error = Err(FunctionError::new("internal", "x"));
        assert_eq!(failing(&["a", "b"], &error, true), [0, 1]);
        assert_eq!(failing(&["a", "b"], &error, false), [0, 1]);
        assert_eq!(failing(&["a"], &Ok(json!({ "batchItemFailures": [{ "itemIdentifier": "a" }] })), false), [0; 0]);
    }

    #[tokio::test]
    async fn what_fails_comes_back_until_it_is_a_dead_letter() {
        let python = crate::python::interpreter(&mut crate::Quiet).await.unwrap();
        let function = Function::new(&[]).await;
        let mut aws = Aws::start(&python, &function.logs.directory().join("aws.log")).await.unwrap();
        let parameters = BTreeMap::from([("PartnerName".to_owned(), "Litware".to_owned())]);
        let deployment = aws.deploy(&python, &parameters).await.unwrap();
        aws.tap(&deployment.resources.event_bus).await.unwrap();
        let declared = deployment.event_sources[0].clone();
        assert_eq!(declared.queue_url, deployment.resources.queue_url);
        let source = EventSource::new(declared, Arc::clone(&function.pool), aws.sqs().clone());
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
        assert_eq!(aws.bodies(&deployment.resources.dead_letter_queue_url).await.unwrap(), ["bad"]);
        assert_eq!(aws.bodies(&deployment.resources.dead_letter_queue_url).await.unwrap(), ["bad"]);
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
