//! Measurements: `start`, `token`, `incidents`, `memory` and `calls` measure the release builds of the functions beside a
//! floor and a peer, `scale` many tenants on the local stack, and `cost` computes a bill from counts and list prices.

pub mod binaries;
pub mod capacity;
pub mod cost;
pub mod counts;
pub mod deployment;
pub mod fleet;
pub mod lambda;
pub mod measured;
pub mod prices;
pub mod relay;
pub mod report;
pub mod stand;
