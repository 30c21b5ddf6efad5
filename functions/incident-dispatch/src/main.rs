//! `incident-dispatch`: puts a message on the queue for each tenant that is due.

use std::process::ExitCode;

use incident_dispatch::{App, Config};
use shared::lambda::runtime::serve;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    serve(Config::read, App::new, App::handle).await
}
