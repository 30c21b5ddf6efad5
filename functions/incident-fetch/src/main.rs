//! `incident-fetch`: brings incidents in, and reads and changes them live.

use std::process::ExitCode;

use incident_fetch::{App, Config};
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde_json::Value;
use shared::{clock::Clock, event::Invocation, http::Outbound, launch};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config = match launch::configure(Config::read) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let Ok(outbound) = Outbound::new() else { return ExitCode::FAILURE };
    let app = &App::new(config, &launch::aws().await, outbound, Clock::system());
    let ended = lambda_runtime::run(service_fn(|event: LambdaEvent<Value>| async move {
        let invocation = Invocation::new(event.context.request_id, event.context.deadline, &Clock::system());
        launch::guarded(app.handle(event.payload, invocation))
            .await
            .map_err(|failure| Diagnostic { error_type: failure.code.to_owned(), error_message: failure.detail })
    }));
    if ended.await.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
