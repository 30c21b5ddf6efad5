//! The code that the functions of Mandate share. A room uses only rooms on lower floors.
//!
//! | floor | room | holds |
//! |---|---|---|
//! | 1 | [`clock`], [`text`] | time, text |
//! | 2 | [`tenant`] | the identifier of a tenant, reasons |
//! | 3 | [`error`] | one error type whose variants are decisions |
//! | 4 | [`http`], [`telemetry`], [`random`] | the way out to the network, logs and metrics, randomness |
//! | 5 | [`microsoft`], [`aws`] | the incident APIs, the clouds, their hosts and audiences; the configuration of the AWS SDK and its connector |
//! | 6 | [`incident`], [`config`], [`queue`] | one incident without input or output; the environment; the queue of sync jobs |
//! | 7 | [`registry`], [`lambda`] | the DynamoDB table; how an invocation starts and ends |
//! | 8 | [`entra`], [`delivery`] | tokens, sign-in and consent; S3 and EventBridge |
//! | 9 | [`incident_api`] | one tenant's incident API |
//! | 10 | [`onboarding`] | from a consent to a tenant that is known to work |
//! | roof | [`clients`] | all of it wired together; no room uses it |

pub mod aws;
pub mod clients;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod entra;
pub mod error;
pub mod http;
pub mod incident;
pub mod incident_api;
pub mod lambda;
pub mod microsoft;
pub mod onboarding;
pub mod queue;
pub mod random;
pub mod registry;
pub mod telemetry;
pub mod tenant;
#[cfg(test)]
mod testing;
pub mod text;
