//! `token-issuance`: issues a validated app-only access token for one onboarded tenant.

use std::process::ExitCode;

use shared::lambda::runtime::serve;
use token_issuance::{App, Config};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    serve(Config::read, App::new, App::handle).await
}
