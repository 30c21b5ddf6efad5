//! One incident as Microsoft sent it, and the little that we read of it.

use aws_lc_rs::digest;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::{tenant::TenantId, text::hex};

/// What a record is about, for the rules of versions and for filters. All else in it stays as it was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// 1 to 20 digits.
    pub incident_id: String,
    /// Time of last update, with the fraction that was sent.
    pub last_updated: Timestamp,
    /// Time of creation, where it was sent.
    pub created: Option<Timestamp>,
    /// Status in snake_case, `unknown` where none was sent.
    pub status: String,
    /// Severity in snake_case.
    pub severity: Option<String>,
    /// To whom it is assigned.
    pub assigned_to: Option<String>,
    /// The incident that this one was merged into.
    pub merged_into: Option<String>,
    /// How many alerts came with it; `None`: it was read without its alerts.
    pub alerts: Option<usize>,
    /// Tells apart two states of one record under one time of last update: status, merge target, set of alert ids.
    pub state_hash: String,
    /// The record, without line breaks.
    pub json: Box<str>,
}

/// Why a record cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It is not JSON.
    NotJson,
    /// Its identifier is missing or is not 1 to 20 digits.
    NoId,
    /// Its time of last update is missing or malformed.
    NoLastUpdate,
    /// It says that it belongs to another tenant.
    ForeignTenant,
}

impl Unreadable {
    /// A word for the quarantine.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::NoId => "no_id",
            Self::NoLastUpdate => "no_last_update",
            Self::ForeignTenant => "foreign_tenant",
        }
    }
}

/// The members that are read, under the names of both surfaces. Numbers and strings both serve as identifiers.
#[derive(Deserialize)]
struct RecordBody<'a> {
    #[serde(borrow, alias = "incidentId")]
    id: Option<&'a RawValue>,
    #[serde(default, alias = "lastUpdateTime", rename = "lastUpdateDateTime", deserialize_with = "lenient_text")]
    last_update: Option<String>,
    #[serde(default, alias = "createdTime", rename = "createdDateTime", deserialize_with = "lenient_text")]
    created: Option<String>,
    #[serde(default, deserialize_with = "lenient_text")]
    status: Option<String>,
    #[serde(default, deserialize_with = "lenient_text")]
    severity: Option<String>,
    #[serde(default, rename = "assignedTo", deserialize_with = "lenient_text")]
    assigned_to: Option<String>,
    #[serde(borrow, default, rename = "redirectIncidentId")]
    merged_into: Option<&'a RawValue>,
    #[serde(borrow, default)]
    alerts: Option<&'a RawValue>,
    #[serde(default, rename = "tenantId", deserialize_with = "lenient_text")]
    tenant_id: Option<String>,
}

#[derive(Deserialize)]
struct AlertBody<'a> {
    #[serde(borrow, default, alias = "alertId")]
    id: Option<&'a RawValue>,
}

/// Text, or nothing where something else stands.
fn lenient_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Lenient {
        Text(String),
        Other(serde::de::IgnoredAny),
    }
    Ok(match Option::<Lenient>::deserialize(deserializer)? {
        Some(Lenient::Text(text)) => Some(text),
        Some(Lenient::Other(_)) | None => None,
    })
}

impl Record {
    /// Reads what was sent for `tenant`; `with_alerts`: whether the alerts were asked for (and so are all here).
    pub fn parse(raw: &[u8], tenant: &TenantId, with_alerts: bool) -> Result<Self, Unreadable> {
        let json = strip_whitespace(raw).ok_or(Unreadable::NotJson)?;
        let wire: RecordBody<'_> = serde_json::from_str(&json).map_err(|_| Unreadable::NotJson)?;
        if wire.tenant_id.is_some_and(|named| TenantId::from_guid(&named) != Ok(*tenant)) {
            return Err(Unreadable::ForeignTenant);
        }
        let incident_id = wire.id.and_then(identifier).filter(|id| is_incident_id(id)).ok_or(Unreadable::NoId)?;
        let last_updated = wire.last_update.as_deref().and_then(time).ok_or(Unreadable::NoLastUpdate)?;
        let status = wire.status.as_deref().map_or_else(|| "unknown".into(), snake_case);
        let merged_into = wire.merged_into.and_then(identifier).filter(|id| !id.is_empty() && id != "0");
        let alerts = match wire.alerts {
            Some(alerts) if with_alerts => {
                serde_json::from_str::<Option<Vec<AlertBody<'_>>>>(alerts.get()).ok().flatten().unwrap_or_default()
            }
            _ => Vec::new(),
        };
        let ids: Vec<String> = alerts.iter().filter_map(|alert| identifier(alert.id?)).collect();
        Ok(Self {
            state_hash: state_hash_of(&status, merged_into.as_deref(), ids),
            alerts: with_alerts.then_some(alerts.len()),
            created: wire.created.as_deref().and_then(time),
            severity: wire.severity.as_deref().map(snake_case),
            assigned_to: wire.assigned_to.filter(|name| !name.is_empty()),
            incident_id,
            last_updated,
            status,
            merged_into,
            json,
        })
    }

