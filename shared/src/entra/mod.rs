//! The protocols of Microsoft Entra: tokens, sign-in and consent.

use jiff::SignedDuration;

mod aadsts;
pub mod access_token;
mod claims;
mod client_assertion;
pub mod consent;
pub mod credential;
mod credential_cache;
pub mod discovery;
pub mod id_token;
mod jwks;
pub mod sign_in;
pub mod token_cache;
mod token_client;
pub mod token_endpoint;
mod web_identity;

/// The largest difference between Entra's clock and ours that a token's times may show.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);
