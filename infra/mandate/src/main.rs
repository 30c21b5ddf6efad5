//! The operator's program of Mandate.

use std::process::ExitCode;

fn main() -> ExitCode {
    mandate::main()
}
