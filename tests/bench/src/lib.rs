//! Scale and cost of many tenants: `scale` measures on this machine, `cost` computes a bill from the measured counts and
//! list prices.

pub mod capacity;
pub mod cost;
pub mod counts;
pub mod deployment;
pub mod fleet;
pub mod measured;
pub mod prices;
pub mod relay;
