//! The sync, on both surfaces: `incident-fetch` and `incident-dispatch` in this process, against the simulator and a local
//! AWS, with clocks that are moved by hand.

mod access_tokens;
mod budget;
mod calls;
mod dead_ends;
mod failures;
mod harness;
mod live;
mod model;
mod refusals;
mod windows;
mod workers;
