//! The sync, on both APIs: `incident-fetch` and `incident-dispatch` in this process, against the simulator and a local
//! AWS, with clocks that are moved by hand.

mod access_tokens;
mod bad_records;
mod budget;
mod calls;
mod dead_ends;
mod deliveries;
mod dispatch;
mod earlier_versions;
mod failures;
mod harness;
mod hunting;
mod incident_events;
mod later_release;
mod live;
mod live_completeness;
mod model;
mod ocsf_findings;
mod odd_records;
mod open_incidents;
mod operations;
mod quiet;
mod refusals;
mod slow_aws;
mod status_events;
mod sweeps;
mod windows;
mod workers;
