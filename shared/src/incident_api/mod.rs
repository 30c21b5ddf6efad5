//! One tenant's incident API: Microsoft Graph security or the Defender API.

pub mod client;
pub mod hunting;
pub mod list;
mod odata;
pub mod query;
mod response;
mod row_memory;
mod rows;
