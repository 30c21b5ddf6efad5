//! The page on loopback.

use crate::{api::Api, args::ConsoleArgs, problem::Problem};

/// Serves the page until the person ends it.
pub async fn serve(_api: Api, _args: ConsoleArgs) -> Result<(), Problem> {
    Err(Problem::new("internal", "The console is not built in."))
}
