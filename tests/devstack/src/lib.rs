//! The local stack: what `infra/template.yaml` deploys, on this machine.
//!
//! The functions' real binaries run behind an emulated Lambda Runtime API, API Gateway, SQS event source and Scheduler;
//! AWS is moto's server, to which the template is deployed as it is; Microsoft is the crate `sim`. Tests start a
//! [`Stack`] of their own with ephemeral ports; `cargo dev` starts one with fixed ports and keeps it up.
//!
//! What is not AWS: signatures and IAM policies are not checked, nothing is throttled, failed messages come back at
//! once, and a function's memory is not limited.

mod ambient;
mod aws;
mod browser;
mod console;
mod error;
mod event_source;
mod failures;
mod functions;
mod gateway;
mod log_book;
mod microsoft;
mod paths;
mod pool;
mod python;
mod rotation;
mod runtime_api;
mod schedule;
mod stack;

pub use ambient::{http_client, instant};
pub use aws::{Aws, Resources};
pub use browser::{Browser, Button, Page};
pub use console::{Console, Progress, Quiet};
pub use error::{Failed, FunctionError, StackError};
pub use functions::build;
pub use log_book::LogLine;
pub use pool::Usage;
pub use python::interpreter;
pub use stack::{ApiReply, CLIENT_ID, Ports, Stack, StackOptions};

/// The account that the local AWS plays.
pub const ACCOUNT_ID: &str = "123456789012";
/// The region that the local AWS plays.
pub const REGION: &str = "eu-central-1";
