//! A JSON object with one array of rows, such as an OData collection, read row by row while it arrives. Memory is bounded
//! by one row, not by a page.

use std::fmt;

use bytes::{Buf, Bytes};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::row_memory::MAX_SMALL_ROW_BYTES;
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
    /// What is left of the last piece of the body.
    piece: Bytes,
    envelope: Vec<u8>,
    /// The part of the row that earlier pieces had.
    row: Vec<u8>,
    /// The part of the row at the end of the last piece. It is copied when the next piece comes: a row that waits for its
    /// place in memory holds the piece and no copy of it.
    part: Bytes,
    /// The size of the row before.
    last_row_bytes: usize,
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

    /// Takes the next piece of the body. The caller has read all rows of the one before.
    pub(super) fn push(&mut self, piece: Bytes) {
        self.row.extend_from_slice(&std::mem::take(&mut self.part));
        self.piece = piece;
    }

    /// Returns the next complete row exactly as it was sent, and `None` at the end of the piece. A row should be an object.
    /// Anything else has a place in the list, too, so it is returned and never left out.
    ///
    /// Rows are cut off one by one, so that a page of them is not held twice. One that lies in a single piece is not copied.
    pub(super) fn next_row(&mut self) -> Result<Option<Bytes>, NotACollection> {
        while let Some(&byte) = self.piece.first() {
            if self.in_row {
                if let Some(row) = self.rest_of_row(0) {
                    return Ok(Some(row));
                }
            } else if !self.in_array {
                self.push_to_envelope(byte);
                self.piece.advance(1);
            } else if ends_word(byte) && !self.row.is_empty() {
                return Ok(Some(std::mem::take(&mut self.row).into()));
            } else if matches!(byte, b'{' | b'[' | b'"') {
                self.depth += usize::from(byte != b'"');
                self.in_string = byte == b'"';
                self.in_row = true;
                if let Some(row) = self.rest_of_row(1) {
                    return Ok(Some(row));
                }
            } else {
                self.push_to_array(byte);
                self.piece.advance(1);
            }
        }
        if self.arriving_bytes() > MAX_ROW_BYTES || self.envelope.len() > MAX_ENVELOPE_BYTES {
            return Err(NotACollection);
        }
        Ok(None)
    }

    /// Returns the next row as `parse` reads it from the rest of the piece, with its length. `None`: the row is no object that
    /// lies in the piece as a whole, needs a place in memory, or `parse` returns none, and [`Self::next_row`] has it. A row is
    /// scanned once in this way.
    pub(super) fn next_parsed<T>(&mut self, parse: impl FnOnce(&[u8]) -> Option<(T, usize)>) -> Option<T> {
        if !self.in_array || self.in_row || !self.row.is_empty() {
            return None;
        }
        let between = |byte: &&u8| matches!(byte, b',' | b' ' | b'\t' | b'\r' | b'\n');
        self.piece.advance(self.piece.iter().take_while(between).count());
        let piece = &self.piece[..self.piece.len().min(MAX_SMALL_ROW_BYTES)];
        // A row as large as the one before would be scanned in vain.
        if piece.first() != Some(&b'{') || piece.len() < self.last_row_bytes {
            return None;
        }
        let (parsed, length) = parse(piece)?;
        self.piece.advance(length);
        self.last_row_bytes = length;
        Some(parsed)
    }

    /// The size of the row that is arriving.
    pub(super) fn arriving_bytes(&self) -> usize {
        self.row.len() + self.part.len()
    }

    /// Returns the envelope at the end of the body: the members with each array of rows empty.
    pub(super) fn finish(self) -> Result<Members, NotACollection> {
        if self.depth != 0 || self.in_string {
            return Err(NotACollection);
        }
        serde_json::from_slice(&self.envelope).map_err(|_| NotACollection)
    }

    /// Takes the rest of the row off the piece, as far as the piece holds it. `read` bytes of it are known. Returns the row
    /// if it ends here.
    fn rest_of_row(&mut self, read: usize) -> Option<Bytes> {
        let read = self.end_of_row(read);
        let part = self.piece.split_to(read);
        let is_complete = self.depth == ROWS_DEPTH && !self.in_string;
        self.in_row = !is_complete;
        if !is_complete {
            self.part = part;
            return None;
        }
        let row = if self.row.is_empty() {
            part
        } else {
            self.row.extend_from_slice(&part);
            std::mem::take(&mut self.row).into()
        };
        self.last_row_bytes = row.len();
        Some(row)
    }

    /// The place in the piece behind the closing bracket or quote of the row, or else the end of the piece. Almost all of a
    /// body passes here, so the state is in local variables.
    fn end_of_row(&mut self, mut read: usize) -> usize {
        let bytes = &self.piece[..];
        let (mut depth, mut in_string, mut escaped) = (self.depth, self.in_string, self.escaped);
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
        read
    }

    /// Takes a byte behind a row, or one of a row that has neither brackets nor quotes.
    fn push_to_array(&mut self, byte: u8) {
        match byte {
            b'}' | b']' => {
                self.envelope.push(byte);
                self.depth -= 1;
                self.in_array = false;
            }
            _ if ends_word(byte) => {}
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

/// Returns true for a byte that ends a row without brackets and quotes.
fn ends_word(byte: u8) -> bool {
    matches!(byte, b',' | b' ' | b'\t' | b'\r' | b'\n' | b'"' | b'{' | b'[' | b'}' | b']')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::damaged;

    /// The rows of a body and its members. With `in_place`, rows are parsed where they lie, as far as they do.
    fn read(body: &[u8], piece: usize, in_place: bool) -> Result<(Vec<Value>, Members), NotACollection> {
        let mut rows = ODataReader::new(&["value"]);
        let mut found = Vec::new();
        for bytes in body.chunks(piece) {
            rows.push(Bytes::copy_from_slice(bytes));
            loop {
                if let Some(row) = in_place.then(|| rows.next_parsed(first_value)).flatten() {
                    found.push(row);
                } else if let Some(row) = rows.next_row()? {
                    found.push(serde_json::from_slice(&row).unwrap_or_default());
                } else {
                    break;
                }
            }
        }
        Ok((found, rows.finish()?))
    }

    /// The value at the start of a text, with its length.
    fn first_value(text: &[u8]) -> Option<(Value, usize)> {
        let mut values = serde_json::Deserializer::from_slice(text).into_iter();
        let value = values.next()?.ok()?;
        Some((value, values.byte_offset()))
    }

    #[test]
    fn rows_and_next_link_are_found_however_the_body_is_split() {
        let body = r#"{"@odata.context":"x","other":[{"value":[1]}],"value" : [ {"id":"1","a":"}]\"{","value":[{}]} ,
            {"id":"2"}],"@odata.nextLink":"https://graph.microsoft.com/?$skip=2"}"#;
        for (piece, in_place) in (1..body.len()).flat_map(|piece| [(piece, false), (piece, true)]) {
            let (rows, envelope) = read(body.as_bytes(), piece, in_place).unwrap();
            assert_eq!(rows, [json!({"id": "1", "a": "}]\"{", "value": [{}]}), json!({"id": "2"})]);
            let link = envelope.find(&["@odata.nextLink"], |link| serde_json::from_str::<String>(link.get()).ok());
            assert_eq!(link.as_deref(), Some("https://graph.microsoft.com/?$skip=2"));
        }
    }

    #[test]
    fn part_of_a_row_is_copied_only_when_the_next_piece_comes() {
        let mut reader = ODataReader::new(&["value"]);
        reader.push(Bytes::from_static(br#"{"value":[{"a":"b"#));
        assert_eq!(reader.next_row(), Ok(None));
        assert_eq!((reader.arriving_bytes(), reader.row.capacity()), (7, 0));
        reader.push(Bytes::from_static(b"c"));
        assert_eq!(reader.next_row(), Ok(None));
        assert_eq!((reader.arriving_bytes(), reader.row.len()), (8, 7));
        reader.push(Bytes::from_static(br#""}]}"#));
        assert_eq!(reader.next_row(), Ok(Some(Bytes::from_static(br#"{"a":"bc"}"#))));
    }

    #[test]
    fn odd_rows_and_members_cost_only_themselves() {
        let body =
            r#"{"value":[null,{"a":1},7 ,"x,]\"", [{"b":[2]}],true,null],"\ud800":1,"value":[{"c":3}],"x":1,"x":null}"#;
        for (piece, in_place) in (1..body.len()).flat_map(|piece| [(piece, false), (piece, true)]) {
            let (rows, members) = read(body.as_bytes(), piece, in_place).unwrap();
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
            assert!(read(body.as_bytes(), 3, false).is_err(), "{body}");
            assert!(read(body.as_bytes(), 3, true).is_err(), "{body}");
        }
        assert!(read(br#"{"value":[]}"#, 1, true).unwrap().0.is_empty());
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
        fn any_rows_are_returned_unchanged(rows in prop::collection::vec(prop::collection::hash_map("value|.{0,4}", any_json(), 0..4), 0..4), piece in 1_usize..200, in_place in any::<bool>()) {
            let rows: Vec<Value> = rows.into_iter().map(|row| Value::Object(row.into_iter().collect())).collect();
            let body = json!({"@odata.context": "c", "value": rows}).to_string();
            prop_assert_eq!(read(body.as_bytes(), piece, in_place).unwrap().0, rows);
        }

        #[test]
        fn damaged_body_is_refused_or_read_like_by_serde(
            body in damaged(r#"{"@odata.context":"c","value":[{"id":"1","a":"}]\"{"},{"id":2,"b":[{}]}],"@odata.nextLink":"https://g/?$skip=2"}"#),
            piece in 1_usize..200,
            in_place in any::<bool>(),
        ) {
            let whole = serde_json::from_slice::<Value>(&body).ok();
            let expected = whole.as_ref().and_then(|whole| whole.get("value")?.as_array());
            if let (Ok((found, _)), Some(expected)) = (read(&body, piece, in_place), expected) {
                prop_assert_eq!(&found, expected);
            }
        }
    }
}
