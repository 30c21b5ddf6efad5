//! Failed invocations of the queue and the schedules, whose response no caller waits for.

use std::sync::{Mutex, PoisonError};

use crate::error::FunctionError;

#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<Vec<String>>);

impl Failures {
    pub(crate) fn record(&self, binary: &str, error: &FunctionError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{binary}: {error}"));
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
