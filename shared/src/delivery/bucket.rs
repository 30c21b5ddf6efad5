//! The bucket: incidents as compressed lines, quarantined content, receipts of offboarding.

use std::{
    collections::{BTreeMap, HashMap},
    io::{Read, Write},
    str::FromStr,
};

use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_s3::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
};
use bytes::Bytes;
use flate2::read::GzDecoder;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::{Timestamp, civil::Date, tz::Offset};
use serde::Serialize;

use crate::{
    aws::{LazyClient, lazy_client},
    clock::pause_before_attempt,
    delivery::{
        events::{DeliveredObject, IncidentChanged, IncidentEvents},
        gzip::CompressedLines,
        lines::LinesWriter,
    },
    error::{Error, Result},
    incident::{
        line::IncidentLine, ocsf::write_incident_finding, record::Record, summary::IncidentSummary, version::Version,
    },
    registry::versions::NewVersion,
    tenant::TenantId,
    text::hex,
};

/// Attempts for a write that collides with another one of the same name.
const MAX_ATTEMPTS: u32 = 3;

/// The most objects of one batch, which are written at the same time. A list may have a day for each incident, and an object
/// holds 256 KiB of lines before it compresses them.
const MAX_OBJECTS: usize = 16;

/// The schema of delivered incidents: the setting `DELIVERY_FORMAT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines of `incident/1` under `incidents/`.
    Envelope,
    /// OCSF Incident Findings under `ocsf/`.
    Ocsf,
    /// Both, in separate objects.
    Both,
}

/// The text is not a [`Format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAFormat;

impl FromStr for Format {
    type Err = NotAFormat;

    fn from_str(text: &str) -> Result<Self, NotAFormat> {
        match text {
            "envelope" => Ok(Self::Envelope),
            "ocsf" => Ok(Self::Ocsf),
            "both" => Ok(Self::Both),
            _ => Err(NotAFormat),
        }
    }
}

/// The bucket of this deployment.
#[derive(Clone, Debug)]
pub struct Bucket {
    pub(super) client: LazyClient<Client>,
    pub(super) name: String,
}

/// Versions of one tenant's incidents that are not written yet. They are compressed as they come, and become one object
/// for each format and day of last update.
pub struct Batch {
    format: Format,
    incident_events: IncidentEvents,
    days: BTreeMap<Date, Day>,
    versions: HashMap<String, NewVersion>,
}

/// A batch that is in the bucket.
pub struct WrittenBatch {
    /// The objects, of which some may have been there before with the same content.
    pub objects: Vec<DeliveredObject>,
    /// The last delivered version of each incident in them, by incident id.
    pub versions: HashMap<String, NewVersion>,
    /// The versions in them, for an event each. Without [`IncidentEvents::Summary`] there are none.
    pub changed: Vec<IncidentChanged>,
}

struct Day {
    incidents: Option<CompressedLines>,
    findings: Option<CompressedLines>,
    keys: Vec<String>,
    summaries: Vec<IncidentSummary>,
    from: Timestamp,
    to: Timestamp,
}

fn write_line(
    lines: &mut CompressedLines,
    write: impl FnOnce(&mut CompressedLines) -> std::io::Result<()>,
) -> Result<()> {
    write(lines)
        .and_then(|()| lines.write_all(b"\n"))
        .map_err(|error| Error::internal("a line could not be compressed", error))
}

/// The day of last update, by which objects are named.
fn day_of(record: &Record) -> Date {
    Offset::UTC.to_datetime(record.last_updated).date()
}

impl Batch {
    /// An empty batch, to be delivered as `format`, with these events about its versions.
    pub fn new(format: Format, incident_events: IncidentEvents) -> Self {
        Self { format, incident_events, days: BTreeMap::new(), versions: HashMap::new() }
    }

    /// Returns whether no version was added.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// Returns whether a version of this incident was added.
    pub fn contains(&self, incident_id: &str) -> bool {
        self.versions.contains_key(incident_id)
    }

    /// Returns whether the batch has an object for a record, or may begin one.
    pub fn has_object_for(&self, record: &Record) -> bool {
        self.days.contains_key(&day_of(record)) || self.files().count() < MAX_OBJECTS
    }

    /// The size of the compressed lines and of the summaries so far, in bytes. What is not compressed yet does not count.
    pub fn size(&self) -> usize {
        let summaries = self.days.values().flat_map(|day| &day.summaries);
        let lines = self.files().map(CompressedLines::compressed_size);
        lines.sum::<usize>() + summaries.map(IncidentSummary::size).sum::<usize>()
    }

    fn files(&self) -> impl Iterator<Item = &CompressedLines> {
        self.days.values().flat_map(|day| [&day.incidents, &day.findings]).flatten()
    }

    /// Adds a version, in the formats of the batch. Once it is written, `delivered` is to be recorded.
    pub fn add(&mut self, version: &Version<'_>, delivered: NewVersion) -> Result<()> {
        let (record, key) = (version.record, version.key());
        let format = self.format;
        let day = self.days.entry(day_of(record)).or_insert_with(|| Day {
            incidents: matches!(format, Format::Envelope | Format::Both).then(CompressedLines::new),
            findings: matches!(format, Format::Ocsf | Format::Both).then(CompressedLines::new),
            keys: Vec::new(),
            summaries: Vec::new(),
            from: record.last_updated,
            to: record.last_updated,
        });
        if let Some(lines) = &mut day.incidents {
            write_line(lines, |lines| IncidentLine::of(version, &key).write_to(lines))?;
        }
        if let Some(lines) = &mut day.findings {
            write_line(lines, |lines| write_incident_finding(version, lines))?;
        }
        if self.incident_events == IncidentEvents::Summary {
            day.summaries.push(IncidentSummary::of(version));
        }
        // A record may change again with the same time, and so with the same key, before its version is recorded. The
        // hash tells the two apart.
        day.keys.push(key + " " + &record.state_hash);
        day.from = day.from.min(record.last_updated);
        day.to = day.to.max(record.last_updated);
        self.versions.insert(record.incident_id.clone(), delivered);
        Ok(())
    }
}

