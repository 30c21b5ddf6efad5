//! The result of a hunting query, read row by row while it arrives.

use serde_json::{Map, Value};

use super::{
    row_memory::{Row, RowMemory},
    rows::ArrivingRows,
};
use crate::{
    error::{Call, Error, Result},
    http::Response,
    registry::hunts::Column,
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
    pub async fn next(&mut self) -> Result<Option<Row>> {
        self.rows.next().await
    }

    /// Returns the columns, as far as Microsoft describes them. The caller has read all rows before.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the body is not a complete result.
    pub fn end(self) -> Result<Vec<Column>> {
        let envelope: Map<String, Value> = self.rows.finish()?;
        if member(&envelope, &RESULTS).is_none() {
            return Err(Error::Malformed { call: Call::Hunt });
        }
        let schema = member(&envelope, &SCHEMA).and_then(Value::as_array);
        Ok(schema.into_iter().flatten().filter_map(column).collect())
    }
}

fn member<'a>(object: &'a Map<String, Value>, names: &[&str]) -> Option<&'a Value> {
    names.iter().find_map(|name| object.get(*name))
}

/// A column by its description. An odd one is left out, and with it nothing else.
fn column(described: &Value) -> Option<Column> {
    let text = |names| member(described.as_object()?, names)?.as_str().map(str::to_owned);
    Some(Column { name: text(&NAME)?, kind: text(&TYPE) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn odd_description_of_a_column_costs_itself() {
        let found = |described: &Value| column(described).map(|column| (column.name, column.kind));
        let (name, kind) = ("DeviceName".to_owned(), "String".to_owned());
        assert_eq!(found(&json!({"name": "DeviceName", "type": "String"})), Some((name.clone(), Some(kind.clone()))));
        assert_eq!(found(&json!({"Name": "DeviceName", "Type": "String"})), Some((name.clone(), Some(kind))));
        assert_eq!(found(&json!({"name": "DeviceName", "type": null})), Some((name, None)));
        for odd in [json!(null), json!({}), json!({"name": 7}), json!("DeviceName")] {
            assert_eq!(found(&odd), None, "{odd}");
        }
    }
}
