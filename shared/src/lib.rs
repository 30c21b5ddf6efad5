//! The code that the functions of Mandate share. A room uses only rooms on lower floors.
//!
//! | floor | room | holds |
//! |---|---|---|
//! | 1 | [`tenant`], [`clock`], [`text`] | the identifier of a tenant, time, text |
//! | 2 | [`error`] | one error type whose variants are decisions |
//! | 3 | [`http`], [`telemetry`], [`random`] | the way out to the network, logs and metrics, randomness |
//! | 4 | [`microsoft`], [`aws`] | the incident APIs, the clouds, their hosts and audiences; the configuration of the AWS SDK and its connector |
//! | 5 | [`incident`], [`config`], [`queue`] | one incident without input or output; the environment; the queue of sync jobs |
//! | 6 | [`registry`], [`lambda`] | the DynamoDB table; how an invocation starts and ends |
//! | 7 | [`entra`], [`delivery`] | tokens, sign-in and consent; S3 and EventBridge |
//! | 8 | [`incident_api`] | one tenant's incident API |
//! | 9 | [`onboarding`] | from a consent to a tenant that is known to work |
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
