//! Where incidents and news of tenants go: S3 and EventBridge.

pub mod bucket;
pub mod events;
