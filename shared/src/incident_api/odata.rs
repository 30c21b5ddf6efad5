//! A JSON object with one array of rows, such as an OData collection, read row by row while it arrives. Memory is bounded
//! by one row, not by a page.

use std::{collections::VecDeque, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::text::{LossyText, plain_text_length};

/// The largest row that is read.
pub const MAX_ROW_BYTES: usize = 32 << 20;

/// The largest size of everything around the rows.
const MAX_ENVELOPE_BYTES: usize = 64 << 10;

/// The number of open brackets around a row: the body's and that of the array.
const ROWS_DEPTH: usize = 2;

/// The error for a body that is not a JSON object, or that has too large a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotACollection;

/// The members of a JSON object, in the order in which they were sent. One name may occur twice.
#[derive(Debug)]
pub(super) struct Members(Vec<(String, Box<RawValue>)>);

impl Members {
    /// The values that were sent under a name.
    pub(super) fn all(&self, name: &str) -> impl DoubleEndedIterator<Item = &RawValue> {
        self.0.iter().filter(move |(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// Returns the first of these members that `read` accepts. Of a member that was sent twice, the last one is tried
    /// first.
    pub(super) fn find<T>(&self, names: &[&str], read: impl Fn(&RawValue) -> Option<T>) -> Option<T> {
        names.iter().find_map(|name| self.all(name).rev().find_map(&read))
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(object: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some((LossyText(name), value)) = map.next_entry()? {
                    members.push((name.into_owned(), value));
                }
                Ok(Members(members))
            }
        }

        object.deserialize_map(InOrder)
    }
}

/// Splits a body into its rows and its envelope.
#[expect(clippy::struct_excessive_bools, reason = "the independent states of a scanner")]
#[derive(Debug, Default)]
pub(super) struct ODataReader {
    /// The names of the member that holds the rows.
    rows_members: &'static [&'static str],
    envelope: Vec<u8>,
    row: Vec<u8>,
    complete: VecDeque<Vec<u8>>,
    /// The number of open brackets, those of the row included.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The begin and end of the last string at depth 1 in the envelope, without its quotes.
    last_string: (usize, usize),
    /// Within the array of rows.
    in_array: bool,
    /// Within a row that has brackets or quotes.
    in_row: bool,
}

impl ODataReader {
    /// A reader of the rows in the array that has one of these names.
    pub(super) fn new(rows_members: &'static [&'static str]) -> Self {
        Self { rows_members, ..Self::default() }
    }

    /// Reads the next piece of the body.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), NotACollection> {
        while let Some(&byte) = bytes.first() {
            let mut read = 1;
            if self.in_row {
                read = self.push_row(bytes);
            } else if self.in_array {
                self.push_to_array(byte);
            } else {
                self.push_to_envelope(byte);
            }
            bytes = &bytes[read..];
        }
        if self.row.len() > MAX_ROW_BYTES || self.envelope.len() > MAX_ENVELOPE_BYTES {
            return Err(NotACollection);
        }
        Ok(())
    }

    /// Returns the next complete row exactly as it was sent. A row should be an object. Anything else has a place in the
    /// list, too, so it is returned and never left out.
    pub(super) fn next_row(&mut self) -> Option<Vec<u8>> {
        self.complete.pop_front()
    }

    /// The size of the row that is arriving.
    pub(super) fn arriving_bytes(&self) -> usize {
        self.row.len()
    }

    /// Returns the envelope at the end of the body: the members with each array of rows empty.
    pub(super) fn finish(self) -> Result<Members, NotACollection> {
        if self.depth != 0 || self.in_string {
            return Err(NotACollection);
        }
        serde_json::from_slice(&self.envelope).map_err(|_| NotACollection)
    }

    /// Takes bytes up to the closing bracket or quote of the row, as far as they hold it, and returns their number. Almost
    /// all of a body passes here, so the state is in local variables and the bytes are copied at once.
    fn push_row(&mut self, bytes: &[u8]) -> usize {
        let (mut depth, mut in_string, mut escaped) = (self.depth, self.in_string, self.escaped);
        let mut read = 0;
        while read < bytes.len() && (depth > ROWS_DEPTH || in_string) {
            if escaped {
                escaped = false;
                read += 1;
            } else if in_string {
                read += plain_text_length(&bytes[read..]);
                let Some(byte) = bytes.get(read) else { break };
                in_string = *byte != b'"';
                escaped = *byte == b'\\';
                read += 1;
            }
            while !in_string && depth > ROWS_DEPTH {
                let Some(byte) = bytes.get(read) else { break };
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                read += 1;
            }
        }
        (self.depth, self.in_string, self.escaped) = (depth, in_string, escaped);
        self.row.extend_from_slice(&bytes[..read]);
        if depth == ROWS_DEPTH && !in_string {
            self.in_row = false;
            self.complete.push_back(std::mem::take(&mut self.row));
        }
        read
    }

    /// Takes a byte between rows, or one of a row that has neither brackets nor quotes.
    fn push_to_array(&mut self, byte: u8) {
        let ends_word = matches!(byte, b',' | b' ' | b'\t' | b'\r' | b'\n' | b'"' | b'{' | b'[' | b'}' | b']');
        if ends_word && !self.row.is_empty() {
            self.complete.push_back(std::mem::take(&mut self.row));
        }
        match byte {
            b'{' | b'[' | b'"' => {
                self.depth += usize::from(byte != b'"');
                self.in_string = byte == b'"';
                self.in_row = true;
                self.row.push(byte);
            }
            b'}' | b']' => {
                self.envelope.push(byte);
                self.depth -= 1;
                self.in_array = false;
            }
            _ if ends_word => {}
            _ => self.row.push(byte),
        }
    }

    /// Takes a byte outside of the array of rows.
    fn push_to_envelope(&mut self, byte: u8) {
        self.envelope.push(byte);
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    self.last_string.1 = self.envelope.len() - 1;
                }
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                self.last_string.0 = self.envelope.len();
            }
            b'{' | b'[' => {
                self.depth += 1;
                let (from, to) = self.last_string;
                let name = self.envelope.get(from..to);
                let is_rows = self.rows_members.iter().any(|member| name == Some(member.as_bytes()));
                self.in_array = is_rows && byte == b'[' && self.depth == ROWS_DEPTH;
            }
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::damaged;

    fn read(body: &str, piece: usize) -> Result<(Vec<Value>, Members), NotACollection> {
        let mut rows = ODataReader::new(&["value"]);
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
            let link = envelope.find(&["@odata.nextLink"], |link| serde_json::from_str::<String>(link.get()).ok());
            assert_eq!(link.as_deref(), Some("https://graph.microsoft.com/?$skip=2"));
        }
    }

    #[test]
    fn odd_rows_and_members_cost_only_themselves() {
        let body =
            r#"{"value":[null,{"a":1},7 ,"x,]\"", [{"b":[2]}],true,null],"\ud800":1,"value":[{"c":3}],"x":1,"x":null}"#;
        for piece in 1..body.len() {
            let (rows, members) = read(body, piece).unwrap();
            let expected = json!([null, {"a": 1}, 7, "x,]\"", [{"b": [2]}], true, null, {"c": 3}]);
            assert_eq!(Value::from(rows), expected);
            assert_eq!(members.all("x").map(RawValue::get).collect::<Vec<_>>(), ["1", "null"]);
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
            r#"{"value":[nul"#,
            r#"{"value":["a"#,
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
            let mut rows = ODataReader::new(&["value"]);
            let mut found = Vec::new();
            let taken = body.chunks(piece).try_for_each(|bytes| {
                rows.push(bytes)?;
                found.extend(std::iter::from_fn(|| rows.next_row()));
                Ok::<_, NotACollection>(())
            });
            let whole = serde_json::from_slice::<Value>(&body).ok();
            let expected = whole.as_ref().and_then(|whole| whole.get("value")?.as_array());
            if let (Ok(()), Ok(_), Some(expected)) = (taken, rows.finish(), expected) {
                let found: Vec<Value> = found.iter().map(|row| serde_json::from_slice(row).unwrap()).collect();
                prop_assert_eq!(&found, expected);
            }
        }
    }
}
