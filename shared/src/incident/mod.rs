//! One incident: its record, its versions, and the forms of delivery. Nothing here does input or output.

pub mod line;
pub mod ocsf;
pub mod record;
pub mod span;
pub mod summary;
pub mod version;
