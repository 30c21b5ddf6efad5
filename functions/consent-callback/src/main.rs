//! `consent-callback`: from a customer's invitation through sign-in and admin consent to a verified tenant.

use std::process::ExitCode;

use consent_callback::{App, Config};
use shared::lambda::runtime::serve;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    serve(Config::read, App::new, App::handle).await
}
