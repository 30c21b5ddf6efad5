//! AWS Lambda: events and responses, the process of a function, JSON routes.
//!
//! # Boxed futures
//! The future of a function holds the futures of all calls below it, and those of the AWS SDK are deep. rustc computes the
//! layout of such a future by recursion and exceeds its limit. So some futures are boxed: the work of an invocation, of a
//! route, of a message, of a token request, and some calls of the SDK. Boxing as `dyn` in a function that is not `async`
//! also keeps the caller's future from holding the work itself.

pub mod event;
mod jwt;
pub mod route;
pub mod runtime;
