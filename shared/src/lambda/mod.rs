//! AWS Lambda: what starts a function, how its process starts, how one invocation runs.

pub mod event;
pub mod runtime;
