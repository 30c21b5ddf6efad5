//! A function whose work panics. It shows what one bad record does to a process in the profile of the deployed functions.

use std::process::ExitCode;

use serde_json::{Value, json};
use shared::lambda::{event::InvocationError, runtime::serve};

#[tokio::main]
async fn main() -> ExitCode {
    serve(|_| Some(()), |(), _| (), async |(), event, _| handle(&event).await).await
}

/// Works on each record in a task of its own, as `incident-fetch` does on its messages. An event without records panics.
async fn handle(event: &Value) -> Result<Value, InvocationError> {
    let Some(records) = event["Records"].as_array() else { bad_record() };
    let mut failures = Vec::new();
    for record in records {
        let is_bad = record["body"] == "bad";
        let work = tokio::spawn(async move {
            if is_bad {
                bad_record();
            }
        });
        if work.await.is_err() {
            failures.push(json!({"itemIdentifier": record["messageId"]}));
        }
    }
    Ok(json!({"batchItemFailures": failures}))
}

#[expect(clippy::panic, reason = "the panic is what this program is for")]
fn bad_record() -> ! {
    panic!("a bad record")
}
