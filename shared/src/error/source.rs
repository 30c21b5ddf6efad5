//! The causes of our errors, for the log.

use std::{error::Error as StdError, fmt, sync::Arc};

/// The error below one of ours. Two are equal if their texts are.
#[derive(Clone, Debug)]
pub struct Source(Arc<dyn StdError + Send + Sync>);

impl Source {
    /// Keeps `error`, whose texts must not hold a secret or anything from outside.
    pub fn new(error: impl StdError + Send + Sync + 'static) -> Self {
        Self(Arc::new(error))
    }

    pub(super) fn as_error(&self) -> &(dyn StdError + 'static) {
        &*self.0
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        Chain(self.as_error()).to_string() == Chain(other.as_error()).to_string()
    }
}

/// A failure of ours or of AWS, for the log. Callers never read it.
#[derive(Clone, Debug, PartialEq)]
pub struct InternalError {
    pub(super) context: String,
    pub(super) source: Option<Source>,
}

impl From<String> for InternalError {
    fn from(context: String) -> Self {
        Self { context, source: None }
    }
}

impl From<&str> for InternalError {
    fn from(context: &str) -> Self {
        context.to_owned().into()
    }
}

/// An error and all errors below it, in one line.
pub(super) struct Chain<'a>(pub(super) &'a dyn StdError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        std::iter::successors(self.0.source(), |&error| error.source()).try_for_each(|error| write!(f, ": {error}"))
    }
}
