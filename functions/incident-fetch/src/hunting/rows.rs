//! The rows of one tenant, on their way from Microsoft to the bucket.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::value::RawValue;
use shared::{
    delivery::lines::LinesWriter,
    error::{Call, Error, Result},
    incident_api::hunting::HuntingResult,
    registry::hunts::{Column, HuntedRows},
    tenant::TenantId,
};

use crate::live::escaped_len;

/// The most rows that Microsoft returns.
/// <https://learn.microsoft.com/graph/api/security-security-runhuntingquery>
const MAX_ROWS: u64 = 100_000;

/// The most columns that are named after the members of rows, where Microsoft describes none.
const MAX_FOUND_COLUMNS: usize = 1_000;

/// Writes all rows of a result as lines, and returns their counts and columns. Only one row is in memory at a time.
pub(super) async fn write_rows(
    tenant: TenantId,
    mut result: HuntingResult,
    lines: &mut LinesWriter,
) -> Result<HuntedRows> {
    let mut written = HuntedRows::default();
    let mut found = BTreeSet::new();
    while let Some(row) = result.next().await? {
        let (line, names) = line_of(&tenant, &row).ok_or(Error::Malformed { call: Call::Hunt })?;
        written.rows += 1;
        written.bytes += escaped_len(&line) as u64 + 1;
        lines.add(&line).await?;
        if found.len() < MAX_FOUND_COLUMNS {
            found.extend(names);
        }
    }
    written.schema = result.end()?;
    if written.schema.is_empty() {
        written.schema = found.into_iter().map(|name| Column { name, kind: None }).collect();
    }
    written.is_cut = written.rows >= MAX_ROWS;
    Ok(written)
}

/// A row as one line with our `tenant_id` first, and the names of its columns. `None`: it is not a JSON object.
///
/// Our column replaces one of the same name. The owner of a row must never be in doubt.
fn line_of(tenant: &TenantId, row: &[u8]) -> Option<(String, Vec<String>)> {
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_slice(row).ok()?;
    members.remove("tenant_id");
    let mut line = format!(r#"{{"tenant_id":"{tenant}""#);
    for (name, value) in &members {
        line.push(',');
        line += &serde_json::to_string(name).ok()?;
        line.push(':');
        // Between its tokens, JSON may have line breaks. Inside of its strings, they are escaped.
        line.extend(value.get().chars().map(|letter| if matches!(letter, '\n' | '\r') { ' ' } else { letter }));
    }
    line.push('}');
    Some((line, members.into_keys().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_is_one_line_that_begins_with_its_tenant() {
        let tenant: TenantId = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let line = |row: &str| line_of(&tenant, row.as_bytes()).map(|(line, _)| line);
        let row = "{\"B\":12345678901234567890.50,\n\"A\":{\r\n\"x\":\"a\\nb\"},\"tenant_id\":\"theirs\",\"Ü\":null}";
        let expected =
            format!(r#"{{"tenant_id":"{tenant}","A":{{  "x":"a\nb"}},"B":12345678901234567890.50,"Ü":null}}"#);
        assert_eq!(line(row), Some(expected));
        assert_eq!(line("{}"), Some(format!(r#"{{"tenant_id":"{tenant}"}}"#)));
        assert_eq!(line("{\"A\":}"), None);
    }
}
