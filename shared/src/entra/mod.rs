//! Everything that is said to Microsoft Entra.

pub mod aadsts;
pub mod access_token;
pub mod claims;
pub mod consent;
pub mod credential;
pub mod sign_in;
pub mod token_cache;
pub mod token_endpoint;
