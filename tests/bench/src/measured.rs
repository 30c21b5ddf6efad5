//! The results of `scale`, as `--write` stores them and `cost` reads them.

use serde::{Deserialize, Serialize};

use crate::counts::Counts;

/// The counts and times of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The circumstances of the run.
    pub conditions: Conditions,
    /// Counts of one poll without a change by a process that has no token of the tenant.
    pub new_process_poll: Counts,
    /// Counts of one poll without a change.
    pub quiet_poll: Counts,
    /// Counts of one poll without a change that writes how far it read.
    pub written_poll: Counts,
    /// Counts of one poll without a change that moves the due time.
    pub stretched_poll: Counts,
    /// Counts of one poll that delivers one version.
    pub delivering_poll: Counts,
    /// Counts of one poll whose overlap contains a version that is already delivered.
    pub known_poll: Counts,
    /// The counts of one dispatch over many tenants.
    pub dispatch: Dispatch,
    /// The delay of changes at healthy tenants.
    pub lag: Lag,
}

/// The circumstances of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// The date in UTC, `YYYY-MM-DD`.
    pub on: String,
    /// Cores of the machine, which everything shared.
    pub cores: usize,
    /// The cargo profile of the functions: `debug` or `release`.
    pub build: String,
    /// Tenants that were polled on schedule.
    pub tenants: usize,
    /// The poll interval of these tenants.
    pub interval_seconds: u32,
}

/// The counts of one dispatch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dispatch {
    /// Number of tenants that were due.
    pub tenants: usize,
    /// Counts with all of these tenants due.
    pub counts: Counts,
    /// Counts with no tenant due.
    pub idle: Counts,
}

/// The delay of changes at healthy tenants, in seconds from the change at Microsoft to the object in S3.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Number of other tenants whose requests got a 429 again and again.
    pub throttled: usize,
    /// Number of other tenants whose lists all failed.
    pub broken: usize,
    /// Number of changes at healthy tenants.
    pub changes: usize,
    /// Number of changes that were delivered at least once.
    pub delivered: usize,
    /// Number of changes that were delivered more than once.
    pub repeated: usize,
    /// Number of tenants with a change that took longer than two poll intervals.
    pub late_tenants: usize,
    /// The median of the delays.
    pub p50: f64,
    /// The 99th percentile of the delays.
    pub p99: f64,
    /// The longest delay of a change.
    pub longest: f64,
    /// The median time from a dispatch to the last poll that it caused. `None`: no two dispatches were measured.
    pub tick_p50: Option<f64>,
    /// The longest time from a dispatch to the last poll that it caused, likewise.
    pub tick_longest: Option<f64>,
    /// The longest invocation of `incident-fetch`, in seconds.
    pub longest_batch: f64,
    /// Calls of the functions to AWS, per second.
    pub aws_calls_a_second: f64,
    /// Mean duration of these calls, in milliseconds.
    pub aws_millis_a_call: f64,
}
