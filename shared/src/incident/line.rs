//! The line of the schema `incident/1`.

use std::io::{self, Write};

use serde::Serialize;

use super::version::{Change, Version};
use crate::{microsoft::IncidentApi, tenant::TenantId};

/// One version of an incident in the schema `incident/1`, as consumers and callers read it.
#[derive(Debug)]
pub struct IncidentLine<'a> {
    head: Head<'a>,
    incident: &'a str,
}

/// The members before `incident`.
#[derive(Debug, Serialize)]
struct Head<'a> {
    schema: &'static str,
    key: String,
    tenant_id: TenantId,
    incident_id: &'a str,
    change: Option<Change>,
    api: IncidentApi,
    last_updated: String,
    fetched_at: String,
}

impl<'a> IncidentLine<'a> {
    /// The line of a version.
    pub fn of(version: &Version<'a>) -> Self {
        let Version { tenant_id, api, record, change, fetched_at, .. } = *version;
        let head = Head {
            schema: "incident/1",
            key: version.key(),
            tenant_id,
            incident_id: &record.incident_id,
            change,
            api,
            last_updated: record.last_updated.to_string(),
            fetched_at: format!("{fetched_at:.3}"),
        };
        Self { head, incident: &record.json }
    }

    /// Writes the line as JSON, with the record exactly as it was parsed. It is not parsed again, so it goes to `out` as a
    /// whole.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(&self.head)?;
        line.pop();
        line.extend_from_slice(br#","incident":"#);
        out.write_all(&line)?;
        out.write_all(self.incident.as_bytes())?;
        out.write_all(b"}")
    }
}
