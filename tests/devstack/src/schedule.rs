//! The schedules of the template, as EventBridge Scheduler would run them.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::Value;
use tokio::time::MissedTickBehavior;

use crate::{error::FunctionError, failures::Failures, pool::Pool};

/// As the template declares it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Declared {
    /// The function's name.
    pub(crate) function: String,
    /// The period of a `rate(…)`; a `cron(…)` has none, and is ticked by hand only.
    pub(crate) every_seconds: Option<u64>,
    pub(crate) input: Value,
}

#[derive(Debug)]
pub(crate) struct Schedule {
    declared: Declared,
    function: Arc<Pool>,
}

impl Schedule {
    pub(crate) fn new(declared: Declared, function: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self { declared, function })
    }

    /// The `kind` of its input.
    pub(crate) fn kind(&self) -> Option<&str> {
        self.declared.input.get("kind")?.as_str()
    }

    /// One tick, now.
    pub(crate) async fn tick(&self) -> Result<Value, FunctionError> {
        self.function.invoke(&self.declared.input).await
    }

    /// Ticks until it is dropped; `every` takes the place of the declared period.
    pub(crate) async fn pump(self: Arc<Self>, every: Option<Duration>, failures: Arc<Failures>) {
        let Some(period) = every.or(self.declared.every_seconds.map(Duration::from_secs)) else {
            return;
        };
        let mut ticks = tokio::time::interval(period.max(Duration::from_millis(100)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.tick().await {
                failures.tell(&self.function.spec().binary, &error);
            }
        }
    }
}
