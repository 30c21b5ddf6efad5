//! The line of the schema `incident/1`.

use serde::Serialize;
use serde_json::value::RawValue;

use super::version::{Change, Version};
use crate::{
    error::{Error, Result},
    microsoft::IncidentApi,
    tenant::TenantId,
};

/// One version of an incident in the schema `incident/1`, as consumers and callers read it.
#[derive(Debug, Serialize)]
pub struct IncidentLine<'a> {
    schema: &'static str,
    key: String,
    tenant_id: TenantId,
    incident_id: &'a str,
    change: Option<Change>,
    api: IncidentApi,
    last_updated: String,
    fetched_at: String,
    incident: &'a RawValue,
}

impl<'a> IncidentLine<'a> {
    /// The line of a version, with the record exactly as it was parsed.
    pub fn of(version: &Version<'a>) -> Result<Self> {
        let Version { tenant_id, api, record, change, fetched_at, .. } = *version;
        let incident: &RawValue = serde_json::from_str(&record.json)
            .map_err(|error| Error::internal("a parsed record is no longer JSON", error))?;
        Ok(Self {
            schema: "incident/1",
            key: version.key(),
            tenant_id,
            incident_id: &record.incident_id,
            change,
            api,
            last_updated: record.last_updated.to_string(),
            fetched_at: format!("{fetched_at:.3}"),
            incident,
        })
    }
}
