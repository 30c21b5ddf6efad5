//! The messages of one batch, worked on at the same time, and one log line for all of them that found nothing.

use std::{collections::HashSet, sync::Arc, time::Duration};

use serde_json::{Value, json};
use shared::{
    error::{Error, Result},
    http::Deadline,
    lambda::event::Message,
    queue::{SyncKind, SyncMessage},
    telemetry::{self, Metric},
};
use tokio::sync::Semaphore;
use tracing::Instrument;

use crate::{
    App,
    sync::tenant::{QuietPoll, Worked},
};

/// The number of messages of a batch that are worked on at the same time. Each may hold a large incident in memory.
const CONCURRENT_MESSAGES: usize = 25;

/// The time for the sync of a tenant. The function itself may run longer, because a hunting query does.
const SYNC_TIMEOUT: Duration = Duration::from_millis(59_500);

impl App {
    /// Processes the messages of a batch, polls before jobs. Of the polls of one tenant the one that waited longest does the
    /// work of all. The response names those that failed (partial batch response).
    pub(crate) async fn process_messages(&self, messages: Vec<Message>, deadline: Deadline) -> Value {
        let turns = Arc::new(Semaphore::new(CONCURRENT_MESSAGES));
        let mut parsed: Vec<(Message, Option<SyncMessage>)> =
            messages.into_iter().map(|message| (message.clone(), parse(&message))).collect();
        let is_poll = |work: &SyncMessage| work.kind == SyncKind::Poll;
        parsed.sort_by_key(|(message, work)| (!work.as_ref().is_some_and(is_poll), message.sent_at));
        let mut polled = HashSet::new();
        parsed.retain(|(_, work)| work.as_ref().is_none_or(|work| !is_poll(work) || polled.insert(work.tenant_id)));
        let tasks: Vec<_> = parsed
            .into_iter()
            .map(|(message, work)| {
                let (app, id, turns) = (self.clone(), message.message_id.clone(), turns.clone());
                // A task of its own: a panic over one tenant's data must not take the batch with it.
                let work = async move {
                    // A hunt waits for Microsoft, with little in memory.
                    let is_hunt = work.as_ref().is_some_and(|work| work.kind == SyncKind::Hunt);
                    let _turn = if is_hunt { None } else { turns.acquire_owned().await.ok() };
                    Box::pin(app.process_message(message, work, deadline)).await
                };
                (id, tokio::spawn(work.in_current_span()))
            })
            .collect();
        let (mut failures, mut quiet) = (Vec::new(), Vec::new());
        for (id, task) in tasks {
            match task.await {
                Ok(Ok(Worked::Logged)) => continue,
                Ok(Ok(Worked::Quiet(poll))) => {
                    quiet.push(poll);
                    continue;
                }
                Ok(Err(_)) => {}
                Err(_) => tracing::error!(message_id = id, outcome = "panicked", "message failed"),
            }
            telemetry::internal_failure();
            failures.push(json!({"itemIdentifier": id}));
        }
        Self::log_quiet_polls(&quiet);
        json!({"batchItemFailures": failures})
    }

    async fn process_message(&self, message: Message, work: Option<SyncMessage>, deadline: Deadline) -> Result<Worked> {
        let Some(work) = work else {
            tracing::error!(message_id = message.message_id, outcome = "not_understood", "message failed");
            return Err(Error::InvalidRequest("The message is not a sync message.".into()));
        };
        let span = tracing::info_span!("tenant", tenant_id = %work.tenant_id);
        // Nothing outlives the invocation, not even a call to AWS that hangs. What was not committed is done again.
        let outcome = self.work_on(&work, &message, deadline).instrument(span.clone()).await;
        let error = match outcome {
            Ok(worked) => return Ok(worked),
            Err(error) => error,
        };
        // No poll covers a hunt.
        let fails = work.kind == SyncKind::Hunt || error.fails_message();
        span.in_scope(|| {
            let code = error.code().0;
            tracing::error!(message_id = message.message_id, kind = ?work.kind, code, fails, cause = %error, "message failed");
        });
        if fails { Err(error) } else { Ok(Worked::Logged) }
    }

    async fn work_on(&self, work: &SyncMessage, message: &Message, deadline: Deadline) -> Result<Worked> {
        if work.kind == SyncKind::Hunt {
            return deadline.run(Box::pin(self.hunt_in_tenant(work, deadline))).await;
        }
        let deadline = deadline.at_most(SYNC_TIMEOUT);
        deadline.run(Box::pin(self.sync.run(work, message, deadline))).await
    }

    /// Adds the polls that found nothing to the invocation's line of metrics.
    fn log_quiet_polls(polls: &[QuietPoll]) {
        if polls.is_empty() {
            return;
        }
        let lag = |poll: &QuietPoll| [Metric::count("Polled", 1), Metric::seconds("LagSeconds", poll.lag)];
        let values: Vec<Metric> = polls.iter().flat_map(lag).collect();
        telemetry::line_with_metrics(&values, || {
            tracing::info!(
                target: telemetry::METRICS,
                quiet = polls.len(),
                checked = polls.iter().map(|poll| poll.checked).sum::<u64>(),
                stale = polls.iter().map(|poll| poll.stale).sum::<u64>(),
                "metrics"
            );
        });
    }
}

fn parse(message: &Message) -> Option<SyncMessage> {
    SyncMessage::parse(message.body.as_deref().unwrap_or_default())
}
