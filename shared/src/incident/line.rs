//! The line of `incident/1`: one version of an incident as it is delivered, read live or listed.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    record::Record,
    version::{Change, version_key},
};
use crate::{
    error::{Error, Result},
    microsoft::IncidentApi,
    tenant::TenantId,
};

/// One version of an incident as it is delivered, read live or listed: the schema `incident/1`.
#[derive(Debug, Serialize)]
pub struct IncidentLine<'a> {
    schema: &'static str,
    /// The same for two deliveries of one version.
    pub key: String,
    tenant_id: TenantId,
    incident_id: &'a str,
    change: Option<Change>,
    api: IncidentApi,
    last_updated: String,
    fetched_at: String,
    incident: &'a RawValue,
}

impl<'a> IncidentLine<'a> {
    /// The envelope of a record that was fetched at `fetched_at`; `change` is none where it is read live.
    pub fn of(
        tenant: &TenantId,
        api: IncidentApi,
        record: &'a Record,
        ordinal: u32,
        change: Option<Change>,
        fetched_at: Timestamp,
    ) -> Result<Self> {
        let incident: &RawValue = serde_json::from_str(&record.json)
            .map_err(|_| Error::Internal("a record that was read is no longer JSON".into()))?;
        Ok(Self {
            schema: "incident/1",
            key: version_key(tenant, record, ordinal),
            tenant_id: *tenant,
            incident_id: &record.incident_id,
            change,
            api: api,
            last_updated: record.last_updated.to_string(),
            fetched_at: format!("{fetched_at:.3}"),
            incident,
        })
    }
}
