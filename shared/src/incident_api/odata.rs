//! An OData collection, read row by row while it arrives. Memory is bounded by one incident, not by a page.

use std::collections::VecDeque;

use memchr::memchr2;
use serde::Deserialize;

use crate::error::Result;

/// The largest row that is read.
pub const MAX_ROW_BYTES: usize = 32 << 20;

/// The largest size of everything around the rows.
const MAX_ENVELOPE_BYTES: usize = 64 << 10;

/// The number of open brackets around a row: the body's and that of `value`.
const ROWS_DEPTH: usize = 2;

/// The error for a body that is not a JSON object with an array `value` of objects, or that has too large a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotACollection;

/// The members of a collection beside its rows.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ODataEnvelope {
    /// The link to the next page, where there is one.
    #[serde(rename = "@odata.nextLink")]
    pub(super) next_link: Option<String>,
    value: Option<Vec<serde::de::IgnoredAny>>,
}

/// Splits a body into its rows and its envelope.
#[expect(clippy::struct_excessive_bools, reason = "the independent states of a scanner")]
#[derive(Debug, Default)]
pub(super) struct ODataReader {
    envelope: Vec<u8>,
    row: Vec<u8>,
    complete: VecDeque<Vec<u8>>,
    /// The number of open brackets, those of the row included.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The begin and end of the last string at depth 1 in the envelope, without its quotes.
    last_string: (usize, usize),
    in_value: bool,
    in_row: bool,
}

