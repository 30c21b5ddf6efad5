//! S3: conditional writes of whole objects.

use axum::{
    body::Bytes,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};

use crate::{Account, BUCKET};

/// An object of the bucket.
#[derive(Clone, Debug)]
pub struct Object {
    /// The key after URL decoding.
    pub key: String,
    /// The content as it was sent.
    pub body: Bytes,
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

    /// Writes an object if there is none under its key. Objects are never replaced in this project, so that a write
    /// without the condition is refused.
    pub(crate) fn put_object(
        &mut self,
        caller: &str,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Response {
        if *method != Method::PUT || headers.get("if-none-match").is_none_or(|value| value != "*") {
            return refusal(StatusCode::NOT_IMPLEMENTED, "NotImplemented", "only conditional writes are served");
        }
        let path = uri.path().trim_start_matches('/');
        let Some(key) = path.strip_prefix(BUCKET).and_then(|rest| rest.strip_prefix('/')) else {
            return refusal(StatusCode::NOT_FOUND, "NoSuchBucket", path);
        };
        let key = key.replace("%3D", "=").replace("%3A", ":");
        if key.contains('%') {
            return refusal(StatusCode::NOT_IMPLEMENTED, "NotImplemented", &key);
        }
        let caller = self.callers.entry(caller.to_owned()).or_default();
        if self.objects.iter().chain(&caller.late_objects).any(|object| object.key == key) {
            return refusal(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", &key);
        }
        let object = Object { key, body: body.clone() };
        if self.defects.writes_objects_last {
            caller.late_objects.push(object);
        } else {
            self.objects.push(object);
        }
        StatusCode::OK.into_response()
    }
}

pub(crate) fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    (status, [("content-type", "application/xml")], body).into_response()
}
