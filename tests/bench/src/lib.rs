//! Shows how the system bears many tenants, and what they cost: `scale` measures on this machine, `cost` computes from
//! what was measured and from list prices.

pub mod capacity;
pub mod cost;
pub mod counts;
pub mod fleet;
pub mod relay;

use std::fmt;

use devstack::{FunctionError, StackError};

/// What went wrong, or which promise did not hold, in one line.
#[derive(Debug)]
pub struct Failed(pub String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<StackError> for Failed {
    fn from(error: StackError) -> Self {
        Self(error.to_string())
    }
}

impl From<FunctionError> for Failed {
    fn from(error: FunctionError) -> Self {
        Self(format!("a function failed: {error}"))
    }
}

impl From<shared::error::Error> for Failed {
    fn from(error: shared::error::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}
