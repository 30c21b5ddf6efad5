//! `secret-rotation`: replaces the app's client secret without an outage.

use std::process::ExitCode;

use secret_rotation::{App, Config};
use shared::lambda::runtime::serve;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    serve(Config::read, App::new, App::handle).await
}
