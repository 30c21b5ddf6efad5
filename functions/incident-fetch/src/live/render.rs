//! Incidents as callers read them.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use shared::{
    error::{Error, Result},
    incident::{
        line::IncidentLine,
        ocsf::write_incident_finding,
        record::Record,
        version::{Change, DeliveredVersion, ReadTime, Version, VersionComparison, compare},
    },
    registry::{Registry, tenants::Tenant, versions::VersionBlock},
    tenant::Reason,
};

use super::page::{MAX_RESPONSE_BYTES, Position, escaped_len, without_alerts};
use crate::App;

/// The form of the incidents in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ResponseFormat {
    /// Microsoft's own incident within our envelope.
    Envelope,
    /// An incident finding of the Open Cybersecurity Schema Framework.
    Ocsf,
}

/// The body of a list.
#[derive(Serialize)]
pub(crate) struct ListBody {
    pub(crate) incidents: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failures: Option<Vec<Value>>,
    pub(crate) next: Option<String>,
}

/// Renders incidents of one tenant with the keys of their versions.
pub(super) struct Renderer<'a> {
    registry: &'a Registry,
    tenant: &'a Tenant,
    format: ResponseFormat,
    fetched_at: Timestamp,
    delivered: HashMap<VersionBlock, HashMap<String, DeliveredVersion>>,
}

/// What the delivery of a version adds to its record.
#[derive(Clone, Copy)]
struct Delivery {
    /// `None`: it is not known, because a newer version was delivered since.
    change: Option<Change>,
    ordinal: u32,
}

impl<'a> Renderer<'a> {
    /// A renderer for incidents that were read just now.
    pub(super) fn new(app: &'a App, tenant: &'a Tenant, format: ResponseFormat) -> Self {
        Self { registry: &app.registry, tenant, format, fetched_at: app.clock.now(), delivered: HashMap::new() }
    }

    /// Renders an incident with the key under which its version was or will be delivered. If that is too long for a
    /// response, the alerts are left out. `None`: it is too long even so.
    pub(super) async fn render(&mut self, record: Record) -> Result<Option<Box<RawValue>>> {
        let delivery = self.delivery(&record).await?;
        let fits = |json: &RawValue| escaped_len(json.get()) <= MAX_RESPONSE_BYTES;
        let whole = self.serialize(&record, delivery)?;
        if fits(&whole) {
            return Ok(Some(whole));
        }
        let shorter = without_alerts(&record).map(|record| self.serialize(&record, delivery)).transpose()?;
        let shorter = shorter.filter(|shorter| fits(shorter));
        if shorter.is_none() {
            warn_too_large(&Position::of(self.tenant.tenant_id, &record));
        }
        Ok(shorter)
    }

    /// The delivery of this version, as it was or will be.
    async fn delivery(&mut self, record: &Record) -> Result<Delivery> {
        let block = VersionBlock::of(&record.incident_id);
        if let Entry::Vacant(unread) = self.delivered.entry(block) {
            unread.insert(self.registry.delivered_versions(&self.tenant.tenant_id, block).await?);
        }
        let delivered = self.delivered.get(&block).and_then(|versions| versions.get(&record.incident_id));
        let read_at = ReadTime { ours: self.fetched_at, microsofts: None };
        let (change, ordinal) = match (compare(delivered, record, self.tenant.api, read_at), delivered) {
            (VersionComparison::New { change, ordinal }, _) => (Some(change), ordinal),
            (VersionComparison::Same, Some(delivered)) => (delivered.change, delivered.ordinal),
            (VersionComparison::SameOnOtherApi, Some(delivered)) => (delivered.change, 1),
            (VersionComparison::Same | VersionComparison::SameOnOtherApi | VersionComparison::Stale, _) => (None, 1),
        };
        Ok(Delivery { change, ordinal })
    }

    fn serialize(&self, record: &Record, Delivery { change, ordinal }: Delivery) -> Result<Box<RawValue>> {
        let Tenant { tenant_id, api, .. } = *self.tenant;
        let change = match self.format {
            ResponseFormat::Ocsf => change,
            ResponseFormat::Envelope => None,
        };
        let version = Version { tenant_id, api, record, change, ordinal, fetched_at: self.fetched_at };
        let mut json = Vec::new();
        let written = match self.format {
            ResponseFormat::Ocsf => write_incident_finding(&version, &mut json),
            ResponseFormat::Envelope => IncidentLine::of(&version, &version.key()).write_to(&mut json),
        };
        let json = written.and_then(|()| String::from_utf8(json).map_err(io::Error::other));
        let json = json.and_then(|json| Ok(RawValue::from_string(json)?));
        json.map_err(|error| Error::internal("an incident could not be written", error))
    }
}

/// Logs that a response leaves an incident out because of its size.
pub(super) fn warn_too_large(position: &Position) {
    tracing::warn!(
        incident_id = position.incident_id(),
        "an incident is too large for a response even without its alerts"
    );
}

/// Logs that a tenant could not be read and returns its entry for a list over many. `tenant` is the identifier as the
/// caller wrote it.
pub(crate) fn tenant_failure(tenant: &str, error: &Error) -> Value {
    let (code, reason) = (error.code().0, error.reason().map(Reason::as_str));
    tracing::warn!(code, reason, cause = %error, "a tenant could not be read");
    json!({"tenant_id": tenant, "code": error.code().0, "reason": error.reason()})
}
