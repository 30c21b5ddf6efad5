//! The outputs to consumers: incidents in S3, and events about objects and tenants on EventBridge.

pub mod bucket;
pub mod events;
mod gzip;
pub mod lines;
