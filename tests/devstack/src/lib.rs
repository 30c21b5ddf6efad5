//! The local stack: the resources of `infra/template.yaml` on this machine.
//!
//! The functions' real binaries run behind an emulated Lambda Runtime API, API Gateway, SQS event source and Scheduler;
//! AWS is moto's server, to which the unchanged template is deployed. Microsoft is the crate `sim`. Tests start a
//! [`Stack`] of their own with ephemeral ports; `cargo dev` starts one with fixed ports and keeps it running.
//!
//! Differences from AWS: signatures and IAM policies are not checked, no request is throttled, failed messages are
//! delivered again at once, and a function's memory is not limited.

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
#[cfg(test)]
mod testing;

pub use ambient::{http_client, instant};
pub use aws::{Aws, Resources};
pub use browser::{Browser, Button, Page};
pub use console::{Console, Progress, Quiet};
pub use error::{Failed, FunctionError, StackError};
pub use functions::{build, build_operator};
pub use gateway::{Auth, Route, RouteMatch, Routes, raw_path};
pub use log_book::LogLine;
pub use pool::Usage;
pub use python::interpreter;
pub use stack::{ApiResponse, Builds, CLIENT_ID, LaterItems, LaterKind, Ports, Release, SignIn, Stack, StackOptions};

/// The account id of the local AWS.
pub const ACCOUNT_ID: &str = "123456789012";
/// The region of the local AWS.
pub const REGION: &str = "eu-central-1";
