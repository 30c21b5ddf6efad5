//! One incident: the record, its versions, and the forms in which it is delivered. Pure rules without input or output.

pub mod line;
pub mod ocsf;
pub mod record;
pub mod span;
pub mod version;
