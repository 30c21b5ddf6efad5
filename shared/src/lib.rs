//! What every function of Mandate shares: the domain, one folder or file for each neighbour.
//!
//! - [`entra`]: everything said to the login host: credentials, tokens, sign-in, consent.
//! - [`incidents`]: one incident, two surfaces (Graph and Defender), and the sync that loses none.
//! - [`registry`]: tenants, invitations, leases, cursors, delivered versions: the DynamoDB table.
//! - [`delivery`]: objects in S3 and events on EventBridge.
//! - [`event`]: what starts a function and what it answers.

pub mod clock;
pub mod config;
#[cfg(test)]
mod damage;
pub mod delivery;
pub mod entra;
pub mod error;
pub mod event;
pub mod http;
pub mod incidents;
pub mod launch;
pub mod onboarding;
pub mod queue;
pub mod registry;
pub mod telemetry;
