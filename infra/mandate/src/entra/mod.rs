//! The operator's own directory: the app registration and its certificate.

pub(crate) mod certificate;
mod graph;
pub(crate) mod register;
mod sign_in;

pub(crate) use register::redirect_uri;