    /// The state as far as `change` is concerned.
    pub fn state(&self) -> State {
        match self.status.as_str() {
            "redirected" => State::Redirected,
            "resolved" => State::Resolved,
            _ if self.merged_into.is_some() => State::Redirected,
            _ => State::Open,
        }
    }
}

/// What of a status decides how a change is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Neither of the others.
    Open,
    /// Closed.
    Resolved,
    /// Merged into another one.
    Redirected,
}

/// Whether a text is an incident's identifier: 1 to 20 digits.
pub fn is_incident_id(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn identifier(raw: &RawValue) -> Option<String> {
    let text = raw.get();
    if text == "null" {
        return None;
    }
    serde_json::from_str::<String>(text).ok().or_else(|| Some(text.to_owned()))
}

/// A time as either surface sends it.
pub(crate) fn time(text: &str) -> Option<Timestamp> {
    // Times without an offset are UTC as all others are.
    text.parse().or_else(|_| format!("{text}Z").parse()).ok()
}

/// `InProgress`, `inProgress` and `in progress` all become `in_progress`.
pub fn snake_case(text: &str) -> String {
    let mut snake = String::with_capacity(text.len() + 4);
    let mut after_lower = false;
    for letter in text.chars() {
        if letter.is_uppercase() {
            if after_lower {
                snake.push('_');
            }
            snake.extend(letter.to_lowercase());
        } else if letter.is_alphanumeric() {
            snake.push(letter);
        } else if !snake.ends_with('_') && !snake.is_empty() {
            snake.push('_');
        }
        after_lower = letter.is_lowercase() || letter.is_ascii_digit();
    }
    snake
}

fn state_hash_of(status: &str, merged_into: Option<&str>, mut alert_ids: Vec<String>) -> String {
    alert_ids.sort_unstable();
    alert_ids.dedup();
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [status, merged_into.unwrap_or_default()].into_iter().chain(alert_ids.iter().map(String::as_str)) {
        context.update(&part.len().to_be_bytes());
        context.update(part.as_bytes());
    }
    hex(&context.finish().as_ref()[..8])
}

/// The same JSON without white space between its parts, so that it is one line whatever was sent. Strings and numbers
/// stay as they are to the byte.
fn strip_whitespace(raw: &[u8]) -> Option<Box<str>> {
    let checked: &RawValue = serde_json::from_slice(raw).ok()?;
    let mut text = String::with_capacity(checked.get().len());
    let (mut in_string, mut escaped) = (false, false);
    for letter in checked.get().chars() {
        if in_string {
            match letter {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_string = false,
                _ => {}
            }
        } else if letter == '"' {
            in_string = true;
        } else if letter.is_ascii_whitespace() {
            continue;
        }
        text.push(letter);
    }
    Some(text.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::damaged;

    fn tenant() -> TenantId {
        "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap()
    }

    fn read(json: &str) -> Result<Record, Unreadable> {
        Record::parse(json.as_bytes(), &tenant(), true)
    }

    #[test]
    fn both_surfaces_are_read() {
        let graph = read(
            r#"{"id":"29","tenantId":"11111111-2222-4333-8444-ABCDEFABCDEF","status":"inProgress","severity":"high",
                "createdDateTime":"2026-01-22T12:09:23.1433333Z","lastUpdateDateTime":"2026-02-25T16:29:33.10Z",
                "assignedTo":null,"redirectIncidentId":null,"alerts":[{"id":"a"},{"id":"b"}]}"#,
        )
        .unwrap();
        let defender = read(
            r#"{"incidentId":29,"status":"InProgress","severity":"High","createdTime":"2026-01-22T12:09:23.1433333",
                "lastUpdateTime":"2026-02-25T16:29:33.1Z","redirectIncidentId":null,"alerts":[{"alertId":"b"},{"alertId":"a"}]}"#,
        )
        .unwrap();
        assert_eq!(graph.last_updated.to_string(), "2026-02-25T16:29:33.1Z");
        assert_eq!(graph.created.unwrap().to_string(), "2026-01-22T12:09:23.1433333Z");
        assert_eq!(graph.state_hash, defender.state_hash, "the same state has the same digest on both surfaces");
        assert_eq!(
            (graph.incident_id, graph.status, graph.severity, graph.created, graph.alerts),
            (defender.incident_id, defender.status, defender.severity, defender.created, defender.alerts)
        );
    }

    #[test]
    fn a_record_is_one_line_and_otherwise_as_it_was_sent() {
        let sent = "{ \"id\" : \"1\",\r\n \"lastUpdateDateTime\":\"2026-01-01T00:00:00Z\", \"n\": 1.50e+400, \"big\": 123456789012345678901234567890, \"t\":\"a\\n b\\u2028 \u{200b}\" }";
        let record = read(sent).unwrap();
        assert_eq!(
            &*record.json,
            "{\"id\":\"1\",\"lastUpdateDateTime\":\"2026-01-01T00:00:00Z\",\"n\":1.50e+400,\"big\":123456789012345678901234567890,\"t\":\"a\\n b\\u2028 \u{200b}\"}"
        );
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let table = [
            ("nonsense", Unreadable::NotJson),
            (r#"{"lastUpdateDateTime":"2026-01-01T00:00:00Z"}"#, Unreadable::NoId),
            (r#"{"id":"x","lastUpdateDateTime":"2026-01-01T00:00:00Z"}"#, Unreadable::NoId),
            (r#"{"id":123456789012345678901,"lastUpdateDateTime":"2026-01-01T00:00:00Z"}"#, Unreadable::NoId),
            (r#"{"id":"1"}"#, Unreadable::NoLastUpdate),
            (r#"{"id":"1","lastUpdateDateTime":5}"#, Unreadable::NoLastUpdate),
            (
                r#"{"id":"1","lastUpdateDateTime":"2026-01-01T00:00:00Z","tenantId":"22222222-2222-4333-8444-abcdefabcdef"}"#,
                Unreadable::ForeignTenant,
            ),
        ];
        for (json, why) in table {
            assert_eq!(read(json), Err(why), "{json}");
        }
    }

    #[test]
    fn unknown_enums_wrong_types_and_nulls_do_no_harm() {
        let record = read(
            r#"{"id":"1","lastUpdateDateTime":"2026-01-01T00:00:00Z","status":7,"severity":"UnSpecified","alerts":null,"assignedTo":{},"new":[]}"#,
        )
        .unwrap();
        assert_eq!(
            (record.status.as_str(), record.severity.as_deref(), record.alerts),
            ("unknown", Some("un_specified"), Some(0))
        );
    }

    #[test]
    fn names_of_enums_become_snake_case() {
        for (sent, ours) in [
            ("InProgress", "in_progress"),
            ("awaitingAction", "awaiting_action"),
            ("Active", "active"),
            ("Informational, expected activity", "informational_expected_activity"),
        ] {
            assert_eq!(snake_case(sent), ours);
        }
    }

    proptest! {
        #[test]
        fn damaged_records_are_set_aside_or_have_an_id_and_a_time(
            raw in damaged(r#"{"id":"924565","tenantId":"11111111-2222-4333-8444-abcdefabcdef","status":"active","redirectIncidentId":null,"createdDateTime":"2026-01-02T03:04:05.1234567Z","lastUpdateDateTime":"2026-01-02T03:04:05.12Z","alerts":[{"id":"da1","severity":"low"}]}"#),
        ) {
            if let Ok(record) = Record::parse(&raw, &tenant(), true) {
                prop_assert!(is_incident_id(&record.incident_id));
                prop_assert!(serde_json::from_str::<serde_json::Value>(&record.json).is_ok());
            }
        }
    }
}
