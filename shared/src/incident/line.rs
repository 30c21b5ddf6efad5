//! The line of the schema `incident/1`.

use std::io::{self, Write};

use jiff::Timestamp;
use serde::Serialize;

use super::version::{Change, Version};
use crate::{microsoft::IncidentApi, tenant::TenantId, text::format_with_capacity};

/// The bytes of the members before `incident`, and some to spare.
const HEAD_CAPACITY: usize = 384;

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
    key: &'a str,
    tenant_id: TenantId,
    incident_id: &'a str,
    change: Option<Change>,
    api: IncidentApi,
    last_updated: Timestamp,
    fetched_at: String,
}

impl<'a> IncidentLine<'a> {
    /// The line of a version with this [`Version::key`].
    pub fn of(version: &Version<'a>, key: &'a str) -> Self {
        let Version { tenant_id, api, record, change, fetched_at, .. } = *version;
        let head = Head {
            schema: "incident/1",
            key,
            tenant_id,
            incident_id: &record.incident_id,
            change,
            api,
            last_updated: record.last_updated,
            fetched_at: format_with_capacity("2026-11-22T10:00:00.000Z".len(), format_args!("{fetched_at:.3}")),
        };
        Self { head, incident: &record.json }
    }

    /// Writes the line as JSON, with the record exactly as it was parsed. It is not parsed again, so it goes to `out` as a
    /// whole.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let mut line = Vec::with_capacity(HEAD_CAPACITY);
        serde_json::to_writer(&mut line, &self.head)?;
        line.pop();
        line.extend_from_slice(br#","incident":"#);
        out.write_all(&line)?;
        out.write_all(self.incident.as_bytes())?;
        out.write_all(b"}")
    }
}
