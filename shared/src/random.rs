//! Randomness that a caller hands in: for secrets, cookies, identifiers and assertions.

use std::sync::Arc;

use aws_lc_rs::rand::SecureRandom;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// A source of randomness that a function's parts share.
pub type Random = Arc<dyn SecureRandom + Send + Sync>;

/// `N` random bytes, wiped from memory when they are dropped.
///
/// # Errors
/// [`Error::Internal`] when the source fails.
pub fn random_bytes<const N: usize>(random: &dyn SecureRandom) -> Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    random.fill(bytes.as_mut_slice()).map_err(|_| Error::Internal("the source of randomness failed".into()))?;
    Ok(bytes)
}

/// A random GUID (version 4).
///
/// # Errors
/// [`Error::Internal`] when the source fails.
pub fn random_uuid(random: &dyn SecureRandom) -> Result<Uuid> {
    Ok(uuid::Builder::from_random_bytes(*random_bytes(random)?).into_uuid())
}
