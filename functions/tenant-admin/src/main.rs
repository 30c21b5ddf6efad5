//! `tenant-admin`: invitations, tenants, backfill, offboarding, for the operator.

use std::process::ExitCode;

use shared::lambda::runtime::serve;
use tenant_admin::{App, Config};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    serve(Config::read, App::new, App::handle).await
}
