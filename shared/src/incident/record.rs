//! One incident as Microsoft sent it, and the few members that we parse.

use aws_lc_rs::digest;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::{tenant::TenantId, text::hex};

/// One incident, with the members that the version rules and the filters need. The rest of it stays as it was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Microsoft's id of the incident: 1 to 20 digits.
    pub incident_id: String,
    /// Time of the last update, with the fraction of a second that was sent.
    pub last_updated: Timestamp,
    /// Time of creation, if it was sent.
    pub created: Option<Timestamp>,
    /// Status in snake_case; `unknown` if none was sent.
    pub status: String,
    /// Severity in snake_case, if it was sent.
    pub severity: Option<String>,
    /// Name or address of the person that it is assigned to.
    pub assigned_to: Option<String>,
    /// Id of the incident that this one was merged into.
    pub merged_into: Option<String>,
    /// Number of alerts in it. `None`: it was read with [`Alerts::Omitted`].
    pub alerts: Option<usize>,
    /// Hash of status, merge target and set of alert ids. It tells apart two states with one time of last update.
    pub state_hash: String,
    /// The whole record as JSON without white space between its parts, and so on one line.
    pub json: Box<str>,
}

/// The alerts of an incident in a response. Defender always sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alerts {
    /// Graph is asked to expand them.
    Included,
    /// Graph sends the incident alone.
    Omitted,
}

/// The reason why a record cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The bytes are not a JSON object.
    NotJson,
    /// The id is missing or is not 1 to 20 digits.
    NoId,
    /// The time of the last update is missing or malformed.
    NoLastUpdate,
    /// The record names another tenant.
    ForeignTenant,
}

impl Unreadable {
    /// The word that the quarantine stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::NoId => "no_id",
            Self::NoLastUpdate => "no_last_update",
            Self::ForeignTenant => "foreign_tenant",
        }
    }
}

/// The members that are parsed, under the names of both APIs. Ids may be numbers or strings.
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

/// A string, or `None` for a value of any other type.
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
    /// Parses a record that Microsoft sent for `tenant`. With [`Alerts::Included`] the record holds all its alerts.
    ///
    /// # Errors
    /// The reason to quarantine it.
    pub fn parse(raw: &[u8], tenant: &TenantId, alerts: Alerts) -> Result<Self, Unreadable> {
        let json = strip_whitespace(raw).ok_or(Unreadable::NotJson)?;
        let body: RecordBody<'_> = serde_json::from_str(&json).map_err(|_| Unreadable::NotJson)?;
        if body.tenant_id.is_some_and(|named| TenantId::from_guid(&named) != Ok(*tenant)) {
            return Err(Unreadable::ForeignTenant);
        }
        let incident_id = body.id.and_then(identifier).filter(|id| is_incident_id(id)).ok_or(Unreadable::NoId)?;
        let last_updated = body.last_update.as_deref().and_then(parse_time).ok_or(Unreadable::NoLastUpdate)?;
        let status = body.status.as_deref().map_or_else(|| "unknown".into(), snake_case);
        let merged_into = body.merged_into.and_then(identifier).filter(|id| !id.is_empty() && id != "0");
        let alert_bodies = match (alerts, body.alerts) {
            (Alerts::Included, Some(sent)) => {
                serde_json::from_str::<Option<Vec<AlertBody<'_>>>>(sent.get()).ok().flatten().unwrap_or_default()
            }
            (Alerts::Included, None) | (Alerts::Omitted, _) => Vec::new(),
        };
        let alert_ids: Vec<String> = alert_bodies.iter().filter_map(|alert| identifier(alert.id?)).collect();
        Ok(Self {
            state_hash: state_hash_of(&status, merged_into.as_deref(), alert_ids),
            alerts: (alerts == Alerts::Included).then_some(alert_bodies.len()),
            created: body.created.as_deref().and_then(parse_time),
            severity: body.severity.as_deref().map(snake_case),
            assigned_to: body.assigned_to.filter(|name| !name.is_empty()),
            incident_id,
            last_updated,
            status,
            merged_into,
            json,
        })
    }

    /// The state of the incident for [`Change`](super::version::Change).
    pub fn state(&self) -> State {
        match self.status.as_str() {
            "redirected" => State::Redirected,
            "resolved" => State::Resolved,
            _ if self.merged_into.is_some() => State::Redirected,
            _ => State::Open,
        }
    }
}

