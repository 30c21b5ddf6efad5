//! One tick over many due tenants, and two at once.

use std::collections::BTreeMap;
use std::time::Duration;

use bench::cost::Dispatch;
use bench::counts::float;
use bench::fleet;
use devstack::Failed;
use devstack::{Console, Progress as _};
use serde_json::Value;
use shared::clock::Clock;
use shared::tenant::TenantId;

use crate::setting::Setting;

/// For one tick, on a machine that does other things too.
const ENOUGH: Duration = Duration::from_mins(5);

/// Ticks with nothing due, with `number` tenants due, and twice at once.
///
/// # Errors
/// When a tenant is dispatched twice, or not at all.
pub(crate) async fn measure(setting: &Setting, number: usize, console: &mut Console) -> Result<Dispatch, Failed> {
    let tenants = fleet::tenant_ids(number)?;
    let registry = fleet::registry(&setting.stack);
    console.step(&format!("making {number} tenants due"));
    for tenant in &tenants {
        let known = registry.tenant(tenant).await.map_err(|error| Failed(error.to_string()))?;
        if known.is_none() {
            fleet::onboard(&registry, &[*tenant], Clock::system().now()).await?;
        }
    }

    console.step("dispatching them");
    fleet::make_due(&registry, &tenants, Clock::system().now()).await?;
    let (before, began) = (setting.counts().await, Clock::system().now());
    let answer = tick(setting).await?;
    let seconds = Clock::system().now().duration_since(began).as_secs_f64();
    let counts = setting.counts().await.since(&before);
    dispatched_once(setting, &tenants, "one tick").await?;

    let before = setting.counts().await;
    tick(setting).await?;
    let idle = setting.counts().await.since(&before);

    console.step("dispatching them by two ticks at once");
    fleet::make_due(&registry, &tenants, Clock::system().now()).await?;
    let (one, other) = tokio::join!(tick(setting), tick(setting));
    let (one, other) = (queued(&one?), queued(&other?));
    dispatched_once(setting, &tenants, "two ticks at once").await?;

    console.line("");
    console.line(&format!("a dispatch with {} tenants due, {} queued", answer["due"], answer["queued"]));
    console.line(&format!("    seconds                              {seconds:>10.1}"));
    for (name, amount) in counts.iter().filter(|(name, _)| !name.starts_with("fetch")) {
        let each = amount / float(number);
        console.line(&format!("    {name:<36} {amount:>10.1}   a tenant {each:>8.4}"));
    }
    console.line(&format!("two dispatches at once: {one} + {other} queued, each tenant once"));
    Ok(Dispatch { tenants: number, counts, idle })
}

/// What the schedule does, with more time than it gives: how long it takes is for the reader to judge.
async fn tick(setting: &Setting) -> Result<Value, Failed> {
    let input = serde_json::json!({ "kind": "poll" });
    Ok(setting.stack.invoke_with_deadline("incident-dispatch", input, ENOUGH).await?)
}

fn queued(answer: &Value) -> u64 {
    answer["queued"].as_u64().unwrap_or_default()
}

/// Takes everything from the queue, which must hold one message for each tenant.
async fn dispatched_once(setting: &Setting, tenants: &[TenantId], how: &str) -> Result<(), Failed> {
    let sqs = aws_sdk_sqs::Client::new(setting.stack.aws().config());
    let queue = &setting.stack.resources().queue_url;
    let mut messages: BTreeMap<String, usize> = BTreeMap::new();
    loop {
        let receive = sqs.receive_message().queue_url(queue).max_number_of_messages(10);
        let received = receive.send().await.map_err(|error| Failed(format!("reading the queue: {error}")))?;
        let received = received.messages.unwrap_or_default();
        if received.is_empty() {
            break;
        }
        for message in received {
            let body: Value = serde_json::from_str(message.body().unwrap_or_default()).unwrap_or_default();
            *messages.entry(body["tenant_id"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
            let receipt = message.receipt_handle().unwrap_or_default();
            let delete = sqs.delete_message().queue_url(queue).receipt_handle(receipt);
            delete.send().await.map_err(|error| Failed(format!("emptying the queue: {error}")))?;
        }
    }
    let missing = tenants.iter().filter(|tenant| !messages.contains_key(&tenant.to_string())).count();
    let repeated = messages.values().filter(|number| **number > 1).count();
    if missing > 0 || repeated > 0 || messages.len() != tenants.len() {
        return Err(Failed(format!("{how}: {missing} tenants were not dispatched, {repeated} more than once")));
    }
    Ok(())
}
