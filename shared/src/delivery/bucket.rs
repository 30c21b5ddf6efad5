//! The bucket: incidents as compressed lines, and what had to be set aside.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
};

use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_s3::{Client, error::ProvideErrorMetadata, primitives::ByteStream};
use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    delivery::events::DeliveredObject,
    error::{Error, Result},
    incident::{
        line::IncidentLine,
        ocsf::{Finding, incident_finding},
        record::Record,
        version::{Change, DeliveredVersion},
    },
    microsoft::IncidentApi,
    tenant::TenantId,
    text::hex,
};

/// How often a write is tried again that collided with another one of the same name.
const TRIES: u32 = 3;

/// `DELIVERY_FORMAT`: as what incidents are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines of `incident/1` under `incidents/`.
    Envelope,
    /// OCSF Incident Findings under `ocsf/`.
    Ocsf,
    /// Both.
    Both,
}

impl std::str::FromStr for Format {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "envelope" => Ok(Self::Envelope),
            "ocsf" => Ok(Self::Ocsf),
            "both" => Ok(Self::Both),
            _ => Err(()),
        }
    }
}

/// The bucket that incidents are delivered to.
#[derive(Clone, Debug)]
pub struct Bucket {
    client: Client,
    name: String,
    format: Format,
}

/// Versions of one tenant on their way into the bucket: compressed as they come, one object for each day of last update.
pub struct Batch {
    format: Format,
    days: BTreeMap<String, Day>,
    /// What will be known of each incident once the batch is written.
    pub versions: HashMap<String, DeliveredVersion>,
}

struct Day {
    envelopes: Option<Lines>,
    findings: Option<Lines>,
    keys: Vec<String>,
    from: Timestamp,
    to: Timestamp,
}

/// Lines, compressed as they come.
type Lines = GzEncoder<Vec<u8>>;

fn no_lines() -> Lines {
    GzEncoder::new(Vec::new(), Compression::default())
}

fn add_line(lines: &mut Lines, line: &impl Serialize) -> Result<()> {
    let written = serde_json::to_writer(&mut *lines, line).map_err(std::io::Error::from);
    written.and_then(|()| lines.write_all(b"\n")).map_err(|_| Error::Internal("a line could not be compressed".into()))
}

impl Batch {
    /// A batch with nothing in it, to be written as `format`.
    pub fn new(format: Format) -> Self {
        Self { format, days: BTreeMap::new(), versions: HashMap::new() }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// Compressed bytes so far.
    pub fn size(&self) -> usize {
        let lines = self.days.values().flat_map(|day| [&day.envelopes, &day.findings]).flatten();
        lines.map(|lines| lines.get_ref().len()).sum()
    }

    /// Adds a version.
    pub fn add(
        &mut self,
        tenant: &TenantId,
        api: IncidentApi,
        record: &Record,
        (change, ordinal): (Change, u32),
        fetched_at: Timestamp,
    ) -> Result<()> {
        let envelope = IncidentLine::of(tenant, api, record, ordinal, Some(change), fetched_at)?;
        let date = record.last_updated.strftime("%Y-%m-%d").to_string();
        let format = self.format;
        let day = self.days.entry(date).or_insert_with(|| Day {
            envelopes: matches!(format, Format::Envelope | Format::Both).then(no_lines),
            findings: matches!(format, Format::Ocsf | Format::Both).then(no_lines),
            keys: Vec::new(),
            from: record.last_updated,
            to: record.last_updated,
        });
        if let Some(lines) = &mut day.envelopes {
            add_line(lines, &envelope)?;
        }
        if let Some(lines) = &mut day.findings {
            let key = &envelope.key;
            let finding = Finding { tenant_id: tenant, api, record, change: Some(change), key, fetched_at };
            add_line(lines, &incident_finding(&finding)?)?;
        }
        // The digest tells apart what a record held when it changed again, without a new time, before it was noted.
        day.keys.push(format!("{} {}", envelope.key, record.state_hash));
        day.from = day.from.min(record.last_updated);
        day.to = day.to.max(record.last_updated);
        self.versions.insert(record.incident_id.clone(), DeliveredVersion::of(record, ordinal, api));
        Ok(())
    }
}

impl Bucket {
    /// The bucket named `name`.
    pub fn new(config: &aws_config::SdkConfig, name: String, format: Format) -> Self {
        // Custom endpoints (a local stack) have no name for each bucket.
        let path_style = config.endpoint_url().is_some();
        let config = aws_sdk_s3::config::Builder::from(config).force_path_style(path_style).build();
        Self { client: Client::from_conf(config), name, format }
    }

    /// A batch to be written here.
    pub fn batch(&self) -> Batch {
        Batch::new(self.format)
    }

    /// Writes a batch, an object for each day. An object's name follows from the versions in it and their states, so one
    /// that is there already holds exactly these.
    pub async fn write(&self, tenant: &TenantId, days: Batch) -> Result<Vec<DeliveredObject>> {
        let mut objects = Vec::new();
        for (date, mut day) in days.days {
            day.keys.sort_unstable();
            let name = hex(digest(&SHA256, day.keys.join("\n").as_bytes()).as_ref());
            for (prefix, lines) in [("incidents", day.envelopes), ("ocsf", day.findings)] {
                let Some(lines) = lines else { continue };
                let object = format!("{prefix}/tenant_id={tenant}/date={date}/{name}.ndjson.gz");
                let body = lines.finish().map_err(|_| Error::Internal("an object could not be compressed".into()))?;
                self.put(&object, body, "application/x-ndjson", Some("gzip")).await?;
                objects.push(DeliveredObject {
                    bucket: self.name.clone(),
                    object,
                    count: day.keys.len(),
                    from: day.from.to_string(),
                    to: day.to.to_string(),
                });
            }
        }
        Ok(objects)
    }

    /// Sets something aside, as JSON under `quarantine/`. The same name is written once.
    pub async fn write_quarantined(&self, tenant: &TenantId, name: &str, what: &serde_json::Value) -> Result<()> {
        let object = format!("quarantine/tenant_id={tenant}/{name}.json");
        self.put(&object, what.to_string().into_bytes(), "application/json", None).await
    }

    /// Keeps the receipt of an offboarding, as JSON under `receipts/`.
    pub async fn keep_receipt(&self, tenant: &TenantId, at: Timestamp, receipt: &impl Serialize) -> Result<()> {
        let object = format!("receipts/tenant_id={tenant}/{at:.3}.json");
        let json = serde_json::to_vec(receipt).map_err(|_| Error::Internal("a receipt could not be written".into()))?;
        self.put(&object, json, "application/json", None).await
    }

    async fn put(&self, object: &str, body: Vec<u8>, content_type: &str, encoding: Option<&str>) -> Result<()> {
        let mut tries = 0;
        loop {
            tries += 1;
            let outcome = self
                .client
                .put_object()
                .bucket(&self.name)
                .key(object)
                .if_none_match("*")
                .content_type(content_type)
                .set_content_encoding(encoding.map(str::to_owned))
                .body(ByteStream::from(body.clone()))
                .send()
                .await;
            let Err(error) = outcome else { return Ok(()) };
            match error.code() {
                // It is there, with exactly these versions in it.
                Some("PreconditionFailed") => return Ok(()),
                Some("ConditionalRequestConflict") if tries < TRIES => {}
                _ => return Err(Error::aws("s3:PutObject", &error)),
            }
        }
    }
}
