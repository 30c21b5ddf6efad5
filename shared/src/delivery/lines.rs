//! Objects of lines whose size is not known beforehand: compressed and sent part by part while the lines come.

use std::io::Write;

use aws_sdk_s3::{
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use flate2::{Compression, write::GzEncoder};

use super::bucket::{Bucket, status};
use crate::error::{Error, Result};

/// The compressed size at which a part is sent. S3 takes no smaller one, but for the last.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>
const PART_BYTES: usize = 5 << 20;

const CONTENT_TYPE: &str = "application/x-ndjson";
const CONTENT_ENCODING: &str = "gzip";

/// An object of lines that is still being written. It is in the bucket once it is complete, and never in part.
#[derive(Debug)]
pub struct LinesWriter {
    bucket: Bucket,
    object: String,
    lines: GzEncoder<Vec<u8>>,
    upload: Option<Upload>,
}

/// The parts that S3 has of an object.
#[derive(Debug)]
struct Upload {
    id: String,
    parts: Vec<CompletedPart>,
}

impl LinesWriter {
    /// A writer of the object named `object`. Nothing is sent before the first part is full.
    pub(super) fn new(bucket: Bucket, object: String) -> Self {
        Self { bucket, object, lines: GzEncoder::new(Vec::new(), Compression::default()), upload: None }
    }

    /// Adds a line, and sends a part once there is enough for one.
    pub async fn add(&mut self, line: &str) -> Result<()> {
        let written = self.lines.write_all(line.as_bytes()).and_then(|()| self.lines.write_all(b"\n"));
        written.map_err(not_compressed)?;
        if self.lines.get_ref().len() < PART_BYTES {
            return Ok(());
        }
        let part = std::mem::take(self.lines.get_mut());
        self.send_part(part).await
    }

    /// Completes the object. One of its name that is there already stays.
    pub async fn complete(mut self) -> Result<()> {
        self.lines.try_finish().map_err(not_compressed)?;
        let last = std::mem::take(self.lines.get_mut());
        if self.upload.is_none() {
            return self.bucket.put(&self.object, last, CONTENT_TYPE, Some(CONTENT_ENCODING)).await;
        }
        self.send_part(last).await?;
        let Some(Upload { id, parts }) = self.upload.take() else { return Ok(()) };
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let Bucket { client, name } = &self.bucket;
        let complete = client.complete_multipart_upload().bucket(name).key(&self.object).upload_id(id);
        match complete.if_none_match("*").multipart_upload(parts).send().await {
            Ok(_) => Ok(()),
            Err(error) if status(&error) == Some(412) => Ok(()),
            Err(error) => Err(Error::aws("s3:CompleteMultipartUpload", &error)),
        }
    }

    /// Drops what was written. What cannot be dropped now, the bucket's lifecycle drops.
    pub async fn abandon(self) {
        let Some(Upload { id, .. }) = self.upload else { return };
        let Bucket { client, name } = &self.bucket;
        let abort = client.abort_multipart_upload().bucket(name).key(&self.object).upload_id(id);
        if let Err(error) = abort.send().await {
            tracing::warn!(cause = %Error::aws("s3:AbortMultipartUpload", &error), "upload not dropped");
        }
    }

    async fn send_part(&mut self, body: Vec<u8>) -> Result<()> {
        let Bucket { client, name } = &self.bucket;
        if self.upload.is_none() {
            let create = client.create_multipart_upload().bucket(name).key(&self.object);
            let create = create.content_type(CONTENT_TYPE).content_encoding(CONTENT_ENCODING);
            let created = create.checksum_algorithm(ChecksumAlgorithm::Crc32).send().await;
            let created = created.map_err(|error| Error::aws("s3:CreateMultipartUpload", &error))?;
            let id = created.upload_id.ok_or_else(|| Error::Internal("an upload has no id".into()))?;
            self.upload = Some(Upload { id, parts: Vec::new() });
        }
        let Some(Upload { id, parts }) = &mut self.upload else { return Ok(()) };
        let number = i32::try_from(parts.len() + 1).unwrap_or(i32::MAX);
        let upload = client.upload_part().bucket(name).key(&self.object).upload_id(id.as_str()).part_number(number);
        let sent = upload.checksum_algorithm(ChecksumAlgorithm::Crc32).body(ByteStream::from(body)).send().await;
        let sent = sent.map_err(|error| Error::aws("s3:UploadPart", &error))?;
        let part = CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag);
        parts.push(part.set_checksum_crc32(sent.checksum_crc32).build());
        Ok(())
    }
}

fn not_compressed(error: std::io::Error) -> Error {
    Error::internal("an object could not be compressed", error)
}
