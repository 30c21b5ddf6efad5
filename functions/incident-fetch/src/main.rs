//! `incident-fetch`: brings incidents in, and reads and changes them live.

use std::process::ExitCode;

use incident_fetch::{App, Config};
use shared::lambda::runtime::serve;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    serve(Config::read, App::new, App::handle).await
}