impl Bucket {
    /// The bucket named `name`.
    pub fn new(config: &aws_config::SdkConfig, name: String) -> Self {
        // A custom endpoint (a local stack) has no host name for each bucket.
        let path_style = config.endpoint_url().is_some();
        let client = lazy_client(config, move |config| {
            Client::from_conf(aws_sdk_s3::config::Builder::from(config).force_path_style(path_style).build())
        });
        Self { client, name }
    }

    /// Writes a batch. The name of an object is the hash of the versions in it and of their states. So an object that is
    /// there already holds exactly these.
    pub async fn write(&self, tenant: &TenantId, batch: Batch) -> Result<WrittenBatch> {
        let (mut writes, mut changed) = (Vec::new(), Vec::new());
        for (date, mut day) in batch.days {
            day.keys.sort_unstable();
            let name = hex(digest(&SHA256, day.keys.join("\n").as_bytes()).as_ref());
            for (prefix, lines) in [("incidents", day.incidents), ("ocsf", day.findings)] {
                let Some(lines) = lines else { continue };
                let object = format!("{prefix}/tenant_id={tenant}/date={date}/{name}.ndjson.gz");
                // With both formats, the events name the object with the records as they were sent.
                let summaries = std::mem::take(&mut day.summaries).into_iter();
                changed.extend(summaries.map(|summary| IncidentChanged {
                    summary,
                    bucket: self.name.clone(),
                    object: object.clone(),
                }));
                let body =
                    lines.finish().map_err(|error| Error::internal("an object could not be compressed", error))?;
                let written = DeliveredObject {
                    bucket: self.name.clone(),
                    object,
                    count: day.keys.len(),
                    from: day.from.to_string(),
                    to: day.to.to_string(),
                };
                writes.push(async move {
                    let outcome = self.put(&written.object, body, "application/x-ndjson", Some("gzip")).await;
                    outcome.map(|()| written)
                });
            }
        }
        let objects: Vec<DeliveredObject> = stream::iter(writes).buffered(MAX_OBJECTS).try_collect().await?;
        Ok(WrittenBatch { objects, versions: batch.versions, changed })
    }

    /// Writes quarantined content as JSON under `quarantine/`. The first content of a name stays.
    pub async fn write_quarantined(&self, tenant: &TenantId, name: &str, content: &serde_json::Value) -> Result<()> {
        let object = format!("quarantine/tenant_id={tenant}/{name}.json");
        self.put(&object, content.to_string().into_bytes(), "application/json", None).await
    }

    /// Writes the receipt of an offboarding as JSON under `receipts/`.
    pub async fn keep_receipt(&self, tenant: &TenantId, at: Timestamp, receipt: &impl Serialize) -> Result<()> {
        let object = format!("receipts/tenant_id={tenant}/{at:.3}.json");
        let json =
            serde_json::to_vec(receipt).map_err(|error| Error::internal("a receipt could not be serialised", error))?;
        self.put(&object, json, "application/json", None).await
    }

    /// Starts an object of lines.
    pub fn write_lines(&self, object: String) -> LinesWriter {
        LinesWriter::new(self.clone(), object)
    }

    /// Reads an object of lines as a whole. The caller knows that it is small: a longer text than `max_bytes` is an error.
    pub async fn read_lines(&self, object: &str, max_bytes: u64) -> Result<String> {
        let failed = |error| Error::internal(format!("{object} could not be read"), error);
        let response = self.client.get_object().bucket(&self.name).key(object).send().await;
        let response = response.map_err(|error| Error::aws("s3:GetObject", &error))?;
        let compressed = response.body.collect().await.map_err(|error| failed(std::io::Error::other(error)))?;
        let mut text = String::new();
        let compressed = compressed.into_bytes();
        let read = GzDecoder::new(compressed.as_ref()).take(max_bytes + 1).read_to_string(&mut text).map_err(failed)?;
        if read as u64 > max_bytes {
            return Err(Error::Internal(format!("{object} is longer than its record says").into()));
        }
        Ok(text)
    }

    /// Returns whether there is an object of this name.
    pub async fn has(&self, object: &str) -> Result<bool> {
        match self.client.head_object().bucket(&self.name).key(object).send().await {
            Ok(_) => Ok(true),
            // Without a right to list the bucket, S3 says 403 for a missing object.
            Err(error) if matches!(status(&error), Some(403 | 404)) => Ok(false),
            Err(error) => Err(Error::aws("s3:HeadObject", &error)),
        }
    }

    /// Writes an object, if there is none of its name.
    pub(super) async fn put(
        &self,
        object: &str,
        body: Vec<u8>,
        content_type: &str,
        encoding: Option<&str>,
    ) -> Result<()> {
        let body = Bytes::from(body);
        let mut attempts = 0;
        loop {
            attempts += 1;
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
                // The object is there, with the same content.
                Some("PreconditionFailed") => return Ok(()),
                Some("ConditionalRequestConflict") if attempts < MAX_ATTEMPTS => {
                    pause_before_attempt(attempts + 1).await;
                }
                _ => return Err(Error::aws("s3:PutObject", &error)),
            }
        }
    }
}

/// The HTTP status of S3's response, if there was one.
pub(super) fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}
