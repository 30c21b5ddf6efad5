//! Shows how the system bears many tenants, and what they cost: `scale` measures on this machine, `cost` computes from
//! what was measured and from list prices.

pub mod capacity;
pub mod cost;
pub mod counts;
pub mod fleet;
pub mod relay;
