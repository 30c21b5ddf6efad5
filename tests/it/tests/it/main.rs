//! Whole parts in one process, over loopback.

mod aws;
mod tokens;
