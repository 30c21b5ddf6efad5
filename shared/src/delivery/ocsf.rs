//! stub
use crate::{
    entra::TenantId,
    error::Result,
    incidents::{Surface, record::Record, version::Change},
};
/// stub
pub struct Finding<'a> {
    pub tenant_id: &'a TenantId,
    pub surface: Surface,
    pub record: &'a Record,
    pub change: Option<Change>,
    pub key: &'a str,
    pub fetched_at: jiff::Timestamp,
}
/// stub
pub fn incident_finding(_: &Finding<'_>) -> Result<serde_json::Value> {
    Ok(serde_json::Value::Null)
}
