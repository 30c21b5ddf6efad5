//! S3: conditional writes of whole objects, in one request or in parts, and their reads.

use std::collections::BTreeMap;

use axum::{
    body::Bytes,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};

use crate::{Account, BUCKET};

/// The smallest part of an upload, but for the last.
const MIN_PART_BYTES: usize = 5 << 20;

/// An object of the bucket.
#[derive(Clone, Debug)]
pub struct Object {
    /// The key after URL decoding.
    pub key: String,
    /// The content as it was sent.
    pub body: Bytes,
}

/// The parts of an object that is not complete.
#[derive(Debug)]
pub(crate) struct Upload {
    key: String,
    parts: BTreeMap<usize, Bytes>,
}

/// The name of an operation by its request.
pub(crate) fn operation(method: &Method, uri: &Uri) -> String {
    let query = Query::of(uri);
    match method.as_str() {
        "PUT" if query.has("partNumber") => "UploadPart".to_owned(),
        "PUT" => "PutObject".to_owned(),
        "GET" => "GetObject".to_owned(),
        "HEAD" => "HeadObject".to_owned(),
        "POST" if query.has("uploads") => "CreateMultipartUpload".to_owned(),
        "POST" => "CompleteMultipartUpload".to_owned(),
        "DELETE" if query.has("uploadId") => "AbortMultipartUpload".to_owned(),
        other => format!("S3's {other}"),
    }
}

/// Returns `true` for an operation of S3, whose responses are not JSON.
pub(crate) fn is_operation(operation: &str) -> bool {
    operation.ends_with("Object")
        || operation.ends_with("MultipartUpload")
        || operation == "UploadPart"
        || operation.starts_with("S3's ")
}

struct Query(BTreeMap<String, String>);

impl Query {
    fn of(uri: &Uri) -> Self {
        Self(url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect())
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

impl Account {
    /// The keys that begin with `prefix`, in their order.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let mut keys: Vec<String> =
            self.objects.iter().map(|object| object.key.clone()).filter(|key| key.starts_with(prefix)).collect();
        keys.sort();
        keys
    }

    /// The content of an object.
    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.objects.iter().find(|object| object.key == key).map(|object| object.body.clone())
    }

    /// The number of uploads that were neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.uploads.len()
    }

    /// Serves a request for an object.
    pub(crate) fn s3(
        &mut self,
        caller: &str,
        operation: &str,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Response {
        let path = uri.path().trim_start_matches('/');
        let Some(key) = path.strip_prefix(BUCKET).and_then(|rest| rest.strip_prefix('/')) else {
            return refusal(StatusCode::NOT_FOUND, "NoSuchBucket", path);
        };
        let key = key.replace("%3D", "=").replace("%3A", ":");
        if key.contains('%') {
            return refusal(StatusCode::NOT_IMPLEMENTED, "NotImplemented", &key);
        }
        // Objects are never replaced in this project, so that a write without the condition is refused.
        let is_conditional = headers.get("if-none-match").is_some_and(|value| value == "*");
        match operation {
            "PutObject" if is_conditional => self.put_object(caller, key, body.clone()),
            "GetObject" | "HeadObject" => match self.object(&key) {
                Some(body) if operation == "GetObject" => body.into_response(),
                Some(_) => StatusCode::OK.into_response(),
                None => refusal(StatusCode::NOT_FOUND, "NoSuchKey", &key),
            },
            "CreateMultipartUpload" => {
                self.tokens += 1;
                let id = format!("upload-{}", self.tokens);
                self.uploads.insert(id.clone(), Upload { key, parts: BTreeMap::new() });
                xml(&format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                ))
            }
            "UploadPart" | "AbortMultipartUpload" => self.upload(operation, &Query::of(uri), &key, body),
            "CompleteMultipartUpload" if is_conditional => self.complete(caller, &Query::of(uri), key, body),
            _ => refusal(StatusCode::NOT_IMPLEMENTED, "NotImplemented", "only conditional writes are served"),
        }
    }

    fn put_object(&mut self, caller: &str, key: String, body: Bytes) -> Response {
        let caller = self.callers.entry(caller.to_owned()).or_default();
        if self.objects.iter().chain(&caller.late_objects).any(|object| object.key == key) {
            return refusal(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", &key);
        }
        let object = Object { key, body };
        if self.defects.writes_objects_last {
            caller.late_objects.push(object);
        } else {
            self.objects.push(object);
        }
        StatusCode::OK.into_response()
    }

    /// Takes a part of an upload, or drops the upload.
    fn upload(&mut self, operation: &str, query: &Query, key: &str, body: &Bytes) -> Response {
        let id = query.0.get("uploadId").cloned().unwrap_or_default();
        let Some(upload) = self.uploads.get_mut(&id).filter(|upload| upload.key == key) else {
            return refusal(StatusCode::NOT_FOUND, "NoSuchUpload", &id);
        };
        if operation == "AbortMultipartUpload" {
            self.uploads.remove(&id);
            return StatusCode::NO_CONTENT.into_response();
        }
        let Some(number) = query.0.get("partNumber").and_then(|number| number.parse().ok()) else {
            return refusal(StatusCode::BAD_REQUEST, "InvalidPart", "no number");
        };
        upload.parts.insert(number, body.clone());
        (StatusCode::OK, [("etag", format!("\"{number}\""))]).into_response()
    }

    fn complete(&mut self, caller: &str, query: &Query, key: String, body: &Bytes) -> Response {
        let id = query.0.get("uploadId").cloned().unwrap_or_default();
        let Some(upload) = self.uploads.get(&id).filter(|upload| upload.key == key) else {
            return refusal(StatusCode::NOT_FOUND, "NoSuchUpload", &id);
        };
        // The request names each part by its number and what S3 returned for it.
        let named = String::from_utf8_lossy(body);
        let numbers: Vec<usize> = named
            .split("<PartNumber>")
            .skip(1)
            .filter_map(|part| part.split('<').next().and_then(|number| number.parse().ok()))
            .collect();
        let tags = named.matches("<ETag>").count();
        if numbers.is_empty() || tags != numbers.len() || !numbers.iter().eq(upload.parts.keys()) {
            return refusal(StatusCode::BAD_REQUEST, "InvalidPart", &named);
        }
        let all: Vec<&Bytes> = upload.parts.values().collect();
        if all[..all.len() - 1].iter().any(|part| part.len() < MIN_PART_BYTES) {
            return refusal(StatusCode::BAD_REQUEST, "EntityTooSmall", &key);
        }
        let whole: Vec<u8> = all.into_iter().flatten().copied().collect();
        let response = self.put_object(caller, key, whole.into());
        if response.status() != StatusCode::OK {
            return response;
        }
        self.uploads.remove(&id);
        xml("<CompleteMultipartUploadResult><ETag>\"whole\"</ETag></CompleteMultipartUploadResult>")
    }
}

fn xml(body: &str) -> Response {
    (StatusCode::OK, [("content-type", "application/xml")], body.to_owned()).into_response()
}

pub(crate) fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    (status, [("content-type", "application/xml")], body).into_response()
}
