//! `incident-dispatch`: puts a message on the queue for each tenant that is due.

use std::process::ExitCode;

use incident_dispatch::{App, Config};
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde_json::Value;
use shared::{clock::Clock, event::Invocation, launch};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config = match launch::configure(Config::read) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let app = &App::new(config, &launch::aws().await, Clock::system());
    let ended = lambda_runtime::run(service_fn(|event: LambdaEvent<Value>| async move {
        let invocation = Invocation::new(event.context.request_id, event.context.deadline, &Clock::system());
        launch::guarded(app.handle(event.payload, invocation))
            .await
            .map_err(|failure| Diagnostic { error_type: failure.code.to_owned(), error_message: failure.detail })
    }));
    if ended.await.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
