//! `secret-rotation`: replaces the app's client secret without an outage.

use std::process::ExitCode;

use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use secret_rotation::{App, Config};
use serde_json::Value;
use shared::{clock::Clock, event::Invocation, http::Outbound, launch};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Returned as it is: a `Result` would be printed to standard error on its way out.
    run().await.err().unwrap_or(ExitCode::SUCCESS)
}

async fn run() -> Result<(), ExitCode> {
    let config = launch::configure(Config::read)?;
    let outbound = Outbound::new().map_err(launch::fatal)?;
    let app = &App::new(config, &launch::aws().await, outbound, Clock::system());
    let serve = service_fn(move |event: LambdaEvent<Value>| async move {
        let invocation = Invocation::new(event.context.request_id, event.context.deadline, &Clock::system());
        let answer = launch::guarded(app.handle(event.payload, invocation)).await;
        answer.map_err(|failure| Diagnostic { error_type: failure.code.into(), error_message: failure.detail })
    });
    lambda_runtime::run(serve).await.map_err(launch::fatal)
}
