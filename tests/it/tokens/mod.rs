//! The token client and `token-issuance` against Entra on loopback.

mod breaker;
mod cache;
mod credential;
mod harness;
mod issuance;
mod later_release;
mod repair;
