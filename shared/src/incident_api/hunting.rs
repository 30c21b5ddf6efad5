//! The result of a hunting query, read row by row while it arrives.

use serde_json::value::RawValue;

use super::{
    odata::Members,
    row_memory::{Row, RowMemory},
    rows::ArrivingRows,
};
use crate::{
    error::{Call, Error, Result},
    http::Response,
    registry::hunts::Column,
    text::LossyText,
};

/// The names of the members, in the order of preference. Microsoft's pages have both.
const RESULTS: [&str; 2] = ["results", "Results"];
const SCHEMA: [&str; 2] = ["schema", "Schema"];
const NAME: [&str; 2] = ["name", "Name"];
const TYPE: [&str; 2] = ["type", "Type"];

/// The result of one tenant, whose rows are still arriving.
pub struct HuntingResult {
    rows: ArrivingRows,
}

impl HuntingResult {
    pub(super) fn new(response: Response, memory: &RowMemory) -> Self {
        Self { rows: ArrivingRows::new(response, &RESULTS, memory) }
    }

    /// Returns the next row exactly as Microsoft sent it, and `None` after the last one.
    ///
    /// # Errors
    /// As [`IncidentList::next`](super::list::IncidentList::next).
    pub async fn next(&mut self) -> Result<Option<Row<'_>>> {
        self.rows.next().await
    }

    /// Returns the columns, as far as Microsoft describes them. The caller has read all rows before.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the body is not a complete result.
    pub fn end(self) -> Result<Vec<Column>> {
        let malformed = Error::Malformed { call: Call::Hunt };
        let members = self.rows.finish()?;
        members.find(&RESULTS, |_| Some(())).ok_or(malformed)?;
        Ok(members.find(&SCHEMA, columns).unwrap_or_default())
    }
}

/// The columns of a schema. An odd description is left out, and with it nothing else.
fn columns(schema: &RawValue) -> Option<Vec<Column>> {
    let described: Vec<&RawValue> = serde_json::from_str(schema.get()).ok()?;
    Some(described.into_iter().filter_map(column).collect())
}

fn column(described: &RawValue) -> Option<Column> {
    let members: Members = serde_json::from_str(described.get()).ok()?;
    let text = |sent: &RawValue| serde_json::from_str(sent.get()).ok().map(|LossyText(text)| text.into_owned());
    Some(Column { name: members.find(&NAME, text)?, kind: members.find(&TYPE, text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_description_of_a_column_costs_itself() {
        let schema = r#"[{"name": "DeviceName", "type": "String"}, null, {}, {"name": 7}, "DeviceName",
            {"Name": "A", "Type": "Int64"}, {"name": "B", "type": null}, {"name": "C\ud800", "name": null}]"#;
        let found = columns(&RawValue::from_string(schema.to_owned()).unwrap()).unwrap();
        let found: Vec<_> = found.iter().map(|column| (&*column.name, column.kind.as_deref())).collect();
        let expected =
            [("DeviceName", Some("String")), ("A", Some("Int64")), ("B", None), ("C\u{fffd}\u{fffd}\u{fffd}", None)];
        assert_eq!(found, expected);
    }
}
