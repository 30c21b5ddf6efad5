//! The rows of one tenant, on their way from Microsoft to the bucket.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use shared::{
    delivery::lines::LinesWriter,
    error::{Call, Error, Result},
    incident_api::hunting::HuntingResult,
    registry::hunts::{Column, HuntedRows},
    tenant::TenantId,
    text::LossyText,
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
        let line = line_of(&tenant, &row).map_err(|_| Error::Malformed { call: Call::Hunt })?;
        let Some((line, names)) = line else { continue };
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

/// A row as one line with our `tenant_id` first, and the names of its columns. `None`: it is not an object, which is no
/// row of a table.
///
/// Our column replaces one of the same name. The owner of a row must never be in doubt.
fn line_of(tenant: &TenantId, row: &[u8]) -> serde_json::Result<Option<(String, Vec<String>)>> {
    if row.first() != Some(&b'{') {
        return serde_json::from_slice::<IgnoredAny>(row).map(|_| None);
    }
    let members: BTreeMap<LossyText<'_>, &RawValue> = serde_json::from_slice(row)?;
    let (mut line, mut names) = (format!(r#"{{"tenant_id":"{tenant}""#), Vec::new());
    for (LossyText(name), value) in members {
        if name == "tenant_id" {
            continue;
        }
        line.push(',');
        line += &serde_json::to_string(&name)?;
        line.push(':');
        // Between its tokens, JSON may have line breaks. Inside of its strings, they are escaped.
        line.extend(value.get().chars().map(|letter| if matches!(letter, '\n' | '\r') { ' ' } else { letter }));
        names.push(name.into_owned());
    }
    line.push('}');
    Ok(Some((line, names)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_is_one_line_that_begins_with_its_tenant() {
        let tenant: TenantId = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let line = |row: &str| line_of(&tenant, row.as_bytes()).unwrap().map(|(line, _)| line);
        let row = "{\"B\":12345678901234567890.50,\n\"A\":{\r\n\"x\":\"a\\nb\"},\"tenant_id\":\"theirs\",\"Ü\":null}";
        let expected =
            format!(r#"{{"tenant_id":"{tenant}","A":{{  "x":"a\nb"}},"B":12345678901234567890.50,"Ü":null}}"#);
        assert_eq!(line(row), Some(expected));
        assert_eq!(line("{}"), Some(format!(r#"{{"tenant_id":"{tenant}"}}"#)));
        assert_eq!(
            line(r#"{"A\ud800":1}"#),
            Some(format!("{{\"tenant_id\":\"{tenant}\",\"A\u{fffd}\u{fffd}\u{fffd}\":1}}"))
        );
        for odd in ["null", "[{}]", "\"{}\"", "7"] {
            assert_eq!(line(odd), None, "{odd}");
        }
        assert!(line_of(&tenant, b"{\"A\":}").is_err() && line_of(&tenant, b"nul").is_err());
    }
}
