//! EventBridge Scheduler: the template's schedules, triggered by time or by hand.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use crate::{error::FunctionError, failures::Failures, pool::Pool};

/// A schedule as `deploy.py` reports it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ScheduleConfig {
    /// The name of the function in AWS, not of its binary.
    pub(crate) function: String,
    /// The period of a `rate(…)`. A `cron(…)` has none and ticks only by hand.
    pub(crate) every_seconds: Option<u64>,
    pub(crate) input: Value,
}

#[derive(Debug)]
pub(crate) struct Schedule {
    config: ScheduleConfig,
    function: Arc<Pool>,
}

impl Schedule {
    pub(crate) fn new(config: ScheduleConfig, function: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self { config, function })
    }

    /// The member `kind` of the schedule's input.
    pub(crate) fn kind(&self) -> Option<&str> {
        self.config.input.get("kind")?.as_str()
    }

    /// Invokes the function once and returns its response.
    pub(crate) async fn tick(&self) -> Result<Value, FunctionError> {
        self.function.invoke(&self.config.input).await
    }

    /// Invokes the function once as an operator does, for all tenants. A schedule of sweeps is for those of one hour.
    pub(crate) async fn tick_for_all(&self) -> Result<Value, FunctionError> {
        self.function.invoke(&json!({"kind": self.kind()})).await
    }

    /// Ticks until the future is dropped. `period` overrides the template's rate.
    pub(crate) async fn run(self: Arc<Self>, period: Option<Duration>, failures: Arc<Failures>) {
        let Some(period) = period.or(self.config.every_seconds.map(Duration::from_secs)) else {
            return;
        };
        let mut ticks = tokio::time::interval(period.max(Duration::from_millis(100)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.tick().await {
                failures.record(&self.function.spec().binary, &error);
            }
        }
    }
}