/// The part of a status that decides the name of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Any status but the others.
    Open,
    /// Closed by a person or by Microsoft.
    Resolved,
    /// Merged into another incident.
    Redirected,
}

/// Returns whether a text can be the id of an incident: 1 to 20 digits.
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

/// Parses a time of either API. A time without an offset is in UTC.
pub(super) fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().or_else(|_| format!("{text}Z").parse()).ok()
}

/// Converts a word of either API: `InProgress`, `inProgress` and `in progress` all become `in_progress`.
pub(super) fn snake_case(text: &str) -> String {
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

/// The same JSON on one line, without white space between its parts. Strings and numbers keep every byte.
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

    fn parse(json: &str) -> Result<Record, Unreadable> {
        Record::parse(json.as_bytes(), &tenant(), Alerts::Included)
    }

    #[test]
    fn parses_records_of_both_apis() {
        let graph = parse(
            r#"{"id":"29","tenantId":"11111111-2222-4333-8444-ABCDEFABCDEF","status":"inProgress","severity":"high",
                "createdDateTime":"2026-01-22T12:09:23.1433333Z","lastUpdateDateTime":"2026-02-25T16:29:33.10Z",
                "assignedTo":null,"redirectIncidentId":null,"alerts":[{"id":"a"},{"id":"b"}]}"#,
        )
        .unwrap();
        let defender = parse(
            r#"{"incidentId":29,"status":"InProgress","severity":"High","createdTime":"2026-01-22T12:09:23.1433333",
                "lastUpdateTime":"2026-02-25T16:29:33.1Z","redirectIncidentId":null,"alerts":[{"alertId":"b"},{"alertId":"a"}]}"#,
        )
        .unwrap();
        assert_eq!(graph.last_updated.to_string(), "2026-02-25T16:29:33.1Z");
        assert_eq!(graph.created.unwrap().to_string(), "2026-01-22T12:09:23.1433333Z");
        assert_eq!(graph.state_hash, defender.state_hash, "the same state has the same hash on both APIs");
        assert_eq!(
            (graph.incident_id, graph.status, graph.severity, graph.created, graph.alerts),
            (defender.incident_id, defender.status, defender.severity, defender.created, defender.alerts)
        );
    }

    #[test]
    fn record_is_one_line_and_otherwise_as_sent() {
        let sent = "{ \"id\" : \"1\",\r\n \"lastUpdateDateTime\":\"2026-01-01T00:00:00Z\", \"n\": 1.50e+400, \"big\": 123456789012345678901234567890, \"t\":\"a\\n b\\u2028 \u{200b}\" }";
        let record = parse(sent).unwrap();
        assert_eq!(
            &*record.json,
            "{\"id\":\"1\",\"lastUpdateDateTime\":\"2026-01-01T00:00:00Z\",\"n\":1.50e+400,\"big\":123456789012345678901234567890,\"t\":\"a\\n b\\u2028 \u{200b}\"}"
        );
    }

    #[test]
    fn unreadable_records_have_a_reason() {
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
            assert_eq!(parse(json), Err(why), "{json}");
        }
    }

    #[test]
    fn unknown_words_wrong_types_and_nulls_are_accepted() {
        let record = parse(
            r#"{"id":"1","lastUpdateDateTime":"2026-01-01T00:00:00Z","status":7,"severity":"UnSpecified","alerts":null,"assignedTo":{},"new":[]}"#,
        )
        .unwrap();
        assert_eq!(
            (record.status.as_str(), record.severity.as_deref(), record.alerts),
            ("unknown", Some("un_specified"), Some(0))
        );
    }

    #[test]
    fn words_become_snake_case() {
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
        fn damaged_records_are_unreadable_or_have_an_id(
            raw in damaged(r#"{"id":"924565","tenantId":"11111111-2222-4333-8444-abcdefabcdef","status":"active","redirectIncidentId":null,"createdDateTime":"2026-01-02T03:04:05.1234567Z","lastUpdateDateTime":"2026-01-02T03:04:05.12Z","alerts":[{"id":"da1","severity":"low"}]}"#),
        ) {
            if let Ok(record) = Record::parse(&raw, &tenant(), Alerts::Included) {
                prop_assert!(is_incident_id(&record.incident_id));
                prop_assert!(serde_json::from_str::<serde_json::Value>(&record.json).is_ok());
            }
        }
    }
}