impl ODataReader {
    /// Reads the next piece of the body.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), NotACollection> {
        while let Some(&byte) = bytes.first() {
            let read = if self.in_row {
                self.push_row(bytes)
            } else {
                self.push_byte(byte);
                1
            };
            bytes = &bytes[read..];
        }
        if self.row.len() > MAX_ROW_BYTES || self.envelope.len() > MAX_ENVELOPE_BYTES {
            return Err(NotACollection);
        }
        Ok(())
    }

    /// Returns the next complete row exactly as it was sent.
    pub(super) fn next_row(&mut self) -> Option<Vec<u8>> {
        self.complete.pop_front()
    }

    /// The size of the row that is arriving.
    pub(super) fn arriving_bytes(&self) -> usize {
        self.row.len()
    }

    /// Returns the envelope at the end of the body.
    pub(super) fn finish(self) -> Result<ODataEnvelope, NotACollection> {
        if self.depth != 0 || self.in_string {
            return Err(NotACollection);
        }
        let envelope: ODataEnvelope = serde_json::from_slice(&self.envelope).map_err(|_| NotACollection)?;
        if envelope.value.is_some() { Ok(envelope) } else { Err(NotACollection) }
    }

    /// Takes bytes up to the end of the row, as far as they hold it, and returns their number. Almost all of a body passes
    /// here, so the state is in local variables and the bytes are copied at once.
    fn push_row(&mut self, bytes: &[u8]) -> usize {
        let (mut depth, mut in_string, mut escaped) = (self.depth, self.in_string, self.escaped);
        let mut read = 0;
        while read < bytes.len() && depth > ROWS_DEPTH {
            let rest = &bytes[read..];
            let next = if escaped {
                Some(0)
            } else if in_string {
                memchr2(b'"', b'\\', rest)
            } else {
                rest.iter().position(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']'))
            };
            let Some(next) = next else {
                read = bytes.len();
                break;
            };
            match rest[next] {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = !in_string,
                b'{' | b'[' => depth += 1,
                _ => depth -= 1,
            }
            read += next + 1;
        }
        (self.depth, self.in_string, self.escaped) = (depth, in_string, escaped);
        self.row.extend_from_slice(&bytes[..read]);
        if depth == ROWS_DEPTH {
            self.in_row = false;
            self.complete.push_back(std::mem::take(&mut self.row));
        }
        read
    }

    /// Takes a byte outside of the rows.
    fn push_byte(&mut self, byte: u8) {
        if !self.in_value || self.in_string {
            self.envelope.push(byte);
        }
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    self.last_string.1 = self.envelope.len().saturating_sub(1);
                }
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if self.in_value {
                    self.envelope.push(byte);
                }
                self.last_string.0 = self.envelope.len();
            }
            b'{' | b'[' => self.open(byte),
            b'}' | b']' => self.close(byte),
            b',' | b' ' | b'\t' | b'\r' | b'\n' => {}
            // A row that is not an object stays in the envelope and makes it unreadable.
            other if self.in_value => self.envelope.push(other),
            _ => {}
        }
    }

    fn open(&mut self, byte: u8) {
        self.depth += 1;
        if self.in_value {
            if byte == b'{' {
                self.in_row = true;
                self.row.push(byte);
            } else {
                self.envelope.push(byte);
            }
        } else if byte == b'[' && self.depth == ROWS_DEPTH {
            let (from, to) = self.last_string;
            self.in_value = self.envelope.get(from..to) == Some(b"value".as_slice());
        }
    }

    fn close(&mut self, byte: u8) {
        self.depth = self.depth.saturating_sub(1);
        if self.in_value {
            self.envelope.push(byte);
            self.in_value = self.depth > 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::damaged;

    fn read(body: &str, piece: usize) -> Result<(Vec<Value>, ODataEnvelope), NotACollection> {
        let mut rows = ODataReader::default();
        let mut found = Vec::new();
        for bytes in body.as_bytes().chunks(piece) {
            rows.push(bytes)?;
            while let Some(row) = rows.next_row() {
                found.push(serde_json::from_slice(&row).unwrap());
            }
        }
        Ok((found, rows.finish()?))
    }

    #[test]
    fn rows_and_next_link_are_found_however_the_body_is_split() {
        let body = r#"{"@odata.context":"x","other":[{"value":[1]}],"value" : [ {"id":"1","a":"}]\"{","value":[{}]} ,
            {"id":"2"}],"@odata.nextLink":"https://graph.microsoft.com/?$skip=2"}"#;
        for piece in 1..body.len() {
            let (rows, envelope) = read(body, piece).unwrap();
            assert_eq!(rows, [json!({"id": "1", "a": "}]\"{", "value": [{}]}), json!({"id": "2"})]);
            assert_eq!(envelope.next_link.as_deref(), Some("https://graph.microsoft.com/?$skip=2"));
        }
    }

    #[test]
    fn incomplete_collections_are_refused() {
        for body in [
            "",
            "{",
            r#"{"value":[{"a":1}"#,
            r#"{"value":[{"a":1}]"#,
            "<html>",
            "[]",
            r#"{"value":{}}"#,
            r#"{"error":{}}"#,
            r#"{"value":[{"a":"#,
        ] {
            assert!(read(body, 3).is_err(), "{body}");
        }
        assert!(read(r#"{"value":[]}"#, 1).unwrap().0.is_empty());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("value|.{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_rows_are_returned_unchanged(rows in prop::collection::vec(prop::collection::hash_map("value|.{0,4}", any_json(), 0..4), 0..4), piece in 1_usize..40) {
            let rows: Vec<Value> = rows.into_iter().map(|row| Value::Object(row.into_iter().collect())).collect();
            let body = json!({"@odata.context": "c", "value": rows}).to_string();
            prop_assert_eq!(read(&body, piece).unwrap().0, rows);
        }

        #[test]
        fn damaged_body_is_refused_or_read_like_by_serde(
            body in damaged(r#"{"@odata.context":"c","value":[{"id":"1","a":"}]\"{"},{"id":2,"b":[{}]}],"@odata.nextLink":"https://g/?$skip=2"}"#),
            piece in 1_usize..40,
        ) {
            let mut rows = ODataReader::default();
            let mut found = Vec::new();
            let taken = body.chunks(piece).try_for_each(|bytes| {
                rows.push(bytes)?;
                found.extend(std::iter::from_fn(|| rows.next_row()));
                Ok::<_, NotACollection>(())
            });
            let whole = serde_json::from_slice::<Value>(&body).ok();
            let expected = whole.as_ref().and_then(|whole| whole.get("value")?.as_array());
            if let (Ok(()), Ok(_), Some(expected)) = (taken, rows.finish(), expected.filter(|rows| rows.iter().all(Value::is_object))) {
                let found: Vec<Value> = found.iter().map(|row| serde_json::from_slice(row).unwrap()).collect();
                prop_assert_eq!(&found, expected);
            }
        }
    }
}
